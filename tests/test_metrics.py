"""What is logged: the diagnostics against numpy, the sums of a step against their plain means."""

import math

import numpy as np
import pytest
from test_loss import EPS, close, float64, log_probs, mix_ppg_numpy, tensor  # noqa: F401

import metrics
from config import Config
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
    assert rows == [counts | {"eval/pass@1": 1.0}, {"step": 0, "eval/pass@1": 0.25,
                                                    "eval/response_length": 3.0}]  # fmt: skip
    said = capsys.readouterr().out
    assert "reward 0.50 (answer 0.60, format 0.80)" in said
    assert "pass@1 100.0%  2 gradings killed" in said
    assert "base model: pass@1 25.0%, 3 tokens a response" in said
