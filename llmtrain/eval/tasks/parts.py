"""A task that is measured part by part, so that an evaluation that is interrupted goes on where it stopped.

The items of each part are added to a file as soon as they are measured, with the way in which they were asked. Its
first line says of which model they are; a file of another is begun again.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from llmtrain.eval.tasks.measure import Asking, Watch, item_results, result_of
from llmtrain.eval.tasks.results import FORMAT, FREE_RESULTS, OF_MODEL, ItemResult, TaskResult
from llmtrain.eval.tasks.subject import Subject
from llmtrain.system.files import append_text, cut_torn_line, write_bytes
from llmtrain.system.json_lines import json_line, parsed, whole_lines
from llmtrain.tasks.rows import TaskRow, TaskRows
from llmtrain.tasks.task import BiasItem

KIND = "llmtrain evaluation, unfinished"
FIRST_ROWS = 16
PART_SECONDS = 30.0  # a part has twice as many rows as the last one until it takes so long
SUFFIX = ".unfinished"


class Unfinished:
    """The items that are measured so far, in a file beside the results to come."""

    def __init__(self, output: Path, model: Mapping[str, Any]) -> None:
        """Reads the items of a file that is of the same `model`, wherever it was; nothing is written yet."""
        self.path = output.with_name(output.name + SUFFIX)
        self.model = {fact: model.get(fact) for fact in OF_MODEL}
        self._head = json_line({"kind": KIND, "format": FORMAT, "model": self.model})
        self._is_begun = False
        self._items: dict[str, dict[str, ItemResult]] = {}  # way of asking -> key -> item
        lines = whole_lines(self.path)
        if next(lines, b"") == self._head.encode():
            self._is_begun = True
            cut_torn_line(self.path)
            for line in lines:
                if (row := parsed(line)) is not None:
                    item = ItemResult(**row["item"])
                    self._items.setdefault(row["way"], {})[item.item] = item

    def items_of(self, way: str) -> dict[str, ItemResult]:
        """The items that were asked in a way, by their keys."""
        return dict(self._items.get(way, {}))

    def add(self, items: Sequence[ItemResult], way: str) -> None:
        """Write items down. Raises ValueError if the disk is full."""
        if not self._is_begun:
            write_bytes(self.path, self._head.encode(), FREE_RESULTS)
            self._is_begun = True
        append_text(self.path, "".join(json_line({"way": way, "item": asdict(item)}) for item in items), FREE_RESULTS)

    def remove(self) -> None:
        """The results are saved: nothing is unfinished any more."""
        self.path.unlink(missing_ok=True)


def measured_tasks(
    subject: Subject, tasks: Sequence[TaskRows], asking: Asking, unfinished: Unfinished, report: Callable[[str], None]
) -> dict[str, TaskResult]:
    """The results of each task by its name, measured by parts. Raises ValueError as `item_results` does."""
    results = {}
    for task_rows in tasks:
        examples = f", {len(task_rows.shots)} examples before each" if task_rows.shots else ""
        report(f"{task_rows.task.name}: {len(task_rows.rows):,} items of {task_rows.path}{examples}")
        results[task_rows.task.name] = measured_by_parts(subject, task_rows, asking, unfinished, report)
    return results


def measured_by_parts(
    subject: Subject, task_rows: TaskRows, asking: Asking, unfinished: Unfinished, report: Callable[[str], None]
) -> TaskResult:
    """The results of a task, of which items that were measured before are not measured again.

    Raises ValueError as `item_results` does.
    """
    name, started = task_rows.task.name, time.monotonic()
    way = way_of_asking(task_rows, asking, unfinished.model, subject.tokenizer.chat_template)
    known = unfinished.items_of(way)
    # A kill may have left a part of a block, whose items would not be measured without the others.
    missing = [block for block in blocks(task_rows.rows) if any(row.key not in known for row in block)]
    num_missing = sum(map(len, missing))
    if num_known := len(task_rows.rows) - num_missing:
        report(f"{name}: {num_known:,} items were measured before, and are in {unfinished.path}")
    size, num_done = FIRST_ROWS, 0
    waiting = iter(missing)
    while part := taken(waiting, size):
        begun = time.monotonic()
        try:
            items = item_results(subject, replace(task_rows, rows=part), asking, Watch())
        except KeyboardInterrupt:
            if known:
                report(f"{name}: {len(known):,} items are in {unfinished.path}; the same command goes on from there")
            raise
        assert items is not None, "nothing asks it to stop"
        unfinished.add(items, way)
        known |= {item.item: item for item in items}
        num_done += len(part)
        now = time.monotonic()
        if num_done < num_missing:
            per_item = (now - started) / num_done
            rest = per_item * (num_missing - num_done)
            report(f"{name}: {num_known + num_done:,} of {len(task_rows.rows):,} items, {rest:.0f} s to go")
        if now - begun < PART_SECONDS:
            size *= 2
    return result_of(task_rows, asking, [known[row.key] for row in task_rows.rows])


def blocks(rows: Sequence[TaskRow[object]]) -> Iterable[list[TaskRow[object]]]:
    """Rows that only make sense together, in the order in which they begin; each other row alone."""
    found: dict[str, list[TaskRow[object]]] = {}
    for number, row in enumerate(rows):
        block = (row.item.block if isinstance(row.item, BiasItem) else "") or f"row {number}"
        found.setdefault(block, []).append(row)
    return found.values()


def taken(waiting: Iterator[list[TaskRow[object]]], size: int) -> list[TaskRow[object]]:
    """The next blocks, `size` rows or a few more; none if none is left."""
    part: list[TaskRow[object]] = []
    while len(part) < size and (block := next(waiting, None)) is not None:
        part += block
    return part


def way_of_asking(task_rows: TaskRows, asking: Asking, model: Mapping[str, Any], template: object) -> str:
    """16 digits of what decides a result besides its item: the task's file and examples, how it is asked, the model.

    The model too, although the file's first line has it: two processes may write into one file.
    """
    task = task_rows.task
    try:
        code = Path(inspect.getfile(task.item)).read_bytes()
    except (TypeError, OSError):  # no function of a file: its code is not known to be the same at another time
        code = os.urandom(8)
    how = (asking.chat and template, asking.max_new_tokens, asking.stops.ids, *asking.stops.texts)
    decides = (task.name, code, task_rows.example_text(), *how, sorted(model.items()))
    return blake2b(repr(decides).encode(errors="surrogatepass"), digest_size=8).hexdigest()
