"""One CUDA GPU: does all of it run there, how fast, in how much memory?

    python benchmarks/gpu.py                    every part; no network and no vLLM needed
    python benchmarks/gpu.py --parts 1,3        some of them
    python benchmarks/gpu.py --smollm FOLDER    with part 2, a real language model
    python benchmarks/gpu.py --rehearse         tiny shapes on a CPU: finds typos, measures nothing

Parts, each of one or more jobs; a job is a process of its own with its own time limit, and one that
fails ends no other:
    1  remix.py as users run it, embedded task: learns, engine_gap, goes on after its end, exports
    2  SmolLM2-135M-Instruct by its recipe, with vLLM where that is there
    3  update at 1.5B shapes, 8,192-token responses: tokens/s, MFU, what the time goes to
    4  peak memory of each phase at 1.5B, against the simulation of benchmarks/memory.py
    5  the head: TokenTerms against a plain log-softmax
    6  the engines at 1.5B: start, tokens/s, engine_gap, sync, sleep and wake

Results in --out: gpu.md (the table, after every job), gpu.jsonl (all numbers, as they come),
gpu.log (what the jobs printed). 1.5B means the shapes of DeepSeek-R1-Distill-Qwen-1.5B with random
weights made on the device. MFU counts a step's useful work: 6 operations a parameter and token (4
where the weights are frozen) without the embedding, the head on response tokens alone, and causal
attention. HFU adds what is computed again.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
NOMINAL = 989e12  # bf16 operations/s of an H100 SXM, dense
GIB = 2**30
RANK = 32  # of LoRA


# ------------------------------------------------------------------------------------- of every job


class Failed(RuntimeError):
    """A check of a job did not hold."""


def report(o, case: str, **numbers) -> None:
    """One row of the results, on disk at once: a job that dies later keeps it."""
    row = dict(part=JOBS[o.job].part, job=o.job, case=case, **numbers)
    with open(Path(o.out, "gpu.jsonl"), "a") as file:
        file.write(json.dumps(row) + "\n")
    print("row:", json.dumps(row), flush=True)


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def clock() -> Iterator[dict]:
    """with clock() as t: ...; t["s"]: seconds, the device's work included."""
    t = {}
    synchronize()
    start = time.perf_counter()
    yield t
    synchronize()
    t["s"] = time.perf_counter() - start


def reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """Most that PyTorch held at a time since `reset_peak`; None without a GPU."""
    import torch

    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None


def free_gib() -> float | None:
    """Of the card, other processes' and vLLM's memory counted."""
    import gc

    import torch

    if not torch.cuda.is_available():
        return None
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0] / GIB


def product_speed(n: int) -> float:
    """Operations/s of an n x n x n product in bf16, on random numbers."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    with clock() as t:
        for _ in range(10):
            a @ b
    return 10 * 2 * n**3 / t["s"]


def run_remix(o, name: str, flags: str, goes_on: bool = False) -> Path:
    """remix.py in a process of its own -> its run folder. Its output goes to the log."""
    out = Path(o.work, name)
    if not goes_on:  # an earlier call may have left one
        shutil.rmtree(out, ignore_errors=True)
    small = ["--dtype", "bfloat16", "--shard", "node"] * o.rehearse
    command = [sys.executable, str(ROOT / "remix.py"), *flags.split(), *small, "--out", str(out)]
    print("$", " ".join(command), flush=True)
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode:
        raise Failed(f"{name}: exit status {done.returncode}")
    return out


def learned(o, case: str, out: Path, steps: int) -> None:
    """Reports a run from its metrics.jsonl. Failed: where it is not whole, or the gap too large."""
    from metrics import read_metrics

    rows = read_metrics(out / "metrics.jsonl")
    if [row["step"] for row in rows] != list(range(steps + 1)):
        raise Failed(f"{case}: steps {[row['step'] for row in rows]} in metrics.jsonl")
    scores = {row["step"]: row["eval/pass@1"] for row in rows if "eval/pass@1" in row}
    curve = " ".join(f"{step}:{100 * score:.0f}" for step, score in scores.items())
    gap = max(row.get("engine_gap", 0.0) for row in rows)
    late = rows[-1]
    seconds = {k: late[f"seconds_{k}"] for k in ("rollout", "frozen", "update")}
    machine = {k: v for k, v in late.items() if k.startswith("machine/")}
    report(
        o, case, **{"pass@1 % at step": curve, "worst engine_gap": gap, "limit": 0.05},
        **{f"last step's {k} s": v for k, v in seconds.items()}, **machine,
        **{"length": late["response_length"], "entropy": late["entropy"], "kl": late["kl"]},
    )  # fmt: skip
    if not gap <= 0.05:  # rollout.check_gap's limit in bf16
        raise Failed(f"{case}: engine_gap {gap:.3g} is over its limit")


# --------------------------------------------------------------------------------- part 1: remix.py


def tiny_flags(o, algo: str, steps: int) -> str:
    flags = f"--recipe tiny --algo {algo} --steps {steps} "
    if o.rehearse:
        size = "--prompts_per_step 8 --mini_batch 4" if algo == "ppo" else "--prompts_per_step 4"
        return (
            flags + size + " --eval_limit 6 --reincarnation_step 2 --eval_every 2 --max_tokens 48"
        )
    return flags + "--reincarnation_step 8 --eval_every 6 --tokens_per_micro_batch 8192"


def learn_ppo(o) -> None:
    steps = 3 if o.rehearse else 12
    out = run_remix(o, "ppo", tiny_flags(o, "ppo", steps) + " --engine hf")
    learned(o, "ReMix-PPO, hf engine", out, steps)


def learn_lora(o) -> None:
    steps, flags = 3 if o.rehearse else 12, " --engine hf --lora_rank 16 --lr 1e-3 --critic_lr 3e-3"
    out = run_remix(o, "lora", tiny_flags(o, "ppo", steps) + flags)
    learned(o, "ReMix-PPO, adapters of rank 16", out, steps)


def learn_grpo(o) -> None:
    """Exact KL and the trainer's own log-probs; then two more steps; then the export."""
    steps, more = (3, 4) if o.rehearse else (12, 14)
    flags = " --engine hf --kl_estimator exact --behaviour_logp trainer"
    out = run_remix(o, "grpo", tiny_flags(o, "grpo", steps) + flags)
    learned(o, "ReMix-GRPO, hf engine, exact KL", out, steps)
    before = (out / "metrics.jsonl").read_text().splitlines()
    run_remix(o, "grpo", tiny_flags(o, "grpo", more) + flags, goes_on=True)
    after = (out / "metrics.jsonl").read_text().splitlines()
    # the evaluation after the last step goes where it would not have been
    same = before[:-1] == after[: len(before) - 1] and len(after) == more + 1
    report(o, "goes on after its end", steps=len(after) - 1, **{"earlier steps kept": same})
    exported(o, out)
    if not same:
        raise Failed("the run that went on has other first steps")


def exported(o, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    ids = tokenizer("7 + 4", return_tensors="pt")["input_ids"]
    finite = bool(torch.isfinite(lm(ids).logits).all())
    report(o, "export loads in transformers", **{"parameters": lm.num_parameters(), "ok": finite})
    if not finite:
        raise Failed("the exported model gives logits that are not finite")


# ---------------------------------------------------------------------------------- part 2: SmolLM2


def learn_smollm(o) -> None:
    """The recipe with the engine that users have: vLLM where it is there."""
    engine = "vllm" if find_spec("vllm") and not o.rehearse else "hf"
    flags = f"--recipe smollm --algo grpo --engine {engine} --save_every 1000 --gpu_memory 0.3 "
    steps = 2 if o.rehearse else o.smollm_steps
    flags += f"--steps {steps} --tokens_per_micro_batch 16384 "
    if o.rehearse:  # the embedded model knows other words
        flags += "--prompts_per_step 4 --group_size 2 --mini_batch 2 --warmup_steps 1 "
        flags += "--reincarnation_step 1 --eval_limit 4 --eval_n 1 --prompt plain "
    if model := o.smollm or o.rehearse and ROOT / "models/tiny-ab3c3ed703":
        flags += f"--model {model}"
    with clock() as t:
        out = run_remix(o, f"smollm-{engine}", flags)
    learned(o, f"SmolLM2-135M-Instruct, ReMix-GRPO, {engine} engine", out, steps)
    report(o, "the same, whole run", **{"s": t["s"]})


# ------------------------------------------------------------------ 1.5B shapes with random weights


class Shape(NamedTuple):
    config: object  # Qwen2Config
    folder: str  # with this config and the embedded task's tokenizer, without weights
    prompt: int  # tokens
    response: int


def shape_of(o) -> Shape:
    from transformers import Qwen2Config

    if o.rehearse:
        sizes = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, vocab_size=512)
        heads = dict(num_attention_heads=2, num_key_value_heads=1)
        config = Qwen2Config(**sizes, **heads, max_position_embeddings=4096)
        prompt, response = 20, 100
    else:
        from memory import PROMPT, shape

        config, prompt, response = shape("1.5B"), PROMPT, 8192
    config.tie_word_embeddings = False
    config.dtype, config.architectures = "bfloat16", ["Qwen2ForCausalLM"]
    folder = Path(o.work, f"shapes-{o.job}")
    shutil.copytree(ROOT / "models/tiny-ab3c3ed703", folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink(missing_ok=True)
    config.save_pretrained(folder)
    return Shape(config, str(folder), prompt, response)


@contextlib.contextmanager
def random_weights(device: str) -> Iterator[None]:
    """Inside, from_pretrained draws weights on the device, where it would read a folder's: so
    model.load_model and the engine run as they are, and no gigabytes go through a disk."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def drawn(auto, name, output_loading_info=False, **options):
        torch.manual_seed(0)
        with torch.device(device):
            lm = auto.from_config(**dict(config=AutoConfig.from_pretrained(name)) | options)
        # logits with some spread, as a language model's
        torch.nn.init.normal_(lm.get_output_embeddings().weight, std=0.08)
        return (lm, dict(missing_keys=[])) if output_loading_info else lm

    with unittest.mock.patch.object(
        AutoModelForCausalLM, "from_pretrained", classmethod(drawn)
    ):  # fmt: skip
        yield


def loader(o, s: Shape, rank: int = 0, **options):
    """model.load_model in bf16, sharded as on a GPU; or lora.loader around it. Checkpointing."""
    import lora
    from model import load_model

    options |= dict(name=s.folder, device=o.device, dtype="bfloat16", checkpointing=True)

    def load(kind, **more):
        with random_weights(o.device):
            return load_model(kind, **options | more)

    return lora.loader(load, rank, True, 2) if rank else load


def responses(s: Shape, n: int, seed: int = 0, length: int = 0) -> list:
    """Of full length, with all that the losses ask for."""
    import torch

    from buffer import Response

    generator, T = torch.Generator().manual_seed(seed), length or s.response

    def ids(count: int) -> list[int]:
        return torch.randint(0, s.config.vocab_size, (count,), generator=generator).tolist()

    def drawn() -> torch.Tensor:
        return torch.randn(T, generator=generator)

    made = []
    for _ in range(n):
        logp = drawn().mul(0.1).sub(math.log(s.config.vocab_size))
        r = Response(ids(s.prompt), ids(T), logp, True, 1.0, 1)
        r.logp_k, r.base, r.advantages, r.values, r.returns = logp, logp, drawn(), drawn(), drawn()
        made.append(r)
    return made


class Trainer:
    """The inner loop of remix.train on one mini-batch, with the project's own pieces."""

    def __init__(self, o, s: Shape, models: dict, budget: int):
        import torch

        from config import Config
        from metrics import Log

        self.models, self.device = models, o.device
        self.budget = budget
        self.optimizers = {
            name: torch.optim.AdamW(m.parameters(), 1e-6, weight_decay=0.01, fused=True)
            for name, m in models.items()
        }
        self.log = Log(Config(out=o.work, mini_batch=1), 0, o.device)
        self.log.start(1)

    def gradients(self, rs: list, critic_too: bool = True, policy_too: bool = True) -> None:
        import torch

        import loss
        import parallel

        policy, critic = self.models.get("policy"), self.models.get("critic")
        n = self.log.mini_batch(rs)
        for x in parallel.micro_batches(rs, 1, self.budget, self.device, self.models.values()):
            if policy_too:
                logp, H, kl = policy(x, {})
                pg = loss.mix_ppg(logp, x.logp_k, x.logp_b, x.advantages, 0.2)
                policy_loss = loss.token_mean(x.weight * pg, x.mask, n)
                kl = {name: loss.kl(logp, ref, "k3") for name, ref in x.anchors.items()}
                klc = loss.kl_convex(1.0, **kl)
                regulariser = 0.001 * klc - 0.001 * H
                parallel.backward(policy_loss + loss.token_mean(regulariser, x.mask, n))
                vf = torch.zeros_like(H)
                self.log.add(x, logp, policy_loss.double() * n, klc, H, vf, 0.2)
            if critic is not None and critic_too:
                vf = loss.value_loss(critic(x), x.values, x.returns, 0.5)
                parallel.backward(loss.token_mean(vf, x.mask, n))

    def step(self) -> None:
        import parallel

        self.log.reduce()
        for model in self.models.values():
            parallel.clip_gradients(model, 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()


def work_of(
    s: Shape, lengths: list[tuple[int, int]], checkpointing: bool, frozen: bool
) -> tuple[float, float]:
    """Operations of an update on responses of (prompt, response) tokens: useful, and all.
    frozen: no gradients of the weights (LoRA)."""
    c = s.config
    H, inner, layers = c.hidden_size, c.intermediate_size, c.num_hidden_layers
    kv = c.num_key_value_heads * H // c.num_attention_heads
    trunk, head = layers * (2 * H * H + 2 * H * kv + 3 * H * inner), c.vocab_size * H
    products = attention = again = 0.0
    for prompt, response in lengths:
        L = prompt + response
        of_attention = 2 * L * L * H * layers  # causal: half of the square
        products += 2 * (trunk * L + head * response)
        attention += of_attention
        again += 2 * head * response  # TokenTerms computes its logits twice
        again += (2 * trunk * L + of_attention) * checkpointing
    useful = (2 if frozen else 3) * products + 3 * attention
    return useful, useful + again


# ----------------------------------------------------------------------------------- part 3: update


def measured_update(
    o, s: Shape, case: str, trainer: Trainer, rs: list, top: float, *, again=True, frozen=False
) -> None:
    """Gradients of a mini-batch, once to warm up, then timed; and the optimizer's step."""
    with clock() as first:
        trainer.gradients(rs)
        trainer.step()
    reset_peak()
    repeats, times, steps = (1 if o.rehearse else 3), [], []
    for _ in range(repeats):
        with clock() as t:
            trainer.gradients(rs)
        times.append(t["s"])
        with clock() as t:
            trainer.step()
        steps.append(t["s"])
    lengths = [(len(r.prompt), len(r.tokens)) for r in rs]
    useful, everything = work_of(s, lengths, again, frozen)
    tokens, seconds = sum(map(sum, lengths)), min(times)
    report(
        o, case, **{
            "tokens/s": tokens / seconds, "MFU %": 100 * useful / seconds / NOMINAL,
            "HFU %": 100 * everything / seconds / NOMINAL,
            "MFU % of the product": 100 * useful / seconds / top, "peak GiB": peak_gib(),
            "s": seconds, "slowest s": max(times), "optimizer s": min(steps),
            "first s": first["s"],
        },
    )  # fmt: skip


def prepare(o):
    import torch

    import parallel

    _, _, o.device = parallel.init_distributed()
    torch.manual_seed(0)
    top = product_speed(512 if o.rehearse else 8192)
    report(o, "bf16 matrix product", **{"TFLOP/s": top / 1e12})
    return shape_of(o), top


def budget_of(o) -> int:
    return 128 if o.rehearse else 16384  # of full length: one response each


def update(o, compiled: bool = False, rank: int = 0) -> None:
    from model import Policy

    s, top = prepare(o)
    rs, kind = responses(s, 2), "compiled, " * compiled + f"rank {rank}, " * bool(rank)
    with clock() as t:
        policy = loader(o, s, rank, compiled=compiled)(Policy)
    report(o, "load_model, weights drawn on the device", s=t["s"])
    trainer = Trainer(o, s, dict(policy=policy), budget_of(o))
    measured = partial(measured_update, o, s, trainer=trainer, top=top, frozen=rank > 0)
    measured(f"{kind}checkpointing", rs=rs)
    if not kind:
        short = responses(s, 7, length=s.response // 4)
        measured(f"checkpointing, {s.response // 4:,}-token responses", rs=short)
    profile(o, f"{kind}checkpointing", trainer, rs[:1])
    policy.lm.gradient_checkpointing_disable()
    measured(f"{kind}no checkpointing", rs=rs, again=False)
    profile(o, f"{kind}no checkpointing", trainer, rs[:1])


KERNELS = {  # words in a kernel's name -> what it is counted as; the first that fits
    "compiled": ("triton",),
    "attention": ("flash", "fmha", "attention", "cudnn_generated"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "matmul"),
    "softmax": ("softmax", "logsumexp"),
    "copies": ("memcpy", "memset", "copy", "cat"),
}


def profile(o, case: str, trainer: Trainer, rs: list) -> None:
    """One micro-batch under torch.profiler: the 15 heaviest to the log, shares by kind reported."""
    import torch
    from torch.profiler import ProfilerActivity

    cuda = torch.cuda.is_available()
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + cuda]
    with torch.profiler.profile(activities=kinds) as seen:
        with clock() as t:
            trainer.gradients(rs)
    trainer.step()
    averages = seen.key_averages()
    by = "self_device_time_total" if cuda else "self_cpu_time_total"
    print(f"== profile of one micro-batch, {case}: {t['s']:.3f} s")
    print(averages.table(sort_by=by, row_limit=15, max_name_column_width=90), flush=True)
    on_gpu = torch.autograd.DeviceType.CUDA  # ranges that FSDP and others name are no kernels
    kernels = [
        e for e in averages if not cuda or e.device_type == on_gpu and not e.is_user_annotation
    ]
    times: dict[str, float] = {}
    for e in kernels:
        name = e.key.lower()
        kind = (k for k, words in KERNELS.items() if any(word in name for word in words))
        kind = next(kind, "other")
        times[kind] = times.get(kind, 0.0) + getattr(e, by) / 1e3
    for e in sorted(kernels, key=lambda e: -getattr(e, by))[:25]:
        print(f"  {getattr(e, by) / 1e3:9.2f} ms {e.count:6d} x  {e.key[:150]}")
    shares = {f"{k} ms": v for k, v in sorted(times.items(), key=lambda kv: -kv[1])}
    busy = sum(times.values())
    report(o, f"profile, {case}", **{"wall ms": t["s"] * 1e3, "kernels ms": busy}, **shares)


# ----------------------------------------------------------------------------------- part 4: memory


def expected_bytes(o, s: Shape, rank: int) -> dict[str, int]:
    """Simulated on a CPU beforehand, as it takes minutes."""
    import memory

    if not o.rehearse:
        return memory.simulated("1.5B", 1, rank)
    memory.PROMPT = s.prompt
    how = dict(response=s.response, budget=budget_of(o), lora_rank=rank)
    return memory.simulate(s.config, 1, **how)


def memory_phases(o, rank: int = 0, offload: bool = False) -> None:
    """ReMix-PPO, checkpointing, micro-batches of 16,384 tokens: the order of memory.simulate."""
    import memory
    import torch

    import model
    import parallel
    from model import Critic, Policy

    os.environ.setdefault("LOCAL_WORLD_SIZE", "1")
    s, budget = shape_of(o), budget_of(o)
    expected = expected_bytes(o, s, rank)
    _, _, o.device = parallel.init_distributed()
    kind = f"rank {rank}, " * bool(rank) + "offload, " * offload
    if offload:
        expected = memory.with_offload(expected)

    @contextlib.contextmanager
    def phase(name: str, **more) -> Iterator[None]:
        reset_peak()
        with clock() as t:
            yield
        compare(name, peak_gib(), expected.get(name), s=t["s"], **more)

    def compare(name: str, measured: float | None, simulated: int | None, **more) -> None:
        numbers = {"GiB": measured}
        if simulated is not None:
            numbers["simulated GiB"] = simulated / GIB
            numbers["ratio"] = measured / simulated * GIB if measured else None
        report(o, kind + name, **numbers, **more)

    with phase("load"):
        load = loader(o, s, rank)
        policy = load(Policy)
        base, prev = (load(Policy, frozen=True) for _ in range(2))
        critic = load(Critic)
    now = torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else None
    parts = ("policy", "critic", "anchors", "backbone")
    compare("loaded", now, sum(expected.get(part, 0) for part in parts))

    trainer = Trainer(o, s, dict(policy=policy, critic=critic), budget)
    rs = responses(s, max(1, budget // (s.prompt + s.response)))
    trainer.gradients(rs)
    trainer.step()  # from here on optimizer states are there
    if offload:
        parallel.park(base, prev)
    trainer.gradients(rs)  # and gradients
    with phase("update policy"):
        trainer.gradients(rs, critic_too=False)
    with phase("update critic"):
        trainer.gradients(rs, policy_too=False)
    with phase("optimizer"):
        trainer.step()

    if offload:
        parked = critic, *trainer.optimizers.values()
        with phase("park"):
            parallel.park(*parked)
        now = torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else None
        compare("rollout", now, expected["policy"])
        with phase("fetch"):
            parallel.fetch(*parked)
        with phase("park again"):  # its host memory is pinned already
            parallel.park(*parked)
    many = max(1, 4 * budget // (s.prompt + s.response))
    frozen = responses(s, many)
    for name, of in dict(policy=policy, critic=critic, base=base).items():
        parallel.frozen_pass(of, frozen[:1], 4 * budget, o.device)
        with phase(f"frozen {name}", tokens=many * (s.prompt + s.response)):
            parallel.frozen_pass(of, frozen, 4 * budget, o.device)
    with phase("sync"):
        for _, tensor in model.full_weights(policy, "bfloat16"):
            del tensor
    with phase("pi_{k-1} <- pi_k"), parallel.here(prev):
        model.copy_weights(prev, policy)


# ------------------------------------------------------------------------------------- part 5: head


def head(o) -> None:
    """(N, H) bf16 states -> log-prob and entropy and back; its error against float32 on a slice."""
    import torch

    import loss
    import model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    N, H, V = (64, 64, 512) if o.rehearse else (8192, 1536, 151936)
    torch.manual_seed(0)
    make = partial(torch.randn, device=device)
    rows = make(N, H).to(torch.bfloat16).requires_grad_()
    weight = make(V, H).mul_(0.08).to(torch.bfloat16).requires_grad_()
    labels = torch.randint(0, V, (N,), device=device)
    d_logp, d_H = make(2, N)

    def plain():
        log_p = torch.log_softmax(torch.nn.functional.linear(rows, weight).float(), -1)
        return log_p.gather(-1, labels[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)

    def chunked():
        return model.TokenTerms.apply(rows, weight, None, labels, 1.0, ())

    def exact_kl():
        anchor = model.Anchor(rows.detach(), weight.detach(), None)
        logp, entropy, kl = model.TokenTerms.apply(rows, weight, None, labels, 1.0, (anchor,))
        return logp, entropy + kl

    def compiled():
        return model.TokenTerms.apply(rows, weight, None, labels, 1.0, (), None, math_of_head)

    math_of_head = tuple(
        torch.compile(f, dynamic=True) for f in (model.row_terms, model.row_gradients)
    )
    results = {}
    ways = {"TokenTerms": chunked, "TokenTerms, compiled": compiled}
    ways |= {"plain log-softmax": plain, "TokenTerms, exact KL": exact_kl}
    for name, way in ways.items():
        try:
            for _ in range(2):  # the first one warms up
                rows.grad = weight.grad = None
                before = torch.cuda.memory_allocated() if device == "cuda" else 0
                reset_peak()
                with clock() as forward:
                    logp, entropy = way()
                with clock() as backward:
                    ((logp * d_logp).sum() + (entropy * d_H).sum()).backward()
            peak = peak_gib()
            results[name] = (logp.detach(), entropy.detach(), rows.grad, weight.grad)
            numbers = {"forward ms": forward["s"] * 1e3, "backward ms": backward["s"] * 1e3}
            work = {"TFLOP/s of 6NHV": 6 * N * H * V / (forward["s"] + backward["s"]) / 1e12}
            extra = None if peak is None else peak - before / GIB
            report(o, name, **numbers, **work, **{"GiB beyond the inputs": extra})
        except torch.OutOfMemoryError as error:
            report(o, name, error=str(error)[:80])
        logp = entropy = None
        if device == "cuda":
            torch.cuda.empty_cache()
    if len(results) == len(ways):
        ours, theirs = results["TokenTerms"], results["plain log-softmax"]
        names = ("logp", "entropy", "d rows", "d weight")
        error = {
            f"{name} |difference|": float((a.float() - b.float()).abs().max())
            for name, a, b in zip(names, ours, theirs, strict=True)
        }
        report(o, "TokenTerms against plain, largest", **error)
    log_p = loss.entropy(torch.zeros(2, 4))  # the definition that both are tested against
    assert log_p.allclose(torch.tensor(math.log(4.0)))


# ---------------------------------------------------------------------------------- part 6: engines


def engine(o, kind: str) -> None:
    """The project's engine at 1.5B: start, speed, agreement after each of two syncs, sleep."""
    import torch

    import parallel
    from model import Policy, full_weights
    from rollout import make_engine

    _, _, o.device = parallel.init_distributed()
    s = shape_of(o)
    small = o.rehearse
    prompt, tokens = (20, 16) if small else (100, 1024 if kind == "vllm" else 128)
    many, n = (4, 2) if small else (64, 4 if kind == "vllm" else 1)
    limits = dict(max_prompt_tokens=max(64, prompt), max_tokens=tokens)
    free = free_gib()
    with clock() as t, contextlib.ExitStack() as stack:
        if kind == "hf":
            stack.enter_context(random_weights(o.device))
        else:
            stack.enter_context(dummy_weights())
        sampler = make_engine(kind, s.folder, dtype="bfloat16", gpu_memory=0.4, **limits)
    asleep = free_gib()
    taken = None if free is None else free - asleep
    report(o, f"{kind}: start", **{"s": t["s"], "GiB held asleep": taken})

    policy = loader(o, s)(Policy)
    asked = [r.prompt for r in responses(s._replace(prompt=prompt), many, length=4)]
    draw = partial(sampler.generate, max_tokens=tokens, temperature=1.0)
    budget = budget_of(o)

    def sync() -> float:
        with clock() as t:
            sampler.sync(full_weights(policy, "bfloat16"))
        return t["s"]

    def speed() -> dict:
        with clock() as t:
            groups = draw(asked, n, seeds=[1000 * i for i in range(len(asked))])
        drawn = sum(len(sample.tokens) for group in groups for sample in group)
        return {"tokens/s": drawn / t["s"], "tokens": drawn, "generate s": t["s"]}

    def gap() -> float:
        """Failed where it is more than rounding: the weights did not arrive."""
        from buffer import Response

        few = asked[:16]
        groups = draw(few, 1, seeds=[7 + 1000 * i for i in range(len(few))])
        rs = [
            Response(p, g[0].tokens, torch.tensor(g[0].logp), True, 0.0, 0)
            for p, g in zip(few, groups, strict=True)
        ]
        sampler.sleep()
        theirs = parallel.frozen_pass(policy, rs, budget, o.device)
        differ = torch.cat([r.logp_b for r in rs]) - torch.cat(theirs)
        value = differ.abs().mean().item()
        if not value <= 0.3:  # random weights round more than a language model's; wrong ones: > 1
            raise Failed(f"{kind}: engine_gap {value:.3g}")
        return value

    seconds = sync()
    draw(asked[:4], 1, seeds=[0, 10, 20, 30])  # the first call compiles
    first, second = speed(), speed()
    report(o, f"{kind}: first rollout", **first)
    report(o, f"{kind}: second rollout", **second)
    report(o, f"{kind}: after the first sync", **{"sync s": seconds, "engine_gap": gap()})
    with torch.no_grad():
        for p in policy.parameters():
            if p.ndim == 2:
                p.mul_(1.1)
    seconds = sync()
    changed = gap()
    report(o, f"{kind}: other weights", **{"sync s": seconds, "engine_gap": changed})

    if kind == "vllm":
        sampler.wake("weights", "kv_cache")
        awake = free_gib()
        with clock() as t:
            sampler.sleep()
        asleep = free_gib()
        with clock() as up:
            sampler.wake("weights", "kv_cache")
        back = None if awake is None else asleep - awake
        report(
            o, f"{kind}: sleep and wake",
            **{"sleep s": t["s"], "wake s": up["s"], "GiB that come back": back,
               "engine_gap": gap()},
        )  # fmt: skip
        report(o, f"{kind}: rollout after it", **speed())
    sampler.close()


@contextlib.contextmanager
def dummy_weights() -> Iterator[None]:
    """vLLM then makes weights up: the first sync brings the policy's."""
    import vllm

    real = vllm.LLM
    vllm.LLM = partial(real, load_format="dummy")
    try:
        yield
    finally:
        vllm.LLM = real


# ------------------------------------------------------------------------------------- all the jobs


class Job(NamedTuple):
    part: int
    run: object
    limit: int  # seconds
    least: int  # seconds that must be left to begin it
    beside: bool = False  # runs beside the job before it: nothing of it is timed


def environment(o) -> None:
    """What this was measured on; a copy on the device."""
    import torch
    import transformers

    query = "--query-gpu=name,memory.total,driver_version,clocks.max.sm,power.limit"
    with contextlib.suppress(OSError):
        subprocess.run(["nvidia-smi", query, "--format=csv"], check=False)
    cuda = torch.cuda.is_available()
    card = torch.cuda.get_device_name() if cuda else "CPU, a rehearsal: no number means anything"
    vllm = "there" if find_spec("vllm") else "not there"
    from metrics import git_commit

    versions = {
        "torch": torch.__version__, "transformers": transformers.__version__, "vLLM": vllm,
        "commit": git_commit(), "cores": os.cpu_count(), "gcc": bool(shutil.which("gcc")),
    }  # fmt: skip
    report(o, card, **versions)
    x = torch.empty(2**20 if o.rehearse else 2**30, device="cuda" if cuda else "cpu")
    y = torch.empty_like(x).copy_(x)
    with clock() as t:
        for _ in range(5):
            y.copy_(x)
    report(o, "device copy, read + written", **{"TB/s": 5 * 2 * x.nbytes / t["s"] / 1e12})
    if not cuda and not o.rehearse:
        raise Failed("no CUDA GPU; --rehearse runs without one")


JOBS: dict[str, Job] = {
    "environment": Job(0, environment, 60, 5),
    "learn-ppo": Job(1, learn_ppo, 170, 40),
    "learn-grpo": Job(1, learn_grpo, 220, 60, beside=True),
    "learn-lora": Job(1, learn_lora, 300, 40, beside=True),
    "update": Job(3, update, 150, 40),
    "update-compiled": Job(3, partial(update, compiled=True), 200, 60),
    "update-lora": Job(3, partial(update, rank=RANK), 150, 40),
    "memory": Job(4, memory_phases, 120, 30),
    "memory-offload": Job(4, partial(memory_phases, offload=True), 120, 30),
    "memory-lora": Job(4, partial(memory_phases, rank=RANK), 120, 30),
    "head": Job(5, head, 60, 20),
    "engine-vllm": Job(6, partial(engine, kind="vllm"), 200, 90),
    "engine-hf": Job(6, partial(engine, kind="hf"), 90, 30),
    "smollm": Job(2, learn_smollm, 300, 90),
}


def why_not(name: str, o) -> str:
    """A reason to skip the job, or nothing."""
    if name == "engine-vllm" and not find_spec("vllm"):
        return "vLLM is not there"
    if name == "smollm" and not o.smollm and not o.rehearse:
        return "no --smollm"
    return ""


def text(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def table(o, states: dict[str, str]) -> str:
    """gpu.md: what is known so far."""
    path = Path(o.out, "gpu.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines = ["| part | job | case | numbers |", "|---|---|---|---|"]
    for name, state in states.items():
        part = JOBS[name].part or ""
        for row in (row for row in rows if row["job"] == name):
            numbers = {k: v for k, v in row.items() if k not in ("part", "job", "case")}
            cell = "; ".join(f"{k} {text(v)}" for k, v in numbers.items())
            lines.append(f"| {part} | {name} | {row['case']} | {cell} |")
        lines.append(f"| {part} | {name} | | **{state}** |")
    return "\n".join(lines) + "\n"


def start(name: str, o) -> tuple:
    """-> process, its log, when it began. In a session of its own: a limit ends all of it."""
    log = Path(o.work, f"{name}.log")
    flags = [f"--{k}={getattr(o, k)}" for k in ("out", "work", "smollm", "smollm_steps")]
    command = [sys.executable, __file__, "--job", name, *flags, *["--rehearse"] * o.rehearse]
    defaults = dict(
        PYTHONUNBUFFERED="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
        OMP_NUM_THREADS="1" if o.rehearse else "4", VLLM_LOGGING_LEVEL="INFO",
    )  # fmt: skip
    of_a_group = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = defaults | {k: v for k, v in os.environ.items() if k not in of_a_group}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env,
            start_new_session=True, cwd=ROOT,
        )  # fmt: skip
    return process, log, time.monotonic()


def finish(process, log: Path, began: float, limit: float) -> str:
    """Waits -> ok, or why not; nothing that the job started is left."""
    try:
        code = process.wait(max(1.0, began + limit - time.monotonic()))
        state = "ok" if code == 0 else f"FAILED, exit status {code}"
    except subprocess.TimeoutExpired:
        state = "FAILED, over its time limit"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return f"{state}, {time.monotonic() - began:.0f} s"


def tail(log: Path, lines: int) -> str:
    """The last lines of a log, without progress bars."""
    kept = log.read_text(errors="replace").replace("\r", "\n").splitlines()
    return "\n".join("    " + line[:240] for line in kept[-lines:] if line.strip())


def run_all(o) -> int:
    """Every job that is asked for -> how many failed."""
    o.work.mkdir(parents=True, exist_ok=True)
    o.out.mkdir(parents=True, exist_ok=True)
    begin, states, failed = time.monotonic(), {}, 0
    parts = [int(part) for part in o.parts.split(",")] if o.parts else range(1, 7)
    names = [n for n, job in JOBS.items() if job.part in parts or not job.part]
    if o.jobs:
        names = o.jobs.split(",")

    def left() -> float:
        return o.limit - (time.monotonic() - begin)

    while names:
        # a job, and those that may run beside it
        together = [names.pop(0)]
        while names and JOBS[names[0]].beside:
            together.append(names.pop(0))
        running = {}
        for name in together:
            reason = why_not(name, o)
            if not reason and left() < (0 if o.rehearse else JOBS[name].least):
                reason = "no time left"
            if reason:
                states[name] = f"skipped: {reason}"
                print(f"== {name}: {states[name]}", flush=True)
            else:
                print(f"== {name} ... ({left():.0f} s left)", flush=True)
                running[name] = start(name, o)
        for name, (process, log, began) in running.items():
            limit = 600 if o.rehearse else min(JOBS[name].limit, max(5.0, left()))
            states[name] = finish(process, log, began, limit)
            print(f"== {name}: {states[name]}", flush=True)
            with open(o.out / "gpu.log", "ab") as whole:
                whole.write(f"\n======== {name}: {states[name]}\n".encode() + log.read_bytes())
            if states[name].startswith("FAILED"):
                failed += 1
                print(tail(log, 25), flush=True)
            print(table(o, {name: states[name]}), flush=True)
            (o.out / "gpu.md").write_text(table(o, states))
    print(f"== all, {time.monotonic() - begin:.0f} s\n\n{table(o, states)}", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--rehearse", action="store_true", help="tiny shapes on a CPU")
    flag("--parts", default="", help="for example 1,3,6; default: all")
    flag("--jobs", default="", help=f"single jobs in place of parts: {', '.join(JOBS)}")
    flag("--out", type=Path, default=Path("out/gpu"), help="folder of the results")
    flag("--work", type=Path, help="scratch folder [OUT/work]")
    flag("--limit", type=float, default=3600, help="of the whole [s]")
    flag("--smollm", default="", help="folder or hub name of SmolLM2-135M-Instruct")
    flag("--smollm_steps", type=int, default=24)
    flag("--job", help=argparse.SUPPRESS)  # in this process
    o = parser.parse_args()
    o.out = o.out.resolve()
    o.work = (o.work or o.out / "work").resolve()
    if not o.job:
        if (o.out / "gpu.jsonl").exists():
            sys.exit(f"gpu.py: --out {o.out}: holds results; name a new folder")
        sys.exit(min(run_all(o), 1))
    o.work = str(o.work)
    try:
        JOBS[o.job].run(o)
    except Failed as error:
        sys.exit(f"gpu.py: {o.job}: {error}")


if __name__ == "__main__":
    main()
