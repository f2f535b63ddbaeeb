"""What one process of the engine tests does: train a tiny tied Llama, with two bad steps, save, go back, go on.

Writes `rank0.json` with what it saw and the final state under `final/`, both into the folder given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, LlamaConfig

from llmtrain.train.checkpoint import Checkpoints
from llmtrain.train.runtime import Runtime

STEPS, SAVED_STEP = 20, 10
TRAINED_TOKENS = ((25, 5), (4, 1))  # by rank of two, by microbatch: 5:1 and more between any two
NAN_LOSS_STEP, NAN_GRADIENT_STEP = 4, 13
MAX_GRAD_NORM = 0.5


def make_model() -> nn.Module:
    """A Llama with tied embeddings, the same on every rank."""
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
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def make_optimizer(model: nn.Module) -> Optimizer:
    """AdamW over two parameter groups: matrices are decayed, vectors are not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))


def microbatches(step: int, rank: int, world_size: int) -> Iterator[tuple[Tensor, int, bool]]:
    """(input_ids, tokens trained, first of the step) of a step; one process gets those of both ranks."""
    for owner in range(2) if world_size == 1 else [rank]:
        for i, num_trained in enumerate(TRAINED_TOKENS[owner]):
            generator = torch.Generator().manual_seed(1000 * step + 10 * owner + i)
            yield torch.randint(0, 48, (1, 30), generator=generator), num_trained, owner == 1 and i == 0


class NanGradient(torch.autograd.Function):
    """Passes a value on, and NaN instead of its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("nan")


def train(
    runtime: Runtime, model: nn.Module, optimizer: Optimizer, first: int, last: int, mean_of_means: bool
) -> list[bool]:
    """Steps `first` to `last`; whether each was applied."""
    applied = []
    for step in range(first, last):
        batches = list(microbatches(step, runtime.rank, runtime.world_size))
        runtime.seed_step(step)
        runtime.set_lr(optimizer, [3e-3 * (1 + step % 3), 1e-3])
        totals, _ = runtime.sum_counts([{"tokens": n} for _, n, _ in batches], False)
        for i, (ids, num_trained, is_marked) in enumerate(batches):
            logits = model(input_ids=ids).logits[0, :num_trained].float()
            loss = cross_entropy(logits, ids[0, 1 : num_trained + 1], reduction="sum")
            denominator = num_trained * 4 if mean_of_means else totals["tokens"]
            share = loss / denominator
            if is_marked and step == NAN_LOSS_STEP:
                share = share * float("nan")
            if is_marked and step == NAN_GRADIENT_STEP:
                share = NanGradient.apply(share)
            runtime.backward(model, share, last=i == len(batches) - 1)
        result = runtime.step(model, optimizer)
        applied.append(result.applied)
    return applied


def full_state(runtime: Runtime, model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Weights and optimizer state by name, on the main process."""
    state = runtime.named_state(model, optimizer)
    return {f"{name}/{key}": value.clone() for name, tensors in state for key, value in tensors.items()}


def local_parameters(runtime: Runtime, model: nn.Module, optimizer: Optimizer) -> int:
    """How many parameters this rank's optimizer updates."""
    if runtime.engine == "zero3":
        return sum(parameter.ds_tensor.numel() for parameter in model.parameters())
    return sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mean-of-means", action="store_true")
    parser.add_argument("--resume", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()

    runtime = Runtime(precision="fp32", max_grad_norm=MAX_GRAD_NORM, seed=1, timeout_minutes=1)
    model = make_model()
    model, optimizer = runtime.prepare(model, make_optimizer(model))
    checkpoints = Checkpoints(arguments.folder / "checkpoints", keep=2, keep_best=False)
    checkpoints.save(runtime, 0, model, optimizer, {}, extra={})

    applied = train(runtime, model, optimizer, 0, SAVED_STEP, arguments.mean_of_means)
    before_saving = full_state(runtime, model, optimizer)
    checkpoints.save(runtime, SAVED_STEP, model, optimizer, {"step": SAVED_STEP}, extra={})
    applied += train(runtime, model, optimizer, SAVED_STEP, STEPS, arguments.mean_of_means)
    final = full_state(runtime, model, optimizer)

    latest = checkpoints.latest(runtime)
    assert latest is not None
    runtime.load_named_state(model, optimizer, latest.read_parameter)
    restored = full_state(runtime, model, optimizer)
    train(runtime, model, optimizer, SAVED_STEP, STEPS, arguments.mean_of_means)
    again = full_state(runtime, model, optimizer)

    if runtime.is_main:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        save_file(final, arguments.folder / "final.safetensors")
    for i, folder in enumerate(arguments.resume):
        other = Checkpoints(folder / "checkpoints", keep=2, keep_best=False).latest(runtime)
        assert other is not None
        runtime.load_named_state(model, optimizer, other.read_parameter)
        train(runtime, model, optimizer, SAVED_STEP, STEPS, arguments.mean_of_means)
        resumed = full_state(runtime, model, optimizer)
        if runtime.is_main:
            save_file(resumed, arguments.folder / f"resumed{i}.safetensors")
    seen = {
        "engine": runtime.engine,
        "world_size": runtime.world_size,
        "model_class": type(model).__name__,
        "num_parameters": sum(tensor.numel() for name, tensor in final.items() if name.endswith("/param")),
        "num_parameters_here": local_parameters(runtime, model, optimizer),
        "applied": applied,
        "restored_to_the_bit": same(before_saving, restored),
        "resumed_to_the_bit": same(final, again),
    }
    if runtime.is_main:
        (arguments.folder / "rank0.json").write_text(json.dumps(seen), encoding="utf-8")
    runtime.finish()


if __name__ == "__main__":
    main()
