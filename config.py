"""Every flag of remix.py: name, default, unit, source; the recipes; the checks of bad input.

    python remix.py --help                       the comments below are the help
    python config.py --recipe 7b --algo grpo     the command that a recipe stands for, without
    running it

The defaults are the paper's ReMix-PPO at 1.5B. Nothing slow is imported before the flags are read.
"""

import atexit
import io
import json
import math
import os
import re
import shlex
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NoReturn

import tyro
from tyro.conf import UseAppendAction


@dataclass
class Config:
    """ReMix: off-policy reinforcement finetuning of language models (arXiv 2507.06892).

    The source of a default stands in brackets: a part of the paper; where it is silent TinyZero or
    DeepScaleR, the code bases that it builds on; "derived": from the rollout counts it reports."""

    # Run and data
    # settings to start from, which other flags override: tiny, smollm, 1.5b, 7b, 32b, 1.5b-lora or
    # 7b-lora
    recipe: str = ""
    # run folder: config.json, metrics.jsonl, curve.png, checkpoints/, model/
    # [out/RECIPE-ALGO-seedN]
    out: str = ""
    # base model: hub name, local folder, or 'tiny[:SETTING=VALUE,...]', the embedded one (paper,
    # experimental setup)
    model: str = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    # let code run that comes with the model, unseen by anybody here
    trust_remote_code: bool = False
    # training problems: hub name, .json/.jsonl/.parquet file or folder, or 'tiny' (paper,
    # experimental setup)
    data: str = "agentica-org/DeepScaleR-Preview-Dataset"
    prompt: str = "r1"  # prompt format: r1, qwen, tinyzero, plain, or a FILE with {problem}
    # answer format of the reward: r1, tags or boxed [the prompt's own]
    format: Literal["", "r1", "tags", "boxed"] = ""
    problem_field: str = ""  # name of the field with the problem [found]
    answer_field: str = ""  # name of the field with the gold answer [found]
    # your own reward, FILE.py:FUNCTION of (response, row), in place of grading: docs/rewards.md
    reward: str = ""
    split: str = "train"  # split of a hub data set
    limit: int = 0  # use only the first so many training problems; 0 = all
    # train on a problem as often as the data has it; by default once (verl and TRL: as often)
    keep_duplicates: bool = False
    seed: int = 0  # of every random draw of the run
    steps: int = 350  # training steps (paper: 100 to 500 at 1.5B, 350 with T = 100)
    algo: Literal["ppo", "grpo"] = "ppo"  # ppo: critic and GAE; grpo: group advantages (paper)

    # Batch
    # P, prompts of a step's batch, fresh and replayed together (derived)
    prompts_per_step: int = 256
    group_size: int = 0  # G, responses a prompt; 0 = 1 for ppo, 8 for grpo (derived)
    mini_batch: int = 64  # prompts (groups) of one optimizer step (TinyZero / DeepScaleR)
    # padded tokens of one forward/backward pass on one rank; memory only, it changes no result
    tokens_per_micro_batch: int = 16384
    max_prompt_tokens: int = 766  # longer prompts are dropped and counted [tokens] (paper)
    max_tokens: int = 8192  # response length limit [tokens] (paper)

    # ReMix
    # p, share of replayed prompts in a batch, in [0, 1); 0 = on-policy (Mix-PPG)
    off_policy_ratio: float = 0.4
    replay_window: int = 2  # N, steps whose responses can be replayed (Mix-PPG)
    utd_ratio: int = 2  # m, passes over a step's batch, 1 after reincarnation (Mix-PPG, UTD)
    # lambda, weight of KL(pi_base); 1 - lambda is on KL(pi_{k-1}): 'schedule' (KL-Convex),
    # 'schedule:START,EVERY' for shorter runs [steps], 'off' = 1, or a fixed number in [0, 1]
    kl_convex: str = "schedule"
    # pi_{k-1}: 'previous' = weights at the start of the previous step, 'current' = pi_k
    precedent: Literal["previous", "current"] = "previous"
    # T, last mixing step; then pi_base <- pi_T and on-policy; 0 = never (policy reincarnation: 50
    # or 100, 50 for grpo)
    reincarnation_step: int = 50

    # What is not ReMix, for comparison: siblings.py
    loss: str = "mix_ppg"  # policy loss: mix_ppg is Eq. 3, others by their name in siblings.LOSSES
    replay: str = "window"  # window is ReMix's way, others by their name in siblings.REPLAYS
    # k: the sampler has the weights of k steps ago, as in asynchronous training, always [steps]
    sampler_lag: int = 0
    # K: the sampler leaves out K of the model's layers, drawn anew each step, always; hf
    # (Nested-ReFT)
    skipped_layers: int = 0
    # N: drop groups whose rewards are all equal, grpo, and sample others in their place, up to N
    # more times; 0 = drop alone (DAPO) [off]
    filter_groups: int | None = None
    # weight on tokens for the sampler's own error, with --behaviour_logp trainer, which would
    # otherwise define it away: the GPU recipes take tis
    engine_weight: Literal["off", "tis", "icepop"] = "off"

    # Loss
    # eps, half width of the clip band around c [ratio]; of the other losses only ppo, decoupled_ppo
    # and dr_grpo use it (TinyZero / DeepScaleR)
    clip_eps: float = 0.2
    geppo_clip: bool = False  # divide eps by sum_i nu_i (i + 1), the batch's mean age + 1 (GePPO)
    kl_coef: float = 0.001  # beta, weight of the KL constraint; 0 = none (TinyZero / DeepScaleR)
    # KL estimator; exact: over the whole vocabulary, a chunk of tokens at a time; holds the
    # anchors' hidden states in host memory, 4 H bytes a token
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "k3"
    # weight k1 or k3 by pi_theta / pi_b: then replayed tokens, too, have the KL's own gradient
    # (DeepSeek-V3.2)
    kl_unbiased: bool = False
    # c, entropy bonus [0.001 for ppo, 0 for grpo] (TinyZero / DeepScaleR)
    entropy_coef: float | None = None
    value_clip: float = 0.5  # clip of the value around its old value, ppo (TinyZero)
    gamma: float = 1.0  # discount per token, ppo (TinyZero)
    gae_lambda: float = 1.0  # GAE lambda, ppo (TinyZero)
    whiten: bool = True  # whiten ppo's advantages over the step's batch (TinyZero)
    vtrace: bool = False  # V-trace factors min(1, c) in GAE on replayed data, ppo (GePPO)

    # Optimizer and memory
    lr: float = 1e-6  # actor learning rate, Adam (TinyZero / DeepScaleR)
    critic_lr: float = 1e-5  # critic learning rate, Adam, ppo (TinyZero)
    warmup_steps: int = 0  # steps in which both rates rise to their value, from a share of it
    # then constant, or down to 0 right behind the last step; linear and cosine hold --steps fast
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = 0.01  # AdamW's (verl's default, as in TinyZero / DeepScaleR)
    grad_clip: float = 1.0  # largest gradient norm (TinyZero / DeepScaleR)
    # train LoRA adapters of this rank, scaled by 32 / rank, on one frozen model that policy,
    # anchors and critic share; also writes OUT/adapter. Wants learning rates 3 to 10 times as high
    # (docs/scaling.md); 0 = train all weights (paper)
    lora_rank: int = 0
    # recompute activations in the backward pass: less memory, about 1/3 more time
    gradient_checkpointing: bool = False
    # host memory holds, pinned, what a phase of a step does not use: optimizer states, critic and
    # anchors; the same numbers, and some seconds of copying a step (docs/scaling.md)
    offload: bool = False
    # torch.compile each layer and the head's math when they are first used: a minute or more; on a
    # CPU no gain (docs/speed.md)
    compile: bool = False
    # attention of the trainer; flash_attention_2 (a package of its own, GPU) trains without padding
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    # weights: node = FSDP2 over a node's ranks, each node holding all of them (HSDP); all = FSDP2
    # over all ranks; none = a whole copy a rank (small models); auto = node on GPU, none on CPU
    shard: Literal["auto", "node", "all", "none"] = "auto"
    # compute precision; master weights are float32; auto = bfloat16 on GPU, float32 on CPU
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    # Sampling: always from the full distribution (top-p 1), or importance ratios would be wrong
    engine: Literal["auto", "vllm", "hf"] = "auto"  # sampler; auto = vllm where it is installed
    # sampling temperature in training; the trainer's logits are divided by it too
    temperature: float = 1.0
    # a text that ends a response and belongs to it, in evaluation too; several times for several
    stop: UseAppendAction[tuple[str, ...]] = ()
    # a token that does, beside the model's own ends [id]; several times for several
    stop_token_ids: UseAppendAction[tuple[int, ...]] = ()
    # log-probs of fresh data: the engine's own, or one more trainer pass (for a bfloat16 engine)
    behaviour_logp: Literal["engine", "trainer"] = "engine"
    gpu_memory: float = 0.5  # share of each GPU's memory for vLLM [0-1]
    tensor_parallel: int = 1  # ranks that hold one vLLM engine together
    grader_workers: int = 1  # grading processes a rank
    # longest that grading a response, or a call of --reward's function, may take [s]
    grader_deadline: float = 2.0

    # Evaluation, saving
    # problems to evaluate on, as for --data; with --data tiny: its held-out ones
    # Of a comma list eval/pass@1 is over all problems, and eval/SET/pass@1 over those of each set
    eval_data: str = ""
    eval_first: bool = True  # evaluate the base model, before step 1
    eval_every: int = 10  # steps between evaluations; 0 = only before and after
    eval_n: int = 4  # responses an evaluation problem
    eval_limit: int = 0  # use only the first so many problems of each evaluation set; 0 = all
    # temperature in evaluation (DeepScaleR); 0 = greedy, one response a problem (paper)
    eval_temperature: float = 0.6
    eval_top_p: float = 0.95  # top-p in evaluation (DeepScaleR)
    eval_max_tokens: int = 0  # response length limit in evaluation [tokens]; 0 = max_tokens (paper)
    # K: base model, evaluated steps and the last one leave K evaluation responses, K fresh and K
    # replayed ones in responses.jsonl, for view.py; 0 = none
    keep_responses: int = 4
    save_every: int = 20  # steps between checkpoints
    keep: int = 2  # newest checkpoints kept; of two, one is left if the disk damages the other
    # OUT/best: the policy of the best evaluation so far, by pass@1, with --reward by the mean
    # reward; the first of equal ones
    keep_best: bool = False

    # Logging
    # metrics.jsonl also to: tensorboard, wandb, trackio, or several, with commas (docs/metrics.md)
    track: str = ""
    # what one GPU can do, for machine/mfu [TFLOP/s]; 0 = by the card's name, in bfloat16
    peak_tflops: float = 0.0


# May differ when a run goes on. Those of the second line change memory and, at most, the rounding;
# evaluation looks at the policy and leaves it as it is
CHANGEABLE = """out recipe steps save_every keep keep_best grader_workers track peak_tflops
    tokens_per_micro_batch gradient_checkpointing offload compile gpu_memory tensor_parallel shard
    eval_data eval_first eval_every eval_n eval_limit eval_temperature eval_top_p eval_max_tokens
    keep_responses""".split()

# What differs from the defaults, which are the paper's: for both algorithms, then for one of them
BIG = dict(
    gradient_checkpointing=True, behaviour_logp="trainer", engine_weight="tis",
    eval_data="HuggingFaceH4/MATH-500", eval_limit=200, eval_every=25,
    save_every=5,  # a step takes many minutes, and a kill loses all that are not saved
    dtype="bfloat16",  # and no "auto": a machine without a GPU is an error, not a slow run
)  # fmt: skip


def example(name: str) -> str:
    """A file of examples/, as seen from where the command runs."""
    return os.path.relpath(Path(__file__).with_name("examples") / name)


RECIPES: dict[str, dict[str, dict]] = {
    # The embedded task, on a laptop; 128 responses a step either way
    "tiny": dict(
        both=dict(
            model="tiny:mending=0",
            data="tiny",
            prompt="plain",
            max_prompt_tokens=64,
            max_tokens=128,
            tokens_per_micro_batch=2048,
            lr=3e-4,
            critic_lr=1e-3,
            steps=24,
            reincarnation_step=12,
            kl_convex="schedule:4,2",
            eval_every=2,
            eval_n=2,
        ),
        ppo=dict(prompts_per_step=128, mini_batch=32),
        grpo=dict(prompts_per_step=16, group_size=8, mini_batch=4),
    ),  # fmt: skip
    # A language model of 135M that writes English, on sums
    "smollm": dict(
        both=dict(
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            data=example("sums.jsonl"),
            eval_data=example("sums_test.jsonl"),
            prompt=example("sums.txt"),
            temperature=0.7,  # at 1.0 it is hardly ever right
            max_prompt_tokens=160,
            max_tokens=64,
            tokens_per_micro_batch=4096,
            lr=5e-6,
            critic_lr=3e-5,
            warmup_steps=3,
            steps=24,
            reincarnation_step=12,
            kl_convex="schedule:4,2",
            behaviour_logp="trainer",
            engine_weight="tis",
            eval_every=4,
            eval_n=2,
        ),
        ppo=dict(prompts_per_step=128, mini_batch=64),
        grpo=dict(prompts_per_step=16, group_size=8, mini_batch=8),
    ),  # fmt: skip
    # The paper's runs: T and steps by its rollout counts
    "1.5b": dict(
        both=BIG | dict(gpu_memory=0.3),  # memory: docs/scaling.md
        ppo=dict(reincarnation_step=100, steps=350),
        grpo=dict(reincarnation_step=50, steps=200),
    ),
    "7b": dict(
        both=BIG | dict(model="deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
        ppo=dict(reincarnation_step=100, steps=75),  # its 64.39 was reached before reincarnation
        grpo=dict(reincarnation_step=50, steps=200),
    ),
    # Not in the paper; four nodes of 8 GPUs
    "32b": dict(
        both=BIG
        | dict(
            model="deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
            shard="all",
            tensor_parallel=4,
            reincarnation_step=50,
            steps=200,
        ),
        ppo={},
        grpo={},
    ),  # fmt: skip
}
# Not in the paper: LoRA, on one GPU of 24 GB and one of 80 GB; 10 times the rates (see lora.ALPHA)
for size in ("1.5b", "7b"):
    adapters = dict(lora_rank=32, lr=1e-5, critic_lr=1e-4, gpu_memory=0.5)
    RECIPES[f"{size}-lora"] = RECIPES[size] | dict(both=RECIPES[size]["both"] | adapters)


def parse_config(argv: list[str] | None = None) -> Config:
    """Flags -> Config, with a recipe's settings and every default that depends on others."""
    return resolve(parse_flags(argv))


def parse_flags(argv: list[str] | None = None) -> Config:
    """Flags over the recipe's settings. An unknown flag or a value of the wrong kind ends with exit
    status 2 and a line that names it; abbreviations are not taken (they would change meaning as
    flags grow)."""
    first = read_flags(argv, Config())
    if first.recipe and first.recipe.lower() not in RECIPES:
        raise ValueError(f"--recipe {first.recipe}: there is none; take {', '.join(RECIPES)}")
    recipe = RECIPES.get(first.recipe.lower(), dict(both={}, ppo={}, grpo={}))
    settings = recipe["both"] | recipe[first.algo]
    if first.reward:  # it knows nothing of the recipe's benchmark
        settings.pop("eval_data", None)
    cfg = read_flags(argv, Config(**settings))
    cfg.recipe = cfg.recipe.lower()
    return cfg


def resolve(cfg: Config) -> Config:
    """Fills in what depends on other flags and on the machine."""
    grpo = cfg.algo == "grpo"
    cfg.out = cfg.out or f"out/{cfg.recipe or 'remix'}-{cfg.algo}-seed{cfg.seed}"
    cfg.group_size = cfg.group_size or (8 if grpo else 1)
    cfg.entropy_coef = (0.001, 0.0)[grpo] if cfg.entropy_coef is None else cfg.entropy_coef
    cfg.eval_max_tokens = cfg.eval_max_tokens or cfg.max_tokens
    cfg.stop, cfg.stop_token_ids = map(tuple, (cfg.stop, cfg.stop_token_ids))  # JSON has lists
    import torch  # here: a typo in a flag should not wait for it

    from data import get_prompt

    gpu = torch.cuda.is_available()
    cfg.format = cfg.format or ("" if cfg.reward else get_prompt(cfg.prompt).format)
    cfg.dtype = ("bfloat16" if gpu else "float32") if cfg.dtype == "auto" else cfg.dtype
    cfg.shard = ("node" if gpu else "none") if cfg.shard == "auto" else cfg.shard
    return cfg


def read_flags(argv: list[str] | None, default: Config) -> Config:
    box = io.StringIO()  # what tyro draws around an error
    try:
        with redirect_stderr(box):
            return tyro.cli(Config, args=argv, default=default, use_underscores=True)
    except SystemExit as end:
        if end.code:
            say(one_line(box.getvalue()))
        raise


def one_line(box: str) -> str:
    """tyro's box of an error as one sentence: its first section, and the flags that it proposes."""
    # What stands between the title and the next rule; both are of - where there is no Unicode
    text = re.search(r"(?:─╮|---)\s*\n(.*?)\n(?:[│ ]*(?:───|---)|╰)", box, re.DOTALL)[1]
    text = " ".join(text.replace("│", " ").split()).rstrip(".")
    proposes = re.search("Perhaps you meant|similar to", box)
    meant = re.findall(r"^[│ ] +(--\w+)", box, re.MULTILINE) if proposes else []
    meant = f"did you mean {' or '.join(dict.fromkeys(meant))}? " if meant else ""
    return f"{text}; {meant}--help lists all flags"


def say(text: object) -> None:
    """A last word, by one rank of each node."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr)


def stop(error: Exception) -> NoReturn:
    """End with one sentence, not a traceback."""
    say(error)
    sys.exit(getattr(error, "status", 1))


def command_line() -> Config:
    """parse_flags, as a command needs it."""
    try:
        return parse_flags()
    except ValueError as error:
        stop(error)


def check_config(cfg: Config) -> None:
    """ValueError with one sentence that names the flag, the value and what to do. Called before a
    model is loaded."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    from loss import kl_convex_weight
    from siblings import LOSSES, REPLAYS
    from trackers import TRACKERS, missing, named

    def each(names: str, fine: Callable, what: str) -> list[tuple]:
        return [(fine(getattr(cfg, name)), name, what) for name in names.split()]

    try:
        lam_is_fine = 0 <= kl_convex_weight(cfg.kl_convex, 1) <= 1
    except ValueError:
        lam_is_fine = False
    P, G, p, N = cfg.prompts_per_step, cfg.group_size, cfg.off_policy_ratio, cfg.replay_window
    grpo, loss = cfg.algo == "grpo", LOSSES.get(cfg.loss)
    largest_seed = ((cfg.seed * 100_000 + cfg.steps + 1) * 1_000_000) * G  # remix.roll_out
    vllm = cfg.engine == "vllm" or cfg.engine == "auto" and find_spec("vllm") is not None
    flash = cfg.dtype == "bfloat16" and is_flash_attn_2_available()
    weighs = cfg.engine_weight != "off"
    big = RECIPES.get(cfg.recipe, dict(both={}))["both"].get("dtype") == "bfloat16"
    clips = ("mix_ppg", "ppo", "decoupled_ppo", "dr_grpo")
    compilers = (os.environ.get("CXX", "c++"), "g++", "clang++")
    rows = [  # is it fine, the flag, what to do
        (not big or torch.cuda.is_available() or cfg.dtype == "float32", "recipe", "is for GPUs, "
         "and PyTorch sees none here: start it on a node with GPUs (train.sh then installs for "
         "them), or say --dtype float32 if you do want it on this CPU"),
        *each("steps prompts_per_step mini_batch group_size tokens_per_micro_batch "
              "max_prompt_tokens max_tokens replay_window utd_ratio eval_n eval_max_tokens "
              "save_every grader_workers tensor_parallel keep", lambda x: x >= 1,
              "must be at least 1"),
        *each("reincarnation_step eval_every eval_limit limit sampler_lag seed kl_coef peak_tflops "
              "skipped_layers weight_decay warmup_steps eval_temperature keep_responses lora_rank",
              lambda x: x >= 0, "must not be negative"),
        *each(" ".join(f.name for f in fields(cfg) if isinstance(getattr(cfg, f.name), float)),
              math.isfinite, "must be a finite number"),
        *each("clip_eps value_clip grad_clip lr critic_lr grader_deadline", lambda x: x > 0,
              "must be above 0"),
        (cfg.warmup_steps <= cfg.steps, "warmup_steps", f"is more than --steps {cfg.steps}; lower "
         "it"),
        (not cfg.lora_rank or find_spec("peft") is not None, "lora_rank", "needs the package peft, "
         "which is not installed here: .venv/bin/python -m pip install peft==0.21.0"),
        (not cfg.compile or any(map(shutil.which, compilers)), "compile", "needs a C++ compiler, "
         "and none is found here: install g++, or leave it out"),
        (not cfg.offload or not cfg.lora_rank, "offload", "moves whole networks, which "
         "--lora_rank does not have; leave one of the two out"),
        (cfg.temperature >= 0.01, "temperature", "must be at least 0.01: sampling without chance "
         "explores nothing, and logits divided by less overflow"),
        *each("gamma gae_lambda", lambda x: 0 <= x <= 1, "must be between 0 and 1"),
        (cfg.mini_batch > 0 and P % cfg.mini_batch == 0, "mini_batch",
         f"does not divide --prompts_per_step {P}; take a divisor of it, "
         f"{math.gcd(P, cfg.mini_batch)} say"),
        (0 <= p < 1, "off_policy_ratio", "must be in [0, 1): some of the batch has to be fresh"),
        (P * (1 - Fraction(str(p))) >= 1, "off_policy_ratio",
         f"leaves no fresh prompt of {P}; lower it"),
        (cfg.replay == "repo" or p <= N * (1 - p) + 1e-9, "off_policy_ratio", f"a window of "
         f"--replay_window {N} steps holds too few responses to fill a share of {p}; raise the "
         f"window to {math.ceil(p / (1 - p) - 1e-9) if p < 1 else ''} or lower the ratio"),
        (not grpo or G >= 2, "group_size", "GRPO compares the responses of a group: at least 2"),
        (not grpo or not cfg.vtrace, "vtrace", "is about GAE, which GRPO does not use; drop it"),
        (largest_seed < 2**63, "seed", "is too large for the sampler's seeds; take one below "
         f"{2**63 // (10**11 * G)}"),
        (loss or cfg.loss == "mix_ppg", "loss", f"is none of mix_ppg, {', '.join(LOSSES)}"),
        (cfg.replay in REPLAYS, "replay", f"is none of {', '.join(REPLAYS)}"),
        (grpo or not (loss and loss.advantage), "loss",
         "has an advantage of groups; use it with --algo grpo"),
        (cfg.filter_groups is None or cfg.filter_groups >= 0, "filter_groups", "is a number of "
         "rounds, 0 or more"),
        (cfg.filter_groups is None or cfg.loss not in ("topr", "asymre"), "filter_groups", f"drops "
         f"groups that --loss {cfg.loss} learns from; leave one of the two out"),
        (grpo or cfg.filter_groups is None, "filter_groups", "compares the responses of a group; "
         "use it with --algo grpo, or leave it out"),
        (grpo or cfg.replay not in ("buffer_matters", "advantage", "popo"), "replay",
         "looks at groups of responses; use --algo grpo"),
        (not weighs or cfg.behaviour_logp == "trainer", "engine_weight", "compares the trainer's "
         "log-probs with the sampler's; add --behaviour_logp trainer"),
        (not cfg.kl_unbiased or cfg.kl_estimator in ("k1", "k3"), "kl_estimator", "has no weighted "
         "form; use k1 or k3, or leave --kl_unbiased out"),
        (not weighs or not loss or loss.per != "response", "engine_weight", f"weighs tokens, and "
         f"--loss {cfg.loss} is one term a response; use off"),
        *each("format answer_field", lambda x: not (x and cfg.reward), "is of our own grading; "
              "leave it out with --reward, whose function gets the row"),
        (not cfg.reward or cfg.replay != "buffer_matters", "replay", "knows right and wrong, 1 and "
         "0, and no --reward; use another"),
        (not cfg.reward or cfg.loss != "topr", "loss", "knows right and wrong, 1 and 0, and no "
         "--reward; use another"),
        (not cfg.skipped_layers or not vllm, "skipped_layers", "vLLM cannot skip layers; add "
         "--engine hf"),
        (cfg.tensor_parallel == 1 or vllm, "tensor_parallel", "is for vLLM, which is not installed "
         "or not chosen; use 1"),
        (cfg.attention == "sdpa" or flash, "attention", "needs a GPU, --dtype bfloat16 and the "
         "package flash-attn; use sdpa"),
        (cfg.loss in clips or not cfg.geppo_clip, "geppo_clip", f"does nothing with --loss "
         f"{cfg.loss}; leave it out"),
        (all(cfg.stop), "stop", "holds an empty text, which is in every response; leave it out"),
        (0 < cfg.eval_top_p <= 1, "eval_top_p", "must be in (0, 1]"),
        (not cfg.keep_best or cfg.eval_data or cfg.data == "tiny", "keep_best", "nothing is "
         "evaluated, so nothing is best; give --eval_data, or leave it out"),
        (0 < cfg.gpu_memory < 1, "gpu_memory", "is a share, between 0 and 1"),
        (not cfg.track or named(cfg.track) and {*named(cfg.track)} <= TRACKERS.keys(), "track",
         f"is none of {', '.join(TRACKERS)}; take some of them, with commas between"),
        (not missing(cfg.track), "track", "needs packages that are not installed; pip install "
         f"{' '.join(missing(cfg.track))}"),
        (lam_is_fine, "kl_convex", "must be schedule, schedule:START,EVERY, off or a number in "
         "[0, 1]"),
    ]  # fmt: skip
    for ok, name, what in rows:
        if not ok:
            raise ValueError(f"--{name} {getattr(cfg, name)}: {what}")


def saved_config(out: Path) -> dict | None:
    """config.json of the run in `out`; None where there is none. A flag that is younger than the
    run has its default there."""
    if not (out / "config.json").exists():
        return None
    try:
        old = json.loads((out / "config.json").read_text())
        flags = {f.name: old[f.name] for f in fields(Config) if f.name in old}
        return old | asdict(resolve(Config(**flags)))
    except (json.JSONDecodeError, TypeError, AttributeError):
        raise ValueError(f"--out {out}: its config.json is damaged; restore it, or name a new "
                         "folder") from None  # fmt: skip


def check_out(cfg: Config) -> None:
    """ValueError if the run folder is another run's, or something else's; the same run goes on."""
    out, new = Path(cfg.out), asdict(cfg)
    ours = ("lock", "config.json.partial")  # left by a start that was killed
    try:
        old = saved_config(out)
        if old is None and out.exists() and any(path.name not in ours for path in out.iterdir()):
            raise ValueError(f"--out {out}: is not empty and holds no run; name a new folder")
    except OSError as error:  # a file, below a file, not to be read
        raise ValueError(
            f"--out {out}: {error.strerror}; name a folder that can be written"
        ) from None
    if old and "top_p" in old:  # a flag that is gone; the names in its checkpoints are others, too
        raise ValueError(
            f"--out {out}: the run in it is of an older version, {old.get('git_commit')}; go on "
            "with that commit, or name a new folder"
        )
    # With a schedule another end is another rate in every step
    held = ["steps"] if cfg.lr_schedule != "constant" else []
    for name in new if old else ():
        if (name in held or name not in CHANGEABLE) and old.get(name) != new[name]:
            raise ValueError(
                f"--{name} {new[name]}: the run in --out {out} has --{name} {old.get(name)}; go on "
                "with that value, or name a new folder"
            )


RENEW_S = 15.0  # the lock's time is renewed so often
STALE_S = 180.0  # an older one was left by a process that is gone


def lock(out: Path) -> None:
    """OUT/lock names the process that runs there, until it ends. ValueError where another one does,
    or where nothing can be written."""
    path, mine = out / "lock", dict(host=socket.gethostname(), pid=os.getpid(), since=time.time())
    try:
        out.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                with open(path, "x") as file:
                    file.write(json.dumps(mine))
                break
            except FileExistsError:
                free(path)
    except OSError as error:
        raise ValueError(
            f"--out {out}: {error.strerror}; name a folder that can be written"
        ) from None

    def is_mine() -> bool:
        return json.loads(path.read_text()) == mine

    def renew() -> None:
        while True:
            time.sleep(RENEW_S)
            with suppress(OSError):  # what the disk lacks is said where something is saved
                if not is_mine():  # this machine slept, say, and somebody went on with the run
                    os.write(2, f"remix.py: --out {out}: another process runs there now\n".encode())
                    os._exit(1)
                os.utime(path)

    def release() -> None:
        with suppress(OSError):
            if is_mine():
                path.unlink()
                out.rmdir()  # empty if the run was refused

    threading.Thread(target=renew, daemon=True).start()
    atexit.register(release)


def free(path: Path) -> None:
    """Delete the lock of a process that is gone; ValueError if it is there. One that died on this
    host is known by its pid; of another host only time can tell, and is waited for."""
    began, seen = time.time(), set()
    while path.exists():
        with suppress(FileNotFoundError):
            renewed, text = path.stat().st_mtime, path.read_text()
            seen.add(renewed)
            try:
                held = json.loads(text)
            except json.JSONDecodeError:  # just being written
                held = dict(host="?", pid=0)
            here = held["host"] == socket.gethostname()
            stale = time.time() - min(renewed, began) > STALE_S
            if stale or here and not runs(held["pid"]):
                path.unlink()
            elif here or len(seen) > 1:
                raise ValueError(
                    f"--out {path.parent}: process {held['pid']} on {held['host']} runs there; "
                    "wait for it, end it, or name a new folder"
                )
            else:
                if time.time() - began < 1:
                    print(f"{path} of {held['host']} is taken over if it is not renewed soon")
                time.sleep(1)


def runs(pid: int) -> bool:
    """Another process of this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return pid != os.getpid()


def check_problems(cfg: Config, sha256: dict[str, str]) -> None:
    """ValueError if the problems, their prompts, or the reward's file are not those that the run in
    --out began with. sha256: of those of --data, --eval_data and --reward."""
    old = saved_config(Path(cfg.out)) or {}
    for flag, now in sha256.items():
        then = old.get("sha256", {}).get(flag, now)
        changed = any(old.get(name) != getattr(cfg, name) for name in ("eval_data", "eval_limit"))
        if now != then and not (flag == "eval_data" and changed):  # others were asked for
            what = "its problems or their prompts are not those"
            what = "its file is not the one" if flag == "reward" else what
            raise ValueError(
                f"--{flag} {getattr(cfg, flag)}: {what} that the run in --out {cfg.out} began with "
                f"(sha256 {now[:8]}, then {then[:8]}); put that back, or name a new folder"
            )


def check_ranks(facts: dict) -> None:
    """ValueError where the ranks do not run the same: nodes are started one by one, and each reads
    its own command line, code and environment."""
    from parallel import gather

    (host, first), *others = gather([(socket.gethostname(), facts)])
    for rank, (there, theirs) in enumerate(others, 1):
        for name in first | theirs:
            if theirs.get(name) != first.get(name):
                raise ValueError(
                    f"{name}: {theirs.get(name)} on {there} (rank {rank}), {first.get(name)} on "
                    f"{host} (rank 0); start every node with the same flags, code and environment"
                )


def check_shared(out: str) -> None:
    """ValueError where this node does not see what rank 0 has just written: it would save its part
    of each checkpoint elsewhere."""
    deadline = time.time() + 60  # network file systems take their time
    while not Path(out, "config.json").exists():
        if time.time() > deadline:
            raise ValueError(
                f"--out {out}: is not one folder for all nodes; name one on a file system that all "
                "of them see"
            )
        time.sleep(0.5)


def command(cfg: Config) -> str:
    """remix.py with the flags of cfg that differ from the defaults."""
    flags = []
    for f in fields(Config):
        value = getattr(cfg, f.name)
        if value != f.default and f.name != "recipe":
            no = "no_" if value is False else ""
            for one in value if isinstance(value, tuple) else [value]:
                text = "" if isinstance(one, bool) else f" {shlex.quote(str(one))}"
                flags.append(f"--{no}{f.name}{text}")
    return " ".join(["remix.py", *flags])


if __name__ == "__main__":
    print(command(command_line()))
