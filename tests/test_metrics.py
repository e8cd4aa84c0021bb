"""What is logged: the diagnostics against numpy, the sums of a step against their plain means."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_loss import EPS, close, float64, log_probs, mix_ppg_numpy, tensor  # noqa: F401

import checkpoint
import config
import machine
import metrics
import parallel
import remix
import siblings
from buffer import Response
from config import Config
from data import load_problems
from eval import summarize
from model import Critic, Policy, load_model
from parallel import Batch


def of(rows, logp_k, logp_b, A, mask):
    logp_k, logp_b, A, mask = (x[rows] for x in (logp_k, logp_b, A, mask))
    return Batch(None, None, None, mask, logp_b=logp_b, logp_k=logp_k, advantages=A)


def test_ratio_diagnostics_against_numpy():
    rng = np.random.default_rng(11)
    logp, logp_k, logp_b = (log_probs(rng, 4, 9) for _ in range(3))
    A, mask = tensor(rng.normal(size=(4, 9))), tensor(rng.integers(0, 2, (4, 9)).astype(float))
    # two micro-batches
    sums = sum(
        metrics.ratio_sums(logp[i : i + 2], of(slice(i, i + 2), logp_k, logp_b, A, mask), EPS).sum(
            0
        )
        for i in (0, 2)
    )
    got = metrics.ratio_diagnostics(sums)
    keep = mask.numpy() == 1
    logr = (logp - logp_b).numpy()[keep]
    r, c = np.exp(logr), np.exp((logp_k - logp_b).numpy()[keep])
    _, grad = mix_ppg_numpy(*(x.numpy() for x in (logp, logp_k, logp_b, A)), EPS)
    assert got == pytest.approx(
        dict(
            ratio_mean=r.mean(),
            log_ratio_sq=(logr**2).mean(),
            clip_fraction=np.mean(grad[keep] == 0),
            tv=np.abs(r - c).mean() / 2,
            ess=r.sum() ** 2 / (len(r) * (r**2).sum()),
        )
    )


def test_ratio_by_quarter_against_a_loop():
    rng = np.random.default_rng(12)
    lengths, T = [1, 2, 7, 8], 8
    mask = tensor([[1.0] * n + [0.0] * (T - n) for n in lengths])
    logp, logp_b = log_probs(rng, 4, T), log_probs(rng, 4, T)
    expected = np.zeros((4, 2))
    for b, n in enumerate(lengths):
        for t in range(n):
            expected[t * 4 // n] += 1, math.exp(logp[b, t] - logp_b[b, t])
    close(metrics.ratio_by_quarter(logp, logp_b, mask), expected)


def test_one_problem_has_no_interval_and_what_is_undefined_is_left_out(group, tmp_path, capsys):
    """The line on the screen and the one in the file."""
    log = metrics.Log(Config(out=str(tmp_path), steps=3), 0, "cpu")
    log.start(1)
    counts = dict(step=1, reward=0.5, response_length=7.0, rollouts=4, grader_kills=2)
    counts |= dict(answer_rate=0.6, format_rate=0.8)
    log.write(counts | {"eval/pass@1": 1.0, "eval/pass@1_ci": math.nan})
    log.write(dict(step=0) | {"eval/pass@1": 0.25, "eval/response_length": 3.0})
    log.bar.close()
    rows = metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0].pop("seconds_eval") >= 0
    assert rows == [counts | {"eval/pass@1": 1.0}, {"step": 0, "eval/pass@1": 0.25,
                                                    "eval/response_length": 3.0}]  # fmt: skip
    said = capsys.readouterr().out
    assert "reward 0.50 (answer 0.60, format 0.80)" in said
    assert "pass@1 100.0%  2 gradings killed" in said
    assert "base model: pass@1 25.0%, 3 tokens a response" in said


# ------------------------------------------------------------------------ numbers people steer by


def response(prompt: int, tokens: int, reward: float = 0.0, **more) -> Response:
    zeros = torch.zeros(tokens)
    more = dict(logp_k=zeros, advantages=zeros) | more
    return Response([1] * prompt, [2] * tokens, zeros, True, reward, 1, **more)


@pytest.fixture
def load(base, group):
    torch.set_default_dtype(torch.float32)  # the formulas of test_loss are in float64

    def make(kind=Policy, name=base, **options):
        return load_model(kind, name, device="cpu", dtype="float32", **options)

    return make


def counted(model, r: Response) -> int:
    """FLOPs of the matrix products that PyTorch really does; without autograd."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(parallel.collate([r]))
    return counter.get_total_flops()


def test_flops_are_those_that_pytorch_counts(load):
    """Eager attention is matrix products, which the counter knows; what is left are norms and
    biases, which are no products."""
    for kind in (Policy, Critic):
        model = load(kind, attention="eager")
        for r in (response(3, 4), response(20, 200), response(100, 30)):
            assert machine.flops(model, [r]) == pytest.approx(counted(model, r), rel=0.02)
        both = [response(3, 4), response(5, 6)]
        assert machine.flops(model, both) == sum(machine.flops(model, [r]) for r in both)


def test_of_experts_only_those_count_that_a_token_meets(load, tmp_path):
    from transformers import AutoModelForCausalLM, MixtralConfig

    sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, num_local_experts=8)
    lm = AutoModelForCausalLM.from_config(MixtralConfig(**sizes, num_experts_per_tok=2))
    n = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 32 * 8 + 2 * 3 * 32 * 64)  # q o, k v, router, two experts
    n += 5 * 32  # norms
    r = response(6, 4)
    expected = 2 * (n * 10 + 50 * 32 * 4) + 4 * 2 * 32 * 10**2
    assert machine.flops(Policy(lm, 1.0), [r]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "card, peak",
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
        ("AMD Instinct MI300X", None),
        ("", None),
    ],
)
def test_peaks_by_name(card, peak):
    assert machine.peak_tflops(card) == peak


def test_mfu_padding_rates_and_memory_of_a_step(load, tmp_path):
    """Three sequences of 5, 9 and 10 tokens in one micro-batch: 30 tokens, 24 of them real."""
    cfg = Config(out=str(tmp_path), peak_tflops=2e-6, group_size=1)
    models = dict(policy=load())
    optimizers = dict(policy=torch.optim.SGD(models["policy"].parameters(), 0.125))
    log = metrics.Log(cfg, 0, "cpu", models, optimizers)
    log.start(1)
    rs = [response(2, 3), response(4, 5), response(4, 6)]
    log.forward(models["policy"], rs[:1])
    log.mini_batch(rs)
    for x in parallel.micro_batches(rs, 1, 1000, "cpu", models.values()):
        log.add(x, x.logp_b, torch.zeros(()).double(), *[torch.zeros_like(x.mask)] * 3, 0.2)
    log.seconds = dict(rollout=2.0, frozen=1.0, update=3.0)
    row = log.machine(14)
    log.bar.close()
    assert row["padding"] == pytest.approx(6 / 30)
    assert row["machine/sampled_tokens_per_second"] == 7 and log.tokens_backward == 24
    assert row["machine/trained_tokens_per_second"] == 8
    work = 3 * machine.flops(models["policy"], rs) + machine.flops(models["policy"], rs[:1])
    assert row["machine/mfu"] == pytest.approx(work / (4.0 * 2e6))
    if not torch.cuda.is_available():
        status = open("/proc/self/status").read()
        kib = int(re.search(r"VmHWM:\s+(\d+)", status)[1])
        assert row["machine/process_memory"] == pytest.approx(kib / 2**20, rel=0.05)


def test_the_work_counted_is_the_whole_models_with_skipped_layers_too(load, tmp_path):
    """In the first step the log meets a model that lacks some."""
    policy, engine, some = load(), SimpleNamespace(lm=load().lm), [response(2, 3)]
    log = metrics.Log(Config(out=str(tmp_path), peak_tflops=1.0), 0, "cpu", dict(policy=policy))
    log.bar.close()
    all_layers = siblings.skip_layers(1, engine, policy, np.random.default_rng(0))
    early = machine.flops(policy, some)
    all_layers()
    machine.sizes.cache_clear()
    assert machine.flops(policy, some) == early


def test_no_mfu_where_the_peak_is_not_known(load, tmp_path):
    log = metrics.Log(Config(out=str(tmp_path)), 0, "cpu", dict(policy=load()), {})
    log.start(1)
    log.forward(log.models["policy"], [response(2, 3)])
    log.bar.close()
    assert log.peak is None and log.flops == 0 and log.tokens_forward == 5


def test_groups_with_equal_rewards():
    assert metrics.equal_groups([0, 0, 1, 0, 1, 1, 0, 0, 0.5, 0.5], 2) == 0.8
    assert metrics.equal_groups([0, 0, 1], 3) == 0


@pytest.mark.parametrize("most", [1e-3, 1e6])
def test_the_heads_gradient_before_it_is_clipped(load, tmp_path, most):
    """By pass, mean over its mini-batches; the clip may cut (1e-3) or not."""
    policy, norms = load(), []
    optimizers = dict(policy=torch.optim.SGD(policy.parameters(), 0.125))
    log = metrics.Log(Config(out=str(tmp_path), grad_clip=most), 0, "cpu", dict(policy=policy),
                      optimizers)  # fmt: skip
    log.start(1)
    for i, size in ((0, 3), (0, 5), (1, 7)):
        policy.zero_grad()
        logp, H, _ = policy(parallel.collate([response(2, size)]))
        (logp.sum() + H.sum()).backward()
        norms.append(np.linalg.norm(policy.lm.lm_head.weight.grad.numpy().ravel()))
        whole = parallel.clip_gradients(policy, most)
        assert (whole > most) == (most < 1) and whole > norms[-1]
        log.updated(dict(policy=whole), i)
    log.bar.close()
    got = {i: np.mean(of_pass) for i, of_pass in log.head_norms.items()}
    assert got == pytest.approx({1: np.mean(norms[:2]), 2: norms[2]}, rel=1e-4)


# ------------------------------------------------------------------------------ docs/metrics.md


def documented() -> dict[str, str]:
    """name, or pattern with I for a number -> its row of the page."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    return {m[1]: m[0] for m in re.finditer(r"^\| `([^`]+)` \|.*$", page, re.MULTILINE)}


def pattern(name: str) -> str:
    return re.escape(name).replace("I", r"\d+")


@pytest.fixture(scope="module")
def names(base, group, tokenizer, tmp_path_factory) -> set[str]:
    """The names in the lines of a run of PPO and one of GRPO, with replay and evaluation, and in an
    evaluation with --reward."""
    found = set()
    for algo in ("ppo", "grpo"):
        out = tmp_path_factory.mktemp(algo)
        flags = "--data tiny --prompt plain --max_prompt_tokens 64 --max_tokens 16 --engine hf "
        flags += "--prompts_per_step 4 --mini_batch 4 --group_size 2 --steps 2 --eval_n 2 "
        flags += "--reincarnation_step 0 --peak_tflops 1"
        cfg = config.parse_config([*flags.split(), "--algo", algo, "--out", str(out)])
        problems, _ = load_problems("tiny", tokenizer, prompt="plain", max_prompt_tokens=64)
        checkpoint.record_start(cfg, {})
        remix.train(cfg, "cpu", base, tokenizer, problems[:20], problems[:3])
        for line in (out / "metrics.jsonl").read_text().splitlines():
            found |= json.loads(line).keys()
    own = [dict(rewards=[0.1, 0.5], responses=["", ""])] * 2  # of --reward
    return found | {f"eval/{name}" for name in summarize(own, None)}


def test_every_name_is_documented(names):
    known = "|".join(map(pattern, documented()))
    assert {name for name in names if not re.fullmatch(known, name)} == set()


def test_every_documented_name_is_logged(names):
    rows = {n: row for n, row in documented().items() if "*conditional: " not in row}
    assert {n for n in rows if not any(re.fullmatch(pattern(n), name) for name in names)} == set()
    assert all(row.split("|")[3].strip() for row in documented().values())  # its meaning
