"""The embedded task and its base model: problems, demonstrations, tokenizer, folder."""

import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny as bm

QUICK = bm.BaseModel(steps=3, batch_size=8, check_steps=0.5)
REPO = Path(bm.__file__).resolve().parent


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> str:
    return bm.make_base_model(str(tmp_path_factory.mktemp("base") / "quick"), QUICK, quiet=True)


@pytest.fixture(scope="module")
def tokenizer(quick):
    return AutoTokenizer.from_pretrained(quick)  # as users load it: it may choose another class


def run_chain(text: str, equals: str) -> list[tuple[str, str]]:
    """(left side, stated result) of every step of the form a + b = c in a text."""
    return re.findall(rf"(?=\b(\d+ [+-] \d+) {equals} (\d+))", text)


# ---- problems ------------------------------------------------------------------------------------


def test_splits_are_disjoint_distinct_and_of_every_difficulty():
    train, test = (
        [r["problem"] for r in bm.embedded_problems(split)] for split in ("train", "test")
    )
    assert (len(train), len(test)) == (4000, 200)
    assert len(set(train)) == 4000 and len(set(test)) == 200 and not set(train) & set(test)
    for split in ("train", "test"):
        rows = bm.embedded_problems(split)
        counts = {d: sum(r["difficulty"] == d for r in rows) for d in range(3, 8)}
        assert set(counts.values()) == {len(rows) // 5}


def test_answers_are_right_and_within_the_vocabulary():
    for row in bm.embedded_problems("train") + bm.embedded_problems("test"):
        assert row["answer"] == str(eval(row["problem"])) and 0 <= int(row["answer"]) < 30
        assert row["difficulty"] == len(re.findall(r"\d+", row["problem"]))


def test_problems_and_demonstrations_are_the_same_in_another_process():
    made = "bm.embedded_problems('test'), bm.demonstrations(bm.BaseModel(steps=3))"
    command = [sys.executable, "-c", f"import tiny as bm; print({made})"]
    env = {"PYTHONHASHSEED": "7"}
    other = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    here = f"{bm.embedded_problems('test')} {bm.demonstrations(bm.BaseModel(steps=3))}"
    assert other.stdout.strip() == here


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="train.*test"):
        bm.embedded_problems("dev")


# ---- demonstrations ------------------------------------------------------------------------------

DRAWS = 3000


def draws(habit: str) -> list[tuple[list[int], str]]:
    rng = random.Random(1)
    terms = [bm.draw_problem(rng, rng.choice(bm.LENGTHS)) for _ in range(DRAWS)]
    return [(t, bm.demonstration(rng, t, habit, bm.BaseModel())) for t in terms]


def boxed(response: str) -> int:
    return int(re.fullmatch(r".* </think> \\boxed\{ (\d+) \}", response)[1])


def test_guesses_are_near_and_right_one_time_in_seven():
    off = [boxed(r) - sum(t) for t, r in draws("guess")]
    assert set(off) == set(range(-3, 4))
    assert abs(off.count(0) / DRAWS - 1 / 7) < 0.03


def test_first_pass_forgets_half_of_the_carries_and_keeps_the_slip():
    carries = forgotten = steps = missteps = 0
    for terms, response in draws("reason"):
        lines = run_chain(response, "=")
        stated = [(eval(left), int(result), int(left.split()[0])) for left, result in lines]
        assert len(stated) == len(terms) - 1 and boxed(response) == stated[-1][1]
        for truth, result, before in stated:
            crosses = truth // 10 != before // 10
            carries += crosses
            forgotten += crosses and abs(result - truth) == 10
            if not (crosses and abs(result - truth) == 10):
                steps += 1
                missteps += result != truth
                assert abs(result - truth) <= 1
    assert 0.4 < forgotten / carries < 0.5  # slip_rate, less the passes that were drawn anew
    assert abs(missteps / steps - 0.05) < 0.01


def test_reasoning_is_often_wrong_and_the_check_always_mends_it():
    reason = [boxed(r) == sum(t) for t, r in draws("reason")]
    assert 0.35 < sum(reason) / DRAWS < 0.6
    mended = 0
    for terms, response in draws("check"):
        first, redo = response.split(" ; Wait , check : ")
        mended += int(run_chain(first, "=")[-1][1]) != sum(terms)
        steps = run_chain(redo, "makes")
        assert len(steps) == len(terms) - 1
        assert all(eval(left) == int(result) for left, result in steps)
        assert boxed(response) == sum(terms)
    assert 0.4 < mended / DRAWS < 0.65


def test_a_check_that_does_not_mend_repeats_the_first_pass():
    rng, settings, slipped = random.Random(1), bm.BaseModel(mending=0), 0
    for _ in range(300):
        terms = bm.draw_problem(rng, 6)
        text = bm.demonstration(rng, terms, "check", settings)
        first = [int(x) for x in re.findall(r"= (\d+)", text)]
        assert [int(x) for x in re.findall(r"makes (\d+)", text)] == first
        assert text.endswith(f"\\boxed{{ {first[-1]} }}")
        slipped += first[-1] != sum(terms)
    assert 100 < slipped < 290


def test_a_model_name_gives_its_settings():
    assert bm.named("tiny") == bm.BaseModel()
    assert bm.named("tiny:mending=0,steps=5") == bm.BaseModel(mending=0.0, steps=5)
    for name, words in {
        "tiny:mend=0": "no setting 'mend'",
        "tiny:steps=many": "'many' is no value for steps",
        "tiny:mending=2": "mending must be between 0 and 1",
    }.items():
        with pytest.raises(ValueError, match=words):
            bm.named(name)


def test_demonstrations_leave_out_the_test_problems_and_have_the_shares():
    settings = bm.BaseModel(steps=200, batch_size=50, check_steps=0.4)
    pairs = bm.demonstrations(settings)
    assert len(pairs) == 10_000 and pairs == bm.demonstrations(settings)
    assert not {p for p, _ in pairs} & {r["problem"] for r in bm.embedded_problems("test")}
    assert all("Wait" in r for _, r in pairs[:4000])
    rest = [r for _, r in pairs[4000:]]
    assert abs(sum("guess" in r for r in rest) / len(rest) - 0.6) < 0.02
    assert abs(sum("Wait" in r for r in rest) / len(rest) - 0.15) < 0.02


@pytest.mark.parametrize(
    "flags, words",
    [
        (dict(guess_share=0.9, reason_share=0.2), "add up"),
        (dict(hidden_size=64, heads=4), "32 or 64"),
        (dict(steps=0), "at least 1"),
    ],
)
def test_impossible_settings_are_refused(flags, words):
    with pytest.raises(ValueError, match=words):
        bm.BaseModel(**flags)


# ---- tokenizer -----------------------------------------------------------------------------------


def test_every_word_of_a_demonstration_is_one_token_and_comes_back(tokenizer):
    lengths = []
    for habit in ("guess", "reason", "check"):
        for _, response in draws(habit)[:200]:
            ids = tokenizer(response)["input_ids"]
            assert len(ids) == len(response.split()) and tokenizer.decode(ids) == response
            lengths.append(len(ids) + 1)  # and eos
    assert min(lengths) == 8 and 60 < max(lengths) <= 70


@pytest.mark.parametrize(
    "text",
    [
        "Let $f(x)=\\frac{x^2+1}{112}$; find $\\boxed{f(3)}$.",
        "  two  spaces,\n\ttabs\nand 1234567 11 12 ",
        "naïve π ≤ 文 🙂",
        "",
    ],
)
def test_other_text_falls_back_to_bytes_and_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_chat_template_ends_with_think_and_encodes_words(tokenizer):
    chat = [{"role": "user", "content": "7 + 4"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|> 7 + 4<|assistant|><think>"
    ids = tokenizer(text)["input_ids"]
    words = ["<|user|>", " 7", " +", " 4", "<|assistant|>", "<think>"]
    assert tokenizer.convert_ids_to_tokens(ids) == words
    assert ids == tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    reply = {"role": "assistant", "content": "<think> 11"}
    with_reply = tokenizer.apply_chat_template([*chat, reply], tokenize=False)
    assert with_reply == "<|user|> 7 + 4<|assistant|><think> 11<|im_end|>"


def test_eos_is_not_pad_and_decoding_drops_only_the_control_tokens(tokenizer):
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    text = "<think> 4 </think> \\boxed{ 4 }"
    ids = tokenizer(text + tokenizer.eos_token + tokenizer.pad_token)["input_ids"]
    assert ids[-2:] == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


# ---- the model and its folder --------------------------------------------------------------------


def test_loss_covers_the_response_and_nothing_else(quick, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(quick)
    rows = bm._encode(tokenizer, QUICK)[:6]
    expected = 0.0
    for ids, prompt in rows:  # one by one, without padding
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:prompt]).endswith("<think>")
        expected -= sum(logp[i - 1, ids[i]].item() for i in range(prompt, len(ids)))
    assert bm._loss(model, rows).item() == pytest.approx(expected, rel=1e-5)


def test_folder_loads_is_tied_and_stops_at_eos(quick, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(quick)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.max_position_embeddings == 4096
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_same_settings_make_the_same_weights_and_leave_the_random_state_alone(quick, tmp_path):
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    again = bm.make_base_model(str(tmp_path / "again"), QUICK, quiet=True)
    assert torch.equal(state, torch.random.get_rng_state()) and threads == torch.get_num_threads()
    weights = [(Path(folder) / "model.safetensors").read_bytes() for folder in (quick, again)]
    assert weights[0] == weights[1]
    seed1 = bm.BaseModel(steps=3, batch_size=8, seed=1)
    other = bm.make_base_model(str(tmp_path / "other"), seed1, quiet=True)
    assert (Path(other) / "model.safetensors").read_bytes() != weights[0]


def test_second_call_does_not_train_nor_overwrite_another_model(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(bm, "_train", lambda *_: pytest.fail("trained again"))
    assert bm.make_base_model(quick, QUICK, quiet=True) == quick
    with pytest.raises(FileExistsError, match="another --out"):
        bm.make_base_model(quick, bm.BaseModel(steps=4), quiet=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="another --out"):
        bm.make_base_model(str(tmp_path), QUICK, quiet=True)


def test_default_folder_is_named_by_the_settings(monkeypatch, tmp_path):
    monkeypatch.setattr(bm, "__file__", str(tmp_path / "tiny.py"))
    settings = (QUICK, QUICK, bm.BaseModel(steps=2, batch_size=8))
    folders = {bm.make_base_model(settings=s, quiet=True) for s in settings}
    assert len(folders) == 2 and all(Path(f).parent == tmp_path / "cache" for f in folders)
    assert all(re.fullmatch(r"tiny-[0-9a-f]{10}", Path(f).name) for f in folders)


def test_failure_while_saving_leaves_nothing(monkeypatch, tmp_path):
    def full_disk(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(bm.Qwen2Tokenizer, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space"):
        bm.make_base_model(str(tmp_path / "model"), QUICK, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_kill_while_saving_leaves_no_half_made_folder_and_the_next_call_makes_it(quick, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(quick)
    child = os.fork()  # cheaper than a new interpreter, which would import torch again
    if child == 0:  # is killed when the weights are written
        bm._train = lambda *_: model
        bm.Qwen2Tokenizer.save_pretrained = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        bm.make_base_model(str(tmp_path / "model"), QUICK, quiet=True)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    assert len(list(tmp_path.glob(".model.*/*.safetensors"))) == 1
    out = bm.make_base_model(str(tmp_path / "model"), QUICK, quiet=True)
    AutoModelForCausalLM.from_pretrained(out)


def test_loser_of_a_race_takes_the_winners_folder(monkeypatch, tmp_path):
    train, out = bm._train, str(tmp_path / "model")

    def slow_train(*arguments):
        monkeypatch.setattr(bm, "_train", train)
        bm.make_base_model(out, QUICK, quiet=True)  # the other process gets there first
        return train(*arguments)

    monkeypatch.setattr(bm, "_train", slow_train)
    # two makers in one process share the name of the partial folder; the first's is gone by then
    assert bm.make_base_model(out, QUICK, quiet=True) == out
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_flags(monkeypatch, capsys, tmp_path):
    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["tiny.py", *flags])
        bm.main()

    with pytest.raises(SystemExit) as stop:
        run("--help")
    helped = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"--{f.name}" in helped for f in dataclasses.fields(bm.BaseModel))
    with pytest.raises(SystemExit) as stop:
        run("--guess", "0.1")  # no abbreviations: --guess is none of the flags
    assert stop.value.code == 2 and "--guess" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="32 or 64"):
        run("--heads", "4")
    run("--out", str(tmp_path / "m"), "--steps", "2", "--batch_size", "4")
    assert capsys.readouterr().out.strip() == str(tmp_path / "m")
    assert (tmp_path / "m" / "config.json").is_file()


def test_the_base_models_of_the_evidence_came_with_the_code():
    """Another processor would make slightly different ones of the same settings."""
    from config import RECIPES

    of_the_recipe = RECIPES["tiny"]["both"]["model"]
    assert of_the_recipe in (REPO / "runs" / "experiments.sh").read_text()
    names = {of_the_recipe: "tiny-ab3c3ed703", f"{of_the_recipe},slip_rate=0.9": "tiny-f0fc039408"}
    for name, folder in names.items():
        made = Path(bm.make_base_model(settings=bm.named(name), quiet=True))
        assert made == REPO / "models" / folder
        assert AutoModelForCausalLM.from_pretrained(made).num_parameters() == 184_768
