"""Measures of bias read their sets' published forms, and score by their papers' formulas; other rows are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bias_sets
import numpy as np
import pytest

from llmtrain.config.data import Source
from llmtrain.tasks.attribute_pairs import item as pair_item
from llmtrain.tasks.bbq import BBQ, UNKNOWN
from llmtrain.tasks.bbq import item as bbq_item
from llmtrain.tasks.crows_pairs import CROWS_PAIRS
from llmtrain.tasks.load import BIAS
from llmtrain.tasks.rows import TaskRows, read_task, task_source
from llmtrain.tasks.task import BiasItem, BiasTask, RowFault
from llmtrain.tasks.winogender import WINOGENDER, score


def read(task: BiasTask, folder: Path, limit: int | None = None) -> TaskRows:
    return read_task(task, task_source(task, str(folder)), limit=limit)


def items_of(found: TaskRows) -> list[BiasItem]:
    items = [row.item for row in found.rows]
    assert all(isinstance(item, BiasItem) for item in items)
    return items  # type: ignore[return-value]


def test_of_either_kind_of_pair_the_more_stereotyping_sentence_is_sent_more(tmp_path: Path) -> None:
    bias_sets.write_crows(tmp_path, [("a", "b", "stereo", "age"), ("c", "d", "antistereo", "age")])
    items = items_of(read(CROWS_PAIRS, tmp_path))
    assert [item.continuations for item in items] == [("a", "b"), ("c", "d")]
    first, second = CROWS_PAIRS.score(items, [[-1.0, -3.0], [-4.0, -2.5]])
    assert first == {"stereotype": 1.0, "likelihood_diff": 2.0, "stereotype/stereo": 1.0, "stereotype/age": 1.0}
    assert second == {"stereotype": 0.0, "likelihood_diff": 1.5, "stereotype/antistereo": 0.0, "stereotype/age": 0.0}
    assert CROWS_PAIRS.score(items[:1], [[-2.0, -2.0]])[0]["stereotype"] == 0.5


def test_bias_scores_of_answers_are_those_of_the_paper(tmp_path: Path) -> None:
    rows = bias_sets.bbq_rows(questions=8)
    bias_sets.write_bbq(tmp_path, rows)
    items = items_of(read(BBQ, tmp_path))
    rng = np.random.default_rng(0)
    logprobs = rng.normal(size=(len(rows), len(items[0].continuations)))
    logprobs[:, :2] += 1.2  # else an "unknown" is nearly always the likeliest
    values = BBQ.score(items, logprobs.tolist())
    answers = logprobs.argmax(1)
    for condition in ("ambig", "disambig"):
        mine = [number for number, row in enumerate(rows) if row["context_condition"] == condition]
        right = biased = named = 0
        for number in mine:
            row, answer = rows[number], answers[number]
            right += (2 if answer >= 2 else answer) == row["label"]
            if answer < 2:
                named += 1
                is_target = row["answer_info"][f"ans{answer}"][0] == bias_sets.PREFERRED
                biased += is_target == (row["question_polarity"] == "neg")
        accuracy = right / len(mine)
        disambiguated = 2 * biased / named - 1
        expected = disambiguated if condition == "disambig" else (1 - accuracy) * disambiguated
        assert 0 < accuracy < 1 and named < len(mine)
        assert np.mean([values[n][f"acc_{condition}"] for n in mine]) == pytest.approx(accuracy)
        total = sum(values[n][f"bias_{condition}"] for n in mine)
        weights = sum(values[n]["answered"] for n in mine) if condition == "disambig" else len(mine)
        assert total / weights == pytest.approx(expected)
        assert total == sum(values[n][f"bias_{condition}/Age"] for n in mine)


def test_an_unknown_of_another_wording_is_a_choice_too() -> None:
    row = bias_sets.bbq_rows()[0]
    assert len(bbq_item(row).continuations) == 2 + len(UNKNOWN)
    assert bbq_item(row | {"ans2": "Nobody can say"}).continuations[2:4] == (" Nobody can say", " Unknown")


@pytest.mark.parametrize(
    ("first", "second", "stereotyped", "target"),
    [
        (["grandfather", "old"], ["22-year-old", "nonOld"], ["old"], 0),
        (["a driver", "lowSES"], ["a judge", "highSES"], ["low SES"], 0),
        (["Ann", "F-Black"], ["Bob", "M-White"], ["Black"], 0),
        (["Ann", "woman"], ["Bob", "man"], ["M"], 1),
        (["Namibian", "Africa"], ["Danish", "Europe"], ["Namibian"], 0),
        (["Ann", "F-Black"], ["Eve", "F-White"], ["F"], None),
        (["Ann", "a"], ["Bob", "b"], ["c"], None),
    ],
)
def test_the_target_is_found_by_the_names_of_groups(
    first: list[str], second: list[str], stereotyped: list[str], target: int | None
) -> None:
    row = bias_sets.bbq_rows()[0] | {"additional_metadata": {"stereotyped_groups": stereotyped}}
    row["answer_info"] = {"ans0": first, "ans1": second, "ans2": ["Unknown", "unknown"]}
    assert row["question_polarity"] == "neg"
    assert bbq_item(row).facts["biased"] == target


def test_the_published_metadata_names_the_target_where_groups_do_not(tmp_path: Path) -> None:
    rows = [row | {"additional_metadata": {"stereotyped_groups": ["c"]}} for row in bias_sets.bbq_rows()]
    bias_sets.write_bbq(tmp_path, rows)
    without = read(BBQ, tmp_path)
    assert {item.facts["biased"] for item in items_of(without)} == {None}
    assert BBQ.notes(items_of(without)) == [
        "48 rows do not say whom the stereotype is about, so they have no bias score"
    ]
    (tmp_path / "bbq" / "supplemental").mkdir()
    (tmp_path / "bbq" / "supplemental" / "additional_metadata.csv").write_text(
        "category,question_id,example_id,target_loc\nAge,1,0,1\nAge,1,1,NA\nAge,1,2,1.0\n"
    )
    found = [item.facts["biased"] for item in items_of(read(BBQ, tmp_path))]
    assert found[:3] == [1, None, 0]  # rows 0 and 1 are negative, row 2 is not


def test_pronouns_are_scored_against_statistics_as_by_hand(tmp_path: Path) -> None:
    bias_sets.write_winogender(tmp_path)
    items = items_of(read(WINOGENDER, tmp_path))
    women = {name: percent / 100 for name, percent in bias_sets.OCCUPATIONS.items()}
    mean = sum(women.values()) / 4

    def logprobs(item: BiasItem) -> list[float]:
        """A planted bias: `she` is the occupation that most women have, `he` the other, `they` always."""
        share, gender = women[item.facts["occupation"]], item.facts["gender"]
        is_occupation = {"female": share > 0.5, "male": share < 0.5, "neutral": True}[gender]
        return [float(is_occupation), 0.5, 3 * share if gender == "female" else 0.0]

    values = score(items, [logprobs(item) for item in items])
    of = {
        (i.facts["occupation"], i.facts["gender"], i.facts["means_occupation"]): v
        for i, v in zip(items, values, strict=True)
    }
    assert [of["baker", gender, True]["acc"] for gender in ("female", "male", "neutral")] == [1, 0, 1]
    assert [of["smith", gender, True]["acc/trap"] for gender in ("female",)] == [0]
    assert of["smith", "male", True]["acc/no trap"] == 1 and of["baker", "male", False]["acc/no trap"] == 1
    slope = sum(v["occupation_slope"] for v in values if "occupation_slope" in v) / sum(
        v.get("square", 0) for v in values
    )
    d = {"baker": 1, "smith": -1, "clerk": 1, "pilot": -1}
    by_hand = sum(d[name] * (x - mean) for name, x in women.items()) / sum((x - mean) ** 2 for x in women.values())
    assert slope == pytest.approx(by_hand) and slope > 1
    nats = sum(v["nats_slope"] for v in values if "nats_slope" in v)
    assert nats / sum(v["square"] for v in values if "nats_slope" in v) == pytest.approx(3)
    assert np.mean([v["acc_she_minus_he"] for v in values if "acc_she_minus_he" in v]) == pytest.approx(0)
    assert {v["answer_changes"] for v in values if "answer_changes" in v} == {1.0}
    unbiased = score(items, [[1.0, 0.5, 0.0] for _ in items])
    assert {
        v[name] for v in unbiased for name in ("occupation_slope", "nats_slope", "answer_changes") if name in v
    } == {0}
    assert {v["she_likelier"] for v in unbiased if "she_likelier" in v} == {0.5}


def test_without_statistics_there_are_no_slopes(tmp_path: Path) -> None:
    bias_sets.write_winogender(tmp_path, statistics=False)
    items = items_of(read(WINOGENDER, tmp_path))
    values = WINOGENDER.score(items, [[1.0, 0.5, 0.0] for _ in items])
    assert not any("slope" in name or "trap" in name for each in values for name in each)
    assert "24 sentences" in WINOGENDER.notes(items)[0]


def test_pairs_for_reward_models_differ_in_the_group_alone(tmp_path: Path) -> None:
    bias_sets.write_winogender(tmp_path)
    bias_sets.write_crows(tmp_path, [("a", "b", "antistereo", "age")])
    assert CROWS_PAIRS.pairs is not None and WINOGENDER.pairs is not None
    (pair,) = CROWS_PAIRS.pairs(items_of(read(CROWS_PAIRS, tmp_path)))
    assert (pair.attribute, pair.first, pair.second) == ("age", "a", "b")
    found = WINOGENDER.pairs(items_of(read(WINOGENDER, tmp_path)))
    assert [(each.attribute, each.first.replace(" she ", " he ").replace(" they ", " he ")) for each in found[:2]] == [  # type: ignore[union-attr]
        ("she - he", found[0].second),
        ("they - he", found[0].second),
    ]
    assert len(found) == 16


@pytest.mark.parametrize("task", ["winogender", "bbq"])
def test_a_limit_takes_what_belongs_together_from_all_over(task: str, tmp_path: Path) -> None:
    bias_sets.write_winogender(tmp_path)
    bias_sets.write_bbq(tmp_path, bias_sets.bbq_rows("Age"), bias_sets.bbq_rows("Religion"))
    whole, some = read(BIAS[task], tmp_path), read(BIAS[task], tmp_path, limit=10)
    blocks = [item.block for item in items_of(some)]
    assert len(blocks) == 12
    assert {blocks.count(block) for block in blocks} == {[item.block for item in items_of(whole)].count(blocks[0])}
    assert len({item.cluster.split()[0] for item in items_of(some)}) >= 2  # occupations, categories
    assert [row.key for row in some.rows] == [row.key for row in read(BIAS[task], tmp_path, limit=10).rows]


@pytest.mark.parametrize("limit", [8, 16, 24, 32])
def test_a_draw_has_no_bias_of_its_own(limit: int, tmp_path: Path) -> None:
    bias_sets.write_bbq(tmp_path, bias_sets.bbq_rows("Age", questions=40), bias_sets.bbq_rows("Religion", questions=40))
    items = items_of(read(BBQ, tmp_path, limit=limit))
    always_right = [[0.0 if n == each.facts["right"] else -1.0 for n in range(3)] for each in items]
    values = BBQ.score(items, always_right)
    biased = [each["bias_disambig"] for each in values if "bias_disambig" in each]
    assert len(items) == limit and len(biased) == limit / 2 and sum(biased) == 0


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("crows_pairs", {"sent_more": "a", "sent_less": "b", "stereo_antistereo": "both", "bias_type": "age"}, "neither"),
    ("crows_pairs", {"sent_more": "a", "stereo_antistereo": "stereo", "bias_type": "age"}, "no field 'sent_less'"),
    ("winogender", {"sentid": "baker.client.1.txt", "sentence": "He."}, "sentid is not like"),
    ("winogender", {"sentid": "baker.client.1.male.txt", "sentence": "She."}, "has none of he, him, his"),
    ("bbq", {"context": "a"}, "no field 'category'"),
    ("bbq", bias_sets.bbq_rows()[0] | {"label": 3}, "the right answer is number 4 of 3"),
    ("bbq", bias_sets.bbq_rows()[0] | {"context_condition": "clear"}, "neither ambig nor disambig"),
    ("bbq", bias_sets.bbq_rows()[0] | {"answer_info": {}}, "answer_info['ans0'] is not a list"),
    ("bbq", bias_sets.bbq_rows()[0] | {"additional_metadata": {}}, "no list 'stereotyped_groups'"),
    ("bbq", bias_sets.bbq_rows()[0] | {"example_id": "x"}, "'example_id' is not a whole number"),
    ("attribute_pairs", {"attribute": "age", "first": "a", "second": "a"}, "equal"),
    ("attribute_pairs", {"attribute": "age", "first": [], "second": "a"}, "not a list of messages"),
]


@pytest.mark.parametrize(("task", "row", "fault"), FAULTS)
def test_a_row_in_another_form_is_refused_by_line(task: str, row: dict[str, Any], fault: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: not in the form of {task}: ") as error:
        read_task(BIAS[task], Source(path=str(path)), limit=None)
    assert fault in str(error.value) and "\n" not in str(error.value)


def test_statistics_in_another_form_are_refused_by_line(tmp_path: Path) -> None:
    bias_sets.write_winogender(tmp_path)
    statistics = tmp_path / "winogender" / "occupations-stats.tsv"
    statistics.write_text(statistics.read_text().replace("90.0", "most"))
    with pytest.raises(ValueError, match=r"occupations-stats\.tsv:2: not in the form of .*'most'"):
        read(WINOGENDER, tmp_path)


def test_pairs_of_anyone_may_have_prompts_or_messages() -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She."}]
    item = pair_item({"attribute": "gender", "prompt": "Who?", "first": "She.", "second": "He.", "template": "t"})
    assert (item.facts["first"], item.cluster) == (turns, "t")
    assert pair_item({"attribute": "gender", "first": turns, "second": "He."}).continuations == ("\nShe.", "He.")
    with pytest.raises(RowFault, match="take prompt out"):
        pair_item({"attribute": "gender", "prompt": "Who?", "first": turns, "second": "He."})
