"""All measures of a sample, in turn; one that fails or lacks its library leaves the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from llmtrain.config.data import CleanConfig, Source
from llmtrain.data.formats.preferences import EQUAL
from llmtrain.data.quality.characters import Characters, characters
from llmtrain.data.quality.cleaning import Cleaning, cleaning
from llmtrain.data.quality.contamination import Contamination, contamination
from llmtrain.data.quality.duplicates import (
    NEAR,
    ExactDuplicates,
    NearDuplicatesFound,
    exact_duplicates,
    near_duplicates,
)
from llmtrain.data.quality.languages import Languages, languages
from llmtrain.data.quality.pairs import Labels, Pairs, labels, pairs
from llmtrain.data.quality.personal_items import PersonalData, personal_data
from llmtrain.data.quality.repetition import Repetition, repetition
from llmtrain.data.quality.sample import Reading, Sample
from llmtrain.data.quality.tokens import Tokens, tokens
from llmtrain.data.quality.topics import Topics, topics
from llmtrain.data.quality.typical import Losses
from llmtrain.system.files import one_line
from llmtrain.system.typing import Report

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a measure found, or why it found nothing."""

    value: T | None
    fault: str = ""  # one line
    seconds: float = 0.0


@dataclass(frozen=True)
class Asked:
    """What to measure, and with what."""

    against: Sequence[Source] = ()  # evaluation files
    tokenizer: str | None = None  # its name, for the page
    load_tokenizer: Callable[[], Any] | None = None  # raises ValueError
    clean: CleanConfig | None = None  # of a recipe that has it
    cache_dir: str | None = None
    model: str | None = None
    losses: Callable[[Sample], Losses] | None = None  # of that model; raises ValueError


@dataclass(frozen=True)
class Quality:
    """What is in the data. A measure that was not asked for, or that these rows have no use for, is not there."""

    sample: Sample
    asked: Asked
    exact: Outcome[ExactDuplicates]
    near: Outcome[NearDuplicatesFound]
    languages: Outcome[Languages]
    repetition: Outcome[Repetition]
    personal: Outcome[PersonalData]
    characters: Outcome[Characters]
    topics: Outcome[Topics]
    cleaning: Outcome[Cleaning]
    contamination: Outcome[Contamination] | None = None
    tokens: Outcome[Tokens] | None = None
    pairs: Outcome[Pairs] | None = None
    labels: Outcome[Labels] | None = None
    losses: Outcome[Losses] | None = None

    def outcomes(self) -> Iterator[tuple[str, Outcome[object]]]:
        """Each measure that ran, by name."""
        for name, value in vars(self).items():
            if isinstance(value, Outcome):
                yield name, value


def measured(sample: Sample, readings: Sequence[Reading], asked: Asked, report: Report) -> Quality:
    """Run every measure that these rows have a use for; `report` gets a line for each, with its seconds."""
    items, num_sources = sample.items, len(sample.sources)
    uses = {source.use for source in sample.sources}

    def step(name: str, measure: Callable[[], T]) -> Outcome[T]:
        started = time.monotonic()
        try:
            outcome = Outcome(measure(), "", time.monotonic() - started)
        except Exception as error:  # whatever it is, the other measures are well
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            outcome = Outcome(None, f"{kind}{one_line(error)}", time.monotonic() - started)
        report(f"{name}: {outcome.fault and f'not measured, {outcome.fault}; '}{outcome.seconds:.1f} s")
        return outcome

    spoken = step("languages", lambda: languages(items, num_sources))
    of_items = None if spoken.value is None else spoken.value.of_items
    num_identical = sum(source.lost[EQUAL] for source in sample.sources)
    paired = [item for item in items if sample.sources[item.source].use == "pairs"]
    labelled = [item for item in items if sample.sources[item.source].use == "kto"]
    load, losses = asked.load_tokenizer, asked.losses
    return Quality(
        sample=sample,
        asked=asked,
        exact=step("exact duplicates", lambda: exact_duplicates(sample, readings)),
        near=step("near duplicates", lambda: near_duplicates(sample, NEAR, asked.cache_dir)),
        languages=spoken,
        repetition=step("repetition", lambda: repetition(items, num_sources)),
        personal=step("personal data", lambda: personal_data(items, num_sources)),
        characters=step("characters", lambda: characters(items, num_sources)),
        topics=step("topics", lambda: topics(items, num_sources, sample.seed, of_items)),
        cleaning=step(
            "cleaning", lambda: cleaning(items, asked.clean, [each.path for each in asked.against], asked.cache_dir)
        ),
        contamination=step("contamination", lambda: contamination(items, asked.against, num_sources))
        if asked.against
        else None,
        tokens=None
        if load is None
        else step("tokens", lambda: tokens(items, num_sources, str(asked.tokenizer), load(), of_items)),
        pairs=step("pairs", lambda: pairs(paired, num_identical)) if "pairs" in uses else None,
        labels=step("labels", lambda: labels(labelled)) if "kto" in uses else None,
        losses=None if losses is None else step("losses", lambda: losses(sample)),
    )
