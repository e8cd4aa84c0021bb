"""Problems, gold answers and prompts: from a row of a data set to the token ids of the question.

A source (`--data`) is `tiny` (the embedded task), a benchmark, a hub name (NAME:CONFIG where a set
has several), a .json, .jsonl or .parquet file, a folder of them, or a comma list of these. Of a
folder, the files that are named after the split. Fields are found among the usual ones or given.
Rows are dropped, and always counted, for four reasons: no problem text or no answer, a gold answer
that the grader cannot read, the same problem and answer as before, a prompt that is too long. The
paper trains on DeepScaleR (about 40k problems) with prompts of at most 766 tokens, and evaluates on
five sets.

[open] The paper does not name its prompt. `r1` is what DeepScaleR does with the same base models:
the model's own chat template, one sentence of instruction after the problem, an opened <think>.

    python data.py --data FILE_OR_HUB_NAME --model DIR   # what would be used: counts, first prompt
    python data.py --check DIR   # grade the benchmarks' golds against themselves and each other
"""

import argparse
import ast
import hashlib
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import cache, partial
from itertools import islice
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
SOLUTION_FIELDS = ("solution", "answer")  # what follows GSM8K's #### counts
SPLITS = {  # words in the name of a file or folder -> the split that it belongs to
    word + end: split
    for split, words in dict(
        train="train", test="test", validation="validation valid val dev"
    ).items()
    for word in words.split()
    for end in ("", "ing", "set", "data")
}
METADATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")


# What --trust_remote_code sets, for every from_pretrained. Not None: transformers would ask a user
TRUST = dict(trust_remote_code=False)


class Problem(NamedTuple):
    id: int  # row number in the source, whatever was dropped
    problem: str
    gold: str | Gold
    prompt_ids: list[int]
    row: dict | None = None  # the whole of it, for --reward
    set: str = ""  # its evaluation set, where --eval_data names them


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


def get_prompt(name: str, tokenizer=None) -> Prompt:
    """A named prompt, or the text of a file with {problem} in it (format boxed). The text is what
    the user says, so it goes into the chat template of the tokenizer, if that has one; a file that
    holds the tokenizer's own marks, or ends with an opened <think>, is the whole prompt."""
    if name in PROMPTS:
        return PROMPTS[name]
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(
            f"--prompt {name}: neither one of {', '.join(PROMPTS)} nor a file; give one of these."
        )
    text = read_text(path, "--prompt")
    if "{problem}" not in text:
        raise ValueError(
            f"--prompt {name}: the file does not contain {{problem}}; "
            "put it where the problem goes."
        )
    whole = tokenizer is None or not tokenizer.chat_template or text.rstrip().endswith("<think>")
    if not whole:  # an instruction may well speak of <think>, which is a token of some models
        marks = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
        whole = any(mark in text for mark in marks - {"<think>", "</think>"})
    return Prompt(text, "boxed", chat=not whole)


def render(problem: str, prompt: Prompt, tokenizer) -> str:
    """The prompt as text, special tokens of the chat template included."""
    text = prompt.template.replace("{problem}", problem)  # no str.format: \boxed{} has braces
    if not prompt.chat:
        return text

    def chat(**said: str) -> str:
        messages = [dict(role=role, content=content) for role, content in said.items()]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    user, text = text, ""
    if prompt.system:
        with suppress(jinja2.TemplateError, TypeError):  # Gemma's says that there is no such role
            text = chat(system=prompt.system, user=user)
    if not text or prompt.system not in text:  # others drop it without a word
        text = chat(user=f"{prompt.system}\n\n{user}" if prompt.system else user)
    if prompt.think:  # the newer R1 tokenizers open <think> themselves
        text = text.rstrip() if text.rstrip().endswith("<think>") else text + "<think>"
        text += "\n"
    return text


def check_template(name: str, prompt: Prompt, tokenizer) -> None:
    """ValueError if the tokenizer's chat template cannot say a problem. name: --prompt."""
    fault, probe = "", "What is 17 + 25?"
    if not tokenizer.chat_template:
        fault = "this model's tokenizer has no chat template"
    else:
        try:
            if probe not in render(probe, prompt, tokenizer):  # it wants lists of text and images
                fault = "the chat template of this model's tokenizer leaves the problem out"
        except Exception as error:  # jinja's, and Python's from inside of a template
            fault = f"the chat template of this model's tokenizer fails ({_reason(error)})"
    if fault:
        raise ValueError(f"--prompt {name}: {fault}; use --prompt tinyzero or a FILE.")


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
        return os.path.expanduser(name)
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
    if Path(model, "adapter_config.json").is_file():
        raise ValueError(
            f"--model {model}: is an adapter (adapter_config.json), no whole model; merge it into "
            "its base model first (peft: merge_and_unload, save_pretrained)."
        )
    if local and not Path(model, "config.json").is_file():
        raise ValueError(
            f"--model {model}: there is no model folder (with a config.json); "
            "give one, a hub name, or tiny."
        )
    try:
        config = AutoConfig.from_pretrained(model, **TRUST)
        tokenizer = AutoTokenizer.from_pretrained(model, **TRUST)
    except Exception as error:  # transformers raises many kinds; the user needs the sentence
        what, remedy = "no such folder, nor a hub name within reach", "give one, or tiny"
        if local:
            what, remedy = "its config or tokenizer cannot be read", "mend the folder"
        if "trust_remote_code" in str(error):
            what, remedy = "comes with code of its own", "read it, and add --trust_remote_code"
        raise ValueError(f"--model {model}: {what} ({_reason(error)}); {remedy}.") from error
    return tokenizer, getattr(config.get_text_config(), "max_position_embeddings", None)


@cache
def _model_eos(model: str) -> list[int]:
    """eos by a model's generation_config, or by its config where it has none."""
    from transformers import AutoConfig, GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(model).eos_token_id
    except (OSError, ValueError):
        try:
            config = AutoConfig.from_pretrained(model, **TRUST)
            eos = GenerationConfig.from_model_config(config).eos_token_id
        except (OSError, ValueError):  # a tokenizer without a model
            eos = None
    return eos if isinstance(eos, list) else [eos]


def stop_tokens(tokenizer) -> list[int]:
    """The tokens that end a response, as vLLM has it: the model's (Llama 3 has three) and the
    tokenizer's."""
    ends = [*_model_eos(getattr(tokenizer, "name_or_path", "")), tokenizer.eos_token_id]
    return [token for token in dict.fromkeys(ends) if token is not None]


def check_stop(tokenizer, texts: Sequence[str], ids: Sequence[int]) -> None:
    """ValueError for a --stop or --stop_token_ids that no response could end with."""
    if texts and not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(
            f"--stop {texts[0]}: this model's tokenizer cannot decode token by token (it is not of "
            "the tokenizers library); use --stop_token_ids"
        )
    for token in ids:
        if not 0 <= token < len(tokenizer):
            raise ValueError(
                f"--stop_token_ids {token}: the tokenizer has {len(tokenizer)} tokens; name one"
            )


def check_model(model: str, tokenizer, tokens: int | None) -> None:
    """ValueError for a model that cannot be used here, as its configuration alone tells. tokens:
    the longest prompt and response together; None: it only samples."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(model, **TRUST)
    what, text = f"--model {model}: of the type {config.model_type!r}", config.get_text_config()
    own = TRUST["trust_remote_code"] and getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in own:
        raise ValueError(f"{what} transformers has no causal language model; take another")
    if config.is_encoder_decoder:
        raise ValueError(f"{what}, an encoder with a decoder; take a causal language model")
    saved = (config.architectures or ["ForCausalLM"])[0]
    if saved.endswith(("Classification", "QuestionAnswering", "MultipleChoice", "MaskedLM")):
        raise ValueError(
            f"--model {model}: was saved as {saved}, whose head is not over tokens; take the "
            "language model that it was made from"
        )
    if not any(token < text.vocab_size for token in stop_tokens(tokenizer)):
        raise ValueError(
            f"--model {model}: no token ends a response, neither by its tokenizer nor by its "
            f"generation_config.json (below its vocabulary of {text.vocab_size}); set eos_token_id "
            "there"
        )
    if tokens is None:
        return
    if quantized := getattr(config, "quantization_config", None):
        quantized = quantized if isinstance(quantized, dict) else vars(quantized)
        raise ValueError(
            f"--model {model}: its weights are quantized ({quantized.get('quant_method')}), which "
            "cannot be trained; take the model as it was before"
        )
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


def check_weights(model: str) -> None:
    """ValueError for a local folder whose weights are not there, or not whole: engine and trainer
    would find out much later."""
    folder = Path(model)
    if not folder.is_dir():
        return
    for name in ("model.safetensors", "pytorch_model.bin"):  # in transformers' order
        files, index = [folder / name], folder / f"{name}.index.json"
        if index.is_file() and not files[0].is_file():
            try:
                names = {*json.loads(index.read_text())["weight_map"].values()}
                files = [folder / file for file in names]
            except (ValueError, LookupError, AttributeError) as error:
                raise ValueError(
                    f"--model {model}: {index.name} cannot be read ({_reason(error)}); get it anew."
                ) from error
        elif not files[0].is_file():
            continue
        for file in sorted(files):
            if not file.is_file():
                fault = f"of its weights {file.name} is missing"
            elif file.open("rb").read(20) == b"version https://git-":
                fault = f"{file.name} is a pointer of git-lfs in the place of weights"
            elif name.endswith("safetensors") and not _whole(file):
                fault = f"{file.name} is cut off, or no safetensors file"
            else:
                continue
            raise ValueError(f"--model {model}: {fault}; get it anew.")
        return
    raise ValueError(
        f"--model {model}: the folder holds no weights (model.safetensors, pytorch_model.bin, or "
        "their index); add them."
    )


def _whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its head says."""
    with file.open("rb") as f:
        size = int.from_bytes(f.read(8), "little")
        try:
            head = json.loads(f.read(min(size, 10**8)))
            ends = [entry["data_offsets"][1] for key, entry in head.items() if key[:2] != "__"]
        except (ValueError, LookupError, AttributeError, TypeError):
            return False
    return file.stat().st_size == 8 + size + max(ends, default=0)


def check_ids(model: str, problems: list[Problem]) -> None:
    """ValueError where a prompt has no token, or one that the model has no embedding for: the
    tokenizer got tokens that the model did not, or is of another model."""
    from transformers import AutoConfig

    for p in problems:
        if not p.prompt_ids:
            raise ValueError(
                f"--model {model}: its tokenizer makes no token of the problem {p.problem[:40]!r}; "
                "take the tokenizer that belongs to it."
            )
    most = max(max(p.prompt_ids) for p in problems)
    config = AutoConfig.from_pretrained(model, **TRUST)
    if most >= (size := config.get_text_config().vocab_size):
        raise ValueError(
            f"--model {model}: its tokenizer writes the token {most}, but its vocabulary has "
            f"{size}; take the tokenizer that belongs to it."
        )


# --- rows -----------------------------------------------------------------------------------------


def read_text(path: Path, flag: str) -> str:
    """Text of a file in UTF-8, or in UTF-16 or -32, which its first bytes tell."""
    try:
        raw = path.read_bytes()
        return raw.decode(encoding := json.detect_encoding(raw))
    except UnicodeDecodeError as error:  # no guess at others: Latin-1 would read anything
        raise ValueError(
            f"{flag} {path}: is no {encoding.upper()} text ({_reason(error)}); save it as UTF-8."
        ) from error
    except OSError as error:
        raise ValueError(f"{flag} {path}: cannot be read ({error.strerror}).") from error


def read_file(path: Path, flag: str = "--data") -> list[dict]:
    """Rows of one file, as they stand in it: a date stays text, a number keeps its digits."""
    if not path.is_file():
        raise ValueError(
            f"{flag} {path}: there is no such file; give an existing one ({', '.join(SUFFIXES)})."
        )
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        try:
            rows = parquet.ParquetFile(path).read().to_pylist()
        except Exception as error:  # arrow's own, plain ValueErrors, OSErrors
            raise ValueError(
                f"{flag} {path}: this is no readable Parquet file ({_reason(error)})."
            ) from error
    else:
        rows = _read_json(path, flag)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(
                f"{flag} {path}: expected rows of fields (JSON objects), but row {number} is a "
                f"{type(row).__name__}; look at the file."
            )
    return rows


def _read_json(path: Path, flag: str) -> list:
    text = read_text(path, flag)
    # NaN and Infinity, which are no JSON, are how pandas writes that nothing is there
    load = partial(json.loads, parse_float=Decimal, parse_constant=lambda _: None)
    broken = (ValueError, ArithmeticError, RecursionError)
    try:
        rows = load(text)
        return rows if isinstance(rows, list) else [rows]
    except broken as error:
        reason = f"{_reason(error)}"
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold what splitlines() cuts at
        if line.strip():
            try:
                rows.append(load(line))
            except broken as error:
                if not text.lstrip().startswith("["):
                    reason = f"line {number}: {_reason(error)}"
                raise ValueError(
                    f"{flag} {path}: neither a JSON list nor JSON lines ({reason}); mend the file, "
                    "or give Parquet."
                ) from error
    return rows


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_hub(name: str, config: str | None, split: str, flag: str) -> list[dict]:
    import datasets

    datasets.disable_progress_bars()
    try:
        return list(datasets.load_dataset(name, config, split=split))
    except Exception as error:  # not found, not reachable, no such split: one sentence for all
        raise ValueError(
            f"{flag} {name}: no local file or folder, and not to be had from the hub, split "
            f"{split} ({_reason(error)}); give a path, a hub name that this machine can reach, or "
            "NAME:CONFIG where the set has several."
        ) from error


def read_benchmark(name: str, data_dir: str | None = None, flag: str = "--data") -> list[dict]:
    """All rows of a benchmark, from `data_dir` or the hub; an incomplete set is an error."""
    bench = BENCHMARKS[name]
    if data_dir is None:
        rows, where = read_hub(bench.hub, bench.config, bench.split, flag), bench.hub
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
        rows = read_file(where, "--data_dir")
        if name == "amc23" and len(rows) == 83:  # DeepScaleR's file has both years, as links tell
            rows = [row for row in rows if "2023_AMC" in str(row.get("url"))]
    if len(rows) not in bench.sizes:
        sizes = " or ".join(map(str, bench.sizes))
        raise ValueError(
            f"{flag} {name}: {where} gives {len(rows)} problems where the set has {sizes}; "
            f"get the complete set, or give the file itself as {flag} to use it as it is."
        )
    return rows


def split_files(folder: Path, split: str, flag: str) -> list[Path]:
    """The files of a folder, or of one in it, that are named after the split; of a folder where no
    name says a split, all. Never train and test files together."""

    def words(text: str) -> set[str]:
        return {SPLITS.get(word, word) for word in re.findall("[a-z]+", text.lower())}

    found: dict[Path, set[str]] = {}  # file -> words of its path in the folder
    for file in sorted(file for depth in ("*", "*/*", "*/*/*") for file in folder.glob(depth)):
        inside = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)  # macOS's ._train.jsonl, .cache
        if file.suffix.lower() in SUFFIXES and not hidden and file.name not in METADATA:
            found[file] = words(str(inside.with_suffix("")))
    if not found:
        raise ValueError(f"{flag} {folder}: the folder holds no {', '.join(SUFFIXES)} file.")
    asked = words(split) if re.fullmatch(r"[\w.-]+", split) else set()  # no slice, train[:9]
    marked = [file for file, said in found.items() if said & {*SPLITS.values(), *asked}]
    files = [file for file in marked if asked and asked <= found[file]] if marked else list(found)
    top = [file for file in files if file.parent == folder]
    folders = dict.fromkeys(file.parent.relative_to(folder) for file in top or files)
    if len(folders) == 1:
        return top or files
    names = ", ".join(map(str, folders or [file.relative_to(folder) for file in marked][:5]))
    raise ValueError(
        f"{flag} {folder}: has files in several folders ({names}); give one of these."
        if folders
        else f"{flag} {folder}: no file is named after the split {split} ({names}); "
        "give another --split, or the file itself."
    )


def read_saved(folder: Path, split: str, flag: str) -> list[dict]:
    """Rows of what `save_to_disk` of the package datasets has written."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
        return list(saved[split] if isinstance(saved, datasets.DatasetDict) else saved)
    except Exception as error:
        raise ValueError(
            f"{flag} {folder}: is a folder of save_to_disk, whose split {split} cannot be read "
            f"({_reason(error)}); give another --split, or save it anew."
        ) from error


def read_source(
    source: str, split: str = "train", data_dir: str | None = None, flag: str = "--data"
) -> Iterator[tuple[str, list[dict]]]:
    """(name, rows) of each part of a source: of a comma list, of the files of a folder."""
    name, _, config = source.rpartition(":")
    path = Path(source).expanduser()
    if name and Path(name).is_dir():
        path = Path(name, config)
    if not source.strip():
        raise ValueError(f"{flag} {source!r}: a name is empty; give one, and no comma at an end.")
    if source == "tiny":
        import tiny

        if split not in ("train", "test"):
            raise ValueError(f"--split {split}: tiny has train and test; give one of these.")
        yield source, tiny.embedded_problems(split)
    elif source in BENCHMARKS:
        yield source, read_benchmark(source, data_dir, flag)
    elif path.is_dir() and any((path / file).is_file() for file in ("state.json", METADATA[0])):
        yield source, read_saved(path, split, flag)
    elif path.is_dir():
        for file in split_files(path, split, flag):
            yield str(file), read_file(file, flag)
    elif "," in source and not path.exists():
        for part in source.split(","):
            yield from read_source(part.strip(), split, data_dir, flag)
    elif path.exists() or path.suffix.lower() in SUFFIXES or source.startswith(("/", ".", "~")):
        yield source, read_file(path, flag)
    else:
        yield source, read_hub(name or source, config if name else None, split, flag)


# --- fields ---------------------------------------------------------------------------------------


def get_field(row: dict, field: str) -> Any:
    """row["a"]["b"] for the field "a.b"; None where it is absent."""
    if field in row:
        return row[field]
    for name in field.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def find_field(
    rows: list[dict],
    usual: Iterable[str],
    given: str | None,
    flag: str,
    source: str,
    or_usual: bool = False,
) -> str:
    """The field that is given; without one, or if no row has it and `or_usual`, the first usual."""
    for field in [given] * bool(given) + [*usual] * (or_usual or not given):
        if any(get_field(row, field) is not None for row in rows):
            return field
    present = ", ".join(sorted({name for row in rows[:1000] for name in row}))
    missing = f"none of the usual fields ({', '.join(usual)}) is there"
    if given:
        flag, missing = f"{flag} {given}", f"no row has the field {given!r}"
    raise ValueError(f"{flag}: {missing} in {source}; name one of: {present}.")


def get_problem(row: dict, field: str) -> str | None:
    """Problem text; of a list of chat messages it is what the user says. ValueError where he speaks
    twice: what was said before would be lost."""
    value = get_field(row, field)
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, dict) and turn.get("role") == "user"]
        if len(turns) > 1:
            raise ValueError(
                f"--problem_field {field}: a row holds a conversation, in which the user speaks "
                f"{len(turns)} times; give a field with the problem alone, and examples as a "
                "--prompt FILE"
            )
        value = turns[0].get("content") if turns else None
    return _text(value) if isinstance(value, (str, bytes)) else None


def get_gold(row: dict, field: str) -> str | Gold | None:
    """Gold answer; a list holds alternatives. OlympiadBench adds unit, tolerance, "all of them"."""
    values = _flat(get_field(row, field))
    answers = list(dict.fromkeys(filter(None, (_answer_text(v, field) for v in values))))
    if not answers:
        return None
    unit = error = None
    multiple = bool(row.get("is_multiple_answer"))
    if "is_multiple_answer" in row:  # elsewhere "unit" may be a chapter, and no answer has that
        unit = str(row.get("unit") or "").strip("$ ") or None  # "$cm^2$"
    if re.fullmatch(r"[\d.]+(e-?\d+)?", str(row.get("error"))):  # nor is every "error" a tolerance
        error = str(row["error"])
    if len(answers) == 1 and not (unit or error or multiple):
        return answers[0]
    return Gold(tuple(answers), unit, error, multiple)


def _text(value: Any) -> str | None:
    """Stripped text; None if it is empty, or has half a character (a lone surrogate), which no
    tokenizer takes."""
    text = (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip()
    return None if not text or re.search("[\ud800-\udfff]", text) else text


def _flat(value: Any) -> Iterator[Any]:
    """The values of a list; also of one of strings that is written as text: ["17"], ['17']."""
    if isinstance(value, str) and re.fullmatch(r"""\s*\[\s*["'].*["']\s*\]\s*""", value, re.S):
        # LaTeX may stand in it with single backslashes, where JSON has a form feed for \f
        for text in (value, value.replace("\\", "\\\\")):
            for read in (json.loads, ast.literal_eval):
                try:
                    with warnings.catch_warnings(action="ignore"):  # of \s and the like in Python
                        new = read(text.strip())
                except (ValueError, SyntaxError, RecursionError, MemoryError):
                    continue
                if all(isinstance(item, str) and item.isprintable() for item in new):
                    yield from new
                    return
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def plain(value: Any) -> Any:
    """A row as a JSON reader gives it: floats where `read_file` has kept all digits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value


def _answer_text(value: Any, field: str) -> str | None:
    if value is None or isinstance(value, dict):
        return None
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (float, Decimal)):
        # AMC's 8178.0: as a decimal it would be graded with a tolerance. Beyond 2^53 a float has
        # lost digits, and wants one; a Decimal has all of the file's
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        elif isinstance(value, Decimal) and abs(value.adjusted()) < reward.MAX_CHARS:
            value = re.sub(r"\.0+$", "", f"{value:f}")
    text = _text(value)
    if text and field in SOLUTION_FIELDS and "####" in text:
        return text.rsplit("####", 1)[1].strip() or None
    if text and (field == "solution" or "\\boxed{" in text):
        return reward.extract_answer(text, "boxed")
    return text


# --- the whole way --------------------------------------------------------------------------------


def together(work: Callable[[], list]) -> list:
    """work(), whose ValueError on one rank of torchrun is one on all: none waits for it."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return work()
    import parallel

    return parallel.on_every_rank(work)


def encode_all(texts: list[str], prompt: Prompt, tokenizer, source: str) -> list[list[int]]:
    """`encode` of each text. The ranks share the work, which takes one of them minutes where there
    are a hundred thousand texts."""
    if tokenizer is None:
        return [[] for _ in texts]
    world, rank = (int(os.environ.get(name, d)) for name, d in (("WORLD_SIZE", 1), ("RANK", 0)))
    mine = [encode(text, prompt, tokenizer) for text in texts[rank::world]]
    if world == 1:
        return mine
    import parallel

    if len(set(parallel.gather([hashlib.sha256(repr(texts).encode()).hexdigest()]))) > 1:
        raise ValueError(f"{source}: is not the same on every node; copy it there anew.")
    return parallel.gather_in_order(list(zip(range(rank, len(texts), world), mine, strict=True)))


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
    flag: str = "--data",
    or_usual: bool = False,
    keep_duplicates: bool = False,
    whole_rows: bool = False,
) -> tuple[list[Problem], dict[str, int]]:
    """Problems of a source, in its order, with encoded prompts, and what became of its rows.

    `tokenizer` None leaves prompt_ids empty, for grading responses that exist. `limit` stops after
    that many kept problems. `flag` is what named the source. `or_usual`: where the given fields are
    absent, the usual ones do. counts: rows = no_answer + unparsable + duplicates + too_long + kept,
    of those looked at. A benchmark keeps its duplicates: it is a set of so many. So does any source
    with keep_duplicates. `whole_rows`, for --reward: a problem carries its row, which needs no
    answer; duplicates are whole rows that are the same. Raises ValueError, one sentence with the
    flag named, when nothing usable comes out.
    """
    template = get_prompt(prompt, tokenizer)
    if tokenizer is not None and template.chat:
        check_template(prompt, template, tokenizer)
    names = ("rows", "no_answer", "unparsable", "duplicates", "too_long", "kept")
    counts = dict.fromkeys(names, 0)
    fields: dict[str, str] = {}

    def usable() -> Iterator[tuple[int, str, str | Gold, dict | None]]:
        """(row number, text, gold, row) of the rows that a prompt is made for."""
        parsable: dict[str | Gold, bool] = {}  # golds repeat, and reading one takes a millisecond
        seen: set[tuple] = set()
        for part, rows in read_source(source, split, data_dir, flag):
            if not rows:
                raise ValueError(f"{flag} {part}: holds no rows; give a source with problems.")
            for kind, usual, given in (
                ("problem", PROBLEM_FIELDS, problem_field),
                ("answer", (*ANSWER_FIELDS, "solution"), answer_field),
            )[: 1 if whole_rows else 2]:
                fields[kind] = find_field(rows, usual, given, f"--{kind}_field", part, or_usual)
            for row in rows:
                counts["rows"] += 1
                text, gold = get_problem(row, fields["problem"]), ""
                if not whole_rows:
                    gold = get_gold(row, fields["answer"])
                if gold and gold not in parsable:
                    parsable[gold] = reward.parsable(gold)
                same = (text, hash(repr(row)) if whole_rows else gold)
                if text is None or gold is None:
                    counts["no_answer"] += 1
                elif gold and not parsable[gold]:
                    counts["unparsable"] += 1
                elif same in seen and part not in BENCHMARKS and not keep_duplicates:
                    counts["duplicates"] += 1
                else:
                    seen.add(same)
                    yield counts["rows"] - 1, text, gold, plain(row) if whole_rows else None

    rows, problems = usable(), []
    integers: dict[int, int] = {}  # one object a token id, or a prompt of 200 tokens has 7 kB
    while new := together(lambda: list(islice(rows, limit and limit - len(problems)))):
        texts = [text for _, text, *_ in new]
        prompts = encode_all(texts, template, tokenizer, f"{flag} {source}")
        for (*said, row), prompt_ids in zip(new, prompts, strict=True):
            if max_prompt_tokens is not None and len(prompt_ids) > max_prompt_tokens:
                counts["too_long"] += 1
            else:
                ids = [integers.setdefault(i, i) for i in prompt_ids]
                problems.append(Problem(*said, ids, row))
    counts["kept"] = len(problems)
    if not problems:
        names = ", ".join(f"--{kind}_field ({field})" for kind, field in fields.items())
        raise ValueError(
            f"{flag} {source}: no usable row ({describe(counts)}); "
            f"check {names} and --max_prompt_tokens ({max_prompt_tokens})."
        )
    return problems, counts


def named_sets(source: str) -> dict[str, str]:
    """name -> source of each set of a comma list. The name is the last part of a path, without the
    suffix of a file; the whole source where two sets would share it."""
    whole = Path(source).expanduser().exists()
    sources = [source] if whole else list(dict.fromkeys(map(str.strip, source.split(","))))
    last = [part.rstrip("/").rpartition("/")[2] for part in sources]
    last = [Path(name).stem if name.endswith(SUFFIXES) else name for name in last]
    pairs = zip(sources, last, strict=True)
    return {part if last.count(name) > 1 else name: part for part, name in pairs}


def load_run(cfg) -> tuple:
    """-> model path, tokenizer, training problems, evaluation problems (none without eval_data),
    lines that say what was dropped. ValueError with one sentence when the model or the data cannot
    be had."""
    if cfg.model.partition(":")[0] == "tiny":  # may take minutes to make: look at the data first
        for flag, split in dict(data=cfg.split, eval_data="test").items():
            source = getattr(cfg, flag)
            next(read_source(source, split, flag=f"--{flag}") if source else iter([0]))
        get_prompt(cfg.prompt, None)
    TRUST["trust_remote_code"] = cfg.trust_remote_code
    model_path = model_folder(cfg.model)
    tokenizer, context = load_tokenizer(model_path)
    check_weights(model_path)
    for name in ("max_tokens", "eval_max_tokens"):
        if context is not None and cfg.max_prompt_tokens + getattr(cfg, name) > context:
            raise ValueError(
                f"--{name} {getattr(cfg, name)}: with --max_prompt_tokens {cfg.max_prompt_tokens} "
                f"that is more than the {context} tokens of context of {cfg.model}; lower one of "
                "them"
            )
    longest = cfg.max_prompt_tokens + max(cfg.max_tokens, cfg.eval_max_tokens)
    check_model(model_path, tokenizer, longest)
    if cfg.skipped_layers:
        from siblings import check_layers  # which needs this module

        check_layers(model_path, cfg.skipped_layers)
    check_stop(tokenizer, cfg.stop, cfg.stop_token_ids)
    options = dict(
        prompt=cfg.prompt, max_prompt_tokens=cfg.max_prompt_tokens,
        problem_field=cfg.problem_field or None, answer_field=cfg.answer_field or None,
        whole_rows=bool(cfg.reward),
    )  # fmt: skip
    problems, counts = load_problems(
        cfg.data, tokenizer, split=cfg.split, limit=cfg.limit or None,
        keep_duplicates=cfg.keep_duplicates, **options,
    )  # fmt: skip
    lines, eval_problems = [f"train: {describe(counts)}"], []
    eval_data = cfg.eval_data or ("tiny" if cfg.data == "tiny" else "")
    if eval_data:
        # Fields that are named for one's own data need not be those of a benchmark
        options |= dict(flag="--eval_data", or_usual=True)
        rows = 0  # of the sets before: an id is of all of them, and so is the seed of its samples
        for name, source in named_sets(eval_data).items():
            new, counts = load_problems(
                source, tokenizer, split="test", limit=cfg.eval_limit or None, **options
            )
            eval_problems += [p._replace(id=rows + p.id, set=name) for p in new]
            rows += counts["rows"]
            lines.append(f"eval:  {name}: {describe(counts)}")
    check_ids(model_path, problems + eval_problems)
    lines += show(problems[0], cfg.prompt, cfg.format, tokenizer)
    return model_path, tokenizer, problems, eval_problems, lines


def show(problem: Problem, prompt: str, format: str, tokenizer) -> list[str]:
    """What the model is given and what it must answer: a wrong prompt trains without a word."""
    text = tokenizer.decode(problem.prompt_ids)
    if problem.row is not None:
        right = f"the reward is of the response and this row: {str(problem.row)[:200]}"
    else:
        right = f"a right response ({format}): {reward.FORMATS[format]}; here {problem.gold!r}"
    head = f"--- the first prompt ({prompt}), special tokens included ---"
    return [head, text, f"--- {right} ---"]


def describe(counts: dict[str, int]) -> str:
    return (
        f"{counts['kept']} problems of {counts['rows']} rows: "
        f"{counts['no_answer']} without problem or answer, "
        f"{counts['unparsable']} golds unreadable, {counts['duplicates']} duplicates, "
        f"{counts['too_long']} prompts too long"
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
    sources = "tiny, a benchmark, a hub name or NAME:CONFIG, a file, a folder, or a comma list"
    flag("--data", default="tiny", help=sources)
    flag("--model", help="model whose tokenizer encodes the prompts (folder or hub name)")
    flag("--prompt", default="r1", help=f"{' | '.join(PROMPTS)} | FILE with {{problem}}")
    flag("--max_prompt_tokens", type=int, default=766, help="longer prompts are dropped [tokens]")
    flag("--problem_field", help="name of the field with the problem; found if not given")
    flag("--answer_field", help="name of the field with the gold answer; found if not given")
    flag("--split", default="train")
    trust = "let code run that comes with the model"
    flag("--trust_remote_code", action="store_true", help=trust)
    args = parser.parse_args()
    TRUST["trust_remote_code"] = args.trust_remote_code
    try:
        if args.check:
            if args.check != "hub" and not Path(args.check).is_dir():
                raise ValueError(
                    f"--check {args.check}: there is no such folder; give one, or hub."
                )
            raise SystemExit(0 if check_golds(None if args.check == "hub" else args.check) else 1)
        tokenizer = load_tokenizer(args.model)[0] if args.model else None
        fields = (args.problem_field, args.answer_field)
        problems, counts = load_problems(
            args.data, tokenizer, args.prompt, args.max_prompt_tokens, *fields, split=args.split
        )
    except ValueError as error:
        print(f"data.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(describe(counts))
    if tokenizer:
        print("\n".join(show(problems[0], args.prompt, get_prompt(args.prompt).format, tokenizer)))
    else:
        print(f"gold: {problems[0].gold!r}\n{problems[0].problem}")


if __name__ == "__main__":
    main()
