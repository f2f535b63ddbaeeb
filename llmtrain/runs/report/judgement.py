"""The verdict as the page shows it: the word, its evidence, what to do, what else was seen."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.html import details, join, with_code
from llmtrain.runs.report.verdict import Verdict, verdict_of

TONES = {
    "healthy": "good",
    "converged": "good",
    "diverged": "bad",
    "overfitting": "bad",
    "no verdict": "none",
}
"""Word -> how the page colours it; others ask for caution."""


def judgement(record: RunRecord) -> Markup:
    """The card of a run's verdict."""
    verdict = verdict_of(record)
    parts = [_list("Evidence", verdict.evidence), _list("What to do", _advice(verdict))]
    for finding in verdict.findings:
        seen = join(_list("Evidence", finding.evidence), _list("What to do", finding.advice))
        parts.append(details(f"Also seen: {finding.word}", seen))
    card = '<div class="verdict {}"><div class="label">Verdict</div>\n<div class="word">{}</div>\n{}</div>\n'
    return Markup(card).format(TONES.get(verdict.word, "caution"), verdict.headline, join(*parts))


def _advice(verdict: Verdict) -> Sequence[str]:
    if verdict.stop_checkpoint is None:
        return verdict.advice
    return [*verdict.advice, f"the weights of step {verdict.stop_step} are kept in `{verdict.stop_checkpoint}`"]


def _list(title: str, sentences: Sequence[str]) -> Markup:
    if not sentences:
        return Markup("")
    items = Markup("\n").join(
        Markup("<li>{}</li>").format(with_code(sentence[:1].upper() + sentence[1:])) for sentence in sentences
    )
    return Markup("<h4>{}</h4>\n<ul>\n{}\n</ul>\n").format(title, items)
