"""Kept responses, and the page that shows them: numbers by hand, and the page in a real browser."""

import json
import math
import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_remix import assert_same_run, run, slow

import kept
import loss
import metrics
import view
from buffer import Response
from config import Config
from data import Problem
from parallel import Batch
from tiny import embedded_problems

BYTES = SimpleNamespace(  # a tokenizer whose tokens are bytes; 0 ends a response
    decode=lambda ids, **_: bytes(ids).decode(errors="replace"), eos_token_id=0,
)  # fmt: skip
EVIL = "</script><script>hacked=1</script><img src=x onerror=hacked=1>"


def response(text="abcd", reward=1.0, step=3, A=1.0, logp_k=-1.0, logp_b=-1.0, **more) -> Response:
    tokens = list(text.encode())
    k, b, A = (torch.tensor(x).float().expand(len(tokens)) for x in (logp_k, logp_b, A))
    return Response([104, 105], tokens, b, True, reward, step, logp_k=k, advantages=A, **more)


# ------------------------------------------------------------------------------------- what is kept


QUADRANTS = [  # r, c, A; whether the clip takes the gradient with eps = 0.2, by hand
    (1.21, 1.0, 1.0, True),  # up, and beyond 1.2
    (1.19, 1.0, 1.0, False),
    (1.21, 1.0, -1.0, False),  # beyond, but A pulls it back
    (0.79, 1.0, -1.0, True),  # down, and below 0.8
    (0.79, 1.0, 1.0, False),
    (0.81, 1.0, -1.0, False),
    (1.5, 1.5, 1.0, False),  # replayed: PPO's band would take it, Mix-PPG's is around c
    (1.71, 1.5, 2.0, True),
    (1.25, 1.5, -2.0, True),  # above 1, and yet below the band 1.3 to 1.7
    (9.0, 1.0, 0.0, False),  # no gradient, but not by the clip
]


def test_the_clip_takes_what_is_beyond_the_band_on_the_side_of_A():
    r, c, A, expected = map(torch.tensor, zip(*QUADRANTS, strict=True))
    logp_b = torch.full_like(r, -2.0)
    logp, logp_k = logp_b + r.log(), logp_b + c.log()
    took = loss.clip_took(logp, logp_k, logp_b, A, 0.2)
    assert took.tolist() == expected.tolist()
    logp.requires_grad_()  # the loss itself says the same
    loss.mix_ppg(logp, logp_k, logp_b, A, 0.2).sum().backward()
    assert ((logp.grad == 0) & (A != 0)).tolist() == expected.tolist()


def test_best_and_worst_by_reward_and_then_advantage():
    rs = [response(reward=r, A=a) for r, a in [(0, -2), (1, 0.5), (0, -1), (1, 2), (0, 3)]]

    def places(count):
        return [list(map(id, rs)).index(id(r)) for r in kept.extremes(rs, count)]

    assert places(4) == [3, 1, 2, 0] and places(3) == [3, 1, 0] and places(1) == [3]
    assert places(0) == [] and places(9) == [3, 1, 4, 2, 0]


def test_token_texts_add_up_to_the_text():
    text = "x² ≤ 3 🙂."
    tokens = list(text.encode())
    texts = kept.token_texts(BYTES, tokens)
    assert "".join(texts) == text and len(texts) == len(tokens)
    assert texts[:4] == ["x", "", "²", " "]  # two bytes: the second has the character
    broken = list("🙂".encode())[:2]  # cut at the length limit, within a character
    assert "".join(kept.token_texts(BYTES, [120, *broken])) == "x\N{REPLACEMENT CHARACTER}"


def batch(responses, logp):
    rows = torch.tensor(logp)
    ones, age = torch.ones_like(rows), torch.tensor([3 - r.step for r in responses])
    columns = {name: torch.stack([getattr(r, name) for r in responses])
               for name in ("logp_b", "logp_k", "advantages")}  # fmt: skip
    replayed = torch.tensor([r.replayed for r in responses])
    return Batch(ones, None, None, ones, age=age, replayed=replayed, responses=responses, **columns)


def add(log, responses, logp):
    x = batch(responses, logp)
    zero = torch.zeros_like(x.mask)
    log.add(x, torch.tensor(logp, requires_grad=True), torch.tensor(0.0), zero, zero, zero, 0.2)
    log.updated(dict(policy=1.0))


@pytest.fixture
def log(group, tmp_path):
    made = metrics.Log(Config(out=str(tmp_path), keep_responses=2, format="r1"), 0, "cpu")
    made.start(3)
    yield made
    made.bar.close()


def kept_rows(folder) -> list[dict]:
    return metrics.read_metrics(Path(folder, "responses.jsonl"))


def test_a_kept_text_ends_where_the_graded_one_does():
    """--stop: the token that completes it may hold more."""
    r = response("ab}c")
    texts = [
        kept.trained_response(r, [-1.0] * 4, 0, 0.2, BYTES, "r1", stop)["text"]
        for stop in ((), ("}",))
    ]
    assert texts[0] == "ab}c" and texts[1] == "ab}"


def test_a_step_keeps_the_last_pass_and_the_marks(log, tmp_path, monkeypatch):
    """Two passes over three responses on two ranks: which rank has one in a pass may change."""
    fresh, middle = response("ab", reward=1.0), response("cd", reward=0.5)
    old = response("e\\", reward=0.0, step=2, A=[-1.0, 1.0], logp_b=[-1.0, -2.0], replayed=True)
    log.keep([[fresh], [middle]], [[old], [old]], 0.2, BYTES)  # drawn twice: kept once
    add(log, [fresh, middle], [[-1.0, -1.1], [-1.0, -1.0]])
    add(log, [old], [[-1.5, -0.5]])
    add(log, [fresh], [[-0.7, -0.9]])  # the second pass; `old` goes to the other rank
    for r in (fresh, middle, old):
        r.end_step()
    other = {2: (3, [-1.3, -0.9]), 1: (0, [-9.0, -9.0])}
    monkeypatch.setattr(metrics, "gather", lambda mine: [*mine, other])
    log.write(dict(step=3))
    first, second, third = kept_rows(tmp_path)
    assert [r["kind"] for r in (first, second, third)] == ["fresh", "fresh", "replayed"]
    assert first["logp"] == [-0.7, -0.9] and second["logp"] == [-1.0, -1.0]
    assert third["logp"] == [-1.3, -0.9]
    # e^0.3 = 1.35 > 1.2, e^0.1 = 1.11; e^-0.3 = 0.74 < 0.8 with A < 0; and of the last token
    # c = e^1 = 2.72, r = e^1.1 = 3.00 > 2.92 with A > 0
    assert first["clipped"] == [0] and second["clipped"] == [] and third["clipped"] == [0, 1]
    assert (first["age"], third["age"], third["advantage"]) == (0, 1, [-1.0, 1.0])
    assert first["advantage"] == 1.0 and first["tokens"] == ["a", "b"] and first["prompt"] == "hi"
    assert first["step"] == 3 and first["format"] is False and first["clip_eps"] == 0.2
    log.write(dict(step=4))  # nothing is kept twice
    assert len(kept_rows(tmp_path)) == 3


def test_evaluation_keeps_the_same_problems(log, tmp_path):
    problems = [Problem(7 * i, f"{i} + 1", str(i + 1), []) for i in range(5)]
    records = [
        dict(id=p.id, responses=[f"it is {p.gold}", "?"], rewards=[1.0, 0.0], lengths=[3, 1],
             answers=[p.gold if p.id else None, None], finished=[True, True])
        for p in problems
    ]  # fmt: skip
    log.keep_evaluation(records, problems)
    log.write(dict(step=0))
    assert [r["problem"] for r in kept_rows(tmp_path)] == ["0 + 1", "2 + 1"]
    assert kept_rows(tmp_path)[1] == dict(
        step=0, kind="evaluation", problem="2 + 1", gold="3", text="it is 3", answer="3",
        format=True, reward=1.0, length=3, finished=True,
    )  # fmt: skip


def test_resume_cuts_the_file_back(tmp_path):
    for name in ("metrics.jsonl", "responses.jsonl"):
        lines = [json.dumps(dict(step=step)) for step in (0, 2, 2, 4, 4, 5)]
        (tmp_path / name).write_text("\n".join([*lines, '{"step": 6, "to']))

    def steps(name):
        return [row["step"] for row in metrics.read_metrics(tmp_path / name)]

    metrics.rewind_metrics(tmp_path / "metrics.jsonl", 4, True)
    assert steps("responses.jsonl") == steps("metrics.jsonl") == [0, 2, 2, 4, 4]
    # A run that ended after step 4 goes on: it is evaluated at 4 because it was the last one
    metrics.rewind_metrics(tmp_path / "metrics.jsonl", 4, False)
    assert steps("responses.jsonl") == [0, 2, 2] and steps("metrics.jsonl") == [0, 2, 2, 4, 4]
    metrics.rewind_metrics(tmp_path / "metrics.jsonl", -1, False)
    assert steps("responses.jsonl") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(log, tmp_path):
    (tmp_path / "responses.jsonl").symlink_to("/dev/full")
    log.evaluated = [dict(kind="evaluation")]
    with pytest.raises(metrics.DiskError, match="cannot be written .No space left on device"):
        log.write(dict(step=0))


@slow
def test_a_run_keeps_what_it_trained_on_and_no_number_changes(base, tmp_path):
    """GRPO with replay; and the same without keeping. Any number up to 100 is right: every base
    model has groups with contrast then."""
    rows = [row | dict(answer="50", error="50") for row in embedded_problems("train")[:60]]
    (data := tmp_path / "data.json").write_text(json.dumps(rows))
    flags = "--algo grpo --group_size 4 --reincarnation_step 0 --lr 1e-2 --data".split()
    flags += [data, "--eval_data", data]
    run(base, tmp_path / "kept", *flags, "--keep_responses", 3)
    run(base, tmp_path / "none", *flags, "--keep_responses", 0)
    assert not (tmp_path / "none" / "responses.jsonl").exists()
    (tmp_path / "none" / "responses.jsonl").touch()
    (tmp_path / "kept" / "responses.jsonl").rename(tmp_path / "responses.jsonl")
    (tmp_path / "kept" / "responses.jsonl").touch()
    assert_same_run(tmp_path / "kept", tmp_path / "none")
    rows = kept_rows(tmp_path)
    count = {(s, k): sum((r["step"], r["kind"]) == (s, k) for r in rows)
             for s in range(5) for k in ("fresh", "replayed", "evaluation")}  # fmt: skip
    assert {key: n for key, n in count.items() if n} == {(0, "evaluation"): 3} | {
        (s, k): 3 for s in (2, 4) for k in ("fresh", "replayed", "evaluation")
    }
    marks = 0
    for r in (r for r in rows if r["kind"] != "evaluation"):
        assert "".join(r["tokens"]).startswith(r["text"]) and (r["age"] > 0) == (
            r["kind"] == "replayed"
        )
        A, eps = r["advantage"], r["clip_eps"]
        for i, (t, k, b) in enumerate(zip(r["logp"], r["logp_k"], r["logp_b"], strict=True)):
            ratio, centre = math.exp(t - b), math.exp(k - b)
            took = A > 0 and ratio > centre + eps or A < 0 and ratio < centre - eps
            marks += took
            near = min(abs(ratio - centre - eps), abs(ratio - centre + eps)) < 1e-5
            assert took == (i in r["clipped"]) or near
            assert k == b or r["kind"] == "replayed"
    assert marks


# ----------------------------------------------------------------------------------------- the page


def write_run(folder: Path, responses: list[dict] | None = None, steps=4, **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": 0, "rollouts": 0, "eval/pass@1": 0.25, "eval/response_length": 9.0}]
    for step in range(1, steps + 1):
        row = {"step": step, "rollouts": 8 * step, "reward": 0.1 * step, "kl": 0.01, "entropy": 1.5}
        row |= {f"clip_fraction/age{age}": 0.01 * age for age in range(min(step, 3))}
        rows.append(row | ({"eval/pass@1": 0.5, "eval/pass@1_ci": 0.1} if step % 2 == 0 else {}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(
        json.dumps(dict(steps=steps, lr=1e-3, loss="mix_ppg") | config)
    )
    if responses is not None:
        lines = [json.dumps(r) for r in responses]
        (folder / "responses.jsonl").write_text("\n".join([*lines, '{"step": 9, "ki']))
    return folder


def trained(at, text, logp, **more) -> dict:
    """A line of responses.jsonl, kept in step `at`."""
    r = response(text, step=at - more.get("replayed", False), **more)
    return dict(step=at) | kept.trained_response(r, logp, at - r.step, 0.2, BYTES, "r1")


def examples() -> list[dict]:
    """Step 2: fresh "abc", whose b the clip takes; replayed: markup. Step 4: a fresh one alone."""
    fresh = trained(2, "abc", [-1.0, -0.5, -1.1])
    anew = dict(reward=0.0, A=-1.0, logp_k=-1.25, logp_b=-1.5, replayed=True)
    old = trained(2, EVIL, [-1.2] * len(EVIL), **anew)
    score = dict(kind="evaluation", problem=EVIL, gold="4", text="</script>four", answer=None)
    score |= dict(format=False, reward=0.0, length=2, finished=True)
    return [fresh, old, dict(step=2) | score, trained(4, "later", [-1.0] * 5)]


def embedded(page: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)[1])


def test_bad_input_is_one_sentence(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        ([tmp_path / "nowhere"], "nowhere: holds no metrics.jsonl"),
        ([tmp_path / "empty"], "empty: holds no metrics.jsonl"),
        ([run, "--out", tmp_path / "no" / "x.html"], "x.html: No such file or directory"),
    ]:
        with pytest.raises(SystemExit) as end:
            view.main(list(map(str, arguments)))
        said = capsys.readouterr().err
        assert end.value.code == 2 and message in said and said.count("\n") == 1
        assert said.startswith("view.py: ")


def test_the_page_holds_the_run_and_no_markup_of_it(tmp_path, capsys):
    view.main([str(write_run(tmp_path / "run", examples()))])
    assert "view.html" in capsys.readouterr().out
    page = tmp_path / "run" / "view.html"
    assert "<script>hacked" not in page.read_text() and "http://" not in page.read_text().replace(
        "http://www.w3.org/2000/svg", ""
    )
    (shown,) = embedded(page)["runs"]
    assert shown["name"] == "run" and len(shown["responses"]) == 4 and shown["cuts"] == ""
    assert ["lr", 1e-3, True] in shown["settings"] and ["loss", "mix_ppg", False] in shown[
        "settings"
    ]


def test_a_reward_of_ones_own_has_its_curve(tmp_path):
    rows = [dict(step=i, rollouts=8 * i, reward=0.1, **{"eval/reward": 0.2}) for i in range(3)]
    run = write_run(tmp_path / "run", reward="mine.py:reward")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    view.main([str(run)])
    page = embedded(run / "view.html")
    assert page["panels"][0]["field"] == "eval/reward" and page["panels"][0]["scale"] == 1
    assert page["panels"][0]["title"] == "Reward against rollouts"
    assert page["runs"][0]["rows"][2]["eval/reward"] == 0.2 and "eval/reward" in page["table"]


def test_a_large_run_is_cut_to_the_limit_and_the_page_says_so(tmp_path):
    one = trained(1, "x" * 3000, [-1.0] * 2990 + [-0.5] * 10)
    many = [one | dict(step=step) for step in range(1, 60)]
    view.main([str(write_run(tmp_path / "run", many, steps=60))])
    page = tmp_path / "run" / "view.html"
    assert 300_000 < page.stat().st_size < view.LIMIT
    (shown,) = embedded(page)["runs"]
    assert "of longer responses the first and last" in shown["cuts"]
    for r in shown["responses"]:
        n, hidden = len(r["tokens"]), r["hidden"]
        assert n + hidden["tokens"] == 3000 and hidden["after"] == n // 2
        assert len(r["logp"]) == n and r["logp"][-11:-9] == [-1.0, -0.5] and hidden["clipped"] == 0
        assert r["clipped"] == list(range(n - 10, n)) and r["advantage"] == 1.0


def test_cut_keeps_both_ends():
    row = trained(1, "0123456789", [-1.0, -0.5] * 5, A=[float(i + 1) for i in range(10)])
    assert row["clipped"] == [1, 3, 5, 7, 9]
    short = view.cut(row, 4)
    assert short["tokens"] == list("0189") and short["advantage"] == [1.0, 2.0, 9.0, 10.0]
    assert short["clipped"] == [1, 3]
    assert short["hidden"] == dict(after=2, tokens=6, clipped=3)
    assert view.thin(list(range(10)), 4) == [0, 3, 6, 9] and view.thin([1, 2], 4) == [1, 2]


# ------------------------------------------------------------------------------------- in a browser

NAMES = "chromium chromium-headless-shell google-chrome google-chrome-stable chrome".split()
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """send("Domain.method", ...) -> its result, by the DevTools protocol over a pipe; `events` of
    the page are in send.events."""
    if not CHROMIUM:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is installed")
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    profile = tmp_path_factory.mktemp("profile")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    flags += [f"--user-data-dir={profile}", "--window-size=1400,900", "about:blank"]
    # The browser reads its commands from descriptor 3 and answers on 4
    script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", script, CHROMIUM, *flags], pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in), os.close(theirs_out)
    buffer, number, session = b"", 0, {}

    def receive(deadline: float) -> dict:
        nonlocal buffer
        while b"\0" not in buffer:
            ready, _, _ = select.select([ours_in], [], [], max(0, deadline - time.time()))
            read = os.read(ours_in, 1 << 20) if ready else b""
            assert read, "the browser does not answer"
            buffer += read
        message, _, buffer = buffer.partition(b"\0")
        return json.loads(message)

    def send(method: str, **params):
        nonlocal number
        number += 1
        os.write(
            ours_out,
            json.dumps(dict(id=number, method=method, params=params) | session).encode() + b"\0",
        )
        deadline = time.time() + 60
        while (answer := receive(deadline)).get("id") != number:
            send.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    send.events = []
    target = send("Target.createTarget", url="about:blank")["targetId"]
    session["sessionId"] = send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        send(f"{domain}.enable")
    yield send
    session.clear()
    send("Browser.close")
    process.wait(30)
    os.close(ours_in), os.close(ours_out)


def look(send, expression: str):
    """The value of an expression on the page."""
    done = send("Runtime.evaluate", expression=expression, returnByValue=True)
    assert "exceptionDetails" not in done, (expression, done)
    return done["result"].get("value")


def visit(send, page: Path) -> None:
    send.events.clear()
    send("Page.navigate", url="about:blank")
    send("Page.navigate", url=page.as_uri())
    deadline = time.time() + 60
    while look(send, "document.readyState + location.protocol") != "completefile:":
        assert time.time() < deadline
        time.sleep(0.05)


def press(send, *keys: str) -> None:
    for key in keys:
        for kind in ("keyDown", "keyUp"):
            send("Input.dispatchKeyEvent", type=kind, key=key)


def click(send, text: str) -> None:
    """The button of this text, with the mouse."""
    x, y = look(
        send,
        f"""(() => {{ const box = [...document.querySelectorAll("button")].find(
        b => b.firstChild.textContent === {json.dumps(text)}).getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2]; }})()""",
    )
    for kind in ("mousePressed", "mouseReleased"):
        send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def problems(send) -> list:
    """Errors on the console, and requests beyond the page itself."""
    look(send, "1")  # what was said before has arrived then
    return [
        event for event in send.events
        if event["method"] == "Runtime.exceptionThrown"
        or event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] == "error"
        or event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error"
        or event["method"] == "Network.requestWillBeSent"
        and not event["params"]["request"]["url"].endswith(("/view.html", "data:,", "about:blank"))
    ]  # fmt: skip


COLOURS = """[...document.querySelectorAll("#{} .text span")].map(
    span => getComputedStyle(span).backgroundColor)"""
NONE = "rgba(0, 0, 0, 0)"


def test_the_page_in_a_browser(browser, tmp_path):
    view.main([str(write_run(tmp_path / "run", examples(), reincarnation_step=2))])
    visit(browser, tmp_path / "run" / "view.html")
    assert look(browser, "document.title") == "run"
    # accuracy, reward, length, kl, entropy, clip; what was not logged has no panel
    assert look(browser, "document.querySelectorAll('svg').length") == 6
    assert look(browser, "document.querySelectorAll('svg:last-child polyline').length") == 3
    assert "25.0 % → 50.0 %" in look(browser, "document.body.innerText")

    press(browser, "2")  # the first step that has replayed responses
    assert look(browser, "document.getElementById('step').textContent") == "2"
    # |log r| of "abc" is 0, 0.5, 0.1, of the replayed one 0.3: the scale's end is 0.5
    fresh, old = (look(browser, COLOURS.format(kind)) for kind in ("fresh", "replayed"))
    assert fresh == [NONE, "rgba(213, 94, 0, 0.85)", "rgba(0, 114, 178, 0.17)"]
    assert set(old) == {"rgba(213, 94, 0, 0.51)"}
    assert look(browser, "document.getElementById('legend').innerText").split() == [
        "÷", "1.65", "×", "1.65"]  # fmt: skip
    marked = "[...document.querySelectorAll('.took')].map(span => [span.textContent, {}])"
    style = "getComputedStyle(span).outlineStyle, getComputedStyle(span).textDecorationLine"
    assert look(browser, marked.format(style)) == [["b", "solid", "underline"]]
    press(browser, "m")  # no marks, the same colours
    assert look(browser, marked.format(style)) == [["b", "none", "none"]]
    assert look(browser, COLOURS.format("fresh")) == fresh
    click(browser, "clip marks")
    assert look(browser, marked.format(style)) == [["b", "solid", "underline"]]

    press(browser, "a")  # GRPO's advantage, one number a response
    assert len(set(look(browser, COLOURS.format("fresh")))) == 1
    assert look(browser, COLOURS.format("replayed"))[0] == "rgba(0, 114, 178, 0.85)"
    click(browser, "KL to π_k")  # log pi_theta - log pi_k: 0, 0.5, -0.1; 0.05, the scale's end
    ends = ["rgba(213, 94, 0, 0.85)", "rgba(0, 114, 178, 0.85)"]
    assert look(browser, COLOURS.format("fresh")) == [NONE, *ends]
    assert set(look(browser, COLOURS.format("replayed"))) == {ends[0]}
    press(browser, "p")
    assert set(look(browser, COLOURS.format("fresh"))) == {NONE}
    press(browser, "r")
    assert look(browser, COLOURS.format("fresh")) == fresh

    x, y = look(
        browser,
        "(b => [b.x + 2, b.y + 2])(document.querySelector('.took').getBoundingClientRect())",
    )
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    tip = look(browser, "document.getElementById('tip').innerText")
    assert "token 2" in tip and "r = π_θ / π_b = 1.649" in tip and "[0.800, 1.200]" in tip
    assert "the clip takes its gradient" in tip

    press(browser, "ArrowRight")
    assert look(browser, "document.getElementById('step').textContent") == "4"
    assert "None in this step" in look(browser, "document.getElementById('replayed').innerText")
    press(browser, "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft")  # stops at both ends
    assert look(browser, "document.getElementById('step').textContent") == "2"

    assert EVIL in look(browser, "document.getElementById('replayed').textContent")
    press(browser, "3")
    assert EVIL in look(browser, "document.getElementById('main').textContent")
    assert "answer none" in look(browser, "document.getElementById('main').innerText")
    click(browser, "Steps")
    assert look(browser, "document.querySelectorAll('tr').length") == 6
    look(browser, "[...document.querySelectorAll('tr.has')].at(-1).click()")  # to its responses
    assert look(browser, "document.getElementById('step').textContent") == "4"
    press(browser, "5")
    assert "lr 0.001" in look(browser, "document.getElementById('main').innerText")
    background = "getComputedStyle(document.body).backgroundColor"
    before = (
        look(browser, background),
        look(browser, "getComputedStyle(document.documentElement).fontSize"),
    )
    press(browser, "d", "+")
    assert look(browser, background) != before[0]
    assert look(browser, "getComputedStyle(document.documentElement).fontSize") != before[1]
    assert look(browser, "window.hacked === undefined") and problems(browser) == []


def test_the_page_of_an_older_run_and_of_several(browser, tmp_path):
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new", examples(), loss="gspo")
    page = tmp_path / "both" / "view.html"
    page.parent.mkdir()
    view.main([str(old), str(new), "--out", str(page)])
    visit(browser, page)
    assert look(browser, "document.querySelectorAll('svg polyline').length") == 2 * 8
    press(browser, "2")
    assert "This run has kept no responses" in look(browser, "document.body.innerText")
    press(browser, "n")
    assert look(browser, "document.querySelectorAll('.took').length") == 1
    assert "this run's loss is gspo" in look(browser, "document.body.innerText")
    assert problems(browser) == []
