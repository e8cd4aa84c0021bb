r"""Random answers of exactly known value, in every notation that people use, for the grader.

    generate(count, seed) -> rows {"kind", "gold", "pred", "expected"}, as benchmarks/grader.py has

The values are computed here, with Fractions, not by the grader. One is a polynomial over letters,
pi, roots of primes and functions of letters. These are independent, so two values are equal if and
only if their polynomials are. Half of the pairs are equal: two printings of one tree, or of a tree
and its expansion. The others are near misses: a sum for a product, another digit, sign, power or
unit. Nothing is printed whose meaning readers would disagree about, as a/b(c).
"""

import random
import re
from collections import Counter
from fractions import Fraction

# ---------------------------------------------------------------- VALUES: monomial -> coefficient
# A monomial is the sorted ((atom, power), ...), the atom of a root is the prime.

ONE, ROOTS = {(): Fraction(1)}, (2, 3, 5)


def times(x: dict, y: dict) -> dict:
    total = Counter()
    for (m, a), (n, b) in ((i, j) for i in x.items() for j in y.items()):
        powers, factor = Counter(dict(m)), a * b
        powers.update(dict(n))
        for root in ROOTS:  # \sqrt{2}^3 = 2\sqrt{2}
            whole, powers[root] = divmod(powers[root], 2)
            factor *= Fraction(root) ** whole
        total[tuple(sorted(((k, p) for k, p in powers.items() if p), key=str))] += factor
    return {monomial: factor for monomial, factor in total.items() if factor}


def plus(x: dict, y: dict) -> dict:
    total = {m: x.get(m, 0) + y.get(m, 0) for m in {**x, **y}}
    return {monomial: factor for monomial, factor in total.items() if factor}


def power(base: dict, exponent: int) -> dict:
    if exponent < 0:
        if len(base) != 1:
            raise ZeroDivisionError("no monomial")
        ((monomial, factor),) = base.items()
        base = times({tuple((name, -p) for name, p in monomial): 1 / factor}, ONE)
    total = ONE
    for _ in range(abs(exponent)):
        total = times(total, base)
    return total


def value(tree: tuple) -> dict:
    operation, *parts = tree
    if operation == "number":
        return times({(): parts[0]}, ONE)
    if operation == "mixed":
        return {(): parts[0] + parts[1]}
    if operation in ("function", "text"):
        return parts[-1]
    if operation == "^":
        return power(value(parts[0]), parts[1])
    if operation == "/":
        return times(value(parts[0]), power(value(parts[1]), -1))
    total, combine = value(parts[0]), times if operation == "*" else plus
    for part in parts[1:]:
        total = combine(total, value(part))
    return total


# ---------------------------------------------------------------- TREES

LETTERS = ["x", "n", "t", "a", "b", "k", r"\alpha", r"\theta"]
SINES = {0: "0", 30: "1", 45: "2", 60: "3", 90: "4"}  # 2 sin(angle), squared


def root(n: int) -> dict:
    """The value of the square root of 2^a 3^b 5^c."""
    total = ONE
    for prime in ROOTS:
        while n % prime == 0:
            total, n = times(total, {((prime, 1),): Fraction(1)}), n // prime
    assert n == 1
    return total


def atom(name: str) -> tuple:
    plain = {r"\alpha": "α", r"\theta": "θ", r"\pi": "pi"}.get(name, name)
    return ("text", name, plain, {((name, 1),): Fraction(1)})


def leaf(rng: random.Random, letters: list[str]) -> tuple:
    kind = rng.choice(["integer"] * 5 + ["letter"] * 5 + ["fraction"] * 2 + ["other"] * 5)
    if kind == "letter" and letters:
        return atom(rng.choice(letters))
    if kind == "fraction":
        return ("number", Fraction(rng.randint(1, 9), rng.choice([2, 3, 4, 5, 7, 8, 10])))
    if kind != "other":
        return ("number", Fraction(rng.randint(2, 12)))
    kind, n = rng.choice("pi root mixed sine log function text".split()), rng.randint(2, 6)
    if kind == "pi":
        return atom(r"\pi")
    if kind == "root":
        n = rng.choice([2, 3, 5, 6, 8, 10, 12, 18, 20, 50])
        return ("text", rf"\sqrt{{{n}}}", f"sqrt({n})", root(n))
    if kind == "mixed":
        bottom = rng.choice([2, 3, 4, 5, 8])
        return ("mixed", n, Fraction(rng.randint(1, bottom - 1), bottom))
    if kind == "sine":
        angle = rng.choice([30, 45, 60])
        name, square = rng.choice([("sin", SINES[angle]), ("cos", SINES[90 - angle])])
        radians = rf"\frac{{\pi}}{{{180 // angle}}}"
        argument = rng.choice([rf"{angle}^\circ", rf"{angle}^{{\circ}}", radians])
        return ("function", name, argument, times(root(int(square)), {(): Fraction(1, 2)}))
    if kind == "log":
        return ("function", rf"log_{{{n}}}", str(n**2), {(): Fraction(2)})
    if kind == "function" and letters:
        name, argument = rng.choice(["sin", "ln"]), rng.choice(letters)
        return ("function", name, argument, {((f"{name} {argument}", 1),): Fraction(1)})
    texts = [
        (rf"\left|-{n}\right|", f"|-{n}|", n),
        ("3!", None, 6),
        ("4!", None, 24),
        (rf"\binom{{{n}}}{{2}}", None, n * (n - 1) // 2),
        (rf"\sqrt[3]{{{n**3}}}", f"{n**3}^(1/3)", n),
        (rf"\lfloor {n}.5 \rfloor", None, n),
    ]
    latex, plain, number = rng.choice(texts)
    return ("text", latex, plain, {(): Fraction(number)})


def tree(rng: random.Random, letters: list[str], depth: int) -> tuple:
    if depth == 0 or rng.random() < 0.15:
        return leaf(rng, letters)
    operation = rng.choice("+ + * * * / / ^".split())
    if operation == "^":
        return ("^", tree(rng, letters, depth - 1), rng.choice([2, 2, 2, 3, -1]))
    count = 2 if operation == "/" else rng.choice([2, 2, 3])
    parts = [tree(rng, letters, depth - 1) for _ in range(count)]
    if operation == "+":
        signs = [rng.random() < 0.35 for _ in parts]
        minus = ("number", Fraction(-1))
        parts = [("*", minus, p) if sign else p for p, sign in zip(parts, signs, strict=True)]
    return (operation, *parts)


def expansion(polynomial: dict, rng: random.Random) -> tuple:
    """A tree of the value, written out."""
    terms = []
    for monomial, factor in rng.sample(sorted(polynomial.items(), key=str), len(polynomial)):
        over = [], []
        for name, exponent in monomial:
            if isinstance(name, int):
                base = ("text", rf"\sqrt{{{name}}}", f"sqrt({name})", root(name))
            elif " " in name:
                base = ("function", *name.split(), {((name, 1),): Fraction(1)})
            else:
                base = atom(name)
            over[exponent < 0].append(("^", base, abs(exponent)) if abs(exponent) > 1 else base)
        top, bottom = (rng.sample(side, len(side)) for side in over)
        if abs(factor) != 1 or not top:
            top = [("number", abs(factor)), *top]
        term = ("*", *top) if len(top) > 1 else top[0]
        if bottom:
            term = ("/", term, ("*", *bottom) if len(bottom) > 1 else bottom[0])
        terms.append(("*", ("number", Fraction(-1)), term) if factor < 0 else term)
    return ("+", *terms) if len(terms) > 1 else terms[0] if terms else ("number", Fraction(0))


def near_miss(node: tuple, rng: random.Random) -> tuple:
    """The tree with one change somewhere."""
    operation, *parts = node
    inner = [i for i, part in enumerate(parts) if isinstance(part, tuple)]
    if inner and rng.random() < 0.7:
        i = rng.choice(inner)
        return (operation, *parts[:i], near_miss(parts[i], rng), *parts[i + 1 :])
    if operation == "number":
        return ("number", rng.choice([parts[0] + 1, parts[0] * 10, -parts[0], 1 / parts[0]]))
    if operation == "mixed":
        return ("*", ("number", Fraction(parts[0])), ("number", parts[1]))
    if operation == "^":
        return rng.choice([("^", parts[0], parts[1] + 1), ("*", ("number", Fraction(2)), parts[0])])
    if operation == "/":
        return rng.choice([("/", parts[1], parts[0]), ("*", *parts), ("+", *parts)])
    if operation in "+*":
        return rng.choice([("*" if operation == "+" else "+", *parts), (operation, *parts[:-1])])
    return ("*", ("number", Fraction(2)), node)


# ---------------------------------------------------------------- NOTATION
# How closely a text holds together: what is below the level that a place needs gets brackets.
SUM, PRODUCT, OPEN, POWER, ATOM = range(5)  # OPEN is a function without brackets, \sin x


class Writer:
    """Writes trees, in LaTeX or as plain text, with choices at random."""

    def __init__(self, rng: random.Random):
        self.rng, self.plain = rng, rng.random() < 0.25

    def choose(self, *latex: str, plain: str) -> str:
        return plain if self.plain else self.rng.choice(latex)

    def brackets(self, text: str) -> str:
        pairs = ["()", "()", (r"\left(", r"\right)"), (r"\bigl(", r"\bigr)"), "[]"]
        opening, closing = "()" if self.plain else self.rng.choice(pairs)
        return opening + text + closing

    def place(self, tree: tuple, level: int) -> str:
        text, own = self.write(tree)
        return text if own >= level and not text.startswith("-") else self.brackets(text)

    def write(self, tree: tuple) -> tuple[str, int]:
        operation, *parts = tree
        if operation == "number":
            return self.number(parts[0])
        if operation == "mixed":
            top, bottom = parts[1].numerator, parts[1].denominator
            space = self.rng.choice(["", r"\,", " "])
            latex = rf"{parts[0]}{space}\frac{{{top}}}{{{bottom}}}"
            return self.choose(latex, plain=f"{parts[0]} {top}/{bottom}"), PRODUCT
        if operation == "text":
            if not self.plain:
                return parts[0], ATOM
            return parts[1] or parts[0], POWER if "^" in (parts[1] or "") else ATOM
        if operation == "function":
            return self.function(*parts[:2])
        if operation == "^":
            return self.power(*parts)
        return {"/": self.quotient, "*": self.product, "+": self.sum}[operation](*parts)

    def number(self, n: Fraction) -> tuple[str, int]:
        top, bottom, sign = abs(n.numerator), n.denominator, "-" if n < 0 else ""
        if bottom == 1:
            comma = self.choose("", "{,}", r"\,", r"\;", r",\!", plain="")
            text = f"{top:,}".replace(",", comma)
            wrap = not self.plain and self.rng.random() < 0.05
            return sign + (rf"\num{{{text}}}" if wrap else text), ATOM
        if 1000 % bottom == 0 and top < 100 * bottom and self.rng.random() < 0.3:
            text = f"{float(top / bottom)}"
            return sign + (text if self.rng.random() < 0.8 else text.removeprefix("0")), ATOM
        if self.plain or self.rng.random() < 0.15:
            return f"{sign}{top}/{bottom}", PRODUCT
        command = self.rng.choice(["frac", "frac", "dfrac", "tfrac", "sfrac", "nicefrac"])
        if top < 10 and bottom < 10 and self.rng.random() < 0.2:
            return rf"{sign}\{command}{top}{bottom}", POWER
        return rf"{sign}\{command}{{{top}}}{{{bottom}}}", POWER

    def function(self, name: str, argument: str, exponent: str = "") -> tuple[str, int]:
        if self.plain:
            argument = re.sub(r"\^\{?\\circ\}?", "°", argument).replace(r"\theta", "θ")
            argument = re.sub(r"\\frac\{\\pi\}\{(\d)\}", r"pi/\1", argument.replace(r"\alpha", "α"))
            return f"{name.replace('_{', '_').replace('}', '')}{exponent}({argument})", ATOM
        brackets = self.rng.random()
        if brackets < 0.4 or brackets < 0.7 and exponent:
            space = " " if argument[0].isalpha() or name[-1].isalpha() else ""
            return rf"\{name}{exponent}{space}{argument}", OPEN
        if brackets < 0.5:
            return rf"\{name}{exponent}{{{argument}}}", OPEN
        return rf"\{name}{exponent}{self.brackets(argument)}", ATOM

    def power(self, base: tuple, exponent: int) -> tuple[str, int]:
        mark = f"^{exponent}" if 0 <= exponent < 10 else f"^{{{exponent}}}"
        mark = self.choose(
            mark, f"^{{{exponent}}}", plain=f"^({exponent})" if exponent < 0 else mark
        )
        if base[0] == "function" and exponent > 0 and "log" not in base[1]:
            if self.rng.random() < 0.5:
                return self.function(*base[1:3], mark)
        return self.place(base, ATOM) + mark, POWER

    def quotient(self, top: tuple, bottom: tuple) -> tuple[str, int]:
        if not self.plain and self.rng.random() < 0.75:
            command = self.rng.choice([r"\frac", r"\frac", r"\dfrac", r"\cfrac"])
            top, bottom = self.write(top)[0], self.write(bottom)[0]
            if self.rng.random() < 0.1 and "{" not in top + bottom:
                return rf"{{{top} \over {bottom}}}", POWER
            return f"{command}{{{top}}}{{{bottom}}}", POWER
        text, level = self.write(top)
        if level in (SUM, OPEN) or "/" in text or "\\" in text and level == PRODUCT:
            text = self.brackets(text)
        slash = self.choose("/", r" \div ", plain="/")
        return f"{text}{slash}{self.place(bottom, POWER)}", PRODUCT

    def product(self, *parts: tuple) -> tuple[str, int]:
        if parts[0] == ("number", Fraction(-1)) and len(parts) > 1:
            rest = self.place(parts[1], PRODUCT) if len(parts) == 2 else self.product(*parts[1:])[0]
            return f"-{rest}", SUM
        text, level = self.write(parts[0])
        if level < PRODUCT:
            text, level = self.brackets(text), ATOM
        for part in parts[1:]:
            right, own = self.write(part)
            dot = self.choose(r"\cdot ", r" \times ", r"\cdot ", plain="*")
            if self.rng.random() < 0.65 and POWER <= level:  # side by side
                if own < OPEN or right.startswith(("-", ".", "\\num", *"0123456789")):
                    right, own = self.brackets(right), ATOM
                space = self.choose("", "", " ", r"\,", r"\;", r"\ ", plain="")
                mixed = re.search(r"\d\}?$", text) and re.match(r"\\[a-z]*frac", right)
                words = self.plain and re.search(r"\w$", text) and re.match(r"[a-z]{2}|\d", right)
                words = words or self.plain and re.search(r"[a-z]{2}$", text)
                if not (mixed or words or right.startswith("|")):
                    dot = space or " " * (text[-1].isalpha() and right[0].isalpha())
            elif own < PRODUCT or right.startswith("-") or level == PRODUCT and own == PRODUCT:
                right, own = self.brackets(right), ATOM
            if level == OPEN:
                text = self.brackets(text)
            text, level = text + dot + right, own if own in (OPEN, PRODUCT) else POWER
        return text, OPEN if level == OPEN else PRODUCT

    def sum(self, *parts: tuple) -> tuple[str, int]:
        text = ""
        for part in parts:
            term, level = self.write(part)
            if level == SUM and part[0] == "+":
                term = self.brackets(term)
            space = self.rng.choice(["", " "])
            text += term if not text or term.startswith("-") else f"{space}+{space}{term}"
        return text, SUM


# ---------------------------------------------------------------- PAIRS


def expressions(rng: random.Random, equal: bool, letters: list[str]) -> tuple[str, str] | None:
    first = second = tree(rng, letters, rng.choice([1, 2, 2, 3]))
    try:
        polynomial = wanted = value(first)
        if not equal:
            second = near_miss(first, rng)
            wanted = value(second)
    except ZeroDivisionError:
        return None
    big = any(max(abs(f.numerator), f.denominator) > 10**7 for f in wanted.values())
    if (wanted == polynomial) != equal or len(wanted) > 6 or big:
        return None
    second = expansion(wanted, rng) if rng.random() < 0.6 else second
    return Writer(rng).write(first)[0], Writer(rng).write(second)[0]


def degrees(rng: random.Random, equal: bool) -> tuple[str, str] | None:
    """60° + 30°, 180° - 2α, and the same in other order, added up, or in radians."""
    letter, factor = rng.choice(LETTERS), rng.choice([0, 0, 1, -1, 2, -2])
    angles = [5 * rng.randint(1, 36) for _ in range(rng.choice([1, 2]))]
    total = sum(angles)
    if not equal and rng.random() < 0.3 and factor:
        other, total = -factor, total
    else:
        other, total = factor, total + (0 if equal else rng.choice([-5, 10, 90]))

    def side(angles: list[int], factor: int) -> str:
        style = rng.choice(["^\\circ", "^{\\circ}", "°", "radians"])
        space = rng.choice(["", " "])
        terms = [f"{angle}{style}" for angle in angles]
        if style == "radians":
            angle = Fraction(sum(angles), 180)
            terms = [rf"\frac{{{angle.numerator}\pi}}{{{angle.denominator}}}"] if angle else ["0"]
        if factor:
            terms.append(f"{str(factor).replace('1', '')}{letter}")
        first, *rest = rng.sample(terms, len(terms))
        signed = (
            f"{space}{t[0]}{space}{t[1:]}" if t[0] == "-" else f"{space}+{space}{t}" for t in rest
        )
        return first + "".join(signed)

    return side(angles, factor), side([total], other)


UNITS = {  # unit -> dimension, size, spellings
    "m": ("length", 1, ["m", "meters"]),
    "cm": ("length", Fraction(1, 100), ["cm", "centimeters"]),
    "km": ("length", 1000, ["km"]),
    "min": ("time", 60, ["min", "minutes"]),
    "h": ("time", 3600, ["hours"]),
    "kg": ("mass", 1, ["kg"]),
    "g": ("mass", Fraction(1, 1000), ["g", "grams"]),
}


def units(rng: random.Random, equal: bool) -> tuple[str, str] | None:
    """A number with its unit, and with another one or none."""
    number = rng.choice(
        [Fraction(rng.randint(2, 40)), Fraction(rng.randint(1, 9), rng.choice([2, 4, 5]))]
    )
    (dimension, size, spellings), (other, size2, spellings2) = rng.choices(
        list(UNITS.values()), k=2
    )
    converted = number * size / size2 if dimension == other else number
    if equal != (dimension == other):
        return None
    if equal and rng.random() < 0.3:
        converted, spellings, spellings2 = number, spellings[-1:], [""]
    if dimension == other and not equal:
        converted *= 10

    def side(number: Fraction, spelling: str) -> str:
        writer = Writer(rng)
        text = writer.write(("number", number))[0]
        latex = [rf"\text{{ {spelling}}}", rf"\,\mathrm{{{spelling}}}", rf"~\text{{{spelling}}}"]
        return text + (writer.choose(*latex, plain=f" {spelling}") if spelling else "")

    return side(number, rng.choice(spellings)), side(converted, rng.choice(spellings2))


def dress(text: str, rng: random.Random) -> str:
    if "*" not in text and rng.random() < 0.05:
        return rng.choice([f"**{text}**", f"`{text}`"])
    return rng.choice([text] * 16 + [f"${text}$", f"{text}.", rf"\boxed{{{text}}}", rf"\({text}\)"])


def generate(count: int, seed: int = 0) -> list[dict]:
    rng, rows = random.Random(seed), []
    while len(rows) < count:
        equal = len(rows) % 2 == 0
        kind = rng.choice(["numbers"] * 4 + ["algebra"] * 4 + ["degrees", "units"])
        if kind in ("numbers", "algebra"):
            letters = rng.sample(LETTERS, 2) if kind == "algebra" else []
            pair = expressions(rng, equal, letters)
        else:
            pair = (degrees if kind == "degrees" else units)(rng, equal)
        if pair and max(map(len, pair)) < 300:
            if kind != "units":
                pair = rng.sample(pair, 2)
            gold, pred = (dress(text, rng) for text in pair)
            rows.append({"kind": kind, "gold": gold, "pred": pred, "expected": equal})
    return rows
