"""A loaded model -> the module that trains: the layers and the attention of this device, the start-up check."""

from __future__ import annotations

from transformers import PreTrainedModel

from llmtrain.config.recipes import RecipeConfig
from llmtrain.models.attention import attention_dropout
from llmtrain.models.cpu.prepare import prepare_layers
from llmtrain.models.folders.exported import require_export
from llmtrain.models.folders.kind import LANGUAGE, REWARD, ModelKind
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm, wrap_reward_model
from llmtrain.models.wrappers.reward_model import RewardModel
from llmtrain.models.wrappers.still_weights import still_weights
from llmtrain.protocols import Ranks
from llmtrain.system.device import AttentionKernel, attention_kernel


def prepare_causal_lm(
    config: RecipeConfig, model: PreTrainedModel, ranks: Ranks, *, shards_parameters: bool
) -> CausalLMLoss:
    """The model with its loss inside, on this process's device.

    Raises ValueError as `wrap_causal_lm` does, as `Path.for_shards`, `require_export` and `still_weights`.
    """
    _require_export(config, model, LANGUAGE, ranks)
    prepare_layers(model, ranks.device, shards_parameters=shards_parameters)
    with still_weights(model):
        module = wrap_causal_lm(model, _kernel(config, model, ranks), config.data.max_seq_len, ranks.device)
    if shards_parameters:
        module.path = module.path.for_shards()
        module.path.put_into(model)
    return module


def prepare_reward_model(
    config: RecipeConfig, model: PreTrainedModel, ranks: Ranks, *, shards_parameters: bool
) -> RewardModel:
    """The same for a model with a scalar head."""
    _require_export(config, model, REWARD, ranks)
    prepare_layers(model, ranks.device, shards_parameters=shards_parameters)
    with still_weights(model):
        module = wrap_reward_model(model, _kernel(config, model, ranks), config.data.max_seq_len, ranks.device)
    if shards_parameters:
        module.path = module.path.for_shards()
        module.path.put_into(model)
    return module


def _require_export(config: RecipeConfig, model: PreTrainedModel, kind: ModelKind, ranks: Ranks) -> None:
    """`require_export` on the main process, which exports: on others transformers writes no weights."""
    if ranks.rank == 0:
        require_export(model, kind, config.data.max_seq_len)


def _kernel(config: RecipeConfig, model: PreTrainedModel, ranks: Ranks) -> AttentionKernel:
    return attention_kernel(config.model.attention, ranks.device, ranks.dtype, attention_dropout(model.config))
