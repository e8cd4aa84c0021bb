"""The embedded task "tiny": arithmetic problems, and a small base model for them.

It lets the whole of ReMix run, and really learn, without a GPU, a model hub or a data set. The
paper's base models are distilled reasoners that sometimes reflect. This one is a Qwen2 of 200
thousand parameters, made here in some minutes, that learnt three *habits* from demonstrations.
They are in the R1 format: the prompt ends with `<think>`.

    guess    I guess 21 </think> \\boxed{ 21 }
    reason   7 + 4 = 1 ; 1 + 8 = 9 </think> \\boxed{ 9 }        (the slip, a forgotten carry, stays)
    check    7 + 4 = 1 ; 1 + 8 = 9 ; Wait , check : 7 + 4 makes 11 + 8 makes 19 </think> ...

A first pass often slips and the check does not, so reflection *pays*. Reinforcement learning can
find that out: every habit has a share of the samples. A first pass forgets a whole carry at about
even odds, so that a lower sampling temperature does not mend it. Problems have 3 to 7 numbers, so
responses differ in length, from 8 to 70 tokens.

The model as made, on the test problems (6,400 samples each): pass@1 is 32 % at temperature 1, and
29 % at 0.6 with top_p 0.95. At temperature 1 a guess (62 % of the samples) is right 7 times in 100,
reasoning (23 %) 55, a check (15 %) 97.

Left out, on purpose: language. The tokenizer has a token for every word of the task and falls back
to bytes. Any other text can be encoded, but this model has learnt nothing about it.

    python tiny.py                      # makes cache/tiny-<hash of the settings>/, as for the hub
    python tiny.py --mending 0          # models/tiny-ab3c3ed703/: two of them came with the code
    python tiny.py --out DIR --seed 1   # every field of BaseModel is a flag
"""

import argparse
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import random
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

# Some virtual machines announce AMX and then refuse it: Muon's bfloat16 products would die
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils import logging as transformers_logging

VERSION = 2  # in the folder's hash; raise it when the same settings make another model

LENGTHS = range(3, 8)  # how many numbers a problem has: its difficulty
TOTALS = range(30)  # has every running total of a problem: 450 sums and differences to learn
TRAIN, TEST = 4000, 200  # problems, equally many of each length

PAD, EOS, USER, ASSISTANT = "<|pad|>", "<|im_end|>", "<|user|>", "<|assistant|>"
WORDS = [*r"</think> \boxed{ } Wait check makes I guess , : ; + - =".split(), *map(str, range(100))]
CHAT_TEMPLATE = (  # <|user|> 7 + 4 + 8<|assistant|><think> 7 + 4 = 11 ; ...<|im_end|>
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|im_end|>"
    "{% else %}<|user|> {{ m['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)


@dataclass(frozen=True)
class BaseModel:
    """The settings of the base model; their hash names its folder. A comment is its flag's help."""

    guess_share: float = 0.6  # share of the demonstrations that only guess
    reason_share: float = 0.25  # share that reasons step by step; the rest, 15 %, also checks
    guess_spread: int = 3  # a guess is off by at most this, uniformly: right 1 time in 7
    slip_rate: float = 0.5  # chance that a first pass forgets a carry or a borrow, for each one
    misstep_rate: float = 0.05  # chance that any other step of a first pass is off by one
    mending: float = 1.0  # chance that a check mends the slips; else it repeats the first pass
    hidden_size: int = 64  # width
    layers: int = 3  # transformer layers
    heads: int = 2  # attention heads; width / heads must be 32 or 64, for vLLM on a CPU
    steps: int = 1200  # optimizer steps of supervised learning
    check_steps: float = 0.6  # the first part of them has checks alone; the shares hold after it
    batch_size: int = 40  # demonstrations a step, each seen once; few of them learn faster here
    learning_rate: float = 4e-3  # AdamW's, for embeddings; warm-up over 5 %, then a cosine to 0
    muon_learning_rate: float = 8e-3  # Muon's, for the matrices, on the same schedule
    seed: int = 0  # seed of the demonstrations and the initial weights

    def __post_init__(self):
        shares, heads, width = (self.guess_share, self.reason_share), self.heads, self.hidden_size
        fits_vllm = heads > 0 and width in (32 * heads, 64 * heads)
        for ok, sentence in (
            (min(shares) >= 0, "guess_share and reason_share must not be negative"),
            (sum(shares) <= 1, "guess_share and reason_share must add up to 1 at most"),
            (fits_vllm, f"hidden_size / heads must be 32 or 64, not {width} / {heads}"),
            (0 <= self.mending <= 1, "mending must be between 0 and 1"),
            (self.batch_size >= 2, "batch_size must be at least 2"),
            (self.steps >= 1, "steps must be at least 1"),
        ):
            if not ok:
                raise ValueError(sentence)


def named(name: str) -> BaseModel:
    """The settings behind a name of remix.py and eval.py: "tiny", or "tiny:FIELD=VALUE,..."."""
    types = {f.name: f.type for f in dataclasses.fields(BaseModel)}
    changes = {}
    for part in filter(None, name.partition(":")[2].split(",")):
        key, _, value = part.partition("=")
        if key not in types:
            raise ValueError(
                f"--model {name}: the embedded model has no setting {key!r}; "
                f"it has {', '.join(types)}"
            )
        try:
            changes[key] = types[key](value)
        except ValueError:
            raise ValueError(f"--model {name}: {value!r} is no value for {key}") from None
    try:
        return BaseModel(**changes)
    except ValueError as error:
        raise ValueError(f"--model {name}: {error}") from None


# ---- problems ------------------------------------------------------------------------------------


def draw_problem(rng: random.Random, length: int) -> list[int]:
    """`length` signed terms, the first in 1..9, the others in ±1..9, running totals in TOTALS."""
    terms = [rng.randint(1, 9)]
    total = terms[0]
    while len(terms) < length:
        term = rng.randint(1, 9) * rng.choice((1, -1))
        if total + term in TOTALS:
            terms.append(term)
            total += term
    return terms


def problem_text(terms: list[int]) -> str:
    return str(terms[0]) + "".join(f" {'+' if t > 0 else '-'} {abs(t)}" for t in terms[1:])


@functools.cache
def _splits() -> tuple[tuple[list[int], ...], tuple[list[int], ...]]:
    """(train, test) as terms: distinct problems. Test is drawn first: TRAIN does not change it."""
    rng = random.Random(20250709)  # the splits are one fixed data set, whatever the settings
    seen: set[str] = set()
    splits = []
    for size in (TEST, TRAIN):
        split = []
        for i in range(size):
            while problem_text(terms := draw_problem(rng, LENGTHS[i % len(LENGTHS)])) in seen:
                pass
            seen.add(problem_text(terms))
            split.append(terms)
        rng.shuffle(split)
        splits.append(tuple(split))
    return splits[1], splits[0]


def embedded_problems(split: str) -> list[dict]:
    """The rows of "train" or "test": {"problem": "7 + 4 + 8", "answer": "19", "difficulty": 3}.

    Always the same rows; difficulty is how many numbers. The splits are disjoint, and no
    demonstration is about a test problem.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}')
    rows = _splits()[split == "test"]
    return [{"problem": problem_text(t), "answer": str(sum(t)), "difficulty": len(t)} for t in rows]


# ---- demonstrations ------------------------------------------------------------------------------


def first_pass(rng: random.Random, terms: list[int], settings: BaseModel) -> list[int]:
    """Running totals after each term, with the slips of a first pass (slip_rate, misstep_rate).

    The rare missteps keep the redo honest: with forgotten carries alone it learns to copy every
    other total. A pass that leaves 0..99, where there are no words, is drawn anew; slips get a
    little rarer by that.
    """
    while True:
        totals = [terms[0]]
        for term in terms[1:]:
            total = totals[-1] + term
            if total // 10 != totals[-1] // 10 and rng.random() < settings.slip_rate:
                total += -10 if term > 0 else 10
            elif rng.random() < settings.misstep_rate:
                total += rng.choice((-1, 1))
            totals.append(total)
        if min(totals) >= 0 and max(totals) <= 99:
            return totals


def demonstration(rng: random.Random, terms: list[int], habit: str, settings: BaseModel) -> str:
    """A response to the problem, without eos; habit: guess, reason or check."""
    steps = problem_text(terms).split()
    operations = list(zip(steps[1::2], steps[2::2], strict=True))  # ("+", "4"), ...
    if habit == "guess":
        total, spread = sum(terms), settings.guess_spread
        answer = rng.randint(max(0, total - spread), total + spread)  # there is no word below 0
        thought = f"I guess {answer}"
    else:
        totals = first_pass(rng, terms, settings)
        lines = zip(totals[:-1], operations, totals[1:], strict=True)
        thought = " ; ".join(f"{a} {op} {b} = {c}" for a, (op, b), c in lines)
        answer = totals[-1]
    if habit == "check":  # a chain, not the first pass's notation: its slips must not leak in
        answer = total = terms[0]
        thought += f" ; Wait , check : {total}"
        repeats = settings.mending < 1 and rng.random() >= settings.mending
        for i, ((op, b), term) in enumerate(zip(operations, terms[1:], strict=True)):
            total = totals[i + 1] if repeats else total + term
            thought += f" {op} {b} makes {total}"
        answer = total
    return f" {thought} </think> \\boxed{{ {answer} }}"


def demonstrations(settings: BaseModel) -> list[tuple[str, str]]:
    """(problem, response) in the order of training, batch_size a step; no test problem is in it."""
    rng = random.Random(settings.seed)
    test = {problem_text(terms) for terms in _splits()[1]}
    guess, reason = settings.guess_share, settings.reason_share
    shares = {"guess": guess, "reason": reason, "check": 1 - guess - reason}
    count = settings.steps * settings.batch_size
    pairs = []
    while len(pairs) < count:
        problem = problem_text(terms := draw_problem(rng, rng.choice(LENGTHS)))
        if problem in test:
            continue
        habit = "check"
        if len(pairs) >= settings.check_steps * count:
            habit = rng.choices([*shares], [*shares.values()])[0]
        pairs.append((problem, demonstration(rng, terms, habit, settings)))
    return pairs


# ---- tokenizer -----------------------------------------------------------------------------------


def make_tokenizer() -> Qwen2Tokenizer:
    """One token for each word of the task, with the space before it, and for any other byte.

    So decoding gives back every text exactly. The class is Qwen2's own, a byte-level BPE (here
    without merges), because AutoTokenizer loads no other for a Qwen2 model. It would split numbers;
    hence words are added tokens, which come first.
    """
    bytes_ = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    ends = {"unk_token": None, "eos_token": EOS, "pad_token": PAD}
    tokenizer = Qwen2Tokenizer(vocab=bytes_, merges=[], **ends)
    tokenizer.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT]})
    tokenizer.add_tokens(["<think>"] + [AddedToken(" " + word, normalized=False) for word in WORDS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# ---- supervised learning -------------------------------------------------------------------------


def _encode(tokenizer: Qwen2Tokenizer, settings: BaseModel) -> list[tuple[list[int], int]]:
    """Per demonstration its token ids, eos included, and the number of them that are prompt."""
    pairs = demonstrations(settings)
    chats = [[{"role": "user", "content": problem}] for problem, _ in pairs]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompts)["input_ids"]
    response_ids = tokenizer([response + EOS for _, response in pairs])["input_ids"]
    return [(p + r, len(p)) for p, r in zip(prompt_ids, response_ids, strict=True)]


def _loss(model: Qwen2ForCausalLM, rows: list[tuple[list[int], int]]) -> torch.Tensor:
    """Summed cross-entropy of the response tokens; under a causal mask right padding needs none."""
    ids = pad_sequence([torch.tensor(r) for r, _ in rows], batch_first=True)  # (B, T)
    start = torch.tensor([p for _, p in rows])[:, None]
    end = torch.tensor([len(r) for r, _ in rows])[:, None]
    at = torch.arange(1, ids.shape[1])
    mask = (at >= start) & (at < end)  # (B, T-1): the targets that are response tokens
    hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state[mask]  # (targets, H)
    return F.cross_entropy(model.lm_head(hidden), ids[:, 1:][mask], reduction="sum")


def _train(tokenizer: Qwen2Tokenizer, settings: BaseModel, quiet: bool) -> Qwen2ForCausalLM:
    torch.manual_seed(settings.seed)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=3 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=4096,
        # the common theta, 10,000, is for longer texts
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        initializer_range=0.1,  # about width ** -0.5; with the common 0.02 copying is learnt late
        tie_word_embeddings=True,
        bos_token_id=None,
        dtype="float32",
        **ends,
    )
    model = Qwen2ForCausalLM(config).train()
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
    model.generation_config = GenerationConfig(**ends, **sampling)
    rows = _encode(tokenizer, settings)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    adamw = AdamW(others, settings.learning_rate, (0.9, 0.98), weight_decay=0.01, fused=True)
    how = {"weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}
    muon = Muon(matrices, settings.muon_learning_rate, **how)
    steps, size = settings.steps, settings.batch_size
    warmup, half = max(1, steps // 20), size // 2

    def share_of_lr(t: int) -> float:
        return min((t + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * t / steps))

    schedules = [LambdaLR(optimizer, share_of_lr) for optimizer in (adamw, muon)]
    bar = tqdm(range(steps), desc="base model", unit="step", disable=quiet, mininterval=1.0)
    for step in bar:
        batch = sorted(rows[step * size : (step + 1) * size], key=lambda row: len(row[0]))
        tokens = sum(len(ids) - prompt for ids, prompt in batch)
        total = 0.0
        for part in (batch[:half], batch[half:]):  # the short and the long: less padding
            loss = _loss(model, part) / tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip((adamw, muon), schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        bar.set_postfix(loss=f"{total:.3f}", refresh=False)
    return model.eval()


# ---- folder --------------------------------------------------------------------------------------


def make_base_model(
    out: str | None = None, settings: BaseModel = BaseModel(), quiet: bool = False
) -> str:
    """Path of the folder with the base model of `settings`; by default models/tiny-<hash>, if it
    came with the code, or cache/tiny-<hash>.

    Made on one thread if it is not there, and put there whole, in one rename; two processes may
    race. Raises FileExistsError where `out` holds anything else than this very model.
    """
    made_from = json.dumps({"version": VERSION, **dataclasses.asdict(settings)}, indent=2)
    name = "tiny-" + hashlib.sha256(made_from.encode()).hexdigest()[:10]
    here = Path(__file__).resolve().parent
    shipped = here / "models" / name  # the evidence of all machines is of these
    target = Path(out) if out else shipped if shipped.exists() else here / "cache" / name
    record = target / "base_model.json"
    if target.exists():
        if not record.is_file() or record.read_text() != made_from:
            raise FileExistsError(
                f"{target} exists and is not the base model of these settings: give another --out"
            )
        return str(target)

    tokenizer, threads = make_tokenizer(), torch.get_num_threads()
    torch.set_num_threads(1)  # the fastest at this size, and the same model on all of a kind
    try:
        with torch.random.fork_rng(devices=[]):
            model = _train(tokenizer, settings, quiet)
    finally:
        torch.set_num_threads(threads)

    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # "Writing model shards", for one file of 0.7 MB
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / record.name).write_text(made_from)
        try:
            partial.rename(target)
        except OSError:  # somebody else was faster
            if not record.is_file() or record.read_text() != made_from:
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if bars:
            transformers_logging.enable_progress_bar()
    return str(target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Make the small base model of the embedded task.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    place = "folder to make; without it cache/tiny-<hash of the settings>"
    parser.add_argument("--out", default=argparse.SUPPRESS, help=place)
    comments = dict(re.findall(r"    (\w+): .*  # (.*)", inspect.getsource(BaseModel)))
    for f in dataclasses.fields(BaseModel):
        text = comments[f.name].replace("%", "%%")
        parser.add_argument(f"--{f.name}", type=f.type, default=f.default, help=text)
    flags = vars(parser.parse_args())
    out = flags.pop("out", None)
    try:
        print(make_base_model(out, BaseModel(**flags)))
    except (ValueError, FileExistsError) as error:
        sys.exit(f"tiny.py: {error}")


if __name__ == "__main__":
    main()
