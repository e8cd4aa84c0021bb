"""What a run says of itself: one line a step in metrics.jsonl, and one on the screen.

Sums over tokens are kept as sums until the step ends, so that they add up over micro-batches, ranks
and mini-batches; `row` makes the means. docs/metrics.md has every name with its unit and meaning.
"""

import json
import math
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from tqdm import tqdm

import trackers
from buffer import Group, Response
from config import Config
from data import Problem
from kept import evaluated_response, extremes, trained_response
from loss import clip_took
from machine import flops, lap, peak_memory, peak_tflops, training_flops
from parallel import Batch, gather, whole

# ------------------------------------------------------------------------------ ratios, by data age

RATIO_SUMS = "tokens ratio ratio_sq log_ratio_sq clipped moved".split()


@torch.no_grad()
def ratio_sums(logp: Tensor, x: Batch, clip_eps: float) -> Tensor:
    """Sums over each response's tokens, named by RATIO_SUMS -> (B, 6) float64."""
    log_ratio = ((logp - x.logp_b) * x.mask).double()
    ratio, centre = torch.exp(log_ratio), torch.exp(((x.logp_k - x.logp_b) * x.mask).double())
    clipped = clip_took(logp, x.logp_k, x.logp_b, x.advantages, clip_eps)
    per_token = dict(
        tokens=torch.ones_like(ratio), ratio=ratio, ratio_sq=ratio**2, log_ratio_sq=log_ratio**2,
        clipped=clipped.double(), moved=(ratio - centre).abs(),
    )  # fmt: skip
    return torch.stack([(per_token[name] * x.mask).sum(-1) for name in RATIO_SUMS], -1)


def ratio_diagnostics(sums: Tensor) -> dict[str, float]:
    """ratio_mean: E[r], r = pi_theta / pi_b. log_ratio_sq: E[(log r)^2], moves long before E[r].
    clip_fraction: share of tokens beyond Mix-PPG's band on A's side, which lose their gradient. tv:
    E|r - c| / 2, the total variation between pi_theta and pi_k that the clip bounds (GePPO). ess:
    (sum r)^2 / (n sum r^2), effective share of the samples. sums: (6,), of one age."""
    s = dict(zip(RATIO_SUMS, sums.tolist(), strict=True))
    n = s["tokens"]
    return dict(
        ratio_mean=s["ratio"] / n, log_ratio_sq=s["log_ratio_sq"] / n,
        clip_fraction=s["clipped"] / n, tv=s["moved"] / (2 * n),
        ess=s["ratio"] * s["ratio"] / (n * s["ratio_sq"]),
    )  # fmt: skip


@torch.no_grad()
def ratio_by_quarter(logp: Tensor, logp_b: Tensor, mask: Tensor) -> Tensor:
    """Where in the response the ratio grows (the paper's whipping effect): (B, T) each -> (4, 2)
    float64, for each quarter of the responses its tokens and the sum of r over them."""
    # 0 <= place < 4 on response tokens
    place = 4 * (mask.cumsum(-1) - 1) / mask.sum(-1, keepdim=True).clamp(min=1)
    at = torch.stack([(place.floor() == quarter) * mask for quarter in range(4)]).double()
    ratio = torch.exp(((logp - logp_b) * mask).double())
    return torch.stack([at.sum((1, 2)), (at * ratio).sum((1, 2))], -1)


# ------------------------------------------------------------------------------------- a step's row

TERMS = "policy_loss kl entropy value_loss tokens".split()


def equal_groups(rewards: list[float], group_size: int) -> float:
    """Share of the groups whose rewards are all the same: GRPO learns nothing from them."""
    groups = np.reshape(rewards, (-1, group_size))
    return float(np.mean(groups.min(1) == groups.max(1)))


class Log:
    """Collects a step's numbers and writes them. A step: start, phase by phase, for every micro-
    batch `add`, for every mini-batch `mini_batch`, `reduce` and `updated`, then `row` and
    `write`."""

    def __init__(
        self, cfg: Config, done: int, device: str, models: dict[str, nn.Module] | None = None,
        optimizers: dict[str, torch.optim.Optimizer] | None = None,
    ):  # fmt: skip
        self.cfg, self.device, self.main = cfg, device, dist.get_rank() == 0
        self.models, self.optimizers = models or {}, optimizers or {}
        self.path = Path(cfg.out, "metrics.jsonl")
        card = torch.cuda.get_device_name() if device == "cuda" and cfg.dtype == "bfloat16" else ""
        self.peak = cfg.peak_tflops or peak_tflops(card)
        for model in self.models.values() if self.peak else ():
            flops(model, [])  # which notes its size, before --skipped_layers makes it smaller
        self.steps_here, self.loop_began, self.written = 0, None, None
        # the last age holds everything older, too (--replay repo)
        self.ages = cfg.replay_window + cfg.sampler_lag + 1
        self.kept: list[Response] = []  # of this step, as they are in it
        self.evaluated: list[dict] = []
        self.bar = tqdm(
            total=cfg.steps, initial=done, desc="ReMix", unit="step",
            disable=None if self.main else True,
        )  # fmt: skip
        self.track = None
        if cfg.track and self.main:
            self.track = trackers.start(cfg.track, cfg.out, read_metrics(self.path), self.say)
            lap("trackers")

    def say(self, text: str) -> None:
        if self.main:
            tqdm.write(text)

    def start(self, step: int) -> None:
        self.step, self.began, self.seconds = step, time.perf_counter(), {}
        self.loop_began, self.rowed = self.loop_began or self.began, self.began
        self.saving = self.began - self.written if self.written else None
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.tokens_forward = self.tokens_backward = 0  # prompts included; forward: frozen passes
        self.flops, self.padded = 0.0, 0  # padded: tokens of this rank's micro-batches, with pads
        self.head_norms: dict[int, list[float]] = {}  # pass -> of each mini-batch
        self.engine_gap = 0.0  # mean |engine - trainer| log-prob of the sampler's responses, nats
        self.norms: list[dict[str, float]] = []  # of each mini-batch
        self.totals, self.mini = self.zeros("cpu"), self.zeros(self.device)

    def zeros(self, device: str) -> dict[str, Tensor]:
        sizes = dict(terms=len(TERMS), ages=(self.ages, len(RATIO_SUMS)), quarters=(4, 2))
        return {k: torch.zeros(n, dtype=torch.float64, device=device) for k, n in sizes.items()}

    def phase(self, name: str) -> None:
        """Ends a phase: seconds_NAME grows by the time since the one before."""
        took = time.perf_counter() - self.began - sum(self.seconds.values())
        self.seconds[name] = self.seconds.get(name, 0.0) + took

    def forward(self, model: nn.Module, responses: list[Response]) -> None:
        """A frozen pass."""
        self.tokens_forward += sum(len(r.prompt) + len(r.tokens) for r in responses)
        self.flops += flops(model, responses) if self.peak else 0

    def mini_batch(self, responses: list[Response]) -> int:
        """-> the response tokens of a mini-batch, which its means are over."""
        self.tokens_backward += sum(len(r.prompt) + len(r.tokens) for r in responses)
        for name in self.optimizers if self.peak else ():
            self.flops += training_flops(self.models[name], responses)
        return sum(len(r.tokens) for r in responses)

    def keep(self, fresh: list[Group], replayed: list[Group], eps: float, tokenizer) -> None:
        """Before the update: choose some responses (--keep_responses), the same on every rank.
        `add` notes their log-probs, and `write` writes them."""
        sets = [[r for group in groups for r in group] for groups in (fresh, replayed)]
        chosen = {id(r): r for of in sets for r in extremes(of, self.cfg.keep_responses)}
        self.kept = [replace(r) for r in chosen.values()]  # copies: the step's fields go at its end
        self.place = {key: i for i, key in enumerate(chosen)}
        # Place -> mini-batches before it, log-probs: of passes on several ranks the last one counts
        self.seen: dict[int, tuple[int, list[float]]] = {}
        self.how = dict(eps=eps, tokenizer=tokenizer, format=self.cfg.format, stop=self.cfg.stop)

    def keep_evaluation(self, records: list[dict], problems: list[Problem]) -> None:
        """Of eval.grade's records some, of the same problems every time."""
        count, by_id = self.cfg.keep_responses, {problem.id: problem for problem in problems}
        some = records[:: max(1, len(records) // max(1, count))][:count]
        self.evaluated = [evaluated_response(record, by_id[record["id"]]) for record in some]

    def responses(self) -> list[dict]:
        """What was kept in this step, on rank 0, to which the others send their log-probs."""
        ranks, rows = gather([self.seen]) if self.kept else [], []
        for i, r in enumerate(self.kept if self.main else []):
            _, logp = max(seen[i] for seen in ranks if i in seen)
            rows.append(trained_response(r, logp, self.step - r.step, **self.how))
        rows += self.evaluated
        self.kept, self.evaluated = [], []
        return rows

    @torch.no_grad()
    def add(
        self, x: Batch, logp: Tensor, policy_loss: Tensor, kl: Tensor, H: Tensor, vf: Tensor,
        eps: float,
    ) -> None:  # fmt: skip
        """A micro-batch. policy_loss: its sum over tokens, a scalar; kl, H, vf: (B, T)."""
        self.padded += x.ids.numel()
        sums, one = self.mini, torch.ones_like(x.mask)
        terms = [(term.double() * x.mask).sum() for term in (kl, H, vf, one)]
        sums["terms"] += torch.stack([policy_loss, *terms])
        age = x.age.clamp(max=self.ages - 1)  # (B,)
        sums["ages"].index_add_(0, age, ratio_sums(logp, x, eps))
        if x.replayed.any():
            sums["quarters"] += ratio_by_quarter(logp, x.logp_b, x.mask * x.replayed[:, None])
        for b, r in enumerate(x.responses if self.kept else []):
            if id(r) in self.place:
                row = logp[b, : len(r.tokens)].tolist()
                self.seen[self.place[id(r)]] = len(self.norms), row

    def reduce(self) -> None:
        """A mini-batch, before the weights change: sums over the ranks. FloatingPointError, naming
        step and term, where one is not finite."""
        sums, self.mini = self.mini, self.zeros(self.device)
        if dist.get_world_size() > 1:
            for x in sums.values():
                dist.all_reduce(x)
        self.stop_if_not_finite(dict(zip(TERMS, sums["terms"].tolist(), strict=True)))
        self.totals = {k: total + sums[k].cpu() for k, total in self.totals.items()}

    def updated(self, norms: dict[str, float], i: int = 0) -> None:
        """The gradients' norms, before the optimizers step; i: the pass, from 0."""
        self.stop_if_not_finite({f"gradient of the {name}": norm for name, norm in norms.items()})
        self.norms.append(norms)
        if "policy" not in self.optimizers:
            return
        grad = self.models["policy"].lm.get_output_embeddings().weight.grad
        if grad is not None:  # LoRA's has none. On every rank: it may lie in shards
            # What it was cut down by, in torch's clip_grad_norm_
            clip = min(1.0, self.cfg.grad_clip / (norms["policy"] + 1e-6))
            norm = whole(torch.linalg.vector_norm(grad)).item() / clip
            self.head_norms.setdefault(i + 1, []).append(norm)

    def stop_if_not_finite(self, terms: dict[str, float]) -> None:
        for name, value in terms.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"step {self.step}: {name} is {value}; the run stops before this update, and "
                    f"{what_is_left(self.cfg.out)}. Lower --lr, or look at ratio_mean and "
                    "log_ratio_sq in metrics.jsonl"
                )

    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def row(
        self, new: list[Response], counts: dict[str, int], share: float, lam: float, eps: float
    ) -> dict:
        """The step's numbers. new: the responses sampled in it, with their `counts`
        (remix.give_rewards); share: of the batch that is replayed; means over the tokens of all
        updates, by data age where a name ends in /ageI, by quarter of the replayed responses where
        in /quarterI; seconds by phase."""
        *sums, n = self.totals["terms"].tolist()
        row = dict(
            off_policy_ratio=share, kl_convex_lambda=lam, clip_eps=eps,
            reward=float(np.mean([r.reward for r in new])),
            response_length=float(np.mean([len(r.tokens) for r in new])),
            reflection_rate=counts["reflecting"] / len(new),
            truncation_rate=float(np.mean([not r.finished for r in new])),
            grader_kills=counts["kills"],
            grad_norm=float(np.mean([norms["policy"] for norms in self.norms] or [math.nan])),
            engine_gap=self.engine_gap, tokens_forward=self.tokens_forward,
            tokens_backward=self.tokens_backward,
        )  # fmt: skip
        if "right" in counts:  # not of --reward, which may know of no answer
            row |= dict(
                answer_rate=counts["right"] / len(new), format_rate=counts["formatted"] / len(new),
                grader_unparsable=counts["unparsable"],
            )  # fmt: skip
        if not self.norms:  # nothing to tell of the losses
            self.say(f"step {self.step}: no update, as no group has contrast")
        row |= {name: value / n for name, value in zip(TERMS[:-1], sums, strict=True) if n}
        for i, of_age in enumerate(self.totals["ages"]):
            if of_age[0] > 0:
                row |= {f"{k}/age{i}": v for k, v in ratio_diagnostics(of_age).items()}
        for i, (n, ratio) in enumerate(self.totals["quarters"].tolist(), 1):
            if n > 0:
                row[f"ratio_mean/quarter{i}"] = ratio / n
        for name, optimizer in self.optimizers.items():
            row[{"policy": "lr"}.get(name, f"{name}_lr")] = optimizer.param_groups[0]["lr"]
        for i, norms in self.head_norms.items():
            row[f"grad_norm_head/pass{i}"] = float(np.mean(norms))
        if k := self.cfg.skipped_layers:  # the last token of a response passes through no layer
            prompts = sum(len(r.prompt) for r in new[:: self.cfg.group_size])
            row["layer_passes_saved"] = k * (prompts + sum(len(r.tokens) - 1 for r in new))
        if self.cfg.algo == "grpo":
            row["equal_groups"] = equal_groups([r.reward for r in new], self.cfg.group_size)
        row |= self.machine(sum(len(r.tokens) for r in new))
        row |= {f"seconds_{name}": value for name, value in self.seconds.items()}
        self.rowed = time.perf_counter()
        return row | ({} if self.saving is None else dict(seconds_save=self.saving))

    def machine(self, sampled: int) -> dict[str, float]:
        """What differs from run to run, and padding. sampled: response tokens."""
        s, (name, gib) = self.seconds, peak_memory()
        ranks = gather([(self.padded, gib)])
        row = {
            "machine/sampled_tokens_per_second": sampled / s["rollout"],
            "machine/trained_tokens_per_second": self.tokens_backward / s["update"],
            name: max(gib for _, gib in ranks),
        }
        if self.peak:
            seconds = (s["frozen"] + s["update"]) * len(ranks)
            row["machine/mfu"] = self.flops / (seconds * self.peak * 1e12)
        padded = sum(padded for padded, _ in ranks)
        if self.cfg.attention == "sdpa" and padded:  # flash attention computes no pads
            row["padding"] = 1 - self.tokens_backward / padded
        return row

    def write(self, row: dict) -> None:
        """A line in the file, and one on the screen. JSON has no nan: what is undefined is left
        out. 8 digits are more than float32 has."""
        if "reward" in row and score(row) is not None:
            row["seconds_eval"] = time.perf_counter() - self.rowed
        row = {
            k: float(f"{v:.8g}") if isinstance(v, float) else v for k, v in row.items() if v == v
        }
        kept = [dict(step=row["step"]) | response for response in self.responses()]
        if self.main:
            with writing(self.cfg.out):
                append(self.path, [row])
                append(self.path.with_name("responses.jsonl"), kept)
        if self.track:
            self.track(row)
        self.written = time.perf_counter()
        if "reward" in row:
            self.steps_here += 1
            left = (self.written - self.loop_began) / self.steps_here
            left = tqdm.format_interval(left * (self.cfg.steps - row["step"]))
            text = f"step {row['step']:4d}  reward {row['reward']:.2f}"
            known = row.get("format_rate", 1) >= 0.9
            if not known:  # where it matters that the two are not the same
                text += f" (answer {row['answer_rate']:.2f}, format {row['format_rate']:.2f})"
            text += f"  length {row['response_length']:5.1f}  rollouts {row['rollouts']:6d}"
            if known and "entropy" in row:  # 110 columns at most, with pass@1
                text += f"  entropy {row['entropy']:.2f}"
            if found := evaluation(row):
                text += f"  {found}"
            if row["grader_kills"]:
                text += f"  {row['grader_kills']} gradings killed"
            self.say(f"{text}  {sum(self.seconds.values()):.1f} s, {left} left")
            self.bar.update()
        elif found := evaluation(row):
            self.say(f"base model: {found}, {row['eval/response_length']:.0f} tokens a response")


def evaluation(row: dict) -> str:
    """What an evaluation found, with its interval, which one problem does not have; "" if there was
    none."""
    for name, form in {"pass@1": ".1%", "reward": ".3f"}.items():
        values = [row.get(f"eval/{name}{end}") for end in ("", "_ci")]
        if values[0] is not None:
            own = "eval " if name == "reward" else ""
            return f"{own}{name} " + " ± ".join(f"{x:{form}}" for x in values if x is not None)
    return ""


# ----------------------------------------------------------------------------------- files of a run


def saved_steps(out: Path) -> list[Path]:
    """The whole checkpoints of the run folder, the newest last."""
    return sorted((out / "checkpoints").glob("step-*"))


def what_is_left(out: str) -> str:
    """Of a run that ends early."""
    saved = saved_steps(Path(out))
    if not saved:
        return "there is no checkpoint yet"
    return f"the checkpoint of step {int(saved[-1].name[-6:])} is intact"


class DiskError(Exception):
    """What a run needs cannot be written or read: one sentence for the user."""


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Around what writes into the run folder: a full disk, one that has become read-only. The
    libraries' writers raise kinds of their own."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        raise DiskError(
            f"--out {out}: cannot be written ({reason(error)}); {what_is_left(out)}. Make room, "
            "and the same command goes on"
        ) from error


def reason(error: BaseException) -> str:
    """What an error says, in a few words."""
    if isinstance(error, CheckpointException):  # of a rank, wrapped
        error, _ = next(iter(error.failures.values()))
    text = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0][:200]
    if "inline_container" in text:  # torch.save's writer: its file ended before it did
        return "a file could not be written whole: the disk is full?"
    return text or type(error).__name__


SCORES = ("eval/pass@1", "eval/reward")  # an evaluation has one of them


def score(row: dict) -> float | None:
    """What evaluations are compared by; None where there was none."""
    return next((row[name] for name in SCORES if name in row), None)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def append(path: Path, rows: list[dict]) -> None:
    if rows:
        with open(path, "a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def rewrite(path: Path, rows: list[dict]) -> None:
    with writing(path.parent):
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(partial, path)


def rewind_metrics(path: Path, step: int, evaluated: bool) -> None:
    """Drop the rows after `step`, which are run again, and the responses. evaluated: whether an
    uninterrupted run evaluates at `step`; if not, the evaluation that ended the first part goes
    too, so that a run does not show where it was stopped."""
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    if rows and not evaluated:
        rows[-1] = {k: v for k, v in rows[-1].items() if not k.startswith("eval/")}
    rewrite(path, rows)
    kept = path.with_name("responses.jsonl")
    if kept.exists():  # a step has some only because it is evaluated
        rewrite(kept, [row for row in read_metrics(kept) if row["step"] < step + evaluated])


def git_commit() -> str:
    """Commit of this code, with '+changes' where the files differ from it; 'unknown' outside a git
    checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
