"""What `llmtrain preview` counts below the packs."""

from __future__ import annotations

import io

from rich.console import Console

from llmtrain.cli.preview import totals
from llmtrain.data.ledger import Ledger, SourceLedger, TokenTally


def account(path: str, num_tokens: int) -> SourceLedger:
    ledger = SourceLedger(path=path)
    ledger.read.add(8)
    ledger.kept["train"].add(8)
    ledger.tokens["train"] = TokenTally(tokens=num_tokens, text_tokens=num_tokens)
    ledger.drop("no trained token within data.max_seq_len", 0)
    return ledger


def test_sources_are_named_whole_and_held_out_ones_as_such() -> None:
    sources = "runs/demo/rows/instructions.jsonl", "runs/demo/rows/instructions_held_out.jsonl"
    shown = io.StringIO()
    ledger = Ledger([account(sources[0], 7)], [account(sources[1], 5)])
    Console(file=shown, width=80).print(totals(ledger))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.getvalue().splitlines() if "│" in line]
    assert [(row[1], row[3]) for row in cells if row[3]] == [("train", "7"), ("eval", "5")]
    assert "…" not in shown.getvalue()
    assert "".join(row[0] for row in cells) == "".join(source * 2 for source in sources)
