"""A checkpoint -> a plain Hugging Face folder that `transformers` and its relatives load as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

WRAPPER_PREFIX = "model."  # CausalLMLoss holds the model under this name


def export_model(
    folder: Path,
    shape: PreTrainedConfig,
    weights: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype,
    card: str,
    stop_ids: tuple[int, ...] = (),
    trust_remote_code: bool = False,
) -> None:
    """Write weights (by the names of CausalLMLoss), tokenizer, generation config and model card.

    The weights are checked to be exactly those of the architecture; tied ones may be left out. Generation stops at
    any of `stop_ids`; (): at the tokenizer's EOS.
    """
    model = skeleton(shape, dtype, trust_remote_code)
    named = {
        name.removeprefix(WRAPPER_PREFIX): tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    missing, unexpected = model.load_state_dict(named, strict=False, assign=True)
    model.tie_weights()
    left_out = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not left_out and not unexpected, (left_out, missing, unexpected)
    model.generation_config = generation_config(tokenizer, stop_ids)
    with no_progress_bar():
        model.save_pretrained(folder)
    save_tokenizer(folder, tokenizer, shape)
    (folder / "README.md").write_text(card, encoding="utf-8")


def skeleton(shape: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """A model without weights, on the meta device, as it is to be loaded by others: with a cache, not quantized."""
    shape = copy.deepcopy(shape)
    shape.use_cache = True
    vars(shape).pop("quantization_config", None)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            shape, attn_implementation="eager", dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model


def generation_config(tokenizer: PreTrainedTokenizerBase, stop_ids: tuple[int, ...]) -> GenerationConfig:
    """Sampling that stops at any of `stop_ids`; (): at the tokenizer's EOS."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(stop_ids) or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        do_sample=True,
    )


def save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, shape: PreTrainedConfig) -> None:
    """Write the tokenizer, with the number of the model's positions as the length that it warns at."""
    positions = shape.to_dict().get("max_position_embeddings")
    if positions is not None:
        tokenizer.model_max_length = positions
    tokenizer.save_pretrained(folder)


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers' progress bars out of the log."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def push_model(folder: Path, repo_id: str) -> str:
    """Upload an exported folder; the address of the commit. Raises ValueError where the hub refuses."""
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
