"""Evaluate a model on math problems: pass@1 as the mean over n samples, pass@k, maj@n, length, reflection, truncation.

The training loop calls `sample` and `summarize`; this file alone is the benchmark runner:

    python eval.py --model DIR_OR_HUB --data tiny --n 16
    python eval.py --model DIR_OR_HUB --data aime24,amc23,math500,minerva,olympiadbench --n 16 [--data_dir DIR]
    python eval.py --samples FILE --data math500            # grade responses that another system produced
    torchrun --nproc_per_node 8 -- eval.py --model ...      # one engine a rank; --tensor_parallel K: one on K ranks

A run writes OUT.json (metrics) and, problem by problem, OUT.samples.jsonl. The same command after a kill continues
there; another configuration with the same OUT is refused. Sampling is temperature 0.6, top-p 0.95, 8192 tokens, as in
DeepScaleR and the paper.

[open] The paper gives no intervals. Here they are 95 %, 1.96 standard errors of the mean over *problems*, so that the
samples of one problem count as the cluster they are: how much another draw of problems of this kind would move the
number. The average over sets is their plain mean, as in the paper.
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
from pathlib import Path
from statistics import fmean, stdev

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tqdm import tqdm

import data
import reward
from data import Problem

# Self-reflection: a response counts if it holds one of these (whole words, any case; "-" also matches a space).
REFLECTION_PHRASES = (
    [
        "wait",
        "hmm",
        "hold on",
        "alternatively",
        "however",
        "on second thought",
        "verify",
        "reconsider",
        "rethink",
    ]
    + [
        "re-check",
        "recheck",
        "double-check",
        "check again",
        "check my",
        "check this",
        "check if",
        "check that",
    ]
    + [
        "let me check",
        "let's check",
        "re-evaluate",
        "reevaluate",
        "re-examine",
        "reexamine",
        "try again",
        "mistake",
    ]
)
_REFLECTION = re.compile(
    r"\b(?:"
    + "|".join(
        re.escape(p).replace(r"\-", "[- ]").replace(r"\ ", r"\s+") for p in REFLECTION_PHRASES
    )
    + r")\b",
    re.IGNORECASE,
)
Z95 = 1.959964  # two-sided 95 % of a normal


# --- estimators --------------------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of the n samples, c of them right, drawn without replacement, hold a right one.

    The unbiased estimator 1 - C(n-c, k) / C(n, k) of Chen et al. 2021 (Codex), arXiv 2107.03374, Eq. 1.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n} c={c} k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def interval(values: list[float]) -> float:
    """Half width of the 95 % interval of the mean of one value a problem; nan for a single problem.

    It is 0, and says nothing, where all problems have the same value: none ever right, or all always.
    """
    return Z95 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def majority(right: int, wrong: list[int]) -> float:
    """maj@n of one problem from the votes for the right answer and for each wrong one; a tie is shared equally."""
    most = max(wrong, default=0)
    if right == 0 or right < most:
        return 0.0
    return 1.0 / (1 + sum(votes == right for votes in wrong))


def reflection_rate(texts: list[str]) -> float:
    """Share of the texts that hold one of REFLECTION_PHRASES."""
    return sum(bool(_REFLECTION.search(text)) for text in texts) / len(texts) if texts else 0.0


def _merge_votes(record: dict, grader) -> list[int]:
    """Votes of each wrong answer, answers that are equal as mathematics counted together."""
    votes = Counter(
        a
        for a, r in zip(record["answers"], record["rewards"], strict=True)
        if a is not None and not r
    )
    right = sum(r > 0 for r in record["rewards"])
    # Only a wrong answer that could outvote the right one matters: most problems need no comparison at all.
    if right == 0 or sum(votes.values()) < right or len(votes) < 2 or max(votes.values()) > right:
        return list(votes.values())
    texts = list(votes)
    pairs = [(a, b) for i, a in enumerate(texts) for b in texts[:i]]
    # Both sides are model text, so this goes through the grader's killable workers too.
    same = grader.score(
        [f"\\boxed{{{a}}}" for a, _ in pairs], [b for _, b in pairs], "boxed"
    ).rewards
    group = {text: text for text in texts}
    for (a, b), equal in zip(pairs, same, strict=True):
        if equal:
            group = {text: group[b] if g == group[a] else g for text, g in group.items()}
    merged: Counter = Counter()
    for text in texts:
        merged[group[text]] += votes[text]
    return list(merged.values())


# --- evaluation --------------------------------------------------------------------------------------------------


def decode(tokenizer, tokens: list[int]) -> str:
    """Text of a response without its final eos. Special tokens are kept: some tokenizers count </think> among them."""
    if tokens and tokens[-1] in (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    ):  # Qwen's second eos is its pad
        tokens = tokens[:-1]
    return tokenizer.decode(tokens, skip_special_tokens=False)


def grade(problems: list[Problem], responses: list[list[str]], grader, format: str) -> list[dict]:
    """One record a problem from its responses: {"id", "responses", "rewards", "answers"}."""
    flat = [text for texts in responses for text in texts]
    golds = [
        problem.gold for problem, texts in zip(problems, responses, strict=True) for _ in texts
    ]
    scores = grader.score(flat, golds, format)
    if scores.kills or scores.unparsable:
        print(
            f"warning: {scores.kills} gradings ran out of time or memory, {scores.unparsable} golds were not readable: "
            "counted as wrong",
            file=sys.stderr,
        )
    records, start = [], 0
    for problem, texts in zip(problems, responses, strict=True):
        span = slice(start, start := start + len(texts))
        records.append(
            {
                "id": problem.id,
                "responses": texts,
                "rewards": scores.rewards[span],
                "answers": scores.answers[span],
            }
        )
        start = span.stop
    return records


def sample(
    engine,
    tokenizer,
    problems: list[Problem],
    grader,
    format: str,
    *,
    n,
    temperature,
    top_p,
    max_tokens,
    seed,
) -> list[dict]:
    """Records of `grade` with "lengths" [tokens] and "finished" of n samples a problem.

    The seed of a problem depends on its id alone, so chunks, their order and a restart do not change its samples.
    """
    seeds = [
        (seed * 1_000_003 + problem.id) * n for problem in problems
    ]  # n apart: sample j uses seed + j
    how = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
    groups = engine.generate([problem.prompt_ids for problem in problems], n, seeds=seeds, **how)
    records = grade(
        problems, [[decode(tokenizer, s.tokens) for s in group] for group in groups], grader, format
    )
    for record, group in zip(records, groups, strict=True):
        record["lengths"] = [len(s.tokens) for s in group]
        record["finished"] = [bool(s.finished) for s in group]
    return records


def summarize(records: list[dict], grader) -> dict[str, float]:
    """Metrics of one set, as fractions (not percent). Lengths and truncation only where the records have them.

    pass@1 is the mean over problems of the mean over samples. pass@k is given for k = 2, 4, 8 … up to the smallest
    number of samples that a problem has.
    """
    counts = [(len(r["rewards"]), sum(x > 0 for x in r["rewards"])) for r in records]
    n = min(count for count, _ in counts)
    rates = [right / count for count, right in counts]
    metrics = {
        "problems": len(records),
        "n": n,
        "pass@1": fmean(rates),
        "pass@1_ci": interval(rates),
    }
    k = 2
    while k <= n:
        values = [pass_at_k(count, right, k) for count, right in counts]
        metrics[f"pass@{k}"], metrics[f"pass@{k}_ci"] = fmean(values), interval(values)
        k *= 2
    if n > 1:
        votes = [
            majority(right, _merge_votes(r, grader))
            for (_, right), r in zip(counts, records, strict=True)
        ]
        metrics[f"maj@{n}"], metrics[f"maj@{n}_ci"] = fmean(votes), interval(votes)
    if all("lengths" in r for r in records):
        metrics["response_length"] = fmean(x for r in records for x in r["lengths"])
    metrics["reflection_rate"] = reflection_rate([text for r in records for text in r["responses"]])
    if all("finished" in r for r in records):
        metrics["truncation_rate"] = fmean(not x for r in records for x in r["finished"])
    return metrics


def evaluate(
    engine,
    tokenizer,
    problems: list[Problem],
    grader,
    format: str,
    *,
    n,
    max_tokens,
    temperature=0.6,
    top_p=0.95,
    seed=0,
) -> tuple[dict[str, float], list[dict]]:
    """Sample n responses a problem, grade them, and return (metrics of `summarize`, records of `sample`)."""
    options = {
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    records = sample(engine, tokenizer, problems, grader, format, **options)
    return summarize(records, grader), records


# --- one set after the other, from the command line -----------------------------------------------------------------


class BadInput(ValueError):
    """One sentence for the user: the flag, its value and what to do."""


def load_sets(args, tokenizer) -> dict[str, list[Problem]]:
    """Problems by set name, in the paper's column order; prints what was found."""
    names = (
        [args.data] if Path(args.data).exists() else [name.strip() for name in args.data.split(",")]
    )
    order = list(data.BENCHMARKS)
    names = sorted(
        dict.fromkeys(names), key=lambda name: order.index(name) if name in order else len(order)
    )
    sets = {}
    for name in names:
        try:
            sets[name], counts = data.load_problems(
                name, tokenizer, args.prompt, None, args.problem_field, args.answer_field,
                split=args.split, limit=args.limit, data_dir=args.data_dir,
            )  # fmt: skip
        except ValueError as error:
            raise BadInput(str(error)) from error
        print(f"{name}: {data.describe(counts)}")
    return sets


def load_tokenizer(model: str):
    """(tokenizer, context length in tokens or None) of a folder or hub name, without its weights."""
    from transformers import AutoConfig, AutoTokenizer

    local = model.startswith(("/", ".", "~")) or model.count("/") > 1 or Path(model).exists()
    if local and not Path(model, "config.json").is_file():
        raise BadInput(
            f"--model {model}: there is no model folder (with a config.json); give one, a hub name, or tiny."
        )
    try:
        config = AutoConfig.from_pretrained(model)
        return AutoTokenizer.from_pretrained(model), getattr(
            config, "max_position_embeddings", None
        )
    except Exception as error:  # transformers raises many kinds; the user needs the sentence
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"--model {model}: no such folder, nor a hub name within reach ({reason[:200]}); give one, or tiny."
        ) from error


def resolved_config(args, sets: dict[str, list[Problem]], format: str) -> dict:
    """What the results depend on. Content counts too: retrained weights or an edited data file are another config."""
    names = "model data samples n max_tokens temperature top_p seed prompt limit split data_dir engine dtype"
    config = {name: getattr(args, name) for name in names.split()} | {"format": format}
    digest = hashlib.sha256()
    for name, problems in sets.items():
        digest.update(
            repr((name, [(p.id, p.problem, p.gold, p.prompt_ids) for p in problems])).encode()
        )
    config["problems_sha256"] = digest.hexdigest()[:16]
    weights = sorted(Path(args.model).glob("*.safetensors")) if args.model else []
    config["weights_modified_ns"] = max((file.stat().st_mtime_ns for file in weights), default=None)
    return config


def check_same_config(old: dict, new: dict, out: Path) -> None:
    where = {
        "problems_sha256": "the content of --data or --prompt",
        "weights_modified_ns": "the weights in --model",
    }
    for key, value in new.items():
        if old.get(key) != value:
            flag = where.get(key, f"--{key} (there {old.get(key)}, now {value})")
            raise BadInput(
                f"--out {out}: holds an evaluation that differs in {flag}; give another --out or delete it."
            )


def read_partial(path: Path, config: dict, out: Path) -> list[dict]:
    """Records of an earlier, killed run of the same config; a last line cut by the kill is removed from the file."""
    if not path.exists():
        return []
    rows, end = [], 0
    with path.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            rows.append(json.loads(line))
            end += len(line)
        file.truncate(end)
    if rows:
        check_same_config(rows[0].get("config", {}), config, out)
    return rows[1:]


def ranks() -> tuple[int, int]:
    """(rank, ranks) of torchrun; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def run_model(
    args, sets, tokenizer, context: int | None, grader, format: str, config: dict, out: Path
) -> list[dict]:
    """Sample and grade what OUT.samples.jsonl does not hold yet, chunk by chunk; all records, each with its "set".
    The ranks of torchrun share each chunk, and rank 0 writes: the file is the same with any number of them."""
    rank, world = ranks()
    if world > 1:
        import torch

        from model import gather_in_order
    partial = out.with_suffix(".samples.jsonl")
    records = read_partial(partial, config, out)
    done = {(record["set"], record["id"]) for record in records}
    missing = [
        (name, p) for name, problems in sets.items() for p in problems if (name, p.id) not in done
    ]
    if done:
        print(
            f"{partial} holds {len(done)} problems already: continuing with the other {len(missing)}"
        )
    room = math.inf if context is None else context - args.max_tokens
    todo = [(name, p) for name, p in missing if len(p.prompt_ids) <= room]
    lost = [(name, p) for name, p in missing if len(p.prompt_ids) > room]
    if lost:
        print(
            f"warning: {len(lost)} prompts do not fit into the model's context of {context} tokens beside "
            f"--max_tokens {args.max_tokens}: they are not sampled and count as wrong and truncated"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    n, quiet = args.n, rank > 0 or not missing
    if world > 1:
        torch.distributed.barrier()  # all have read the file before rank 0 goes on with it
    with (
        partial.open("a", encoding="utf-8") as file,
        tqdm(
            total=len(done) + len(missing), initial=len(done), unit="problem", disable=quiet
        ) as bar,
    ):
        if rank == 0 and file.tell() == 0:
            file.write(json.dumps({"config": config}) + "\n")

        def keep(owners: list[str], new: list[dict]) -> None:
            for name, record in zip(owners, new, strict=True):
                records.append({"set": name, **record})
                if rank == 0:
                    file.write(json.dumps(records[-1]) + "\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(new))

        none = {
            "responses": [""] * n,
            "rewards": [0.0] * n,
            "answers": [None] * n,
            "lengths": [0] * n,
        }
        keep(
            [name for name, _ in lost],
            [{"id": p.id, **none, "finished": [False] * n} for _, p in lost],
        )
        if todo:
            import rollout  # torch and vLLM: not before there is something to sample

            longest = max(len(p.prompt_ids) for _, p in todo)
            limits = {"max_prompt_tokens": longest, "max_tokens": args.max_tokens}
            how = {"dtype": args.dtype, "gpu_memory": 0.9, "tensor_parallel": args.tensor_parallel}
            engine = rollout.make_engine(args.engine, args.model, **limits, **how)
            number, engines = rank // args.tensor_parallel, world // args.tensor_parallel
            options = {
                key: getattr(args, key)
                for key in ("n", "temperature", "top_p", "max_tokens", "seed")
            }
            size = args.chunk * engines
            for start in range(0, len(todo), size):
                owners, problems = zip(*todo[start : start + size], strict=True)
                bar.set_description(owners[0])
                new = sample(
                    engine, tokenizer, problems[number::engines], grader, format, **options
                )
                if (
                    world > 1
                ):  # the ranks of an engine all have its samples: the first hands them on
                    first = rank % args.tensor_parallel == 0
                    new = gather_in_order(
                        [(number + i * engines, r) for i, r in enumerate(new)] if first else []
                    )
                keep(owners, new)
            engine.close()
    return records


def grade_samples(
    args, sets: dict[str, list[Problem]], tokenizer, grader, format: str
) -> list[dict]:
    """Records from --samples. A row has "response" or "responses", and "problem" (its text) or "id" (row number in the
    data; with several sets also "set", the set's name). Several rows of one problem add up. Lengths need --model."""
    by_text: dict[str, list[tuple]] = {}
    for name, problems in sets.items():
        for p in problems:
            by_text.setdefault(p.problem, []).append(
                (name, p.id)
            )  # amc holds amc23: a text may be in two sets
    texts: dict[tuple, list[str]] = {key: [] for keys in by_text.values() for key in keys}
    finished: dict[tuple, list[bool]] = {key: [] for key in texts}
    try:
        rows = data.read_file(Path(args.samples), "--samples")
    except ValueError as error:
        raise BadInput(str(error)) from error
    strangers = 0
    for number, row in enumerate(rows, 1):
        if row.get("config") is not None and row.get("id") is None:
            continue  # the first line of a file that this program wrote
        new = row.get("responses") if row.get("responses") is not None else row.get("response")
        new = [new] if isinstance(new, str) else new
        if not isinstance(new, list) or not all(isinstance(text, str) for text in new):
            raise BadInput(
                f'--samples {args.samples}: row {number} has no text in "response" or "responses".'
            )
        if row.get("problem") is not None:
            keys = by_text.get(str(row["problem"]).strip(), [])
        elif row.get("id") is not None and (row.get("set") is not None or len(sets) == 1):
            keys = [
                key for key in [(row.get("set") or next(iter(sets)), row["id"])] if key in texts
            ]
        else:
            raise BadInput(
                f'--samples {args.samples}: row {number} does not say its problem; give "problem" (the text) or "id" '
                '(the row number in --data, from 0) and, with several sets, "set".'
            )
        strangers += not keys
        for key in keys:
            texts[key] += new
            finished[key] += row.get("finished") or []
    if strangers:
        print(
            f"warning: {strangers} rows of --samples {args.samples} belong to no problem of --data and are left out"
        )
    missing = [key for key, responses in texts.items() if not responses]
    if missing:
        name, row_id = missing[0]
        raise BadInput(
            f"--samples {args.samples}: {len(missing)} of {len(texts)} problems have no response (first: {name} id "
            f"{row_id}); give one for each (an empty one counts as wrong), or use --limit."
        )
    records = []
    for name, problems in sets.items():
        for record in grade(problems, [texts[name, p.id] for p in problems], grader, format):
            record = {"set": name, **record}
            if len(flags := finished[name, record["id"]]) == len(record["responses"]):
                record["finished"] = flags
            if tokenizer is not None:
                ids = tokenizer(record["responses"], add_special_tokens=False)["input_ids"]
                record["lengths"] = [len(x) for x in ids]
            records.append(record)
    return records


def average(sets: dict[str, dict]) -> dict[str, float]:
    """Plain mean over the sets of what all of them have; intervals of independent sets add in quadrature."""
    shared = [
        key for key in next(iter(sets.values())) if all(key in metrics for metrics in sets.values())
    ]
    mean = {
        key: fmean(m[key] for m in sets.values()) for key in shared if key not in ("problems", "n")
    }
    for key in [key for key in mean if key.endswith("_ci")]:
        mean[key] = math.sqrt(sum(m[key] ** 2 for m in sets.values())) / len(sets)
    return mean | {"problems": sum(m["problems"] for m in sets.values())}


def table(sets: dict[str, dict]) -> str:
    """Markdown: one column a set and their average; rates in percent with two decimals, as the paper prints them."""
    columns = {
        data.BENCHMARKS[name].title if name in data.BENCHMARKS else name: m
        for name, m in sets.items()
    }
    if len(columns) > 1:
        columns["Avg."] = average(sets)
    names = {
        "response_length": "length [tokens]",
        "truncation_rate": "truncated",
        "reflection_rate": "reflection",
    }
    rows = [["", *columns]]
    for key in dict.fromkeys(key for metrics in columns.values() for key in metrics):
        values = [m.get(key, math.nan) for m in columns.values()]
        if key in ("problems", "n", "response_length"):
            name, cells = names.get(key, key), [f"{v:.0f}" for v in values]
        elif key.endswith("_ci"):  # 0: all problems went alike, which gives no interval
            name, cells = (
                f"± 95 % of {key[:-3]}",
                [f"{100 * v:.2f}" if v else "nan" for v in values],
            )
        else:
            name, cells = f"{names.get(key, key)} [%]", [f"{100 * v:.2f}" for v in values]
        rows.append([name, *(cell.replace("nan", "–") for cell in cells)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        lines.append(
            " | ".join(
                f"{c:>{w}}" if i else f"{c:<{w}}"
                for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
        )
    rule = "|".join("-" * (w + 1) + ":" if i else "-" * (w + 2) for i, w in enumerate(widths))
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    # fmt: off
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("--model", help="model folder or hub name, or tiny[:SETTING=VALUE,...]: the embedded base model")
    p.add_argument("--data", default="tiny", help=f"tiny | {','.join(data.BENCHMARKS)} | hub name | file | folder (default: tiny)")
    p.add_argument("--data_dir", metavar="DIR", help="folder with the benchmarks' files (default: from the hub)")
    p.add_argument("--samples", metavar="FILE", help="grade these responses, sample nothing: JSON lines with id or problem, and response(s)")
    p.add_argument("--n", type=int, default=16, help="samples a problem (default: %(default)s)")
    p.add_argument("--max_tokens", type=int, help="length limit of a response [tokens] (default: 8192, paper; at most half the model's context)")
    p.add_argument("--temperature", type=float, default=0.6, help="sampling temperature (default: %(default)s, DeepScaleR)")
    p.add_argument("--top_p", type=float, default=0.95, help="nucleus (default: %(default)s, DeepScaleR)")
    p.add_argument("--seed", type=int, default=0, help="of the sampling (default: %(default)s)")
    p.add_argument("--prompt", help=" | ".join(data.PROMPTS) + " | FILE with {problem} (default: r1; for tiny: plain)")
    p.add_argument("--format", choices=("r1", "tags", "boxed"), help="how a response marks its answer (default: the prompt's)")
    p.add_argument("--problem_field", help="field with the problem (default: found)")
    p.add_argument("--answer_field", help="field with the gold answer (default: found)")
    p.add_argument("--split", default="test", help="split of tiny or of a hub set (default: %(default)s)")
    p.add_argument("--limit", type=int, help="only the first problems of each set")
    p.add_argument("--engine", choices=("auto", "vllm", "hf"), default="auto", help="sampler (default: vLLM where installed)")
    p.add_argument("--tensor_parallel", type=int, default=1, help="ranks of torchrun that hold one vLLM engine together (default: %(default)s)")
    p.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: bfloat16 on a GPU, else float32)")
    p.add_argument("--chunk", type=int, default=64, help="problems sampled together, then saved (default: %(default)s)")
    p.add_argument("--workers", type=int, default=2, help="grader processes (default: %(default)s)")
    p.add_argument("--out", metavar="FILE.json", help="results; samples go beside it (default: eval-<model>.json)")
    # fmt: on
    return p.parse_args(argv)


def check_args(args) -> None:
    """Fill in defaults that depend on other flags; BadInput for values that make no sense."""
    if not args.model and not args.samples:
        raise BadInput(
            "--model: not given; name a model folder or hub name, or responses with --samples FILE."
        )
    for flag, low in (
        ("n", 1),
        ("max_tokens", 1),
        ("limit", 1),
        ("chunk", 1),
        ("workers", 1),
        ("seed", 0),
    ):
        value = getattr(args, flag)
        if value is not None and value < low:
            raise BadInput(f"--{flag} {value}: must be at least {low}.")
    if (args.seed + 1) * 1_000_003 * args.n >= 2**63:
        raise BadInput(
            f"--seed {args.seed}: is too large for the sampler's seeds; take one below a billion."
        )
    if args.temperature < 0 or not 0 < args.top_p <= 1:
        raise BadInput(
            f"--temperature {args.temperature} --top_p {args.top_p}: need temperature >= 0 and 0 < top_p <= 1."
        )
    if args.engine == "vllm" and not args.samples and importlib.util.find_spec("vllm") is None:
        raise BadInput("--engine vllm: vLLM is not installed; install it or use --engine hf.")
    world = ranks()[1]
    if args.samples and world > 1:
        raise BadInput(f"--samples {args.samples}: is graded by one process; leave torchrun away.")
    if args.tensor_parallel < 1 or world % args.tensor_parallel:
        raise BadInput(
            f"--tensor_parallel {args.tensor_parallel}: does not divide the {world} ranks; start as many with torchrun."
        )
    if args.tensor_parallel > 1 and args.engine == "hf":
        raise BadInput(
            f"--tensor_parallel {args.tensor_parallel}: is for vLLM; leave it out with --engine hf."
        )
    if args.samples and not Path(args.samples).is_file():
        raise BadInput(f"--samples {args.samples}: there is no such file.")
    if args.prompt is None:
        args.prompt = "plain" if args.data == "tiny" else "r1"
    if args.out is None:
        args.out = (
            "eval-" + re.sub(r"[^\w.-]+", "-", (args.samples or args.model)).strip("-.") + ".json"
        )
    if not args.out.endswith(".json"):
        raise BadInput(f"--out {args.out}: must end in .json.")


def run(args) -> dict:
    check_args(args)
    out, tokenizer, context = Path(args.out), None, None
    rank, world = ranks()
    if world > 1:
        import torch

        import model

        model.init_distributed()
        if rank:
            sys.stdout = open(os.devnull, "w")  # rank 0 speaks for all
    if (args.model or "").split(":")[0] == "tiny":
        import tiny

        try:
            settings = tiny.named(args.model)
        except ValueError as error:
            raise BadInput(str(error)) from None
        if rank == 0:
            tiny.make_base_model(settings=settings)
        if world > 1:
            torch.distributed.barrier()
        args.model = os.path.relpath(tiny.make_base_model(settings=settings, quiet=True))
    if args.model:
        tokenizer, context = load_tokenizer(args.model)
    sets = load_sets(args, None if args.samples else tokenizer)
    format = args.format or data.get_prompt(args.prompt).format
    if not args.samples:
        if args.max_tokens is None:
            args.max_tokens = min(8192, context // 2) if context else 8192
        if context is not None and args.max_tokens >= context:
            raise BadInput(
                f"--max_tokens {args.max_tokens}: the model's whole context is {context} tokens; give less."
            )
        if args.dtype is None:
            import torch

            args.dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    config = resolved_config(args, sets, format)
    if out.exists():
        try:
            old = json.loads(out.read_text())["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"--out {out}: exists and is no result of this program; give another --out."
            ) from error
        check_same_config(old, config, out)
    with reward.Grader(workers=args.workers) as grader:
        if args.samples:
            records = grade_samples(args, sets, tokenizer, grader, format)
        else:
            records = run_model(args, sets, tokenizer, context, grader, format, config, out)
        if world > 1 and torch.distributed.is_initialized():  # vLLM's engine has destroyed it
            torch.distributed.destroy_process_group()
        if rank:
            return {}
        metrics = {
            name: summarize([r for r in records if r["set"] == name], grader) for name in sets
        }
    print("\n" + table(metrics))
    result = {"config": config, "sets": metrics} | (
        {"average": average(metrics)} if len(sets) > 1 else {}
    )
    result = json.loads(json.dumps(result), parse_constant=lambda _: None)  # nan is no JSON
    partial = out.with_suffix(".tmp")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, out)
    print(f"\nwritten: {out}")
    return result


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        run(args)
    except BadInput as error:
        if ranks()[0] == 0:
            print(f"eval.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
