"""Preferences, labels, topics and cleaning on rows whose answer is known."""

from __future__ import annotations

import random

import pytest
from planted_texts import WORDS, item, sentence

from llmtrain.config.data import CleanConfig
from llmtrain.data.quality.cleaning import cleaning
from llmtrain.data.quality.items import CHOSEN, PROMPT, REJECTED, Item, Part, item_of
from llmtrain.data.quality.pairs import labels, pairs


def pair(prompt: str, chosen: str, rejected: str, first_is_better: bool | None = None) -> Item:
    parts = [Part(PROMPT, prompt), Part(CHOSEN, chosen), Part(REJECTED, rejected)]
    return item_of(parts, "rows.jsonl:1", first_is_better=first_is_better)


def test_pairs_are_counted_by_length_position_prompt_and_contradiction() -> None:
    found = pairs(
        [
            pair("a", "longer", "short", True),
            pair("a", "short", "longer", True),  # contradicts the first
            pair("b", "longest", "short", False),
            pair("c", "equal", "short"),  # equally long: it decides nothing
            pair("d", "full", " "),
        ],
        num_identical=2,
    )
    assert (found.longer.count, found.longer.of) == (3, 4)
    assert (found.first.count, found.first.of) == (2, 3)
    assert (found.num_pairs, found.num_prompts, found.num_identical) == (5, 4, 2)
    assert (found.num_contradictions, found.num_blank) == (1, 1)
    assert found.most_repeated == [("a", 2)]
    assert found.differences[3] == 0.0 and found.differences[4] == 2.0


def test_pairs_of_one_prompt_are_not_counted_as_independent() -> None:
    def of(pairs_per_prompt: int) -> list[Item]:
        """Of every other prompt, all chosen answers are longer."""
        return [
            pair(f"p{number}", f"{'long ' * 3}{k}" if number % 2 else str(k), f"medium{k}")
            for number in range(20)
            for k in range(pairs_per_prompt)
        ]

    once, five_times = pairs(of(1), 0).longer, pairs(of(5), 0).longer
    assert (five_times.count, five_times.of) == (5 * once.count, 5 * once.of)
    assert five_times.interval == pytest.approx(once.interval, abs=0.02)
    low, high = five_times.interval
    assert five_times.rest.interval == pytest.approx((1 - high, 1 - low)) and five_times.rest.count == 50


def test_labels_are_counted_and_answers_of_both_kinds_found() -> None:
    def answer(prompt: str, text: str, desirable: bool) -> Item:
        return item_of([Part("user", prompt), Part("assistant", text)], "rows.jsonl:1", desirable=desirable)

    found = labels([answer("a", "yes", True), answer("a", "yes", False), answer("b", "no!!", True)])
    assert (found.desirable.count, found.desirable.of, found.num_both, found.num_prompts) == (2, 3, 1, 2)
    assert found.lengths == {"desirable": [3.0, 4.0], "undesirable": [3.0]}


def test_cleaning_counts_each_step_alone_and_those_that_are_set_in_turn() -> None:
    long = sentence(random.Random(0), 100)
    texts = ["short", "short", long, long, "1234 5678 " * 40, "the same line\n" * 40]
    config = CleanConfig(min_chars=100, exact_dedup=True)
    found = cleaning([item(text, i) for i, text in enumerate(texts)], config, [], None)
    steps = {step.name: step for step in found.steps}
    assert {name: step.num_alone for name, step in steps.items() if step.num_alone} == {
        "min_chars": 2,
        "min_alpha_fraction": 1,
        "max_line_repeat_fraction": 1,
        "exact_dedup": 2,
        "near_dedup": 1,
    }
    assert (steps["min_chars"].num_in_turn, steps["exact_dedup"].num_in_turn) == (2, 1)
    assert found.num_kept == 3 and [name for name, step in steps.items() if step.is_set] == ["min_chars", "exact_dedup"]
    assert steps["min_chars"].value == 100 and steps["min_chars"].examples[0][1] == "5 characters"


def test_planted_topics_are_separated() -> None:
    pytest.importorskip("sklearn", reason="topics need scikit-learn: pip install 'llmtrain[data]'")
    from llmtrain.data.quality.topics import topics

    draw = random.Random(0)
    subjects = [WORDS[0:60], WORDS[100:160], WORDS[200:260]]
    truth = [number % 3 for number in range(120)]
    items = [item(" ".join(draw.choice(subjects[which]) for _ in range(40)), i) for i, which in enumerate(truth)]
    found = topics(items, 1, 0)
    assert [topic.num_items for topic in found.topics] == [40, 40, 40] and found.silhouette > 0.3
    for topic in found.topics:
        (which,) = {truth[int(example.where.rpartition(":")[2])] for example in topic.examples}
        assert set(topic.terms) <= set(subjects[which])
    assert found.places.shape == (120, 2) and len(found.place_topics) == 120


def test_words_that_any_text_of_a_language_has_name_no_group() -> None:
    pytest.importorskip("sklearn", reason="topics need scikit-learn: pip install 'llmtrain[data]'")
    from llmtrain.data.quality.topics import topics

    draw = random.Random(1)
    about = {"Spanish": WORDS[0:60], "German": WORDS[100:160], "English": WORDS[200:260]}
    any_text = {"Spanish": ["que", "para"], "German": ["und", "der"], "English": ["the", "and"]}
    spoken = [list(about)[number % 3] for number in range(90)]
    texts = [" ".join([*draw.choices(about[language], k=9), *any_text[language]]) for language in spoken]
    items = [item(text, number) for number, text in enumerate(texts)]
    found = topics(items, 1, 0, spoken)
    named = {term for topic in found.topics for term in topic.terms}
    assert named and not named & {term for terms in any_text.values() for term in terms}
    assert {"que", "para"} <= {term for topic in topics(items, 1, 0).topics for term in topic.terms}


def test_a_few_texts_taken_for_another_language_take_no_word_from_the_others() -> None:
    pytest.importorskip("sklearn", reason="topics need scikit-learn: pip install 'llmtrain[data]'")
    from llmtrain.data.quality.topics import topics

    draw = random.Random(3)
    texts = [" ".join([*draw.choices(WORDS[:60], k=9), WORDS[300 + number % 3]]) for number in range(90)]
    spoken = ["Latin" if number in (0, 3, 6) else "English" for number in range(90)]
    found = topics([item(text, number) for number, text in enumerate(texts)], 1, 0, spoken)
    assert any(WORDS[300] in topic.terms for topic in found.topics)


def test_a_group_of_texts_that_share_no_word_has_no_name() -> None:
    pytest.importorskip("sklearn", reason="topics need scikit-learn: pip install 'llmtrain[data]'")
    from llmtrain.data.quality.topics import topics

    draw = random.Random(2)
    texts = [" ".join(draw.choices(WORDS[:20], k=20)) for _ in range(40)]
    texts += [f"{WORDS[300 + number % 56]} {number}" for number in range(60)]  # four words are in two of them
    found = topics([item(text, number) for number, text in enumerate(texts)], 1, 0)
    assert any(topic.terms == [] and topic.num_items >= 52 for topic in found.topics)
    assert any(set(topic.terms) & set(WORDS[:20]) for topic in found.topics)


def test_texts_without_spaces_are_grouped_by_two_letters_in_a_row() -> None:
    pytest.importorskip("sklearn", reason="topics need scikit-learn: pip install 'llmtrain[data]'")
    from llmtrain.data.quality.topics import topics

    texts = ["我想学习中文汉字", "今天天气很热下雨", "猫和狗吃东西"] * 20
    found = topics([item(f"{text}{number}", number) for number, text in enumerate(texts)], 1, 0)
    assert sorted(topic.num_items for topic in found.topics) == [20, 20, 20]
    assert any("天气" in topic.terms for topic in found.topics)


def test_too_few_texts_have_no_topics() -> None:
    pytest.importorskip("sklearn", reason="topics need scikit-learn: pip install 'llmtrain[data]'")
    from llmtrain.data.quality.topics import topics

    with pytest.raises(ValueError, match="3 texts cannot be grouped"):
        topics([item("one two three", i) for i in range(3)], 1, 0)
