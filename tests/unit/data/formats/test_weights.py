"""Weights of rows and messages, from the file to the loss, which is computed by hand here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_rows import conversation, documents, fault, trained_text
from instruction_rows import fault as row_fault
from instruction_rows import read, read_source, write
from tiny_chat import write_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.batch import IGNORE_INDEX
from llmtrain.config.data import ChatDataConfig, Source
from llmtrain.data.chat.encode import BadExample, ChatEncoder
from llmtrain.data.formats.instructions import PlainText
from llmtrain.data.formats.messages import Conversation
from llmtrain.data.formats.preferences import iter_preferences
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.loader.batches import collate
from llmtrain.data.packing.documents import pack_documents
from llmtrain.data.store.build import Stores
from llmtrain.data.store.kinds import build_chat_stores
from llmtrain.eval.next_token import document_sums
from llmtrain.models.heads.form import PLAIN
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.objectives.next_token import NextToken
from llmtrain.protocols import LossOptions


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), spread=0.5)


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(model_path)


def chat(*answers: dict[str, Any], **row: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for i, answer in enumerate(answers):
        messages += [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}", **answer}]
    return {"messages": messages, **row}


def built(
    tokenizer: PreTrainedTokenizerFast, folder: Path, rows: list[Any], said: list[str] | None = None, **data: Any
) -> Stores:
    folder.mkdir(exist_ok=True)
    given = {"train": str(write(folder, *rows)), "eval_fraction": 0.0, "cache_dir": str(folder / "cache")} | data
    encoder = ChatEncoder(tokenizer, plain=False, loss_on="assistant")
    report = [].append if said is None else said.append
    return build_chat_stores(ChatDataConfig.model_validate(given), encoder, report=report)


@pytest.mark.parametrize(
    "flag",
    [
        *({"train": False}, {"training": False}, {"loss": False}, {"loss": 0}, {"weight": 0}),
        *({"trainable": False}, {"trainable": 0}, {"loss_mask": 0}),
    ],
)
def test_a_message_that_is_not_to_be_trained_is_not(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, flag: dict[str, Any]
) -> None:
    (store,) = built(tokenizer, tmp_path, [chat({}, flag, {"train": True})]).train
    assert store.trained is not None and store.weights is None
    ids = np.asarray(store.tokens)[np.asarray(store.trained, dtype=bool)]
    assert tokenizer.decode(ids) == "a0<|im_end|>a2<|im_end|>"
    assert "a1" in tokenizer.decode(store.tokens)


@pytest.mark.parametrize(("key", "value"), [("mask", 0), ("mask", True), ("masked", True), ("masked", False)])
def test_a_mask_that_may_mean_either_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    found = row_fault(tmp_path, chat({}), chat({key: value}))
    assert found.startswith(f"rows.jsonl:2: message 1 of 'messages' has {key}={value!r}: ")
    assert "write train: true or false instead" in found
    row_format, _ = read(write(tmp_path, chat({}), chat({key: "a name"}), chat({key: None})))
    assert len(row_format) == 3


@pytest.mark.parametrize("row", [chat({}, train=False), chat({}, weight=0), chat({"train": False}, {"weight": 0})])
def test_a_row_of_which_nothing_is_to_be_trained_is_left_out_and_counted(tmp_path: Path, row: Any) -> None:
    examples, ledger = read(write(tmp_path, chat({}), row))
    assert len(examples) == 1
    assert {reason: tally.documents for reason, tally in ledger.dropped.items()} == {"weight is 0": 1}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"weight": -1}, "has weight=-1: give true, false or a number from 0 to 10"),
        ({"weight": "high"}, "has weight='high': give"),
        ({"weight": 11}, "has weight=11: give"),
        ({"weight": float("nan")}, "has weight=nan: give"),
        ({"weight": [1]}, "has weight=[1]: give"),
        ({"loss": 0.7}, "has loss=0.7: give true or false"),
        ({"train": "yes"}, "has train='yes': give true or false"),
        ({"trainable": 0.5}, "has trainable=0.5: give true or false"),
        ({"train": True, "weight": 0}, "has weight=0 and train=True: leave one of them out"),
    ],
)
def test_a_weight_that_is_none_is_a_bad_row(tmp_path: Path, answer: dict[str, Any], message: str) -> None:
    found = row_fault(tmp_path, chat({}), chat({}, answer))
    assert found.startswith("rows.jsonl:2: message 3 of 'messages' ") and message in found
    of_row = {key: value for key, value in answer.items() if key in ("weight", "train")}
    if of_row:
        found = row_fault(tmp_path, chat({}), chat({}, **of_row))
        assert found.startswith("rows.jsonl:2: the row ") and message in found


@pytest.mark.parametrize(
    ("given", "weight"),
    [({"train": True, "weight": 0.3}, 0.3), ({"weight": "0.5"}, 0.5), ({"train": "True"}, 1), ({"weight": ""}, 1)],
)
def test_what_a_table_has_as_text_and_a_flag_beside_a_weight_are_read(
    tmp_path: Path, given: dict[str, Any], weight: float
) -> None:
    (example,), _ = read_source(tmp_path, chat({}, **given))
    assert isinstance(example, Conversation) and example.weight == weight


@pytest.mark.parametrize("flag", ["train", "training", "loss"])
def test_a_question_that_is_to_be_trained_is_refused(tmp_path: Path, flag: str) -> None:
    row = chat({})
    row["messages"][0][flag] = True
    assert f"message 0 of 'messages' is not an answer and has {flag}=True" in row_fault(tmp_path, row)
    row["messages"][0][flag] = False
    (example,), _ = read_source(tmp_path, row)
    assert isinstance(example, Conversation) and example.weights == (0, 1)


def test_weights_are_no_part_of_messages_and_the_split_does_not_depend_on_them(tmp_path: Path) -> None:
    (plain,), _ = read_source(tmp_path, chat({}, {}))
    (weighed,), said = read_source(tmp_path, chat({"weight": 0.5}, {"train": None}, weight=2))
    assert isinstance(plain, Conversation) and isinstance(weighed, Conversation)
    assert weighed.messages == plain.messages
    assert weighed.digest() == plain.digest()
    assert (weighed.weights, weighed.weight) == ((1, 0.5, 1, 1), 2)
    assert (plain.weights, plain.weight) == ((), 1)
    assert "the field weight is the weight of a row in the loss" in said[0]


@pytest.mark.parametrize("row", [{"text": "abc"}, {"prompt": "q", "completion": "a"}, chat({})])
def test_any_row_may_have_a_weight_under_a_name_of_the_source(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,), _ = read_source(tmp_path, {**row, "importance": 0.25}, fields={"weight": "importance"})
    assert isinstance(example, Conversation | PlainText) and example.weight == 0.25


def test_pairs_have_the_weight_of_their_row(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 0.5},
        {"prompt": "q", "chosen": "a", "rejected": "c"},
        {"prompt": "q", "chosen": "a", "rejected": "d", "train": False},
    ]
    source = Source(path=str(write(tmp_path, *rows)))
    found = iter_preferences(source, "error", SourceLedger(path=source.path), lambda line: None)
    assert [pair.weight for pair in found] == [0.5, 1]


def test_weights_of_messages_contradict_a_loss_on_every_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    given = conversation("u: q", "a: a", "u: r", "a: b")
    weighed = Conversation(given.messages, 0, (), given.where, 0, weights=(1, 0, 1, 1))
    assert "data.loss_on=all trains every token" in str(fault(tokenizer, weighed, loss_on="all"))
    (document,) = documents(tokenizer, weighed, loss_on="last")
    assert trained_text(tokenizer, document) == "b<|im_end|>"
    of_row = Conversation(given.messages, 0, (), given.where, 0, weight=0.5)
    (document,) = documents(tokenizer, of_row, loss_on="all")
    assert document.weights is not None and set(document.weights.tolist()) == {0.5}
    last = Conversation(given.messages, 0, (), given.where, 0, weights=(1, 1, 1, 0))
    assert "no answer to train (each has the weight 0)" in str(fault(tokenizer, last, loss_on="last"))


def test_stores_without_weights_are_those_that_they_were(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (plain,) = built(tokenizer, tmp_path / "plain", [chat({}), chat({}, {})]).train
    (ones,) = built(tokenizer, tmp_path / "ones", [chat({"weight": 1}), chat({"train": True}, {}, weight=1.0)]).train
    files = {path.name for path in plain.path.iterdir() if path.name.startswith("train.")}
    assert files == {"train.tokens", "train.trained", "train.offsets", "train.bytes"}
    for name in files:
        assert (plain.path / name).read_bytes() == (ones.path / name).read_bytes()
    assert "weighted" not in json.loads((ones.path / "store.json").read_text())
    (weighed,) = built(tokenizer, tmp_path / "weighed", [chat({}), chat({"weight": 0.5}, {})]).train
    assert weighed.tokens.tolist() == plain.tokens.tolist()
    assert weighed.trained.tolist() == plain.trained.tolist()  # type: ignore[union-attr]
    assert weighed.name != plain.name


def test_the_account_counts_the_tokens_that_have_weights(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    said: list[str] = []
    built(tokenizer, tmp_path, [chat({}), chat({}, weight=0.5)], said)
    assert "of them trained, 3 by weight" in said[-1]  # a0<|im_end|>


ROWS = [chat({"weight": 0.25}, {"weight": 0}, {}), chat({}, weight=0.5), chat({}, {"weight": 2}, weight=1.5), chat({})]
WEIGHTS = [{"a0": 0.25, "a1": 0.0, "a2": 1.0}, {"a0": 0.5}, {"a0": 1.5, "a1": 3.0}, {"a0": 1.0}]
"""By hand: of each answer of each row."""


@torch.no_grad()
def by_hand(model: Any, tokenizer: PreTrainedTokenizerFast) -> tuple[float, float]:
    """Sum of weighted nats, sum of weights, one conversation at a time through the model's own logits."""
    nats = total = 0.0
    for row, weights in zip(ROWS, WEIGHTS, strict=True):
        messages = [{key: message[key] for key in ("role", "content")} for message in row["messages"]]
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = tokenizer.apply_chat_template(
                messages[:i], add_generation_prompt=True, tokenize=True, return_dict=False
            )
            answer = tokenizer(message["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
            logprobs = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            for place, token in enumerate(answer):
                nats -= weights[message["content"]] * float(logprobs[len(prompt) + place - 1, token])
                total += weights[message["content"]]
    return nats, total


@pytest.mark.parametrize("whole_logits", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_loss_is_the_weighted_mean_however_the_step_is_split(
    tokenizer: PreTrainedTokenizerFast, model_path: Path, tmp_path: Path, whole_logits: bool, parts: int
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path)
    nats, total = by_hand(model, tokenizer)
    (store,) = built(tokenizer, tmp_path, ROWS).train
    packing = pack_documents(store, 128)
    packs = [(i, packing.layout.pack([i], None)) for i in range(len(ROWS))]
    batches = [collate(packs[start::parts]) for start in range(parts)]
    module = CausalLMLoss(model, "segments", None if whole_logits else PLAIN)
    objective = NextToken()
    counts = [objective.counts(batch) for batch in batches]
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}
    assert totals["weight"] == pytest.approx(total)
    losses = [objective.loss(module, batch, totals) for batch in batches]
    loss = sum(share for share, _ in losses)
    assert float(loss.detach()) == pytest.approx(nats / total, rel=1e-5)
    assert sum(float(metrics["loss"]) for _, metrics in losses) == pytest.approx(nats / total, rel=1e-5)
    assert not math.isclose(nats / total, float(unweighted(module, batches)), rel_tol=1e-3)
    loss.backward()
    grad = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    weighted = torch.cat([torch.cat(token_losses(model, batch)) for batch in batches]).sum() / total
    weighted.backward()
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, grad, rtol=1e-4, atol=1e-6)


def token_losses(model: Any, batch: Any) -> list[torch.Tensor]:
    """The weighted nats of each document, by autograd through transformers' own forward."""
    found, start = [], 0
    for length in batch.segment_lengths:
        part = slice(start, start + length)
        labels, weights = batch.labels[part], batch.label_weights[part]
        logprobs = model(batch.input_ids[None, part]).logits[0].log_softmax(-1)
        chosen = labels != IGNORE_INDEX
        found.append(-(logprobs[chosen].gather(-1, labels[chosen, None])[:, 0] * weights[chosen]))
        start += length
    return found


@torch.no_grad()
def unweighted(module: CausalLMLoss, batches: list[Any]) -> float:
    from dataclasses import replace

    plain = [replace(batch, label_weights=None) for batch in batches]
    return sum(float(module(batch).cross_entropy) for batch in plain) / sum(batch.num_trained for batch in plain)


def test_the_held_out_loss_has_the_same_weights(
    tokenizer: PreTrainedTokenizerFast, model_path: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path)
    nats, total = by_hand(model, tokenizer)
    (store,) = built(tokenizer, tmp_path, ROWS).train
    batch = collate([(0, pack_documents(store, 256).pack(0))])
    with torch.no_grad():
        result = CausalLMLoss(model, "segments")(batch, LossOptions())
    sums = document_sums(result.token_losses.double(), batch)
    assert sums[:3].tolist() == pytest.approx([4, nats, total], rel=1e-5)
    assert float(result.cross_entropy) / batch.total_weight == pytest.approx(nats / total, rel=1e-5)


@pytest.mark.parametrize("on_long_row", ["truncate", "split"])
def test_pieces_of_a_long_row_keep_the_weights_of_their_tokens(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, on_long_row: str
) -> None:
    (store,) = built(tokenizer, tmp_path, [chat({"weight": 0.5}, {})], max_seq_len=40, on_long_row=on_long_row).train
    trained = np.asarray(store.trained, dtype=bool)
    assert store.weights is not None
    weights = np.asarray(store.weights)[trained].tolist()
    assert weights[:3] == [0.5] * 3
    assert set(weights[3:]) == (set() if on_long_row == "truncate" else {1.0})


def test_pairs_whose_messages_have_weights_are_refused_by_name(tokenizer: PreTrainedTokenizerFast) -> None:
    from llmtrain.data.store.kinds import whole_answers

    given = conversation("u: q", "a: a", "u: r", "a: b", num_prompt=3)
    (document,) = documents(tokenizer, Conversation(given.messages, 3, (), "x:1", 0, weights=(1, 1, 1, 0.5)))
    found = whole_answers([document], "x:1")
    assert isinstance(found, BadExample) and "answers are compared whole: give the row a weight" in str(found)
