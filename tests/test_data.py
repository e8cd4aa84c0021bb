"""data.py: fields, golds, drops, prompts, benchmarks, on small files shaped like the real ones."""

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import data
from data import PROMPTS, encode, get_prompt, load_problems, render
from reward import Gold

R1_TEMPLATE = (  # what DeepSeek-R1-Distill's template does with a system and a user turn
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% else %}<User>{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<Assistant>OPENED{% endif %}"
)


def make_tokenizer(opened: str = "<think>\n", chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte; puts <bos> in front unless told otherwise, as DeepSeek's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<bos>", "<eos>"])
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", len(alphabet))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>")
    if chat:
        tokenizer.chat_template = R1_TEMPLATE.replace("OPENED", opened)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def write(path: Path, rows: list, lines: bool = False) -> str:
    text = "\n".join(json.dumps(row) for row in rows) if lines else json.dumps(rows)
    path.write_text(text)
    return str(path)


def counted(**numbers: int) -> dict[str, int]:
    names = ("rows", "no_answer", "unparsable", "duplicates", "too_long", "kept")
    return dict.fromkeys(names, 0) | numbers


def refused(source, **options) -> str:
    """The sentence that a source is refused with."""
    with pytest.raises(ValueError) as caught:
        load_problems(str(source), None, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- prompts ---


@pytest.mark.parametrize("opened", ["", "<think>", "<think>\n", "<think>\n\n"])
def test_r1_prompt_opens_think_exactly_once(opened):
    text = render("What is 1+1?", PROMPTS["r1"], make_tokenizer(opened))
    user = "What is 1+1? Let's think step by step and output the final answer within \\boxed{}."
    assert text == f"<bos><User>{user}<Assistant><think>\n"


@pytest.mark.parametrize("name", ["r1", "qwen", "tinyzero", "plain"])
def test_every_prompt_has_one_bos_and_the_problem_verbatim(name, tokenizer):
    problem = "Let $f(x) = \\frac{x}{2}$ and {y}; <bos> excepted"
    problem = problem.replace("<bos> ", "")
    ids = encode(problem, PROMPTS[name], tokenizer)
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert problem in tokenizer.decode(ids)
    assert all(isinstance(i, int) for i in ids)


def test_prompt_formats_and_roles(tokenizer):
    formats = {"r1": "r1", "qwen": "boxed", "tinyzero": "tags", "plain": "r1"}
    assert {name: p.format for name, p in PROMPTS.items()} == formats
    qwen = render("P", PROMPTS["qwen"], tokenizer)
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    assert qwen.startswith(f"<bos>{system}<User>P")
    assert render("P", PROMPTS["plain"], tokenizer) == "<bos><User>P<Assistant><think>\n"
    raw = render("P", PROMPTS["tinyzero"], tokenizer)
    assert "<Assistant>" not in raw and "<answer>" in raw and raw.endswith("\n<think>")


def test_prompt_file_needs_the_placeholder(tmp_path, tokenizer):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("Q: {problem} in {braces}\nA:")
    bad.write_text("Q: A:")
    assert get_prompt(str(good)).format == "boxed"
    with pytest.raises(ValueError, match=r"--prompt .*bad.txt.*\{problem\}"):
        get_prompt(str(bad))
    with pytest.raises(ValueError, match="--prompt nosuch"):
        get_prompt("nosuch")
    bad.write_bytes(b"\xe9 {problem}")
    with pytest.raises(ValueError, match="--prompt .*bad.txt: is no UTF-8 text"):
        get_prompt(str(bad))


@pytest.mark.parametrize(
    "text, chat, whole",
    [
        ("Q: {problem} in {braces}", True, "<bos><User>Q: 2+2 in {braces}<Assistant><think>\n"),
        ("Q: {problem}", False, "<bos>Q: 2+2"),  # no chat template to go into
        ("<bos>Q: {problem}", True, "<bos>Q: 2+2"),
        ("Q: {problem}<User>", True, "<bos>Q: 2+2<User>"),  # an added token that is not special
        ("Q: {problem} <think>\n", True, "<bos>Q: 2+2 <think>\n"),
        ("Use <think>. {problem}", True, "<bos><User>Use <think>. 2+2<Assistant><think>\n"),
    ],
)
def test_friction9_a_prompt_file_goes_into_the_chat_template(tmp_path, text, chat, whole):
    tokenizer = make_tokenizer(chat=chat)
    tokenizer.add_tokens(["<User>", "<think>", "</think>"])
    (tmp_path / "p.txt").write_text(text)
    prompt = get_prompt(str(tmp_path / "p.txt"), tokenizer)
    assert tokenizer.decode(encode("2+2", prompt, tokenizer)) == whole


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_D8_a_prompt_file_loses_its_byte_order_mark(tmp_path, encoding):
    (tmp_path / "p.txt").write_bytes("Größe: {problem}".encode(encoding))
    assert get_prompt(str(tmp_path / "p.txt")).template == "Größe: {problem}"


def test_a_tokenizer_without_chat_template_is_refused_by_name(tmp_path):
    source = write(tmp_path / "a.json", [{"problem": "1+1", "answer": "2"}])
    with pytest.raises(ValueError, match="--prompt r1.*chat template"):
        load_problems(source, make_tokenizer(chat=False))
    problems, _ = load_problems(source, make_tokenizer(chat=False), "tinyzero")
    assert len(problems) == 1


# --- rows, fields, golds ---


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "fields", [("problem", "answer"), ("question", "final_answer"), ("prompt", "target")]
)
def test_formats_and_usual_fields(tmp_path, tokenizer, kind, fields):
    rows = [{fields[0]: f"{i} + 1", fields[1]: str(i + 1), "level": i} for i in range(3)]
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(str(path))
    else:
        write(path, rows, lines=kind == "jsonl")
    problems, counts = load_problems(str(path), tokenizer)
    found = [(p.id, p.problem, p.gold) for p in problems]
    assert found == [(i, f"{i} + 1", str(i + 1)) for i in range(3)]
    assert counts == counted(rows=3, kept=3)
    assert tokenizer.decode(problems[2].prompt_ids).startswith("<bos><User>2 + 1 Let's")


@pytest.mark.parametrize("lines", [False, True])
def test_mixed_types_that_arrow_refuses_still_load(tmp_path, tokenizer, lines):
    rows = [
        {"problem": "a", "answer": "x"},
        {"problem": "b", "answer": 3},
        {"problem": "c", "answer": ["4", "5"]},
    ]
    problems, _ = load_problems(write(tmp_path / "m.json", rows, lines), tokenizer)
    assert [p.gold for p in problems] == ["x", "3", Gold(("4", "5"))]


def test_named_fields_nested_fields_and_chat_messages(tmp_path, tokenizer):
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1"}]
    row = {"prompt": chat, "reward_model": {"ground_truth": "2"}, "other": "7"}
    source = write(tmp_path / "v.json", [row])
    problems, _ = load_problems(source, tokenizer)
    assert (problems[0].problem, problems[0].gold) == ("1+1", "2")
    fields = {"problem_field": "other", "answer_field": "reward_model.ground_truth"}
    problems, _ = load_problems(source, tokenizer, **fields)
    assert problems[0].problem == "7"
    row["prompt"] = [
        *chat,
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "+1"},
    ]
    with pytest.raises(ValueError, match="--problem_field prompt: .* the user speaks 2 times"):
        load_problems(write(tmp_path / "w.json", [row]), tokenizer)


@pytest.mark.parametrize(
    "row, gold",
    [
        ({"answer": "204"}, "204"),
        ({"answer": " \\frac{14}{3}\n"}, "\\frac{14}{3}"),
        ({"answer": 142.0}, "142"),  # AMC: an integer stored as a float
        ({"answer": 8178.0}, "8178"),
        ({"answer": 0.5}, "0.5"),
        ({"answer": 7}, "7"),
        ({"answer": ["9.6\n"]}, "9.6"),  # Minerva
        ({"answer": ["0.01\n", "0.02\n"]}, Gold(("0.01", "0.02"))),
        ({"answer": ["5.47 \\times 10^5", "5.47 \\times 10^5\n"]}, "5.47 \\times 10^5"),
        (  # OlympiadBench, local and hub spelling
            {"answer": ["$1$,$3$"], "is_multiple_answer": True, "unit": None, "error": None},
            Gold(("$1$,$3$",), multiple=True),
        ),
        (
            {"final_answer": ["4.2"], "is_multiple_answer": False, "unit": "%", "error": "1e-1"},
            Gold(("4.2",), "%", "1e-1", False),
        ),
        ({"answer": ["$2$"], "is_multiple_answer": False, "unit": None, "error": None}, "$2$"),
        ({"answer": "Half of 48 is 24.\n#### 72"}, "72"),  # GSM8K
        ({"solution": "so \\boxed{1} no, \\boxed{\\frac{1}{2}}."}, "\\frac{1}{2}"),
    ],
)
def test_golds(tmp_path, row, gold):
    problems, _ = load_problems(write(tmp_path / "g.json", [{"problem": "p"} | row]), None)
    assert problems[0].gold == gold
    assert problems[0].prompt_ids == []


def test_drops_are_counted_and_ids_stay_row_numbers(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(data.reward, "parsable", lambda gold: gold != "???")
    rows = [
        {"problem": "one", "answer": None},
        {"problem": "two", "answer": "2"},
        {"problem": "", "answer": "3"},
        {"problem": "four", "answer": "???"},
        {"problem": "five" * 300, "answer": "5"},
        {"problem": "six", "answer": "6"},
        {"problem": "seven", "answer": []},
    ]
    source = write(tmp_path / "d.json", rows)
    problems, counts = load_problems(source, tokenizer, max_prompt_tokens=200)
    assert [p.id for p in problems] == [1, 5]
    assert counts == counted(rows=7, no_answer=3, unparsable=1, too_long=1, kept=2)
    problems, counts = load_problems(source, tokenizer, max_prompt_tokens=200, limit=1)
    assert [p.id for p in problems] == [1] and counts["rows"] == 2
    problems, counts = load_problems(source, tokenizer, max_prompt_tokens=None)
    assert counts["too_long"] == 0 and counts["kept"] == 3


def test_length_limit_is_inclusive(tmp_path, tokenizer):
    rows = [{"problem": "1+1", "answer": "2"}, {"problem": "1+10", "answer": "11"}]
    source = write(tmp_path / "l.json", rows)
    length = len(encode("1+1", PROMPTS["plain"], tokenizer))
    problems, counts = load_problems(source, tokenizer, "plain", max_prompt_tokens=length)
    assert [p.problem for p in problems] == ["1+1"] and counts["too_long"] == 1


def test_a_folder_holds_all_its_files_in_order_of_name(tmp_path):
    write(tmp_path / "b.jsonl", [{"problem": "3", "answer": "3"}], lines=True)
    write(tmp_path / "a.json", [{"problem": "1", "answer": "1"}, {"problem": "2", "answer": "2"}])
    (tmp_path / "notes.txt").write_text("not data")
    problems, _ = load_problems(str(tmp_path), None)
    assert [(p.id, p.problem) for p in problems] == [(0, "1"), (1, "2"), (2, "3")]


ROW, BLANK = '[{"problem": "a", "answer": "1"}]', '[{"problem": "a", "answer": " "}]'
NONE = "none of the usual fields .*"


@pytest.mark.parametrize(
    "content, options, message",
    [
        (None, {}, "--data .*x.json: there is no such file"),
        ("[]", {}, "--data .*x.json: holds no rows"),
        ("{broken", {}, "--data .*x.json: neither a JSON list nor JSON lines"),
        ('[{"problem": "a", "answer": "1"}, 3]', {}, "--data .*x.json: expected rows of fields"),
        (
            '[{"text": "a", "answer": "1"}]',
            {},
            f"--problem_field: {NONE} name one of: answer, text",
        ),
        ('[{"problem": "a", "label": "1"}]', {}, f"--answer_field: {NONE}label, problem"),
        (ROW, {"problem_field": "q"}, "--problem_field q: no row has the field 'q'"),
        (ROW, {"answer_field": "z"}, "--answer_field z: no row has the field 'z'"),
        (BLANK, {}, "--data .*x.json: no usable row .*1 without problem or answer"),
    ],
)
def test_bad_sources_say_flag_value_and_remedy(tmp_path, content, options, message):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_problems(str(path), None, **options)
    assert "\n" not in str(caught.value)


def test_a_hub_name_out_of_reach_is_one_sentence(monkeypatch):
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route\nto anywhere")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    sentence = r"--data some/set: no local file .*hub, split train \(no route to anywhere\)"
    with pytest.raises(ValueError, match=sentence) as caught:
        load_problems("some/set", None)
    assert "\n" not in str(caught.value)


def test_hub_sources_ask_for_the_documented_ids(monkeypatch):
    import datasets

    asked = []
    sizes = {"HuggingFaceH4/aime_2024": 30, "math-ai/amc23": 40, "Hothan/OlympiadBench": 674}

    def load_dataset(name, config=None, split=None):
        asked.append((name, config, split))
        return [{"question": str(i), "answer": str(i)} for i in range(sizes[name])]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problems, counts = load_problems("aime24,amc23,olympiadbench", None)
    assert counts["kept"] == 30 + 40 + 674 and problems[-1].id == 743
    assert asked == [
        ("HuggingFaceH4/aime_2024", None, "train"),
        ("math-ai/amc23", None, "test"),
        ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"),
    ]


# --- what was read wrongly: D1 to D9, and their brothers ---


@pytest.mark.parametrize(
    "text, gold",
    [
        ('["17"]', "17"),  # Skywork-OR1's way
        (" ['17'] ", "17"),
        ('["1", "2"]', Gold(("1", "2"))),
        (r'["\\frac{1}{2}"]', r"\frac{1}{2}"),
        (r'["\frac{1}{2}"]', r"\frac{1}{2}"),  # \f alone is a form feed in JSON
        (r"['\sqrt2']", r"\sqrt2"),
        ([["17"]], "17"),
        ("[17]", "[17]"),  # mathematics, not JSON: a list, an interval
        ("[0, 1]", "[0, 1]"),
        ('["a", 1]', '["a", 1]'),
        (r"so \boxed{5}", "5"),
    ],
)
@pytest.mark.parametrize("field", ["answer", "ground_truth"])
def test_D1_a_gold_that_is_a_list_as_text(tmp_path, text, gold, field):
    assert load_problems(write(tmp_path / "g.json", [{"problem": "p", field: text}]), None)[0][
        0
    ].gold == (gold)


BIG = "123456789012345678901234567890"


@pytest.mark.parametrize("lines", [False, True])
def test_D2_numbers_keep_the_digits_of_the_file(tmp_path, lines):
    values = [BIG, "0.5", "-" + BIG, "9007199254740993", "1.10", "3.0", BIG + ".0", "1e3", "1e-7"]
    values += ["9007199254740993.25", "1E400", "0.0000000000000000000000000000001"]
    rows = [f'{{"problem": "{i}", "answer": {value}}}' for i, value in enumerate(values)]
    path = tmp_path / "n.json"
    path.write_text("\n".join(rows) if lines else f"[{','.join(rows)}]")
    golds = [p.gold for p in load_problems(str(path), None)[0]]
    assert golds[:8] == [BIG, "0.5", "-" + BIG, "9007199254740993", "1.10", "3", BIG, "1000"]
    assert golds[8:] == ["0.0000001", "9007199254740993.25", "1" + "0" * 400, values[-1]]


def test_D2_D5_parquet_keeps_digits_texts_and_truth_values(tmp_path):
    import decimal

    import pyarrow
    from pyarrow import parquet

    def read(*values, **how) -> list:
        column = pyarrow.array(values, **how)
        table = pyarrow.table({"problem": list(map(str, range(len(values)))), "answer": column})
        parquet.write_table(table, tmp_path / "n.parquet")
        return [p.gold for p in load_problems(str(tmp_path / "n.parquet"), None)[0]]

    decimals = map(decimal.Decimal, (BIG + ".00", "0.25"))
    assert read(*decimals, type=pyarrow.decimal128(38, 2)) == [BIG, "0.25"]
    assert read(2**63 - 1, 7) == [str(2**63 - 1), "7"]
    assert read(2**64 - 1, type=pyarrow.uint64()) == [str(2**64 - 1)]
    # what a float does not hold is not made up: graded as a decimal, with a tolerance
    assert read(142.0, 0.5, float("nan"), float(BIG)) == ["142", "0.5", "1.2345678901234568e+29"]
    assert read("2000-01-01", "007") == ["2000-01-01", "007"]
    assert read(True, False) == ["true", "false"]
    assert read(b"17", b"18") == ["17", "18"]  # what some writers make of text


def test_D3_a_folder_gives_the_files_of_the_split(tmp_path):
    for file in ("train_a.json", "Train-b.JSONL", "test.jsonl", "val.json", "._train_a.json"):
        write(tmp_path / file, [{"problem": file, "answer": "1"}], lines=True)
    (tmp_path / "._train_a.json").write_bytes(b"\0\5\x16\7")  # macOS's
    (tmp_path / "dataset_infos.json").write_text("{}")

    def problems(split: str) -> list[str]:
        return [p.problem for p in load_problems(str(tmp_path), None, split=split)[0]]

    assert problems("train") == ["Train-b.JSONL", "train_a.json"]
    assert problems("test") == ["test.jsonl"] and problems("validation") == ["val.json"]
    message = refused(tmp_path, split="dev_hard")
    assert f"--data {tmp_path}: no file is named after the split dev_hard (Train-b.JSONL" in message
    assert "no file is named after" in refused(tmp_path, split="train[:1]")
    assert "no file is named after" in refused(tmp_path, split="")


def test_D3_words_that_only_look_like_a_split_are_none(tmp_path):
    for file in ("latest.json", "contrast.json", "strain.json"):
        write(tmp_path / file, [{"problem": file, "answer": "1"}])
    assert len(load_problems(str(tmp_path), None)[0]) == 3


def test_D3_hidden_files_alone_are_none(tmp_path):
    write(tmp_path / ".train.json", [{"problem": "1", "answer": "1"}])
    assert "the folder holds no .json" in refused(tmp_path)


def test_D4_half_a_character_is_no_problem(tmp_path, tokenizer):
    path = tmp_path / "s.json"
    path.write_text(
        '[{"problem": "\\ud800 half", "answer": "1"}, {"problem": "\\ud83d\\ude00", "answer": "2"},'
        ' {"problem": "3", "answer": "\\udc00"}]'
    )
    problems, counts = load_problems(str(path), tokenizer)
    assert [p.problem for p in problems] == ["\N{GRINNING FACE}"] and counts["no_answer"] == 2


@pytest.mark.parametrize("lines", [False, True])
def test_D5_dates_stay_text_and_truth_values_are_answers(tmp_path, lines):
    values = ["2000-01-01", "1999-12-31T10:00:00", "12:30", True, False, "1.50", None]
    rows = [{"problem": str(i), "answer": value} for i, value in enumerate(values)]
    problems, counts = load_problems(write(tmp_path / "d.json", rows, lines), None)
    expected = ["2000-01-01", "1999-12-31T10:00:00", "12:30", "true", "false", "1.50"]
    assert [p.gold for p in problems] == expected and counts["no_answer"] == 1
    assert data.reward.equivalent(r"\text{True}", "true")


def test_D6_the_config_of_a_hub_set_follows_a_colon(monkeypatch, tmp_path):
    import datasets

    asked = []

    def load_dataset(name, config=None, split=None):
        asked.append((name, config, split))
        if config is None:
            raise ValueError("Config name is missing.\nPlease pick one among: ['main', 'socratic']")
        return [{"question": "1", "answer": "#### 1"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_problems("openai/gsm8k:main", None, split="test")[0][0].gold == "1"
    assert asked == [("openai/gsm8k", "main", "test")]
    message = refused("openai/gsm8k", flag="--eval_data")
    assert message.startswith("--eval_data openai/gsm8k: ")
    assert "Please pick one among: ['main', 'socratic']" in message and "NAME:CONFIG" in message


def test_D7_a_hub_snapshot_and_its_configs(tmp_path):
    from datasets import Dataset

    for config, numbers in (("main", "12"), ("socratic", "34")):
        for split, number in zip(("train", "test"), numbers, strict=True):
            rows = Dataset.from_list([{"question": number, "answer": number}])
            rows.to_parquet(tmp_path / "many" / config / f"{split}-00000-of-00001.parquet")
            rows.to_parquet(tmp_path / "one" / "data" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "one" / "dataset_infos.json").write_text("{}")
    (tmp_path / "one" / ".cache").mkdir()
    write(tmp_path / "one" / ".cache" / "train.json", [{"question": "9", "answer": "9"}])

    def problems(source: str, split: str = "train") -> list[str]:
        return [p.problem for p in load_problems(f"{tmp_path}/{source}", None, split=split)[0]]

    assert problems("one") == ["3"] and problems("one", "test") == ["4"]
    assert problems("many:main") == ["1"] and problems("many/socratic", "test") == ["4"]
    assert "files in several folders (main, socratic); give one of these" in refused(
        tmp_path / "many"
    )


def test_D7_a_folder_of_save_to_disk(tmp_path):
    from datasets import Dataset, DatasetDict

    parts = {s: Dataset.from_list([{"problem": s, "answer": "1"}]) for s in ("train", "test")}
    parts["train"].save_to_disk(tmp_path / "one")
    DatasetDict(parts).save_to_disk(tmp_path / "two")
    assert load_problems(str(tmp_path / "one"), None)[0][0].problem == "train"
    assert load_problems(str(tmp_path / "two"), None, split="test")[0][0].problem == "test"
    message = refused(tmp_path / "two", split="dev")
    assert f"--data {tmp_path}/two: is a folder of save_to_disk, whose split dev" in message
    (tmp_path / "one" / "state.json").write_text("{")
    assert f"--data {tmp_path}/one: is a folder of save_to_disk" in refused(tmp_path / "one")


@pytest.mark.parametrize("name", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("lines", [False, True])
def test_D7_unicode_files_are_read_and_others_refused(tmp_path, name, lines):
    row = json.dumps({"problem": "größer", "answer": "1"}, ensure_ascii=False)
    path = tmp_path / "u.jsonl"
    path.write_bytes((f"{row}\r\n" if lines else f"[{row}]").encode(name))
    assert load_problems(str(path), None)[0][0].problem == "größer"
    path.write_bytes(row.encode("latin-1"))
    message = refused(path)
    assert f"--data {path}: is no UTF-8 text (" in message and "save it as UTF-8" in message


@pytest.mark.parametrize("content", ["", "{}", "{", "[]"])
def test_D7_an_empty_config_is_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="--model .*: its config or tokenizer cannot be read") as e:
        data.load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)


def test_D8_a_comma_list_of_files_each_with_its_own_fields(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [{"problem": "1", "answer": "1"}], lines=True)
    write(
        tmp_path / "b.jsonl", [{"question": "2", "target": "2"}, {"question": "3", "target": "3"}]
    )
    write(tmp_path / "c,d.json", [{"problem": "4", "answer": "4"}])
    problems, counts = load_problems("a.jsonl, b.jsonl", None)
    assert [(p.id, p.gold) for p in problems] == [(0, "1"), (1, "2"), (2, "3")]
    assert len(load_problems("c,d.json", None)[0]) == 1
    assert "--data nosuch.jsonl: there is no such file" in refused("a.jsonl,nosuch.jsonl")
    assert "--answer_field z: no row has the field 'z' in a.jsonl" in refused(
        "a.jsonl,b.jsonl", answer_field="z"
    )


def test_D9_duplicates_stay_where_that_is_asked_for(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(2 * '{"problem": "1 + 1", "answer": "2"}\n')
    _, counts = load_problems(str(path), None, prompt="plain", keep_duplicates=True)
    assert counts == counted(rows=2, kept=2)


def test_D9_duplicates_are_dropped_and_counted(tmp_path, monkeypatch):
    rows = [{"problem": str(i % 3), "answer": "1"} for i in range(9)]
    rows += [{"problem": " 0 ", "answer": 1}, {"problem": "0", "answer": "2"}]  # another gold
    encoded = []
    monkeypatch.setattr(data, "encode", lambda text, *_: encoded.append(text) or [0])
    source = write(tmp_path / "d.json", rows)
    problems, counts = load_problems(source, make_tokenizer())
    assert counts == counted(rows=11, duplicates=7, kept=4) and "7 duplicates" in data.describe(
        counts
    )
    assert [(p.id, p.problem, p.gold) for p in problems] == [
        (0, "0", "1"),
        (1, "1", "1"),
        (2, "2", "1"),
        (10, "0", "2"),
    ]
    assert encoded == ["0", "1", "2", "0"]  # each once
    problems, counts = load_problems(source, make_tokenizer(), limit=2)
    assert counts == counted(rows=2, kept=2)
    write(tmp_path / "aime24.json", [{"problem": "same", "answer": "1"}] * 30)
    assert load_problems("aime24", None, data_dir=str(tmp_path))[1]["kept"] == 30  # a set of 30


def test_D9_the_ranks_share_the_encoding(tokenizer, monkeypatch):
    import parallel

    texts, prompt, placed = [str(i) for i in range(7)], PROMPTS["plain"], []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "gather", lambda items: items * 2)
    monkeypatch.setattr(parallel, "gather_in_order", placed.append)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        data.encode_all(texts, prompt, tokenizer, "--data x")
    assert list(map(len, placed)) == [4, 3]
    each = [encode(text, prompt, tokenizer) for text in texts]
    assert sorted(placed[0] + placed[1]) == list(enumerate(each))
    monkeypatch.setattr(parallel, "gather", lambda items: [*items, "of another file"])
    with pytest.raises(ValueError, match="--data x: is not the same on every node"):
        data.encode_all(texts, prompt, tokenizer, "--data x")


def test_friction4_eval_data_takes_the_fields_and_the_blame(tmp_path, monkeypatch):
    class Settings:
        model, prompt, format, split, data = str(tmp_path), "plain", "r1", "train", "own.json"
        max_prompt_tokens, max_tokens, eval_max_tokens, limit, eval_limit = 200, 8, 8, 0, 0
        problem_field, answer_field, eval_data = "text", "label", "held.json"
        keep_duplicates, trust_remote_code, reward, skipped_layers = False, False, "", 0
        stop = stop_token_ids = ()

    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ValueError, match="--model .*: the folder holds no weights"):
        data.load_run(Settings)
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    monkeypatch.chdir(tmp_path)
    row = {"text": "1+1", "problem": "no", "label": "2", "answer": "no"}
    write(tmp_path / "own.json", [row])
    write(tmp_path / "held.json", [row])
    *_, train, held, lines = data.load_run(Settings)
    assert (train[0].problem, train[0].gold) == (held[0].problem, held[0].gold) == ("1+1", "2")
    # friction 9: what the model is given stands in the lines that are printed
    assert "<bos><User>1+1<Assistant><think>\n" in lines
    assert lines[-1].startswith("--- a right response (r1): exactly one </think>, then the answer")
    assert lines[-1].endswith("here '2' ---")
    write(tmp_path / "held.json", [{"problem": "3", "answer": "4"}])  # a benchmark's own names
    assert data.load_run(Settings)[3][0].gold == "4"
    Settings.eval_data = "nosuch.json"
    with pytest.raises(ValueError, match="--eval_data nosuch.json: there is no such file"):
        data.load_run(Settings)
    write(tmp_path / "held.json", [{"problem": "3", "answer": ""}])
    Settings.eval_data = "held.json"
    with pytest.raises(ValueError, match="--eval_data held.json: no usable row"):
        data.load_run(Settings)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.json", b"[" * 100_000, "neither a JSON list nor JSON lines"),
        ("x.json", b'[{"problem": "1", "answer": ' + b"9" * 5000 + b"}]", "neither a JSON list"),
        ("x.json", b'[{"problem": "1",\n "answer": }]', "(Expecting value: line 2 column 12"),
        ("x.jsonl", b'{"problem": "1", "answer": "1"}\n{"probl', "(line 2: Unterminated string"),
        ("x.jsonl", b'{"problem": "1", "answer": "1"}\n7', "but row 2 is a int"),
        ("x.jsonl", b"\x1f\x8b\x08\x00 gzip", "is no UTF-8 text"),
        ("x.csv", b"problem,answer\n1,1\n", "neither a JSON list nor JSON lines"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1", "no readable Parquet file"),
        ("x.PARQUET", b"", "no readable Parquet file"),
        ("x.json", b'[{"problem": "1", "answer": ""}, {"answer": NaN}]', "no usable row"),
        ("x.json", b'[{"problem": 5, "answer": {"a": 1}}]', "no usable row"),
        ("x.json", b'[{"problem": "1", "answer": 1e9999999999999999999}]', "neither a JSON"),
    ],
)
def test_own_bad_files_are_one_sentence_with_the_files_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    sentence = refused(tmp_path / name)
    assert sentence.startswith(f"--data {tmp_path / name}: ") and message in sentence


def test_own_strange_files_are_right(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"problem": "a\u2028b\x85c", "answer": "1"}\r\n\r\n', encoding="utf-8", newline=""
    )
    assert (
        load_problems(str(path), None)[0][0].problem == "a\u2028b\x85c"
    )  # splitlines() cuts there
    row = {"problem": "p", "answer": "5", "unit": "Unit 3: algebra", "error": "timeout"}
    assert load_problems(write(tmp_path / "y.json", [row]), None)[0][0].gold == "5"
    row = {"problem": "p", "answer": "5", "error": 0.5}
    assert load_problems(write(tmp_path / "y.json", [row]), None)[0][0].gold.error == "0.5"


@pytest.mark.parametrize("source", ["", " ", "a.json,", ",a.json"])
def test_own_an_empty_name_is_not_this_folder(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.json", [{"problem": "1", "answer": "1"}])
    assert "a name is empty" in refused(source)


def test_own_an_unknown_split_of_tiny_names_the_flag():
    assert refused("tiny", split="dev") == (
        "--split dev: tiny has train and test; give one of these."
    )


# --- benchmarks from a folder ---


def amc_rows(count_2022: int = 43, count_2023: int = 40) -> list[dict]:
    years = [2022] * count_2022 + [2023] * count_2023
    link = "https://example.org/wiki/index.php/{}_AMC_12A_Problems/Problem_{}"
    return [
        {"problem": f"p{i}", "answer": float(i), "url": link.format(y, i)}
        for i, y in enumerate(years)
    ]


def test_amc23_is_the_2023_part_of_the_83(tmp_path):
    write(tmp_path / "test_amc.json", amc_rows())
    problems, _ = load_problems("amc23", None, data_dir=str(tmp_path))
    assert [p.problem for p in problems] == [f"p{i}" for i in range(43, 83)]
    assert problems[0].gold == "43"
    assert len(load_problems("amc", None, data_dir=str(tmp_path))[0]) == 83
    write(tmp_path / "amc23.json", amc_rows(0, 40)[::-1])  # a file of the set's own name goes first
    assert load_problems("amc23", None, data_dir=str(tmp_path))[0][0].problem == "p39"


def test_an_incomplete_benchmark_is_refused_with_the_numbers(tmp_path):
    write(tmp_path / "test_aime.json", amc_rows(29, 0))
    for name, folder, sentence in (
        ("aime24", tmp_path, "--data aime24: .* gives 29 problems where the set has 30"),
        ("math500", tmp_path, "--data_dir .*: holds no file for math500; put one of math500.json"),
        ("math500", tmp_path / "nowhere", "--data_dir .*nowhere: there is no such folder"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_problems(name, None, data_dir=str(folder))


def test_tiny_goes_through_the_same_way():
    train, test = load_problems("tiny", None)[0], load_problems("tiny", None, split="test")[0]
    assert train and test and not {p.problem for p in train} & {p.problem for p in test}


# --- the real files, where there are some ---

REAL = os.environ.get("REMIX_SHARED")
SIZES = {"aime24": 30, "amc23": 40, "amc": 83, "math500": 500, "minerva": 272, "olympiadbench": 675}
real = pytest.mark.skipif(not REAL, reason="REMIX_SHARED names no folder with data/")


@real
@pytest.mark.parametrize("name", SIZES)
def test_real_benchmarks_load_complete(name):
    problems, counts = load_problems(name, None, data_dir=f"{REAL}/data")
    assert counts == counted(rows=SIZES[name], kept=SIZES[name])


@real
def test_real_training_files_load():
    assert load_problems(f"{REAL}/data/train_aime.json", None)[1]["kept"] == 975
    counts = load_problems(f"{REAL}/data/train_math.json", None)[1]  # two answers null, two empty
    assert counts["rows"] == 7474 and counts["no_answer"] == 4 and counts["unparsable"] == 0


@real
def test_every_real_gold_is_right_against_itself(capsys):
    assert data.check_golds(f"{REAL}/data"), capsys.readouterr().out
