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


def test_prompt_file_is_raw_and_needs_the_placeholder(tmp_path, tokenizer):
    good, own_bos, bad = tmp_path / "good.txt", tmp_path / "bos.txt", tmp_path / "bad.txt"
    good.write_text("Q: {problem} in {braces}\nA:")
    own_bos.write_text("<bos>Q: {problem}")
    bad.write_text("Q: A:")
    prompt = get_prompt(str(good))
    assert (prompt.format, prompt.chat) == ("boxed", False)
    assert tokenizer.decode(encode("2+2", prompt, tokenizer)) == "<bos>Q: 2+2 in {braces}\nA:"
    assert encode("2", get_prompt(str(own_bos)), tokenizer).count(tokenizer.bos_token_id) == 1
    with pytest.raises(ValueError, match=r"--prompt .*bad.txt.*\{problem\}"):
        get_prompt(str(bad))
    with pytest.raises(ValueError, match="--prompt nosuch"):
        get_prompt("nosuch")


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
    assert counts == {"rows": 3, "no_answer": 0, "unparsable": 0, "too_long": 0, "kept": 3}
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
    assert counts == {"rows": 7, "no_answer": 3, "unparsable": 1, "too_long": 1, "kept": 2}
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
    sentence = r"--data some/set: no local file .*hub \(no route\)"
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
    assert counts == {
        "rows": SIZES[name],
        "no_answer": 0,
        "unparsable": 0,
        "too_long": 0,
        "kept": SIZES[name],
    }


@real
def test_real_training_files_load():
    assert load_problems(f"{REAL}/data/train_aime.json", None)[1]["kept"] == 975
    counts = load_problems(f"{REAL}/data/train_math.json", None)[1]  # two answers null, two empty
    assert counts["rows"] == 7474 and counts["no_answer"] == 4 and counts["unparsable"] == 0


@real
def test_every_real_gold_is_right_against_itself(capsys):
    assert data.check_golds(f"{REAL}/data"), capsys.readouterr().out
