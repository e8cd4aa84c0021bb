"""Families of language models: right in the quick columns of benchmarks/families.py, or
refused in one sentence, and what is special about their tokenizers."""

import json
import shutil
import sys

import pytest
import torch
import transformers
from conftest import ROOT
from safetensors.torch import load_file, save_file
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


VARIANTS = {  # of a family: (class of its configuration, what is special)
    "yarn": ("Llama", dict(rope_parameters=dict(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=16, rope_theta=1e4))),
    "linear positions": ("Llama", dict(rope_parameters=dict(
        rope_type="linear", factor=4.0, rope_theta=1e4))),
    "Llama 3's positions": ("Llama", dict(rope_parameters=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16, rope_theta=1e4))),
    "heads wider than the states": ("Qwen3", dict(head_dim=48)),
    "a window shorter than the prompt": ("Qwen2", dict(use_sliding_window=True, sliding_window=3,
                                                       max_window_layers=1)),
    "a tied head with a bias": ("Phi", dict(tie_word_embeddings=True)),
    "a head with a bias": ("GPTJ", dict(rotary_dim=16)),
    "no pad token": ("Llama", dict(pad_token_id=None)),
    "pad = eos, three ends": ("Llama", dict(pad_token_id=2, eos_token_id=[2, 3, 9])),
    "parallel residuals": ("GPTNeoX", dict(use_parallel_residual=True, rotary_pct=0.25)),
    "biases everywhere": ("Llama", dict(attention_bias=True, mlp_bias=True)),
    "one expert a token": ("Mixtral", dict(num_local_experts=4, num_experts_per_tok=1)),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_right(name, tmp_path, group, monkeypatch):
    """Log-probs against the model's own logits, and the engine's against them."""
    monkeypatch.setitem(families.FAMILIES, name, VARIANTS[name])
    families.make_model(name, str(tmp_path))
    look(tmp_path)
    for column in ("trainer", "hf"):
        text = families.cell(column, str(tmp_path))
        assert not text.startswith(("refused", "WRONG")), f"{column}: {text}"


def look(folder, tokens: int | None = 64):
    """What load_run looks at before any weight is read."""
    tokenizer, _ = data.load_tokenizer(str(folder))
    data.check_weights(str(folder))
    check_model(str(folder), tokenizer, tokens)
    return tokenizer


def change(name: str, **values):
    """An edit of a JSON file in a model's folder."""

    def edit(folder):
        kept = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(kept | values))

    return edit


def cut(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])


def pointer(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / "model.safetensors").write_text(text)


def only_a_trainers(folder):
    (folder / "model.safetensors").rename(folder / "training_args.bin")


def one_shard(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    change("model.safetensors.index.json", weight_map=dict(zip("ab", names, strict=True)))(folder)


def no_index(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


REFUSALS = {
    "an encoder with a decoder": (
        change("config.json", model_type="bart", is_encoder_decoder=True),
        "'bart', an encoder with a decoder; take a causal",
    ),
    "T5": (change("config.json", model_type="t5"), "'t5' transformers has no causal language"),
    "a reward model": (
        change("config.json", architectures=["Qwen2ForSequenceClassification"]),
        "was saved as Qwen2ForSequenceClassification, whose head is not over tokens; take the",
    ),
    "quantized weights": (
        change("config.json", quantization_config=dict(quant_method="gptq", bits=4)),
        r"its weights are quantized \(gptq\), which cannot be trained; take",
    ),
    "an adapter": (change("adapter_config.json"), "is an adapter .* merge it into its base model"),
    "an unknown type": (change("config.json", model_type="nosuch"), "cannot be read .*nosuch"),
    "code of its own": (
        change("config.json", model_type="own", auto_map=dict(AutoConfig="own.Config")),
        "comes with code of its own .* read it, and add --trust_remote_code",
    ),
    "no end": (
        lambda folder: (
            change("generation_config.json", eos_token_id=999)(folder),
            change("config.json", eos_token_id=None, vocab_size=2)(folder),
        ),
        "no token ends a response.* set eos_token_id there",
    ),
    "weights cut off": (cut, "model.safetensors is cut off, or no safetensors file; get it anew"),
    "a pointer": (pointer, "model.safetensors is a pointer of git-lfs in the place of weights"),
    "a trainer's leftovers": (only_a_trainers, "holds no weights .model.safetensors, pytorch_m"),
    "one shard of two": (one_shard, "of its weights model-00002-of-00002.safetensors is missing"),
    "no index": (no_index, "model.safetensors.index.json cannot be read"),
    "dynamic positions": (
        change(
            "config.json",
            rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4),
            max_position_embeddings=32,
        ),
        r"--max_tokens: with the prompt 64 tokens, and beyond 32 .*\(dynamic positions\); lower",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_folder_is_refused_before_its_weights_are_read(made, tmp_path, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = shutil.copytree(made("Qwen2"), tmp_path / "model")
    look(folder)
    edit, message = REFUSALS[name]
    edit(folder)
    with pytest.raises(ValueError, match=message) as caught:
        look(folder)
    assert "\n" not in str(caught.value)


def test_a_quantized_model_may_be_evaluated(made, tmp_path):
    folder = shutil.copytree(made("Qwen2"), tmp_path / "model")
    change("config.json", quantization_config=dict(quant_method="gptq", bits=4))(folder)
    look(folder, tokens=None)


def test_weights_in_shards_or_of_torch_are_read(made, tmp_path):
    lm = transformers.AutoModelForCausalLM.from_pretrained(made("Qwen2"))
    for kind in ("shards", "bin"):
        folder = shutil.copytree(made("Qwen2"), tmp_path / kind)
        (folder / "model.safetensors").unlink()
        if kind == "shards":
            lm.save_pretrained(folder, max_shard_size="50KB")
            assert len([*folder.glob("*.safetensors")]) > 1
        else:
            torch.save(lm.state_dict(), folder / "pytorch_model.bin")
        look(folder)
        assert families.cell("trainer", str(folder)) == families.cell("trainer", made("Qwen2"))


def test_a_missing_weight_is_no_random_one(made, tmp_path):
    folder = shutil.copytree(made("Qwen2"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata=dict(format="pt"))
    for use in (policy_of, lambda name: rollout.HFEngine(name, "float32")):
        with pytest.raises(ValueError, match=r"its files lack lm_head.weight \(1 weights in all"):
            use(str(folder))


def test_a_token_without_an_embedding_is_refused(made):
    def prompt(*ids):
        return data.Problem(0, "1 + 1", "", [*ids])

    data.check_ids(made("Qwen2"), [prompt(1), prompt(255)])
    with pytest.raises(ValueError, match="writes the token 256, but its vocabulary has 256; take"):
        data.check_ids(made("Qwen2"), [prompt(1), prompt(3, 256)])
    with pytest.raises(ValueError, match="makes no token of the problem '1 . 1'; take the tok"):
        data.check_ids(made("Qwen2"), [prompt(1), prompt()])


def test_a_vocabulary_beyond_the_tokenizers_is_fine(made):
    """Published models pad theirs; such a token may be sampled, and has no text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(made("Qwen2"))
    assert evaluation.decode(tokenizer, [5, 300, 6]) == tokenizer.decode([5, 6])


def test_sampling_that_padding_changes_is_refused(tmp_path, made, group):
    """A recurrent state (Mamba) or positions of its own (BART's decoder): trained right, but the
    hf engine pads to the left."""
    sizes = families.SIZES | dict(state_size=8, num_hidden_layers=1)
    bart = dict(d_model=64, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64)
    for config in (transformers.MambaConfig(**sizes), transformers.BartConfig(**sizes | bart)):
        folder = saved(config, tmp_path / config.model_type)
        transformers.AutoTokenizer.from_pretrained(made("Qwen2")).save_pretrained(folder)
        with pytest.raises(ValueError, match="--engine hf: transformers cannot sample .*vllm, or"):
            rollout.HFEngine(folder, "float32")


def test_layers_that_cannot_be_sharded_are_refused(tmp_path, group):
    """Mamba's mix float32 and bfloat16."""
    sizes = families.SIZES | dict(state_size=8, num_hidden_layers=1)
    folder = saved(transformers.FalconMambaConfig(**sizes), tmp_path)
    with pytest.raises(ValueError, match="'falcon_mamba' it cannot be sharded .*same dtype"):
        load_model(Policy, folder, device="cpu", dtype="bfloat16")


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
LISTS = "{% for m in messages %}{{ m.role }}: {{ m.content[0].text }}\n{% endfor %}"
DEAF = "{% for m in messages if m.role == 'user' %}user: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize("template", [STRICT, DEAF])
def test_B8_without_a_system_role_its_text_goes_before_the_users(template):
    system = PROMPTS["qwen"].system
    assert render("1+1", PROMPTS["qwen"], tokenizer_of(USER)) == f"system: {system}\nuser: 1+1\n"
    text = render("1+1", PROMPTS["qwen"], tokenizer_of(template))
    assert text == f"user: {system}\n\n1+1\n"
    assert render("1+1", PROMPTS["plain"], tokenizer_of(template)) == "user: 1+1\n"


@pytest.mark.parametrize(
    "template, message",
    [
        ("", "this model's tokenizer has no chat template"),
        ("{{ raise_exception('not today') }}", r"tokenizer fails \(not today\)"),
        ("{{ messages[0].content + 1 }}", "tokenizer fails"),
        ("{% for m in messages %}", "tokenizer fails"),
        ("{{ bos_token }}", "tokenizer leaves the problem out"),
        (LISTS, "tokenizer leaves the problem out"),
    ],
)
@pytest.mark.parametrize("name", ["r1", "qwen"])
def test_a_chat_template_that_cannot_say_a_problem_is_refused(template, message, name):
    with pytest.raises(ValueError, match=f"--prompt {name}: .*{message}.*; use --prompt") as caught:
        data.load_problems("tiny", tokenizer_of(template), prompt=name)
    assert "\n" not in str(caught.value)


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
