"""One HTML page of a run: its curves, and a few responses token by token (--keep_responses).

    python view.py out/tiny-ppo-seed0              writes out/tiny-ppo-seed0/view.html
    python view.py out/remix-seed0 out/ppo-seed0 --out both.html

The page is one file without server or network; its keys stand on it, view.html is its template.
It has less than LIMIT bytes: responses are cut in the middle, and steps left out, until they fit.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from config import Config
from plot import COLOURS, PANELS, X_LABELS, Panel, fitting, read_run, reincarnation

LIMIT = 3_000_000  # bytes of the page
TRIES = (  # steps in curves and table, steps with responses, tokens of a response
    (600, 600, 10**9), (600, 600, 1000), (600, 100, 500), (600, 60, 250), (400, 40, 120),
    (200, 20, 120), (200, 10, 60), (100, 3, 60),
)  # fmt: skip
CURVES = (
    PANELS["rollouts"],
    Panel("Training reward", "step", {"reward": "mean of the sampled responses"}),
    *(PANELS[name] for name in ("length", "kl", "entropy", "clip", "ess", "off")),
)
TABLE = "step rollouts reward format_rate eval/pass@1 eval/reward response_length".split()
TABLE += ["kl", "entropy", "grad_norm", *(f"clip_fraction/age{age}" for age in range(3))]
LISTS = ("stop", "stop_token_ids")  # settings that are
PER_TOKEN = "tokens logp logp_k logp_b advantage".split()  # of a line of responses.jsonl


def read_responses(folder: str) -> list[dict] | None:
    """The lines of responses.jsonl; None for a run that has kept none."""
    path, found = Path(folder, "responses.jsonl"), []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the line that a running or killed run has not finished
    return found or None


def thin(items: list, most: int) -> list:
    """At most `most` of them (at least 2), evenly spaced, the first and the last among them."""
    n = len(items)
    return items if n <= most else [items[i * (n - 1) // (most - 1)] for i in range(most)]


def cut_text(text: str, most: int) -> str:
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} [...] {text[-half:]}"


def cut(response: dict, most: int) -> dict:
    """Of a long response the first and the last tokens. hidden: how many are left out, after how
    many, and how many of them the clip took."""
    short = {k: cut_text(v, 4 * most) if isinstance(v, str) else v for k, v in response.items()}
    if "tokens" not in response:
        return short
    short.pop("text")  # its tokens say the same
    n, half = len(response["tokens"]), most // 2
    if n > most:
        keep = [*range(half), *range(n - half, n)]
        columns = {k: response[k] for k in PER_TOKEN if isinstance(response[k], list)}
        short |= {name: [column[i] for i in keep] for name, column in columns.items()}
        taken = set(response["clipped"])
        short["clipped"] = [place for place, i in enumerate(keep) if i in taken]
        hidden = dict(after=half, tokens=n - len(keep), clipped=len(taken) - len(short["clipped"]))
        short["hidden"] = hidden
    return short


def settings(config: dict) -> list[tuple]:
    """(name, value, whether it is not the default) of config.json."""
    default = {f.name: f.default for f in fields(Config)}
    plain = {k: " ".join(map(str, v)) if k in LISTS else v for k, v in config.items()}
    plain = {k: v for k, v in plain.items() if not isinstance(v, (dict, list))}
    if config.get("starts"):
        plain["command"] = config["starts"][-1]["command"]
    return [(k, v, k in default and v != default[k]) for k, v in plain.items()]


def rounded(row: dict, wanted: set[str]) -> dict:
    names = [name for name in row if name.partition("/age")[0] in wanted or name in wanted]
    return {k: float(f"{v:.5g}") if isinstance(v := row[k], float) else v for k in names}


def curves(rows: list[dict], own: bool) -> list[dict]:
    """What the page draws: of each panel the first field that any of the rows has. own: --reward is
    in use."""
    present = {name.partition("/age")[0] for row in rows for name in row}
    panels = []
    for panel in (fitting(panel, own) for panel in CURVES):
        field = next((f for f in panel.y if f in present), None)
        more = dict(x_label=X_LABELS[panel.x], label=panel.y.get(field), field=field)
        panels += [panel._asdict() | more] if field else []
    return panels


def pages(folders: list[str], template: str) -> Iterator[str]:
    """The page, with less and less on it."""
    runs = [(folder, *read_run(folder), read_responses(folder)) for folder in folders]
    own = any(config.get("reward") for _, _, config, _ in runs)
    panels = curves([row for _, rows, *_ in runs for row in rows.values()], own)
    wanted = {*TABLE, "eval/pass@1_ci", "eval/reward_ci"} | {
        p[name] for p in panels for name in ("x", "field")
    }
    for points, most_steps, most_tokens in TRIES:
        data = dict(panels=panels, table=TABLE, runs=[])
        for i, (folder, rows, config, responses) in enumerate(runs):
            steps = sorted({r["step"] for r in responses or []})
            chosen = set(thin(steps, most_steps))
            logged = thin([rows[step] for step in sorted(rows)], points)
            kept = [cut(r, most_tokens) for r in responses or [] if r["step"] in chosen]
            cuts = [f"{len(chosen)} of the {len(steps)} steps"] if len(chosen) < len(steps) else []
            if any("hidden" in r for r in kept):
                cuts.append(f"of longer responses the first and last {most_tokens // 2} tokens")
            data["runs"].append(dict(
                name=Path(folder).resolve().name, colour=COLOURS[i % len(COLOURS)],
                rows=[rounded(row, wanted) for row in logged],
                T=reincarnation(config, rows), loss=config.get("loss", "mix_ppg"),
                settings=settings(config), responses=kept if responses else None,
                cuts=" and ".join(cuts),
            ))  # fmt: skip
        text = json.dumps(data, separators=(",", ":")).replace("<", r"\u003c")  # no </script>
        yield template.replace("{{DATA}}", text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="of a run")
    parser.add_argument("--out", help="the page (default: view.html in the first folder)")
    args = parser.parse_args(argv)
    out = Path(args.out or Path(args.runs[0], "view.html"))
    try:
        template = Path(__file__).with_name("view.html").read_text(encoding="utf-8")
        fits = (p for p in pages(args.runs, template) if len(p.encode()) < LIMIT)
        if not (page := next(fits, "")):
            raise ValueError(f"{len(args.runs)} runs do not fit on one page; name fewer.")
        out.write_text(page, encoding="utf-8")
    except ValueError as error:
        print(f"view.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        print(f"view.py: {error.filename}: {error.strerror}.", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"written: {out}")


if __name__ == "__main__":
    main()
