"""Show what a tuning run will train on: `llmtrain preview CONFIG [key=value ...]`.

Trained tokens are bright, the others dim; special tokens have their own colour; a line separates the documents of a
pack. The ledger's totals come last. Nothing is trained, and the run's folder is not made.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from llmtrain.data.ledger import SPLITS, Ledger
from llmtrain.system.console import open_console, print_line
from llmtrain.system.counted import counted
from llmtrain.system.visible import visible, visible_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmtrain.data.packing.documents import Pack

TRAINED, MASKED, SPECIAL, TRAINED_SPECIAL = "green", "bright_black", "yellow dim", "bold yellow"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a shipped configuration")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="as for the recipe")
    parser.add_argument("--packs", type=int, default=2, help="packs to show, the first of the run (default: 2)")


def run(arguments: argparse.Namespace) -> None:
    """Build or open the stores as the recipe does, and show the first packs of its first steps."""
    from llmtrain.config.load import load_config
    from llmtrain.config.recipes import SftConfig
    from llmtrain.data.chat.tokenizer import open_chat_tokenizer
    from llmtrain.data.loader.batches import SingleProcess
    from llmtrain.data.loader.plan import plan_data
    from llmtrain.data.packing.documents import pack_documents
    from llmtrain.data.store.kinds import build_chat_stores
    from llmtrain.recipes.model import given_model

    if arguments.packs < 1:
        raise ValueError(f"--packs={arguments.packs}: must be at least 1")
    config = load_config(SftConfig, [arguments.config, *arguments.overrides])
    console = open_console()
    model = given_model(config)
    chat = open_chat_tokenizer(model, config.tokenizer, config.data, config.data.loss_on)
    report = partial(print_line, console)
    stores = build_chat_stores(config.data, chat.encoder, report=report)
    as_given = config.data.order == "given"
    packed = [pack_documents(store, config.data.max_seq_len, report, as_given=as_given) for store in stores.train]
    plan = plan_data(config, packed, [], SingleProcess())
    console.print(legend(console.is_terminal))
    for number in range(min(arguments.packs, plan.num_packs)):
        source, _ = plan.order(number)
        pack = plan.train_pack(number)
        path = visible_line(config.data.train[source].path)
        console.print(Rule(Text(f"pack {number}: {len(pack.input_ids)} tokens, {path}")))
        for i, line in enumerate(shown(pack, chat.tokenizer)):
            if i:
                console.print(Rule(characters="·", style="dim"))
            console.print(line)
    console.print(Rule("all rows"))
    console.print(totals(stores.ledger))
    targets = sum(packing.num_targets for packing in packed)
    console.print(
        f"{targets:,} tokens are trained in an epoch over all sources, of "
        f"{counted(sum(packing.num_packs for packing in packed), 'pack')}"
    )
    for said in plan.report():
        report(said)


def legend(is_terminal: bool) -> Text:
    """What the colours mean, in the colours themselves; in a pipe, that there are none."""
    styles = {"trained": TRAINED, "read, not trained": MASKED, "special": SPECIAL, "special, trained": TRAINED_SPECIAL}
    text = Text("tokens: ")
    for i, (meaning, style) in enumerate(styles.items()):
        text.append(" | " * (i > 0)).append(meaning, style)
    return text if is_terminal else text.append(" (by colour, which only a terminal shows)")


def shown(pack: Pack, tokenizer: PreTrainedTokenizerBase) -> Iterator[Text]:
    """Each document of a pack as coloured text; a token is bright where the one before it has it as its label."""
    from llmtrain.batch import IGNORE_INDEX

    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    start = 0
    for length in pack.segment_lengths:
        ids = pack.input_ids[start : start + length].tolist()
        trained = [False, *(pack.labels[start : start + length - 1] != IGNORE_INDEX).tolist()]
        text = Text()
        run: list[int] = []
        style = ""
        for token, is_trained in zip(ids, trained, strict=True):
            if token in special:
                wanted = TRAINED_SPECIAL if is_trained else SPECIAL
            else:
                wanted = TRAINED if is_trained else MASKED
            if wanted != style and run:
                text.append(visible(str(tokenizer.decode(run))), style)
                run = []
            style = wanted
            run.append(token)
        text.append(visible(str(tokenizer.decode(run))), style)
        yield text
        start += length


def totals(ledger: Ledger) -> Table:
    """What became of every row and token, by source; of rows that were left out, why."""
    table = Table("source", "what", "rows", "tokens", "trained", "masked", "cut off")
    for column in table.columns:
        column.overflow = "fold"  # a path is whole, over several lines if need be
    for source in (*ledger.train, *(each.held_out() for each in ledger.eval)):
        path = Text(visible_line(source.path))
        for split in SPLITS:
            tally = source.tokens[split]
            if tally.tokens:
                numbers = (tally.tokens, tally.trained_tokens, tally.masked_tokens, tally.truncated_tokens)
                rows = source.kept[split].documents
                table.add_row(path, split, *(f"{number:,}" for number in (rows, *numbers)))
        for reason, left_out in (*source.bad_rows.items(), *source.dropped.items()):
            table.add_row(path, Text(visible_line(f"left out: {reason}")), f"{left_out.documents:,}")
    return table
