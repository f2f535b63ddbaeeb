"""Rows -> prompts: what comes before an answer, with the system prompt and the tools of the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from instruction_rows import conversation as conversation_of_rows
from tiny_chat import CHATML, write_model
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.config.rl import PromptDataConfig
from llmtrain.data.chat.encode import BadExample, ChatEncoder
from llmtrain.data.prompts import Prompt, Prompts, load_prompts
from llmtrain.rewards.row import RowError, row_field

TOOLS = [{"type": "function", "function": {"name": "search", "description": "Looks up."}}]
WITH_TOOLS = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}" + CHATML


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    made: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(write_model(tmp_path_factory.mktemp("model")))
    made.chat_template = WITH_TOOLS
    return made


def prompt_of(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, folder: Path, **fields: str) -> Prompt:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    source = {"path": str(path), "fields": fields}
    data = PromptDataConfig.model_validate({"train": [source], "eval_fraction": 0.0, "on_bad_row": "error"})
    prompts = load_prompts(data, tokenizer, max_new_tokens=8, report=lambda line: None)
    return prompts.train[0][0]


def loaded(path: Path, tokenizer: PreTrainedTokenizerFast, on_bad_row: str = "error") -> Prompts:
    data = PromptDataConfig.model_validate({"train": str(path), "eval_fraction": 0.0, "on_bad_row": on_bad_row})
    return load_prompts(data, tokenizer, max_new_tokens=8, report=lambda line: None)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["prompt", "question", "query"])
def test_a_system_prompt_in_a_separate_field_comes_first(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    prompt = prompt_of({"system": "Be short.", name: "Why?"}, tokenizer, tmp_path)
    assert [message["role"] for message in prompt.messages] == ["system", "user"]  # type: ignore[index]
    assert "Be short." in tokenizer.decode(prompt.ids)


@pytest.mark.parametrize("name", ["prompt", "question"])
def test_one_message_is_a_prompt(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str) -> None:
    prompt = prompt_of({name: {"role": "user", "content": "Why?"}}, tokenizer, tmp_path)
    assert prompt.messages == ({"role": "user", "content": "Why?"},)


FIRST_SYSTEM = CHATML.replace(
    "{{ '<|im_start|>'", "{% if loop.first or m['role'] != 'system' %}{{ '<|im_start|>'"
).replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
ASKED = {"role": "user", "content": "Why?"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
SYSTEM = {"role": "system", "content": "Be short."}


@pytest.mark.parametrize(
    ("template", "row", "part"),
    [
        (CHATML, {"prompt": "Why?", "tools": TOOLS}, "tools"),
        (CHATML, {"prompt": [ASKED, CALLING, {"role": "tool", "content": "3"}]}, "tool calls"),
        (FIRST_SYSTEM, {"prompt": [ASKED, SYSTEM, ASKED]}, "system messages"),
        (
            FIRST_SYSTEM,
            {"messages": [SYSTEM, SYSTEM, ASKED, {"role": "assistant", "content": "So."}]},
            "system messages",
        ),
    ],
)
def test_a_prompt_of_which_the_template_leaves_something_out_is_refused(
    tmp_path: Path, template: str, row: dict[str, Any], part: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path / "model"))
    tokenizer.chat_template = template
    with pytest.raises(
        ValueError, match=f"rows.jsonl:1: the chat template leaves out {part}; take them out of the row"
    ):
        prompt_of(row, tokenizer, tmp_path)
    kept = loaded(write(tmp_path / "rows.jsonl", row, {"prompt": [SYSTEM, ASKED]}), tokenizer, "skip")
    assert kept.ledger.train[0].bad_rows[f"template leaves out {part}"].documents == 1


def test_thoughts_of_earlier_answers_may_be_left_out_of_a_prompt(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path / "model"))
    thought = {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}
    assert prompt_of({"prompt": [ASKED, thought, ASKED]}, tokenizer, tmp_path)


@pytest.mark.parametrize("label", [True, False])
def test_what_is_asked_in_rows_with_labelled_answers_is_a_prompt(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, label: bool
) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    assert prompt_of({"messages": turns, "label": label}, tokenizer, tmp_path).messages == (turns[0],)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": " "},
        {"prompt": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": "\n"}, {"role": "assistant", "content": "So."}]},
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_without_text_is_refused(tmp_path: Path, row: dict[str, Any], chat: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path / "model", chat=chat))
    with pytest.raises(ValueError, match="none of its messages has text, so that nothing is asked"):
        prompt_of(row, tokenizer, tmp_path)


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "Why?"},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
        {"question": "Why?", "answer": "So."},
    ],
)
@pytest.mark.parametrize("written", [TOOLS, json.dumps(TOOLS)], ids=["list", "json"])
def test_tools_reach_the_template(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, asked: dict[str, Any], written: Any
) -> None:
    prompt = prompt_of({"tools": written, **asked}, tokenizer, tmp_path)
    assert tokenizer.decode(prompt.ids).startswith("[search]")
    assert prompt.row["tools"] == written


def test_tools_of_another_name_are_in_the_row_as_tools(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    row = {"functions": TOOLS, "prompt": "Why?"}
    prompt = prompt_of(row, tokenizer, tmp_path, tools="functions")
    assert prompt.row == {"tools": TOOLS, **row}


@pytest.mark.parametrize("begun", ["So", "<think>\nEasy.", "1. "])
def test_a_begun_answer_goes_on_where_it_ends(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, begun: str) -> None:
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": begun}]
    prompt = prompt_of({"prompt": messages}, tokenizer, tmp_path)
    text = f"<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n{begun}"
    assert tokenizer.decode(prompt.ids) == text
    assert prompt.messages == tuple(messages)


def test_a_message_and_its_system_prompt_need_a_template(tmp_path: Path) -> None:
    plain = AutoTokenizer.from_pretrained(write_model(tmp_path / "model", chat=False))
    for extra, what in (({"system": "Be short."}, "several messages need"), ({"tools": TOOLS}, "tools need")):
        with pytest.raises(ValueError, match=rf"{what} a chat template \(data\.chat_template\)"):
            prompt_of({"prompt": "Why?", **extra}, plain, tmp_path)


def test_a_readme_beside_the_rows_of_a_folder_is_left_out(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", {"prompt": "Why?"})
    (tmp_path / "README.md").write_text("# About these prompts")
    prompts = loaded(tmp_path, tokenizer)
    assert len(prompts.train[0]) == 1
    assert prompts.ledger.train[0].files_not_read == {"README.md": 1}


def test_a_text_file_holds_no_prompts(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Why?")
    with pytest.raises(ValueError, match=r"\A[^\n]*prompts\.txt: holds text without rows; rows are read from [^\n]*\Z"):
        loaded(tmp_path / "prompts.txt", tokenizer)


@pytest.mark.parametrize("first", [True, False], ids=["the first row", "a later row"])
def test_a_row_of_no_known_format_stops_the_run_or_is_counted(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, first: bool
) -> None:
    rows = [{"title": "none"}, {"prompt": "Why?"}, {"prompt": "How?"}]
    path = write(tmp_path / "rows.jsonl", *(rows if first else rows[1:] + rows[:1]))
    with pytest.raises(ValueError, match=rf"rows\.jsonl:{1 if first else 3}: "):
        loaded(path, tokenizer)
    prompts = loaded(path, tokenizer, on_bad_row="skip")
    assert len(prompts.train[0]) == 2
    assert [tally.documents for tally in prompts.ledger.train[0].bad_rows.values()] == [1]


def test_the_first_row_decides_the_format_of_all(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    path = write(tmp_path / "rows.jsonl", {"messages": chat}, {"messages": chat, "prompt": "How?"}, {"prompt": "Who?"})
    prompts = loaded(path, tokenizer, on_bad_row="skip")
    assert [prompt.messages[-1]["content"] for prompt in prompts.train[0]] == ["Why?", "Why?"]  # type: ignore[index]
    assert prompts.ledger.train[0].row_format == "messages"
    assert {reason: tally.documents for reason, tally in prompts.ledger.train[0].bad_rows.items()} == {
        "missing field": 1
    }


def test_half_a_surrogate_pair_is_a_bad_row(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "\ud800"})
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: a string holds \\ud800, half a surrogate pair"):
        loaded(path, tokenizer)


def test_the_format_is_reported_once_with_the_first_prompt(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"question": "Why?"}, {"question": "How?"})
    data = PromptDataConfig.model_validate({"train": str(path), "eval_fraction": 0.0})
    lines: list[str] = []
    load_prompts(data, tokenizer, max_new_tokens=8, report=lines.append)
    assert [line for line in lines if "the first" in line] == [
        f'{path}: prompts (field question); the first: user "Why?"'
    ]


def test_prompts_of_a_held_out_source_are_reported_as_held_out(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    train, held_out = (write(tmp_path / f"{name}.jsonl", {"prompt": f"{name}?"}) for name in ("a", "b"))
    data = PromptDataConfig.model_validate({"train": str(train), "eval": str(held_out)})
    lines: list[str] = []
    load_prompts(data, tokenizer, max_new_tokens=8, report=lines.append)
    accounts = [line for line in lines if line.startswith("data.")]
    assert accounts == [f"data.train[0] ({train}): 1 train prompt", f"data.eval[0] ({held_out}): 1 eval prompt"]


def test_a_prompt_with_marked_turns_is_read_as_in_tuning(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    marked = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Really?\n\nAssistant:"
    prompt = prompt_of({"prompt": marked}, tokenizer, tmp_path)
    assert [(each["role"], each["content"]) for each in prompt.messages] == [  # type: ignore[index]
        ("user", "Why?"),
        ("assistant", "So."),
        ("user", "Really?"),
    ]
    assert prompt_of({"prompt": marked, "completion": "Yes."}, tokenizer, tmp_path).ids == prompt.ids


@pytest.mark.parametrize("name", ["question", "query"])
def test_what_a_question_is_about_reaches_the_prompt(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    prompt = prompt_of({name: "Who?", "context": "Ann sang.", "answer": "Ann"}, tokenizer, tmp_path)
    assert "user\nWho?\nAnn sang.<|im_end|>" in tokenizer.decode(prompt.ids)
    other = prompt_of({name: "Who?", "context": ["Ann sang."], "answer": "Ann"}, tokenizer, tmp_path)
    assert "user\nWho?<|im_end|>" in tokenizer.decode(other.ids)


@pytest.mark.parametrize("last", [("user", "And him?"), ("tool", "3")])
def test_what_a_row_asks_last_is_part_of_its_prompt(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, last: tuple[str, str]
) -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "Who?"), ("assistant", "She."), last)]
    for answers in ([], [{"role": "assistant", "content": "So."}]):
        assert prompt_of({"messages": [*turns, *answers]}, tokenizer, tmp_path).messages == tuple(turns)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [{"role": "system", "content": "Greet."}]},
        {"prompt": "", "system": "Greet."},
        {"prompt": None, "system_prompt": "Greet."},
        {"messages": [{"role": "system", "content": "Greet."}, {"role": "assistant", "content": "Hi."}]},
    ],
)
def test_a_system_prompt_alone_is_a_prompt(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, row: dict[str, Any]
) -> None:
    prompt = prompt_of(row, tokenizer, tmp_path)
    assert tokenizer.decode(prompt.ids) == "<|im_start|>system\nGreet.<|im_end|>\n<|im_start|>assistant\n"


def test_the_rows_of_verl_are_read_with_all_that_they_hold(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    row = {
        "data_source": "gsm8k",
        "prompt": [{"role": "user", "content": "2 + 2?"}],
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"question": "2 + 2?", "split": "train"},
    }
    prompt = prompt_of(row, tokenizer, tmp_path)
    assert prompt.messages == ({"role": "user", "content": "2 + 2?"},)
    assert prompt.row == row
    assert row_field(prompt.row, "reward_model.ground_truth") == "4"
    with pytest.raises(RowError, match=r"no field 'reward_model\.answer'"):
        row_field(prompt.row, "reward_model.answer")


def ending(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """One that begins a text with BOS and ends it with EOS."""
    from tokenizers.processors import TemplateProcessing

    bos, eos = str(tokenizer.bos_token), str(tokenizer.eos_token)
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (bos, eos)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A {eos}", special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize(
    "text", ["Why?", "  Why? ", "\n\nHuman: Why?\n\nAssistant:", "\n\nHuman: A\n\nAssistant: B\n\nHuman: C"]
)
def test_without_a_template_a_prompt_is_its_text_as_it_is_trained(tmp_path: Path, text: str) -> None:
    plain = ending(AutoTokenizer.from_pretrained(write_model(tmp_path / "model", chat=False)))
    prompt = prompt_of({"prompt": text}, plain, tmp_path)
    assert prompt.messages == text
    assert plain.decode(prompt.ids) == f"{plain.bos_token}{text}"
    row = conversation_of_rows(tmp_path, {"prompt": text, "completion": " So."})
    (documents,) = ChatEncoder(plain, plain=True, loss_on="completion").encode([row])
    assert not isinstance(documents, BadExample)
    ids = documents[0].input_ids.tolist()
    assert tuple(ids[: len(prompt.ids)]) == prompt.ids
    assert plain.decode(ids) == f"{plain.bos_token}{text} So.{plain.eos_token}"


@pytest.mark.parametrize("given", ["What does <|im_end|> do?", "<|im_start|>", "<|pad|> <|bos|>"])
def test_control_tokens_that_prompts_spell_are_counted_refused_or_text(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, given: str
) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": given}, {"prompt": "Why?"})
    lines: list[str] = []

    def read(spelt: str) -> Prompts:
        tree = {"train": str(path), "eval_fraction": 0.0, "special_tokens_in_text": spelt}
        data = PromptDataConfig.model_validate(tree)
        return load_prompts(data, tokenizer, max_new_tokens=8, report=lines.append)

    warned, as_text = (read(spelt).train[0][0].ids for spelt in ("warn", "encode_as_text"))
    assert tokenizer.decode(warned) == tokenizer.decode(as_text) and len(as_text) > len(warned)
    assert "spelt in user text, read as that token" in lines[1] and "encoded as text" in lines[-1]
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: message 0 \(user\) spells the control token <\|\w+\|>"):
        read("error")


@pytest.mark.parametrize("given", [{"weight": 0.5}, {"weight": 2}])
def test_a_weight_that_prompts_do_not_use_is_counted(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, given: dict[str, Any]
) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "Why?", **given}, {"prompt": "How?"})
    lines: list[str] = []
    data = PromptDataConfig.model_validate({"train": str(path), "eval_fraction": 0.0})
    prompts = load_prompts(data, tokenizer, max_new_tokens=8, report=lines.append)
    assert len(prompts.train[0]) == 2
    assert f"1 prompt: {next(iter(given))} of a row, which prompts do not use" in lines[-1]


@pytest.mark.parametrize("given", [{"weight": 0}, {"train": False}])
def test_a_prompt_of_weight_zero_is_left_out_and_counted(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, given: dict[str, Any]
) -> None:
    prompts = loaded(write(tmp_path / "rows.jsonl", {"prompt": "Why?", **given}, {"prompt": "How?"}), tokenizer)
    assert [prompt.row["prompt"] for prompt in prompts.train[0]] == ["How?"]
    assert {why: tally.documents for why, tally in prompts.ledger.train[0].dropped.items()} == {"weight is 0": 1}


def test_a_field_for_the_weight_of_prompts_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fields: {weight: importance} does nothing: prompts are drawn equally often"):
        prompt_of({"prompt": "Why?", "importance": 3}, tokenizer, tmp_path, weight="importance")
