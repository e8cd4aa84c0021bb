"""Every table and figure of README.md and docs/, from runs/*.jsonl, benchmarks/results/, the code.

    python runs/report.py           writes docs/figures/ and what stands between the pages' marks:
        <!-- table NAME -->         made below from the runs (NAME FILE: of that file)
        <!-- log FILE N -->         the N-th table that a benchmark printed, of benchmarks/results/
        <!-- code FILE NAME -->     a function as it stands in the source, without its docstring
        <!-- lines FILE TITLE -->   the lines below a comment `# ---- TITLE`
        <!-- cell FILE TITLE -->    a cell `# %% TITLE` as it stands
    python runs/report.py --check   changes nothing; exit 1 if a page is not what the data gives

A cell is the mean over the seeds and [lowest, highest]; pass@1 in percent, 200 held-out problems.
"""

import ast
import functools
import itertools
import json
import re
import sys
import textwrap
from pathlib import Path
from statistics import fmean, median

RUNS = Path(__file__).resolve().parent
ROOT = RUNS.parent
sys.path[:0] = [str(ROOT), str(RUNS), str(ROOT / "benchmarks")]

import best_lr  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from exercises import EXERCISES  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

import loss  # noqa: E402
from plot import (  # noqa: E402
    COLOURS,
    PANELS,
    Run,
    cost_to,
    draw_panel,
    draw_runs,
    markdown,
    read_experiment,
    spread,
    tokens_trained,
)
from plot import value_at as at  # noqa: E402
from siblings import LOSSES  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIGURES, RESULTS = ROOT / "docs" / "figures", ROOT / "benchmarks" / "results"
# Rollouts of ReMix's mixing half (12 steps of 0.6 * 128) and of a whole run
EARLY, LATE = 925, 2460
# The same of the paper's schedule: 100 steps of 0.6 * 64, 350 of them, 250 of 64 more
MIXED, ONLY_MIXED, WHOLE = 3840, 13440, 19840
ACCURACY, SHAPE = [f"at {EARLY} rollouts", f"at {LATE:,}"], ["length", "reflection"]

METHODS = {
    "remix-ppo": "ReMix-PPO",
    "ppo": "PPO",
    **{f"ppo-m{m}": f"PPO, m = {m} for 7 steps, no replay" for m in (2, 3, 4)},
    "remix-grpo": "ReMix-GRPO",
    "grpo": "GRPO",
    **{f"grpo-m{m}": f"GRPO, m = {m} for 7 steps, no replay" for m in (2, 3, 4)},
}
FIRST = {  # the README's figure
    "remix-ppo": "ReMix-PPO",
    "ppo": "PPO",
    "ppo-m3": "PPO, three passes, no replay",
}
PAPER = {
    "full": "ReMix-PPO, T = 100",
    "T50": "ReMix-PPO, T = 50",
    "no-utd": "without UTD (m = 1)",
    "no-kl-convex": "without KL-Convex",
    "no-reincarnation": "without reincarnation",
    "mix-ppg": "without all three: plain Mix-PPG",
    "no-utd-full-rate": "without UTD, at the full method's rate",
    "mix-ppg-full-rate": "plain Mix-PPG, at the full method's rate",
    "ppo": "PPO",
    "ppo-m2": "PPO, m = 2 throughout, no replay",
    "ppo-m3": "PPO, m = 3 for 60 steps, no replay",
}
DRAWN = {  # of PAPER
    "full": "ReMix-PPO",
    "no-reincarnation": "no reincarnation",
    "mix-ppg": "Mix-PPG, lr 3e-4",
    "mix-ppg-full-rate": "Mix-PPG, lr 1e-4",
    "ppo": "PPO",
    "ppo-m3": "PPO, m = 3",
}
CLIPS = {
    "methods/remix-ppo": "Mix-PPG, centre c",
    "clip/ppo": "centre 1 (PPO around π_b)",
    "clip/decoupled_ppo": "decoupled (AReaL)",
    "clip/geppo": "Mix-PPG, GePPO's ε",
    "clip/vtrace": "Mix-PPG, V-trace",
}
LORA = {
    "lora/remix-ppo": "ReMix-PPO, all weights",
    "lora/remix-ppo-rank16": "ReMix-PPO, rank 16",
    "lora/remix-grpo": "ReMix-GRPO, all weights",
    "lora/remix-grpo-rank16": "ReMix-GRPO, rank 16",
}
SMOLLM = {"remix": "ReMix-GRPO", "grpo": "GRPO", "grpo-m3": "GRPO, m = 3, no replay"}
WAYS = {  # to use a response again -> what its runs are called behind their number of passes
    "replay, Mix-PPG": "",
    "replay, PPO's clip around π_b": "-ppo",
    "replay, decoupled": "-decoupled_ppo",
    "replay, Mix-PPG, β = 0.01": "-beta0.01",
    "replay, Mix-PPG, β = 0.1": "-beta0.1",
}
REUSES = {  # passes over each response -> runs
    "passes alone": {u: f"passes{u}" for u in (1, 2, 3, 5, 8, 12)},
    "passes alone, β = 0.1": {u: f"passes{u}-beta0.1" for u in (3, 5, 8, 12)},
    **{way: {u: f"replay{u}{end}" for u in (3.3, 5, 8, 12)} for way, end in WAYS.items()},
    "replay, Mix-PPG, T half-way": {8: "replay8-T12", 12: "replay12-T18"},
}
WHIPPING = {"": "as trained", "-equals": "prompt “… =”"}
OTHERS = {
    "methods/remix-grpo": "**ReMix-GRPO** (five seeds)",
    "methods/grpo": "GRPO (five seeds)",
    **{f"siblings/loss-{name}": f"`--loss {name}` ({LOSSES[name].source})" for name in LOSSES},
    "siblings/replay-buffer_matters": "`--replay buffer_matters --replay_window 5`",
    "siblings/replay-on_policyness": "`--replay on_policyness --replay_window 5`",
    "siblings/replay-advantage": "`--replay advantage --replay_window 10`",
    "siblings/replay-popo": "`--replay popo --replay_window 5 --loss decoupled_ppo`",
    "siblings/popo-p0": "the same, p = 0, without reincarnation",
    "siblings/replay-repo": "`--replay repo`, 32 problems",
    "siblings/replay-window": "ReMix-GRPO, 32 problems",
    "siblings/lag2": "`--sampler_lag 2`",
    "siblings/lag2-loss-ppo": "`--sampler_lag 2 --loss ppo`",
    "siblings/skipped1": "`--skipped_layers 1`, of three (Nested-ReFT)",
    "siblings/trl-grpo": "TRL 1.13's GRPO",
    "siblings/trl-replay_buffer": "TRL 1.13's GRPOWithReplayBuffer, 64 groups",
}

END, LENGTH = "end", "length"  # of a claim, beside a number of rollouts
# What is claimed: the first run is above the second, in pass@1 after so many rollouts, at the END
# of both, or in the length of its responses when mixing ends
CLAIMS = {
    "paper": [  # the paper's own, on its own schedule
        ("ReMix-PPO is above PPO, early", "paper/full", "paper/ppo", MIXED),
        ("… later", "paper/full", "paper/ppo", ONLY_MIXED),
        ("… and late", "paper/full", "paper/ppo", WHOLE),
        ("… with T = 50, early", "paper/T50", "paper/ppo", MIXED),
        ("… with T = 50, late", "paper/T50", "paper/ppo", WHOLE),
        ("without UTD it is lower, early", "paper/full", "paper/no-utd", MIXED),
        ("… after 350 steps", "paper/full", "paper/no-utd", END),
        ("… at the full method's rate", "paper/full", "paper/no-utd-full-rate", END),
        ("without KL-Convex it is lower", "paper/full", "paper/no-kl-convex", END),
        ("without reincarnation it is lower", "paper/full", "paper/no-reincarnation", END),
        ("… at equal rollouts", "paper/full", "paper/no-reincarnation", ONLY_MIXED),
        ("plain Mix-PPG is lower", "paper/full", "paper/mix-ppg", END),
        ("… at the full method's rate", "paper/full", "paper/mix-ppg-full-rate", END),
        ("without reincarnation it ends below PPO", "paper/ppo", "paper/no-reincarnation", END),
        ("… at equal rollouts", "paper/ppo", "paper/no-reincarnation", ONLY_MIXED),
        ("plain Mix-PPG ends below PPO", "paper/ppo", "paper/mix-ppg", END),
        ("… at PPO's rate", "paper/ppo", "paper/mix-ppg-full-rate", END),
        ("… at PPO's rate and equal rollouts", "paper/ppo", "paper/mix-ppg-full-rate", ONLY_MIXED),
        ("replay makes responses shorter", "paper/ppo-m2", "paper/no-reincarnation", LENGTH),
    ],
    "control": [  # replay against as many passes over fresh data
        ("ReMix-PPO is above PPO, early", "methods/remix-ppo", "methods/ppo", EARLY),
        ("… and late", "methods/remix-ppo", "methods/ppo", LATE),
        ("ReMix-PPO is above PPO with m = 2, early", "methods/remix-ppo", "methods/ppo-m2", EARLY),
        ("… and late", "methods/remix-ppo", "methods/ppo-m2", LATE),
        ("ReMix-PPO is above PPO with m = 3, early", "methods/remix-ppo", "methods/ppo-m3", EARLY),
        ("… and late", "methods/remix-ppo", "methods/ppo-m3", LATE),
        ("ReMix-PPO is above PPO with m = 4, early", "methods/remix-ppo", "methods/ppo-m4", EARLY),
        ("… and late", "methods/remix-ppo", "methods/ppo-m4", LATE),
        ("ReMix-PPO is above PPO with m = 3 on the paper's schedule, early",
         "paper/full", "paper/ppo-m3", MIXED),
        ("… and late", "paper/full", "paper/ppo-m3", WHOLE),
        ("ReMix-GRPO is above GRPO, early", "methods/remix-grpo", "methods/grpo", EARLY),
        ("… and late", "methods/remix-grpo", "methods/grpo", LATE),
        ("ReMix-GRPO is above GRPO with m = 3, early",
         "methods/remix-grpo", "methods/grpo-m3", EARLY),
        ("… and late", "methods/remix-grpo", "methods/grpo-m3", LATE),
        ("ReMix-GRPO is above GRPO with m = 4, early",
         "methods/remix-grpo", "methods/grpo-m4", EARLY),
        ("… and late", "methods/remix-grpo", "methods/grpo-m4", LATE),
        ("ReMix-GRPO is above GRPO with SmolLM2, early",
         "smollm/remix-lr5e-6", "smollm/grpo-lr5e-6", EARLY),
        ("… and late", "smollm/remix-lr5e-6", "smollm/grpo-lr5e-6", LATE),
        ("ReMix-GRPO is above GRPO with m = 3 with SmolLM2, early",
         "smollm/remix-lr5e-6", "smollm/grpo-m3-lr5e-6", EARLY),
        ("… and late", "smollm/remix-lr5e-6", "smollm/grpo-m3-lr5e-6", LATE),
        ("at u = 5 Mix-PPG is above passes alone", "reuse/replay5", "reuse/passes5", END),
        ("… with PPO's clip around π_b", "reuse/replay5-ppo", "reuse/passes5", END),
        ("at u = 8 Mix-PPG is above passes alone", "reuse/replay8", "reuse/passes8", END),
        ("… at u = 12", "reuse/replay12", "reuse/passes12", END),
        ("at u = 5, both with β = 0.1", "reuse/replay5-beta0.1", "reuse/passes5-beta0.1", END),
        ("… at u = 8", "reuse/replay8-beta0.1", "reuse/passes8-beta0.1", END),
        ("… at u = 12", "reuse/replay12-beta0.1", "reuse/passes12-beta0.1", END),
        ("at u = 8 replay with PPO's clip around π_b is above passes alone",
         "reuse/replay8-ppo", "reuse/passes8", END),
        ("… at u = 12", "reuse/replay12-ppo", "reuse/passes12", END),
        ("at u = 12 that clip is above Mix-PPG's", "reuse/replay12-ppo", "reuse/replay12", END),
        ("at u = 12 KL-Convex with β = 0.1 helps Mix-PPG",
         "reuse/replay12-beta0.1", "reuse/replay12", END),
        ("… and passes alone", "reuse/passes12-beta0.1", "reuse/passes12", END),
        ("u = 8 with β = 0.1 is above five passes alone",
         "reuse/replay8-beta0.1", "reuse/passes5", END),
        ("at u = 12 reincarnation half-way helps Mix-PPG",
         "reuse/replay12-T18", "reuse/replay12", END),
    ],
}  # fmt: skip

# ------------------------------------------------------------------------------------------ runs

experiment = functools.cache(lambda name: read_experiment(RUNS / f"{name}.jsonl"))


def runs(name: str) -> list[Run]:
    """The seeds of FILE/NAME; none when they have not been made."""
    file, _, name = name.partition("/")
    return experiment(file).get(name, [])


@functools.cache
def seeds(name: str) -> list[list[dict]]:
    """The same as lists of rows."""
    return [list(rows.values()) for rows, _ in runs(name)]


def existing(names: dict[str, str], file: str = "") -> dict[str, list[Run]]:
    """title -> seeds, of those that have been run."""
    return {title: runs(file + name) for name, title in names.items() if runs(file + name)}


def rate(name: str) -> str:
    return f"{runs(name)[0][1]['lr']:.0e}".replace("e-0", "e-")


def evaluated(rows: list[dict]) -> list[dict]:
    return [row for row in rows if "eval/pass@1" in row]


def accuracies(name: str, rollouts: int) -> list[float]:
    return [100 * at(rows, rollouts) for rows in seeds(name)]


def accuracy(name: str, rollouts: int) -> str:
    """Over the seeds; a dash where the runs ended before."""
    ended = max(rows[-1]["rollouts"] for rows in seeds(name)) <= rollouts - 30
    return "–" if ended else spread(accuracies(name, rollouts))


def shape(name: str) -> list[str]:
    """The length and the share of reflection at the end."""
    length = fmean(at(rows, LATE, "eval/response_length") for rows in seeds(name))
    reflection = fmean(100 * at(rows, LATE, "eval/reflection_rate") for rows in seeds(name))
    return [f"{length:.0f}", f"{reflection:.0f} %"]


def mean_of(rows: list[dict], key: str, first: int = 2) -> float:
    """Over the steps from `first` on: step 1 has nothing to replay."""
    values = [row[key] for row in rows if key in row and first <= row["step"]]
    return fmean(values) if values else float("nan")


# ------------------------------------------------------------------------------------------ tables


def table_methods() -> str:
    lines = []
    for name, title in METHODS.items():
        of = seeds(full := f"methods/{name}")
        cells = [accuracy(full, EARLY), accuracy(full, LATE)]
        cells += [cost_to(of, percent) for percent in (70, 80, 85)]
        lines.append([f"{title} (lr {rate(full)})", *cells])
    return markdown(["method", *ACCURACY, *(f"to {p} %" for p in (70, 80, 85))], lines)


def table_paper() -> str:
    """By rollouts, and at the paper's 350 steps with what they cost."""
    lines = []
    for name, title in PAPER.items():
        of = seeds(full := f"paper/{name}")
        cells = [accuracy(full, n) for n in (MIXED, ONLY_MIXED, WHOLE)]
        ends = [rows[-1] for rows in of]
        tokens = fmean(tokens_trained(rows)[-1] for rows in of)
        cells += [spread(measured(full, END))]
        cells += [f"{ends[0]['rollouts']:,} / {ends[0]['gradient_steps']:,} / {tokens / 1e6:.1f}M"]
        more = {"eval/response_length": 1, "eval/reflection_rate": 100}
        cells += [f"{scale * fmean(row[key] for row in ends):.0f}" for key, scale in more.items()]
        lines.append([f"{title} (lr {rate(full)})", *cells])
    heads = [f"at {n:,} rollouts" for n in (MIXED, ONLY_MIXED, WHOLE)]
    cost = "rollouts / gradient steps / tokens"
    return markdown(["", *heads, "after 350 steps", cost, "length", "reflection [%]"], lines)


def measured(name: str, where: int | str) -> list[float]:
    """Of each seed, what a claim is about."""
    if where == END:
        return [100 * evaluated(rows)[-1]["eval/pass@1"] for rows in seeds(name)]
    if where == LENGTH:
        return [at(rows, MIXED, "eval/response_length") for rows in seeds(name)]
    return accuracies(name, where)


def by_chance(high: list[float], low: list[float]) -> float:
    """p of the exact one-sided permutation test. Of all ways to deal these seeds out into two such
    groups, the share whose first mean is as far above the second, or farther."""
    both = [*high, *low]
    dealt = [sum(of) for of in itertools.combinations(both, len(high))]
    return fmean(total >= sum(high) - 1e-9 for total in dealt)


def told(high: list[float], low: list[float], above: str, below: str, neither: str) -> str:
    if by_chance(high, low) <= 0.05:
        return above
    return below if by_chance(low, high) <= 0.05 else neither


def table_claims(which: str) -> str:
    """It holds, or the opposite does, where p <= 1/20 for the difference of the means."""
    lines = []
    for claim, one, other, where in CLAIMS[which]:
        high, low = measured(one, where), measured(other, where)
        verdict = told(high, low, "**holds**", "**does not**", "cannot be told")
        place = f"{where:,} rollouts" if isinstance(where, int) else "the end"
        place = f"tokens at {MIXED:,} rollouts" if where == LENGTH else place
        names = f"`{one}`, `{other.partition('/')[2]}`"
        lines.append(
            [claim, verdict, spread(high), spread(low), f"{by_chance(high, low):.3f}", place, names]
        )
    return markdown(["claim", "", "first", "second", "chance", "at", "rows"], lines)


def table_whipping() -> str:
    lines = []
    for kind, title in WHIPPING.items():
        for p in ("0", "0.5"):
            of = seeds(f"whipping/p{p}{kind}")
            quarters = [
                f"{fmean(mean_of(rows, f'ratio_mean/quarter{q}') for rows in of):.3f}"
                for q in (1, 2, 3, 4)
            ]
            move = [
                " → ".join(
                    f"{scale * fmean(evaluated(rows)[i][key] for rows in of):.0f}" for i in (0, -1)
                )
                for key, scale in (("eval/response_length", 1), ("eval/reflection_rate", 100))
            ]  # fmt: skip
            end = spread([100 * evaluated(rows)[-1]["eval/pass@1"] for rows in of])
            ratio = "–" if p == "0" else " / ".join(quarters)
            sampled = f"{of[0][-1]['rollouts']:,}"
            lines.append([title, p, sampled, move[0], move[1] + " %", ratio, end])
    ratio = "mean ratio by quarter of the response"
    return markdown(["setting", "p", "rollouts", "length", "reflection", ratio, "pass@1"], lines)


def table_clip() -> str:
    lines = []
    for name, title in CLIPS.items():
        beyond = fmean(
            mean_of(rows, f"clip_fraction/age{age}") for rows in seeds(name) for age in (1, 2)
        )
        cells = [spread(accuracies(name, rollouts)) for rollouts in (EARLY, LATE)]
        lines.append([title, *cells, f"{100 * beyond:.2f} %"])
    return markdown(["clip", *ACCURACY, "replayed tokens beyond Mix-PPG's band"], lines)


def table_lora() -> str:
    """pass@1 at some steps, mean [lowest, highest] of the seeds."""
    at_steps, lines = (0, 4, 8, 12, 16, 20, 24), []
    for name, title in LORA.items():
        curves = [[100 * run[step]["eval/pass@1"] for step in at_steps] for run, _ in runs(name)]
        lines.append([title, rate(name), *map(spread, map(list, zip(*curves, strict=True)))])
    return markdown(["", "lr", *(f"step {n}" for n in at_steps)], lines)


def table_smollm() -> str:
    lines = []
    for name, title in SMOLLM.items():
        for lr in ("2e-6", "5e-6", "1e-5"):
            if of := seeds(full := f"smollm/{name}-lr{lr}"):
                length = spread([rows[-1]["eval/response_length"] for rows in of])
                cells = [spread(accuracies(full, n)) for n in (0, EARLY, LATE)]
                tokens = fmean(tokens_trained(rows)[-1] / 1000 for rows in of)
                cost = f"{of[0][-1]['gradient_steps']} / {tokens:,.0f}k"
                lines.append([title, lr, str(len(of)), *cells, length, cost])
    cost = "gradient steps / tokens of updates"
    return markdown(["", "lr", "seeds", "before", *ACCURACY, "length", cost], lines)


def table_smollm_samples() -> str:
    """All problems that every evaluation keeps, of seed 1, the first with samples of all three."""
    _, *found = map(json.loads, (RUNS / "smollm.jsonl").read_text().splitlines())
    found = [run for run in found if "samples" in run and run["seed"] == 1]
    said = {run["name"]: list(run["samples"].values()) for run in found}
    lines = []
    for i, first in enumerate(said["remix-lr5e-6"][0]):
        after = [said[f"{name}-lr5e-6"][-1][i] for name in SMOLLM]
        right = [f"`{one['text']}`{' ✓' * (one['reward'] == 1)}" for one in (first, *after)]
        lines.append([f"{first['problem']} = {first['gold']}", *right])
    return markdown(["", "before", *(f"after {title}" for title in SMOLLM.values())], lines)


def table_reuse() -> str:
    """pass@1 after some 900 responses."""
    uses, lines = (1, 2, 3, 3.3, 5, 8, 12), []
    for way, names in REUSES.items():
        ends = {u: spread(measured(f"reuse/{name}", END)) for u, name in names.items()}
        lines.append([way, *(ends.get(u, "") for u in uses)])
    return markdown(["", *(f"u = {u}" for u in uses)], lines)


def table_reuse_eight() -> str:
    """The same at u = 8, half-way and at the end, with what else the evaluation says."""
    lines = []
    for way in [*REUSES, "replay, Mix-PPG, N = 6", "replay, Mix-PPG, T after 900"]:
        name = REUSES[way].get(8) if way in REUSES else f"replay8-{'N6' if 'N' in way else 'T28'}"
        of = [evaluated(rows) for rows in seeds(f"reuse/{name}")]
        moved = [spread([100 * at(rows, n) for rows in of]) for n in (450, 900)]
        later = max(rows[-1]["rollouts"] for rows in of) > 1000
        moved += [spread(measured(f"reuse/{name}", END)) if later else ""]
        more = {"eval/pass@8": 100, "eval/response_length": 1, "entropy": 1}
        cells = [fmean(scale * rows[-1][key] for rows in of) for key, scale in more.items()]
        old = [
            value for rows in seeds(f"reuse/{name}") for row in rows for key, value in row.items()
            if key.startswith("ess/age") and key != "ess/age0"
        ]  # fmt: skip
        ess = f"{median(old):.2f} ({min(old):.3f})" if old else "–"
        lines.append([way, *moved, *(f"{x:.3g}" for x in cells), ess])
    ess = "ess of replayed tokens: median (smallest)"
    heads = ["450 responses", "900", "1,400", "pass@8", "length", "entropy", ess]
    return markdown(["", *heads], lines)


def table_exercises() -> str:
    """minimal.py with a line changed: pass@1 after 5, 10, 15, 20 and 24 steps."""
    lines = []
    runs = [json.loads(line) for line in (RESULTS / "exercises.jsonl").read_text().splitlines()]
    for name, (what, *_) in EXERCISES.items():
        logs = ["\n".join(run["log"]) for run in runs if run["name"] == name]
        curves = [[float(x) for x in re.findall(r"([\d.]+)%(?! before)", log)] for log in logs]
        lines.append([f"`{name}`", what, *map(spread, map(list, zip(*curves, strict=True)))])
    return markdown(["name", "the change", *(f"step {n}" for n in (5, 10, 15, 20, 24))], lines)


def table_siblings() -> str:
    """Each accuracy with "above" or "below" where it is told from ReMix-GRPO's on the same problems
    (by_chance)."""
    lines = []
    for name, title in OTHERS.items():
        cells, few = [], "32 problems" in title
        for n in (EARLY, LATE):
            ours = accuracies("siblings/replay-window" if few else "methods/remix-grpo", n)
            cells.append(
                accuracy(name, n) + told(accuracies(name, n), ours, " above", " below", "")
            )
        lines.append([title, rate(name), *cells, *shape(name)])
    return markdown(["in ReMix-GRPO's place", "lr", *ACCURACY, *SHAPE], lines)


def table_tune() -> str:
    rates, lines = ["1e-4", "3e-4", "1e-3"], []
    for method, scores in sorted(best_lr.scores().items()):
        cells = {lr: f"{100 * scores[lr]:.1f}" if lr in scores else "–" for lr in rates}
        cells[best_lr.best(scores)] = f"**{cells[best_lr.best(scores)]}**"
        lines.append([method, *cells.values()])
    return markdown(["method", *(f"lr {lr}" for lr in rates)], lines)


def table_gpu(part: str) -> str:
    """benchmarks/gpu.py on each card that it ran on: one of its parts."""
    columns = dict(
        learn=["pass@1 % at step", "worst engine_gap"],
        update=["tokens/s", "MFU %", "HFU %", "peak GiB"],
        profile=[
            f"{kind} ms" for kind in "wall products attention softmax copies compiled other".split()
        ],
        memory=["ratio", "GiB", "simulated GiB"],
        head=["forward ms", "backward ms", "GiB beyond the inputs"],
        engine=["tokens/s", "sync s", "engine_gap", "sleep s", "wake s", "GiB that come back"],
    )[part]
    of_part = dict(update=3, memory=4, engine=6).get(part)

    def cell(value) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    rows = {}  # a case that was run again counts as it was run last
    for card in ("H100", "H200"):
        for row in map(json.loads, open(RESULTS / f"gpu_{card.lower()}.jsonl")):
            first = [name for name in columns if name in row and "cuDNN" not in row["case"]]
            if first and (part == "engine" or columns[0] in row) and of_part in (None, row["part"]):
                cells = [card, row["case"], *(cell(row.get(name)) for name in columns)]
                rows[card, row["case"]] = cells
    return markdown(["", "", *columns], list(rows.values()))


def table_grader() -> str:
    """The last lines that benchmarks/grader.py printed, for its own cases and the public ones."""
    lines = []
    for file, title in {
        "grader.txt": "`tests/test_reward.py` and the hostile ones that are built in",
        "grader-public.txt": "public graders' own tests, perturbed golds, hostile",
    }.items():
        found = {line.split()[0]: line.split()[1:] for line in open(RESULTS / file) if line.strip()}
        keys = ("median_s", "p99_s", "max_s")
        times = [" / ".join(f"{1000 * float(found[k][i]):,.1f} ms" for k in keys) for i in (0, 1)]
        lines.append([f"{int(found['all'][0]):,} cases: {title}", *found["all"][1:], *times])
    took = "this grader: median / 99th percentile / slowest"
    return markdown(["cases", "this grader", "math-verify alone", took, "math-verify"], lines)


# ------------------------------------------------------------------------------------------ figures


def mean_and_range(ax, x: list[float], values: list[list[float]], colour: str, label: str) -> None:
    """values: of the seeds, for each x."""
    ax.plot(x, [fmean(v) for v in values], marker="o", ms=4, color=colour, label=label)
    low, high = [min(v) for v in values], [max(v) for v in values]
    ax.fill_between(x, low, high, alpha=0.15, lw=0, color=colour)


def three_panels():
    return plt.subplots(1, 3, figsize=(11.5, 3.3), layout="constrained")


def save(figure, name: str) -> None:
    for ax in figure.axes:
        ax.legend(handles=own.legend_handles if (own := ax.get_legend()) else None, frameon=False)
    figure.savefig(FIGURES / name, dpi=150)
    plt.close(figure)


def figure_whipping() -> None:
    """With the prompt that the base model has never seen."""
    figure, axes = three_panels()
    panels = {"response_length": 1, "reflection_rate": 100}
    for p, colour in {"0": COLOURS[0], "0.5": COLOURS[1]}.items():
        of = [evaluated(rows) for rows in seeds(f"whipping/p{p}-equals")]
        steps = [row["step"] for row in of[0]]
        for ax, (key, scale) in zip(axes, panels.items(), strict=False):
            values = [
                [scale * row[f"eval/{key}"] for row in step] for step in zip(*of, strict=True)
            ]
            mean_and_range(ax, steps, values, colour, f"p = {p}")
    axes[0].set(title="Response length", ylabel="tokens")
    axes[1].set(title="Self-reflection", ylabel="% of responses")
    for ax in axes[:2]:
        ax.set(xlabel="training step", ylim=(0, None))
    quarters = [1, 2, 3, 4]
    for (kind, title), colour in zip(WHIPPING.items(), COLOURS[2:], strict=False):
        of = seeds(f"whipping/p0.5{kind}")
        values = [[mean_of(rows, f"ratio_mean/quarter{q}") for rows in of] for q in quarters]
        mean_and_range(axes[2], quarters, values, colour, title)
    axes[2].set(title="Ratio along the response, p = 0.5", ylabel="mean ratio", xticks=quarters)
    axes[2].set(xlabel="quarter of the response")
    save(figure, "whipping.png")


def draw_reuse(ax, ways: list[str], colours: list[str] = COLOURS) -> None:
    """pass@1 after some 900 responses, as in table_reuse, against u."""
    for way, colour in zip(ways, colours, strict=False):
        ends = [measured(f"reuse/{name}", END) for name in REUSES[way].values()]
        mean_and_range(ax, list(REUSES[way]), ends, colour, way)
    ax.set(xlabel="passes over each response, u", ylabel="pass@1 after 900 responses [%]")
    uses = [1, 2, 3.3, 5, 8, 12]
    ax.set(xscale="log", xticks=uses, xticklabels=map(str, uses))
    ax.minorticks_off()


def figure_reuse() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4), layout="constrained", sharey=True)
    anchored = [way for way in REUSES if "β" in way or "T half" in way]
    draw_reuse(axes[0], [way for way in REUSES if way not in anchored])
    draw_reuse(axes[1], ["passes alone", "replay, Mix-PPG", *anchored])
    save(figure, "reuse.png")


def figure_first() -> None:
    """The README's: what replay adds to passes, and how many of either a response stands."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    draw_panel(axes[0], PANELS["rollouts"], first := existing(FIRST, "methods/"))
    axes[0].legend(
        handles=[Line2D([], [], color=c, label=t) for t, c in zip(first, COLOURS, strict=False)]
    )
    ways = ["replay, Mix-PPG", "replay, Mix-PPG, β = 0.1", "replay, PPO's clip around π_b"]
    draw_reuse(axes[1], [*ways, "passes alone"], [COLOURS[i] for i in (0, 3, 5, 2)])
    axes[1].set_title("How often may a response be used?", loc="left", fontweight="bold")
    save(figure, "first.png")


def figure_siblings() -> None:
    order = sorted(filter(seeds, OTHERS), key=lambda name: fmean(accuracies(name, LATE)))
    figure, ax = plt.subplots(figsize=(9, 0.32 * len(order) + 1), layout="constrained")
    for y, name in enumerate(order):
        for rollouts, colour in ((EARLY, COLOURS[5]), (LATE, COLOURS[0])):
            values = accuracies(name, rollouts)
            label = f"at {rollouts:,} rollouts" if y == 0 else None
            ax.plot([min(values), max(values)], [y, y], color=colour, lw=2, alpha=0.5)
            ax.plot(values, [y] * len(values), "o", color=colour, ms=4, label=label)
    ax.set_yticks(range(len(order)), [name.rpartition("/")[2] for name in order])
    ax.set(xlabel="pass@1, held-out problems [%]; one point a seed")
    ax.grid(axis="x", color="0.9")
    save(figure, "siblings.png")


def figure_clip() -> None:
    """Eq. 3 of a replayed token with c = 1.5 beside PPO's band; the circle: where a step begins."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.1), layout="constrained")
    bands = {1.0: "band around 1: PPO", 1.5: "band around c = 1.5: Mix-PPG"}
    ratio = torch.cat([torch.linspace(0.3, 2.2, 400), torch.tensor([1.5])])
    for ax, advantage in zip(axes, (1.0, -1.0), strict=True):
        for (centre, label), colour in zip(bands.items(), COLOURS, strict=False):
            c, A = torch.full_like(ratio, centre), torch.full_like(ratio, advantage)
            value = -loss.mix_ppg(ratio.log(), c.log(), torch.zeros_like(ratio), A, 0.2)
            ax.plot(ratio[:-1], value[:-1], color=colour, label=label)
            ax.plot(ratio[-1], value[-1], "o", mfc="white", color=colour)
            ax.axvspan(centre - 0.2, centre + 0.2, color=colour, alpha=0.1, lw=0)
        ax.set(title=f"A = {advantage:+g}", ylabel="objective, − loss")
        ax.set_xlabel(r"ratio $r = \pi_\theta / \pi_b$")
    save(figure, "clip.png")


def figures() -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    for algo in ("ppo", "grpo"):
        of = {name: title for name, title in METHODS.items() if algo in name}
        panels = ["rollouts", "steps", "tokens"]
        draw_runs(existing(of, "methods/"), FIGURES / f"methods_{algo}.png", panels)
    panels = ["rollouts", "steps", "length"]
    draw_runs(existing(DRAWN, "paper/"), FIGURES / "paper.png", panels)
    of = {f"{name}-lr5e-6": title for name, title in SMOLLM.items()}
    draw_runs(existing(of, "smollm/"), FIGURES / "smollm.png", panels)
    draw_runs({"bash train.sh": runs("start/tiny-ppo")}, FIGURES / "start.png")
    for name, make in globals().items():
        if name.startswith("figure_"):
            make()


# ------------------------------------------------------------------------------------------ pages


def table(name: str, *files: str) -> str:
    return globals()[f"table_{name}"](*files)


def log(file: str, number: str) -> str:
    """The number-th (from 1) table of a benchmark's output."""
    text = (RESULTS / file).read_text()
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)[int(number) - 1].rstrip()


def code(file: str, name: str) -> str:
    source = (ROOT / file).read_text()
    found = [
        n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == name
    ]
    if not found:
        raise SystemExit(f"runs/report.py: a page shows {name}, which is not in {file} any more")
    function, doc = found[0], found[0].body[0]
    lines = source.splitlines()[function.lineno - 1 : function.end_lineno]
    if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
        del lines[doc.lineno - function.lineno : doc.end_lineno - function.lineno + 1]
    return "```python\n" + "\n".join(lines) + f"\n```\n[`{file}`](../{file}), `{name}`"


def lines(file: str, title: str) -> str:
    """Up to the next empty line."""
    below = rf"^( *)# -+ {re.escape(title)}[^\n]*\n(.*?)\n\n"
    found = re.search(below, (ROOT / file).read_text(), re.DOTALL | re.MULTILINE)
    if not found:
        raise SystemExit(f"runs/report.py: a page shows '{title}', which is not in {file} any more")
    return "```python\n" + textwrap.dedent(found[2]) + f"\n```\n[`{file}`](../{file})"


def cell(file: str, title: str) -> str:
    to_the_next = rf"^# %% {re.escape(title)}.*?(?=\n+# %%|\n*\Z)"
    found = re.search(to_the_next, (ROOT / file).read_text(), re.DOTALL | re.MULTILINE)
    if not found:
        raise SystemExit(f"runs/report.py: a page shows '{title}', which is not in {file} any more")
    return f"```python\n{found[0]}\n```"


def page(old: str, of_root: bool) -> str:
    """The page with what is between its marks made anew."""

    def fill(mark: re.Match) -> str:
        make = dict(table=table, code=code, lines=lines, cell=cell, log=log)[mark[2]]
        content = make(*mark[3].split(maxsplit=1))
        content = content.replace("](../", "](") if of_root else content
        return f"{mark[1]}\n{content}\n\n{mark[4]}"

    marks = r"(<!-- (table|code|lines|cell|log) (.+?) -->\n).*?(<!-- /\2 -->)"
    return re.sub(marks, fill, old, flags=re.DOTALL)


def main() -> None:
    check, wrong = "--check" in sys.argv[1:], []
    for path in PAGES:
        old = path.read_text()
        new = page(old, of_root=path.parent == ROOT)
        if check and new != old:
            wrong.append(path.name)
        elif new != old:
            path.write_text(new)
    if wrong:
        sys.exit(
            f"runs/report.py: the tables of {', '.join(wrong)} are not what the data gives; "
            "run python runs/report.py"
        )
    if not check:
        figures()


if __name__ == "__main__":
    main()
