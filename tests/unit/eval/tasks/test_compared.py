"""Two files of results: what is compared, what is refused, and that a file comes back as it was written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmtrain.cli.main import main
from llmtrain.eval.tasks.compared import compare, left_out, sentences
from llmtrain.eval.tasks.results import (
    ACC,
    BITS_PER_BYTE,
    CHANCE,
    CHOICE_ACC,
    NATS_PER_TOKEN,
    Evaluation,
    ItemResult,
    Measure,
    TaskResult,
    estimate,
    read_evaluation,
    save_evaluation,
)
from llmtrain.eval.tasks.seeds import seed_sentences, seeds_together


def shares(values: list[int], *, task: str = "piqa", first: int = 0, tokenizer: str = "t", **facts: Any) -> Evaluation:
    items = [ItemResult(task, f"i{n + first}", f"f:{n}", {"acc": float(value)}) for n, value in enumerate(values)]
    return Evaluation(
        {"path": "m", "tokenizer": tokenizer}, {task: TaskResult(task, [ACC], items, {"shots": 0, **facts})}
    )


def texts(bits: list[float], *, tokenizer: str) -> Evaluation:
    items = [
        ItemResult("text", f"i{n}", f"f:{n}", {"bits_per_byte": b, "nats_per_token": b, "bytes": 10.0, "tokens": 5.0})
        for n, b in enumerate(bits)
    ]
    result = TaskResult("text", [BITS_PER_BYTE, NATS_PER_TOKEN], items, {})
    return Evaluation({"path": "m", "tokenizer": tokenizer}, {"text": result})


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    evaluation = texts([20.0, 30.0], tokenizer="t")
    save_evaluation(tmp_path / "e.jsonl", evaluation)
    assert read_evaluation(tmp_path / "e.jsonl") == evaluation


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, "{}", ":1: not a file of `llmtrain eval`"),
        (0, "no json", ":1: not a file of"),
        (0, '{"kind": "llmtrain evaluation", "format": 1}', ":1: not the first line of an evaluation"),
        (1, "{}", ":2: not an item of an evaluation"),
        (2, '{"task": "other", "item": "i", "where": "", "values": {}}', ":3: not an item"),
        (2, '{"task": "text", "item": "i", "where": "", "values": {"bits_per_byte": null}}', ":3: not an item"),
    ],
)
def test_a_broken_file_is_named_by_its_line(line: int, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    save_evaluation(path, texts([20.0, 30.0], tokenizer="t"))
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=message):
        read_evaluation(path)


def test_better_worse_and_not_distinguishable() -> None:
    low, high = shares([0] * 20), shares([1] * 15 + [0] * 5)
    assert compare(low, high, common=False)[0].verdict == "better"
    assert compare(high, low, common=False)[0].verdict == "worse"
    alike = compare(low, shares([1] * 2 + [0] * 18), common=False)[0]
    assert alike.verdict == "not distinguishable"
    assert alike.paired.num_needed is not None and alike.paired.num_needed > 20
    # A lower loss is the better one.
    assert (
        compare(texts([20.0] * 9, tokenizer="t"), texts([19.0] * 9, tokenizer="t"), common=False)[0].verdict == "better"
    )


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (shares([1], task="piqa"), shares([1], task="copa"), "no task is in both: piqa and copa"),
        (shares([1, 0]), shares([1, 0], first=2), "no item in common"),
        (shares([1, 0, 1]), shares([1, 0], first=1), "1 are in the first only, 0 in the second only"),
        (shares([1]), shares([1], chat=True), "chat is None in the first, True in the second"),
    ],
)
def test_results_that_do_not_compare_say_what_differs(first: Evaluation, second: Evaluation, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(first, second, common=False)


def test_common_items_are_compared_if_asked() -> None:
    found = compare(shares([1, 0, 1]), shares([1, 0], first=1), common=True)
    assert found[0].paired.num_items == 2


def test_another_tokenizer_leaves_out_what_is_per_token() -> None:
    first, second = texts([20.0, 21.0], tokenizer="a"), texts([20.0, 25.0], tokenizer="b")
    assert [each.measure.name for each in compare(first, second, common=False)] == ["bits_per_byte"]
    assert left_out(first, second) == ["their tokenizers differ, so measures per token are left out"]
    per_token = [
        Evaluation(e.model, {"text": TaskResult("text", [NATS_PER_TOKEN], e.tasks["text"].items, {})})
        for e in (first, second)
    ]
    with pytest.raises(ValueError, match="their tokenizers differ, and all measures are per token"):
        compare(*per_token, common=False)


def test_seeds_of_one_side_are_one() -> None:
    together = seeds_together([shares([1, 0]), shares([1, 1])])
    assert [item.values["acc"] for item in together.tasks["piqa"].items] == [1.0, 0.5]
    assert together.tasks["piqa"].measures[0].unit == "mean"
    with pytest.raises(ValueError, match="not measured on the same items"):
        seeds_together([shares([1, 0]), shares([1, 1], first=1)])


def test_estimates_have_the_interval_of_their_kind() -> None:
    share = estimate(shares([1, 1, 1, 0]).tasks["piqa"].items, ACC)
    assert share.value == 0.75 and share.low == pytest.approx(0.3006, abs=1e-4)  # Wilson
    ratio = estimate(texts([20.0, 30.0], tokenizer="t").tasks["text"].items, BITS_PER_BYTE)
    assert ratio.value == 2.5 and ratio.low < 2.5 < ratio.high
    one = estimate([ItemResult("t", "i", "", {"x": 2.0})], Measure("x", True, "mean"))
    assert one.value == 2.0 and math.isnan(one.low)


def test_the_command_prints_a_verdict_and_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, evaluation in (("a", shares([0] * 20)), ("b", shares([1] * 15 + [0] * 5)), ("c", shares([1] * 3))):
        save_evaluation(tmp_path / f"{name}.jsonl", evaluation)
    a, b, c = (str(tmp_path / f"{name}.jsonl") for name in "abc")
    main(["compare", a, b])
    assert "b.jsonl is better by 0.7500" in capsys.readouterr().out
    main(["compare", f"{a},{a}", f"{b},{b}"])
    assert "better" in capsys.readouterr().out
    refused = [
        ([a, c], "17 are in the first only"),
        ([a, f"{b},{b}"], "give equally many"),
        ([a, "none.jsonl"], "no such file"),
        ([a, b, "--tasks", "piqa"], "--tasks: files of results are compared on all tasks that both have"),
        ([a, str(tmp_path / "rows.csv")], "is neither a file of `llmtrain eval` (*.jsonl) nor a model"),
        (
            [a, str(tmp_path / "less.jsonl")],
            "less.jsonl:2: not an item of an evaluation (acc is missing",
        ),
    ]
    (tmp_path / "rows.csv").write_text("prompt,answer\nWhy?,Because\n")
    head, first = (tmp_path / "a.jsonl").read_text().splitlines()[:2]
    (tmp_path / "less.jsonl").write_text(f"{head}\n{json.dumps(json.loads(first) | {'values': {}})}\n")
    for argv, message in [*refused, ([a, str(tmp_path)], "it has no evaluation yet")]:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *argv])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and message in error and error.count("\n") == 1


def test_files_without_scipy_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain.statistics.paired.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["compare", "a.jsonl", "b.jsonl"])
    assert capsys.readouterr().err == "error: comparing needs SciPy: pip install 'llmtrain[measure]'\n"


def test_the_head_of_a_file_has_the_results_for_a_person(tmp_path: Path) -> None:
    save_evaluation(tmp_path / "e.jsonl", shares([1, 1, 1, 0]))
    head = json.loads((tmp_path / "e.jsonl").read_text().splitlines()[0])
    assert head["tasks"]["piqa"]["results"]["acc"][0] == 0.75


STEREOTYPE = Measure("stereotype", None, "share", ideal=0.5)
BALANCE = Measure("bias", None, "balance", "answered", ideal=0.0, is_partial=True)


def leaning(share: float, *, count: int = 200, cluster: int = 0) -> Evaluation:
    """Of `count` items a share is stereotyping; every other one has a bias score."""
    items = [
        ItemResult(
            "crows_pairs",
            f"i{n}",
            f"f:{n}",
            {"stereotype": float(n < share * count), "answered": 1.0} | ({"bias": 1.0} if n % 2 else {}),
            cluster=str(n // cluster) if cluster else "",
        )
        for n in range(count)
    ]
    result = TaskResult("crows_pairs", [STEREOTYPE, BALANCE], items, {"shots": 0})
    return Evaluation({"path": "m", "tokenizer": "t"}, {"crows_pairs": result})


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [(0.8, 0.5, "better"), (0.5, 0.2, "worse"), (0.8, 0.2, "not distinguishable"), (0.1, 0.45, "better")],
)
def test_better_is_nearer_to_an_ideal(first: float, second: float, verdict: str) -> None:
    found = compare(leaning(first), leaning(second), common=False)[0]
    assert (found.measure.name, found.verdict) == ("stereotype", verdict)
    assert found.paired.difference == pytest.approx(second - first)


def test_a_measure_of_a_part_is_of_the_items_that_have_it_alone(tmp_path: Path) -> None:
    evaluation = leaning(0.5)
    save_evaluation(tmp_path / "e.jsonl", evaluation)
    assert read_evaluation(tmp_path / "e.jsonl") == evaluation
    found = compare(evaluation, leaning(0.5), common=False)[1]
    assert (found.measure.name, found.paired.num_items, found.first.value) == ("bias", 100, 1.0)
    assert -1 <= found.first.low < found.first.high == 1.0  # as a share has one, though all values are equal


def test_items_of_a_template_widen_the_interval() -> None:
    alone, together = (estimate(leaning(0.5, cluster=size).tasks["crows_pairs"].items, STEREOTYPE) for size in (0, 20))
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_items_needed_are_those_of_the_corrected_level() -> None:
    one, other = [1, 0, 0, 1, 0, 0, 1, 0] * 5, [0, 0, 1, 1, 0, 1, 1, 0] * 5
    alone = compare(shares(one), shares(other), common=False)[0].paired
    names = ("piqa", "copa", "arc_easy", "boolq")
    both = [
        Evaluation({"path": "m", "tokenizer": "t"}, {name: shares(values, task=name).tasks[name] for name in names})
        for values in (one, other)
    ]
    among_four = compare(*both, common=False)[0].paired
    assert alone.num_needed is not None and among_four.num_needed is not None
    ratio = ((2.4977 + 0.8416) / (1.96 + 0.8416)) ** 2  # of the quantiles at 5 % / 4 and at 5 %
    assert among_four.num_needed / alone.num_needed == pytest.approx(ratio, rel=0.1)
    assert among_four.smallest / alone.smallest == pytest.approx(ratio**0.5, rel=1e-3)


def test_equal_numbers_of_right_answers_are_not_called_equal_models() -> None:
    (line,) = sentences(compare(shares([1, 0] * 10), shares([0, 1] * 10), common=False), "b")
    assert "which find a difference of" in line and line.endswith("the two come out equal")
    (line,) = sentences(compare(shares([1, 0] * 10), shares([1, 0] * 10), common=False), "b")
    assert line.endswith("no difference on any of 20 items")


def test_of_seeds_it_is_said_what_other_seeds_would_show() -> None:
    def run(right: int) -> Evaluation:
        return shares([1] * right + [0] * (1000 - right))

    near, far = [run(500), run(560), run(530)], [run(540), run(590), run(610)]
    found = compare(seeds_together(near), seeds_together(far), common=False)
    assert found[0].verdict == "better"  # of these very runs
    (line,) = seed_sentences(found, near, far, name="B")
    assert "by seed: 0.5000, 0.5600, 0.5300 against 0.5400, 0.5900, 0.6100" in line
    assert "of other seeds B is not distinguishable" in line
    apart = [run(700), run(710), run(690)]
    (line,) = seed_sentences(compare(seeds_together(near), seeds_together(apart), common=False), near, apart, name="B")
    assert "of other seeds B is higher" in line
    assert not seed_sentences(found, near[:1], far[:1], name="B")


def test_a_file_of_before_chance_was_measured_compares_with_one_of_today() -> None:
    old = shares([1, 0, 1])
    items = [replace(item, values={**item.values, CHANCE: 0.25}) for item in old.tasks["piqa"].items]
    new = replace(old, tasks={"piqa": replace(old.tasks["piqa"], measures=[CHOICE_ACC], items=items)})
    for first, second in ((old, new), (new, old)):
        (found,) = compare(first, second, common=False)
        assert found.paired.difference == 0
        (item, *_) = seeds_together([first, second]).tasks["piqa"].items
        assert item.values == {"acc": 1.0}
    assert estimate(items, CHOICE_ACC).chance == 0.25


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([0, 0, 0], [1, 1, 1], "each of 3 items differs by 1.0000, but they are too few"),
        ([0, 1, 1], [0, 1, 1], "no difference on any of 3 items"),
        ([0], [1], "one item, or items of one group alone, cannot show a difference"),
        ([0, 1], [1, 0], "the two come out equal"),
    ],
)
def test_what_few_items_cannot_show_is_said_as_it_is(first: list[int], second: list[int], said: str) -> None:
    (line,) = sentences(compare(shares(first), shares(second), common=False), "B")
    assert line.startswith("piqa acc: not distinguishable") and said in line
