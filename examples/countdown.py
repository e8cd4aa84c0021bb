r"""Your own reward, first example: Countdown. Make a number out of others, each used at most once.

    python examples/countdown.py problems.jsonl       # 1,000 problems
    python examples/countdown.py held_out.jsonl 1     # others: the second argument is the seed
    bash train.sh --data problems.jsonl --eval_data held_out.jsonl --max_prompt_tokens 200 \
        --reward examples/countdown.py:reward --out out/countdown

The last \boxed{} after </think> counts. An expression with the right value is worth 1. A wrong one
that keeps the rules is worth 0.1: a model that is never right can learn those first. Nothing that
a model wrote is evaluated: the expression's syntax tree is walked, with exact fractions.
"""

import ast
import json
import operator
import random
import re
import sys
from fractions import Fraction

ADD, TIMES = operator.add, operator.mul
OPERATORS = {ast.Add: ADD, ast.Sub: operator.sub, ast.Mult: TIMES, ast.Div: operator.truediv}
LATEX = {r"\times": "*", r"\cdot": "*", r"\div": "/", "×": "*", "÷": "/"}


def value(node: ast.expr, left: list[int]) -> Fraction:
    """Of an expression of `left`, the numbers that it may use, which are taken out as it does.
    ValueError, or KeyError for an operator, where it breaks the rules."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](value(node.left, left), value(node.right, left))
    if isinstance(node, ast.Constant) and type(node.value) is int:
        left.remove(node.value)  # ValueError if it is not there, or no longer
        return Fraction(node.value)
    raise ValueError(f"{type(node).__name__} is no part of such an expression")


def reward(response: str, row: dict) -> float:
    boxes = re.findall(r"\\boxed\{([^{}]{1,200})\}", response.rpartition("</think>")[2])
    text = boxes[-1] if boxes else ""
    for latex, sign in LATEX.items():
        text = text.replace(latex, sign)
    try:
        found = value(ast.parse(text.strip(), mode="eval").body, list(row["numbers"]))
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError):
        return 0.0
    return 1.0 if found == row["target"] else 0.1


def problem(rng: random.Random) -> dict:
    """The target is what a random expression of some of the numbers gives, so it can be reached."""
    numbers = [rng.randint(1, 25) for _ in range(rng.choice([3, 4]))]
    target, *others = rng.sample(numbers, len(numbers) - 1)
    for number in others:
        target = rng.choice([ADD, TIMES, lambda a, b: abs(a - b)])(target, number)
    text = (
        f"Make {target} out of {', '.join(map(str, numbers))}, each at most once, with + - * / ( )."
    )
    return dict(problem=text, numbers=numbers, target=target)


if __name__ == "__main__":
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    with open(sys.argv[1], "w") as file:
        file.writelines(json.dumps(problem(rng)) + "\n" for _ in range(1000))
