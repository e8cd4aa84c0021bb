"""Evaluate a model on math problems: pass@1, pass@k, maj@n, length, reflection, truncation.

The training loop calls `sample` and `summarize`; this file alone is the benchmark runner:

    python eval.py --model DIR_OR_HUB --data tiny
    python eval.py --model DIR_OR_HUB --data math500 --n 16   # --data_dir DIR: not from the hub
    python eval.py --samples FILE --data math500              # grade what another system wrote
    python eval.py --model DIR_OR_HUB --data FILE --reward FILE.py:FUNCTION     # docs/rewards.md
    torchrun --nproc_per_node 8 -- eval.py --model ...        # one engine a rank

The paper's tables are greedy: one response a problem of up to 8192 tokens, of which only the boxed
answer counts. The same here:

    python eval.py --model DIR_OR_HUB --data aime24,amc,math500,minerva,olympiadbench \
        --temperature 0 --format boxed

The defaults, temperature 0.6 and top-p 0.95, are those of DeepScaleR's evaluation in training. A
model that this project exported brings its own, with its prompt and format (remix.json, card.py).

A run writes OUT.json (metrics) and, problem by problem, OUT.samples.jsonl. The same command after a
kill continues there; another configuration with the same OUT is refused.

[open] The paper gives no intervals. Here they are 95 %, 1.96 standard errors of the mean over
*problems*: how much another draw of problems of this kind would move the number. So the samples of
one problem count as the cluster they are. The average over sets is their plain mean, as in the
paper. pass@1 wants the right answer in the right format; answer_rate and format_rate say which of
the two is missing.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NoReturn

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tqdm import tqdm

import data
import reward
from data import Problem, load_tokenizer, model_folder

# Self-reflection: a response that has one of these, as whole words in any case; "-" or a space
REFLECTION_PHRASES = """
wait, hmm, hold on, alternatively, however, on second thought, verify, reconsider, rethink,
re-check, recheck, double-check, check again, check my, check this, check if, check that,
let me check, let's check, re-evaluate, reevaluate, re-examine, reexamine, try again, mistake
"""
REFLECTION_PHRASES = re.split(r",\s+", REFLECTION_PHRASES.strip())
_PATTERNS = (
    re.escape(phrase).replace(r"\-", "[- ]").replace(r"\ ", r"\s+") for phrase in REFLECTION_PHRASES
)
_REFLECTION = re.compile(rf"\b(?:{'|'.join(_PATTERNS)})\b", re.IGNORECASE)
Z95 = 1.959964  # two-sided 95 % of a normal


# --- estimators -----------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of the n samples, c of them right, drawn without replacement, hold a right one.

    The unbiased estimator 1 - C(n-c, k) / C(n, k) of Chen et al. 2021 (Codex), arXiv 2107.03374,
    Eq. 1.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n} c={c} k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def best_at_k(rewards: list[float], k: int) -> float:
    """Mean, over the draws of k of the rewards without replacement, of the best; so it is unbiased,
    and with rewards of 0 and 1 it is `pass_at_k`."""
    n = len(rewards)
    # Of C(n, k) draws the i-th smallest is the best of those that take the others below it
    ways = (math.comb(i, k - 1) for i in range(n))
    return sum(w * x for w, x in zip(ways, sorted(rewards), strict=True)) / math.comb(n, k)


def interval(values: list[float]) -> float:
    """Half width of the 95 % interval of the mean of one value a problem; nan for a single problem.

    It is 0, and says nothing, where all problems have the same value: none ever right, or all.
    """
    return Z95 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def majority(right: int, wrong: list[int]) -> float:
    """maj@n of a problem from the votes for the right and each wrong answer; a tie is shared."""
    most = max(wrong, default=0)
    if right == 0 or right < most:
        return 0.0
    return 1.0 / (1 + sum(votes == right for votes in wrong))


def reflection_rate(texts: list[str]) -> float:
    """Share of the texts that hold one of REFLECTION_PHRASES."""
    return sum(bool(_REFLECTION.search(text)) for text in texts) / len(texts) if texts else 0.0


def _merge_votes(record: dict, grader) -> list[int]:
    """Votes of each wrong answer, answers that are equal as mathematics counted together."""
    graded = list(zip(record["answers"], record["rewards"], strict=True))
    votes = Counter(answer for answer, r in graded if answer is not None and not r)
    right = sum(r > 0 for _, r in graded)
    # Only a wrong answer that could outvote the right one matters: most problems compare nothing
    if right == 0 or sum(votes.values()) < right or len(votes) < 2 or max(votes.values()) > right:
        return list(votes.values())
    texts = list(votes)
    pairs = [(a, b) for i, a in enumerate(texts) for b in texts[:i]]
    # Both sides are model text, so this goes through the grader's killable workers too
    boxed = [f"\\boxed{{{a}}}" for a, _ in pairs]
    same = grader.score(boxed, [b for _, b in pairs], "boxed").rewards
    group = {text: text for text in texts}
    for (a, b), equal in zip(pairs, same, strict=True):
        if equal:
            group = {text: group[b] if g == group[a] else g for text, g in group.items()}
    merged: Counter = Counter()
    for text in texts:
        merged[group[text]] += votes[text]
    return list(merged.values())


# --- evaluation -----------------------------------------------------------------------------------


def decode(tokenizer, tokens: list[int], stop: Sequence[str] = ()) -> str:
    """Text of a response without the model's own end, with other special tokens: </think> may be
    one. It ends with the --stop text, as vLLM's does with include_stop_str_in_output: what the
    last token has behind that is cut off."""
    if tokens and tokens[-1] in data.stop_tokens(tokenizer):
        tokens = tokens[:-1]
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    for end in stop:  # in vLLM's order
        if end in text:
            return text[: text.index(end) + len(end)]
    return text


def grade(problems: list[Problem], responses: list[list[str]], grader, format: str) -> list[dict]:
    """One record a problem from its responses: {"id", "responses", "rewards", "answers",
    "answer_right"}; an answer is None where the format is wrong, and may be right all the same. The
    last two are not of --reward."""
    flat = [text for texts in responses for text in texts]
    asked = [p for p, texts in zip(problems, responses, strict=True) for _ in texts]
    golds = [p.gold for p in asked]
    if grader.own:
        scores = grader.own_rewards(flat, [p.row for p in asked])
        columns = dict(rewards=scores.rewards)
    else:
        scores = grader.score(flat, golds, format)
        right = grader.right_answers(flat, golds, scores)
        columns = dict(rewards=scores.rewards, answers=scores.answers, answer_right=right)
    if scores.kills or scores.unparsable:
        print(
            f"warning: {scores.kills} gradings failed or ran out of time or memory, "
            f"{scores.unparsable} golds were not readable: they give a reward of 0",
            file=sys.stderr,
        )
    records, start = [], 0
    for problem, texts in zip(problems, responses, strict=True):
        span = slice(start, start := start + len(texts))
        graded = {name: column[span] for name, column in columns.items()}
        records.append(dict(id=problem.id, responses=texts, **graded))
    return records


def sample(
    engine, tokenizer, problems: list[Problem], grader, format: str,
    *, n: int, temperature: float, top_p: float, max_tokens: int, seed: int,
    stop: Sequence[str] = (), stop_token_ids: Sequence[int] = (),
) -> list[dict]:  # fmt: skip
    """Records of `grade` with "lengths" [tokens] and "finished" of n samples a problem; greedy ones
    would all be the same, and are one.

    The seed of a problem depends on its id alone, so chunks, their order and a restart do not
    change its samples.
    """
    n = n if temperature else 1
    prompts = [problem.prompt_ids for problem in problems]
    seeds = [(seed * 1_000_003 + p.id) * n for p in problems]  # n apart: sample j uses seed + j
    limits = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
    limits |= {"stop": stop, "stop_token_ids": stop_token_ids}
    groups = engine.generate(prompts, n, seeds=seeds, **limits)
    texts = [[decode(tokenizer, s.tokens, stop) for s in group] for group in groups]
    records = grade(problems, texts, grader, format)
    for record, group in zip(records, groups, strict=True):
        record["lengths"] = [len(s.tokens) for s in group]
        record["finished"] = [bool(s.finished) for s in group]
    return records


def summarize(records: list[dict], grader) -> dict[str, float]:
    """Metrics of one set, as fractions (not percent). Lengths and truncation only where recorded.

    pass@1 is the mean over problems of the mean over samples. pass@k is given for k = 2, 4, 8 … up
    to the smallest number of samples that a problem has. answer_rate: right answers in any format.
    format_rate: answers, right or wrong, in the right format. One problem alone has no intervals.
    With --reward, whose rewards are any numbers: reward in the place of pass@1, and best@k, the
    mean over problems of the expected best of k samples, in that of pass@k.
    """
    counts = [(len(r["rewards"]), sum(x > 0 for x in r["rewards"])) for r in records]
    n = min(count for count, _ in counts)
    metrics = {"problems": len(records), "n": n}

    def add(name: str, values: list[float]) -> None:
        metrics[name] = fmean(values)
        if len(values) > 1:
            metrics[f"{name}_ci"] = interval(values)

    own = not all("answers" in r for r in records)
    if own:
        add("reward", [fmean(r["rewards"]) for r in records])
    else:
        add("pass@1", [right / count for count, right in counts])
    k = 2
    while k <= n:
        if own:
            add(f"best@{k}", [best_at_k(r["rewards"], k) for r in records])
        else:
            add(f"pass@{k}", [pass_at_k(count, right, k) for count, right in counts])
        k *= 2
    if n > 1 and not own:
        rights, wrongs = (right for _, right in counts), [_merge_votes(r, grader) for r in records]
        add(f"maj@{n}", list(map(majority, rights, wrongs)))
    if all("answer_right" in r for r in records):
        metrics["answer_rate"] = fmean(fmean(r["answer_right"]) for r in records)
    if not own:
        metrics["format_rate"] = fmean(fmean(x is not None for x in r["answers"]) for r in records)
    if all("lengths" in r for r in records):
        metrics["response_length"] = fmean(x for r in records for x in r["lengths"])
    metrics["reflection_rate"] = reflection_rate([text for r in records for text in r["responses"]])
    if all("finished" in r for r in records):
        metrics["truncation_rate"] = fmean(not x for r in records for x in r["finished"])
    return metrics


def by_set(records: list[dict], problems: list[Problem], grader) -> dict[str, float]:
    """SET/...: `summarize` of each set's records, where the problems are of several sets."""
    owner = {p.id: p.set for p in problems}
    names = list(dict.fromkeys(owner.values()))
    return {
        f"{name}/{metric}": value
        for name in (names if len(names) > 1 else ())
        for metric, value in summarize(
            [r for r in records if owner[r["id"]] == name], grader
        ).items()
    }


def format_warning(metrics: dict[str, float], format: str) -> str:
    """A sentence where most of the right answers get nothing for their format, else ""."""
    right, passed = metrics.get("answer_rate", 0.0), metrics.get("pass@1", 0.0)
    if right <= 2 * passed:
        return ""
    return (
        f"warning: the format decides: {right:.1%} of the responses have the right answer, but "
        f"{passed:.1%} have it in the format {format}, which wants {reward.FORMATS[format]}; look "
        "at the responses, and take another --format or --prompt if it is not the model's"
    )


# --- from the command line: what can be refused ---------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def flag(name: str, help: str, default=None, **how) -> None:
        if default is not None:
            help, how["type"] = f"{help} (default: %(default)s)", type(default)
        parser.add_argument(f"--{name}", default=default, help=help, **how)

    flag("model", "folder or hub name, or tiny[:SETTING=VALUE,...]: the embedded base model")
    sources = "hub name, NAME:CONFIG | file | folder; sets may be a comma list"
    flag("data", f"tiny | {','.join(data.BENCHMARKS)} | {sources}", "tiny")
    flag("data_dir", "folder with the benchmarks' files (default: from the hub)", metavar="DIR")
    flag("samples", "grade these: JSON lines, id or problem and response(s)", metavar="FILE")
    flag("n", "samples a problem (default: 16, and 1 with --temperature 0)", type=int)
    usual = "the default of an exported model is its run's, else"
    flag("max_tokens", f"limit [tokens]; {usual} 8192 (paper), at most half the context", type=int)
    flag("temperature", f"of the sampling, 0 = greedy; {usual} 0.6", type=float)
    flag("top_p", f"nucleus of the sampling; {usual} 0.95", type=float)
    trust = "let code run that comes with the model"
    flag("trust_remote_code", trust, action="store_true")
    stop = dict(action="append", metavar="TEXT")
    flag("stop", "a text that ends a response and belongs to it; several times for several", **stop)
    stop = dict(action="append", metavar="ID", type=int)
    flag("stop_token_ids", "a token that does, beside the model's own ends", **stop)
    flag("seed", "of the sampling", 0)
    prompts = " | ".join(data.PROMPTS)
    flag("prompt", f"{prompts} | FILE with {{problem}}; {usual} r1, for --data tiny plain")
    formats = f"how a response marks its answer; {usual} the prompt's"
    flag("format", formats, choices=tuple(reward.FORMATS))
    flag("problem_field", f"field with the problem; {usual} found")
    flag("answer_field", f"field with the gold answer; {usual} found")
    flag("reward", "your own, of (response, row), for grading", metavar="FILE.py:FUNCTION")
    flag("grader_deadline", "of grading a response, or of a call of --reward's function [s]", 2.0)
    flag("split", "split of tiny, of a hub set or of a folder", "test")
    flag("limit", "only the first problems of each set", type=int)
    flag("engine", "sampler; auto = vLLM where installed", "auto", choices=("auto", "vllm", "hf"))
    flag("tensor_parallel", "ranks of torchrun that hold one vLLM engine together", 1)
    dtypes = ("float32", "bfloat16", "float16")
    flag("dtype", "of the weights (default: bfloat16 on a GPU, else float32)", choices=dtypes)
    flag("chunk", "problems sampled together, then saved", 64)
    flag("workers", "grader processes", 2)
    flag("out", "results; samples go beside (default: eval-<model>.json)", metavar="FILE.json")
    return parser.parse_args(argv)


def exported(model: str) -> dict:
    """The flags that a model's remix.json has for this program (card.py): of a folder, or of one
    that was pushed to the hub; own_reward: its run's --reward. {} where there is none."""
    local = os.path.expanduser(model)

    def find(name: str) -> str:
        if os.path.isdir(local):
            return os.path.join(local, name)
        from huggingface_hub import hf_hub_download

        return hf_hub_download(model, name)

    try:
        said = json.loads(Path(find("remix.json")).read_text())
        flags, own = said["eval_flags"], said["config"].get("reward", "")
        text = flags["prompt"]
        return flags | dict(own_reward=own, prompt=text if text in data.PROMPTS else find(text))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"--model {model}: its remix.json is damaged; restore it, or delete it."
        ) from error
    except Exception:  # none there, no such model, no network: whoever loads the model says so
        return {}


def fill_in(args) -> None:
    """Open flags from the run of an exported model, else the usual values. An explicit --prompt
    brings its own format, and explicit fields are all that are given."""
    tiny = (args.model or "tiny").split(":")[0] == "tiny"
    run = {} if tiny or args.samples else exported(args.model)
    own = run.pop("own_reward", "")
    for given, others in (
        (args.prompt, ["format"]),
        (args.problem_field or args.answer_field, ["problem_field", "answer_field"]),
    ):
        run = {k: v for k, v in run.items() if not given or k not in others}
    # Fields that are named for one's own data need not be those of other data
    args.or_usual = "problem_field" in run
    taken = {
        k: v for k, v in run.items() if v not in ("", None, []) and getattr(args, k, v) is None
    }
    usual = dict(temperature=0.6, top_p=0.95)
    for name, value in {**usual, **taken}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.n is None:
        args.n = 16 if args.temperature or args.samples else 1
    if own and not args.reward and ranks()[0] == 0:
        print(f"note: the run of {args.model} had --reward {own}; give it, to measure by that")
    if taken and ranks()[0] == 0:
        pairs = [(k, v if isinstance(v, list) else [v]) for k, v in taken.items()]
        said = " ".join(f"--{name} {value}" for name, values in pairs for value in values)
        print(f"as {args.model}/remix.json has it: {said}")


def ranks() -> tuple[int, int]:
    """(rank, ranks) of torchrun; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def check_args(args) -> None:
    """ValueError with one sentence for values that make no sense."""
    world, samples, parallel = ranks()[1], args.samples, args.tensor_parallel
    seeds_fit = (args.seed + 1) * 1_000_003 * args.n < 2**63
    vllm = args.engine != "vllm" or samples or importlib.util.find_spec("vllm")
    whole = parallel >= 1 and world % parallel == 0
    varied = args.temperature or args.n == 1 or samples
    out = args.out is None or args.out.endswith(".json")
    benchmark = set(data.BENCHMARKS) & {name.strip() for name in args.data.split(",")}
    rows = [  # (is it fine, flag, what is wrong and what to do)
        (args.model or samples, "model", "not given; name a folder or hub name, or --samples FILE"),
        (args.seed >= 0, "seed", "must be at least 0"),
        (seeds_fit, "seed", "is too large for the sampler's seeds; take one below a billion"),
        (0 <= args.temperature < math.inf, "temperature", "must be a number of at least 0"),
        (varied, "n", "with --temperature 0 all are the same; use 1"),
        (0 < args.top_p <= 1, "top_p", "must be above 0 and at most 1"),
        (
            all(args.stop or ()),
            "stop",
            "holds an empty text, which is in every response; leave it out",
        ),
        (
            not samples or not (args.stop or args.stop_token_ids),
            "samples",
            "are cut as they are; leave --stop and --stop_token_ids out",
        ),
        (vllm, "engine", "is not installed; install vLLM or use --engine hf"),
        (0 < args.grader_deadline < math.inf, "grader_deadline", "must be a number above 0"),
        (not samples or world == 1, "samples", "is graded by one process; leave torchrun away"),
        (
            whole,
            "tensor_parallel",
            f"does not divide the {world} ranks; start as many with torchrun",
        ),
        (parallel == 1 or args.engine != "hf", "tensor_parallel", "is for vLLM, not --engine hf"),
        (not samples or Path(samples).is_file(), "samples", "there is no such file"),
        (out, "out", "must end in .json"),
        (
            not args.data_dir or benchmark,
            "data_dir",
            f"is for the benchmarks, of which --data {args.data} has none; leave it out",
        ),
    ]
    for name in ("format", "answer_field"):
        what = "is of our own grading; leave it out with --reward, whose function gets the row"
        rows.append((not (args.reward and getattr(args, name)), name, what))
    for name in ("n", "max_tokens", "limit", "chunk", "workers"):
        value = getattr(args, name)
        rows.append((value is None or value >= 1, name, "must be at least 1"))
    for fine, name, sentence in rows:
        if not fine:
            value = getattr(args, name)
            raise ValueError(f"--{name}{'' if value is None else f' {value}'}: {sentence}.")


def refuse(error: ValueError) -> NoReturn:
    """End with one sentence, on rank 0, and status 2."""
    if ranks()[0] == 0:
        print(f"eval.py: {error}", file=sys.stderr)
    raise SystemExit(2) from None


def load(args) -> tuple:
    """-> tokenizer, context in tokens or None, problems by set name; fills in open flags of `args`.

    Also joins torchrun's process group and makes the model behind --model tiny.
    """
    rank, world = ranks()
    tokenizer = context = None
    args.prompt = args.prompt or ("plain" if args.data == "tiny" else "r1")
    name = re.sub(r"[^\w.-]+", "-", args.samples or args.model).strip("-.")
    args.out = Path(args.out or f"eval-{name}.json")
    if world > 1:
        import torch

        import parallel

        parallel.init_distributed()
        if rank:
            sys.stdout = open(os.devnull, "w")  # rank 0 speaks for all
    data.TRUST["trust_remote_code"] = args.trust_remote_code or False
    if args.model:
        folder = model_folder(args.model)
        args.model = args.model if folder == args.model else os.path.relpath(folder)
        if not args.samples:
            data.check_weights(args.model)
        tokenizer, context = load_tokenizer(args.model)
        if not args.samples:
            data.check_model(args.model, tokenizer, None)
            data.check_stop(tokenizer, args.stop or (), args.stop_token_ids or ())
    sets = load_sets(args, None if args.samples else tokenizer)
    if not args.samples:
        data.check_ids(args.model, [p for problems in sets.values() for p in problems])
    args.format = args.format or data.get_prompt(args.prompt).format
    if not args.samples:
        if args.max_tokens is None:
            args.max_tokens = min(8192, context // 2) if context else 8192
        if context is not None and args.max_tokens >= context:
            raise ValueError(
                f"--max_tokens {args.max_tokens}: the model's whole context is {context} tokens; "
                "give less."
            )
        if args.dtype is None:
            import torch

            args.dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    return tokenizer, context, sets


def load_sets(args, tokenizer) -> dict[str, list[Problem]]:
    """Problems by set name, in the paper's column order; prints what was found."""
    whole = Path(args.data).exists()
    names = [args.data] if whole else [name.strip() for name in args.data.split(",")]
    order = {name: i for i, name in enumerate(data.BENCHMARKS)}
    sets = {}
    for name in sorted(dict.fromkeys(names), key=lambda name: order.get(name, len(order))):
        fields = (args.problem_field, args.answer_field)
        options = (*fields, args.split, args.limit, args.data_dir)
        sets[name], counts = data.load_problems(
            name, tokenizer, args.prompt, None, *options, or_usual=args.or_usual,
            whole_rows=bool(args.reward),
        )  # fmt: skip
        print(f"{name}: {data.describe(counts)}")
    if tokenizer is not None:
        format = args.format or data.get_prompt(args.prompt).format
        first = next(iter(sets.values()))[0]
        print("\n".join(data.show(first, args.prompt, format, tokenizer)))
    return sets


def resolved_config(args, sets: dict[str, list[Problem]]) -> dict:
    """What the results depend on; retrained weights or an edited data file are another config."""
    names = "model data samples n max_tokens temperature top_p seed prompt limit split data_dir"
    names += " engine dtype format stop stop_token_ids"
    config = {name: getattr(args, name) for name in names.split()}
    digest = hashlib.sha256()
    for name, problems in sets.items():
        content = [p[:4] if p.row is None else tuple(p) for p in problems]
        digest.update(repr((name, content)).encode())
    config["problems_sha256"] = digest.hexdigest()[:16]
    weights = sorted(Path(args.model).glob("*.safetensors")) if args.model else []
    config["weights_modified_ns"] = max((file.stat().st_mtime_ns for file in weights), default=None)
    return config


def check_same_config(old: dict, new: dict, out: Path) -> None:
    content = {
        "problems_sha256": "the content of --data or --prompt",
        "reward_sha256": "the file of --reward",
        "weights_modified_ns": "the weights in --model",
    }
    for key, value in new.items():
        if old.get(key) != value:
            what = content.get(key, f"--{key} (there {old.get(key)}, now {value})")
            raise ValueError(
                f"--out {out}: holds an evaluation that differs in {what}; "
                "give another --out or delete it."
            )


def check_out(out: Path, config: dict) -> None:
    """ValueError if nothing can be written there, or if it is another configuration's result, or
    something else."""
    trial = out.with_suffix(".tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink(missing_ok=True)  # the ranks do this side by side
    except OSError as error:
        raise ValueError(
            f"--out {out}: cannot be written there ({error.strerror}); give another --out."
        ) from error
    if out.exists():
        try:
            old = json.loads(out.read_text())["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"--out {out}: exists and is no result of this program; give another --out."
            ) from error
        check_same_config(old, config, out)


def read_partial(out: Path, config: dict) -> list[dict]:
    """Records of a killed run of the same config; a line that the kill has cut is removed."""
    path = out.with_suffix(".samples.jsonl")
    if not path.exists():
        return []
    try:
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        first, *records = [json.loads(line) for line in whole.splitlines()] or [{}]
        old = first["config"] if whole else config
        known = {(r["set"], r["id"]) for r in records}
        if len(known) < len(records) or not whole and not raw.startswith(b'{"config"'[: len(raw)]):
            raise ValueError("not as this program writes it")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--out {out}: {path} beside it is not what this program writes; give another --out."
        ) from error
    check_same_config(old, config, out)
    if len(whole) < len(raw):
        os.truncate(path, len(whole))
    return records


def read_samples(path: str, sets: dict[str, list[Problem]]) -> tuple[dict, dict]:
    """-> responses and "finished" marks of --samples, both by (set name, id).

    A row has "response" or "responses", and "problem" (its text) or "id" (row number in the data;
    with several sets also "set", the set's name). Several rows of one problem add up. A text that
    stands in several places counts in all, unless "set" and "id" name one of them.
    """
    by_text: dict[str, list[tuple]] = {}  # amc holds amc23: a text may be in two sets
    for name, problems in sets.items():
        for p in problems:
            by_text.setdefault(p.problem, []).append((name, p.id))
    texts: dict[tuple, list[str]] = {key: [] for keys in by_text.values() for key in keys}
    finished: dict[tuple, list[bool]] = {key: [] for key in texts}
    unknown = 0
    for number, row in enumerate(data.read_file(Path(path), "--samples"), 1):
        if row.get("config") is not None and row.get("id") is None:
            continue  # the first line of a file that this program wrote
        new = row.get("responses") if row.get("responses") is not None else row.get("response")
        new = [new] if isinstance(new, str) else new
        if not isinstance(new, list) or not all(isinstance(text, str) for text in new):
            raise ValueError(
                f'--samples {path}: row {number} has no text in "response" or "responses".'
            )
        marks = row.get("finished") or []
        names = (row.get("id"), row.get("set"))
        if not isinstance(marks, list) or any(isinstance(name, (list, dict)) for name in names):
            raise ValueError(
                f'--samples {path}: row {number} has a list where "id" or "set" is one value, or '
                'one value where "finished" is a list; mend it, or leave "finished" out.'
            )
        if row.get("problem") is not None:
            keys = by_text.get(str(row["problem"]).strip(), [])
            keys = [key for key in keys if key == names[::-1]] or keys
        elif row.get("id") is not None and (row.get("set") is not None or len(sets) == 1):
            key = (row.get("set") or next(iter(sets)), row["id"])
            keys = [key] if key in texts else []
        else:
            raise ValueError(
                f"--samples {path}: row {number} does not say its problem; "
                'give "problem" (the text) or "id" (the row number in --data, from 0) '
                'and, with several sets, "set".'
            )
        unknown += not keys
        for key in keys:
            texts[key] += new
            finished[key] += marks
    if unknown:
        print(
            f"warning: {unknown} rows of --samples {path} belong to no problem of --data "
            "and are left out"
        )
    missing = [key for key, responses in texts.items() if not responses]
    if missing:
        name, row_id = missing[0]
        raise ValueError(
            f"--samples {path}: {len(missing)} of {len(texts)} problems have no response "
            f"(first: {name} id {row_id}); give one for each (an empty one counts as wrong), "
            "or use --limit."
        )
    return texts, finished


# --- from the command line: the work --------------------------------------------------------------


def run_model(args, sets, tokenizer, context, grader, config: dict, records: list) -> list[dict]:
    """Sample and grade what `records` lacks, chunk by chunk; -> all records, each with its "set".

    The ranks of torchrun share each chunk, and rank 0 writes OUT.samples.jsonl: the file is the
    same with any number of them.
    """
    rank, world = ranks()
    if world > 1:
        import torch

        import parallel
    partial = args.out.with_suffix(".samples.jsonl")
    done = {(record["set"], record["id"]) for record in records}
    pairs = [(name, p) for name, problems in sets.items() for p in problems]
    missing = [(name, p) for name, p in pairs if (name, p.id) not in done]
    if done:
        print(f"{partial} holds {len(done)} problems already: continuing with {len(missing)} more")
    room = math.inf if context is None else context - args.max_tokens
    todo = [(name, p) for name, p in missing if len(p.prompt_ids) <= room]
    too_long = [(name, p) for name, p in missing if len(p.prompt_ids) > room]
    if too_long:
        print(
            f"warning: {len(too_long)} prompts do not fit into the model's context of {context} "
            f"tokens beside --max_tokens {args.max_tokens}: they are not sampled and count as "
            "wrong and truncated"
        )
    if world > 1:
        torch.distributed.barrier()  # all have read the file before rank 0 goes on with it
    quiet = rank > 0 or not missing
    bar = tqdm(total=len(pairs), initial=len(done), unit="problem", disable=quiet)
    with partial.open("a", encoding="utf-8") as file, bar:
        if rank == 0 and file.tell() == 0:
            file.write(json.dumps({"config": config}) + "\n")

        def keep(pairs: list[tuple[str, Problem]], new: list[dict]) -> None:
            for (name, p), record in zip(pairs, new, strict=True):
                records.append(dict(set=name, problem=p.problem, gold=p.gold) | record)
                if rank == 0:
                    file.write(json.dumps(records[-1]) + "\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(new))

        n = args.n
        empty = dict(responses=[""] * n, rewards=[0.0] * n, lengths=[0] * n, finished=[False] * n)
        if not grader.own:
            empty |= dict(answers=[None] * n, answer_right=[False] * n)
        keep(too_long, [{"id": p.id, **empty} for _, p in too_long])
        if not todo:
            return records
        import rollout  # torch and vLLM: not before there is something to sample

        try:
            engine = rollout.make_engine(
                args.engine,
                args.model,
                max_prompt_tokens=max(len(p.prompt_ids) for _, p in todo),
                max_tokens=args.max_tokens,
                dtype=args.dtype,
                gpu_memory=0.9,
                tensor_parallel=args.tensor_parallel,
            )
        except ValueError as error:  # a model that the engine does not run
            refuse(error)
        names = ("n", "temperature", "top_p", "max_tokens", "seed")
        options = {name: getattr(args, name) for name in names}
        options |= dict(stop=args.stop or (), stop_token_ids=args.stop_token_ids or ())
        mine, engines = rank // args.tensor_parallel, world // args.tensor_parallel
        size = args.chunk * engines
        for start in range(0, len(todo), size):
            owners, problems = zip(*todo[start : start + size], strict=True)
            bar.set_description(owners[0])
            own = problems[mine::engines]
            new = sample(engine, tokenizer, own, grader, args.format, **options)
            if world > 1:  # the ranks of an engine all have its samples: one hands them on
                placed = [(mine + i * engines, record) for i, record in enumerate(new)]
                new = parallel.gather_in_order(placed, args.tensor_parallel)
            keep(todo[start : start + size], new)
        engine.close()
    return records


def grade_samples(sets, texts: dict, finished: dict, tokenizer, grader, format: str) -> list[dict]:
    """Records of what `read_samples` found; lengths need --model, for its tokenizer."""
    records = []
    for name, problems in sets.items():
        for record in grade(problems, [texts[name, p.id] for p in problems], grader, format):
            record = {"set": name, **record}
            if len(flags := finished[name, record["id"]]) == len(record["responses"]):
                record["finished"] = flags
            if tokenizer is not None:
                # Half a character (a lone surrogate) of another system is no text for a tokenizer
                texts_of = [x.encode(errors="replace").decode() for x in record["responses"]]
                ids = tokenizer(texts_of, add_special_tokens=False)["input_ids"]
                record["lengths"] = [len(x) for x in ids]
            records.append(record)
    return records


def average(sets: dict[str, dict]) -> dict[str, float]:
    """Plain mean over the sets of what all have; intervals (independent) add in quadrature."""
    rows = list(sets.values())
    shared = [key for key in rows[0] if all(key in m for m in rows)]
    mean = {key: fmean(m[key] for m in rows) for key in shared if key not in ("problems", "n")}
    for key in mean:
        if key.endswith("_ci"):
            mean[key] = math.sqrt(sum(m[key] ** 2 for m in rows)) / len(rows)
    return mean | {"problems": sum(m["problems"] for m in rows)}


def table(sets: dict[str, dict]) -> str:
    """Markdown: a column a set and their average; percent with two decimals, as in the paper."""
    titles = {name: benchmark.title for name, benchmark in data.BENCHMARKS.items()}
    columns = {titles.get(name, name): metrics for name, metrics in sets.items()}
    if len(columns) > 1:
        columns["Avg."] = average(sets)
    numbers = {"problems": "problems", "n": "n", "response_length": "length [tokens]"}
    shares = {"truncation_rate": "truncated [%]", "reflection_rate": "reflection [%]"}
    shares |= {"answer_rate": "answer right [%]", "format_rate": "format right [%]"}
    own = ("reward", "best@")  # any numbers, no shares

    def cell(key: str, value: float) -> str:
        if math.isnan(value) or (key.endswith("_ci") and value == 0):
            return "–"  # one problem, or all went alike, which gives no interval
        if key.startswith(own):
            return f"{value:.4f}"
        return f"{value:.0f}" if key in numbers else f"{100 * value:.2f}"

    rows = [["", *columns]]
    for key in dict.fromkeys(key for metrics in columns.values() for key in metrics):
        name = key if key.startswith(own) else f"{key} [%]"
        name = f"± 95 % of {key[:-3]}" if key.endswith("_ci") else name
        cells = [cell(key, metrics.get(key, math.nan)) for metrics in columns.values()]
        rows.append([(numbers | shares).get(key, name), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append(" | ".join([f"{name:<{widths[0]}}", *padded]))
    rule = "|".join("-" * (w + 1) + ":" if i else "-" * (w + 2) for i, w in enumerate(widths))
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    rank, world = ranks()
    try:
        fill_in(args)
        check_args(args)
        own = reward.look_at(args.reward or "")
        tokenizer, context, sets = load(args)
        config = resolved_config(args, sets)
        if own:
            config |= dict(reward=args.reward, reward_sha256=own["reward"])
        check_out(args.out, config)
        known = read_samples(args.samples, sets) if args.samples else read_partial(args.out, config)
    except ValueError as error:
        refuse(error)
    with reward.Grader(args.workers, args.grader_deadline, own=args.reward or "") as grader:
        if args.samples:
            records = grade_samples(sets, *known, tokenizer, grader, args.format)
        else:
            records = run_model(args, sets, tokenizer, context, grader, config, known)
        if world > 1:
            import torch

            if torch.distributed.is_initialized():  # vLLM's engine has destroyed it
                torch.distributed.destroy_process_group()
        if rank:
            return
        metrics = {
            name: summarize([r for r in records if r["set"] == name], grader) for name in sets
        }
    print("\n" + table(metrics))
    for name, numbers in metrics.items():
        if warning := format_warning(numbers, args.format):
            print(f"\n{name}: {warning}")
    result = {"config": config, "sets": metrics}
    if len(sets) > 1:
        result["average"] = average(metrics)
    partial = args.out.with_suffix(".tmp")
    partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    os.replace(partial, args.out)
    print(f"\nwritten: {args.out}")


if __name__ == "__main__":
    main()
