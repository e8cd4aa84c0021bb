"""The tables and the code on the README and the walkthrough are what the committed logs and the source give."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


def check(root):
    return subprocess.run(
        [sys.executable, "runs/report.py", "--check"], cwd=root, capture_output=True, text=True
    )


def test_every_table_is_what_the_logs_give():
    done = check(ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "mark, number",
    [("<!-- table methods -->", "[9"), ("<!-- log vs_trl_embedded.md 1 -->", "**0.")],
)
def test_a_number_that_no_log_gives_is_caught(tmp_path, mark, number):
    shutil.copytree(
        ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".venv", "out", "cache", ".git")
    )
    page = tmp_path / "copy" / "README.md"
    text = page.read_text()
    at = (
        text.index(number, text.index(mark)) + len(number) - 1
    )  # the lower end of some accuracy; a step's seconds
    page.write_text(text[:at] + "8" + text[at + 1 :])
    done = check(tmp_path / "copy")
    assert done.returncode == 1 and "README.md" in done.stderr
