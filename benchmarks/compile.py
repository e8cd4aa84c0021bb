"""--compile against none, on CPU: seconds of an update's passes, in alternation in one process.

    python benchmarks/compile.py > benchmarks/results/compile.md     some five minutes on two cores

A Qwen2 of random weights (hidden 576, 8 layers, vocabulary 8,192), float32, 32 responses of uneven
lengths in micro-batches; each way once to warm up (there its layers are compiled), then five times.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import parallel
from buffer import Response
from model import Policy, load_model
from plot import markdown
from tiny import make_tokenizer

SIZES = dict(vocab_size=8192, hidden_size=576, intermediate_size=1536, num_hidden_layers=8)
HEADS = dict(num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)


def responses() -> list[Response]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(60, 260, (32,), generator=draw).tolist()
    ids = [torch.randint(8192, (32 + n,), generator=draw).tolist() for n in lengths]
    return [Response(x[:32], x[32:], torch.zeros(len(x) - 32), True, 0.0, 1) for x in ids]


def update(policy: Policy, rs: list[Response]) -> float:
    """Seconds of all forward and backward passes over the responses."""
    began = time.perf_counter()
    for indices in parallel.my_share(rs, 2048):
        logp, H, _ = policy(parallel.collate([rs[i] for i in indices]))
        parallel.backward((logp + 0.001 * H).sum())
    policy.zero_grad()
    return time.perf_counter() - began


def main() -> None:
    parallel.init_distributed()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS)).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        load = dict(name=folder, device="cpu", dtype="float32", shard="none")
        ways = {
            f"{what}, {again} checkpointing": load_model(
                Policy, compiled=compiled, checkpointing=again == "with", **load
            )
            for again in ("without", "with")
            for what, compiled in {"plain": False, "`--compile`": True}.items()
        }
    rs = responses()
    tokens = sum(len(r.prompt) + len(r.tokens) for r in rs)
    first = {name: update(policy, rs) for name, policy in ways.items()}
    times = {name: [] for name in ways}
    for _ in range(5):
        for name, policy in ways.items():
            times[name].append(update(policy, rs))
    threads, cores = torch.get_num_threads(), os.cpu_count()
    print(f"{tokens:,} tokens, {threads} thread(s) of {cores} cores, torch {torch.__version__}\n")
    heads = ["", "first pass [s]", "median [s]", "lowest, highest", "against plain"]
    rows = []
    for name, of in times.items():
        plain = statistics.median(times[name.replace("`--compile`", "plain")])
        median = statistics.median(of)
        cells = [f"{first[name]:.1f}", f"{median:.2f}", f"{min(of):.2f}, {max(of):.2f}"]
        rows.append([name, *cells, f"{median / plain:.2f}"])
    print(markdown(heads, rows))


if __name__ == "__main__":
    main()
