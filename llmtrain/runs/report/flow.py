"""What became of the data: from rows read to tokens trained, each loss by name, as `ledger.json` counts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.html import code, details, join, note, source, subtitle, table
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.story import unit_of
from llmtrain.runs.report.svg import plain
from llmtrain.runs.report.values import count, number

MINUS = "\N{MINUS SIGN}"
Kind = Literal["total", "lost", "aside"]


@dataclass(frozen=True)
class Flow:
    """One line of the account: what was there, what was lost, what was put aside."""

    label: str
    amount: int
    kind: Kind
    field: str  # of `ledger.json`


def ledger_flow(records: Sequence[RunRecord]) -> Section | None:
    """The account of each run's data."""
    names = short_names([record.folder for record in records])
    parts = []
    for name, record in zip(names, records, strict=True):
        if not record.ledger.get("train"):
            continue
        heading = subtitle(name) if len(records) > 1 else ""
        parts.append(join(heading, _waterfall(rows_flow(record)), _waterfall(tokens_flow(record)), _sources(record)))
    lead = "Every row read is trained on, held out, or lost for a reason that is named here."
    return Section("From rows read to tokens trained", "data", join(*parts), lead) if parts else None


def rows_flow(record: RunRecord) -> list[Flow]:
    """From the rows read from the training sources to those trained on."""
    train, unit = record.ledger["train"], f"{unit_of(record)}s"
    lines = [Flow(f"{unit} read", _sum(train, "read", "documents"), "total", "train[].read.documents")]
    for field, what in (("bad_rows", "bad"), ("dropped", "dropped")):
        for reason, amount in _by_reason(train, field).items():
            lines.append(Flow(f"{what}: {plain(reason, 80)}", amount, "lost", f"train[].{field}"))
    held_out = _sum(train, "kept", "eval", "documents")
    lines.append(Flow("held out for evaluation", held_out, "aside", "train[].kept.eval.documents"))
    kept = _sum(train, "kept", "train", "documents")
    lines.append(Flow(f"{unit} to train on", kept, "total", "train[].kept.train.documents"))
    return [line for line in lines if line.amount or line.kind == "total"]


def tokens_flow(record: RunRecord) -> list[Flow]:
    """From the tokens of those rows to the tokens trained; [] if the run counts none."""
    train, training = record.ledger["train"], record.ledger.get("training", {})

    def tokens(name: str) -> int:
        return _sum(train, "tokens", "train", name)

    def line(label: str, name: str, kind: Kind = "lost") -> Flow:
        return Flow(label, tokens(name), kind, f"train[].tokens.train.{name}")

    trained = training.get("tokens_trained")
    end = [] if trained is None else [Flow(_trained_label(record), trained, "total", "training.tokens_trained")]
    stored, cut, left_out = (tokens(name) for name in ("tokens", "truncated_tokens", "dropped_tokens"))
    if not stored:
        return end
    lines = []
    if cut or left_out:
        whole = Flow("tokens of these rows", stored + cut + left_out, "total", "train[].tokens.train")
        cut_line = line("cut off: longer than data.max_seq_len", "truncated_tokens")
        lines = [whole, cut_line, line("of rows of which nothing was kept", "dropped_tokens")]
    lines.append(line("tokens in the store", "tokens", "total"))
    masked, rest_label = 0, "prompts of pairs, which both answers share"
    if record.recipe != "reward":  # which reads every token of an answer and its prompt, for one score
        masked, rest_label = tokens("masked_tokens"), "not predicted: first tokens of documents, ends of packs"
        lines.append(line("read but not trained: prompts and templates", "masked_tokens", "aside"))
    targets = training.get("tokens_per_epoch")
    if targets is not None:
        rest = max(stored - masked - targets, 0)
        lines.append(Flow(rest_label, rest, "aside", "the difference of the lines around"))
        lines.append(Flow("tokens to train on in one epoch", targets, "total", "training.tokens_per_epoch"))
    return [line for line in lines if line.amount or line.kind == "total"] + end


def _trained_label(record: RunRecord) -> str:
    epochs = record.ledger["training"].get("epochs")
    if record.recipe == "policy":
        return "tokens trained, all generated in rollouts"
    return (
        "tokens trained"
        if epochs is None
        else f"tokens trained, in {number(epochs)} {'epoch' if epochs == 1 else 'epochs'}"
    )


def _sum(sources: Sequence[Mapping[str, Any]], *keys: str) -> int:
    total = 0
    for tree in sources:
        for key in keys:
            tree = tree[key]
        total += int(tree)  # type: ignore[call-overload]
    return total


def _by_reason(sources: Sequence[Mapping[str, Any]], field: str) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for each in sources:
        for reason, tally in each[field].items():
            reasons[reason] += tally["documents"]
    return reasons


def _waterfall(lines: Sequence[Flow]) -> Markup:
    """Lines with bars: each loss begins where what is left ends."""
    largest = max((line.amount for line in lines), default=0)
    if not largest:
        return Markup("")
    rows, left = [], largest
    for line in lines:
        if line.kind == "total":
            start, left = 0, line.amount
        else:
            left -= line.amount
            start = left
        bar = Markup('<div class="bar {}" style="margin-left:{}%;width:{}%"></div>').format(
            line.kind, _share(start, largest), _share(line.amount, largest)
        )
        label = Markup('{}<div class="where">{}</div>').format(line.label, f"ledger.json: {line.field}")
        amount = f"{line.amount:,}" if line.kind == "total" else f"{MINUS}{line.amount:,}"
        rows.append(
            Markup('<tr class="{}"><td>{}</td><td class="number">{}</td><td class="track">{}</td></tr>').format(
                line.kind, label, amount, bar
            )
        )
    return Markup('<table class="flow"><tbody>\n{}\n</tbody></table>\n').format(Markup("\n").join(rows))


def _share(amount: float, of: float) -> str:
    return f"{min(max(amount / of, 0.0), 1.0) * 100:.3g}"


def _sources(record: RunRecord) -> Markup:
    """Each source's own lines, and those of a weighted mixture's tokens."""
    each = [("train", entry) for entry in record.ledger["train"]] + [
        ("held out", entry) for entry in record.ledger.get("eval", ())
    ]
    rows = [
        (
            code(plain(str(entry["path"]), 80)),
            part,
            str(entry.get("row_format") or entry.get("text_field") or "text"),
            f"{entry['read']['documents']:,}",
            f"{sum(tally['documents'] for field in ('bad_rows', 'dropped') for tally in entry[field].values()):,}",
            f"{sum(tally['documents'] for tally in entry['kept'].values()):,}",
        )
        for part, entry in each
    ]
    head = ("source", "for", "format", "read", "lost", "kept")
    parts = [table(head, rows, numbers=(3, 4, 5)), source("ledger.json: train[], eval[]")]
    for entry in record.ledger.get("training", {}).get("sources", ()):
        name = code(plain(str(entry["source"]), 80))
        parts.append(note(join(name, f": {count(entry['tokens'])} tokens, read {number(entry['times_read'])} times")))
    return details(f"By source ({len(each)})", join(*parts), is_open=len(each) > 1)
