"""--keep_responses: a few responses of a run, token by token, as lines of responses.jsonl."""

import torch

from buffer import Response
from data import Problem
from eval import decode
from loss import clip_took
from reward import extract_answer


def extremes(responses: list[Response], count: int) -> list[Response]:
    """Half of them the best by reward and then mean advantage, half the worst; the best first."""
    ordered = sorted(responses, key=lambda r: (-r.reward, -r.advantages.mean().item()))
    return [r for i, r in enumerate(ordered) if 2 * i < count or 2 * (len(ordered) - i) <= count]


def token_texts(tokenizer, tokens: list[int]) -> list[str]:
    """What each token adds to the text. A character whose bytes several tokens share is the last
    one's."""
    texts, start, done = [], 0, 0
    for end in range(1, len(tokens) + 1):  # decoded with the one before: it may begin with a space
        before, text = (tokenizer.decode(tokens[start:to]) for to in (done, end))
        whole = end == len(tokens) or not text.endswith("\N{REPLACEMENT CHARACTER}")
        texts.append(text[len(before) :] if whole else "")
        start, done = (done, end) if whole else (start, done)
    return texts


def trained_response(
    r: Response, logp: list[float], age: int, eps: float, tokenizer, format: str, stop: tuple = ()
) -> dict:
    """A line of responses.jsonl. r: as it was in its step; logp: under pi_theta, when it was last
    trained on. advantage: one number where all tokens have the same. clipped: the places of the
    tokens whose gradient the clip took."""
    text, took = decode(tokenizer, r.tokens, stop), torch.tensor(logp)
    took = clip_took(took, r.logp_k, r.logp_b, r.advantages, eps)
    columns = dict(logp=logp, logp_k=r.logp_k, logp_b=r.logp_b, advantage=r.advantages)
    columns = {name: [round(float(v), 6) for v in of] for name, of in columns.items()}
    if len(set(columns["advantage"])) == 1:
        columns["advantage"] = columns["advantage"][0]
    return dict(
        kind="replayed" if r.replayed else "fresh", age=age, reward=r.reward,
        format=extract_answer(text, format) is not None if format else None,
        finished=r.finished, clip_eps=eps,
        prompt=tokenizer.decode(r.prompt), text=text, tokens=token_texts(tokenizer, r.tokens),
        clipped=took.nonzero()[:, 0].tolist(), **columns,
    )  # fmt: skip


def evaluated_response(record: dict, problem: Problem) -> dict:
    """A line of responses.jsonl: the first response to an evaluation problem, see eval.grade."""
    names = "responses rewards lengths finished".split()
    text, reward, length, finished = (record[name][0] for name in names)
    said = dict(kind="evaluation", problem=problem.problem, text=text, reward=reward)
    said |= dict(length=length, finished=finished)
    if "answers" in record:  # not of --reward, which may know of none
        gold = problem.gold if isinstance(problem.gold, str) else ", ".join(problem.gold.answers)
        (answer, *_) = record["answers"]
        said |= dict(gold=gold, answer=answer, format=answer is not None)
    return said
