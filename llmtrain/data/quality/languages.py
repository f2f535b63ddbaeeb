"""The language of each item, by py3langid: a naive Bayes classifier of bytes (Lui and Baldwin 2012).

What half of a source's texts begin with, such as a system prompt, is not looked at: it may be in another language.

A chat between a curious human and an assistant. ### Human: Hola, soy nueva aquí        looked at: Hola, soy nueva aquí
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llmtrain.data.quality.items import Item

LOOKED_AT_CHARS = 2_000
FEWEST_LETTERS = 20
"""Of a text with fewer letters the language is not asked."""
SURE = 0.5
"""Confidence below which a text is of no clear language: names, code, tables, or a mixture."""
SHORT, UNCLEAR = "too short to tell", "not clear"
MOST_SHOWN = 2
NO_LANGUAGE = "zxx"
NAMES = {
    "af": "Afrikaans",
    "am": "Amharic",
    "ar": "Arabic",
    "az": "Azerbaijani",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "bs": "Bosnian",
    "ca": "Catalan",
    "cs": "Czech",
    "cy": "Welsh",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "eo": "Esperanto",
    "es": "Spanish",
    "et": "Estonian",
    "eu": "Basque",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "ga": "Irish",
    "gl": "Galician",
    "gu": "Gujarati",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "hu": "Hungarian",
    "hy": "Armenian",
    "id": "Indonesian",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "ka": "Georgian",
    "kk": "Kazakh",
    "km": "Khmer",
    "kn": "Kannada",
    "ko": "Korean",
    "la": "Latin",
    "lo": "Lao",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "mk": "Macedonian",
    "ml": "Malayalam",
    "mn": "Mongolian",
    "mr": "Marathi",
    "ms": "Malay",
    "mt": "Maltese",
    "my": "Burmese",
    "nb": "Norwegian",
    "ne": "Nepali",
    "nl": "Dutch",
    "nn": "Norwegian (Nynorsk)",
    "no": "Norwegian",
    "pa": "Punjabi",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "si": "Sinhala",
    "sk": "Slovak",
    "sl": "Slovenian",
    "so": "Somali",
    "sq": "Albanian",
    "sr": "Serbian",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "te": "Telugu",
    "th": "Thai",
    "tl": "Tagalog",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "uz": "Uzbek",
    "vi": "Vietnamese",
    "xh": "Xhosa",
    "yue": "Cantonese",
    "zh": "Chinese",
    "zu": "Zulu",
}
"""Codes of ISO 639-1 -> what people call the languages; others are shown as their codes."""


@dataclass(frozen=True)
class LanguageShare:
    """What is in one language."""

    num_items: int
    num_bytes: int
    confidence: float  # mean; 0 of texts that are too short
    by_source: Sequence[int]  # items
    examples: Sequence[Item]


@dataclass(frozen=True)
class Languages:
    """The languages of the sample, the most frequent first."""

    shares: Mapping[str, LanguageShare]  # name, or `too short to tell`, `not clear`
    of_items: Sequence[str]  # of each item, its name

    @property
    def named(self) -> list[str]:
        """Those that are languages."""
        return [name for name in self.shares if name not in (SHORT, UNCLEAR)]


def languages(items: Sequence[Item], num_sources: int) -> Languages:
    """The language of each item, by its beginning. Raises ValueError if `py3langid` is missing."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ValueError("languages need py3langid: pip install 'llmtrain[data]'") from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    of_items: list[str] = []
    confidences: defaultdict[str, float] = defaultdict(float)
    beginnings = [_shared_beginning({i.text for i in items if i.source == n}) for n in range(num_sources)]
    for item in items:
        name, confidence = _language(_own(item.text, beginnings[item.source]), identifier.classify)
        of_items.append(name)
        confidences[name] += confidence
    members: defaultdict[str, list[Item]] = defaultdict(list)
    for name, item in zip(of_items, items, strict=True):
        members[name].append(item)
    ordered = sorted(members, key=lambda name: (name in (SHORT, UNCLEAR), -len(members[name])))
    return Languages({name: _share(members[name], confidences[name], num_sources) for name in ordered}, of_items)


def _shared_beginning(texts: Collection[str]) -> str:
    """The most that more than half of some texts begin with, in whole words."""
    ordered = sorted(text[:LOOKED_AT_CHARS] for text in texts)
    half = len(ordered) // 2
    shared = max((_both_begin_with(*pair) for pair in zip(ordered, ordered[half:], strict=False)), key=len, default="")
    return shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1] if half else ""


def _both_begin_with(one: str, other: str) -> str:
    differs = (place for place, (char, another) in enumerate(zip(one, other, strict=False)) if char != another)
    return one[: next(differs, min(len(one), len(other)))]


def _own(text: str, beginning: str) -> str:
    """The beginning of a text, without what others begin with too if enough is left."""
    rest = text.removeprefix(beginning)
    return (rest if _num_letters(rest) >= FEWEST_LETTERS else text)[:LOOKED_AT_CHARS]


def _num_letters(text: str) -> int:
    return sum(map(str.isalpha, text[:LOOKED_AT_CHARS]))


def _language(text: str, classify: object) -> tuple[str, float]:
    if _num_letters(text) < FEWEST_LETTERS:
        return SHORT, 0.0
    code, confidence = classify(text)  # type: ignore[operator]
    if confidence < SURE or code == NO_LANGUAGE:
        return UNCLEAR, float(confidence)
    return NAMES.get(code, code), float(confidence)


def _share(members: Sequence[Item], confidence: float, num_sources: int) -> LanguageShare:
    counts = Counter(item.source for item in members)
    step = max(1, len(members) // MOST_SHOWN)
    return LanguageShare(
        num_items=len(members),
        num_bytes=sum(item.num_bytes for item in members),
        confidence=confidence / len(members),
        by_source=[counts[number] for number in range(num_sources)],
        examples=members[::step][:MOST_SHOWN],
    )
