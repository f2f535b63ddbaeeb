"""The loop beside the plainest loop over the same forward, backward and optimizer, for `pretrain.py`.

    python benchmarks/bare_loop.py CONFIG MICROBATCH_TOKENS

The configuration's steps are replaced by NUM_BLOCKS blocks of BLOCK_STEPS.

Our side is the real `Loop` and `Runtime` with its data, schedule, guard, log and checkpoints, as the recipe puts them
together. The bare side has its own copy of the module and optimizer, and its batches lie in memory before the clock
starts. Both run in one process and take turns every BLOCK_STEPS steps: whenever our loop asks for the first batch of
a block, its source first lets the bare loop run that block. So both meet the same caches and the same minutes, and
the median over pairs of blocks shows differences of a percent. Both take the same steps on the same batches: their
weights must agree in the end. The first pair is left out. The last line is JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from llmtrain.batch import PackedTokens
from llmtrain.config.load import load_config
from llmtrain.config.recipes import PretrainConfig
from llmtrain.data.loader.batches import StoredBatches, collate
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.documents import StreamPacking
from llmtrain.data.store.text import build_text_stores
from llmtrain.data.tokenize import load_tokenizer
from llmtrain.models.cpu.layers import fuse_layers
from llmtrain.models.load import load_model
from llmtrain.models.param_kinds import parameters_by_kind
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.objectives.next_token import NextToken
from llmtrain.recipes.command import prepare_process
from llmtrain.system.device import peak_memory_bytes
from llmtrain.system.stop_signal import StopSignal
from llmtrain.train.checkpoint import Checkpoints
from llmtrain.train.loop import Loop
from llmtrain.train.optim import make_optimizer
from llmtrain.train.profile import StepProfiler
from llmtrain.train.run_log import RunLog
from llmtrain.train.runtime import Runtime
from llmtrain.train.schedule import make_schedule
from llmtrain.train.step_guard import StepGuard

BLOCK_STEPS = 2
NUM_BLOCKS = 20


def bare_loop(
    module: CausalLMLoss, optimizer: Optimizer, steps: Sequence[Sequence[PackedTokens]], max_grad_norm: float
) -> None:
    """What every training loop does, and no more."""
    parameters = list(module.parameters())
    for microbatches in steps:
        num_trained = sum(batch.num_trained for batch in microbatches)
        for batch in microbatches:
            (module(batch).objective / num_trained).backward()
        clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def first_steps(source: StoredBatches[PackedTokens], num_steps: int) -> list[list[PackedTokens]]:
    """The next steps of a source, fewer where it ends."""
    steps: list[list[PackedTokens]] = []
    while len(steps) < num_steps and (step := source.next_step()) is not None:
        steps.append(step)
        source.advance()
    return steps


class TakingTurns:
    """Our batch source, which lets the bare loop run each block of steps before it hands out the same ones."""

    def __init__(self, source: StoredBatches[PackedTokens], same: StoredBatches[PackedTokens], bare: Any) -> None:
        self._source, self._same, self._bare = source, same, bare
        self._step, self._started = 0, 0.0
        self.bare_seconds: list[float] = []
        self.our_seconds: list[float] = []

    def next_step(self) -> list[PackedTokens] | None:
        if self._step % BLOCK_STEPS == 0:
            if self._step:
                self.our_seconds.append(time.perf_counter() - self._started)
            block = first_steps(self._same, BLOCK_STEPS)
            started = time.perf_counter()
            if block:
                self._bare(block)
                self.bare_seconds.append(time.perf_counter() - started)
            self._started = time.perf_counter()
        return self._source.next_step()

    def advance(self) -> None:
        self._source.advance()
        self._step += 1

    @property
    def epoch(self) -> float:
        return self._source.epoch

    def metrics(self) -> Mapping[str, float]:
        return self._source.metrics()

    def state_dict(self) -> dict[str, Any]:
        return self._source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._source.load_state_dict(state)


def new_module(config: PretrainConfig) -> tuple[CausalLMLoss, Optimizer]:
    """The module and optimizer that the recipe would make; the same weights each time."""
    assert config.tokenizer.path is not None
    tokenizer = load_tokenizer(config.tokenizer.path)
    model = load_model(config.model, tokenizer, max_seq_len=config.data.max_seq_len, seed=config.run.seed)
    fuse_layers(model)
    module = wrap_causal_lm(model, "segments", config.data.max_seq_len, torch.device("cpu"))
    return module, make_optimizer(parameters_by_kind(model), config.optim)


def train_both(config: PretrainConfig, folder: Path) -> tuple[TakingTurns, nn.Module, nn.Module]:
    """Train our module and the bare one, a block each in turn."""
    assert config.tokenizer.path is not None and config.optim.max_grad_norm is not None
    assert config.optim.schedule == "constant" and config.optim.warmup_steps == 0
    max_grad_norm = config.optim.max_grad_norm
    runtime = Runtime(
        precision=config.train.precision,
        max_grad_norm=max_grad_norm,
        seed=config.run.seed,
        timeout_minutes=config.run.timeout_minutes,
    )
    stores = build_text_stores(config.data, load_tokenizer(config.tokenizer.path), report=runtime.say)
    packed = [StreamPacking(store, config.data.max_seq_len, config.data.isolate_documents) for store in stores.train]
    plan = plan_data(config, packed, [], runtime)
    bare_module, bare_optimizer = new_module(config)
    bare_module.train()
    source = TakingTurns(
        plan.batches(collate, runtime),
        plan.batches(collate, runtime),
        lambda steps: bare_loop(bare_module, bare_optimizer, steps, max_grad_norm),
    )
    our_module, our_optimizer = new_module(config)
    prepared, optimizer = runtime.prepare(our_module, our_optimizer)
    log = RunLog(
        folder,
        may_write=lambda: True,
        num_steps=plan.num_steps,
        flops=lambda totals: 0.0,  # no MFU: the log's clock counts the bare loop's time too
        peak_flops=1.0,
        track=runtime.track,
        memory_bytes=lambda: peak_memory_bytes(runtime.device),
    )
    with log:
        Loop(
            runtime=runtime,
            model=prepared,
            optimizer=optimizer,
            objective=NextToken(),
            source=source,
            schedule=make_schedule(config.optim, plan.num_steps),
            num_steps=plan.num_steps,
            evaluate=None,
            checkpoints=Checkpoints(folder / "checkpoints", config.checkpoint.keep, config.checkpoint.best),
            log=log,
            guard=StepGuard(config.train.max_nonfinite_steps, config.train.spike_factor),
            stop=StopSignal(),
            profiler=StepProfiler(None, folder, rank=0, num_steps=plan.num_steps),
            eval_config=config.eval,
            checkpoint_config=config.checkpoint,
            log_config=config.log,
        ).run()
    runtime.finish()
    return source, our_module, bare_module


def main() -> None:
    prepare_process()  # as the recipe does
    path, microbatch_tokens = sys.argv[1:]
    steps = BLOCK_STEPS * NUM_BLOCKS
    config = load_config(PretrainConfig, [path, f"train.microbatch_tokens={microbatch_tokens}", f"train.steps={steps}"])
    with tempfile.TemporaryDirectory() as folder:
        turns, ours, bare = train_both(config, Path(folder))
    our_seconds, bare_seconds = turns.our_seconds[1:], turns.bare_seconds[1:]
    pairs = zip(ours.parameters(), bare.parameters(), strict=True)
    block_tokens = BLOCK_STEPS * config.train.global_batch_tokens
    result = {
        "steps": steps,
        "ours_tokens_per_second": block_tokens / statistics.median(our_seconds),
        "bare_tokens_per_second": block_tokens / statistics.median(bare_seconds),
        "ratios": [bare_time / our_time for our_time, bare_time in zip(our_seconds, bare_seconds, strict=True)],
        "weight_difference": max((one - other).abs().max().item() for one, other in pairs),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
