"""benchmarks/vs_trl.py without TRL, whose environment takes minutes to make: what it tells the two
sides."""

import ast
import json
import subprocess
import sys

import pytest
from conftest import ROOT
from forks import clean_env

sys.path.insert(0, str(ROOT / "benchmarks"))
import vs_trl  # noqa: E402

import config  # noqa: E402
from data import load_problems  # noqa: E402
from metrics import read_metrics  # noqa: E402
from tiny import embedded_problems  # noqa: E402


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(vs_trl, "WORK", tmp_path)
    monkeypatch.setattr(vs_trl, "make_venv", lambda: "python")
    return tmp_path


def test_both_sides_of_smollm_are_told_the_same(work):
    job = vs_trl.Job("smollm", "folder", 3, "2e-6", updates=2, dtype="bfloat16", **vs_trl.SUMS)
    cfg = config.parse_config(
        vs_trl.ours(job, work / "out", 5, engine="hf", method=vs_trl.PLAIN)[2:]
    )
    words = vs_trl.trl(job, work / "out", 5)[2:]
    theirs = dict(zip(words[::2], words[1::2], strict=True))
    for flag, value in {
        "model": cfg.model, "data": cfg.data, "prompt": cfg.prompt, "steps": cfg.steps,
        "max_prompt_tokens": cfg.max_prompt_tokens, "max_tokens": cfg.max_tokens,
        "temperature": cfg.temperature, "dtype": cfg.dtype, "beta": cfg.kl_coef, "lr": cfg.lr,
        "prompts": cfg.prompts_per_step, "group_size": cfg.group_size, "seed": cfg.seed,
        "updates": cfg.prompts_per_step // cfg.mini_batch,
    }.items():  # fmt: skip
        assert type(value)(theirs[f"--{flag}"]) == value, flag
    recipe = config.parse_config(["--recipe", "smollm", "--algo", "grpo"])
    same = ("data", "prompt", "format", "max_prompt_tokens", "max_tokens", "temperature")
    assert all(getattr(cfg, name) == getattr(recipe, name) for name in same)
    assert (cfg.format, cfg.off_policy_ratio) == ("boxed", 0)


def test_trls_environment_has_what_its_side_imports():
    """trl_side.py runs this project's files there: PINNED, and what comes with it and with TRL."""
    files, seen = [ROOT / "benchmarks/trl_side.py"], set()
    while files:
        for node in ast.parse(files.pop().read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            new = {name.split(".")[0] for name in names} - seen - sys.stdlib_module_names
            seen |= new
            files += [file for name in new if (file := ROOT / f"{name}.py").exists()]
    brought = {"trl", "torch", "jinja2", "tokenizers", "safetensors", "tqdm", "mpmath"}
    assert {name for name in seen if not (ROOT / f"{name}.py").exists()} <= brought | {
        *vs_trl.PINNED
    }


@pytest.mark.slow
def test_canned_responses_are_trained_on(base, tokenizer, tmp_path):
    """No weights get to their engine, which remix.py would refuse."""
    data, canned = tmp_path / "problems.jsonl", tmp_path / "canned.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in embedded_problems("train")[:2]))
    problems, _ = load_problems(str(data), tokenizer, prompt="plain")
    boxes = (f" </think> \\boxed{{ {n} }}{tokenizer.eos_token}" for n in (problems[0].gold, "0"))
    tokens = [tokenizer(box)["input_ids"] for box in boxes]
    logp = [[-1.0] * len(ids) for ids in tokens]
    rows = [dict(prompt=problem.prompt_ids, tokens=tokens, logp=logp) for problem in problems]
    canned.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = f"--model {base} --data {data} --eval_data tiny --prompt plain --max_prompt_tokens 64 "
    flags += "--max_tokens 32 --algo grpo --prompts_per_step 2 --group_size 2 --mini_batch 2 "
    flags += "--engine hf --steps 2 --eval_every 0 --eval_limit 1 --eval_n 1 "
    command = [sys.executable, "benchmarks/vs_trl.py", "--canned", str(canned), *flags.split()]
    command += [*vs_trl.PLAIN.split(), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=clean_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in steps] == [0, 1, 2] and 0 < steps[1]["reward"] < 1
