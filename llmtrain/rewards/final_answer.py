"""The final answer of a solution in words, as a number if it is one: 18 in "9 * 2 = 18", "#### **18**", `\\boxed{18}`.

What is no plain number ("\\sqrt{36}", "x = 2 \\cdot 9") is left to `math_check`.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from llmtrain.data.thoughts import without_thoughts

DIGITS = r"(?:\d{1,3}(?:(?:[,'\u2019]|\{,\}|\\,|\\!|\\;)\d{3})+(?!\d)|\d+)"
PLAIN = rf"(?:{DIGITS}(?:\.\d+)?|\.\d+)"
FRACTION = rf"\\[dtc]?frac(?:\{{\s*-?{PLAIN}\s*\}}\s*\{{\s*-?{PLAIN}\s*\}}|\d\d)"
POWER = r"(?:[eE][-+]?\d{1,3}|\s*(?:\\times|\\cdot|[x\u00d7*])\s*10\s*(?:\^|\*\*)\s*\{?-?\d{1,3}\}?)"
QUANTITY = re.compile(
    rf"(?<![\w.\\])[-+]?(?:{PLAIN}\s*{FRACTION}|{FRACTION}|{PLAIN}\s+\d+/\d+(?![\d/])"
    rf"|{PLAIN}\s*/\s*{PLAIN}(?!/)|{PLAIN}{POWER}?)"
)
PARTS = re.compile(rf"-?{PLAIN}")
MARKED = re.compile(r"####[ \t]*([^\n]*)")
BOXED = re.compile(r"\\f?boxed\s*\{")
ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}(\s*\^\s*(?:\{\d\}|\d))?")
JOINED = re.compile(r"[:-]\d")  # a ratio, a time, a range
MARKUP = "*_`$ \t"
BRACKETS = re.compile(r"\\?[()\[\]]|\\[{}]")
CURRENCY = r"(?:\\?\$|\u20ac|\u00a3|\u00a5|US\$|USD)"
WORDS = r"(?![xyzn]\b)[A-Za-z][A-Za-z .]*(?:\^\{?\d\}?|[\u00b2\u00b3])?"  # "18 cm^2", but not "18x"
UNIT = re.compile(rf"\s*(?:\\?%|\^\s*(?:\\circ|\{{\\circ\}})|\u00b0|{WORDS})?[.,;:!]?$")
SPACED = re.compile(r"(?<![\w.,\\])(?<!\d )[-+]?\d{1,3}(?: \d{3})+(?!\d|/|[.,]\d)")  # 1 234 567
SPACED_OR_NOT = re.compile(rf"{SPACED.pattern}|{QUANTITY.pattern}")
UNIT_POWER = re.compile(r"(?<=[A-Za-z}])\^(?:\{-?\d\}|-?\d)")  # of "18 cm^2", which is no number of its own
SMALL_DIGITS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
SLASH = "\u2044"  # of fractions
FRACTION_SIGNS = "\u00bc\u00bd\u00be\u2153\u2154\u215b\u215c\u215d\u215e"
AS_ASCII = {
    **{ord(dash): "-" for dash in "\u2212\u2012\u2013\u2014\ufe63\uff0d"},
    **{ord(space): " " for space in "\u00a0\u2007\u2009\u202f"},
    **{wide: chr(wide - 0xFEE0) for wide in range(0xFF01, 0xFF5F) if wide != 0xFF0D},
    **{ord(small): f"^{place}" for place, small in enumerate(SMALL_DIGITS)},
    **{ord(part): f" {unicodedata.normalize('NFKC', part).replace(SLASH, '/')}" for part in FRACTION_SIGNS},
    ord(SLASH): "/",
}
MAX_ANSWER_CHARS = 1000


def final_answer(solution: str) -> str | None:
    """The text of the final answer; None if there is none. Thoughts do not count.

    It is after the last #### (Cobbe et al. 2021) that a number or formula follows, else in the last \\boxed{}, else in
    the last <answer>, else it is the last number.
    """
    text = without_thoughts(solution)
    for mark in reversed(MARKED.findall(text)):
        if (found := _after_mark(_plain_text(mark))) is not None:
            return found[:MAX_ANSWER_CHARS]
    if (boxed := _last_box(text)) is not None:
        return _plain_text(boxed)[:MAX_ANSWER_CHARS]
    tagged = ANSWER_TAG.findall(text)
    plain = UNIT_POWER.sub("", _plain_text(tagged[-1] if tagged else text))
    numbers = [found[0] for found in SPACED_OR_NOT.finditer(plain)]
    return numbers[-1] if numbers else None


def number(answer: str) -> Fraction | None:
    """The number that an answer is, with or without its unit; None if it is none: a formula, a word, a list.

    "1{,}000", "2 1/2", "\\frac{1}{2}", "$18.00", "18 \\text{ cm}^2", "5\\%" (5), "1.5 \\times 10^3".
    """
    text = WRAPPED.sub(lambda part: part[1] if any(map(str.isdigit, part[1])) else " ", _plain_text(answer))
    text = re.sub(
        r"\\(?:left|right|displaystyle|,|;|!|:|quad|qquad| )|~", " ", re.sub(r"(?<=\d)\\[,!;](?=\d{3})", ",", text)
    )
    text = BRACKETS.sub("", text).strip(MARKUP)
    text = re.sub(rf"^([-+]?)\s*{CURRENCY}\s*", r"\1", text).rsplit("=", 1)[-1].strip(MARKUP)
    text = re.sub(r"^(?:\\approx|\u2248)\s*", "", text)
    if (spaced := SPACED.match(text)) is not None:
        text = spaced[0].replace(" ", "") + text[spaced.end() :]
    found = QUANTITY.match(text)
    if found is None or UNIT.fullmatch(text, found.end()) is None:
        return None
    return _value(found[0])


def _value(quantity: str) -> Fraction | None:
    """The value of a text that QUANTITY matches."""
    text = re.sub(r"\{,\}|\\[,!;]|[,'\u2019]", "", quantity)
    sign = -1 if text.startswith("-") else 1
    text = text.lstrip("-+")
    try:
        if (short := re.fullmatch(r"(.*?)\s*\\[dtc]?frac(\d)(\d)", text)) is not None:
            text = f"{short[1]}\\frac{{{short[2]}}}{{{short[3]}}}"
        values = [Fraction(part) for part in PARTS.findall(text)]
        if "frac" in text or "/" in text:
            whole, (above, below) = (values[0], values[1:]) if len(values) == 3 else (Fraction(0), values)
            return sign * (whole + above / below)
        if re.search(r"\d[eE]", text):
            return sign * Fraction(text)
        if len(values) == 1:
            return sign * values[0]
        return sign * values[0] * values[1] ** int(values[2])
    except (ValueError, ZeroDivisionError):
        return None


def _plain_text(text: str) -> str:
    """Full-width digits, the many dashes and spaces, small digits and fractions as ASCII: "2\u00bd" is "2 1/2"."""
    return text.translate(AS_ASCII).strip()


def _after_mark(rest: str) -> str | None:
    """The answer after a ####; None if it heads a section: "Step 2", "3. Then".

    A number ends where it ends: "18" of "**18** (3 more)"; that of a ratio, time or range is part of it: "12:30".
    """
    rest = re.sub(r"^(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*[:=]?\s*", "", rest.lstrip(MARKUP), flags=re.IGNORECASE)
    boxed = _last_box(rest)
    if boxed is not None:
        return boxed
    bare = re.sub(rf"^(?:\\\(|\\\[)?\s*([-+]?)\s*{CURRENCY}?\s*", r"\1", rest.lstrip(MARKUP))
    found = SPACED.match(bare) or QUANTITY.match(bare)
    if found is not None:
        if JOINED.match(bare, found.end()):
            return bare.split()[0]
        heads = re.match(r"[.)][*_]*\s+\S", bare[found.end() :])
        return None if heads else found[0]
    return rest.strip(MARKUP) if re.match(r"[\\(]", rest) else None


def _last_box(text: str) -> str | None:
    """What the last \\boxed{} holds, with braces in it; to the end, if it is not closed."""
    starts = [box.end() for box in BOXED.finditer(text)]
    if not starts:
        return None
    depth, start = 1, starts[-1]
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return text[start:]
