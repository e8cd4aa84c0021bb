"""Both engines: log-probs after a weight sync on a tied model, seeds, eos, top-p, and the check
that stops a bad sync."""

import copy
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT
from forks import clean_env
from transformers import AutoModelForCausalLM

import config
import rollout
from buffer import Response
from data import load_problems
from model import Policy, full_weights, load_model
from parallel import collate
from siblings import check_layers, skip_layers
from tiny import embedded_problems

VLLM = pytest.param("vllm", marks=pytest.mark.slow)
both = pytest.mark.parametrize("kind", [VLLM, "hf"])
LIMIT = 64


@pytest.fixture
def prompts(tokenizer):
    rows = embedded_problems("train")[:24]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": r["problem"]}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        for r in rows
    ]


@pytest.fixture
def policy(base, group):
    """Other weights than the engines were started with."""
    policy = load_model(Policy, base, device="cpu", dtype="float32")
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=rng))
    return policy


def trainer_logp(policy, prompts, groups):
    responses = [
        Response(p, s.tokens, torch.tensor(s.logp), s.finished, 0.0, 0)
        for p, g in zip(prompts, groups, strict=True)
        for s in g
    ]
    with torch.no_grad():
        logp, _, _ = policy(collate(responses))
    return [r.logp_b for r in responses], [
        row[: len(r.tokens)] for row, r in zip(logp, responses, strict=True)
    ]


@both
def test_engine_and_trainer_agree_after_a_sync(kind, engines, policy, prompts):
    engine = engines(kind)
    # Fills the prefix cache with old keys
    groups = engine.generate(prompts, seeds=list(range(24)), max_tokens=LIMIT)
    engine.sync(full_weights(policy))
    groups = engine.generate(prompts, 2, seeds=list(range(0, 48, 2)), max_tokens=LIMIT)
    ours, theirs = trainer_logp(policy, prompts, groups)
    assert sum(map(len, ours)) > 300
    assert (torch.cat(ours) - torch.cat(theirs)).abs().max() < 1e-3
    assert rollout.check_gap(ours, theirs, "float32") < 1e-5


@pytest.mark.parametrize("k", [1, 2])
def test_skipped_layers_sample_from_the_model_that_has_only_the_others(engines, policy, prompts, k):
    """Against a model of fewer layers, made of the others' weights; then all layers are back."""
    engine, rng = engines("hf"), partial(np.random.default_rng, 5)
    engine.sync(full_weights(policy))
    kept = [0, *sorted({1, 2} - {1 + i for i in rng().choice(2, k, replace=False).tolist()})]
    settings = copy.deepcopy(policy.lm.config)
    settings.num_hidden_layers, settings.layer_types = len(kept), settings.layer_types[: len(kept)]
    nested = Policy(AutoModelForCausalLM.from_config(settings), 1.0)
    weights = {}
    for name, weight in policy.lm.state_dict().items():
        for i, layer in enumerate(kept):
            if f"layers.{layer}." in name:
                weights[name.replace(f"layers.{layer}.", f"layers.{i}.")] = weight
        if "layers." not in name:
            weights[name] = weight
    nested.lm.load_state_dict(weights)

    def sampled():
        return engine.generate(prompts, seeds=list(range(24)), max_tokens=LIMIT)

    before, names = sampled(), list(policy.lm.state_dict())
    all_layers = skip_layers(k, engine, policy, rng())
    groups = sampled()
    for model in (nested, policy):
        assert rollout.check_gap(*trainer_logp(model, prompts, groups), "float32") < 1e-5
    all_layers()
    with pytest.raises(rollout.WrongWeights, match="disagree"):  # a third of the model is missed
        rollout.check_gap(*trainer_logp(policy, prompts, groups), "float32")
    assert sampled() == before and list(policy.lm.state_dict()) == names


@pytest.mark.parametrize(
    "settings, k, message",
    [
        (transformers.Qwen2Config(num_hidden_layers=3), 3, "'qwen2' model 2 layers can be left"),
        (transformers.Qwen2Config(num_hidden_layers=3), 2, ""),
        (transformers.GPT2Config(), 1, "'gpt2' model 0 layers"),  # under another name
        (transformers.Gemma2Config(num_hidden_layers=4), 1, "'gemma2' model 0 layers"),  # two kinds
    ],
)
def test_layers_that_cannot_be_skipped_are_refused(tmp_path, settings, k, message):
    settings.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_layers(str(tmp_path), k)


@both
def test_a_stale_engine_is_caught(kind, engines, policy, base, prompts):
    engine = engines(kind)
    # Not the policy below
    engine.sync(full_weights(load_model(Policy, base, device="cpu", dtype="float32")))
    groups = engine.generate(prompts, seeds=list(range(24)), max_tokens=LIMIT)
    with pytest.raises(RuntimeError, match="disagree"):
        rollout.check_gap(*trainer_logp(policy, prompts, groups), "float32")


# ------------------------------------------------------------------ A1: what can go wrong in a sync


def nothing(sync, weights, name, late):
    for _ in weights:
        pass


def drops_one(sync, weights, name, late):
    sync((n, w) for n, w in weights if n != name)


def one_late(sync, weights, name, late):
    late.append([(n, w.clone()) for n, w in weights])
    sync(late[max(len(late) - 2, 0)])


@pytest.fixture
def proof(base, group, tokenizer, engines, monkeypatch):
    """proof(kind, fault, name) -> what the start of a run says to an engine with that fault."""
    problems, _ = load_problems("tiny", tokenizer, prompt="plain", limit=20)
    policy = load_model(Policy, base, device="cpu", dtype="float32")

    def prove(kind, fault=None, name=""):
        engine = engines(kind)
        cfg = config.parse_config(f"--engine {kind} --max_prompt_tokens 64 --max_tokens 64".split())
        before = {n: p.clone() for n, p in policy.lm.state_dict().items()}
        engine.sync(full_weights(policy))  # of the same files, as in a run
        with monkeypatch.context() as patch:
            if fault:
                patch.setattr(engine, "sync", partial(fault, engine.sync, name=name, late=[]))
            try:
                rollout.prove_sync(engine, policy, problems, cfg)
                return ""
            except rollout.WrongWeights as error:
                return str(error)
            finally:
                after = policy.lm.state_dict()
                assert all(torch.equal(after[n], p) for n, p in before.items())  # put back

    return prove


@both
def test_a1_a_sound_sync_is_proved(kind, proof):
    assert proof(kind) == "" == proof(kind)


@both
@pytest.mark.parametrize("fault", [nothing, one_late])
def test_a1_a_sync_that_does_nothing_or_is_late_ends_the_start(kind, fault, proof):
    assert "does not reach the sampler's" in proof(kind, fault)


@both
def test_a1_a_tensor_that_does_not_arrive_ends_the_start(kind, proof, base):
    lm = AutoModelForCausalLM.from_pretrained(base)
    names = dict.fromkeys(lm.state_dict())
    if kind == "hf":  # the tied head is the embedding there: either will do
        del names["lm_head.weight"], names["model.embed_tokens.weight"]
    assert len(names) > 30
    for name in names:
        said = proof(kind, drops_one, name)
        # vLLM leaves garbage where a part of a fused tensor is not sent
        noticed = ("does not reach the sampler's", "not whole", "disagree on log-probs")
        assert any(what in said for what in noticed), name


def test_a1_a_part_of_a_tensor_that_stays_is_seen():
    """One key head of 64 heads in a fused tensor, in any dtype; zeros that stay are no sign."""
    lm = torch.nn.ModuleDict(
        dict(
            qkv=torch.nn.Linear(64, 66 * 32),
            norm=torch.nn.LayerNorm(32),
            pads=torch.nn.Linear(9, 9),
        )
    ).bfloat16()
    torch.nn.init.zeros_(lm.pads.weight)
    torch.nn.init.constant_(lm.pads.bias, -0.2)
    torch.nn.init.zeros_(lm.norm.bias)
    before, whole = rollout.excerpt(lm), lm.qkv.weight.detach().clone()
    with rollout.perturbed(SimpleNamespace(lm=lm)):
        now = rollout.excerpt(lm)
        assert not any(rollout.is_old(before[name], now[name]) for name in now)
        with torch.no_grad():
            lm.qkv.weight[-64:-32] = whole[-64:-32]
        now = rollout.excerpt(lm)
        assert [n for n in now if rollout.is_old(before[n], now[n])] == ["qkv.weight"]
    assert torch.equal(lm.qkv.weight, whole)


@pytest.mark.slow
def test_a1_a_prefix_cache_that_is_kept_ends_the_start(proof, engines, monkeypatch):
    monkeypatch.setattr(engines("vllm").llm, "reset_prefix_cache", lambda: None)
    assert "disagree on log-probs" in proof("vllm")


@both
def test_seeds_fix_the_tokens_in_any_company(kind, engines, policy, prompts):
    engine = engines(kind)
    engine.sync(full_weights(policy))
    seeds = [100 * i for i in range(24)]
    groups = engine.generate(prompts, 3, seeds=seeds, max_tokens=LIMIT)
    again = engine.generate(prompts[5:9], 3, seeds=seeds[5:9], max_tokens=LIMIT)
    assert [s.tokens for g in groups[5:9] for s in g] == [s.tokens for g in again for s in g]
    pairs = zip(sum(groups[5:9], []), sum(again, []), strict=True)
    assert all(np.abs(np.subtract(s.logp, t.logp)).max() < 1e-5 for s, t in pairs)
    shifted = engine.generate(prompts[5:6], 1, seeds=[seeds[5] + 2], max_tokens=LIMIT)
    assert shifted[0][0].tokens == groups[5][2].tokens  # sample j of a prompt uses seed + j
    assert len({tuple(s.tokens) for s in groups[0]}) > 1


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_attention_of_a_new_token_is_transformers_own(dtype, most):
    """6 query heads on 2 of keys, padded rows: where transformers makes copies."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(3, 6, 1, 8), (3, 2, 9, 8), (3, 2, 9, 8)]
    query, key, value = (torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
    mask = torch.arange(9) >= torch.tensor([0, 2, 5]).view(3, 1, 1, 1)
    module = SimpleNamespace(num_key_value_groups=3)
    ours, _ = rollout.token_attention(module, query, key, value, mask, scaling=0.3)
    theirs, _ = rollout.sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    assert ours.dtype == dtype and ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < most


@both
def test_a_bound_on_the_cache_changes_no_sample(kind, engines, prompts, monkeypatch):
    if kind == "vllm":
        pytest.skip("vLLM bounds its cache itself")
    assert (
        rollout.even(list(range(11)), 5) == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
        and rollout.even([], 5) == []
    )
    engine, options = engines(kind), dict(seeds=[100 * i for i in range(24)], max_tokens=16)
    whole = engine.generate(prompts, 3, **options)
    # 10 rows of the 72 at a time
    monkeypatch.setattr(engine, "tokens", 10 * (16 + max(map(len, prompts))))
    parts = engine.generate(prompts, 3, **options)
    assert [[s.tokens for s in group] for group in whole] == [
        [s.tokens for s in group] for group in parts
    ]


@both
def test_eos_ends_a_response_and_belongs_to_it(kind, engines, policy, base, prompts, tokenizer):
    engine = engines(kind)
    engine.sync(full_weights(load_model(Policy, base, device="cpu", dtype="float32")))
    short = engine.generate(prompts, seeds=list(range(24)), max_tokens=6)
    long = engine.generate(prompts, seeds=list(range(24)), max_tokens=LIMIT)
    samples = [g[0] for g in short + long]
    assert {s.finished for s in samples} == {True, False}
    for s in samples:
        assert len(s.tokens) == len(s.logp)
        assert s.finished == (s.tokens[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in s.tokens[:-1]
    assert all(len(s.tokens) == 6 for s in samples[:24] if not s.finished)


@both
def test_samples_follow_the_models_distribution(kind, engines, policy, prompts):
    """First tokens of 2,000 samples of one prompt against the model's probabilities; at top-p the
    rest never appears."""
    engine = engines(kind)
    engine.sync(full_weights(policy))
    with torch.no_grad():
        p = torch.softmax(policy.lm(torch.tensor(prompts[:1])).logits[0, -1].double(), -1).numpy()
    draws = [s.tokens[0] for s in engine.generate(prompts[:1], 2000, seeds=[0], max_tokens=1)[0]]
    counts = np.bincount(draws, minlength=len(p))
    assert np.all(np.abs(counts - 2000 * p) < 5 * np.sqrt(2000 * p * (1 - p)) + 1)
    order = np.argsort(-p)
    nucleus = set(order[: int(np.searchsorted(np.cumsum(p[order]), 0.7)) + 1].tolist())
    draws = [
        s.tokens[0]
        for s in engine.generate(prompts[:1], 300, seeds=[0], top_p=0.7, max_tokens=1)[0]
    ]
    assert set(draws) <= nucleus and len(nucleus) < (counts > 0).sum()


def test_B9_vllm_leaves_no_variable_changed(monkeypatch):
    """Those that were there keep their value; vLLM's own stay."""
    monkeypatch.setenv("THE_USERS", "1")
    monkeypatch.setenv("VLLM_OWN", "")  # so that it goes after the test
    monkeypatch.delenv("VLLM_OWN")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with rollout.undisturbed(torch.nn.Linear):
        os.environ.update(LOCAL_WORLD_SIZE="7", VLLM_OWN="x", THE_USERS="changed")
        torch.manual_seed(0)
        state = torch.get_rng_state()
    assert os.environ["THE_USERS"] == "1" and "LOCAL_WORLD_SIZE" not in os.environ
    assert os.environ["VLLM_OWN"] == "x" and not torch.equal(torch.get_rng_state(), state)


def test_B3_what_vllm_does_to_a_class_of_transformers_is_undone():
    class Wrapper:
        pass

    class Trunk(torch.nn.Module):
        def __init__(self):
            super().__init__()

        def forward(self):
            return "trunk"

    engine_model = torch.nn.ModuleList([Trunk()])
    bases = Trunk.__bases__
    with rollout.undisturbed(Trunk) as give_back:
        pass
    give_back(engine_model)  # nothing to undo
    assert type(engine_model[0]) is Trunk

    def broken(self):
        raise AssertionError("Current vLLM config is not set")

    with rollout.undisturbed(Trunk) as give_back:
        Trunk.__init__, Trunk.__call__, Trunk.compiled = broken, lambda self: "engine", True
        Trunk.__bases__ = (*bases, Wrapper)
    with pytest.raises(AssertionError):
        Trunk()
    give_back(engine_model)
    assert Trunk()() == "trunk" and Trunk.__bases__ == bases and not hasattr(Trunk, "compiled")
    assert engine_model[0]() == "engine" and isinstance(engine_model[0], Wrapper)


def test_B9_the_limit_on_the_gap_knows_dtype_and_device(monkeypatch):
    limits = []
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        limits += [rollout.gap_limit("float32"), rollout.gap_limit("bfloat16")]
    assert limits == [1e-4, 0.05, 0.05 / 8, 0.05]
    zero, two = torch.zeros(3), torch.full((3,), 2e-3)
    assert rollout.check_gap([zero], [two], "float32") == pytest.approx(2e-3)  # on a GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # A3: which of the engines it is, the sentence does not know
    with pytest.raises(rollout.WrongWeights, match="limit 0.0001 in float32.* the other --engine"):
        rollout.check_gap([zero], [two], "float32")


@pytest.mark.slow
def test_vllm_leaves_compilation_to_the_trainer(engines):
    """On a CPU vLLM itself is kept from it, or its start would take longer (quiet_vllm)."""
    engines("vllm")

    def f(x):
        return x

    assert torch.compile(f) is not f


@pytest.mark.slow
def test_bfloat16_on_a_cpu_runs_or_is_refused(base, group, monkeypatch, tmp_path):
    """vLLM takes AMX without asking the system for it, and a process that has not asked dies."""
    pytest.importorskip("vllm")
    command = [sys.executable, "eval.py", "--model", base, "--data", "tiny", "--prompt", "plain"]
    command += "--n 2 --limit 4 --dtype bfloat16 --engine vllm --max_tokens 32 --out".split()
    done = subprocess.run(
        [*command, str(tmp_path / "x.json")],
        cwd=ROOT,
        env=clean_env(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 or "refuses it" in done.stderr, done.stderr[-2000:]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: False)
    with pytest.raises(ValueError, match="--dtype bfloat16: this machine announces AMX and"):
        rollout.make_engine("vllm", base, max_prompt_tokens=64, max_tokens=32, dtype="bfloat16")
