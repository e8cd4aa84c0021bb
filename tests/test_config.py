"""Flags, recipes and their refusals: one sentence that names the flag, the value and what to do."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from conftest import ROOT

import config
from buffer import fresh_prompts

BIG = (
    "--gradient_checkpointing --behaviour_logp trainer --engine_weight tis {}"
    "--eval_data HuggingFaceH4/MATH-500 --eval_every 25 --eval_limit 200 --save_every 5 "
    "--dtype bfloat16"
)
TINY = (
    "--tokens_per_micro_batch 2048 --max_prompt_tokens 64 --max_tokens 128 "
    "--kl_convex schedule:4,2 --reincarnation_step 12 --lr 0.0003 --critic_lr 0.001 "
    "--eval_every 2 --eval_n 2"
)
MODEL = "--model deepseek-ai/DeepSeek-R1-Distill-Qwen-"
COMMANDS = {
    "tiny": "--model tiny:mending=0 --data tiny --prompt plain --steps 24 --prompts_per_step 128 "
    f"--mini_batch 32 {TINY}",
    "tiny --algo grpo": "--model tiny:mending=0 --data tiny --prompt plain --steps 24 --algo grpo "
    f"--prompts_per_step 16 --group_size 8 --mini_batch 4 {TINY}",
    "1.5b": f"--reincarnation_step 100 {BIG.format('--gpu_memory 0.3 ')}",
    "1.5B --algo grpo": f"--steps 200 --algo grpo {BIG.format('--gpu_memory 0.3 ')}",
    "7b": f"{MODEL}7B --steps 75 --reincarnation_step 100 {BIG.format('')}",
    "7b --algo grpo": f"{MODEL}7B --steps 200 --algo grpo {BIG.format('')}",
    "1.5b-lora": f"--reincarnation_step 100 --lr 1e-05 --critic_lr 0.0001 --lora_rank 32 "
    f"{BIG.format('')}",
    "7B-LoRA --algo grpo": f"{MODEL}7B --steps 200 --algo grpo --lr 1e-05 --critic_lr 0.0001 "
    f"--lora_rank 32 {BIG.format('')}",
    "32b --lr 1e-5": f"{MODEL}32B --steps 200 --lr 1e-05 --gradient_checkpointing --shard all "
    f"--behaviour_logp trainer --tensor_parallel 4 {BIG.format('').split('trainer ')[1]}",
}


@pytest.mark.parametrize("recipe", COMMANDS)
def test_a_recipe_is_the_command_it_stands_for(recipe):
    """Pinned word for word: what a recipe does must not change unseen."""
    cfg = config.parse_flags(["--recipe", *recipe.split()])
    flags = f"remix.py {COMMANDS[recipe]}".split(" --")
    assert sorted(config.command(cfg).split(" --")) == sorted(flags)
    if "bfloat16" in COMMANDS[recipe] and not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--recipe .*: is for GPUs, .* say --dtype float32"):
            config.check_config(config.resolve(cfg))
        cfg = config.parse_flags(["--recipe", *recipe.split(), "--dtype", "float32"])
    there = cfg.tensor_parallel == 1 or find_spec("vllm")
    if there and (not cfg.lora_rank or find_spec("peft")):
        config.check_config(config.resolve(cfg))


def test_a_recipes_benchmark_is_not_for_a_reward_of_ones_own():
    flags = ["--recipe", "1.5b", "--reward", "mine.py:reward"]
    assert config.parse_flags(flags).eval_data == ""
    assert config.parse_flags([*flags, "--eval_data", "mine.jsonl"]).eval_data == "mine.jsonl"
    assert config.parse_flags(flags[:2]).eval_data


def test_A7_no_recipe_defines_the_samplers_error_away():
    """The trainer's own log-probs in place of the engine's need a weight for the gap."""
    for recipe in config.RECIPES:
        for algo in ("ppo", "grpo"):
            cfg = config.parse_flags(["--recipe", recipe, "--algo", algo])
            assert cfg.engine_weight == "tis" or cfg.behaviour_logp == "engine", recipe


@pytest.mark.parametrize(
    "recipe, rollouts",
    [
        ("1.5b", 79_360),  # T = 100, 350 steps
        ("1.5b --steps 500", 117_760),
        ("1.5b --reincarnation_step 50 --steps 100", 20_480),
        ("1.5b --algo grpo", 368_640),
        ("1.5b --algo grpo --steps 100", 163_840),
        ("7b", 11_520),  # all of them before reincarnation
    ],
)
def test_recipes_sample_what_the_paper_says(recipe, rollouts):
    cfg = config.parse_config(["--recipe", *recipe.split()])
    prompts = 0
    for step in range(1, cfg.steps + 1):
        mixing = step <= cfg.reincarnation_step
        p = cfg.off_policy_ratio if mixing else 0.0
        prompts += fresh_prompts(step, cfg.prompts_per_step, p)
    assert prompts * cfg.group_size == rollouts


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="--recipe 13b: there is none; take tiny, smollm, 1.5b, 7b, 32b"
    ):
        config.parse_flags(["--recipe", "13b"])


def test_the_run_folder_is_named_by_what_runs():
    assert config.parse_config(["--recipe", "tiny", "--seed", "3"]).out == "out/tiny-ppo-seed3"
    assert config.parse_config(["--algo", "grpo"]).out == "out/remix-grpo-seed0"
    assert config.parse_config(["--out", "a/b"]).out == "a/b"


def test_every_flag_has_its_comment_as_help():
    command = [sys.executable, "config.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    texts = {part.split()[0].strip(","): part for part in done.stdout.split("│ --")[1:]}
    for f in config.fields(config.Config):
        assert len(texts[f.name].replace("│", "").split()) > 5, f.name


def test_e10_a_slip_in_a_flag_is_answered_before_torch_is_imported():
    """Friction 18: one line with the flag that was meant, from one rank of a node."""
    command = [sys.executable, "-X", "importtime", "remix.py", "--kl_estimater", "k3"]
    for rank, lines in (("0", 1), ("1", 0)):
        env = os.environ | dict(LOCAL_RANK=rank)
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        said = [x for x in done.stderr.splitlines() if not x.startswith("import time:")]
        assert done.returncode == 2 and len(said) == lines
        modules = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert "tyro" in modules and not modules & {"torch", "transformers", "numpy"}
        for line in said:
            assert line == (
                "remix.py: Unrecognized options: --kl_estimater, k3; did you mean --kl_estimator? "
                "--help lists all flags"
            )


@pytest.mark.parametrize(
    "flags, line",
    [
        (
            "--algo dpo",
            "invalid choice 'dpo' for argument '--algo'. Expected one of ('ppo', 'grpo')",
        ),
        ("--steps many", "Error parsing --steps: invalid literal for int() with base 10: 'many'"),
        ("--lr", "Missing value for argument '--lr'. Expected 1 values"),
        ("7b", "Unrecognized options: 7b"),
    ],
)
def test_friction_18_an_error_is_one_line(flags, line, capsys):
    with pytest.raises(SystemExit):
        config.parse_flags(flags.split())
    assert capsys.readouterr().err.endswith(f": {line}; --help lists all flags\n")


def test_friction_18_train_sh_says_a_slip_once(tmp_path):
    """In a folder of its own, where install.sh has nothing to do; torchrun is never reached."""
    (tmp_path / "install.sh").touch()
    for name in ("train.sh", "config.py", ".venv"):
        (tmp_path / name).symlink_to((ROOT / name).resolve())
    for flags, status, line in [
        (["13b"], 1, "config.py: --recipe 13b: there is none; take tiny, smollm, 1.5b, 7b, 32b"),
        (["7b", "--sed", "1"], 2, "config.py: Unrecognized options: --sed, 1; did you mean --seed"),
    ]:
        command = ["bash", str(tmp_path / "train.sh"), *flags]
        env = os.environ | dict(NPROC="2")
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == status and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(line) and not done.stdout
