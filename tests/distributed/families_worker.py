"""What one process of the family tests does: a few steps of tiny models whose parts ranks use unequally.

`families_worker.py FOLDER [KIND ...]`: of each kind the trained state goes to `KIND.safetensors`, and what the steps
logged, or why the engine refuses it, to `seen.json`. One process trains on the microbatches of both ranks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsdp_on_cpu
import torch
from families.tiny import tiny_config
from safetensors.torch import save_file
from tiny_paths import ChoosingLlama, SkippingLlama
from transformers import PreTrainedModel

from llmtrain.batch import IGNORE_INDEX, PackedTokens, empty_batch
from llmtrain.config.recipes import PretrainConfig
from llmtrain.models.attention import ATTENTION
from llmtrain.models.folders.kind import LANGUAGE
from llmtrain.models.paths.path import can_switch
from llmtrain.models.wrappers import prepare
from llmtrain.objectives.next_token import NextToken
from llmtrain.train.optim import make_optimizer
from llmtrain.train.runtime import Runtime

STEPS, VOCAB = 3, 96
LENGTHS = (((40, 7, 23), (5,)), ((3, 2), ()))  # of documents, by rank of two, by microbatch: the last one is empty
SPREAD = 0.15


@dataclass(frozen=True)
class Kind:
    """A family and fields of its configuration."""

    family: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    planted: type[PreTrainedModel] | None = None  # a class of ours instead of the family's


KINDS = {
    "experts": Kind("qwen3_moe", {"router_aux_loss_coef": 0.5}),
    "indexer": Kind("glm_moe_dsa"),  # it only chooses: no document reaches it
    "compressor": Kind("deepseek_v4"),  # short documents do not reach it
    "chosen": Kind("llama", planted=ChoosingLlama),  # experts in a list
    "layers": Kind("llama", planted=SkippingLlama),  # of which short documents leave some out
    "rows": Kind("bloom"),
    "mixers": Kind("lfm2"),
}


def make_model(kind: Kind) -> PreTrainedModel:
    """The same on every rank."""
    config = tiny_config(kind.family, VOCAB)
    for name, value in kind.fields.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    make = LANGUAGE.auto_class(config).from_config if kind.planted is None else kind.planted
    model: PreTrainedModel = make(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=SPREAD)
    if can_switch(model):
        model.set_attn_implementation(ATTENTION)
    return model


def microbatches(step: int, runtime: Runtime) -> list[PackedTokens]:
    """Those of this rank; one process gets those of both."""
    owners = range(2) if runtime.world_size == 1 else [runtime.rank]
    return [pack(lengths, 100 * step + 10 * owner + i) for owner in owners for i, lengths in enumerate(LENGTHS[owner])]


def pack(lengths: tuple[int, ...], seed: int) -> PackedTokens:
    """Documents of these lengths, of which every token is trained."""
    if not lengths:
        return empty_batch()
    ids = torch.randint(4, VOCAB, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    labels = torch.cat([torch.cat([each[1:], torch.tensor([IGNORE_INDEX])]) for each in ids.split(lengths)])
    positions = torch.cat([torch.arange(length) for length in lengths])
    return PackedTokens(ids, labels, positions, lengths, sum(lengths) - len(lengths), (seed,))


def config_of() -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "run": {"dir": "unused"},
            "model": {"config": {"unused": 1}},
            "tokenizer": {"path": "unused"},
            "data": {"train": ["unused"], "max_seq_len": 64},
            "train": {"steps": STEPS, "global_batch_tokens": 64, "microbatch_tokens": 64},
            "optim": {"lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.5, "eps": 1e-3},
        }
    )


def run(runtime: Runtime, kind: Kind, file: Path) -> dict[str, Any]:
    """Train; what was logged."""
    config, objective = config_of(), NextToken()
    model = make_model(kind)
    try:
        with patch.object(prepare, "require_export"):  # of a planted class nothing is exported
            module = prepare.prepare_causal_lm(config, model, runtime, sharding=runtime.sharding)
    except ValueError as error:
        return {"refused": str(error)}
    optimizer = make_optimizer(module.parameters_by_kind(), config.optim)
    if runtime.engine == "fsdp2":  # accelerate keeps the layers of the first model
        runtime._accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = None
    prepared, optimizer = runtime.prepare(module, optimizer)
    runtime.make_state()
    prepared.train()
    logged = []
    for step in range(STEPS):
        batches = microbatches(step, runtime)
        runtime.set_lr(optimizer, [group["peak_lr"] for group in optimizer.param_groups])
        counts = [{"input_tokens": batch.num_tokens, **objective.counts(batch)} for batch in batches]
        totals, _ = runtime.sum_counts(counts, False)
        metrics = []
        for i, batch in enumerate(batches):
            with runtime.microbatch(last=i == len(batches) - 1):
                share, parts = objective.loss(prepared, batch, totals)
                runtime.backward(share)
            metrics.append(parts)
        result = runtime.step()
        logged.append(runtime.sum_metrics(metrics) | {"grad_norm": result.grad_norm})
    state = {f"{name}/{key}": value for name, tensors in runtime.named_state() for key, value in tensors.items()}
    if runtime.is_main:
        save_file({key: value.clone() for key, value in state.items()}, file)
    return {"logged": logged, "unreached": module.facts()["unreached"]}


def main() -> None:
    folder, *names = sys.argv[1:]
    fsdp_on_cpu.allow()
    Path(folder).mkdir(parents=True, exist_ok=True)
    runtime = Runtime(precision="fp32", max_grad_norm=0.5, seed=1, timeout_minutes=1.0)
    if runtime.engine == "zero3":  # else parameters as small as these would stay whole between steps
        zero = runtime._accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero["stage3_param_persistence_threshold"] = 0
    seen: dict[str, Any] = {"engine": runtime.engine}
    for name in names or KINDS:
        seen[name] = run(runtime, KINDS[name], Path(folder) / f"{name}.safetensors")
        if runtime.is_main:
            (Path(folder) / "seen.json").write_text(json.dumps(seen), encoding="utf-8")
    runtime.finish()


if __name__ == "__main__":
    main()
