"""Packed likelihoods with shared contexts are those of `transformers`, one continuation at a time."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import FAMILIES, family_tokenizer
from tiny_chat import write_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmtrain.eval.tasks import likelihood
from llmtrain.eval.tasks.likelihood import Request, chat_request_of, likelihoods, request_of
from llmtrain.eval.tasks.measure import Asking, Watch, measure
from llmtrain.eval.tasks.opened import generated, opened_subject
from llmtrain.eval.tasks.results import estimate
from llmtrain.eval.tasks.subject import Subject, subject_of
from llmtrain.models.stops import Stops
from llmtrain.rollout.engine import Sampling
from llmtrain.statistics.measures import Measure
from llmtrain.tasks.load import TASKS
from llmtrain.tasks.rows import TaskRow, TaskRows
from llmtrain.tasks.task import AnswerItem, AnswerTask, ChoiceItem, ContinuationItem

NOT_ASKED = Asking(lambda prompts, sampling: None, Stops())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), spread=0.3)


@pytest.fixture(scope="module")
def subject(folder: Path) -> Subject:
    return opened_subject(str(folder), lambda line: None)[0]


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def alone(plain: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The logprob of a continuation by one plain forward, and whether it is greedy."""
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor([[*context, *continuation]])).logits[0].log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    found = [float(logits[place, token]) for place, token in zip(places, continuation, strict=True)]
    return sum(found), all(int(logits[p].argmax()) == t for p, t in zip(places, continuation, strict=True))


def rows(task: str, items: list[Any], fields: dict[str, Any] | None = None) -> TaskRows:
    made = [TaskRow[object](item, str(i), f"x:{i}", fields or {}) for i, item in enumerate(items)]
    return TaskRows(TASKS[task], "x", made, [])


GROUPS = [
    [([5, 6, 7], [8]), ([5, 6, 7], [9, 10, 11])],  # a shared context
    [([5], [6, 7]), ([5], [6, 8])],  # nothing before it that predicts nothing
    [([4, 5, 6, 7], [3]), ([4, 5, 9, 7], [3])],  # contexts that differ
    [([12, 13], [14]), ([12, 13], [15]), ([12, 13], [16, 17])],  # three
    [([20], [21])],  # one
]


@pytest.mark.parametrize("room", [4, 16, 2048])
@pytest.mark.parametrize("shares", [True, False])
def test_likelihoods_do_not_depend_on_the_pack(
    room: int, shares: bool, subject: Subject, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "CPU_PACK_TOKENS", room)
    monkeypatch.setattr(likelihood, "HEAD_CHUNK", 3)
    asked = [[Request(*pair) for pair in group] for group in GROUPS]
    found = likelihoods(replace(subject, shares_prefixes=shares), asked)
    assert found is not None
    for group, results in zip(GROUPS, found, strict=True):
        for (context, continuation), result in zip(group, results, strict=True):
            logprob, greedy = alone(plain, context, continuation)
            assert result.logprob == pytest.approx(logprob, abs=1e-4)
            assert (result.is_greedy, result.num_tokens, result.num_cut) == (greedy, len(continuation), 0)


SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
KINDS: dict[str, dict[str, Any]] = {
    "gemma2": {**SHAPE, "num_key_value_heads": 1, "final_logit_softcapping": 5.0, "sliding_window": 4},
    "mistral": {**SHAPE, "num_key_value_heads": 1, "sliding_window": 6},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_other_architectures_are_measured_as_they_compute_alone(kind: str, subject: Subject) -> None:
    torch.manual_seed(0)
    shape = AutoConfig.for_model(kind, vocab_size=len(subject.tokenizer), pad_token_id=2, **KINDS[kind])
    plain = AutoModelForCausalLM.from_config(shape).eval()
    measured = subject_of(copy.deepcopy(plain), subject.tokenizer, lambda line: None)
    assert not measured.whole_logits
    groups = [
        [([5, 6, 7, 8, 9, 10], [8]), ([5, 6, 7, 8, 9, 10], [9, 10, 11])],
        [([12], [14]), ([12], [15, 3, 4, 5, 6])],
    ]
    found = likelihoods(measured, [[Request(*pair) for pair in group] for group in groups])
    assert found is not None
    for group, results in zip(groups, found, strict=True):
        expected = [alone(plain, context, continuation)[0] for context, continuation in group]
        assert [each.logprob for each in results] == pytest.approx(expected, abs=1e-4)


def test_the_tiny_model_tells_choices_apart(subject: Subject) -> None:
    found = likelihoods(subject, [[Request([5, 6], [7]), Request([5, 6], [8])]])
    assert found is not None and abs(found[0][0].logprob - found[0][1].logprob) > 0.1


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(subject: Subject) -> None:
    assert request_of(subject, "ab ", "cd") == request_of(subject, "ab", " cd")
    assert request_of(subject, "", "cd").context == [subject.first_id]
    assert request_of(subject, "  ", "cd") == request_of(subject, "", "  cd")


def test_a_context_that_is_too_long_loses_its_beginning_and_that_is_said(subject: Subject, plain: Any) -> None:
    short = replace(subject, max_tokens=6)
    found = likelihoods(short, [[Request([4, 5, 6, 7, 8, 9, 10], [11, 12])]])
    assert found is not None
    assert found[0][0].logprob == pytest.approx(alone(plain, [6, 7, 8, 9, 10], [11, 12])[0], abs=1e-4)
    assert found[0][0].num_cut == 2
    with pytest.raises(ValueError, match="7 tokens exceeds the model's 6 positions"):
        likelihoods(short, [[Request([4], [5] * 7)]])
    long = rows("lambada", [ContinuationItem("abcdefghijkl", " m")])
    result = measure(short, long, NOT_ASKED)
    assert result is not None and "1 contexts lost their beginning" in result.notes[0]


def test_choices_are_judged_by_logprob_and_by_logprob_per_character(subject: Subject, plain: Any) -> None:
    items = [ChoiceItem((f"q{n}",) * 3, (" a", " bcd", " efghij"), n % 3, (1, 3, 6)) for n in range(12)]
    result = measure(subject, rows("piqa", items), NOT_ASKED)
    assert result is not None
    tokenizer: Any = subject.tokenizer
    right = {"acc": [], "acc_norm": []}
    for item in items:
        sums = [
            alone(plain, tokenizer.encode(context), tokenizer.encode(context + text)[len(tokenizer.encode(context)) :])[
                0
            ]
            for context, text in zip(item.contexts, item.continuations, strict=True)
        ]
        right["acc"].append(float(sums.index(max(sums)) == item.gold))
        rates = [value / length for value, length in zip(sums, item.lengths, strict=True)]
        right["acc_norm"].append(float(rates.index(max(rates)) == item.gold))
    assert {name: [item.values[name] for item in result.items] for name in right} == right
    assert right["acc"] != right["acc_norm"], "the items do not show the difference"


def test_what_guessing_gets_is_beside_an_accuracy_and_whether_the_interval_leaves_it_out(subject: Subject) -> None:
    choices = (" a", " b", " c", " d")
    items = [ChoiceItem((f"q{n}",) * k, choices[:k], 0, (1,) * k) for n, k in enumerate((2, 4, 4, 2))]
    result = measure(subject, rows("piqa", items), NOT_ASKED)
    assert result is not None
    acc, acc_norm = (estimate(result.items, each) for each in result.measures)
    assert acc.chance == acc_norm.chance == pytest.approx((1 / 2 + 1 / 4 + 1 / 4 + 1 / 2) / 4)
    right = [replace(item, values={**item.values, "acc": 1.0}) for item in result.items]
    assert estimate(right, result.measures[0]).against_chance == "above chance"
    wrong = [replace(item, values={**item.values, "acc": 0.0}) for item in result.items * 4]
    assert estimate(wrong, result.measures[0]).against_chance == "below chance"
    two = [replace(item, values={**item.values, "acc": n % 2}) for n, item in enumerate(result.items)]
    assert estimate(two, result.measures[0]).against_chance == "not distinguishable from chance"
    generated_measure = Measure("acc", True, "share")
    assert estimate(right, generated_measure).against_chance == ""


def test_choices_that_are_scored_by_one_continuation_have_no_length_to_divide_by(subject: Subject) -> None:
    items = [ChoiceItem((f"x{n} a", f"x{n} bcdef"), (" g",) * 2, 0, (1, 5)) for n in range(3)]
    result = measure(subject, rows("winogrande", items), NOT_ASKED)
    assert result is not None
    assert [each.name for each in result.measures] == ["acc"]
    assert all("acc_norm" not in item.values for item in result.items)


def test_choices_answer_through_the_chat_template_where_they_answer_a_question(subject: Subject, plain: Any) -> None:
    tokenizer: Any = subject.tokenizer
    asked = replace(NOT_ASKED, chat=True)
    items = [ChoiceItem(("what is it",) * 2, (" ab", " cde"), 0, (2, 3))]
    result = measure(subject, rows("piqa", items), asked)
    assert result is not None and result.facts["chat"] is True and not result.notes
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is it"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    expected = [alone(plain, prompt, tokenizer.encode(text, add_special_tokens=False))[0] for text in ("ab", "cde")]
    assert result.items[0].details["logprobs"] == pytest.approx(expected, abs=1e-4)
    named = [ChoiceItem(("x a", "x b"), (" c",) * 2, 0, (1, 1))]
    for task, given in (("winogrande", named), ("lambada", [ContinuationItem("abc", " d")]), ("text", ["abcd"])):
        result = measure(subject, rows(task, given), asked)
        without = measure(subject, rows(task, given), NOT_ASKED)
        assert result is not None and without is not None
        assert "asked as plain text" in " ".join(result.notes) and "chat" not in result.facts
        assert result.items == without.items


@pytest.mark.parametrize(("family", "before"), [("Qwen3", "<think>\n\n</think>\n\n"), ("DeepSeek-R1", "<|Assistant|>")])
def test_what_a_template_writes_before_an_answer_is_not_scored(subject: Subject, family: str, before: str) -> None:
    tokenizer = family_tokenizer(FAMILIES[family])
    request = chat_request_of(replace(subject, tokenizer=tokenizer), "Hi there", " Hello you")
    assert tokenizer.decode(request.context).endswith(before)
    assert tokenizer.decode(request.continuation) == "Hello you"


def test_the_loss_of_a_text_is_that_of_its_windows(subject: Subject, plain: Any) -> None:
    text = "The quick brown fox jumps over the lazy dog."
    ids = [subject.first_id, *subject.tokenizer.encode(text, add_special_tokens=False)]
    whole = measure(subject, rows("text", [text]), NOT_ASKED)
    assert whole is not None
    nats = -alone(plain, ids[:1], ids[1:])[0]
    values = whole.items[0].values
    assert values["nats_per_token"] == pytest.approx(nats, abs=1e-3)
    assert values["bits_per_byte"] == pytest.approx(nats / math.log(2), abs=1e-3)
    assert (values["bytes"], values["tokens"]) == (len(text), len(ids) - 1)
    size = len(ids) // 2  # two windows, and a last one that reaches back
    short = measure(replace(subject, max_tokens=size), rows("text", [text]), NOT_ASKED)
    assert short is not None
    parts = [(ids[:1], ids[1 : 1 + size]), (ids[size : size + 1], ids[1 + size : 1 + 2 * size])]
    if rest := ids[1 + 2 * size :]:
        parts.append((ids[-size - 1 : -len(rest)], rest))
    assert short.items[0].values["nats_per_token"] == pytest.approx(
        -sum(alone(plain, before, after)[0] for before, after in parts), abs=1e-3
    )


def test_answers_are_cut_at_a_stop_text_and_scored(subject: Subject, folder: Path) -> None:
    asking = Asking(generated(subject), Stops(), max_new_tokens=6)
    items = [AnswerItem("ab"), AnswerItem("cd")]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = measure(subject, rows("answers", items, {"answer": "x"}), asking)
    assert found is not None
    response = found.items[0].details["response"]
    stop = next(letter for letter in response[1:] if letter != response[0])
    seen: list[Any] = []

    def score(prompts: list[Any], responses: list[str], fields: list[Any]) -> list[float]:
        seen.append((prompts, responses, fields))
        return [0.25] * len(responses)

    task = AnswerTask("t", "s", lambda fields: AnswerItem(""), {"own": score}, stop=(stop,))
    cut = measure(subject, replace(rows("answers", items, {"answer": "x"}), task=task), asking)
    assert cut is not None and tokenizer is not None
    assert cut.items[0].details["response"] == response.partition(stop)[0]
    assert cut.items[0].values["ends"] == 1.0 and cut.items[0].values["own"] == 0.25
    assert seen[0][0] == ["ab", "cd"] and seen[0][2] == [{"answer": "x"}] * 2
    assert [(each.name, each.unit) for each in cut.measures] == [("own", "mean"), ("ends", "share")]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda prompts, responses, rows: [row["x"] for row in rows], r"fails: KeyError: 'x' \(.*test_measure\.py:"),
        (lambda prompts, responses, rows: ["yes"] * len(rows), "returns 'yes': return a finite number"),
        (lambda prompts, responses, rows: [1.0], "returns 1 numbers for 2 responses"),
        (lambda prompts, responses, rows: None, "fails: TypeError"),
        (lambda prompts, responses, rows: [math.nan] * len(rows), "returns nan"),
    ],
)
def test_a_score_of_a_users_task_that_fails_is_one_line(subject: Subject, score: Any, message: str) -> None:
    task = AnswerTask("t", "s", lambda fields: AnswerItem(""), {"own": score})
    asked = replace(rows("answers", [AnswerItem("ab"), AnswerItem("cd")]), task=task)
    with pytest.raises(ValueError, match=f"t: the score own {message}"):
        measure(subject, asked, Asking(generated(subject), Stops(), max_new_tokens=2))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_an_answer_that_ends_at_a_stop_text_is_the_one_that_goes_on_and_is_cut(subject: Subject, length: int) -> None:
    items, plain = [AnswerItem(text) for text in ("ab", "cd", "efg", "h")], generated(subject)
    (long, *_) = plain([subject.encoded("ab")], Sampling(40, temperature=0)) or []
    stop = subject.decoded(long.response_ids)[10 : 10 + length]

    def going_on(prompts: Any, sampling: Sampling) -> Any:
        return plain(prompts, replace(sampling, stop_texts=None))

    score = {"letters": lambda prompts, responses, fields: [float(len(text)) for text in responses]}
    task = AnswerTask("t", "s", lambda fields: AnswerItem(""), score, stop=(stop, "no such text"))
    task_rows = replace(rows("answers", items), task=task)
    ended, whole = (measure(subject, task_rows, Asking(each, Stops(), 40)) for each in (plain, going_on))
    assert ended is not None and whole is not None
    for one, other in zip(ended.items, whole.items, strict=True):
        assert one.details == other.details
        assert {**one.values, "tokens": 0} == {**other.values, "tokens": 0}
    first, its_whole = ended.items[0], whole.items[0]
    assert first.values["tokens"] < its_whole.values["tokens"] == 40
    count = int(first.values["tokens"])
    assert stop in subject.decoded(long.response_ids[:count]) and stop not in subject.decoded(
        long.response_ids[: count - 1]
    )


def test_a_prompt_goes_through_the_chat_template_if_asked(subject: Subject) -> None:
    prompts: list[Any] = []
    asking = Asking(lambda given, sampling: prompts.extend(given), Stops(), max_new_tokens=4, chat=True)
    assert measure(subject, rows("answers", [AnswerItem("ab")], {"answer": "x"}), asking) is None
    assert subject.tokenizer.decode(prompts[0]).endswith("ab<|im_end|>\n<|im_start|>assistant\n")


def test_it_stops_when_asked(subject: Subject) -> None:
    stopped = measure(subject, rows("text", ["abc"]), NOT_ASKED, Watch(should_stop=lambda: True))
    assert stopped is None
