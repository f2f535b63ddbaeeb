"""The stores of a configuration, built without training: by several processes here, and by others elsewhere.

    read the configurations -> what their stores are made of -> workers make the shards -> this process joins them

A worker is this machine's share of a core or more. It does what the same command on another machine does: it makes the
shards that nobody else makes (`data.store.shards`). One that is killed leaves its shard to the others, and all that is
left at the end to this process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess

from llmtrain.config.recipes import (
    PolicyStageConfig,
    PreferenceStageConfig,
    PretrainConfig,
    RecipeConfig,
    RewardStageConfig,
    SftConfig,
)
from llmtrain.data.prompts import load_prompts
from llmtrain.data.sources.files import Files
from llmtrain.data.store.build import check_sources, find_or_build, help_build
from llmtrain.data.store.kinds import answer_specs, chat_specs, pair_specs
from llmtrain.data.store.shards import SHARD_BYTES
from llmtrain.data.store.spec import StoreSpec, StoreSpecs
from llmtrain.data.store.text import text_specs
from llmtrain.data.store.token_store import is_store
from llmtrain.recipes.model import given_model, open_chat
from llmtrain.recipes.pretrain import open_tokenizer
from llmtrain.system.cores import ENCODING_THREADS, usable_cores
from llmtrain.system.exit_codes import EXIT_USER_ERROR, signal_name
from llmtrain.system.stop_signal import SIGNALS
from llmtrain.system.terminal import say
from llmtrain.system.typing import Report


def prepare(configs: Mapping[str, RecipeConfig], num_workers: int | None, report: Report) -> None:
    """Build every store that is missing. Raises ValueError, one line, for what training would refuse of the data."""
    all_specs = [specs for config in configs.values() if (specs := _specs(config, report)) is not None]
    for specs in all_specs:
        check_sources(specs, report)
    missing = [spec for specs in all_specs for spec in specs if not is_store(spec.folder)]
    for spec in (spec for specs in all_specs for spec in specs if spec not in missing):
        report(f"{spec.named}: ready, in {spec.folder}")
    if num_workers is None:
        num_workers = min(usable_cores(), _num_shards(missing))
    if missing and num_workers > 1:
        _run_workers(configs, num_workers, report)
    for specs in all_specs:
        help_build(specs, report)  # with other commands; after workers of this one, what was left by a kill
        find_or_build(specs, report)
    for config in configs.values():
        if isinstance(config, PolicyStageConfig):
            _check_prompts(config, report)


def _specs(config: RecipeConfig, report: Report) -> StoreSpecs | None:
    """What the stores of a recipe are made of; None: it has none."""
    match config:
        case PretrainConfig():
            _, tokenizer, _ = open_tokenizer(config, report=report)
            return text_specs(config.data, tokenizer, report=report)
        case SftConfig():
            chat = open_chat(config, given_model(config), config.data.loss_on, report=report)
            return chat_specs(config.data, chat.encoder, report=report)
        case RewardStageConfig():
            chat = open_chat(config, given_model(config), report=report)
            return pair_specs(config.data, chat.encoder, report=report)
        case PreferenceStageConfig():
            chat = open_chat(config, given_model(config), report=report)
            made = answer_specs if config.preference.loss == "kto" else pair_specs
            return made(config.data, chat.encoder, report=report)
    return None


def _check_prompts(config: PolicyStageConfig, report: Report) -> None:
    """Read the prompts of a policy as its run will, since a bad row would stop it."""
    chat = open_chat(config, given_model(config), report=report)
    load_prompts(config.data, chat.tokenizer, max_new_tokens=config.rollout.max_new_tokens, report=report)
    report("prompts have no store: the run reads them when it starts, as here")


def _num_shards(specs: Sequence[StoreSpec]) -> int:
    """About how many shards stores have, by the size of their files."""
    locations = [spec.read.location for spec in specs if spec.read is not None]
    files = [location for location in locations if isinstance(location, Files)]
    if len(files) < len(locations):
        return usable_cores()  # the hub does not say how much it holds
    return -(-sum(path.stat().st_size for each in files for path in each.paths) // SHARD_BYTES)


def _run_workers(configs: Mapping[str, RecipeConfig], num_workers: int, report: Report) -> None:
    """Start workers and wait for them. Raises ValueError with the first error of one."""
    context = multiprocessing.get_context("forkserver")  # which imports once for all, and has no threads to lose
    context.set_forkserver_preload([__name__])
    workers: dict[ForkServerProcess, Connection] = {}
    try:
        for number in range(num_workers):
            errors, sending = context.Pipe(duplex=False)
            threads = max(1, usable_cores() // num_workers)
            worker = context.Process(target=_work, args=(configs, threads, number == 0, sending))
            worker.start()
            sending.close()
            workers[worker] = errors
        report(f"{num_workers} workers: processes {', '.join(str(worker.pid) for worker in workers)}")
        running = set(workers)
        while running:
            wait([worker.sentinel for worker in running])
            for worker in [each for each in running if each.exitcode is not None]:
                running.remove(worker)
                if worker.exitcode == EXIT_USER_ERROR and workers[worker].poll():
                    raise ValueError(workers[worker].recv())
                if worker.exitcode:
                    report(f"process {worker.pid} ended with {_ending(worker.exitcode)}: others make what it has left")
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal_name(-code)


def _work(configs: Mapping[str, RecipeConfig], threads: int, reports: bool, errors: Connection) -> None:
    """Make shards of all stores of a configuration until all are made; one of the workers reports."""
    for number in SIGNALS:  # which a terminal or Slurm sends to all; the process that started this one ends it
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ[ENCODING_THREADS] = str(threads)
    report: Report = say if reports else (lambda line: None)
    try:
        for config in configs.values():
            specs = _specs(config, lambda line: None)
            if specs is not None:
                help_build(specs, report)
    except ValueError as error:
        errors.send(str(error))
        os._exit(EXIT_USER_ERROR)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
