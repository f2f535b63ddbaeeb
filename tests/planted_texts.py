"""Made-up texts with what is known to be in them: duplicates, evaluation text, mojibake, personal data.

Texts are random words, so that nothing repeats unless it is planted. Numbers have their real check digits.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from llmtrain.data.quality.items import TEXT, Item, Part, item_of

SYLLABLES = ("ba", "ke", "li", "mo", "nu", "pra", "ste", "tri", "vo", "wen", "zu", "dal", "fer", "gim", "hos", "jun")
WORDS = tuple(f"{one}{two}{three}" for one in SYLLABLES for two in SYLLABLES for three in ("", "n", "s"))
ACCENTED = (
    "La décision a été prise après un débat où chacun a pu s’exprimer.",
    "Das Mädchen läuft über die Straße und grüßt den Bäcker.",
    "El niño comió una piña en el jardín de su compañera.",
    "“Fine,” she said — it’s what we’d call a naïve façade…",
    "Não há razão para preocupação, disse o irmão.",
    "Zażółć gęślą jaźń, powiedział żółw.",
    "Prix : 12 € pour l’entrée, 30 € pour l’été entier.",
    "À Noël, l’hôtel était déjà complet.",
    "Smørrebrød på bordet og øl i glasset.",
    "Cafés und Bögen: “schön”, sagte er – und ging.",
)
"""Sentences with letters outside ASCII, as they should be."""


def sentence(draw: random.Random, num_words: int) -> str:
    """Random words, in sentences of nine."""
    words = [draw.choice(WORDS) for _ in range(num_words)]
    lines = [" ".join(words[i : i + 9]).capitalize() + "." for i in range(0, num_words, 9)]
    return " ".join(lines)


def item(text: str, number: int) -> Item:
    return item_of([Part(TEXT, text)], f"rows.jsonl:{number}")


def changed(draw: random.Random, text: str, num_words: int) -> str:
    """A text with some words, far from each other, replaced by others."""
    words = text.split(" ")
    for place in range(len(words) // (2 * num_words), len(words), len(words) // num_words):
        words[place] = draw.choice(WORDS).upper()
    return " ".join(words)


@dataclass(frozen=True)
class Planted:
    """A text that holds something, and what."""

    text: str
    secret: str
    kind: str


def luhn_digit(digits: str) -> str:
    """The check digit after some digits, by the sum of ISO/IEC 7812."""
    doubled = [int(digit) * (2 if place % 2 == 0 else 1) for place, digit in enumerate(reversed(digits))]
    return str(-sum(value // 10 + value % 10 for value in doubled) % 10)


def iban(country: str, account: str) -> str:
    """An account with its two check digits (ISO 13616)."""
    number = "".join(str(int(char, 36)) for char in f"{account}{country}00")
    return f"{country}{98 - int(number) % 97:02d}{account}"


def digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choice(string.digits) for _ in range(count))


def grouped(text: str, size: int, separator: str) -> str:
    return separator.join(text[i : i + size] for i in range(0, len(text), size))


def email(draw: random.Random) -> str:
    local = draw.choice(("{0}.{1}", "{0}_{1}", "{0}{2}", "{0}+news", "{0}-{1}", "J.{1}")).format(
        draw.choice(WORDS), draw.choice(WORDS), draw.randrange(99)
    )
    return f"{local}@{draw.choice(WORDS)}{draw.choice(('.com', '.co.uk', '.org', '-mail.de', '.museum', '.fr'))}"


def phone(draw: random.Random) -> str:
    area, line = f"{draw.randrange(2, 10)}{digits(draw, 2)}", f"{draw.randrange(2, 10)}{digits(draw, 2)}"
    last = digits(draw, 4)
    forms = (
        f"+49 {draw.randrange(30, 99)} {digits(draw, 7)}",
        f"+44 20 {digits(draw, 4)} {digits(draw, 4)}",
        f"+33 {draw.randrange(1, 8)} {grouped(digits(draw, 8), 2, ' ')}",
        f"+1-{area}-{line}-{last}",
        f"+1 ({area}) {line}-{last}",
        f"({area}) {line}-{last}",
        f"{area}-{line}-{last}",
        f"{area}.{line}.{last}",
        f"0041 44 {digits(draw, 3)} {digits(draw, 2)} {digits(draw, 2)}",
        f"+48{digits(draw, 9)}",
        f"+353 86 {digits(draw, 3)} {digits(draw, 4)}",
    )
    return draw.choice(forms)


def card(draw: random.Random) -> str:
    prefix, length = draw.choice(
        (("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("6011", 16), ("37", 15), ("3528", 16))
    )
    body = prefix + digits(draw, length - 1 - len(prefix))
    number = body + luhn_digit(body)
    if length == 15:
        return draw.choice((number, f"{number[:4]} {number[4:10]} {number[10:]}"))
    return draw.choice((number, grouped(number, 4, " "), grouped(number, 4, "-")))


def account(draw: random.Random) -> str:
    number = draw.choice(
        (
            iban("DE", digits(draw, 18)),
            iban("FR", digits(draw, 23)),
            iban("GB", "NWBK" + digits(draw, 14)),
            iban("NL", "ABNA" + digits(draw, 10)),
            iban("CH", digits(draw, 17)),
            iban("NO", digits(draw, 11)),
            iban("PL", digits(draw, 24)),
        )
    )
    return draw.choice((number, grouped(number, 4, " ")))


def address(draw: random.Random) -> str:
    if draw.random() < 0.3:
        return "2001:4860:" + ":".join(f"{draw.randrange(1, 65536):x}" for _ in range(6))
    return f"{draw.choice((8, 46, 91, 151, 217))}.{draw.randrange(256)}.{draw.randrange(256)}.{draw.randrange(1, 255)}"


def social(draw: random.Random) -> str:
    return f"{draw.randrange(1, 666):03d}-{draw.randrange(1, 100):02d}-{draw.randrange(1, 10000):04d}"


def key(draw: random.Random) -> str:
    letters = string.ascii_letters + string.digits

    def some(count: int) -> str:
        return "".join(draw.choice(letters) for _ in range(count))

    return draw.choice(
        (
            f"ghp_{some(36)}",
            f"hf_{some(34)}",
            "AKIA" + "".join(draw.choice(string.ascii_uppercase) for _ in range(16)),
            f"sk-{some(40)}",
            f"postgres://{draw.choice(WORDS)}:{some(12)}@db.internal/main".partition("://")[2].partition("/")[0],
        )
    )


MADE = {
    "e-mail addresses": email,
    "phone numbers": phone,
    "payment cards": card,
    "bank accounts (IBAN)": account,
    "IP addresses": address,
    "US social security numbers": social,
    "keys and passwords": key,
}
"""Kind -> what makes one."""
AROUND = ("Write to {}.", "({})", "Call {}, please", "is {} now", "id={};", "“{}”", "It was: {}\nThen", "<{}>")


def personal(draw: random.Random, kind: str) -> Planted:
    """Random words around one secret."""
    secret = MADE[kind](draw)
    within = draw.choice(AROUND).format(f"postgres://{secret}/main" if "@db.internal" in secret else secret)
    return Planted(f"{sentence(draw, 9)} {within} {sentence(draw, 9)}", secret, kind)


def harmless(draw: random.Random) -> str:
    """Random words around what looks like personal data and is none."""
    wrong_card = "4" + digits(draw, 15)
    if luhn_digit(wrong_card[:-1]) == wrong_card[-1]:
        wrong_card = wrong_card[:-1] + str((int(wrong_card[-1]) + 1) % 10)
    forms = (
        f"on {draw.randrange(1900, 2030)}-{draw.randrange(10, 13)}-{draw.randrange(10, 29)} at 12:30:45",
        f"from {draw.randrange(1500, 1900)}-{draw.randrange(1900, 2030)}",
        f"ISBN 978-{draw.randrange(10)}-{digits(draw, 2)}-{digits(draw, 6)}-{draw.randrange(10)}",
        f"costs $1,{digits(draw, 3)},{digits(draw, 3)}.{digits(draw, 2)}",
        f"equals 3.{digits(draw, 15)}",
        f"version {draw.randrange(9)}.{draw.randrange(20)}.{draw.randrange(20)}",
        f"section {draw.randrange(9)}.{draw.randrange(20)}.{draw.randrange(9)}",
        f"at 192.168.{draw.randrange(256)}.{draw.randrange(256)} or 127.0.0.1",
        f"order {digits(draw, 8)}",
        f"number {wrong_card}",
        f"as @{draw.choice(WORDS)} wrote, 5 @ 3.50",
        f"def f(x): return x[{draw.randrange(99)}:{draw.randrange(99)}]",
        f"{draw.randrange(10, 99)} + {draw.randrange(10, 99)} = {digits(draw, 3)}",
        f"commit {''.join(draw.choice('0123456789abcdef') for _ in range(40))}",
        f"DE{digits(draw, 5)} is a part",
        f"the score was {digits(draw, 2)}-{digits(draw, 2)}, {digits(draw, 3)}-{digits(draw, 3)}",
        f"https://{draw.choice(WORDS)}.org/a/{digits(draw, 6)}?q={draw.choice(WORDS)}",
    )
    return f"{sentence(draw, 9)} {draw.choice(forms)} {sentence(draw, 9)}"
