"""The guard of whoever moves things: short runs of remix.py whose every number must stay as it was.

    python tests/guard.py REV            at commit REV (once, kept in cache/guard), then here
    python tests/guard.py REV grpo-hf …  these runs alone
    JOBS=1 python tests/guard.py REV     one at a time (two is the default)

A run is equal if every metric of every step but the seconds is equal bit for bit, and every weight
of the exported model too. Metrics that only one side has are named. Exit 1 if a run differs, unless
it is one of ROUNDED and differs by rounding alone. It says nothing across machines: both sides run
on this one.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "cache" / "guard"
PYTHON = str(ROOT / ".venv" / "bin" / "python")

SMALL = (
    "--prompt plain --max_prompt_tokens 64 --max_tokens 48 --prompts_per_step 10 --mini_batch 5 "
    "--lr 1e-3 --critic_lr 1e-2 --eval_limit 6 --eval_n 2 --eval_every 2 --save_every 3 "
    "--reincarnation_step 4 --steps 6 --kl_coef 0.1 --engine hf"
)
GRPO = "--algo grpo --group_size 4"
RUNS = {  # name: flags
    "ppo-hf": "",
    "grpo-hf": GRPO,
    "ppo-vllm": "--engine vllm",
    "grpo-vllm": f"{GRPO} --engine vllm",
    "plain-ppo": "--off_policy_ratio 0 --utd_ratio 1 --kl_convex off --reincarnation_step 0",
    "lambda": f"{GRPO} --kl_convex schedule:2,1 --kl_estimator k2 --tokens_per_micro_batch 300",
    "precedent-current": "--kl_convex 0.6 --precedent current --kl_estimator k1",
    "exact": "--kl_convex 0.6 --kl_estimator exact",
    "exact-current": f"{GRPO} --kl_convex 0.6 --kl_estimator exact --precedent current",
    "geppo": "--geppo_clip --vtrace --behaviour_logp trainer --kl_coef 0 --gae_lambda 0.9",
    "lag": f"{GRPO} --sampler_lag 2",
    "repo": f"{GRPO} --replay repo --limit 8",
    "buffer_matters": f"{GRPO} --replay buffer_matters --replay_window 3 --group_size 2",
    "on_policyness": f"{GRPO} --replay on_policyness",
    "m2po": f"{GRPO} --loss m2po",
    "gspo": f"{GRPO} --loss gspo",
    "dr_grpo": f"{GRPO} --loss dr_grpo",
    "tis": f"{GRPO} --behaviour_logp trainer --engine_weight tis",
    "bfloat16": "--dtype bfloat16",
    "two-ranks": "--shard none",
    "two-ranks-sharded": f"{GRPO} --shard node --kl_convex 0.6",
    "resume": "--kl_convex 0.6",
}
ROUNDED = ("exact", "exact-current", "bfloat16")


def checkout(rev: str) -> Path:
    """A work tree of the commit, with this environment; kept until cache/ is deleted."""
    folder = KEPT / rev
    if not folder.exists():
        git = ["git", "worktree", "add", "--force", "--detach", str(folder), rev]
        subprocess.run(git, cwd=ROOT, check=True, capture_output=True)
    return folder


def base_model() -> tuple[Path, Path]:
    """A base model of two seconds, and problems that any number up to 100 solves: it is hardly
    ever right, and without rewards nothing would move."""
    base, problems = KEPT / "base", KEPT / "problems.json"
    if not base.exists():
        sys.path.insert(0, str(ROOT))
        import tiny

        tiny.make_base_model(str(base), tiny.BaseModel(steps=60, batch_size=64), quiet=True)
    rows = [
        dict(problem=f"{a} + {b}", answer="50", error="50") for a in range(1, 9) for b in range(9)
    ]
    problems.write_text(json.dumps(rows))
    return base, problems


def start(name: str, code: Path, out: Path) -> dict:
    """Run it in the checkout `code` -> {"steps": rows without seconds, "weights": a hash}."""
    shutil.rmtree(out, ignore_errors=True)
    base, problems = KEPT / "base", KEPT / "problems.json"
    flags = f"--model {base} --data {problems} --eval_data {problems} --out {out} {SMALL}"
    flags = [*flags.split(), *RUNS[name].split()]
    launch = [PYTHON]
    if name.startswith("two-ranks"):
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH="")
    for steps in (3, 6) if name == "resume" else (6,):
        command = [*launch, "remix.py", *flags, "--steps", str(steps)]
        done = subprocess.run(command, cwd=code, env=env, capture_output=True, text=True)
        if done.returncode:
            return dict(failed=(done.stderr or done.stdout).strip()[-2000:])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [
        {k: v for k, v in row.items() if not k.startswith(("seconds", "machine/"))} for row in rows
    ]
    weights = hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()
    return dict(steps=rows, weights=weights)


def difference(old: dict, new: dict) -> tuple[str, bool]:
    """(what differs, in a line; "" if nothing), (whether by rounding alone)."""
    if failed := old.get("failed") or new.get("failed"):
        return "failed: " + failed, False
    if len(old["steps"]) != len(new["steps"]):
        return f"{len(old['steps'])} rows before, {len(new['steps'])} now", False
    apart, close = [], True
    for a, b in zip(old["steps"], new["steps"], strict=True):
        for key in a.keys() & b.keys():
            if a[key] != b[key]:
                apart.append(f"step {a['step']} {key}: {a[key]} before, {b[key]} now")
                close &= abs(a[key] - b[key]) <= 1e-5 + 0.02 * abs(a[key])
    gone = {k for row in old["steps"] for k in row} - {k for row in new["steps"] for k in row}
    more = {k for row in new["steps"] for k in row} - {k for row in old["steps"] for k in row}
    if gone:
        apart.append(f"no longer logged: {', '.join(sorted(gone))}")
        close = False
    if more:
        print(f"    (new metrics: {', '.join(sorted(more))})")
    if old["weights"] != new["weights"]:
        apart.append("weights of the exported model")
    return f"{len(apart)} numbers, first {apart[0]}" if apart else "", close


def main(rev: str, *names: str) -> None:
    found = subprocess.run(["git", "rev-parse", rev], cwd=ROOT, capture_output=True, text=True)
    if found.returncode or not set(names) <= RUNS.keys():
        sys.exit(f"guard.py: {rev} must be a commit, and a run one of {', '.join(RUNS)}")
    rev, names = found.stdout.strip(), names or RUNS
    KEPT.mkdir(parents=True, exist_ok=True)
    base_model()
    code = checkout(rev)

    def both(name: str) -> tuple[dict, dict]:
        record = KEPT / f"{rev}-{name}.json"
        flags = SMALL + RUNS[name]
        old = json.loads(record.read_text()) if record.exists() else {}
        if old.get("flags") != flags:
            old = start(name, code, KEPT / "runs" / f"old-{name}") | dict(flags=flags)
            record.write_text(json.dumps(old))
        return old, start(name, ROOT, KEPT / "runs" / f"new-{name}")

    failures = 0
    with ThreadPoolExecutor(int(os.environ.get("JOBS", 2))) as pool:
        for name, (old, new) in zip(names, pool.map(both, names), strict=True):
            what, close = difference(old, new)
            excused = what and close and name in ROUNDED
            failures += bool(what) and not excused
            verdict = ("rounding" if excused else "DIFFERENT") if what else "equal"
            print(f"{name:20s} {verdict}  {what}", flush=True)
    sys.exit(f"{failures} of {len(names)} runs differ" if failures else 0)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
