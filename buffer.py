"""The replay buffer: a FIFO of the last N steps' fresh responses, and the exact count of fresh
prompts a step (paper: Mix-PPG).

A *group* is the G responses to one prompt; groups stay whole, because GRPO's advantage needs all of
them. The buffer lives on the CPU, sharded: rank i holds every group whose number in its step is i
modulo the ranks. What a draw needs to know of a group (its `Entry`) is the same on every rank, so
all ranks draw the same, and the loop gathers it.

[open] nu, the draw from the window: uniform over the stored groups, without replacement in a step.
[open] the first steps of a run have little or nothing to replay; they train on what there is, and
  collect no more.
[open] reincarnation empties the buffer.

What is done with the stored groups is a `Replay`: four functions, whose defaults, below, are
ReMix's. Other methods' stand in siblings.py (`--replay`).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def this_step(default=None):
    """A field that is computed anew every step and never stored."""
    return field(default=default, metadata=dict(this_step=True))


@dataclass
class Response:
    """One sampled response and what is known of it. Tensors are CPU, (T,) over its T response
    tokens, float32; log-probs in nats."""

    prompt: list[int]  # prompt token ids
    tokens: list[int]  # response token ids, eos included when it finished
    logp_b: Tensor  # log-prob under the behaviour policy, which sampled it
    finished: bool  # False: cut at the length limit
    reward: float
    step: int  # training step at which the behaviour policy was pi_k; age = current step - this
    # Log-prob under pi_base, which changes only at reincarnation; for the exact KL its last hidden
    # states (T, H) in their place, as with prev
    base: Tensor | None = None
    weight: Tensor | None = None  # TIS / IcePop, for the engine's own error (--engine_weight)

    logp_k: Tensor | None = this_step()  # log-prob under pi_k
    prev: Tensor | None = this_step()  # log-prob under pi_{k-1}
    values: Tensor | None = this_step()
    advantages: Tensor | None = this_step()
    returns: Tensor | None = this_step()
    replayed: bool = this_step(False)  # drawn from the buffer

    def end_step(self) -> None:
        """Drop what is valid within one step only."""
        for f in fields(self):
            if f.metadata:
                setattr(self, f.name, f.default)

    def stored(self) -> dict:
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.metadata}

    def __getstate__(self) -> dict:
        """For the exchange between ranks: a tensor's own pickling is a whole torch.save, fifty
        times an array's."""
        return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in vars(self).items()}

    def __setstate__(self, state: dict) -> None:
        arrays = {k: torch.from_numpy(v) for k, v in state.items() if isinstance(v, np.ndarray)}
        vars(self).update(state | arrays)


Group = list[Response]


def fresh_prompts(step: int, prompts_per_step: int, off_policy_ratio: float) -> int:
    """Prompts to sample in the step-th mixing step (from 1): (1 - p) P, the remainder carried, in
    exact arithmetic. 0.6 * 256 = 153.6 gives 153, 154, 153, 154, 154, ...: 100 steps collect
    15,360, not 15,300."""
    share = prompts_per_step * (1 - Fraction(str(off_policy_ratio)))
    return int(step * share) - int((step - 1) * share)


@dataclass
class Entry:
    """One stored group, as every rank knows it."""

    step: int
    number: int  # place among the groups of its step
    prompt: tuple[int, ...]
    rewards: tuple[float, ...]  # of its responses
    group: Group | None  # None on the ranks that do not hold it

    @property
    def reward(self) -> float:
        return sum(self.rewards) / len(self.rewards)


# ---------------------------------------------------------------------------- ReMix's way to replay


def next_problems(buffer: "Buffer", count: int, upcoming: Callable) -> list[int]:
    """What to sample: the next problems of the shuffled epochs."""
    return upcoming(count)


def all_groups(buffer: "Buffer", fresh: list[Group], problems: list[int]) -> list[Group]:
    """Which fresh groups to train on and to store: all."""
    return fresh


def last_steps(entries: list[Entry], step: int, window: int) -> list[Entry]:
    """What stays after a step: the groups of the last N steps."""
    return [entry for entry in entries if entry.step > step - window]


def uniform(
    entries: list[Entry], count: int, rng: np.random.Generator, fresh: list[Group], score: Callable
) -> list[Entry]:
    """What to replay: groups of the window, uniformly, without replacement."""
    return [entries[i] for i in rng.permutation(len(entries))[:count]]


class Replay(NamedTuple):
    """What is sampled, kept, forgotten and replayed. All four see the same on every rank."""

    choose: Callable = next_problems  # (buffer, count, upcoming) -> problem numbers, so many
    #   upcoming(n): the next n problems of the shuffled epochs; who takes fewer leaves them there
    keep: Callable = all_groups  # (buffer, fresh groups, their problem numbers) -> groups
    forget: Callable = last_steps  # (entries, step, window) -> entries
    draw: Callable = uniform  # (entries, count, rng, fresh groups, score) -> entries, at most count
    #   score(): for each entry its responses' log-probs under pi_k, a forward pass over the buffer
    fills: bool = False  # old groups also take the places that `keep` leaves empty, without p too

    def taken(self, fresh: list[Group], n_fresh: int) -> int:
        """Places of a batch that old groups cannot have. n_fresh: groups that were to be fresh."""
        return len(fresh) if self.fills else n_fresh


REMIX = Replay()

# --------------------------------------------------------------------------------------- the buffer


class Buffer:
    """The stored groups. window: N; rank, ranks: which share lies here."""

    def __init__(self, window: int, replay: Replay = REMIX, rank: int = 0, ranks: int = 1):
        self.window, self.replay, self.rank, self.ranks = window, replay, rank, ranks
        self.entries: list[Entry] = []  # oldest first
        self.failed: deque[int] = deque()  # buffer_matters: problems whose last group was all wrong

    def push(self, groups: list[Group], step: int) -> None:
        """Store a step's fresh groups (given whole, on every rank); what is too old falls out."""
        for number, group in enumerate(groups):
            self.add(group, step, number)
        self.entries = self.replay.forget(self.entries, step, self.window)

    def add(self, group: Group, step: int, number: int) -> None:
        here = group if number % self.ranks == self.rank else None
        rewards = tuple(r.reward for r in group)
        entry = Entry(step, number, tuple(group[0].prompt), rewards, here)
        self.entries.append(entry)

    def draw(
        self, count: int, rng: np.random.Generator, fresh: list[Group] = (), score: Callable = None
    ) -> list[tuple[int, Group]]:
        """Up to count groups, the same on every rank -> those of them that lie here, as (place in
        the draw, group)."""
        drawn = self.replay.draw(self.entries, count, rng, fresh, score) if count else []
        here = [(place, e.group) for place, e in enumerate(drawn) if e.group is not None]
        for _, group in here:
            for r in group:
                r.replayed = True
        return here

    def stored(self) -> list[tuple[int, Group]]:
        """Every group that lies here, as (place among all ranks' entries, group)."""
        return [(place, e.group) for place, e in enumerate(self.entries) if e.group is not None]

    def clear(self) -> None:
        self.entries.clear()
        self.failed.clear()

    def __len__(self) -> int:
        return len(self.entries)

    def state_dict(self, groups: list[Group]) -> dict:
        """groups: `stored` of all ranks, in order. Plain lists, dicts and tensors, for
        torch.load(weights_only=True)."""
        rows = [
            dict(step=entry.step, number=entry.number, group=[r.stored() for r in group])
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
