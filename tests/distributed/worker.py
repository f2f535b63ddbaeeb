"""What one process of the engine tests does: train a tiny tied Llama, with two bad steps, save, go back, go on.

Writes what it saw (`seen.json`) and full states (`final`, `resumed`, `ema`, `muon`) into the folder given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsdp_on_cpu
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, LlamaConfig

from llmtrain.batch import IGNORE_INDEX, PackedTokens
from llmtrain.config.sections import OptimConfig
from llmtrain.models.attention import ATTENTION
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.train.checkpoint import Checkpoint, Checkpoints
from llmtrain.train.ema import Ema
from llmtrain.train.engines.table import refusal
from llmtrain.train.optim import make_optimizer as make_muon
from llmtrain.train.optim import shrink_l1
from llmtrain.train.runtime import Runtime

STEPS, SAVED_STEP = 20, 10
NUM_TOKENS = 30
TRAINED_TOKENS = ((25, 5), (4, 1))  # by rank of two, by microbatch: 5:1 and more between any two
NAN_LOSS_STEP, NAN_GRADIENT_STEP = 4, 13
MAX_GRAD_NORM = 0.5
TIMEOUT_MINUTES = 2.0


def make_model() -> nn.Module:
    """A Llama with tied embeddings, our loss inside, a frozen weight and a buffer to save, the same on every rank."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    model.model.norm.weight.requires_grad_(False).mul_(1.5)
    model.register_buffer("saved", torch.tensor([3.0, 4.0]))
    return wrap_causal_lm(model, "segments", NUM_TOKENS, torch.device("cpu"))


def trainable(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices and vectors."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() == 1]


def make_optimizer(model: nn.Module) -> Optimizer:
    """AdamW over two parameter groups: matrices are decayed, vectors are not."""
    matrices, vectors = trainable(model)
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))


def microbatches(step: int, rank: int, world_size: int) -> Iterator[tuple[PackedTokens, bool]]:
    """(microbatch, whether it is the one that goes bad) of a step; one process gets those of both ranks."""
    for owner in range(2) if world_size == 1 else [rank]:
        for i, num_trained in enumerate(TRAINED_TOKENS[owner]):
            generator = torch.Generator().manual_seed(1000 * step + 10 * owner + i)
            ids = torch.randint(0, 48, (NUM_TOKENS + 1,), generator=generator)
            labels = torch.where(torch.arange(NUM_TOKENS) < num_trained, ids[1:], IGNORE_INDEX)
            positions, lengths = torch.arange(NUM_TOKENS), (NUM_TOKENS,)
            yield PackedTokens(ids[:-1], labels, positions, lengths, num_trained, ()), owner == 1 and i == 0


class NanGradient(torch.autograd.Function):
    """Passes a value on, and NaN instead of its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("nan")


def train(
    runtime: Runtime,
    model: nn.Module,
    optimizer: Optimizer,
    first: int,
    last: int,
    mean_of_means: bool = False,
    ema: Ema | None = None,
) -> list[bool]:
    """Steps `first` to `last`; whether each was applied."""
    applied = []
    for step in range(first, last):
        batches = list(microbatches(step, runtime.rank, runtime.world_size))
        runtime.seed_step(step)
        runtime.set_lr(optimizer, [3e-3 * (1 + step % 3), 1e-3])
        totals, _ = runtime.sum_counts([{"tokens": batch.num_trained} for batch, _ in batches], False)
        for i, (batch, is_marked) in enumerate(batches):
            with runtime.microbatch(last=i == len(batches) - 1):
                share = model(batch).objective / (4 * batch.num_trained if mean_of_means else totals["tokens"])
                if is_marked and step == NAN_LOSS_STEP:
                    share = share * float("nan")
                if is_marked and step == NAN_GRADIENT_STEP:
                    share = NanGradient.apply(share)
                runtime.backward(share)
        applied.append(runtime.step().applied)
        if ema is not None and applied[-1]:
            ema.update(step + 1)
    return applied


def save_named(runtime: Runtime, folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    if runtime.is_main:
        save_file(tensors, folder / f"{name}.safetensors")


@torch.no_grad()
def evaluate(runtime: Runtime, model: nn.Module) -> Tensor:
    """The loss of a forward without a backward, as an evaluation leaves the model before a save."""
    model.eval()
    loss: Tensor = model(next(microbatches(0, runtime.rank, runtime.world_size))[0]).objective
    model.train()
    return loss


def full_state(runtime: Runtime, model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Weights and optimizer state by name, on the main process, after an evaluation."""
    evaluate(runtime, model)
    state = runtime.named_state()
    return {f"{name}/{key}": value.clone() for name, tensors in state for key, value in tensors.items()}


def local_parameters(runtime: Runtime, model: nn.Module, optimizer: Optimizer) -> int:
    """How many parameters this rank's optimizer updates."""
    if runtime.engine == "zero3":
        return sum(p.ds_tensor.numel() for p in model.parameters() if p.requires_grad)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def muon_step(runtime: Runtime) -> dict[str, Tensor]:
    """Weights after one step of Muon with L1: float noise grows too fast for more to be compared."""
    model = make_model()
    matrices, vectors = trainable(model)
    config = OptimConfig(name="muon", l1=0.1)
    muon = make_muon({"hidden": matrices, "vector": vectors}, config)
    model, optimizer = runtime.prepare(model, muon)
    train(runtime, model, optimizer, 0, 1)
    shrink_l1(optimizer, config.l1)
    return full_state(runtime, model, optimizer)


def reductions_of_a_step(runtime: Runtime, model: nn.Module, optimizer: Optimizer) -> int | None:
    """How often DDP sums gradients over ranks in a step of several microbatches; None: another engine."""
    if not isinstance(model, DistributedDataParallel):
        return None
    ends: list[bool] = []
    model.register_comm_hook(None, lambda _, bucket: ends.append(bucket.is_last()) or allreduce_hook(None, bucket))
    train(runtime, model, optimizer, 0, 1)
    return sum(ends)


def pg_timeouts(runtime: Runtime, model: nn.Module) -> list[float]:
    """Seconds after which the collectives of each process group give up."""
    if runtime.world_size == 1:
        return []
    groups = [dist.group.WORLD]
    if runtime.engine.startswith("zero"):
        groups += [model.data_parallel_group, model.seq_data_parallel_group]
    return [group._get_backend(runtime.device).options._timeout.total_seconds() for group in groups]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", type=Path, help="folder of another run of this script, to go on from")
    parser.add_argument("--only-resume", action="store_true")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--mean-of-means", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    folder: Path = arguments.folder

    fsdp_on_cpu.allow()
    runtime = Runtime(
        precision=arguments.precision, max_grad_norm=MAX_GRAD_NORM, seed=1, timeout_minutes=TIMEOUT_MINUTES
    )
    inner = make_model()
    if arguments.checkpointing:
        inner.model.activation_checkpointing_enable({"use_reentrant": False})
    if arguments.compile:
        inner.compile(backend="aot_eager")
    ema = Ema(inner, 0.9) if refusal("ema", runtime.engine, arguments.precision) is None else None
    model, optimizer = runtime.prepare(inner, make_optimizer(inner))
    model.train()
    save = partial(save_named, runtime, folder)
    folder.mkdir(parents=True, exist_ok=True)

    checkpoints = Checkpoints(folder / "checkpoints", keep=2, keep_best=False)
    runtime.make_state()
    evaluate(runtime, model)
    start = checkpoints.save(runtime, 0, {}, extra={})
    if arguments.resume is not None:
        latest = Checkpoints(arguments.resume / "checkpoints", keep=2, keep_best=False).latest(runtime)
        assert latest is not None and latest.step == SAVED_STEP
        runtime.load_named_state(latest.read_parameter)
        train(runtime, model, optimizer, SAVED_STEP, STEPS)
        save("resumed", full_state(runtime, model, optimizer))
        runtime.load_named_state(Checkpoint(start).read_parameter)
    if arguments.only_resume:
        runtime.finish()
        return

    applied = train(runtime, model, optimizer, 0, SAVED_STEP, arguments.mean_of_means, ema)
    before_saving = full_state(runtime, model, optimizer)
    evaluate(runtime, model)
    checkpoints.save(runtime, SAVED_STEP, {"step": SAVED_STEP}, extra={})
    applied += train(runtime, model, optimizer, SAVED_STEP, STEPS, arguments.mean_of_means, ema)
    final = full_state(runtime, model, optimizer)
    save("final", final)
    if ema is not None:
        save("ema", ema.average)
        ema.swap()
        ema.swap()
        assert same(final, full_state(runtime, model, optimizer))

    latest = checkpoints.latest(runtime)
    assert latest is not None
    evaluate(runtime, model)
    runtime.load_named_state(latest.read_parameter)
    restored = full_state(runtime, model, optimizer)
    train(runtime, model, optimizer, SAVED_STEP, STEPS, arguments.mean_of_means)
    rolled_back = full_state(runtime, model, optimizer)

    reductions = reductions_of_a_step(runtime, model, optimizer)
    seen = {
        "engine": runtime.engine,
        "world_size": runtime.world_size,
        "model_class": type(model).__name__,
        "num_parameters": sum(p.numel() for group in trainable(make_model()) for p in group),
        "num_parameters_here": local_parameters(runtime, model, optimizer),
        "timeouts": pg_timeouts(runtime, model),
        "applied": applied,
        "reductions": reductions,
        "restored_to_the_bit": same(before_saving, restored),
        "rolled_back_to_the_bit": same(final, rolled_back),
        "gathered": runtime.gather_floats([runtime.rank, 0.5]),
        "loss_has_all_digits": float(loss := evaluate(runtime, model)) != float(loss.bfloat16()),
        "any": runtime.any(runtime.rank == runtime.world_size - 1),
    }
    if refusal("muon", runtime.engine, arguments.precision) is None:
        save("muon", muon_step(runtime))
    if runtime.is_main:
        (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")
    runtime.finish()


if __name__ == "__main__":
    main()
