"""Finished runs -> lines of runs/NAME.jsonl; a line with the same name and seed is replaced.

    python runs/collect.py runs/methods.jsonl out/experiments/methods/*-seed*
    python runs/collect.py runs/start.jsonl out/tiny-ppo-seed0 --command "time bash train.sh"

The first line of a file holds the settings that its runs share: {"config": {...}}. It never
changes, so a new seed is one line in a diff. The others are sorted by name and seed, one a run:

    name     the run folder's name without -seedN
    seed, commit, command (of logs/FOLDER.txt beside the folder), note (what else there is to say)
    config   what differs from the first line; null: a setting that the run does not have
    metrics  metric -> its value at each logged step, null where it has none
    samples  with --samples: the responses kept of each evaluation, step -> list (kept.py)

plot.read_experiment reads it.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plot import Run, read_run  # noqa: E402


def differing(config: dict, shared: dict) -> dict:
    return {key: value for key, value in config.items() if shared.get(key) != value} | {
        key: None for key in shared if key not in config
    }


def as_line(name: str, run: Run, shared: dict, command: str, note: str = "") -> dict:
    rows, config = run
    config = dict(config)
    steps = sorted(rows)
    # In the order they are logged
    keys = dict.fromkeys(key for step in steps for key in rows[step])
    line = dict(
        name=name, seed=config.pop("seed"), commit=config.pop("git_commit"), command=command
    )
    line |= dict(note=note) if note else {}
    line["config"] = differing(config, shared)
    line["metrics"] = {key: [rows[step].get(key) for step in steps] for key in keys}
    return line


def samples_of(folder: Path) -> dict[str, list[dict]]:
    """step -> the first response to some problems, the same at each evaluation."""
    samples = {}
    for line in (folder / "responses.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "evaluation":
            one = {key: row[key] for key in ("problem", "text", "gold", "reward")}
            samples.setdefault(str(row["step"]), []).append(one)
    return samples


def command_of(folder: Path) -> str:
    """The first line `$ COMMAND` of the run's log; empty where there is no log."""
    log = folder.parent / "logs" / f"{folder.name}.txt"
    found = re.search(r"^\$ (.*)", log.read_text(), re.MULTILINE) if log.is_file() else None
    return found[1] if found else ""


def write(file: Path, shared: dict, lines: list[dict]) -> None:
    lines = sorted(lines, key=lambda line: (line["name"], line["seed"]))
    texts = [json.dumps(x, separators=(",", ":")) for x in (dict(config=shared), *lines)]
    new = file.with_name(f"{file.name}.new")
    new.write_text("\n".join(texts) + "\n")
    os.replace(new, file)  # a kill leaves the old file whole


def collect(
    file: Path, folders: list[Path], command: str = "", note: str = "", samples: bool = False
) -> None:
    """ValueError for a run that has not reached its last step."""
    shared, *lines = map(json.loads, file.read_text().splitlines()) if file.exists() else [None]
    shared = shared and shared["config"]
    kept = {(line["name"], line["seed"]): line for line in lines}
    for folder in folders:
        rows, config = read_run(folder)
        config.pop("starts", None)  # when and where
        if max(rows) < config.get("steps", float("inf")):
            raise ValueError(f"{folder}: stopped at step {max(rows)}; its command goes on with it.")
        if shared is None:  # the first run of the file
            shared = {k: v for k, v in config.items() if k not in ("out", "seed", "git_commit")}
        name = re.sub(r"-seed\d+$", "", folder.name)
        line = as_line(name, (rows, config), shared, command or command_of(folder), note)
        line |= dict(samples=samples_of(folder)) if samples else {}
        kept[name, line["seed"]] = line
    write(file, shared, list(kept.values()))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE.jsonl")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of a finished run")
    parser.add_argument("--command", default="", help="how it was started, if no log says it")
    parser.add_argument("--note", default="", help="a remark that stays with the run")
    parser.add_argument("--samples", action="store_true", help="keep some responses")
    args = parser.parse_args(argv)
    args.file.parent.mkdir(parents=True, exist_ok=True)
    try:
        folders = [folder.resolve() for folder in args.folders]
        collect(args.file, folders, args.command, args.note, args.samples)
    except ValueError as error:
        raise SystemExit(f"collect.py: {error}") from None


if __name__ == "__main__":
    main()
