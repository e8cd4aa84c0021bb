"""minimal.py, the second opinion: remix.py trains as it does, step by step, and a wrong line would
be noticed. The page stands alone, stays a page and runs."""

import ast
import functools
import io
import json
import math
import re
import types
from contextlib import redirect_stdout
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from forks import forked
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import loss
import tiny
from data import load_problems
from reward import equivalent, extract_answer

SOURCE = (ROOT / "minimal.py").read_text()


def load_minimal(*changes, name="minimal", **constants):
    """minimal.py as a fresh module, with (old, new) changes of its text and other constants."""
    text = SOURCE
    for old, new in changes:
        assert text.count(old) == 1, f"minimal.py has {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    module = types.ModuleType(name)
    exec(compile(text, "minimal.py", "exec"), vars(module))
    vars(module).update(constants)
    return module


# -------------------------------------------------------------------------------- against remix.py

CASES = dict(
    plain=dict(p=0, m=1, T=math.inf, lam=1.0, steps=4),
    remix=dict(p=Fraction("0.5"), m=2, T=3, lam=0.7, steps=4),
    # a remainder to carry, steps that leave the window, a lambda that moves
    longer=dict(p=Fraction("0.4"), m=2, T=4, lam="schedule", steps=5),
)
# the clip is narrow, so that it binds and its centre matters; the anchors pull
COMMON = dict(P=8, MINI=4, N=2, EPS=0.02, BETA=0.5, C=0.01, LR=1e-3, CRITIC_LR=1e-2, S=64)
GROUP = dict(ppo=1, grpo=4)


# remix.py, which also keeps what its engine drew, by its seeds
RECORDER = """
import sys, torch, remix, rollout
generate, drawn = rollout.HFEngine.generate, {}

def record(engine, prompts, n=1, *, seeds, **options):
    groups = generate(engine, prompts, n, seeds=seeds, **options)
    for seed, prompt, group in zip(seeds, prompts, groups):
        drawn[seed] = prompt, [s.tokens for s in group]
    return groups

rollout.HFEngine.generate, out = record, sys.argv[-1].removeprefix("--out=")
remix.main()
torch.save(drawn, f"{out}/drawn.pt")
"""


def run_remix(base, out, algo, case, source, seed):
    """remix.py on the problems of the source -> rows of metrics, final weights, all responses."""
    flags = dict(
        seed=seed,
        model=base,
        data=source,
        algo=algo,
        engine="hf",
        prompt="plain",
        max_prompt_tokens=64,
        max_tokens=COMMON["S"],
        steps=case["steps"],
        prompts_per_step=COMMON["P"],
        group_size=GROUP[algo],
        mini_batch=COMMON["MINI"],
        off_policy_ratio=float(case["p"]),
        replay_window=COMMON["N"],
        utd_ratio=case["m"],
        kl_convex="schedule:1,1" if case["lam"] == "schedule" else case["lam"],
        reincarnation_step=0 if case["T"] == math.inf else case["T"],
        clip_eps=COMMON["EPS"],
        kl_coef=COMMON["BETA"],
        entropy_coef=COMMON["C"],
        lr=COMMON["LR"],
        critic_lr=COMMON["CRITIC_LR"],
    )
    args = [*(f"--{name}={value}" for name, value in flags.items()), f"--out={out}"]
    said = Path(f"{out}.txt")
    assert forked(said, args, RECORDER) == [0], said.read_text()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    drawn = torch.load(out / "drawn.pt")
    return rows, load_file(out / "model" / "model.safetensors"), drawn


def sampler(minimal, drawn):
    """In place of minimal.sample: the responses that remix.py drew for the step, its grader's
    rewards. Drawn anew, a token could fall to the other side of a rounding."""
    steps = iter(range(1, 100))

    def sample(lm, problems):
        step, G, W, S = next(steps), minimal.G, minimal.W, minimal.S
        asked = problems[::G]
        start = (minimal.SEED * 100_000 + step) * 1_000_000
        groups = [drawn[(start + i) * G] for i in range(len(asked))]
        assert [prompt for prompt, _ in groups] == [q.prompt_ids for q in asked]
        ids = torch.full((len(problems), W + S), minimal.PAD)
        R = torch.zeros(len(problems), 1)
        for b, (q, tokens) in enumerate(
            zip(problems, (tokens for _, group in groups for tokens in group), strict=True)
        ):
            ids[b, W - len(q.prompt_ids) : W] = torch.tensor(q.prompt_ids)
            ids[b, W : W + len(tokens)] = torch.tensor(tokens)
            text = minimal.tokenizer.decode(tokens)
            R[b] = float(equivalent(extract_answer(text, "r1") or "", q.gold))
        return ids, R

    return sample


def ppo(logp, logp_k, logp_b, A):
    """Textbook PPO: no centre, no behaviour policy of its own."""
    u = torch.exp(logp - logp_k)
    eps = COMMON["EPS"]
    return -torch.min(u * A, u.clamp(1 - eps, 1 + eps) * A)


def kl_to_base(logp, logp_base, logp_prev, t):
    return torch.exp(logp_base - logp) - 1 - (logp_base - logp)


def first_difference(remix_run, base, problems, algo, case, *changes):
    """What differs first between remix.py and minimal.py, with changes of its text, or None."""
    rows, weights, drawn = remix_run
    if case["lam"] == "schedule":
        changes = (*changes, ("max(t - 4, 0) / 2", "max(t - 1, 0) / 1"))
    constants = dict(COMMON, STEPS=case["steps"], G=GROUP[algo], SEED=case["seed"])
    constants |= {name: case[name] for name in "pmT"}
    minimal = load_minimal(('ALGO = "ppo"', f'ALGO = "{algo}"'), *changes, **constants)
    if case["lam"] != "schedule":
        minimal.lam = lambda t: case["lam"]
    if case["p"] == 0:
        minimal.mix_ppg, minimal.kl_convex = ppo, kl_to_base
    minimal.sample = sampler(minimal, drawn)
    first = AutoModelForCausalLM.from_pretrained(base).state_dict()
    lm = AutoModelForCausalLM.from_pretrained(base)
    rollouts = gradient_steps = 0
    for (step, R, updates), row in zip(minimal.train(lm, problems), rows[1:], strict=True):
        rollouts, gradient_steps = rollouts + len(R), gradient_steps + len(updates)
        terms, norms = zip(*updates, strict=True)  # (4, tokens) and a number for each update
        policy_loss, kl, entropy, value_loss = torch.cat(terms, 1).double().mean(1).tolist()
        ours = dict(step=step, rollouts=rollouts, gradient_steps=gradient_steps)
        ours |= dict(reward=R.mean().item())
        for name, value in ours.items():
            if value != pytest.approx(row[name]):
                return f"step {step}: {name} {value}, not {row[name]}"
        ours = dict(policy_loss=policy_loss, kl=kl, entropy=entropy, value_loss=value_loss)
        ours |= dict(grad_norm=np.mean([norm.item() for norm in norms]))
        for name, value in ours.items():
            if value != pytest.approx(row[name], rel=2e-4, abs=2e-6):
                return f"step {step}: {name} {value}, not {row[name]}"
    last = lm.state_dict()
    moved = torch.cat([(last[name] - first[name]).flatten() for name in weights])
    apart = torch.cat([(last[name] - weights[name]).flatten() for name in weights])
    # Adam turns rounding of near-zero gradients into whole steps
    if not apart.norm() < 2e-3 * moved.norm():
        return f"weights: {apart.norm()} apart, {moved.norm()} moved"
    return None


BOTH = {
    "the clip is around 1": ("c - EPS, c + EPS", "1 - EPS, 1 + EPS"),
    "pi_b is forgotten": ("logp_k[b], logp_b[b], A", "logp_k[b], logp_k[b], A"),
    "k3 is upside down": (
        "(logp_base - logp, logp_prev - logp)",
        "(logp - logp_base, logp - logp_prev)",
    ),
    "the anchors are swapped": (
        "lam(t) * k3_base + (1 - lam(t))",
        "(1 - lam(t)) * k3_base + lam(t)",
    ),
    "the precedent is pi_k": ("pi_prev, pi_k = pi_k, copy", "pi_prev = pi_k = copy"),
    "the anchor is not reborn": ("pi_base, buffer = pi_k, []", "buffer = []"),
    "one pass": ("m if t <= T else 1", "1"),
    "two passes, after T too": ("m if t <= T else 1", "m"),
    "other groups are replayed": ("SEED, 2, t", "SEED, 4, t"),
    "replay goes on after T": ("1 - p if t <= T else 1", "1 - p"),
    "the same order in both passes": ("SEED, 3, t, i", "SEED, 3, t, 0"),
    "the entropy is a penalty": ("pg - C * H", "pg + C * H"),
    "a mean over responses": (
        "[mask[b]].mean()",
        ".mul(mask[b]).sum(1).div(mask[b].sum(1)).mean()",
    ),
}
MUTATIONS = dict(
    ppo=BOTH
    | {
        "values hardly move": ("V - V_k[b], -VALUE_CLIP, VALUE_CLIP", "V - V_k[b], -1e-3, 1e-3"),
        "advantages are not whitened": (" / torch.sqrt(A[mask].var() + 1e-8)", ""),
    },
    grpo=BOTH
    | {
        "the std is biased": ("g.std(1, keepdim=True)", "g.std(1, keepdim=True, correction=0)"),
        "no baseline": ("(g - g.mean(1, True))", "g"),
    },
)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ppo", "grpo"])
@pytest.mark.parametrize("case", CASES)
def test_remix_trains_as_minimal_does(base, tmp_path, tokenizer, algo, case):
    """plain: no replay, one pass, one anchor, no reincarnation, and textbook PPO in place of Eq. 3.
    This base model is hardly ever right: any number up to 100 counts, or all advantages would be 0.
    There are 18 problems, so that the runs go on into another epoch."""
    source = tmp_path / "problems.json"
    rows = [row | dict(answer=["50"], error="50") for row in tiny.embedded_problems("train")[:18]]
    source.write_text(json.dumps(rows))
    for seed in range(
        5
    ):  # minimal.py masks a pad, a token like others to remix.py: till none is drawn
        remix_run = run_remix(base, tmp_path / f"run{seed}", algo, CASES[case], source, seed)
        groups = [group for key, (_, group) in remix_run[2].items() if key >= 1_000_000]
        if not any(tokenizer.pad_token_id in tokens for group in groups for tokens in group):
            break
    else:
        raise AssertionError("five runs have pads")
    assert 0.1 < np.mean([row["reward"] for row in remix_run[0][1:]]) < 0.9

    problems, _ = load_problems(str(source), tokenizer, prompt="plain", max_prompt_tokens=64)
    case = CASES[case] | dict(seed=seed)
    compare = functools.partial(first_difference, remix_run, base, problems, algo, case)
    assert compare() is None
    if case["T"] == 3:
        for what, change in MUTATIONS[algo].items():
            assert compare(change), f"not noticed: {what}"


# -------------------------------------------------------------------------------- the page


def test_it_is_one_page_that_stands_alone():
    assert SOURCE.count("\n") <= 130 and "# Eq. 3" in SOURCE
    assert SOURCE.count("# %%") > 5 and "__main__" in SOURCE.rsplit("# %%", 1)[1]
    assert SOURCE.count("__main__") == 1
    imported = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported & {path.stem for path in ROOT.glob("*.py")} == {"tiny"}


def test_the_terms():
    minimal = load_minimal()
    logp, logp_k, logp_b, A = torch.randn(4, 50, 20, dtype=torch.float64) * 0.5
    w, u, eps = torch.exp(logp_k - logp_b), torch.exp(logp - logp_k), minimal.EPS
    # the other form of Eq. 3: pi_theta / pi_k may move by eps / w
    band = torch.maximum(torch.minimum(u, 1 + eps / w), 1 - eps / w)
    torch.testing.assert_close(
        minimal.mix_ppg(logp, logp_k, logp_b, A), -w * torch.min(u * A, band * A)
    )
    assert [round(minimal.lam(t), 9) for t in (1, 4, 5, 6, 7, 12, 13, 24)] == [
        1, 1, 0.9, 0.9, 0.8, 0.6, 0.5, 0.5,
    ]  # fmt: skip
    for t in range(1, 30):
        assert minimal.lam(t) == pytest.approx(loss.kl_convex_lambda(t, 4, 2))


def test_sample_and_reward(base, tokenizer):
    """Against the prompts of data.py, the policy without padding, and the grader, which is less
    strict: it lets something follow the box."""
    minimal, lm = load_minimal(), AutoModelForCausalLM.from_pretrained(base)
    rows = tiny.embedded_problems("train")[:100]
    problems, _ = load_problems("tiny", tokenizer, prompt="plain", limit=100)
    torch.manual_seed(0)
    ids, R = minimal.sample(lm, rows)
    W, S, PAD = minimal.W, minimal.S, minimal.PAD
    assert ids.shape == (100, W + S) and R.shape == (100, 1)
    logp, H = (x.detach() for x in minimal.log_probs(lm, ids))
    for b in (*range(10), ids[:, W:].ne(PAD).sum(1).argmax().item()):
        prompt, response = (x[x != PAD].tolist() for x in (ids[b, :W], ids[b, W:]))
        assert prompt == problems[b].prompt_ids
        assert response[-1] == tokenizer.eos_token_id or len(response) == S
        alone = torch.log_softmax(lm(torch.tensor([prompt + response])).logits[0, :-1], -1)
        alone = alone.gather(-1, torch.tensor(prompt + response)[1:, None])[len(prompt) - 1 :, 0]
        torch.testing.assert_close(logp[b, : len(response)], alone.detach(), atol=1e-5, rtol=1e-4)
    # sampled from the whole policy at temperature 1: surprise is the entropy, on average
    mask = ids[:, W:] != PAD
    surprise = (-logp - H)[mask]
    assert abs(surprise.mean()) < 4 * surprise.std() / math.sqrt(len(surprise))
    cold = minimal.sample(lm, rows, 0.6, 0.95)[0]
    logp, H = (x.detach()[cold[:, W:] != PAD] for x in minimal.log_probs(lm, cold))
    assert (-logp - H).mean() < -0.05

    by_hand = {
        " 3 + 4 = 7 </think> \\boxed{ 7 }": 1,
        " </think> \\boxed{ 70 }": 0,
        " </think> \\boxed{ 7": 0,
        " </think> 7": 0,
        " \\boxed{ 7 }": 0,
        " </think> </think> \\boxed{ 7 }": 0,
    }
    for text, right in by_hand.items():
        assert minimal.reward(text, "7") == right
        assert equivalent(extract_answer(text, "r1") or "", "7") == right
    texts = tokenizer.batch_decode([x[x != PAD] for x in ids[:, W:]], skip_special_tokens=True)
    answers = [(extract_answer(text, "r1") or "").strip() for text in texts]
    assert sum(answer.isdigit() for answer in answers) > 30
    for text, answer in zip(texts, answers, strict=True):
        gold = answer if answer.isdigit() else "7"
        box = rf"</think> *\\boxed{{ {answer} }}"  # nothing before it, nothing behind it
        right = answer.isdigit() and re.search(f"{box}$", text) is not None
        assert minimal.reward(text, gold) == right, text


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_it_runs(base, algo, monkeypatch):
    """As `python minimal.py` does, but for a smaller base model, task and batch."""
    rows = {split: tiny.embedded_problems(split)[:20] for split in ("train", "test")}
    monkeypatch.setattr(tiny, "embedded_problems", rows.get)
    monkeypatch.setattr(tiny, "make_base_model", lambda settings: base)
    output = io.StringIO()
    with redirect_stdout(output):
        load_minimal(
            ('ALGO = "ppo"', f'ALGO = "{algo}"'),
            ("(128, 1, 32)", "(10, 1, 5)"),
            ("(16, 8, 4)", "(5, 4, 3)"),
            ("2, 2, 12", "2, 2, 2"),
            ("24, 5, 0, 16, 128", "3, 2, 0, 16, 64"),
            name="__main__",
        )
    number = r"\d+\.\d%"
    step = r"step  {}  reward \d\.\d\d  {} fresh  {} updates{}"
    patterns = [
        # (1-p)P fresh prompts, and nothing to replay; then the batch is whole; after T one pass
        step.format(1, *((6, 4) if algo == "ppo" else (12, 2)), ""),
        step.format(2, *((6, 4) if algo == "ppo" else (12, 4)), f"  pass@1 {number}"),
        step.format(3, *((10, 2) if algo == "ppo" else (20, 2)), ""),
        f"pass@1 {number} before, {number} after",
    ]
    for line, pattern in zip(output.getvalue().splitlines(), patterns, strict=True):
        assert re.fullmatch(pattern, line), line
