"""What a run exports: --keep, --keep_best, the model card, remix.json and eval.py's defaults from
it, the way to the hub against a stand-in server."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from test_families import tokenizer_of
from test_remix import bad, clean_env, metrics, run, start
from test_runs import problems, save, small_run  # noqa: F401

import card
import checkpoint
import config
import data
import eval as evaluation
from buffer import REMIX, Buffer
from model import Policy, load_model

slow = pytest.mark.slow
PROMPT = "{problem}\nBox it: ```"  # of a file, with what a card's code block must bear


def flags_of(problems, prompt) -> list:  # noqa: F811
    flags = "--steps 2 --max_tokens 32 --eval_every 1 --save_every 1 --keep_best --keep 1".split()
    return [*flags, "--data", problems, "--eval_data", problems, "--prompt", prompt]


@pytest.fixture(scope="module")
def done(base, problems, tmp_path_factory) -> Path:  # noqa: F811
    """A run of two steps by a prompt from a file, which is gone afterwards."""
    folder = tmp_path_factory.mktemp("card")
    (folder / "mine.txt").write_text(PROMPT)
    run(base, folder / "run", *flags_of(problems, folder / "mine.txt"))
    (folder / "mine.txt").unlink()
    return folder / "run"


def said(folder: Path) -> dict:
    return json.loads((folder / "remix.json").read_text())


# --------------------------------------------------------------------------------- --keep, the best


def test_a_run_keeps_its_best_and_as_many_checkpoints(done):
    scores = [row["eval/pass@1"] for row in metrics(done)]
    best = said(done / "best")
    assert len(scores) == 3 and best["step"] == scores.index(max(scores))
    assert best["evaluation"]["eval/pass@1"] == max(scores)
    assert [path.name for path in (done / "checkpoints").iterdir()] == ["step-000002"]
    assert said(done / "model")["step"] == 2


@pytest.mark.parametrize("keep", [1, 3])
def test_keep_says_how_many_are_left(group, tmp_path, keep):
    for step in range(1, 5):
        models, optimizers = small_run()
        checkpoint.save(tmp_path, step, models, optimizers, dict(step=step), keep)
    assert len(checkpoint.saved_steps(tmp_path)) == keep
    assert checkpoint.latest(tmp_path).name == "step-000004"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--keep", 0], "--keep 0: must be at least 1"),
        (
            ["--keep_best", "--data", "x.json"],
            "--keep_best True: nothing is evaluated, .* give --eval_data, or leave it out",
        ),
    ],
)
def test_bad_flags(flags, message):
    with pytest.raises(ValueError, match=message):
        bad(*flags)


def test_both_may_change_when_a_run_goes_on(tmp_path):
    checkpoint.write_json(tmp_path / "config.json", vars(bad("--out", tmp_path)))
    config.check_out(bad("--out", tmp_path, "--keep", 5, "--keep_best"))


class Killed(BaseException):
    """Nothing of the project catches it."""


@pytest.fixture
def evaluated(base, group, tokenizer, tmp_path):
    """evaluated(step, score, *flags): a step's evaluation, of weights that are its step."""
    policy = load_model(Policy, base, device="cpu", dtype="float32")
    norm = policy.lm.model.norm.weight

    def step(number: int, score: float | None, *flags, name="eval/pass@1"):
        cfg = bad("--out", tmp_path, "--model", base, "--keep_best", *flags)
        if not (tmp_path / "config.json").exists():
            checkpoint.record_start(cfg, {})
        torch.nn.init.constant_(norm, number)
        row = dict(step=number, rollouts=9 * number) | ({} if score is None else {name: score})
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        checkpoint.keep_best(cfg, policy, tokenizer, number)
        return cfg

    return step


def step_of(folder: Path) -> int:
    """By its weights, which its remix.json must agree with."""
    weight = load_file(folder / "model.safetensors")["model.norm.weight"]
    assert torch.all(weight == weight[0]) and said(folder)["step"] == weight[0]
    return int(weight[0])


@pytest.mark.parametrize("name", ["eval/pass@1", "eval/reward"])
def test_the_first_of_equal_ones_is_best(evaluated, tmp_path, name):
    best = []
    for step, score in enumerate([0.1, 0.1, 0.4, None, 0.3, 0.4, 0.41]):
        evaluated(step, score, name=name)
        best.append(step_of(tmp_path / "best"))
    assert best == [0, 0, 2, 2, 2, 2, 6]
    text = (tmp_path / "best" / "README.md").read_text()
    assert "| 5 | 45 | 0.4000 |\n| 6 | 54 | 0.4100 |\n" in text and "| 3 |" not in text
    (result,) = ModelCard(text).data.eval_results
    assert (result.metric_type, result.metric_value) == (name[5:], 0.41)


def test_another_evaluation_is_not_compared(evaluated, tmp_path):
    evaluated(0, 0.9)
    evaluated(1, 0.2, "--eval_every", 3)  # the same problems
    assert step_of(tmp_path / "best") == 0
    evaluated(2, 0.2, "--eval_limit", 7)
    assert step_of(tmp_path / "best") == 2


def test_a_best_without_a_score_is_no_best(evaluated, tmp_path):
    evaluated(0, 0.9)
    path = tmp_path / "best" / "remix.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(evaluation={})))
    evaluated(1, 0.2)
    assert step_of(tmp_path / "best") == 1


def test_a_run_with_stops_and_a_reward_of_ones_own(evaluated, tmp_path, capsys):
    """The export has them for eval.py, the card for its readers."""
    reward = tmp_path / "mine.py"
    reward.write_text("def reward(response, row):\n    return 1.0\n")
    evaluated(0, 0.9, "--stop", "}", "--stop_token_ids", 7, "--reward", f"{reward}:reward",
              name="eval/reward")  # fmt: skip
    args = args_of("--model", tmp_path / "best")
    assert (args.stop, args.stop_token_ids, args.reward) == (["}"], [7], None)
    printed = capsys.readouterr().out
    assert "--stop } --stop_token_ids 7" in printed
    assert f"had --reward {reward}:reward; give it, to measure by that" in printed
    card = (tmp_path / "best" / "README.md").read_text()
    assert "stop=['}'], include_stop_str_in_output=True, stop_token_ids=[7])" in card
    assert "stop_strings=['}'], tokenizer=tokenizer)" in card and "\n- math\n" not in card


@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_inside_the_export_of_the_best(evaluated, tmp_path, monkeypatch, call):
    """Before its first rename, and between its two: the best of before is there after a resume,
    and the evaluation that is run again is the best again."""
    evaluated(1, 0.1)
    real, calls = os.rename, []

    def rename(source, target):
        calls.append(target)
        if len(calls) == call:
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint.os, "rename", rename)
        evaluated(2, 0.2)
    cfg = bad("--out", tmp_path)
    checkpoint.load_run(cfg, *small_run(), Buffer(2, REMIX, 0, 1))  # cuts the metrics back
    assert metrics(tmp_path) == [] and step_of(tmp_path / "best") == 1
    evaluated(1, 0.1)
    assert step_of(tmp_path / "best") == 1
    evaluated(2, 0.2)
    assert step_of(tmp_path / "best") == 2
    assert [path.name for path in tmp_path.glob("best*")] == ["best"]


@slow
def test_a_killed_run_has_the_best_of_one_that_was_not(base, problems, tmp_path):  # noqa: F811
    flags = "--steps 8 --max_tokens 32 --save_every 3 --eval_every 1 --keep_best".split()
    flags += ["--data", problems, "--eval_data", problems]
    run(base, tmp_path / "a", *flags)
    process = start(base, tmp_path / "b", *flags)
    path = tmp_path / "b" / "metrics.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < 6:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run(base, tmp_path / "b", *flags)
    names = ("step", "evaluation")
    a, b = (said(tmp_path / name / "best") for name in "ab")
    assert [a[name] for name in names] == [b[name] for name in names]
    a, b = (load_file(tmp_path / name / "best" / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


# ----------------------------------------------------------------------------------- the model card


def blocks(folder: Path) -> list[str]:
    return re.findall(r"(?s)````python\n(.*?)````", (folder / "README.md").read_text())


@pytest.mark.parametrize("name", ["model", "best"])
def test_the_card(done, name):
    text = (done / name / "README.md").read_text()
    front = ModelCard(text).data
    assert front.library_name == "transformers" and front.pipeline_tag == "text-generation"
    assert front.license == "unknown" and "Of the base model: unknown." in text
    assert front.base_model is None  # a path of this machine is no link
    (result,) = front.eval_results
    rows = metrics(done)
    step = said(done / name)["step"]
    assert result.metric_value == rows[step]["eval/pass@1"]
    for row in rows[: step + 1]:
        assert f"| {row['step']} | {row['rollouts']} | {row['eval/pass@1']:.4f} |" in text
    assert f"after step {step} of 2" in text and "--keep_best --keep 1" in text
    assert json.loads((done / "config.json").read_text())["git_commit"] in text
    assert "<|user|> What is 17 + 25?\nBox it: ```<|assistant|><think>" in text
    drawn = (done / name / "curve.png").exists()
    assert drawn == (name == "model") == ("![learning curve](curve.png)" in text)


def test_what_the_hub_knows_is_linked():
    assert card.on_the_hub("a/b") == ["a/b"]
    assert card.on_the_hub("math500, openai/gsm8k:main,x/y.jsonl,./a/b,tiny,tests/README") == [
        "HuggingFaceH4/MATH-500", "openai/gsm8k", "tests/README"
    ]  # fmt: skip
    assert card.on_the_hub("/a/b") == card.on_the_hub(str(ROOT / "docs")) == []


def test_the_base_models_licence(tmp_path):
    assert card.licence(str(tmp_path)) == card.licence("user/name") == "unknown"
    (tmp_path / "README.md").write_text("---\n[\n---\n")
    assert card.licence(str(tmp_path)) == "unknown"
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert card.licence(str(tmp_path)) == "apache-2.0"


def test_the_snippet_for_transformers_runs(done, tokenizer, monkeypatch, capsys):
    monkeypatch.chdir(done / "best")
    space = dict(__name__="snippet")
    exec(blocks(done / "best")[0], space)
    prompt = data.Prompt(PROMPT, "boxed")
    assert space["ids"] == data.encode("What is 17 + 25?", prompt, tokenizer)
    assert 0 < len(space["output"][0]) - len(space["ids"]) <= 32
    assert capsys.readouterr().out.strip()


@slow
def test_the_snippet_for_vllm_runs(done):
    pytest.importorskip("vllm")
    script = done.parent / "snippet.py"  # what a CPU wants is not in it
    here = "LLM(name, kv_cache_memory_bytes=1 << 28, enforce_eager=True)"
    script.write_text(blocks(done / "best")[1].replace("LLM(name)", here))
    env = clean_env(VLLM_ENABLE_V1_MULTIPROCESSING="0", TORCHDYNAMO_DISABLE="1")
    env.pop("ONEDNN_MAX_CPU_ISA", None)  # of conftest.py: a user has none, and it goes with a call
    command = [sys.executable, str(script)]
    ran = subprocess.run(command, cwd=done / "best", env=env, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr[-2000:]


def test_a_snippet_has_the_token_ids_of_the_training():
    """Of a tokenizer that puts <s> before and </s> behind every text."""
    tokenizer = tokenizer_of()
    prompt = data.Prompt("Say {problem}:", "boxed", chat=False)
    cfg = dict(eval_temperature=0, eval_top_p=1.0, eval_max_tokens=8)
    text = card.snippets("1+1", prompt, cfg, tokenizer)
    line = next(line for line in text.splitlines() if line.startswith("ids = "))
    space = dict(tokenizer=tokenizer, problem="1+1", prompt="<s>Say {problem}:")
    assert "prompt = '<s>Say {problem}:'" in text and "do_sample=False" in text
    exec(line, space)
    assert space["ids"] == data.encode("1+1", prompt, tokenizer)


# ------------------------------------------------------------------------- eval.py's defaults of it


def args_of(*argv):
    args = evaluation.parse_args(list(map(str, argv)))
    evaluation.fill_in(args)
    evaluation.check_args(args)
    return args


def test_eval_takes_its_defaults_from_the_folder(done, tmp_path, monkeypatch, capsys):
    shutil.copytree(done / "best", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    args = args_of("--model", "elsewhere")
    line = "as elsewhere/remix.json has it: --prompt elsewhere/prompt.txt --format boxed "
    line += "--temperature 0.6 --top_p 0.95 --max_tokens 32\n"
    assert capsys.readouterr().out == line
    assert (args.prompt, args.format, args.max_tokens) == ("elsewhere/prompt.txt", "boxed", 32)
    assert data.get_prompt(args.prompt).template == PROMPT
    args = args_of("--model", "elsewhere", "--temperature", 0, "--prompt", "r1", "--max_tokens", 9)
    assert (args.temperature, args.prompt, args.max_tokens, args.n) == (0, "r1", 9, 1)
    assert args.format is None  # r1's own, not that of the prompt it was trained with
    assert args_of("--model", "elsewhere", "--format", "tags").format == "tags"


def test_eval_finds_what_was_pushed_by_its_name(done, monkeypatch):
    asked = []

    def download(model, name):  # the hub is out of reach for tests
        asked.append((model, name))
        return str(done / "best" / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert args_of("--model", "me/mine").prompt == str(done / "best" / "prompt.txt")
    assert asked == [("me/mine", "remix.json"), ("me/mine", "prompt.txt")]


def test_eval_without_a_run_has_the_usual_defaults(base, capsys):
    args = args_of("--model", base)
    assert (args.temperature, args.top_p, args.n, args.prompt) == (0.6, 0.95, 16, None)
    assert args_of("--model", "tiny").temperature == 0.6 and capsys.readouterr().out == ""


def test_fields_of_the_run_need_not_be_those_of_other_data(done, tmp_path, capsys):
    shutil.copytree(done / "best", tmp_path / "model")
    run = said(tmp_path / "model")
    run["eval_flags"] |= dict(prompt="plain", problem_field="exercise")
    (tmp_path / "model" / "remix.json").write_text(json.dumps(run))
    args = args_of("--model", tmp_path / "model")
    assert args.problem_field == "exercise"
    assert len(evaluation.load_sets(args, None)["tiny"]) == 200
    args = args_of("--model", tmp_path / "model", "--problem_field", "exercise")
    with pytest.raises(ValueError, match="--problem_field exercise: no row has the field"):
        evaluation.load_sets(args, None)


def test_a_damaged_remix_json_is_named(done, tmp_path):
    shutil.copytree(done / "best", tmp_path / "model")
    for text in ("{", "[]", "{}"):
        (tmp_path / "model" / "remix.json").write_text(text)
        with pytest.raises(ValueError, match="--model .*: its remix.json is damaged; restore it"):
            args_of("--model", tmp_path / "model")


def test_an_evaluation_of_the_folder_says_its_problems(done, problems, tmp_path):  # noqa: F811
    argv = ["--model", done / "best", "--data", problems, "--limit", 3, "--n", 2, "--engine", "hf"]
    out = tmp_path / "out.json"
    evaluation.main([*map(str, argv), "--workers", "1", "--out", str(out)])
    ran = json.loads(out.read_text())["config"]
    assert (ran["prompt"], ran["format"]) == (str(done / "best" / "prompt.txt"), "boxed")
    rows = [json.loads(line) for line in out.with_suffix(".samples.jsonl").open()][1:]
    expected = [row["problem"] for row in json.loads(problems.read_text())[:3]]
    assert [row["problem"] for row in rows] == expected
    assert all(row["gold"] and len(row["responses"]) == 2 for row in rows)


def test_a_text_that_is_in_two_sets_is_graded_where_its_row_says(tmp_path, monkeypatch):
    """Else the samples of amc, which holds amc23, would count twice."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(f"{name}.json").write_text('[{"problem": "1 + 1", "answer": "2"}]')
    rows = [
        dict(set=f"{name}.json", id=0, problem="1 + 1", responses=[answer])
        for name, answer in dict(a=r"\boxed{2}", b=r"\boxed{3}").items()
    ]
    Path("s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    argv = "--samples s.jsonl --data a.json,b.json --format boxed --workers 1 --out out.json"
    evaluation.main(argv.split())
    sets = json.loads(Path("out.json").read_text())["sets"]
    assert [sets[f"{name}.json"]["pass@1"] for name in "ab"] == [1, 0]


# ------------------------------------------------------------------------------------------ the hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs: weights go by LFS, the rest stands in the commit. The
    real one takes weights by hf_xet, which is the client's own business."""

    def log_message(self, *args): ...

    def answer(self, value: dict, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self):
        known = self.path.partition("?")[0] == "/api/models/me/mine"
        repository = dict(id="me/mine", private=self.server.private)
        self.answer(repository if known else dict(error="no such path"), 200 if known else 404)

    def do_PUT(self):
        self.server.blobs[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_POST(self):
        server, body, path = self.server, self.body(), self.path.partition("?")[0]
        here = f"http://127.0.0.1:{server.server_port}"
        server.tokens.add(self.headers["Authorization"])
        if path == "/api/repos/create":
            server.created.append(json.loads(body))
            self.answer(dict(url=f"{here}/me/mine", id="me/mine"))
        elif path == "/api/validate-yaml":  # the client asks before it uploads a card
            server.cards.append(json.loads(body)["content"])
            self.answer(dict(errors=[], warnings=[]))
        elif path == "/api/models/me/mine/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            mode = {True: "lfs", False: "regular"}
            files = [
                dict(path=x, uploadMode=mode[x.endswith(".safetensors")], shouldIgnore=False)
                for x in names
            ]
            self.answer(dict(files=files))
        elif path == "/me/mine.git/info/lfs/objects/batch":
            objects = [
                dict(
                    oid=x["oid"],
                    size=x["size"],
                    actions=dict(upload=dict(href=f"{here}/blob/{x['oid']}")),
                )
                for x in json.loads(body)["objects"]
            ]
            self.answer(dict(transfer="basic", objects=objects))
        elif path == "/api/models/me/mine/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    server.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    server.files[value["path"]] = server.blobs[value["oid"]]
            self.answer(dict(commitUrl=f"{here}/me/mine/commit/1", commitOid="1", success=True))
        else:
            self.answer(dict(error=f"no {path}"), 404)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.private, server.created, server.tokens = True, [], set()
    server.blobs, server.files, server.cards = {}, {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def push(hub, *argv, token="hf_test"):
    env = clean_env(HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}", HF_TOKEN=token)
    env |= dict(HF_HUB_DISABLE_XET="1")
    command = [sys.executable, "checkpoint.py", *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def assert_arrived(hub, folder: Path) -> None:
    """Every file byte by byte; only the card's snippets say the name there."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    text = files.pop("README.md").decode()
    here = 'name = "."  # this folder, or its name on the hub'
    assert text.count(here) == 2
    card_there = text.replace(here, 'name = "me/mine"')
    assert hub.files.pop("README.md").decode() == card_there and hub.cards == [card_there]
    assert {"model.safetensors", "remix.json", "prompt.txt", "tokenizer.json"} <= files.keys()
    assert hub.files == files


def test_a_run_that_is_done_is_pushed(done, hub):
    ran = push(hub, done, "--push", "me/mine", "--private")
    assert ran.returncode == 0, ran.stderr
    assert f"pushed: http://127.0.0.1:{hub.server_port}/me/mine\n" in ran.stdout
    assert len(hub.created) == 1 and hub.created[0]["visibility"] == "private"
    assert hub.tokens == {"Bearer hf_test"}
    assert_arrived(hub, done / "model")
    assert not (done / "model-000002").exists()


@slow
def test_of_a_run_that_goes_on_its_last_checkpoint_is_pushed(done, hub, tmp_path):
    shutil.copytree(done, tmp_path / "run")
    settings = json.loads((done / "config.json").read_text())
    checkpoint.write_json(tmp_path / "run" / "config.json", settings | dict(steps=9))
    ran = push(hub, tmp_path / "run", "--push", "me/mine")
    assert ran.returncode == 0, ran.stderr
    assert said(tmp_path / "run" / "model-000002")["step"] == 2
    assert_arrived(hub, tmp_path / "run" / "model-000002")


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--private", "--private: is about --push USER/NAME; add it, or leave this out"),
        ("--push mine", "--push mine: is no name of the hub; give USER/NAME"),
        ("--push a/b/c", "--push a/b/c: is no name of the hub"),
        ("--push me/mine", "--push me/mine: there is no token of the hub; run `hf auth login`"),
    ],
)
def test_bad_pushes(done, monkeypatch, capsys, argv, message):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SystemExit) as end:
        checkpoint.main([str(done), *argv.split()])
    error = capsys.readouterr().err
    assert end.value.code == 1 and message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "refuses, message",
    [
        ("create_repo", "--push me/mine: the hub did not take it"),
        ("public", "--push me/mine: is there already, and public; name another"),
    ],
)
def test_a_hub_that_refuses(done, hub, monkeypatch, capsys, refuses, message):
    """Nothing is uploaded: not into what others can read either."""
    port = hub.server_port
    if refuses == "public":
        hub.private = False
    else:
        hub.shutdown()
        hub.server_close()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_test")
    with pytest.raises(SystemExit):
        checkpoint.main([str(done), "--push", "me/mine", "--private"])
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and not hub.files


def test_what_is_no_run_is_refused(tmp_path, group, capsys):
    save(tmp_path / "bare", 1)  # a checkpoint without the run's config.json
    for folder in (tmp_path / "nothing", tmp_path / "bare"):
        with pytest.raises(SystemExit):
            checkpoint.main([str(folder)])
        error = capsys.readouterr().err
        assert f"{folder}: holds no checkpoint yet" in error and len(error.splitlines()) == 1


def test_the_best_is_pushed_and_not_replaced(done, hub, capsys):
    before = (done / "best" / "remix.json").read_bytes()
    ran = push(hub, done / "best", "--push", "me/mine")
    assert ran.returncode == 0, ran.stderr
    assert_arrived(hub, done / "best")
    for argv, message in [
        ([done, done / "best"], "is there already; name a new folder"),
        ([done / "best"], "is a model's folder already; --push USER/NAME uploads it"),
    ]:
        with pytest.raises(SystemExit):
            checkpoint.main(list(map(str, argv)))
        assert f"{done / 'best'}: {message}" in capsys.readouterr().err
    assert (done / "best" / "remix.json").read_bytes() == before


def test_a_folder_of_other_things_is_not_replaced(done, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(SystemExit):
        checkpoint.main([str(done), str(tmp_path)])
    assert f"{tmp_path}: is there already; name a new folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "precious"
