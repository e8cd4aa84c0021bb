"""--lora_rank: value and gradient against W + s B A on a plain model, anchors, what the sampler
gets, what is saved; and that it learns."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from forks import forked
from test_model import RESPONSES
from test_ranks import assert_gradients_of_one_rank
from test_remix import assert_same_run, metrics, run, weights
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.func import functional_call
from transformers import AutoModelForCausalLM

import checkpoint
import config
import lora
import model
import parallel
import rollout
from data import Problem
from model import Critic, Policy, copy_weights, full_weights, load_model, whole_head
from parallel import collate

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RANK = 4


def loader_of(base, rank=RANK, frozen=2, dtype="float32", **options):
    load = partial(load_model, name=base, device="cpu", dtype=dtype, **options)
    return lora.loader(load, rank, critic=True, frozen=frozen)


def moved(network, seed=1, scale=0.05):
    """As if trained: B, which begins at 0, and the critic's head are not 0 any more."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p = parallel.local(p)
            p.add_(scale * torch.randn(p.shape, generator=draw))
    return network


def by_hand(base, network) -> tuple[nn.Module, dict, dict]:
    """The plain model, the adapter's A and B as leaves, and W + (32 / r) B A by its names."""
    lm = AutoModelForCausalLM.from_pretrained(base)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    merged = dict(lm.named_parameters())
    for name in [name for name in leaves if "lora_A" in name]:
        A, B = leaves[name], leaves[name.replace("lora_A", "lora_B")]
        plain = name.removesuffix(".lora_A.weight").replace("/", ".") + ".weight"
        merged[plain] = merged[plain].detach() + 32 / RANK * B @ A
    return lm, leaves, merged


@pytest.mark.parametrize("checkpointing", [False, True])
def test_value_and_gradient_are_those_of_w_plus_s_b_a(base, group, checkpointing):
    """Of policy and critic, whose passes come before both backward passes: checkpointing then must
    compute again with the adapter of each. Neither's loss reaches the other."""
    load, x = loader_of(base, checkpointing=checkpointing), collate(RESPONSES)
    policy, critic = moved(load(Policy)), moved(load(Critic), seed=2)
    weight = torch.randn(x.mask.shape, generator=torch.Generator().manual_seed(3))
    logp, H, _ = policy(x)
    values = critic(x)
    ((logp + 0.1 * H) * weight).sum().backward()
    assert all(p.grad is None for p in critic.parameters())
    of_the_policy = [p.grad.clone() for p in policy.parameters()]
    (values * weight).sum().backward()
    assert all(map(torch.equal, of_the_policy, (p.grad for p in policy.parameters())))
    assert all(p.grad is None for p in policy.lm.parameters() if not p.requires_grad)

    lm, leaves, merged = by_hand(base, policy)
    logits = functional_call(lm, merged, (x.ids,)).logits.gather(
        1, x.index[..., None].expand(-1, -1, lm.config.vocab_size)
    )
    log_p = torch.log_softmax(logits, -1)
    expected = log_p.gather(-1, x.labels[..., None]).squeeze(-1) * x.mask
    entropy = -(log_p.exp() * log_p).sum(-1) * x.mask
    assert (logp - expected).abs().max() <= 1e-5 and (H - entropy).abs().max() <= 1e-5
    ((expected + 0.1 * entropy) * weight).sum().backward()
    for name, p in policy.named_parameters():
        torch.testing.assert_close(p.grad, leaves[name].grad, atol=2e-5, rtol=1e-4)
        assert p.grad.abs().max() > 1e-3

    lm, leaves, merged = by_hand(base, critic)
    states = functional_call(lm, merged, (x.ids,), dict(output_hidden_states=True)).hidden_states
    states = states[-1].gather(1, x.index[..., None].expand(-1, -1, lm.config.hidden_size))
    expected = (states @ leaves["head.weight"][0] + leaves["head.bias"]) * x.mask
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    (expected * weight).sum().backward()
    for name, p in critic.named_parameters():
        torch.testing.assert_close(p.grad, leaves[name].grad, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_starts_as_the_base_model_and_its_anchors_stay_until_they_are_copied(base, group, dtype):
    """Bit for bit, sharded in bfloat16 too. The rank is the highest there is: 64."""
    load, x = loader_of(base, rank=64, dtype=dtype), collate(RESPONSES)
    policy, critic, anchor, prev = (
        load(kind, frozen=i > 1) for i, kind in enumerate((Policy, Critic, Policy, Policy))
    )
    plain = load_model(Policy, base, device="cpu", dtype=dtype, frozen=True)
    start = plain(x)[0]
    for network in (policy, anchor, prev):
        assert torch.equal(network(x)[0], start)
    assert not critic(x).any()
    x.anchors["base"] = anchor(x, states=True)
    heads = dict(base=whole_head(anchor, dtype))
    assert not policy(x, heads)[2]["base"].any()

    own = [*policy.parameters(), *critic.parameters(), *anchor.parameters()]
    assert {p.dtype for p in own} == {torch.float32}
    names = policy.lm.named_parameters()
    assert {p.dtype for name, p in names if "lora_" not in name} == {getattr(torch, dtype)}
    assert not any(p.requires_grad for p in [*anchor.parameters(), *prev.parameters()])
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-2, fused=True)
    for _ in range(2):
        policy(x)[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    now = policy(x)[0]
    assert (now - start).abs().max() > 0.1
    assert torch.equal(anchor(x)[0], start) and torch.equal(prev(x)[0], start)
    copy_weights(prev, policy)
    assert torch.equal(prev(x)[0], now) and torch.equal(anchor(x)[0], start)
    moved(policy)
    assert torch.equal(prev(x)[0], now) and not torch.equal(policy(x)[0], now)


def test_the_sampler_gets_merged_weights_and_it_is_proved(base, group, engines, monkeypatch):
    """By names and values, tied head included. A merge that forgets an adapter is noticed before
    the first rollout, while B is still 0; the policy is put back bit for bit."""
    policy = loader_of(base)(Policy)
    engine, problems = engines("hf"), [Problem(0, "", "", [5, 6, 7, 8])]
    cfg = SimpleNamespace(
        dtype="float32", temperature=1.0, max_tokens=16, max_prompt_tokens=64,
        tensor_parallel=1, tokens_per_micro_batch=1000,
    )  # fmt: skip
    before = {name: p.clone() for name, p in policy.lm.named_parameters()}
    rollout.prove_sync(engine, policy, problems, cfg)
    assert all(torch.equal(before[name], p) for name, p in policy.lm.named_parameters())
    with monkeypatch.context() as patch:
        layer = next(m for _, m in lora.adapted_layers(policy.lm))
        patch.setattr(layer, "get_delta_weight", lambda name: 0.0)
        with pytest.raises(rollout.WrongWeights, match="disagree"):
            rollout.prove_sync(engine, policy, problems, cfg)

    moved(policy)
    engine.sync(full_weights(policy, "float32"))
    _, _, merged = by_hand(base, policy)
    held = engine.lm.state_dict()
    assert held.keys() == {*merged, "lm_head.weight"}
    for name, tensor in merged.items():
        torch.testing.assert_close(held[name], tensor.detach(), atol=1e-6, rtol=1e-6)
    assert torch.equal(held["lm_head.weight"], held["model.embed_tokens.weight"])
    rollout.probe(engine, policy, problems, cfg)
    halved = dict(full_weights(policy, "bfloat16"))
    assert {t.dtype for t in halved.values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_model_and_adapter_load_elsewhere(base, group, tokenizer, tmp_path, dtype):
    """What transformers reads from model/ and peft from adapter/ on the base model is the policy;
    an adapter on a backbone in bfloat16 (sharded) is exported in float32, without rounding."""
    policy = moved(loader_of(base, dtype=dtype)(Policy))
    checkpoint.export(policy, tokenizer, tmp_path / "model")
    checkpoint.write_folder(tmp_path / "adapter", lora.adapter(policy, base))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(base)
    for p in plain.parameters():
        p.data = p.data.to(getattr(torch, dtype)).float()
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        ours, theirs = exported(ids).logits, loaded(ids).logits
    assert ours.dtype == torch.float32 and exported.config.tie_word_embeddings
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    x = collate(RESPONSES)
    gap = (policy(x)[0] - Policy(exported.eval(), 1.0)(x)[0]).abs().max()
    assert gap < (1e-5 if dtype == "float32" else 0.2)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == base and settings["r"] == RANK


def test_bad_input_is_refused_in_one_sentence(base, group, monkeypatch):
    def refused(*flags):
        flags = ["--recipe", "tiny", "--lora_rank", *flags]
        with pytest.raises(ValueError) as caught:
            config.check_config(config.parse_config(flags))
        return str(caught.value)

    assert refused("-1") == "--lora_rank -1: must not be negative"
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    assert "needs the package peft" in refused("4") and "pip install peft==" in refused("4")
    read = []
    monkeypatch.setattr(model, "read_model", lambda *args, **kw: read.append(args))
    with pytest.raises(ValueError, match="--lora_rank 65: .* no layer has a higher rank than 64"):
        loader_of(base, rank=65)
    trunk, lm = nn.Sequential(nn.Embedding(3, 4)), nn.Module()
    lm.config, lm.get_decoder = SimpleNamespace(model_type="odd"), lambda: trunk
    with pytest.raises(ValueError, match="--lora_rank 4: for a 'odd' model peft finds no linear"):
        lora.adapt(["policy"], 4, 0, SimpleNamespace(lm=lm))
    trunk.experts = nn.Parameter(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="experts or convolutions would have no adapters; use 0"):
        lora.adapt(["policy"], 4, 0, SimpleNamespace(lm=lm))
    assert not read


# --------------------------------------------------------------------------------------- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_a_run_goes_on_bit_for_bit_and_saves_adapters_alone(base, tmp_path, algo):
    """2 + 2 steps are 4 steps, with reincarnation and a lagging sampler. What is saved holds no
    weight of the backbone, and `checkpoint.py` exports what the run itself does."""
    flags = ["--algo", algo, "--lora_rank", RANK, "--lr", 1e-2, "--save_every", 2]
    flags += ["--sampler_lag", 1] if algo == "grpo" else ["--gradient_checkpointing"]
    flags += ["--group_size", 1 if algo == "ppo" else 4]
    run(base, tmp_path / "whole", *flags)
    run(base, tmp_path / "run", *flags, "--steps", 2)
    run(base, tmp_path / "run", *flags, "--eval_every", 2)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    saved = tmp_path / "whole" / "checkpoints" / "step-000004"
    names = FileSystemReader(saved).read_metadata().state_dict_metadata
    weights_saved = [name for name in names if "_optimizer" not in name]
    assert weights_saved and all("lora_" in n or n.startswith("critic.head") for n in weights_saved)
    assert {name.split(".")[0] for name in weights_saved} == {
        "policy", "base", "prev", *(["critic"] if algo == "ppo" else ["lag1"])
    }  # fmt: skip
    said, args = tmp_path / "said.txt", [tmp_path / "whole", tmp_path / "x" / "model"]
    assert forked(said, args, "import checkpoint; checkpoint.main()") == [0], said.read_text()
    ours, theirs = weights(tmp_path / "x"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_ranks_and_nodes_give_the_gradients_of_one_rank(base, tmp_path, algo):
    """As tests/test_ranks.py has it for full finetuning; two nodes, too, whose FSDP groups hold the
    policy's and the critic's adapters together."""
    size = ["--prompts_per_step", 5]
    if algo == "grpo":
        size = ["--prompts_per_step", 3, "--mini_batch", 3, "--group_size", 3]
    flags = ["--algo", algo, *size, "--lora_rank", RANK, "--steps", 2, "--eval_every", 0]
    flags += ["--eval_limit", 1, "--eval_n", 1, "--kl_convex", 0.5, "--kl_coef", 0.1]
    flags += ["--tokens_per_micro_batch", 100, "--entropy_coef", 0.01, "--gradient_checkpointing"]
    flags += ["--lr", 1e-30, "--critic_lr", 1e-30, "--weight_decay", 0]
    launches = [("node", 2, 1), ("node", 1, 2)] if algo == "ppo" else [("none", 2, 1)]
    assert_gradients_of_one_rank(base, tmp_path, algo, flags, launches)


@pytest.mark.slow
def test_it_learns_the_embedded_task(tmp_path):
    """The base model solves a quarter of the problems, and half of them after four steps of an
    adapter of rank 16. The noise is three points."""
    flags = "--recipe tiny --algo grpo --engine hf --lora_rank 16 --lr 1e-3 --steps 4".split()
    flags += "--eval_every 0 --reincarnation_step 3 --kl_convex schedule:2,1".split()
    said = tmp_path / "said.txt"
    assert forked(said, [*flags, "--out", tmp_path / "run"]) == [0], said.read_text()
    before, *_, after = (row.get("eval/pass@1") for row in metrics(tmp_path / "run"))
    assert before < 0.35 and after > before + 0.12
