"""Pages are what the data and the source give; the data is whole; collect.py loses nothing."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "runs"))
import collect
import report

import tiny
from config import parse_config
from plot import read_experiment, read_run

EXPERIMENTS = sorted((ROOT / "runs").glob("*.jsonl"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# ------------------------------------------------------------------------------------------ pages


def check(root):
    return subprocess.run(
        [sys.executable, "runs/report.py", "--check"], cwd=root, capture_output=True, text=True
    )


def test_every_table_is_what_the_data_gives():
    done = check(ROOT)
    assert done.returncode == 0, done.stderr


def change(path, number, after=""):
    """The last character of the first such number becomes an 8."""
    text = path.read_text()
    at = text.index(number, text.index(after)) + len(number) - 1
    path.write_text(text[:at] + "8" + text[at + 1 :])


@pytest.fixture
def copy(tmp_path):
    ignored = shutil.ignore_patterns(".venv", "out", "cache", ".git")
    return Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=ignored))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page, mark, number",  # the lower end of some accuracy; a step's seconds
    [
        ("docs/results.md", "<!-- table methods -->", "[9"),
        ("docs/speed.md", "<!-- log vs_trl_embedded.md 1 -->", "**0."),
    ],
)
def test_a_number_that_no_data_gives_is_caught(copy, page, mark, number):
    change(copy / page, number, after=mark)
    done = check(copy)
    assert done.returncode == 1 and Path(page).name in done.stderr


@pytest.mark.slow
def test_data_that_no_page_shows_is_caught(copy):
    change(copy / "runs" / "methods.jsonl", '"eval/pass@1":[0.2', after='"name":"remix-ppo"')
    done = check(copy)
    assert done.returncode == 1 and "results.md" in done.stderr


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_mark_is_made_anew(path):
    """Whatever stands between two marks: nothing of it is left."""
    marks = r"(<!-- (table|code|lines|cell|log) .+? -->\n).*?(<!-- /\2 -->)"
    old = path.read_text()
    emptied = re.sub(marks, r"\1old\3", old, flags=re.DOTALL)
    assert report.page(emptied, of_root=path.parent == ROOT) == old
    assert emptied.count("<!-- /") == len(re.findall(marks, old, re.DOTALL))


def test_the_table_of_cards_is_what_the_simulations_give():
    """They are kept: the command simulates nothing anew."""
    command = [sys.executable, "benchmarks/memory.py", "--cards"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "| `7b` | 8 |" in done.stdout, done.stderr
    assert done.stdout.strip() in (ROOT / "benchmarks" / "results" / "cards.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for text, link in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", page.read_text()):
        target, _, section = link.partition("#")
        if target.startswith("http"):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: [{text}]({link})"
        heads = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE) if section else []
        anchors = [re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads]
        assert not section or section in anchors, f"{page.name}: [{text}]({link})"


def test_the_map_from_paper_to_code_names_what_exists():
    text = (ROOT / "docs" / "walkthrough.md").read_text()
    rows = re.findall(
        r"^\|(.+)\|$", text[text.index("| the paper") :].split("\n\n")[0], re.MULTILINE
    )
    assert len(rows) >= 10
    loop, flags = (ROOT / "remix.py").read_text(), asdict(parse_config([]))
    for row in rows[2:]:
        _, code, place, flag, tests = row.split("|")
        for file, name in re.findall(r"`(\w+)\.(\w+)`", code):
            source = (ROOT / f"{file}.py").read_text()
            assert re.search(rf"^ *(?:def|class) {name}\b", source, re.MULTILINE), (file, name)
        for title in re.findall(r"“([^”]+)”", place):
            assert re.search(rf"# -+ {re.escape(title)}", loop), title
        for name in re.findall(r"`--(\w+)`", flag):
            assert name in flags, name
        for file, name in re.findall(r"`(test_\w+)::(\w+)`", tests):
            assert f"def {name}" in (ROOT / "tests" / f"{file}.py").read_text(), (file, name)


def test_the_chance_of_a_difference_is_that_of_the_permutation_test():
    assert report.by_chance([3, 4, 5], [0, 1, 2]) == 1 / 20  # one of the ways, this one
    assert report.by_chance([0, 1, 2], [3, 4, 5]) == 1
    assert report.by_chance([1, 1], [1, 1]) == 1
    high, low = [80.3, 85.1, 75.5, 78.5], [73.6, 74.7, 77.0]
    orders = [sum(order[:4]) >= sum(high) for order in itertools.permutations(high + low)]
    assert report.by_chance(high, low) == pytest.approx(sum(orders) / len(orders))


@pytest.mark.parametrize(
    "first, second, verdict",
    [
        ([0.5, 0.6, 0.7], [0.3, 0.4, 0.49], "**holds**"),
        ([0.3, 0.4, 0.49], [0.5, 0.6, 0.7], "**does not**"),
        ([0.5, 0.6, 0.7], [0.3, 0.4, 0.51], "cannot be told"),
        ([0.5, 0.6], [0.3, 0.4], "cannot be told"),  # two seeds tell nothing at one in twenty
    ],
)
def test_a_claim_holds_where_chance_gives_it_one_time_in_twenty(
    monkeypatch, first, second, verdict
):
    def seeds(name):
        of = first if name == "a/one" else second
        return [[{"rollouts": 100 * i, "eval/pass@1": x * i} for i in (0, 1)] for x in of]

    monkeypatch.setattr(report, "seeds", seeds)
    for where in (100, report.END):
        monkeypatch.setitem(report.CLAIMS, "of us", [("it is above", "a/one", "a/other", where)])
        assert report.table_claims("of us").splitlines()[-1].split(" | ")[1] == verdict


# ------------------------------------------------------------------------------------------ data


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_run_is_whole_and_one_line(file):
    shared, *lines = map(json.loads, file.read_text().splitlines())
    order = [(line["name"], line["seed"]) for line in lines]
    assert order == sorted(set(order)) and list(shared) == ["config"]
    assert all(line["commit"] and line["command"] for line in lines)
    for name, seeds in read_experiment(file).items():
        for rows, config in seeds:
            assert list(rows) == list(range(config["steps"] + 1)), (name, config["seed"])
            assert "eval/pass@1" in rows[config["steps"]]


@pytest.mark.slow
def test_experiments_sh_makes_the_runs_that_are_committed():
    """Same settings, but for those that a later version added, dropped or chooses by itself.
    One seed of each name: they differ in nothing else."""
    done = subprocess.run(
        ["bash", "runs/experiments.sh", "all"],
        cwd=ROOT,
        env=os.environ | dict(DRY="1", SEEDS="0", SMOLLM="out/SmolLM2-135M-Instruct"),
        capture_output=True,
        text=True,
        check=True,
    )
    committed = {
        (file.stem, name, config["seed"]): config
        for file in EXPERIMENTS
        for name, seeds in read_experiment(file).items()
        for _, config in seeds
    }
    unlike, seen = {"out", "prompt", "shard", "dtype", "save_every", "top_p"}, set()
    for line in done.stdout.splitlines():
        python, script, *flags = line.split()
        _, _, file, run = flags[-1].split("/")
        name, _, seed = run.rpartition("-seed")
        key = (file, name, int(seed))
        seen.add(key)
        if script == "remix.py":
            new = json.loads(json.dumps(asdict(parse_config(flags))))  # tuples are lists there
            old = committed.get(key, new)
        else:  # trl_side.py has flags with a value and --eval_first
            of = " ".join(flags[:-2]).replace("eval_first", "eval_first True").split()
            new = {
                name.removeprefix("--"): value
                for name, value in zip(of[::2], of[1::2], strict=True)
            }
            old = {name: str(value) for name, value in committed.get(key, new).items()}
            new |= dict(lr=str(float(new["lr"])))
            base = tiny.make_base_model(settings=tiny.named("tiny:mending=0"))
            assert ROOT / new["model"] == Path(base)  # the others' base model
        assert all(old.get(k, v) == v for k, v in new.items() if k not in unlike), key
    by_script = {key for key in committed if key[0] != "start"}
    assert {key[:2] for key in by_script} <= {key[:2] for key in seen}


# ------------------------------------------------------------------------------------------ collect


def make_run(folder, seed, steps=2, last=2, **config):
    folder.mkdir(parents=True)
    settings = dict(out=str(folder), seed=seed, steps=steps, git_commit="abc") | config
    (folder / "config.json").write_text(json.dumps(settings))
    rows = [{"step": step, "reward": 0.1 * step + seed} for step in range(last + 1)]
    rows[1]["kl"] = 0.5  # the others have none
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = folder.parent / "logs" / f"{folder.name}.txt"
    log.parent.mkdir(exist_ok=True)
    log.write_text(f"$ python remix.py --seed {seed}\nstep 1\n$ python remix.py again\n")
    return folder


def test_collected_runs_read_back_as_they_were(tmp_path):
    file = tmp_path / "x.jsonl"
    folders = [
        make_run(tmp_path / "b-seed0", 0, lr=0.1, p=0.4),
        make_run(tmp_path / "a-seed1", 1, lr=0.1),  # has no p
        make_run(tmp_path / "a-seed0", 0, lr=0.2, p=0.4, m=2),  # has an m
    ]
    collect.main([str(file), *map(str, folders)])
    runs = read_experiment(file)
    assert list(runs) == ["a", "b"]
    for folder, (name, i) in zip(folders, [("b", 0), ("a", 1), ("a", 0)], strict=True):
        assert runs[name][i] == read_run(folder)
    lines = file.read_text().splitlines()
    assert json.loads(lines[0]) == {"config": {"steps": 2, "lr": 0.1, "p": 0.4}}
    assert json.loads(lines[1])["command"] == "python remix.py --seed 0"


def test_a_new_seed_is_one_line_more_and_a_repeated_one_replaces_its_line(tmp_path):
    file = tmp_path / "x.jsonl"
    collect.main([str(file), *(str(make_run(tmp_path / f"{n}-seed0", 0)) for n in "ac")])
    before = file.read_text().splitlines()
    new = make_run(tmp_path / "b-seed0", 0)
    collect.main([str(file), str(new)])
    after = file.read_text().splitlines()
    assert [after[i] for i in (0, 1, 3)] == before and json.loads(after[2])["name"] == "b"
    (new / "metrics.jsonl").write_text('{"step": 2, "reward": 7}\n')
    collect.main([str(file), str(new), "--note", "again", "--command", "by hand"])
    again = file.read_text().splitlines()
    line = json.loads(again.pop(2))
    assert again == before
    assert line["metrics"] == {"step": [2], "reward": [7]}
    assert (line["note"], line["command"]) == ("again", "by hand")


def test_a_run_that_stopped_is_not_collected(tmp_path):
    file = tmp_path / "x.jsonl"
    with pytest.raises(SystemExit, match="stopped at step 1"):
        collect.main([str(file), str(make_run(tmp_path / "a-seed0", 0, last=1))])
    assert not file.exists()


def test_samples_are_the_responses_of_each_evaluation(tmp_path):
    folder = make_run(tmp_path / "a-seed0", 0)
    said = dict(problem="1 + 1", gold="2", length=3, finished=True, answer="2", format=True)
    rows = [
        dict(step=0, kind="evaluation", text="3", reward=0.0) | said,
        dict(step=1, kind="fresh", text="trained on", reward=0.0),
        dict(step=2, kind="evaluation", text="2", reward=1.0) | said,
    ]
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "x.jsonl"
    collect.main([str(file), str(folder), "--samples"])
    problem = dict(problem="1 + 1", gold="2")
    assert json.loads(file.read_text().splitlines()[1])["samples"] == {
        "0": [problem | dict(text="3", reward=0.0)],
        "2": [problem | dict(text="2", reward=1.0)],
    }
