"""A checkpoint -> a plain Hugging Face folder that `transformers` and its relatives load as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
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
    trust_remote_code: bool = False,
) -> None:
    """Write weights (by the names of CausalLMLoss), tokenizer, generation config and model card.

    The weights are checked to be exactly those of the architecture; tied ones may be left out.
    """
    shape = copy.deepcopy(shape)
    shape.use_cache = True
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            shape, attn_implementation="eager", dtype=dtype, trust_remote_code=trust_remote_code
        )
    named = {
        name.removeprefix(WRAPPER_PREFIX): tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    missing, unexpected = model.load_state_dict(named, strict=False, assign=True)
    model.tie_weights()
    left_out = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not left_out and not unexpected, (left_out, missing, unexpected)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        do_sample=True,
    )
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    logging.enable_progress_bar()
    positions = shape.to_dict().get("max_position_embeddings")
    if positions is not None:
        tokenizer.model_max_length = positions
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


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
            f"log.push_to_hub={repo_id}: {str(error).splitlines()[0]}; the model is safe in {folder}"
        ) from None
