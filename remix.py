"""ReMix: off-policy reinforcement finetuning of a language model for math reasoning, the whole loop
(arXiv 2507.06892).

    bash train.sh                       the embedded small model and task, on a laptop, in minutes
    torchrun --nproc_per_node=8 remix.py --recipe 1.5b          the paper's ReMix-PPO
    python remix.py --help              every flag with unit, default and paper section

One step of `train` below, top to bottom; the same command goes on after a kill:
    reincarnate if due | roll out | reward | mix | what is frozen | advantages | update | push, log,
    evaluate, save

Plain PPO and GRPO, plain Mix-PPG and every ablation are flags, not other code:
    PPO, GRPO         --off_policy_ratio 0 --utd_ratio 1 --kl_convex off --reincarnation_step 0
    plain Mix-PPG     --utd_ratio 1 --kl_convex off --reincarnation_step 0
    without UTD / KL-Convex / reincarnation      one of these three alone
What is not ReMix (other losses, replays, samplers) comes through one door: siblings.py.

[open] = the paper does not say, our choice (others stand in loss.py, buffer.py and data.py):
- [open] T = the last mixing step: pi_base becomes the policy after T steps, before step T + 1
  samples. The optimizers keep their state; the buffer is emptied.
- [open] pi_{k-1} is a frozen copy of the weights at the start of the previous step; in step 1 it is
  the base model.
- [open] pi_k's log-probs of fresh data are the sampler's own, so c = 1 exactly;
  --behaviour_logp trainer computes them anew.
- [open] every one of the m passes is shuffled anew; each mini-batch holds replayed groups in the
  share of the batch. The first step has nothing to replay: a smaller batch, fewer updates.
- [open] a response cut at the length limit is graded as it stands and ends there: no value is
  bootstrapped behind it.

P prompts a step, G responses a prompt (a group), B = P G; parallel.Batch is the legend of shapes.
"""

import atexit
import gc
import math
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import config
from config import Config

if __name__ == "__main__":  # a slip in a flag should not wait for torch, which takes seconds
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to save yet: Ctrl-C needs no traceback
    config.command_line()
    gc.disable()  # until all is imported: a tenth of that time went into looking for garbage

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # AMX in a virtual machine: tiny.py

import numpy as np
import torch
import torch.distributed as dist
import transformers
from tqdm import tqdm

import checkpoint
import lora
import loss
import machine
import metrics
import parallel
import siblings
from buffer import REMIX, Buffer, Group, Response, fresh_prompts
from data import Problem, load_run
from eval import by_set, decode, format_warning, reflection_rate, sample, summarize
from model import Critic, Policy, copy_weights, full_weights, load_model, whole_head
from plot import plot_runs
from reward import Grader, look_at
from rollout import WrongWeights, check_engine, make_engine, probe, prove_sync

# ------------------------------------------------------------------------------- pieces of the loop


def prompt_order(count: int, position: int, n: int, seed: int) -> list[int]:
    """n numbers from `position` on, in the endless sequence of shuffled epochs over `count`."""
    epochs = range(position // count, (position + n - 1) // count + 1)
    shuffled = [np.random.default_rng([seed, 1, epoch]).permutation(count) for epoch in epochs]
    start = position - epochs[0] * count
    return np.concatenate(shuffled)[start : start + n].tolist()


def roll_out(
    engine, problems: list[Problem], step: int, cfg: Config, before: int = 0
) -> list[tuple[int, Group]]:
    """G responses to each problem, still without reward, as (place, group); the engines share the
    problems, the longest prompts first. before: problems that the step has sampled already."""
    order = sorted(range(len(problems)), key=lambda i: (-len(problems[i].prompt_ids), i))
    mine, G = parallel.engine_share(order, cfg.tensor_parallel), cfg.group_size
    seeds = [((cfg.seed * 100_000 + step) * 1_000_000 + before + i) * G for i in mine]
    limits = dict(temperature=cfg.temperature, max_tokens=cfg.max_tokens)
    limits |= dict(stop=cfg.stop, stop_token_ids=cfg.stop_token_ids)
    groups = engine.generate([problems[i].prompt_ids for i in mine], G, seeds=seeds, **limits)
    sampled_at = max(step - cfg.sampler_lag, 1)  # the step whose policy sampled
    return [
        (i, [Response(problems[i].prompt_ids, s.tokens, torch.tensor(s.logp), s.finished, 0.0,
                      sampled_at) for s in group])
        for i, group in zip(mine, groups, strict=True)
    ]  # fmt: skip


def give_rewards(
    groups: list[tuple[int, Group]], problems: list[Problem], grader: Grader, tokenizer, cfg: Config
) -> dict[str, int]:
    """1 for a right answer in the right format, else 0; or what --reward says -> counts over all
    ranks' responses."""
    pairs = [(r, problems[i]) for i, group in groups for r in group]
    texts = [decode(tokenizer, r.tokens, cfg.stop) for r, _ in pairs]
    counts = dict(reflecting=reflection_rate(texts) * len(texts))
    if cfg.reward:
        scores = grader.own_rewards(texts, [problem.row for _, problem in pairs])
    else:
        golds = [problem.gold for _, problem in pairs]
        scores = grader.score(texts, golds, cfg.format)
        counts["right"] = sum(grader.right_answers(texts, golds, scores))
        counts["formatted"] = sum(answer is not None for answer in scores.answers)
        counts["unparsable"] = scores.unparsable
    counts["kills"] = scores.kills
    for (r, _), reward in zip(pairs, scores.rewards, strict=True):
        r.reward = reward
    parts = parallel.gather([counts], cfg.tensor_parallel)
    return {name: sum(part[name] for part in parts) for name in counts}


def sample_more(
    engine, problems: list[Problem], mine: list, counts: dict[str, int], grader: Grader, tokenizer,
    cfg: Config, log: metrics.Log, chosen: list[int], before: int,
) -> list[Group]:  # fmt: skip
    """A further round of a step (siblings.fill_up): the rewarded groups of the chosen problems, on
    every rank. `mine`, this rank's engine's, and `counts` grow by it."""
    asked = [problems[i] for i in chosen]
    log.phase("reward")
    new = roll_out(engine, asked, log.step, cfg, before)
    log.phase("rollout")
    for name, n in give_rewards(new, asked, grader, tokenizer, cfg).items():
        counts[name] += n
    mine += new
    return parallel.gather_in_order(new, cfg.tensor_parallel)


def set_advantages(batch: list[Response], cfg: Config, advantage_fn: Callable | None) -> None:
    """A^{pi_k} of every token. GRPO: of the group's rewards. PPO: GAE with today's critic, of
    replayed responses too. advantage_fn: another method's, in GRPO's place."""
    if cfg.algo == "grpo":
        if not batch:  # --filter_groups has left nothing
            return
        rewards = torch.tensor([r.reward for r in batch])
        advantages = (advantage_fn or loss.group_advantages)(rewards, cfg.group_size)  # (B,)
        for r, advantage in zip(batch, advantages, strict=True):
            r.advantages = advantage.expand(len(r.tokens))
        return
    pad = parallel.pad
    values, mask = pad([r.values for r in batch]), pad([torch.ones(len(r.tokens)) for r in batch])
    rewards, trace = torch.zeros_like(mask), None  # (B, T): the reward stands on the last token
    for b, r in enumerate(batch):
        rewards[b, len(r.tokens) - 1] = r.reward
    if cfg.vtrace:
        trace = pad([torch.exp(r.logp_k - r.logp_b).clamp(max=1) for r in batch])
    advantages, returns = loss.gae(rewards, values, mask, cfg.gamma, cfg.gae_lambda, trace)
    if cfg.whiten:
        advantages = loss.whiten(advantages, mask)
    for b, r in enumerate(batch):
        n = len(r.tokens)
        r.advantages, r.returns = advantages[b, :n], returns[b, :n]


def mini_batches(fresh: list, replayed: list, size: int, rng: np.random.Generator) -> list[list]:
    """One pass over the groups in mini-batches of about `size`, each with its share of replay."""
    n = -(-(len(fresh) + len(replayed)) // size)
    fresh, replayed = ([part[i] for i in rng.permutation(len(part))] for part in (fresh, replayed))
    return [fresh[j::n] + replayed[n - 1 - j :: n] for j in range(n)]  # from both ends: even sizes


def set_learning_rates(optimizers: dict, step: int, cfg: Config) -> None:
    """Those of the step, a function of its number alone. transformers' formulas,
    with the steps counted from 1 and 0 behind the last one: no rollout is for nothing. Neither
    reincarnation nor a step without an update begins the schedule anew."""
    share = min(1.0, step / max(1, cfg.warmup_steps))
    if cfg.lr_schedule != "constant" and step > cfg.warmup_steps:
        done = (step - cfg.warmup_steps) / (cfg.steps + 1 - cfg.warmup_steps)
        share = 1 - done if cfg.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    rates = dict(policy=cfg.lr, critic=cfg.critic_lr)
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = share * rates[name]


def due(step: int, every: int, last: int) -> bool:
    return step == last or bool(every) and step % every == 0


def evaluate(
    engine, policy: Policy, problems: list[Problem], grader, tokenizer, cfg: Config,
    log: metrics.Log | None = None,
) -> dict:  # fmt: skip
    """eval/...: metrics of the current policy on all held-out problems, the engines sharing them;
    eval/SET/... of those of each set. log: keeps some of the responses."""
    if not problems:
        return {}
    engine.sync(full_weights(policy, cfg.dtype))
    probe(engine, policy, problems, cfg)
    options = dict(n=cfg.eval_n, temperature=cfg.eval_temperature, top_p=cfg.eval_top_p, seed=0)
    mine = parallel.engine_share(problems, cfg.tensor_parallel)
    options |= dict(max_tokens=cfg.eval_max_tokens, stop=cfg.stop)
    options["stop_token_ids"] = cfg.stop_token_ids
    records = sample(engine, tokenizer, mine, grader, cfg.format, **options)
    engine.sleep()
    records = sorted(parallel.gather(records, cfg.tensor_parallel), key=lambda record: record["id"])
    scores = summarize(records, grader) | by_set(records, problems, grader)
    if log:
        log.keep_evaluation(records, problems)
    if dist.get_rank() == 0 and (warning := format_warning(scores, cfg.format)):
        tqdm.write(warning)
    return {f"eval/{name}": value for name, value in scores.items()}


# ----------------------------------------------------------------------------------------- the loop


def train(
    cfg: Config, device: str, model_path: str, tokenizer, problems: list, eval_problems: list
) -> None:
    # ---------------------------------- sampler, and networks: None where the settings need none
    load = partial(
        load_model, name=model_path, device=device, dtype=cfg.dtype, temperature=cfg.temperature,
        checkpointing=cfg.gradient_checkpointing, attention=cfg.attention, shard=cfg.shard,
        compiled=cfg.compile,
    )  # fmt: skip
    try:
        if cfg.lora_rank:  # each network below is an adapter on one model
            frozen = 2 + cfg.sampler_lag  # at most: base, prev and the lag's
            load = lora.loader(load, cfg.lora_rank, cfg.algo == "ppo", frozen, cfg.seed)
        policy = load(Policy)  # pi_theta; first, as a family that is not computed right ends here
        machine.lap("policy", policy)
        engine = make_engine(
            cfg.engine, model_path, max_prompt_tokens=cfg.max_prompt_tokens,
            max_tokens=max(cfg.max_tokens, cfg.eval_max_tokens), dtype=cfg.dtype,
            gpu_memory=cfg.gpu_memory, tensor_parallel=cfg.tensor_parallel,
        )  # fmt: skip
        machine.lap("engine")
    except ValueError as error:  # bad input still: one sentence
        raise WrongWeights(error) from error
    critic = load(Critic) if cfg.algo == "ppo" else None
    base = load(Policy, frozen=True) if cfg.kl_coef else None  # pi_base, the anchor
    convex = base and cfg.kl_convex != "off" and cfg.precedent == "previous"
    prev = load(Policy, frozen=True) if convex else None  # pi_{k-1}, the precedent
    lag = siblings.Lag(cfg.sampler_lag, partial(load, Policy, frozen=True))
    sampler = lag.sampler or policy
    models = dict(policy=policy, critic=critic, base=base, prev=prev, **lag.models)
    models = {name: model for name, model in models.items() if model}
    optimizers = {
        name: torch.optim.AdamW(
            models[name].parameters(), lr, weight_decay=cfg.weight_decay, fused=True
        )
        for name, lr in dict(policy=cfg.lr, critic=cfg.critic_lr).items() if name in models
    }  # fmt: skip

    # ---------------------------------- buffer, grader, and where the run is
    rank, world, P = dist.get_rank(), dist.get_world_size(), cfg.prompts_per_step
    buffer = Buffer(cfg.replay_window, siblings.REPLAYS[cfg.replay], rank, world)
    sibling = siblings.LOSSES.get(cfg.loss)  # None: ReMix's own loss, Eq. 3
    state = checkpoint.load_run(cfg, models, optimizers, buffer)
    if cfg.offload:  # all but what samples; `parallel.here` has it on the device where it is used
        others = [model for model in models.values() if model not in (policy, sampler)]
        parallel.park(*others, *optimizers.values())
    grader = Grader(cfg.grader_workers, cfg.grader_deadline, own=cfg.reward)
    log = metrics.Log(cfg, state.step, device, models, optimizers)
    atexit.register(grader.close)  # also where the run is refused: its workers must not complain
    first, T = state.step + 1, cfg.reincarnation_step or math.inf
    exact = cfg.kl_estimator == "exact"  # anchors then leave hidden states in place of log-probs
    micro_batches = partial(
        parallel.micro_batches, budget=cfg.tokens_per_micro_batch, device=device,
        models=models.values(),
    )  # fmt: skip

    def rng(*what: int) -> np.random.Generator:
        """No state but the step number. 1, epoch: prompts; 2: replay; 3: mini-batches; 4: layers"""
        return np.random.default_rng([cfg.seed, *what])

    def upcoming(n: int) -> list[int]:
        """The next n problems."""
        state.position += n
        return prompt_order(len(problems), state.position - n, n, cfg.seed)

    def score() -> list[list[torch.Tensor]]:
        """pi_k's log-probs of all stored groups, for the replays that ask."""
        stored = parallel.gather_in_order(buffer.stored())
        rows = iter(forward(policy, [r for group in stored for r in group]))
        return [[next(rows) for _ in group] for group in stored]

    def forward(model, responses: list[Response], states: bool = False) -> list[torch.Tensor]:
        """A frozen pass: without gradients a token needs a fraction of the memory."""
        log.forward(model, responses)
        budget = 4 * cfg.tokens_per_micro_batch
        return parallel.frozen_pass(model, responses, budget, device, states)

    def fill(name: str, model, responses: list[Response]) -> None:
        """r.NAME of each: log-probs (a Policy's), values (a Critic's), or an anchor's states."""
        # --precedent current: pi_k's are there
        if name == "prev" and model is policy and not exact:
            rows = [r.logp_k for r in responses]
        else:
            rows = forward(model, responses, states=exact and name in ("base", "prev"))
        for r, row in zip(responses, rows, strict=True):
            setattr(r, name, row)

    prove_sync(engine, policy, problems, cfg)  # that every weight reaches the sampler
    if state.step == 0:
        asked = eval_problems if cfg.eval_first else []
        scores = evaluate(engine, policy, asked, grader, tokenizer, cfg, log)
        log.write(state.counts() | scores)
        checkpoint.keep_best(cfg, policy, tokenizer, state.step)
    else:
        log.say(f"going on after step {state.step} of {cfg.out}")
    gc.collect()
    gc.freeze()  # what is loaded stays: looking through all of it takes 0.3 s every few steps

    for step in range(first, cfg.steps + 1):
        log.start(step)
        p, m, replay = cfg.off_policy_ratio, cfg.utd_ratio, buffer.replay
        if step > T:
            p, m, replay = 0, 1, REMIX  # plain PPO / GRPO
        lam = loss.kl_convex_weight(cfg.kl_convex, step)  # lambda(t)
        set_learning_rates(optimizers, step, cfg)

        # ---------------------------------------------------------- policy reincarnation, once
        if step == T + 1:
            if base:
                copy_weights(base, policy)  # (1) pi_base <- pi_T
            buffer.clear()  # (2) from here on pure on-policy PPO / GRPO
            log.say(f"step {step}: reincarnation, the policy is its own anchor, and on-policy")

        # ---------------------------------------------------------- roll out with pi_k
        engine.sync(full_weights(sampler, cfg.dtype))
        all_layers = siblings.skip_layers(cfg.skipped_layers, engine, sampler, rng(4, step))
        n_fresh = fresh_prompts(step, P, p)  # (1 - p) P
        chosen = replay.choose(buffer, n_fresh, upcoming)  # ReMix: the next ones
        asked = [problems[i] for i in chosen]
        mine = roll_out(engine, asked, step, cfg)  # (place, group), of this rank's engine
        log.phase("rollout")

        # ---------------------------------------------------------- reward: right answer and format
        counts = give_rewards(mine, asked, grader, tokenizer, cfg)
        sampled = parallel.gather_in_order(mine, cfg.tensor_parallel)  # groups, on every rank
        if N := cfg.filter_groups:  # DAPO's dynamic sampling: up to N more rounds
            more = partial(sample_more, engine, problems, mine, counts, grader, tokenizer, cfg, log)
            siblings.fill_up(sampled, chosen, n_fresh, N, upcoming, more)
        state.rollouts += len(chosen) * cfg.group_size
        new = [r for group in sampled for r in group]
        engine.sleep()
        log.phase("reward")

        # ---------------------------------------------------------- mix with replay (Mix-PPG)
        # A sync that failed is silent: sampler and trainer must agree in every step
        log.engine_gap = check_engine([r for _, group in mine for r in group], sampler, cfg)
        if cfg.behaviour_logp == "trainer":  # a bfloat16 engine's own are too coarse for ratios
            log.engine_gap = siblings.rescore(new, forward(sampler, new), cfg.engine_weight)
        all_layers()  # up to here --skipped_layers were left out: a nested model is pi_b
        fresh = siblings.filtered(replay.keep(buffer, sampled, chosen), cfg.filter_groups)  # all
        drawn = buffer.draw(P - replay.taken(fresh, n_fresh), rng(2, step), fresh, score)  # p P
        replayed = parallel.gather_in_order(drawn)
        batch = [r for group in fresh + replayed for r in group]

        # ---------------------------------------------------------- what stays frozen in this step
        for r in new if lag.k == cfg.skipped_layers == 0 else []:
            r.logp_k = r.logp_b  # pi_k sampled it: c = 1, and no pass
        fill("logp_k", policy, [r for r in batch if r.logp_k is None])
        anchors = dict(base=base) if base else {}
        if base and lam < 1:  # while lambda = 1 nothing of pi_{k-1} is needed
            anchors["prev"] = prev or policy
        for name, anchor in anchors.items():  # replayed responses have pi_base's already
            fill(name, anchor, [r for r in batch if getattr(r, name) is None])
        heads = {name: whole_head(anchor, cfg.dtype) for name, anchor in anchors.items() if exact}
        if critic:
            fill("values", critic, batch)  # of replayed responses too, with today's critic
        if prev:
            copy_weights(prev, policy)  # pi_k, which is pi_{k-1} of the next step
        lag.shift(policy)
        log.phase("frozen")

        # ---------------------------------------------------------- advantages A^{pi_k}
        set_advantages(batch, cfg, sibling.advantage if sibling else None)
        eps = cfg.clip_eps
        if cfg.geppo_clip:
            eps = siblings.geppo_width(eps, batch, step)
        if due(step, cfg.eval_every, cfg.steps):
            log.keep(fresh, replayed, eps, tokenizer)  # some responses, for view.py

        # ---------------------------------------------------------- update: m passes (UTD ratio m)
        trained = parallel.fetch(critic, *optimizers.values())  # --offload: what was away
        for i in range(m):
            for mini in mini_batches(fresh, replayed, cfg.mini_batch, rng(3, step, i)):
                mini = [r for group in mini for r in group]
                n = log.mini_batch(mini)  # response tokens, of all ranks and micro-batches
                if sibling:
                    stats = sibling.stats(mini, eps, cfg.max_tokens, partial(forward, policy))
                for x in micro_batches(mini, step):  # B responses x T tokens each
                    logp, H, kl = policy(x, heads)  # (B, T); the exact KL to each anchor, or {}

                    # ---- the loss of a micro-batch
                    pg = loss.mix_ppg(logp, x.logp_k, x.logp_b, x.advantages, eps)  # Eq. 3
                    policy_loss = loss.token_mean(x.weight * pg, x.mask, n)
                    if sibling:  # --loss: another method in its place
                        policy_loss = sibling.policy_loss(logp, x, stats)
                    logp_b = x.logp_b if cfg.kl_unbiased else None
                    for name, logp_ref in x.anchors.items() if not exact else ():
                        kl[name] = loss.kl(logp, logp_ref, cfg.kl_estimator, logp_b)
                    klc = loss.kl_convex(lam, **kl) if kl else torch.zeros_like(H)  # L_KLC
                    regulariser = cfg.kl_coef * klc - cfg.entropy_coef * H
                    parallel.backward(policy_loss + loss.token_mean(regulariser, x.mask, n))

                    vf = torch.zeros_like(H)
                    if critic:
                        vf = loss.value_loss(critic(x), x.values, x.returns, cfg.value_clip)
                        parallel.backward(loss.token_mean(vf, x.mask, n))
                    log.add(x, logp, policy_loss.double() * n, klc, H, vf, eps)
                log.reduce()
                norms = {k: parallel.clip_gradients(models[k], cfg.grad_clip) for k in optimizers}
                log.updated(norms, i)  # stops a run that is not finite: the weights are still good
                for optimizer in optimizers.values():
                    optimizer.step()
                    optimizer.zero_grad()
        parallel.park(*trained)
        log.phase("update")

        # ---------------------------------------------------------- push, log, evaluate, save
        del heads  # large with the exact KL, and the next rollout wants the memory
        for r in batch:
            r.end_step()
        if p > 0 or replay.fills:
            buffer.push(fresh, step)
        state.done(step, len(log.norms), log.elapsed())
        share = len(replayed) / max(1, len(fresh) + len(replayed))
        row = state.counts() | log.row(new, counts, share, lam, eps)
        if due(step, cfg.eval_every, cfg.steps):
            row |= evaluate(engine, policy, eval_problems, grader, tokenizer, cfg, log)
        log.write(row)
        checkpoint.keep_best(cfg, policy, tokenizer, step)
        asked = checkpoint.asked_to_stop()  # by a signal to any rank: save, and end
        if asked or due(step, cfg.save_every, cfg.steps):
            checkpoint.save_run(cfg, state, models, optimizers, buffer, asked)

    log.bar.close()
    if rank == 0:
        with metrics.writing(cfg.out):
            plot_runs({cfg.algo: [cfg.out]}, f"{cfg.out}/curve.png")
    checkpoint.export(policy, tokenizer, Path(cfg.out, "model"), cfg.out, state.step)
    if cfg.lora_rank:
        checkpoint.write_folder(Path(cfg.out, "adapter"), lora.adapter(policy, model_path))
    out = Path(cfg.out).resolve()
    log.say(f"done: {out}/model, {out}/metrics.jsonl, {out}/curve.png")
    grader.close()
    engine.close()


# -------------------------------------------------------------------------------------- the command


def environment(cfg: Config, device: str) -> dict:
    """What every rank must have alike, by the names that a refusal gives it."""
    facts = dict(git_commit=metrics.git_commit())
    for package in machine.PACKAGES:
        with suppress(PackageNotFoundError):
            facts[package] = version(package)
    facts["device"] = torch.cuda.get_device_name() if device == "cuda" else device
    return facts | {f"--{name}": value for name, value in asdict(cfg).items()}


def main() -> None:
    gc.enable()
    sys.stdout.reconfigure(line_buffering=True)  # a log file shows every step as it ends
    try:  # bad input: one sentence, before any model is loaded
        cfg = config.parse_config()
        config.check_config(cfg)
        rank, world, device = parallel.init_distributed()
        facts = environment(cfg, device)
        config.check_ranks(facts)
        parallel.on_every_rank(config.check_out, cfg)
        parallel.on_every_rank(lambda: config.lock(Path(cfg.out)) if rank == 0 else None)
        transformers.utils.logging.disable_progress_bar()
        if world % cfg.tensor_parallel:
            raise ValueError(
                f"--tensor_parallel {cfg.tensor_parallel}: does not divide the {world} ranks; take "
                "one that does"
            )
        machine.banner(cfg, facts)
        sha256 = parallel.on_every_rank(look_at, cfg.reward)
        *loaded, lines = parallel.on_every_rank(load_run, cfg)
        problems, eval_problems = map(checkpoint.problems_sha256, loaded[-2:])
        sha256 |= dict(data=problems, eval_data=eval_problems)
        config.check_ranks(
            {f"the sha256 of what --{flag} names": text for flag, text in sha256.items()}
        )
        parallel.on_every_rank(config.check_problems, cfg, sha256)
        if rank == 0:
            with metrics.writing(cfg.out):
                lines += checkpoint.record_start(cfg, sha256)
            print("\n".join(lines))
        machine.lap("problems and tokenizer")
        dist.barrier()
        parallel.on_every_rank(config.check_shared, cfg.out)
    except (ValueError, metrics.DiskError) as error:
        config.stop(error)
    try:
        checkpoint.finish_on_signals()
        train(cfg, device, *loaded)
    except (FloatingPointError, WrongWeights, metrics.DiskError, checkpoint.Stopped) as error:
        config.stop(error)
    if dist.is_initialized():  # vLLM's engine destroys the group when it closes
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
