"""A finished model for use: a run's folder, a model's folder or an adapter's -> a model and tokenizer that chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.streamers import BaseStreamer

from llmtrain.models.folders.files import ADAPTER_CONFIG, GENERATION_CONFIG, MODEL_CONFIG, require_readable
from llmtrain.models.folders.kind import LANGUAGE
from llmtrain.system.files import one_line


def model_folder(path: str) -> Path:
    """The folder of a model, from its own path or that of a run. Raises ValueError if there is no model."""
    folder = Path(path).expanduser()
    for candidate in (folder, folder / "model"):
        if (candidate / MODEL_CONFIG).is_file() or (candidate / ADAPTER_CONFIG).is_file():
            return candidate
    if (folder / "checkpoints").is_dir():
        raise ValueError(f"{path}: this run has no model yet: start its command again, or `llmtrain export {path}`")
    raise ValueError(f"{path}: neither a run's folder nor a model's")


def open_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, an adapter on its base included, on this machine's device, and its tokenizer.

    Raises ValueError if the folder holds no language model, or an adapter whose base is not there or not its own.
    """
    folder = model_folder(path)
    require_readable(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if (folder / ADAPTER_CONFIG).is_file():
            from llmtrain.models.folders.adapter import adapter_kind, open_adapter

            if (kind := adapter_kind(folder)) is not LANGUAGE:
                raise ValueError(f"it holds a {kind.noun}")
            model: Any = open_adapter(folder, tokenizer)
            if (folder / GENERATION_CONFIG).is_file():  # peft takes the base's, without the tuned end of turn
                model.generation_config = GenerationConfig.from_pretrained(folder)
                model.get_base_model().generation_config = model.generation_config
        else:
            model = AutoModelForCausalLM.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: shapes that differ
        raise ValueError(f"{folder}: cannot be loaded ({one_line(error)})") from None
    return model.to(_device()).eval(), tokenizer


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """The token ids of a chat so far, up to where the model's answer begins.

    Raises ValueError if the tokenizer has no chat template, or the template refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{tokenizer.name_or_path} has no chat template, so it cannot chat: `llmtrain sample` continues a text"
        )
    given: Any = list(messages)  # typed too narrowly there
    functions: Any = list(tools) or None
    try:
        ids = tokenizer.apply_chat_template(
            given, tools=functions, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses these messages: {one_line(error)}") from None
    return list(ids)


def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    streamer: BaseStreamer | None = None,
) -> list[str]:
    """The model's answer to each prompt, as one batch; a temperature of 0 takes the likeliest token each time."""
    width = max(len(prompt) for prompt in prompts)
    pad = next((id_ for id_ in (tokenizer.pad_token_id, tokenizer.eos_token_id) if id_ is not None), 0)
    device = model.device
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    with torch.inference_mode():
        generate: Any = model.generate
        output = generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            streamer=streamer,
            **sampling,
        )
    return [str(text) for text in tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)]


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() or torch.device("cpu")
