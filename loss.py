"""Every term of the ReMix objective (arXiv 2507.06892) as a pure function of tensors. No config, no model, no state.

The whole loss of a step t, with reincarnation at step T (remix.py adds the terms up, `token_mean` reduces them):

    t <= T:  L_MixPPG - c H(pi_theta) + beta L_KLC(pi_base)        replayed and fresh data, m passes
    t >  T:  L_PPO    - c H(pi_theta) + beta L_KLC(pi_T)           fresh data only, one pass (the same function: c = 1)

Shapes: B responses x T response tokens, right-padded; V vocabulary; a mask (B, T) is 1 on response tokens, eos included.
Every term is per token, (B, T) in and (B, T) out; the mean over tokens is taken in one place, `token_mean`.
Log-probs (nats), all of the sampled token:  logp: trained policy pi_theta;  logp_k: pi_k, the policy at the start of
step k, frozen;  logp_b: behaviour policy pi_{k-i} that sampled the response, i = its age in steps;  logp_base: KL anchor
pi_base;  logp_prev: precedent policy pi_{k-1}.

[open] = the paper does not say, our choice:
- [open] tokens are averaged over the whole mini-batch (all ranks and micro-batches), not per response.
- [open] the KL is estimated on the batch's own tokens, replayed ones too, with k3 and no importance weight.
- [open] GRPO's advantage of a replayed group comes from that group's own rewards, std unbiased, 1e-6 added.
- [open] advantages of PPO are whitened over the whole mixed batch.
The paper prints "+ c H" inside a loss that is minimised; H is an entropy *bonus*, so the sign here is minus.
"""

import torch
from torch import Tensor

# ------------------------------------------------------------------------------------------------ policy loss


def mix_ppg(
    logp: Tensor, logp_k: Tensor, logp_b: Tensor, advantages: Tensor, clip_eps: float
) -> Tensor:
    """Mix-policy proximal policy gradient; GePPO's objective (Queeney et al. 2021). (B, T) each -> (B, T), nats.

    The clip band sits around c = pi_k / pi_b, so the trust region is around the current policy pi_k, whichever
    policy sampled the data. On fresh data logp_k = logp_b, so c = 1 and this is PPO's clipped loss.
    """
    ratio = torch.exp(logp - logp_b)  # r = pi_theta / pi_b, the importance ratio
    centre = torch.exp(logp_k - logp_b).detach()  # c = pi_k / pi_b, frozen through step k
    clipped = torch.clamp(ratio, centre - clip_eps, centre + clip_eps)
    return -torch.minimum(ratio * advantages, clipped * advantages)  # Eq. 3


def geppo_clip_eps(clip_eps: float, age_shares: list[float]) -> float:
    """GePPO's clip width eps / sum_i nu_i (i + 1): nu_i is the share of the batch of age i (Queeney et al. 2021).
    A step on old data moves pi_theta from pi_{k-i} by up to i + 1 widths, so the width shrinks with age."""
    return clip_eps / sum(share * (age + 1) for age, share in enumerate(age_shares))


# ------------------------------------------------------------------------------------------------ KL-Convex


def kl(logp: Tensor, logp_ref: Tensor, estimator: str = "k3") -> Tensor:
    """KL(pi_theta || pi_ref) per token, >= 0 in expectation over pi_theta; *added* to the loss it pulls theta to ref.

    k1, k2, k3 (Schulman, http://joschu.net/blog/kl-approx.html): log-probs of the sampled token, (B, T) -> (B, T).
    exact: sum over the vocabulary; both arguments are full log-softmaxes, (B, T, V) -> (B, T). Training computes it a chunk
    of tokens at a time (model.TokenTerms), which is tested against this.
    """
    log_ratio = logp_ref - logp  # log(pi_ref / pi_theta): the other way round is the classic k3 bug
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        return torch.exp(log_ratio) - log_ratio - 1
    if estimator == "exact":
        return -(torch.exp(logp) * log_ratio).sum(-1)
    raise ValueError(f"kl_estimator must be k1, k2, k3 or exact, not {estimator!r}")


def kl_convex_lambda(
    step: int, start: int = 50, every: int = 10, drop: float = 0.1, floor: float = 0.5
) -> float:
    """lambda(t) = max(1 - 0.1 ceil(max(t - 50, 0) / 10), 0.5): 1 up to t = 50, then 0.1 less every 10 steps, at
    least 0.5. t counts training steps from 1 and is not reset by reincarnation."""
    drops = -(-max(step - start, 0) // every)  # ceil in integers
    return max(
        round(1 - drop * drops, 12), floor
    )  # rounded: 1 - 0.1 * 3 is not 0.7 in floating point


def kl_convex(
    logp: Tensor, logp_base: Tensor, logp_prev: Tensor | None, lam: float, estimator: str = "k3"
) -> Tensor:
    """lambda KL(pi_theta || pi_base) + (1 - lambda) KL(pi_theta || pi_{k-1}), per token (B, T).

    While lambda = 1 the second term is absent and logp_prev may be None: its forward pass is never needed.
    """
    if lam == 1:
        return kl(logp, logp_base, estimator)
    return lam * kl(logp, logp_base, estimator) + (1 - lam) * kl(
        logp, logp_prev, estimator
    )  # L_KLC


# ------------------------------------------------------------------------------------------------ entropy, value


def entropy(logits: Tensor) -> Tensor:
    """H of the softmax of logits (..., V) -> (...), nats; = log V for equal logits. The definition: training computes it a
    chunk of tokens at a time (model.TokenTerms), which is tested against this."""
    logp = torch.log_softmax(logits, dim=-1)
    return -(torch.exp(logp) * logp).sum(-1)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """PPO's clipped value loss, 1/2 max((V - R)^2, (clip(V, V_old +- clip) - R)^2), per token (B, T)."""
    clipped = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


# ------------------------------------------------------------------------------------------------ advantages


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    trace: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016) -> (advantages, returns), (B, T) each.

    values[:, t] is V of the prefix before token t. The response ends after its last token: the value after it is 0.
    trace: V-trace factors min(1, c) (Espeholt et al. 2018; GePPO has them on), which cut the sum from t + 1 on:
        A_t = delta_t + gamma lam trace_{t+1} A_{t+1}.  None is plain GAE.
    """
    advantages = torch.zeros_like(values)
    next_advantage = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        next_advantage = advantages[:, t] if trace is None else advantages[:, t] * trace[:, t]
    return advantages, (advantages + values) * mask


def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """GRPO (Shao et al. 2024): (reward - mean) / (std + 1e-6) within each group of responses to one prompt.
    rewards (B,), the groups consecutive -> (B,). All equal rewards give 0. ValueError when the sizes do not fit."""
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(
            f"{len(rewards)} rewards are not whole groups of group_size={group_size} (at least 2)"
        )
    groups = rewards.view(-1, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).view(-1)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / std over the tokens where mask is 1; 0 elsewhere. x must hold the *whole* step's batch (B, T)."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    var = ((x - mean).square() * mask).sum() / (n - 1).clamp(min=1)
    return (x - mean) * torch.rsqrt(var + 1e-8) * mask


# ------------------------------------------------------------------------------------------------ reduction


def token_mean(x: Tensor, mask: Tensor, total_tokens: int) -> Tensor:
    """Sum of x (B, T) over the mask, divided by the tokens of the whole mini-batch (every rank and micro-batch).
    Micro-batches then add up to the mini-batch's mean: any split into micro-batches or ranks has the same gradient."""
    return (x * mask).sum() / total_tokens


# ------------------------------------------------------------------------------------------------ diagnostics


@torch.no_grad()
def ratio_sums(
    logp: Tensor, logp_k: Tensor, logp_b: Tensor, advantages: Tensor, mask: Tensor, clip_eps: float
) -> Tensor:
    """Sums over each response's tokens that add up over micro-batches and ranks; `ratio_diagnostics` makes means of them.
    Returns (B, 6) float64: tokens, sum r, sum r^2, sum (log r)^2, clipped tokens, sum |r - c|."""
    log_ratio = ((logp - logp_b) * mask).double()
    ratio, centre = torch.exp(log_ratio), torch.exp(((logp_k - logp_b) * mask).double())
    # clipped: the min takes the clipped branch, so the token has no gradient (beyond the band, on A's side of it)
    clipped = torch.where(
        advantages > 0, ratio > centre + clip_eps, (ratio < centre - clip_eps) & (advantages < 0)
    )
    per_token = [
        torch.ones_like(ratio),
        ratio,
        ratio**2,
        log_ratio**2,
        clipped.double(),
        (ratio - centre).abs(),
    ]
    return torch.stack([(x * mask).sum(-1) for x in per_token], -1)


@torch.no_grad()
def ratio_by_quarter(logp: Tensor, logp_b: Tensor, mask: Tensor) -> Tensor:
    """Where in the response the ratio grows (the paper's whipping effect): (B, T) each -> (4, 2) float64, for each
    quarter of the responses its tokens and the sum of r = pi_theta / pi_b over them."""
    place = (
        4 * (mask.cumsum(-1) - 1) / mask.sum(-1, keepdim=True).clamp(min=1)
    )  # 0 <= place < 4 on response tokens
    at = torch.stack(
        [(place.floor() == quarter) * mask for quarter in range(4)]
    ).double()  # (4, B, T)
    ratio = torch.exp(((logp - logp_b) * mask).double())
    return torch.stack([at.sum((1, 2)), (at * ratio).sum((1, 2))], -1)


def ratio_diagnostics(sums: Tensor) -> dict[str, float]:
    """ratio_mean: E[r], r = pi_theta / pi_b. log_ratio_sq: E[(log r)^2], moves long before E[r] does.
    clip_fraction: share of tokens whose gradient is clipped away. tv: E|r - c| / 2, the total variation between
    pi_theta and pi_k that the clip bounds (GePPO). ess: (sum r)^2 / (n sum r^2), effective share of the samples."""
    n, r, r2, log_r2, clipped, moved = sums.tolist()
    return dict(
        ratio_mean=r / n,
        log_ratio_sq=log_r2 / n,
        clip_fraction=clipped / n,
        tv=moved / (2 * n),
        ess=r * r / (n * r2),
    )
