"""The section of samples: the same held-out prompts answered before, during and after training."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.html import details, join, note, source, subtitle
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.responses import first_and_last
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.texts import how_it_ended, prompt_box, text_box
from llmtrain.runs.report.values import is_finite, number
from llmtrain.runs.rows import Row

SHOWN_PROMPTS = 4
MOST_PROMPTS = 12
LIKED = 3
FILE = "samples.jsonl"


def samples(records: Sequence[RunRecord]) -> Section | None:
    """Answers of each run at its first, middle and last evaluation, or of its first and last rollouts."""
    names = short_names([record.folder for record in records])
    parts = []
    for name, record in zip(names, records, strict=True):
        shown = _over_time(record) or _before_and_after(record)
        if shown:
            liked = _liked(record) if len(records) == 1 else Markup("")
            parts.append(join(subtitle(name) if len(records) > 1 else "", shown, liked))
    if not parts:
        return None
    return Section("Samples", "samples", join(*parts), "What the model writes, in its own words.")


def _over_time(record: RunRecord) -> Markup:
    """The answers to held-out prompts at three evaluations; empty if none was sampled."""
    by_index: dict[int, dict[int, Row]] = defaultdict(dict)
    for row in record.samples:
        if isinstance(row.get("step"), int) and isinstance(row.get("index"), int):
            by_index[row["index"]][row["step"]] = row
    if not by_index:
        return Markup("")
    steps = sorted({step for rows in by_index.values() for step in rows})
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    cards = []
    for index in sorted(by_index)[:MOST_PROMPTS]:
        rows = {step: by_index[index][step] for step in chosen if step in by_index[index]}
        if rows:
            titles = {("before training" if step == 0 else f"step {step:,}"): row for step, row in rows.items()}
            cards.append(_card(next(iter(rows.values())), titles))
    what = note(f"Held-out prompts, at {len(chosen)} of {len(steps)} evaluations.")
    return join(what, *_folded(cards), source(f"{FILE}: rows with step {', '.join(f'{step:,}' for step in chosen)}"))


def _before_and_after(record: RunRecord) -> Markup:
    """Answers of the first and of the last rollouts, to the same prompts if there are any."""
    ends = first_and_last(record.samples)
    if ends is None:
        return Markup("")
    first, last = ({json.dumps(row.get("prompt")): row for row in reversed(end.rows)} for end in ends)
    shared = [prompt for prompt in first if prompt in last][:MOST_PROMPTS]
    rollouts = [f"rollout {end.rollouts[0]}" for end in ends]
    if shared:
        cards = [
            _card(first[prompt], dict(zip(rollouts, (first[prompt], last[prompt]), strict=True))) for prompt in shared
        ]
        what = "Training prompts, in the first and in the last rollouts."
    else:
        pairs = list(zip(first.values(), last.values(), strict=False))[:SHOWN_PROMPTS]
        cards = [_card(None, dict(zip(rollouts, pair, strict=True))) for pair in pairs]
        what = "No prompt is in both the first and the last rollouts: these are answers to different ones."
    return join(note(what), *_folded(cards), source(f"{FILE}: rows of {' and '.join(rollouts)}"))


def _liked(record: RunRecord) -> Markup:
    """The answers with the highest score in the last rollouts: what the reward asks for."""
    ends = first_and_last(record.samples)
    rows = [row for row in ends[1].rows if is_finite(row.get("score"))] if ends is not None else []
    different = {row["response"]: row for row in sorted(rows, key=lambda row: float(row["score"]))}
    best = list(different.values())[-LIKED:][::-1]
    if not best:
        return Markup("")
    cards = [_card(row, {f"rollout {row['rollout']}": row}) for row in best]
    return join(
        subtitle("What the reward likes best"),
        note("The highest scores of the last rollouts. If you would not call these good answers, the reward is wrong."),
        *cards,
        source(f"{FILE}: score"),
    )


def _folded(cards: Sequence[Markup]) -> list[Markup]:
    """The first cards, the others folded."""
    rest = cards[SHOWN_PROMPTS:]
    more = details(f"{len(rest)} more prompts", join(*rest)) if rest else Markup("")
    return [*cards[:SHOWN_PROMPTS], more]


def _card(asked: Mapping[str, Any] | None, answers: Mapping[str, Row]) -> Markup:
    """A prompt with its reference, and its answers side by side; without `asked` each answer has its own prompt."""
    columns = []
    for title, row in answers.items():
        score = f"score {number(row['score'])}" if is_finite(row.get("score")) else ""
        prompt = prompt_box(row.get("prompt")) if asked is None else ""
        columns.append(
            Markup('<div><div class="role">{} <span class="remark">{} {}</span></div>{}{}</div>').format(
                title, score, how_it_ended(row), prompt, text_box(str(row.get("response", "")))
            )
        )
    reference = Markup("")
    if asked is not None and isinstance(asked.get("reference"), str):
        reference = Markup('<div class="role">reference</div>{}').format(text_box(asked["reference"]))
    return Markup('<div class="sample">{}{}<div class="answers">{}</div></div>\n').format(
        prompt_box(asked.get("prompt")) if asked is not None else "", reference, Markup("").join(columns)
    )
