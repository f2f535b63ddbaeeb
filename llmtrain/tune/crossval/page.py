"""`crossval.html`: the result, a row for each fold, the folds' curves over each other, the hardest items."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from llmtrain.config.data import Source
from llmtrain.data.formats.faults import masked_quote
from llmtrain.data.formats.instructions import Example, first_shown
from llmtrain.data.formats.labelled import Labelled
from llmtrain.data.formats.messages import shown
from llmtrain.data.formats.preferences import Preference
from llmtrain.data.formats.read import read_rows
from llmtrain.runs.record import RunRecord, read_run
from llmtrain.runs.report.figures import Scale, histogram
from llmtrain.runs.report.html import code, figure, grid, join, note, paragraph, table, tile, tiles
from llmtrain.runs.report.page import page
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.svg import plain
from llmtrain.runs.report.training import training_curves
from llmtrain.runs.report.values import count, counted, is_finite, number
from llmtrain.system.files import write_bytes
from llmtrain.tune.crossval.plan import FREE_DIR, Plan
from llmtrain.tune.crossval.rows import fold_file, read_records, reader_of
from llmtrain.tune.crossval.summary import DROPPED, PREDICTIONS, RESULT, Average, Record, Result

PAGE = "crossval.html"
NUM_HARDEST = 10
MOST_CURVES = 20
"""Folds whose curves are drawn; of more, the first ones."""
SPREAD = (
    "The interval is over {}, for these models. The standard deviation over folds shows how much the result depends on "
    "the rows; it is no error of the mean, since any two folds are trained mostly on the same rows "
    "(Bengio and Grandvalet 2004)."
)


def write_page(result: Result, command: str) -> Path:
    """Write the page into the folder of the folds; `command` trains on all rows. Raises ValueError."""
    records = [read_run(result.plan.run_folder(fold)) for fold in range(1, result.plan.num_folds + 1)]
    sections = [_result(result, command), _folds(result, records), _items(result)]
    curves = training_curves(records[:MOST_CURVES])
    sections += [] if curves is None else [curves]
    title = f"Cross-validation in {result.plan.num_folds} folds: {plain(result.plan.folder.resolve().name)}"
    text = page(title, sections, about=f"llmtrain {version('llmtrain')}")
    path = result.plan.folder / PAGE
    write_bytes(path, text.encode("utf-8", errors="replace"), FREE_DIR)
    return path


def _result(result: Result, command: str) -> Section:
    plan = result.plan
    story = (
        f"{counted(plan.num_used, 'row')} in {counted(plan.num_groups, 'group')} by {plan.grouped_by} make "
        f"{plan.num_folds} folds. Each of {plan.num_folds} runs was trained on all folds but one, and its model "
        f"predicted the rows of that one: {counted(len(result.items), 'item')}, each once."
    )
    left_out = ", ".join(f"{count(number)} {reason}" for reason, number in result.dropped.items())
    dropped = note(f"Left out of {counted(plan.num_rows, 'row')}: {left_out}.") if left_out else ""
    numbers = [_tile(average) for average in result.averages]
    groups = "items" if plan.num_groups == plan.num_used else f"groups by {plan.grouped_by}"
    last = join(Markup("The model to use is trained on all rows, with the same settings: "), code(command))
    body = join(paragraph(story), dropped, tiles(numbers), note(SPREAD.format(groups)), paragraph(last))
    return Section("Result", "result", body)


def _tile(average: Average) -> Markup:
    measure = average.measure
    remark = join(
        f"95 % interval {number(average.low)} to {number(average.high)}",
        Markup("<br>"),
        f"folds: {number(min(average.folds))} to {number(max(average.folds))}, standard deviation {average.std:.2g}",
    )
    return tile(f"{measure.name}, {measure.unit}", number(average.mean), remark, f"{RESULT}: measures")


def _folds(result: Result, records: Sequence[RunRecord]) -> Section:
    plan = result.plan
    head = ["fold", "rows trained on", "rows held out", "items", "steps"]
    head += ["held-out loss before", "after", *(f"{each.measure.name} of items" for each in result.averages)]
    rows = []
    for fold, record in enumerate(records, start=1):
        held_out = sum(plan.fold_rows[fold - 1])
        num_items = sum(item["fold"] == fold for item in result.items)
        losses = [row["eval_loss"] for row in (record.eval_rows[0], record.eval_rows[-1])] if record.eval_rows else []
        steps = record.train_rows[-1]["step"] if record.train_rows else 0
        rows.append(
            [
                str(fold),
                *map(count, (plan.num_used - held_out, held_out, num_items, steps)),
                *(number(loss) if is_finite(loss) else "not finite" for loss in losses or (None, None)),
                *(number(average.by_fold[fold - 1]) for average in result.averages),
            ]
        )
    places = note(
        join("Each fold is a separate run, with its report, in ", code(str(plan.run_folder(1))), " and so on.")
    )
    return Section("Folds", "folds", join(table(head, rows, numbers=range(len(head))), places))


def _items(result: Result) -> Section:
    measure = result.averages[-1].measure
    values = [float(item[measure.key]) for item in result.items]
    drawing = histogram({"": values}, Scale(f"{measure.name}, {measure.unit}"), title=f"{measure.name} of items")
    caption = f"{measure.name} of each item, by the model that never saw it."
    ordered = sorted(result.items, key=lambda item: item[measure.key], reverse=not measure.higher_is_better)
    hardest = ordered[:NUM_HARDEST]
    texts = _excerpts(result.plan, hardest)
    rows = [
        [code(item["where"]), str(item["fold"]), number(item[measure.key]), text]
        for item, text in zip(hardest, texts, strict=True)
    ]
    about = paragraph(
        "The hardest items: a row that no other row helps to predict is rare, hard, or wrong. Look here for errors in "
        "the data first."
    )
    rest = note(join("All items are in ", code(PREDICTIONS), ", rows that were left out in ", code(DROPPED), "."))
    body = join(
        grid([figure(drawing, caption, f"{PREDICTIONS}: {measure.key}")]),
        about,
        table(["row", "fold", measure.name, "what it is"], rows, numbers=(1, 2)),
        rest,
    )
    return Section("Items", "items", body)


def _excerpts(plan: Plan, items: Sequence[Record]) -> list[str]:
    """Each item's row, shortened to a line."""
    wanted = {item["row"] for item in items}
    found: dict[int, list[str]] = {}
    records = (record for record in read_records(plan.data) if "fold" in record)
    for (source, fold), group in groupby(sorted(records, key=_place), key=_place):
        of_part = list(group)
        if wanted.isdisjoint(record["row"] for record in of_part):
            continue
        part = Source(path=str(fold_file(plan.data, source, fold)), **plan.config.data.train[source].naming)
        for record, read in zip(of_part, read_rows(part, reader_of(plan.config, part)), strict=True):
            if record["row"] in wanted:
                found[record["row"]] = [excerpt(example) for example in read.examples]
    return [found[item["row"]][item.get("pair", 0)] for item in items]


def _place(record: Record) -> tuple[int, int]:
    return record["source"], record["fold"]


def excerpt(example: Example | Preference | Labelled) -> str:
    """A row's example on a line, shortened."""
    match example:
        case Labelled():
            label = "desirable" if example.desirable else "undesirable"
            return f"{shown(example.conversation.messages)} ({label})"
        case Preference():
            num_prompt = example.chosen.num_prompt
            chosen, rejected = (
                " -> ".join(masked_quote(str(message["content"])) for message in side.messages[num_prompt:])
                for side in (example.chosen, example.rejected)
            )
            return f"{shown(example.chosen.messages[:num_prompt])} -> chosen {chosen}, rejected {rejected}"
        case _:
            return first_shown(example)
