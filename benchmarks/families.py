"""Speed of a training step against TRL and plain transformers, on the same documents at 40 % fill, on a CPU.

    python benchmarks/families.py [--models mamba2,gptj] [--steps 7] [--threads 1] [--quick]

Four ways train equal copies of a small model in one process, with the same 16 documents per step, and take turns:

    packs    llmtrain's loop, on the path that the start-up check takes, if that is packs
    rows     llmtrain's loop on its fallback: documents sorted into rows of about one length
    trl      trl.SFTTrainer without packing: one batch, padded to the longest, with a mask
    plain    transformers' forward of the same batch, in a bare loop

A step is everything between two batches: tensors from token ids, forward, backward, clipping to norm 1, fused AdamW, in
fp32 without gradient checkpointing. Nothing is evaluated, logged or saved. What counts is the median over turns of the
ratio within one turn; the first two turns warm up. The losses of the first step must be equal; those of the last show
whether the ways have trained alike.

What only some of them do: llmtrain checks that loss and gradients are finite, finds the error rate, and has shorter
forms of RMSNorm and SwiGLU, as its recipes have on a CPU. TRL finds entropy and accuracy, which it would log. Both take
their head in chunks, at the trained tokens only; the bare loop takes whole logits, padding included, and has none of
the rest. TRL's rows come from an Arrow table through a data loader, llmtrain's from a list: no store on disk is read.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from families_peer import Bare, Steps, Turns, make_trl
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmtrain.batch import IGNORE_INDEX, PackedTokens
from llmtrain.config.sections import CheckpointConfig, EvalConfig, LogConfig, OptimConfig
from llmtrain.models.cpu.prepare import prepare_layers
from llmtrain.models.paths.path import Path as DocumentPath
from llmtrain.models.paths.rows import padding_share
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.objectives.next_token import NextToken
from llmtrain.protocols import Counts, Metrics
from llmtrain.system.device import ROWS
from llmtrain.system.stop_signal import StopSignal
from llmtrain.train.checkpoint import Checkpoints
from llmtrain.train.loop import Loop
from llmtrain.train.optim import make_optimizer
from llmtrain.train.profile import StepProfiler
from llmtrain.train.run_log import RunLog
from llmtrain.train.runtime import Runtime
from llmtrain.train.step_guard import StepGuard

CPU = torch.device("cpu")
WARM_UP, LOSS_TOLERANCE = 2, 1e-5
OPTIM = OptimConfig(lr=1e-4, weight_decay=0.0, schedule="constant", warmup_steps=0)
WIDTH, VOCAB, LONGEST, NUM_DOCUMENTS, FILL = 256, 2048, 256, 16, 0.4
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "pad_token_id": 0,
    "max_position_embeddings": 1024,
}
TURNS = {"layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"]}
DELTA = {"linear_num_key_heads": 4, "linear_num_value_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
STATES = {"num_heads": 8, "head_dim": 64, "n_groups": 1, "state_size": 32, "chunk_size": 64}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("short convolutions", SHAPE | {"layer_types": ["conv", "full_attention"] * 2}),
    "qwen3_5_text": ("gated delta", SHAPE | TURNS | DELTA),
    "mamba2": ("state space", SHAPE | STATES),
    "gptj": ("rows only", {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 4, "n_head": 4, "n_positions": 512}),
}


def documents(seed: int) -> list[Tensor]:
    """Documents whose batch, padded to the longest, is filled by FILL."""
    drawn = random.Random(seed)
    lengths = [LONGEST]
    while len(lengths) < NUM_DOCUMENTS:
        lengths.append(min(LONGEST, max(8, int(drawn.expovariate(1 / (LONGEST * 0.38))))))
    scale = (FILL * NUM_DOCUMENTS * LONGEST - LONGEST) / (sum(lengths) - LONGEST)
    lengths[1:] = [min(LONGEST, max(4, int(length * scale))) for length in lengths[1:]]
    drawn.shuffle(lengths)
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]


def packed(texts: Sequence[Tensor]) -> PackedTokens:
    labels = [torch.cat([text[1:], torch.tensor([IGNORE_INDEX])]) for text in texts]
    return PackedTokens(
        input_ids=torch.cat(list(texts)),
        labels=torch.cat(labels),
        position_ids=torch.cat([torch.arange(len(text)) for text in texts]),
        segment_lengths=tuple(len(text) for text in texts),
        num_trained=sum(len(text) - 1 for text in texts),
        sample_ids=(0,),
    )


def make_model(architecture: str) -> PreTrainedModel:
    """A model with the attention that transformers chooses for it; the same weights each time."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **MODELS[architecture][1]), dtype=torch.float32
    )
    return model.train()


@dataclass
class Source:
    """The documents of each step as one microbatch."""

    steps: Steps
    position: int = 0

    def next_step(self) -> list[PackedTokens]:
        return [packed(self.steps[self.position])]

    def advance(self) -> None:
        self.position += 1

    epoch = 0.0

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class Noted(NextToken):
    """The objective, whose losses are kept."""

    losses: list[Tensor] = field(default_factory=list)

    def loss(self, model: nn.Module, batch: PackedTokens, totals: Counts) -> tuple[Tensor, Metrics]:
        share, metrics = super().loss(model, batch, totals)
        self.losses.append(metrics["loss"])
        return share, metrics


def make_loop(module: CausalLMLoss, objective: Noted, steps: Steps, folder: Path) -> Loop[PackedTokens]:
    """The loop that a recipe would run, without evaluations, checkpoints and a log."""
    runtime = Runtime(precision="fp32", max_grad_norm=OPTIM.max_grad_norm, seed=0, timeout_minutes=1)
    prepared, optimizer = runtime.prepare(module.train(), make_optimizer(module.parameters_by_kind(), OPTIM))
    runtime.make_state()
    nobody: dict[str, Any] = {"flops": lambda _: 0.0, "track": lambda *_: None, "memory_bytes": lambda: 0}
    return Loop(
        runtime=runtime,
        model=prepared,
        optimizer=optimizer,
        objective=objective,
        source=Source(steps),
        schedule=lambda step: 1.0,
        num_steps=len(steps),
        evaluate=None,
        checkpoints=Checkpoints(folder / "checkpoints", 1, False),
        log=RunLog(folder, may_write=lambda: False, num_steps=len(steps), peak_flops=1.0, **nobody),
        guard=StepGuard(1, None),
        stop=StopSignal(),
        profiler=StepProfiler(None, folder, 0, len(steps)),
        eval_config=EvalConfig(every=None),
        checkpoint_config=CheckpointConfig(every=None),
        log_config=LogConfig(every=1),
    )


def ours(architecture: str) -> dict[str, CausalLMLoss]:
    """Our ways of a model, with the layers that the recipes take on a CPU."""
    model, of_rows = make_model(architecture), make_model(architecture)
    for each in (model, of_rows):
        prepare_layers(each, CPU)
    found = wrap_causal_lm(model, "segments", 2 * LONGEST, CPU)
    if found.kernel in ROWS:
        return {"rows": found}
    path = DocumentPath("padded", {}, of_rows.config._attn_implementation, "asked for")
    return {"packs": found, "rows": CausalLMLoss(path.put_into(of_rows), "padded", found.form, path)}


def measure(architecture: str, num_steps: int) -> dict[str, float]:
    """How many times as fast our ways are, printed and returned; raises SystemExit if first losses differ."""
    steps = [documents(seed) for seed in range(WARM_UP + num_steps)]
    modules = ours(architecture)
    print(f"{architecture} ({MODELS[architecture][0]}): {next(iter(modules.values())).path.line}", flush=True)
    objectives = {way: Noted() for way in modules}
    with tempfile.TemporaryDirectory() as folder:
        loops = {way: make_loop(module, objectives[way], steps, Path(folder)) for way, module in modules.items()}
        bare = Bare(make_model(architecture), steps, OPTIM)
        turns = Turns({**{way: loop._step for way, loop in loops.items()}, "plain": bare.step})
        trainer = make_trl(make_model(architecture), steps, OPTIM, Path(folder), turns)
        trainer.train()
    losses = {way: objective.losses for way, objective in objectives.items()}
    losses |= {"plain": bare.losses, "trl": trainer.losses}
    seconds = {way: taken[WARM_UP:] for way, taken in turns.seconds.items()}
    for way, taken in seconds.items():
        first, last = float(losses[way][0]), float(losses[way][-1])
        print(f"  {way:6} {statistics.median(taken):7.3f} s per step  loss {first:.6f} to {last:.6f}")
        if not abs(first - float(losses["trl"][0])) <= LOSS_TOLERANCE * first:
            sys.exit(f"{architecture}: the first loss of {way} is not TRL's, so this is no comparison")
    padding = [padding_share([packed(texts)], "padded") for texts in steps]
    print(f"  padding: rows {statistics.mean(padding):.0%}, trl and plain {1 - FILL:.0%}")
    line = {}
    for way in modules:
        for other in ("plain", "trl"):
            ratios = [theirs / mine for theirs, mine in zip(seconds[other], seconds[way], strict=True)]
            line[f"{way}_vs_{other}"] = round(statistics.median(ratios), 2)
            print(f"  {way:6} {line[f'{way}_vs_{other}']:5.2f}x {other:6} ({min(ratios):.2f} to {max(ratios):.2f})")
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="some of these, with commas between them")
    parser.add_argument("--steps", type=int, default=7, help="turns that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two turns that count")
    options = parser.parse_args()
    names = options.models.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"--models={unknown[0]}: there is {', '.join(MODELS)}")
    if torch.accelerator.is_available():
        parser.error("this compares on a CPU: hide the GPUs, with CUDA_VISIBLE_DEVICES= before the command")
    torch.set_num_threads(options.threads)
    print(json.dumps({name: measure(name, 2 if options.quick else options.steps) for name in names}))


if __name__ == "__main__":
    main()
