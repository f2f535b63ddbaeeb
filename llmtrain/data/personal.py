"""Personal data and secrets that have a pattern: found, checked by their check digits, and masked.

A name, a street, a diagnosis has no pattern: what is not found here is not absent. `masked` keeps a text's length, so
that places in it stay the same:

    mail jane.doe@smith.org, 4111 1111 1111 1111      mail j•••.•••@s••••.•••, •••• •••• •••• ••11
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

MASK = "•"
WITHIN = 300
"""A find that crosses the end of a part is whole within so many characters."""

IBAN_LENGTHS = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "FO", "GL", "NL"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK"), 20),
    **dict.fromkeys(("CH", "CR", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("LY", "PT", "ST"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
    **dict.fromkeys(("LC",), 32),
}
"""Country -> characters of its account numbers (SWIFT's IBAN registry)."""
CARDS = re.compile(
    r"4\d{15}(?:\d{3})?|(?:5[1-5]|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720))\d+(?<=^.{16})|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|(?:35|6(?:011|4[4-9]|5))\d{12,17}"
)
"""Numbers of payment cards: Visa, Mastercard, American Express, Diners; JCB and Discover."""
PHONE_DIGITS, BARE_PHONE_DIGITS = 15, 13
"""Digits of a phone number at most (ITU-T E.164); of one without spaces, where sums look the same, fewer."""
NOBODYS = re.compile(r"(?:.*\.)?(?:example(?:\.(?:com|net|org))?|test|invalid|localhost)", re.I)
"""Domains that nobody can have (RFC 2606, sections 2 and 3)."""
CALLING_CODES = (
    r"(?:1|7|2[07]|3[0-4]|36|39|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|2[1-689]\d|3[578]\d|42\d|5[09]\d|6[789]\d|8[058]\d|9[679]\d)"
)
"""Codes of countries (ITU-T E.164)."""


@dataclass(frozen=True)
class Pattern:
    """One kind of personal data."""

    name: str
    regex: re.Pattern[str]
    length: Callable[[re.Match[str]], int] = lambda found: len(found[0])  # of what counts of a match; 0: it is none
    says: str = ""  # how it is recognised, and what that misses
    needs: str = ""  # characters without which a text has none


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban_holds(text: str) -> bool:
    """Whether a text without spaces is an IBAN: its country's length, and 1 modulo 97 (ISO 13616)."""
    if IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(char, 36)) for char in text[4:] + text[:4])) % 97 == 1


def _of_card(found: re.Match[str]) -> int:
    digits = re.sub(r"\D", "", found[0])
    return len(found[0]) if len(set(digits)) > 1 and CARDS.fullmatch(digits) and luhn(digits) else 0


def _of_account(found: re.Match[str]) -> int:
    """As much as its country's accounts have, since the words after it may look like a part of it."""
    wanted, length = IBAN_LENGTHS.get(found[0][:2].upper(), 0), 0
    for place, char in enumerate(found[0], 1):
        length += char != " "
        if length == wanted:
            is_end = place == len(found[0]) or found[0][place] == " "
            return place if is_end and iban_holds(found[0][:place].replace(" ", "").upper()) else 0
    return 0


def _of_address(found: re.Match[str]) -> int:
    """An address that somebody may have: of no private, local or documentation range."""
    try:
        return len(found[0]) if ip_address(found[0]).is_global else 0
    except ValueError:
        return 0


def _of_phone(found: re.Match[str]) -> int:
    digits = re.sub(r"\D", "", found[0])
    least = 11 if found[0].startswith("00") else 8
    is_bare = re.search(r"\d\D+\d", found[0]) is None
    most = BARE_PHONE_DIGITS if is_bare else PHONE_DIGITS
    return len(found[0]) if least <= len(digits) <= most and len(set(digits)) > 2 else 0


def _of_social(found: re.Match[str]) -> int:
    area, group, serial = found[0].split("-")
    is_given = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
    return len(found[0]) if is_given else 0


def _of_email(found: re.Match[str]) -> int:
    local, _, domain = found[0].partition("@")
    is_one = ".." not in found[0] and len(local) <= 64 and not NOBODYS.fullmatch(domain)
    return len(found[0]) if is_one else 0


def _of_secret(found: re.Match[str]) -> int:
    return 0 if NOBODYS.fullmatch(found["host"] or "") else len(found[0])


PATTERNS = (
    Pattern(
        "keys and passwords",
        re.compile(
            r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b"
            r"|\bhf_[A-Za-z0-9]{34}\b|\bxox[abpr]-[A-Za-z0-9-]{10,}|\bsk-[A-Za-z0-9_-]{20,}|(?<=://)[^\s:/@]+:[^\s:/@]{3,}@(?P<host>[^\s/:]+)"
        ),
        _of_secret,
        says="private keys, tokens of well-known services, passwords within addresses; not passwords in sentences",
    ),
    Pattern(
        "e-mail addresses",
        re.compile(r"(?<![\w.+-])[\w](?:[\w.%+'-]*[\w])?@(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,24}(?![\w@])"),
        _of_email,
        "name@domain.tld; not `name (at) domain`, nor example.org and other domains that nobody can have",
        needs="@",
    ),
    Pattern(
        "bank accounts (IBAN)",
        re.compile(r"(?<![^\W_])[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?(?![^\W_])"),
        _of_account,
        "a country's length and the right check digits (modulo 97); not other forms of account numbers",
    ),
    Pattern(
        "payment cards",
        re.compile(
            r"(?<![\d.,+-])(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|3\d{3}([ -]?)\d{6}\2\d{4,5}"
            r"|\d{14,19})(?![\d]|[.,-]\d)"
        ),
        _of_card,
        "14 to 19 digits as an issuer has them, with the right check digit (Luhn), as 1 in 10 others have",
    ),
    Pattern(
        "phone numbers",
        re.compile(
            rf"(?<![\w+.-])(?:(?:\+|00){CALLING_CODES}[ .-]?(?:\(0?\d{{1,4}}\)[ .-]?)?\d{{1,5}}"
            r"(?:[ .-]?\d{2,5}){1,4}"
            r"|(?:1[ .-])?\([2-9]\d\d\)[ .-]?[2-9]\d\d[ .-]\d{4}"
            r"|(?:1[ .-])?[2-9]\d\d([.-])[2-9]\d\d\1\d{4})(?![\w-]|[.]\d)"
        ),
        _of_phone,
        "with + or 00 and a country's code, or as written in North America; not numbers without those",
    ),
    Pattern(
        "IP addresses",
        re.compile(
            r"(?<![\w.:-])(?<!version )(?<!Version )(?:(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)"
            r"|(?:[0-9a-fA-F]{1,4}:){2,7}(?::?[0-9a-fA-F]{1,4}){1,6}(?![\w:]))"
        ),
        _of_address,
        "public ones, version 4 and 6; a version number of four parts looks the same",
    ),
    Pattern(
        "US social security numbers",
        re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"),
        _of_social,
        "123-45-6789, of ranges that are given out; other countries' numbers are not looked for",
    ),
)
"""What is looked for, in the order in which a text that fits several is counted."""


@dataclass(frozen=True)
class Found:
    """One find."""

    start: int
    end: int
    kind: str


def find_personal(text: str) -> list[Found]:
    """What has a pattern in a text, by place; what fits several kinds is of the first that `PATTERNS` lists."""
    found: list[Found] = []
    for pattern in PATTERNS:
        for match in pattern.regex.finditer(text) if pattern.needs in text else ():
            start, end = match.start(), match.start() + pattern.length(match)
            if start < end and not any(start < each.end and each.start < end for each in found):
                found.append(Found(start, end, pattern.name))
    return sorted(found, key=lambda each: each.start)


def masked(text: str) -> str:
    """The text, equally long, with all that has a pattern masked: of a number the last two digits are left."""
    pieces, place = [], 0
    for found in find_personal(text):
        pieces += [text[place : found.start], _mask(text[found.start : found.end], found.kind)]
        place = found.end
    return "".join([*pieces, text[place:]])


def masked_part(text: str, start: int, end: int) -> str:
    """The characters [start, end) of a text, masked as they are in the whole."""
    first = max(0, start - WITHIN)
    return masked(text[first : end + WITHIN])[max(0, start) - first : end - first]


def _mask(text: str, kind: str) -> str:
    if kind == "e-mail addresses":
        local, _, domain = text.partition("@")
        return f"{local[0]}{_hidden(local[1:])}@{domain[0]}{_hidden(domain[1:])}"
    if kind == "keys and passwords":
        return text[:4] + _hidden(text[4:])
    return _hidden(text[:-2]) + text[-2:]


def _hidden(text: str) -> str:
    return "".join(MASK if char.isalnum() else char for char in text)


def kinds() -> Iterator[tuple[str, str]]:
    """Each kind, and how it is recognised."""
    yield from ((pattern.name, pattern.says) for pattern in PATTERNS)
