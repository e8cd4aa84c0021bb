"""The embedded task "tiny": arithmetic problems, and a small base model for them, made here in a minute and a half.

It lets the whole of ReMix run, and really learn, on a machine without a GPU, a model hub or a data set. The paper's base
models are distilled reasoners that sometimes reflect; this one is a Qwen2 of 200 thousand parameters that learnt three
*habits* from demonstrations, in the R1 format (the prompt ends with `<think>`):

    guess    I guess 21 </think> \\boxed{ 21 }
    reason   7 + 4 = 1 ; 1 + 8 = 9 </think> \\boxed{ 9 }                       the slip, a forgotten carry, is kept
    check    7 + 4 = 1 ; 1 + 8 = 9 ; Wait , check : 7 + 4 makes 11 + 8 makes 19 </think> \\boxed{ 19 }     and mended

A first pass often slips and the check does not, so reflection *pays*, and reinforcement learning can find that out: every
habit has a share of the samples. A first pass forgets a whole carry at about even odds, so that a lower sampling
temperature does not mend it. Problems have 3 to 7 numbers, so responses differ in length, from 8 to 70 tokens.

Sampled from the model as made, on the test problems (6,400 samples each): pass@1 is 32 % at temperature 1, 29 % at 0.6 with
top_p 0.95. At temperature 1 a guess (62 % of the samples) is right 7 times in 100, reasoning (23 %) 55, a check (15 %) 97.

Left out, on purpose: language. The tokenizer has a token for every word of the task and falls back to bytes, so any
other text can be encoded, but this model has learnt nothing about it.

    python tiny.py                      # makes cache/tiny-<hash of the settings>/, a normal Hugging Face folder
    python tiny.py --out DIR --seed 1   # every field of BaseModel is a flag
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import os
import random
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

# Some virtual machines announce AMX and then refuse it: bfloat16 products, Muon's, would die of an illegal instruction
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, pre_tokenizers
from tqdm import tqdm
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils import logging as transformers_logging

VERSION = 2  # raise it when a change below makes another model from the same settings: it is part of the cache's name

LENGTHS = range(3, 8)  # how many numbers a problem has: its difficulty
TOTALS = range(
    30
)  # every running total of a problem lies here: 450 sums and differences to know by heart
TRAIN, TEST = 4000, 200  # problems, equally many of each length

PAD, EOS, USER, ASSISTANT = "<|pad|>", "<|im_end|>", "<|user|>", "<|assistant|>"
WORDS = [
    "</think>",
    "\\boxed{",
    "}",
    "Wait",
    "check",
    "makes",
    "I",
    "guess",
    *",:;+-=",
    *map(str, range(100)),
]
CHAT_TEMPLATE = (  # <|user|> 7 + 4 + 8<|assistant|><think> 7 + 4 = 11 ; ...<|im_end|>
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|im_end|>"
    "{% else %}<|user|> {{ m['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)


def flag(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class BaseModel:
    """The settings of the base model; its folder is named by their hash."""

    # fmt: off
    guess_share: float = flag(0.6, "share of the demonstrations that only guess")
    reason_share: float = flag(0.25, "share that reasons step by step; the rest, 15 %, reasons and checks")
    guess_spread: int = flag(3, "a guess is off by at most this, uniformly: right 1 time in 7")
    slip_rate: float = flag(0.5, "chance that a first pass forgets a carry or a borrow, for each one there is")
    misstep_rate: float = flag(0.05, "chance that any other step of a first pass is off by one")
    mending: float = flag(1.0, "chance that a check mends the slips; else it repeats the first pass, and only costs length")
    hidden_size: int = flag(64, "width")
    layers: int = flag(3, "transformer layers")
    heads: int = flag(2, "attention heads; width / heads must be 32 or 64, other sizes vLLM refuses on a CPU")
    steps: int = flag(1200, "optimizer steps of supervised learning")
    check_steps: float = flag(0.6, "the first part of them teaches by checks alone; the shares hold after it")
    batch_size: int = flag(40, "demonstrations a step, each seen once; more steps of fewer learn much faster here")
    learning_rate: float = flag(4e-3, "AdamW's, for the embeddings; warm-up over the first 5 %, then a cosine to 0")
    muon_learning_rate: float = flag(8e-3, "Muon's, for the matrices, on the same schedule")
    seed: int = flag(0, "seed of the demonstrations and the initial weights")
    # fmt: on

    def __post_init__(self):
        if (
            not 0 <= self.guess_share + self.reason_share <= 1
            or min(self.guess_share, self.reason_share) < 0
        ):
            raise ValueError(
                "guess_share and reason_share must not be negative and must add up to 1 at most"
            )
        if self.hidden_size % self.heads or self.hidden_size // self.heads not in (32, 64):
            raise ValueError(
                f"hidden_size / heads must be 32 or 64, not {self.hidden_size} / {self.heads}"
            )
        if not 0 <= self.mending <= 1:
            raise ValueError("mending must be between 0 and 1")
        if self.batch_size < 2 or self.steps < 1:
            raise ValueError("batch_size must be at least 2 and steps at least 1")


def named(name: str) -> BaseModel:
    """The settings behind a model name of remix.py and eval.py: "tiny", or "tiny:FIELD=VALUE,FIELD=VALUE"."""
    types = {f.name: f.type for f in dataclasses.fields(BaseModel)}
    changes = {}
    for part in filter(None, name.partition(":")[2].split(",")):
        key, _, value = part.partition("=")
        if key not in types:
            raise ValueError(
                f"--model {name}: the embedded model has no setting {key!r}; it has {', '.join(types)}"
            )
        try:
            changes[key] = types[key](value)
        except ValueError:
            raise ValueError(f"--model {name}: {value!r} is no value for {key}") from None
    try:
        return BaseModel(**changes)
    except ValueError as error:
        raise ValueError(f"--model {name}: {error}") from None


# ---- problems -----------------------------------------------------------------------------------------------------


def draw_problem(rng: random.Random, length: int) -> list[int]:
    """`length` signed terms, the first in 1..9 and the others in ±1..9, whose running totals all lie in TOTALS."""
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
    """(train, test) as terms: distinct problems, test drawn first, so no split depends on the size of the other."""
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
    """The rows of "train" or "test": {"problem": "7 + 4 + 8", "answer": "19", "difficulty": 3 (how many numbers)}.

    Always the same rows, the splits are disjoint, and no demonstration is about a test problem.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}')
    rows = _splits()[split == "test"]
    return [{"problem": problem_text(t), "answer": str(sum(t)), "difficulty": len(t)} for t in rows]


# ---- demonstrations -----------------------------------------------------------------------------------------------


def first_pass(rng: random.Random, terms: list[int], settings: BaseModel) -> list[int]:
    """Running totals after each term, with the slips of a first pass: see slip_rate and misstep_rate.

    The rare missteps keep the redo honest: with forgotten carries alone it learns to copy every other total. A pass that
    leaves 0..99, where there are no words, is drawn anew; that makes slips a little rarer.
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
        answer = sum(terms)
        spread = settings.guess_spread
        answer = rng.randint(
            answer - min(answer, spread), answer + spread
        )  # there is no word below 0
        thought = f"I guess {answer}"
    else:
        totals = first_pass(rng, terms, settings)
        thought = " ; ".join(
            f"{a} {op} {b} = {c}"
            for a, (op, b), c in zip(totals[:-1], operations, totals[1:], strict=True)
        )
        answer = totals[-1]
    if (
        habit == "check"
    ):  # another notation than the first pass, a chain, so that its slips do not leak in
        answer = total = terms[0]
        thought += f" ; Wait , check : {total}"
        repeats = settings.mending < 1 and rng.random() >= settings.mending
        for i, ((op, b), term) in enumerate(zip(operations, terms[1:], strict=True)):
            total = totals[i + 1] if repeats else total + term
            thought += f" {op} {b} makes {total}"
        answer = total
    return f" {thought} </think> \\boxed{{ {answer} }}"


def demonstrations(settings: BaseModel) -> list[tuple[str, str]]:
    """Pairs (problem, response) in the order of training, batch_size a step; none is about a test problem."""
    rng = random.Random(settings.seed)
    test = {problem_text(terms) for terms in _splits()[1]}
    habits = ("guess", "reason", "check")
    shares = (
        settings.guess_share,
        settings.reason_share,
        1 - settings.guess_share - settings.reason_share,
    )
    count = settings.steps * settings.batch_size
    pairs = []
    while len(pairs) < count:
        terms = draw_problem(rng, rng.choice(LENGTHS))
        if problem_text(terms) not in test:
            habit = (
                "check"
                if len(pairs) < settings.check_steps * count
                else rng.choices(habits, shares)[0]
            )
            pairs.append((problem_text(terms), demonstration(rng, terms, habit, settings)))
    return pairs


# ---- tokenizer ----------------------------------------------------------------------------------------------------


def make_tokenizer() -> Qwen2Tokenizer:
    """One token for each word of the task, together with the space before it, and one for each byte of any other text.

    So decoding gives back every text exactly. The class is Qwen2's own, a byte-level BPE (here without merges), because
    AutoTokenizer loads no other for a Qwen2 model; it would split numbers, hence words are added tokens, which come first.
    """
    bytes_ = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab=bytes_, merges=[], unk_token=None, eos_token=EOS, pad_token=PAD
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT]})
    tokenizer.add_tokens(["<think>"] + [AddedToken(" " + word, normalized=False) for word in WORDS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# ---- supervised learning ------------------------------------------------------------------------------------------


def _encode(tokenizer: Qwen2Tokenizer, settings: BaseModel) -> list[tuple[list[int], int]]:
    """Per demonstration its token ids, eos included, and the number of them that are prompt."""
    pairs = demonstrations(settings)
    chats = [[{"role": "user", "content": problem}] for problem, _ in pairs]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompts)["input_ids"]
    response_ids = tokenizer([response + EOS for _, response in pairs])["input_ids"]
    return [(p + r, len(p)) for p, r in zip(prompt_ids, response_ids, strict=True)]


def _loss(model: Qwen2ForCausalLM, rows: list[tuple[list[int], int]]) -> torch.Tensor:
    """Summed cross-entropy of the response tokens. Right padding needs no attention mask under a causal one."""
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(r) for r, _ in rows], batch_first=True
    )  # (B, T)
    start = torch.tensor([p for _, p in rows])[:, None]
    end = torch.tensor([len(r) for r, _ in rows])[:, None]
    at = torch.arange(1, ids.shape[1])
    mask = (at >= start) & (at < end)  # (B, T-1): the targets that are response tokens
    hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state[
        mask
    ]  # the head runs on these alone
    return F.cross_entropy(model.lm_head(hidden), ids[:, 1:][mask], reduction="sum")


def _train(tokenizer: Qwen2Tokenizer, settings: BaseModel, quiet: bool) -> Qwen2ForCausalLM:
    torch.manual_seed(settings.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=3 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=4096,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 100.0,
        },  # the common 10,000 is for longer texts
        initializer_range=0.1,  # about width ** -0.5; with the common 0.02 copying takes several times the steps
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config).train()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
    )
    rows = _encode(tokenizer, settings)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    adamw = torch.optim.AdamW(
        others, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    muon = torch.optim.Muon(
        matrices, lr=settings.muon_learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    warmup = max(1, settings.steps // 20)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda t: min((t + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * t / settings.steps)),
        )
        for optimizer in (adamw, muon)
    ]
    bar = tqdm(
        range(settings.steps), desc="base model", unit="step", disable=quiet, mininterval=1.0
    )
    for step in bar:
        batch = sorted(
            rows[step * settings.batch_size : (step + 1) * settings.batch_size],
            key=lambda r: len(r[0]),
        )
        tokens = sum(len(ids) - prompt for ids, prompt in batch)
        half = settings.batch_size // 2
        total = 0.0
        for part in (
            batch[:half],
            batch[half:],
        ):  # the short and the long ones, so that less is padding
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


# ---- folder -------------------------------------------------------------------------------------------------------


def make_base_model(
    out: str | None = None, settings: BaseModel = BaseModel(), quiet: bool = False
) -> str:
    """Path of the folder with the base model of `settings`, by default cache/tiny-<hash> beside this file.

    Made on one thread if it is not there, and put there whole, in one rename; two processes may race. Raises
    FileExistsError where `out` holds anything else than this very model.
    """
    made_from = json.dumps({"version": VERSION, **dataclasses.asdict(settings)}, indent=2)
    name = "tiny-" + hashlib.sha256(made_from.encode()).hexdigest()[:10]
    target = Path(out) if out else Path(__file__).resolve().parent / "cache" / name
    record = target / "base_model.json"
    if target.exists():
        if not record.is_file() or record.read_text() != made_from:
            raise FileExistsError(
                f"{target} exists and is not the base model of these settings: give another --out"
            )
        return str(target)

    tokenizer, threads = make_tokenizer(), torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # for such small matrices the fastest, and the same model on every machine of a kind
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
    parser.add_argument(
        "--out", help="folder to make; without it cache/tiny-<hash of the settings>"
    )
    for f in dataclasses.fields(BaseModel):
        text = f.metadata["help"].replace("%", "%%")
        parser.add_argument(f"--{f.name}", type=f.type, default=f.default, help=text)
    flags = vars(parser.parse_args())
    out = flags.pop("out")
    try:
        print(make_base_model(out, BaseModel(**flags)))
    except (ValueError, FileExistsError) as error:
        sys.exit(f"tiny.py: {error}")


if __name__ == "__main__":
    main()
