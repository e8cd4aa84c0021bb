"""The reward of a response: 1 if the format is right and the boxed answer equals the gold, else 0.

    extract_answer(response, format) -> the answer a response gives, or None
    equivalent(answer, gold)         -> do two answers mean the same? (answers.py)
    Grader(workers).score(...)       -> the rewards of a whole step, from worker processes
    Grader(own=...).own_rewards(...) -> those of --reward FILE.py:FUNCTION, from such processes too

Only the response is graded, never its prompt. The last box counts; if it is empty or unfinished,
there is no answer. No answer can hold a worker up: what was not graded in time is wrong. That, and
golds that cannot be read, are counted and reported, never silent.
"""

import hashlib
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from answers import MAX_CHARS, Gold, equivalent, last_box, parsable
from worker import serve


class Scores(NamedTuple):
    """Of a step; rewards and answers are parallel to its responses."""

    rewards: list[float]
    answers: list[str | None]
    kills: int  # gradings (not responses) that failed
    unparsable: int  # golds that cannot be read


FORMATS = {  # what a response must have
    "r1": r"exactly one </think>, then the answer in \boxed{}",
    "tags": "<think>...</think><answer>...</answer>, no more; the prompt may have opened <think>",
    "boxed": r"the answer in \boxed{}, after the last </think> if there is one",
}


def extract_answer(response: str, format: str) -> str | None:
    """The answer of a response (without its prompt); None if it has none or its format is wrong.

    Formats are those of FORMATS and "any": the answer wherever it stands, for telling a wrong
    format from a wrong answer.
    """
    if format == "r1":
        return last_box(response.split("</think>")[1]) if response.count("</think>") == 1 else None
    if format == "boxed":
        return last_box(response.rsplit("</think>", 1)[-1])
    if format == "tags":
        once = ("</think>", "<answer>", "</answer>")
        if any(response.count(tag) != 1 for tag in once) or response.count("<think>") > 1:
            return None
        layout = r"\s*(?:<think>)?(?:(?!<think>).)*</think>\s*<answer>(.*)</answer>\s*"
        match = re.fullmatch(layout, response, re.S)
        if not match:
            return None
        answer = match[1].strip()
        return (last_box(answer) if "\\boxed" in answer else answer) or None
    if format == "any":
        tail = response.rsplit("</think>", 1)[-1]
        tagged = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", tail, re.S)
        tagged = tagged[-1].strip() if tagged and "\\boxed" not in tagged[-1] else None
        return tagged or last_box(tail) or last_box(response)
    raise ValueError(f"unknown format {format!r}: {', '.join(FORMATS)}")


# ---------------------------------------------------------------- WORKERS

START_S = 120.0  # for its imports, before any deadline; a worker that needs longer is broken


SELF_TEST = [
    (r"\frac{x^2-1}{x-1}", "x+1", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"\sin^2 x", r"\sin x^2", False),
]


def work(descriptor: int) -> None:
    """A worker: replies to (answer, gold) until its parent is gone."""
    serve(descriptor, start)


def start(pipe: Connection) -> tuple[Callable, int]:
    # With a broken parser every reward would be 0: do not start
    for answer, gold, right in SELF_TEST:
        if equivalent(answer, gold) is not right:
            raise RuntimeError(f"the grader's self-test failed: {answer} and {gold}")
    return grade, 1


def grade(job: list[tuple[str, str | Gold]]) -> list[float | str]:
    """1.0 or 0.0, or an error, of the job's one pair."""
    ((answer, gold),) = job
    try:
        return [float(equivalent(answer, gold))]
    except Exception as error:  # counted and reported by the parent, never silent
        return [f"{type(error).__name__}: {error}"[:1000]]


class _Worker:
    """A process and its pipe; no fork, because the parent may hold CUDA, NCCL and threads. hello:
    the first message to it, if there is one."""

    def __init__(self, command: list[str], hello: bytes = b""):
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                process_group=0,  # what it starts itself is killed with it
            )
        self.pipe = Connection(ours.detach())
        self.size = 0  # pairs of one job; 0: it is not ready
        self.job: list[int] = []  # numbers of the pairs that it has now
        self.until = time.monotonic() + START_S
        if hello:
            self.send(hello)

    def send(self, message: bytes) -> None:
        with suppress(OSError):  # it died while idle; its closed pipe is found by who receives
            self.pipe.send_bytes(message)

    def receive(self) -> list | int | str | None:
        """None: it has died."""
        try:
            return json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return None

    def begin(self, reply: int | str | None) -> None:
        """Its first message says that it is ready, or why not."""
        if not isinstance(reply, int):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)  # for the exit code
            code = self.process.returncode
            raise RuntimeError(
                reply or f"a grader worker did not start (exit code {code}), see above"
            )
        self.size = reply

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.pipe.close()


LATE, DIED = "it took longer than --grader_deadline", "its process died (out of memory, say)"


@cache  # as it was when the run began
def read_own(own: str) -> tuple[str, str, bytes]:
    """FILE.py:FUNCTION -> path, name and source. ValueError where there is none."""
    file, _, name = own.rpartition(":")
    path = Path(file).expanduser()
    if not name.isidentifier() or path.suffix != ".py":
        raise ValueError(f"--reward {own}: must be FILE.py:FUNCTION")
    try:
        return os.path.abspath(path), name, path.read_bytes()
    except OSError as error:
        raise ValueError(f"--reward {own}: {error.strerror}; give FILE.py:FUNCTION") from error


def look_at(own: str) -> dict[str, str]:
    """reward: the sha256 of --reward's file; {} without one. ValueError with one sentence where its
    function cannot be used: it is imported in a worker, as in training."""
    if not own:
        return {}
    with Grader(own=own) as grader:
        worker = grader.workers[0]
        try:
            worker.begin(worker.receive() if worker.pipe.poll(START_S) else None)
        except RuntimeError as error:
            raise ValueError(f"--reward {own}: {error}") from error
    return dict(reward=hashlib.sha256(read_own(own)[2]).hexdigest())


class Grader:
    """Grades in worker processes. What takes over `deadline_s` is worth 0; its worker dies.

    own: FILE.py:FUNCTION, computes rewards in place of our grading; ValueError if it is not there.
    Only the parent's clock is used, no alarm, so any thread may call it. Use it in a `with`.
    """

    def __init__(
        self,
        workers: int = 1,
        deadline_s: float = 2.0,
        command: list[str] | None = None,
        own: str = "",
    ):
        self.deadline_s, self.own = deadline_s, own
        self.hello = pickle.dumps(read_own(own)) if own else b""
        script = [str(Path(__file__).with_name("worker.py"))] if own else [__file__, "--worker"]
        self.command = command or [sys.executable, *script]
        self.lock = threading.Lock()
        self.warned = False
        self.workers = [_Worker(self.command, self.hello) for _ in range(workers)]

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        with self.lock:
            for worker in self.workers:
                worker.kill()
            self.workers = []

    def score(self, responses: list[str], golds: list[str | Gold], format: str) -> Scores:
        """Rewards of a step's responses, each with its gold; a pair that recurs is graded once."""
        if len(responses) != len(golds):
            raise ValueError(f"{len(responses)} responses but {len(golds)} golds")
        readable = {gold: parsable(gold) for gold in set(golds)}
        answers = [extract_answer(response, format) for response in responses]
        pairs = {
            (answer, gold): 0.0
            for answer, gold in zip(answers, golds, strict=True)
            if answer is not None and len(answer) <= MAX_CHARS and readable[gold]
        }
        with self.lock:
            replies = self._run(list(pairs))
        kills = 0
        for pair, reply in zip(pairs, replies, strict=True):
            if isinstance(reply, float):
                pairs[pair] = reply
                continue
            kills += 1
            if reply not in (LATE, DIED):
                warnings.warn(f"grading {pair} failed: {reply}", stacklevel=2)
        rewards = [pairs.get(pair, 0.0) for pair in zip(answers, golds, strict=True)]
        return Scores(rewards, answers, kills, sum(not readable[gold] for gold in golds))

    def right_answers(self, responses: list[str], golds: list, scores: Scores) -> list[bool]:
        """Which answers are right, whatever the format: beside `scores`, the responses' own, it
        grades only those whose format is wrong."""
        right = [reward > 0 for reward in scores.rewards]
        lost = [i for i, answer in enumerate(scores.answers) if answer is None]
        again = self.score([responses[i] for i in lost], [golds[i] for i in lost], "any")
        for i, reward in zip(lost, again.rewards, strict=True):
            right[i] = reward > 0
        return right

    def own_rewards(self, responses: list[str], rows: list[dict]) -> Scores:
        """Of the function `own`, from responses and the rows of their problems; 0 for those that it
        fails on, which are counted. The first failure is told."""
        with self.lock:
            replies = self._run(list(zip(responses, rows, strict=True)))
        failed = [reply for reply in replies if not isinstance(reply, float)]
        if failed and not self.warned:
            self.warned = True
            warnings.warn(
                f"--reward {self.own} failed: {failed[0]}; such a response gets 0, and all of them "
                "are counted (grader_kills)",
                stacklevel=2,
            )
        rewards = [reply if isinstance(reply, float) else 0.0 for reply in replies]
        return Scores(rewards, [], len(failed), 0)

    def _run(self, pairs: list[tuple]) -> list[float | str]:
        """What the workers make of each pair; a text says how it failed (time, memory, error)."""
        replies: list = [None] * len(pairs)
        waiting, again = list(range(len(pairs)))[::-1], set()
        while waiting or any(worker.job for worker in self.workers):
            for worker in self.workers:
                if waiting and worker.size and not worker.job:
                    worker.job = [waiting.pop() for _ in range(min(worker.size, len(waiting)))]
                    worker.until = time.monotonic() + self.deadline_s
                    job = [pairs[i] for i in worker.job]
                    worker.send(pickle.dumps((self.deadline_s, job)))
            active = [worker for worker in self.workers if worker.job or not worker.size]
            soonest = min(worker.until for worker in active) - time.monotonic()
            ready = wait([worker.pipe for worker in active], max(soonest, 0))
            for worker in active:
                if worker.pipe in ready:
                    reply = worker.receive()
                elif worker.until <= time.monotonic():
                    reply = None
                else:
                    continue
                if not worker.size:
                    worker.begin(reply)
                    continue
                if reply is not None:
                    for i, value in zip(worker.job, reply, strict=True):
                        replies[i] = value
                elif worker.pipe in ready and again.isdisjoint(worker.job):
                    again.update(worker.job)  # the worker died, perhaps not of this job
                    waiting += worker.job[::-1]
                else:
                    for i in worker.job:
                        replies[i] = DIED if worker.pipe in ready else LATE
                worker.job = []
                if reply is None:
                    worker.kill()
                    self.workers[self.workers.index(worker)] = _Worker(self.command, self.hello)
        return replies


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--worker":
        work(int(sys.argv[2]))
    else:
        sys.exit("reward.py is a module; its only command is Grader's --worker DESCRIPTOR")
