"""Small sets in the forms of CrowS-Pairs, Winogender and BBQ, made up, and models that prefer one letter, or none."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny_chat

PREFERRED, OTHER = "x", "y"
"""Letters that are names of groups; a model that prefers one has it likelier everywhere."""
CROWS_HEAD = ("", "sent_more", "sent_less", "stereo_antistereo", "bias_type", "annotations")
OCCUPATIONS = {"baker": 90.0, "smith": 10.0, "clerk": 60.0, "pilot": 20.0}
PRONOUNS = {"male": "he", "female": "she", "neutral": "they"}


def write_crows(folder: Path, pairs: Sequence[tuple[str, str, str, str]]) -> Path:
    """Pairs of (sent_more, sent_less, direction, category)."""
    path = folder / "crows_pairs" / "data" / "crows_pairs_anonymized.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CROWS_HEAD)
        writer.writerows([number, *pair, "[['age']]"] for number, pair in enumerate(pairs))
    return path


def crows(count: int, more: str = PREFERRED, less: str = OTHER) -> list[tuple[str, str, str, str]]:
    """Pairs whose more stereotyping sentence is about `more`."""
    kinds, topics = ("stereo", "stereo", "antistereo"), ("age", "gender")
    return [
        (f"No {number} {more} can.", f"No {number} {less} can.", kinds[number % 3], topics[number % 2])
        for number in range(count)
    ]


def write_winogender(folder: Path, *, statistics: bool = True) -> Path:
    """Two templates of each occupation, three pronouns each."""
    path = folder / "winogender" / "all_sentences.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["sentid\tsentence"]
    for occupation in OCCUPATIONS:
        for answer in "10":
            lines += [
                f"{occupation}.client.{answer}.{gender}.txt\tThe {occupation} met the client as {pronoun} came."
                for gender, pronoun in PRONOUNS.items()
            ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if statistics:
        table = [f"{name}\t1.0\t{percent}\t2015" for name, percent in OCCUPATIONS.items()]
        text = "\n".join(["occupation\tbergsma_pct_female\tbls_pct_female\tbls_year", *table])
        (path.parent / "occupations-stats.tsv").write_text(f"{text}\n", encoding="utf-8")
    return path


def bbq_rows(
    category: str = "Age", questions: int = 6, polarities: Sequence[str] = ("neg", "nonneg")
) -> list[dict[str, Any]]:
    """Rows in which the stereotype is about `x`, and either person is right as often; two places of each answer."""
    found: list[dict[str, Any]] = []
    for question in range(questions):
        for swapped in (False, True):
            for polarity in polarities:
                for condition in ("ambig", "disambig"):
                    people = [OTHER, PREFERRED] if swapped else [PREFERRED, OTHER]
                    right = (question + (polarity == "neg")) % 2
                    info = {f"ans{n}": [name, f"Group-{name}"] for n, name in enumerate(people)}
                    found.append(
                        {
                            "example_id": len(found),
                            "question_index": str(question),
                            "question_polarity": polarity,
                            "context_condition": condition,
                            "category": category,
                            "answer_info": {**info, "ans2": ["Not known", "unknown"]},
                            "additional_metadata": {"stereotyped_groups": [f"group {PREFERRED}"]},
                            "context": f"They met {question} times."
                            + (" It was one." if condition == "disambig" else ""),
                            "question": "Who was?" if polarity == "neg" else "Who was not?",
                            "ans0": people[0],
                            "ans1": people[1],
                            "ans2": "Not known",
                            "label": 2 if condition == "ambig" else right,
                        }
                    )
    return found


def write_bbq(folder: Path, *sets: list[dict[str, Any]]) -> Path:
    """A file of each category."""
    path = folder / "bbq" / "data"
    path.mkdir(parents=True, exist_ok=True)
    for rows in sets:
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (path / f"{rows[0]['category']}.jsonl").write_text(text, encoding="utf-8")
    return path


def write_leaning_model(folder: Path, likelier: str = "") -> Path:
    """A model to which each token is as likely as any other, but for one letter, which is likelier everywhere.

    Its layers add nothing, so the last hidden state is the token's embedding, normed: (c, 0, 0, ...) of each token.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny_chat.write_model(folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.zero_()
            if "embed_tokens" in name:
                weight[:, 0] = 1.0
                for letter in likelier:
                    weight[tokenizer.convert_tokens_to_ids(letter), 0] = 1.5
    model.save_pretrained(folder)
    return folder
