"""Flags that steer a run: learning rates, stops, the first evaluation, several evaluation sets,
groups without contrast, a model's own code. Each against what another calculation gives."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_remix import assert_same_run, bad, metrics, run, slow, weights
from tokenizers import Tokenizer, decoders, models

import checkpoint
import config
import data
import eval
import remix
import rollout
import siblings
from buffer import Response
from model import Policy, full_weights, load_model
from reward import Grader
from tiny import embedded_problems

SMALL = (
    "--prompt plain --max_prompt_tokens 64 --max_tokens 48 --format boxed "
    "--prompts_per_step 6 --mini_batch 3 "
    "--lr 1e-3 --critic_lr 1e-2 --eval_limit 3 --eval_n 2 --eval_every 0 --save_every 9 --steps 2 "
    "--reincarnation_step 0 --engine hf"
)
GRPO = "--algo grpo --group_size 4 --prompts_per_step 8 --mini_batch 4"


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """A file of problems that any number up to 100 solves: this base model is hardly ever
    right, and mostly has no group with both."""
    path = tmp_path_factory.mktemp("problems") / "some.json"
    rows = [row | dict(answer="50", error="50") for row in embedded_problems("train")[:60]]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def half_solvable(problems, tmp_path):
    """The same, every second solved by nobody: whatever this machine's base model knows, some
    groups have no contrast."""
    rows = json.loads(problems.read_text())
    rows[::2] = [row | dict(answer="777", error="0") for row in rows[::2]]
    path = tmp_path / "half.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def train(base, group, problems, monkeypatch):
    """train(out, flags) -> rows of metrics, of a run inside this process."""
    monkeypatch.setitem(data.TRUST, "trust_remote_code", False)
    monkeypatch.setattr(remix, "plot_runs", lambda *_: None)

    def start(out, flags="", model=base):
        out = Path(out)
        where = ["--model", model, "--data", str(problems), "--eval_data", str(problems)]
        cfg = config.parse_config([*where, "--out", str(out), *SMALL.split(), *flags.split()])
        config.check_config(cfg)
        config.check_out(cfg)
        *loaded, _ = data.load_run(cfg)
        out.mkdir(exist_ok=True)
        checkpoint.write_json(out / "config.json", vars(cfg))
        remix.train(cfg, "cpu", *loaded)
        return metrics(out)

    return start


# ---------------------------------------------------------------------------------- learning rates


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 4, 12])
def test_rates_are_those_of_transformers(name, warmup):
    cfg = bad("--steps", 12, "--warmup_steps", warmup, "--lr_schedule", name, "--lr", 0.5)
    names = dict(constant="constant_with_warmup")
    p = torch.nn.Parameter(torch.zeros(2))
    theirs = torch.optim.AdamW([p], 0.5)
    schedule = transformers.get_scheduler(names.get(name, name), theirs, warmup, 12 + 1)
    ours = dict(policy=torch.optim.AdamW([p], 0.1), critic=torch.optim.AdamW([p], 0.1))
    seen = []
    for step in range(1, 13):
        theirs.step()
        schedule.step()
        remix.set_learning_rates(ours, step, cfg)
        lr = ours["policy"].param_groups[0]["lr"]
        assert lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        assert ours["critic"].param_groups[0]["lr"] == pytest.approx(cfg.critic_lr * lr / 0.5)
        seen.append(lr)
    assert min(seen) > 0 and max(seen) <= 0.5  # no rollout is for nothing
    assert name != "constant" or warmup or seen == [0.5] * 12


def test_a_schedule_holds_the_number_of_steps_fast(tmp_path):
    flags = ["--out", tmp_path / "run", "--lr_schedule", "linear"]
    (tmp_path / "run").mkdir()
    checkpoint.write_json(tmp_path / "run" / "config.json", vars(bad(*flags, "--steps", 9)))
    config.check_out(bad(*flags, "--steps", 9))
    with pytest.raises(ValueError, match="--steps 12: the run in --out .* has --steps 9; go on"):
        config.check_out(bad(*flags, "--steps", 12))


# ------------------------------------------------------------------------------------------- stops


def cut(tokenizer, sample, stop, ids):
    """The sample as it would have ended, by decoding every prefix of one that went on."""
    for n in range(1, len(sample.tokens) + 1):
        text = tokenizer.decode(sample.tokens[:n], skip_special_tokens=False)
        if sample.tokens[n - 1] in ids or any(end in text for end in stop):
            return sample.tokens[:n], sample.logp[:n], True
    return sample.tokens, sample.logp, sample.finished


@pytest.mark.parametrize("kind", [pytest.param("vllm", marks=slow), "hf"])
def test_a_response_ends_at_a_stop(kind, base, engines, tokenizer):
    """Both engines: with the token that completes the text, its log-probs as they were, finished.
    The texts are from the responses themselves, of two tokens and of a part of one."""
    engine = engines(kind)
    engine.sync(full_weights(load_model(Policy, base, device="cpu", dtype="float32")))
    prompts = [
        tokenizer.apply_chat_template(
            [dict(role="user", content=row["problem"])], add_generation_prompt=True
        )["input_ids"]
        for row in embedded_problems("train")[:12]
    ]
    options = dict(seeds=[10 * i for i in range(12)], max_tokens=24)
    free = engine.generate(prompts, 2, **options)
    tokens = [s.tokens for group in free for s in group]
    pairs = Counter(
        tokenizer.decode(row[i : i + 2]) for row in tokens for i in range(2, len(row) - 2)
    )
    pair = pairs.most_common(1)[0][0]
    [(ident, _)] = Counter(t for row in tokens for t in row[3:-1]).most_common(1)
    ends = set(data.stop_tokens(tokenizer))
    for stop, ids in [((pair,), ()), ((), (ident,)), (("zzz", pair[1:]), (ident,))]:
        stopped = engine.generate(prompts, 2, **options, stop=stop, stop_token_ids=ids)
        whole = 0
        for a, b in zip(free, stopped, strict=True):
            for long, short in zip(a, b, strict=True):
                want, logp, finished = cut(tokenizer, long, stop, ids)
                assert (short.tokens, short.finished) == (want, finished)
                assert np.abs(np.subtract(short.logp, logp)).max() < 1e-5
                whole += short.tokens == long.tokens
                text = eval.decode(tokenizer, short.tokens, stop)
                by_text = any(end in text for end in stop)
                assert not by_text or text.endswith(stop)
                if short.tokens[-1] in ids and not by_text:
                    assert text.endswith(tokenizer.decode([ident]))
                assert sum(t in ends for t in short.tokens) <= 1
        assert whole < 20, "nothing was stopped"


def test_what_the_last_token_has_behind_the_text_is_not_graded(base, tokenizer):
    class Words:
        name_or_path, eos_token_id = base, tokenizer.eos_token_id

        def decode(self, tokens, **_):
            return "".join({-1: "a ", -2: "b.</x>\n"}[token] for token in tokens)

    assert eval.decode(Words(), [-1, -2], ("</x>",)) == "a b.</x>"
    assert eval.decode(Words(), [-1, -2], ("a", "</x>")) == "a"
    assert eval.decode(Words(), [-1, -2, tokenizer.eos_token_id], ()) == "a b.</x>\n"


def test_bytes_that_are_no_text_confuse_no_stop():
    """A tokenizer that falls back to bytes, as Llama's: halves of characters in any order, where
    the library's stream gives up, and vLLM begins anew."""
    vocabulary = {f"<0x{i:02X}>": i for i in range(256)}
    vocabulary |= {word: 256 + i for i, word in enumerate(["cat", "é", "ab"])}
    tok = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tok.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tok)
    rng, failed = np.random.default_rng(0), 0
    for _ in range(60):
        noise = rng.integers(128, 259, 30).tolist()
        completes = rollout.completer(tokenizer, noise[:3], ["abcat"])
        said = [completes(token) for token in [*noise[3:], 258, 256]]
        assert said == [False] * 28 + [True] or "abcat" in tok.decode(noise)
        stream = decoders.DecodeStream(ids=noise[:3], skip_special_tokens=False)
        try:
            for token in noise[3:]:
                stream.step(tok, token)
        except Exception:
            failed += 1
    assert failed


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--warmup_steps", -1], "--warmup_steps -1: must not be negative"),
        (["--warmup_steps", 9, "--steps", 8], "--warmup_steps 9: is more than --steps 8; lower it"),
        (["--stop", "a", "--stop", ""], r"--stop \('a', ''\): holds an empty text"),
        (["--filter_groups", 2], "--filter_groups 2: compares the responses of a group; use it"),
        (["--algo", "grpo", "--filter_groups", -1], "--filter_groups -1: is a number of rounds"),
        (
            ["--algo", "grpo", "--filter_groups", 1, "--loss", "topr"],
            "--filter_groups 1: drops groups that --loss topr learns from; leave",
        ),
    ],
)
def test_bad_flags(flags, message):
    with pytest.raises(ValueError, match=message):
        bad(*flags)


def test_a_schedule_that_there_is_not(capsys):
    with pytest.raises(SystemExit):
        config.parse_flags(["--lr_schedule", "step"])
    assert "'step' for argument '--lr_schedule'" in capsys.readouterr().err


def test_stops_that_no_response_could_end_with(tokenizer):
    data.check_stop(tokenizer, ["</answer>"], [3])
    for token in (-1, len(tokenizer)):
        with pytest.raises(ValueError, match=f"--stop_token_ids {token}: the tokenizer has "):
            data.check_stop(tokenizer, [], [token])
    with pytest.raises(ValueError, match="--stop x: this model's tokenizer cannot decode token"):
        data.check_stop([None] * 9, ["x"], [])


def test_lists_of_flags_are_kept_and_printed(tmp_path):
    """Through config.json, which has lists, and as a command."""
    flags = ["--stop", "</x>", "--stop", "a b", "--stop_token_ids", "3", "--stop_token_ids", "4"]
    cfg = bad("--out", tmp_path / "run", *flags)
    assert (cfg.stop, cfg.stop_token_ids) == (("</x>", "a b"), (3, 4))
    (tmp_path / "run").mkdir()
    checkpoint.write_json(tmp_path / "run" / "config.json", vars(cfg))
    config.check_out(cfg)
    with pytest.raises(ValueError, match="--stop"):
        config.check_out(bad("--out", tmp_path / "run", *flags[:2]))
    said = config.command(config.parse_flags(flags))
    assert said == "remix.py --stop '</x>' --stop 'a b' --stop_token_ids 3 --stop_token_ids 4"


# -------------------------------------------------------------------------------------- evaluation


def test_sets_have_names():
    assert data.named_sets("tiny") == dict(tiny="tiny")
    assert data.named_sets("amc23, a/b/MATH-500,x/held.out.jsonl,amc23") == {
        "amc23": "amc23", "MATH-500": "a/b/MATH-500", "held.out": "x/held.out.jsonl",
    }  # fmt: skip
    assert data.named_sets("a/x.json,b/x.json") == {p: p for p in ("a/x.json", "b/x.json")}
    with pytest.raises(ValueError, match="--eval_data '': a name is empty"):
        next(data.read_source(data.named_sets("tiny,")[""], flag="--eval_data"))


def test_each_set_has_its_score_and_the_first_evaluation_may_be_left_out(train, problems, tmp_path):
    """Of two sets: the first scores as if it were alone, all as the mean over the problems. What
    is evaluated changes nothing in training."""
    easy, hard = tmp_path / "easy.json", tmp_path / "hard.json"
    rows = json.loads(problems.read_text())
    easy.write_text(json.dumps(rows[:4]))
    hard.write_text(json.dumps([row | dict(answer="1000") for row in rows[:9]]))
    both = train(tmp_path / "both", f"--eval_data {easy},{hard} --no_eval_first --eval_n 8")
    one = train(tmp_path / "one", f"--eval_data {easy} --eval_n 8")
    assert "eval/pass@1" in one[0] and not any(key.startswith("eval/") for key in both[0])
    of_one, of_both = ([row for row in rows if "eval/pass@1" in row] for rows in (one, both))
    assert [row["step"] for row in of_one] == [0, 2] and [row["step"] for row in of_both] == [2]
    ours, alone = of_both[-1], of_one[-1]
    names = [key.removeprefix("eval/") for key in alone if key.startswith("eval/")]
    assert {f"eval/easy/{key}" for key in names} <= ours.keys()
    assert all(ours[f"eval/easy/{key}"] == alone[f"eval/{key}"] for key in names)
    assert not any(key.startswith("eval/easy") for key in alone)
    assert ours["eval/easy/problems"] == ours["eval/hard/problems"] == 3  # --eval_limit, of each
    assert ours["eval/hard/pass@1"] == 0 < ours["eval/easy/answer_rate"]
    for key in ("pass@1", "response_length", "answer_rate"):
        mean = (ours[f"eval/easy/{key}"] + ours[f"eval/hard/{key}"]) / 2
        assert ours[f"eval/{key}"] == pytest.approx(mean)
    training = [
        [{k: v for k, v in row.items() if k[:5] != "eval/"} for row in r] for r in (both, one)
    ]
    assert training[0] == training[1]


# ------------------------------------------------------------------------------------------ groups


def responses(rewards):
    return [Response([0], [1], torch.zeros(1), True, float(r), 1) for r in rewards]


def test_rounds_ask_for_what_is_missing():
    """Every third problem has contrast; 4 are wanted: 0..3 have 2, 4 and 5 none, 6 and 7 one."""
    asked = []

    def sample(chosen, before):
        asked.append((list(chosen), before))
        return [responses([0, i % 3 == 0, 0]) for i in chosen]

    def upcoming(n):
        start = asked[-1][0][-1] + 1
        return list(range(start, start + n))

    for rounds, last in [(0, 4), (1, 6), (2, 8), (3, 9), (4, 10), (9, 10)]:
        asked.clear()
        chosen, groups = list(range(4)), sample(range(4), 0)
        siblings.fill_up(groups, chosen, 4, rounds, upcoming, sample)
        assert chosen == list(range(last)) == [i for part, _ in asked for i in part]
        assert [before for _, before in asked] == [part[0] for part, _ in asked]
        kept = siblings.filtered(groups, rounds)
        assert kept == [g for i, g in enumerate(groups) if i % 3 == 0]
        assert siblings.filtered(groups, None) is not kept and len(groups) == last


@pytest.fixture
def drawn(monkeypatch):
    """Every call of the sampler with its answer, and the rewards that were given."""
    calls, generate = [], rollout.HFEngine.generate

    def record(engine, prompts, n=1, *, seeds, **options):
        groups = generate(engine, prompts, n, seeds=seeds, **options)
        calls.append((seeds, prompts, groups))
        return groups

    monkeypatch.setattr(rollout.HFEngine, "generate", record)
    return calls


def test_what_is_dropped_and_what_is_counted(train, drawn, half_solvable, tokenizer, tmp_path):
    """One optimizer step over the whole batch at a rate of nothing: the loss of step 1 is minus
    the mean advantage over the tokens of the groups with contrast."""
    flags = f"{GRPO} --mini_batch 8 --utd_ratio 1 --lr 1e-30 --eval_limit 1 --steps 2"
    rows = train(tmp_path / "run", f"{flags} --filter_groups 2 --kl_coef 0 --data {half_solvable}")
    problems, _ = data.load_problems(str(half_solvable), tokenizer, "plain")
    gold = {tuple(problem.prompt_ids): problem.gold for problem in problems}
    kept, asked = {1: [], 2: []}, {1: [], 2: []}
    with Grader(workers=1) as grader:
        for seeds, prompts, groups in drawn:
            step, place = divmod(seeds[0] // 4, 1_000_000)
            if len(groups[0]) < 4 or not step:  # of an evaluation, or a probe
                continue
            asked[step] += [seed // 4 % 1_000_000 for seed in seeds]
            for prompt, group in zip(prompts, groups, strict=True):
                texts = [eval.decode(tokenizer, s.tokens) for s in group]
                rewards = grader.score(texts, [gold[tuple(prompt)]] * 4, "boxed").rewards
                if len(set(rewards)) == 2:
                    kept[step].append((prompt, group, rewards))
    total = 0
    for step, fresh in ((1, 4), (2, 5)):  # 0.6 * 8, the remainder carried
        assert sorted(asked[step]) == list(range(len(asked[step])))  # no seed twice
        assert len(asked[step]) > fresh or len(kept[step]) == fresh
        total += 4 * len(asked[step])
        assert rows[step]["rollouts"] == total
    assert 0 < len(kept[1]) < len(asked[1]), "nothing was dropped"
    tokens = pushed = 0
    for _, group, rewards in kept[1]:
        A = (np.array(rewards) - np.mean(rewards)) / (np.std(rewards, ddof=1) + 1e-6)
        lengths = [len(s.tokens) for s in group]
        tokens, pushed = tokens + sum(lengths), pushed + A @ lengths
    prompts = sum(4 * len(prompt) for prompt, _, _ in kept[1])
    assert rows[1]["tokens_backward"] == tokens + prompts
    assert rows[1]["policy_loss"] == pytest.approx(-pushed / tokens, abs=1e-6)
    replayed = min(len(kept[1]), 3)  # the buffer has groups with contrast alone
    share = replayed / (replayed + len(kept[2]))
    assert rows[2]["off_policy_ratio"] == pytest.approx(share)
    state = torch.load(checkpoint.latest(tmp_path / "run") / "state.pt")
    assert state["position"] == len(asked[1]) + len(asked[2])
    assert len(state["buffer"]["entries"]) == len(kept[1]) + len(kept[2])


def give(rewards, monkeypatch, first=None):
    """The same rewards to every group; others in step 1."""
    real = remix.give_rewards

    def ours(groups, *args):
        counts = real(groups, *args)
        for _, group in groups:
            now = first if first and group[0].step == 1 else rewards
            for r, reward in zip(group, now, strict=True):
                r.reward = reward
        return counts

    monkeypatch.setattr(remix, "give_rewards", ours)


def test_with_contrast_everywhere_nothing_changes(train, tmp_path, monkeypatch):
    give([1.0, 0.0, 0.0, 1.0], monkeypatch)
    train(tmp_path / "a", GRPO)
    train(tmp_path / "b", f"{GRPO} --filter_groups 3")
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_step_without_a_group_makes_no_update_and_says_so(train, tmp_path, monkeypatch, capsys):
    give([1.0] * 4, monkeypatch)
    rows = train(tmp_path / "run", f"{GRPO} --filter_groups 2 --geppo_clip --eval_limit 1")
    assert [row["rollouts"] for row in rows] == [0, 3 * 4 * 4, 3 * (4 + 5) * 4]
    assert [row["gradient_steps"] for row in rows] == [0, 0, 0]
    assert not {"policy_loss", "kl", "grad_norm"} & rows[1].keys() and rows[1]["reward"] == 1
    assert capsys.readouterr().out.count("no update, as no group has contrast") == 2
    first = load_file(Path(config.saved_config(tmp_path / "run")["model"]) / "model.safetensors")
    assert all(torch.equal(w, first[name]) for name, w in weights(tmp_path / "run").items())


def test_a_run_that_is_interrupted_goes_on_as_it_would_have(train, tmp_path, monkeypatch):
    """With a schedule, stops and further rounds; before the first update, too."""
    flags = f"{GRPO} --filter_groups 1 --steps 3 --warmup_steps 2 --lr_schedule cosine --stop 7"
    flags += " --eval_limit 1"
    give([1.0, 0.0, 0.0, 1.0], monkeypatch, first=[0.0] * 4)
    train(tmp_path / "a", flags)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "asked_to_stop", lambda: 15)
        with pytest.raises(checkpoint.Stopped, match="ends after step 1"):
            train(tmp_path / "b", flags)
    train(tmp_path / "b", flags)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    rows = metrics(tmp_path / "a")[1:]
    rates = [row["lr"] for row in rows]
    assert [row["rollouts"] for row in rows] == [2 * 16, 2 * 16 + 20, 2 * 16 + 40]
    assert rows[0]["gradient_steps"] == 0 < rows[1]["gradient_steps"]
    assert rates == pytest.approx([0.0005, 0.001, 0.001 * (1 + math.cos(math.pi / 2)) / 2])


@slow
def test_two_ranks_are_one_rank(base, half_solvable, tmp_path):
    flags = [*SMALL.split(), *GRPO.split(), "--filter_groups", 3, "--stop", "7", "--steps", 2]
    flags += ["--data", half_solvable, "--eval_data", half_solvable]
    one, two = run(base, tmp_path / "1", *flags), run(base, tmp_path / "2", *flags, ranks=2)
    assert one[0] == two[0] and one[1]["rollouts"] > 4 * 4
    for name in ("rollouts", "reward", "response_length", "tokens_backward", "gradient_steps"):
        assert one[1][name] == two[1][name], name
    for name in ("policy_loss", "kl", "entropy", "grad_norm"):
        assert one[1][name] == pytest.approx(two[1][name], rel=2e-3, abs=1e-5), name


# --------------------------------------------------------------------------------------- own code


@pytest.fixture
def own(base, tmp_path):
    """The base model as one that comes with code."""
    folder = Path(shutil.copytree(base, tmp_path / "own"))
    (folder / "modeling_own.py").write_text("""
from transformers import Qwen2Config, Qwen2ForCausalLM
class OwnConfig(Qwen2Config):
    model_type = "own"
class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
""")
    path = folder / "config.json"
    auto = dict(AutoConfig="OwnConfig", AutoModelForCausalLM="OwnForCausalLM")
    change = dict(model_type="own", architectures=["OwnForCausalLM"])
    change["auto_map"] = {kind: f"modeling_own.{name}" for kind, name in auto.items()}
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return str(folder)


def test_a_model_with_code_of_its_own(train, own, base, tmp_path):
    """It trains as the model that it is a copy of, and what is exported has the code, too."""
    with pytest.raises(ValueError, match="--model .*own: comes with code .* --trust_remote_code"):
        train(tmp_path / "no", model=own)
    flags = f"{GRPO} --steps 1 --eval_limit 1"
    train(tmp_path / "a", f"{flags} --trust_remote_code", model=own)
    train(tmp_path / "b", flags)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    exported = str(tmp_path / "a" / "model")
    lm = transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    assert type(lm).__name__ == "OwnForCausalLM"
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=False)
