"""Every flag of remix.py: name, default, unit, source, and the checks that turn bad input into one clear sentence.

The defaults are the paper's ReMix-PPO at 1.5B; train.sh has the recipes. A default that depends on --algo is filled in by
`parse_config`, and config.json in the run folder shows what was really used.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers.utils import is_flash_attn_2_available

import loss
from data import get_prompt
from siblings import SIBLINGS


def flag(default, text: str, **kw):
    return field(default=default, metadata=dict(help=text, **kw))


@dataclass
class Config:
    """Every setting. The source in brackets: the part of the paper; TinyZero / DeepScaleR, the code bases that the paper
    builds on, where it is silent; "derived" from the rollout counts it reports."""

    # fmt: off
    out: str = flag("out/remix", "run folder: config.json, metrics.jsonl, curve.png, checkpoints/, model/")
    model: str = flag("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "base model: hub name, local folder, or 'tiny[:SETTING=VALUE,...]', the embedded one (paper, experimental setup)")
    data: str = flag("agentica-org/DeepScaleR-Preview-Dataset", "training problems: hub name, .json/.jsonl/.parquet file or folder, or 'tiny' (paper, experimental setup)")
    prompt: str = flag("r1", "prompt format: r1, qwen, tinyzero, plain, or a FILE with {problem}")
    format: str = flag("", "answer format of the reward: r1, tags or boxed; default: the prompt's own", choices=("", "r1", "tags", "boxed"))
    problem_field: str = flag("", "name of the field with the problem; found if not given")
    answer_field: str = flag("", "name of the field with the gold answer; found if not given")
    split: str = flag("train", "split of a hub data set")
    limit: int = flag(0, "use only the first so many training problems, 0 = all")
    seed: int = flag(0, "seed of every random draw of the run")
    steps: int = flag(350, "training steps (paper: 100 to 500 at 1.5B, 350 with T = 100)")
    algo: str = flag("ppo", "ppo: critic and GAE; grpo: group advantages (paper, ReMix-PPO and ReMix-GRPO)", choices=("ppo", "grpo"))

    # batch
    prompts_per_step: int = flag(256, "P, prompts of a step's batch, fresh and replayed together (derived from the paper's rollout counts)")
    group_size: int = flag(0, "G, responses a prompt; default 1 for ppo, 8 for grpo (derived, as above)")
    mini_batch: int = flag(64, "prompts (groups) of one optimizer step (TinyZero / DeepScaleR)")
    tokens_per_micro_batch: int = flag(16384, "padded tokens of one forward/backward pass on one rank; memory only, not the result")
    max_prompt_tokens: int = flag(766, "longer prompts are dropped and counted [tokens] (paper, experimental setup)")
    max_tokens: int = flag(8192, "response length limit [tokens] (paper, experimental setup)")

    # ReMix
    off_policy_ratio: float = flag(0.4, "p, share of replayed prompts in a batch, in [0, 1); 0 = on-policy (paper, Mix-PPG and UTD)")
    replay_window: int = flag(2, "N, steps whose responses can be replayed (paper, Mix-PPG and UTD)")
    utd_ratio: int = flag(2, "m, passes of updates over a step's batch, 1 after reincarnation (paper, Mix-PPG and UTD)")
    kl_convex: str = flag("schedule", "weight lambda of KL(pi_base), 1 - lambda on KL(pi_{k-1}): 'schedule' (paper, KL-Convex), 'schedule:START,EVERY' for shorter runs [steps], 'off' = 1, or a fixed number in [0, 1]")
    precedent: str = flag("previous", "pi_{k-1}: 'previous' = weights at the start of the previous step, 'current' = pi_k", choices=("previous", "current"))
    reincarnation_step: int = flag(50, "T, last mixing step; then pi_base <- pi_T and on-policy; 0 = never (paper, policy reincarnation: 50 or 100, 50 for grpo)")

    # other methods, for comparison
    loss: str = flag("mix_ppg", "policy loss: mix_ppg is ReMix's (Eq. 3), the others stand in siblings.py", choices=("mix_ppg", *SIBLINGS))
    replay: str = flag("window", "how replayed groups are kept and drawn: window is ReMix's, the others stand in buffer.py", choices=("window", "repo", "buffer_matters", "on_policyness"))
    sampler_lag: int = flag(0, "k: the sampler runs with the weights of k steps ago, as in asynchronous training, after reincarnation too [steps]")
    engine_weight: str = flag("off", "weight on fresh and replayed tokens for the sampler's own error, with --behaviour_logp trainer", choices=("off", "tis", "icepop"))

    # loss
    clip_eps: float = flag(0.2, "eps, half width of the clip band around c [ratio]; other losses have their own, but ppo, decoupled_ppo, dr_grpo (TinyZero / DeepScaleR)")
    geppo_clip: bool = flag(False, "divide eps by sum_i nu_i (i + 1), the batch's mean age + 1 (GePPO)")
    kl_coef: float = flag(0.001, "beta, weight of the KL constraint; 0 = no anchor (TinyZero / DeepScaleR)")
    kl_estimator: str = flag("k3", "KL estimator; exact: over the whole vocabulary, a chunk of tokens at a time; holds the anchors' hidden states in host memory, 4 H bytes a token", choices=("k1", "k2", "k3", "exact"))
    entropy_coef: float = flag(math.nan, "c, entropy bonus; default 0.001 for ppo, 0 for grpo (TinyZero / DeepScaleR)")
    value_clip: float = flag(0.5, "clip of the value around its old value, ppo (TinyZero)")
    gamma: float = flag(1.0, "discount per token, ppo (TinyZero)")
    gae_lambda: float = flag(1.0, "GAE lambda, ppo (TinyZero)")
    whiten: bool = flag(True, "whiten ppo's advantages over the step's batch (TinyZero)")
    vtrace: bool = flag(False, "V-trace factors min(1, c) in GAE on replayed data, ppo (GePPO)")

    # optimizer
    lr: float = flag(1e-6, "actor learning rate, Adam (TinyZero / DeepScaleR)")
    critic_lr: float = flag(1e-5, "critic learning rate, Adam, ppo (TinyZero)")
    weight_decay: float = flag(0.01, "AdamW's decoupled weight decay (TinyZero / DeepScaleR, verl's default)")
    grad_clip: float = flag(1.0, "largest gradient norm (TinyZero / DeepScaleR)")
    gradient_checkpointing: bool = flag(False, "recompute activations in the backward pass: less memory, about 1/3 more time")
    attention: str = flag("sdpa", "attention of the trainer; flash_attention_2 (a package of its own, GPU) trains without padding", choices=("sdpa", "flash_attention_2"))
    shard: str = flag("auto", "weights: node = FSDP2 over a node's ranks, each node holding all of them (HSDP); all = FSDP2 over all ranks; none = a whole copy a rank (small models); auto = node on GPU, none on CPU", choices=("auto", "node", "all", "none"))
    dtype: str = flag("auto", "compute precision; master weights are float32; auto = bfloat16 on GPU, float32 on CPU", choices=("auto", "float32", "bfloat16"))

    # sampling
    engine: str = flag("auto", "sampler; auto = vllm where it is installed", choices=("auto", "vllm", "hf"))
    temperature: float = flag(1.0, "sampling temperature in training; the trainer's logits are divided by it too (needed for exact ratios)")
    top_p: float = flag(1.0, "must be 1 in training: a filtered sampler has other probabilities than the trainer")
    behaviour_logp: str = flag("engine", "log-probs of fresh data: the sampler's own, or one more trainer pass (for a bfloat16 sampler)", choices=("engine", "trainer"))
    gpu_memory: float = flag(0.5, "share of each GPU's memory for vLLM [0-1]")
    tensor_parallel: int = flag(1, "ranks that hold one vLLM engine together")
    grader_workers: int = flag(1, "grading processes a rank")

    # evaluation, saving
    eval_data: str = flag("", "problems to evaluate on, as for --data; with --data tiny: its held-out problems")
    eval_every: int = flag(10, "steps between evaluations, 0 = only before and after")
    eval_n: int = flag(4, "responses an evaluation problem")
    eval_limit: int = flag(0, "use only the first so many evaluation problems, 0 = all")
    eval_temperature: float = flag(0.6, "temperature in evaluation (DeepScaleR)")
    eval_top_p: float = flag(0.95, "top-p in evaluation (DeepScaleR)")
    eval_max_tokens: int = flag(0, "response length limit in evaluation [tokens], 0 = max_tokens (paper: 8192)")
    save_every: int = flag(20, "steps between checkpoints")
    # fmt: on


# May differ when a run goes on. Those of the second line change memory and, at most, the rounding
CHANGEABLE = ("out", "steps", "save_every", "grader_workers",
              "tokens_per_micro_batch", "gradient_checkpointing", "gpu_memory", "tensor_parallel", "shard")  # fmt: skip


def parse_config(argv: list[str] | None = None) -> Config:
    """Flags -> Config. Unknown flags are errors; abbreviations are not taken (they would change meaning as flags grow)."""
    parser = argparse.ArgumentParser(
        description="ReMix: off-policy reinforcement finetuning of LLMs (arXiv 2507.06892).", allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=120),
    )  # fmt: skip
    for f in fields(Config):
        how = (
            {"action": argparse.BooleanOptionalAction}
            if f.type is bool
            else {"type": f.type, "metavar": ""}
        )
        if "choices" in f.metadata:
            how |= {"choices": f.metadata["choices"], "metavar": None}
        default = (
            ""
            if f.default in ("", 0) and f.type is not bool or f.default != f.default
            else f" [{f.default}]"
        )
        help = (
            f.metadata["help"].replace("%", "%%") + default
        )  # a default of "", 0 or nan is explained in the text
        parser.add_argument(f"--{f.name}", default=f.default, help=help, **how)
    cfg = Config(**vars(parser.parse_args(argv)))
    grpo = cfg.algo == "grpo"
    cfg.group_size = cfg.group_size or (8 if grpo else 1)
    cfg.entropy_coef = (
        (0.0 if grpo else 0.001) if math.isnan(cfg.entropy_coef) else cfg.entropy_coef
    )
    cfg.eval_max_tokens = cfg.eval_max_tokens or cfg.max_tokens
    cfg.format = cfg.format or get_prompt(cfg.prompt).format
    gpu = torch.cuda.is_available()
    cfg.dtype = ("bfloat16" if gpu else "float32") if cfg.dtype == "auto" else cfg.dtype
    cfg.shard = ("node" if gpu else "none") if cfg.shard == "auto" else cfg.shard
    return cfg


def kl_convex_weight(cfg: Config, step: int) -> float:
    """lambda of a step, from --kl_convex. ValueError if that is neither a schedule nor a number."""
    name, _, numbers = cfg.kl_convex.partition(":")
    if name == "schedule":
        start, every = map(int, (numbers or "50,10").split(","))
        if every < 1:
            raise ValueError("EVERY must be at least 1")
        return loss.kl_convex_lambda(step, start, every)
    return 1.0 if cfg.kl_convex == "off" else float(cfg.kl_convex)


def check_config(cfg: Config) -> None:
    """ValueError with one sentence that names the flag, the value and what to do. Called before a model is loaded."""

    def need(ok: bool, name: str, what: str) -> None:
        if not ok:
            raise ValueError(f"--{name} {getattr(cfg, name)}: {what}")

    P, m = cfg.prompts_per_step, cfg.mini_batch
    at_least_one = ("steps prompts_per_step mini_batch group_size tokens_per_micro_batch max_prompt_tokens max_tokens "
                    "replay_window utd_ratio eval_n eval_max_tokens save_every grader_workers tensor_parallel")  # fmt: skip
    for name in at_least_one.split():
        need(getattr(cfg, name) >= 1, name, "must be at least 1")
    for name in "reincarnation_step eval_every eval_limit limit sampler_lag seed".split():
        need(getattr(cfg, name) >= 0, name, "must not be negative")
    for name in "clip_eps value_clip grad_clip lr critic_lr temperature eval_temperature".split():
        need(getattr(cfg, name) > 0, name, "must be above 0")
    for name in "kl_coef weight_decay".split():
        need(getattr(cfg, name) >= 0, name, "must not be negative")
    for name in "gamma gae_lambda".split():
        need(0 <= getattr(cfg, name) <= 1, name, "must be between 0 and 1")
    need(
        P % m == 0,
        "mini_batch",
        f"does not divide --prompts_per_step {P}; take a divisor of it, {math.gcd(P, m)} say",
    )
    need(
        0 <= cfg.off_policy_ratio < 1,
        "off_policy_ratio",
        "must be in [0, 1): some of the batch has to be fresh",
    )
    need(
        P * (1 - Fraction(str(cfg.off_policy_ratio))) >= 1,
        "off_policy_ratio",
        f"leaves no fresh prompt of {P}; lower it",
    )
    p, N = cfg.off_policy_ratio, cfg.replay_window
    need(cfg.replay == "repo" or p <= N * (1 - p) + 1e-9, "off_policy_ratio", f"a window of --replay_window {N} steps holds too few responses to "
         f"fill a share of {p}; raise the window to {math.ceil(p / (1 - p) - 1e-9)} or lower the ratio")  # fmt: skip
    need(
        cfg.algo == "ppo" or cfg.group_size >= 2,
        "group_size",
        "GRPO compares the responses of a group: give at least 2",
    )
    need(
        cfg.algo == "ppo" or not cfg.vtrace,
        "vtrace",
        "is about GAE, which GRPO does not use; leave it out",
    )
    largest = (
        (cfg.seed * 100_000 + cfg.steps + 1) * 1_000_000
    ) * cfg.group_size  # of the sampler's seeds (remix.py)
    need(
        largest < 2**63,
        "seed",
        f"is too large for the sampler's seeds; take one below {2**63 // (10**11 * cfg.group_size)}",
    )
    needs_groups = SIBLINGS.get(cfg.loss) and SIBLINGS[cfg.loss].advantage
    need(
        cfg.algo == "grpo" or not needs_groups,
        "loss",
        "has an advantage of groups; use it with --algo grpo",
    )
    need(
        cfg.algo == "grpo" or cfg.replay != "buffer_matters",
        "replay",
        "looks at groups of responses; use --algo grpo",
    )
    if cfg.engine_weight != "off":
        need(cfg.behaviour_logp == "trainer", "engine_weight", "compares the trainer's log-probs with the sampler's; "
             "add --behaviour_logp trainer")  # fmt: skip
        per_token = cfg.loss == "mix_ppg" or SIBLINGS[cfg.loss].per != "response"
        need(
            per_token,
            "engine_weight",
            f"weighs tokens, and --loss {cfg.loss} is one term a response; use off",
        )
    vllm = cfg.engine == "vllm" or (cfg.engine == "auto" and find_spec("vllm") is not None)
    need(
        cfg.tensor_parallel == 1 or vllm,
        "tensor_parallel",
        "is for vLLM, which is not installed or not chosen; use 1",
    )
    flash = cfg.dtype == "bfloat16" and is_flash_attn_2_available()
    need(
        cfg.attention == "sdpa" or flash,
        "attention",
        "needs a GPU, --dtype bfloat16 and the package flash-attn; use sdpa",
    )
    clips = ("mix_ppg", "ppo", "decoupled_ppo", "dr_grpo")
    need(
        cfg.loss in clips or not cfg.geppo_clip,
        "geppo_clip",
        f"does nothing with --loss {cfg.loss}; leave it out",
    )
    need(cfg.top_p == 1, "top_p", "training must sample from the full distribution, or every importance ratio is wrong; "
         "use 1 (--eval_top_p is the one for evaluation)")  # fmt: skip
    need(0 < cfg.eval_top_p <= 1, "eval_top_p", "must be in (0, 1]")
    need(0 < cfg.gpu_memory < 1, "gpu_memory", "is a share, between 0 and 1")
    try:
        ok = 0 <= kl_convex_weight(cfg, 1) <= 1
    except ValueError:
        ok = False
    need(ok, "kl_convex", "must be schedule, schedule:START,EVERY, off or a number in [0, 1]")


def check_out(cfg: Config) -> None:
    """ValueError if the run folder is another run's, or something else's; the same run goes on."""
    out, new = Path(cfg.out), asdict(cfg)
    if not (out / "config.json").exists():
        if out.exists() and any(out.iterdir()):
            raise ValueError(
                f"--out {out}: the folder is not empty and holds no run; name a new one"
            )
        return
    old = json.loads((out / "config.json").read_text())
    for name in new:
        if name not in CHANGEABLE and old.get(name) != new[name]:
            raise ValueError(
                f"--{name} {new[name]}: the run in --out {out} has --{name} {old.get(name)}; go on with that value, or "
                "name a new folder"
            )
