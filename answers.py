r"""Do two answers mean the same? The mathematics of the grader; its rules are in reward.py.

    equivalent(answer, gold)  -> pure: no processes, no clock, no randomness

Its stages, each findable by its banner:

    NORMALISE  LaTeX to one spelling
    READ       that text into lists, tuples, intervals, matrices, equations, down to single values
    PARSE      one expression into a tree
    EVALUATE   that tree at fixed random points
    COMPARE    value by value: text, base-n numeral, exact fraction, and only then an expression

What stands side by side is multiplied, 3(7) = 21, also a letter and a bracket, x(2) = 2x. Only
W \frac{a}{b} and W a/b are mixed numbers. The size of every power and factorial has a limit, and
nothing an answer says is ever passed to eval or to a computer algebra system.

Left out: set algebra; sums, integrals and derivatives are not simplified (equal if written alike).
"""

import itertools
import math
import random
import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import mpmath

MAX_CHARS = 2000  # a longer answer is no answer (longest gold of the five benchmarks: 204)
MAX_EXPRESSION = 400  # characters of one expression
MAX_DEPTH = 12  # nested brackets
MAX_ITEMS = 64  # elements of a list
MAX_BITS = 20_000  # an exact number larger than this goes on as a float ...
MAX_EXPONENT = 10**7  # ... and a power or factorial with a larger logarithm is not evaluated at all


class Gold(NamedTuple):
    """A reference answer; a plain string stands for Gold((string,)).

    answers: alternatives, any of which is right; with `multiple` all are required, in any order.
    unit: unit of a number that carries none itself. error: absolute tolerance, as text ("1e-1").
    """

    answers: tuple[str, ...]
    unit: str | None = None
    error: str | None = None
    multiple: bool = False


# ---------------------------------------------------------------- BOX


def _closing(text: str, start: int) -> int:
    r"""Index of the brace that closes the one at `start`, -1 if none does. \{ and \} are text."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.S).finditer(text, start):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0 and match[0] == "}":
            return match.start()
    return -1


def last_box(text: str) -> str | None:
    r"""Content of the last \boxed{}, the outer one of nested boxes; None if it is empty or open.

    Never an earlier box: "\boxed{7} ... no, wait, \boxed{" is a response that did not answer.
    """
    content, end = None, 0
    for box in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        if box.start() < end:
            continue  # inside the box just read
        close = _closing(text, box.end() - 1)
        content = text[box.end() : close].strip() if close >= 0 else None
        end = max(close, box.end())
    return content or None


# ---------------------------------------------------------------- NORMALISE
# Left: the one spelling that the reader below knows, often a single character to split at (⦃ a set,
# ¤ dollars). Right: LaTeX commands (without backslash) and characters that mean the same.
# ␣ is a space, ø nothing.
_SPELLINGS = r"""
>= => ge geq geqq geqslant ≥ ⩾ | <= =< le leq leqq leqslant ≤ ⩽ | != ne neq ≠ | < lt | > gt
≈ approx simeq thickapprox doteq | ∪ cup | ∈ in | ∖ setminus backslash | ± +/- pm | ∓ mp | ⦃ lbrace
⦄ rbrace | ( langle lgroup | ) rangle rgroup | [ lbrack | ] rbrack | : colon ∶ | £ pounds | € euro
° degree | - − – — ‐ ‑ ﹣ － | / div ÷ ⁄ ∕ | ' ′ | ^{2} ² | ^{3} ³ | ^ ** ˆ
\frac dfrac tfrac cfrac sfrac nicefrac xfrac | \binom dbinom tbinom | \infty infinity infin ∞
\emptyset varnothing ∅
\ldots ... dots cdots dotsc … | \cdot ast * · ⋅ | \times × | \pi π | \theta θ | \sqrt √
\R ℝ reals Reals | \log_{10} lg | \epsilon varepsilon ε | \phi varphi φ | angstrom Å Å AA
\alpha α | \beta β | \gamma γ | \delta δ | \zeta ζ | \eta η | \iota ι | \kappa κ | \lambda λ
\mu μ | \nu ν | \xi ξ | \rho ρ | \sigma σ | \tau τ | \upsilon υ | \chi χ | \psi ψ | \omega ω
\Gamma Γ | \angle ∠ | \triangle △ | \Delta Δ | \Theta Θ | \Lambda Λ | \Xi Ξ | \Sigma Σ | \Phi Φ
\Psi Ψ | \Omega Ω | \frac{1}{2} ½ | \frac{1}{3} ⅓ | \frac{2}{3} ⅔ | \frac{1}{4} ¼ | \frac{3}{4} ¾
P Pr | ␣,␣ land wedge | \text{␣or␣} lor vee | ␣ quad qquad
\text textbf textit textrm textnormal textsf texttt textup textmd mathrm mathbf mathit mathsf
\text mathtt mathnormal mbox hbox boldsymbol bm emph
ø num left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr displaystyle textstyle limits
ø nolimits bf rm it boxed fbox tiny small normalsize large Large LARGE huge Huge checkmark
"""
_SPELLED = {
    name: spelling.replace("␣", " ").replace("ø", "") + (" " if spelling[-1].isalpha() else "")
    for entry in re.split(r" \| |\n", _SPELLINGS.strip())
    for spelling, *names in [entry.split()]
    for name in names
} | {"vert": "|", "lvert": "|", "rvert": "|", "mid": "|", "\u200b": "", "\ufeff": ""}
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|exp|cis|log|ln|sqrt"
_INNER = r"(?:[^{}]|\{[^{}]*\})*"  # of braces
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\phantom\s*\{?-?\}?|\\hspace\s*\{[^{}]*\}", " "),
        (r"(?<!\\)\\\{", "⦃"),
        (r"(?<!\\)\\\}", "⦄"),
        (r"⦃\s*⦄", r"\\emptyset "),
        (r"\\underline\s*\{([^{}]*)\}|\\(?:text)?color\s*\{[^{}]*\}", r"\1"),
        (r"\\mathbb\s*\{?\s*R\s*\}?", r"\\R "),
        (r"\\R\s*\^\s*\{?\+\}?\s*∪\s*⦃\s*0\s*⦄", r"\\R_{>=0}"),
        (r"\\R\s*\^\s*(?:\+|\{\+\})", r"\\R_{>0}"),
        (r"\\R\s*_\s*\{\s*([<>]=?)\s*0\s*\}", r"⦃x|x\1 0⦄"),
        (r"(?<![\^_])\{\s*([±∓])\s*\}", r"\1"),
        *[
            (rf"\{{({_INNER})\\{infix}(?![a-zA-Z])({_INNER})\}}", rf"\\{command}{{\1}}{{\2}}")
            for infix, command in (("over", "frac"), ("choose", "binom"))
        ],
        (r"\{\s*([:=.]?)\s*\}", r"\1"),  # 12{:}30
        (r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1\\text{ \2}"),
        (r"\\ang\s*\{([^{}]*)\}", r"\1°"),
        (r"^\s*\{([0-9A-Z]+)\}(?=\s*_)", r"\1"),  # {63}_8
        (rf"\\text\s*\{{({_INNER}\\(?:sqrt|pi)\b{_INNER})\}}", r"\1"),  # \mathrm{\sqrt{10}}
        (rf"\\(?:operatorname\*?|text)\s*\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
        (r"\\operatorname\*?\s*\{", r"\\text{"),
        # thousands, where LaTeX says so: 1{,}000  1,\!000  1\,000  (1,000 may be a list: _readings)
        (
            r"(?<=[0-9])(?:\s*\{\\?,\}\s*|,\s*\\!\s*|\\[,;: ]\s*|~|\s+)(?=[0-9]{3}(?![0-9]|\s*/))",
            "",
        ),
        (r"(?<!\\)\\[,;:!> \n]|~", " "),
        # percent, currency, degrees
        (r"\\%|\\text\{\s*(?:%|percent|per cent|pct)\.?\s*\}|\b(?:percent|per cent|pct)\b", "%"),
        (r"\\text\{\s*\\?\$\s*\}|\\\$", "¤"),
        (r"\\text\{\s*([¤£€])\s*\}|\bUS\s*(?=¤)", r"\1"),
        *[
            (rf"(?<![a-zA-Z])(?:\\text\s*\{{\s*{code}\s*\}}|{code})\s*(?=[0-9.])", sign)
            for code, sign in (("USD", "¤"), ("EUR", "€"), ("GBP", "£"))
        ],
        (r"\\circ(?![a-zA-Z])|(?<=[0-9]\^)o(?![a-zA-Z])|(?<=[0-9]\^\{)o(?=\})", "°"),
        (r"(?<=[0-9])\s*\^\s*(\{?)\s*\\text\s*\{\s*o\s*\}", r"^\1°"),
        (r"\^\s*(?:\{\s*°\s*\}|°)", "°"),
        # names: f: x \mapsto x + 1, f(x) \equiv 0
        (
            r"^\s*([a-zA-Z])\s*:(?:\s*\\R\s*\\to\s*\\R\s*[,:;])?\s*([a-z])\s*\\mapsto(?![a-zA-Z])",
            r"\1(\2)=",
        ),
        (r"^(\s*[a-zA-Z]\s*\(\s*[a-z]\s*\)\s*)\\equiv(?![a-zA-Z])(?!.*mod)", r"\1="),
        # ]0, 1[ is (0, 1)
        (r"(?<![\w)}\]])\](\s*[^\s\[\]()⦃⦄,;][^\[\]()⦃⦄,;]*[,;][^\[\]()⦃⦄,;]+[\[\])])", r"(\1"),
        (
            r"(?<![\w)}\]])([\[(]\s*[^\[\]()⦃⦄,;]+[,;][^\[\]()⦃⦄,;]*[^\[\]()⦃⦄,;\s]\s*)\[(?!\s*[^\s∪,\\}])",
            r"\1)",
        ),
        # text
        (r"\\text\s*\{", r"\\text{"),
        *[
            (rf"(?<=[0-9])\s*(\\text\{{)?\s*{word}\b", rf"\\times 10^{{{zeros}}}\1")
            for word, zeros in (("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))
        ],
        # bold numbers, \mathrm{e}, \mathrm{d}x, v_{\text{max}}
        (r"\\text\{([^{}a-zA-Z]*|[eid]|[PE](?=\}\s*\())\}", r"\1"),
        (r"_\s*(?:\\text\{\s*([^{}]*?)\s*\}|\{\s*\\text\{\s*([^{}]*?)\s*\}\s*\})", r"_{\1\2}"),
        # units: \frac{\text{m}}{\text{s}^2}, \text{\frac{m}{s^2}}, and symbols after a number
        (
            r"\\frac\s*\{\s*\\text\{([^{}\\]*)\}\s*\}"
            r"\s*\{\s*\\text\{([^{}]*)\}(\^\s*\{?[0-9]\}?)?\s*\}",
            r"\\text{\1/\2}\3",
        ),
        (r"\\text\{\s*\\frac\s*\{([^{}]*)\}\s*\{([^{}^]*)(\^\s*[0-9])?\}\s*\}", r"\\text{\1/\2}\3"),
        (r"\\mu\s*\\text\{\s*", r"\\text{u"),
        (r"(?<=[0-9}])\s*\\Omega\s*$", r"\\text{ ohm}"),
        (
            r"(?<=[0-9}])\s*(\\text\{\s*)?([MLR])_\s*(?:\{\s*\\odot\s*\}|\\odot)\s*(?(1)\})\s*$",
            r"\\text{ \2sun}",
        ),
        (r"\\text\{([^{}^]*)\^\s*\{?(-?[0-9])\}?\s*\}", r"\\text{\1}^{\2}"),  # \text{cm$^2$}
        (r"^\\text\{[^{}]*(?:\bis|\bare|:|=)\s*\}\s*(?=\S)", ""),  # \text{The answer is } 5
        # what an identity holds for: f(x) = 2x for all real x
        (
            r"(?<=\S)[\s,]*(?:\\text\{[\s,]*for (?:all|every|any)\b|\\forall(?![a-zA-Z]))"
            r"(?:(?!\b(?:or|otherwise)\b).)*$",
            "",
        ),
        (r"(\(([a-z])\)\s*=[^,]*),\s*\2\s*∈\s*\\R\s*$", r"\1"),
        (r"(?i)(?:\\text\{\s*)?\ball (?:real numbers|reals)\b(?:\s*\})?", r"\\R "),
        # plain text that means LaTeX: 2e5, x^10, sin(x), sqrt(2)
        (r"\\not\s*=", "!="),
        (r"(?<=[0-9.])[eE]([-+]?[0-9]+)(?![0-9a-zA-Z._])", r"\\times 10^{\1}"),
        (
            rf"(?<![\\a-zA-Z])(pi|(?:{_FUNCTIONS})(?=\s*(?:[\^_({{\\0-9]|(?:[a-zA-Z]|{_FUNCTIONS})\b)))(?![a-zA-Z])",
            r"\\\1 ",
        ),
        (r"(?<![\\a-zA-Z])(?:infinity|infty)\b", r"\\infty "),
        (r"(?<![\w)}])\+\s*\\infty", r"\\infty"),
        (r"\\sqrt\s*(\[[^\]]*\])?\s*([0-9]+)", r"\\sqrt\1{\2}"),
        (r"\\(frac|binom)\s*([0-9])(?=\s*[0-9{\\])", r"\\\1{\2}"),  # \frac12, \frac1{29}
        (r"(\\(?:frac|binom)\s*\{[^{}]*\})\s*([0-9])", r"\1{\2}"),
        (r"\^\s*([-+]?[0-9]+)(?![0-9.])", r"^{\1}"),
        (r"_\s*([0-9]+|[a-zA-Z]|\\[a-zA-Z]+(?![a-zA-Z]|\s*\{))", r"_{\1}"),
        (r"_\s*\{\s*([^{}]*?)\s*\}", r"_{\1}"),
        (r"\^\s*([0-9a-zA-Z]|\{[^{}]*\})\s*(_\{[^{}]*\})", r"\2^\1"),  # v^2_0
        (r"\^\s*(?:\{\s*(?:\\prime\s*)+\}|\\prime\b)", "'"),
        # lists: words between the elements, \text{, and }; but not in an answer that is all text
        (r"^\s*\\text\{([^{}]*)\}[\s.]*$", r"\1"),
        (r"([<>][^,<>]*?),?\s*(?:\\text\{[\s,]*or[\s,]*\}|\bor\b)(?=[^,<>]*[<>])", r"\1 ∪ "),
        (r"\\text\{[\s,;]*(?:and|or)[\s,;]*\}|,?\s*\b(?:and|or)\b(?![^{}]*\})", " , "),
        (r"(?<=[0-9])\s*(?:\\text\{\s*to\s*\}|\bto\b)\s*(?=[0-9])", ":"),
    ]
]


def normalise(text: str) -> str:
    """One spelling for LaTeX, Unicode and plain text; the meaning, currency and units stay."""
    text = text.strip("`* ")  # Markdown
    text = re.sub(r"\\(?:left|right)\s*\.|(?<!\\)\\[\[\]()]", " ", text)  # and display math
    spelling = r"\\([a-zA-Z]+)|\*\*|[^\x00-\x7f]|\*|=[<>]|\+/-|\.\.\."
    text = re.sub(spelling, lambda m: _SPELLED.get(m[1] or m[0], m[0]), text)
    text = unicodedata.normalize("NFKC", text)  # full-width digits, superscripts, ligatures
    text = re.sub(r"[^\D0-9]", lambda m: str(unicodedata.digit(m[0])), text)  # of other scripts
    if len(re.findall(r"(?<!\\)\$", text)) == 1:
        # a lone $ before a number is money, not math
        text = re.sub(r"(?<!\\)\$(?=\s*[0-9.])", r"\\$", text)
    text = re.sub(r"(?<!\\)\$", "", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"(?<=[^\s\\])(?:[\s.,;:]|\\+$)+$", "", text)


# ---------------------------------------------------------------- READ
# A reading is a tuple:
#   ("leaf", text) | ("list", items) in any order | ("set", items) | ("matrix", rows)
#   ("bracket", "(", "]", items) for tuples, vectors and intervals
#   ("eq", left text, right reading) | ("rel", sides, operators)

_OPEN, _CLOSE = "([{⦃", ")]}⦄"
_LETTER = (
    r"(?:[a-zA-Z]|\\(?!frac|sqrt|text|log|ln|sin|cos|tan|pi\b|ldots|infty)[a-zA-Z]+"
    r"\s*(?:\{[a-zA-Z]\})?)"
)
_NAME = rf"{_LETTER}\s*(?:_\s*\{{[^{{}}]*\}})?\s*(?:'|\^\{{\\prime\s*\}})*"
# What may stand before "=" and be dropped:
# x, x_1, f(x), AB, |AB|, \angle ABC, (x, y), [ABC], \max f, \text{Area}
_NAMED = re.compile(
    r"(?:\\(?:max|min|deg|gcd)\s*)?"
    rf"(?:{_NAME}\s*(?:(?:\^\{{-1\}}\s*)?\(\s*(?:{_NAME}|[0-9]+)(?:\s*,\s*{_NAME})*\s*\))?"
    rf"|\(\s*{_NAME}(?:\s*,\s*{_NAME})*\s*\)"
    r"|m?\s*\\(?:angle|triangle|overline|arc|widehat)\s*\{?[A-Z\s']+[A-Z0-9_{}]*\}?"
    r"|\|\s*\\?[A-Za-z]+\s*\||\[\s*[A-Z]+\s*\]|[A-Z]{2,}|[PE]\s*\([^()]*\)"
    r"|\\text\{[^{}]*\}|[A-Za-z]{4,})"
)
_RELATION = re.compile(r"<=|>=|!=|<|>")


def _split(text: str, separator: str) -> list[str]:
    """Split at a regular expression, outside of brackets; empty parts are dropped."""
    parts, start, depths = [], 0, [0, *_depths(text)]
    for match in re.finditer(separator, text):
        if depths[match.start()] <= 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _depths(text: str, opening: str = _OPEN, closing: str = _CLOSE) -> list[int]:
    """How many brackets are open after each character."""
    return [*itertools.accumulate((c in opening) - (c in closing) for c in text)] or [0]


def _depth(text: str) -> int:
    """Deepest nesting of brackets; -1 if the braces do not match."""
    braces = _depths(text, "{", "}")
    return max(0, *_depths(text)) if min(braces) >= 0 == braces[-1] else -1


def _wrapped(text: str, opening: str, closing: str) -> bool:
    """Is all of the text inside one pair of these brackets?"""
    if len(text) < 2 or text[0] not in opening or text[-1] not in closing:
        return False
    return min(_depths(text)[:-1]) > 0


def _is_name(text: str) -> bool:
    """Can it be the name of an answer, as x in x = 5?"""
    return bool(_NAMED.fullmatch(text.strip()))


def _plus_minus(text: str) -> list[str]:
    """5 ± 3 -> [5 + 3, 5 - 3]. Several ± are independent, unless a ∓ says that they are tied."""
    if "∓" in text:
        return [text.translate({ord("±"): plus, ord("∓"): minus}) for plus, minus in ("+-", "-+")]
    pieces = text.split("±")
    choices = itertools.product("+-", repeat=len(pieces) - 1)
    return ["".join(itertools.chain(*zip(pieces, (*signs, ""), strict=True))) for signs in choices]


def _make_list(items: list[tuple]) -> tuple:
    """A list of readings: flat, without a name that only its first element has (n = 1, 2, 3)."""
    if items[0][0] == "eq" and all(item[0] != "eq" for item in items[1:]) and _is_name(items[0][1]):
        items = [items[0][2], *items[1:]]
    flat = [sub for item in items for sub in (item[1] if item[0] == "list" else [item])]
    return ("list", tuple(flat)) if len(flat) != 1 else flat[0]


def _read_matrix(text: str) -> tuple | None:
    r"""\begin{pmatrix} a & b \\ c & d \end{pmatrix}, in any brackets, perhaps after a factor."""
    match = re.fullmatch(
        r"([^=]*?)[\s(\[]*\\begin\{((?:small|[pbB])?matrix|array)\}(?:\{[lcr|\s]*\})?(.*)\\end\{\2\}[\s)\]]*",
        text,
        re.S,
    )
    if not match or "\\begin" in match[3]:
        return None
    factor = match[1].replace("\\cdot", "").strip()
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr", match[3]) if row.strip()]
    factor = f"({factor})" if factor not in ("", "-") else factor
    cells = [[f"{factor}({c})" if factor else c for c in _split(row, "&")] for row in rows]
    return ("matrix", tuple(tuple(map(read, row)) for row in cells))


def _relation(sides: list[str], operators: list[str]) -> tuple:
    """A chain of relations, turned so that it ascends: x >= 6 -> 6 <= x."""
    if all(operator[0] == ">" for operator in operators):
        sides, operators = sides[::-1], [operator.replace(">", "<") for operator in operators[::-1]]
    return ("rel", tuple(sides), tuple(operators))


def _as_intervals(reading: tuple) -> tuple:
    """6 <= x -> [6, oo); 0 < f(x) < 1 -> (0, 1); x != 3 -> two intervals; others stay."""
    if reading[0] != "rel":
        return reading
    sides, operators = reading[1:]
    if operators == ("!=",) and (_is_name(sides[0]) or _is_name(sides[1])):
        return _without_points([sides[1] if _is_name(sides[0]) else sides[0]])
    if len(sides) == 2 and _is_name(sides[0]):
        sides, operators = (r"-\infty", *sides), ("<", *operators)
    elif len(sides) == 2:
        sides, operators = (*sides, r"\infty"), (*operators, "<")
    if len(sides) == 3 and _is_name(sides[1]) and all(operator[0] == "<" for operator in operators):
        return (
            "bracket",
            "(["[operators[0] == "<="],
            ")]"[operators[1] == "<="],
            (read(sides[0]), read(sides[2])),
        )
    return reading


def _between(items: list[tuple]) -> tuple | None:
    """x > 2 and x < 5 -> 2 < x < 5, if there is anything between the two."""
    if len(items) == 2 and all(
        item[0] == "rel" and len(item[1]) == 2 and item[2][0] != "!=" for item in items
    ):
        for (_, (low, x), lower), (_, (y, high), upper) in (items, items[::-1]):
            ends = [values_of(end) for end in (low, high)] if x == y and _is_name(x) else [None]
            if all(ends) and all(map(_is_constant, ends)) and _is_real(ends[0][0], ends[1][0]):
                if CONTEXTS[40].convert(ends[0][0]).real < CONTEXTS[40].convert(ends[1][0]).real:
                    return ("rel", (low, x, high), lower + upper)
    return None


def _without_points(points: list[str]) -> tuple:
    """The real line without some points (in order of value, if known), as a list of intervals."""
    values = {p: v[0] for p in points if (v := values_of(p)) and isinstance(v[0], Fraction)}
    ends = sorted(points, key=lambda point: values.get(point, 0))
    ends = [("leaf", r"-\infty"), *[read(point) for point in ends], ("leaf", r"\infty")]
    return _make_list([("bracket", "(", ")", pair) for pair in itertools.pairwise(ends)])


def read(text: str) -> tuple:
    """The structure of a normalised answer."""
    text = text.lstrip("= ").rstrip()
    if matrix := _read_matrix(text) if "\\begin" in text else None:
        return matrix
    if ";" in text and len(groups := _split(text, ";")) > 1:  # p = 5, q = 2; p = 7, q = 2
        items = [read(group) for group in groups]
        return _make_list(
            [("bracket", "(", ")", _unnamed(i[1])) if i[0] == "list" else i for i in items]
        )
    if "," in text and len(parts := _split(text, ",")) > 1:
        items = [read(part) for part in parts]
        return _between(items) or _make_list(items)
    if "," in text and text.endswith(","):
        return read(text.rstrip(", "))
    if _wrapped(text, "⦃", "⦄"):
        if builder := re.fullmatch(rf"⦃\s*{_NAME}\s*(?:∈\s*\\R\s*)?[|:](.*)⦄", text):  # {x : x > 3}
            return read(builder[1])
        inner = read(text[1:-1])
        return ("set", inner[1]) if inner[0] == "list" else ("set", (inner,))
    if "∈" in text and len(sides := _split(text, "∈")) == 2:
        return read(sides[1])
    if "∪" in text and len(parts := _split(text, "∪")) > 1:
        items = [read(part) for part in parts]
        if all(item[0] == "set" for item in items):
            return ("set", tuple(element for item in items for element in item[1]))
        return _make_list(items)
    if match := re.fullmatch(r"\\R\s*(?:∖\s*⦃(.*)⦄)?", text):
        return _without_points(_split(match[1] or "", ","))
    if 0 < text.count("±") + text.count("∓") <= 3:
        return _make_list([read(part) for part in _plus_minus(text)])
    if _RELATION.search(text):
        sides = _split(text, _RELATION.pattern)
        operators = _RELATION.findall(text)
        if len(sides) == len(operators) + 1:
            return _relation(sides, operators)
    if 0 < text.count("=") < 9 and len(sides := _split(text, "=")) > 1:
        return ("eq", sides[0], read("=".join(sides[1:])))
    if _wrapped(text, "{", "}"):
        return read(text[1:-1])
    if _wrapped(text, "([", ")]"):
        items = _split(text[1:-1], "[,;]")
        if len(items) > 1:
            return ("bracket", text[0], text[-1], tuple(read(item) for item in items))
        if text[0] + text[-1] == "()" and items:
            return read(items[0])
    return ("leaf", text)


def _unnamed(items: tuple) -> tuple:
    return tuple(item[2] if item[0] == "eq" else item for item in items)


# ---------------------------------------------------------------- VALUES: number, unit, expression


class Number(NamedTuple):
    """An exact value, and how it was written."""

    value: Fraction
    digits: int = 0  # significant digits of a decimal that is no integer
    last: Fraction = Fraction(0)  # the last place of such a decimal


_DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_TEN = r"10\s*\^\s*\{\s*([-+]?[0-9]{1,4})\s*\}"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<decimal>{_DECIMAL})"
    rf"(?:\s*(?:\\times|\\cdot|x)\s*{_TEN}|[eE](?P<e>[-+]?[0-9]{{1,4}}))?|{_TEN}"
    r"|(?P<point>[0-9]*\.[0-9]*)\\(?:overline|bar|dot)\s*\{(?P<repeat>[0-9]+)\})"
)


@lru_cache(8192)
def number(text: str) -> Number | None:
    """Integers, decimals, 4.4e7, 4.4 \\times 10^{7}, 0.\\overline{3}, exact trees."""
    text = text.strip()
    while _wrapped(text, "({", ")}"):
        text = text[1:-1].strip()
    match = _NUMBER.fullmatch(text)
    if not match or len(text) > 1000:
        tree = parse(text)
        return Number(tree) if isinstance(tree, Fraction) else None
    part, sign = match.groupdict(), -1 if match["sign"] == "-" else 1
    ten = match[3] or part["e"] or match[5]
    scale = Fraction(10) ** int(ten) if ten else Fraction(1)
    if part["point"]:
        digits, places = part["point"].replace(".", ""), len(part["point"].partition(".")[2])
        nines = 10**places * (10 ** len(part["repeat"]) - 1)
        return Number(sign * Fraction(int(digits + part["repeat"]) - int(digits or "0"), nines))
    decimal = part["decimal"] or "1"
    value = Fraction(decimal.rstrip(".")) * scale * sign
    if value.denominator == 1 and not ten or not part["decimal"]:
        return Number(value)  # 1296.0 is the integer: no tolerance
    places = len(decimal.partition(".")[2])
    return Number(value, len(decimal.replace(".", "").lstrip("0")), scale / 10**places)


def _table(*rows: str) -> dict[str, tuple[str, Fraction]]:
    table = {}
    for row in rows:
        dimension, *units = row.split()
        for unit in units:
            factor, *names = re.split("[=|]", unit)
            table.update({name: (dimension, Fraction(factor)) for name in names})
    return table


# dimension factor=names: units of one dimension are converted, those of two contradict each other
_UNITS = _table(
    "length 1=m|meter|metre 1/100=cm|centimeter|centimetre 1/1000=mm|millimeter|millimetre",
    "length 1000=km|kilometer|kilometre 1e-6=micron|um 1e-9=nm|nanometer 1e-10=angstrom",
    "length 127/5000=in|inch|inche 381/1250=ft|foot|feet 1143/1250=yd|yard 201168/125=mi|mile",
    "time 1=s|sec|second 60=min|minute 3600=h|hr|hour 86400=d|day 604800=wk|week",
    "time 1/1000=ms|millisecond",
    "year 1=yr|year 1/12=month 10=decade",
    "mass 1=kg|kilogram 1/1000=g|gm|gram 1e-6=mg|milligram 1000=ton|tonne",
    "mass 45359237/100000000=lb|pound 45359237/1600000000=oz|ounce",
    "volume 1=L|l|liter|litre 1/1000=mL|ml|milliliter|millilitre",
    "gallon 1=gal|gallon 1/4=quart 1/8=pint 1/16=cup",
    "dollar 1=$|¤|dollar|usd|USD|buck 1/100=cent|penny|pennie|¢",
    "euro 1=€|euro|EUR",
    "sterling 1=£|GBP 1/100=pence",
    "rupee 1=rupee|Rs|₹",
    "yen 1=yen|¥",
    "angle 1=°|degree|deg 1/60=arcminute 1/3600=arcsecond",
    "pm 1=pm",
    "am 1=am",
    "radian 1=rad|radian",
    "celsius 1=celsius|°C",
    "fahrenheit 1=fahrenheit|°F",
    "kelvin 1=K|kelvin",
    "force 1=N|newton 1000=kN",
    "energy 1=J|joule 1000=kJ 1e-7=erg",
    "eV 1=eV 1000=keV 1000000=MeV 1000000000=GeV",
    "calorie 1=cal|calorie 1000=kcal",
    "power 1=W|watt 1000=kW",
    "voltage 1=V|volt",
    "resistance 1=ohm",
    "current 1=A|amp|ampere",
    "frequency 1=Hz|hertz 1000=kHz 1000000=MHz 1000000000=GHz",
    "pressure 1=Pa|pascal 1000=kPa 101325=atm",
    "amount 1=mol|mole",
    "parsec 1=pc|parsec 1000=kpc 1000000=Mpc",
    "acre 1=acre",
)


def _strip_text(text: str) -> str:
    r"""Friday, for \text{Friday}."""
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text)


@lru_cache(4096)
def unit(text: str) -> tuple[frozenset, Fraction] | None:
    r"""Dimensions and factor of \text{ cm}^{2}, km/h, square feet, mph; None (no claim) else."""
    text = re.sub(r"\bkm?ph\b", "km/hour", _strip_text(text).replace("\\cdot", " "))
    text = re.sub(r"\bmph\b", "mile/hour", text)
    text = re.sub(r"\b([ap])\. ?m\b", r"\1m", re.sub(r"\bper\b", "/", text))
    powers, factor, sign, power_next = {}, Fraction(1), 1, 1
    for word, power, slash in re.findall(
        r"(°\s*[CF]?|[a-zA-Z$¤€£¥₹¢]+\.?)\s*(?:\^\s*\{?\s*([-+]?[0-9])\s*\}?)?|(/)", text
    ):
        word = word.replace(" ", "").rstrip(".")
        if slash:
            sign = -1
        elif word in ("square", "sq", "cubic", "cu"):
            power_next = 2 if word[0] == "s" else 3
        else:
            spellings = (word, word.lower(), word.lower().rstrip("s"))
            known = next((_UNITS[w] for w in spellings if w in _UNITS), None)
            if not known:
                return None
            exponent = sign * power_next * int(power or 1)
            dimension = ("length", 3 * exponent) if known[0] == "volume" else (known[0], exponent)
            factor *= (known[1] / (1000 if known[0] == "volume" else 1)) ** exponent
            powers[dimension[0]] = powers.get(dimension[0], 0) + dimension[1]
            power_next = 1
    return (frozenset(powers.items()), factor) if powers else None


_CONDITION = re.compile(r"\b(?:if|when|for|or|and|not|unless|where|otherwise|but|maybe|possibly)\b")
_TAIL = re.compile(r"(?:\\text\{[^{}]*\}|\^\s*\{?\s*[-+]?[0-9]\s*\}?|\\cdot|[a-zA-Z\s./()°])*")


@lru_cache(8192)
def split_unit(text: str) -> tuple[str, str]:
    r"""64\text{ cm} -> ("64", "\text{ cm}"); ¤18.90 -> ("18.90", "¤"); 28% -> ("28", "%")."""
    text = text.strip()
    if match := re.fullmatch(r"(-?)\s*([¤€£¥₹])\s*([^¤€£¥₹]+)", text):
        value, tail = split_unit(match[1] + match[3])
        return value, match[2] if not tail.startswith("%") else tail
    if match := re.fullmatch(r"(.*[^\s])\s*([¤€£¥₹¢])", text):
        return match[1], match[2]
    if text.endswith("%"):
        return text[:-1].strip(), "%"
    if match := re.fullmatch(r"(.*?)\s*°\s*(?:\\text\{\s*([CF])\s*\}|([CF]))?", text):
        if (
            match[1]
            and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc|cis)", match[1])
            and "°" not in match[1]
            and len(_split(match[1].lstrip("+-"), "[+-]")) == 1
        ):
            return match[1], "°" + (match[2] or match[3] or "")
    start = text.find("\\text{")
    value = text[: max(start, 0)].strip()
    if value.strip(" \\") and _TAIL.fullmatch(text, start) and not _CONDITION.search(text, start):
        return value, text[start:]
    # bare words after a number: 5 cm, 10 dogs; a letter or two may be variables: 7.6Z, 2xy, 2 x y
    words = r"[a-zA-Z][a-zA-Z.\s/]*(?:\^\s*\{\s*-?[0-9]\s*\})?"
    match = re.fullmatch(rf"(.*[0-9}}\)])(\s*)({words})", text)
    if match and number(match[1]):
        value, space, tail = match.groups()
        long = len(tail.strip()) > 1 or space and "10^" in value  # 7 \times 10^{5} K
        if long and unit(tail) or space and re.search("[a-zA-Z]{3}", tail):
            return value, tail
    return text, ""


# ---------------------------------------------------------------- PARSE one expression into a tree
# A tree is an exact Fraction, ("name", "x_1"), or (operation, *trees): _OPERATIONS has all of them.
# Tokens are a reversed list: its last one is read next, and "" at the bottom is the end.

_GREEK = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho
sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega
hbar ell odot prime partial pi infty
""".split()
_FUNCTION = {"\\" + name for name in _FUNCTIONS.split("|")} - {r"\sqrt"}
_TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc", "cis"}
_CLOSING = {"{": "}", "(": ")", "[": "]", "(|": "|)", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_OPAQUE = {r"\sum", r"\prod", r"\int"}
_POSTFIX = ("!", "!!", "°", "◦")
_D = r"\{\s*(?:d|\\partial)"  # the d of a derivative
_STARTS = {*_FUNCTION, *_CLOSING, *_OPAQUE, r"\frac", r"\sqrt", r"\binom", r"\apply"}
_TOKEN = re.compile(
    r"(?P<number>[0-9]*\.[0-9]*\\overline\s*\{[0-9]+\}|[0-9]+\.?[0-9]*|\.[0-9]+)"
    r"|(?P<name>(?:\\(?:d?dot|bar|overline|hat|vec|tilde)\s*\{\s*\\?[a-zA-Z]+\s*\}"
    rf"|\\(?:{'|'.join(_GREEK)})(?![a-zA-Z])|[a-zA-Z])'*(?:\s*_\s*\{{[^{{}}]*\}})?'*)"
    r"|\\[a-zA-Z]+|!!|[-+/^_!°◦,=|(){}\[\]]"
)


def _tokens(text: str) -> list:
    """The tokens of an expression, reversed; numbers and names are trees already."""
    tokens, opened = [""], [""]
    differential = re.search(rf"\\int|\\frac\s*{_D}.*\}}\s*{_D}", text)
    if _TOKEN.sub("", text).strip():
        raise ValueError(text)
    for match in _TOKEN.finditer(text):
        token, last = match[0], tokens[-1]
        if match["number"]:
            if isinstance(last, Fraction):
                raise ValueError("3 7 is neither 37 nor 21")
            token = number(token).value
        elif match["name"]:
            token = ("name", re.sub(r"[\s{}]", "", token))
            if differential and last in (("name", "d"), ("name", r"\partial")):
                token = ("name", tokens.pop()[1] + token[1])
        elif token == "|":  # it closes if a bar is open, and something stands before it
            complete = not isinstance(last, str) or last in {*_CLOSING.values(), *_POSTFIX}
            token = "|)" if opened[-1] == "(|" and complete else "(|"
        if token in _CLOSING:
            opened.append(token)
        elif token == _CLOSING.get(opened[-1]):
            opened.pop()
        tokens.append(token)
    return ["", *tokens[:0:-1]]


def _combine(operation: str, trees: list):
    """A sum or product of trees; exact numbers are computed at once."""
    if all(isinstance(tree, Fraction) for tree in trees):
        return sum(trees) if operation == "+" else math.prod(trees)
    return (operation, *trees) if len(trees) > 1 else trees[0]


def _inverse(tree):
    return 1 / tree if isinstance(tree, Fraction) else ("/", tree)


def _sum(tokens: list):
    terms = [_product(tokens)]
    while tokens[-1] in ("+", "-"):
        terms.append(_product(tokens))
    return _combine("+", terms)


def _product(tokens: list):
    """Factors with an operator or nothing between. Nothing binds closer: a/bc is a/(bc)."""
    factors, operator = [], ""
    while True:
        while tokens[-1] in ("+", "-"):
            factors.append(Fraction(-1 if tokens.pop() == "-" else 1))
        run = [_factor(tokens)]
        while tokens[-1] in _STARTS or not isinstance(tokens[-1], str):
            run.append(_factor(tokens))
        factors.append(_inverse(_combine("*", run)) if operator == "/" else _combine("*", run))
        if tokens[-1] not in ("/", r"\cdot", r"\times"):
            return _combine("*", factors)
        operator = tokens.pop()


def _factor(tokens: list):
    """A number, name, bracket or function, with powers, factorials and degree signs."""
    tree = _atom(tokens)
    while (mark := tokens[-1]) in ("^", *_POSTFIX):
        tokens.pop()
        if mark == "^":
            tree = ("^", tree, _exponent(tokens))
        else:
            tree = (mark, tree) if mark[0] == "!" else ("*", tree, ("name", mark))
    return tree


def _exponent(tokens: list):
    sign = tokens.pop() if tokens[-1] in ("+", "-") else ""
    tree = _atom(tokens)
    if tokens[-1] == "^":  # 2^3^4 is 2^(3^4)
        tokens.pop()
        tree = ("^", tree, _exponent(tokens))
    return _combine("*", [Fraction(-1), tree]) if sign == "-" else tree


def _atom(tokens: list):
    token = tokens.pop()
    if not isinstance(token, str):
        return token
    if token in _CLOSING:
        items = [_sum(tokens)]
        while tokens[-1] in (",", "="):  # u(x, t), and the limits of sums
            tokens.pop()
            items.append(_sum(tokens))
        if tokens.pop() != _CLOSING[token]:
            raise ValueError(f"{token} is not closed")
        tree = items[0] if len(items) == 1 else ("opaque", *items)
        return tree if token in "{([" else (token, tree)
    if token == r"\frac":
        return _combine("*", [_atom(tokens), _inverse(_atom(tokens))])
    if token == r"\binom":
        n, k = _atom(tokens), _atom(tokens)
        rest = _combine("+", [n, _combine("*", [Fraction(-1), k])])
        return ("*", ("!", n), ("/", ("*", ("!", k), ("!", rest))))
    if token == r"\sqrt":
        index = _atom(tokens) if tokens[-1] == "[" else Fraction(2)
        return ("^", _atom(tokens), _inverse(index))
    if token == r"\apply":
        return ("opaque", _atom(tokens), _atom(tokens))
    if token in _FUNCTION | _OPAQUE:
        return _function(token[1:], tokens)
    raise ValueError(token)


def _function(name: str, tokens: list):
    r"""\sin^{2} x, \log_{2}(x), \sum_{k=1}^{n} k; without a bracket up to an operator."""
    marks = {}
    while tokens[-1] in ("^", "_"):
        mark = tokens.pop()
        marks[mark] = _exponent(tokens)
    if "\\" + name in _OPAQUE:
        return ("opaque", ("name", name), *marks.values(), _product(tokens))
    if tokens[-1] in _CLOSING:
        argument = _atom(tokens)
    else:
        factors = [Fraction(-1)] if tokens[-1] == "-" and tokens.pop() else []
        factors.append(_factor(tokens))
        while tokens[-1] in _STARTS - _FUNCTION - {"("} or not isinstance(tokens[-1], str):
            factors.append(_factor(tokens))
        if tokens[-1] == "(" and isinstance(factors[-1], Fraction):  # \sin 2(x+1)
            factors.append(_factor(tokens))
        if name in _TRIGONOMETRIC and tokens[-1] == "/" and isinstance(tokens[-2], Fraction):
            tokens.pop()  # \cos 2\pi/3; but \ln x/2 is half of it
            factors.append(1 / tokens.pop())
        argument = _combine("*", factors)
    if name in _TRIGONOMETRIC and marks.get("^") == -1:
        return ("a" + name, argument)
    name = name.replace("arc", "a")
    tree = (name, argument, marks.get("_", Fraction(10))) if name == "log" else (name, argument)
    return ("^", tree, marks["^"]) if "^" in marks else tree


_WHOLE = r"(?<![0-9.}/^_])([0-9]+)\s*"
_SPECIAL = [  # what a number means depends on what stands beside it
    (rf"{_WHOLE}/\s*([0-9]+)(?![0-9.]|\s*[\^!°])", r"\\frac{\1}{\2}"),  # 1/2x is x/2
    (r"([a-zA-Z])\s*\(\s*0\s*\)", r"\1_{(0)}"),  # an initial value
    (rf"{_WHOLE}\\frac\s*\{{\s*([0-9]+)\s*\}}\s*\{{\s*([0-9]+)\s*\}}", r"(\1+\\frac{\2}{\3})"),
]


@lru_cache(8192)
def parse(text: str) -> tuple | Fraction | None:
    """The tree of an expression; None if it is none."""
    if len(text) > MAX_EXPRESSION or not 0 <= _depth(text) <= MAX_DEPTH:
        return None
    if r"\infty" in text and not any(command in text for command in _OPAQUE):
        return None  # it has no value
    for pattern, replacement in _SPECIAL:
        text = re.sub(pattern, replacement, text)
    try:
        tokens = _tokens(text)
        tree = _sum(tokens)
        return tree if tokens == [""] else None
    except (ArithmeticError, ValueError, RecursionError, IndexError):
        return None


# ---------------------------------------------------------------- EVALUATE at fixed random points


class TooLarge(ArithmeticError):
    """A power, factorial or power tower that will not be computed."""


# own contexts: the global precision is not touched
CONTEXTS = {digits: mpmath.MPContext() for digits in (40, 80)}
for _digits, _context in CONTEXTS.items():
    _context.dps = _digits
    _context.constants = {"e": +_context.e, r"\pi": +_context.pi, "i": _context.j}
    _context.constants["◦"] = _context.pi / 180
POINTS = 5  # the first three have all variables positive, the others have signs


@lru_cache(8192)
def _point(name: str, point: int) -> Fraction:
    """The value of a variable, or of something opaque, at a point: always the same of a name."""
    dice = random.Random(f"{name}/{point}")
    scale = (1, 4, 30, 1, 7)[point]  # from 1 to 5, and larger, for floors
    value = Fraction(dice.randrange(70, 300) * scale, 64)
    return value if point < 3 or dice.random() < 0.5 else -value


def _power(base, exponent, mp):
    """base ** exponent, exact if it can be; odd roots of negative reals are real, as in school."""
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if base in (0, 1, -1) or bits * abs(exponent) <= MAX_BITS:
                return base ** int(exponent)
        elif exponent.denominator % 2 and base < 0:
            return _power(-base, exponent, mp) * (-1) ** exponent.numerator
    if base == 0:
        return Fraction(0) if mp.re(exponent) > 0 else 1 / Fraction(0)
    if abs(exponent) * mp.mpf(1) * (1 + abs(mp.log(abs(base)))) > MAX_EXPONENT:
        raise TooLarge
    return mp.power(base, exponent)


def _factorial(n, mp, step: int = 1):
    """n!, or with step 2 the double factorial n!!."""
    if isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= 1000:
        return Fraction(math.prod(range(int(n), 0, -step)))
    if abs(n) * mp.mpf(1) > MAX_EXPONENT / 20:
        raise TooLarge
    return mp.gamma(n + 1) if step == 1 else mp.fac2(n)


_OPERATIONS = {
    "+": lambda mp, *terms: sum(terms, Fraction(0)),
    "*": lambda mp, *factors: math.prod(factors, start=Fraction(1)),
    "/": lambda mp, x: 1 / x,
    "^": lambda mp, x, y: _power(x, y, mp),
    "!": lambda mp, n: _factorial(n, mp),
    "!!": lambda mp, n: _factorial(n, mp, 2),
    "(|": lambda mp, x: abs(x),
    r"\lfloor": lambda mp, x: Fraction(int(math.floor(x if x.imag else x.real))),
    r"\lceil": lambda mp, x: Fraction(int(math.ceil(x if x.imag else x.real))),
    "cis": lambda mp, x: mp.expj(x),
    "ln": lambda mp, x: mp.log(x),
    "log": lambda mp, x, base: mp.log(x) / mp.log(base),
}


def _evaluate(tree, point: int, mp, degree=1):
    """Value of a tree at a point: a Fraction while it is exact, else a float of the context mp."""
    if isinstance(tree, Fraction):
        return tree
    name, *parts = tree
    if name == "name":
        if parts[0] == "°":
            return degree
        return mp.constants.get(parts[0]) or _point(parts[0], point)
    if name in _TRIGONOMETRIC:
        degree = mp.constants["◦"]
    values = [_evaluate(part, point, mp, degree) for part in parts]
    if name == "opaque":  # a sum, or an unknown function: the same for the same arguments
        return _point(",".join(mp.nstr(mp.convert(value), 20) for value in values), point)
    if name not in _OPERATIONS:  # mpmath has it by this name
        if abs(values[0]) * mp.mpf(1) > MAX_EXPONENT:
            raise TooLarge
        return getattr(mp, name)(values[0])
    value = _OPERATIONS[name](mp, *values)
    size = value.numerator * value.denominator if isinstance(value, Fraction) else 0
    return value if size.bit_length() <= MAX_BITS else mp.mpf(value.numerator) / value.denominator


@lru_cache(8192)
def values_of(text: str, digits: int = 40) -> tuple | None:
    """The values of an expression at all points, None where it has none; None if it is none."""
    if exact := number(text):
        return (exact.value,) * POINTS
    if (tree := parse(text)) is None:
        return None
    values = []
    for point in range(POINTS):
        try:
            value = _evaluate(tree, point, CONTEXTS[digits])
            values.append(value if CONTEXTS[digits].isfinite(value) else None)
        except (ArithmeticError, ValueError, TypeError, RecursionError):
            values.append(None)  # a pole, a size, or a type (the floor of a complex number)
    return tuple(values)


def _is_real(*values) -> bool:
    return all(not value.imag for value in values)


def _close(x, y) -> bool:
    """Equal up to the rounding of 40 digits; relative only, so that 4.6e-24 is not 5.6e-24."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    mp = CONTEXTS[40]
    return abs(mp.convert(x) - y) <= mp.mpf(10) ** -25 * max(abs(mp.convert(x)), abs(mp.convert(y)))


def _both_vanish(a: str, g: str, point: int) -> bool:
    """Is the difference only what cancellation leaves? With 80 digits sin^2 + cos^2 - 1 shrinks
    from 1e-41 to 1e-81, and e^{-99} stays."""
    sizes = []
    for digits in CONTEXTS:
        mp, pair = CONTEXTS[digits], [values_of(text, digits)[point] for text in (a, g)]
        sizes.append(max(abs(mp.convert(value)) for value in pair) if None not in pair else mp.inf)
    return sizes[0] < 1e-20 and sizes[1] <= sizes[0] * 1e-20


def _with_functions(*texts: str) -> list[str]:
    r"""f(g(x)) -> \apply f(\apply g(x)), if f and g stand before brackets only. Other letters, and
    the height in h(a + b) = ha + hb, are factors."""
    letter = re.compile(r"\\[a-zA-Z]+|([fgh])(?=\s*(\()?)")
    found = {match.groups() for text in texts for match in letter.finditer(text)}
    names = {f for f in "fgh" if (f, "(") in found and (f, None) not in found}
    return [letter.sub(lambda m: r"\apply " * (m[0] in names) + m[0], text) for text in texts]


def same_expression(a: str, g: str) -> bool:
    """Equal at all points where both have a value (if a variable is negative: are real)."""
    a, g = _with_functions(a, g)
    xs, ys = values_of(a), values_of(g)
    if not xs or not ys:
        return False
    points = [p for p in range(POINTS) if None not in (xs[p], ys[p])]
    points = [p for p in points if p < 3 or _is_real(xs[p], ys[p])]
    return len(points) >= 2 and all(_close(xs[p], ys[p]) or _both_vanish(a, g, p) for p in points)


def proportional(a: tuple[str, str], g: tuple[str, str], positive: bool = False) -> bool:
    """Is a[0] - a[1] a constant multiple of g[0] - g[1]? With `positive` for inequalities."""
    sides = [values_of(text) for text in (*a, *g)]
    if None in sides:
        return False
    mp, ratios, differences = CONTEXTS[40], [], []
    for p, (a0, a1, g0, g1) in enumerate(zip(*sides, strict=True)):
        if None in (a0, a1, g0, g1):
            continue
        da, dg = mp.convert(a0 + -1 * a1), mp.convert(g0 + -1 * g1)
        if da and dg and (p < 3 or _is_real(da, dg)):
            ratios.append(da / dg)
            differences.append(da)
    if len(ratios) < 2 or all(_close(d, differences[0]) for d in differences):
        return False  # the second: there are no variables, and any two constants are proportional
    if positive and not all(_is_real(r) and r.real > 0 for r in ratios):
        return False
    return all(_close(r, ratios[0]) for r in ratios)


# ---------------------------------------------------------------- COMPARE
# a: answer, g: gold, error: absolute tolerance

_EMPTY = r"nosolution norealsolution nosuch none emptyset \emptyset theemptyset empty".split()
_UNDEFINED = "dne doesnotexist undefined limitdoesnotexist".split()
_NOTHING = dict.fromkeys(_EMPTY, "∅") | dict.fromkeys(_UNDEFINED, "undefined")
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_WORDS = {word: str(i) for i, word in enumerate(_NUMBERS)}


def _word(text: str) -> str | None:
    """A text answer without case, spaces, punctuation and article; numbers and "none" unified."""
    bare = _strip_text(text).strip()
    if not re.fullmatch(r"\\emptyset|[^\W\d_](?:[^\W\d_]|[\s.,;'’\"`?-]|(?<=[^\W\d_]{3})!)*", bare):
        return None  # has digits or operators: no text
    bare = re.sub(r"[\s.,;'’\"`!?-]", "", re.sub(r"(?i)^(?:an?|the)\s+(?=[a-z]{3})", "", bare))
    bare = bare.casefold() if len(bare) > 1 else bare  # one letter is a variable, or a choice
    bare = re.sub(r"solutions$", "solution", re.sub(r"^there(is|are)", "", bare))
    return _NOTHING.get(bare, _WORDS.get(bare, bare))


def _choice(text: str) -> str | None:
    r"""C, for (C), C., \text{(C)}, (\text{c}); None for anything but one letter."""
    choice = r"(?:(?i:option|choice|answer)\s*)?\(?\s*([A-Za-z])\s*\)?[.:)]?"
    match = re.fullmatch(choice, _strip_text(text).strip())
    return match and match[1]


def _base(text: str) -> tuple[str, str] | None:
    r"""("A5", "11") for A5_{11}, A5 (base 11)."""
    match = re.fullmatch(
        r"(-?)\s*\(?([0-9A-Z ]*[0-9][0-9A-Z ]*|[A-Z]{2,})\)?\s*"
        r"(?:_\s*\{\s*\(?(?:base)?\s*([0-9]+|[a-z]+)\s*\)?\s*\}"
        r"|\(?\s*base\s*([0-9]+|[a-z]+)\s*\)?)",
        _strip_text(text).strip(),
    )
    if not match:
        return None
    base = match[3] or match[4]
    return match[1] + match[2].replace(" ", "").lstrip("0"), _WORDS.get(base, base)


def _clock(text: str) -> tuple | None:
    """(minutes after midnight, seconds, am | pm | "") of 4:51:06 p.m. or 16:51:06."""
    bare = re.sub(r"[\s.]", "", _strip_text(text)).lower()
    match = re.fullmatch(r"([01]?[0-9]|2[0-4]):([0-5][0-9])(?::([0-5][0-9]))?(am|pm)?", bare)
    if not match:
        return None
    hours, half = int(match[1]), match[4] or ("pm" if int(match[1]) > 12 else "")
    return (hours % 12 if half else hours) * 60 + int(match[2]), int(match[3] or 0), half


def _same_ratio(a: str, g: str, error: float | None) -> bool:
    """3:4 is 6:8 and 3/4; 4:51 p.m. is 16:51, and 4:51."""
    clock_a, clock_g = _clock(a), _clock(g)
    if clock_a and clock_g:
        (*time_a, half_a), (*time_g, half_g) = clock_a, clock_g
        return time_a == time_g and (half_a == half_g or "" in (half_a, half_g))
    xs, ys = a.split(":"), g.split(":")
    if len(xs) != len(ys):
        x, y = (f"({parts[0]})/({parts[1]})" if len(parts) == 2 else parts[0] for parts in (xs, ys))
        return {len(xs), len(ys)} == {1, 2} and same_leaf(x, y, error)
    numbers = [[number(part) for part in parts] for parts in (xs, ys)]
    if all(map(all, numbers)):
        (x0, y0), pairs = (numbers[0][0].value, numbers[1][0].value), zip(*numbers, strict=True)
        return x0 * y0 > 0 and all(x.value * y0 == y.value * x0 for x, y in pairs)
    return all(same_leaf(x.strip(), y.strip(), error) for x, y in zip(xs, ys, strict=True))


def same_number(a: Number, g: Number) -> bool:
    """Exact, but for golds that were rounded and answers that had to be.

    A decimal gold of 4 or more digits accepts a relative 1e-4 (an integer or a short decimal is
    exact); a gold that is no decimal at all, 1/12, accepts 6 or more digits of it.
    """
    if a.value == g.value:
        return True
    if g.digits >= 4:
        return abs(a.value - g.value) <= abs(g.value) / 10**4
    rounded = a.digits >= 6 and not g.digits and g.value.denominator != 1
    return rounded and abs(a.value - g.value) <= a.last


def _same_value(a: str, g: str, error: float | None) -> bool:
    """Two values without units: as base-n numerals, as exact numbers, or as expressions."""
    base_a, base_g = _base(a), _base(g)
    if base_g:
        # "express it in base 8": 52 is right; 52_9, and 42 (which it is in base ten), are not
        return (base_a or (a.replace(" ", "").lstrip("0"), base_g[1])) == base_g
    if base_a:
        return base_a[1] == "10" and _same_value(base_a[0], g, error)
    x, y = number(a), number(g)
    if x and y and same_number(x, y) or not (x and y) and same_expression(a, g):
        return True
    xs, ys = values_of(a), values_of(g)
    if not (xs and ys and _is_constant(xs) and _is_constant(ys) and _is_real(xs[0], ys[0])):
        return False
    if error is not None:
        return abs(CONTEXTS[40].convert(xs[0]) - ys[0]) <= error * (1 + 1e-12)
    # a rounded decimal on one side, a root or pi on the other
    return bool(x or y) and same_number(x or _decimal(xs[0]), y or _decimal(ys[0]))


def _decimal(value) -> Number:
    exact = isinstance(value, Fraction)
    return Number(value if exact else Fraction(CONTEXTS[40].nstr(value.real, 35)))


def _is_constant(values: tuple) -> bool:
    return None not in values and all(_close(values[0], value) for value in values)


def _letter_unit(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.*[0-9}\)])\s*([a-zA-Z])", text)
    return (match[1], match[2]) if match and unit(match[2]) else (text, "")


def _same_with_units(a: str, g: str, error: float | None) -> bool:
    """A unit that contradicts the gold's is wrong, one that can be converted is converted; a
    missing or unknown one says nothing."""
    (va, ua), (vg, ug) = split_unit(a), split_unit(g)
    if ug and not ua:  # 5 m is only read as metres beside another unit
        va, ua = _letter_unit(a)
    elif ua and not ug:
        vg, ug = _letter_unit(g)
    match = None if ua else _FRACTION_UNIT.fullmatch(a)
    if match and (ug or number(vg)) and unit(match[2]) and unit(match[3]):
        va, ua = match[1], f"{match[2]}/{match[3]}"
    if ua == "%" or ug == "%":
        if ua == ug:
            return _same_value(va, vg, error)
        if ua and ua != "%" or ug and ug != "%":
            return False
        # 28% is written 28 or 0.28; but 0.35 is not 35, and 0.35% is not 0.35
        percent, plain = (va, vg) if ua else (vg, va)
        small = ua and (n := number(vg)) and abs(n.value) < 1
        tries = [(_times(percent, Fraction(1, 100)), error and error / 100)]
        tries += [] if small else [(percent, error)]
        return any(_same_value(*((p, plain) if ua else (plain, p)), e) for p, e in tries)
    known_a, known_g = ua and unit(ua), ug and unit(ug)
    if known_a and known_g:
        if known_a[0] != known_g[0]:
            if {known_a[0], known_g[0]} != {_ANGLE, _RADIAN}:
                return False
            pairs = ((va, known_a), (vg, known_g))
            return _same_value(*(f"({v})◦" if k[0] == _ANGLE else v for v, k in pairs), error)
        if known_a[1] != known_g[1]:
            va = _times(va, known_a[1] / known_g[1])
    if known_g and known_g[0] == _DOLLAR and (n := number(va)) and (m := number(vg)):
        return n.value == m.value  # money is not rounded further than to what it says
    if _same_value(va, vg, error):
        return True  # 180° - x is 180 - x
    angles = [f"({v})°" if u == "°" else v for v, u in ((va, ua), (vg, ug))]
    if {ua, ug} <= {"", "°"} and all("°" in text or r"\pi" in text for text in angles):
        return same_expression(*(text.replace("°", "◦") for text in angles))  # 90° is pi/2
    return False


_POWERS = r"((?:[a-zA-Z\s.]|\\cdot|\^\{[0-9]\})+)"
# 5\frac{m}{s}
_FRACTION_UNIT = re.compile(rf"(.*[0-9}}\)])\s*\\frac\s*\{{{_POWERS}\}}\s*\{{{_POWERS}\}}")
_DOLLAR = frozenset({("dollar", 1)})
_ANGLE, _RADIAN = frozenset({("angle", 1)}), frozenset({("radian", 1)})


def _times(text: str, factor: Fraction) -> str:
    exact = number(text)
    if exact:
        return str(exact.value * factor)
    return rf"({text})\cdot\frac{{{factor.numerator}}}{{{factor.denominator}}}"


def _squeeze(text: str) -> str:
    """Without spaces (but for those between digits), and without braces around one character."""
    return re.sub(r"\{(\w)\}", r"\1", re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text))


@lru_cache(16384)
def same_leaf(a: str, g: str, error: float | None = None) -> bool:
    """Two values with their units and words."""
    if _squeeze(a) == _squeeze(g):
        return True
    if not a or not g:
        return False
    if "≈" in a or "≈" in g:  # 23/3 ≈ 7.67: the first says it; a gold gives the choice
        sides = (side.strip() for side in a.split("≈"))
        first = next((side for side in sides if side and not _is_name(side)), "")
        return any(same_leaf(first, side.strip(), error) for side in g.split("≈") if side.strip())
    word_a, word_g = _word(a), _word(g)
    if word_a and word_a == word_g:
        return True
    if re.fullmatch("[A-Z]{3,}", a) and re.fullmatch("[A-Z]{3,}", g):
        return False  # an order of letters, CBAD, is no product
    if re.fullmatch(r"[\w\s.,]*[^\W\d_]{3}[\w\s.,]*", a) and a.casefold() == g.casefold():
        return True  # October 30
    letter, chosen = _choice(g) or "", _choice(a) or ""
    if letter.upper() == chosen.upper() and letter and ("(" in a + g or letter.isupper()):
        return True
    a, g = word_a if word_a in _WORDS.values() else a, word_g if word_g in _WORDS.values() else g
    if ":" in a or ":" in g:
        return _same_ratio(a, g, error)
    return _same_with_units(a.lstrip("+ ") or a, g.lstrip("+ ") or g, error)


def _same_items(a: tuple, g: tuple, error: float | None, repeated: bool) -> bool:
    """Unordered and complete. An answer may repeat an element; if a gold list does, it must."""
    if len(set(a)) > len(g) or len(a) > MAX_ITEMS or (repeated and len(a) < len(g)):
        return False
    equal = [[same(x, y, error) for y in g] for x in a]
    wanted = [
        sum(same(x, y, error) for x in g) if repeated and len(set(g)) < len(g) else 1 for y in g
    ]
    return all(map(any, equal)) and all(
        sum(row[j] for row in equal) >= wanted[j] for j in range(len(g))
    )


def _ordered(a: tuple, g: tuple, error: float | None) -> bool:
    return len(a) == len(g) and all(same(x, y, error) for x, y in zip(a, g, strict=True))


def _in_order(reading: tuple) -> tuple | None:
    """The elements of what has an order: a tuple, a bare list, a matrix of one row or column."""
    if reading[0] == "matrix":
        rows = reading[1]
        if len(rows) == 1:
            return rows[0]
        return tuple(row[0] for row in rows) if all(len(row) == 1 for row in rows) else None
    if reading[0] == "list":
        return _unnamed(reading[1])
    return reading[3] if reading[0] == "bracket" else None


def _same_collections(a: tuple, g: tuple, error: float | None) -> bool:
    """Lists, sets, tuples, intervals and matrices."""
    kinds = {a[0], g[0]}
    if len(kinds) == 2 and "set" in kinds and len((a if a[0] == "set" else g)[1]) == 1:  # {5} is 5
        return same(*(r[1][0] if r[0] == "set" else r for r in (a, g)), error)
    if "leaf" in kinds:
        return False  # a list is not one value: "3 or 4" is a hedge
    if kinds == {"matrix"}:
        return len(a[1]) == len(g[1]) and all(
            _ordered(x, y, error) for x, y in zip(a[1], g[1], strict=True)
        )
    if kinds <= {"list", "set"}:
        names = [[item[1] if item[0] == "eq" else None for item in r[1]] for r in (a, g)]
        if not (all(names[1]) and len(set(names[1])) > 1 and not any(names[0])):
            return _same_items(a[1], g[1], error, repeated="set" not in kinds)
    # an interval, or a pair: the brackets count, except at infinity
    if kinds == {"bracket"} and len(g[3]) == 2:
        for side in (1, 2):
            if a[side] != g[side] and r"\infty" not in str(g[3][side - 1]):
                return False
    if kinds == {"bracket", "list"} and "[" in (a[1], g[1]):
        return False  # the ends of an interval
    xs, ys = _in_order(a), _in_order(g)  # x = 1, y = 2 and 1, 2 too; but not a set
    return xs is not None and ys is not None and _ordered(xs, ys, error)


def _same_equations(a: tuple, g: tuple, error: float | None) -> bool:
    """x = 5 is 5; y = 2x + 3 is 2x - y + 3 = 0; x = 5 is not y = 5."""
    if a[0] == g[0]:
        left_a, left_g = (re.sub(r"[\s|{}]|\\(?:overline|angle)", "", side[1]) for side in (a, g))
        if left_a == left_g:
            return same(a[2], g[2], error)
        if _is_name(a[1]) and _is_name(g[1]):
            functions = [re.fullmatch(r"(.+)\(([a-z])\)", left) for left in (left_a, left_g)]
            # f(t) = 2t is f(x) = 2x
            if all(functions) and functions[0][1] == functions[1][1] and a[2][0] == "leaf":
                variable = rf"(?<![\\a-zA-Z]){functions[0][2]}(?![a-zA-Z])"
                renamed = re.sub(variable, functions[1][2], a[2][1])
                return same(("leaf", renamed), g[2], error)
            lefts = (left_a, left_g)
            words = any("\\text" in left or len(left) > 3 and left.isalpha() for left in lefts)
            if (words or any(functions) != all(functions)) and same(a[2], g[2], error):
                return True
        return a[2][0] == g[2][0] == "leaf" and proportional((a[1], a[2][1]), (g[1], g[2][1]))
    equation, other = (a, g) if a[0] == "eq" else (g, a)
    pair = (a[2], g) if equation is a else (a, g[2])
    name = equation[1].strip()
    if _is_name(name):
        letter = re.fullmatch(r"[a-zA-Z]", name) and re.search(
            rf"(?<![\\a-zA-Z]){name}(?![a-zA-Z])", str(equation[2])
        )
        return not letter and same(*pair, error)
    if not same(*pair, error) or (left := values_of(split_unit(name)[0])) is None:
        return False
    if same(*((("leaf", name), g) if equation is a else (a, ("leaf", name))), error):
        return True  # 0.56 = 56%, (x + 1)^2 = x^2 + 2x + 1: both sides are right
    # x + y = 5 answers "what is x + y?", but as the gold it wants more than 5; 3 + 5 = 7 is wrong
    asked = equation is a and other[0] == "leaf" and not _is_constant(left)
    return asked and not re.search("[0-9]", name)


def _same_relations(a: tuple, g: tuple, error: float | None) -> bool:
    """Inequalities by the difference of their sides, or as intervals."""
    alike = a[0] == g[0] and a[2] == g[2] and len(a[1]) == 2
    if alike and proportional(a[1], g[1], positive=a[2] != ("!=",)):
        return True
    x, y = _as_intervals(a), _as_intervals(g)
    if "rel" in (x[0], y[0]) and "list" not in (x[0], y[0]):
        return False
    if {x[0], y[0]} == {"bracket", "list"}:
        return False  # 1 < x < 2 is not 1, 2
    return (x, y) != (a, g) and same(x, y, error)


def same(a: tuple, g: tuple, error: float | None = None) -> bool:
    """Two readings."""
    kinds = (a[0], g[0])
    if a == g:
        return True
    if "rel" in kinds:
        return _same_relations(a, g, error)
    if "eq" in kinds:
        return _same_equations(a, g, error)
    if kinds == ("leaf", "leaf"):
        return same_leaf(a[1], g[1], error)
    return _same_collections(a, g, error)


def _readings(text: str, multiple: bool) -> list[tuple]:
    """58,500 is a number or a list; in brackets, or for a gold of several values, it is a list."""
    readings = [read(text)]
    if not multiple and not re.search(r"[(\[⦃]", text):
        joined = re.sub(
            r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])",
            lambda m: m[0].replace(",", ""),
            text,
        )
        if joined != text:
            readings.append(read(joined))
    return readings


def _golds(gold: str | Gold) -> tuple[list[str], float | None, bool]:
    """Normalised alternatives, tolerance, several values?"""
    gold = gold if isinstance(gold, Gold) else Gold((gold,))
    answers = [", ".join(gold.answers)] if gold.multiple else list(gold.answers)
    if gold.unit and not gold.multiple:
        mark = normalise(gold.unit)
        mark = mark if mark in ("°", "%") else rf" \text{{{mark}}}"
        answers = [a if split_unit(normalise(a))[1] else a + mark for a in answers]
    match = re.search(r"[0-9.]+(?:e-?[0-9]+)?", gold.error or "")
    error = float(match[0]) if match else None
    return [normalise(answer) for answer in answers], error, gold.multiple


def equivalent(answer: str, gold: str | Gold) -> bool:
    """Is the answer right? Pure and deterministic; one too long or too complex is wrong."""
    if "\\boxed" in answer or "</think>" in answer:
        answer = last_box(answer.rsplit("</think>", 1)[-1]) or ""
    if len(answer) > MAX_CHARS or not answer.strip():
        return False
    a = normalise(answer)
    if _depth(a) > 2 * MAX_DEPTH:
        return False
    golds, error, multiple = _golds(gold)
    return any(_right(a, g, error, multiple) for g in golds if g)


def _right(a: str, g: str, error: float | None, multiple: bool) -> bool:
    if _squeeze(a) == _squeeze(g):
        return True
    if _depth(g) < 0 or _depth(a) < 0:
        return False
    option = re.fullmatch(r"(?:\(([A-J])\)|([A-J])[.:)])\s*([^\s+*/^_=-].*)", _strip_text(a))
    commands = ("\\frac", "\\sqrt", "\\text")
    if option and (option[3][0] not in "(\\|,;&" or option[3].startswith(commands)):
        if letter := _choice(g):  # (C) 15 is C, if that is the gold, or 15
            return letter == (option[1] or option[2])
        return _right(option[3], g, error, multiple)
    return any(same(x, y, error) for y in _readings(g, multiple) for x in _readings(a, multiple))


def parsable(gold: str | Gold) -> bool:
    """Can anything be graded against it? Not if it is empty, too long, or has unbalanced braces."""
    return any(
        re.search(r"\w|[∞∅]", answer)
        and len(answer) <= MAX_CHARS
        and 0 <= _depth(answer) <= MAX_DEPTH
        for answer in _golds(gold)[0]
    )
