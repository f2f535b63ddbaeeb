"""A system message for chats that bring none: in the template, so that every tool sends what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_chat import CHATML
from tiny_run import write_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.config.data import TemplatedSourcesConfig
from llmtrain.config.sections import PretrainedModelConfig, TokenizerConfig
from llmtrain.data.chat.system_prompt import own_system_prompt
from llmtrain.data.chat.tokenizer import ChatTokenizer, open_chat_tokenizer
from llmtrain.data.formats.messages import Conversation

PROMPT = 'Be "kind" 🙂 é \\u0041 \x1b {{ and }} brief\n{% always %}.'
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nI am Tiny.<|im_end|>\n' }}{% endif %}" + CHATML
)
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
DROPS = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
ASKED = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, special_tokens=("<|bos|>", "<|im_end|>", "<|pad|>"))
    return tmp_path


def opened(folder: Path, template: str, system_prompt: str | None) -> ChatTokenizer:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return open_chat_tokenizer(
        PretrainedModelConfig(path=str(folder)),
        TokenizerConfig(),
        TemplatedSourcesConfig(train="rows.jsonl", system_prompt=system_prompt),
        "assistant",
    )


def trained_text(chat: ChatTokenizer, *messages: dict[str, str]) -> str:
    ((document,),) = chat.encoder.encode([Conversation(messages, 0, (), "rows:1", 1)])
    return str(chat.tokenizer.decode(document.input_ids))


@pytest.mark.parametrize("template", [CHATML, DEFAULT])
def test_a_row_without_a_system_message_gets_the_prompt_as_it_is_written(folder: Path, template: str) -> None:
    text = trained_text(opened(folder, template, PROMPT), *ASKED)
    assert text.startswith(f"<|im_start|>system\n{PROMPT}<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
    assert text.count("system") == 1


def test_a_row_with_a_system_message_keeps_it(folder: Path) -> None:
    text = trained_text(opened(folder, CHATML, PROMPT), {"role": "system", "content": "Mine."}, *ASKED)
    assert "Mine." in text and PROMPT not in text


def test_a_saved_tokenizer_sends_what_was_trained(folder: Path, tmp_path: Path) -> None:
    chat = opened(folder, CHATML, PROMPT)
    chat.tokenizer.save_pretrained(tmp_path / "exported")
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")
    sent = exported.apply_chat_template(list(ASKED[:1]), tokenize=False, add_generation_prompt=True)
    assert trained_text(chat, *ASKED).startswith(sent)


def test_the_prompt_is_part_of_what_names_a_store(folder: Path) -> None:
    prints = {opened(folder, CHATML, prompt).encoder.fingerprint for prompt in (None, "a", "b")}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("template", "told"), [(REFUSES, "takes no system message .*no system role"), (DROPS, "leaves system messages out")]
)
def test_a_template_without_a_system_turn_is_refused_by_name(folder: Path, template: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"^data.system_prompt: the chat template {told}"):
        opened(folder, template, PROMPT)


@pytest.mark.parametrize(("template", "own"), [(CHATML, None), (DEFAULT, "I am Tiny."), (REFUSES, None), (DROPS, None)])
def test_a_templates_own_system_message_is_found(folder: Path, template: str, own: str | None) -> None:
    assert own_system_prompt(opened(folder, template, None).tokenizer) == own
