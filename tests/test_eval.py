"""eval.py: estimators against brute force, the seeds, the command line with a fake sampler."""

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

import data
import eval as evaluation
import reward
from data import Problem
from eval import (
    average,
    decode,
    interval,
    majority,
    pass_at_k,
    reflection_rate,
    sample,
    summarize,
    table,
)

ROOT = Path(__file__).resolve().parents[1]


class Sample(NamedTuple):
    tokens: list[int]
    logp: list[float]
    finished: bool


class Characters:
    """A tokenizer with one token a character; 0 is eos."""

    eos_token_id, pad_token_id, bos_token, chat_template = 0, 0, None, None

    def decode(self, tokens, skip_special_tokens=False):
        return "".join(chr(t) if t else "<eos>" for t in tokens)

    def __call__(self, text, add_special_tokens=True):
        if isinstance(text, str):
            return {"input_ids": [ord(c) for c in text]}
        return {"input_ids": [[ord(c) for c in t] for t in text]}


class Oracle:
    """An engine that answers "a + b" rightly by chance, from the seed alone as the real ones do."""

    def __init__(self, right: float = 0.5):
        self.right, self.calls, self.closed = right, [], False

    def generate(self, prompts, n=1, *, seeds, temperature=1.0, top_p=1.0, max_tokens, **stops):
        self.calls.append((len(prompts), n, list(seeds), temperature, top_p, max_tokens))
        groups = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            a, b = Characters().decode(prompt).strip().split("+")
            group = []
            for j in range(n):
                rng = random.Random(seed + j)
                answer = int(a) + int(b) + (0 if rng.random() < self.right else rng.randint(1, 3))
                text = f"{'Wait, ' if rng.random() < 0.5 else ''}\\boxed{{{answer}}}"
                tokens = [ord(c) for c in text][:max_tokens]
                finished = len(tokens) < max_tokens
                tokens += [0] * finished
                group.append(Sample(tokens, [0.0] * len(tokens), finished))
            groups.append(group)
        return groups

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def grader():
    with reward.Grader(workers=1) as grader:
        yield grader


def sums(count: int) -> list[Problem]:
    return [Problem(i, f"{i}+{i}", str(2 * i), [ord(c) for c in f"{i}+{i}"]) for i in range(count)]


def record(answers: list[str | None], gold: str, **more) -> dict:
    rewards = [float(a == gold) for a in answers]
    responses = [f"\\boxed{{{a}}}" for a in answers]
    return {"id": 0, "answers": answers, "rewards": rewards, "responses": responses, **more}


def evaluated(engine, problems: list[Problem], grader, **options) -> tuple[dict, list[dict]]:
    options = {"temperature": 0.6, "top_p": 0.95, "seed": 0} | options
    records = sample(engine, Characters(), problems, grader, "boxed", **options)
    return summarize(records, grader), records


# --- estimators ---


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
        share = sum(any(d) for d in draws) / len(draws)
        assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_is_unbiased_where_the_plug_in_estimate_is_not():
    n, k, p = 8, 4, 0.3
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    mean = sum(w * pass_at_k(n, c, k) for c, w in enumerate(chance))
    assert mean == pytest.approx(truth, abs=1e-12)
    assert abs(sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chance)) - truth) > 0.01
    with pytest.raises(ValueError, match="n=4 c=1 k=5"):
        pass_at_k(4, 1, 5)


def test_interval_is_clustered_by_problem():
    # Two problems always right, two never: 64 samples, but what is known is four values 1, 1, 0, 0.
    half = 1.959964 * math.sqrt((1 / 3) / 4)
    assert interval([1.0, 1.0, 0.0, 0.0]) == pytest.approx(half, rel=1e-6)
    assert interval([0.5] * 10) == 0
    assert math.isnan(interval([1.0]))


def test_interval_covers_the_truth_19_times_of_20():
    rng = random.Random(0)
    inside = 0
    for _ in range(2000):  # every problem has its own difficulty, uniform: the mean is 0.5
        chances = (rng.random() for _ in range(60))
        rates = [sum(rng.random() < p for _ in range(4)) / 4 for p in chances]
        inside += abs(sum(rates) / 60 - 0.5) <= interval(rates)
    assert 0.93 < inside / 2000 < 0.965


@pytest.mark.parametrize(
    "right, wrong, value",
    [
        (3, [2, 1], 1),
        (2, [3], 0),
        (2, [2], 1 / 2),
        (2, [2, 2, 1], 1 / 3),
        (0, [], 0),
        (0, [1], 0),
        (1, [], 1),
    ],
)
def test_majority(right, wrong, value):
    assert majority(right, wrong) == pytest.approx(value)


def test_maj_merges_wrong_answers_that_are_equal_as_mathematics(grader):
    answers = ["5", "5", "0.5", "\\frac{1}{2}", "1/2", None, None, "7"]
    metrics = summarize([record(answers, "5")], grader)
    assert metrics["maj@8"] == 0.0  # one half has three votes, the right 5 two, no answer none
    assert summarize([record(["5", "5", "0.5", "0.25"], "5")], grader)["maj@4"] == 1.0
    assert summarize([record(["5", "3", None, None], "5")], grader)["maj@4"] == 0.5
    assert summarize([record([None, None], "5")], grader)["maj@2"] == 0.0


def test_summarize(grader):
    records = [
        record(["1"] * 4, "1", lengths=[10, 20, 30, 40], finished=[True] * 4),
        record(
            ["2", "1", "1", "1"], "2", lengths=[0, 0, 0, 100], finished=[True, True, True, False]
        ),
        record([None] * 4, "3", lengths=[1] * 4, finished=[False] * 4),
    ]
    records[0]["responses"][0] = "Hmm. \\boxed{1}"
    metrics = summarize(records, grader)
    assert metrics["problems"] == 3 and metrics["n"] == 4
    assert metrics["pass@1"] == pytest.approx((1 + 1 / 4 + 0) / 3)
    assert metrics["pass@2"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert metrics["pass@4"] == pytest.approx(2 / 3)
    assert "pass@8" not in metrics
    assert metrics["maj@4"] == pytest.approx(1 / 3)
    assert metrics["pass@1_ci"] == pytest.approx(interval([1, 0.25, 0]))
    assert metrics["response_length"] == pytest.approx((100 + 100 + 4) / 12)
    assert metrics["truncation_rate"] == pytest.approx(5 / 12)
    assert metrics["reflection_rate"] == pytest.approx(1 / 12)
    one = summarize([record(["1"], "1")], grader)
    assert one["pass@1"] == 1 and not any(key.startswith("maj") for key in one)


@pytest.mark.parametrize(
    "text, reflects",
    [
        ("7 + 4 = 1 ; Wait , check : 7 + 4 = 11", True),  # the embedded task's
        ("WAIT, that is wrong", True),
        ("Hmm", True),
        ("Let me check: 3", True),
        ("let  me\ncheck it", True),
        ("I should double check this", True),
        ("we double-check", True),
        ("Alternatively, use", True),
        ("However, n is odd", True),
        ("To verify, plug in", True),
        ("let me re-evaluate", True),
        ("a waiter waits at the check-in, waiting", False),
        ("I guess 21 </think> \\boxed{ 21 }", False),
        ("the verified checksum", False),
        ("", False),
    ],
)
def test_reflection_phrases(text, reflects):
    assert reflection_rate([text]) == float(reflects)


def test_reflection_rate_is_a_share():
    assert reflection_rate(["wait wait", "hmm", "no", "none"]) == 0.5
    assert reflection_rate([]) == 0.0


def test_decode_drops_only_the_last_eos():
    assert decode(Characters(), [104, 105, 0]) == "hi"
    assert decode(Characters(), [104, 105]) == "hi"
    assert decode(Characters(), [104, 0, 105]) == "h<eos>i"
    assert decode(Characters(), []) == ""


# --- sampling ---


def test_sample_and_summarize(grader):
    engine = Oracle(0.7)
    metrics, records = evaluated(engine, sums(40), grader, n=8, max_tokens=50, seed=3)
    right = sum(x for r in records for x in r["rewards"]) / 320
    assert metrics["pass@1"] == pytest.approx(right) and 0.55 < right < 0.85
    assert metrics["pass@1"] < metrics["pass@2"] < metrics["pass@8"]
    assert 0.3 < metrics["reflection_rate"] < 0.7 and metrics["truncation_rate"] == 0
    assert engine.calls[0][3:] == (0.6, 0.95, 50)
    assert [r["id"] for r in records] == list(range(40))
    assert all(len(r["responses"]) == len(r["lengths"]) == len(r["finished"]) == 8 for r in records)
    assert records[0]["lengths"][0] == len(records[0]["responses"][0]) + 1  # eos counts


def test_truncated_responses_are_counted_and_wrong(grader):
    metrics, _ = evaluated(Oracle(1.0), sums(10), grader, n=2, max_tokens=3)
    assert metrics["truncation_rate"] == 1 and metrics["pass@1"] == 0
    assert metrics["response_length"] == 3


def test_samples_depend_on_problem_and_seed_but_not_on_the_batch(grader):
    options = {"n": 4, "temperature": 0.6, "top_p": 0.95, "max_tokens": 50}
    problems = sums(12)
    whole = sample(Oracle(), Characters(), problems, grader, "boxed", **options, seed=0)
    parts = [
        r
        for chunk in (problems[7:], problems[:7][::-1])
        for r in sample(Oracle(), Characters(), chunk, grader, "boxed", **options, seed=0)
    ]
    assert sorted(parts, key=lambda r: r["id"]) == whole
    other = sample(Oracle(), Characters(), problems, grader, "boxed", **options, seed=1)
    assert [r["responses"] for r in other] != [r["responses"] for r in whole]


def test_seeds_of_problems_never_overlap(grader):
    seeds = []
    for seed in (0, 1):
        engine = Oracle()
        evaluated(engine, sums(50), grader, n=16, max_tokens=20, seed=seed)
        seeds += [s + j for s in engine.calls[0][2] for j in range(16)]
    assert len(set(seeds)) == 2 * 50 * 16 and max(seeds) < 2**63


def test_no_problems_give_no_records(grader):
    options = {"n": 4, "temperature": 0.6, "top_p": 0.95, "max_tokens": 50, "seed": 0}
    assert sample(Oracle(), Characters(), [], grader, "boxed", **options) == []


def test_D10_greedy_samples_are_one(grader):
    engine = Oracle(1.0)
    metrics, records = evaluated(engine, sums(5), grader, n=16, temperature=0, max_tokens=50)
    assert engine.calls[0][1] == 1 and [len(r["responses"]) for r in records] == [1] * 5
    assert metrics["n"] == 1 and not any(k.startswith(("pass@2", "maj")) for k in metrics)


# --- right answers, right formats, one problem: D11, D12 ---


@pytest.mark.parametrize(
    "response, format, passes, right, formatted",
    [
        (r"\boxed{5}", "r1", 0, 1, 0),  # no </think>
        (r"so </think> \boxed{5}", "r1", 1, 1, 1),
        (r"so </think> \boxed{6}", "r1", 0, 0, 1),
        (r"\boxed{6}", "r1", 0, 0, 0),
        (r"a </think> b </think> \boxed{5}", "r1", 0, 1, 0),
        (r"\boxed{5} </think> it is five", "boxed", 0, 1, 0),
        (r"</think> <answer>5</answer>", "boxed", 0, 1, 0),
        (r"</think> <answer>\boxed{5}</answer>", "boxed", 1, 1, 1),
        (r"\boxed{5}", "tags", 0, 1, 0),
        ("x </think> <answer>5</answer> more", "tags", 0, 1, 0),
        (r"x </think> <answer>6</answer> \boxed{5", "tags", 0, 0, 0),
        ("five", "boxed", 0, 0, 0),
    ],
)
def test_D11_answer_and_format_are_told_apart(grader, response, format, passes, right, formatted):
    problems = [Problem(0, "2+3", "5", [])]
    record = evaluation.grade(problems, [[response]], grader, format)[0]
    metrics = summarize([record], grader)
    found = [metrics[name] for name in ("pass@1", "answer_rate", "format_rate")]
    assert found == [passes, right, formatted]


def test_D11_rates_weigh_problems_as_pass_at_1_does(grader):
    problems = sums(2)
    responses = [[r"\boxed{0}"] * 3, [r"</think> \boxed{2}"]]
    metrics = summarize(evaluation.grade(problems, responses, grader, "r1"), grader)
    assert (metrics["pass@1"], metrics["answer_rate"], metrics["format_rate"]) == (0.5, 1, 0.5)


def test_D11_the_warning_is_only_where_the_format_alone_decides():
    warning = evaluation.format_warning({"pass@1": 0.0, "answer_rate": 0.8}, "r1")
    assert "80.0% of the responses have the right answer" in warning and "</think>" in warning
    for passed, right in ((0.0, 0.0), (0.5, 0.6), (1.0, 1.0)):
        assert not evaluation.format_warning({"pass@1": passed, "answer_rate": right}, "r1")
    assert not evaluation.format_warning({"pass@1": 0.0}, "r1")  # of an older file


def test_D12_one_problem_has_no_interval(grader):
    one = [record(["1", "2"], "1")]
    metrics = summarize(one, grader)
    assert metrics["pass@1"] == 0.5 and not any(key.endswith("_ci") for key in metrics)
    assert "nan" not in table({"tiny": metrics})
    both = table({"aime24": metrics, "math500": summarize(one * 3, grader)})
    assert "nan" not in both and "–" in both


# --- table and average ---


def test_average_is_over_sets_and_intervals_add_in_quadrature():
    sets = {
        "aime24": {"problems": 30, "n": 4, "pass@1": 0.2, "pass@1_ci": 0.03, "maj@4": 0.3},
        "math500": {"problems": 500, "n": 4, "pass@1": 0.8, "pass@1_ci": 0.04},
    }
    mean = average(sets)
    assert mean == pytest.approx({"problems": 530, "pass@1": 0.5, "pass@1_ci": 0.025})


def test_table_is_the_papers():
    names = ["aime24", "amc23", "math500", "minerva", "olympiadbench"]
    base = [0.2833, 0.6250, 0.8280, 0.2647, 0.4326]
    sets = {
        s: {"problems": 9, "n": 1, "pass@1": v, "response_length": 1234.5}
        for s, v in zip(names, base, strict=True)
    }
    lines = [line.strip("|").split("|") for line in table(sets).splitlines()]
    rows = [[cell.strip() for cell in line] for line in lines]
    assert rows[0] == ["", "AIME24", "AMC23", "MATH500", "Minerva", "OlympiadBench", "Avg."]
    assert ["pass@1 [%]", "28.33", "62.50", "82.80", "26.47", "43.26", "48.67"] in rows
    assert ["length [tokens]"] + ["1234"] * 6 in rows
    assert "Avg." not in table({"tiny": sets["aime24"]})


# --- command line ---


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The command line in a folder with data, a model folder, and a sampler that needs no model."""
    rows = [{"problem": f"{i}+{i}", "answer": str(2 * i)} for i in range(10)]
    (tmp_path / "sums.json").write_text(json.dumps(rows))
    (tmp_path / "prompt.txt").write_text("{problem}")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "bare").mkdir()  # a model folder without weights
    (tmp_path / "bare" / "config.json").write_text("{}")
    (tmp_path / "model.json").mkdir()
    engine = Oracle()
    engine.made = 0

    def make_engine(kind, model, *, max_prompt_tokens, max_tokens, dtype, **how):
        assert how == {"gpu_memory": 0.9, "tensor_parallel": 1}
        engine.made += 1
        engine.options = {"max_prompt_tokens": max_prompt_tokens, "max_tokens": max_tokens}
        return engine

    fake_rollout = type(sys)("rollout")
    fake_rollout.make_engine = make_engine
    monkeypatch.setitem(sys.modules, "rollout", fake_rollout)
    monkeypatch.setattr(evaluation, "load_tokenizer", lambda model: (Characters(), 1000))
    for check in ("check_model", "check_ids"):
        monkeypatch.setattr(evaluation.data, check, lambda *args: None)
    monkeypatch.chdir(tmp_path)
    return engine


FIVE = "aime24,amc,math500,minerva,olympiadbench"
DATA = "--model model --data sums.json --prompt prompt.txt "
BASE = f"{DATA} --n 4 --chunk 3 --workers 1 --out r/out.json".split()


def refused(capsys, *argv) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        evaluation.main(list(argv))
    assert exit.value.code == 2
    return capsys.readouterr().err.strip()


def test_run_writes_table_json_and_samples(fake, capsys):
    evaluation.main(BASE)
    result = json.loads(Path("r/out.json").read_text())
    metrics = result["sets"]["sums.json"]
    lines = [json.loads(line) for line in Path("r/out.samples.jsonl").read_text().splitlines()]
    assert len(lines) == 11 and lines[0]["config"] == result["config"] and "average" not in result
    assert metrics["problems"] == 10 and metrics["n"] == 4
    assert metrics["pass@1"] == pytest.approx(sum(x for r in lines[1:] for x in r["rewards"]) / 40)
    assert result["config"]["temperature"] == 0.6
    assert result["config"]["max_tokens"] == 500  # half the context
    assert f"{100 * metrics['pass@1']:.2f}" in capsys.readouterr().out
    assert fake.closed and [call[0] for call in fake.calls] == [3, 3, 3, 1]
    assert fake.options["max_prompt_tokens"] == 3 and fake.options["max_tokens"] == 500


@pytest.mark.slow
def test_same_command_continues_after_a_kill_and_gives_the_same(fake):
    evaluation.main(BASE)
    whole, result = Path("r/out.samples.jsonl").read_text(), Path("r/out.json").read_text()
    lines = whole.splitlines(keepends=True)
    Path("r/out.json").unlink()
    killed = "".join(lines[:5]) + lines[5][:17]  # while writing a line
    Path("r/out.samples.jsonl").write_text(killed)
    fake.calls.clear()
    evaluation.main(BASE)
    assert sum(call[0] for call in fake.calls) == 6  # the four complete ones are not sampled again
    assert Path("r/out.samples.jsonl").read_text() == whole
    assert Path("r/out.json").read_text() == result
    made = fake.made
    evaluation.main(BASE)
    assert fake.made == made and Path("r/out.json").read_text() == result  # no engine at all


def test_a_kill_before_the_first_line_is_complete(fake):
    Path("r").mkdir()
    Path("r/out.samples.jsonl").write_text('{"config": {"mod')
    evaluation.main(BASE)
    assert json.loads(Path("r/out.samples.jsonl").read_text().splitlines()[0])["config"]["n"] == 4


@pytest.mark.parametrize("keep_json", [True, False])
@pytest.mark.parametrize(
    "change, named",
    [
        (["--n", "8"], "--n (there 4, now 8)"),
        (["--seed", "1"], "--seed (there 0, now 1)"),
        (["--temperature", "1"], "--temperature (there 0.6, now 1.0)"),
        (["--max_tokens", "99"], "--max_tokens (there 500, now 99)"),
        (["--limit", "2"], "--limit (there None, now 2)"),
        (["--format", "tags"], "--format (there boxed, now tags)"),
    ],
)
def test_another_config_is_refused_with_the_flag(fake, capsys, change, named, keep_json):
    evaluation.main(BASE)
    if not keep_json:
        Path("r/out.json").unlink()
    before = Path("r/out.samples.jsonl").read_text()
    message = refused(capsys, *BASE, *change)
    assert message.startswith("eval.py: --out r/out.json")
    assert named in message and "\n" not in message
    assert Path("r/out.samples.jsonl").read_text() == before


def test_changed_content_behind_the_same_flags_is_refused(fake, capsys):
    evaluation.main(BASE)
    os.utime("model/model.safetensors", ns=(1, 1))
    assert "the weights in --model" in refused(capsys, *BASE)
    evaluation.main([*BASE, "--out", "r/other.json"])
    rows = json.loads(Path("sums.json").read_text())
    Path("sums.json").write_text(json.dumps(rows[::-1]))
    assert "the content of --data or --prompt" in refused(capsys, *BASE, "--out", "r/other.json")


def test_prompts_beyond_the_context_count_as_wrong(fake, capsys):
    rows = [{"problem": "1+1", "answer": "2"}, {"problem": "1+1" + " " * 980 + ".", "answer": "2"}]
    Path("sums.json").write_text(json.dumps(rows))
    evaluation.main([*BASE, "--max_tokens", "50"])
    assert "1 prompts do not fit" in capsys.readouterr().out
    lines = [json.loads(line) for line in Path("r/out.samples.jsonl").read_text().splitlines()[1:]]
    lost = next(r for r in lines if r["id"] == 1)
    assert lost["rewards"] == [0] * 4 and lost["finished"] == [False] * 4
    assert lost["responses"] == [""] * 4
    assert json.loads(Path("r/out.json").read_text())["sets"]["sums.json"]["problems"] == 2
    assert fake.options["max_prompt_tokens"] == 3


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(base, tmp_path):
    """A last chunk smaller than the ranks' share, and one with a rank out of work, are in it."""
    flags = f"--model {base} --data tiny --limit 9 --n 2 --max_tokens 40 --chunk 2 --engine hf"
    of_the_group = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {k: v for k, v in os.environ.items() if k not in of_the_group}
    # without the -- torchrun takes --n for its own
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2 --".split()
    run = {"cwd": ROOT, "env": env, "capture_output": True, "text": True, "timeout": 300}
    for name, how in (("one", []), ("two", launch)):
        out = str(tmp_path / f"{name}.json")
        command = [sys.executable, *how, "eval.py", *flags.split(), "--out", out]
        done = subprocess.run(command, **run)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("pass@1 [%]") == 1  # rank 0 speaks
    for end in ("json", "samples.jsonl"):
        assert (tmp_path / f"one.{end}").read_text() == (tmp_path / f"two.{end}").read_text()


@pytest.mark.parametrize(
    "argv, message",
    [
        ("", "--model: not given"),
        ("--model nosuch/folder/here", "--model nosuch/folder/here: there is no model folder"),
        ("--model model --n 0", "--n 0: must be at least 1"),
        ("--model model --limit 0", "--limit 0: must be at least 1"),
        ("--model model --seed 10000000000000", "--seed 10000000000000: is too large"),
        ("--model model --top_p 0", "--top_p 0.0"),
        (f"{DATA} --temperature 0 --n 16", "--n 16: with --temperature 0 all are the same; use 1"),
        (f"{DATA} --data nosuch.json", "--data nosuch.json: there is no such file"),
        (f"{DATA} --prompt nosuch", "--prompt nosuch: neither"),
        (f"{DATA} --answer_field z", "--answer_field z: no row"),
        (f"{DATA} --data aime24 --data_dir nowhere", "--data_dir nowhere: there is no such folder"),
        (f"{DATA} --max_tokens 1000", "--max_tokens 1000: the model's whole"),
        (f"{DATA} --out x.txt", "--out x.txt: must end in .json"),
        ("--samples nosuch.jsonl", "--samples nosuch.jsonl: there is no such file"),
        (f"{DATA} --tensor_parallel 2", "--tensor_parallel 2: does not divide the 1 ranks"),
        (f"{DATA} --temperature inf", "--temperature inf: must be a number"),
        (f"{DATA} --top_p nan", "--top_p nan: must be above 0"),
        (f"{DATA} --data_dir .", "--data_dir .: is for the benchmarks, of which --data sums.json"),
        (f"{DATA} --data sums.json,", "a name is empty"),
        (f"{DATA} --out sums.json/x.json", "--out sums.json/x.json: cannot be written there"),
        (f"{DATA} --out model.json", "--out model.json: exists and is no result"),
        (f"{DATA} --model bare", "--model bare: the folder holds no weights"),
        (f"{DATA} --prompt model", "--prompt model: neither"),
    ],
)
def test_bad_input_is_one_sentence_before_any_model(fake, capsys, monkeypatch, argv, message):
    if "nosuch/folder" in argv:
        monkeypatch.undo()
    error = refused(capsys, *argv.split())
    assert error.startswith("eval.py: ") and message in error and "\n" not in error
    assert fake.made == 0


def test_D10_greedy_needs_no_n(fake, capsys):
    evaluation.main(f"{DATA} --temperature 0 --workers 1 --out g.json".split())
    assert [call[1] for call in fake.calls] == [1]
    assert json.loads(Path("g.json").read_text())["config"]["n"] == 1
    assert "maj" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["my notes", '{"set": "a", "id": 1}', '{"config": {}}\n[1]', "7\n"]
)
def test_own_foreign_samples_beside_out_are_refused_and_kept(fake, capsys, line):
    Path("r").mkdir()
    Path("r/out.samples.jsonl").write_text(line)
    error = refused(capsys, *BASE)
    assert "--out r/out.json: " in error and "\n" not in error
    assert Path("r/out.samples.jsonl").read_text() == line


def test_the_papers_setting_on_the_five_sets_by_one_command(fake, capsys):
    """DeepScaleR's file names and sizes; the set's own flags, greedy, boxed."""
    sets = [data.BENCHMARKS[name] for name in FIVE.split(",")]
    for size, bench in zip((30, 83, 500, 272, 675), sets, strict=True):
        rows = [{"problem": f"{i}+1", "answer": i + 1, "solution": "long"} for i in range(size)]
        Path(bench.file).write_text(json.dumps(rows))
    flags = "--temperature 0 --n 1 --format boxed --max_tokens 64 --limit 4 --out five.json"
    evaluation.main(f"{DATA} --data {FIVE} --data_dir . {flags} --workers 1".split())
    result = json.loads(Path("five.json").read_text())
    assert result["average"]["problems"] == 20 and list(result["sets"]) == FIVE.split(",")
    out = capsys.readouterr().out
    head = "| | AIME24 | AMC | MATH500 | Minerva | OlympiadBench | Avg. |"
    assert head in "\n".join(" ".join(line.split()) for line in out.splitlines())


def test_unknown_and_abbreviated_flags_are_errors(fake, capsys):
    assert "--samplez" in refused(capsys, *BASE, "--samplez", "x")
    assert "--temp" in refused(capsys, *BASE, "--temp", "1")


# --- responses of another system ---


def samples(rows: list[dict]) -> list[str]:
    Path("theirs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return "--samples theirs.jsonl --data sums.json --format boxed --workers 1 --out s.json".split()


def test_samples_by_id_by_text_and_over_several_rows(fake):
    rows = [{"id": i, "response": f"\\boxed{{{2 * i}}}"} for i in range(5)]
    for i in range(5, 10):
        rows.append({"problem": f"{i}+{i}", "responses": [f"\\boxed{{{2 * i}}}", "no idea"]})
    rows += [{"id": 0, "response": "\\boxed{1}"}]
    evaluation.main(samples(rows))
    metrics = json.loads(Path("s.json").read_text())["sets"]["sums.json"]
    assert metrics["pass@1"] == pytest.approx((4 * 1 + 0.5 * 6) / 10) and metrics["n"] == 1
    assert "response_length" not in metrics and "truncation_rate" not in metrics and fake.made == 0
    evaluation.main([*samples(rows), "--model", "model", "--out", "t.json"])  # its tokenizer counts
    assert json.loads(Path("t.json").read_text())["sets"]["sums.json"]["response_length"] > 5


def test_own_samples_grade_to_the_same_numbers(fake):
    evaluation.main(BASE)
    own = json.loads(Path("r/out.json").read_text())["sets"]["sums.json"]
    flags = "--data sums.json --format boxed --workers 1 --out s.json"
    evaluation.main(f"--samples r/out.samples.jsonl {flags}".split())
    again = json.loads(Path("s.json").read_text())["sets"]["sums.json"]
    assert again == {key: value for key, value in own.items() if key != "response_length"}


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"id": 0, "response": "x"}], "9 of 10 problems have no response (first: sums.json id 1)"),
        ([{"id": 0, "text": "x"}], 'row 1 has no text in "response" or "responses"'),
        ([{"response": "x"}], "row 1 does not say its problem"),
        ([{"id": i, "response": None} for i in range(10)], "row 1 has no text"),
        ([{"id": [0], "response": "x"}], 'row 1 has a list where "id" or "set" is one value'),
        ([{"id": 0, "set": {}, "response": "x"}], 'row 1 has a list where "id" or "set" is one'),
        ([{"id": 0, "response": "x", "finished": True}], 'one value where "finished" is a list'),
    ],
)
def test_bad_samples(fake, capsys, rows, message):
    error = refused(capsys, *samples(rows))
    assert message in error and "\n" not in error


def test_a_text_in_two_sets_counts_in_both(fake):
    Path("more.json").write_text(Path("sums.json").read_text())
    rows = [{"problem": f"{i}+{i}", "response": f"\\boxed{{{2 * i}}}"} for i in range(10)]
    evaluation.main([*samples(rows), "--data", "sums.json,more.json"])
    result = json.loads(Path("s.json").read_text())
    assert [m["pass@1"] for m in result["sets"].values()] == [1, 1]
    assert result["average"]["problems"] == 20


def test_an_unreadable_samples_file_or_foreign_out_is_one_sentence(fake, capsys):
    command = samples([])
    Path("theirs.jsonl").write_text("{broken")
    assert "--samples theirs.jsonl: neither a JSON list nor JSON lines" in refused(capsys, *command)
    Path("s.json").write_text("[1, 2]")
    assert "--out s.json: exists and is no result" in refused(capsys, *command)


def test_D11_right_boxes_without_think_are_warned_of(fake, capsys):
    rows = [{"id": i, "response": f"\\boxed{{{2 * i}}}"} for i in range(10)]
    evaluation.main([*samples(rows), "--format", "r1"])
    metrics = json.loads(Path("s.json").read_text())["sets"]["sums.json"]
    found = [metrics[name] for name in ("pass@1", "answer_rate", "format_rate")]
    assert found == [0, 1, 0]
    lines = " ".join(capsys.readouterr().out.split())
    assert "sums.json: warning: the format decides: 100.0% of the responses" in lines
    assert "| answer right [%] | 100.00 |" in lines and "| format right [%] | 0.00 |" in lines


def test_D4_half_a_character_in_a_response_is_graded(fake):
    rows = [{"id": i, "response": f"\ud800 \\boxed{{{2 * i}}}"} for i in range(10)]
    evaluation.main(samples(rows))
    assert json.loads(Path("s.json").read_text())["sets"]["sums.json"]["pass@1"] == 1


def test_strange_rows_are_left_out_with_a_warning(fake, capsys):
    rows = [{"id": i, "response": f"\\boxed{{{2 * i}}}"} for i in range(12)]
    rows.append({"problem": "?", "response": "x"})
    evaluation.main(samples(rows))
    assert "3 rows of --samples theirs.jsonl belong to no problem" in capsys.readouterr().out
    assert json.loads(Path("s.json").read_text())["sets"]["sums.json"]["pass@1"] == 1


# --- the real thing: a model, an engine, SIGKILL ---


@pytest.mark.slow
def test_real_entry_point_survives_sigkill(tmp_path):
    """A random model through the hf engine; killed in between, the same command completes it."""
    torch = pytest.importorskip("torch")
    from test_data import make_tokenizer
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "model")
    rows = [{"problem": f"{i}+{i}", "answer": str(2 * i)} for i in range(12)]
    (tmp_path / "sums.json").write_text(json.dumps(rows))
    flags = "--engine hf --data sums.json --n 2 --max_tokens 40 --chunk 1 --workers 1".split()
    command = [sys.executable, str(ROOT / "eval.py"), "--model", "model", *flags, "--out"]
    where = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}}
    run = {"check": True, "capture_output": True, "timeout": 120, **where}
    subprocess.run([*command, "whole.json"], **run)
    process = subprocess.Popen([*command, "killed.json"], stderr=subprocess.DEVNULL, **where)
    partial = tmp_path / "killed.samples.jsonl"
    deadline = time.time() + 100
    while time.time() < deadline:
        if partial.exists() and partial.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= partial.read_bytes().count(b"\n") < 13 and not (tmp_path / "killed.json").exists()
    subprocess.run([*command, "killed.json"], **run)
    assert partial.read_bytes() == (tmp_path / "whole.samples.jsonl").read_bytes()
    assert (tmp_path / "killed.json").read_text() == (tmp_path / "whole.json").read_text()


# --- the real files, where there are some ---

REAL = os.environ.get("REMIX_SHARED")


@pytest.mark.skipif(not REAL, reason="REMIX_SHARED names no folder with data/")
def test_golds_as_samples_reach_100_percent(tmp_path, monkeypatch):
    """Every gold of the five sets as an answer; and those of the next problem, which must fail."""
    monkeypatch.chdir(tmp_path)
    names = "aime24,amc,math500,minerva,olympiadbench"
    right, wrong = [], []
    for name in names.split(","):
        problems, _ = data.load_problems(name, None, data_dir=f"{REAL}/data")
        texts = [p.gold if isinstance(p.gold, str) else p.gold.answers[0] for p in problems]
        for p, own, other in zip(problems, texts, texts[1:] + texts[:1], strict=True):
            right.append({"set": name, "id": p.id, "response": f"\\boxed{{{own}}}"})
            wrong.append({"set": name, "id": p.id, "response": f"\\boxed{{{other}}}"})
    for rows, low, high in ((right, 1, 1), (wrong, 0, 0.05)):
        Path("s.jsonl").write_text("\n".join(map(json.dumps, rows)))
        Path("s.json").unlink(missing_ok=True)
        flags = f"--data {names} --data_dir {REAL}/data --format boxed --out s.json"
        evaluation.main(f"--samples s.jsonl {flags}".split())
        result = json.loads(Path("s.json").read_text())
        assert all(low <= m["pass@1"] <= high for m in result["sets"].values()), result
        assert result["average"]["problems"] == 1560
