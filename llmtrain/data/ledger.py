"""The account of every document, byte and token that data preparation reads or makes.

Bytes are UTF-8 bytes of text (of a bad row: of the row in the file). What is read is either bad, or dropped by a named
step, or kept in a split; `check` compares the two sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

from llmtrain.system.counted import counted

Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = ("train", "eval")
SHOWN_CHARACTERS = 5
TOKENIZED = "tokenized"
"""The format of rows of ids."""
LEAST_MARKERS = 3
"""An end of a document that is spelt less often in a source may be what a text is about."""


@dataclass
class Tally:
    """So many documents or rows, of so many bytes together."""

    documents: int = 0
    bytes: int = 0

    def add(self, num_bytes: int) -> None:
        self.documents += 1
        self.bytes += num_bytes


@dataclass
class TokenTally:
    """The tokens of one split, by where they come from."""

    tokens: int = 0  # all: text, bos and eos
    text_tokens: int = 0  # what the tokenizer made of the text itself
    unknown_tokens: int = 0  # text tokens that are the tokenizer's unknown token
    added_tokens: int = 0  # put around documents: bos, eos
    unpredicted_tokens: int = 0  # the first token of each document, which nothing before it predicts
    trained_tokens: int = 0  # of a store with a loss mask: those that are targets
    weighted_tokens: int = 0  # of the targets, those of documents that weigh them
    masked_tokens: int = 0  # and those that are not
    truncated_tokens: int = 0  # cut off rows that were longer than data.max_seq_len
    dropped_tokens: int = 0  # of rows of which nothing was kept
    rows_cut: int = 0  # rows that lost tokens
    rows_split: int = 0  # rows that became several documents by their length
    rows_unrolled: int = 0  # conversations that became a document a turn, as their template demands


Sum = TypeVar("Sum", Tally, TokenTally)


def _sum(one: Sum, other: Sum) -> Sum:
    counts = asdict(other)
    return type(one)(**{name: count + counts[name] for name, count in asdict(one).items()})


@dataclass
class SourceLedger:
    """The account of one source."""

    path: str
    files: int = 0
    files_not_read: dict[str, int] = field(default_factory=dict)  # why or of what suffix -> files passed over
    text_field: str | None = None  # the field of rows that holds the text; None: text files
    end_markers: dict[str, int] = field(default_factory=dict)  # spelt ends of documents in the text -> how often
    row_format: str | None = None  # the format of instruction rows; None: documents
    read: Tally = field(default_factory=Tally)  # everything below together
    bad_rows: dict[str, Tally] = field(default_factory=dict)  # reason -> rows skipped
    dropped: dict[str, Tally] = field(default_factory=dict)  # step -> documents dropped
    notes: dict[str, int] = field(default_factory=dict)  # what was assumed or found in rows that are kept -> rows
    kept: dict[Split, Tally] = field(default_factory=lambda: {split: Tally() for split in SPLITS})
    tokens: dict[Split, TokenTally] = field(default_factory=lambda: {split: TokenTally() for split in SPLITS})
    lost_characters: dict[Split, dict[str, int]] = field(default_factory=lambda: {split: {} for split in SPLITS})
    """Of plain text, the characters that ids do not give back, with how often, in a sample of each split."""

    def bad_row(self, reason: str, num_bytes: int) -> None:
        """Account for a row that could not be read."""
        self.read.add(num_bytes)
        self.bad_rows.setdefault(reason, Tally()).add(num_bytes)

    def drop(self, step: str, num_bytes: int) -> None:
        """Account for a document, read before, that a step leaves out."""
        self.dropped.setdefault(step, Tally()).add(num_bytes)

    def note(self, notes: Sequence[str]) -> None:
        """Count what was assumed or found in one row."""
        for note in notes:
            self.notes[note] = self.notes.get(note, 0) + 1

    def add(self, other: SourceLedger) -> None:
        """Enter what another account of the same source has of bad rows, dropped and kept documents, and tokens."""
        for reason, tally in other.bad_rows.items():
            self.bad_rows[reason] = _sum(self.bad_rows.get(reason, Tally()), tally)
        for step, tally in other.dropped.items():
            self.dropped[step] = _sum(self.dropped.get(step, Tally()), tally)
        for note, count in other.notes.items():
            self.notes[note] = self.notes.get(note, 0) + count
        self.kept = {split: _sum(self.kept[split], other.kept[split]) for split in SPLITS}
        self.tokens = {split: _sum(self.tokens[split], other.tokens[split]) for split in SPLITS}

    def check(self) -> None:
        """Raises AssertionError if documents, bytes or tokens do not add up."""
        parts = [*self.bad_rows.values(), *self.dropped.values(), *self.kept.values()]
        for unit, read, found in (
            ("documents", self.read.documents, sum(part.documents for part in parts)),
            ("bytes", self.read.bytes, sum(part.bytes for part in parts)),
        ):
            if read != found:
                raise AssertionError(f"{self.path}: {read} {unit} read, but {found} kept, dropped or bad")
        for split, tally in self.tokens.items():
            if tally.tokens != tally.text_tokens + tally.added_tokens:
                raise AssertionError(
                    f"{self.path}: {tally.tokens} {split} tokens stored, but {tally.text_tokens} made of text "
                    f"and {tally.added_tokens} added"
                )
            masked = tally.trained_tokens + tally.masked_tokens
            if masked and masked != tally.tokens:
                raise AssertionError(f"{self.path}: {tally.tokens} {split} tokens stored, but {masked} with a mask")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def held_out(self) -> SourceLedger:
        """The account of a source of `data.eval`, as its summary shows it.

        All that is kept of such a source is stored as one split, `train`, and counted here as `eval`. A store that
        was built with a held-out split of its own keeps its account.
        """
        if self.kept["eval"].documents:
            return self
        return replace(
            self,
            kept={"train": self.kept["eval"], "eval": self.kept["train"]},
            tokens={"train": self.tokens["eval"], "eval": self.tokens["train"]},
        )

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> SourceLedger:
        """The account that `to_dict` wrote."""
        return cls(
            path=tree["path"],
            files=tree["files"],
            files_not_read=dict(tree["files_not_read"]),
            text_field=tree["text_field"],
            end_markers=dict(tree["end_markers"]),
            row_format=tree.get("row_format"),  # stores of documents from before it was kept lack it
            read=Tally(**tree["read"]),
            bad_rows={reason: Tally(**tally) for reason, tally in tree["bad_rows"].items()},
            dropped={step: Tally(**tally) for step, tally in tree["dropped"].items()},
            notes=dict(tree.get("notes", {})),
            kept={split: Tally(**tree["kept"][split]) for split in SPLITS},
            tokens={split: TokenTally(**tree["tokens"][split]) for split in SPLITS},
            lost_characters={split: dict(tree["lost_characters"][split]) for split in SPLITS},
        )


@dataclass(frozen=True)
class Ledger:
    """The accounts of all sources of a run."""

    train: Sequence[SourceLedger]
    eval: Sequence[SourceLedger]  # empty if the held-out documents are a split of `train`

    def check(self) -> None:
        """Raises AssertionError if a source's account does not add up."""
        for source in (*self.train, *self.eval):
            source.check()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "train": [source.to_dict() for source in self.train],
            "eval": [source.to_dict() for source in self.eval],
        }


def lost_summary(splits: Sequence[tuple[SourceLedger, Split]]) -> str | None:
    """Which text of some splits their tokenizer loses, in a few words; None: none that was seen."""
    lost: Counter[str] = Counter()
    for ledger, split in splits:
        lost.update(ledger.lost_characters[split])
    unknown = sum(ledger.tokens[split].unknown_tokens for ledger, split in splits)
    parts = [f"{char!r} (U+{ord(char):04X}, {count:,} times)" for char, count in lost.most_common(SHOWN_CHARACTERS)]
    parts += [f"{len(lost) - SHOWN_CHARACTERS} other characters"] if len(lost) > SHOWN_CHARACTERS else []
    parts += [f"what became {unknown:,} unknown tokens"] if unknown else []
    return ", ".join(parts) or None


def text_summary(ledger: SourceLedger) -> str:
    """The account of a source of plain text, on one line."""
    parts = [
        f"{counted(ledger.kept[split].documents, f'{split} document')}, {counted(ledger.tokens[split].tokens, 'token')}"
        for split in SPLITS
        if ledger.kept[split].documents
    ]
    if ledger.row_format is not None:
        parts.append(f"{ledger.row_format} rows")
    if ledger.text_field is not None:
        parts.append(f"text from field {ledger.text_field!r}")
    parts += [f"{counted(tally.documents, 'bad row')} skipped: {why}" for why, tally in ledger.bad_rows.items()]
    parts += [f"{tally.documents:,} dropped: {step}" for step, tally in ledger.dropped.items()]
    parts += files_not_read(ledger)
    unknown = sum(tally.unknown_tokens for tally in ledger.tokens.values())
    if unknown:
        parts.append(f"{unknown:,} unknown tokens")
    return "; ".join(parts + end_markers(ledger))


def end_markers(ledger: SourceLedger) -> list[str]:
    """What is reported of texts that seem to be several, with the marker of an end between them."""
    fix = "" if ledger.text_field is not None else ": if it separates documents, set the source's separator to it"
    return [
        f"warning: the text holds {marker!r} {count:,} times{fix}"
        for marker, count in ledger.end_markers.items()
        if count >= LEAST_MARKERS
    ]


def chat_summary(ledger: SourceLedger, tokenizer: str = "") -> str:
    """The account of a source of chats, on one line; `tokenizer` is the one whose ids tokenized rows hold."""
    parts = [f"{ledger.row_format} rows{f' of {tokenizer}' if ledger.row_format == TOKENIZED else ''}"]
    for split in SPLITS:
        rows, tally = ledger.kept[split].documents, ledger.tokens[split]
        if rows:
            trained = tally.trained_tokens / tally.tokens
            weighted = f", {tally.weighted_tokens:,} by weight" if tally.weighted_tokens else ""
            numbers = f"{counted(rows, f'{split} row')}, {counted(tally.tokens, 'token')}"
            parts.append(f"{numbers}, {trained:.0%} of them trained{weighted}")
        cut = {"cut short": tally.rows_cut, "split": tally.rows_split, "unrolled by turn": tally.rows_unrolled}
        parts += [f"{counted(count, f'{split} row')} {what}" for what, count in cut.items() if count]
        if tally.truncated_tokens:
            parts.append(f"{counted(tally.truncated_tokens, f'{split} token')} cut off")
    unknown = sum(tally.unknown_tokens for tally in ledger.tokens.values())
    parts += [counted(unknown, "unknown token")] if unknown else []
    return "; ".join(parts + _left_out(ledger, "rows"))


def answer_summary(ledger: SourceLedger, units: str, cut: str) -> str:
    """The account of a source of answers, on one line.

    `units` is what is counted; `cut` describes rows that lost tokens, with {} in place of the number of tokens.
    """
    parts = []
    for split in SPLITS:
        num_units, tally = ledger.kept[split].documents, ledger.tokens[split]
        if num_units:
            parts.append(f"{num_units:,} {split} {units}, {tally.tokens:,} tokens")
        if tally.rows_cut:
            parts.append(f"{tally.rows_cut:,} {split} {cut.format(f'{tally.truncated_tokens:,}')}")
    return "; ".join(parts + _left_out(ledger, units))


def _left_out(ledger: SourceLedger, units: str) -> list[str]:
    """What is reported of rows that are not in a store, by reason."""
    unit = units.removesuffix("s")
    parts = [f"{counted(tally.documents, 'bad row')} skipped: {why}" for why, tally in ledger.bad_rows.items()]
    parts += [f"{counted(tally.documents, unit)} dropped: {why}" for why, tally in ledger.dropped.items()]
    return parts + noted(ledger, units) + files_not_read(ledger)


def noted(ledger: SourceLedger, units: str) -> list[str]:
    """What is reported of what was assumed or found in rows."""
    return [f"{counted(count, units.removesuffix('s'))}: {note}" for note, count in ledger.notes.items()]


def files_not_read(ledger: SourceLedger) -> list[str]:
    """What is reported of files that are passed over: one part of a line, or none."""
    return [f"files not read: {not_read_summary(ledger.files_not_read)}"] if ledger.files_not_read else []


def not_read_summary(counts: Mapping[str, int]) -> str:
    """`2 .png, 1 of split test`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
