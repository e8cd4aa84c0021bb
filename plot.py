"""One figure from the metrics.jsonl of one or several runs.

    python plot.py out/tiny-ppo-seed0 --out curve.png
    python plot.py runs/methods/*-seed* --out methods.png --table --at 900

Top: pass@1 against rollouts, gradient steps and training wall time, because a method that looks good on one of the
three can look bad on another. Bottom: response length, self-reflection and the effective sample size by data age,
against steps (`ess`, between 0 and 1; the mean ratio is 1 until a single token makes it 70). Folders NAME-seedN are seeds
of one line NAME: the line is their mean, the band their minimum and maximum, over the steps that all of them have; where
some go on alone they are drawn thin. A single run's band is the 95 % interval of its pass@1.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

COLOURS = [
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
]  # Okabe and Ito, colour-blind safe
AGES = 4  # data ages drawn; the paper's window N = 2 gives ages 0, 1, 2
AGE_STYLES = ["-", "--", ":", "-."]
PANELS = [  # title, x field, x label, y fields (the first that any run has), y label, scale
    (
        "Accuracy against rollouts",
        "rollouts",
        "sampled responses (rollouts)",
        ["eval/pass@1", "reward"],
        "{} [%]",
        100,
    ),
    (
        "Accuracy against gradient steps",
        "gradient_steps",
        "gradient steps",
        ["eval/pass@1", "reward"],
        "{} [%]",
        100,
    ),
    (
        "Accuracy against wall time",
        "seconds",
        "training wall time [s]",
        ["eval/pass@1", "reward"],
        "{} [%]",
        100,
    ),
    (
        "Response length",
        "step",
        "training step",
        ["eval/response_length", "response_length"],
        "{} [tokens]",
        1,
    ),
    (
        "Self-reflection",
        "step",
        "training step",
        ["eval/reflection_rate", "reflection_rate"],
        "{} [% of responses]",
        100,
    ),
]
NAMES = {
    "eval/pass@1": "pass@1, held-out problems",
    "reward": "training reward",
    "eval/response_length": "mean length, evaluation",
    "response_length": "mean length, training",
    "eval/reflection_rate": "share, evaluation",
    "reflection_rate": "share, training",
}
Rows = dict[int, dict]  # step -> its line of metrics.jsonl


def read_run(folder: str | Path) -> tuple[Rows, dict]:
    """(metrics by step, config) of a run folder. A step logged twice (after a resume) counts as it was logged last."""
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


def reincarnation(config: dict, rows: Rows) -> int | None:
    """The step at which the run reincarnated, if it got there."""
    step = config.get("reincarnation_step") or 0
    return step if 0 < step <= max(rows) else None


def curve(rows: Rows, x: str, y: str, scale: float = 1) -> dict[int, tuple[float, float]]:
    """step -> (x, y) where the run has both."""
    has = {step: row for step, row in sorted(rows.items()) if row.get(y) is not None}
    # Step 0, the base model's evaluation, has used nothing yet.
    return {
        s: (r.get(x, 0 if s == 0 else None), scale * r[y])
        for s, r in has.items()
        if x in r or s == 0
    }


def draw(
    ax,
    runs: list[Rows],
    x: str,
    y: str,
    scale: float,
    colour: str,
    style: str = "-",
    mark: int | None = None,
) -> bool:
    """One line: the mean of the seeds over their common steps. Whether there was anything to draw."""
    curves = [c for c in (curve(rows, x, y, scale) for rows in runs) if c]
    if not curves:
        return False
    common = sorted(set.intersection(*(set(c) for c in curves))) or sorted(curves[0])
    curves = [c for c in curves if common[0] in c]
    xs = [fmean(c[s][0] for c in curves) for s in common]
    ys = [fmean(c[s][1] for c in curves) for s in common]
    low = [min(c[s][1] for c in curves) for s in common]
    high = [max(c[s][1] for c in curves) for s in common]
    if len(runs) == 1 and y == "eval/pass@1":
        half = [scale * (runs[0][s].get("eval/pass@1_ci") or 0) for s in common]
        low, high = (
            [a - h for a, h in zip(ys, half, strict=True)],
            [a + h for a, h in zip(ys, half, strict=True)],
        )
    ax.fill_between(xs, low, high, color=colour, alpha=0.15, lw=0)
    ax.plot(xs, ys, style, color=colour, lw=1.6, marker="o" if len(xs) == 1 else None, ms=4)
    for c in curves:  # seeds that went on longer
        tail = [c[s] for s in c if s >= common[-1]]
        if len(tail) > 1:
            ax.plot(*zip(*tail, strict=True), style, color=colour, lw=0.7, alpha=0.7)
    if mark is not None and common[0] <= mark <= common[-1]:
        at = max(s for s in common if s <= mark)
        i = common.index(at)
        j = min(i + 1, len(common) - 1)
        part = (
            (mark - at) / (common[j] - at) if j > i else 0.0
        )  # between two evaluations the mark is interpolated
        point = [v[i] + part * (v[j] - v[i]) for v in (xs, ys)]
        ax.plot(*point, "o", mfc="white", mec=colour, mew=1.6, ms=6, zorder=5)
    return True


def plot_runs(runs: dict[str, list[str | Path]], out_png: str | Path) -> None:
    """runs: label -> run folders (its seeds). Writes the figure."""
    if not runs:
        raise ValueError("no runs given; name at least one run folder.")
    loaded = {label: [read_run(folder) for folder in folders] for label, folders in runs.items()}
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(loaded)}
    metrics = {label: [rows for rows, _ in seeds] for label, seeds in loaded.items()}
    marks = {label: reincarnation(seeds[0][1], seeds[0][0]) for label, seeds in loaded.items()}
    present = {
        key for seeds in metrics.values() for rows in seeds for row in rows.values() for key in row
    }

    plt.rcParams.update(
        {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, axes = plt.subplots(2, 3, figsize=(11.5, 6.6), layout="constrained")
    for ax, (title, x, x_label, fields, y_label, scale) in zip(axes.flat[:5], PANELS, strict=True):
        field = next((f for f in fields if f in present), fields[0])
        drawn = [draw(ax, metrics[m], x, field, scale, colours[m], mark=marks[m]) for m in metrics]
        finish(ax, title, x_label, y_label.format(NAMES[field]), any(drawn))
        if any(drawn):
            ax.set_ylim(0, 103 if scale == 100 else None)
    ax, ages = axes.flat[5], []
    for age in range(AGES):
        drawn = [
            draw(ax, metrics[m], "step", f"ess/age{age}", 1, colours[m], AGE_STYLES[age])
            for m in metrics
        ]
        ages += [age] if any(drawn) else []
    finish(
        ax,
        "Effective sample size by data age",
        "training step",
        "ess, share of the tokens",
        bool(ages),
    )
    if ages:
        ax.set_ylim(0, 1.03)
        names = {0: "fresh"} | {age: f"{age} step{'s' * (age > 1)} old" for age in range(1, AGES)}
        lines = [Line2D([], [], color="0.3", ls=AGE_STYLES[age], label=names[age]) for age in ages]
        ax.legend(handles=lines, frameon=False, fontsize=8, loc="best")

    handles = [
        Line2D([], [], color=colours[m], lw=2, label=f"{m} ({len(s)} seeds)" if len(s) > 1 else m)
        for m, s in runs.items()
    ]
    if any(mark is not None for mark in marks.values()):
        handles.append(
            Line2D(
                [], [], ls="", marker="o", mfc="white", mec="0.3", mew=1.6, label="reincarnation"
            )
        )
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(len(handles), 5), frameon=False
    )
    figure.savefig(out_png, dpi=150)
    plt.close(figure)


def finish(ax, title: str, x_label: str, y_label: str, drawn: bool) -> None:
    ax.set_title(title, loc="left", fontweight="bold")
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    ax.grid(axis="y", color="0.9", lw=0.7)
    ax.set_axisbelow(True)
    if drawn:
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}" if v == int(v) else f"{v:g}")
    else:
        ax.set_xticks([]), ax.set_yticks([])
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", color="0.5")


def group_by_label(folders: list[str]) -> dict[str, list[str]]:
    """NAME-seed0, NAME-seed1 … under NAME, so one line; the parent's name is added where two would clash."""
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


def table(
    runs: dict[str, list[str | Path]],
    at: int | None = None,
    marks: tuple[int, ...] = (60, 70, 80, 85, 90),
) -> str:
    """A Markdown table of runs: per label the mean and [min, max] over its seeds of pass@1 in percent, of the base model,
    after `at` rollouts (the last evaluation before or at that count) and at the end; and the mean rollouts, gradient
    steps and seconds until pass@1 first reached each mark, "–" where a seed never did."""

    def spread(values: list[float]) -> str:
        return f"{fmean(values):.1f} [{min(values):.1f}, {max(values):.1f}]"

    at_column = [f"at {at:,} rollouts"] if at else []
    heads = ["run", "seeds", "base", *at_column, "end", *(f"to {mark} %" for mark in marks)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for label, folders in runs.items():
        seeds = [
            [row for _, row in sorted(read_run(f)[0].items()) if "eval/pass@1" in row]
            for f in folders
        ]
        percent = [[100 * row["eval/pass@1"] for row in rows] for rows in seeds]
        cells = [label, str(len(seeds)), spread([p[0] for p in percent])]
        if at:
            reached = [
                [100 * r["eval/pass@1"] for r in rows if r["rollouts"] <= at][-1] for rows in seeds
            ]
            cells.append(spread(reached))
        cells.append(f"{spread([p[-1] for p in percent])} ({seeds[0][-1]['rollouts']:,} rollouts)")
        for mark in marks:
            first = [
                next((row for row in rows if 100 * row["eval/pass@1"] >= mark), None)
                for rows in seeds
            ]
            if None in first:
                cells.append("–")
                continue
            rollouts, steps, seconds = (
                fmean(r[k] for r in first) for k in ("rollouts", "gradient_steps", "seconds")
            )
            cells.append(f"{rollouts:,.0f} / {steps:,.0f} / {seconds:.0f} s")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder (with metrics.jsonl)")
    parser.add_argument("--out", default="curve.png", help="the figure (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print a Markdown table too")
    parser.add_argument(
        "--at", type=int, help="with --table: a column of pass@1 after so many rollouts"
    )
    args = parser.parse_args(argv)
    try:
        runs = group_by_label(args.runs)
        plot_runs(runs, args.out)
        if args.table:
            print(table(runs, args.at))
    except ValueError as error:
        print(f"plot.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
