"""Which tokens of a row are trained, which rows cannot be, and where the template comes from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_rows import call, conversation, documents, expected, fault, tokens, trained_text
from chat_templates import GEMMA, LLAMA3, MARKED_CHATML, QWEN25, SPOKEN, Family, family_tokenizer
from tiny_tokenizers import byte_level_bpe
from transformers import PreTrainedTokenizerFast

from llmtrain.config.tokenizer import SpecialTokens
from llmtrain.data.chat.choice import choose_template
from llmtrain.data.chat.default_template import chat_template
from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded, LossOn
from llmtrain.data.formats.instructions import Example, PlainText
from llmtrain.data.formats.token_rows import TokenRow

CHAT = ("u: Hi there", "a: Hello you", "u: Bye", "a: Bye!")
COMPLETION = ("u: the sky is", "a:  blue")


def text_row(text: str) -> PlainText:
    return PlainText(text, "rows.jsonl:7", len(text.encode()))


@pytest.mark.parametrize(
    ("loss_on", "num_prompt", "wanted"),
    [
        ("assistant", 0, "Hello you<|im_end|>Bye!<|im_end|>"),
        ("assistant", 3, "Hello you<|im_end|>Bye!<|im_end|>"),
        ("last", 0, "Bye!<|im_end|>"),
        ("completion", 1, "Hello you<|im_end|>Bye!<|im_end|>"),
        ("completion", 3, "Bye!<|im_end|>"),
    ],
)
def test_loss_on_says_which_answers_are_trained(loss_on: LossOn, num_prompt: int, wanted: str) -> None:
    tokenizer = family_tokenizer(QWEN25)
    (document,) = documents(tokenizer, conversation(*CHAT, num_prompt=num_prompt), loss_on=loss_on)
    assert trained_text(tokenizer, document) == wanted


@pytest.mark.parametrize("loss_on", ["assistant", "all", "completion"])
def test_an_answer_to_nothing_is_not_trained(loss_on: LossOn) -> None:
    tokenizer = family_tokenizer(QWEN25)
    for messages in (("u: ", "a: Hello"), ("s: ", "u:  \n", "a: Hello"), ("u: ", "a: Hi", "u: ", "a: Hello")):
        row = conversation(*messages, num_prompt=len(messages) - 1)
        assert fault(tokenizer, row, loss_on=loss_on).reason == "no prompt"
    for messages in (("s: Be brief.", "u: ", "a: Hello"), ("u: ", "a: Hello", "u: Bye", "a: Bye")):
        assert documents(tokenizer, conversation(*messages, num_prompt=len(messages) - 1), loss_on=loss_on)


def test_without_a_template_a_blank_prompt_is_as_the_row_has_it() -> None:
    tokenizer = family_tokenizer(QWEN25)
    (document,) = documents(tokenizer, conversation("u:   ", "a: Hello", num_prompt=1), plain=True)
    assert tokenizer.decode(document.input_ids) == f"  Hello{tokenizer.eos_token}"
    assert trained_text(tokenizer, document) == f"Hello{tokenizer.eos_token}"


def test_loss_on_all_trains_every_token_but_bos():
    tokenizer = family_tokenizer(LLAMA3)
    row = conversation(*CHAT)
    (document,) = documents(tokenizer, row, loss_on="all")
    assert document.input_ids.tolist() == tokenizer.apply_chat_template(list(row.messages))["input_ids"]
    assert document.trained.tolist() == [False] + [True] * (len(document.input_ids) - 1)


@pytest.mark.parametrize("loss_on", ["assistant", "last", "completion", "all"])
def test_rows_of_which_no_answers_are_known_are_counted_if_answers_are_chosen(loss_on: LossOn) -> None:
    tokenizer = family_tokenizer(QWEN25)
    encoder = ChatEncoder(tokenizer, plain=False, loss_on=loss_on)
    found = encoder.encode([text_row("Hi there"), TokenRow((1, 2, 3), (0.0, 1.0, 1.0), "rows.jsonl:8")])
    notes = [documents[0].notes for documents in found if not isinstance(documents, BadExample)]
    chosen = f"without data.loss_on={loss_on}"
    of_text = {"assistant": (), "all": ()}.get(loss_on, (f"a text, of which every token is trained, {chosen}",))
    of_ids = () if loss_on == "assistant" else (f"tokenized, trained by its own labels or mask, {chosen}",)
    assert notes == [of_text, of_ids]


def test_the_first_token_is_never_a_target():
    tokenizer = family_tokenizer(QWEN25)  # which has no BOS
    for row in (conversation(*CHAT), text_row("Hi there")):
        (document,) = documents(tokenizer, row, loss_on="all")
        assert document.trained.tolist() == [False] + [True] * (len(document.input_ids) - 1)


@pytest.mark.parametrize("answer", ["日本", "🙂", "e\u0301x", "👩‍👩‍👧 Hi"])
def test_characters_of_several_tokens_are_trained_whole(answer: str) -> None:
    tokenizer = family_tokenizer(QWEN25)
    (document,) = documents(tokenizer, conversation("u: 日🙂", f"a: {answer}"))
    assert trained_text(tokenizer, document) == f"{answer}<|im_end|>"


def test_an_answer_whose_break_would_join_the_prompt_is_tokenized_separately():
    tokenizer = family_tokenizer(QWEN25)
    merged, apart = documents(tokenizer, conversation("u: Hi", "a: \nHello", "u: x", "a: y"))
    assert trained_text(tokenizer, merged) == "y<|im_end|>"
    assert tokens(tokenizer, apart) == expected(r"""
        - <|im_start|>¦system¦\n¦You¦ are¦ a¦ helper¦.¦<|im_end|>¦\n
        - <|im_start|>¦user¦\n¦Hi¦<|im_end|>¦\n¦<|im_start|>¦assistant¦\n
        + \n¦Hello¦<|im_end|>
    """)


def test_a_space_that_the_prompt_ends_with_stays_in_the_prompt():
    tokenizer = family_tokenizer(SPOKEN)
    (document,) = documents(tokenizer, conversation("u: Hi", "a: Hello"))
    assert tokens(tokenizer, document) == expected(r"""
        - <s>¦USER¦:¦ Hi¦\n¦ASSISTANT¦:¦\s
        + Hello¦</s>
    """)


def test_a_space_at_the_end_of_the_prompt_need_not_part_the_turns():
    tokenizer = family_tokenizer(SPOKEN)
    (document,) = documents(tokenizer, conversation("u: Hi", "a: 日", "u: x", "a: 本"))
    assert trained_text(tokenizer, document) == "日</s>本</s>"


def test_an_answer_that_spells_the_end_of_turn_is_trained_to_its_own_end():
    tokenizer = family_tokenizer(QWEN25)
    (document,) = documents(tokenizer, conversation("u: Hi", "a: Hello<|im_end|> you"))
    assert trained_text(tokenizer, document) == "Hello<|im_end|> you<|im_end|>"


def test_a_batch_gives_each_row_what_it_gets_alone():
    tokenizer = family_tokenizer(QWEN25)
    rows = [conversation(*CHAT), text_row("Hi"), conversation("a: Hi"), conversation("u: x", "a: \ny")]
    encoder = ChatEncoder(tokenizer, plain=False, loss_on="assistant")
    alone = [encoder.encode([row])[0] for row in rows]
    assert [shown(found) for found in encoder.encode(rows)] == [shown(found) for found in alone]


def test_threads_do_not_disturb_each_other():
    encoder = ChatEncoder(family_tokenizer(MARKED_CHATML), plain=False, loss_on="assistant")
    batches = [[conversation(*CHAT, f"u: {i} {j}", "a: Hi") for i in range(50)] for j in range(8)]
    alone = [[shown(found) for found in encoder.encode(batch)] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = [[shown(found) for found in batch] for batch in pool.map(encoder.encode, batches)]
    assert together == alone


def shown(found: list[Encoded] | BadExample) -> Any:
    if isinstance(found, BadExample):
        return str(found)
    return [(document.input_ids.tolist(), document.trained.tolist()) for document in found]


def test_ids_and_mask_have_the_types_of_the_store():
    (document,) = documents(family_tokenizer(QWEN25), conversation(*CHAT))
    assert (document.input_ids.dtype, document.trained.dtype) == (np.uint16, np.bool_)


def test_the_fingerprint_is_that_of_template_loss_and_tokenizer():
    def fingerprint(family: Family, template: str | None, loss_on: LossOn) -> str:
        return ChatEncoder(family_tokenizer(family, template), plain=False, loss_on=loss_on).fingerprint

    one = fingerprint(QWEN25, None, "assistant")
    assert one == fingerprint(QWEN25, None, "assistant")
    others = [fingerprint(QWEN25, None, "last"), fingerprint(QWEN25, MARKED_CHATML.template, "assistant")]
    others.append(fingerprint(MARKED_CHATML, QWEN25.template, "assistant"))
    assert one not in others


def test_a_plain_completion_is_trained_with_its_eos():
    tokenizer = family_tokenizer(LLAMA3)
    (document,) = documents(tokenizer, conversation(*COMPLETION, num_prompt=1), plain=True)
    assert tokens(tokenizer, document) == expected(r"""
        - <|begin_of_text|>¦the¦ sky¦ is
        +  blue¦<|end_of_text|>
    """)
    assert ChatEncoder(tokenizer, plain=True, loss_on="assistant").end_of_turn_ids == (tokenizer.eos_token_id,)


def test_a_plain_prompt_has_the_ids_that_it_has_alone():
    tokenizer = byte_level_bpe()
    prompt, completion = "the quick br", "own fox"
    (document,) = documents(tokenizer, conversation(f"u: {prompt}", f"a: {completion}", num_prompt=1), plain=True)
    ids = tokenizer(prompt).input_ids
    assert tokenizer(prompt + completion).input_ids[: len(ids)] != ids  # so the test can fail
    assert document.input_ids[: len(ids)].tolist() == ids
    assert trained_text(tokenizer, document) == f"{completion}<eos>"


def test_plain_rows_are_trained_whole_with_loss_on_all():
    tokenizer = family_tokenizer(LLAMA3)
    (document,) = documents(tokenizer, conversation(*COMPLETION, num_prompt=1), plain=True, loss_on="all")
    assert trained_text(tokenizer, document) == "the sky is blue<|end_of_text|>"


@pytest.mark.parametrize(
    "row",
    [
        conversation(*CHAT),
        conversation(*COMPLETION),
        conversation("s: Be brief.", *COMPLETION, num_prompt=2),
        conversation("u: x", call("add"), num_prompt=1),
        conversation(*COMPLETION, num_prompt=1, tools=[{}]),
    ],
)
def test_conversations_need_a_template(row: Example) -> None:
    found = fault(family_tokenizer(QWEN25), row, plain=True)
    assert found.reason == "conversation without template" and "data.chat_template" in str(found)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Hi there", "<|begin_of_text|>¦Hi¦ there¦<|end_of_text|>"),
        ("<|begin_of_text|>Hi", "<|begin_of_text|>¦Hi¦<|end_of_text|>"),
        ("Hi<|eot_id|>x<|end_of_text|>", "<|begin_of_text|>¦Hi¦<|eot_id|>¦x¦<|end_of_text|>"),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_texts_have_bos_and_eos_once_and_their_special_tokens(text: str, wanted: str, plain: bool) -> None:
    tokenizer = family_tokenizer(LLAMA3)
    (document,) = documents(tokenizer, text_row(text), plain=plain)
    assert [token for token, _ in tokens(tokenizer, document)] == wanted.split("¦")
    assert document.trained.tolist() == [False] + [True] * (len(document.input_ids) - 1)


def test_a_completion_that_spells_eos_has_it_once():
    tokenizer = family_tokenizer(LLAMA3)
    (document,) = documents(tokenizer, conversation("u: Hi", "a:  you<|end_of_text|>", num_prompt=1), plain=True)
    assert trained_text(tokenizer, document) == " you<|end_of_text|>"


def test_plain_rows_need_an_eos():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=family_tokenizer(QWEN25).backend_tokenizer)
    with pytest.raises(ValueError, match=r"EOS, which the tokenizer lacks; set data\.chat_template"):
        ChatEncoder(tokenizer, plain=True, loss_on="assistant")


def test_a_row_without_a_marked_completion_has_none_to_train():
    assert fault(family_tokenizer(QWEN25), conversation(*CHAT), loss_on="completion").reason == "no completion"


def test_a_completion_without_an_answer_has_no_trained_token():
    row = conversation("u: x", "a: y", "u: Bye", num_prompt=2)
    assert fault(family_tokenizer(QWEN25), row, loss_on="completion").reason == "no trained token"


def test_a_text_of_one_token_has_no_trained_token():
    assert fault(family_tokenizer(QWEN25), text_row("<|im_end|>")).reason == "no trained token"


def test_bos_twice_is_named():
    row = text_row("<|begin_of_text|><|begin_of_text|>Hi")
    assert fault(family_tokenizer(LLAMA3), row).reason == "doubled BOS"


OURS = chat_template(SpecialTokens())


def test_auto_takes_the_tokenizers_own_template():
    assert choose_template(family_tokenizer(LLAMA3), "auto") == (LLAMA3.template, [])


def test_auto_takes_ours_where_there_is_none():
    assert choose_template(byte_level_bpe(), "auto") == (OURS, ["<|im_start|>", "<|im_end|>"])


def test_ours_names_the_tokens_that_are_missing():
    assert choose_template(family_tokenizer(LLAMA3), "ours") == (OURS, ["<|im_start|>", "<|im_end|>"])
    assert choose_template(family_tokenizer(QWEN25), "ours") == (OURS, [])


def test_none_is_no_template():
    assert choose_template(family_tokenizer(LLAMA3), "none") == (None, [])


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(GEMMA.template, encoding="utf-8")
    assert choose_template(family_tokenizer(LLAMA3), str(path)) == (GEMMA.template, [])


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.chat_template=.*mine\.jinja cannot be read .*give auto, ours, none"):
        choose_template(family_tokenizer(LLAMA3), str(tmp_path / "mine.jinja"))


def test_several_templates_without_a_default_are_refused():
    tokenizer = family_tokenizer(LLAMA3)
    tokenizer.chat_template = {"one": GEMMA.template, "two": LLAMA3.template}
    with pytest.raises(ValueError, match=r"several chat templates \(one, two\) and no default"):
        choose_template(tokenizer, "auto")


def test_ours_trains_answers_and_their_ends_without_a_bos():
    tokenizer = family_tokenizer(QWEN25, OURS)
    (document,) = documents(tokenizer, conversation(*CHAT))
    assert tokenizer.decode(document.input_ids[:4]) == "<|im_start|>user\nHi"
    assert trained_text(tokenizer, document) == "Hello you<|im_end|>Bye!<|im_end|>"
