"""Whether what is exported is what was trained: tried at the start on a small copy, counted at the end.

At the start a copy of the model with few layers and random weights is exported and loaded again by `transformers`. Its
weights and its logits must be the same, or the run would train for hours what nobody can load. At the end the files
must hold as many values as the model has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from llmtrain.models.folders.beside import copy_processor
from llmtrain.models.folders.compatible import add_older_names
from llmtrain.models.folders.kind import ModelKind
from llmtrain.models.folders.origin import Origin
from llmtrain.models.folders.skeleton import no_progress_bar, skeleton
from llmtrain.models.paths.small import made_from, small_copy
from llmtrain.models.paths.tried import tried
from llmtrain.models.text_part import is_multimodal

TOLERANCE = 1e-5  # of the largest output, in fp32: the same arithmetic on the same weights

_RIGHT: set[Any] = set()  # models whose export this process has found to be right


def require_export(model: PreTrainedModel, kind: ModelKind, max_seq_len: int) -> None:
    """Raise ValueError for a model whose exported folder would load as another one.

    A model whose code comes from the hub is left out: that code saves and loads it.
    """
    key = (made_from(model), kind.noun)
    if key in _RIGHT or "auto_map" in model.config.to_dict():
        return
    small = small_copy(model, max_seq_len, "eager").cpu()
    fault = tried(lambda: _fault(small, kind))
    if fault is not None:
        raise ValueError(
            f"{model.config.model_type}: an exported model would load as another one ({fault}), so this architecture "
            "cannot be trained here"
        )
    _RIGHT.add(key)


def _fault(small: PreTrainedModel, kind: ModelKind) -> str | None:
    """What is wrong with a small copy that was exported and loaded again, in a few words; None: nothing."""
    with TemporaryDirectory(prefix="llmtrain-export-") as place:
        folder = Path(place)
        write_weights(skeleton(small.config, kind, torch.float32), _as_a_checkpoint_has_them(small), folder)
        found = _loaded(folder, kind)
    return _difference(small, found)


def _as_a_checkpoint_has_them(model: PreTrainedModel) -> dict[str, Tensor]:
    """A model's weights, tied ones under the first of their names only."""
    own = {name for part in (model.named_parameters(), model.named_buffers()) for name, _ in part}
    return {name: tensor for name, tensor in model.state_dict().items() if name in own}


def write_weights(
    model: PreTrainedModel,
    weights: Mapping[str, Tensor],
    folder: Path,
    trust_remote_code: bool = False,
    origin: Origin | None = None,
) -> None:
    """Write a model's folder: `model` on the meta device, and its weights by their names; the rest as `write_whole`.

    They are checked to be exactly those of the architecture; of tied ones one is enough.
    """
    named = dict(weights)
    for name, source in model.all_tied_weights_keys.items():
        if name in named:
            named.setdefault(source, named[name])  # which the others are tied to
    _, unexpected = model.load_state_dict(named, strict=False, assign=True)
    model.tie_weights()
    left_out = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if left_out or unexpected:
        raise ValueError(
            f"{folder}: {(left_out or unexpected)[0]} has no place in what transformers makes of the configuration of "
            f"{model.config.model_type}, so the model cannot be saved"
        )
    write_whole(model, folder, trust_remote_code, origin)


def write_whole(
    model: PreTrainedModel, folder: Path, trust_remote_code: bool = False, origin: Origin | None = None
) -> None:
    """Write a model's folder, with the processor of a multimodal one; `origin`: of the base that has it.

    Raises ValueError if the files then hold fewer values than the model.
    """
    with no_progress_bar():
        model.save_pretrained(folder)
    own = sum(parameter.numel() for parameter in model.parameters())
    if (saved := num_values(folder)) < own:
        raise ValueError(
            f"{folder}: {own - saved:,} of the model's {own:,} weights were not written: transformers does not save "
            f"{model.config.model_type} whole"
        )
    add_older_names(folder, trust_remote_code)
    if is_multimodal(model.config):
        copy_processor(folder, origin)


def num_values(folder: Path) -> int:
    """How many values the weights of a folder hold, by the headers of its files."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def _loaded(folder: Path, kind: ModelKind) -> PreTrainedModel:
    shape = AutoConfig.from_pretrained(folder)
    with no_progress_bar():
        model: PreTrainedModel = kind.auto_class(shape).from_pretrained(
            folder, config=shape, attn_implementation="eager", dtype=torch.float32
        )
    return model.eval()


@torch.no_grad()
def _difference(before: PreTrainedModel, after: PreTrainedModel) -> str | None:
    """What differs between two models; None: nothing."""
    own, theirs = dict(before.named_parameters()), dict(after.named_parameters())
    if lost := sorted(own.keys() ^ theirs.keys()):
        return f"{lost[0]} is in one of them only"
    changed = [name for name, weight in own.items() if not torch.equal(weight, theirs[name])]
    if changed:
        return f"{changed[0]} differs, one of {len(changed)} of {len(own)} weights"
    embedding = before.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    ids = torch.arange(embedding.num_embeddings - 12, embedding.num_embeddings - 4)[None] // 2
    outputs = [model.eval()(input_ids=ids, use_cache=False).logits for model in (before, after)]
    worst = float((outputs[0] - outputs[1]).abs().max())
    if not worst <= TOLERANCE * float(outputs[0].abs().max()):
        return f"logits differ by {worst:.2g}: {json.dumps(_changed_fields(before, after))[:120]}"
    return None


def _changed_fields(before: PreTrainedModel, after: PreTrainedModel) -> list[str]:
    own, theirs = before.config.to_dict(), after.config.to_dict()
    return [name for name in own if own[name] != theirs.get(name)]
