"""benchmarks/gpu.py, rehearsed on a CPU: a GPU's first minute is not for typos."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from test_remix import clean_env


def rehearse(out, *flags):
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--out", str(out), *flags]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    done = subprocess.run(command, cwd=ROOT, env=clean_env(), **pipes)
    return done.returncode, done.stdout


@pytest.mark.slow
def test_jobs_run_in_a_rehearsal(tmp_path):
    """All but those that run remix.py, start vLLM or compile, which takes minutes: before a GPU is
    had, rehearse them by hand."""
    jobs = "environment,update,update-lora,memory,memory-lora,head,engine-hf"
    code, printed = rehearse(tmp_path / "gpu", "--jobs", jobs)
    assert code == 0, printed[-6000:]
    table = (tmp_path / "gpu" / "gpu.md").read_text()
    assert "FAILED" not in table and table in printed
    rows = [json.loads(line) for line in (tmp_path / "gpu" / "gpu.jsonl").read_text().splitlines()]
    assert {row["job"] for row in rows} == set(jobs.split(","))
    assert "Self CPU" in (tmp_path / "gpu" / "gpu.log").read_text()  # the profile


@pytest.mark.slow
def test_a_job_that_fails_ends_no_other_and_shows_its_last_lines(tmp_path):
    code, printed = rehearse(
        tmp_path / "gpu", "--jobs", "smollm,head", "--smollm", str(tmp_path / "none")
    )
    assert code == 1
    table = (tmp_path / "gpu" / "gpu.md").read_text()
    assert "| 2 | smollm | | **FAILED, exit status 1" in table
    assert "| 5 | head | | **ok" in table and "TokenTerms" in table
    assert f"--model {tmp_path}/none: " in printed
    code, printed = rehearse(tmp_path / "gpu", "--jobs", "head")
    assert code == 1 and "holds results; name a new folder" in printed
