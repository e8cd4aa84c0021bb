"""The loop with the methods that stand beside ReMix: every loss, every replay, a lagging sampler,
weights for the engine.

The losses have their own tests (test_siblings.py); here it is what the loop makes of them. Runs are
in this process."""

import json

import pytest
import torch
from safetensors.torch import load_file

import checkpoint
import config
import metrics
import remix
import siblings
from data import load_problems
from model import Policy, load_model
from reward import Grader
from rollout import HFEngine, WrongWeights
from siblings import LOSSES, REPLAYS

pytestmark = pytest.mark.slow

SMALL = (
    "--data tiny --prompt plain --max_prompt_tokens 64 --max_tokens 48 --algo grpo --group_size 4 "
    "--prompts_per_step 8 --mini_batch 4 --lr 1e-3 --critic_lr 1e-2 --eval_every 0 "
    "--reincarnation_step 0 --steps 3 --engine hf"
).split()


@pytest.fixture
def train(base, group, tokenizer, tmp_path, monkeypatch):
    """train(name, *flags) -> the rows of the metrics, without the clock. Any number up to 100
    counts as right, because this base model hardly ever is, and without a reward nothing would
    move."""
    monkeypatch.setattr(metrics.tqdm, "write", lambda text: None)
    monkeypatch.setattr(remix, "plot_runs", lambda *_: None)  # a third of such a run
    source = tmp_path / "problems.json"
    sums = [f"{a} + {b}" for a in range(1, 9) for b in range(1, 9)]

    def run(name, *flags, unsolvable=0):
        """unsolvable: of every so many problems one is, whatever the base model knows."""
        rows = [dict(problem=problem, answer="50", error="50") for problem in sums]
        for row in rows[::unsolvable] if unsolvable else []:
            row["answer"] = "777"
        source.write_text(json.dumps(rows))
        problems, _ = load_problems(str(source), tokenizer, prompt="plain", max_prompt_tokens=64)
        cfg = config.parse_config([*SMALL, "--out", str(tmp_path / name), *map(str, flags)])
        config.check_config(cfg)
        (tmp_path / name).mkdir(exist_ok=True)
        checkpoint.record_start(cfg, {})
        remix.train(cfg, "cpu", base, tokenizer, problems[: cfg.limit or None], [])
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines][1:]
        return [
            {k: v for k, v in row.items() if not k.startswith(("seconds", "machine/"))}
            for row in rows
        ]

    return run


def weights(tmp_path, name):
    return load_file(tmp_path / name / "model" / "model.safetensors")


def assert_close(a, b, rel=1e-3):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, rel=rel, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_and_micro_batches_do_not_matter(train, tmp_path, name):
    flags = ["--loss", name, "--kl_coef", 0, "--steps", 2]
    whole = train("whole", *flags)
    assert all(row["grad_norm"] > 0 for row in whole)
    parts = train("parts", *flags, "--tokens_per_micro_batch", 150)
    # Later steps sample from weights that rounding has moved
    for x, y in zip(whole[:1], parts[:1], strict=True):
        for key in ("policy_loss", "grad_norm", "rollouts", "reward", "tokens_backward"):
            assert x[key] == pytest.approx(y[key], rel=2e-3, abs=2e-5), key


def test_the_reductions_are_exact(train, tmp_path):
    """Without replay and with one pass, PPO's clip, the decoupled form and Mix-PPG are one method,
    bit for bit."""
    plain = ["--off_policy_ratio", 0, "--utd_ratio", 1, "--kl_convex", "off"]
    rows = train("mix_ppg", *plain)
    for name in ("ppo", "decoupled_ppo"):
        assert train(name, *plain, "--loss", name) == rows
    replayed = train("replayed", "--clip_eps", 0.01)
    assert (
        train("replayed-ppo", "--clip_eps", 0.01, "--loss", "ppo")[-1]["grad_norm"]
        != replayed[-1]["grad_norm"]
    )


def test_statistics_of_the_whole_mini_batch_cost_a_forward_pass(train):
    plain, m2po = (
        train("a", "--kl_coef", 0, "--steps", 1),
        train("b", "--kl_coef", 0, "--steps", 1, "--loss", "m2po"),
    )
    assert (
        plain[0]["tokens_forward"] == 0 and m2po[0]["tokens_forward"] == m2po[0]["tokens_backward"]
    )


@pytest.mark.parametrize("kind", ["repo", "buffer_matters", "on_policyness", "advantage", "popo"])
def test_every_replay_trains_and_resumes(train, tmp_path, kind):
    flags = ["--replay", kind, "--replay_window", 3, "--limit", 8, "--steps", 4, "--save_every", 2]
    rows = train("whole", *flags)
    assert rows[-1]["off_policy_ratio"] > 0
    assert [row["rollouts"] for row in rows] == [16, 36, 56, 76]  # int(0.6 * 8 * t) groups of 4
    train("half", *flags, "--steps", 2)
    assert train("half", *flags) == rows
    whole, half = weights(tmp_path, "whole"), weights(tmp_path, "half")
    assert all(torch.equal(whole[name], half[name]) for name in whole)


def test_buffer_matters_samples_failures_again_and_leaves_out_groups_without_contrast(
    train, tmp_path, monkeypatch
):
    asked = []
    make = remix.make_engine

    def listening(*args, **kw):
        engine = make(*args, **kw)
        generate = engine.generate

        def sampled(prompts, n=1, **options):
            if n > 1:  # not the few that are only compared
                asked.append([tuple(p) for p in prompts])
            return generate(prompts, n, **options)

        engine.generate = sampled
        return engine

    monkeypatch.setattr(remix, "make_engine", listening)
    flags = "--replay buffer_matters --replay_window 5 --save_every 4 --steps 4 --group_size 8"
    train("run", *flags.split(), "--lr", 1e-5, unsolvable=4)
    state = torch.load(checkpoint.latest(tmp_path / "run") / "state.pt")
    groups = [entry["group"] for entry in state["buffer"]["entries"]]
    contrast = [0 < sum(r["reward"] for r in group) < len(group) for group in groups]
    assert contrast and all(contrast)
    again = [set(asked[i]) & {p for before in asked[:i] for p in before} for i in range(1, 4)]
    assert any(again)  # 64 problems, 4 or 5 a step: only a failure comes back so soon
    assert sum(len(step) for step in again) <= 3  # at most a quarter of the prompts


@pytest.fixture
def contrast(monkeypatch):
    """contrast(of) -> from here on the groups at the places `of` have contrast, no others."""
    real = remix.give_rewards

    def only(of):
        def rewards(groups, *args):
            counts = real(groups, *args)
            for place, group in groups:
                for j, r in enumerate(group):
                    r.reward = float(j == 0 and place in of)
            return counts

        monkeypatch.setattr(remix, "give_rewards", rewards)

    return only


def test_popo_is_no_replay_while_every_group_has_contrast(train, contrast):
    contrast(range(8))
    flags = ["--off_policy_ratio", 0, "--loss", "decoupled_ppo"]
    assert train("popo", *flags, "--replay", "popo") == train("none", *flags)


def test_popo_fills_the_places_of_groups_without_contrast(train, contrast):
    flags = ["--off_policy_ratio", 0, "--loss", "decoupled_ppo", "--replay", "popo"]
    contrast([1, 2, 3])
    rows = train("half", *flags)
    # 3 fresh groups of 8, then 3 + 3, then 3 + 5: newest first, so three are of the step before
    assert [row["off_policy_ratio"] for row in rows] == pytest.approx([0, 3 / 6, 5 / 8])
    assert [row["rollouts"] for row in rows] == [32, 64, 96] and "ess/age2" in rows[2]
    contrast([])
    none = train("none", *flags, "--kl_coef", 0)
    assert [row["gradient_steps"] for row in none] == [0, 0, 0]


def test_a_lagging_sampler(train, tmp_path):
    """With k = 2, step t trains on data of pi_{t-2}: the ratio is not 1 and its age says so; the
    run resumes exactly."""
    flags = [
        "--sampler_lag",
        2,
        "--steps",
        4,
        "--save_every",
        2,
        "--off_policy_ratio",
        0,
        "--utd_ratio",
        1,
    ]
    flags += ["--mini_batch", 8]  # one update a step: the ratio is that of pi_k alone
    rows = train("whole", *flags)
    assert [[i for i in range(5) if f"ratio_mean/age{i}" in row] for row in rows] == [
        [0],
        [1],
        [2],
        [2],
    ]
    assert (
        rows[0]["log_ratio_sq/age0"] < 1e-3
        and rows[2]["log_ratio_sq/age2"] > rows[0]["log_ratio_sq/age0"]
    )
    assert all(row["engine_gap"] < 1e-5 for row in rows)  # against the policy that sampled
    train("half", *flags, "--steps", 2)
    assert train("half", *flags) == rows
    prompt_by_prompt = train("fresh", *flags, "--sampler_lag", 0)
    assert prompt_by_prompt[0]["reward"] == rows[0]["reward"] and prompt_by_prompt[2] != rows[2]


@pytest.mark.parametrize("logp", ["engine", "trainer"])
def test_a_nested_sampler(train, monkeypatch, logp):
    """pi_b is the engine's nested model, whose ratio is far from 1; pi_k is whole, and a run
    resumes exactly."""
    generate, saved = HFEngine.generate, []

    def listening(engine, prompts, n=1, **options):
        groups = generate(engine, prompts, n, **options)
        if n > 1:  # not the few that are only compared
            fed = sum(len(s.tokens) - 1 for group in groups for s in group)
            saved.append(sum(map(len, prompts)) + fed)
        return groups

    monkeypatch.setattr(HFEngine, "generate", listening)
    flags = ["--skipped_layers", 1, "--behaviour_logp", logp, "--utd_ratio", 1, "--mini_batch", 8]
    flags += ["--save_every", 1, "--off_policy_ratio", 0, "--steps", 2]
    rows = train("whole", *flags)
    for row in rows:  # one update a step, so the loss sees pi_theta = pi_k: r = c
        assert row["engine_gap"] < 1e-5 and row["tv/age0"] < 1e-5
        assert row["log_ratio_sq/age0"] > 0.1 and row["tokens_forward"] > 0
    assert [row["layer_passes_saved"] for row in rows] == saved
    train("half", *flags, "--steps", 1)
    assert train("half", *flags) == rows
    whole = train("none", *flags, "--skipped_layers", 0)
    assert "layer_passes_saved" not in whole[0] and whole[0]["log_ratio_sq/age0"] < 1e-6


@pytest.mark.parametrize("flags", ["", "--behaviour_logp trainer", "--sampler_lag 1"])
@pytest.mark.parametrize("fault", ["nothing", "drops one", "one late"])
def test_a1_a_sync_that_fails_later_ends_the_run_in_the_next_step(train, monkeypatch, flags, fault):
    """Whichever log-probs the ratios are made of, and also where an older policy samples."""
    real, calls = HFEngine.sync, []

    def sync(engine, weights):
        calls.append([(name, weight.clone()) for name, weight in weights])
        sent = calls[-1]
        if len(calls) > 4:  # two prove the sync, and two steps have gone well
            sent = dict(nothing=[], late=calls[-2]).get(fault.split()[-1], sent)
        if len(calls) > 4 and fault == "drops one":
            sent = [(name, weight) for name, weight in sent if "layers.1.mlp.up" not in name]
        real(engine, sent)

    monkeypatch.setattr(HFEngine, "sync", sync)
    with pytest.raises(WrongWeights, match="disagree on log-probs"):
        train("run", *flags.split(), "--lr", 1e-2, "--steps", 9)
    assert 5 <= len(calls) <= 6


def test_a1_evaluation_looks_too(train, base, tokenizer, monkeypatch):
    """A last evaluation has no step after it that would notice."""
    problems, _ = load_problems("tiny", tokenizer, prompt="plain", limit=20)
    engine, policy = (
        HFEngine(base, "float32"),
        load_model(Policy, base, device="cpu", dtype="float32"),
    )
    cfg = config.parse_config([*SMALL, "--eval_n", "1"])
    scores = remix.evaluate(engine, policy, problems, Grader(), tokenizer, cfg)
    assert scores["eval/problems"] == 20
    with torch.no_grad():
        policy.lm.model.norm.weight.mul_(1.1)
    monkeypatch.setattr(engine, "sync", list)
    with pytest.raises(WrongWeights, match="disagree on log-probs"):
        remix.evaluate(engine, policy, problems, Grader(), tokenizer, cfg)


def test_D11_training_tells_answer_and_format_apart(train):
    """A format that nothing has: no reward, and the rows say why."""
    right = train("right", "--steps", 1)[0]
    assert right["answer_rate"] >= right["reward"] > 0.1 and 0.5 < right["format_rate"] <= 1
    lost = train("lost", "--steps", 1, "--format", "tags")[0]
    assert lost["reward"] == lost["format_rate"] == 0
    assert lost["answer_rate"] == right["answer_rate"]


def test_D10_D11_greedy_evaluation_in_training(base, group, tokenizer, capsys, monkeypatch):
    problems, _ = load_problems("tiny", tokenizer, prompt="plain", limit=20)
    flags = [*SMALL, "--eval_temperature", "0", "--format", "boxed"]
    cfg = config.parse_config(flags)
    config.check_config(cfg)
    engine = HFEngine(base, "float32")
    policy = load_model(Policy, base, device="cpu", dtype="float32")
    scores = [remix.evaluate(engine, policy, problems, Grader(), tokenizer, cfg) for _ in "12"]
    assert scores[0] == scores[1] and scores[0]["eval/n"] == 1
    assert "the format decides" not in capsys.readouterr().out
    cfg.format, anything = "tags", lambda grader, texts, golds, scores: [True] * len(texts)
    monkeypatch.setattr(Grader, "right_answers", anything)
    remix.evaluate(engine, policy, problems, Grader(), tokenizer, cfg)
    assert "the format decides: 100.0%" in capsys.readouterr().out


def test_replayed_data_is_known_as_such_while_the_sampler_starts(train):
    """In step 2 with k = 2 all data is the first policy's, and a part of it is replayed all the
    same."""
    rows = train("run", "--sampler_lag", 2, "--steps", 2)
    assert rows[1]["off_policy_ratio"] > 0 and "ratio_mean/quarter1" in rows[1]


def test_engine_weights_are_one_for_an_exact_engine_and_act_for_another(train, monkeypatch):
    flags = ["--behaviour_logp", "trainer", "--steps", 2]
    plain = train("off", *flags)
    for kind in ("tis", "icepop"):
        assert_close(train(kind, *flags, "--engine_weight", kind), plain)
    monkeypatch.setattr(
        siblings, "engine_weight", lambda trainer, engine, kind: torch.full_like(trainer, 0.5)
    )
    half = train("half", *flags, "--engine_weight", "tis", "--steps", 1)
    assert half[0]["policy_loss"] == pytest.approx(plain[0]["policy_loss"] / 2, rel=0.1, abs=1e-3)


def test_the_weight_of_the_kl_reaches_the_loss(train):
    flags = ["--kl_coef", 0.1, "--steps", 2]
    plain, weighted = (train(name, *flags, *more) for name, more in
                       dict(plain=[], weighted=["--kl_unbiased"]).items())  # fmt: skip
    assert 0 < weighted[0]["kl"] != plain[0]["kl"] > 0


def test_a_buffer_of_each_kind_is_the_one_that_the_flag_names():
    kinds = {"window", "repo", "buffer_matters", "on_policyness", "advantage", "popo"}
    assert set(REPLAYS) == kinds
    config.check_config(config.parse_config([*SMALL, "--replay", "on_policyness"]))
    with pytest.raises(ValueError, match="--replay repos: is none of window, repo, "):
        config.check_config(config.parse_config([*SMALL, "--replay", "repos"]))
    with pytest.raises(ValueError, match="--loss mixppg: is none of mix_ppg, ppo, "):
        config.check_config(config.parse_config([*SMALL, "--loss", "mixppg"]))
