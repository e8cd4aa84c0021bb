"""Save and resume: a run that dies at any moment goes on from its last saved step.

    python checkpoint.py RUN [FOLDER]     the policy of the run's last checkpoint as a Hugging Face
                                          folder, on a CPU, also while the run goes on (default:
                                          RUN/model-STEP; a run that ends makes RUN/model itself)
    python checkpoint.py RUN --push USER/NAME [--private]           onto the Hugging Face hub, as
                                          also RUN/best

A checkpoint is a folder OUT/checkpoints/step-000050 made by torch.distributed.checkpoint (so a
different number of ranks can load it) plus state.pt: buffer, counters, prompt position. It is
written under a temporary name and renamed when all of it is on disk: a folder with the final name
is whole. There are no random states in it: every draw of this project comes from a generator seeded
by (seed, step, what for), so the step number is the random state.

It is also what a signal ends a run with (`finish_on_signals`)."""

import argparse
import functools
import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

import card
import lora
from buffer import Buffer
from config import Config, saved_config, stop
from data import TRUST, Problem, get_prompt, load_tokenizer, model_folder
from machine import lap
from metrics import (
    DiskError,
    git_commit,
    read_metrics,
    reason,
    rewind_metrics,
    saved_steps,
    score,
    writing,
)
from model import Policy, full_weights, load_model
from parallel import gather, gather_in_order, here, init_distributed


@dataclass
class State:
    """Where a run is, beside weights, optimizers and buffer."""

    step: int = 0  # the last one that is done
    position: int = 0  # problems taken from the endless sequence of shuffled epochs
    rollouts: int = 0  # responses sampled
    gradient_steps: int = 0
    seconds: float = 0.0  # of training, without evaluation and saving

    def done(self, step: int, gradient_steps: int, seconds: float) -> None:
        self.step = step
        self.gradient_steps += gradient_steps
        self.seconds += seconds

    def counts(self) -> dict[str, float]:
        """What a line of metrics.jsonl begins with."""
        return {name: value for name, value in vars(self).items() if name != "position"}


def tensors(models: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]) -> dict:
    state = {name: get_model_state_dict(model) for name, model in models.items()}
    for name, o in optimizers.items():
        new = not o.state  # --filter_groups: no update so far. torch makes the state by a step of 0
        state[f"{name}_optimizer"] = get_optimizer_state_dict(models[name], o)
        for values in o.state.values() if new else ():
            values["step"].zero_()  # and it would count
    return state


def latest(out: Path) -> Path | None:
    """The newest whole checkpoint of the run folder, None where there is none."""
    return max(saved_steps(out), default=None)


def save(
    out: Path, step: int, models: dict, optimizers: dict, state: dict, keep: int = Config.keep
) -> None:
    """Write one checkpoint, every rank together, and leave the newest `keep` of them. state: what
    torch.load(weights_only=True) can read back."""
    folder = out / "checkpoints"
    partial, final = folder / "partial", folder / f"step-{step:06d}"

    def clear() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        partial.mkdir(parents=True)

    def finish() -> None:
        torch.save(state, partial / "state.pt")
        sync_folder(partial)
        os.rename(partial, final)
        sync_folder(folder)
        for old in saved_steps(out)[:-keep]:
            shutil.rmtree(old)

    values = tensors(models, optimizers)
    try:
        together(out, clear, ranks=1)
        together(out, dcp.save, values, checkpoint_id=partial)
        together(out, finish, ranks=1)
    except DiskError:
        if dist.get_rank() == 0:  # what does not fit should not fill the disk either
            shutil.rmtree(partial, ignore_errors=True)
        raise


def together(out: Path, write: Callable, *args, ranks: int = 0, **options) -> None:
    """write(...) on every rank, or the first `ranks`. All wait for all, and where it fails on one
    of them all say so: none waits for one that has ended."""
    error = ""
    try:
        with writing(str(out)):
            if not ranks or dist.get_rank() < ranks:
                write(*args, **options)
    except DiskError as problem:
        error = str(problem)
    for text in gather([error]):
        if text:
            raise DiskError(text)


def save_run(
    cfg: Config, state: State, models: dict, optimizers: dict, buffer: Buffer, asked: int = 0
) -> None:
    """Save the step. asked: the signal after which the run ends with it, unless it is done."""
    stored = buffer.state_dict(gather_in_order(buffer.stored()))
    values = vars(state) | dict(buffer=stored)
    with here(*models.values(), *optimizers.values()):  # --offload: DCP wants them on the device
        save(Path(cfg.out), state.step, models, optimizers, values, cfg.keep)
    if asked and state.step < cfg.steps:
        raise Stopped(asked, state.step)


def load_run(cfg: Config, models: dict, optimizers: dict, buffer: Buffer) -> State:
    """The run's newest checkpoint put into all of them, and its metrics cut back to it; a new State
    where there is none."""
    out, state = Path(cfg.out), State()
    saved, values = load_newest(out, models, optimizers)
    if saved:
        buffer.load_state_dict(values.pop("buffer"))
        state = State(**values)
    if dist.get_rank() == 0:
        best, old = out / "best", out / "best.old"
        if old.exists() and not best.exists():  # a kill between the two renames of `export`
            os.rename(old, best)
        due = cfg.eval_every and state.step % cfg.eval_every == 0
        evaluated = state.step >= cfg.steps or bool(due)
        rewind_metrics(out / "metrics.jsonl", state.step if saved else -1, evaluated)
        for damaged in saved_steps(out):
            if damaged > saved:  # its rows are gone: it must not be taken another time
                target = damaged.with_name(f"damaged-{damaged.name}")
                shutil.rmtree(target, ignore_errors=True)
                os.rename(damaged, target)
    lap("critic, anchors, optimizers, checkpoint")
    return state


def load_newest(out: Path, models: dict, optimizers: dict) -> tuple[Path | None, dict]:
    """Put the newest checkpoint that can be read into models and optimizers -> its folder, and the
    state given to `save`; (None, {}) where there is none. One that is damaged is passed over with a
    sentence; so is one that a running run deletes meanwhile, for the newer one that it has by
    then."""
    failed, errors = [], []
    while True:
        left = [path for path in saved_steps(out) if path not in failed]
        # One answer for all ranks, whatever a node's file cache says
        saved = gather([max(left, default=None)] if dist.get_rank() == 0 else [])[0]
        if saved is None and failed:
            raise DiskError(
                f"--out {out}: none of its checkpoints can be read ({errors[0]}); restore one, or "
                "name a new folder"
            )
        if saved is None:
            return None, {}
        values, error = {}, ""
        try:
            values = load(saved, models, optimizers)
        except torch.OutOfMemoryError:  # says nothing about the disk
            raise
        except (Exception, CheckpointException) as problem:
            error = reason(problem)
        errors = [text for text in gather([error]) if text]
        if not errors:
            return saved, values
        failed.append(saved)
        if dist.get_rank() == 0:
            print(f"{saved}: cannot be read ({errors[0]}); another one is taken")


def load(path: Path, models: dict, optimizers: dict) -> dict:
    """Put a checkpoint's tensors into models and optimizers; -> the state given to `save`."""
    values = tensors(models, optimizers)
    dcp.load(values, checkpoint_id=path)
    for name, model in models.items():
        set_model_state_dict(model, values[name])
    for name, optimizer in optimizers.items():
        set_optimizer_state_dict(models[name], optimizer, values[f"{name}_optimizer"])
    return torch.load(path / "state.pt", weights_only=True)


def export(policy: Policy, tokenizer, folder: Path, run: str = "", step: int = 0) -> None:
    """The policy as a normal Hugging Face folder (with LoRA its merged weights). run, step: the run
    folder and step that its card tells of; without a run it has none."""
    rank = dist.get_rank()
    # all ranks gather
    weights = {name: tensor.cpu() if rank == 0 else None for name, tensor in full_weights(policy)}
    for name in policy.lm.all_tied_weights_keys:
        weights.pop(name, None)

    def write(partial: Path) -> None:
        lm = policy.lm
        settings, lm.generation_config = lm.generation_config, GenerationConfig()
        lm.save_pretrained(partial, state_dict=weights)
        lm.config.dtype = "float32"  # as the weights are, which LoRA's backbone may not be
        lm.config.save_pretrained(partial)
        # By hand: it refuses settings that contradict each other, and published models have them
        settings.to_json_file(partial / "generation_config.json")
        lm.generation_config = settings
        tokenizer.save_pretrained(partial)
        if run:
            card.write(partial, Path(run), step, tokenizer)

    write_folder(folder, write)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Rank 0 lets `fill` make it under a temporary name, and renames it when it is on disk."""
    partial, old = (folder.with_name(f"{folder.name}.{end}") for end in ("partial", "old"))

    def write() -> None:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fill(partial)
        os.umask(umask := os.umask(0))
        for path in partial.iterdir():  # safetensors writes for its owner alone, whatever is usual
            path.chmod(0o666 & ~umask)
        sync_folder(partial)
        if folder.exists():
            os.rename(folder, old)
        os.rename(partial, folder)
        shutil.rmtree(old, ignore_errors=True)

    together(folder.parent, write, ranks=1)


def keep_best(cfg: Config, policy: Policy, tokenizer, step: int) -> None:
    """--keep_best: OUT/best is the policy of the best evaluation so far, of equal ones the first.
    Its own remix.json remembers the score. One of other --eval_... flags does not compare."""
    if not cfg.keep_best:
        return
    better, names = False, "data limit n temperature top_p max_tokens".split()
    if dist.get_rank() == 0:
        value = score(read_metrics(Path(cfg.out, "metrics.jsonl"))[-1])
        best = card.read(Path(cfg.out, "best"))
        flags = best.get("config", {})
        same = all(flags.get(f"eval_{name}") == getattr(cfg, f"eval_{name}") for name in names)
        before = score(best.get("evaluation", {}))
        better = value is not None and (not same or before is None or value > before)
    if gather([better])[0]:
        export(policy, tokenizer, Path(cfg.out, "best"), cfg.out, step)


def sync_folder(folder: Path) -> None:
    """Force a folder's files and their names to the disk: after a power cut a rename must not
    outlive its content."""
    for path in [*folder.iterdir(), folder]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def write_json(path: Path, value: dict) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def record_start(cfg: Config, sha256: dict[str, str]) -> list[str]:
    """Write config.json, with every start of the run in it -> what there is to say about that."""
    path, commit = Path(cfg.out, "config.json"), git_commit()
    old = json.loads(path.read_text()) if path.exists() else {}
    starts = old.get("starts", [])
    now = dict(time=time.strftime("%Y-%m-%d %H:%M:%S %z"), ranks=dist.get_world_size())
    now |= dict(git_commit=commit, command=shlex.join(sys.argv))
    facts = dict(git_commit=commit, ranks=now["ranks"], sha256=old.get("sha256", {}) | sha256)
    facts["prompt_text"] = get_prompt(cfg.prompt).template  # its file may change, or go
    write_json(path, asdict(cfg) | facts | dict(starts=[*starts, now]))
    then = old.get("git_commit", commit)
    if then == commit:
        return []
    return [f"warning: {cfg.out} ran code {then} so far, and {commit} now: results may differ"]


def problems_sha256(problems: list[Problem]) -> str:
    """Of all that training sees of them, so of a changed prompt or tokenizer, too."""
    content = [p[:4] if p.row is None else tuple(p) for p in problems]
    return hashlib.sha256(repr(content).encode()).hexdigest()


# ------------------------------------------------------------------- the end that a signal asks for

asked: list[int] = []  # the signals that this rank got


class Stopped(Exception):
    """One sentence for the user. status: 128 + the signal, as if it had ended the process: the run
    is not done, so a script must not go on as if it were, and a scheduler may start it again."""

    def __init__(self, number: int, step: int):
        self.status = 128 + number
        name = signal.Signals(number).name
        super().__init__(
            f"{name}: ends after step {step}, which is saved; the same command goes on"
        )


def finish_on_signals() -> None:
    """From now on SIGTERM (a scheduler's) and Ctrl-C let the present step end and be saved. A
    second one ends at once; launchers repeat what the terminal has sent, hence the second between
    the two."""

    def note(number: int, _) -> None:
        if not asked:
            asked.extend((number, time.monotonic()))
            name = signal.Signals(number).name
            text = f"remix.py: {name}: this step ends and is saved; a second ends at once\n"
            if os.environ.get("LOCAL_RANK", "0") == "0":
                os.write(2, text.encode())  # print() could be interrupted in itself
        elif time.monotonic() - asked[1] > 1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)


def asked_to_stop() -> int:
    """The signal that came to any rank, 0 if none did: a rank alone may get it, and all must save
    together."""
    return max(gather(asked[:1]), default=0)


def exported(run: Path, folder: Path | None, name: str) -> Path:
    """Export the run's last checkpoint -> the folder. name: of the base model."""
    transformers_logging.disable_progress_bar()
    settings = saved_config(run)
    TRUST["trust_remote_code"], rank = settings["trust_remote_code"], settings["lora_rank"]
    tokenizer, _ = load_tokenizer(name)
    init_distributed()
    dtype = settings["dtype"] if rank else "float32"  # what the adapter was trained on
    load = functools.partial(load_model, name=name, device="cpu", dtype=dtype, shard="none")
    policy = (lora.loader(load, rank) if rank else load)(Policy)
    saved, state = load_newest(run, dict(policy=policy), {})
    folder = folder or run / f"model-{saved.name.removeprefix('step-')}"
    export(policy, tokenizer, folder, str(run), state["step"])
    dist.destroy_process_group()
    return folder


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    flag = parser.add_argument
    flag("run", type=Path, metavar="RUN", help="folder of a run; to push, also RUN/best")
    flag("folder", type=Path, nargs="?", metavar="FOLDER", help="a new one for the model")
    done = "RUN/model if the run is done, else an export of its last checkpoint"
    flag("--push", metavar="USER/NAME", help=f"upload to this repository of the hub: {done}")
    flag("--private", action="store_true", help="with --push: a new repository is not public")
    args = parser.parse_args(argv)
    try:
        if args.private and not args.push:
            raise ValueError("--private: is about --push USER/NAME; add it, or leave this out")
        if args.folder and args.folder.exists():
            raise ValueError(f"{args.folder}: is there already; name a new folder")
        made = bool(card.read(args.run))  # RUN/best, say
        if made and not args.push:
            raise ValueError(
                f"{args.run}: is a model's folder already; --push USER/NAME uploads it"
            )
        cfg = {} if made else saved_config(args.run) or {}
        folder = args.run if made else args.run / "model"
        whole = made or card.read(folder).get("step") == cfg.get("steps", 0)
        as_it_is = args.push and not args.folder and whole
        if not as_it_is and not (cfg and latest(args.run)):
            raise ValueError(
                f"{args.run}: holds no checkpoint yet; give the folder of a run (--save_every says "
                "when)"
            )
        if args.push:  # first: an export may take minutes
            card.make_repository(args.push, args.private)
        if not as_it_is:
            folder = exported(args.run, args.folder, model_folder(cfg["model"]))
            print(f"written: {folder}")
        if args.push:
            print(f"pushed: {card.upload(folder, args.push)}")
    except (ValueError, DiskError) as error:
        stop(error)


if __name__ == "__main__":
    main()
