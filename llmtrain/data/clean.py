"""Optional cleaning: documents in, fewer documents out, each drop counted by the step that made it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from llmtrain.config import CleanConfig, Source
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.rows import iter_documents
from llmtrain.data.text import Document

Step = tuple[str, Callable[[Document], bool]]
"""Its name in the ledger, and whether it drops a document."""


class Cleaner:
    """Cleans a run's sources in order; a duplicate is one of any document of this source or one before it."""

    def __init__(self, config: CleanConfig, sources: Sequence[Source], on_bad_row: Literal["error", "skip"]) -> None:
        self._sources, self._on_bad_row = sources, on_bad_row
        self._num_seen = 0  # sources whose documents went through the steps
        self._config = config
        self._steps: list[Step] | None = None  # made on first use: a run that finds its stores needs none

    @property
    def spans_sources(self) -> bool:
        """Whether what is kept of a source depends on the sources before it."""
        return self._config.exact_dedup or self._config.near_dedup is not None

    def clean(self, index: int, documents: Iterator[Document], ledger: SourceLedger) -> Iterator[Document]:
        """The documents of source number `index` that every step lets through.

        Sources before it whose stores were found, and so were not cleaned in this process, are read first.
        """
        if self._steps is None:
            self._steps = _steps(self._config)
        if self.spans_sources:
            for source in self._sources[self._num_seen : index]:
                unused = SourceLedger(path=source.path)
                deque(self._kept(iter_documents(source, self._on_bad_row, unused), unused), maxlen=0)
            self._num_seen = index + 1
        yield from self._kept(documents, ledger)

    def _kept(self, documents: Iterator[Document], ledger: SourceLedger) -> Iterator[Document]:
        assert self._steps is not None
        for document in documents:
            dropped_by = next((name for name, drops in self._steps if drops(document)), None)
            if dropped_by is None:
                yield document
            else:
                ledger.drop(dropped_by, document.num_bytes)


def _steps(config: CleanConfig) -> list[Step]:
    """The steps that are on, in the order of the configuration."""
    return []
