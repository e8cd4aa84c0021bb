"""Every term of the ReMix objective (arXiv 2507.06892) as a pure function of tensors. No config, no
model, no state.

The whole loss of a step t, with reincarnation at step T (remix.py adds it up, `token_mean`
reduces):

    t <= T:  L_MixPPG - c H(pi_theta) + beta L_KLC(pi_base)    replayed and fresh data, m passes
    t >  T:  L_PPO    - c H(pi_theta) + beta L_KLC(pi_T)       fresh data only, one pass; the same
                                                               function, as c = 1 there
Shapes: B responses x T response tokens, right-padded; V vocabulary; a mask (B, T) is 1 on response
tokens, eos included. Every term is per token, (B, T) in and out; `token_mean` alone reduces.

Log-probs of the sampled token, in nats:
    logp      pi_theta, the trained policy
    logp_k    pi_k, the policy at the start of step k, frozen
    logp_b    pi_{k-i}, the behaviour policy that sampled the response; i = its age in steps
    logp_ref  a KL anchor: pi_base or the precedent policy pi_{k-1}

[open] = the paper does not say, our choice:
- [open] tokens are averaged over the whole mini-batch (all ranks and micro-batches), not per
  response.
- [open] the KL is estimated on the batch's own tokens, replayed ones too, with k3 and without an
  importance weight (--kl_unbiased has one).
- [open] GRPO's advantage of a replayed group comes from that group's own rewards, std unbiased,
  1e-6 added.
- [open] advantages of PPO are whitened over the whole mixed batch.
The paper prints "+ c H" inside a loss that is minimised; H is an entropy *bonus*, so it is - c H.
"""

import torch
from torch import Tensor

# -------------------------------------------------------------------------------------- policy loss


def mix_ppg(
    logp: Tensor, logp_k: Tensor, logp_b: Tensor, advantages: Tensor, clip_eps: float
) -> Tensor:
    """Mix-policy proximal policy gradient; GePPO's objective (Queeney et al. 2021). (B, T) -> (B,
    T)

    The clip band sits around c = pi_k / pi_b, so the trust region is around the current policy
    pi_k, whichever policy sampled the data. On fresh data c = 1 and this is PPO's clipped loss.
    """
    ratio = torch.exp(logp - logp_b)  # r = pi_theta / pi_b, the importance ratio
    centre = torch.exp(logp_k - logp_b).detach()  # c = pi_k / pi_b, frozen through step k
    clipped = torch.clamp(ratio, centre - clip_eps, centre + clip_eps)
    return -torch.minimum(ratio * advantages, clipped * advantages)  # Eq. 3


@torch.no_grad()
def clip_took(
    logp: Tensor, logp_k: Tensor, logp_b: Tensor, advantages: Tensor, eps: float
) -> Tensor:
    """Whether the min of `mix_ppg` takes the clipped branch, so that a token has no gradient: it is
    beyond the band c +- eps, on A's side of it. Any shape -> bool."""
    ratio, centre = torch.exp((logp - logp_b).double()), torch.exp((logp_k - logp_b).double())
    below = (ratio < centre - eps) & (advantages < 0)
    return torch.where(advantages > 0, ratio > centre + eps, below)


def geppo_clip_eps(clip_eps: float, age_shares: list[float]) -> float:
    """GePPO's clip width eps / sum_i nu_i (i + 1): nu_i is the share of the batch of age i (Queeney
    et al. 2021). A step on old data moves pi_theta from pi_{k-i} by up to i + 1 widths, so the
    width shrinks with age."""
    return clip_eps / sum(share * (age + 1) for age, share in enumerate(age_shares))


# ---------------------------------------------------------------------------------------- KL-Convex


def kl(
    logp: Tensor, logp_ref: Tensor, estimator: str = "k3", logp_b: Tensor | None = None
) -> Tensor:
    """KL(pi_theta || pi_ref) per token, >= 0 in expectation over pi_theta; *added* to the loss it
    pulls theta to ref.

    k1, k2, k3 (Schulman, http://joschu.net/blog/kl-approx.html): log-probs of the sampled token,
    (B, T) -> (B, T). As losses they have, in expectation over pi_theta, different gradients (Tang
    and Munos 2025, arXiv 2506.09477):
        k2      that of KL(pi_theta || pi_ref)
        k3      that of KL(pi_ref || pi_theta), which pulls, too
        k1      its own is 0, and on replayed data it pushes *away*: here it has k2's
        exact   that of KL(pi_theta || pi_ref), on any data: a sum over the vocabulary of full
                log-softmaxes, (B, T, V) -> (B, T). In training model.TokenTerms computes it a chunk
                of tokens at a time, and is tested against this.
    On replayed data k1 to k3 pull the tokens that pi_b sampled to their probability under pi_ref.
    With logp_b, k1 and k3 are weighted by pi_theta / pi_b and have the value and the gradient of
    KL(pi_theta || pi_ref) whichever policy sampled (DeepSeek-V3.2, arXiv 2512.02556).
    """
    log_ratio = logp_ref - logp  # log(pi_ref / pi_theta): the other way round is the classic k3 bug
    if estimator == "exact":
        return -(torch.exp(logp) * log_ratio).sum(-1)
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k1" and logp_b is None:  # k1's value, k2's gradient
        k2 = 0.5 * log_ratio.square()
        return -log_ratio.detach() + (k2 - k2.detach())
    if estimator not in ("k1", "k3"):
        raise ValueError(f"kl_estimator must be k1, k2, k3 or exact, not {estimator!r}")
    k = -log_ratio if estimator == "k1" else torch.exp(log_ratio) - log_ratio - 1
    return k if logp_b is None else torch.exp(logp - logp_b) * k


def kl_convex_lambda(
    step: int, start: int = 50, every: int = 10, drop: float = 0.1, floor: float = 0.5
) -> float:
    """lambda(t) = max(1 - 0.1 ceil(max(t - 50, 0) / 10), 0.5): 1 up to t = 50, then 0.1 less every
    10 steps, at least 0.5. t counts training steps from 1 and is not reset by reincarnation."""
    drops = -(-max(step - start, 0) // every)  # ceil in integers
    return max(round(1 - drop * drops, 12), floor)  # rounded: 1 - 0.1 * 3 is not 0.7 in floats


def kl_convex_weight(setting: str, step: int) -> float:
    """lambda of a step by --kl_convex: schedule, schedule:START,EVERY, off or a number. ValueError
    if it is none of these."""
    name, _, numbers = setting.partition(":")
    if name == "schedule":
        start, every = map(int, (numbers or "50,10").split(","))
        if every < 1:
            raise ValueError("EVERY must be at least 1")
        return kl_convex_lambda(step, start, every)
    return 1.0 if setting == "off" else float(setting)


def kl_convex(lam: float, base: Tensor, prev: Tensor | None = None) -> Tensor:
    """lambda KL(pi_theta || pi_base) + (1 - lambda) KL(pi_theta || pi_{k-1}), any shape.

    While lambda = 1 the second term is absent and prev may be None: its forward pass is never
    needed. The KLs are estimated (`kl`) or exact (model.TokenTerms), it makes no difference here.
    """
    return base if lam == 1 else lam * base + (1 - lam) * prev  # L_KLC


# ----------------------------------------------------------------------------------- entropy, value


def entropy(logits: Tensor) -> Tensor:
    """H of the softmax of logits (..., V) -> (...), nats; = log V for equal logits. The definition:
    training computes it a chunk of tokens at a time (model.TokenTerms), which is tested against
    this."""
    logp = torch.log_softmax(logits, dim=-1)
    return -(torch.exp(logp) * logp).sum(-1)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """PPO's clipped value loss, 1/2 max((V - R)^2, (clip(V, V_old +- clip) - R)^2), (B, T)."""
    clipped = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


# --------------------------------------------------------------------------------------- advantages


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, trace: Tensor = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016) -> advantages, returns; (B, T) each.

    values[:, t] is V of the prefix before token t; after the last token it is 0.
    trace: V-trace factors min(1, c), which cut the sum from t + 1 on (Espeholt et al. 2018; GePPO
    has them on): A_t = delta_t + gamma lam trace_{t+1} A_{t+1}. None is plain GAE.
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


def grouped(rewards: Tensor, group_size: int) -> Tensor:
    """(B,) -> (B / G, G), the groups consecutive. ValueError when the sizes do not fit."""
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(
            f"{len(rewards)} rewards are not whole groups of group_size={group_size} (at least 2)"
        )
    return rewards.view(-1, group_size)


def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """GRPO (Shao et al. 2024): (reward - mean) / (std + 1e-6) within each group of responses to one
    prompt. (B,) -> (B,). All equal rewards give 0."""
    groups = grouped(rewards, group_size)
    equal = (groups == groups[:, :1]).all(1, keepdim=True)  # the mean of 0.1s is rounded
    scale = groups.std(1, keepdim=True) + 1e-6
    return ((groups - groups.mean(1, keepdim=True)) / scale).masked_fill(equal, 0).view(-1)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / std over the tokens where mask is 1; 0 elsewhere. x must hold the *whole* step's
    batch (B, T)."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    var = ((x - mean).square() * mask).sum() / (n - 1).clamp(min=1)
    return (x - mean) * torch.rsqrt(var + 1e-8) * mask


# ---------------------------------------------------------------------------------------- reduction


def token_mean(x: Tensor, mask: Tensor, total_tokens: int) -> Tensor:
    """Sum of x (B, T) over the mask, divided by the tokens of the whole mini-batch (every rank and
    micro-batch). Micro-batches then add up to the mini-batch's mean: any split into micro-batches
    or ranks has the same gradient."""
    return (x * mask).sum() / total_tokens
