"""What an exported model folder says of itself, and its way to the hub.

README.md is the model card. remix.json holds how the policy was trained and how it scored; eval.py
takes its defaults from there. prompt.txt is the text of --prompt FILE.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from textwrap import indent

import data
from config import Config, saved_config
from metrics import SCORES, read_metrics
from reward import FORMATS
from tiny import embedded_problems


def write(folder: Path, run: Path, step: int, tokenizer) -> None:
    """Into `folder`, which holds the run's policy after `step`. ValueError where an older run did
    not record its prompt, and the file is gone."""
    cfg, prompt = saved_config(run), {}
    if cfg["prompt"] not in data.PROMPTS:  # the file may have changed since, or be elsewhere
        text = cfg.get("prompt_text") or data.get_prompt(cfg["prompt"]).template
        (folder / "prompt.txt").write_bytes(text.encode())
        prompt = dict(prompt="prompt.txt")
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["step"] <= step]
    row = next((row for row in rows if row["step"] == step), {})
    sampling = {name: cfg[f"eval_{name}"] for name in ("temperature", "top_p", "max_tokens")}
    names = "prompt format problem_field answer_field stop stop_token_ids".split()
    said = dict(
        step=step,
        evaluation={name: value for name, value in row.items() if name.startswith("eval/")},
        eval_flags={name: cfg[name] for name in names} | prompt | sampling,
        git_commit=cfg.get("git_commit", "unknown"),
        command=cfg.get("starts", [dict(command="remix.py")])[-1]["command"],
        config={f.name: cfg[f.name] for f in fields(Config)},
    )
    (folder / "remix.json").write_text(json.dumps(said, indent=2) + "\n")
    curve, newest = run / "curve.png", run / "metrics.jsonl"
    drawn = curve.exists() and curve.stat().st_mtime >= newest.stat().st_mtime
    if drawn:  # else it is an older one: the run goes on
        shutil.copy(curve, folder)
    text = card(run.resolve().name, said, rows, drawn, folder, tokenizer)
    (folder / "README.md").write_text(text, encoding="utf-8")


def read(folder: Path) -> dict:
    """remix.json of an exported folder; {} where there is none that can be read."""
    try:
        return json.loads((folder / "remix.json").read_text())
    except (OSError, ValueError):
        return {}


def on_the_hub(sources: str) -> list[str]:
    """The hub names among those of --model, --data or --eval_data; a path is none."""
    names = [name.strip() for name in sources.split(",")]
    names = [data.BENCHMARKS[x].hub if x in data.BENCHMARKS else x.split(":")[0] for x in names]
    pattern = re.compile(r"\w[\w.-]*/\w[\w.-]*")
    return [
        x for x in names
        if pattern.fullmatch(x) and Path(x).suffix not in data.SUFFIXES and not Path(x).exists()
    ]  # fmt: skip


def licence(model: str) -> str:
    """Of the base model, by its card if that lies in its folder and can be read."""
    from huggingface_hub import ModelCard

    found = None
    with suppress(Exception):  # somebody else's file: it must not end a run that is done
        found = ModelCard.load(Path(model).expanduser() / "README.md").data.license
    return found if isinstance(found, str) else "unknown"


def card(title: str, said: dict, rows: list[dict], drawn: bool, folder: Path, tokenizer) -> str:
    """The model card, with the front matter of the hub."""
    from huggingface_hub import EvalResult, ModelCardData

    cfg, scores = said["config"], said["evaluation"]
    eval_data = cfg["eval_data"] or cfg["data"]
    named = {name.removeprefix("eval/"): value for name, value in scores.items()}
    results = [
        EvalResult(
            task_type="text-generation", dataset_name=eval_data, metric_type=name,
            dataset_type=(on_the_hub(eval_data) or ["own"])[0], metric_value=value,
        )
        for name, value in named.items() if f"eval/{name}" in SCORES
    ]  # fmt: skip
    front = ModelCardData(
        base_model=on_the_hub(cfg["model"]) or None,
        datasets=on_the_hub(cfg["data"]) or None,
        license=licence(cfg["model"]),
        library_name="transformers", pipeline_tag="text-generation",
        tags=["remix", "reinforcement-learning", *["math"] * (not cfg["reward"]), cfg["algo"]],
        model_name=title, eval_results=results or None,
    )  # fmt: skip
    how = "greedy" if not cfg["eval_temperature"] else (
        f"{cfg['eval_n']} responses a problem at temperature {cfg['eval_temperature']}, "
        f"top-p {cfg['eval_top_p']}"
    )  # fmt: skip
    measured = "This step was not evaluated."
    if scores:
        numbers = table(["metric", "value"], [[name, f"{x:.4g}"] for name, x in named.items()])
        measured = (
            f"On `{eval_data}`, {how}, at most {cfg['eval_max_tokens']} tokens; rates and pass@k "
            f"are shares from 0 to 1, length is in tokens:\n\n{numbers}"
        )
    name = next((name for name in SCORES for row in rows if name in row), SCORES[0])
    points = [[row["step"], row["rollouts"], f"{row[name]:.4f}"] for row in rows if name in row]
    curve = table(["step", "rollouts", name.removeprefix("eval/")], points)
    path = said["eval_flags"]["prompt"]
    prompt = data.get_prompt(path if path in data.PROMPTS else str(folder / path), tokenizer)
    problem = "What is 17 + 25?"
    if cfg["data"] == "tiny":
        problem = embedded_problems("test")[0]["problem"]
    right = f"The reward is what `{cfg['reward']}` returns."
    if not cfg["reward"]:
        right = f"A right response (`{cfg['format']}`) has {FORMATS[cfg['format']]}."
    script, _, flags = said["command"].partition(" ")  # by train.sh with all of its path
    facts = {"base model": cfg["model"], "training problems": cfg["data"]}
    facts |= dict(method=f"{cfg['algo']}, {cfg['loss']}", commit=said["git_commit"])
    return f"""---
{front.to_yaml()}
---

# {title}

`{cfg["model"]}`, finetuned by reinforcement learning with the code of
[ReMix](https://arxiv.org/abs/2507.06892): the policy after step {said["step"]} of {cfg["steps"]}.

{table(["", ""], [[name, f"`{value}`"] for name, value in facts.items()])}

    python {Path(script).name} {flags}

Every setting is in `remix.json`.

## Scores

{measured}

## Curve

{"![learning curve](curve.png)" if drawn else ""}

{curve if points else "There was no evaluation."}

## Prompt

`{path}`. {right} Filled, special tokens included:

````text
{data.render(problem, prompt, tokenizer)}
````

## Use

{snippets(problem, prompt, cfg, tokenizer)}

## Licence

Of the base model: {front.license}.
"""


def table(heads: list[str], rows: list[list]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def snippets(problem: str, prompt: data.Prompt, cfg: dict, tokenizer) -> str:
    """The model by transformers and by vLLM, with the very token ids that it was trained with."""
    template = data.render("{problem}", prompt, tokenizer)
    text, ids = data.render(problem, prompt, tokenizer), data.encode(problem, prompt, tokenizer)
    ways = [("", False), (tokenizer.bos_token or "", False), ("", True)]  # some end every text
    head, special = next(
        ((head, special) for head, special in ways
         if ids == tokenizer(head + text, add_special_tokens=special).input_ids),
        ways[0],
    )  # fmt: skip
    temperature, top_p, n = (cfg[f"eval_{name}"] for name in ("temperature", "top_p", "max_tokens"))
    sample = "do_sample=False"
    if temperature:
        sample = f"do_sample=True, temperature={temperature}, top_p={top_p}, top_k=0"
    stop, ids_ = (list(cfg.get(name, ())) for name in ("stop", "stop_token_ids"))
    texts = f", stop_strings={stop}, tokenizer=tokenizer" if stop else ""
    ends = f", stop={stop}, include_stop_str_in_output=True" if stop else ""
    ends += f", stop_token_ids={ids_}" if ids_ else ""
    encode = f"""name = "."  # this folder, or its name on the hub
problem = {problem!r}
prompt = {head + template!r}
tokenizer = AutoTokenizer.from_pretrained(name)
ids = tokenizer(prompt.replace("{{problem}}", problem), add_special_tokens={special}).input_ids
"""
    engine = f"""
llm = LLM(name)
options = SamplingParams(temperature={temperature}, top_p={top_p}, max_tokens={n}{ends})
(output,) = llm.generate(dict(prompt_token_ids=ids), options)
print(output.outputs[0].text)"""
    return f"""````python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

{encode}
model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
options = dict({sample})
options |= dict(max_new_tokens={n}, eos_token_id={[*data.stop_tokens(tokenizer), *ids_]}{texts})
output = model.generate(torch.tensor([ids]), **options)
print(tokenizer.decode(output[0, len(ids) :]))
````

````python
from transformers import AutoTokenizer
from vllm import LLM, SamplingParams

if __name__ == "__main__":  # its processes import this file
{indent(encode + engine, "    ")}
````"""


# ----------------------------------------------------------------------------------------- the hub


@contextmanager
def reaching_the_hub(name: str) -> Iterator[None]:
    """ValueError with one sentence where the hub does not take it."""
    try:
        yield
    except Exception as error:  # httpx's, the hub's own, and those of its uploader
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"--push {name}: the hub did not take it ({text}); look at the name, the token's "
            "rights and the network, and give the same command again"
        ) from error


def make_repository(name: str, private: bool) -> None:
    """A model repository USER/NAME, unless it is there. ValueError with one sentence where it
    cannot be, or is public and should not be."""
    import huggingface_hub

    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise ValueError(f"--push {name}: is no name of the hub; give USER/NAME")
    if not huggingface_hub.get_token():
        raise ValueError(
            f"--push {name}: there is no token of the hub; run `hf auth login`, or set HF_TOKEN"
        )
    api = huggingface_hub.HfApi()
    with reaching_the_hub(name):
        api.create_repo(name, private=private or None, exist_ok=True)  # None: as is usual there
        public = private and not api.model_info(name).private
    if public:
        raise ValueError(
            f"--push {name}: is there already, and public; name another, or leave --private out"
        )


def upload(folder: Path, name: str) -> str:
    """The folder as one commit -> its address. Its card names the repository, not this folder."""
    from huggingface_hub import CommitOperationAdd, HfApi

    text = (folder / "README.md").read_text(encoding="utf-8")
    text = text.replace('name = "."  # this folder, or its name on the hub', f'name = "{name}"')
    files = [
        CommitOperationAdd(path.name, text.encode() if path.name == "README.md" else path)
        for path in sorted(folder.iterdir())
    ]
    with reaching_the_hub(name):
        done = HfApi().create_commit(name, files, commit_message=f"Export of {folder}")
    return done.repo_url
