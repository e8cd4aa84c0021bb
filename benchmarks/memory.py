"""GPU memory of a training step at 1.5B, 7B and 32B, simulated without a GPU, and an estimate of a step's seconds.

    python benchmarks/memory.py                the memory tables of docs/scaling.md (simulated)
    python benchmarks/memory.py --estimate     its tables of seconds and of bytes sent (arithmetic)
    python benchmarks/memory.py --check        the simulation against a measured peak, small shapes on this CPU

Simulated: Policy and Critic of model.py run forward and backward at full size on torch's fake tensors (shapes, no data),
sharded with FSDP2 over a fake process group, with AdamW; every storage that PyTorch allocates is counted, per rank.
Not simulated: vLLM (its share is --gpu_memory), CUDA's context, NCCL's buffers, workspaces inside kernels, and what the
allocator loses to fragmentation. RESERVE stands for these; it is an assumption. Fake tensors are CPU tensors: kernels
are the CPU's, and nothing runs at the same time, so a layer that FSDP2 fetches early on a GPU is added by arithmetic.

Every response of a batch has full length: the worst case. GiB = 2^30 bytes. Shapes are those of the published configs of
DeepSeek-R1-Distill-Qwen (all three have an untied head).
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
os.environ.setdefault(
    "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16"
)  # AMX in a virtual machine: see tiny.py
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
from transformers import AutoModel, AutoModelForCausalLM, Qwen2Config
from transformers.utils import logging

import model as networks
from model import Critic, Policy

networks.LOGITS_PER_PART = (
    2**23
)  # the head's float32 math, 32 MiB at a time: row by row would simulate for hours

GIB = 2**30
GPU = 79 * GIB  # what PyTorch sees of an 80 GB card
RESERVE = (
    4 * GIB
)  # assumption: CUDA context, NCCL, kernels' workspaces, fragmentation, what a sleeping vLLM keeps
PROMPT = 766
SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "1.5B": (1536, 8960, 28, 12, 2, 151936),
    "7B": (3584, 18944, 28, 28, 4, 152064),
    "32B": (5120, 27648, 64, 40, 8, 152064),
}


def shape(size: str) -> Qwen2Config:
    hidden, inner, layers, heads, kv, vocabulary = SHAPES[size]
    return Qwen2Config(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocabulary, tie_word_embeddings=False, max_position_embeddings=131072,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ the memory simulation


class Tracker(TorchDispatchMode):
    """Counts the bytes of all live storages of 64 KiB and more; `peak` is the highest count since `reset`."""

    def __init__(self):
        super().__init__()
        self.live: dict[int, int] = {}  # storage -> weak pointer
        self.peak = self.bound = (
            0  # bound: at least what is live; counting anew is needed only when it passes the peak
        )

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
            return NotImplemented  # let it unwrap itself: the operations on its local tensor come here next
        if func is torch.ops.aten.nonzero.default and isinstance(
            args[0], torch._subclasses.FakeTensor
        ):
            out = args[0].new_empty(
                (args[0].numel(), args[0].ndim), dtype=torch.long
            )  # a mask of ones: full length
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        weak = self.live.get(storage._cdata)
        if weak is not None and torch.UntypedStorage._new_with_weak_ptr(weak) is None:
            torch.UntypedStorage._free_weak_ref(
                self.live.pop(storage._cdata)
            )  # its address was used again
            weak = None
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
    kind: type, config: Qwen2Config, mesh, *, frozen: bool = False, checkpointing: bool = True
):
    """What model.load_model does, without reading weights."""
    auto = AutoModelForCausalLM if kind is Policy else AutoModel
    net = auto.from_config(
        config, dtype=torch.bfloat16 if frozen else torch.float32, attn_implementation="sdpa"
    )
    if checkpointing and not frozen:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    model = (
        (Policy(net, 1.0) if kind is Policy else Critic(net))
        .train(not frozen)
        .requires_grad_(not frozen)
    )
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in net.base_model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision)
    return model


def size_of(tensors) -> int:
    return sum(t.to_local().nbytes if isinstance(t, DTensor) else t.nbytes for t in tensors)


def simulate(
    config: Qwen2Config, gpus: int, *, critics: bool = True, shard: int = 0, response: int = 8192, budget: int = 16384,
    checkpointing: bool = True, anchored: bool = True, frozen_passes: bool = True, fake: bool = True,
) -> dict[str, int]:  # fmt: skip
    """Bytes per rank of one step, by part. shard: ranks that share one copy (HSDP), 0 = all. budget: tokens of a
    micro-batch. fake=False runs the same with real tensors on one rank."""
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

        def batch(n: int) -> dict:
            # the states before each response token predict it; real tensors need real indices
            index = torch.arange(PROMPT - 1, length - 1).expand(n, response).contiguous()
            ids, labels = (
                torch.zeros(n, length, dtype=torch.long),
                torch.zeros(n, response, dtype=torch.long),
            )
            return dict(ids=ids, index=index, labels=labels, mask=torch.ones(n, response))

        def policy_pass(n: int):
            logp, entropy, _ = policy(**batch(n))
            return logp.sum() + entropy.sum()

        def critic_pass(n: int):
            tensors = batch(n)
            del tensors["labels"]
            return critic(**tensors).sum()

        policy = build(Policy, config, mesh, checkpointing=checkpointing)
        anchors = [
            build(Policy, config, mesh, frozen=True) for _ in range(2 * anchored)
        ]  # base and precedent
        critic = build(Critic, config, mesh, checkpointing=checkpointing) if critics else None
        trained = {"policy": policy} | ({"critic": critic} if critic is not None else {})
        passes = {"policy": policy_pass, "critic": critic_pass}
        optimizers = {
            name: torch.optim.AdamW(m.parameters(), fused=True) for name, m in trained.items()
        }
        part = {name: size_of(m.parameters()) for name, m in trained.items()}
        part["anchors"] = sum(size_of(m.parameters()) for m in anchors)
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
            part[f"{name} adam"] = size_of(
                t for s in optimizers[name].state.values() for t in s.values()
            )
            optimizers[name].zero_grad()
        with torch.no_grad():
            for name, model in trained.items() if frozen_passes else ():
                tracker.reset()
                passes[name](many)
                model.reshard()
                peaks[f"frozen {name}"] = tracker.peak
            tracker.reset()
            largest = max(policy.parameters(), key=lambda p: p.numel())
            largest.full_tensor()
            peaks["sync"] = tracker.peak
    dist.destroy_process_group()
    return part | peaks | dict(tokens=rows * length)


def summary(s: dict[str, int], config: Qwen2Config, algo: str) -> dict[str, float]:
    """Bytes per rank from `simulate`'s parts. A run without critic is the same run less what the critic holds."""
    ahead = (
        2 * count(config)["layer"]
    )  # a GPU gathers the next layer, bf16, while this one computes
    less, names = 0, ("policy", "critic")
    if algo == "grpo":
        less, names = sum(s.get(f"critic{x}", 0) for x in ("", " adam")), ("policy",)
    resident = s["anchors"] + sum(s.get(f"{name}{x}", 0) for name in names for x in ("", " adam"))
    gradients = sum(s.get(f"{name} gradients", 0) for name in names)
    late = less + (s.get("critic gradients", 0) if algo == "grpo" else 0)
    update = (
        max([s[f"update {name}"] for name in names if f"update {name}" in s] + [s["optimizer"]])
        - late
        + ahead
    )
    frozen = max(s.get(f"frozen {name}", 0) for name in names) - less + ahead
    return dict(
        policy=s["policy"], adam=s["policy adam"], anchors=s["anchors"],
        critic=0 if algo == "grpo" else s.get("critic", 0) + s.get("critic adam", 0), resident=resident,
        gradients=gradients, transient=update - resident - gradients, update=update, frozen=frozen,
        tensor=s["sync"] - less - resident,
    )  # fmt: skip


def count(config: Qwen2Config) -> dict[str, int]:
    """Parameters: of a layer, of the trunk, of embedding or head, of the whole policy."""
    H, inner = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * H // config.num_attention_heads
    layer = 2 * H * H + 2 * H * kv + H + 2 * kv + 3 * H * inner + 2 * H
    head = config.vocab_size * H
    trunk = config.num_hidden_layers * layer + head + H
    return dict(layer=layer, trunk=trunk, head=head, policy=trunk + head)


def engine_weights(size: str, tensor_parallel: int) -> float:
    return 2 * count(shape(size))["policy"] / tensor_parallel


def row(cells: list) -> str:
    return "| " + " | ".join(f"{c:.1f}" if isinstance(c, float) else str(c) for c in cells) + " |"


def table(head: list[str], rows: list[list], left: int = 1) -> None:
    print(row(head), "|" + "---|" * left + "---:|" * (len(head) - left), *map(row, rows), sep="\n")
    print(flush=True)


RUNS = [  # size, GPUs, ranks that share a copy (0 = all), algorithm, --gpu_memory, --tensor_parallel
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


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def memory_tables(sizes: list[str]) -> None:
    done, lines = {}, []
    for size, gpus, shard, algo, share, parallel in (run for run in RUNS if run[0] in sizes):
        if (size, gpus, shard) not in done:
            say(f"simulating a step of {size} on {gpus} GPUs ...")
            done[size, gpus, shard] = simulate(shape(size), gpus, shard=shard)
        s, weights = (
            summary(done[size, gpus, shard], shape(size), algo),
            engine_weights(size, parallel),
        )
        needs = dict(
            update=s["update"], frozen=s["frozen"], rollout=s["resident"] + share * GPU,
            sync=s["resident"] + s["tensor"] + weights,
        )  # fmt: skip
        fits = max(needs.values()) + RESERVE <= GPU and weights + RESERVE < share * GPU
        parts = [
            s[k]
            for k in ("policy", "adam", "anchors", "critic", "resident", "gradients", "transient")
        ]
        cells = [f"{x / GIB:.1f}" for x in (*parts, share * GPU, weights)]
        peaks = [f"{(x + RESERVE) / GIB:.1f}" for x in needs.values()]
        where = f"{gpus}, {shard} a copy" if shard else str(gpus)
        settings = f"{algo}, {share}, {parallel}"
        lines.append([size, where, settings, *cells, *peaks, "yes" if fits else "**no**"])
    print("Simulated, GiB a rank: response 8,192 + prompt 766, checkpointing, 16,384 tokens a micro-batch (that is one "
          f"response, 8,958); limit {GPU / GIB:.0f}, reserve {RESERVE / GIB:.0f}\n")  # fmt: skip
    names = ["model", "GPUs", "algorithm, gpu_memory, tensor_parallel", "policy, float32", "its Adam",
             "base + precedent, bf16", "critic + its Adam", "= resident", "gradients", "activations, gathered, logits",
             "vLLM awake", "of it weights", "**peaks with reserve**: update", "frozen passes", "rollout", "sync",
             "fits 80 GB"]  # fmt: skip
    columns = [[name, *(line[i] for line in lines)] for i, name in enumerate(names)]
    table(columns[0], columns[1:])

    print("Simulated, GiB of activations, gathered weights and logits in the policy's update; in brackets the tokens that\n"
          "the micro-batch holds\n")  # fmt: skip
    rows = []
    for size, gpus in (("1.5B", 1), ("7B", 8), ("32B", 32)):
        for budget, checkpointing in (
            ((16384, True), (16384, False))[: 1 if size == "32B" else 2] if size in sizes else ()
        ):
            cells = [size, gpus, f"{budget:,}", "yes" if checkpointing else "no"]
            for response in (2048, 4096, 8192):
                say(
                    f"simulating {size}, response {response}, budget {budget}, checkpointing {checkpointing} ..."
                )
                how = dict(response=response, budget=budget, checkpointing=checkpointing)
                parts = simulate(
                    shape(size), gpus, critics=False, anchored=False, frozen_passes=False, **how
                )
                s = summary(parts, shape(size), "grpo")
                cells.append(f"{s['transient'] / GIB:.1f} ({parts['tokens']:,})")
            rows.append(cells)
    table(
        ["model", "GPUs", "tokens_per_micro_batch", "checkpointing", "2,048", "4,096", "8,192"],
        rows,
        4,
    )


# ------------------------------------------------------------------------------------------------ simulated = measured?


def check() -> None:
    """One rank at small shapes: the same step with real tensors, its peak from PyTorch's own CPU memory profiler."""
    config = Qwen2Config(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=16000, tie_word_embeddings=False,
    )  # fmt: skip
    rows, worst = [], 0.0
    for critics, checkpointing in ((True, True), (True, False)):
        how = dict(critics=critics, response=256, budget=1022, checkpointing=checkpointing)
        simulated = simulate(config, 1, **how)
        expected = max(
            v
            for k, v in simulated.items()
            if k.split()[0] in ("update", "optimizer", "frozen", "sync")
        )
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            simulate(config, 1, **how, fake=False)
        with tempfile.TemporaryDirectory() as folder:
            profile.export_chrome_trace(os.path.join(folder, "trace.json"))
            with open(os.path.join(folder, "trace.json")) as file:
                events = [e for e in json.load(file)["traceEvents"] if e.get("name") == "[memory]"]
        first = min(events, key=lambda e: e["ts"])[
            "args"
        ]  # PyTorch's counter goes on from an earlier profile
        measured = max(e["args"]["Total Allocated"] for e in events) - (
            first["Total Allocated"] - first["Bytes"]
        )
        worst = max(worst, abs(expected / measured - 1))
        flags = ["ppo" if critics else "grpo", "yes" if checkpointing else "no"]
        rows.append(
            [
                *flags,
                f"{expected / 2**20:,.0f}",
                f"{measured / 2**20:,.0f}",
                f"{expected / measured - 1:+.1%}",
            ]
        )
    print(
        "Peak of a step on this CPU, one rank: hidden 512, 8 layers, vocabulary 16,000, bf16 compute\n"
    )
    table(
        ["algorithm", "checkpointing", "simulated [MiB]", "measured [MiB]", "difference"], rows, 2
    )
    if worst > 0.1:
        sys.exit(f"the simulation is {worst:.0%} off")


# ------------------------------------------------------------------------------------------------ seconds, by arithmetic


# Assumptions, none measured here: an H100-class GPU (989 TFLOP/s bf16, 3.35 TB/s), eight a node
FLOPS = 989e12 * 0.45  # what training and prefill reach of it, recomputation counted as work
HBM = 3.35e12 * 0.6  # bytes/s that decoding reaches
DECODE, PER_SEQUENCE, TP_CALL = (
    4e-3,
    10e-6,
    15e-6,
)  # s a decoding step; a seeded sequence in it; an all-reduce in it
BUS = 300e9  # bytes/s of an all-gather or reduce-scatter, in a node and over 8 x 400 Gbit/s; PCIe to the host 25e9
LOST = 4 * GIB  # of vLLM's share, for its own activations and CUDA graphs


def decode(
    size: str, gpus: int, responses: float, parallel: int, share: float, length: int
) -> float:
    """Seconds to sample `responses`, all `length` long and evenly spread over the engines."""
    c, p = shape(size), count(shape(size))
    kv = (
        4
        * c.num_hidden_layers
        * c.num_key_value_heads
        * c.hidden_size
        // c.num_attention_heads
        / parallel
    )  # a token
    context, each = PROMPT + length / 2, responses / (gpus / parallel)
    room = (share * GPU - LOST - engine_weights(size, parallel)) / (kv * context)
    together = min(each, room)
    memory = (engine_weights(size, parallel) + together * context * kv) / HBM
    compute = together * 2 * p["trunk"] / parallel / FLOPS
    calls = 2 * c.num_hidden_layers * TP_CALL * (parallel > 1)
    step = max(memory, compute) + DECODE + PER_SEQUENCE * together + calls
    return (
        max(1, each / together) * length * step + each * PROMPT * 2 * p["trunk"] / parallel / FLOPS
    )


def seconds(
    size: str, gpus: int, algo: str, *, fresh: float, passes: int, late: bool, parallel: int, share: float = 0.5,
    length: int = 8192,
) -> dict[str, float]:  # fmt: skip
    """One step. fresh: share of B that is sampled; late: lambda < 1, the precedent's pass is needed (t > 50)."""
    c, p = shape(size), count(shape(size))
    B = 256 if algo == "ppo" else 2048
    tokens = B * (PROMPT + length) / gpus  # a rank's, in one pass over the batch
    attention = 2 * (PROMPT + length) * c.hidden_size * c.num_hidden_layers
    policy, critic = (
        2 * p["trunk"] + attention,
        (2 * (p["trunk"] - p["head"]) + attention) * (algo == "ppo"),
    )
    # forward units: policy on all (fresh: --behaviour_logp trainer; replayed: pi_k), base on fresh, precedent, critic
    frozen = tokens * (policy * (1 + fresh + late) + critic) / FLOPS
    update = (
        passes * tokens * 4 * (policy + critic) / FLOPS
    )  # forward, recomputation, backward = 1 + 1 + 2
    micro = passes * tokens / (PROMPT + length)  # one response each
    sent = micro * 8 * (p["policy"] + p["trunk"] * (algo == "ppo")) * (gpus - 1) / gpus / BUS
    sync = (
        2 * p["policy"] / BUS + 2 * engine_weights(size, parallel) / 25e9
    )  # gathered; to the host and back
    out = dict(
        rollout=decode(size, gpus, fresh * B, parallel, share, length),
        frozen=frozen,
        update=update,
        sync=sync,
    )
    return out | dict(total=sum(out.values()), sent=sent, updates=4 * passes, sampled=fresh * B)


def estimate_tables() -> None:
    print(
        'Arithmetic, seconds of a step when every response has 8,192 tokens; "per 100 updates": for 100 optimizer steps\n'
    )
    rows = []
    for size, gpus, parallel, share in (
        ("1.5B", 1, 1, 0.3),
        ("1.5B", 8, 1, 0.3),
        ("7B", 8, 1, 0.5),
        ("32B", 32, 4, 0.5),
    ):
        for algo in ("ppo", "grpo"):
            for name, fresh, passes, late in (
                (algo.upper(), 1.0, 1, False), (f"ReMix-{algo.upper()}, t <= 50", 0.6, 2, False),
                (f"ReMix-{algo.upper()}, mixing, t > 50 (T = 100)", 0.6, 2, True), ("after reincarnation, t > 50", 1.0, 1, True),
            ):  # fmt: skip
                s = seconds(
                    size,
                    gpus,
                    algo,
                    fresh=fresh,
                    passes=passes,
                    late=late,
                    parallel=parallel,
                    share=share,
                )
                speed = s["sampled"] * 8192 / s["rollout"] / gpus
                parts = [
                    f"{s[k]:,.0f}" for k in ("rollout", "frozen", "update", "sync", "total", "sent")
                ]
                rows.append(
                    [
                        f"{size}, {gpus}",
                        name,
                        *parts,
                        f"{s['total'] * 100 / s['updates']:,.0f}",
                        f"{speed:,.0f}",
                    ]
                )
    names = ["model, GPUs", "step", "rollout", "frozen", "update", "sync", "**total**", "update's traffic (hidden)",
             "per 100 updates", "tokens/s a GPU sampled"]  # fmt: skip
    table(names, rows, 2)

    print(
        "Arithmetic, GB (10^9 bytes): sent by a policy, per rank and micro-batch or sync; a checkpoint\n"
    )
    rows = []
    for size in SHAPES:
        p = count(shape(size))
        P, T, share = p["policy"] / 1e9, p["trunk"] / 1e9, 7 / 8
        rows.append([size, f"{P:.2f}", f"{2 * P * share:.1f}", f"{2 * P * share:.1f}",
                     f"{4 * P * share:.1f}", f"{2 * P:.0f}", f"{2 * p['head'] / 1e9:.1f}", f"{16 * P:.0f}",
                     f"{16 * P + 12 * T:.0f}", f"{4 * P:.0f}"])  # fmt: skip
    names = ["model", "parameters [10^9]", "all-gather forward", "all-gather backward", "reduce-scatter",
             "sync, whole", "sync, largest tensor", "checkpoint grpo", "checkpoint ppo", "export"]  # fmt: skip
    table(names, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--estimate", action="store_true", help="seconds of a step and bytes sent; arithmetic"
    )
    parser.add_argument(
        "--check", action="store_true", help="simulated against measured peak on this CPU"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=list(SHAPES),
        choices=list(SHAPES),
        help="of the memory tables",
    )
    options = parser.parse_args()
    logging.set_verbosity_error()
    if options.check:
        check()
    elif options.estimate:
        estimate_tables()
    else:
        memory_tables(options.sizes)


if __name__ == "__main__":
    main()
