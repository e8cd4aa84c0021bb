"""A pretrained model through the whole way: train, kill -9, resume, export, reload, evaluate.

    python benchmarks/pretrained.py FOLDER [--engine vllm] [--work /tmp/pretrained]

FOLDER holds a model with a chat template in the marks <|im_start|> and <|im_end|>, for example
HuggingFaceTB/SmolLM2-135M-Instruct from the hub. Three tiny steps of ReMix-GRPO: this shows that
the way is open, not that the model learns. The run is killed once its first checkpoint is there,
and the same command goes on. Printed is a table of what was seen; exit 1 if anything is wrong:

engine gap        mean error of the sampler's log-probs against the trainer's, the worst step [nats]
steps             those of metrics.jsonl, each once although the run was killed
export            what the run wrote and what checkpoint.py writes: the same files, byte for byte
greedy            of so many problems, on how many eval.py gives the same text in both engines
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import checkpoint  # noqa: E402

PROMPT = """<|im_start|>user
7 + 4 - 8<|im_end|>
<|im_start|>assistant
7 + 4 = 11. 11 - 8 = 3. The answer is \\boxed{3}.<|im_end|>
<|im_start|>user
{problem}<|im_end|>
<|im_start|>assistant
"""


def run(program: str, *flags) -> None:
    command = [sys.executable, str(ROOT / program), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"pretrained.py: {program}: {done.stderr.strip()[-1000:]}")


def train(flags: list[str], out: Path) -> None:
    """Killed after its first checkpoint, and gone on with."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "remix.py"), *flags],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not checkpoint.latest(out):
        time.sleep(0.2)
    if process.poll() is not None:
        sys.exit(f"pretrained.py: remix.py: {process.stderr.read().strip()[-1000:]}")
    process.send_signal(signal.SIGKILL)
    process.wait()
    run("remix.py", *flags)


def texts(model: Path, engine: str, work: Path, problems: int) -> list[str]:
    """Greedy responses by eval.py."""
    out = work / f"greedy-{engine}.json"
    run(
        "eval.py", "--model", model, "--data", "tiny", "--prompt", work / "prompt", "--n", 1,
        "--temperature", 0, "--max_tokens", 24, "--limit", problems, "--engine", engine,
        "--dtype", "float32", "--out", out,
    )  # fmt: skip
    lines = out.with_suffix(".samples.jsonl").read_text().splitlines()[1:]
    return [json.loads(line)["responses"][0] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="FOLDER")
    parser.add_argument("--engine", default="hf", choices=("hf", "vllm"))
    parser.add_argument("--problems", type=int, default=8, help="evaluated greedily")
    parser.add_argument("--work", type=Path, default=Path("/tmp/pretrained"))
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work = args.work / args.engine
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "prompt").write_text(PROMPT)
    out = work / "run"
    flags = (
        f"--model {args.model} --data tiny --prompt {work}/prompt --out {out} --algo grpo "
        f"--engine {args.engine} --dtype float32 --max_prompt_tokens 100 --max_tokens 24 "
        "--prompts_per_step 4 --group_size 4 --mini_batch 4 --off_policy_ratio 0.5 --steps 3 "
        "--reincarnation_step 2 --temperature 0.7 --lr 1e-6 --eval_every 0 --eval_limit 4 "
        "--eval_n 1 --eval_max_tokens 24 --save_every 1 --grader_workers 1"
    ).split()
    start = time.time()
    train(flags, out)
    seconds = time.time() - start
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    run("checkpoint.py", out, work / "again")
    files = [
        {file.name: file.read_bytes() for file in folder.iterdir()}
        for folder in (out / "model", work / "again")
    ]
    same = files[0] == files[1]
    both = [texts(out / "model", engine, work, args.problems) for engine in ("hf", "vllm")]
    equal = sum(a == b for a, b in zip(*both, strict=True))
    gap = max(row["engine_gap"] for row in rows if row["step"])
    print("$ python benchmarks/pretrained.py FOLDER --engine", args.engine)
    print(
        "| engine | seconds | engine gap | steps | export | greedy |\n|---|---:|---:|---|---|---:|"
    )
    cells = [args.engine, f"{seconds:.0f}", f"{gap:.0e}", ", ".join(map(str, steps))]
    cells += ["same" if same else "DIFFERS", f"{equal} of {args.problems}"]
    print("| " + " | ".join(cells) + " |")
    sys.exit(not (gap < 1e-4 and steps == [0, 1, 2, 3] and same and equal == args.problems))


if __name__ == "__main__":
    main()
