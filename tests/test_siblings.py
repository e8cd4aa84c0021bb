"""Every sibling's loss against its equation written out token by token in Python floats: value
*and* gradient."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import loss
from buffer import Response
from parallel import Batch
from siblings import LOSSES, bapo_bounds, engine_weight, m2po_cut, rescore

EPS = 0.2
# One response has no tokens, as the dummy row of a rank that is out of work
LENGTHS = [9, 5, 1, 0, 7, 2]
EXTRA = dict(m2po=dict(cut=0.4), bapo=dict(low=0.7, high=1.9))  # what `whole` gives in training
NAMES = list(LOSSES)
tensor = torch.tensor


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(a, b, tol=1e-12):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=tol, atol=tol)


def batch(seed=0, lengths=LENGTHS, width=None, per_response=False) -> dict:
    """Keywords of a loss: random log-probs of three policies, right-padded with 0; rubbish
    advantages on the pads."""
    rng = np.random.default_rng(seed)
    T = max(lengths)
    mask = np.array([[1.0] * n + [0.0] * (T - n) for n in lengths])
    logp_b = np.log(rng.uniform(0.05, 0.95, mask.shape))
    logp_k = np.minimum(logp_b + 0.3 * rng.normal(size=mask.shape), -0.01)
    logp = np.minimum(logp_k + 0.3 * rng.normal(size=mask.shape), -0.01)
    A = rng.normal(size=mask.shape)
    if per_response:
        A = np.repeat(A[:, :1], T, axis=1)
    out = dict(
        logp=logp * mask, logp_k=logp_k * mask, logp_b=logp_b * mask, advantages=A, mask=mask
    )
    if width is not None:
        out = {k: np.pad(x, ((0, 0), (0, width - T))) for k, x in out.items()}
    return {k: tensor(x) for k, x in out.items()} | dict(clip_eps=EPS)


def summed(name, kw, **extra):
    """The sum that the loop divides by its normaliser."""
    out = LOSSES[name].loss(**kw, **{**EXTRA.get(name, {}), **extra})
    return (out * kw["mask"]).sum() if out.ndim == 2 else out.sum()


def gradient(name, kw, **extra):
    kw = kw | dict(logp=kw["logp"].detach().clone().requires_grad_())
    summed(name, kw, **extra).backward()
    return kw["logp"].grad


# ------------------------------------------------------------------------------------ the equations
# One response without pads: lists of floats (logp, logp_k, logp_b, A) -> (value, d value / d logp),
# lists of tokens, or one value a response. The clip is written as its four quadrants, a stopped
# gradient is left out by hand.


def clip_ref(r, A, low, high):
    if A > 0 and r > high:
        return -high * A, 0.0
    if A < 0 and r < low:
        return -low * A, 0.0
    return -r * A, -r * A  # d r / d logp = r


def per_token(f):
    def run(lp, lk, lb, A):
        pairs = [f(*x) for x in zip(lp, lk, lb, A, strict=True)]
        return [v for v, _ in pairs], [g for _, g in pairs]

    return run


def decoupled_ref(lp, lk, lb, A):
    w = math.exp(lk) / math.exp(lb)
    value, grad = clip_ref(math.exp(lp) / math.exp(lk), A, 1 - EPS, 1 + EPS)
    return w * value, w * grad


def cispo_ref(lp, lk, lb, A, weight=None):
    w = min(math.exp(lp) / math.exp(lb), 5.0) if weight is None else weight
    return -w * A * lp, -w * A


def minpro_ref(lp, lk, lb, A):
    ratios = [math.exp(p) / math.exp(b) for p, b in zip(lp, lb, strict=True)]
    weights = [min(r * min(ratios[:t], default=1.0), 5.0) for t, r in enumerate(ratios)]
    pairs = [cispo_ref(p, 0, 0, a, w) for p, a, w in zip(lp, A, weights, strict=True)]
    return [v for v, _ in pairs], [g for _, g in pairs]


def m2po_ref(lp, lk, lb, A):
    r = math.exp(lp) / math.exp(lb)
    on_the_clipped_side = (A > 0 and r > 1) or (A < 0 and r < 1)
    far = math.log(r) ** 2 >= EXTRA["m2po"]["cut"] ** 2
    return (0.0, 0.0) if on_the_clipped_side and far else (-r * A, -r * A)


def dppo_ref(lp, lk, lb, A):
    p, b = math.exp(lp), math.exp(lb)
    too_far = p > b + 0.2 if A > 0 else p < b - 0.2
    return (0.0, 0.0) if too_far else (-p / b * A, -p / b * A)


def vespo_ref(lp, lk, lb, A):
    w = math.prod(math.exp(p) / math.exp(b) for p, b in zip(lp, lb, strict=True))
    k, lam = (2, 3) if sum(A) >= 0 else (3, 2)
    phi = w**k * math.exp(-lam * w) / math.exp(-lam)
    return [-phi * a * p for p, a in zip(lp, A, strict=True)], [-phi * a for a in A]


def gspo_ref(lp, lk, lb, A):
    n, mean_A = len(lp), sum(A) / len(A)
    s = math.prod(math.exp(p) / math.exp(b) for p, b in zip(lp, lb, strict=True)) ** (1 / n)
    value, grad = clip_ref(s, mean_A, 1 - 3e-4, 1 + 4e-4)
    return value, [grad / n] * n  # d s / d logp_t = s / n


def topr_ref(lp, lk, lb, A):
    R = sum(A) / len(A)
    weight = 1.0 if R >= 0 else min(1.0, math.exp(sum(lp)) / math.exp(sum(lb)))
    return -weight * R * sum(lp), [-weight * R] * len(lp)


def asymre_ref(lp, lk, lb, A):
    return sum(-a * p for p, a in zip(lp, A, strict=True)), [-a for a in A]


def opmd_ref(lp, lk, lb, A):
    tau, log_ratio = 1e-3, sum(lp) - sum(lk)
    value = sum(-a * p for p, a in zip(lp, A, strict=True)) + tau * log_ratio**2 / 2
    return value, [-a + tau * log_ratio for a in A]


def oapl_ref(lp, lk, lb, A):
    beta, target = 1e-3, sum(A) / len(A)
    error = target - beta * (sum(lp) - sum(lb))
    return error**2, [-2 * beta * error] * len(lp)


ppo_ref = per_token(
    lambda lp, lk, lb, A: clip_ref(math.exp(lp) / math.exp(lb), A, 1 - EPS, 1 + EPS)
)
EQUATIONS = dict(
    ppo=ppo_ref,
    decoupled_ppo=per_token(decoupled_ref),
    clip_higher=per_token(
        lambda lp, lk, lb, A: clip_ref(math.exp(lp) / math.exp(lb), A, 0.8, 1.28)
    ),
    dr_grpo=ppo_ref,
    gspo=gspo_ref,
    dppo=per_token(dppo_ref),
    cispo=per_token(cispo_ref),
    minpro=minpro_ref,
    vespo=vespo_ref,
    m2po=per_token(m2po_ref),
    bapo=per_token(lambda lp, lk, lb, A: clip_ref(math.exp(lp) / math.exp(lb), A, 0.7, 1.9)),
    topr=topr_ref,
    asymre=asymre_ref,
    opmd=opmd_ref,
    oapl=oapl_ref,
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradient_against_the_equation(name, seed):
    kw = batch(seed)
    kw["logp"].requires_grad_()
    out = LOSSES[name].loss(**kw, **EXTRA.get(name, {}))
    (out * kw["mask"] if out.ndim == 2 else out).sum().backward()
    for b, n in enumerate(LENGTHS):
        if n == 0:
            assert out.ndim == 2 or out[b] == 0
        else:
            lists = (kw[k][b, :n].tolist() for k in ("logp", "logp_k", "logp_b", "advantages"))
            value, grad = EQUATIONS[name](*lists)
            close(out[b, :n].detach() if out.ndim == 2 else out[b].detach(), tensor(value))
            close(kw["logp"].grad[b, :n], tensor(grad))
        assert (
            kw["logp"].grad[b, n:] == 0
        ).all()  # nothing reaches a pad, nor a row without tokens


@pytest.mark.parametrize("name", ["ppo", "clip_higher", "decoupled_ppo", "bapo", "m2po", "dppo"])
def test_both_branches_were_visited(name):
    grads = torch.cat([gradient(name, batch(seed))[batch(seed)["mask"] == 1] for seed in range(5)])
    assert 0.02 < (grads == 0).double().mean() < 0.9


@pytest.mark.parametrize("name", ["cispo", "minpro"])
def test_the_cap_of_a_weight(name):
    """d/dlogp = -weight A: 4 stays, 40 becomes 5; with A < 0 too, since no side of the band is
    lost."""
    for ratio, weight in [(4.0, 4.0), (40.0, 5.0), (0.01, 0.01)]:
        kw = batch(0, [1]) | dict(logp=tensor([[-0.1]]), logp_b=tensor([[-0.1 - math.log(ratio)]]))
        for A in (+2.0, -2.0):
            close(gradient(name, kw | dict(advantages=tensor([[A]]))), tensor([[-weight * A]]))


def test_topr_is_capped_at_one_for_wrong_responses_and_weighs_right_ones_by_one():
    for A, log_ratio, weight in [
        (-1, +700.0, 1.0),
        (-1, -2.0, math.exp(-2)),
        (1, -2.0, 1.0),
        (1, +700.0, 1.0),
    ]:
        kw = batch(0, [1]) | dict(logp=tensor([[-1.0]]), logp_b=tensor([[-1.0 - log_ratio]]))
        close(gradient("topr", kw | dict(advantages=tensor([[float(A)]]))), tensor([[-weight * A]]))
    far = batch(0, [1]) | dict(
        logp=tensor([[-1.0]]), logp_b=tensor([[-1001.0]]), advantages=tensor([[-1.0]])
    )
    assert torch.isfinite(gradient("topr", far)).all()  # exp(1000) is never formed


def test_dppo_drops_by_the_probability_and_not_by_the_ratio():
    """A rare token may grow a hundredfold; a likely one is held, on the advantage's side."""
    for old, new, A, kept in [
        (0.001, 0.1, +1, True),
        (0.5, 0.69, +1, True),
        (0.5, 0.71, +1, False),
        (0.5, 0.71, -1, True),
        (0.5, 0.31, -1, True),
        (0.5, 0.29, -1, False),
        (0.5, 0.29, +1, True),
        (0.5, 0.71, 0, True),
    ]:
        kw = batch(0, [1]) | dict(logp=tensor([[math.log(new)]]), logp_b=tensor([[math.log(old)]]))
        grad = gradient("dppo", kw | dict(advantages=tensor([[float(A)]])))
        close(grad, tensor([[-A * new / old if kept else 0.0]]))


@pytest.mark.parametrize("A, k, lam", [(1.0, 2, 3), (-1.0, 3, 2)])
def test_the_weight_of_vespo_is_one_on_policy_highest_at_k_over_lambda_and_fades(A, k, lam):
    def weight(log_w):
        kw = batch(0, [1]) | dict(logp=tensor([[-1.0]]), logp_b=tensor([[-1.0 - log_w]]))
        return -A * gradient("vespo", kw | dict(advantages=tensor([[A]]))).item()

    top = math.log(k / lam)
    assert weight(0.0) == 1 and weight(top) > max(weight(top - 0.1), weight(top + 0.1), 1)
    assert weight(-700.0) == weight(+700.0) == weight(+800.0) == 0  # exp(800) is inf


def test_minpro_against_the_exact_prefix_ratio():
    """Of one token it is CISPO; of two it is the exact prefix ratio r_1 r_2; a low ratio early on
    fades all the rest."""
    one = batch(1, [1, 1, 1])
    close(gradient("minpro", one), gradient("cispo", one))
    two = batch(1, [2, 2, 2])
    prefix = torch.exp((two["logp"] - two["logp_b"]).cumsum(1))
    close(gradient("minpro", two), -prefix.clamp(max=5.0) * two["advantages"])
    log_ratios = tensor([[math.log(0.1), 0.0, math.log(0.5), 0.0]])
    kw = batch(1, [4]) | dict(
        logp=log_ratios - 3, logp_b=torch.full((1, 4), -3.0), advantages=torch.ones(1, 4)
    )
    close(gradient("minpro", kw), -tensor([[0.1, 0.1, 0.05, 0.1]]))


# ----------------------------------------------------------------------------------- what all share


@pytest.mark.parametrize("name", NAMES)
def test_padding_never_matters(name):
    narrow, wide = batch(2), batch(2, width=20)
    close(summed(name, narrow), summed(name, wide))
    close(gradient(name, narrow), gradient(name, wide)[:, : max(LENGTHS)])
    rubbish = narrow | dict(advantages=narrow["advantages"] + 99 * (1 - narrow["mask"]))
    close(summed(name, narrow), summed(name, rubbish))
    close(gradient(name, narrow), gradient(name, rubbish))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_tokens_contributes_nothing(name):
    kw = batch(3)
    without = {k: v if k == "clip_eps" else v[[0, 1, 2, 4, 5]] for k, v in kw.items()}
    close(summed(name, kw), summed(name, without))
    # Real log-probs under an all-0 mask: a rank out of work
    dummy = kw | dict(mask=torch.zeros_like(kw["mask"]))
    assert summed(name, dummy) == 0
    assert (gradient(name, dummy) == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_any_split_into_micro_batches_is_the_same(name):
    """With the statistics of the whole mini-batch, for those that need them."""
    kw, sibling = batch(4), LOSSES[name]
    keep = kw["mask"] == 1
    stats = {}
    if sibling.whole is not None:
        stats = sibling.whole(*(kw[k][keep] for k in ("logp", "logp_b", "advantages")))
    whole = gradient(name, kw, **stats)
    parts = [{k: v if k == "clip_eps" else v[i : i + 2] for k, v in kw.items()} for i in (0, 2, 4)]
    close(torch.cat([gradient(name, part, **stats) for part in parts]), whole)


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_through_the_frozen_policies(name):
    kw = batch(5)
    for k in ("logp", "logp_k", "logp_b"):
        kw[k].requires_grad_()
    summed(name, kw).backward()
    assert kw["logp"].grad is not None and kw["logp_k"].grad is None and kw["logp_b"].grad is None


@pytest.mark.parametrize("name", NAMES)
def test_the_first_step_on_fresh_data_is_reinforce(name):
    """theta = pi_k = pi_b: all of them, up to a constant factor, push with the advantage and
    nothing else."""
    kw = batch(6, per_response=True)
    kw |= dict(logp=kw["logp_b"].clone(), logp_k=kw["logp_b"])
    scale = kw["mask"]
    if name == "gspo":
        # The mean of the response's tokens
        scale = kw["mask"] / kw["mask"].sum(1, keepdim=True).clamp(min=1)
    if name == "oapl":
        scale = 2 * 1e-3 * kw["mask"]
    close(gradient(name, kw), -kw["advantages"] * scale)


def test_the_registry():
    assert set(EQUATIONS) == set(LOSSES)
    for name, sibling in LOSSES.items():
        out = sibling.loss(**batch(7), **EXTRA.get(name, {}))
        assert out.shape == (
            (len(LENGTHS),) if sibling.per == "response" else (len(LENGTHS), max(LENGTHS))
        )
        assert sibling.per in ("token", "response", "constant") and sibling.source
        if sibling.advantage is not None:
            assert sibling.advantage(tensor([1.0, 0.0, 0.0, 1.0]), 2).shape == (4,)
        # Forgetting the pass over the whole mini-batch is an error, not another loss
        if sibling.whole is not None:
            with pytest.raises(TypeError):
                sibling.loss(**batch(7))
    assert [n for n, s in LOSSES.items() if s.per == "constant"] == ["dr_grpo"]


# --------------------------------------------------------------------------------------- reductions


def test_reductions_to_ppo():
    kw = batch(8)
    ppo = LOSSES["ppo"].loss(**kw)
    frozen = kw["logp"], kw["logp_b"], kw["logp_b"], kw["advantages"], EPS
    close(ppo, loss.mix_ppg(*frozen))  # on fresh data, pi_k = pi_b, ...
    close(LOSSES["decoupled_ppo"].loss(**(kw | dict(logp_k=kw["logp_b"]))), ppo)
    close(LOSSES["clip_higher"].loss(**kw, eps_low=EPS, eps_high=EPS), ppo)
    close(LOSSES["bapo"].loss(**kw, low=1 - EPS, high=1 + EPS), ppo)
    assert LOSSES["dr_grpo"].loss is LOSSES["ppo"].loss
    one = batch(8, [1] * 50)
    close(LOSSES["gspo"].loss(**one, eps_low=EPS, eps_high=EPS), LOSSES["ppo"].loss(**one)[:, 0])


def test_on_replayed_data_mix_ppg_and_its_siblings_differ():
    kw = batch(9)
    mix = loss.mix_ppg(kw["logp"], kw["logp_k"], kw["logp_b"], kw["advantages"], EPS)
    for name in ("ppo", "decoupled_ppo"):
        assert (LOSSES[name].loss(**kw) - mix)[kw["mask"] == 1].abs().max() > 0.01


def test_m2po_without_a_cut_is_the_plain_ratio_and_with_zero_only_pulls_back():
    kw = batch(10)
    close(
        LOSSES["m2po"].loss(**kw, cut=math.inf),
        -torch.exp(kw["logp"] - kw["logp_b"]) * kw["advantages"],
    )
    pushes_on = ((kw["logp"] - kw["logp_b"]) * kw["advantages"] > 0) & (kw["mask"] == 1)
    assert torch.equal((gradient("m2po", kw, cut=0.0) == 0) & (kw["mask"] == 1), pushes_on)


def test_dppo_without_a_bound_is_the_plain_ratio():
    kw = batch(10)
    plain = -torch.exp(kw["logp"] - kw["logp_b"]) * kw["advantages"]
    close(LOSSES["dppo"].loss(**kw, delta=math.inf), plain)
    assert (LOSSES["dppo"].loss(**kw) - plain).abs().max() > 0.01


def test_vespo_without_decay_is_the_responses_importance_weight():
    """w A, whose gradient is w A too: k = 1, lambda = 0; and REINFORCE with k = 0."""
    kw = batch(14, per_response=True)
    logp = kw["logp"].clone().requires_grad_()
    w = torch.exp(((logp - kw["logp_b"]) * kw["mask"]).sum(1))
    (-w * kw["advantages"][:, 0]).sum().backward()
    close(gradient("vespo", kw, positive=(1.0, 0.0), negative=(1.0, 0.0)), logp.grad)
    reinforce = gradient("vespo", kw, positive=(0.0, 0.0), negative=(0.0, 0.0))
    close(reinforce, -kw["advantages"] * kw["mask"])


def test_reductions_to_reinforce():
    kw = batch(11, per_response=True)
    asymre = LOSSES["asymre"].loss(**kw)
    close(LOSSES["opmd"].loss(**kw, tau=0.0), asymre)
    right = kw | dict(advantages=kw["advantages"].abs())
    close(LOSSES["topr"].loss(**right), LOSSES["asymre"].loss(**right))
    close(LOSSES["topr"].loss(**(kw | dict(logp_b=kw["logp"]))), asymre)


@pytest.mark.parametrize("name, old", [("opmd", "logp_k"), ("oapl", "logp_b")])
def test_the_regressions_by_finite_differences(name, old):
    """Both are a squared regression (b log(pi / pi_old) - A)^2 / c: opmd with c = 2 b, oapl with c
    = 1."""
    b = 0.3
    kw = batch(12, [4, 3], per_response=True)
    logp, pi_old, A, mask = (kw[k].numpy() for k in ("logp", old, "advantages", "mask"))

    def regression(x):
        return sum((b * ((x[i] - pi_old[i]) * mask[i]).sum() - A[i, 0]) ** 2 for i in range(2))

    numeric = np.zeros_like(logp)
    for i in np.ndindex(logp.shape):
        step = np.zeros_like(logp)
        step[i] = 1e-5
        numeric[i] = (regression(logp + step) - regression(logp - step)) / 2e-5
    got = gradient(name, kw, **(dict(tau=b) if name == "opmd" else dict(beta=b)))
    close(got, numeric / (2 * b if name == "opmd" else 1), 1e-8)


def test_opmd_is_around_pi_k_and_oapl_around_the_policy_that_sampled():
    kw = batch(13)
    shifted = kw["mask"] * -0.5
    for name, moves, stays in [("opmd", "logp_k", "logp_b"), ("oapl", "logp_b", "logp_k")]:
        assert (
            gradient(name, kw | {moves: kw[moves] + shifted}) - gradient(name, kw)
        ).abs().max() > 1e-6
        close(gradient(name, kw | {stays: kw[stays] + shifted}), gradient(name, kw))


# --------------------------------------------------------------------------------------- advantages

REWARDS = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "name, value",
    [
        ("dr_grpo", lambda r, group: r - sum(group) / 4),
        ("asymre", lambda r, group: r - (sum(group) / 4 - 0.1)),
        ("opmd", lambda r, group: r - sum(group) / 4),
        ("oapl", lambda r, group: r - math.log(sum(math.exp(x) for x in group) / 4)),
        ("topr", lambda r, group: 1.0 if r == 1 else -1.0),
    ],
)
def test_advantages(name, value):
    got = LOSSES[name].advantage(tensor(REWARDS), 4)
    close(
        got, tensor([value(r, REWARDS[i // 4 * 4 : i // 4 * 4 + 4]) for i, r in enumerate(REWARDS)])
    )
    if name != "topr":  # it needs no group
        for bad in (1, 5):
            with pytest.raises(ValueError, match="group_size"):
                LOSSES[name].advantage(tensor(REWARDS), bad)


def test_dr_grpo_is_grpo_without_its_division():
    groups = np.array(REWARDS).reshape(-1, 4)
    std = np.repeat(groups.std(1, ddof=1), 4)
    close(
        LOSSES["dr_grpo"].advantage(tensor(REWARDS), 4) / (tensor(std) + 1e-6),
        loss.group_advantages(tensor(REWARDS), 4),
    )


def test_the_optimal_value_lies_between_the_mean_and_the_best_reward():
    advantage, rewards = LOSSES["oapl"].advantage, tensor([1.0, 0.0, 0.0, 0.25])
    close(advantage(rewards, 4, beta_value=1e7), rewards - rewards.mean(), 1e-6)
    close(advantage(rewards, 4, beta_value=1e-3), rewards - 1, 2e-3)  # 1e-3 log 4 off
    close(advantage(rewards + 3, 4), advantage(rewards, 4))
    assert advantage(rewards, 4).sum() < 0


def test_topr_baseline():
    close(LOSSES["topr"].advantage(tensor([1.0, 0.0]), 2, baseline=0.5), tensor([0.5, -1.5]))


# --------------------------------------------------------------------------------- whole mini-batch


def tokens(seed, n=400, spread=0.6):
    rng = np.random.default_rng(seed)
    logp_b = np.log(rng.uniform(0.05, 0.95, n))
    return tensor(logp_b + spread * rng.normal(size=n)), tensor(logp_b), tensor(rng.normal(size=n))


@pytest.mark.parametrize("seed", range(5))
def test_m2po_cut_against_taking_out_the_largest_one_by_one(seed):
    logp, logp_b, A = tokens(seed)
    counted = [
        (d * d, i)
        for i, (d, a) in enumerate(zip((logp - logp_b).tolist(), A.tolist(), strict=True))
        if (a > 0 and d > 0) or (a < 0 and d < 0)
    ]
    left = sorted(counted)
    while left and sum(m for m, _ in left) / len(left) > 0.04:
        left.pop()
    assert 0 < len(left) < len(counted)
    cut = m2po_cut(logp, logp_b, A)["cut"]
    out = LOSSES["m2po"].loss(logp=logp[None], logp_b=logp_b[None], advantages=A[None], cut=cut)[0]
    masked = {i for _, i in counted} - {i for _, i in left}
    assert set((out == 0).nonzero()[:, 0].tolist()) == masked
    shuffle = torch.randperm(len(A))
    # Ranks and order do not matter
    assert m2po_cut(logp[shuffle], logp_b[shuffle], A[shuffle])["cut"] == cut


def test_m2po_cut_at_the_edges():
    logp, logp_b, A = tokens(0, spread=0.01)
    # The second moment is small: nothing to mask
    assert m2po_cut(logp, logp_b, A) == dict(cut=math.inf)
    assert m2po_cut(logp_b, logp_b, A) == dict(cut=math.inf)  # fresh data: nothing counts
    far = torch.full((3,), 1.0)
    assert m2po_cut(far, far - 1, far) == dict(cut=1.0)  # all are too far: all are masked
    assert (LOSSES["m2po"].loss(logp=far, logp_b=far - 1, advantages=far, cut=1.0) == 0).all()
    pulled_back = m2po_cut(far, far - 1, -far)  # far away, but the step would bring them back
    assert pulled_back == dict(cut=math.inf)
    zero = torch.zeros(3)
    # A mean of 0.25 may stay
    assert m2po_cut(tensor([0.5, 0.75, 0.5]), zero, far, threshold=0.25) == dict(cut=0.75)


def test_m2po_masks_the_same_tokens_in_float32():
    logp, logp_b, A = (x.float() for x in tokens(1))
    cut = m2po_cut(logp, logp_b, A)["cut"]
    out = LOSSES["m2po"].loss(logp=logp, logp_b=logp_b, advantages=A, cut=cut)
    d = logp - logp_b
    kept = (d * A > 0) & (out != 0)
    dropped = (d * A > 0) & (out == 0)
    assert (
        d[kept].square().mean()
        <= 0.04
        < torch.cat([d[kept], d[dropped].abs().min()[None]]).square().mean()
    )


def bapo_reference(ratios, A, target):
    """Algorithm 1 as printed, with exact steps."""
    low, high, last_low, last_high = (Fraction(x) for x in ("0.6", "1.2", "0.9", "3.0"))

    def share():
        pos = sum(min(r, float(high)) * a for r, a in zip(ratios, A, strict=True) if a > 0)
        neg = sum(max(r, float(low)) * -a for r, a in zip(ratios, A, strict=True) if a < 0)
        return pos / (pos + neg)

    while share() < target and low + Fraction("0.02") <= last_low:
        if high + Fraction("0.05") <= last_high:
            high += Fraction("0.05")
        else:
            low += Fraction("0.02")
    return float(low), float(high)


@pytest.mark.parametrize("shift", [0.0, -0.05, -0.1, -0.15, -0.2, -0.25, -0.3, -0.35, -0.6])
def test_bapo_bounds_against_the_algorithm(shift):
    logp, logp_b, A = tokens(2, spread=0.9)
    A = A + shift  # the lower, the fewer tokens are positive
    got = bapo_bounds(logp, logp_b, A, target=0.45)
    low, high = bapo_reference(torch.exp(logp - logp_b).tolist(), A.tolist(), 0.45)
    close([got["low"], got["high"]], [low, high])
    shuffle = torch.randperm(len(A))
    assert bapo_bounds(logp[shuffle], logp_b[shuffle], A[shuffle], target=0.45) == got


def test_bapo_bounds_at_the_edges():
    logp, logp_b, A = tokens(3)
    close(list(bapo_bounds(logp, logp_b, A.abs()).values()), [0.6, 1.2])  # all positive: the start
    close(list(bapo_bounds(logp, logp_b, -A.abs()).values()), [0.9, 3.0])  # all negative: the end
    close(list(bapo_bounds(logp, logp_b, 0 * A).values()), [0.6, 1.2])  # nothing to learn
    found = {
        tuple(bapo_bounds(logp, logp_b, A - s, target=0.45).values())
        for s in np.arange(0, 0.5, 0.02)
    }
    # The upper bound moves first, then the lower one
    assert any(low > 0.6 and high > 2.9 for low, high in found)
    assert not any(low > 0.6 and high < 2.9 for low, high in found)
    assert any(low == 0.6 and 1.2 < high < 3 for low, high in found)


# ------------------------------------------------------------------------------- engine and trainer


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("tis", [0.1, 0.51, 1.0, 1.9, 2.0, 2.0, 2.0]),
        ("icepop", [0.0, 0.51, 1.0, 1.9, 2.1, 4.99, 0.0]),
    ],
)
def test_engine_weight(kind, expected):
    trainer, engine = (
        torch.log(tensor([[0.1, 0.51, 1.0, 1.9, 2.1, 4.99, 5.01]])).requires_grad_(),
        torch.zeros(1, 7),
    )
    out = engine_weight(trainer - 1, engine - 1, kind)
    close(out, tensor([expected]))
    assert not out.requires_grad
    close(engine_weight(engine, engine, kind), torch.ones(1, 7))  # no gap, and the pads


def test_unknown_engine_weight_is_an_error():
    with pytest.raises(ValueError, match="tos"):
        engine_weight(torch.zeros(1, 1), torch.zeros(1, 1), "tos")


@pytest.mark.parametrize("per", ["token", "response", "constant"])
def test_what_a_loss_is_divided_by(per):
    """Two micro-batches of one mini-batch: 5 + 3 tokens, 3 responses, 10 tokens a response at
    most."""
    name = dict(token="ppo", response="asymre", constant="dr_grpo")[per]
    sibling = LOSSES[name]
    assert sibling.per == per
    rng = np.random.default_rng(20)
    total = 0.0
    logps, A, lengths = np.log(rng.uniform(0.1, 0.9, (3, 3))), rng.normal(size=(3, 3)), [3, 2, 3]
    mask = np.array([[float(t < n) for t in range(3)] for n in lengths])
    mini = [Response([0], [1] * n, None, True, 0.0, 1) for n in lengths]
    stats = sibling.stats(mini, 0.2, 10, None)
    for rows in ([0, 1], [2]):
        logp, a, m = (torch.tensor(v[rows]) for v in (logps, A, mask))
        x = Batch(None, None, None, m, logp_b=logp, logp_k=logp, advantages=a)
        total += sibling.policy_loss(logp, x, stats).item()
    if per == "response":
        expected = -(A * logps * mask).sum() / 3
    else:  # r = 1: the clipped loss is -A
        expected = -(A * mask).sum() / (8 if per == "token" else 30)
    assert total == pytest.approx(expected, abs=1e-12)
    if per != "response":
        whole = sibling.policy_loss(logp, x, stats).item()
        x.weight = torch.full_like(m, 0.5)
        assert sibling.policy_loss(logp, x, stats).item() == pytest.approx(whole / 2)


def test_rescoring_takes_the_trainers_log_probs_and_weighs_the_gap():
    a, b = (
        Response([0], [1, 2], tensor(logp), True, 0.0, 1) for logp in ([-1.0, -2.0], [-3.0, -1.0])
    )
    ours = [tensor([-1.5, -2.0]), tensor([-1.0, -1.0])]
    assert rescore([a, b], ours, "tis") == pytest.approx((0.5 + 0 + 2 + 0) / 4)
    assert a.logp_b is ours[0] and b.logp_b is ours[1]
    close(a.weight, tensor([math.exp(-0.5), 1.0]))
    close(b.weight, tensor([2.0, 1.0]))  # e^2, truncated
