"""The replay buffer: a FIFO of the last N steps' fresh responses, and the exact count of fresh prompts a step (paper: Mix-PPG).

A *group* is the G responses to one prompt; groups stay whole, because GRPO's advantage needs all of them.
The buffer lives on the CPU, the same on every rank: 12 to 16 bytes a response token (2 steps of ReMix-GRPO at 8,192 tokens
are under 0.5 GB), so that any number of ranks draws the same batch and can resume the same checkpoint.

[open] nu, the draw from the window: uniform over the stored groups, without replacement within a step.
[open] the first steps of a run have little or nothing to replay; they train on what there is, and collect no more.
[open] reincarnation empties the buffer.
"""

from collections import deque
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
    step: int  # training step at which it was sampled; age = current step - this
    logp_base: torch.Tensor | None = None  # cached: pi_base changes only at reincarnation ((T, V) for the exact KL)
    # Valid within one step only:
    logp_k: torch.Tensor | None = None
    logp_prev: torch.Tensor | None = None
    values: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None


SCRATCH = ("logp_k", "logp_prev", "values", "advantages", "returns")  # recomputed every step, never stored


def fresh_prompts(step: int, prompts_per_step: int, off_policy_ratio: float) -> int:
    """Prompts to sample in the step-th mixing step (from 1): (1 - p) P with the remainder carried, in exact arithmetic.
    0.6 * 256 = 153.6 gives 153, 154, 153, 154, 154, ...: 100 steps collect 15,360, not 15,300."""
    share = prompts_per_step * (1 - Fraction(str(off_policy_ratio)))
    return int(step * share) - int((step - 1) * share)


class Buffer:
    """FIFO of the last `window` steps' batches, each a list of groups (lists of Response)."""

    def __init__(self, window: int):
        self.batches: deque[list[list[Response]]] = deque(maxlen=window)

    def push(self, groups: list[list[Response]]) -> None:
        """Store one step's fresh groups; the batch of `window` steps ago falls out."""
        for group in groups:
            for response in group:
                for name in SCRATCH:
                    setattr(response, name, None)
        self.batches.append(groups)

    def draw(self, count: int, rng: np.random.Generator) -> list[list[Response]]:
        """count groups, uniform over the window without replacement; all there are when there are fewer."""
        groups = [group for batch in self.batches for group in batch]
        chosen = rng.permutation(len(groups))[:count]
        return [groups[i] for i in chosen]

    def clear(self) -> None:
        self.batches.clear()

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.batches)

    def state_dict(self) -> list:
        """Plain lists, dicts and tensors: loads with torch.load(weights_only=True)."""
        stored = [field.name for field in fields(Response) if field.name not in SCRATCH]
        return [[[{k: getattr(r, k) for k in stored} for r in g] for g in batch] for batch in self.batches]

    def load_state_dict(self, state: list) -> None:
        self.batches.clear()
        self.batches.extend([[Response(**r) for r in group] for group in batch] for batch in state)
