"""Every loss term against an independent float64 calculation (numpy loops or a closed form): value
*and* gradient."""

import math

import numpy as np
import pytest
import torch

import loss

EPS = 0.2
tensor = torch.tensor


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def log_probs(rng, *shape):
    return tensor(np.log(rng.uniform(0.05, 0.95, shape)))


def close(a, b, tol=1e-12):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=tol, atol=tol)


# ------------------------------------------------------------------------------------------ Mix-PPG


def mix_ppg_numpy(logp, logp_k, logp_b, A, eps):
    """Eq. 3 token by token: value and d/dlogp, written from the four quadrants and not from a min
    over tensors."""
    value, grad = np.zeros_like(logp), np.zeros_like(logp)
    for i in np.ndindex(logp.shape):
        r, c = math.exp(logp[i] - logp_b[i]), math.exp(logp_k[i] - logp_b[i])
        if A[i] > 0 and r > c + eps:  # pushed up enough: no gradient
            value[i] = -(c + eps) * A[i]
        elif A[i] < 0 and r < c - eps:  # pushed down enough: no gradient
            value[i] = -(c - eps) * A[i]
        else:
            value[i], grad[i] = -r * A[i], -r * A[i]
    return value, grad


def test_mix_ppg_against_numpy_on_random_replayed_data():
    rng = np.random.default_rng(0)
    logp, logp_k, logp_b = (log_probs(rng, 8, 50) for _ in range(3))
    A = tensor(rng.normal(size=(8, 50)))
    logp.requires_grad_()
    out = loss.mix_ppg(logp, logp_k, logp_b, A, EPS)
    out.sum().backward()
    value, grad = mix_ppg_numpy(*(x.detach().numpy() for x in (logp, logp_k, logp_b, A)), EPS)
    close(out.detach(), value)
    close(logp.grad, grad)
    assert 0.1 < np.mean(grad == 0) < 0.9  # both branches were visited


@pytest.mark.parametrize(
    "ratio, centre, A, value, grad",
    [  # fresh data, c = 1: the four quadrants of PPO's clip
        (1.5, 1.0, +2.0, -1.2 * 2, 0.0),  # above the band, good: clipped
        (1.5, 1.0, -2.0, +1.5 * 2, +1.5 * 2),  # above, bad: must be pushed back
        (0.5, 1.0, +2.0, -0.5 * 2, -0.5 * 2),  # below, good: must be pushed back
        (0.5, 1.0, -2.0, +0.8 * 2, 0.0),  # below, bad: clipped
        (1.1, 1.0, +2.0, -1.1 * 2, -1.1 * 2),  # inside
        # replayed data, c = 3: the band is 2.8 to 3.2, PPO's own band 0.8 to 1.2 plays no part
        (3.5, 3.0, +2.0, -3.2 * 2, 0.0),
        (3.5, 3.0, -2.0, +3.5 * 2, +3.5 * 2),
        (2.5, 3.0, +2.0, -2.5 * 2, -2.5 * 2),
        (2.5, 3.0, -2.0, +2.8 * 2, 0.0),
        (3.1, 3.0, +2.0, -3.1 * 2, -3.1 * 2),
    ],
)
def test_mix_ppg_quadrants(ratio, centre, A, value, grad):
    logp = tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    out = loss.mix_ppg(
        logp, tensor([[math.log(centre) - 1.0]]), tensor([[-1.0]]), tensor([[A]]), EPS
    )
    out.backward()
    close(out.item(), value)
    close(logp.grad.item(), grad)


def test_mix_ppg_identity():
    """w min(u A, clip(u, 1 +- eps / w) A) with w = c and u = pi_theta / pi_k is the same
    objective."""
    rng = np.random.default_rng(1)
    logp, logp_k, logp_b = (log_probs(rng, 4, 30) for _ in range(3))
    A = tensor(rng.normal(size=(4, 30)))
    w, u = torch.exp(logp_k - logp_b), torch.exp(logp - logp_k)
    other = -w * torch.minimum(u * A, torch.clamp(u, 1 - EPS / w, 1 + EPS / w) * A)
    close(loss.mix_ppg(logp, logp_k, logp_b, A, EPS), other)


def test_mix_ppg_on_fresh_data_is_ppo():
    rng = np.random.default_rng(2)
    logp, logp_b = log_probs(rng, 4, 30), log_probs(rng, 4, 30)
    A = tensor(rng.normal(size=(4, 30)))
    r = np.exp(logp.numpy() - logp_b.numpy())
    # Schulman et al. 2017, Eq. 7
    ppo = -np.minimum(r * A.numpy(), np.clip(r, 1 - EPS, 1 + EPS) * A.numpy())
    close(loss.mix_ppg(logp, logp_b, logp_b, A, EPS), ppo, 1e-15)


def test_mix_ppg_has_no_gradient_through_the_frozen_policies():
    rng = np.random.default_rng(3)
    logp, logp_k, logp_b = (log_probs(rng, 2, 3).requires_grad_() for _ in range(3))
    loss.mix_ppg(
        logp, logp_k, logp_b.detach(), tensor(rng.normal(size=(2, 3))), EPS
    ).sum().backward()
    assert logp_k.grad is None


def test_geppo_clip_eps():
    assert loss.geppo_clip_eps(0.2, [1.0]) == 0.2  # on-policy: plain eps
    assert loss.geppo_clip_eps(0.2, [0.6, 0.3, 0.1]) == pytest.approx(
        0.2 / (0.6 + 2 * 0.3 + 3 * 0.1)
    )


# ----------------------------------------------------------------------------------------------- KL


@pytest.mark.parametrize(
    "estimator, value, grad",
    [
        ("k1", lambda d: d, lambda d: d),  # d = logp - logp_ref; the gradient is k2's
        ("k2", lambda d: d**2 / 2, lambda d: d),
        ("k3", lambda d: np.exp(-d) + d - 1, lambda d: 1 - np.exp(-d)),
    ],
)
def test_kl_estimators_value_and_gradient(estimator, value, grad):
    rng = np.random.default_rng(4)
    logp, ref = log_probs(rng, 5, 7).requires_grad_(), log_probs(rng, 5, 7)
    out = loss.kl(logp, ref, estimator)
    out.sum().backward()
    d = logp.detach().numpy() - ref.numpy()
    close(out.detach(), value(d))
    close(logp.grad, grad(d))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_are_unbiased_for_the_right_direction(estimator):
    """Their mean under pi_theta is KL(pi_theta || pi_ref), the sum by hand, and not KL(pi_ref ||
    pi_theta)."""
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    mean = (tensor(p) * loss.kl(tensor(np.log(p)), tensor(np.log(q)), estimator)).sum().item()
    assert mean == pytest.approx(
        sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-12
    )
    assert abs(mean - sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))) > 0.01


def test_exact_kl_value_and_gradient():
    logits = tensor([[[0.3, -1.0, 2.0], [0.0, 0.5, 0.1]]], requires_grad=True)
    ref = torch.log_softmax(tensor([[[1.0, 0.0, -1.0], [0.2, 0.2, 0.2]]]), -1)
    out = loss.kl(torch.log_softmax(logits, -1), ref, "exact")
    out.sum().backward()
    p = np.exp(logits.detach().numpy())
    p /= p.sum(-1, keepdims=True)
    value = (p * (np.log(p) - ref.numpy())).sum(-1)
    close(out.detach(), value)
    # Closed form of d KL / d logits
    close(logits.grad, p * (np.log(p) - ref.numpy() - value[..., None]))


def enumerated(weights, logits, ref, estimator, logp_b=None):
    """Gradient, in the logits of 6 tokens, of the loss's mean over tokens of the given weights."""
    logits = logits.clone().requires_grad_()
    logp = torch.log_softmax(logits, -1)
    (weights * loss.kl(logp, ref, estimator, logp_b)).sum().backward()
    return logits.grad


def softmaxes(rng, n=3, tokens=6):
    """Logits of pi_theta, log-probs of n - 1 other policies."""
    logits, *others = tensor(rng.normal(size=(n, tokens)))
    return logits, *(torch.log_softmax(other, -1) for other in others)


def kl_gradient(p, q, towards):
    """Closed form of d KL / d logits of p: KL(p || q) and KL(q || p)."""
    if towards == "theta || ref":
        return p * (np.log(p / q) - (p * np.log(p / q)).sum())
    return p - q


@pytest.mark.parametrize(
    "estimator, towards", [("k1", "theta || ref"), ("k2", "theta || ref"), ("k3", "ref || theta")]
)
def test_the_gradient_of_each_kl_estimator_is_the_one_it_claims(estimator, towards):
    """A5, on-policy: the mean over pi_theta's own tokens, all six of them."""
    for seed in range(5):
        logits, ref = softmaxes(np.random.default_rng(seed), 2)
        p = torch.softmax(logits, -1)
        expected = kl_gradient(p.numpy(), ref.exp().numpy(), towards)
        close(enumerated(p, logits, ref, estimator), expected)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_weighted_estimators_have_the_kl_of_any_data(estimator):
    """A5, --kl_unbiased: tokens of another policy, value and gradient are KL(pi_theta || pi_ref)'s;
    on pi_theta's own, too."""
    for seed in range(5):
        logits, ref, other = softmaxes(np.random.default_rng(seed))
        logp = torch.log_softmax(logits, -1)
        p, q = logp.exp().numpy(), ref.exp().numpy()
        for logp_b in (other, logp):
            value = (logp_b.exp() * loss.kl(logp, ref, estimator, logp_b)).sum()
            assert value.item() == pytest.approx((p * np.log(p / q)).sum(), abs=1e-12)
            grad = enumerated(logp_b.exp(), logits, ref, estimator, logp_b)
            close(grad, kl_gradient(p, q, "theta || ref"))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_each_kl_estimator_pulls_on_replayed_data_too(estimator):
    """A5: descent on the tokens of another policy ends at pi_ref; k1's own gradient would go away
    from it."""
    for seed in range(3):
        logits, ref, other = softmaxes(np.random.default_rng(seed))
        moved = logits.clone()
        for _ in range(400):
            moved -= enumerated(other.exp(), moved, ref, estimator)
        torch.testing.assert_close(torch.softmax(moved, -1), ref.exp(), atol=0.01, rtol=0)


def test_unknown_estimator_is_an_error():
    with pytest.raises(ValueError, match="k4"):
        loss.kl(torch.zeros(1, 1), torch.zeros(1, 1), "k4")


# ---------------------------------------------------------------------------------------- KL-Convex


def test_kl_convex_lambda_schedule():
    expected = {
        1: 1,
        50: 1,
        51: 0.9,
        60: 0.9,
        61: 0.8,
        70: 0.8,
        71: 0.7,
        80: 0.7,
        81: 0.6,
        90: 0.6,
        91: 0.5,
        1000: 0.5,
    }
    assert {t: loss.kl_convex_lambda(t) for t in expected} == expected
    for t in range(1, 200):  # the paper's formula, as printed
        assert loss.kl_convex_lambda(t) == pytest.approx(
            max(1 - 0.1 * math.ceil(max(t - 50, 0) / 10), 0.5), abs=1e-12
        )


def test_kl_convex_value_and_gradient():
    rng = np.random.default_rng(5)
    logp, base, prev = (
        log_probs(rng, 3, 4).requires_grad_(),
        log_probs(rng, 3, 4),
        log_probs(rng, 3, 4),
    )
    out = loss.kl_convex(0.7, loss.kl(logp, base), loss.kl(logp, prev))
    out.sum().backward()
    d, e = logp.detach().numpy() - base.numpy(), logp.detach().numpy() - prev.numpy()
    close(out.detach(), 0.7 * (np.exp(-d) + d - 1) + 0.3 * (np.exp(-e) + e - 1))
    close(logp.grad, 0.7 * (1 - np.exp(-d)) + 0.3 * (1 - np.exp(-e)))


def test_kl_convex_with_lambda_one_is_the_base_anchor_alone():
    rng = np.random.default_rng(6)
    logp, base = log_probs(rng, 3, 4), log_probs(rng, 3, 4)
    assert torch.equal(loss.kl_convex(1.0, loss.kl(logp, base)), loss.kl(logp, base))


# ----------------------------------------------------------------------------------- entropy, value


def test_entropy_value_and_gradient():
    logits = tensor(np.random.default_rng(7).normal(size=(2, 3, 5)), requires_grad=True)
    out = loss.entropy(logits)
    out.sum().backward()
    p = np.exp(logits.detach().numpy())
    p /= p.sum(-1, keepdims=True)
    H = -(p * np.log(p)).sum(-1)
    close(out.detach(), H)
    close(logits.grad, -p * (np.log(p) + H[..., None]))
    close(loss.entropy(torch.zeros(1, 8)), tensor([math.log(8)]))


def test_value_loss_value_and_gradient():
    rng = np.random.default_rng(8)
    values, old, returns = (rng.normal(size=(6, 40)) for _ in range(3))
    v = tensor(values, requires_grad=True)
    out = loss.value_loss(v, tensor(old), tensor(returns), 0.5)
    out.sum().backward()
    value, grad = np.zeros_like(values), np.zeros_like(values)
    for i in np.ndindex(values.shape):
        clipped = min(max(values[i], old[i] - 0.5), old[i] + 0.5)
        plain, moved = (values[i] - returns[i]) ** 2, (clipped - returns[i]) ** 2
        value[i] = max(plain, moved) / 2
        outside = clipped != values[i]
        grad[i] = 0.0 if moved > plain and outside else values[i] - returns[i]
    close(out.detach(), value)
    close(v.grad, grad)
    assert 0 < np.mean(grad == 0) < 1


# --------------------------------------------------------------------------------------- advantages


def gae_by_definition(rewards, values, n, gamma, lam, trace):
    """A_t = sum_i (gamma lam)^i (prod_{j=1..i} trace_{t+j}) delta_{t+i}, summed term by term."""
    delta = [
        rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)
    ]
    return [
        sum(
            (gamma * lam) ** i * math.prod(trace[t + 1 : t + i + 1]) * delta[t + i]
            for i in range(n - t)
        )
        for t in range(n)
    ]


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0)])
@pytest.mark.parametrize("traced", [False, True])
def test_gae_against_its_definition(gamma, lam, traced):
    rng = np.random.default_rng(9)
    lengths, T = [7, 3, 1], 7
    mask = tensor([[1.0] * n + [0.0] * (T - n) for n in lengths])
    # Rubbish on the pads
    rewards, values = (tensor(rng.normal(size=(3, T))) * mask, tensor(rng.normal(size=(3, T))))
    trace = tensor(rng.uniform(0.3, 1.0, (3, T)))
    advantages, returns = loss.gae(rewards, values, mask, gamma, lam, trace if traced else None)
    for b, n in enumerate(lengths):
        factors = trace[b].tolist() if traced else [1.0] * T
        close(
            advantages[b, :n],
            gae_by_definition(rewards[b].tolist(), values[b].tolist(), n, gamma, lam, factors),
        )
    close(returns, (advantages + values) * mask)
    assert (advantages * (1 - mask) == 0).all()


def test_gae_with_gamma_and_lambda_one_is_return_minus_value():
    mask, values = torch.ones(1, 4), tensor([[0.1, 0.2, 0.3, 0.4]])
    advantages, returns = loss.gae(tensor([[0.0, 0.0, 0.0, 1.0]]), values, mask, 1.0, 1.0)
    close(advantages, 1 - values)
    close(returns, torch.ones(1, 4))


def test_group_advantages():
    rewards = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    out = loss.group_advantages(tensor(rewards), 4)
    first = np.array(rewards[:4])
    close(out[:4], (first - first.mean()) / (first.std(ddof=1) + 1e-6))
    close(out[4:], [0.0] * 4)
    for bad in (1, 3):
        with pytest.raises(ValueError, match="group_size"):
            loss.group_advantages(tensor(rewards), bad)


def test_whiten_looks_at_the_mask_only():
    x, mask = (
        tensor([[1.0, 2.0, 99.0], [3.0, 99.0, 99.0]]),
        tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
    )
    out = loss.whiten(x, mask)
    close(out, tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), 1e-7)  # mean 2, unbiased std 1


# ---------------------------------------------------------------------------------------- reduction


def test_token_mean_is_the_same_for_any_split_into_micro_batches():
    rng = np.random.default_rng(10)
    x, mask = tensor(rng.normal(size=(6, 5))), tensor(rng.integers(0, 2, (6, 5)).astype(float))
    n = int(mask.sum())
    whole = loss.token_mean(x, mask, n)
    close(whole, (x.numpy() * mask.numpy()).sum() / mask.numpy().sum())
    close(sum(loss.token_mean(x[i : i + 2], mask[i : i + 2], n) for i in (0, 2, 4)), whole)
