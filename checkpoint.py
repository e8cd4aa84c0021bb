"""Save and resume: a run that dies at any moment goes on from its last saved step.

    python checkpoint.py RUN [FOLDER]     the policy of the run's last checkpoint as a Hugging Face
                                          folder, on a CPU, also while the run goes on (default:
                                          RUN/model-STEP; a run that ends makes RUN/model itself)

A checkpoint is a folder OUT/checkpoints/step-000050 made by torch.distributed.checkpoint (so a
different number of ranks can load it) plus state.pt: buffer, counters, prompt position. It is
written under a temporary name and renamed when all of it is on disk: a folder with the final name
is whole. There are no random states in it: every draw of this project comes from a generator seeded
by (seed, step, what for), so the step number is the random state."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from buffer import Buffer
from config import Config
from data import model_folder
from metrics import rewind_metrics
from model import Policy, full_weights, load_model
from parallel import gather, gather_in_order, init_distributed

KEEP = 1  # complete checkpoints kept; the older one goes when the next is whole


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
    return state | {
        f"{name}_optimizer": get_optimizer_state_dict(models[name], o)
        for name, o in optimizers.items()
    }


def latest(out: Path) -> Path | None:
    """The newest complete checkpoint of the run folder, None where there is none."""
    return max((out / "checkpoints").glob("step-*"), default=None)


def save(out: Path, step: int, models: dict, optimizers: dict, state: dict) -> None:
    """Write one checkpoint, every rank together. state: what torch.load(weights_only=True) can read
    back."""
    folder = out / "checkpoints"
    partial, final = folder / "partial", folder / f"step-{step:06d}"
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    dcp.save(tensors(models, optimizers), checkpoint_id=partial)
    if dist.get_rank() == 0:
        torch.save(state, partial / "state.pt")
        sync_folder(partial)
        os.rename(partial, final)
        sync_folder(folder)
        for old in sorted(folder.glob("step-*"))[:-KEEP]:
            shutil.rmtree(old)
    dist.barrier()


def save_run(cfg: Config, state: State, models: dict, optimizers: dict, buffer: Buffer) -> None:
    stored = buffer.state_dict(gather_in_order(buffer.stored()))
    save(Path(cfg.out), state.step, models, optimizers, vars(state) | dict(buffer=stored))


def load_run(cfg: Config, models: dict, optimizers: dict, buffer: Buffer) -> State:
    """The run's newest checkpoint put into all of them, and its metrics cut back to it; a new State
    where there is none."""
    rank, out, state = dist.get_rank(), Path(cfg.out), State()
    # One answer for all ranks, whatever a node's file cache says
    saved = gather([latest(out)] if rank == 0 else [])[0]
    if saved:
        values = load(saved, models, optimizers)
        buffer.load_state_dict(values.pop("buffer"))
        state = State(**values)
    if rank == 0:
        due = cfg.eval_every and state.step % cfg.eval_every == 0
        evaluated = state.step >= cfg.steps or bool(due)
        rewind_metrics(out / "metrics.jsonl", state.step if saved else -1, evaluated)
    return state


def load(path: Path, models: dict, optimizers: dict) -> dict:
    """Put a checkpoint's tensors into models and optimizers; -> the state given to `save`."""
    values = tensors(models, optimizers)
    dcp.load(values, checkpoint_id=path)
    for name, model in models.items():
        set_model_state_dict(model, values[name])
    for name, optimizer in optimizers.items():
        set_optimizer_state_dict(models[name], optimizer, values[f"{name}_optimizer"])
    return torch.load(path / "state.pt", weights_only=True)


def export(policy: Policy, tokenizer, folder: Path) -> None:
    """The policy as a normal Hugging Face folder, written by rank 0 under a temporary name and then
    renamed."""
    rank = dist.get_rank()
    # all ranks gather
    weights = {name: tensor.cpu() if rank == 0 else None for name, tensor in full_weights(policy)}
    if rank == 0:
        for name in policy.lm.all_tied_weights_keys:
            weights.pop(name, None)
        partial, old = (
            folder.with_name(folder.name + ".partial"),
            folder.with_name(folder.name + ".old"),
        )
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        lm = policy.lm
        settings, lm.generation_config = lm.generation_config, GenerationConfig()
        lm.save_pretrained(partial, state_dict=weights)
        # By hand: it refuses settings that contradict each other, and published models have them
        settings.to_json_file(partial / "generation_config.json")
        lm.generation_config = settings
        tokenizer.save_pretrained(partial)
        sync_folder(partial)
        if folder.exists():
            os.rename(folder, old)
        os.rename(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


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


def main(run: str, folder: str = "") -> None:
    """Export the last checkpoint. SystemExit with one sentence when there is none."""
    saved = latest(Path(run))
    if saved is None:
        sys.exit(
            f"checkpoint.py: {run}: holds no checkpoint yet; give the folder of a run "
            "(--save_every says when)"
        )
    name = model_folder(json.loads(Path(run, "config.json").read_text())["model"])
    transformers_logging.disable_progress_bar()
    init_distributed()
    policy = load_model(Policy, name, device="cpu", dtype="float32", shard="none")
    load(saved, dict(policy=policy), {})
    target = Path(folder or f"{run}/model-{saved.name.removeprefix('step-')}")
    export(policy, AutoTokenizer.from_pretrained(name), target)
    print(f"written: {target}")
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
