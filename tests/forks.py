"""Processes that have imported remix.py already, as they are forked from one that did so once: a
run of three seconds instead of nine. What only a command does (refusals before the imports,
torchrun, signals, vLLM) is for `start` of test_remix.py."""

import atexit
import gc
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["remix"])  # from the working folder; not found, it is only slower


def clean_env(**more):
    """The environment without what the process group of this pytest has put there."""
    of_the_group = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {k: v for k, v in os.environ.items() if k not in of_the_group} | more


def work(script: str, args: list[str], env: dict[str, str], said: str) -> None:
    """In the new process: the script with these args, its output into the file `said`."""
    gc.freeze()  # or each collection looks at all that was imported
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["remix.py", *args]
    try:
        exec(script, {})
    finally:
        atexit._run_exitfuncs()  # multiprocessing's children leave them out


def forked(
    said: Path, args: list, script="import remix; remix.main()", ranks=1, nodes=1
) -> list[int]:
    """Exit status of each process: `ranks` on each of `nodes`, with the variables of torchrun. What
    they say is added to the file `said`."""
    args, world, envs = list(map(str, args)), ranks * nodes, [clean_env()]
    if world > 1:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            shared = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(s.getsockname()[1]))
        shared |= dict(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(ranks))
        each = [dict(RANK=str(i), LOCAL_RANK=str(i % ranks)) for i in range(world)]
        envs = [clean_env(**shared, **own) for own in each]
    processes = [CONTEXT.Process(target=work, args=(script, args, e, str(said))) for e in envs]
    said.touch()  # to be read even if none gets so far
    deadline = time.monotonic() + 300
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    for process in processes:
        process.kill()  # who is not at the end by then
        process.join()
    return [process.exitcode for process in processes]
