"""A checkpoint -> a plain Hugging Face folder that `transformers` and its relatives load without llmtrain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.context import num_positions
from llmtrain.models.folders.beside import weights_beside
from llmtrain.models.folders.compatible import save_tokenizer_files
from llmtrain.models.folders.exported import write_weights
from llmtrain.models.folders.files import CARD
from llmtrain.models.folders.generation import generation_config
from llmtrain.models.folders.kind import LANGUAGE, ModelKind
from llmtrain.models.folders.origin import Origin
from llmtrain.models.folders.skeleton import skeleton
from llmtrain.models.text_part import text_field

WRAPPER_PREFIX = "model."  # every wrapper holds the exported model under this name


@dataclass(frozen=True)
class ExportSpec:
    """What a model's folder is made from, besides the weights and the card."""

    shape: PreTrainedConfig  # of the model in training, with the rows of new tokens
    tokenizer: PreTrainedTokenizerBase
    kind: ModelKind = LANGUAGE
    dtype: torch.dtype = torch.float32  # of the weights of a whole model; those of an adapter are in fp32
    stop_ids: tuple[int, ...] = ()  # where training taught it to stop; (): at the tokenizer's EOS
    generation: Mapping[str, Any] = field(default_factory=dict)  # the base's settings, kept with ours added
    origin: Origin | None = None  # where the base comes from; None: the model was new
    adapter: AdapterConfig | None = None  # None: every weight was trained
    base: Mapping[str, Any] = field(default_factory=dict)  # facts by which an adapter's base is known; those there are
    trust_remote_code: bool = False


def export_model(folder: Path, weights: Mapping[str, Tensor], card: str, spec: ExportSpec) -> None:
    """Write weights (by the names of a wrapper), tokenizer, generation config and model card.

    The weights are checked to be exactly those of the architecture; tied ones may be left out.
    """
    model = skeleton(spec.shape, spec.kind, spec.dtype, spec.trust_remote_code)
    named = {
        name.removeprefix(WRAPPER_PREFIX): tensor.to(spec.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    if spec.origin is not None and (kept := _not_trained(model, named)):
        named |= weights_beside(kept, spec.origin, spec.trust_remote_code)
    if spec.kind.generates:
        model.generation_config = generation_config(spec.generation, spec.tokenizer, spec.stop_ids)
    write_weights(model, named, folder, spec.trust_remote_code, spec.origin)
    save_tokenizer(folder, spec)
    (folder / CARD).write_text(card, encoding="utf-8")


def _not_trained(model: PreTrainedModel, named: Mapping[str, Tensor]) -> list[str]:
    """The parameters that the architecture, or the run, keeps as they are; tied ones are known by their other name."""
    tied = set(model.all_tied_weights_keys)
    return [name for name, _ in model.named_parameters() if name not in named and name not in tied]


def save_tokenizer(folder: Path, spec: ExportSpec) -> None:
    """Write the tokenizer, with the number of the model's positions as the length that it warns at.

    That of a reward model pads with a token that never ends an answer: a batch is scored at the last token that is
    not padding, which must be the one that was trained.
    """
    if not spec.kind.generates:
        padding = text_field(spec.shape, "pad_token_id")
        assert padding is not None, "`score_model` sets it"
        spec.tokenizer.pad_token = spec.tokenizer.convert_ids_to_tokens(padding)
    positions = num_positions(spec.shape)
    if positions is not None:
        spec.tokenizer.model_max_length = positions
    save_tokenizer_files(spec.tokenizer, folder)


def push_model(folder: Path, repo_id: str) -> str:
    """Upload an exported folder; the address of the commit. Raises ValueError if the hub refuses."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(repo_id, private=True, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=repo_id).commit_url)
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"run.push_to_hub={repo_id}: {str(error).splitlines()[0]}; the model is safe in {folder}"
        ) from None
