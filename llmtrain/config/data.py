"""The sections `data`: which sources, how they are cleaned, how a row becomes ids."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from llmtrain.config.marks import BY_CONTENT, IMMATERIAL, Needs
from llmtrain.config.sections import Fraction, Positive, Section

SpeltTokens = Literal["warn", "encode_as_text", "error"]


OnBadRow = Literal["error", "skip"]
"""What is done about a bad row: it stops the run, or is skipped and counted."""


class Source(Section):
    """One source of text: where it is, how much of the mixture it makes, how to read it."""

    path: Annotated[str, BY_CONTENT]
    """A file, glob or folder, a store built before, or a hub dataset id."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the tokens that are trained on (of policy runs: of the prompts), relative to the other sources'; a
    source too small for its share is repeated. None: by size, every token once per epoch."""
    text_field: str | None = None
    """Field that holds the text, `data.text` of a nested one; None: recognised (`text`, `content`, ...)."""
    fields: dict[str, str] = {}
    """Fields of instruction rows under other names: `{prompt: question, completion: answer}`; {}: recognised."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = {}
    """Who speaks in a turn, by other names: `{customer: user, agent: assistant}`; well-known ones are recognised."""
    role_key: str | None = None
    """Key of a turn that names its speaker, `author.role` of a nested one; None: `role`, `from`, `speaker`, ..."""
    content_key: str | None = None
    """Key of a turn that holds what is said; None: `content`, `value`, `text`, ..."""
    split: str = "train"
    """Split of a hub dataset, or of a folder that has splits (`test/`, `test-00000-of-00001.parquet`); `all`: each."""
    subset: str | None = None
    """Configuration of a hub dataset, or of a folder: one that its README.md names, or a folder in it."""
    revision: Annotated[str | None, BY_CONTENT] = None
    """Commit, tag or branch of a hub dataset; the commit it resolves to is recorded."""
    exclude: list[str] = []
    """Files of a folder or glob to leave out, by name or pattern: `valid.jsonl`, `drafts/*`; counted."""
    text_suffixes: list[Annotated[str, Field(pattern=r"^\.\w+$")]] = []
    """Further suffixes of files that are one text each: `[.py, .tex]`."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """What separates the documents of a text file, such as `<|endoftext|>`; None: a file is one document."""
    slice: Annotated[str, Field(pattern=r"^\d{1,3}(\.\d+)?%:\d{1,3}(\.\d+)?%$")] | None = None
    """Part of the source to use, as `0%:90%`: of its rows or separated documents, or of the characters of its texts."""

    @property
    def naming(self) -> dict[str, Any]:
        """What rows of it are called, for another source of the same rows."""
        return self.model_dump(include={"fields", "roles", "role_key", "content_key"})


class CleanConfig(Section):
    """Optional cleaning, in this order; what each step drops is counted in `ledger.json`."""

    min_chars: Annotated[int, Field(ge=0)] = 0
    """Drop documents shorter than this."""
    max_chars: Positive | None = None
    """Drop documents longer than this; None: off."""
    min_alpha_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Drop documents with a smaller share of letters (Gopher's rule uses 0.8 of words; 0: off)."""
    max_line_repeat_fraction: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Drop documents in which a larger share of lines repeats an earlier one (Gopher: 0.3; 1: off)."""
    exact_dedup: bool = False
    """Drop documents whose text was seen before in any source."""
    near_dedup: Annotated[float, Field(gt=0, le=1)] | None = None
    """Drop documents at least this similar to an earlier one (estimated Jaccard; 0.8 is usual); None: off.

    Takes at most 0.3 GB of memory, and while it runs 0.9 GB of disk in `data.cache_dir` per million documents kept.
    """
    decontaminate: Annotated[list[str], BY_CONTENT] = []
    """Evaluation files: a document that shares an n-gram of words with any of them is dropped."""
    decontaminate_ngram: Annotated[
        Positive, Needs("data.clean.decontaminate", lambda clean: bool(clean.decontaminate))
    ] = 13
    """Words of such an n-gram (GPT-3, appendix C, uses 13)."""


class SourcesConfig(Section):
    train: list[Source]
    """Training sources: a path, glob, folder or hub id, a list of them, or `{path, weight, text_field, ...}`."""
    eval: list[Source] | None = None
    """Held-out sources; None: `eval_fraction` of the training documents."""
    eval_fraction: Fraction = 0.01
    """Share of documents held out, chosen by a hash of each document's text, so it is stable under added data."""
    max_seq_len: Annotated[int, Field(ge=2)] = 1024
    """Tokens of a pack: the longest context that is trained."""
    order: Literal["shuffled", "given"] = "shuffled"
    """`given`: rows in the order of their files, source after source, in every epoch; `shuffled`: in another each."""
    on_bad_row: OnBadRow = "error"
    """A malformed or invalid row stops the run, or is skipped and counted."""
    cache_dir: Annotated[str | None, IMMATERIAL] = None
    """Where token stores are kept; None: `$LLMTRAIN_CACHE`, else `~/.cache/llmtrain`."""

    @property
    def asks_for_a_split(self) -> bool:
        """Whether `eval_fraction` was chosen: its default is no choice, which a run's own config.yaml holds too."""
        return self.eval_fraction != type(self).model_fields["eval_fraction"].default

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _as_sources(cls, value: Any) -> Any:
        if value is None:
            return None
        items = value if isinstance(value, list) else [value]
        return [{"path": item} if isinstance(item, str) else item for item in items]

    @field_validator("train", "eval")
    @classmethod
    def _weights_agree(cls, value: list[Source] | None) -> list[Source] | None:
        if value is not None and not value:
            raise ValueError("names no source")
        if value and len({source.weight is None for source in value}) > 1:
            raise ValueError("give every source a weight, or none")
        return value


class DataConfig(SourcesConfig):
    isolate_documents: bool = True
    """Attention and positions restart at each document; off: a pack is one sequence."""
    clean: CleanConfig = CleanConfig()


class TemplatedSourcesConfig(SourcesConfig):
    chat_template: Annotated[str, BY_CONTENT] = "auto"
    """`auto`: the tokenizer's own, else ours; `ours`; `none`: prompt and answer unchanged; or a Jinja file."""
    system_prompt: Annotated[
        str | None, Field(min_length=1), Needs("a chat template", lambda data: data.chat_template != "none")
    ] = None
    """System message of rows without one; the exported chat template sends it too. None: what the template does."""
    template_kwargs: Annotated[dict[str, Any], Needs("a chat template", lambda data: data.chat_template != "none")] = {}
    """What the chat template is given besides messages: `{enable_thinking: false}`; the exported one has it too."""
    template_date: Annotated[
        str | None,
        BeforeValidator(lambda value: None if value is None else str(value)),
        Needs("a chat template", lambda data: data.chat_template != "none"),
    ] = None
    """Day (YYYY-MM-DD) that a chat template which asks for today's writes, exported too. None: 2024-07-26, Llama's."""
    special_tokens_in_text: SpeltTokens = "warn"
    """Control tokens that rows spell in their text: read as tokens and counted, encoded as text, or a bad row."""

    @field_validator("template_kwargs", mode="before")
    @classmethod
    def _as_json(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("give a mapping, as in {enable_thinking: false}")
        return {str(name): plain(item) for name, item in value.items()}

    @field_validator("template_date")
    @classmethod
    def _is_a_day(cls, value: str | None) -> str | None:
        try:
            return None if value is None else date.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError("give a day as YYYY-MM-DD") from None


def plain(value: Any) -> Any:
    """A value of YAML as JSON has it: days as YYYY-MM-DD."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


class ChatDataConfig(TemplatedSourcesConfig):
    loss_on: Literal["assistant", "last", "completion", "all"] = "assistant"
    """What is trained: every assistant turn, the last one, the turns that a row marks as completion, every token."""
    loss_on_thoughts: Annotated[
        bool,
        Needs(
            "a chat template and data.loss_on other than all",
            lambda data: data.loss_on != "all" and data.chat_template != "none",
        ),
    ] = True
    """Off: the thought of an answer is given, not trained; its end and what follows are."""
    on_long_row: Literal["truncate", "drop", "split"] = "truncate"
    """A row longer than `max_seq_len` loses its end, or is left out, or becomes several documents; always counted."""
