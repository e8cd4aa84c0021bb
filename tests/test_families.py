"""Families of language models: right in the quick columns of benchmarks/families.py, or
refused in one sentence, and what is special about their tokenizers."""

import json
import sys

import pytest
import torch
import transformers
from conftest import ROOT
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(ROOT / "benchmarks"))
import families  # noqa: E402

import checkpoint  # noqa: E402
import data  # noqa: E402
import eval as evaluation  # noqa: E402
import model  # noqa: E402
import parallel  # noqa: E402
import rollout  # noqa: E402
from data import PROMPTS, Prompt, check_model, encode, render, stop_tokens  # noqa: E402
from model import Critic, Policy, checkpoint_format, full_weights, load_model  # noqa: E402

REFUSED = {"HyperCLOVA X": "--model .*'hyperclovax' ReMix computes log-probs that are .* off"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, group):
    """make(family) -> a folder with a tiny random model of it."""
    folders = {}

    def make(name: str) -> str:
        if name not in folders:
            folders[name] = str(tmp_path_factory.mktemp("family") / "model")
            families.make_model(name, folders[name])
        return folders[name]

    return make


def policy_of(folder: str, **options):
    return load_model(Policy, folder, device="cpu", dtype="float32", **options)


@pytest.mark.parametrize("name", [name for name in families.FAMILIES if name not in REFUSED])
def test_A3_B1_B2_B4_B5_a_family_is_right(made, name):
    for column in families.CHECKS:
        if column not in families.APART:
            text = families.cell(column, made(name))
            assert not text.startswith(("refused", "WRONG")), f"{column}: {text}"
    # What vLLM is sent is what a checkpoint holds, name by name, and a tied head once more
    policy = policy_of(made(name))
    sent = dict(checkpoint_format(policy.lm, full_weights(policy)))
    disk = load_file(f"{made(name)}/model.safetensors")
    assert sent.keys() - policy.lm.all_tied_weights_keys.keys() == disk.keys()
    assert all(torch.equal(sent[key], disk[key]) for key in disk)


@pytest.mark.parametrize("name", REFUSED)
def test_A3_a_family_is_refused(made, name):
    with pytest.raises(ValueError, match=REFUSED[name]) as caught:
        policy_of(made(name))
    assert "\n" not in str(caught.value) and "--engine hf" not in str(caught.value)


def saved(config, folder, **changes) -> str:
    lm = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, value in changes.items():
            lm.get_parameter(name.replace("__", ".")).copy_(value)
    lm.save_pretrained(folder)
    return str(folder)


def test_A3_a_model_that_looks_to_the_right_is_refused(tmp_path, group):
    sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.BertConfig(**sizes, intermediate_size=32, is_decoder=False)
    with pytest.raises(ValueError, match="'bert' ReMix"):
        policy_of(saved(config, tmp_path))


def test_weights_that_are_not_tied_as_the_config_says_are_refused(made, tmp_path):
    lm = transformers.AutoModelForCausalLM.from_pretrained(made("Qwen2"))
    lm.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(
        path.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    )
    with pytest.raises(ValueError, match="ties two layers that differ"):
        policy_of(str(tmp_path))


def test_A4_no_rate_of_dropout_is_left(made):
    kept = {
        name for name, value in vars(transformers.GPT2Config()).items() if "pdrop" in name and value
    }
    assert kept == {"attn_pdrop", "embd_pdrop", "resid_pdrop"}  # 0.1 each, as a user gets them
    config = model.model_options(made("GPT-2"))["config"]
    assert all(getattr(config, name) == 0 for name in kept)
    policy = policy_of(made("GPT-2"))
    batch = parallel.collate(families.responses())
    assert policy.training and torch.equal(policy(batch)[0], policy(batch)[0])


def test_A6_positions_that_depend_on_the_batch_are_refused(tmp_path, made, group):
    """A longrope model beyond its original length: a response's log-probs are others beside a long
    one."""
    rope = dict(rope_type="longrope", short_factor=[1.0] * 16, long_factor=[3.0] * 16)
    rope |= dict(rope_theta=1e4, original_max_position_embeddings=16)
    config = transformers.Phi3Config(**families.SIZES, rope_parameters=rope)
    config.original_max_position_embeddings = 16
    folder = saved(config, tmp_path)
    lm = transformers.AutoModelForCausalLM.from_pretrained(folder)
    row = torch.arange(4, 16)[None]
    beside = torch.cat([row, torch.zeros_like(row)], 1)
    alone, other = (lm(x).logits[0, :12].log_softmax(-1) for x in (row, beside))
    assert (alone - other).abs().max() > 1e-3
    tokenizer = transformers.AutoTokenizer.from_pretrained(made("Qwen2"))
    check_model(folder, tokenizer, 16)
    with pytest.raises(ValueError, match=r"beyond 16 a log-prob .*\(longrope") as caught:
        check_model(folder, tokenizer, 17)
    assert "\n" not in str(caught.value)
    rope = dict(rope_type="dynamic", factor=2.0, rope_theta=1e4)
    folder = saved(transformers.LlamaConfig(**families.SIZES, rope_parameters=rope), tmp_path)
    check_model(folder, tokenizer, 256)
    with pytest.raises(ValueError, match=r"beyond 256 a log-prob .*\(dynamic"):
        check_model(folder, tokenizer, 257)


def test_B8_no_causal_model_and_no_end_are_refused(made, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(made("Qwen2"))
    transformers.T5Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'t5' transformers has no causal language model"):
        check_model(str(tmp_path), tokenizer, 10)
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer)
    transformers.Qwen2Config(eos_token_id=None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no token ends a response"):
        check_model(str(tmp_path), endless, 10)


def test_B9_flash_attention_is_refused_where_packed_rows_see_each_other(made):
    for name, exact in (("Qwen2", True), ("Gemma 2", True), ("Falcon-H1", False), ("BLOOM", False)):
        policy = policy_of(made(name))
        if exact:
            model.check_policy(policy, "DIR", "flash_attention_2")
        else:
            with pytest.raises(ValueError, match="would let responses see each other.*sdpa"):
                model.check_policy(policy, "DIR", "flash_attention_2")


def test_B2_a_multimodal_model_is_trained_without_its_tower(made):
    """Its critic has none either, and parameters without gradient do not stop the averaging."""
    policy = policy_of(made("Gemma 3"))
    critic = load_model(Critic, made("Gemma 3"), device="cpu", dtype="float32")
    frozen = {name for name, p in policy.named_parameters() if not p.requires_grad}
    assert frozen and all("vision" in name or "multi_modal" in name for name in frozen)
    assert not [name for name, _ in critic.named_parameters() if "vision" in name]
    assert data.load_tokenizer(made("Gemma 3"))[1] == 256  # the context that its text part has


@pytest.mark.parametrize("name", ["GPT-2", "OPT", "Falcon", "Gemma 3", "Mixtral"])
def test_B1_shards_are_the_layers_whatever_their_name(made, name):
    options = model.model_options(made(name))
    with torch.device("meta"):
        lm = transformers.AutoModelForCausalLM.from_config(**options)
        for net in (Policy(lm, 1.0), Critic(lm)):
            assert len(model.blocks(net)) >= 2  # its layers; of Gemma 3 also the tower's


def test_A8_the_critics_head_is_float32_in_bfloat16_shards(made):
    """In bfloat16 V would move in steps of 0.004."""
    critic = load_model(Critic, made("Qwen2"), device="cpu", dtype="bfloat16")
    batch = parallel.collate(families.responses())
    with torch.no_grad():
        critic.head.bias.fill_(1 + 2**-12)
        assert (critic(batch) == (1 + 2**-12) * batch.mask).all()
    (critic(batch).sum() * (1 + 2**-12)).backward()  # its gradient too
    assert parallel.whole(critic.head.bias.grad).item() == batch.mask.sum() * (1 + 2**-12)


def test_A9_states_for_the_exact_kl_have_the_compute_dtype(made):
    rows = families.responses()
    for dtype in ("float32", "bfloat16"):
        policy = load_model(Policy, made("Qwen2"), device="cpu", dtype=dtype, frozen=True)
        states = parallel.frozen_pass(policy, rows, 10**6, "cpu", states=True)
        assert {s.dtype for s in states} == {getattr(torch, dtype)}
        assert [len(s) for s in states] == [len(r.tokens) for r in rows]
        logp = parallel.frozen_pass(policy, rows, 10**6, "cpu")
        assert {x.dtype for x in logp} == {torch.float32}


def test_B6_either_eos_ends_a_response(made):
    """generation_config's and the tokenizer's, as in vLLM."""
    engine = rollout.make_engine("hf", made("Qwen2"), max_prompt_tokens=8, max_tokens=8)
    assert engine.eos == [3, 2]
    samples = engine.generate([[5, 6]], 300, seeds=[0], max_tokens=8)[0]
    assert {s.tokens[-1] for s in samples if s.finished} == {2, 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, start",
    [
        ("Gemma 2", ""),  # B4: it wants no head beside the embedding
        ("SmolLM3", ""),  # B3: runs through transformers' own class
        ("Mixtral", "refused: --engine vllm: on a CPU it cannot take new weights for the experts"),
    ],
)
def test_B3_B4_vllm_after_a_sync(name, start):
    pytest.importorskip("vllm")
    text = families.apart(name, "vLLM")
    assert text.startswith(start) if start else float(text) < 1e-4


@pytest.mark.slow
def test_a_family_goes_through_the_loop():
    assert float(families.apart("Gemma 2", "remix.py")) < 1e-5


def test_B2_an_expert_that_only_another_rank_trained_counts_as_zero(monkeypatch):
    net = torch.nn.ModuleList([torch.nn.Linear(2, 1, bias=False) for _ in range(3)])
    net[2].requires_grad_(False)
    net[0].weight.grad = torch.ones(1, 2)
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda flat: flat.add_(torch.arange(4.0)))
    parallel.clip_gradients(net, 1e9)
    assert net[0].weight.grad.tolist() == [[0.5, 1.0]] and net[2].weight.grad is None
    assert net[1].weight.grad.tolist() == [[1.0, 1.5]]


def test_B5_an_export_keeps_settings_that_contradict_each_other(made, tmp_path):
    """Published models have them; transformers' own save would refuse, at the end of the run."""
    policy = policy_of(made("Qwen2 tied"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(made("Qwen2 tied"))
    settings = dict(do_sample=False, temperature=0.6, eos_token_id=[2, 3])
    policy.lm.generation_config = transformers.GenerationConfig(**settings)
    checkpoint.export(policy, tokenizer, tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert kept["temperature"] == 0.6 and kept["eos_token_id"] == [2, 3]


# --- tokenizers ---


def tokenizer_of(template: str = "") -> PreTrainedTokenizerFast:
    """Characters, <s> before and </s> after a text."""
    tokens = ["<s>", "</s>", "<end>", *map(chr, range(32, 127)), "\n"]
    words = {token: i for i, token in enumerate(tokens)}
    inner = Tokenizer(models.WordLevel(words, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.add_special_tokens(["<s>", "</s>", "<end>"])
    ends = [("<s>", 0), ("</s>", 1)]
    inner.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def test_B8_a_prompt_does_not_end_itself():
    tokenizer = tokenizer_of()
    assert tokenizer("ab")["input_ids"][-1] == tokenizer.eos_token_id  # as some tokenizers do
    raw = Prompt("{problem}", "boxed", chat=False)
    assert tokenizer.convert_ids_to_tokens(encode("ab", raw, tokenizer)) == ["<s>", "a", "b"]
    asked = encode("ab</s>", raw, tokenizer)  # the file with the prompt wants it there
    assert tokenizer.convert_ids_to_tokens(asked)[-1] == "</s>"


USER = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + USER
DEAF = "{% for m in messages if m.role == 'user' %}user: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize("template", [STRICT, DEAF])
def test_B8_without_a_system_role_its_text_goes_before_the_users(template):
    system = PROMPTS["qwen"].system
    assert render("1+1", PROMPTS["qwen"], tokenizer_of(USER)) == f"system: {system}\nuser: 1+1\n"
    text = render("1+1", PROMPTS["qwen"], tokenizer_of(template))
    assert text == f"user: {system}\n\n1+1\n"
    assert render("1+1", PROMPTS["plain"], tokenizer_of(template)) == "user: 1+1\n"


def test_B7_every_token_that_ends_a_response_is_cut_from_its_text(tmp_path):
    """Gemma's <end_of_turn> is in generation_config alone: format tags would give 0."""
    tokenizer_of().save_pretrained(tmp_path)
    transformers.GenerationConfig(eos_token_id=2).save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert stop_tokens(tokenizer) == [2, 1]
    ids = tokenizer("ab", add_special_tokens=False)["input_ids"]
    for end in ([], [1], [2]):
        assert evaluation.decode(tokenizer, ids + end) == tokenizer.decode(ids)
    assert "<end>" in evaluation.decode(tokenizer, [*ids, 2, *ids])
