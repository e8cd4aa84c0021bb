"""The real entry point: both algorithms, both engines, two ranks, resume bit for bit, kills, bad
input. That it computes ReMix is for test_minimal.py to say."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from forks import clean_env, forked
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

import checkpoint
import config
import data
import loss
import parallel
import remix
from rollout import VLLMEngine

slow = pytest.mark.slow

SMALL = (
    "--data tiny --prompt plain --max_prompt_tokens 64 --max_tokens 64 --prompts_per_step 10 "
    "--mini_batch 5 --lr 1e-3 --critic_lr 1e-2 --eval_limit 6 --eval_n 2 --eval_every 2 "
    "--save_every 3 --reincarnation_step 3 --steps 4 --engine hf --limit 400"
).split()
PLAIN = "--off_policy_ratio 0 --utd_ratio 1 --kl_convex off --reincarnation_step 0".split()


def start(base, out, *flags, ranks=1):
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*launch, "remix.py", "--model", base, "--out", str(out), *SMALL, *map(str, flags)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=clean_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(base, out, *flags, ranks=1, **how):
    if "vllm" in flags:  # as a command, torchrun's if there are ranks
        process = start(base, out, *flags, ranks=ranks)
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stdout + stderr
        return metrics(out)
    said = Path(f"{out}.txt")
    args = ["--model", base, "--out", out, *SMALL, *flags]
    assert not any(forked(said, args, ranks=ranks, **how)), said.read_text()
    return metrics(out)


def metrics(out):
    """Rows without the clock."""
    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.startswith(("seconds", "machine/"))} for row in rows
    ]


def weights(out):
    return load_file(Path(out) / "model" / "model.safetensors")


def responses(out):
    return (Path(out) / "responses.jsonl").read_text()


def assert_same_run(a, b):
    assert metrics(a) == metrics(b) and responses(a) == responses(b)
    assert weights(a).keys() == weights(b).keys()
    assert all(torch.equal(weights(a)[name], weights(b)[name]) for name in weights(a))


# --------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize(
    "algo, engine", [pytest.param("ppo", "vllm", marks=slow), ("ppo", "hf"), ("grpo", "hf")]
)
def test_a_run(base, tmp_path, algo, engine):
    """GRPO with vLLM is for test_two_ranks_are_one_rank."""
    if engine == "vllm":
        pytest.importorskip("vllm")
    G = 1 if algo == "ppo" else 4
    flags = ["--algo", algo, "--engine", engine, "--group_size", G]
    rows = run(base, tmp_path / "run", *flags)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    # 0.6 * 10, then 10
    assert [row["rollouts"] for row in rows] == [0, 6 * G, 12 * G, 18 * G, 28 * G]
    # ceil(batch / 5) mini-batches, twice; then once
    assert [row["gradient_steps"] for row in rows] == [0, 4, 8, 12, 14]
    assert [row["off_policy_ratio"] for row in rows[1:]] == [0, 0.4, 0.4, 0]
    assert (
        "ratio_mean/age1" in rows[2]
        and "ratio_mean/age2" in rows[3]
        and "ratio_mean/age1" not in rows[4]
    )
    assert rows[1]["engine_gap"] < 1e-5 and rows[4]["engine_gap"] < 1e-5
    # pi_base <- pi_T: while mixing the policy has moved away from its anchor, right after it starts
    # from it again
    assert rows[4]["kl"] < rows[3]["kl"]
    assert all("eval/pass@1" in row for row in (rows[0], rows[2], rows[4]))
    out = tmp_path / "run"
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    lm, tokenizer = (
        AutoModelForCausalLM.from_pretrained(out / "model"),
        AutoTokenizer.from_pretrained(out / "model"),
    )
    assert lm.config.tie_word_embeddings and lm.lm_head.weight is lm.model.embed_tokens.weight
    assert tokenizer.chat_template
    written = json.loads((out / "config.json").read_text())
    assert written["algo"] == algo and written["clip_eps"] == 0.2 and "git_commit" in written
    if engine == "vllm":  # which takes its time to start, so in this test: bit for bit after a kill
        shutil.copytree(out, tmp_path / "killed")
        shutil.rmtree(tmp_path / "killed" / "checkpoints" / "step-000004")
        shutil.rmtree(tmp_path / "killed" / "model")
        run(base, tmp_path / "killed", *flags)
        assert_same_run(out, tmp_path / "killed")


# remix.py that writes, of every rank, how many networks and optimizers are off the device, and when
AWAY = """
import torch.distributed as dist
import model, parallel, remix, rollout
def noted(what, real):
    def call(*args, **options):
        with open({out!r} + str(dist.get_rank()), "a") as file:
            file.write(f"{{what}} {{len(parallel.away)}}\\n")
        return real(*args, **options)
    return call
rollout.HFEngine.generate = noted("generate", rollout.HFEngine.generate)
model.Critic.forward = noted("critic", model.Critic.forward)
parallel.backward = noted("backward", parallel.backward)
remix.main()
"""


@slow
@pytest.mark.parametrize(
    "ranks, flags, while_sampling",
    [
        (1, "--kl_convex 0.7", 5),  # critic, base, prev and two optimizers
        (2, "--shard all --kl_estimator exact --kl_convex 0.5 --sampler_lag 2", 6),  # and one lag's
        (1, "--algo grpo --dtype bfloat16", 3),
    ],
)
def test_offload_changes_memory_and_nothing_else(base, tmp_path, ranks, flags, while_sampling):
    """Across the reincarnation step, and a run that goes on; sampling is with all of it away."""
    flags = [*flags.split(), "--kl_coef", 0.1]
    run(base, tmp_path / "a", *flags, ranks=ranks)
    script = AWAY.format(out=str(tmp_path / "away"))
    for steps in (2, 4):
        more = [*flags, "--offload", "--steps", steps]
        run(base, tmp_path / "b", *more, ranks=ranks, script=script)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    ppo = "grpo" not in flags
    updating = while_sampling - (3 if ppo else 1)  # critic and two optimizers; one optimizer
    expected = {f"generate {while_sampling}", f"backward {updating}"}
    if ppo:  # in its frozen pass, and in an update
        expected |= {f"critic {while_sampling - 1}", f"critic {updating}"}
    for rank in range(ranks):
        assert set((tmp_path / f"away{rank}").read_text().splitlines()) == expected


@slow
def test_the_rarer_options_together(base, tmp_path):
    """Exact KL, both anchors, pi_{k-1} = pi_k, GePPO's clip and V-trace, the trainer's own
    behaviour log-probs."""
    flags = "--kl_estimator exact --kl_convex 0.5 --precedent current --geppo_clip --vtrace"
    flags = [*flags.split(), "--behaviour_logp", "trainer"]
    rows = run(base, tmp_path / "run", *flags, "--kl_coef", 0.1, "--eval_every", 0)
    assert (
        rows[1]["clip_eps"] == 0.2
        and 0.1 < rows[3]["clip_eps"] < 0.2
        and rows[4]["clip_eps"] == 0.2
    )
    assert all(row["kl"] > 0 for row in rows[1:])  # exact: never below 0
    assert all(row["engine_gap"] < 1e-5 for row in rows[1:])


@slow
def test_forward_and_backward_tokens_are_no_more_than_needed(base, tmp_path):
    """GRPO, step 1: nothing frozen but pi_base, on fresh data. Step 2: pi_base on fresh data, pi_k
    on replayed data."""
    rows = run(base, tmp_path / "run", "--algo", "grpo", "--group_size", 2, "--steps", 2)
    fresh = [row["tokens_forward"] for row in rows[1:]]
    # Two passes over the batch, one by the anchor
    assert rows[1]["tokens_backward"] == 2 * fresh[0]
    # Fresh by pi_base + replayed by pi_k = the batch, once
    assert rows[2]["tokens_backward"] == 2 * fresh[1]
    plain = run(
        base,
        tmp_path / "plain",
        "--algo",
        "grpo",
        "--group_size",
        2,
        "--steps",
        2,
        "--kl_coef",
        0,
        *PLAIN,
    )
    assert [row["tokens_forward"] for row in plain[1:]] == [0, 0]


@slow
@pytest.mark.parametrize("algo, engine", [("ppo", "hf"), ("grpo", "vllm")])
def test_two_ranks_are_one_rank(base, tmp_path, algo, engine):
    """Same rollouts for the same prompts; the same losses and gradients to rounding."""
    if engine == "vllm":
        pytest.importorskip("vllm")
    # 1: a rank idles
    flags = [
        "--algo",
        algo,
        "--engine",
        engine,
        "--steps",
        2,
        "--eval_every",
        1,
        "--eval_limit",
        5 if algo == "ppo" else 1,
    ]
    flags += (
        ["--prompts_per_step", 5] if algo == "ppo" else ["--prompts_per_step", 2, "--mini_batch", 1]
    )
    one, two = run(base, tmp_path / "1", *flags), run(base, tmp_path / "2", *flags, ranks=2)
    assert one[0] == two[0] and one[1]["engine_gap"] < 1e-5
    for name in ("rollouts", "reward", "response_length", "tokens_backward"):
        assert one[1][name] == two[1][name], name
    for name in ("policy_loss", "kl", "entropy", "value_loss", "grad_norm", "log_ratio_sq/age0"):
        assert one[1][name] == pytest.approx(two[1][name], rel=2e-3, abs=1e-5), name
    kept = [map(json.loads, responses(tmp_path / ranks).splitlines()) for ranks in "12"]
    kept = [[r for r in of if r["step"] == 1 and r["kind"] == "fresh"] for of in kept]
    assert len(kept[0]) == min(4, one[1]["rollouts"])
    for a, b in zip(*kept, strict=True):  # log-probs of the rank that was the last to train on it
        assert (a["text"], a["reward"]) == (b["text"], b["reward"])
        assert a["logp_b"] == pytest.approx(b["logp_b"], abs=1e-5)
        assert a["logp"] == pytest.approx(b["logp"], abs=0.05)  # Adam amplifies rounding
    for name, weight in weights(tmp_path / "1").items():
        assert (weight - weights(tmp_path / "2")[name]).abs().max() < 2e-3


@slow
def test_another_number_of_ranks_can_go_on(base, tmp_path):
    """From the checkpoint of two ranks, one rank takes the step that two would take."""
    flags = [
        "--algo",
        "grpo",
        "--prompts_per_step",
        4,
        "--mini_batch",
        2,
        "--group_size",
        2,
        "--eval_every",
        0,
    ]
    # So that the buffer, whose shares lay on two ranks, is drawn from
    flags += ["--reincarnation_step", 0]
    shards = ["--shard", "node"]
    run(base, tmp_path / "a", *flags, *shards, "--steps", 3, ranks=2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    two, one = (
        run(base, tmp_path / "a", *flags, *shards, ranks=2)[4],
        run(base, tmp_path / "b", *flags)[4],
    )
    assert one["off_policy_ratio"] > 0
    for name in (
        "rollouts",
        "gradient_steps",
        "reward",
        "response_length",
        "policy_loss",
        "kl",
        "grad_norm",
        "grad_norm_head/pass1",
    ):
        assert one[name] == pytest.approx(two[name], rel=5e-3, abs=1e-4), name

    # What the run itself exported at its end
    command = [sys.executable, "checkpoint.py", str(tmp_path / "a")]
    subprocess.run(command, cwd=ROOT, env=clean_env(), check=True, timeout=120)
    exported = load_file(tmp_path / "a" / "model-000004" / "model.safetensors")
    assert exported.keys() == weights(tmp_path / "a").keys()
    assert all(
        torch.equal(tensor, weights(tmp_path / "a")[name]) for name, tensor in exported.items()
    )
    assert (tmp_path / "a" / "model-000004" / "tokenizer.json").exists()


@slow
def test_train_sh(base, tmp_path):
    """The recipe and its flags, through the script a user calls."""
    flags = [
        *SMALL,
        "--steps",
        "1",
        "--prompts_per_step",
        "4",
        "--mini_batch",
        "2",
        "--group_size",
        "2",
        "--model",
        base,
    ]
    command = ["bash", "train.sh", "tiny", "--algo", "grpo", *flags, "--out", str(tmp_path / "run")]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_env(NPROC="1"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["algo"] == "grpo"
    assert metrics(tmp_path / "run")[-1]["rollouts"] == 2 * 2  # int(0.6 * 4) prompts of 2


# ------------------------------------------------------------------------------------ resume, kills


@slow
def test_six_steps_are_three_and_three_bit_for_bit(base, tmp_path):
    """Across the reincarnation step, with both anchors in use."""
    flags = ["--algo", "grpo", "--reincarnation_step", 4, "--kl_convex", 0.7, "--kl_coef", 0.1]
    run(base, tmp_path / "a", *flags, "--steps", 6)
    run(base, tmp_path / "b", *flags, "--steps", 3)
    run(base, tmp_path / "b", *flags, "--steps", 6)
    assert_same_run(tmp_path / "a", tmp_path / "b")


@slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(base, tmp_path):
    flags = ["--steps", 8, "--save_every", 1, "--eval_every", 3, "--prompts_per_step", 10]
    run(base, tmp_path / "a", *flags)
    process = start(base, tmp_path / "b", *flags)
    deadline = time.time() + 120
    while time.time() < deadline and not list((tmp_path / "b").glob("checkpoints/step-00000[2-7]")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 2 <= int(checkpoint.latest(tmp_path / "b").name[-6:]) < 8
    with open(tmp_path / "b" / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "roll')  # a line that a kill cut short
    # The second time it is complete already, and nothing changes: not the last evaluation either
    for _ in range(2):
        run(base, tmp_path / "b", *flags)
        assert_same_run(tmp_path / "a", tmp_path / "b")


@slow
@pytest.mark.parametrize("where", ["dcp.save", "torch.save", "os.rename", "shutil.rmtree"])
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(base, tmp_path, where):
    """The process kills itself inside the second save, before or in the middle of the named
    call."""
    script = f"""
import os, signal, shutil
import torch, checkpoint, model, parallel
from pathlib import Path
parallel.init_distributed()
models = dict(policy=model.load_model(model.Policy, {base!r}, device="cpu", dtype="float32"))
out = Path({str(tmp_path)!r})
checkpoint.save(out, 1, models, {{}}, dict(step=1))
owner = eval({where.split(".")[0]!r}, vars(checkpoint))
if {where!r} == "shutil.rmtree":  # two calls clear leftovers, the third removes the old one
    calls, real = [], shutil.rmtree
    def die(*a, **k):
        calls.append(a)
        os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 3 else real(*a, **k)
else:
    def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, {where.split(".")[1]!r}, die)
checkpoint.save(out, 2, models, {{}}, dict(step=2), keep=1)
"""
    said = tmp_path / "said.txt"
    assert forked(said, [], script) == [-signal.SIGKILL], said.read_text()
    path = checkpoint.latest(tmp_path)
    assert path.name == ("step-000002" if where == "shutil.rmtree" else "step-000001")
    assert (path / ".metadata").exists() and torch.load(path / "state.pt")["step"] == int(
        path.name[-1]
    )


# ---------------------------------------------------------------------------------------- bad input


def bad(*flags):
    cfg = config.parse_config(["--data", "tiny", "--prompt", "plain", *map(str, flags)])
    config.check_config(cfg)
    return cfg


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--mini_batch", 48], "--mini_batch 48: does not divide --prompts_per_step 256"),
        (["--off_policy_ratio", 1], r"--off_policy_ratio 1.0: must be in \[0, 1\)"),
        (["--off_policy_ratio", -0.1], "--off_policy_ratio -0.1"),
        (["--off_policy_ratio", 0.8], "raise the window to 4"),
        (["--algo", "grpo", "--group_size", 1], "--group_size 1: GRPO compares"),
        (
            ["--kl_convex", "sometimes"],
            "--kl_convex sometimes: must be schedule, schedule:START,EVERY, off",
        ),
        (["--kl_convex", "schedule:5"], "--kl_convex schedule:5: must be"),
        (["--kl_convex", "schedule:4,-2"], "--kl_convex schedule:4,-2: must be"),
        (["--attention", "flash_attention_2"], "--attention flash_attention_2: needs a GPU"),
        (["--loss", "cispo", "--geppo_clip"], "--geppo_clip True: does nothing with --loss cispo"),
        (["--tensor_parallel", 2, "--engine", "hf"], "--tensor_parallel 2: is for vLLM"),
        (["--kl_convex", "scheduled"], "--kl_convex scheduled: must be"),
        (
            ["--loss", "asymre"],
            "--loss asymre: has an advantage of groups; use it with --algo grpo",
        ),
        (["--replay", "buffer_matters"], "--replay buffer_matters: looks at groups"),
        (["--replay", "advantage"], "--replay advantage: looks at groups"),
        (["--replay", "popo"], "--replay popo: looks at groups"),
        (
            ["--kl_unbiased", "--kl_estimator", "k2"],
            "--kl_estimator k2: has no weighted form; use k1 or k3, or leave --kl_unbiased out",
        ),
        (["--kl_unbiased", "--kl_estimator", "exact"], "--kl_estimator exact: has no weighted"),
        (["--engine_weight", "tis"], "--engine_weight tis: .* add --behaviour_logp trainer"),
        (
            ["--engine_weight", "tis", "--behaviour_logp", "trainer", "--loss", "gspo"],
            "--engine_weight tis: weighs tokens",
        ),
        (["--algo", "grpo", "--vtrace"], "--vtrace True: is about GAE"),
        (
            ["--algo", "grpo", "--seed", 20260101],
            "--seed 20260101: is too large for the sampler's seeds; take one below 11529215",
        ),
        (
            ["--offload", "--lora_rank", 4],
            "--offload True: moves whole networks, which --lora_rank",
        ),
        (["--sampler_lag", -1], "--sampler_lag -1: must not be negative"),
        (["--skipped_layers", -1], "--skipped_layers -1: must not be negative"),
        (["--skipped_layers", 1, "--engine", "vllm"], "--skipped_layers 1: .* add --engine hf"),
        (["--steps", 0], "--steps 0: must be at least 1"),
        (["--lr", 0], "--lr 0.0: must be above 0"),
        (["--gamma", 1.5], "--gamma 1.5"),
        (["--prompt", "r2"], "--prompt r2"),
    ],
)
def test_bad_flags_are_named_with_value_and_advice(flags, message):
    with pytest.raises(ValueError, match=message):
        bad(*flags)


@pytest.mark.parametrize(
    "flags",
    [
        ["--kl_estimater", "k3"],
        ["--top_p", "0.9"],
        ["--algo", "dpo"],
        ["--steps", "many"],
        ["--rein", "5"],
    ],
)
def test_unknown_flags_and_values_are_errors(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        config.parse_config(flags)
    assert stop.value.code == 2 and flags[0] in capsys.readouterr().err


def test_flags_of_an_algorithm():
    ppo, grpo = config.parse_config(["--data", "tiny"]), config.parse_config(["--algo", "grpo"])
    assert (ppo.group_size, ppo.entropy_coef) == (1, 0.001) and (
        grpo.group_size,
        grpo.entropy_coef,
    ) == (8, 0.0)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model", "nowhere/nothing"], "--model nowhere/nothing: no such folder, nor a hub name"),
        (
            ["--max_tokens", 8192],
            "--max_tokens 8192: with --max_prompt_tokens 766 .* the 4096 tokens",
        ),
        (["--eval_max_tokens", 4000], "--eval_max_tokens 4000: with"),
        (["--data", "missing.json"], "--data missing.json"),
        (["--data", "empty.json"], "--data"),
        (["--data", "words.json"], "no usable row"),
        (["--data", "words.json", "--answer_field", "gold"], "--answer_field gold"),
    ],
)
def test_bad_models_and_data(base, group, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("empty.json").write_text("[]")
    Path("words.json").write_text(json.dumps([dict(problem="What?", answer=r"\frac{")]))
    with pytest.raises(ValueError, match=message):
        data.load_run(bad("--model", base, "--max_tokens", 100, *flags))


def test_another_runs_folder_is_refused_and_nothing_is_lost(tmp_path):
    cfg = bad("--out", tmp_path / "run")
    config.check_out(cfg)  # a new folder
    (tmp_path / "run").mkdir()
    config.check_out(cfg)  # an empty one
    checkpoint.write_json(tmp_path / "run" / "config.json", vars(cfg))
    config.check_out(bad("--out", tmp_path / "run", "--steps", 999))  # the same run, longer
    # The same, in less memory
    config.check_out(bad("--out", tmp_path / "run", "--tokens_per_micro_batch", 5))
    with pytest.raises(ValueError, match="--utd_ratio 3: the run in --out .* has --utd_ratio 2"):
        config.check_out(bad("--out", tmp_path / "run", "--utd_ratio", 3))
    checkpoint.write_json(tmp_path / "run" / "config.json", vars(cfg) | dict(top_p=1.0))
    with pytest.raises(ValueError, match="--out .*: the run in it is of an older version"):
        config.check_out(cfg)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        config.check_out(bad("--out", tmp_path / "thesis"))


def test_what_one_rank_refuses_all_refuse(group, monkeypatch):
    assert parallel.on_every_rank(lambda x: x + 1, 2) == 3
    monkeypatch.setattr(parallel, "gather", lambda mine: [*mine, "--data x: is not on this node"])
    with pytest.raises(ValueError, match="--data x: is not on this node"):
        parallel.on_every_rank(lambda: None)


def test_a_run_folder_that_a_node_does_not_see(tmp_path, monkeypatch):
    monkeypatch.setattr(config.time, "time", iter([0, 61]).__next__)
    with pytest.raises(ValueError, match="--out .*: is not one folder for all nodes"):
        config.check_shared(str(tmp_path))


@slow
def test_bad_input_is_one_line_and_leaves_nothing(base, tmp_path):
    process = start(base, tmp_path / "run", "--data", "missing.json")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1 and "--data missing.json" in stderr and "Traceback" not in stderr
    assert len(stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


@slow
def test_a_non_finite_loss_stops_the_run_and_names_step_and_term(base, tmp_path):
    flags = ["--steps", 9, "--save_every", 1, "--lr", 1e6, "--grad_clip", 1e9, "--eval_every", 0]
    process = start(base, tmp_path / "run", *flags)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in stderr
    assert "remix.py: step " in stderr and " is nan" in stderr or " is inf" in stderr
    path = checkpoint.latest(tmp_path / "run")
    if path is not None:
        assert torch.load(path / "state.pt")["step"] == int(path.name[-6:])


# ------------------------------------------------------------------------------- pieces of the loop


def test_prompt_order_is_shuffled_epochs_without_gap_or_repeat():
    whole = remix.prompt_order(10, 0, 35, 3)
    assert [sorted(whole[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert whole[:10] != whole[10:20]
    assert (
        remix.prompt_order(10, 0, 7, 3)
        + remix.prompt_order(10, 7, 16, 3)
        + remix.prompt_order(10, 23, 12, 3)
        == whole
    )


def test_every_mini_batch_mixes_fresh_and_replayed():
    fresh, replayed = [("f", i) for i in range(154)], [("r", i) for i in range(102)]
    minis = remix.mini_batches(fresh, replayed, 64, np.random.default_rng(0))
    assert [len(mini) for mini in minis] == [64] * 4
    assert sorted(x for mini in minis for x in mini) == sorted(fresh + replayed)
    assert all(25 <= sum(kind == "r" for kind, _ in mini) <= 26 for mini in minis)


def test_a_share_that_floats_do_not_hit_is_accepted():
    flags = [
        "--prompts_per_step",
        10,
        "--mini_batch",
        5,
        "--off_policy_ratio",
        0.9,
        "--replay_window",
        9,
    ]
    # 10 * (1 - 0.9) is 0.9999... in floating point, and one prompt
    assert bad(*flags).off_policy_ratio == 0.9


def test_the_engine_on_a_gpu_sleeps_whole_before_the_trainer_goes_on(monkeypatch):
    """Also on a rank that has nothing to sample. A fake vLLM says what it was asked for; there is
    no GPU in it."""
    said = []

    class LLM:
        def sleep(self, level):
            said.append("sleep")

        def wake_up(self, tags):
            said.append(*tags)

        def collective_rpc(self, *args, **kwargs): ...
        def reset_prefix_cache(self): ...

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    engine = object.__new__(VLLMEngine)
    engine.llm, engine.gpu, engine.asleep = LLM(), True, set()
    engine.packed, engine.unknown, engine.lm = (
        False,
        set(),
        AutoModelForCausalLM.from_config(
            Qwen2Config(hidden_size=64, num_hidden_layers=1, vocab_size=9)
        ),
    )
    engine.sleep()
    engine.sync([])
    assert engine.generate([], seeds=[], max_tokens=1) == []
    engine.sleep()
    engine.sleep()
    assert said == ["sleep", "weights", "sleep"] and engine.asleep == {"weights", "kv_cache"}


def test_lambda_flag():
    def weights(value):
        return [
            loss.kl_convex_weight(bad("--kl_convex", value).kl_convex, step)
            for step in (1, 50, 51, 95)
        ]

    assert weights("off") == [1, 1, 1, 1] and weights(0.3) == [0.3] * 4
    assert weights("schedule") == [1, 1, 0.9, 0.5] == weights("schedule:50,10")
    assert [loss.kl_convex_weight("schedule:4,2", t) for t in (4, 5, 7, 99)] == [1, 0.9, 0.8, 0.5]
