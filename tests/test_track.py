"""--track with the real libraries, offline, read back by their own readers, also after a resume."""

import importlib.machinery
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import threading

import pytest
from conftest import ROOT
from test_remix import SMALL, clean_env

import config
import trackers

OFFLINE = dict(
    WANDB_MODE="offline",
    WANDB_ERROR_REPORTING="false",
    WANDB__DISABLE_STATS="true",
    HF_HUB_OFFLINE="1",
    GRADIO_ANALYTICS_ENABLED="False",
)


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory):
    """Trackio reads TRACKIO_DIR when it is imported, so all tests of this process share one."""
    before = dict(os.environ)
    os.environ.update(OFFLINE, TRACKIO_DIR=str(tmp_path_factory.mktemp("trackio")))
    yield
    os.environ.clear()
    os.environ.update(before)


# ------------------------------------------------------------------- readers: step -> name -> value


def event_accumulator(out):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(out / "tensorboard"), size_guidance=dict(scalars=0))


def read_tensorboard(out):
    events, rows = event_accumulator(out).Reload(), {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            row = rows.setdefault(event.step, dict(step=event.step))
            assert tag not in row, f"{tag} twice at step {event.step}"
            row[tag] = event.value
    return rows


def records(data):
    """The records of a .wandb file: LevelDB's log format behind seven bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # the whole of one, or its last part
            yield whole
            whole = b""


def read_wandb(out, runs=None):
    """By the library's own protobuf classes: it has no reader in Python. One folder, one run."""
    from wandb.proto import wandb_internal_pb2

    (path,) = out.glob("wandb/offline-run-*/*.wandb")
    rows = {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "run" and runs is not None:
            settings = {i.key: json.loads(i.value_json) for i in record.run.config.update}
            runs.append((record.run.project, record.run.display_name, record.run.run_id, settings))
        if record.WhichOneof("record_type") == "history":
            items = {i.key or ".".join(i.nested_key): i.value_json for i in record.history.item}
            step = record.history.step.num
            assert step not in rows
            rows[step] = {k: json.loads(v) for k, v in items.items() if not k.startswith("_")}
            rows[step]["step"] = step
    return rows


def read_trackio(out):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    project = out.parent.name
    (run,) = [run for run in trackio.Api().runs(project) if run.name == out.name]
    assert run.config["lr"] == 0.5
    return trackio_rows(SQLiteStorage.get_logs(project, run.name, run_id=run.id))


def trackio_rows(logs):
    rows = {}
    for log in logs:
        assert log["step"] not in rows
        rows[log["step"]] = {k: v for k, v in log.items() if k != "timestamp"}
    return rows


def finish(name):
    """The end of a process, in this one."""
    if name == "wandb":
        sys.modules["wandb"].teardown()  # its service goes on otherwise, and writes late
    if name == "trackio":
        sys.modules["trackio"].finish()


READERS = dict(tensorboard=read_tensorboard, wandb=read_wandb, trackio=read_trackio)


def run_folder(tmp_path):
    out = tmp_path / "project" / "name"
    out.mkdir(parents=True)
    starts = [dict(time="2026-01-01", command=str(tmp_path))]
    (out / "config.json").write_text(json.dumps(dict(lr=0.5, starts=starts)))
    return out


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_run_that_goes_on_is_one_run_with_each_step_once(tmp_path, name):
    """Killed after step 3, whose evaluation no checkpoint has; it goes on after step 2."""
    pytest.importorskip(name, reason=f"{name} is optional: requirements-tests.txt has it")
    out, said = run_folder(tmp_path), []
    rows = [{"step": i, "reward": i / 4, "eval/pass@1": 0.5} for i in range(4)]
    write = trackers.start(name, str(out), [], said.append)
    for row in rows:
        write(row)
    finish(name)
    if name == "tensorboard":  # a server that is open meanwhile
        shown = event_accumulator(out).Reload()
    assert READERS[name](out) == {row["step"]: row for row in rows}

    again = [{"step": i, "reward": 8.0 + i} for i in (3, 4)]
    write = trackers.start(name, str(out), rows[:3], said.append)
    for row in again:
        write(row)
    finish(name)
    expected = rows[:3] + again
    assert READERS[name](out) == {row["step"]: row for row in expected}
    assert len(said) == 2 and all(text.startswith("tracking: ") for text in said), said
    if name == "tensorboard":
        values = {event.step: event.value for event in shown.Reload().Scalars("reward")}
        assert values == {row["step"]: row["reward"] for row in expected}


def test_wandb_has_the_config_and_the_names(tmp_path):
    pytest.importorskip("wandb", reason="wandb is optional: requirements-tests.txt has it")
    out, runs = run_folder(tmp_path), []
    write = trackers.start("wandb", str(out), [], print)
    write(dict(step=0, reward=1.0))
    finish("wandb")
    read_wandb(out, runs)
    project, name, id, settings = runs[0]
    assert (project, name, settings["lr"]) == ("project", "name", 0.5)
    assert id == settings["id"] and len(id) == 12
    shutil.move(out, tmp_path / "moved")  # a run may move; it stays the same one
    write = trackers.start("wandb", str(tmp_path / "moved"), [], print)
    write(dict(step=0, reward=1.0))
    finish("wandb")
    read_wandb(tmp_path / "moved", runs)
    assert runs[-1][2] == id


# ---------------------------------------------------------------------------------- what goes wrong


def test_a_tracker_that_cannot_start_is_left_with_one_warning(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    out, said = run_folder(tmp_path), []
    (out / "tensorboard").write_text("in the way")
    write = trackers.start("tensorboard", str(out), [dict(step=0)], said.append)
    write(dict(step=1, reward=1.0))
    (text,) = said
    assert text.startswith("warning: --track tensorboard: ") and text.endswith("goes on without it")


def test_a_disk_that_fills_up_costs_the_tracker_alone(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # its writer's thread
    out, said = run_folder(tmp_path), []
    write = trackers.start("tensorboard", str(out), [], said.append)
    write(dict(step=0, reward=1.0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        for i in range(1, 30):
            write(dict(step=i, reward=1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(said) == 2 and said[1].startswith("warning: --track tensorboard: "), said


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--track mlflow", "--track mlflow: is none of tensorboard, wandb, trackio; take"),
        ("--track a.b,wandb", "--track a.b,wandb: is none of"),
        ("--track ,", "--track ,: is none of tensorboard"),
        ("--track tensorboard,wandb", "pip install tensorboard wandb"),
        ("--peak_tflops -1", "--peak_tflops -1.0: must not be negative"),
    ],
)
def test_refusals(monkeypatch, flags, message):
    """A folder ./wandb beside the program looks like a package without files: it is none."""
    spec = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setattr(trackers, "find_spec", lambda name: spec if name == "wandb" else None)
    cfg = config.parse_config(["--recipe", "tiny", *flags.split()])
    with pytest.raises(ValueError) as error:
        config.check_config(cfg)
    assert message in str(error.value)


def test_several_with_spaces():
    assert trackers.named("tensorboard, trackio") == ["tensorboard", "trackio"]
    config.check_config(
        config.parse_config(["--recipe", "tiny", "--track", "tensorboard, trackio"])
    )


# ---------------------------------------------------------------------------------- the whole thing


@pytest.mark.slow
def test_all_three_on_the_command_line(base, tmp_path):
    """What they hold is metrics.jsonl, after a run whose last checkpoint was lost, too."""
    for name in trackers.TRACKERS:
        pytest.importorskip(name, reason=f"{name} is optional: requirements-tests.txt has it")
    out = tmp_path / "project" / "name"
    of_this_process = ("TRACKIO_DIR", "WANDB_SERVICE")
    env = {k: v for k, v in clean_env(**OFFLINE).items() if k not in of_this_process}

    def run(*flags):
        command = [sys.executable, "remix.py", "--model", base, "--out", str(out), *SMALL, *flags]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("tracking: ") == flags[-1].count(",") + 1
        assert "warning: --track" not in done.stdout

    run("--steps", "3", "--save_every", "2", "--track", "tensorboard,wandb")
    shutil.rmtree(out / "checkpoints" / "step-000003")
    run("--steps", "4", "--track", "tensorboard,wandb,trackio")
    rows = {row["step"]: row for row in map(json.loads, open(out / "metrics.jsonl"))}
    assert list(rows) == [0, 1, 2, 3, 4]
    assert read_wandb(out) == rows
    script = (
        "import json, trackio; from trackio.sqlite_storage import SQLiteStorage; "
        "print(json.dumps(SQLiteStorage.get_logs('project', 'name')))"
    )
    env = env | dict(TRACKIO_DIR=str(out / "trackio"))
    logs = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert trackio_rows(json.loads(logs.stdout.splitlines()[-1])) == rows
    shown = read_tensorboard(out)
    assert shown.keys() == rows.keys()
    for step, row in rows.items():
        assert shown[step] == pytest.approx(row, rel=1e-6)
