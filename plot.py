"""One figure from one or several runs: their folders, or the files that runs/collect.py makes.

    python plot.py out/tiny-ppo-seed0 --out curve.png
    python plot.py runs/methods.jsonl --out methods.png --table --at 900
    python plot.py "ReMix=runs/methods.jsonl:remix-ppo" PPO=out/mine --panel rollouts --title "Mine"

Top: pass@1 against rollouts, gradient steps and training wall time, because a method that looks
good on one of the three can look bad on another (`--panel tokens`: against the tokens of all
updates). Bottom: response length, self-reflection and the effective sample size by data age,
against steps (`ess`, between 0 and 1; the mean ratio is 1 until a single token makes it 70).
Folders NAME-seedN are seeds of one line NAME: the line is their mean, the band their minimum and
maximum, over the steps that all of them have; where some go on alone they are drawn thin. A single
run's band is the 95 % interval of its pass@1. Runs with --reward have their mean reward in its
place.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

# Okabe and Ito, colour-blind safe, and a grey
COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000 #999999 #F0E442".split()
AGE_STYLES = ["-", "--", ":", "-."]  # the paper's window N = 2 gives ages 0, 1, 2
X_LABELS = dict(
    rollouts="sampled responses (rollouts)", gradient_steps="gradient steps",
    tokens="tokens of all updates, prompts included", seconds="training wall time [s]",
    step="training step",
)  # fmt: skip


class Panel(NamedTuple):
    title: str
    x: str
    y: dict[str, str]  # field -> its label; the first that any run has is drawn
    scale: float = 1
    by_age: bool = False  # a line for each age of the data: FIELD/age0 (fresh), FIELD/age1, ...
    limits: tuple = (0, None)


ACCURACY = {"eval/pass@1": "pass@1, held-out problems [%]", "reward": "training reward [%]"}
OWN = {"eval/reward": "mean reward, held-out problems", "reward": "training reward"}  # --reward
LENGTH = {
    "eval/response_length": "mean length, evaluation [tokens]",
    "response_length": "mean length, training [tokens]",
}
REFLECTION = {
    "eval/reflection_rate": "share, evaluation [% of responses]",
    "reflection_rate": "share, training [% of responses]",
}
PERCENT, SHARE = (0, 103), (0, 1.03)
ESS = "Effective sample size by data age"
PANELS = {
    "rollouts": Panel("Accuracy against rollouts", "rollouts", ACCURACY, 100, limits=PERCENT),
    "steps": Panel(
        "Accuracy against gradient steps", "gradient_steps", ACCURACY, 100, limits=PERCENT
    ),
    "tokens": Panel("Accuracy against tokens trained on", "tokens", ACCURACY, 100, limits=PERCENT),
    "seconds": Panel("Accuracy against wall time", "seconds", ACCURACY, 100, limits=PERCENT),
    "length": Panel("Response length", "step", LENGTH),
    "reflection": Panel("Self-reflection", "step", REFLECTION, 100, limits=PERCENT),
    "ess": Panel(ESS, "step", {"ess": "ess, share of the tokens"}, 1, True, SHARE),
    "kl": Panel("KL constraint", "step", {"kl": "KL to the anchors [nats a token]"}),
    "entropy": Panel("Entropy", "step", {"entropy": "entropy [nats a token]"}),
    "clip": Panel(
        "Clipped tokens", "step", {"clip_fraction": "share of the tokens [%]"}, 100, True
    ),
    "off": Panel("How far the data is off", "step", {"log_ratio_sq": "E[(log r)²]"}, 1, True),
}
DEFAULT = ("rollouts", "steps", "seconds", "length", "reflection", "ess")

Rows = dict[int, dict]  # step -> its line of metrics.jsonl
Run = tuple[Rows, dict]  # and config.json


# ------------------------------------------------------------------------------------------ reading


def read_run(folder: str | Path) -> Run:
    """A run folder. A step logged twice (after a resume) counts as it was logged last."""
    path = Path(folder, "metrics.jsonl")
    if not path.is_file():
        raise ValueError(f"{folder}: holds no metrics.jsonl; give the folder of a run.")
    rows: Rows = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a running or killed run has not finished
        rows[row["step"]] = row
    if not rows:
        raise ValueError(f"{path}: holds no complete step yet.")
    config = Path(folder, "config.json")
    return rows, json.loads(config.read_text()) if config.is_file() else {}


def read_experiment(path: str | Path) -> dict[str, list[Run]]:
    """name -> its seeds, each as read_run gives it, of a file made by runs/collect.py."""
    try:
        shared, *lines = map(json.loads, Path(path).read_text().splitlines())
        runs: dict[str, list[Run]] = {}
        for line in lines:
            # Null: a setting that this run does not have
            config = shared["config"] | line["config"]
            config |= dict(seed=line["seed"], git_commit=line["commit"])
            columns = line["metrics"]
            rows = {
                step: {key: c[i] for key, c in columns.items() if c[i] is not None}
                for i, step in enumerate(columns["step"])
            }
            config = {key: value for key, value in config.items() if value is not None}
            runs.setdefault(line["name"], []).append((rows, config))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is not a file of runs/collect.py ({error!r}).") from None
    return runs


def group_by_label(folders: Iterable[str]) -> dict[str, list[str]]:
    """NAME-seed0, NAME-seed1 … under NAME, one line; with the parent's name where two clash."""
    groups: dict[Path, list[str]] = {}
    for folder in folders:
        path = Path(folder).resolve()
        name = re.sub(r"[-_]?seed[-_]?\d+$", "", path.name)
        groups.setdefault(path.parent / name if name else path.parent, []).append(folder)
    names = [path.name for path in groups]
    return {
        p.name if names.count(p.name) == 1 else f"{p.parent.name}/{p.name}": f
        for p, f in groups.items()
    }


def load(arguments: list[str]) -> dict[str, list[Run]]:
    """label -> seeds, of arguments [LABEL=]FOLDER and [LABEL=]FILE.jsonl[:NAME,NAME]."""
    runs: dict[str, list[Run]] = {}
    plain = []  # folders without a label, to be grouped
    for argument in arguments:
        label, equals, path = argument.partition("=")
        if not equals or Path(argument).exists():
            label, path = "", argument
        file, _, names = path.partition(".jsonl:")
        if names or path.endswith(".jsonl"):
            found = read_experiment(f"{file.removesuffix('.jsonl')}.jsonl")
            for name in names.split(",") if names else found:
                if name not in found:
                    raise ValueError(f"{path}: has no run {name}; it has {', '.join(found)}.")
                runs.setdefault(label or name, []).extend(found[name])
        elif label:
            runs.setdefault(label, []).append(read_run(path))
        else:
            plain.append(path)
    for label, folders in group_by_label(plain).items():
        runs.setdefault(label, []).extend(map(read_run, folders))
    return runs


# ------------------------------------------------------------------------------------------ numbers


def value_at(rows: Iterable[dict], rollouts: float, key: str = "eval/pass@1") -> float:
    """After so many rollouts, on the line between two evaluations; at most the last one."""
    points = [(row["rollouts"], row[key]) for row in rows if key in row]
    return float(np.interp(rollouts, *zip(*points, strict=True)))


def own_reward(runs: dict[str, list[Run]]) -> bool:
    """Whether a run's rewards are those of --reward, any numbers."""
    return any(config.get("reward") for seeds in runs.values() for _, config in seeds)


def spread(values: list[float], digits: int = 1) -> str:
    """Mean [lowest, highest] of the seeds."""
    mean, low, high = (f"{v:.{digits}f}" for v in (fmean(values), min(values), max(values)))
    return f"{mean} [{low}, {high}]" if len(values) > 1 else mean


def tokens_trained(rows: Iterable[dict]) -> list[int]:
    """The tokens of all updates so far, prompts included, at each row."""
    return list(accumulate(row.get("tokens_backward", 0) for row in rows))


def cost_to(runs: list[list[dict]], percent: float) -> str:
    """Mean rollouts / gradient steps / thousands of tokens trained on / seconds until the first
    evaluation at or above the mark."""
    found = [
        next(
            ((row["rollouts"], row["gradient_steps"], n / 1000, row["seconds"])
             for row, n in zip(rows, tokens_trained(rows), strict=True)
             if 100 * row.get("eval/pass@1", -1) >= percent), None,
        )
        for rows in runs
    ]  # fmt: skip
    if None in found:
        return f"{len(found) - found.count(None)} of {len(found)} seeds"
    means = map(fmean, zip(*found, strict=True))
    return "{:,.0f} / {:,.0f} / {:,.0f}k / {:.0f} s".format(*means)


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def table(
    runs: dict[str, list[Run]], at: int | None = None, marks: tuple[int, ...] = (60, 70, 80, 85, 90)
) -> str:
    """pass@1 [%] of the base model, after `at` rollouts and at the end; cost_to each mark. With
    --reward the mean reward, and no marks."""
    key, scale, digits = "eval/pass@1", 100, 1
    if own_reward(runs):
        key, scale, digits, marks = "eval/reward", 1, 3, ()
    at_column = [f"at {at:,} rollouts"] if at else []
    heads = ["run", "seeds", "base", *at_column, "end", *(f"to {mark} %" for mark in marks)]
    lines = []
    for label, seeds in runs.items():
        rows = [[row for _, row in sorted(run.items())] for run, _ in seeds]
        scores = [[scale * row[key] for row in of if key in row] for of in rows]
        if not all(scores):
            raise ValueError(f"{label}: a run without evaluations has no row in the table.")
        base = [scale * of[0][key] for of in rows if key in of[0]]
        line = [label, str(len(seeds)), spread(base, digits) if base else "–"]  # --no_eval_first
        if at:
            line.append(spread([scale * value_at(of, at, key) for of in rows], digits))
        end = spread([s[-1] for s in scores], digits)
        line.append(f"{end} ({rows[0][-1]['rollouts']:,} rollouts)")
        lines.append(line + [cost_to(rows, mark) for mark in marks])
    return markdown(heads, lines)


# ------------------------------------------------------------------------------------------ figures


def reincarnation(config: dict, rows: Rows) -> int | None:
    """The last mixing step T, if the run went on beyond it."""
    step = config.get("reincarnation_step") or 0
    return step if 0 < step < max(rows) else None


def curve(rows: Rows, x: str, y: str, scale: float = 1) -> dict[int, tuple[float, float]]:
    """step -> (x, y) where the run has both; tokens are those of all updates so far."""
    if x == "tokens" and any("tokens_backward" in row for row in rows.values()):
        in_order = sorted(rows.items())
        tokens = tokens_trained(row for _, row in in_order)
        rows = {s: row | {x: n} for (s, row), n in zip(in_order, tokens, strict=True)}
    has = {step: row for step, row in sorted(rows.items()) if row.get(y) is not None}
    # Step 0, the base model's evaluation, has used nothing yet.
    return {
        s: (r.get(x, 0 if s == 0 else None), scale * r[y])
        for s, r in has.items()
        if x in r or s == 0
    }


def draw(
    ax, runs: list[Rows], x: str, y: str, scale: float, colour: str, style: str = "-",
    mark: int | None = None,
) -> bool:  # fmt: skip
    """One line: the mean of the seeds over their common steps. False: nothing to draw."""
    curves = [c for c in (curve(rows, x, y, scale) for rows in runs) if c]
    if not curves:
        return False
    common = sorted(set.intersection(*(set(c) for c in curves))) or sorted(curves[0])
    curves = [c for c in curves if common[0] in c]
    xs = [fmean(c[s][0] for c in curves) for s in common]
    ys = [fmean(c[s][1] for c in curves) for s in common]
    low = [min(c[s][1] for c in curves) for s in common]
    high = [max(c[s][1] for c in curves) for s in common]
    if len(runs) == 1 and y in ("eval/pass@1", "eval/reward"):
        half = [scale * (runs[0][s].get(f"{y}_ci") or 0) for s in common]
        low = [a - h for a, h in zip(ys, half, strict=True)]
        high = [a + h for a, h in zip(ys, half, strict=True)]
    ax.fill_between(xs, low, high, color=colour, alpha=0.15, lw=0)
    ax.plot(xs, ys, style, color=colour, lw=1.6, marker="o" if len(xs) == 1 else None, ms=4)
    for c in curves:  # seeds that went on longer
        tail = [c[s] for s in c if s >= common[-1]]
        if len(tail) > 1:
            ax.plot(*zip(*tail, strict=True), style, color=colour, lw=0.7, alpha=0.7)
    if mark is not None and common[0] <= mark <= common[-1]:  # on the line between two evaluations
        point = [np.interp(mark, common, values) for values in (xs, ys)]
        ax.plot(*point, "o", mfc="white", mec=colour, mew=1.6, ms=6, zorder=5)
    return True


def fitting(panel: Panel, own: bool) -> Panel:
    """The panel for runs with --reward (own), or without."""
    if not own or panel.y is not ACCURACY:
        return panel
    title = panel.title.replace("Accuracy", "Reward")
    return panel._replace(title=title, y=OWN, scale=1, limits=(None, None))


def draw_panel(ax, panel: Panel, runs: dict[str, list[Run]]) -> None:
    panel = fitting(panel, own_reward(runs))
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(runs)}
    rows = {label: [rows for rows, _ in seeds] for label, seeds in runs.items()}
    present = {key for of in rows.values() for run in of for row in run.values() for key in row}
    field = next((field for field in panel.y if field in present), next(iter(panel.y)))
    ages = []
    for age, style in enumerate(AGE_STYLES if panel.by_age else AGE_STYLES[:1]):
        drawn = [
            draw(
                ax, rows[label], panel.x, f"{field}/age{age}" if panel.by_age else field,
                panel.scale, colours[label], style,
                None if panel.by_age else reincarnation(seeds[0][1], seeds[0][0]),
            )
            for label, seeds in runs.items()
        ]  # fmt: skip
        ages += [age] if any(drawn) else []
    ax.set_title(panel.title, loc="left", fontweight="bold")
    ax.set_xlabel(X_LABELS[panel.x])
    ax.set_ylabel(panel.y[field])
    ax.grid(axis="y", color="0.9", lw=0.7)
    ax.set_axisbelow(True)
    if not ages:
        ax.set_xticks([]), ax.set_yticks([])
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", color="0.5")
        return
    ax.set_xlim(left=0)
    ax.set_ylim(*panel.limits)
    if panel.y is ACCURACY and ax.dataLim.y1 < 40:  # or the curves lie on the floor
        ax.set_ylim(0, 1.05 * ax.dataLim.y1 or 1)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}" if v == int(v) else f"{v:g}")
    if panel.by_age:
        names = {0: "fresh", 1: "1 step old"}
        handles = [
            Line2D(
                [], [], color="0.3", ls=AGE_STYLES[age], label=names.get(age, f"{age} steps old")
            )
            for age in ages
        ]
        ax.legend(handles=handles, frameon=False, fontsize=8, loc="best")


def draw_runs(
    runs: dict[str, list[Run]],
    out_png: str | Path,
    panels: Iterable[str] = DEFAULT,
    title: str = "",
) -> None:
    """The figure of runs that are read already."""
    if not runs:
        raise ValueError("no runs given; name at least one run folder.")
    panels = [PANELS[name] for name in panels]
    plt.rcParams.update(
        {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}
    )
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    width = 11.5 if columns == 3 else 4.6 * columns
    figure, axes = plt.subplots(
        lines, columns, figsize=(width, 3.3 * lines), layout="constrained", squeeze=False
    )
    for ax, panel in zip(axes.flat, panels, strict=False):
        draw_panel(ax, panel, runs)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], lw=2,
               label=f"{label} ({len(seeds)} seeds)" if len(seeds) > 1 else label)
        for i, (label, seeds) in enumerate(runs.items())
    ]  # fmt: skip
    if any(reincarnation(seeds[0][1], seeds[0][0]) for seeds in runs.values()):
        mark = dict(ls="", marker="o", mfc="white", mec="0.3", mew=1.6)
        handles.append(Line2D([], [], **mark, label="reincarnation"))
    figure.legend(
        handles=handles, loc="outside upper left", frameon=False,
        ncols=min(len(handles), 5 if columns == 3 else 2 * columns),
        title=title or None, title_fontproperties=dict(weight="bold", size=11), alignment="left",
    )  # fmt: skip
    figure.savefig(out_png, dpi=150)
    plt.close(figure)


def plot_runs(runs: dict[str, list[str | Path]], out_png: str | Path) -> None:
    """runs: label -> run folders (its seeds). Writes the figure."""
    draw_runs({label: [read_run(folder) for folder in of] for label, of in runs.items()}, out_png)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="[LABEL=]FOLDER of a run, or [LABEL=]FILE.jsonl[:NAME,...] of runs/",
    )  # fmt: skip
    parser.add_argument("--out", default="curve.png", help="the figure (default: %(default)s)")
    parser.add_argument(
        "--panel", action="append", choices=PANELS, help="only this one; several times for several"
    )
    parser.add_argument("--title", default="", help="above the figure")
    parser.add_argument("--table", action="store_true", help="print a Markdown table too")
    parser.add_argument(
        "--at", type=int, help="with --table: a column of pass@1 after so many rollouts"
    )
    args = parser.parse_args(argv)
    try:
        runs = load(args.runs)
        draw_runs(runs, args.out, args.panel or DEFAULT, args.title)
        if args.table:
            print(table(runs, args.at))
    except ValueError as error:
        print(f"plot.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
