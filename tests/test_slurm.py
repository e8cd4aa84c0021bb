"""examples/slurm.sh with stand-ins for Slurm's commands: two nodes, on this machine."""

import os
import signal
import subprocess

import pytest
from conftest import ROOT
from test_remix import SMALL, assert_same_run, clean_env, metrics
from test_runs import rows_of, wait_for

import checkpoint

pytestmark = pytest.mark.slow

SLURM = {
    # The command once a node, each in a process group; the first that fails ends the others
    "srun": """
        set -m
        while [[ $1 == --* ]]; do shift; done
        for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
          SLURM_NODEID=$node "$@" &
        done
        jobs -p > tasks
        status=0
        for task in $(jobs -p); do
          wait -n || { status=$?; for task in $(< tasks); do kill -9 -- -$task; done; }
        done
        exit $status""",
    "scontrol": 'if [ "$1" = show ]; then tr , "\\n" <<< "$3"; else echo "$@" >> asked; fi',
    "scancel": 'echo "$@" >> asked; kill -TERM $(< tasks)',  # not what these have started
}


@pytest.fixture
def sbatch(base, tmp_path):
    """sbatch(out) starts the script in tmp_path, whose train.sh is the project's."""
    (tmp_path / "train.sh").write_text(f'exec bash {ROOT}/train.sh "$@"\n')
    (tmp_path / "bin").mkdir()
    for name, text in SLURM.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    job = dict(SLURM_JOB_ID="4711", SLURM_JOB_NUM_NODES="2", SLURM_JOB_NODELIST="localhost,other")
    env = clean_env(**job, NPROC="1", PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    flags = [*SMALL, "--save_every", "100", "--eval_every", "0"]

    def submit(out, steps):
        command = ["bash", str(ROOT / "examples" / "slurm.sh"), "tiny", "--model", base]
        return subprocess.Popen(
            [*command, *flags, "--out", out, "--steps", str(steps)], cwd=tmp_path, env=env,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return submit


def ends(job) -> tuple[int, str]:
    stdout, stderr = job.communicate(timeout=300)
    return job.returncode, stdout + stderr


def test_two_nodes_a_signal_and_the_same_line_again(sbatch, tmp_path):
    asked, run = tmp_path / "asked", tmp_path / "run"
    job = sbatch("run", 60)
    wait_for(lambda: rows_of(run) >= 3, job)
    job.send_signal(signal.SIGUSR1)  # Slurm's, before the time is over
    status, said = ends(job)
    step = metrics(run)[-1]["step"]
    assert status != 0 and f"SIGTERM: ends after step {step}, which is saved" in said
    assert checkpoint.latest(run).name == f"step-{step:06d}" and step < 60
    assert asked.read_text() == "--signal=TERM 4711\nrequeue 4711\n"
    asked.unlink()

    for out in ("run", "whole"):
        status, said = ends(sbatch(out, step + 2))
        assert status == 0 and not asked.exists(), said
    assert_same_run(run, tmp_path / "whole")
    # By one node alone, and in its first rank's file
    assert [said.count(f"step {n:>4}  reward") for n in range(1, step + 3)] == [1] * (step + 2)
    logs = [*tmp_path.glob("out/logs/4711-node[01]/4711_*/attempt_0/0/stdout.log")]
    assert len(logs) == 6
    assert sum(f"step {step + 2:>4}  reward" in log.read_text() for log in logs) == 2
