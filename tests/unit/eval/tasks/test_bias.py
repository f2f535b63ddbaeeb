"""Bias of whole models is that of plain forwards; a planted one is found, and of a model without any none."""

from __future__ import annotations

from pathlib import Path

import bias_sets
import numpy as np
import pytest
import tiny_chat
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtrain.eval.bias.reading import intervals_of, readings, rows_of
from llmtrain.eval.tasks.measure import Asking, measure
from llmtrain.eval.tasks.opened import opened_subject
from llmtrain.eval.tasks.results import Estimate, ItemResult, TaskResult, estimate
from llmtrain.models.stops import Stops
from llmtrain.tasks.crows_pairs import STEREOTYPE
from llmtrain.tasks.load import BIAS
from llmtrain.tasks.rows import read_task, task_source


def measured(model: Path, task: str, data: Path) -> TaskResult:
    rows = read_task(BIAS[task], task_source(BIAS[task], str(data)), limit=None)
    subject, _ = opened_subject(str(model), lambda line: None)
    found = measure(subject, rows, Asking(lambda prompts, sampling: None, Stops()))
    assert found is not None
    return found


def estimates(result: TaskResult) -> dict[str, Estimate]:
    return {measure.name: estimate(result.items, measure) for measure in result.measures}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    bias_sets.write_crows(folder, bias_sets.crows(40))
    bias_sets.write_winogender(folder)
    bias_sets.write_bbq(folder, bias_sets.bbq_rows("Age"), bias_sets.bbq_rows("SES", polarities=("neg",)))
    return folder


def test_scores_are_those_of_plain_forwards(sets: Path, tmp_path: Path) -> None:
    folder = tiny_chat.write_model(tmp_path / "model", spread=0.3)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def logprob(context: str, text: str) -> float:
        before = tokenizer.encode(context, add_special_tokens=False) if context else [tokenizer.bos_token_id]
        ids = torch.tensor([before + tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            each = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        return float(each[len(before) - 1 :].double().sum())

    crows = measured(folder, "crows_pairs", sets)
    pairs = [(logprob("", more), logprob("", less)) for more, less, *_ in bias_sets.crows(40)]
    assert [item.details["logprobs"] for item in crows.items] == [pytest.approx(pair, abs=1e-4) for pair in pairs]
    assert estimates(crows)["stereotype"].value == np.mean([more > less for more, less in pairs])

    bbq = measured(folder, "bbq", sets)
    rows = [*bias_sets.bbq_rows("Age"), *bias_sets.bbq_rows("SES", polarities=("neg",))]
    for item, row in zip(bbq.items, rows, strict=True):
        context = f"{row['context']}\n\nQ: {row['question']}\nA:"
        alone = [logprob(context, f" {row[name]}") for name in ("ans0", "ans1")]
        assert item.details["logprobs"][:2] == pytest.approx(alone, abs=1e-4)
        assert len(item.details["logprobs"]) == 12


def test_a_planted_bias_is_found(sets: Path, tmp_path: Path) -> None:
    model = bias_sets.write_leaning_model(tmp_path / "model", likelier=bias_sets.PREFERRED)
    crows = estimates(measured(model, "crows_pairs", sets))
    assert crows["stereotype"].value == crows["stereotype/age"].value == 1.0
    assert crows["stereotype"].low > 0.9
    bbq = estimates(measured(model, "bbq", sets))
    assert bbq["bias_ambig/SES"].value == 1.0 and bbq["bias_ambig/SES"].low > 0.2  # it always names the target
    assert bbq["bias_ambig/Age"].value == pytest.approx(0)  # also where that is not the biased answer
    assert bbq["acc_ambig"].value == 0.0


def test_a_model_without_preference_is_not_said_to_have_one(sets: Path, tmp_path: Path) -> None:
    model = bias_sets.write_leaning_model(tmp_path / "model")
    found = {
        (task, name): each
        for task in BIAS
        if task != "attribute_pairs"
        for name, each in estimates(measured(model, task, sets)).items()
    }
    crows = found["crows_pairs", "stereotype"]
    assert crows.value == 0.5 and crows.low <= 0.5 <= crows.high
    assert found["crows_pairs", "likelihood_diff"].value == 0.0
    for task in ("winogender", "bbq"):
        for wanted in measured(model, task, sets).measures:
            each = found[task, wanted.name]
            if wanted.ideal == 0 and wanted.name != "nats_slope" and not wanted.name.endswith("SES"):
                assert each.low <= 0 <= each.high, (task, wanted.name, each)


@pytest.mark.parametrize(("share", "covers"), [(0.5, True), (0.7, False)])
def test_of_unbiased_models_19_in_20_intervals_have_the_ideal_and_of_biased_ones_few(
    share: float, covers: bool
) -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        drawn = rng.random(200) < share
        items = [ItemResult("crows_pairs", str(n), "", {"stereotype": float(each)}) for n, each in enumerate(drawn)]
        result = TaskResult("crows_pairs", [STEREOTYPE], items, {})
        hits += next(readings(result)).verdict == "not distinguishable from it"
    assert hits >= 0.93 * 400 if covers else hits <= 0.02 * 400


def test_many_intervals_say_that_one_may_leave_its_ideal_out_by_chance(sets: Path, tmp_path: Path) -> None:
    model = bias_sets.write_leaning_model(tmp_path / "model")
    result = measured(model, "bbq", sets)
    read = list(readings(result))
    assert "one in twenty leaves its ideal out by chance, and here are 6," in intervals_of(result, read)
    assert intervals_of(result, read[:2]) == "95 %, over templates (column units)"


def test_the_units_of_the_intervals_are_counted_where_they_are_not_the_items(sets: Path, tmp_path: Path) -> None:
    model = bias_sets.write_leaning_model(tmp_path / "model")
    pairs = measured(model, "crows_pairs", sets)
    head, _ = rows_of(list(readings(pairs)))
    assert head[-1] == "items" and "column units" not in intervals_of(pairs, list(readings(pairs)))
    result = measured(model, "winogender", sets)
    head, rows = rows_of(list(readings(result)))
    assert head[-2:] == ("items", "units")
    occupations = {item.cluster for item in result.items}
    assert rows[0][-2:] == (str(len(result.items)), str(len(occupations))) and len(occupations) < len(result.items)
