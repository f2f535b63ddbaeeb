"""A loaded model -> the module that trains: the layers and the attention of this device, the start-up check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from llmtrain.config.recipes import RecipeConfig
from llmtrain.models.attention import attention_dropout
from llmtrain.models.cpu.prepare import prepare_layers
from llmtrain.models.folders.exported import require_export
from llmtrain.models.folders.kind import LANGUAGE, REWARD, ModelKind
from llmtrain.models.heads.head import output_head
from llmtrain.models.heads.score import SCORE
from llmtrain.models.paths.choose import in_fp32
from llmtrain.models.paths.small import seeded
from llmtrain.models.trunk import Inputs, layer_classes, pack_inputs, run_its_trunk, run_model
from llmtrain.models.unreached import Meeting, Unreached, dropped_at_random, find_unreached, join
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import checking, probe, wrap_causal_lm, wrap_reward_model
from llmtrain.models.wrappers.reward_model import RewardModel
from llmtrain.models.wrappers.still_weights import still_weights
from llmtrain.protocols import Ranks, Sharding
from llmtrain.system.device import AttentionKernel, attention_kernel

Run = Callable[[PreTrainedModel, Inputs], Tensor]
"""A model and its inputs -> what a loss is computed from."""


def prepare_causal_lm(
    config: RecipeConfig, model: PreTrainedModel, ranks: Ranks, *, sharding: Sharding
) -> CausalLMLoss:
    """The model with its loss inside, on this process's device.

    Raises ValueError as `wrap_causal_lm` does, as `Path.for_shards`, `reach_all`, `require_export` and `still_weights`.
    """
    _require_export(config, model, LANGUAGE, ranks)
    prepare_layers(model, ranks.device, shards_parameters=sharding != "none")
    with still_weights(model):
        module = wrap_causal_lm(model, _kernel(config, model, ranks), config.data.max_seq_len, ranks.device)
    run = run_model if module.whole_logits else _run_with_head
    _prepare_documents(module, run, config.data.max_seq_len, sharding=sharding)
    return module


def prepare_reward_model(
    config: RecipeConfig, model: PreTrainedModel, ranks: Ranks, *, sharding: Sharding
) -> RewardModel:
    """The same for a model with a scalar head."""
    _require_export(config, model, REWARD, ranks)
    prepare_layers(model, ranks.device, shards_parameters=sharding != "none")
    with still_weights(model):
        module = wrap_reward_model(model, _kernel(config, model, ranks), config.data.max_seq_len, ranks.device)
    _prepare_documents(module, _run_with_score, config.data.max_seq_len, sharding=sharding)
    return module


def reach_all(
    model: PreTrainedModel, run: Run, kernel: AttentionKernel, max_seq_len: int, *, sharding: Sharding
) -> Unreached:
    """Let each trained parameter get a gradient, zero if no loss reaches it, as processes need it; which those are.

    Raises ValueError if ranks would gather parameters for some documents and not for others.
    """

    def compute(lengths: Sequence[int]) -> Tensor:
        return run(model, pack_inputs(probe(model, lengths, max_seq_len), in_fp32(kernel)))

    embedding = model.get_input_embeddings()
    with checking(model, model.device), seeded(model.device):
        model.train()  # where some models (Gemma 3n) run other code; `checking` sets it back
        found = find_unreached(model, embedding, compute, max_seq_len, dropped_at_random(model))
    if found.by_some and sharding == "modules":
        raise ValueError(
            f"{model.config.model_type}: not every document uses {found.by_some[0].name}, and under ZeRO-3 every rank "
            "must use all parameters equally often: take DDP, ZeRO-1, ZeRO-2 or FSDP2"
        )
    outside = None if sharding != "layers" else next(filter(partial(_is_outside, model), found.by_some), None)
    if outside is not None:
        raise ValueError(
            f"{model.config.model_type}: not every document runs the layer of {outside.name}, and under FSDP2 every "
            "rank must run all layers equally often: take DDP, ZeRO-1 or ZeRO-2"
        )
    of_none = found.by_any if sharding == "none" else ()  # what all ranks leave out, shards do not wait for
    join([*of_none, *found.by_some], embedding)
    return found


def _is_outside(model: PreTrainedModel, meeting: Meeting) -> bool:
    """Whether a parameter would join the graph outside of the layer that FSDP2 gathers it with."""
    classes = layer_classes(model)
    units = [module for module in model.modules() if type(module).__name__ in classes]
    unit = next((unit for unit in units if any(part is meeting.owner for part in unit.modules())), None)
    return unit is not None and not any(part is meeting.around for part in unit.modules())


def _prepare_documents(module: CausalLMLoss | RewardModel, run: Run, max_seq_len: int, *, sharding: Sharding) -> None:
    """Fit a module that has passed its check to processes among which documents are split."""
    if sharding != "none":
        module.path = module.path.for_shards(sharding)
        module.path.put_into(module.model)
        module.kernel = module.path.kernel
    module.unreached = reach_all(module.model, run, module.kernel, max_seq_len, sharding=sharding)


def _run_with_head(model: PreTrainedModel, inputs: Inputs) -> Tensor:
    logits: Tensor = output_head(model)(run_its_trunk(model, inputs))
    return logits


def _run_with_score(model: PreTrainedModel, inputs: Inputs) -> Tensor:
    scores: Tensor = model.get_submodule(SCORE)(run_its_trunk(model, inputs))
    return scores


def _require_export(config: RecipeConfig, model: PreTrainedModel, kind: ModelKind, ranks: Ranks) -> None:
    """`require_export` on the main process, which exports: on others transformers writes no weights."""
    if ranks.rank == 0:
        require_export(model, kind, config.data.max_seq_len)


def _kernel(config: RecipeConfig, model: PreTrainedModel, ranks: Ranks) -> AttentionKernel:
    return attention_kernel(config.model.attention, ranks.device, ranks.dtype, attention_dropout(model.config))
