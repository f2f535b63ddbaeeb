"""What the measures of before and after are, in words for the model card and the report."""

from __future__ import annotations

from llmtrain.eval.before_after.answers import NGRAM_TOKENS

LABELS = {
    ("held_out", "nats_per_token"): "held-out loss, nats per token",
    ("held_out", "chosen_nats_per_token"): "loss of held-out chosen answers, nats per token",
    ("held_out", "rejected_nats_per_token"): "loss of held-out rejected answers, nats per token",
    ("held_out", "prefers_chosen"): "pairs whose chosen answer is the likelier one per token",
    ("desirable", "nats_per_token"): "loss of held-out desirable answers, nats per token",
    ("undesirable", "nats_per_token"): "loss of held-out undesirable answers, nats per token",
    ("held_out_answers", "score"): "mean reward of answers",
    ("held_out_answers", "tokens"): "length of answers, tokens",
    ("held_out_answers", "ends"): "answers that stop by themselves",
    ("held_out_answers", "repetition"): "repetition within answers",
    ("held_out_answers", "refuses"): "answers that refuse",
    ("general_text", "bits_per_byte"): "loss on general text, bits per byte",
}
"""(task, measure) -> what a reader sees; of others both names."""

MEANINGS = {
    "prefers_chosen": "A chosen answer is likelier than the rejected one if its mean loss per token is lower.",
    "score": "The reward is the one that was trained on: it may be wrong in the same way for both.",
    "ends": "An answer stops by itself if it ends before the most tokens that it may have.",
    "repetition": (
        f"Repetition is the share of an answer's sequences of {NGRAM_TOKENS} tokens that it has had before "
        "(seq-rep-4, Welleck et al. 2020); lists and tables repeat too."
    ),
    "refuses": (
        'A refusal is counted by English phrases in the opening of an answer, such as "I cannot help" (as Zou et al. '
        "2023 do): other words and languages are not seen, and whether refusing was right is not judged."
    ),
    "bits_per_byte": "If the loss on general text rises, the model forgets what it is not trained on.",
}
"""Measure -> what it is, and what it cannot show."""


def label_of(task: str, measure: str) -> str:
    """What a reader sees of a measure."""
    return LABELS.get((task, measure), f"{task.replace('_', ' ')}: {measure.replace('_', ' ')}")
