"""Every table and figure of the README and docs/, from the logs that are committed in runs/ and from nothing else.

    python runs/report.py           writes the figures, and what stands between the marks of the pages:
                                    <!-- table NAME -->  a table made below from the runs' metrics; behind NAME the folder, where it can be of several
                                    <!-- log FILE N -->  the N-th table that a benchmark printed, in runs/benchmarks/FILE
                                    <!-- code FILE NAME -->, <!-- lines FILE TITLE -->  the source as it stands
    python runs/report.py --check   changes nothing; exit 1 if a page's table is not what the logs give

A cell is the mean over the seeds and [lowest, highest]; pass@1 in percent, over 200 held-out problems, 2 samples each.
"""

import ast
import functools
import re
import sys
import textwrap
from pathlib import Path
from statistics import fmean, median

RUNS = Path(__file__).resolve().parent
ROOT = RUNS.parent
sys.path[:0] = [str(ROOT), str(RUNS)]

import best_lr  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from plot import COLOURS, plot_runs, read_run  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "docs" / "walkthrough.md", ROOT / "docs" / "scaling.md"]
# Rollouts: the mixing half of a run (12 steps of 0.6 * 128), all of one that never goes back on-policy, all of the others
EARLY, MIDDLE, LATE = 925, 1843, 2460


@functools.cache
def seeds(name: str) -> list[list[dict]]:
    """The runs FOLDER/NAME-seed* as lists of rows; empty when they have not been made. SystemExit where one is not whole."""
    folder, _, label = name.rpartition("/")
    runs = [read_run(path) for path in sorted((RUNS / folder).glob(f"{label}-seed[0-9]"))]
    for rows, config in runs:
        if max(rows) < config["steps"]:
            raise SystemExit(
                f"{name}: a run stopped at step {max(rows)} of {config['steps']}; go on with its script"
            )
    return [list(rows.values()) for rows, _ in runs]


def spread(values: list[float], digits: int = 1) -> str:
    if not values:
        return "–"
    mean, low, high = (f"{v:.{digits}f}" for v in (fmean(values), min(values), max(values)))
    return f"{mean} [{low}, {high}]" if len(values) > 1 else mean


def evaluated(rows: list[dict]) -> list[dict]:
    return [row for row in rows if "eval/pass@1" in row]


def at(rows: list[dict], rollouts: int, key: str = "eval/pass@1", scale: float = 100) -> float:
    """The value after so many rollouts, on the line between the evaluations before and after; at most the last one."""
    points = evaluated(rows)
    return scale * float(
        np.interp(rollouts, [row["rollouts"] for row in points], [row[key] for row in points])
    )


def accuracy(name: str, rollouts: int) -> str:
    """Over the seeds; a dash where the runs ended before."""
    return spread(
        [at(rows, rollouts) for rows in seeds(name) if rows[-1]["rollouts"] > rollouts - 30]
    )


def mean_of(rows: list[dict], key: str, first: int = 1, last: int = 10**9) -> float:
    values = [row[key] for row in rows if key in row and first <= row["step"] <= last]
    return fmean(values) if values else float("nan")


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


# ---------------------------------------------------------------------------------------------------- tables

METHODS = {"remix-ppo": "ReMix-PPO", "ppo": "PPO", "ppo-lr3e-4": "PPO at ReMix-PPO's rate", "remix-grpo": "ReMix-GRPO",
           "grpo": "GRPO"}  # fmt: skip
ABLATION = {
    "methods/remix-ppo": "full ReMix-PPO",
    "ablation/no-utd": "without UTD (m = 1)",
    "ablation/no-kl-convex": "without KL-Convex",
    "ablation/no-reincarnation": "without reincarnation",
    "settings/Tnever": "the same, 32 steps, three seeds, second machine",
    "ablation/mix-ppg": "without all three: plain Mix-PPG",
    "methods/ppo-lr3e-4": "PPO at the same rate",
}
SETTINGS = {  # run below settings/: value; "default" is full ReMix-PPO
    "p, share of replay": {
        "p0.1": "0.1",
        "p0.2": "0.2",
        "p0.3": "0.3",
        "default": "0.4",
        "p0.5": "0.5",
    },
    "m, UTD ratio": {"m1": "1", "default": "2", "m3": "3", "m4": "4"},
    "T, reincarnation": {"T4": "4", "default": "12", "T18": "18", "Tnever": "never"},
    "N, window": {"N1": "1", "default": "2", "N3": "3", "N4": "4"},
    "λ": {"lambda0": "0", "lambda0.5": "0.5", "lambda1": "1", "default": "schedule"},
    "π_{k−1}": {"default": "previous weights", "precedent-current": "π_k"},
    "β, with λ's schedule": {"default": "0.001", "beta0.01": "0.01", "beta0.1": "0.1"},
    "β, with λ = 1": {
        "lambda1": "0.001",
        "beta0.01-no-kl-convex": "0.01",
        "beta0.1-no-kl-convex": "0.1",
    },
}


CLIPS = {"mix_ppg": "Mix-PPG, centre c", "ppo": "centre 1 (PPO around π_b)", "decoupled_ppo": "decoupled (AReaL)",
         "geppo": "Mix-PPG, GePPO's ε", "vtrace": "Mix-PPG, V-trace"}  # fmt: skip


def first_at(rows: list[dict], percent: float) -> dict | None:
    return next((row for row in evaluated(rows) if 100 * row["eval/pass@1"] >= percent), None)


def table_methods(folder: str = "methods") -> str:
    lines = []
    for name, title in METHODS.items():
        runs = seeds(f"{folder}/{name}")
        lr = name.partition("-lr")[2] or best_lr.best_lr(name)
        cells = [
            f"{title} (lr {lr})",
            accuracy(f"{folder}/{name}", EARLY),
            accuracy(f"{folder}/{name}", LATE),
        ]
        for percent in (60, 70, 80, 85):
            found = [first_at(rows, percent) for rows in runs]
            if None in found:
                cells.append(f"{sum(f is not None for f in found)} of {len(found)} seeds")
            else:
                of = [
                    fmean(row[key] for row in found)
                    for key in ("rollouts", "gradient_steps", "seconds")
                ]
                cells.append(f"{of[0]:,.0f} / {of[1]:.0f} / {of[2]:.0f} s")
        lines.append(cells)
    return markdown(
        [
            "method",
            f"at {EARLY} rollouts",
            f"at {LATE:,}",
            "to 60 %",
            "to 70 %",
            "to 80 %",
            "to 85 %",
        ],
        lines,
    )


def shape(name: str, *rollouts: int) -> list[str]:
    """Accuracy after so many rollouts each, the length and the share of reflection at the end."""
    runs = seeds(name)
    length = [at(rows, LATE, "eval/response_length", 1) for rows in runs]
    reflection = [at(rows, LATE, "eval/reflection_rate") for rows in runs]
    return [
        *(accuracy(name, n) for n in rollouts),
        f"{fmean(length):.0f}",
        f"{fmean(reflection):.0f} %",
    ]


ACCURACY, SHAPE = [f"at {EARLY} rollouts", f"at {LATE:,}"], ["length", "reflection"]


def table_ablation() -> str:
    heads = ["variant", ACCURACY[0], f"at {MIDDLE:,}", ACCURACY[1], *SHAPE]
    return markdown(
        heads, [[title, *shape(name, EARLY, MIDDLE, LATE)] for name, title in ABLATION.items()]
    )


def table_settings() -> str:
    lines = []
    for setting, values in SETTINGS.items():
        for name, value in values.items():
            runs = seeds(f"settings/{name}")
            if not runs:
                continue  # not run yet
            ends = runs[0][-1]["rollouts"]
            if ends < LATE - 10:
                value += f" (ends at {ends:,})"
            ratios, ess = (
                [
                    row[f"{key}/age{age}"]
                    for rows in runs
                    for row in rows
                    for age in (1, 2, 3, 4)
                    if f"{key}/age{age}" in row
                ]
                for key in ("ratio_mean", "ess")
            )
            moment = [mean_of(rows, "log_ratio_sq/age1", 2) for rows in runs]
            length = [at(rows, LATE, "eval/response_length", 1) for rows in runs]
            lines.append([setting, value + " (default)" * (name == "default"), spread([at(rows, EARLY) for rows in runs]),
                          spread([at(rows, LATE) for rows in runs]), f"{median(ratios):.3f} ({max(ratios):.1f})", f"{median(ess):.2f} ({min(ess):.3f})",
                          f"{fmean(moment):.3f}", f"{fmean(length):.0f}"])  # fmt: skip
            setting = ""
    ratio = "mean ratio of replayed tokens of one age: median (largest)"
    return markdown(
        [
            "setting",
            "value",
            *ACCURACY,
            ratio,
            "ess: median (smallest)",
            "E[(log r)²], age 1",
            "length",
        ],
        lines,
    )


def table_whipping() -> str:
    lines = []
    for kind, title in {
        "": "as trained",
        "-limit40": "limit of 40 tokens",
        "-equals": "prompt “… =”",
    }.items():
        for p in ("0", "0.5"):
            runs = seeds(f"whipping/p{p}{kind}")
            if not runs:
                continue
            quarters = [
                [mean_of(rows, f"ratio_mean/quarter{q}", 2) for q in (1, 2, 3, 4)] for rows in runs
            ]
            ratio = (
                " / ".join(f"{fmean(column):.3f}" for column in zip(*quarters, strict=True))
                if p != "0"
                else "–"
            )
            move = [
                " → ".join(
                    f"{scale * fmean(evaluated(rows)[i][key] for rows in runs):.0f}"
                    for i in (0, -1)
                )
                for key, scale in (("eval/response_length", 1), ("eval/reflection_rate", 100))
            ]
            end = spread([100 * evaluated(rows)[-1]["eval/pass@1"] for rows in runs])
            lines.append(
                [title, p, f"{runs[0][-1]['rollouts']:,}", move[0], move[1] + " %", ratio, end]
            )
    return markdown(
        [
            "setting",
            "p",
            "rollouts",
            "length",
            "reflection",
            "mean ratio by quarter of the response",
            "pass@1",
        ],
        lines,
    )


def table_clip() -> str:
    rows = []
    for name, title in CLIPS.items():
        full = "methods/remix-ppo" if name == "mix_ppg" else f"clip/{name}"
        runs = seeds(full)
        clipped = [
            fmean(mean_of(rows, f"clip_fraction/age{age}", 2) for age in (1, 2)) for rows in runs
        ]
        row = [
            title,
            *(spread([at(rows, rollouts) for rows in runs]) for rollouts in (EARLY, LATE)),
        ]
        rows.append([*row, f"{100 * fmean(clipped):.2f} %"])
    return markdown(["clip", *ACCURACY, "replayed tokens beyond Mix-PPG's band"], rows)


def sibling_names() -> dict[str, str]:
    """run -> the method whose learning rate it has."""
    from siblings import SIBLINGS

    names = {"methods/remix-grpo": "remix-grpo", "methods/grpo": "grpo"}
    names |= {f"siblings/loss-{name}": f"loss-{name}" for name in SIBLINGS}
    names |= {
        f"siblings/{n}": n
        for n in ("replay-buffer_matters", "replay-on_policyness", "replay-repo", "replay-window")
    }
    names |= {"siblings/lag2": "remix-grpo", "siblings/lag2-loss-ppo": "loss-ppo"}
    return {name: rate for name, rate in names.items() if seeds(name)}


def sibling_title(name: str) -> str:
    from siblings import SIBLINGS

    label = name.rpartition("/")[2]
    if label.startswith("loss-"):
        return f"`--loss {label[5:]}` ({SIBLINGS[label[5:]].source})"
    titles = {
        "remix-grpo": "**ReMix-GRPO** (five seeds)", "grpo": "GRPO (five seeds)",
        "replay-buffer_matters": "`--replay buffer_matters --replay_window 5`",
        "replay-on_policyness": "`--replay on_policyness --replay_window 5`",
        "replay-repo": "`--replay repo`, 32 problems", "replay-window": "ReMix-GRPO, 32 problems",
        "lag2": "`--sampler_lag 2`", "lag2-loss-ppo": "`--sampler_lag 2 --loss ppo`",
    }  # fmt: skip
    return titles[label]


def table_siblings() -> str:
    lines = [
        [sibling_title(name), best_lr.best_lr(rate), *shape(name, EARLY, LATE)]
        for name, rate in sibling_names().items()
    ]
    return markdown(["in ReMix-GRPO's place", "lr", *ACCURACY, *SHAPE], lines)


def table_tune() -> str:
    methods = sorted({path.name.rpartition("-lr")[0] for path in (RUNS / "tune").glob("*-lr*")})
    rates = ["1e-4", "3e-4", "1e-3"]
    lines = []
    for method in methods:
        scores = best_lr.scores(method)
        best = best_lr.best_lr(method)
        cells = [f"{100 * scores[lr]:.1f}" if lr in scores else "stopped" for lr in rates]
        lines.append(
            [method, *(f"**{c}**" if lr == best else c for c, lr in zip(cells, rates, strict=True))]
        )
    return markdown(["method", *(f"lr {lr}" for lr in rates)], lines)


def table_grader() -> str:
    """The last lines that benchmarks/grader.py printed, for the project's own cases and the public ones."""
    rows = []
    for file, title in {"grader.txt": "`tests/test_reward.py` and the hostile ones that are built in",
                        "grader-public.txt": "public graders' own tests, perturbed golds, hostile"}.items():  # fmt: skip
        found = {
            line.split()[0]: line.split()[1:]
            for line in (RUNS / "benchmarks" / file).read_text().splitlines()
        }
        times = [" / ".join(f"{1000 * float(found[key][i]):,.1f} ms" for key in ("median_s", "p99_s", "max_s"))
                 for i in (0, 1)]  # fmt: skip
        rows.append([f"{int(found['all'][0]):,} cases: {title}", *found["all"][1:], *times])
    latency = "median / 99th percentile / slowest"
    return markdown(
        ["cases", "this grader", "math-verify alone", f"this grader: {latency}", "math-verify"],
        rows,
    )


TABLES = {
    name.removeprefix("table_"): make
    for name, make in globals().items()
    if name.startswith("table_")
}


# ---------------------------------------------------------------------------------------------------- figures


def code(file: str, name: str) -> str:
    """A function of a file as it stands there, without its docstring."""
    source = (ROOT / file).read_text()
    function = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    lines = source.splitlines()[function.lineno - 1 : function.end_lineno]
    doc = function.body[0]
    if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
        del lines[doc.lineno - function.lineno : doc.end_lineno - function.lineno + 1]
    return "```python\n" + "\n".join(lines) + f"\n```\n[`{file}`](../{file}), `{name}`"


def lines(file: str, title: str) -> str:
    """The lines below a comment that starts with `# --- title` or `# ----- title`, up to the next empty line."""
    source = (ROOT / file).read_text()
    found = re.search(
        rf"^( *)# -+ {re.escape(title)}[^\n]*\n(.*?)\n\n", source, re.DOTALL | re.MULTILINE
    )
    return "```python\n" + textwrap.dedent(found[2]) + f"\n```\n[`{file}`](../{file})"


def log(file: str, number: str) -> str:
    """The number-th (from 1) table of a benchmark's output."""
    text = (RUNS / "benchmarks" / file).read_text()
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)[int(number) - 1].rstrip()


def folders(names: dict[str, str]) -> dict[str, list[Path]]:
    """title -> the run folders of its seeds, for plot.plot_runs."""
    return {
        title: sorted((RUNS / name.rpartition("/")[0]).glob(f"{name.rpartition('/')[2]}-seed[0-9]"))
        for name, title in names.items()
    }


def mean_and_range(ax, x: list[float], runs: list[list[float]], **style) -> None:
    """runs: for each x the values of the seeds; an x without any is left out."""
    x, runs = zip(
        *((at_x, values) for at_x, values in zip(x, runs, strict=True) if values), strict=True
    )
    ax.plot(x, [fmean(v) for v in runs], marker="o", ms=4, **style)
    ax.fill_between(
        x,
        [min(v) for v in runs],
        [max(v) for v in runs],
        alpha=0.15,
        lw=0,
        color=style.get("color"),
    )


def figure_settings() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.3), layout="constrained")
    ps = [0.1, 0.2, 0.3, 0.4, 0.5]
    runs = [seeds("settings/default" if p == 0.4 else f"settings/p{p}") for p in ps]
    for key, label, colour in (
        (EARLY, f"at {EARLY} rollouts", COLOURS[0]),
        (LATE, f"at {LATE:,} (p = 0.5: 2,304)", COLOURS[1]),
    ):
        mean_and_range(
            axes[0], ps, [[at(rows, key) for rows in of] for of in runs], color=colour, label=label
        )
    axes[0].set(title="Accuracy against p", xlabel="p, share of replayed data", ylabel="pass@1 [%]")
    axes[0].legend(frameon=False)
    for age in (1, 2):
        values = [[mean_of(rows, f"log_ratio_sq/age{age}", 2) for rows in of] for of in runs]
        mean_and_range(
            axes[1], ps, values, color=COLOURS[age + 1], label=f"{age} step{'s' * (age > 1)} old"
        )
    axes[1].set(
        title="How far replayed data is off",
        xlabel="p, share of replayed data",
        ylabel="E[(log r)²]",
    )
    axes[1].legend(frameon=False)
    for setting, colour in (("m, UTD ratio", COLOURS[0]), ("N, window", COLOURS[4])):
        values = SETTINGS[setting]
        of = [[at(rows, EARLY) for rows in seeds(f"settings/{name}")] for name in values]
        mean_and_range(axes[2], [int(v) for v in values.values()], of, color=colour, label=setting)
    axes[2].set(
        title=f"Accuracy at {EARLY} rollouts",
        xlabel="m or N",
        ylabel="pass@1 [%]",
        xticks=[1, 2, 3, 4],
    )
    axes[2].legend(frameon=False)
    figure.savefig(RUNS / "settings" / "settings.png", dpi=150)
    plt.close(figure)


def figure_whipping() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.3), layout="constrained")
    for p, colour in (("0", COLOURS[0]), ("0.5", COLOURS[1])):
        runs = [evaluated(rows) for rows in seeds(f"whipping/p{p}")]
        x = [row["step"] for row in runs[0]]
        for ax, key, scale in (
            (axes[0], "eval/response_length", 1),
            (axes[1], "eval/reflection_rate", 100),
        ):
            values = [[scale * rows[i][key] for rows in runs] for i in range(len(x))]
            mean_and_range(ax, x, values, color=colour, label=f"p = {p}")
    axes[0].set(title="Response length", xlabel="training step", ylabel="tokens", ylim=(0, None))
    axes[1].set(
        title="Self-reflection", xlabel="training step", ylabel="% of responses", ylim=(0, None)
    )
    for kind, label, colour in (
        ("", "as trained", COLOURS[1]),
        ("-limit40", "limit of 40 tokens", COLOURS[2]),
    ):
        runs = seeds(f"whipping/p0.5{kind}")
        if not runs:
            continue
        values = [
            [mean_of(rows, f"ratio_mean/quarter{q}", 2) for rows in runs] for q in (1, 2, 3, 4)
        ]
        mean_and_range(axes[2], [1, 2, 3, 4], values, color=colour, label=label)
    axes[2].set(
        title="Ratio along the response, p = 0.5",
        xlabel="quarter of the response",
        ylabel="mean ratio",
        xticks=[1, 2, 3, 4],
    )
    for ax in axes:
        ax.legend(frameon=False)
    figure.savefig(RUNS / "whipping" / "whipping.png", dpi=150)
    plt.close(figure)


def figure_siblings() -> None:
    names = list(sibling_names())
    order = sorted(names, key=lambda name: fmean(at(rows, LATE) for rows in seeds(name)))
    figure, ax = plt.subplots(figsize=(9, 0.32 * len(names) + 1), layout="constrained")
    for y, name in enumerate(order):
        for rollouts, colour in ((EARLY, COLOURS[5]), (LATE, COLOURS[0])):
            values = [at(rows, rollouts) for rows in seeds(name)]
            ax.plot([min(values), max(values)], [y, y], color=colour, lw=2, alpha=0.5)
            ax.plot(
                values,
                [y] * len(values),
                "o",
                color=colour,
                ms=4,
                label=f"at {rollouts:,} rollouts" if y == 0 else None,
            )
    ax.set_yticks(range(len(order)), [name.rpartition("/")[2] for name in order])
    ax.set(xlabel="pass@1, held-out problems [%]; one point a seed")
    ax.grid(axis="x", color="0.9")
    ax.legend(frameon=False, loc="lower right")
    figure.savefig(RUNS / "siblings" / "siblings.png", dpi=150)
    plt.close(figure)


def figures() -> None:
    plot_runs(
        folders({f"methods/{name}": title for name, title in METHODS.items()}),
        RUNS / "methods" / "methods.png",
    )
    plot_runs(
        folders({name: title for name, title in ABLATION.items() if seeds(name)}),
        RUNS / "ablation" / "ablation.png",
    )
    figure_settings()
    figure_whipping()
    figure_siblings()


def fill(mark: re.Match) -> str:
    kind, what = mark[2], mark[3].split(maxsplit=1)
    content = (
        TABLES[what[0]](*what[1:])
        if kind == "table"
        else dict(code=code, lines=lines, log=log)[kind](*what)
    )
    return f"{mark[1]}\n{content}\n\n{mark[4]}"


def main() -> None:
    check, wrong = "--check" in sys.argv[1:], []
    for page in PAGES:
        old = page.read_text()
        new = re.sub(
            r"(<!-- (table|code|lines|log) (.+?) -->\n).*?(<!-- /\2 -->)",
            fill,
            old,
            flags=re.DOTALL,
        )
        if check and new != old:
            wrong.append(page.name)
        elif new != old:
            page.write_text(new)
    if wrong:
        sys.exit(
            f"runs/report.py: the tables of {', '.join(wrong)} are not what the logs give; run python runs/report.py"
        )
    if not check:
        figures()


if __name__ == "__main__":
    main()
