"""plot.py: grouping, seeds of unequal length, what is drawn, and a figure from incomplete runs."""

import json
import re
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import pytest

import plot
from plot import curve, draw, group_by_label, plot_runs, read_run, reincarnation


def make_run(
    folder: Path, accuracy: list[float], every: int = 2, config: dict | None = None, **more
) -> str:
    """A run of 2 steps an evaluation: 10 rollouts, 4 gradient steps and 1.5 s a step."""
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(every * (len(accuracy) - 1) + 1):
            row = {
                "step": step,
                "rollouts": 10 * step,
                "gradient_steps": 4 * step,
                "seconds": 1.5 * step,
            }
            row |= {key: values[step] for key, values in more.items() if values[step] is not None}
            if step % every == 0:
                row |= {"eval/pass@1": accuracy[step // every], "eval/pass@1_ci": 0.05}
                row |= {"eval/response_length": 20 + step, "eval/reflection_rate": 0.1}
            file.write(json.dumps(row) + "\n")
    return str(folder)


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def lines(axes, thin: bool) -> list[list[tuple[float, float]]]:
    drawn = [
        line
        for line in axes.lines
        if line.get_linestyle() != "None" and (line.get_linewidth() < 1) == thin
    ]
    return [[tuple(map(float, xy)) for xy in line.get_xydata()] for line in drawn]


def test_groups_are_the_names_before_seed(tmp_path):
    names = [
        "remix-ppo-seed0",
        "remix-ppo-seed1",
        "ppo",
        "grpo_seed2",
        "a/x-seed1",
        "b/x-seed1",
        "long/seed3",
        "long/seed4",
    ]
    groups = group_by_label([str(tmp_path / name) for name in names])
    short = {
        label: [str(Path(f).relative_to(tmp_path)) for f in folders]
        for label, folders in groups.items()
    }
    assert short == {
        "remix-ppo": ["remix-ppo-seed0", "remix-ppo-seed1"],
        "ppo": ["ppo"],
        "grpo": ["grpo_seed2"],
        "a/x": ["a/x-seed1"],
        "b/x": ["b/x-seed1"],
        "long": ["long/seed3", "long/seed4"],
    }


def test_a_step_logged_twice_counts_once_and_a_cut_line_not_at_all(tmp_path):
    run = Path(make_run(tmp_path / "run", [0.1, 0.2]))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rollouts": 20, "eval/pass@1": 0.7}\n{"step": 3, "rollo')
    rows, config = read_run(run)
    assert sorted(rows) == [0, 1, 2] and rows[2]["eval/pass@1"] == 0.7 and config == {}


def test_curve_skips_steps_without_the_value(tmp_path):
    rows, _ = read_run(make_run(tmp_path / "run", [0.1, 0.2, 0.4]))
    points = curve(rows, "rollouts", "eval/pass@1", 100)
    assert [(step, *map(round, point)) for step, point in points.items()] == [
        (0, 0, 10),
        (2, 20, 20),
        (4, 40, 40),
    ]
    assert curve(rows, "seconds", "eval/pass@1")[4] == (6.0, 0.4)
    assert curve(rows, "rollouts", "nosuch") == {}
    # The base model has used none of anything
    del (rows[0]["gradient_steps"], rows[2]["gradient_steps"])
    assert sorted(curve(rows, "gradient_steps", "eval/pass@1")) == [0, 4]


def test_mean_band_and_ragged_ends(tmp_path, axes):
    seeds = [[0.1, 0.3], [0.3, 0.5, 0.9], [0.2, 0.7]]
    runs = [read_run(make_run(tmp_path / f"r{i}", seed))[0] for i, seed in enumerate(seeds)]
    assert draw(axes, runs, "rollouts", "eval/pass@1", 100, "C0")
    assert lines(axes, thin=False) == [[(0, pytest.approx(20)), (20, pytest.approx(50))]]
    assert lines(axes, thin=True) == [[(20, pytest.approx(50)), (40, pytest.approx(90))]]
    band = axes.collections[0].get_paths()[0].vertices
    assert [sorted({round(y) for x, y in band if x == at}) for at in (0, 20)] == [
        [10, 30],
        [30, 70],
    ]


def test_single_run_shows_its_interval(tmp_path, axes):
    rows, _ = read_run(make_run(tmp_path / "run", [0.1, 0.3]))
    draw(axes, [rows], "rollouts", "eval/pass@1", 100, "C0")
    band = axes.collections[0].get_paths()[0].vertices
    assert sorted({round(y) for x, y in band if x == 20}) == [25, 35]


def test_nothing_to_draw(tmp_path, axes):
    rows, _ = read_run(make_run(tmp_path / "run", [0.1]))
    assert not draw(axes, [rows], "rollouts", "nosuch", 1, "C0") and not axes.lines


def test_reincarnation_is_marked_between_evaluations(tmp_path, axes):
    config = {"algo": "ppo", "reincarnation_step": 3, "seed": 0}
    rows, config = read_run(make_run(tmp_path / "run", [0.1, 0.2, 0.4], config=config))
    assert reincarnation(config, rows) == 3
    assert reincarnation({"reincarnation_step": 0}, rows) is None
    for beyond in (4, 5):  # the run has 4 steps: none came after T
        assert reincarnation({"reincarnation_step": beyond}, rows) is None
    assert reincarnation({}, rows) is None
    draw(axes, [rows], "rollouts", "eval/pass@1", 100, "C0", mark=3)
    mark = next(line for line in axes.lines if line.get_linestyle() == "None")
    assert mark.get_xydata()[0] == pytest.approx((30, 30))


def written(path: Path) -> bool:
    image = matplotlib.image.imread(path)
    return image.shape[0] > 500 and image.shape[1] > 1000 and image.std() > 0.05


def test_figure_of_several_runs(tmp_path, monkeypatch):
    ages = {"ess/age0": [None, 1.0, 1.0, 1.0, 1.0], "ess/age1": [None, None, 0.9, 0.8, None]}
    config = {"reincarnation_step": 3}
    runs = {
        "remix": [
            make_run(tmp_path / f"remix-seed{i}", [0.1, 0.2, 0.5], config=config, **ages)
            for i in range(2)
        ]
    }
    runs["ppo"] = [make_run(tmp_path / "ppo", [0.1, 0.2])]
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    plot_runs(runs, tmp_path / "curve.png")
    monkeypatch.undo()
    (figure,) = figures
    assert written(tmp_path / "curve.png")
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == [plot.PANELS[name].title for name in plot.DEFAULT]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["remix (2 seeds)", "ppo", "reincarnation"]
    assert [t.get_text() for t in figure.axes[5].get_legend().get_texts()] == [
        "fresh",
        "1 step old",
    ]
    assert figure.axes[0].get_ylim() == (0, 103) and re.search(
        r"pass@1.*\[%\]", figure.axes[0].get_ylabel()
    )
    plt.close(figure)


def test_low_accuracies_fill_their_panel(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    for end in (0.3, 0.5):
        plot_runs({"run": [make_run(tmp_path / f"{end}", [0.1, end])]}, tmp_path / "curve.png")
    monkeypatch.undo()
    tops = [figure.axes[0].get_ylim() for figure in figures]
    assert tops[0][0] == 0 and 30 < tops[0][1] < 40 and tops[1] == (0, 103)
    for figure in figures:
        plt.close(figure)


def test_figure_of_a_run_that_never_evaluated_shows_the_reward(tmp_path):
    run = tmp_path / "bare"
    run.mkdir()
    rows = [{"step": 0, "rollouts": 0}] + [
        {"step": s, "rollouts": 8 * s, "reward": 0.1 * s} for s in range(1, 4)
    ]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plot.main([str(run), "--out", str(tmp_path / "curve.png")])
    assert written(tmp_path / "curve.png")


@pytest.mark.parametrize(
    "content, message", [(None, "holds no metrics.jsonl"), ("", "holds no complete step yet")]
)
def test_bad_runs_are_one_sentence(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(SystemExit) as exit:
        plot.main([str(tmp_path)])
    error = capsys.readouterr().err.strip()
    assert (
        exit.value.code == 2
        and error.startswith("plot.py: ")
        and message in error
        and "\n" not in error
    )


def test_table_means_and_first_crossings(tmp_path):
    for seed, values in enumerate([[0.2, 0.65, 0.9], [0.4, 0.5, 0.7]]):
        folder = tmp_path / f"a-seed{seed}"
        folder.mkdir()
        rows = [
            dict(
                step=i,
                rollouts=100 * i,
                gradient_steps=10 * i,
                seconds=2.0 * i,
                tokens_backward=4000 * i,  # of this step alone
                **{"eval/pass@1": v},
            )
            for i, v in enumerate(values)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folders = sorted(str(f) for f in tmp_path.iterdir())
    line = plot.table(plot.load(folders), at=150, marks=(60, 80)).splitlines()[-1]
    assert line == (  # at 150: on the line between the evaluations at 100 and 200
        "| a | 2 | 30.0 [20.0, 40.0] | 68.8 [60.0, 77.5] | 80.0 [70.0, 90.0] (200 rollouts) "
        "| 150 / 15 / 8k / 3 s | 1 of 2 seeds |"
    )
    rows = plot.load(folders)["a"][0][0]
    by_tokens = curve(rows, "tokens", "eval/pass@1")
    assert [x for x, _ in by_tokens.values()] == [0, 4000, 12000]


def test_value_at_is_on_the_line_between_evaluations_and_at_most_the_last():
    rows = [{"rollouts": x} | y for x, y in [(0, {"a": 1.0}), (50, {}), (100, {"a": 2.0})]]
    assert [plot.value_at(rows, x, "a") for x in (0, 25, 50, 100, 999)] == [1, 1.25, 1.5, 2, 2]


def experiment(path: Path) -> Path:
    """Two seeds of a, one of b; b has no beta, and its second step no accuracy."""
    shared = dict(config=dict(steps=1, beta=0.1))
    values = [("a", 0, [0.1, 0.5]), ("a", 1, [0.3, 0.7]), ("b", 0, [0.2, None])]
    lines = []
    for name, seed, accuracy in values:
        line = dict(name=name, seed=seed, commit="c", command="")
        line["config"] = dict(beta=None) if name == "b" else {}
        line["metrics"] = {"step": [0, 1], "rollouts": [0, 8], "eval/pass@1": accuracy}
        lines.append(line)
    path.write_text("\n".join(map(json.dumps, [shared, *lines])))
    return path


def test_an_experiment_is_runs_by_name(tmp_path):
    runs = plot.read_experiment(experiment(tmp_path / "x.jsonl"))
    assert {name: len(seeds) for name, seeds in runs.items()} == {"a": 2, "b": 1}
    rows, config = runs["a"][1]
    assert rows == {
        0: {"step": 0, "rollouts": 0, "eval/pass@1": 0.3},
        1: {"step": 1, "rollouts": 8, "eval/pass@1": 0.7},
    }
    assert config == {"steps": 1, "beta": 0.1, "seed": 1, "git_commit": "c"}
    rows, config = runs["b"][0]
    assert rows[1] == {"step": 1, "rollouts": 8} and "beta" not in config


def test_arguments_are_folders_and_files_with_or_without_a_label(tmp_path):
    file, run = experiment(tmp_path / "x.jsonl"), make_run(tmp_path / "own-seed0", [0.1, 0.2])

    def counts(*arguments):
        return {label: len(seeds) for label, seeds in plot.load(list(arguments)).items()}

    assert counts(str(file), run) == {"a": 2, "b": 1, "own": 1}
    assert counts(f"{file}:b") == {"b": 1}
    assert counts(f"Mine={file}:a,b", f"Other={run}") == {"Mine": 3, "Other": 1}
    with pytest.raises(ValueError, match="has no run c; it has a, b"):
        plot.load([f"{file}:c"])
    with pytest.raises(ValueError, match="is not a file of runs/collect.py"):
        plot.load([str(tmp_path / "own-seed0" / "metrics.jsonl")])


def test_a_slide_is_one_panel_with_a_title(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    file = experiment(tmp_path / "x.jsonl")
    out = tmp_path / "slide.png"
    plot.main([f"ReMix={file}:a", "--panel", "rollouts", "--title", "Mine", "--out", str(out)])
    monkeypatch.undo()
    (figure,) = figures
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Accuracy against rollouts"]
    assert figure.legends[0].get_title().get_text() == "Mine" and out.stat().st_size > 10_000
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ReMix (2 seeds)"]
    plt.close(figure)
