"""The replay buffer: a FIFO of the last N steps' fresh responses, and the exact count of fresh prompts a step (paper: Mix-PPG).

A *group* is the G responses to one prompt; groups stay whole, because GRPO's advantage needs all of them.
The buffer lives on the CPU, sharded: rank i holds every group whose number in its step is i modulo the ranks. What a draw
needs to know of a group (its `Entry`) is the same on every rank, so all ranks draw the same, and the loop gathers it.

[open] nu, the draw from the window: uniform over the stored groups, without replacement within a step.
[open] the first steps of a run have little or nothing to replay; they train on what there is, and collect no more.
[open] reincarnation empties the buffer.

Other ways to keep and draw, for comparison (`--replay`; each function below says which):
window (ReMix's), repo, buffer_matters, on_policyness.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np
import torch


@dataclass
class Response:
    """One sampled response and what is known of it. Tensors are CPU, (T,) over its T response tokens, float32 nats."""

    prompt: list[int]  # prompt token ids
    tokens: list[int]  # response token ids, eos included when it finished
    logp_b: torch.Tensor  # log-prob under the policy that sampled it
    finished: bool  # False: cut at the length limit
    reward: float
    step: int  # training step at which the sampling policy was pi_k; age = current step - this
    logp_base: torch.Tensor | None = None  # cached: pi_base changes only at reincarnation
    states_base: torch.Tensor | None = (
        None  # in its place for the exact KL: pi_base's last hidden states, (T, H)
    )
    engine_weight: torch.Tensor | None = (
        None  # TIS / IcePop weight of the sampler's own error (--engine_weight)
    )
    # Valid within one step only:
    logp_k: torch.Tensor | None = None
    logp_prev: torch.Tensor | None = None
    states_prev: torch.Tensor | None = None
    values: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None

    def end_step(self) -> None:
        """Drop what is valid within one step only."""
        for name in SCRATCH:
            setattr(self, name, None)

    def __getstate__(self) -> dict:
        """For the exchange between ranks: a tensor's own pickling is a whole torch.save, fifty times an array's."""
        return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in vars(self).items()}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(
            {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}
        )


SCRATCH = (
    "logp_k",
    "logp_prev",
    "states_prev",
    "values",
    "advantages",
    "returns",
)  # recomputed every step, never stored
STORED = [field.name for field in fields(Response) if field.name not in SCRATCH]


def fresh_prompts(step: int, prompts_per_step: int, off_policy_ratio: float) -> int:
    """Prompts to sample in the step-th mixing step (from 1): (1 - p) P with the remainder carried, in exact arithmetic.
    0.6 * 256 = 153.6 gives 153, 154, 153, 154, 154, ...: 100 steps collect 15,360, not 15,300."""
    share = prompts_per_step * (1 - Fraction(str(off_policy_ratio)))
    return int(step * share) - int((step - 1) * share)


def mean_reward(group: list[Response]) -> float:
    return sum(r.reward for r in group) / len(group)


@dataclass
class Entry:
    """One stored group, as every rank knows it."""

    step: int
    number: int  # place among the groups of its step
    prompt: tuple[int, ...]
    reward: float  # mean of the group
    group: list[Response] | None  # None on the ranks that do not hold it


def draw_window(entries: list[Entry], count: int, rng: np.random.Generator) -> list[Entry]:
    """ReMix: uniform over the last N steps, without replacement."""
    return [entries[i] for i in rng.permutation(len(entries))[:count]]


def draw_repo(entries: list[Entry], count: int, prompts: set[tuple[int, ...]]) -> list[Entry]:
    """RePO (Li et al. 2025, arXiv 2506.09340), its recency strategy: past groups of the prompts that have just been
    sampled, newest first. A prompt keeps its last N groups, however old. Nothing is replayed in the first epoch."""
    return [entry for entry in reversed(entries) if entry.prompt in prompts][:count]


def draw_buffer_matters(
    entries: list[Entry], count: int, low: float = 0.25, high: float = 0.75
) -> list[Entry]:
    """ "Buffer Matters" (Wan et al. 2026, arXiv 2602.20722), its reuse: recent middling successes, newest first. The loop
    does the rest: it trains on fresh groups with both right and wrong responses, and samples failed prompts again."""
    return [entry for entry in reversed(entries) if low <= entry.reward <= high][:count]


def draw_on_policyness(
    entries: list[Entry], count: int, rng: np.random.Generator, likelihood: list[float]
) -> list[Entry]:
    """Adaptive Replay Buffer (Song et al. 2025, arXiv 2512.10510): in proportion to on-policyness, without replacement.
    likelihood: of each group, the mean over its responses of exp(mean_t log pi_k), the likelihood of a token today."""
    if not entries:
        return []
    p = np.array(likelihood) / np.sum(likelihood)
    return [
        entries[i] for i in rng.choice(len(entries), min(count, len(entries)), replace=False, p=p)
    ]


class Buffer:
    """The stored groups. kind: how they are kept and drawn (--replay); window: N; rank, ranks: which share lies here."""

    def __init__(self, window: int, kind: str = "window", rank: int = 0, ranks: int = 1):
        self.window, self.kind, self.rank, self.ranks = window, kind, rank, ranks
        self.entries: list[Entry] = []  # oldest first
        self.failed: deque[int] = (
            deque()
        )  # buffer_matters: problems whose last group was all wrong, longest ago first

    def push(self, groups: list[list[Response]], step: int) -> None:
        """Store one step's fresh groups (given whole, on every rank); what is too old falls out."""
        for number, group in enumerate(groups):
            for response in group:
                response.end_step()
            self.add(group, step, number)
        self.forget(step)

    def add(self, group: list[Response], step: int, number: int) -> None:
        here = number % self.ranks == self.rank
        self.entries.append(
            Entry(step, number, tuple(group[0].prompt), mean_reward(group), group if here else None)
        )

    def forget(self, step: int) -> None:
        if self.kind == "repo":  # the last N groups of each prompt
            seen: Counter[tuple[int, ...]] = Counter()
            kept = []
            for entry in reversed(self.entries):
                seen[entry.prompt] += 1
                kept += [entry] if seen[entry.prompt] <= self.window else []
            self.entries = kept[::-1]
        else:  # the groups of the last N steps
            self.entries = [entry for entry in self.entries if entry.step > step - self.window]

    def draw(
        self,
        count: int,
        rng: np.random.Generator,
        prompts: Iterable[list[int]] = (),
        likelihood: list[float] = (),
    ) -> list[tuple[int, list[Response]]]:
        """Up to count groups, the same on every rank -> those of them that lie here, as (place in the draw, group).
        prompts: of this step's fresh groups, for repo; likelihood: of each stored group, for on_policyness."""
        if self.kind == "repo":
            drawn = draw_repo(self.entries, count, {tuple(prompt) for prompt in prompts})
        elif self.kind == "buffer_matters":
            drawn = draw_buffer_matters(self.entries, count)
        elif self.kind == "on_policyness":
            drawn = draw_on_policyness(self.entries, count, rng, likelihood)
        else:
            drawn = draw_window(self.entries, count, rng)
        return [
            (place, entry.group) for place, entry in enumerate(drawn) if entry.group is not None
        ]

    def stored(self) -> list[tuple[int, list[Response]]]:
        """Every group that lies here, as (place among all ranks' entries, group)."""
        return [
            (place, entry.group)
            for place, entry in enumerate(self.entries)
            if entry.group is not None
        ]

    def clear(self) -> None:
        self.entries.clear()
        self.failed.clear()

    def __len__(self) -> int:
        return len(self.entries)

    def state_dict(self, groups: list[list[Response]]) -> dict:
        """groups: `stored` of all ranks, in order. Plain lists, dicts and tensors: loads with torch.load(weights_only=True)."""
        rows = [
            dict(
                step=entry.step,
                number=entry.number,
                group=[{k: getattr(r, k) for k in STORED} for r in group],
            )
            for entry, group in zip(self.entries, groups, strict=True)
        ]
        return dict(entries=rows, failed=list(self.failed))

    def load_state_dict(self, state: dict) -> None:
        """A state of any number of ranks; every rank keeps its own share."""
        self.clear()
        self.failed.extend(state["failed"])
        for row in state["entries"]:
            self.add(
                [Response(**response) for response in row["group"]], row["step"], row["number"]
            )
