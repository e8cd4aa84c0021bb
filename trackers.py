"""--track: every line of metrics.jsonl also to TensorBoard, Weights & Biases or Trackio, under the
same names, with the step on the x axis. docs/metrics.md says where it lies and how to look at it.

metrics.jsonl is the record, a tracker a view of it. So each start of a run makes the view anew from
the file, which the checkpoint has cut back to its step (metrics.rewind_metrics): what a kill undid
is gone there too, and a tracker that is added later has all steps. W&B online alone cannot forget.

A tracker never ends a run: where it fails there is one warning, and no more of it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

Write = Callable[[int, dict], None]  # takes a step and its numbers


def to_tensorboard(out: Path, project: str, name: str, config: dict) -> tuple[Write, str]:
    from torch.utils.tensorboard import SummaryWriter

    folder = out / "tensorboard"
    # Older files stay, as an open server would be stuck without; all of their steps are void
    writer = SummaryWriter(folder, purge_step=0)
    writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```")

    def write(step: int, values: dict) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return write, f"tensorboard --logdir {folder}"


def to_wandb(out: Path, project: str, name: str, config: dict) -> tuple[Write, str]:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", project), name=name, id=config["id"], dir=out,
        config=config, resume="allow", allow_val_change=True,
        settings=wandb.Settings(console="off", quiet=True),
    )  # fmt: skip
    here, first = Path(run.dir).parent, run.step  # first: 0, or after the last step that it has
    for old in out.glob(f"wandb/offline-run-*-{run.id}") if run.offline else ():
        if old.name != here.name:
            shutil.rmtree(old)

    def write(step: int, values: dict) -> None:
        if step >= first:
            run.log(values, step=step)

    return write, run.url or f"wandb sync {here}"


def to_trackio(out: Path, project: str, name: str, config: dict) -> tuple[Write, str]:
    folder = os.environ.setdefault("TRACKIO_DIR", str(out / "trackio"))  # read at its import
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    if project in SQLiteStorage.get_projects():
        for old in trackio.Api().runs(project):
            if (old.config or {}).get("id") == config["id"]:
                old.delete()
    with redirect_stdout(StringIO()):  # eight lines
        run = trackio.init(project, name=name, config=config, embed=False)

    def write(step: int, values: dict) -> None:
        run.log(values, step=step)

    return write, f"TRACKIO_DIR={folder} trackio show --project {project}"


TRACKERS = dict(tensorboard=to_tensorboard, wandb=to_wandb, trackio=to_trackio)


def named(track: str) -> list[str]:
    """The trackers of --track."""
    return [name.strip() for name in track.split(",") if name.strip()]


def missing(track: str) -> list[str]:
    """Those that are not installed; a folder ./wandb of some run is no package."""
    specs = {name: find_spec(name) for name in named(track) if name in TRACKERS}
    return [name for name, spec in specs.items() if not (spec and spec.origin)]


def start(
    track: str, out: str, rows: list[dict], say: Callable[[str], None]
) -> Callable[[dict], None]:
    """Opens the trackers, and gives them the lines so far -> what takes the next ones. The run
    takes its name from the folder `out`, and its project from the folder around it, if that is not
    just "out". The first start in config.json makes its id: it stays where the folder moves."""
    folder = Path(out).resolve()
    config = json.loads((folder / "config.json").read_text())
    config["id"] = hashlib.sha256(repr(config["starts"][0]).encode()).hexdigest()[:12]
    project = folder.parent.name if folder.parent.name not in ("", "out") else "remix"
    writes: dict[str, Write] = {}

    def failed(name: str, error: Exception) -> None:
        writes.pop(name, None)
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        say(f"warning: --track {name}: {reason}; the run goes on without it")

    def write(row: dict) -> None:
        for name, to in [*writes.items()]:
            try:
                to(row["step"], {k: v for k, v in row.items() if k != "step"})
            except Exception as error:  # network, disk, whatever
                failed(name, error)

    for name in named(track):
        try:
            writes[name], look = TRACKERS[name](folder, project, folder.name, config)
            say(f"tracking: {look}")
        except Exception as error:
            failed(name, error)
    for row in rows:
        write(row)
    return write
