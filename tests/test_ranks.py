"""Several ranks, several nodes: the same gradients as one rank, and a rank that dies ends the job,
which then goes on."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from forks import forked
from test_remix import SMALL, assert_same_run, metrics, run, start

from tiny import embedded_problems

pytestmark = pytest.mark.slow

# remix.py with optimizers that also write their gradients to a file. Its learning rate is too small
# to move a weight, so every mini-batch of every run is the same batch under the same policy.
DUMP = """
import sys
import torch
import torch.distributed as dist
import remix
out = sys.argv.pop()
seen, real = [], torch.optim.AdamW.step
def step(self, closure=None):
    grads = [p.grad for group in self.param_groups for p in group["params"]]
    grads = [(g.full_tensor() if hasattr(g, "full_tensor") else g).flatten().clone() for g in grads]
    if any(g.any() for g in grads):  # a save steps once with gradients of 0, to make the state
        seen.append(torch.cat(grads))
    if dist.get_rank() == 0:
        torch.save(seen, out)
    return real(self, closure)
torch.optim.AdamW.step = step
remix.main()
"""


def gradients(base, folder: Path, *flags, ranks=1, nodes=1) -> list[torch.Tensor]:
    folder.mkdir()
    # Any number up to 100 counts as right: this base model hardly ever is, and without a reward
    # there is no gradient
    (folder / "any.json").write_text(
        json.dumps([row | dict(answer="50", error="50") for row in embedded_problems("train")[:64]])
    )
    where = ["--data", folder / "any.json", "--model", base, "--out", folder / "run"]
    said, out = folder / "said.txt", folder / "gradients.pt"
    args = [*where, *SMALL[2:], *flags, out]
    assert not any(forked(said, args, DUMP, ranks, nodes)), said.read_text()
    return torch.load(out)


def assert_gradients_of_one_rank(base, folder: Path, algo: str, flags: list, launches: list):
    """launches: (shard, ranks a node, nodes), each against one rank."""
    one = gradients(base, folder / "one", *flags)
    # 2 steps of 2 passes
    assert len(one) == (4 if algo == "grpo" else 8) and all(g.norm() > 1e-4 for g in one)
    for shard, ranks, nodes in launches:
        name = f"{shard}-{ranks}-{nodes}"
        several = gradients(base, folder / name, *flags, "--shard", shard, ranks=ranks, nodes=nodes)
        for i, (a, b) in enumerate(zip(one, several, strict=True)):
            assert (a - b).abs().max() < 1e-6 and (a - b).norm() < 5e-6 * a.norm(), (name, i)


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_ranks_and_nodes_give_the_gradients_of_one_rank(base, tmp_path, algo):
    """Replayed and fresh data, both anchors (k3, exact), uneven shares (5 responses on 2 ranks),
    many micro-batches: every element to 1e-6, where the whole gradient has a norm of about 1 (it is
    clipped there)."""
    size = (
        ["--prompts_per_step", 5]
        if algo == "ppo"
        else ["--prompts_per_step", 3, "--mini_batch", 3, "--group_size", 3]
    )
    flags = [
        "--algo",
        algo,
        *size,
        "--steps",
        2,
        "--eval_every",
        0,
        "--eval_limit",
        1,
        "--eval_n",
        1,
    ]
    flags += [
        "--kl_convex",
        0.5,
        "--kl_coef",
        0.1,
        "--tokens_per_micro_batch",
        100,
        "--entropy_coef",
        0.01,
    ]
    flags += ["--lr", 1e-30, "--critic_lr", 1e-30, "--weight_decay", 0]
    flags += ["--kl_estimator", "exact"] if algo == "grpo" else []
    launches = (
        [("none", 2, 1), ("node", 2, 1)] if algo == "ppo" else [("node", 1, 2), ("node", 2, 2)]
    )
    assert_gradients_of_one_rank(base, tmp_path, algo, flags, launches)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the ranks in /proc")
def test_a_rank_that_dies_ends_the_job_within_a_minute_and_it_goes_on(base, tmp_path):
    flags = [
        "--steps",
        60,
        "--save_every",
        1,
        "--eval_every",
        0,
        "--eval_limit",
        1,
        "--prompts_per_step",
        5,
    ]
    flags += ["--shard", "node"]
    job = start(base, tmp_path / "run", *flags, ranks=2)
    deadline = time.time() + 300
    while time.time() < deadline and not list((tmp_path / "run").glob("checkpoints/step-0000*")):
        time.sleep(0.05)
    os.kill(children(job.pid)[1], signal.SIGKILL)
    died = time.time()
    _, stderr = job.communicate(timeout=120)
    assert time.time() - died < 60 and job.returncode != 0
    assert "Signal 9 (SIGKILL)" in stderr
    done = metrics(tmp_path / "run")[-1]["step"]
    assert 1 <= done < 60
    steps = ["--steps", done + 2]
    run(base, tmp_path / "run", *flags, *steps, ranks=2)
    run(base, tmp_path / "whole", *flags, *steps, ranks=2)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
