"""GPU memory and an estimate of the seconds of a step at 1.5B, 7B and 32B, without a GPU.

    python benchmarks/memory.py              the memory tables of docs/scaling.md (simulated)
    python benchmarks/memory.py --estimate   its tables of seconds and of bytes sent (arithmetic)
    python benchmarks/memory.py --lora 32    the table of --lora_rank 32 (simulated)
    python benchmarks/memory.py --cards      which recipe fits which card (simulated)
    python benchmarks/memory.py --check      small shapes: simulated against measured on this CPU

Simulated: Policy and Critic of model.py run forward and backward at full size, with AdamW, on
torch's fake tensors (shapes, no data), sharded with FSDP2 over a fake process group. Every storage
that PyTorch allocates is counted, per rank. Not simulated: vLLM (its share is --gpu_memory), CUDA's
context, NCCL's buffers, workspaces inside kernels, and what the allocator loses to fragmentation.
RESERVE stands for these; it is an assumption. Fake tensors are CPU tensors: kernels are the CPU's,
and nothing runs at the same time. So a layer that FSDP2 fetches early on a GPU is added by
arithmetic.

Every response of a batch has full length: the worst case. GiB = 2^30 bytes. Shapes are those of the
published configs of DeepSeek-R1-Distill-Qwen, with an untied head, and of Qwen2.5-0.5B, with a tied
one.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from unittest import mock

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # see tiny.py
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Qwen2Config
from transformers.utils import logging

import lora
import model as networks
from model import Critic, Policy, blocks, full_weights
from parallel import Batch

# the head's float32 math, 32 MiB at a time: row by row would simulate for hours
networks.LOGITS_PER_PART = 2**23

GIB = 2**30
GPU = 79 * GIB  # what PyTorch sees of an 80 GB card
SMALL_GPU = 22 * GIB  # the least that it sees of a 24 GB card (A10G, L4; a 4090 has 23.5)
# assumption: CUDA context, NCCL, kernels' workspaces, fragmentation, what a sleeping vLLM keeps
RESERVE = 4 * GIB
PROMPT = 766
SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "0.5B": (896, 4864, 24, 14, 2, 151936),
    "1.5B": (1536, 8960, 28, 12, 2, 151936),
    "7B": (3584, 18944, 28, 28, 4, 152064),
    "32B": (5120, 27648, 64, 40, 8, 152064),
}


def shape(size: str) -> Qwen2Config:
    hidden, inner, layers, heads, kv, vocabulary = SHAPES[size]
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocabulary,
        tie_word_embeddings=size == "0.5B",
        max_position_embeddings=131072,
    )


# ---- the memory simulation -----------------------------------------------------------------------


class Tracker(TorchDispatchMode):
    """Counts the bytes of all live storages of 64 KiB and more; `peak`: the most since `reset`."""

    def __init__(self):
        super().__init__()
        self.live: dict[int, int] = {}  # storage -> weak pointer
        # bound: at least what is live; counting anew is needed only when it passes the peak
        self.peak = self.bound = 0

    def __enter__(self):
        self.resize = torch.UntypedStorage.resize_
        tracker = self

        def resize_(storage, size):  # FSDP2 frees and refills gathered weights by it
            before = storage.nbytes()
            tracker.resize(storage, size)
            tracker.grow(size - before if storage._cdata in tracker.live else 0)

        torch.UntypedStorage.resize_ = resize_
        return super().__enter__()

    def __exit__(self, *error):
        torch.UntypedStorage.resize_ = self.resize
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # it unwraps itself: operations on its local tensor come next
        fake = args and isinstance(args[0], torch._subclasses.FakeTensor)
        if func is torch.ops.aten.nonzero.default and fake:  # a mask of ones: full length
            out = args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.long)
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        weak = self.live.get(storage._cdata)
        if weak is not None and torch.UntypedStorage._new_with_weak_ptr(weak) is None:
            torch.UntypedStorage._free_weak_ref(self.live.pop(storage._cdata))
            weak = None  # its address was used again
        if weak is None and storage.nbytes() >= 2**16:
            self.live[storage._cdata] = storage._weak_ref()
            self.grow(storage.nbytes())

    def grow(self, size: int) -> None:
        self.bound += max(size, 0)
        if self.bound > self.peak:
            self.bound = self.current()
            self.peak = max(self.peak, self.bound)

    def current(self) -> int:
        total = 0
        for key, weak in list(self.live.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(weak)
            if storage is None:
                torch.UntypedStorage._free_weak_ref(self.live.pop(key))
            else:
                total += storage.nbytes()
        return total

    def reset(self) -> None:
        self.peak = self.bound = self.current()


def build(
    kind: type, config: Qwen2Config, mesh, *, frozen=False, checkpointing=True,
    adapt: Callable | None = None,
):  # fmt: skip
    """What model.load_model does, without reading weights."""
    dtype = torch.bfloat16 if frozen or adapt else torch.float32
    net = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if checkpointing and not frozen:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    model = Policy(net, 1.0) if kind is Policy else Critic(net)
    model = model.train(not frozen).requires_grad_(not frozen)
    if adapt:
        # peft moves adapters to where they are, and fake parameters cannot be moved
        with mock.patch.object(torch.nn.Module, "to", lambda module, *_, **__: module):
            adapt(model)
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in blocks(model):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    if hasattr(model, "head"):
        in_full = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
        fully_shard(model.head, mesh=mesh, mp_policy=in_full)
    fully_shard(model, mesh=mesh, mp_policy=precision)
    return model


def size_of(tensors) -> int:
    return sum(t.to_local().nbytes if isinstance(t, DTensor) else t.nbytes for t in tensors)


def simulate(
    config: Qwen2Config,
    gpus: int,
    *,
    critics: bool = True,
    shard: int = 0,
    response: int = 8192,
    budget: int = 16384,
    checkpointing: bool = True,
    anchored: bool = True,
    frozen_passes: bool = True,
    lora_rank: int = 0,
    fake: bool = True,
) -> dict[str, int]:
    """Bytes per rank of one step, by part. shard: ranks that share one copy (HSDP), 0 = all.
    budget: tokens of a micro-batch. fake=False runs the same with real tensors on one rank."""
    shard = shard or gpus
    if fake:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=gpus)
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    shapes = (gpus,) if shard == gpus else (gpus // shard, shard)
    mesh = init_device_mesh("cpu", shapes, mesh_dim_names=("nodes", "gpus")[-len(shapes) :])
    rows, length = max(1, budget // (PROMPT + response)), PROMPT + response
    many = max(1, 4 * budget // length)  # remix.py's frozen passes take four times the tokens
    tracker = Tracker()
    with (
        FakeTensorMode() if fake else contextlib.nullcontext(),
        tracker if fake else contextlib.nullcontext(),
    ):

        def batch(n: int) -> Batch:
            # the states before each response token predict it; real tensors need real indices
            index = torch.arange(PROMPT - 1, length - 1).expand(n, response).contiguous()
            ids, labels = (torch.zeros(n, size, dtype=torch.long) for size in (length, response))
            return Batch(ids, index, labels, torch.ones(n, response))

        def policy_pass(n: int):
            logp, entropy, _ = policy(batch(n))
            return logp.sum() + entropy.sum()

        def critic_pass(n: int):
            return critic(batch(n)).sum()

        load = partial(build, config=config, mesh=mesh, checkpointing=checkpointing)
        how_many = 2 if anchored else 0  # base and precedent
        if lora_rank:
            load = lora.loader(load, lora_rank, critics, how_many)
        policy = load(Policy)
        anchors = [load(Policy, frozen=True) for _ in range(how_many)]
        critic = load(Critic) if critics else None
        trained = {"policy": policy} | ({"critic": critic} if critic is not None else {})
        passes = {"policy": policy_pass, "critic": critic_pass}
        optimizers = {
            name: torch.optim.AdamW(m.parameters(), fused=True) for name, m in trained.items()
        }
        part = {name: size_of(m.parameters()) for name, m in trained.items()}
        part["anchors"] = sum(size_of(m.parameters()) for m in anchors)
        backbone = [p for name, p in policy.lm.named_parameters() if ".lora_" not in name]
        part["backbone"] = size_of(backbone) if lora_rank else 0
        peaks = {}
        for _ in range(2):  # in the second, gradients and optimizer states are there from the start
            for name in trained:
                tracker.reset()
                passes[name](rows).backward()
                peaks[f"update {name}"] = tracker.peak
            tracker.reset()
            for name, model in trained.items():
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
                optimizers[name].step()
            peaks["optimizer"] = tracker.peak
        for name, model in trained.items():
            part[f"{name} gradients"] = size_of(p.grad for p in model.parameters())
            states = optimizers[name].state.values()
            part[f"{name} adam"] = size_of(t for state in states for t in state.values())
            optimizers[name].zero_grad()
        with torch.no_grad():
            for name, model in trained.items() if frozen_passes else ():
                tracker.reset()
                passes[name](many)
                model.reshard()
                peaks[f"frozen {name}"] = tracker.peak
            tracker.reset()
            for _ in full_weights(policy, "bfloat16"):
                pass
            peaks["sync"] = tracker.peak
    dist.destroy_process_group()
    return part | peaks | dict(tokens=rows * length)


def with_offload(s: dict[str, int]) -> dict[str, float]:
    """`simulate`'s parts with --offload: an update is without the anchors, a frozen pass or a sync
    has the policy there, and the base or critic that passes."""
    less = dict.fromkeys(("update policy", "update critic", "optimizer"), s["anchors"])
    rest = s["anchors"] + s["policy adam"] + s.get("critic adam", 0)
    less |= {"frozen critic": rest, "frozen policy": rest + s.get("critic", 0)}
    less["sync"] = less["frozen policy"]
    parts = s | {name: s[name] - size for name, size in less.items() if name in s}
    if "frozen policy" in s:
        parts["frozen base"] = parts["frozen policy"] + s["anchors"] / 2
    return parts


def summary(s: dict[str, int], config: Qwen2Config, algo: str) -> dict[str, float]:
    """Bytes per rank from `simulate`'s parts; without critic: the same less what that holds."""
    ahead = 2 * count(config)["layer"]  # bf16, gathered while the layer before it computes
    less, names = 0, ("policy", "critic")
    if algo == "grpo":
        less, names = sum(s.get(f"critic{x}", 0) for x in ("", " adam")), ("policy",)
    resident = (
        s["backbone"]
        + s["anchors"]
        + sum(s.get(f"{name}{x}", 0) for name in names for x in ("", " adam"))
    )
    gradients = sum(s.get(f"{name} gradients", 0) for name in names)
    late = less + (s.get("critic gradients", 0) if algo == "grpo" else 0)
    updates = [s[f"update {name}"] for name in names if f"update {name}" in s]
    update = max([*updates, s["optimizer"]]) - late + ahead
    frozen = max(s.get(f"frozen {name}", 0) for name in names) - less + ahead
    parts, passing = with_offload(s), ("base", "critic")[: len(names)]
    return dict(
        backbone=s["backbone"],
        policy=s["policy"],
        adam=s["policy adam"],
        anchors=s["anchors"],
        critic=0 if algo == "grpo" else s.get("critic", 0) + s.get("critic adam", 0),
        resident=resident,
        gradients=gradients,
        transient=update - resident - gradients,
        update=update,
        frozen=frozen,
        offload_update=update - s["anchors"],
        offload_frozen=max(parts.get(f"frozen {name}", 0) for name in passing) + ahead,
        tensor=s["sync"] - less - resident,
    )


def count(config: Qwen2Config) -> dict[str, int]:
    """Parameters: of a layer, of the trunk, of embedding or head, of the whole policy."""
    H, inner = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * H // config.num_attention_heads
    layer = 2 * H * H + 2 * H * kv + H + 2 * kv + 3 * H * inner + 2 * H
    head = config.vocab_size * H
    trunk = config.num_hidden_layers * layer + head + H
    policy = trunk + head * (not config.tie_word_embeddings)
    return dict(layer=layer, trunk=trunk, head=head, policy=policy)


def engine_weights(size: str, tensor_parallel: int) -> float:
    return 2 * count(shape(size))["policy"] / tensor_parallel


def row(cells: list) -> str:
    return "| " + " | ".join(f"{c:.1f}" if isinstance(c, float) else str(c) for c in cells) + " |"


def table(head: list[str], rows: list[list], left: int = 1) -> None:
    print(row(head), "|" + "---|" * left + "---:|" * (len(head) - left), *map(row, rows), sep="\n")
    print(flush=True)


# size, GPUs, ranks that share a copy (0 = all), algorithm, --gpu_memory, --tensor_parallel
RUNS = [
    ("1.5B", 1, 0, "ppo", 0.5, 1),
    ("1.5B", 1, 0, "ppo", 0.3, 1),
    ("1.5B", 1, 0, "grpo", 0.5, 1),
    ("1.5B", 8, 0, "ppo", 0.5, 1),
    ("7B", 8, 0, "ppo", 0.5, 1),
    ("7B", 8, 0, "grpo", 0.5, 1),
    ("32B", 32, 0, "ppo", 0.5, 1),
    ("32B", 32, 0, "ppo", 0.5, 4),
    ("32B", 32, 0, "grpo", 0.5, 4),
    ("32B", 32, 8, "grpo", 0.5, 4),
]
LORA_RUNS = [(size, 1, 0, algo, 0.5, 1) for size in ("1.5B", "7B") for algo in ("ppo", "grpo")]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def peak_table(runs: list[tuple], rank: int = 0) -> None:
    """rank: LoRA's. 1.5B then goes onto a card of 24 GB."""
    done, lines = {}, []
    for size, gpus, shard, algo, share, parallel in runs:
        if (size, gpus, shard) not in done:
            say(f"simulating a step of {size} on {gpus} GPUs ...")
            done[size, gpus, shard] = simulate(shape(size), gpus, shard=shard, lora_rank=rank)
        card = SMALL_GPU if rank and size == "1.5B" else GPU
        s = summary(done[size, gpus, shard], shape(size), algo)
        weights = engine_weights(size, parallel)
        needs = dict(
            update=s["update"],
            frozen=s["frozen"],
            rollout=s["resident"] + share * card,
            sync=s["resident"] + s["tensor"] + weights,
        )
        offload = dict(
            update=s["offload_update"],
            frozen=s["offload_frozen"],
            rollout=s["policy"] + share * card,
            sync=s["policy"] + s["tensor"] + weights,
        )
        both = [needs] if rank else [needs, offload]
        fits = [
            max(peaks.values()) + RESERVE <= card and weights + RESERVE < share * card
            for peaks in both
        ]
        parts = "policy adam anchors critic resident gradients transient".split()
        parts = ["backbone", *parts] if rank else parts
        bytes_ = (*(s[name] for name in parts), share * card, weights)
        cells = [f"{x / GIB:.1f}" for x in bytes_]
        where = f"{gpus}, {shard} a copy" if shard else str(gpus)
        settings = f"{algo}, {share}, {parallel}"
        verdict = f"yes, of {card / GIB:.0f}" if rank else "yes"
        line = [size, where, settings, *cells]
        for peaks, fit in zip(both, fits, strict=True):
            line += [f"{(x + RESERVE) / GIB:.1f}" for x in peaks.values()]
            line.append(verdict if fit else "**no**")
        lines.append(line)
    limit = f"LoRA of rank {rank}" if rank else f"limit {GPU / GIB:.0f}"
    print(
        "Simulated, GiB a rank: response 8,192 + prompt 766, checkpointing, 16,384 tokens a "
        f"micro-batch (that is one response, 8,958); {limit}, reserve {RESERVE / GIB:.0f}\n"
    )
    names = """model; GPUs; algorithm, gpu_memory, tensor_parallel; policy, float32; its Adam
base + precedent, bf16; critic + its Adam; = resident; gradients; activations, gathered, logits
vLLM awake; of it weights; **peaks with reserve**: update; frozen passes; rollout; sync; fits 80 GB
**with --offload**: update; frozen passes; rollout; sync; fits 80 GB
"""
    if rank:  # which has no --offload
        names = names[: names.index("\n**with")]
        names = names.replace("policy, float32", "frozen model, bf16; policy's adapter, float32")
        names = names.replace("precedent, bf16", "precedent, float32").replace("fits 80 GB", "fits")
    names = names.strip().replace("\n", "; ").split("; ")
    columns = [[name, *(line[i] for line in lines)] for i, name in enumerate(names)]
    table(columns[0], columns[1:])


def memory_tables(sizes: list[str]) -> None:
    peak_table([run for run in RUNS if run[0] in sizes])
    print(
        "Simulated, GiB of activations, gathered weights and logits in the policy's update; "
        "in brackets the tokens that\nthe micro-batch holds\n"
    )
    rows = []
    for size, gpus in (("1.5B", 1), ("7B", 8), ("32B", 32)):
        if size not in sizes:
            continue
        budget = 16384
        for checkpointing in (True,) if size == "32B" else (True, False):
            cells = [size, gpus, f"{budget:,}", "yes" if checkpointing else "no"]
            for response in (2048, 4096, 8192):
                how = dict(response=response, budget=budget, checkpointing=checkpointing)
                say(f"simulating {size}, {', '.join(f'{k} {v}' for k, v in how.items())} ...")
                how |= dict(critics=False, anchored=False, frozen_passes=False)
                parts = simulate(shape(size), gpus, **how)
                s = summary(parts, shape(size), "grpo")
                cells.append(f"{s['transient'] / GIB:.1f} ({parts['tokens']:,})")
            rows.append(cells)
    names = "model GPUs tokens_per_micro_batch checkpointing 2,048 4,096 8,192".split()
    table(names, rows, 4)


# ---- which line to type on which card ------------------------------------------------------------

CARDS = {24: 22, 40: 39, 48: 44, 80: 79, 141: 139}  # GB in its name: GiB that PyTorch sees of it
TOGETHER = 8  # responses of full length: an engine that holds fewer would sample for days
HALF_B = "1.5b --model Qwen/Qwen2.5-0.5B-Instruct --prompt qwen"
ADAPTERS = "32b --lora_rank 32 --lr 1e-5 --critic_lr 1e-4"
LINES = [  # behind `bash train.sh`; size, GPUs, LoRA's rank
    (HALF_B, "0.5B", 1, 0),
    ("1.5b", "1.5B", 1, 0),
    ("1.5b --offload", "1.5B", 1, 0),
    ("1.5b", "1.5B", 8, 0),
    ("1.5b-lora", "1.5B", 1, 32),
    ("7b", "7B", 1, 0),
    ("7b", "7B", 8, 0),
    ("7b --offload", "7B", 8, 0),
    ("7b-lora", "7B", 1, 32),
    ("7b-lora", "7B", 8, 32),
    ("32b", "32B", 8, 0),
    ("32b", "32B", 32, 0),
    (ADAPTERS, "32B", 8, 32),
]


def simulated(size: str, gpus: int, rank: int) -> dict[str, int]:
    """simulate's parts, kept in a file: it takes minutes. Delete the file to have them anew."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results", "memory.jsonl")
    with open(path, "a+") as file:
        file.seek(0)
        rows = [json.loads(line) for line in file]
        key = dict(size=size, gpus=gpus, lora_rank=rank)
        for row in rows:
            if key.items() <= row.items():
                return row
        say(f"simulating a step of {size} on {gpus} GPUs, LoRA {rank} ...")
        parts = simulate(shape(size), gpus, lora_rank=rank)
        file.write(json.dumps(key | parts) + "\n")
    return parts


def flags_for(s: dict[str, float], size: str, gpus: int, card: float) -> tuple[str, float]:
    """The memory flags with which a step fits a card of so many bytes, or a dash; and the least
    bytes that do. s: `summary`."""
    c, needs = shape(size), []
    heads = c.num_key_value_heads * c.hidden_size // c.num_attention_heads
    full = 4 * c.num_hidden_layers * heads * (PROMPT + 8192)  # keys and values of a response
    usual = 4 if size == "32B" else 1  # the recipe's
    for parallel in (n for n in (1, 2, 4, 8) if usual <= n <= max(usual, gpus)):
        weights = engine_weights(size, parallel)
        engine = weights + LOST + TOGETHER * full / parallel
        training = max(s["update"], s["frozen"], s["resident"] + s["tensor"] + weights)
        needs.append(max(training, s["resident"] + engine) + RESERVE)
        share = int(100 * (card - RESERVE - s["resident"]) / card) / 100
        if training + RESERVE <= card and engine <= share * card:
            share = min(share, max(0.5, math.ceil(100 * engine / card) / 100))
            return f"{share:g}" + (f", tp {parallel}" if parallel != usual else ""), needs[-1]
    return "–", min(needs)


def card_table() -> None:
    """One line for both algorithms where they agree on every card."""
    rows = []
    for line, size, gpus, rank in LINES:
        parts, cells, least = simulated(size, gpus, rank), {}, {}
        for algo in ("ppo", "grpo"):
            s = summary(parts, shape(size), algo)
            if "--offload" in line:
                alone = dict(update=s["offload_update"], frozen=s["offload_frozen"])
                s |= dict(resident=s["policy"]) | alone
            fits = [flags_for(s, size, gpus, gib * GIB) for gib in CARDS.values()]
            cells[algo], needs = zip(*fits, strict=True)
            least[algo] = f"{min(needs) / GIB:.0f}"
        names = [f"`{line}`", f"`{line} --algo grpo`"]
        if cells["ppo"] == cells["grpo"]:
            names = [f"`{line}`, also `--algo grpo`"]
        for name, algo in zip(names, cells, strict=False):
            rows.append([name, gpus, least[algo], *cells[algo]])
    print(
        "Simulated: `--gpu_memory` with which a step fits, 0.5 where it can be (tp: with "
        "`--tensor_parallel`);\nresponse 8,192 + prompt 766, checkpointing\n"
    )
    table(["bash train.sh", "GPUs", "GiB", *(f"{gb} GB" for gb in CARDS)], rows)


# ---- the simulation against a measurement --------------------------------------------------------


def check() -> None:
    """One rank, small shapes: the same step with real tensors, its peak from PyTorch's profiler."""
    config = Qwen2Config(
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=16000,
        tie_word_embeddings=False,
    )
    rows, worst = [], 0.0
    for critics, checkpointing in ((True, True), (True, False)):
        how = dict(critics=critics, response=256, budget=1022, checkpointing=checkpointing)
        simulated = simulate(config, 1, **how)
        phases = ("update", "optimizer", "frozen", "sync")
        expected = max(v for k, v in simulated.items() if k.split()[0] in phases)
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
            simulate(config, 1, **how, fake=False)
        with tempfile.TemporaryDirectory() as folder:
            profile.export_chrome_trace(os.path.join(folder, "trace.json"))
            with open(os.path.join(folder, "trace.json")) as file:
                events = [e for e in json.load(file)["traceEvents"] if e.get("name") == "[memory]"]
        first = min(events, key=lambda e: e["ts"])["args"]
        before = first["Total Allocated"] - first["Bytes"]  # the counter goes on from a profile
        measured = max(e["args"]["Total Allocated"] for e in events) - before
        worst = max(worst, abs(expected / measured - 1))
        flags = ["ppo" if critics else "grpo", "yes" if checkpointing else "no"]
        peaks = [f"{x / 2**20:,.0f}" for x in (expected, measured)]
        rows.append([*flags, *peaks, f"{expected / measured - 1:+.1%}"])
    sizes = "hidden 512, 8 layers, vocabulary 16,000, bf16 compute"
    print(f"Peak of a step on this CPU, one rank: {sizes}\n")
    names = ["algorithm", "checkpointing", "simulated [MiB]", "measured [MiB]", "difference"]
    table(names, rows, 2)
    if worst > 0.1:
        sys.exit(f"the simulation is {worst:.0%} off")


# ---- seconds, by arithmetic ----------------------------------------------------------------------


# Assumptions: an H100-class GPU (989 TFLOP/s bf16, 3.35 TB/s), eight a node
FLOPS = 989e12 * 0.31  # HFU of an H100's updates, as measured (docs/scaling.md); prefill's, too
HBM = 3.35e12 * 0.6  # bytes/s that decoding reaches
DECODE, PER_SEQUENCE, TP_CALL = 4e-3, 10e-6, 15e-6  # s: decoding step; sequence, all-reduce in it
BUS = 300e9  # bytes/s of a gather or scatter, in a node and over 8 x 400 Gbit/s
PCIE = 25e9  # bytes/s to the host
LOST = 4 * GIB  # of vLLM's share, for its own activations and CUDA graphs


def decode(
    size: str, gpus: int, responses: float, parallel: int, share: float, length: int
) -> float:
    """Seconds to sample `responses`, all `length` long and evenly spread over the engines."""
    c, p = shape(size), count(shape(size))
    layers, heads = c.num_hidden_layers, c.num_attention_heads
    kv = 4 * layers * c.num_key_value_heads * c.hidden_size // heads / parallel  # bytes a token
    context, each = PROMPT + length / 2, responses / (gpus / parallel)
    room = (share * GPU - LOST - engine_weights(size, parallel)) / (kv * context)
    together = min(each, room)
    memory = (engine_weights(size, parallel) + together * context * kv) / HBM
    compute = together * 2 * p["trunk"] / parallel / FLOPS
    calls = 2 * layers * TP_CALL * (parallel > 1)
    step = max(memory, compute) + DECODE + PER_SEQUENCE * together + calls
    prefill = each * PROMPT * 2 * p["trunk"] / parallel / FLOPS
    return max(1, each / together) * length * step + prefill


def seconds(
    size: str,
    gpus: int,
    algo: str,
    *,
    fresh: float,
    passes: int,
    parallel: int,
    share: float = 0.5,
    length: int = 8192,
) -> dict[str, float]:
    """One step, t <= 50. fresh: share of B that is sampled."""
    c, p = shape(size), count(shape(size))
    B = 256 if algo == "ppo" else 2048
    tokens = B * (PROMPT + length) / gpus  # a rank's, in one pass over the batch
    attention = 2 * (PROMPT + length) * c.hidden_size * c.num_hidden_layers
    policy = 2 * p["trunk"] + attention
    critic = (2 * (p["trunk"] - p["head"]) + attention) * (algo == "ppo")
    # policy on all (fresh: --behaviour_logp trainer; replayed: pi_k), base on fresh
    frozen = tokens * (policy * (1 + fresh) + critic) / FLOPS
    update = passes * tokens * 4 * (policy + critic) / FLOPS  # forward, again, backward: 1 + 1 + 2
    micro = passes * tokens / (PROMPT + length)  # one response each
    sent = micro * 8 * (p["policy"] + p["trunk"] * (algo == "ppo")) * (gpus - 1) / gpus / BUS
    # gathered; to the host and back
    sync = 2 * p["policy"] / BUS + 2 * engine_weights(size, parallel) / PCIE
    rollout = decode(size, gpus, fresh * B, parallel, share, length)
    out = dict(rollout=rollout, frozen=frozen, update=update, sync=sync)
    return out | dict(total=sum(out.values()), sent=sent, updates=4 * passes, sampled=fresh * B)


def estimate_tables() -> None:
    print(
        'Arithmetic, seconds of a step when every response has 8,192 tokens; "per 100 updates": '
        "for 100 optimizer steps\n"
    )
    rows = []
    for size, gpus, parallel, share in (
        ("1.5B", 1, 1, 0.3),
        ("1.5B", 8, 1, 0.3),
        ("7B", 8, 1, 0.5),
        ("32B", 32, 4, 0.5),
    ):
        for algo in ("ppo", "grpo"):
            for name, fresh, passes in ((algo.upper(), 1.0, 1), (f"ReMix-{algo.upper()}", 0.6, 2)):
                how = dict(fresh=fresh, passes=passes, parallel=parallel, share=share)
                s = seconds(size, gpus, algo, **how)
                parts = [s[k] for k in "rollout frozen update sync total sent".split()]
                parts.append(s["total"] * 100 / s["updates"])
                parts.append(s["sampled"] * 8192 / s["rollout"] / gpus)
                rows.append([f"{size}, {gpus}", name, *(f"{x:,.0f}" for x in parts)])
    names = """model, GPUs; step; rollout; frozen; update; sync; **total**
update's traffic (hidden); per 100 updates; tokens/s a GPU sampled"""
    table(names.replace("\n", "; ").split("; "), rows, 2)

    what = "sent by a policy, per rank and micro-batch or sync; a checkpoint"
    print(f"Arithmetic, GB (10^9 bytes): {what}\n")
    rows = []
    for size in SHAPES:
        p = count(shape(size))
        P, T, share = p["policy"] / 1e9, p["trunk"] / 1e9, 7 / 8
        sent = [f"{x * P * share:.1f}" for x in (2, 2, 4)]
        sync = [f"{2 * P:.0f}", f"{2 * p['head'] / 1e9:.1f}"]
        files = [f"{x:.0f}" for x in (16 * P, 16 * P + 12 * T, 4 * P)]
        rows.append([size, f"{P:.2f}", *sent, *sync, *files])
    names = """model; parameters [10^9]; all-gather forward; all-gather backward; reduce-scatter
sync, whole; sync, largest tensor; checkpoint grpo; checkpoint ppo; export"""
    table(names.replace("\n", "; ").split("; "), rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, sizes = parser.add_argument, list(SHAPES)
    flag("--estimate", action="store_true", help="seconds of a step and bytes sent; arithmetic")
    flag("--lora", type=int, metavar="RANK", help="memory with --lora_rank RANK, one GPU")
    flag("--cards", action="store_true", help="which recipe fits which card, with which flags")
    flag("--check", action="store_true", help="simulated against measured peak on this CPU")
    flag("--sizes", nargs="+", default=sizes, choices=sizes, help="of the memory tables")
    options = parser.parse_args()
    logging.set_verbosity_error()
    if options.check:
        check()
    elif options.estimate:
        estimate_tables()
    elif options.cards:
        card_table()
    elif options.lora:
        peak_table([run for run in LORA_RUNS if run[0] in options.sizes], options.lora)
    else:
        memory_tables(options.sizes)


if __name__ == "__main__":
    main()
