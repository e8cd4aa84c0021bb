"""ReMix: off-policy reinforcement finetuning of a language model for math reasoning (arXiv 2507.06892), the whole loop.

    bash train.sh                                     the small embedded model and task, on a laptop, in minutes
    torchrun --nproc_per_node=8 remix.py --model deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --data FILE --out DIR ...
    python remix.py --help                            every flag with unit, default and paper section

One step t = 1, 2, ... of `main` below, top to bottom; the same command goes on after a kill:
    reincarnate if due | sync | roll out | reward | mix | frozen log-probs and values | advantages | update | log, evaluate, save

Plain PPO and GRPO, plain Mix-PPG and every ablation are flags, not other code:
    PPO, GRPO              --off_policy_ratio 0 --utd_ratio 1 --kl_convex off --reincarnation_step 0
    plain Mix-PPG          --kl_convex off --reincarnation_step 0 --utd_ratio 1
    without UTD            --utd_ratio 1           without KL-Convex  --kl_convex off
    without reincarnation  --reincarnation_step 0
Other methods, for comparison: --loss (siblings.py), --replay (buffer.py), --sampler_lag k (asynchronous sampling),
--engine_weight.

[open] = the paper does not say, our choice (others stand in loss.py, buffer.py and data.py):
- [open] T = the last mixing step: pi_base becomes the policy after T steps, before step T + 1 samples.
- [open] the optimizers keep their state at reincarnation; the buffer is emptied.
- [open] pi_{k-1} is a frozen copy of the weights at the start of the previous step; in step 1 it is the base model.
- [open] pi_k's log-probs of fresh data are the sampler's own, so c = 1 exactly; --behaviour_logp trainer computes them anew.
- [open] every one of the m passes over a step's batch is shuffled anew; each mini-batch holds replayed groups in the
  share of the batch. The first step has nothing to replay, so its batch is smaller and so is its number of updates.
- [open] a response cut at the length limit is graded as it stands and ends there: no value is bootstrapped behind it.

Shapes: P prompts a step, G responses a prompt (a group), B = P * G, T response tokens. Left out of the paper: nothing known.
"""

import gc
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault(
    "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16"
)  # AMX in a virtual machine: see tiny.py

import numpy as np
import torch
import torch.distributed as dist
import transformers
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

import checkpoint
import loss
from buffer import Buffer, Response, fresh_prompts, mean_reward
from config import Config, check_config, check_out, kl_convex_weight, parse_config
from data import describe, load_problems, load_tokenizer
from eval import decode, reflection_rate, sample, summarize
from model import (
    Critic,
    Policy,
    Reference,
    average_gradients,
    collate,
    copy_weights,
    full_weights,
    gather,
    gather_in_order,
    init_distributed,
    last_micro_batch,
    load_model,
    micro_batches,
    pad,
    whole_head,
)  # fmt: skip
from plot import plot_runs
from reward import Grader
from rollout import WrongWeights, check_gap, make_engine
from siblings import SIBLINGS, engine_weight, sibling_loss


def git_commit() -> str:
    """Commit of this code, with '+changes' where the files differ from it; 'unknown' outside a git checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "describe", "--always", "--abbrev=40", "--dirty=+changes"], cwd=here,
                                capture_output=True, text=True, check=True)  # fmt: skip
        return commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def prompt_order(count: int, position: int, n: int, seed: int) -> list[int]:
    """Indices of the n prompts from `position` on, in the endless sequence of shuffled epochs over `count` problems."""
    epochs = range(position // count, (position + n - 1) // count + 1)
    order = np.concatenate(
        [np.random.default_rng([seed, 1, epoch]).permutation(count) for epoch in epochs]
    )
    start = position - epochs[0] * count
    return order[start : start + n].tolist()


def mini_batches(fresh: list, replayed: list, size: int, rng: np.random.Generator) -> list[list]:
    """One pass over the groups in mini-batches of about `size` groups, each with its share of replayed ones."""
    n = -(-(len(fresh) + len(replayed)) // size)
    fresh, replayed = (
        [groups[i] for i in rng.permutation(len(groups))] for groups in (fresh, replayed)
    )
    return [
        fresh[j::n] + replayed[n - 1 - j :: n] for j in range(n)
    ]  # from both ends: all of a size to one


@torch.no_grad()
def frozen_pass(
    model: torch.nn.Module,
    responses: list[Response],
    budget: int,
    device: str,
    states: bool = False,
) -> list[torch.Tensor]:
    """Log-probs (Policy; with states its last hidden states) or values (Critic) of all responses, the ranks sharing the work.
    -> one CPU tensor (T,) or (T, H), float32, a response, on every rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    lengths, sizes = (
        [len(r.prompt) + len(r.tokens) for r in responses],
        [len(r.tokens) for r in responses],
    )
    flat = None  # all responses end to end, 0 where another rank computes
    for indices in micro_batches(lengths, budget, world)[rank]:
        part = [
            responses[i] for i in indices or [0]
        ]  # a rank out of work runs along: FSDP's collectives need it
        batch = collate(part, device)
        if isinstance(model, Critic):
            del batch["labels"]
            rows = model(**batch)
        else:
            rows = model(**batch, states=True) if states else model(**batch)[0]
        rows = rows.float().cpu()
        if flat is None:
            flat = rows.new_zeros(sum(sizes), *rows.shape[2:])
            results = flat.split(sizes)
        for b, i in enumerate(indices):
            results[i].copy_(rows[b, : sizes[i]])
    if isinstance(model, FSDPModule):
        model.reshard()  # without a backward pass the root would stay whole on every rank
    if world > 1:
        dist.all_reduce(flat)
    return [result.clone() for result in results]  # on its own: the buffer keeps some for steps


def stop_if_not_finite(step: int, **terms: float) -> None:
    """FloatingPointError naming the step and the term. Called before the optimizer steps: the weights are still good."""
    for name, value in terms.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"step {step}: {name} is {value}; the run stops before this update, and the last checkpoint is intact. "
                "Lower --lr, or look at ratio_mean and log_ratio_sq in metrics.jsonl"
            )


def load_data(cfg: Config):
    """-> model path, tokenizer, training problems, evaluation problems (none without eval_data), lines that say what was
    dropped. ValueError with one sentence when the model or the data cannot be had."""
    model_path = cfg.model
    if cfg.model.split(":")[0] == "tiny":
        import tiny

        settings = tiny.named(cfg.model)
        if dist.get_rank() == 0:
            tiny.make_base_model(settings=settings)
        dist.barrier()
        model_path = tiny.make_base_model(settings=settings, quiet=True)
    tokenizer, context = load_tokenizer(model_path)
    for name in ("max_tokens", "eval_max_tokens"):
        if context is not None and cfg.max_prompt_tokens + getattr(cfg, name) > context:
            raise ValueError(
                f"--{name} {getattr(cfg, name)}: with --max_prompt_tokens {cfg.max_prompt_tokens} that is more than the "
                f"{context} tokens of context of {cfg.model}; lower one of them"
            )
    how = dict(prompt=cfg.prompt, max_prompt_tokens=cfg.max_prompt_tokens)
    names = dict(problem_field=cfg.problem_field or None, answer_field=cfg.answer_field or None)
    problems, counts = load_problems(
        cfg.data, tokenizer, split=cfg.split, limit=cfg.limit or None, **how, **names
    )
    lines, eval_problems = [f"train: {describe(counts)}"], []
    eval_data = cfg.eval_data or ("tiny" if cfg.data == "tiny" else "")
    if eval_data:
        eval_problems, counts = load_problems(
            eval_data, tokenizer, split="test", limit=cfg.eval_limit or None, **how
        )
        lines.append(f"eval:  {describe(counts)}")
    return model_path, tokenizer, problems, eval_problems, lines


def train(
    cfg: Config, device: str, model_path: str, tokenizer, problems: list, eval_problems: list
) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    # An engine spans --tensor_parallel ranks, which all sample its prompts; the first of them hands the samples on
    engine_rank, engines = rank // cfg.tensor_parallel, world // cfg.tensor_parallel
    hands_on = rank % cfg.tensor_parallel == 0
    main_rank, out = rank == 0, Path(cfg.out)
    say = tqdm.write if main_rank else (lambda text: None)

    # ---------------------------------------------------------------- engine, models, state
    engine = make_engine(
        cfg.engine, model_path, max_prompt_tokens=cfg.max_prompt_tokens, max_tokens=max(cfg.max_tokens, cfg.eval_max_tokens),
        dtype=cfg.dtype, gpu_memory=cfg.gpu_memory, tensor_parallel=cfg.tensor_parallel,
    )  # fmt: skip
    how = dict(
        device=device,
        dtype=cfg.dtype,
        temperature=cfg.temperature,
        attention=cfg.attention,
        shard=cfg.shard,
    )
    anchored = cfg.kl_coef > 0
    policy = load_model(Policy, model_path, checkpointing=cfg.gradient_checkpointing, **how)
    base = load_model(Policy, model_path, frozen=True, **how) if anchored else None
    keeps_precedent = anchored and cfg.kl_convex != "off" and cfg.precedent == "previous"
    precedent = load_model(Policy, model_path, frozen=True, **how) if keeps_precedent else None
    critic = (
        load_model(Critic, model_path, checkpointing=cfg.gradient_checkpointing, **how)
        if cfg.algo == "ppo"
        else None
    )
    # sampler_lag k: the policies of the last k steps, newest first; the last of them samples
    lagged = [load_model(Policy, model_path, frozen=True, **how) for _ in range(cfg.sampler_lag)]
    sampler = lagged[-1] if lagged else policy
    models = dict(policy=policy, critic=critic, base=base, precedent=precedent)
    models |= {f"lag{i + 1}": model for i, model in enumerate(lagged)}
    models = {name: model for name, model in models.items() if model is not None}
    rates = dict(policy=cfg.lr, critic=cfg.critic_lr)
    optimizers = {
        name: torch.optim.AdamW(models[name].parameters(), lr=rate, weight_decay=cfg.weight_decay, fused=True)
        for name, rate in rates.items() if name in models
    }  # fmt: skip

    buffer = Buffer(cfg.replay_window, cfg.replay, rank, world)
    sibling = SIBLINGS.get(cfg.loss)  # None: ReMix's own loss, Mix-PPG
    state = dict(step=0, position=0, rollouts=0, gradient_steps=0, seconds=0.0)
    saved = gather([checkpoint.latest(out)] if main_rank else [])[
        0
    ]  # one answer, whatever a node's file cache says
    if saved:
        state = checkpoint.load(saved, models, optimizers)
        buffer.load_state_dict(state.pop("buffer"))
        say(f"going on after step {state['step']} of {out}")
    if main_rank:
        scheduled = (
            state["step"] >= cfg.steps
            or bool(cfg.eval_every)
            and state["step"] % cfg.eval_every == 0
        )
        checkpoint.rewind_metrics(out / "metrics.jsonl", state["step"] if saved else -1, scheduled)
    grader = Grader(workers=cfg.grader_workers)
    exact = cfg.kl_estimator == "exact"
    frozen_budget = (
        4 * cfg.tokens_per_micro_batch
    )  # without gradients a token needs a fraction of the memory
    n_ages = (
        cfg.replay_window + cfg.sampler_lag + 1
    )  # the last one holds everything older, too (repo)

    def evaluate() -> dict:
        """Metrics of the current policy on the held-out problems, the ranks sharing them; the engine must be in sync."""
        options = dict(n=cfg.eval_n, temperature=cfg.eval_temperature, top_p=cfg.eval_top_p)
        mine = eval_problems[engine_rank::engines]
        records = sample(
            engine,
            tokenizer,
            mine,
            grader,
            cfg.format,
            **options,
            max_tokens=cfg.eval_max_tokens,
            seed=0,
        )
        metrics = summarize(
            sorted(gather(records if hands_on else []), key=lambda r: r["id"]), grader
        )
        return {f"eval/{name}": value for name, value in metrics.items()}

    def log(row: dict) -> None:
        # JSON has no nan: what is undefined is left out. 8 digits are more than float32 has
        row = {
            k: float(f"{v:.8g}") if isinstance(v, float) else v for k, v in row.items() if v == v
        }
        if main_rank:
            with open(out / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")

    if state["step"] == 0:
        engine.sync(full_weights(policy, cfg.dtype))
        row = dict(step=0, rollouts=0, gradient_steps=0, seconds=0.0) | (
            evaluate() if eval_problems else {}
        )
        engine.sleep()
        log(row)
        if eval_problems:
            say(
                f"base model: pass@1 {row['eval/pass@1']:.1%}, {row['eval/response_length']:.0f} tokens a response"
            )
    gc.collect()
    gc.freeze()  # what is loaded by now stays: a full collection would look at all of it, for 0.3 s every few steps
    unchecked = True  # engine and trainer have not been compared since the start or the resume
    progress = tqdm(
        total=cfg.steps,
        initial=state["step"],
        desc="ReMix",
        unit="step",
        disable=None if main_rank else True,
    )

    for step in range(state["step"] + 1, cfg.steps + 1):
        started = time.perf_counter()
        mixing = cfg.reincarnation_step == 0 or step <= cfg.reincarnation_step
        seconds, tokens_forward, tokens_backward = {}, 0, 0

        # ------------------------------------------------------------ policy reincarnation
        if cfg.reincarnation_step and step == cfg.reincarnation_step + 1:
            if anchored:
                copy_weights(base, policy)  # (1) pi_base <- pi_T
            buffer.clear()  # (2) from here on pure on-policy PPO / GRPO
            say(
                f"step {step}: reincarnation, the policy is its own anchor now and training goes on on-policy"
            )
        ratio = cfg.off_policy_ratio if mixing else 0.0
        passes = cfg.utd_ratio if mixing else 1

        # ------------------------------------------------------------ sync: the engine samples from pi_k
        engine.sync(full_weights(sampler, cfg.dtype))

        # ------------------------------------------------------------ roll out: (1 - p) P fresh prompts, or P
        n_fresh = fresh_prompts(step, cfg.prompts_per_step, ratio)
        again = []  # problems that failed before, at most a quarter
        looks_for_contrast = cfg.replay == "buffer_matters" and mixing
        if looks_for_contrast:
            again = [buffer.failed.popleft() for _ in range(min(n_fresh // 4, len(buffer.failed)))]
        new_prompts = n_fresh - len(again)
        chosen = again + prompt_order(len(problems), state["position"], new_prompts, cfg.seed)
        longest_first = sorted(
            range(n_fresh), key=lambda i: (-len(problems[chosen[i]].prompt_ids), i)
        )
        mine = longest_first[engine_rank::engines]
        groups = engine.generate(
            [problems[chosen[i]].prompt_ids for i in mine],
            cfg.group_size,
            seeds=[((cfg.seed * 100_000 + step) * 1_000_000 + i) * cfg.group_size for i in mine],
            temperature=cfg.temperature,
            max_tokens=cfg.max_tokens,
        )
        seconds["rollout"] = time.perf_counter() - started

        # ------------------------------------------------------------ reward: right answer and right format
        texts = [decode(tokenizer, s.tokens) for group in groups for s in group]
        golds = [problems[chosen[i]].gold for i in mine for _ in range(cfg.group_size)]
        scores = grader.score(texts, golds, cfg.format)
        rewards = iter(scores.rewards)
        sampled_at = max(step - cfg.sampler_lag, 1)  # the step whose policy sampled
        fresh_here = [
            (i, [Response(problems[chosen[i]].prompt_ids, s.tokens, torch.tensor(s.logp), s.finished, next(rewards), sampled_at)
                 for s in group])
            for i, group in zip(mine, groups, strict=True)
        ]  # fmt: skip
        fresh = gather_in_order(fresh_here if hands_on else [])
        new = [r for group in fresh for r in group]
        counts = (
            [(reflection_rate(texts) * len(texts), scores.kills, scores.unparsable)]
            if hands_on
            else []
        )
        reflects, kills, unparsable = (sum(count) for count in zip(*gather(counts), strict=True))
        state["position"] += new_prompts
        state["rollouts"] += n_fresh * cfg.group_size
        seconds["reward"] = time.perf_counter() - started - sum(seconds.values())

        # ------------------------------------------------------------ log-probs of the policy that sampled
        def passed(
            model: torch.nn.Module, responses: list[Response], states: bool = False
        ) -> list[torch.Tensor]:
            nonlocal tokens_forward
            tokens_forward += sum(len(r.prompt) + len(r.tokens) for r in responses)
            return frozen_pass(model, responses, frozen_budget, device, states) if responses else []

        engine.sleep()
        if unchecked:  # a sync that failed is silent: compare the two on a few samples, once
            few = new[:16]
            check_gap(
                [r.logp_b for r in few], frozen_pass(sampler, few, frozen_budget, device), cfg.dtype
            )
            unchecked = False
        if cfg.behaviour_logp == "trainer":
            logps = passed(sampler, new)
            engine_gap = (torch.cat(logps) - torch.cat([r.logp_b for r in new])).abs().mean().item()
            for r, logp in zip(new, logps, strict=True):
                if cfg.engine_weight != "off":
                    r.engine_weight = engine_weight(logp, r.logp_b, cfg.engine_weight)
                r.logp_b = logp

        # ------------------------------------------------------------ mix with replay (Mix-PPG)
        if looks_for_contrast:
            buffer.failed.extend(
                chosen[i] for i, group in enumerate(fresh) if mean_reward(group) == 0
            )
            fresh = [group for group in fresh if 0 < mean_reward(group) < 1] or fresh
        count = cfg.prompts_per_step - n_fresh
        replayed = []
        if count:
            facts = dict(prompts=[group[0].prompt for group in fresh])
            if cfg.replay == "on_policyness":
                stored = gather_in_order(buffer.stored())
                logps = iter(passed(policy, [r for group in stored for r in group]))
                facts["likelihood"] = [
                    float(np.mean([next(logps).mean().exp() for _ in group])) for group in stored
                ]
            replayed = gather_in_order(
                buffer.draw(count, np.random.default_rng([cfg.seed, 2, step]), **facts)
            )
        batch = [r for group in fresh + replayed for r in group]
        of_buffer = {id(r) for group in replayed for r in group}

        # ------------------------------------------------------------ log-probs under the frozen policies, and values
        of_older_policies = [r for group in replayed for r in group] if not lagged else batch
        for r, logp in zip(of_older_policies, passed(policy, of_older_policies), strict=True):
            r.logp_k = logp
        if not lagged:
            for r in new:
                r.logp_k = r.logp_b  # fresh data was sampled by pi_k: c = 1, no pass
        heads = {}  # exact KL: the anchors' output layers, which turn hidden states into their whole distributions
        if anchored:
            if exact:
                heads["base"] = whole_head(base, cfg.dtype)
            name = "states_base" if exact else "logp_base"
            missing = [
                r for r in batch if getattr(r, name) is None
            ]  # replayed ones have it from their first step
            for r, result in zip(missing, passed(base, missing, states=exact), strict=True):
                setattr(r, name, result)
        lam = kl_convex_weight(cfg, step)
        if anchored and lam < 1:  # while lambda = 1 nothing of pi_{k-1} is needed
            before = policy if precedent is None else precedent
            if exact:
                heads["prev"] = whole_head(before, cfg.dtype)
            same = before is policy and not exact  # pi_k's are there already
            results = [r.logp_k for r in batch] if same else passed(before, batch, states=exact)
            for r, result in zip(batch, results, strict=True):
                setattr(r, "states_prev" if exact else "logp_prev", result)
        if precedent is not None:
            copy_weights(precedent, policy)  # pi_k, which is pi_{k-1} of the next step
        for i in reversed(range(len(lagged))):
            copy_weights(lagged[i], lagged[i - 1] if i else policy)
        if critic is not None:  # values of all data, replayed too, with the current critic
            for r, values in zip(batch, passed(critic, batch), strict=True):
                r.values = values
        seconds["frozen"] = time.perf_counter() - started - sum(seconds.values())

        # ------------------------------------------------------------ advantages A^{pi_k}
        if cfg.algo == "grpo":
            how_good = sibling.advantage if sibling and sibling.advantage else loss.group_advantages
            advantages = how_good(torch.tensor([r.reward for r in batch]), cfg.group_size)
            for r, advantage in zip(batch, advantages, strict=True):
                r.advantages = advantage.expand(len(r.tokens))
        else:
            mask, values = (
                pad([torch.ones(len(r.tokens)) for r in batch], "cpu"),
                pad([r.values for r in batch], "cpu"),
            )
            at_end = torch.zeros_like(mask)  # (B, T): the reward stands on the last token
            for b, r in enumerate(batch):
                at_end[b, len(r.tokens) - 1] = r.reward
            trace = None
            if cfg.vtrace:
                trace = pad([torch.exp(r.logp_k - r.logp_b).clamp(max=1) for r in batch], "cpu")
            advantages, returns = loss.gae(at_end, values, mask, cfg.gamma, cfg.gae_lambda, trace)
            if cfg.whiten:
                advantages = loss.whiten(advantages, mask)
            for b, r in enumerate(batch):
                r.advantages, r.returns = (
                    advantages[b, : len(r.tokens)],
                    returns[b, : len(r.tokens)],
                )
        clip_eps = cfg.clip_eps
        if cfg.geppo_clip:
            ages = np.bincount([step - r.step for r in batch]) / len(batch)
            clip_eps = loss.geppo_clip_eps(clip_eps, ages.tolist())

        # ------------------------------------------------------------ update: m passes of mini-batches (UTD ratio m)
        # sums over tokens: 4 terms, how many; then by age, then by quarter of the replayed responses
        totals, by_age, by_quarter = (
            torch.zeros(n, dtype=torch.float64) for n in (5, (n_ages, 6), (4, 2))
        )
        grad_norms = []
        for number in range(passes):
            shuffle = np.random.default_rng([cfg.seed, 3, step, number])
            for mini in mini_batches(fresh, replayed, cfg.mini_batch, shuffle):
                responses = [r for group in mini for r in group]
                lengths = [len(r.prompt) + len(r.tokens) for r in responses]
                n_tokens = sum(
                    len(r.tokens) for r in responses
                )  # global: every rank, every micro-batch
                tokens_backward += sum(lengths)
                whole = {}  # what a sibling wants to know of the whole mini-batch
                if sibling and sibling.whole:
                    now = torch.cat(passed(policy, responses))
                    then = torch.cat([r.logp_b for r in responses])
                    whole = sibling.whole(now, then, torch.cat([r.advantages for r in responses]))
                sums, ages, quarters = (
                    torch.zeros_like(x, device=device) for x in (totals, by_age, by_quarter)
                )
                gap = torch.zeros(1, dtype=torch.float64, device=device)
                share = micro_batches(lengths, cfg.tokens_per_micro_batch, world)[rank]
                for number_of_part, indices in enumerate(share, 1):
                    last_micro_batch(models.values(), number_of_part == len(share))
                    part = [responses[i] for i in indices or [0]]
                    tensors = collate(part, device)
                    if not indices:  # out of work: run along with nothing to learn from
                        tensors["mask"].zero_()
                    mask = tensors["mask"]
                    logp_k, logp_b, A = (
                        pad([getattr(r, name) for r in part], device)
                        for name in ("logp_k", "logp_b", "advantages")
                    )
                    shares = dict(base=lam, prev=1 - lam)
                    references = tuple(
                        Reference(
                            shares[name],
                            pad([getattr(r, f"states_{name}") for r in part], device),
                            *head,
                        )
                        for name, head in heads.items()
                    )
                    logp, H, exact_kl = policy(**tensors, references=references)

                    # ---- the loss of this micro-batch
                    weight = (
                        pad([r.engine_weight for r in part], device)
                        if cfg.engine_weight != "off"
                        else 1
                    )
                    if sibling is None:
                        pg = loss.mix_ppg(logp, logp_k, logp_b, A, clip_eps)  # Eq. 3
                        policy_loss = loss.token_mean(weight * pg, mask, n_tokens)
                    else:
                        known = dict(
                            logp=logp, logp_k=logp_k, logp_b=logp_b, advantages=A, mask=mask
                        )
                        known |= whole | dict(clip_eps=clip_eps)
                        sizes = dict(
                            tokens=n_tokens, responses=len(responses), max_tokens=cfg.max_tokens
                        )
                        policy_loss = sibling_loss(sibling, known, weight, **sizes)
                    constraint = exact_kl  # 0 without an anchor
                    if anchored and not exact:
                        logp_base = pad([r.logp_base for r in part], device)
                        logp_prev = pad([r.logp_prev for r in part], device) if lam < 1 else None
                        constraint = loss.kl_convex(
                            logp, logp_base, logp_prev, lam, cfg.kl_estimator
                        )
                    regulariser = cfg.kl_coef * constraint - cfg.entropy_coef * H
                    total = policy_loss + loss.token_mean(regulariser, mask, n_tokens)
                    # FSDP averages gradients over the ranks, the loss is a sum over them: hence * world
                    (total * world).backward()
                    vf = torch.zeros_like(H)
                    if critic is not None:
                        old_values, returns = (
                            pad([getattr(r, k) for r in part], device)
                            for k in ("values", "returns")
                        )
                        del tensors["labels"]
                        vf = loss.value_loss(critic(**tensors), old_values, returns, cfg.value_clip)
                        (loss.token_mean(vf, mask, n_tokens) * world).backward()

                    with torch.no_grad():
                        terms = [
                            (x.double() * mask).sum()
                            for x in (constraint, H, vf, torch.ones_like(mask))
                        ]
                        sums += torch.stack([policy_loss.double() * n_tokens, *terms])
                        age = torch.tensor(
                            [min(step - r.step, n_ages - 1) for r in part], device=device
                        )  # (B,)
                        ages.index_add_(
                            0, age, loss.ratio_sums(logp, logp_k, logp_b, A, mask, clip_eps)
                        )
                        if replayed:
                            old_ones = torch.tensor(
                                [id(r) in of_buffer for r in part], device=device
                            )[:, None]
                            quarters += loss.ratio_by_quarter(logp, logp_b, mask * old_ones)
                        gap += ((logp - logp_b).abs() * mask * (age == 0)[:, None]).sum()
                if world > 1:
                    for x in (sums, ages, quarters, gap):
                        dist.all_reduce(x)
                if (
                    not grad_norms and cfg.behaviour_logp == "engine"
                ):  # nothing updated yet: the two differ by rounding
                    engine_gap = gap.item() / ages[0, 0].item() if ages[0, 0] else math.nan
                names = ("policy_loss", "kl", "entropy", "value_loss")
                stop_if_not_finite(step, **dict(zip(names, sums[:4].tolist(), strict=True)))
                norms = {}
                for name in optimizers:
                    average_gradients(models[name])
                    norm = torch.nn.utils.clip_grad_norm_(models[name].parameters(), cfg.grad_clip)
                    norms[name] = (
                        norm.full_tensor() if hasattr(norm, "full_tensor") else norm
                    ).item()
                stop_if_not_finite(
                    step, **{f"gradient of the {name}": norm for name, norm in norms.items()}
                )
                for optimizer in optimizers.values():
                    optimizer.step()
                    optimizer.zero_grad()
                totals, by_age, by_quarter = (
                    totals + sums.cpu(),
                    by_age + ages.cpu(),
                    by_quarter + quarters.cpu(),
                )
                grad_norms.append(norms)
        state["gradient_steps"] += len(grad_norms)
        seconds["update"] = time.perf_counter() - started - sum(seconds.values())

        # ------------------------------------------------------------ push to the buffer
        del heads, references  # large with the exact KL, and the next rollout wants the memory
        for r in (r for group in replayed for r in group):  # on one rank they are the buffer's own
            r.end_step()
        if mixing and cfg.off_policy_ratio > 0:
            buffer.push(fresh, step)
        state["step"] = step
        state["seconds"] += time.perf_counter() - started

        # ------------------------------------------------------------ log; the terms are means over all updates of the step
        n = totals[4].item()
        row = {k: state[k] for k in ("step", "rollouts", "gradient_steps", "seconds")}
        row |= dict(
            reward=float(np.mean([r.reward for r in new])),
            response_length=float(np.mean([len(r.tokens) for r in new])),
            reflection_rate=reflects / len(new),
            truncation_rate=float(np.mean([not r.finished for r in new])),
            grader_kills=kills, grader_unparsable=unparsable,
            off_policy_ratio=len(replayed) / (len(fresh) + len(replayed)), kl_convex_lambda=lam, clip_eps=clip_eps,
            policy_loss=totals[0].item() / n, kl=totals[1].item() / n, entropy=totals[2].item() / n,
            value_loss=totals[3].item() / n, grad_norm=float(np.mean([norms["policy"] for norms in grad_norms])),
            engine_gap=engine_gap, tokens_forward=tokens_forward, tokens_backward=tokens_backward,
        )  # fmt: skip
        for i, sums in enumerate(by_age):
            if sums[0] > 0:
                row |= {
                    f"{name}/age{i}": value for name, value in loss.ratio_diagnostics(sums).items()
                }
        if replayed:
            row |= {
                f"ratio_mean/quarter{i + 1}": (r / n_).item()
                for i, (n_, r) in enumerate(by_quarter)
                if n_ > 0
            }
        row |= {f"seconds_{name}": value for name, value in seconds.items()}

        # ------------------------------------------------------------ evaluate
        last = step == cfg.steps
        if eval_problems and (last or (cfg.eval_every and step % cfg.eval_every == 0)):
            engine.sync(full_weights(policy, cfg.dtype))
            row |= evaluate()
            engine.sleep()
        log(row)
        summary = f"step {step:4d}  reward {row['reward']:.2f}  length {row['response_length']:5.1f}  rollouts {row['rollouts']:6d}"
        if "eval/pass@1" in row:
            summary += f"  pass@1 {row['eval/pass@1']:.1%} ± {row['eval/pass@1_ci']:.1%}"
        if kills:
            summary += f"  {kills} gradings killed"
        say(f"{summary}  {sum(seconds.values()):.1f} s")
        progress.update()

        # ------------------------------------------------------------ save
        if last or step % cfg.save_every == 0:
            stored = gather_in_order(buffer.stored())
            checkpoint.save(
                out, step, models, optimizers, state | dict(buffer=buffer.state_dict(stored))
            )

    progress.close()
    checkpoint.export(policy, tokenizer, out / "model")
    if main_rank:
        plot_runs({cfg.algo: [str(out)]}, str(out / "curve.png"))
        say(f"done: {out}/model, {out}/metrics.jsonl, {out}/curve.png")
    grader.close()
    engine.close()


def stop(error: Exception) -> None:
    """End with one sentence instead of a traceback; under torchrun one rank of each node says it."""
    sys.exit(f"remix.py: {error}" if os.environ.get("LOCAL_RANK", "0") == "0" else 1)


def on_every_rank(check, *args):
    """check(*args) on every rank; where any of them raises ValueError all do, so that none waits for one that has ended."""
    try:
        result, error = check(*args), ""
    except ValueError as problem:
        result, error = None, str(problem)
    errors = [text for text in gather([error]) if text]
    if errors:
        raise ValueError(errors[0])
    return result


def check_shared(out: str) -> None:
    """ValueError where this node does not see what rank 0 has just written: it would save a part of each checkpoint elsewhere."""
    deadline = time.time() + 60  # network file systems take their time
    while not Path(out, "config.json").exists():
        if time.time() > deadline:
            raise ValueError(
                f"--out {out}: is not one folder for all nodes; name one on a file system that all of them see"
            )
        time.sleep(0.5)


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # a log file shows every step as it ends
    try:  # bad input: one sentence, before any model is loaded
        cfg = parse_config()
        check_config(cfg)
        rank, world, device = init_distributed()
        on_every_rank(check_out, cfg)
        transformers.utils.logging.disable_progress_bar()
        if world % cfg.tensor_parallel:
            raise ValueError(
                f"--tensor_parallel {cfg.tensor_parallel}: does not divide the {world} ranks; take one that does"
            )
        *loaded, lines = on_every_rank(load_data, cfg)
        if rank == 0:
            print("\n".join(lines))
            Path(cfg.out).mkdir(parents=True, exist_ok=True)
            checkpoint.write_json(
                Path(cfg.out) / "config.json",
                asdict(cfg) | dict(git_commit=git_commit(), ranks=world),
            )
        dist.barrier()
        on_every_rank(check_shared, cfg.out)
    except ValueError as error:
        stop(error)
    try:
        train(cfg, device, *loaded)
    except (FloatingPointError, WrongWeights) as error:
        stop(error)
    if dist.is_initialized():  # vLLM's engine destroys the group when it closes
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
