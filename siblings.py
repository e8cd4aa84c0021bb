"""The one door of what is not ReMix: losses, replays, samplers of related methods, for comparison.

    --loss NAME          a function below, and its entry in LOSSES
    --replay NAME        functions below, and their record in REPLAYS (the four of buffer.Replay)
    --filter_groups N    groups without contrast, and others in their place: filtered, fill_up
    --sampler_lag K      a sampler that has the weights of K steps ago: Lag
    --skipped_layers K   a sampler without K of the layers: skip_layers
    --engine_weight      weights for the engine's own error: rescore

Losses. Every one takes the same keywords and leaves out those it does not need. log-probs,
advantages, mask: (B, T), right-padded, pads 0. logp: trained policy pi_theta; logp_k: pi_k, the
policy at the start of the step; logp_b: behaviour policy that sampled the response (= logp_k on
fresh data). It returns nats per token (B, T), not masked, as in loss.py, or per response (B,),
where a row with an all-0 mask is 0. Only logp carries a gradient; advantages are constants.

[open] = the source does not say, or says two things; our choice is in the docstring of the method.
Not here, because they are not losses of given log-probs: DAPO's overlong penalty (a reward), OAPL's
engine that is synchronised every L steps (here data is old by the buffer and by --sampler_lag),
Kimi's length reward. Left out for simplicity: AReaL's optional cap on pi_k / pi_b, the dual clip in
BAPO's released code, GSPO-token (the same gradient as GSPO while a response has one advantage).
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from buffer import REMIX, Buffer, Entry, Group, Replay, Response
from data import TRUST
from loss import geppo_clip_eps, group_advantages, grouped, token_mean
from model import copy_weights
from parallel import Batch

# ------------------------------------------------------------------------------------ shared pieces


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """PPO's pessimistic clip, -min(r A, clip(r, low, high) A), any shape. The bounds are ratios,
    not widths."""
    return -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)


def row_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens of each response, (B, T) -> (B,)."""
    return (x * mask).sum(1)


def row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each response, (B, T) -> (B,); 0 for a response without tokens."""
    return row_sum(x, mask) / mask.sum(1).clamp(min=1)


# ----------------------------------------------------------------------------------- clipped ratios


def ppo(*, logp: Tensor, logp_b: Tensor, advantages: Tensor, clip_eps: float, **_) -> Tensor:
    """PPO (Schulman et al. 2017, arXiv 1707.06347, Eq. 7) with the clip band around the *behaviour*
    policy: what one gets on replayed data without Mix-PPG's moving centre. (B, T)"""
    ratio = torch.exp(logp - logp_b.detach())  # r = pi_theta / pi_b
    return clipped(ratio, advantages, 1 - clip_eps, 1 + clip_eps)  # -min(r A, clip(r, 1 +- eps) A)


def clip_higher(
    *,
    logp: Tensor,
    logp_b: Tensor,
    advantages: Tensor,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
    **_,
) -> Tensor:
    """DAPO's clip-higher (Yu et al. 2025, arXiv 2503.14476): a wider upper side leaves rare tokens
    room to grow. Its own widths, not clip_eps. (B, T)"""
    ratio = torch.exp(logp - logp_b.detach())
    # -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)
    return clipped(ratio, advantages, 1 - eps_low, 1 + eps_high)


def decoupled_ppo(
    *, logp: Tensor, logp_k: Tensor, logp_b: Tensor, advantages: Tensor, clip_eps: float, **_
) -> Tensor:
    """Decoupled PPO (Hilton et al. 2021, arXiv 2110.00641; AReaL, Fu et al. 2025, arXiv
    2505.24298): the importance weight and the trust region use two policies. Mix-PPG's band has
    width eps in r, this one has width w eps. (B, T)"""
    weight = torch.exp(logp_k - logp_b).detach()  # w = pi_k / pi_b
    ratio = torch.exp(logp - logp_k.detach())  # u = pi_theta / pi_k
    # -w min(u A, clip(u, 1 +- eps) A)
    return weight * clipped(ratio, advantages, 1 - clip_eps, 1 + clip_eps)


def dr_grpo_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): r - mean within the group, (B,) -> (B,).
    Without GRPO's division by the std, very easy and very hard prompts weigh no more than others.
    Its loss is `ppo`, its normaliser constant: divided by its own length, a wrong response would be
    pushed down less for being long."""
    groups = grouped(rewards, group_size)
    return (groups - groups.mean(1, keepdim=True)).view(-1)


def gspo(
    *,
    logp: Tensor,
    logp_b: Tensor,
    advantages: Tensor,
    mask: Tensor,
    eps_low: float = 3e-4,
    eps_high: float = 4e-4,
    **_,
) -> Tensor:
    """GSPO (Zheng et al. 2025, arXiv 2507.18071): one ratio a response, the geometric mean of its
    tokens' ratios, hence the narrow clip. [open] advantages that differ within a response (PPO's)
    enter as their mean. (B,)"""
    # S = (pi_theta(y) / pi_b(y))^(1 / |y|)
    ratio = torch.exp(row_mean(logp - logp_b.detach(), mask))
    # -min(s A, clip(s) A)
    return clipped(ratio, row_mean(advantages, mask), 1 - eps_low, 1 + eps_high)


def dppo(*, logp: Tensor, logp_b: Tensor, advantages: Tensor, delta: float = 0.2, **_) -> Tensor:
    """DPPO, divergence proximal policy optimisation (Qi et al. 2026, arXiv 2602.04879, Eq. 11 to
    13), with the binary total variation: a token is dropped where its probability is more than
    delta away from pi_b's, on the advantage's side. A ratio binds rare tokens too much, and likely
    ones too little. (B, T)"""
    moved = torch.exp(logp) - torch.exp(logp_b)  # pi_theta - pi_b
    dropped = moved * advantages.sign() > delta
    return torch.where(dropped, 0.0, -torch.exp(logp - logp_b.detach()) * advantages)  # -M r A


# ------------------------------------------------------------------------------- weighted REINFORCE


def cispo(
    *, logp: Tensor, logp_b: Tensor, advantages: Tensor, ratio_cap: float = 5.0, **_
) -> Tensor:
    """CISPO (MiniMax-M1, 2025, arXiv 2506.13585): the importance weight is clipped, so no token
    loses its gradient. As in the paper only the upper side is. [open] the paper does not print its
    cap; 5 is ms-swift's. (B, T)"""
    weight = torch.exp(logp - logp_b).clamp(max=ratio_cap).detach()
    return -weight * advantages * logp  # -sg(min(r, cap)) A log pi_theta


def minpro(
    *, logp: Tensor, logp_b: Tensor, advantages: Tensor, ratio_cap: float = 5.0, **_
) -> Tensor:
    """MinPRO (Lei et al. 2026, arXiv 2601.22718). The exact weight of token t is the ratio of its
    whole prefix, prod_{i <= t} r_i; the product over i < t is replaced by its smallest factor (1
    for the first token). (B, T)

    [open] written from the abstract, not checked against the paper's equation: the form of CISPO
    and its cap are ours."""
    log_ratio = (logp - logp_b).detach()
    before = torch.zeros_like(log_ratio)  # log of the smallest ratio over i < t
    # Right-padded, so no pad comes before a token
    before[:, 1:] = log_ratio.cummin(1).values[:, :-1]
    weight = torch.exp(log_ratio + before).clamp(max=ratio_cap)
    return -weight * advantages * logp  # -sg(min(r_t min_{i < t} r_i, cap)) A log pi_theta


def topr_advantages(rewards: Tensor, group_size: int, baseline: float = 0.0) -> Tensor:
    """TOPR's +1 (right) and -1 (wrong), from rewards of 1 and 0, minus a constant baseline: (B,) ->
    (B,). A positive baseline weighs wrong responses more. No group is needed."""
    return 2 * rewards - 1 - baseline


def topr(*, logp: Tensor, logp_b: Tensor, advantages: Tensor, mask: Tensor, **_) -> Tensor:
    """TOPR, tapered off-policy REINFORCE (Le Roux et al. 2025, arXiv 2503.14286): a right response
    is learnt as in supervised training; a wrong one fades out as the policy leaves it, so it is not
    pushed down for ever. (B,)"""
    reward = row_mean(advantages, mask)
    log_ratio = row_sum(logp - logp_b, mask).detach()  # of the whole response
    # [pi_theta(y) / pi_b(y)]_0^1 or 1
    weight = torch.where(reward < 0, torch.exp(log_ratio.clamp(max=0)), 1)
    return -weight * reward * row_sum(logp, mask)  # -sg(weight) R log pi_theta(y)


def asymre_advantages(rewards: Tensor, group_size: int, delta: float = -0.1) -> Tensor:
    """r - (mean + delta) within the group, (B,) -> (B,). delta < 0 weighs right responses more than
    wrong ones; the paper's runs at delta = 0 collapse."""
    return dr_grpo_advantages(rewards, group_size) - delta


def asymre(*, logp: Tensor, advantages: Tensor, mask: Tensor, **_) -> Tensor:
    """AsymRE, asymmetric REINFORCE (Arnal et al. 2025, arXiv 2506.20520): no importance ratio at
    all, stability comes from the lowered baseline alone. (B,)"""
    return -row_sum(advantages * logp, mask)  # -(r - V) log pi_theta(y),  V = mean + delta


def vespo(
    *,
    logp: Tensor,
    logp_b: Tensor,
    advantages: Tensor,
    mask: Tensor,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
    **_,
) -> Tensor:
    """VESPO, variational sequence-level soft policy optimisation (arXiv 2602.10693): a smooth
    weight of the whole response's ratio, without its length, in the clip's place: 1 at w = 1, the
    highest at w = k / lambda, 0 far away. (k, lambda) go by the advantage's sign. (B, T)

    Written from the authors' code (github.com/FloyedShen/VESPO) and TRL's loss_type "vespo", which
    agree in equation and constants; they also bound log-ratios at 20, where the weight is 0 to 14
    digits. [open] advantages that differ within a response (PPO's): the sign is their mean's."""
    log_w = row_sum(logp - logp_b, mask).detach()  # w = pi_theta(y) / pi_b(y)
    right = row_mean(advantages, mask) >= 0
    k, lam = (torch.where(right, a, b) for a, b in zip(positive, negative, strict=True))
    weight = torch.exp(lam + k * log_w - lam * torch.exp(log_w))  # w^k e^(lambda (1 - w))
    return -weight[:, None] * advantages * logp  # -sg(weight) A log pi_theta


# --------------------------------------------------------------------------------------- regression


def opmd(
    *, logp: Tensor, logp_k: Tensor, advantages: Tensor, mask: Tensor, tau: float = 1e-3, **_
) -> Tensor:
    """Online policy mirror descent (Kimi k1.5, 2025, arXiv 2501.12599): regression of tau
    log(pi_theta / pi_k) on r - tau log Z, with tau log Z estimated by the group's mean reward.
    Off-policy as it is, so no ratio. (B,)

    This is the loss whose gradient the report prints. [open] it does not print tau: 1e-3 is OAPL's.
    Trinity-RFT's "opmd" drops the square: -A log pi_theta / (1 + tau).
    """
    log_ratio = row_sum(logp - logp_k.detach(), mask)  # log(pi_theta(y) / pi_k(y))
    # -(r - mean) log pi + tau / 2 log_ratio^2
    return -row_sum(advantages * logp, mask) + tau / 2 * log_ratio.square()


def oapl_advantages(rewards: Tensor, group_size: int, beta_value: float = 1.0) -> Tensor:
    """r - V* within the group, (B,) -> (B,), where V* = beta log mean exp(r / beta): the mean of
    the group for a large beta, its best reward for a small one. Not centred: V* is at least the
    mean."""
    groups = grouped(rewards, group_size)
    value = beta_value * (
        torch.logsumexp(groups / beta_value, 1, keepdim=True) - math.log(group_size)
    )
    return (groups - value).view(-1)


def oapl(
    *, logp: Tensor, logp_b: Tensor, advantages: Tensor, mask: Tensor, beta: float = 1e-3, **_
) -> Tensor:
    """OAPL, optimal advantage with a lagged inference policy (Ritter et al. 2026, arXiv 2602.19362,
    Eq. 3): regression on the optimal advantage; pi_b is what the optimal policy is tilted from,
    however old. The two betas are two constants in the paper. The gradient is of the order of beta,
    so a gradient clip of 1 never acts. (B,)"""
    log_ratio = row_sum(logp - logp_b.detach(), mask)  # log(pi_theta(y) / pi_b(y))
    return (
        beta * log_ratio - row_mean(advantages, mask)
    ).square()  # (beta log(pi_theta / pi_b) - (r - V*))^2


# --------------------------------------------------------------------------------- whole mini-batch


@torch.no_grad()
def m2po_cut(
    logp: Tensor, logp_b: Tensor, advantages: Tensor, threshold: float = 0.04
) -> dict[str, float]:
    """The smallest |log r| that M2PO masks: of the tokens that its mask is about, the largest are
    taken out until the mean of (log r)^2 over those left is at most the threshold. inf: nothing to
    mask. Flat inputs (tokens,)."""
    log_ratio = logp - logp_b
    sizes = log_ratio[log_ratio.sign() * advantages.sign() > 0].abs().sort().values
    means = sizes.double().square().cumsum(0) / torch.arange(1, len(sizes) + 1, device=sizes.device)
    kept = int((means <= threshold).sum())  # the means of an ascending list ascend
    return dict(cut=sizes[kept].item() if kept < len(sizes) else math.inf)


def m2po(*, logp: Tensor, logp_b: Tensor, advantages: Tensor, cut: float, **_) -> Tensor:
    """M2PO, second-moment trust policy optimisation (Zheng et al. 2025, arXiv 2510.01161): few
    extreme tokens are masked where PPO would clip many. Only tokens on the side where PPO would
    clip count (A > 0 and r > 1, or A < 0 and r < 1), in the mean and in the mask; masked tokens
    stay in the normaliser. AReaL's version counts all tokens. (B, T)"""
    log_ratio = logp - logp_b.detach()
    masked = (log_ratio.sign() * advantages.sign() > 0) & (log_ratio.abs() >= cut)
    return torch.where(masked, 0.0, -torch.exp(log_ratio) * advantages)  # -M r A


@torch.no_grad()
def bapo_bounds(
    logp: Tensor,
    logp_b: Tensor,
    advantages: Tensor,
    target: float = 0.4,
    low: tuple[float, float, float] = (0.6, 0.9, 0.02),
    high: tuple[float, float, float] = (1.2, 3.0, 0.05),
) -> dict[str, float]:
    """BAPO's clip bounds (from, to, step): the upper one rises first, then the lower one, until the
    tokens with A > 0 make up `target` of the loss, in absolute value (Algorithm 1 and Eq. 8). Flat
    inputs (tokens,).

    [open] Eq. 8 also weighs each token by pi_b; neither the loss nor the released code does, nor do
    we. The released code raises the lower bound first and compares positive / negative with 1."""
    ratio, A = torch.exp(logp - logp_b).double(), advantages.double()
    lows, highs = (
        [a + i * step for i in range(round((b - a) / step) + 1)] for a, b, step in (low, high)
    )
    for c_low, c_high in [(lows[0], c) for c in highs] + [(c, highs[-1]) for c in lows[1:]]:
        share = clipped(ratio, A, c_low, c_high).abs()
        if share[A > 0].sum() >= target * share.sum():
            break
    return dict(low=c_low, high=c_high)


def bapo(
    *, logp: Tensor, logp_b: Tensor, advantages: Tensor, low: float, high: float, **_
) -> Tensor:
    """BAPO, balanced policy optimisation with adaptive clipping (Xi et al. 2025, arXiv 2510.18927):
    PPO between bounds that are set anew for each mini-batch, so that wrong responses do not drown
    the right ones. (B, T)"""
    ratio = torch.exp(logp - logp_b.detach())
    return clipped(ratio, advantages, low, high)  # -min(r A, clip(r, c_low, c_high) A)


class Loss(NamedTuple):
    """A policy loss in Mix-PPG's place, and what else the method needs."""

    loss: Callable[..., Tensor]
    source: str
    # (rewards (B,), group_size) -> (B,), in place of loss.group_advantages; None: that, or PPO's
    # GAE
    advantage: Callable[[Tensor, int], Tensor] | None = None
    # Statistics of the whole mini-batch: (logp, logp_b, advantages), each flat over all its tokens
    # of all ranks, without gradient -> keywords of the loss. So any split is the same loss
    whole: Callable[[Tensor, Tensor, Tensor], dict[str, float]] | None = None
    # What the sum is divided by. token: tokens of the mini-batch; response: its responses;
    # constant: its responses * the longest response that may be sampled (Dr. GRPO)
    per: str = "token"

    def stats(self, mini: list[Response], eps: float, max_tokens: int, forward: Callable) -> dict:
        """Keywords of the loss that are of the whole mini-batch, and "size", its divisor.
        forward: responses -> their log-probs under the policy as it is now."""
        tokens, longest = sum(len(r.tokens) for r in mini), len(mini) * max_tokens
        stats = dict(clip_eps=eps)
        stats["size"] = dict(token=tokens, response=len(mini), constant=longest)[self.per]
        if self.whole:
            columns = forward(mini), [r.logp_b for r in mini], [r.advantages for r in mini]
            stats |= self.whole(*map(torch.cat, columns))
        return stats

    def policy_loss(self, logp: Tensor, x: Batch, stats: dict) -> Tensor:
        """What a micro-batch adds to the loss of its mini-batch, a scalar."""
        pg = self.loss(
            logp=logp, logp_k=x.logp_k, logp_b=x.logp_b, advantages=x.advantages, mask=x.mask,
            **stats,
        )  # fmt: skip
        if self.per == "response":
            return pg.sum() / stats["size"]
        return token_mean(x.weight * pg, x.mask, stats["size"])


LOSSES: dict[str, Loss] = dict(
    ppo=Loss(ppo, "Schulman et al. 2017, arXiv 1707.06347"),
    decoupled_ppo=Loss(
        decoupled_ppo, "Hilton et al. 2021, arXiv 2110.00641; AReaL 2025, arXiv 2505.24298"
    ),
    clip_higher=Loss(clip_higher, "DAPO, Yu et al. 2025, arXiv 2503.14476"),
    dr_grpo=Loss(
        ppo, "Liu et al. 2025, arXiv 2503.20783", advantage=dr_grpo_advantages, per="constant"
    ),
    gspo=Loss(gspo, "Zheng et al. 2025, arXiv 2507.18071", per="response"),
    dppo=Loss(dppo, "DPPO, Qi et al. 2026, arXiv 2602.04879"),
    cispo=Loss(cispo, "MiniMax-M1 2025, arXiv 2506.13585"),
    minpro=Loss(minpro, "Lei et al. 2026, arXiv 2601.22718 (from the abstract)"),
    vespo=Loss(vespo, "VESPO 2026, arXiv 2602.10693"),
    m2po=Loss(m2po, "Zheng et al. 2025, arXiv 2510.01161", whole=m2po_cut),
    bapo=Loss(bapo, "Xi et al. 2025, arXiv 2510.18927", whole=bapo_bounds),
    topr=Loss(
        topr, "Le Roux et al. 2025, arXiv 2503.14286", advantage=topr_advantages, per="response"
    ),
    asymre=Loss(
        asymre, "Arnal et al. 2025, arXiv 2506.20520", advantage=asymre_advantages, per="response"
    ),
    opmd=Loss(
        opmd, "Kimi k1.5 2025, arXiv 2501.12599", advantage=dr_grpo_advantages, per="response"
    ),
    oapl=Loss(
        oapl, "Ritter et al. 2026, arXiv 2602.19362", advantage=oapl_advantages, per="response"
    ),
)


def geppo_width(clip_eps: float, batch: list[Response], step: int) -> float:
    """--geppo_clip: eps, shrunk by the ages of the batch (loss.geppo_clip_eps)."""
    if not batch:  # --filter_groups has left nothing
        return clip_eps
    ages = np.bincount([step - r.step for r in batch]) / len(batch)
    return geppo_clip_eps(clip_eps, ages.tolist())


# ----------------------------------------------------------------------------------------- replays


def last_of_each_prompt(entries: list[Entry], step: int, window: int) -> list[Entry]:
    """RePO keeps the last N groups of each prompt, however old."""
    seen: Counter[tuple[int, ...]] = Counter()
    kept = []
    for entry in reversed(entries):
        seen[entry.prompt] += 1
        kept += [entry] if seen[entry.prompt] <= window else []
    return kept[::-1]


def draw_repo(
    entries: list[Entry], count: int, rng: np.random.Generator, fresh: list[Group], score: Callable
) -> list[Entry]:
    """RePO (Li et al. 2025, arXiv 2506.09340), its recency strategy: past groups of the prompts
    that have just been sampled, newest first. Nothing is replayed in the first epoch."""
    prompts = {tuple(group[0].prompt) for group in fresh}
    return [entry for entry in reversed(entries) if entry.prompt in prompts][:count]


def failed_again(buffer: Buffer, count: int, upcoming: Callable) -> list[int]:
    """Buffer Matters samples problems again that failed before, at most a quarter of the
    prompts."""
    again = [buffer.failed.popleft() for _ in range(min(count // 4, len(buffer.failed)))]
    return again + upcoming(count - len(again))


def mean_reward(group: Group) -> float:
    return sum(r.reward for r in group) / len(group)


def with_contrast(buffer: Buffer, fresh: list[Group], problems: list[int]) -> list[Group]:
    """Buffer Matters trains on groups that are neither all right nor all wrong (all, if none
    is)."""
    groups = zip(problems, fresh, strict=True)
    buffer.failed.extend(problem for problem, group in groups if mean_reward(group) == 0)
    return [group for group in fresh if 0 < mean_reward(group) < 1] or fresh


def draw_buffer_matters(
    entries: list[Entry], count: int, rng: np.random.Generator, fresh: list[Group],
    score: Callable, low: float = 0.25, high: float = 0.75,
) -> list[Entry]:  # fmt: skip
    """Buffer Matters (Wan et al. 2026, arXiv 2602.20722), its reuse: recent middling successes,
    newest first."""
    return [entry for entry in reversed(entries) if low <= entry.reward <= high][:count]


def in_proportion(
    entries: list[Entry], weights: list[float], count: int, rng: np.random.Generator
) -> list[Entry]:
    """At most count of the entries, without replacement, with probabilities like the weights."""
    p = np.array(weights) / np.sum(weights)
    return [entries[i] for i in rng.choice(len(entries), min(count, len(p)), replace=False, p=p)]


def draw_on_policyness(
    entries: list[Entry], count: int, rng: np.random.Generator, fresh: list[Group], score: Callable
) -> list[Entry]:
    """Adaptive Replay Buffer (Song et al. 2025, arXiv 2512.10510): in proportion to on-policyness,
    without replacement: of each group the mean over its responses of exp(mean_t log pi_k), the
    likelihood of a token today."""
    if not entries:
        return []
    likelihood = [float(np.mean([logp.mean().exp() for logp in group])) for group in score()]
    return in_proportion(entries, likelihood, count, rng)


def draw_by_advantage(
    entries: list[Entry], count: int, rng: np.random.Generator, fresh: list[Group], score: Callable,
    eps: float = 1e-6, power: float = 0.5,
) -> list[Entry]:  # fmt: skip
    """Replay by the advantage (arXiv 2606.04560): a response is drawn with a probability like
    (|A| + eps)^power, and forgotten after 10 steps, which is --replay_window 10.

    [open] written from a summary, not checked against the paper. Whole groups, as GRPO's advantage
    needs them: a group's weight is the sum of its responses'. A is GRPO's, whichever --loss trains.
    Without replacement in a step; what was drawn stays, and no weight undoes the draw."""
    if not entries:
        return []
    rewards = torch.tensor([entry.rewards for entry in entries])  # (groups, G)
    A = group_advantages(rewards.flatten(), rewards.shape[1])
    weights = ((A.abs() + eps) ** power).view_as(rewards).sum(1).tolist()
    return in_proportion(entries, weights, count, rng)


def useful(buffer: Buffer, fresh: list[Group], problems: list[int]) -> list[Group]:
    """POPO trains on, and stores, groups with contrast alone."""
    return filtered(fresh, 0)


def newest(
    entries: list[Entry], count: int, rng: np.random.Generator, fresh: list[Group], score: Callable
) -> list[Entry]:
    """POPO (arXiv 2606.01281): useful old groups take the places of fresh ones without contrast,
    newest first; with --off_policy_ratio 0, as in the paper, no others. Its loss is decoupled_ppo.

    [open] written from a summary, not checked against the paper. Useful is: with contrast. A place
    that no old group can take stays empty, and a group may be taken again until --replay_window
    forgets it."""
    return entries[: -count - 1 : -1]


REPLAYS: dict[str, Replay] = dict(
    window=REMIX,
    repo=Replay(forget=last_of_each_prompt, draw=draw_repo),
    buffer_matters=Replay(choose=failed_again, keep=with_contrast, draw=draw_buffer_matters),
    on_policyness=Replay(draw=draw_on_policyness),
    advantage=Replay(draw=draw_by_advantage),
    popo=Replay(keep=useful, draw=newest, fills=True),
)

# ------------------------------------------------------------------------------------------ groups


def filtered(groups: list[Group], rounds: int | None) -> list[Group]:
    """--filter_groups: those whose rewards are not all equal; None: all. The others have advantages
    of 0, and their tokens would only make the mean over the tokens smaller."""
    return [g for g in groups if rounds is None or len({r.reward for r in g}) > 1]


def fill_up(
    groups: list[Group], chosen: list[int], wanted: int, rounds: int, upcoming: Callable,
    sample: Callable,
) -> None:  # fmt: skip
    """--filter_groups N: DAPO's dynamic sampling (Yu et al. 2025, arXiv 2503.14476). While fewer
    than `wanted` groups have contrast, `groups` and `chosen`, their problem numbers, grow by the
    next problems. sample: (problem numbers, how many came before) -> groups.

    [open] A round asks for as many problems as are missing, so none is thrown away that has
    contrast; DAPO's code asks for a whole batch and drops what is too much. After N rounds the step
    trains on what there is, and without any group, replayed ones included, makes no update; the run
    goes on, as the next problems are others. The buffer gets groups with contrast alone, and replay
    does not make up for missing ones. KL and entropy act on the tokens that are left. TOPR and
    AsymRE learn from groups without contrast, too, so they are refused."""
    for _ in range(rounds):
        missing = wanted - len(filtered(groups, rounds))
        if missing > 0:
            more = upcoming(missing)
            groups += sample(more, len(chosen))
            chosen += more


# ---------------------------------------------------------------------------------------- samplers


class Lag:
    """--sampler_lag k: the policies of the last k steps; the oldest of them samples. k = 0: none is
    kept, and `sampler` is None."""

    def __init__(self, k: int, load: Callable):
        self.k, lagged = k, [load() for _ in range(k)]  # newest first
        self.models = {f"lag{i}": model for i, model in enumerate(lagged, 1)}
        self.sampler = lagged[-1] if lagged else None

    def shift(self, policy) -> None:
        """One step on: each becomes the one before it."""
        newest_first = [policy, *self.models.values()]
        for i in reversed(range(self.k)):
            copy_weights(newest_first[i + 1], newest_first[i])


def check_layers(model: str, k: int) -> None:
    """--skipped_layers k: ValueError if so many of the model's layers cannot be left out."""
    config = AutoConfig.from_pretrained(model, **TRUST)
    with torch.device("meta"):
        trunk = AutoModelForCausalLM.from_config(config, **TRUST).get_decoder()
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ["the same"])
    layers = len(trunk.layers) if hasattr(trunk, "layers") and len(kinds) == 1 else 1
    if k >= layers:
        raise ValueError(
            f"--skipped_layers {k}: of a {config.model_type!r} model {layers - 1} layers can be "
            f"left out (all but the first, if they are of one kind); take {layers - 1} at most"
        )


def skip_layers(k: int, engine, policy, rng: np.random.Generator) -> Callable[[], None]:
    """--skipped_layers k: Nested-ReFT (Heuillet et al. 2025, arXiv 2508.10123). k layers of engine
    and policy are left out until the function that is returned is called. What samples is then a
    model nested in pi_theta, is proven to be that one (check_engine), and the ratio corrects it.
    Evaluation has all layers.

    [open] from the abstract: the draw is uniform, one a step, over all layers but the first, from
    whose part of the cache transformers reads the length."""
    if not k:
        return lambda: None
    trunks = [model.lm.get_decoder() for model in (engine, policy)]
    whole = [trunk.layers for trunk in trunks]
    skipped = 1 + rng.choice(len(whole[0]) - 1, k, replace=False)
    for trunk in trunks:
        kept = [layer for i, layer in enumerate(trunk.layers) if i not in skipped]
        trunk.layers = nn.ModuleList(kept)

    def all_layers() -> None:
        for trunk, layers in zip(trunks, whole, strict=True):
            trunk.layers = layers

    return all_layers


@torch.no_grad()
def engine_weight(
    logp_trainer: Tensor,
    logp_engine: Tensor,
    kind: str,
    cap: float = 2.0,
    low: float = 0.5,
    high: float = 5.0,
) -> Tensor:
    """Weight of each token, any shape, for the gap between the trainer's and the sampling engine's
    log-prob of one and the same policy; multiplies any loss that is built on the trainer's
    log-probs. No gradient.

    tis: truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training"). icepop (Ling team 2025, "Small leak can sink a great
    ship"): tokens outside the band are dropped."""
    ratio = torch.exp(logp_trainer - logp_engine)  # k = pi_trainer / pi_engine
    if kind == "tis":
        return ratio.clamp(max=cap)  # min(k, cap)
    if kind == "icepop":
        # K inside [low, high], 0 outside
        return torch.where((ratio >= low) & (ratio <= high), ratio, 0.0)
    raise ValueError(f"kind must be tis or icepop, not {kind!r}")


def rescore(responses: list[Response], logps: list[Tensor], kind: str) -> float:
    """--behaviour_logp trainer: the trainer's log-probs in place of the engine's, with the weight
    for the gap between them (--engine_weight) -> the mean gap, nats."""
    gap = (torch.cat(logps) - torch.cat([r.logp_b for r in responses])).abs().mean().item()
    for r, logp in zip(responses, logps, strict=True):
        if kind != "off":
            r.weight = engine_weight(logp, r.logp_b, kind)
        r.logp_b = logp
    return gap
