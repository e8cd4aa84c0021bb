"""TRL's side of vs_trl.py: GRPOTrainer on the same task, in an environment of its own.

    python benchmarks/trl_side.py --model DIR --out FOLDER ...   vs_trl.py runs it, with its flags

Prompts, gold answers and grader are this project's own files (data.py, reward.py). The trainer is
TRL's, with four methods wrapped in a clock. metrics.jsonl has the field names of remix.py, a line a
batch of rollouts; config.json the flags.

    trl_side.py ... --replay_buffer 64    GRPOWithReplayBuffer in GRPO's place (TRL up to 1.13.0)
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import datasets
import torch
import transformers
import trl
from trl import GRPOConfig, GRPOTrainer

from config import Config
from data import get_prompt, load_problems
from eval import sample, summarize
from metrics import git_commit
from reward import Grader
from rollout import HFEngine


class Timed:
    """Seconds of each phase; what is left of a step is its update. Before a GRPOTrainer."""

    def timed(self, phase: str, method, *args, **kw):
        started = time.perf_counter()
        result = method(*args, **kw)
        self.phases[phase] += time.perf_counter() - started
        return result

    def _generate(self, *args, **kw):
        return self.timed("rollout", super()._generate, *args, **kw)

    def _calculate_rewards(self, *args, **kw):
        rewards = self.timed("reward", super()._calculate_rewards, *args, **kw)
        self.mean_reward = rewards.mean().item()
        return rewards

    def _get_per_token_logps_and_entropies(self, model, input_ids, mask, *args, **kw):
        forward, learns = super()._get_per_token_logps_and_entropies, torch.is_grad_enabled()
        self.tokens["backward" if learns else "forward"] += int(mask.sum())
        self.tokens["padded"] += input_ids.numel()
        if learns:
            return forward(model, input_ids, mask, *args, **kw)
        return self.timed("frozen", forward, model, input_ids, mask, *args, **kw)


class Log(transformers.TrainerCallback):
    """A line of metrics.jsonl a batch of rollouts, that is every `updates` optimizer steps."""

    def __init__(self, out: Path, rollouts: int, updates: int, evaluate, every: int, first: bool):
        self.file = open(out / "metrics.jsonl", "w", buffering=1)
        self.rollouts, self.updates, self.every, self.first = rollouts, updates, every, first
        self.seconds, self.row_seconds, self.trainer, self.evaluate = 0.0, 0.0, None, evaluate

    def write(self, row: dict, evaluated: bool) -> None:
        if evaluated and self.evaluate:  # between two steps, where the clock stands still
            row |= {f"eval/{k}": v for k, v in self.evaluate(self.trainer.model).items()}
            print(f"step {row['step']}  pass@1 {100 * row['eval/pass@1']:.1f}%", flush=True)
        self.file.write(json.dumps(row) + "\n")

    def on_train_begin(self, args, state, control, **kw):
        self.write(dict(step=0, rollouts=0, gradient_steps=0, seconds=0.0), self.first)

    def on_step_begin(self, args, state, control, **kw):
        if state.global_step % self.updates == 0:
            self.row_seconds = 0.0
            self.trainer.phases = dict(rollout=0.0, reward=0.0, frozen=0.0)
            self.trainer.tokens = dict(forward=0, backward=0, padded=0)
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kw):
        self.row_seconds += time.perf_counter() - self.started
        if state.global_step % self.updates:
            return
        step = state.global_step // self.updates
        self.seconds += self.row_seconds
        metrics, phases = self.trainer._metrics["train"], dict(self.trainer.phases)
        phases["update"] = self.row_seconds - sum(phases.values())
        row = dict(step=step, rollouts=step * self.rollouts, gradient_steps=state.global_step)
        row |= dict(seconds=self.seconds)
        row |= dict(reward=self.trainer.mean_reward, response_length=self.length(metrics))
        row |= {f"tokens_{k}": v for k, v in self.trainer.tokens.items()}
        row |= {f"seconds_{k}": v for k, v in phases.items()}
        last = state.global_step == state.max_steps
        self.write(row, last or step % self.every == 0)

    def length(self, metrics: dict) -> float:
        if metrics["completions/mean_length"]:  # TRL empties its metrics when it logs
            self.last_length = metrics["completions/mean_length"][-1]
        return self.last_length

    def on_log(self, args, state, control, logs=None, **kw):
        if logs and "completions/mean_length" in logs:
            self.last_length = logs["completions/mean_length"]


def canned(path: str):
    """A rollout_func without sampling: a prompt's j-th repeat gets its j-th canned response."""
    responses = {row["text"]: row for row in map(json.loads, open(path))}

    def rollout(prompts: list[str], trainer) -> dict:
        seen: dict[str, int] = {}
        result = dict(prompt_ids=[], completion_ids=[], logprobs=None)
        for prompt in prompts:
            j = seen.get(prompt, 0)
            seen[prompt] = j + 1
            result["prompt_ids"].append(responses[prompt]["prompt"])
            result["completion_ids"].append(responses[prompt]["tokens"][j])
        return result

    return rollout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--model", required=True)
    flag("--data", default="tiny")
    flag("--prompt", default="plain")
    flag("--max_prompt_tokens", type=int, default=64)
    flag("--dtype", choices=["float32", "bfloat16"], default="float32", help="in autocast")
    flag("--out", type=Path, required=True)
    flag("--steps", type=int, required=True, help="batches of rollouts")
    flag("--prompts", type=int, default=16, help="prompts of a batch")
    flag("--group_size", type=int, default=8)
    flag("--updates", type=int, default=1, help="optimizer steps a batch")
    flag("--micro", type=int, default=0, help="responses of a forward pass; 0 = of an update")
    flag("--max_tokens", type=int, default=128)
    flag("--temperature", type=float, default=1.0)
    flag("--lr", type=float, default=1e-4)
    flag("--beta", type=float, default=0.0)
    flag("--seed", type=int, default=0)
    flag("--limit", type=int, default=0, help="of the training problems; 0 = all")
    flag("--replay_buffer", type=int, default=0, help="groups in GRPOWithReplayBuffer's; 0 = GRPO")
    flag("--eval_data", default="", help="held-out problems [the test split of --data]")
    flag("--eval_limit", type=int, default=0, help="held-out problems; 0 = no evaluation")
    flag("--eval_n", type=int, default=2, help="samples of each")
    flag("--eval_every", type=int, default=1, help="batches of rollouts")
    flag("--eval_first", action="store_true", help="the base model, too")
    flag("--canned", help="file of canned responses, in place of sampling")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in vars(options).items() if k != "out"}
    config |= dict(git_commit=git_commit(), trl=trl.__version__)
    (options.out / "config.json").write_text(json.dumps(config, indent=2))

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    prompts = dict(prompt=options.prompt, max_prompt_tokens=options.max_prompt_tokens)
    answers = get_prompt(options.prompt, tokenizer).format
    problems, _ = load_problems(options.data, tokenizer, limit=options.limit or None, **prompts)
    rows = [dict(prompt=tokenizer.decode(p.prompt_ids), gold=p.gold) for p in problems]
    for row, problem in zip(rows, problems, strict=True):
        seen = tokenizer(row["prompt"])["input_ids"]
        assert seen == problem.prompt_ids, "TRL would see another prompt"

    rollouts = options.prompts * options.group_size
    per_update = rollouts // options.updates
    micro = min(options.micro or per_update, per_update)
    with Grader() as grader:

        def reward(completions, gold, **kw) -> list[float]:
            return grader.score(completions, gold, answers).rewards

        def evaluate(model) -> dict:
            """As remix.py's: its sampler, seeds and defaults."""
            engine.sync(model.state_dict().items())
            how = dict(n=options.eval_n, seed=0, max_tokens=options.max_tokens)
            how |= dict(temperature=Config.eval_temperature, top_p=Config.eval_top_p)
            records = sample(engine, tokenizer, held_out, grader, answers, **how)
            return summarize(records, grader)

        if options.eval_limit:
            engine = HFEngine(options.model, "float32")
            held = dict(split="test", limit=options.eval_limit)
            held_out, _ = load_problems(
                options.eval_data or options.data, tokenizer, **prompts, **held
            )
        when = dict(every=options.eval_every, first=options.eval_first)
        log = Log(
            options.out, rollouts, options.updates, evaluate if options.eval_limit else None, **when
        )
        Trainer, Settings, more = GRPOTrainer, GRPOConfig, {}
        if options.replay_buffer:
            from trl.experimental import grpo_with_replay_buffer as replay

            Trainer, Settings = (
                replay.GRPOWithReplayBufferTrainer,
                replay.GRPOWithReplayBufferConfig,
            )
            more = dict(replay_buffer_size=options.replay_buffer)
        trainer = type("TimedTrainer", (Timed, Trainer), {})(
            model=options.model,
            reward_funcs=reward,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            rollout_func=canned(options.canned) if options.canned else None,
            callbacks=[log],
            args=Settings(
                **more,
                output_dir=str(options.out),
                model_init_kwargs=dict(dtype="float32", attn_implementation="sdpa"),
                max_steps=options.steps * options.updates,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=per_update // micro,
                generation_batch_size=rollouts,
                num_generations=options.group_size,
                max_completion_length=options.max_tokens,
                temperature=options.temperature,
                learning_rate=options.lr,
                lr_scheduler_type="constant",
                optim="adamw_torch_fused",
                weight_decay=0.01,
                max_grad_norm=1.0,
                beta=options.beta,
                loss_type="dapo",  # TRL's default, and ours: the mean over a mini-batch's tokens
                gradient_checkpointing=False,  # TRL's default is to recompute
                bf16=options.dtype == "bfloat16",
                use_cpu=True,
                seed=options.seed,
                logging_steps=1,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        log.trainer = trainer
        trainer.train()


if __name__ == "__main__":
    main()
