"""Runs end right or are refused, faults E1 to E10: one run a folder, the same data, damaged
checkpoints, signals, full disks, ranks that differ. Each in one sentence, and nothing is lost."""

import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_remix import assert_same_run, bad, clean_env, metrics, run, start

import checkpoint
import config
import parallel
from buffer import REMIX, Buffer
from data import Problem
from metrics import DiskError, Log
from reward import Grader
from tiny import embedded_problems

# Six steps across the reincarnation after step 3, saved after 3 and 6
SIX = "--steps 6 --max_tokens 32 --kl_convex 0.6 --kl_coef 0.1".split()
config.RENEW_S = 1e6  # who loses a lock ends, and this process takes locks only to lose them


def ends(process, seconds=300) -> tuple[int, str]:
    """Exit status, and what it said last."""
    _, stderr = process.communicate(timeout=seconds)
    assert "Traceback" not in stderr, stderr
    return process.returncode, stderr


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def rows_of(out) -> int:
    path = Path(out, "metrics.jsonl")
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="session")
def problems(tmp_path_factory) -> Path:
    """Any number up to 100 is right: without rewards nothing would move."""
    path = tmp_path_factory.mktemp("data") / "problems.json"
    rows = [row | dict(answer="50", error="50") for row in embedded_problems("train")[:64]]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="session")
def whole(base, problems, tmp_path_factory):
    """A run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(base, out, *SIX, "--data", problems)
    return out


# ------------------------------------------------------------------------------------- E1: one run


@pytest.fixture
def other():
    """Another living process of this host."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def put_lock(out: Path, host: str, pid: int, age: float = 0.0) -> Path:
    out.mkdir(exist_ok=True)
    (out / "lock").write_text(json.dumps(dict(host=host, pid=pid)))
    os.utime(out / "lock", (time.time() - age,) * 2)
    return out / "lock"


def holder(out: Path) -> int:
    return json.loads((out / "lock").read_text())["pid"]


def test_e1_a_folder_where_another_process_runs_is_refused(tmp_path, other):
    put_lock(tmp_path, socket.gethostname(), other.pid)
    with pytest.raises(ValueError, match=f"--out .*: process {other.pid} on .* runs there; wait"):
        config.lock(tmp_path)
    assert holder(tmp_path) == other.pid
    other.kill()
    other.wait()
    config.lock(tmp_path)
    assert holder(tmp_path) == os.getpid()


def test_e1_the_lock_of_a_host_that_is_gone(tmp_path, monkeypatch):
    put_lock(tmp_path, "elsewhere", 1, age=200)
    config.lock(tmp_path)  # not renewed for minutes
    assert holder(tmp_path) == os.getpid()
    monkeypatch.setattr(config, "STALE_S", 1.5)
    put_lock(tmp_path, "elsewhere", 1)
    config.lock(tmp_path)  # waited for
    assert holder(tmp_path) == os.getpid()


def test_e1_the_lock_of_a_host_that_lives(tmp_path):
    lock = put_lock(tmp_path, "elsewhere", 7)
    threading.Timer(0.3, lambda: os.utime(lock)).start()
    with pytest.raises(ValueError, match="process 7 on elsewhere runs there"):
        config.lock(tmp_path)


def test_e1_as_a_command(base, tmp_path, other):
    put_lock(tmp_path, socket.gethostname(), other.pid, age=-3600)
    status, said = ends(start(base, tmp_path, *SIX))
    assert status == 1 and len(said.splitlines()) == 1 and "end it, or name a new folder" in said


def test_e1_who_lost_the_lock_ends_and_who_ends_gives_it_back(tmp_path):
    script = "import config, pathlib, sys, time; config.RENEW_S = 0.05; "
    script += "config.lock(pathlib.Path(sys.argv[1])); time.sleep(float(sys.argv[2]))"

    def hold(seconds):
        command = [sys.executable, "-c", script, str(tmp_path / "run"), str(seconds)]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    assert ends(hold(0.2)) == (0, "") and not (tmp_path / "run").exists()
    process = hold(60)
    wait_for((tmp_path / "run" / "lock").exists, process)
    put_lock(tmp_path / "run", "elsewhere", 1)
    status, said = ends(process)
    assert status == 1 and said.endswith("another process runs there now\n")


# ------------------------------------------------- E1, E2, E4 and a file that shrinks, in one run


def test_a_run_that_is_disturbed_and_asked_to_stop_loses_nothing(base, problems, whole, tmp_path):
    data, out = tmp_path / "problems.json", tmp_path / "run"
    shutil.copy(problems, data)
    flags = [*SIX, "--data", data]
    process = start(base, out, *flags, "--save_every", 100)
    wait_for(lambda: rows_of(out) >= 2, process)
    with pytest.raises(ValueError, match=f"--out {out}: process {process.pid} on .* runs there"):
        config.lock(out)
    data.write_text(json.dumps(json.loads(data.read_text())[:9]))  # it has been read already
    process.send_signal(signal.SIGTERM)
    status, said = ends(process)
    step = rows_of(out) - 1  # one row is of step 0
    assert status == 128 + signal.SIGTERM and 1 <= step < 6
    first, last = said.splitlines()
    assert first == "remix.py: SIGTERM: this step ends and is saved; a second ends at once"
    assert (
        last
        == f"remix.py: SIGTERM: ends after step {step}, which is saved; the same command goes on"
    )
    assert checkpoint.latest(out).name == f"step-{step:06d}" and not (out / "lock").exists()

    status, said = ends(start(base, out, *flags))
    assert status == 1 and "its problems or their prompts are not those that the run" in said
    shutil.copy(problems, data)
    run(base, out, *flags)
    assert_same_run(out, whole)
    written = json.loads((out / "config.json").read_text())
    assert [row["ranks"] for row in written["starts"]] == [1, 1]
    assert all(row["git_commit"] and row["time"] for row in written["starts"])
    assert "--save_every 100" in written["starts"][0]["command"]


def test_e4_a_second_signal_ends_at_once(tmp_path):
    """A launcher's repetition within a second is none."""
    script = """
import os, signal, time, checkpoint
checkpoint.finish_on_signals()
for _ in range(2):
    os.kill(os.getpid(), signal.SIGINT)
print(checkpoint.asked[0], flush=True)
time.sleep(1.1)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(9)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{int(signal.SIGINT)}\n" and done.returncode == -signal.SIGTERM
    assert len(done.stderr.splitlines()) == 1


def test_e4_a_rank_alone_gets_the_signal(base, problems, tmp_path):
    """Both end with the same step, and both ranks together go on."""
    flags = [*SIX, "--data", problems, "--save_every", 100]
    job = start(base, tmp_path / "run", *flags, ranks=2)
    wait_for(lambda: rows_of(tmp_path / "run") >= 2, job)
    ranks = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(ranks[1]), signal.SIGTERM)
    _, stderr = job.communicate(timeout=300)
    assert job.returncode != 0 and "remix.py: SIGTERM: ends after step" in stderr
    step = rows_of(tmp_path / "run") - 1
    assert checkpoint.latest(tmp_path / "run").name == f"step-{step:06d}"
    rows = run(base, tmp_path / "run", *flags, ranks=2)
    assert [row["step"] for row in rows] == list(range(7))


# ------------------------------------------------------------------------------- E2: the same data


def test_e2_other_problems_are_refused(tmp_path):
    def sha256(answer, ids=(1, 2)):
        return checkpoint.problems_sha256([Problem(0, "1 + 1", answer, list(ids))])

    cfg = bad("--out", tmp_path)
    then = dict(data=sha256("2"), eval_data=sha256("3"))
    checkpoint.write_json(tmp_path / "config.json", vars(cfg) | dict(sha256=then))
    config.check_problems(cfg, then)
    for other in (sha256("4"), sha256("2", ids=[1, 3])):  # another gold, another prompt
        with pytest.raises(ValueError, match="--data tiny: its problems or their prompts are not"):
            config.check_problems(cfg, then | dict(data=other))
    with pytest.raises(ValueError, match="--eval_data : its problems"):
        config.check_problems(cfg, then | dict(eval_data=sha256("4")))
    longer = bad("--out", tmp_path, "--eval_limit", 7)  # asked for, so no surprise
    config.check_problems(longer, then | dict(eval_data=sha256("4")))
    checkpoint.write_json(tmp_path / "config.json", vars(cfg))  # of an older run
    config.check_problems(cfg, then)


# -------------------------------------------------------------------------- E3: damaged checkpoints


def small_run():
    model = torch.nn.Linear(3, 2)
    return dict(policy=model), dict(policy=torch.optim.AdamW(model.parameters()))


def save(out: Path, step: int) -> None:
    """A checkpoint whose weights are its step."""
    models, optimizers = small_run()
    torch.nn.init.constant_(models["policy"].weight, step)
    buffer = Buffer(2, REMIX, 0, 1)
    state = vars(checkpoint.State(step=step)) | dict(buffer=buffer.state_dict([]))
    checkpoint.save(out, step, models, optimizers, state)


def test_e3_a_damaged_checkpoint_leaves_the_one_before_it(group, tmp_path, capsys):
    for step in (1, 2, 3):
        save(tmp_path, step)
    whole = checkpoint.saved_steps(tmp_path)
    assert [path.name for path in whole] == ["step-000002", "step-000003"]
    files = [path for path in whole[1].iterdir() if path.is_file()]
    assert {path.name for path in files} >= {".metadata", "state.pt"} and len(files) >= 3
    for file in files:
        content = file.read_bytes()
        for cut in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:cut])
            models, optimizers = small_run()
            saved, state = checkpoint.load_newest(tmp_path, models, optimizers)
            assert saved == whole[0] and state["step"] == 2, (file.name, cut)
            assert torch.all(models["policy"].weight == 2)
            said = capsys.readouterr().out
            assert "step-000003: cannot be read (" in said and len(said.splitlines()) == 1
        file.write_bytes(content)
    assert checkpoint.load_newest(tmp_path, *small_run())[1]["step"] == 3


def test_e3_a_run_puts_a_damaged_checkpoint_aside(group, tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in range(3)))
    (tmp_path / "checkpoints" / "step-000002" / "state.pt").write_bytes(b"")
    cfg = bad("--out", tmp_path)
    assert checkpoint.load_run(cfg, *small_run(), Buffer(2, REMIX, 0, 1)).step == 1
    assert [row["step"] for row in metrics(tmp_path)] == [0, 1]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["damaged-step-000002", "step-000001"]
    (tmp_path / "checkpoints" / "step-000001" / "state.pt").unlink()
    with pytest.raises(DiskError, match="none of its checkpoints can be read .*; restore one"):
        checkpoint.load_run(cfg, *small_run(), Buffer(2, REMIX, 0, 1))


def test_friction_17_a_checkpoint_that_vanishes_under_an_export(group, tmp_path, monkeypatch):
    """A run deletes what is read, and has a newer one by then."""
    save(tmp_path, 1)
    real, calls = checkpoint.load, []

    def load(path, *args):
        if not calls:
            calls.append(path)
            for step in (2, 3):
                save(tmp_path, step)
        return real(path, *args)

    monkeypatch.setattr(checkpoint, "load", load)
    assert checkpoint.load_newest(tmp_path, *small_run())[1]["step"] == 3


# --------------------------------------------------------------------------------- E5: file modes


def test_e5_an_exported_model_has_the_modes_of_the_umask(base, group, tokenizer, tmp_path):
    from model import Policy, load_model

    policy = load_model(Policy, base, device="cpu", dtype="float32")
    for umask, mode in ((0o022, 0o644), (0o027, 0o640)):
        before = os.umask(umask)
        checkpoint.export(policy, tokenizer, tmp_path / "model")
        assert os.umask(before) == umask
        files = list((tmp_path / "model").iterdir())
        assert len(files) > 3 and {path.stat().st_mode & 0o777 for path in files} == {mode}


# --------------------------------------------------------------------------------------- E6: macOS


def test_e6_grading_without_a_limit_of_address_space():
    script = """
import resource, sys
def setrlimit(*_): raise ValueError("current limit exceeds maximum limit")
resource.setrlimit = setrlimit
sys.path.insert(0, sys.argv[1])
import reward
reward.work(int(sys.argv[2]))
"""
    with Grader(command=[sys.executable, "-c", script, str(ROOT)]) as grader:
        assert grader.score([r"\boxed{2}", r"\boxed{3}"], ["2", "2"], "boxed").rewards == [1, 0]


# ------------------------------------------------------------------- E7: folders that cannot be


@pytest.mark.parametrize("out", ["file", "file/run", "/proc/run", "full/run"])
def test_e7_a_run_folder_that_cannot_be_written(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    if out.startswith("full"):  # root, who may run this, can write everywhere
        real = Path.mkdir

        def mkdir(self, *args, **options):
            if self.name == "run":
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            real(self, *args, **options)

        monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(ValueError, match=f"--out {out}: .*; name a folder that can be written"):
        config.check_out(bad("--out", out))
        config.lock(Path(out))


def test_e7_a_damaged_config_is_named(tmp_path):
    for text in ('{"seed"', "[]", "3"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="its config.json is damaged; restore it"):
            config.check_out(bad("--out", tmp_path))


def test_a_start_that_was_killed_can_be_repeated(tmp_path):
    for name in ("lock", "config.json.partial"):
        (tmp_path / name).write_text("{")
    config.check_out(bad("--out", tmp_path))


# --------------------------------------------------------------- E8, E9: what a refusal says, alone


def test_e8_e9_a_refusal_stands_alone_and_says_what_is_left(base, problems, tmp_path):
    flags = [*SIX, "--data", problems, "--lr", 1e6, "--grad_clip", 1e9, "--eval_every", 0]
    status, said = ends(start(base, tmp_path / "run", *flags, "--save_every", 100))
    assert status == 1 and len(said.splitlines()) == 1, said
    assert "the run stops before this update, and there is no checkpoint yet. Lower --lr" in said


def test_e8_of_a_checkpoint_that_is_there(group, tmp_path):
    log = Log(bad("--out", tmp_path), 0, "cpu")
    log.step = 9
    (tmp_path / "checkpoints" / "step-000008").mkdir(parents=True)
    with pytest.raises(FloatingPointError, match="and the checkpoint of step 8 is intact. Lower"):
        log.stop_if_not_finite(dict(kl=float("nan")))


# ------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def full_disk():
    """Writes beyond so many bytes of a file fail in the kernel, whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 600, 2500])
def test_a_disk_that_fills_up_in_a_save_leaves_the_last_checkpoint(
    group, tmp_path, full_disk, size
):
    save(tmp_path, 1)
    sizes = sorted(path.stat().st_size for path in (checkpoint.latest(tmp_path)).iterdir())
    assert sizes[-1] > 2500, "the largest limit of this test must hit"
    full_disk(size)
    with pytest.raises(DiskError) as error:
        save(tmp_path, 2)
    full_disk(resource.RLIM_INFINITY)
    said = str(error.value)
    assert said.startswith(f"--out {tmp_path}: cannot be written (") and "\n" not in said
    assert said.endswith(
        "; the checkpoint of step 1 is intact. Make room, and the same command goes on"
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert checkpoint.load_newest(tmp_path, *small_run())[1]["step"] == 1


def test_a_run_on_a_disk_that_fills_up_goes_on_as_if_nothing_had_happened(
    base, problems, whole, tmp_path
):
    out, flags = tmp_path / "run", [*SIX, "--data", problems]
    run(base, out, *flags, "--steps", 3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # inherited
    try:
        process = start(base, out, *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    status, said = ends(process)
    assert status == 1 and len(said.splitlines()) == 1
    assert "cannot be written (" in said and "; the checkpoint of step 3 is intact. Make" in said
    run(base, out, *flags)
    assert_same_run(out, whole)


# ----------------------------------------------------------------- friction 1: ranks that differ


def test_friction_1_ranks_must_run_the_same(monkeypatch):
    def gather_with(other):
        return lambda mine: [*mine, ("far", other)]

    facts = {"torch": "2", "--lr": 1e-6}
    monkeypatch.setattr(parallel, "gather", gather_with(facts))
    config.check_ranks(facts)
    here = socket.gethostname()
    for other, name, values in [
        (facts | {"--lr": 1e-5}, "--lr", ("1e-05", "1e-06")),
        ({"--lr": 1e-6}, "torch", ("None", "2")),
        (facts | {"vllm": "1"}, "vllm", ("1", "None")),
    ]:
        monkeypatch.setattr(parallel, "gather", gather_with(other))
        expected = (
            rf"{name}: {values[0]} on far \(rank 1\), {values[1]} on {here} \(rank 0\); start"
        )
        with pytest.raises(ValueError, match=expected):
            config.check_ranks(facts)


def test_friction_1_two_nodes_with_different_flags_are_refused(base, problems, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    jobs = []
    for node, lr in enumerate(("1e-3", "2e-3")):
        where = f"--nnodes 2 --node_rank {node} --master_addr 127.0.0.1 --master_port {port}"
        command = [sys.executable, "-m", "torch.distributed.run", *where.split(), "remix.py"]
        flags = ["--model", base, "--data", problems, "--prompt", "plain", "--lr", lr]
        flags += [*SIX, "--out", tmp_path / "run"]
        pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        command = [*command, *map(str, flags)]
        jobs.append(subprocess.Popen(command, cwd=ROOT, env=clean_env(), **pipes))
    for job in jobs:
        _, stderr = job.communicate(timeout=300)
        lines = [line for line in stderr.splitlines() if line.startswith("remix.py: ")]
        assert job.returncode == 1 and len(lines) == 1, stderr
        assert lines[0].startswith("remix.py: --lr: 0.002 on ") and "0.001 on " in lines[0]
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------ frictions 2, 8, 25: installs, resumes


def test_friction_2_an_install_for_cpus_does_not_do_on_a_gpu_node(tmp_path):
    """install.sh in a folder of its own: status 0 = there already, 2 = it would install, with a
    python that it finds too old."""
    files = "requirements.txt requirements-cpu.txt requirements-gpu.txt install.sh".split()
    for name in files:
        shutil.copy(ROOT / name, tmp_path)
    smi = tmp_path / "bin" / "nvidia-smi"
    for path in (smi.parent, tmp_path / ".venv"):
        path.mkdir()
    text = "".join((tmp_path / name).read_text() for name in files)
    cksum = subprocess.run("cksum", input=text, capture_output=True, text=True).stdout.split()[0]

    def install(gpu: bool) -> int:
        smi.write_text("#!/bin/sh\n" + ("exit 0" if gpu else "exit 9"))
        smi.chmod(0o755)
        env = os.environ | dict(PATH=f"{smi.parent}:{os.environ['PATH']}", PYTHON="false")
        return subprocess.run(["bash", str(tmp_path / "install.sh")], env=env).returncode

    assert [install(gpu=False), install(gpu=True)] == [2, 2]
    stamp = tmp_path / ".venv" / f"installed-cpu-{cksum}"
    stamp.touch()
    assert [install(gpu=False), install(gpu=True)] == [0, 2]
    stamp.rename(tmp_path / ".venv" / f"installed-gpu-{cksum}")  # a login node keeps it
    assert [install(gpu=False), install(gpu=True)] == [0, 0]


def test_friction_8_a_flag_that_is_younger_than_the_run_has_its_default(tmp_path):
    cfg = bad("--out", tmp_path, "--algo", "grpo")
    old = vars(cfg).copy()
    for name in ("sampler_lag", "group_size", "entropy_coef"):  # of two the default depends on algo
        del old[name]
    checkpoint.write_json(tmp_path / "config.json", old)
    config.check_out(cfg)
    with pytest.raises(ValueError, match="--group_size 4: the run .* has --group_size 8"):
        config.check_out(bad("--out", tmp_path, "--algo", "grpo", "--group_size", 4))


def test_friction_25_evaluation_may_change_and_every_start_is_kept(group, tmp_path, monkeypatch):
    cfg = bad("--out", tmp_path)
    monkeypatch.setattr(checkpoint, "git_commit", lambda: "abc")
    assert checkpoint.record_start(cfg, dict(data="1")) == []
    config.check_out(bad("--out", tmp_path, "--eval_every", 3, "--eval_n", 9, "--eval_top_p", 1))
    monkeypatch.setattr(checkpoint, "git_commit", lambda: "def")
    (warning,) = checkpoint.record_start(cfg, dict(data="1"))
    assert warning.startswith("warning: ") and "ran code abc so far, and def now" in warning
    written = json.loads((tmp_path / "config.json").read_text())
    assert [row["git_commit"] for row in written["starts"]] == ["abc", "def"]
    assert written["git_commit"] == "def" and written["sha256"] == dict(data="1")
