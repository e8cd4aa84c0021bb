"""Problems, gold answers and prompts: from a row of a data set to the token ids of the question.

A source (`--data`) is `tiny` (the embedded task), a benchmark, a hub name, or a local .json, .jsonl
or .parquet file or a folder of them. Field names are found among the usual ones or given by flag.
Rows are dropped, and always counted, for three reasons: no problem text or no answer, a gold answer
that the grader cannot read, a prompt that is too long. The paper trains on DeepScaleR (about 40k
problems) with prompts of at most 766 tokens, and evaluates on five sets.

[open] The paper does not name its prompt. `r1` is what DeepScaleR does with the same base models:
the model's own chat template, one sentence of instruction after the problem, an opened <think>.

    python data.py --data FILE_OR_HUB_NAME --model DIR   # what would be used: counts, first prompt
    python data.py --check DIR   # grade the benchmarks' golds against themselves and each other
"""

import argparse
import functools
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

import reward
from reward import Gold

SUFFIXES = (".json", ".jsonl", ".parquet")
PROBLEM_FIELDS = ("problem", "question", "prompt", "input")
ANSWER_FIELDS = """
answer final_answer target ground_truth expected_answer reward_model.ground_truth
""".split()
SOLUTION_FIELDS = ("solution", "answer")  # the last \boxed{} counts, or what follows GSM8K's ####


class Problem(NamedTuple):
    id: int  # row number in the source, whatever was dropped
    problem: str
    gold: str | Gold
    prompt_ids: list[int]


class Prompt(NamedTuple):
    template: str  # text with {problem}
    format: str  # how reward.py reads the response: r1 | tags | boxed
    chat: bool = True  # wrap into the tokenizer's chat template; else used raw
    system: str | None = None
    think: bool = False  # the prompt must end with an opened "<think>\n"


PROMPTS = {
    "r1": Prompt(
        "{problem} Let's think step by step and output the final answer within \\boxed{}.",
        "r1",
        think=True,
    ),
    "qwen": Prompt(
        "{problem}",
        "boxed",
        system="Please reason step by step, and put your final answer within \\boxed{}.",
    ),
    "tinyzero": Prompt(
        "A conversation between User and Assistant. The User poses a problem. The Assistant first "
        "reasons about it privately, inside <think> and </think>, and then states only the final "
        "answer, inside <answer> and </answer>.\n"
        "User: {problem}\n"
        "Assistant: I will work through this step by step.\n<think>",
        "tags",
        chat=False,
    ),
    "plain": Prompt("{problem}", "r1"),
}


class Benchmark(NamedTuple):
    title: str  # column heading, as the paper prints it
    hub: str
    split: str
    file: str  # DeepScaleR's, in a local folder; NAME.json, .jsonl or .parquet are found too
    sizes: tuple[int, ...]  # what a complete set holds
    config: str | None = None


BENCHMARKS = {  # in the paper's column order; amc has 2022 and 2023
    "aime24": Benchmark("AIME24", "HuggingFaceH4/aime_2024", "train", "test_aime.json", (30,)),
    "amc23": Benchmark("AMC23", "math-ai/amc23", "test", "test_amc.json", (40,)),
    "amc": Benchmark("AMC", "AI-MO/aimo-validation-amc", "train", "test_amc.json", (83,)),
    "math500": Benchmark("MATH500", "HuggingFaceH4/MATH-500", "test", "test_math.json", (500,)),
    "minerva": Benchmark("Minerva", "math-ai/minervamath", "test", "test_minerva.json", (272,)),
    "olympiadbench": Benchmark(
        "OlympiadBench",
        "Hothan/OlympiadBench",
        "train",
        "test_olympiad_bench.json",
        (674, 675),
        "OE_TO_maths_en_COMP",
    ),
}


# --- prompts --------------------------------------------------------------------------------------


def get_prompt(name: str) -> Prompt:
    """A named prompt, or the text of a file with {problem} in it (used raw, format boxed)."""
    if name in PROMPTS:
        return PROMPTS[name]
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"--prompt {name}: neither one of {', '.join(PROMPTS)} nor a file; give one of these."
        )
    text = path.read_text(encoding="utf-8")
    if "{problem}" not in text:
        raise ValueError(
            f"--prompt {name}: the file does not contain {{problem}}; "
            "put it where the problem goes."
        )
    return Prompt(text, "boxed", chat=False)


def render(problem: str, prompt: Prompt, tokenizer) -> str:
    """The prompt as text, special tokens of the chat template included."""
    text = prompt.template.replace("{problem}", problem)  # no str.format: \boxed{} has braces
    if not prompt.chat:
        return text

    def chat(**said: str) -> str:
        messages = [dict(role=role, content=content) for role, content in said.items()]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    if not prompt.system:
        text = chat(user=text)
    else:
        user = text
        try:
            text = chat(system=prompt.system, user=user)
        except jinja2.TemplateError:  # Gemma's says that there is no such role
            text = ""
        if prompt.system not in text:  # others drop it without a word
            text = chat(user=f"{prompt.system}\n\n{user}")
    if prompt.think:  # the newer R1 tokenizers open <think> themselves
        text = text.rstrip() if text.rstrip().endswith("<think>") else text + "<think>"
        text += "\n"
    return text


def encode(problem: str, prompt: Prompt, tokenizer) -> list[int]:
    """Token ids of the whole prompt, with one beginning-of-sequence token if the model has one."""
    text = render(problem, prompt, tokenizer)
    # A chat template writes its own special tokens; with the tokenizer's the first would be double
    bos = tokenizer.bos_token
    special = not prompt.chat and not (bos and text.startswith(bos))
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    if special and ids[-1:] == [tokenizer.eos_token_id] and not text.endswith(tokenizer.eos_token):
        ids.pop()  # some tokenizers end every text: the response would follow its own end
    return ids


def model_folder(name: str) -> str:
    """--model: a folder or hub name as it is; of "tiny[:SETTING=VALUE,...]" the folder of the base
    model, which is made, by rank 0, if it is not there."""
    if name.split(":")[0] != "tiny":
        return name
    import tiny

    settings = tiny.named(name)
    if os.environ.get("RANK", "0") == "0":
        tiny.make_base_model(settings=settings)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        import torch

        torch.distributed.barrier()
    return tiny.make_base_model(settings=settings, quiet=True)


def load_tokenizer(model: str):
    """(tokenizer, context in tokens or None) of a folder or hub name, without its weights."""
    from transformers import AutoConfig, AutoTokenizer

    local = model.startswith(("/", ".", "~")) or model.count("/") > 1 or Path(model).exists()
    if local and not Path(model, "config.json").is_file():
        raise ValueError(
            f"--model {model}: there is no model folder (with a config.json); "
            "give one, a hub name, or tiny."
        )
    try:
        config, tokenizer = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    except Exception as error:  # transformers raises many kinds; the user needs the sentence
        raise ValueError(
            f"--model {model}: no such folder, nor a hub name within reach ({_reason(error)}); "
            "give one, or tiny."
        ) from error
    return tokenizer, getattr(config.get_text_config(), "max_position_embeddings", None)


@functools.cache
def _model_eos(model: str) -> list[int]:
    """eos by a model's generation_config, or by its config where it has none."""
    from transformers import AutoConfig, GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(model).eos_token_id
    except (OSError, ValueError):
        try:
            eos = GenerationConfig.from_model_config(AutoConfig.from_pretrained(model)).eos_token_id
        except (OSError, ValueError):  # a tokenizer without a model
            eos = None
    return eos if isinstance(eos, list) else [eos]


def stop_tokens(tokenizer) -> list[int]:
    """The tokens that end a response, as vLLM has it: the model's (Llama 3 has three) and the
    tokenizer's."""
    ends = [*_model_eos(getattr(tokenizer, "name_or_path", "")), tokenizer.eos_token_id]
    return [token for token in dict.fromkeys(ends) if token is not None]


def check_model(model: str, tokenizer, tokens: int) -> None:
    """ValueError for a model that cannot be trained here, as its configuration alone tells. tokens:
    the longest prompt and response together."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if not stop_tokens(tokenizer):
        raise ValueError(
            f"--model {model}: no token ends a response, neither by its tokenizer nor by its "
            "generation_config.json; set eos_token_id there"
        )
    config = AutoConfig.from_pretrained(model)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"--model {model}: of the type {config.model_type!r} transformers has no causal "
            "language model; take another"
        )
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    for part in (rope, *(x for x in rope.values() if isinstance(x, dict))):  # by kind of layer
        if part.get("rope_type") not in ("longrope", "dynamic"):
            continue
        usual = getattr(text, "original_max_position_embeddings", text.max_position_embeddings)
        limit = part.get("original_max_position_embeddings") or usual
        if tokens > limit:  # other angles for the whole micro-batch, by its longest row
            raise ValueError(
                f"--max_tokens: with the prompt {tokens} tokens, and beyond {limit} a log-prob of "
                f"{model} depends on the other responses of its batch ({part['rope_type']} "
                "positions); lower --max_prompt_tokens, --max_tokens or --eval_max_tokens"
            )


# --- rows -----------------------------------------------------------------------------------------


def read_file(path: Path, flag: str = "--data") -> list[dict]:
    """Rows of one file. Arrow wants one type a field; where a file mixes them, json reads it."""
    import datasets

    if not path.is_file():
        raise ValueError(
            f"{flag} {path}: there is no such file; give an existing one ({', '.join(SUFFIXES)})."
        )
    parquet = path.suffix == ".parquet"
    # not load_dataset(), which asks the hub first
    read = datasets.Dataset.from_parquet if parquet else datasets.Dataset.from_json
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:  # nothing stale, nothing shared between ranks
            rows = list(read(str(path), cache_dir=cache, keep_in_memory=True))
    except Exception as error:  # its own, arrow's and plain ValueErrors, if the file is unreadable
        if parquet:
            raise ValueError(
                f"{flag} {path}: this is no readable Parquet file ({_reason(error)})."
            ) from error
        rows = _read_json(path, flag)
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"{flag} {path}: expected rows of fields (JSON objects); look at the file."
        )
    return rows


def _read_json(path: Path, flag: str) -> list:
    text = path.read_text(encoding="utf-8")
    try:
        rows = json.loads(text)
        return rows if isinstance(rows, list) else [rows]
    except json.JSONDecodeError:
        pass
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{flag} {path}: neither a JSON list nor JSON lines "
                    f"(line {number}: {error.msg}); mend the file."
                ) from error
    return rows


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def read_hub(name: str, config: str | None = None, split: str = "train") -> list[dict]:
    import datasets

    datasets.disable_progress_bars()
    try:
        return list(datasets.load_dataset(name, config, split=split))
    except Exception as error:  # not found, not reachable, no such split: one sentence for all
        raise ValueError(
            f"--data {name}: no local file or folder, and not to be had from the hub "
            f"({_reason(error)}); give a path, or a hub name that this machine can reach."
        ) from error


def read_benchmark(name: str, data_dir: str | None = None) -> list[dict]:
    """All rows of a benchmark, from `data_dir` or the hub; an incomplete set is an error."""
    bench = BENCHMARKS[name]
    if data_dir is None:
        rows, where = read_hub(bench.hub, bench.config, bench.split), bench.hub
    else:
        if not Path(data_dir).is_dir():
            raise ValueError(f"--data_dir {data_dir}: there is no such folder.")
        tries = [Path(data_dir, file) for file in (*(name + end for end in SUFFIXES), bench.file)]
        where = next((path for path in tries if path.is_file()), None)
        if where is None:
            names = ", ".join(path.name for path in tries)
            raise ValueError(
                f"--data_dir {data_dir}: holds no file for {name}; put one of {names} there."
            )
        rows = read_file(where)
        if name == "amc23" and len(rows) == 83:  # DeepScaleR's file has both years, as links tell
            rows = [row for row in rows if "2023_AMC" in str(row.get("url"))]
    if len(rows) not in bench.sizes:
        sizes = " or ".join(map(str, bench.sizes))
        raise ValueError(
            f"--data {name}: {where} gives {len(rows)} problems where the set has {sizes}; "
            "get the complete set, or give the file itself as --data to use it as it is."
        )
    return rows


def read_rows(source: str, split: str = "train", data_dir: str | None = None) -> list[dict]:
    """Rows of any source; `split` matters for `tiny` and hub names."""
    path = Path(source)
    if source == "tiny":
        import tiny

        return tiny.embedded_problems(split)
    if source in BENCHMARKS:
        return read_benchmark(source, data_dir)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise ValueError(f"--data {source}: the folder holds no {', '.join(SUFFIXES)} file.")
        return [row for file in files for row in read_file(file)]
    if path.is_file() or path.suffix in SUFFIXES or source.startswith(("/", ".", "~")):
        return read_file(path.expanduser())
    if "," in source:
        parts = [read_rows(part.strip(), split, data_dir) for part in source.split(",")]
        return [row for rows in parts for row in rows]
    return read_hub(source, split=split)


# --- fields ---------------------------------------------------------------------------------------


def get_field(row: dict, field: str) -> Any:
    """row["a"]["b"] for the field "a.b"; None where it is absent."""
    if field in row:
        return row[field]
    for name in field.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def find_field(
    rows: list[dict], usual: Iterable[str], given: str | None, flag: str, source: str
) -> str:
    for field in [given] if given else usual:
        if any(get_field(row, field) is not None for row in rows):
            return field
    present = ", ".join(sorted({name for row in rows[:1000] for name in row}))
    missing = f"none of the usual fields ({', '.join(usual)}) is there"
    if given:
        flag, missing = f"{flag} {given}", f"no row has the field {given!r}"
    raise ValueError(f"{flag}: {missing} in {source}; name one of: {present}.")


def get_problem(row: dict, field: str) -> str | None:
    """Problem text; of a list of chat messages it is what the user says last."""
    value = get_field(row, field)
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, dict) and turn.get("role") == "user"]
        value = turns[-1].get("content") if turns else None
    return value.strip() or None if isinstance(value, str) else None


def get_gold(row: dict, field: str) -> str | Gold | None:
    """Gold answer; a list holds alternatives. OlympiadBench adds unit, tolerance, "all of them"."""
    value = get_field(row, field)
    values = value if isinstance(value, (list, tuple)) else [value]
    answers = list(dict.fromkeys(filter(None, (_answer_text(v, field) for v in values))))
    if not answers:
        return None
    unit = str(row.get("unit") or "").strip("$ ")  # "$cm^2$"
    error, multiple = row.get("error"), bool(row.get("is_multiple_answer"))
    if len(answers) == 1 and not (unit or error or multiple):
        return answers[0]
    return Gold(tuple(answers), unit or None, str(error) if error else None, multiple)


def _answer_text(value: Any, field: str) -> str | None:
    if value is None or isinstance(value, (bool, dict)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # AMC's 8178.0: as a decimal it would be graded with a tolerance
    text = str(value).strip()
    if field in SOLUTION_FIELDS:
        if "####" in text:
            text = text.rsplit("####", 1)[1].strip()
        elif field == "solution" or "\\boxed{" in text:
            return reward.extract_answer(text, "boxed")
    return text or None


# --- the whole way --------------------------------------------------------------------------------


def load_problems(
    source: str,
    tokenizer,
    prompt: str = "r1",
    max_prompt_tokens: int | None = 766,
    problem_field: str | None = None,
    answer_field: str | None = None,
    split: str = "train",
    limit: int | None = None,
    data_dir: str | None = None,
) -> tuple[list[Problem], dict[str, int]]:
    """Problems of a source, in its order, with encoded prompts, and what became of its rows.

    `tokenizer` None leaves prompt_ids empty, for grading responses that exist. `limit` stops after
    that many kept problems. counts: rows = no_answer + unparsable + too_long + kept, of those
    looked at. Raises ValueError, one sentence with the flag named, when nothing usable comes out.
    """
    template = get_prompt(prompt)
    if tokenizer is not None and template.chat and not tokenizer.chat_template:
        raise ValueError(
            f"--prompt {prompt}: this model's tokenizer has no chat template; "
            "use --prompt tinyzero or a FILE."
        )
    rows = read_rows(source, split, data_dir)
    if not rows:
        raise ValueError(f"--data {source}: holds no rows; give a source with problems.")
    problem_field = find_field(rows, PROBLEM_FIELDS, problem_field, "--problem_field", source)
    usual = (*ANSWER_FIELDS, "solution")
    answer_field = find_field(rows, usual, answer_field, "--answer_field", source)

    problems: list[Problem] = []
    counts = dict.fromkeys(("rows", "no_answer", "unparsable", "too_long", "kept"), 0)
    parsable: dict[str | Gold, bool] = {}  # golds repeat, and reading one may take a millisecond
    for row_id, row in enumerate(rows):
        if limit is not None and len(problems) == limit:
            break
        counts["rows"] += 1
        text, gold = get_problem(row, problem_field), get_gold(row, answer_field)
        if text is None or gold is None:
            counts["no_answer"] += 1
            continue
        if gold not in parsable:
            parsable[gold] = reward.parsable(gold)
        if not parsable[gold]:
            counts["unparsable"] += 1
            continue
        prompt_ids = [] if tokenizer is None else encode(text, template, tokenizer)
        if max_prompt_tokens is not None and len(prompt_ids) > max_prompt_tokens:
            counts["too_long"] += 1
            continue
        problems.append(Problem(row_id, text, gold, prompt_ids))
    counts["kept"] = len(problems)
    if not problems:
        raise ValueError(
            f"--data {source}: no usable row ({describe(counts)}); "
            f"check --problem_field ({problem_field}), --answer_field ({answer_field}) "
            f"and --max_prompt_tokens ({max_prompt_tokens})."
        )
    return problems, counts


def load_run(cfg) -> tuple:
    """-> model path, tokenizer, training problems, evaluation problems (none without eval_data),
    lines that say what was dropped. ValueError with one sentence when the model or the data cannot
    be had."""
    model_path = model_folder(cfg.model)
    tokenizer, context = load_tokenizer(model_path)
    for name in ("max_tokens", "eval_max_tokens"):
        if context is not None and cfg.max_prompt_tokens + getattr(cfg, name) > context:
            raise ValueError(
                f"--{name} {getattr(cfg, name)}: with --max_prompt_tokens {cfg.max_prompt_tokens} "
                f"that is more than the {context} tokens of context of {cfg.model}; lower one of "
                "them"
            )
    longest = cfg.max_prompt_tokens + max(cfg.max_tokens, cfg.eval_max_tokens)
    check_model(model_path, tokenizer, longest)
    options = dict(prompt=cfg.prompt, max_prompt_tokens=cfg.max_prompt_tokens)
    names = dict(problem_field=cfg.problem_field or None, answer_field=cfg.answer_field or None)
    problems, counts = load_problems(
        cfg.data, tokenizer, split=cfg.split, limit=cfg.limit or None, **options, **names
    )
    lines, eval_problems = [f"train: {describe(counts)}"], []
    eval_data = cfg.eval_data or ("tiny" if cfg.data == "tiny" else "")
    if eval_data:
        eval_problems, counts = load_problems(
            eval_data, tokenizer, split="test", limit=cfg.eval_limit or None, **options
        )
        lines.append(f"eval:  {describe(counts)}")
    return model_path, tokenizer, problems, eval_problems, lines


def describe(counts: dict[str, int]) -> str:
    return (
        f"{counts['kept']} problems of {counts['rows']} rows: "
        f"{counts['no_answer']} without problem or answer, "
        f"{counts['unparsable']} golds unreadable, {counts['too_long']} prompts too long"
    )


def check_golds(data_dir: str | None) -> bool:
    """Grade every gold of the benchmarks, in a box, against itself and against the set's others.

    Prints the golds wrong against themselves (there must be none) and the pairs of different golds
    that match: two ways to write one value, or a false match. Returns whether none was wrong.
    """
    ok = True
    with reward.Grader(workers=2) as grader:

        def split(pairs: list[tuple[str, str | Gold]]) -> tuple[list, list]:
            """The (answer, gold) pairs graded right, and the others."""
            answers = [f"\\boxed{{{answer}}}" for answer, _ in pairs]
            rewards = grader.score(answers, [gold for _, gold in pairs], "boxed").rewards
            graded = list(zip(pairs, rewards, strict=True))
            return [pair for pair, r in graded if r], [pair for pair, r in graded if not r]

        for name in BENCHMARKS:
            problems, counts = load_problems(name, None, data_dir=data_dir)
            golds = list(dict.fromkeys(problem.gold for problem in problems))
            texts = {g: list(g.answers) if isinstance(g, Gold) else [g] for g in golds}
            right, wrong = split([(text, gold) for gold in golds for text in texts[gold]])
            firsts = [texts[gold][0] for gold in golds]
            matches, rest = split([(t, g) for t in firsts for g in golds if t not in texts[g]])
            ok = ok and not wrong and counts["kept"] == counts["rows"]
            own, other = len(right) + len(wrong), len(matches) + len(rest)
            print(
                f"{name}: {describe(counts)}; {len(right)} of {own} golds right against themselves;"
            )
            print(f"    {len(matches)} matches among {other} pairs of different golds")
            for label, pairs in (("WRONG AGAINST ITSELF", wrong), ("match", matches)):
                for text, gold in pairs:
                    gold = tuple(gold) if isinstance(gold, Gold) else gold
                    print(f"    {label}: {text!r} for {gold!r}")
    return ok


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Look at a data source, or check the benchmarks' gold answers."
    )
    flag = parser.add_argument
    flag("--check", metavar="DIR", help="folder with the benchmarks' files, or 'hub'")
    flag("--data", default="tiny", help="tiny, a benchmark, a hub name, a file or a folder")
    flag("--model", help="model whose tokenizer encodes the prompts (folder or hub name)")
    flag("--prompt", default="r1", help=f"{' | '.join(PROMPTS)} | FILE with {{problem}}")
    flag("--max_prompt_tokens", type=int, default=766, help="longer prompts are dropped [tokens]")
    flag("--problem_field", help="name of the field with the problem; found if not given")
    flag("--answer_field", help="name of the field with the gold answer; found if not given")
    flag("--split", default="train")
    args = parser.parse_args()
    try:
        if args.check:
            raise SystemExit(0 if check_golds(None if args.check == "hub" else args.check) else 1)
        tokenizer = load_tokenizer(args.model)[0] if args.model else None
        fields = (args.problem_field, args.answer_field)
        problems, counts = load_problems(
            args.data, tokenizer, args.prompt, args.max_prompt_tokens, *fields, split=args.split
        )
    except ValueError as error:
        print(f"data.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    first = problems[0]
    print(describe(counts))
    print(f"gold: {first.gold!r}")
    print(tokenizer.decode(first.prompt_ids) if tokenizer else first.problem)


if __name__ == "__main__":
    main()
