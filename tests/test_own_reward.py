"""--reward FILE.py:FUNCTION: how it is called, contained, refused, logged; and the two examples."""

import hashlib
import importlib.util
import itertools
import json
import math
import shutil
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_remix import bad, metrics, run, start

import checkpoint
import config
import data
import eval as evaluation
import loss
import plot
import remix
import worker
from buffer import Response
from data import Problem
from metrics import Log
from reward import Grader, look_at, read_own

slow = pytest.mark.slow


@pytest.fixture
def own(tmp_path):
    """own(source) -> --reward's value, of a file with it."""
    read_own.cache_clear()  # another test's file may have had the name

    def write(source: str, name: str = "f") -> str:
        (tmp_path / "own.py").write_text(source)
        return f"{tmp_path / 'own.py'}:{name}"

    return write


def scores(own: str, responses: list[str], rows=None, deadline_s=60.0, **options):
    with Grader(deadline_s=deadline_s, own=own, **options) as grader:
        return grader.own_rewards(responses, rows or [{} for _ in responses])


# --------------------------------------------------------------------------------- how it is called


def test_it_gets_the_response_and_its_row_and_gives_any_number(own):
    reward = own("def f(response, row): return row['a'] * len(response)")
    rows = [dict(a=0.25), dict(a=-3), dict(a=True), dict(a=10**20)]
    assert scores(reward, ["abc"] * 4, rows, workers=2) == ([0.75, -9.0, 3.0, 3e20], [], 0, 0)
    assert look_at(reward).keys() == {"reward"} and look_at("") == {}


def test_a_batched_one_gets_batches_whose_failure_is_their_own(own):
    source = "def f(responses, rows):\n"
    source += "    if 'boom' in responses: raise KeyError('target')\n"
    source += "    return [len(responses) + r['x'] for r in rows]\nf.batched = True"
    count = worker.BATCH + 6
    rows = [dict(x=i / 1000) for i in range(count)]
    expected = [(worker.BATCH if i < worker.BATCH else 6) + i / 1000 for i in range(count)]
    assert scores(own(source), ["a"] * count, rows).rewards == expected
    with pytest.warns(UserWarning, match="own.py:f failed: KeyError: 'target', line 2; such a"):
        failed = scores(own(source), ["boom"] + ["a"] * (count - 1), rows)
    assert failed.rewards == [0.0] * worker.BATCH + expected[worker.BATCH :]
    assert failed.kills == worker.BATCH


def test_of_a_batch_only_what_is_no_number_is_0(own):
    reward = own(
        "def f(responses, rows): return [1, None, 2][:int(rows[0]['n'])]\nf.batched = True"
    )
    with pytest.warns(UserWarning, match="None is no finite number"):
        assert scores(reward, ["a"] * 3, [dict(n=3)] * 3) == ([1.0, 0.0, 2.0], [], 1, 0)
    with pytest.warns(UserWarning, match="2 rewards for 3 responses"):
        assert scores(reward, ["a"] * 3, [dict(n=2)] * 3) == ([0.0] * 3, [], 3, 0)


FAILURES = [
    "math.nan", "-math.inf", "'1'", "b'1'", "None", "[1]", "1j", "1e39", "10**400", "1 / 0",
    "{}[row]", "sys.exit(3)", "os._exit(3)", "bytearray(3 << 30)", "g()", "int('9' * 5000)",
]  # fmt: skip


def test_each_failure_is_a_counted_0_told_once(own):
    source = "import math, os, sys\ndef g(): return g()\n"
    source += "def f(response, row): return eval(response)"
    with pytest.warns(UserWarning) as said:
        found = scores(own(source), [*FAILURES, "0.5", "True"])
    assert found.rewards == [0.0] * len(FAILURES) + [0.5, 1.0] and found.kills == len(FAILURES)
    assert len(said) == 1 and "nan is no finite number; such a response gets 0" in str(said[0])


def test_what_hangs_dies_at_the_deadline_with_what_it_has_started(own, tmp_path):
    source = "import subprocess, time\ndef f(response, row):\n"
    source += "    p = subprocess.Popen(['sleep', '600'])\n"
    source += f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))\n    time.sleep(600)"
    began = time.monotonic()
    with pytest.warns(UserWarning, match="took longer than --grader_deadline"):
        assert scores(own(source), ["a"], deadline_s=3.0) == ([0.0], [], 1, 0)
    assert time.monotonic() - began < 60
    stat = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    deadline = time.monotonic() + 30
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"  # Z: nobody has waited for it


def test_modules_beside_it_are_its_own_and_ours_are_there_too(own, tmp_path):
    (tmp_path / "answers.py").write_text("x = 7")  # a name that we have, too
    source = "import answers, dataclasses\n@dataclasses.dataclass\nclass D:\n    x: float\n"
    source += "def f(response, row): return D(answers.x).x"
    assert scores(own(source), ["a"]).rewards == [7.0]
    (tmp_path / "answers.py").unlink()
    read_own.cache_clear()
    source = "from reward import equivalent, extract_answer\n"
    source += "def f(response, row): return equivalent(extract_answer(response, 'boxed'), '1/2')"
    assert scores(own(source), [r"\boxed{0.5}", r"\boxed{2}"]).rewards == [1.0, 0.0]


def test_an_edit_during_the_run_changes_nothing(own):
    reward = own("import os\ndef f(response, row): return 1 if row['live'] else os._exit(1)")
    with Grader(deadline_s=60, own=reward) as grader:
        assert grader.own_rewards(["a"], [dict(live=True)]).rewards == [1.0]
        Path(reward[:-2]).write_text("def f(response, row): return 2")
        with pytest.warns(UserWarning, match="its process died"):
            mixed = grader.own_rewards(["a", "a"], [dict(live=False), dict(live=True)])
        assert mixed.rewards == [0.0, 1.0]  # the second by a worker that is new


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "source, name, message",
    [
        ("x = 1", "f", "own.py:f: has no f; name one"),
        ("f = 1", "f", "own.py:f: f in it is no function; name one"),
        ("def f(response): ...", "f", r"f is called with a response and its row.*\(too many pos"),
        ("def f(a, b, c): ...", "f", r"f is called with .* \(missing a required argument: 'c'\)"),
        ("import nothing", "f", r"cannot be imported \(ModuleNotFoundError: .*, line 1\); mend it"),
        ("\n\n1 +", "f", r"cannot be imported \(SyntaxError: .*line 3"),
        ("import sys; sys.exit('pip install x')", "f", r"imported \(SystemExit: pip install x, l"),
        ("import os; os._exit(3)", "f", r"own.py:f: a grader worker did not start \(exit code 3\)"),
        ("def f(a, b): ...", "f()", r"must be FILE.py:FUNCTION"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused(own, source, name, message):
    with pytest.raises(ValueError, match=rf"^--reward \S+: .*{message}|^--reward .*{message}") as e:
        look_at(own(source, name))
    assert "\n" not in str(e.value)


def test_flags_that_do_not_go_with_it(tmp_path):
    for value in ("f.py", str(tmp_path / "f.py:f")):
        with pytest.raises(ValueError, match=r"^--reward \S+: .*FILE.py:FUNCTION$"):
            look_at(value)
    own = ["--reward", "f.py:f"]
    assert bad(*own).format == "" and bad().format == "r1"
    for flags, message in [
        (["--format", "r1"], "--format r1: is of our own grading; leave it out with --reward"),
        (["--answer_field", "x"], "--answer_field x: is of our own grading"),
        (["--replay", "buffer_matters", "--algo", "grpo"], "--replay buffer_matters: knows right"),
        (["--loss", "topr", "--algo", "grpo"], "--loss topr: knows right"),
        (["--grader_deadline", "0"], "--grader_deadline 0.0: must be above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            config.check_config(bad(*own, *flags))
    config.check_config(bad(*own))


def test_a_resumed_run_with_a_changed_file_or_deadline_is_refused(tmp_path, own):
    cfg = bad("--reward", own("def f(response, row): return 1"), "--out", tmp_path / "run")
    sha256 = dict(data="d", eval_data="e") | look_at(cfg.reward)
    (tmp_path / "run").mkdir()
    checkpoint.write_json(tmp_path / "run" / "config.json", vars(cfg) | dict(sha256=sha256))
    config.check_out(cfg)
    config.check_problems(cfg, sha256)
    read_own.cache_clear()  # as in another process
    own("def f(response, row): return 2")
    with pytest.raises(ValueError, match=r"--reward \S+: its file is not the one that the run in"):
        config.check_problems(cfg, sha256 | look_at(cfg.reward))
    cfg.grader_deadline = 3.0
    with pytest.raises(ValueError, match="--grader_deadline 3.0: the run in .* has .* 2.0"):
        config.check_out(cfg)


# ------------------------------------------------------------------------------------------- rows


def test_a_problem_carries_its_row_only_where_it_is_asked_for(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [
        dict(problem="a", tests=[[1, 0.5]]), dict(problem="", tests=[]), dict(problem="a", tests=2),
        dict(problem="a", tests=2), dict(problem="b", answer=r"\frac{"), dict(answer="3"),
    ]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    problems, counts = data.load_problems(str(file), None, whole_rows=True)
    assert [p.row for p in problems] == [rows[0], rows[2], rows[4]]
    assert [(p.id, p.problem, p.gold) for p in problems] == [
        (0, "a", ""),
        (2, "a", ""),
        (4, "b", ""),
    ]
    assert type(problems[0].row["tests"][0][1]) is float  # not the Decimal that keeps its digits
    assert (counts["no_answer"], counts["duplicates"], counts["unparsable"]) == (2, 1, 0)
    file.write_text(json.dumps(dict(problem="a", answer="1")))
    assert data.load_problems(str(file), None)[0] == [Problem(0, "a", "1", [], None)]
    assert data.plain({"a": [Decimal("0.1"), None, "x"]}) == {"a": [0.1, None, "x"]}


def test_a_changed_row_is_changed_data():
    def sha(*row):
        return checkpoint.problems_sha256([Problem(0, "1 + 1", "2", [1, 2], *row)])

    assert len({sha(), sha(dict(a=1)), sha(dict(a=2))}) == 3
    before = repr([(0, "1 + 1", "2", [1, 2])]).encode()  # what runs were begun with
    assert sha() == hashlib.sha256(before).hexdigest()


# ------------------------------------------------------------------------------ advantages, numbers


def test_equal_rewards_have_no_advantage_however_they_are_rounded():
    for value, G in itertools.product((0.1, 0.3, -0.7, 1e-8, 1234.567), (2, 3, 7, 8, 64)):
        advantages = loss.group_advantages(torch.tensor([value] * G + [0.1] * (G - 1) + [0.3]), G)
        assert (advantages[:G] == 0).all() and (advantages[G:] != 0).all()
    wrong_or_right = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0])
    groups = wrong_or_right.view(-1, 4)  # the formula, bit for bit
    plain = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
    assert torch.equal(loss.group_advantages(wrong_or_right, 4), plain.view(-1))


class Letters:
    """A tokenizer: a token is a letter."""

    name_or_path, eos_token_id = "", 0

    def decode(self, tokens, **_):
        return "".join(map(chr, tokens))


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_rewards_of_any_size_reach_the_advantages(own, group, algo):
    reward = own("def f(response, row): return row[response]")
    flags = ["--reward", reward, "--algo", algo, "--group_size", 2, "--no_whiten"]
    cfg = bad(*flags)
    problems = [Problem(0, "p", "", [1], dict(a=-2.5, b=0.1)), Problem(1, "q", "", [1], dict(c=7))]
    groups = [
        (1, [Response([1], [ord(x)], torch.zeros(1), True, 0.0, 1) for x in "cd"]),
        (0, [Response([1], [ord(x)], torch.zeros(1), True, 0.0, 1) for x in "ab"]),
    ]
    with Grader(deadline_s=60, own=reward) as grader, pytest.warns(UserWarning, match="'d'"):
        counts = remix.give_rewards(groups, problems, grader, Letters(), cfg)
    batch = [r for _, group in groups for r in group]
    assert [r.reward for r in batch] == [7.0, 0.0, -2.5, 0.1] and counts["kills"] == 1
    assert counts.keys() == {"reflecting", "kills"}  # nothing of answers and formats
    for r in batch:
        r.values = torch.tensor([0.5])
    remix.set_advantages(batch, cfg, None)
    found = [r.advantages.item() for r in batch]
    if algo == "ppo":
        assert found == pytest.approx([6.5, -0.5, -3.0, -0.4])
    else:
        half = 0.5**0.5  # of two, each is half their distance from the mean, and the std is a root
        assert found == pytest.approx([half, -half, -half, half], rel=1e-5)


# --------------------------------------------------------------------------------------- evaluation


def test_best_of_k_is_the_mean_over_draws():
    rewards = [0.3, -1.0, 0.3, 2.5, 0.0]
    for k in range(1, 6):
        draws = [max(draw) for draw in itertools.combinations(rewards, k)]
        assert evaluation.best_at_k(rewards, k) == pytest.approx(sum(draws) / len(draws))
        right = [1.0, 0.0, 0.0, 1.0, 0.0]
        assert evaluation.best_at_k(right, k) == pytest.approx(evaluation.pass_at_k(5, 2, k))


def test_eval_py_grades_with_it_and_names_what_it_found(own, tmp_path, capsys):
    source = "def f(response, row): return row['scale'] * len(response)"
    reward = own(source)
    (tmp_path / "rows.json").write_text(json.dumps([dict(problem=p, scale=s) for p, s in
                                                    (("a", -0.5), ("b", 2.0))]))  # fmt: skip
    lines = [dict(id=i, responses=["x", "xx", "xxx"]) for i in (0, 1)]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = f"--samples {tmp_path}/samples.jsonl --data {tmp_path}/rows.json --reward {reward}"
    flags = [*flags.split(), "--out", str(tmp_path / "out.json"), "--grader_deadline", "60"]
    evaluation.main(flags)
    found = json.loads((tmp_path / "out.json").read_text())["sets"][f"{tmp_path}/rows.json"]
    assert found["reward"] == 1.5 and found["best@2"] == pytest.approx((-2 / 3 + 16 / 3) / 2)
    names = {"problems", "n", "reward", "reward_ci", "best@2", "best@2_ci", "reflection_rate"}
    assert found.keys() == names
    said = capsys.readouterr().out
    assert "| reward " in said and " 1.5000 |" in said and "pass@" not in said
    with pytest.raises(SystemExit):
        evaluation.main([*flags, "--reward", own(source + "\ng = f", "g")])
    assert "differs in --reward" in capsys.readouterr().err
    read_own.cache_clear()
    own("def f(response, row): return 0")
    with pytest.raises(SystemExit):
        evaluation.main(flags)
    assert "differs in the file of --reward" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluation.main([*flags, "--format", "r1"])
    assert "eval.py: --format r1: is of our own grading" in capsys.readouterr().err


def test_the_line_on_the_screen_has_the_mean_reward(group, tmp_path, capsys):
    log = Log(config.Config(out=str(tmp_path), steps=3), 0, "cpu")
    log.start(1)
    row = dict(step=1, reward=-0.5, response_length=7.0, rollouts=4, grader_kills=0)
    log.write(row | {"eval/reward": 0.125, "eval/reward_ci": 0.25})
    log.write(dict(step=0) | {"eval/reward": -2.0, "eval/response_length": 3.0})
    log.bar.close()
    said = capsys.readouterr().out
    assert "reward -0.50  length   7.0  rollouts      4  eval reward 0.125 ± 0.250  " in said
    assert "base model: eval reward -2.000, 3 tokens a response" in said


def test_figure_and_table_show_the_mean_reward(tmp_path):
    rows = {
        step: {"step": step, "rollouts": 10 * step, "reward": 1.0, "eval/reward": value,
               "eval/reward_ci": 0.25}
        for step, value in enumerate((-0.5, 1.25, 2.5))
    }  # fmt: skip
    runs = {"mine": [(rows, dict(reward="f.py:f"))]}
    assert (
        plot.table(runs, at=15).splitlines()[0] == "| run | seeds | base | at 15 rollouts | end |"
    )
    assert plot.table(runs, at=15).splitlines()[2] == (
        "| mine | 1 | -0.500 | 1.875 | 2.500 (20 rollouts) |"
    )
    figure, ax = plot.plt.subplots()
    plot.draw_panel(ax, plot.PANELS["rollouts"], runs)
    assert ax.get_title(loc="left") == "Reward against rollouts" and "%" not in ax.get_ylabel()
    assert [y for _, y in ax.lines[0].get_xydata()] == [-0.5, 1.25, 2.5] and ax.get_ylim()[0] < -0.5
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (-0.75, 2.75)
    plot.plt.close(figure)


# ----------------------------------------------------------------------------------------- examples


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def box(text: str) -> str:
    return rf"so </think> \boxed{{{text}}}"


COUNTDOWN = dict(numbers=[3, 3, 8, 8], target=24)
COUNTDOWN_CASES = [
    (box("8/(3-8/3)"), 1.0), (box(r"8 \div (3 - 8 ÷ 3)"), 1.0), (box("3") + box("3*8"), 1.0),
    (r"\boxed{3*8} and no </think> after", 0.0), (r"\boxed{3*8}", 1.0),  # no </think>: all counts
    (box("3*8") + box("3+8"), 0.1), (box("8"), 0.1), (box(" 3 × 8 + 3 "), 0.1), (box("8-8"), 0.1),
    (box("8*3*1"), 0.0), (box("8+8+8"), 0.0), (box("24"), 0.0), (box("3.0*8"), 0.0),
    (box("True*8*3"), 0.0), (box("8/(3-3)"), 0.0), (box("3**8"), 0.0), (box("-3"), 0.0),
    (box("3*8 # 24"), 1.0), (box("3*8; 3"), 0.0), (box("3*8 ="), 0.0), (box(""), 0.0), ("", 0.0),
    (box("__import__('os').system('touch executed')"), 0.0), (box("open('executed', 'w')"), 0.0),
    (box("(lambda: 24)()"), 0.0), (box("[8*3 for _ in range(10**10)]"), 0.0),
    (box("(" * 90 + "3" + ")" * 90), 0.1), (box("(" * 10**5), 0.0), (box("9" * 150), 0.0),
    (box("9**9**9"), 0.0), (box("3*8\0"), 0.0), (box("3*8\ud800"), 0.0), (box("3*8") * 9999, 1.0),
]  # fmt: skip


def test_countdown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    countdown = example("countdown")
    for response, expected in COUNTDOWN_CASES:
        assert countdown.reward(response, COUNTDOWN) == expected, response[:60]
    assert not list(tmp_path.iterdir()) and COUNTDOWN["numbers"] == [3, 3, 8, 8]


def code(text: str) -> str:
    return f"so </think>\n```python\n{text}\n```"


EVEN_SUM = dict(tests=[["f([])", 0], ["f([2, 3])", 2], ["f([4, 6])", 10], ["f([1])", 0]])
PROGRAMS = [
    (code("def f(xs): return sum(x for x in xs if x % 2 == 0)"), 1.0),
    (code("def f(xs): return 1") + code("def f(xs): return sum(xs)"), 0.5),
    (code("def f(xs): return 10 // len(xs)"), 0.0),
    # An exception in the first test alone
    (code("def f(xs): return sum(x for x in xs if x % 2 == 0) if xs else 1 // 0"), 0.75),
    ("```python\ndef f(xs): return 0\n```", 0.5),  # no </think>: all counts
    ("```python\ndef f(xs): return 0\n``` </think> none", 0.0), ("def f(xs): return 0", 0.0),
    (code("def f(xs: return 0"), 0.0), (code("def g(xs): return 0"), 0.0), ("", 0.0),
    (code("def f(xs):\n    while True: pass"), 0.0),
    (code("def f(xs):\n    while True:\n        try:\n            while True: pass\n"
          "        except BaseException: pass"), 0.0),
    (code("import time\ndef f(xs): time.sleep(100)"), 0.0),
    (code("def f(xs): return [0] * 10**10"), 0.0), (code("def f(xs): return 10**10**10"), 0.0),
    (code("def f(xs): return f(xs)"), 0.0),
    (code("def f(xs):\n    open('executed', 'w').write('x')\n    return 0"), 0.0),
    (code("import os\nos.system('touch executed')\ndef f(xs): return 0"), 0.0),
    (code("import socket\nsocket.socket()\ndef f(xs): return 0"), 0.0),
    (code("import subprocess\nsubprocess.run(['touch', 'executed'])\ndef f(xs): return 0"), 0.0),
    (code("__import__('os').system('touch executed')\ndef f(xs): return 0"), 0.0),
    (code("class A:\n    def __eq__(self, other): return True\ndef f(xs): return A()"), 0.0),
    (code("import sys\nsys.exit()\ndef f(xs): return 0"), 0.0),
]  # fmt: skip


def test_programs(tmp_path, monkeypatch):
    pytest.importorskip("pydantic_monty")
    monkeypatch.chdir(tmp_path)
    programs = example("programs")
    programs.LIMITS["max_feed_duration_secs"] = 0.1
    for response, expected in PROGRAMS:
        assert programs.reward(response, EVEN_SUM) == expected, response[:80]
    assert not list(tmp_path.iterdir())


def test_without_monty_one_sentence_says_what_to_install(tmp_path):
    shutil.copy(ROOT / "examples" / "programs.py", tmp_path)
    (tmp_path / "pydantic_monty.py").write_text("raise ImportError('not installed')")
    with pytest.raises(ValueError, match="^--reward .*pip install pydantic-monty.*mend it$"):
        look_at(f"{tmp_path}/programs.py:reward")


def problems_of(name: str, tmp_path: Path, count: int = 1000) -> list[dict]:
    file = tmp_path / f"{name}.jsonl"
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), str(file), "3"]
    subprocess.run(command, check=True, timeout=60)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == count
    return rows


def test_the_sums_that_came_with_the_code():
    """They are the script's, right, and none of them is in both files."""
    sums = example("sums")
    seen = set()
    for name, count, seed in (("sums", 1000, 0), ("sums_test", 200, 1)):
        lines = (ROOT / "examples" / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert rows == sums.problems(count, seed)
        assert all(eval(row["problem"]) == int(row["answer"]) >= 0 for row in rows)
        assert seen.isdisjoint(new := {row["problem"] for row in rows}) and len(new) == count
        seen |= new


def test_problems_of_countdown_can_be_solved(tmp_path):
    """By brute force: every order, every operator, every way to bracket up to four numbers."""
    countdown = example("countdown")

    def reach(numbers: tuple) -> set:
        found = {numbers[0]} if len(numbers) == 1 else set()
        for i in range(1, len(numbers)):
            for a, b in itertools.product(reach(numbers[:i]), reach(numbers[i:])):
                found |= {a + b, a - b, a * b}
        return found

    for row in problems_of("countdown", tmp_path)[:40]:
        sizes = range(1, len(row["numbers"]) + 1)
        orders = (order for n in sizes for order in itertools.permutations(row["numbers"], n))
        assert any(row["target"] in reach(order) for order in orders), row
        assert all(str(n) in row["problem"] for n in [row["target"], *row["numbers"]])
        assert countdown.reward(box(str(row["numbers"][0])), row) in (0.1, 1.0)


def test_problems_of_programs_can_be_solved(tmp_path):
    pytest.importorskip("pydantic_monty")
    programs = example("programs")
    keeps = {"even": "x % 2 == 0", "odd": "x % 2 == 1", "above": "x > 9"}
    folds = {"sum of": "sum", "number of": "len", "list of": "list"}
    for row in problems_of("programs", tmp_path)[:20]:
        keep = next(text for word, text in keeps.items() if word in row["problem"])
        fold = next(text for word, text in folds.items() if word in row["problem"])
        solution = code(f"def f(xs): return {fold}([x for x in xs if {keep}])")
        assert programs.reward(solution, row) == 1.0, row["problem"]


# -------------------------------------------------------------------------------------- whole runs


@slow
def test_countdown_is_trained_on_and_a_changed_file_ends_the_resumed_run(base, tmp_path):
    problems_of("countdown", tmp_path)
    shutil.copy(ROOT / "examples" / "countdown.py", tmp_path)
    flags = ["--data", tmp_path / "countdown.jsonl", "--eval_data", tmp_path / "countdown.jsonl"]
    flags += ["--reward", tmp_path / "countdown.py:reward", "--max_prompt_tokens", 200]
    flags += ["--algo", "grpo", "--group_size", 4, "--grader_deadline", 60]
    rows = run(base, tmp_path / "a", *flags, "--steps", 2)
    assert [row["step"] for row in rows] == [0, 1, 2] and rows[2]["grader_kills"] == 0
    known = {"eval/reward", "eval/best@2", "eval/reward_ci"}
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[2])["seconds_eval"] > 0
    assert known < rows[0].keys() and "eval/pass@1" not in rows[0]
    assert not {"answer_rate", "format_rate", "grader_unparsable"} & rows[1].keys()
    two = run(base, tmp_path / "b", *flags, "--steps", 1, ranks=2)
    assert (two[0], two[1]["reward"]) == (rows[0], rows[1]["reward"])
    assert (tmp_path / "a" / "curve.png").exists()
    assert len(json.loads((tmp_path / "a" / "config.json").read_text())["sha256"]["reward"]) == 64
    with open(tmp_path / "countdown.py", "a") as file:
        file.write("# changed\n")
    process = start(base, tmp_path / "a", *flags, "--steps", 3)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1 and "--reward" in stderr and "Traceback" not in stderr
    assert metrics(tmp_path / "a") == rows


@slow
def test_programs_is_trained_on(base, tmp_path):
    pytest.importorskip("pydantic_monty")
    problems_of("programs", tmp_path)
    flags = ["--data", tmp_path / "programs.jsonl", "--max_prompt_tokens", 300]
    flags += ["--reward", ROOT / "examples" / "programs.py:reward", "--grader_deadline", 60]
    rows = run(base, tmp_path / "run", *flags, "--steps", 2)
    assert [row["step"] for row in rows] == [0, 1, 2] and rows[2]["grader_kills"] == 0
    assert rows[2]["reward"] >= 0 and math.isfinite(rows[2]["policy_loss"])
