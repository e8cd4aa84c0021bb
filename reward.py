"""The reward of a response: 1 if the format is right and the boxed answer equals the gold, else 0.

    extract_answer(response, format) -> the answer a response gives, or None
    equivalent(answer, gold)         -> do two answers mean the same? (answers.py)
    Grader(workers).score(...)       -> the rewards of a whole step, from worker processes

Only the response is graded, never its prompt. The last box counts; if it is empty or unfinished,
there is no answer. No answer can hold a worker up: what was not graded in time is wrong. That, and
golds that cannot be read, are counted and reported, never silent.
"""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from answers import MAX_CHARS, Gold, equivalent, last_box, parsable


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

MEMORY = 2 << 30  # bytes of address space of a worker
START_S = 120.0  # for its imports, before any deadline; a worker that needs longer is broken


SELF_TEST = [
    (r"\frac{x^2-1}{x-1}", "x+1", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"\sin^2 x", r"\sin x^2", False),
]


def work(descriptor: int) -> None:
    """A worker: replies b"1", b"0" or an error to (answer, gold), until its parent is gone."""
    pipe, parent = Connection(descriptor), os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    with suppress(OSError, ValueError):  # macOS has no such limit; the deadline holds there, too
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # With a broken parser every reward would be 0: do not start
    for answer, gold, right in SELF_TEST:
        if equivalent(answer, gold) is not right:
            raise RuntimeError(f"the grader's self-test failed: {answer} and {gold}")
    pipe.send_bytes(b"ready")
    while True:
        while not pipe.poll(5.0):
            if os.getppid() != parent:
                return
        try:
            deadline_s, answer, gold = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        # The parent enforces the deadline; if that has died too, the kernel ends a hanging worker
        signal.setitimer(signal.ITIMER_REAL, 2 * deadline_s + 10)
        try:
            gold = gold if isinstance(gold, str) else Gold(tuple(gold[0]), *gold[1:])
            reply = b"1" if equivalent(answer, gold) else b"0"
        except Exception as error:  # counted and reported by the parent, never silent
            reply = f"{type(error).__name__}: {error}".encode()[:1000]
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send_bytes(reply)


class _Worker:
    """A process and its pipe; no fork, because the parent may hold CUDA, NCCL and threads."""

    def __init__(self, command: list[str]):
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.pipe = Connection(ours.detach())
        self.ready = False
        self.pair: tuple | None = None  # what it is grading
        self.until = time.monotonic() + START_S

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


class Grader:
    """Grades in worker processes. An answer that takes over `deadline_s` is wrong; its worker dies.

    Only the parent's clock is used, no alarm, so any thread may call it. Use it in a `with`.
    """

    def __init__(self, workers: int = 1, deadline_s: float = 2.0, command: list[str] | None = None):
        self.deadline_s = deadline_s
        self.command = command or [sys.executable, os.path.abspath(__file__), "--worker"]
        self.lock = threading.Lock()
        self.workers = [_Worker(self.command) for _ in range(workers)]

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
            kills = self._grade(pairs)
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

    def _grade(self, pairs: dict[tuple, float]) -> int:
        """Fill in the rewards -> how many gradings failed (time, memory, error) and stay 0."""
        waiting, kills, again = list(pairs)[::-1], 0, set()
        while waiting or any(worker.pair for worker in self.workers):
            for worker in self.workers:
                if waiting and worker.ready and not worker.pair:
                    worker.pair, worker.until = waiting.pop(), time.monotonic() + self.deadline_s
                    try:
                        worker.pipe.send_bytes(json.dumps([self.deadline_s, *worker.pair]).encode())
                    except OSError:
                        pass  # it died while idle; its closed pipe is found below
            active = [worker for worker in self.workers if worker.pair or not worker.ready]
            soonest = min(worker.until for worker in active) - time.monotonic()
            ready = wait([worker.pipe for worker in active], max(soonest, 0))
            for worker in active:
                if worker.pipe in ready:
                    try:
                        reply = worker.pipe.recv_bytes()
                    except (EOFError, OSError):
                        reply = None
                elif worker.until <= time.monotonic():
                    reply = None
                else:
                    continue
                if not worker.ready:
                    if reply != b"ready":
                        code = worker.process.poll()
                        raise RuntimeError(
                            f"a grader worker did not start (exit code {code}), see above"
                        )
                    worker.ready = True
                    continue
                if reply in (b"0", b"1"):
                    pairs[worker.pair] = float(reply)
                elif reply is None and worker.pipe in ready and worker.pair not in again:
                    again.add(worker.pair)  # the worker died, perhaps not of this answer
                    waiting.append(worker.pair)
                else:
                    kills += 1
                    if reply:
                        error = reply.decode(errors="replace")
                        warnings.warn(f"grading {worker.pair} failed: {error}", stacklevel=3)
                worker.pair = None
                if reply is None:
                    worker.kill()
                    self.workers[self.workers.index(worker)] = _Worker(self.command)
        return kills


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--worker":
        work(int(sys.argv[2]))
    else:
        sys.exit("reward.py is a module; its only command is Grader's --worker DESCRIPTOR")
