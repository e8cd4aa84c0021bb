"""The process that rewards are computed in: the far end of the pipes of reward.Grader.

`serve` is the end of reward.py's own grading, too. As a command this file serves the function of
--reward FILE.py:FUNCTION. It imports nothing of this project, so it starts at once, and a module
beside the user's file is found under its name even where we have one of that name.
"""

import inspect
import json
import math
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from traceback import walk_tb
from types import ModuleType

MEMORY = 2 << 30  # bytes of address space
BATCH = 64  # responses of one call of a function with `batched = True`
FLOAT32 = 3.4e38  # rewards become float32


def serve(descriptor: int, start: Callable[[Connection], tuple[Callable, int]]) -> None:
    """Replies to jobs, lists of pairs, until the parent is gone.

    start(pipe) -> what computes a job's values, numbers or what went wrong as a text; and how many
    pairs it takes at once, the first message. A ValueError of it is told instead.
    """
    pipe, parent = Connection(descriptor), os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    with suppress(OSError, ValueError):  # macOS has no such limit; the deadline holds there, too
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        compute, size = start(pipe)
    except ValueError as error:
        pipe.send_bytes(json.dumps(str(error)).encode())
        return
    pipe.send_bytes(json.dumps(size).encode())
    while True:
        while not pipe.poll(5.0):
            if os.getppid() != parent:
                return
        try:
            deadline_s, job = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        # The parent enforces the deadline; if that has died too, the kernel ends a hanging worker
        signal.setitimer(signal.ITIMER_REAL, 2 * deadline_s + 10)
        reply = compute(job)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send_bytes(json.dumps(reply).encode())


# ------------------------------------------------------------------- the function of --reward


def load(path: str, name: str, source: bytes) -> Callable:
    """The function; ValueError with what is wrong with it. The source was read by the parent: an
    edit during the run must not change the reward where a worker is replaced."""
    module = sys.modules["own_reward"] = ModuleType("own_reward")
    module.__file__ = path
    sys.path.insert(0, os.path.dirname(path))
    try:
        exec(compile(source, path, "exec"), vars(module))
    except BaseException as error:  # also of sys.exit
        raise ValueError(f"cannot be imported ({describe(error, path)}); mend it") from error
    function = getattr(module, name, None)
    if not callable(function):
        what = f"{name} in it is no function" if hasattr(module, name) else f"has no {name}"
        raise ValueError(f"{what}; name one that takes a response and its row")
    try:
        inspect.signature(function).bind("", {})
    except TypeError as error:
        raise ValueError(
            f"{name} is called with a response and its row, and has other parameters ({error})"
        ) from error
    except ValueError:  # a built-in one does not say
        pass
    return function


def describe(error: BaseException, path: str) -> str:
    """Kind and text of an error, and its last line in the file."""
    at = [line for f, line in walk_tb(error.__traceback__) if f.f_code.co_filename == path]
    text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return f"{text}, line {at[-1]}" if at else text


def number(value) -> float | str:
    """The value as a reward, or what is wrong with it."""
    x = math.nan
    with suppress(Exception):
        x = math.nan if isinstance(value, (str, bytes)) else float(value)
    return x if abs(x) < FLOAT32 else f"{value!r:.100} is no finite number"


def start(pipe: Connection) -> tuple[Callable, int]:
    path, name, source = pickle.loads(pipe.recv_bytes())
    function = load(path, name, source)
    batched = bool(getattr(function, "batched", False))

    def rewards(job: list[tuple[str, dict]]) -> list[float | str]:
        try:
            if batched:
                values = list(function(*map(list, zip(*job, strict=True))))
            else:
                values = [function(*pair) for pair in job]
            if len(values) != len(job):
                raise ValueError(f"{len(values)} rewards for {len(job)} responses")
        except BaseException as error:  # one that ends the process would do so for every response
            return [describe(error, path)] * len(job)
        return [number(value) for value in values]

    return rewards, BATCH if batched else 1


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].isdigit():
        serve(int(sys.argv[1]), start)
    else:
        sys.exit("worker.py is for reward.Grader, which starts it with the number of a pipe")
