"""The section of policy runs (PPO and its family): what the reward rose to, what that cost, and signs of too much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.curves import column, evenly
from llmtrain.runs.report.figures import Line, Scale, custom, legend, line_chart
from llmtrain.runs.report.html import figure, grid, join, note, paragraph, subtitle, table, titled
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.over_time import measure_figure
from llmtrain.runs.report.overoptimisation import Sign, signs
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.svg import GRID, INK, colored, plain
from llmtrain.runs.report.traded import changes, part_name, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 300

SINGLE: Sequence[tuple[str, str, Scale, str]] = (
    (
        "rollout_kl",
        "KL to the reference",
        Scale("KL, nats per response", from_zero=True),
        "How far the policy has moved from the model it began as. It should level off; a line that turns up is a "
        "policy that leaves the language it knew.",
    ),
    (
        "entropy",
        "Entropy",
        Scale("entropy, nats per token", from_zero=True),
        "How much chance is left in each token. Near zero, all answers to a prompt are the same and nothing is learnt.",
    ),
    (
        "clip_fraction",
        "Clipped tokens",
        Scale("tokens clipped", is_share=True, from_zero=True),
        "Tokens whose update the clip range cut. Much more than 20 %: steps are too large, or rollouts are reused too "
        "often.",
    ),
    (
        "approx_kl",
        "KL within a rollout",
        Scale("KL to the sampler, nats per token"),
        "How far the policy has moved since it sampled the answers that it learns from.",
    ),
    (
        "value_loss",
        "Value loss",
        Scale("value loss", may_be_log=True),
        "The critic's error in predicting the return.",
    ),
    (
        "rollout_explained_variance",
        "Explained variance",
        Scale("explained variance of returns"),
        "1: the critic predicts every return; 0: no better than their mean; below 0: worse than that.",
    ),
    (
        "rollout_zero_variance_groups",
        "Prompts without a signal",
        Scale("prompts whose answers all score alike", is_share=True, from_zero=True),
        "Such a prompt teaches nothing: too easy, too hard, or always answered alike.",
    ),
    (
        "kl_coef",
        "KL coefficient",
        Scale("KL coefficient", from_zero=True),
        "Adapted to hold the KL at policy.kl_target.",
    ),
)
"""Field of training rows, title, axis, and what to see there."""

OF_ANSWERS = (
    (
        "response_tokens",
        "Length of answers",
        "tokens per answer",
        False,
        "A drift that the task does not ask for is a sign of a reward for length.",
    ),
    (
        "terminated_ratio",
        "Answers that end by themselves",
        "ended by themselves",
        True,
        "The others were cut off at rollout.max_new_tokens.",
    ),
)
"""Fields, `rollout_FIELD` of training rows and `eval_FIELD` of evaluations; title, axis, whether it is a share."""

ADAPTED = "kl_coef"


def policy(records: Sequence[RunRecord]) -> Section | None:
    """Curves of every run; of one run also what was traded, and signs of over-optimisation."""
    records = [record for record in records if record.recipe == "policy"]
    if not records:
        return None
    figures = [*_frontier(records), *_singles(records), *_length(records), *_rewards(records)]
    if not figures:
        return Section("Reward and its price", "policy", note("No rollout has been logged yet."))
    parts = [grid(figures)]
    if len(records) == 1:
        parts = [*_traded(records[0]), grid(figures), *_signs(records[0])]
    else:
        parts += [note(f"{name}: {summary(record, list(signs(record)))}") for name, record in _named(records)]
    return Section("Reward and its price", "policy", join(*parts), "What did the policy gain, and what did it give up?")


def _traded(record: RunRecord) -> Iterator[Markup]:
    yield paragraph(summary(record, list(signs(record))))
    rows = [
        (change.label, change.written(change.before), change.written(change.after), change.place)
        for change in changes(record)
    ]
    if rows:
        yield table(["measure", "before", "after", "from"], rows, numbers=(1, 2))
        yield note("Of training rows: means over the first and the last part of the run.")


def _signs(record: RunRecord) -> Iterator[Markup]:
    yield subtitle("Is the reward over-optimised?")
    yield table(
        ["sign", "found", "evidence", "what it means", "from"],
        [(sign.name, _state(sign), sign.evidence, sign.meaning, sign.place) for sign in signs(record)],
    )
    yield note(
        "What this cannot show: the held-out score comes from the same reward, so a reward that is wrong is wrong "
        "there too. Read the samples, or score them by a judge that is not trained on: a reward of weight 0 is logged "
        "beside the others and changes nothing."
    )


def _state(sign: Sign) -> Markup:
    kind = {"seen": "bad", "not seen": "good", "unknown": "muted"}[sign.state]
    return Markup('<span style="color: var(--{})">{}</span>').format(
        kind, "cannot be seen" if sign.state == "unknown" else sign.state
    )


def _frontier(records: Sequence[RunRecord]) -> Iterator[Markup]:
    """The score against the KL of rollouts, later ones darker."""
    found = []
    for name, record in _named(records):
        score, kl = (column(record.train_rows, field) for field in ("rollout_score", "rollout_kl"))
        if len(score.y) != len(kl.y):
            continue
        finite = np.flatnonzero(np.isfinite(score.y) & np.isfinite(kl.y))
        if len(finite) > 1 and kl.y[finite].max() > 0:
            kept = finite[evenly(len(finite), MOST_POINTS)]
            found.append((name, kl.x[kept], kl.y[kept], score.y[kept]))
    if not found:
        return

    def paint(axes: Axes) -> None:
        from matplotlib.colors import to_rgba

        for (name, steps, kl, score), color in colored(found):
            shades = np.linspace(0.15, 1.0, len(steps))
            axes.scatter(kl, score, s=18, color=[to_rgba(color, shade) for shade in shades], linewidths=0)
            label = plain(name, 32) if len(found) > 1 else "a rollout; later ones darker"
            axes.plot([], [], "o", color=color, label=label)
            for place, side in ((0, "left"), (-1, "right")):
                axes.annotate(
                    f"step {int(steps[place]):,}",
                    (kl[place], score[place]),
                    xytext=(0, -14),
                    textcoords="offset points",
                    ha=side,
                    fontsize=10,
                    color=INK,
                )
        axes.set_xlabel("KL to the reference, nats per response")
        axes.set_ylabel("mean score of a rollout")
        axes.margins(y=0.12)
        axes.spines["bottom"].set_color(GRID)
        legend(axes)

    caption = (
        "The price of the reward: each point is a rollout. Up is gain, right is distance from the model it began as. "
        "Where the points go right without going up, training longer buys nothing."
    )
    drawn = custom(paint, title="Score against KL")
    yield figure(drawn, titled("Score against KL", caption), "metrics.jsonl: rollout_score, rollout_kl")


def _singles(records: Sequence[RunRecord]) -> Iterator[Markup]:
    for field, title, scale, caption in SINGLE:
        if field == ADAPTED and not any(record.config.get("policy", {}).get("kl_target") for record in records):
            continue
        lines = [
            Line(name if len(records) > 1 else "", curve, color)
            for (name, record), color in colored(_named(records))
            if np.isfinite((curve := column(record.train_rows, field)).y).any() and np.any(curve.y)
        ]
        if lines:
            drawn = line_chart(lines, Scale("step"), scale, title=f"{title} over steps")
            yield figure(drawn, titled(title, caption), f"metrics.jsonl: {field}")


def _length(records: Sequence[RunRecord]) -> Iterator[Markup]:
    for field, title, label, is_share, caption in OF_ANSWERS:
        drawn = measure_figure(records, f"eval_{field}", label, is_share=is_share, training=f"rollout_{field}")
        fields = [f"eval_{field}", f"rollout_{field}"]
        if drawn is None:
            lines = [
                Line(name if len(records) > 1 else "", curve, color)
                for (name, record), color in colored(_named(records))
                if len((curve := column(record.train_rows, f"rollout_{field}")).y)
            ]
            if not lines:
                continue
            drawn = line_chart(lines, Scale("step"), Scale(label, is_share=is_share), title=f"{title} over steps")
            fields = fields[1:]
        yield figure(drawn, titled(title, caption), f"metrics.jsonl: {', '.join(fields)}")


def _rewards(records: Sequence[RunRecord]) -> Iterator[Markup]:
    """Each of several rewards, before its weight."""
    for name, record in _named(records):
        fields = [field for field in record.train_rows.names if field.startswith("rollout_score/")]
        lines = [
            Line(part_name(field).removeprefix(", "), column(record.train_rows, field), color)
            for field, color in colored(fields)
        ]
        if lines:
            title = "Each reward" if len(records) == 1 else f"Each reward of {name}"
            drawn = line_chart(lines, Scale("step"), Scale("mean, before its weight"), title=f"{title} over steps")
            caption = "Which of the rewards the score comes from: one that falls is paid for another."
            yield figure(drawn, titled(title, caption), f"metrics.jsonl: {', '.join(map(plain, fields))}")


def _named(records: Sequence[RunRecord]) -> Iterator[tuple[str, RunRecord]]:
    return zip(short_names([record.folder for record in records]), records, strict=True)
