"""What each trained parameter does, by which its optimizer and learning rate are chosen."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from transformers import PreTrainedModel

from llmtrain.models.adapters.token_rows import HeadWithRows
from llmtrain.models.heads.score import SCORE
from llmtrain.protocols import ParamKind


def parameters_by_kind(model: PreTrainedModel, unreached: Collection[int] = ()) -> dict[ParamKind, list[nn.Parameter]]:
    """Trainable parameters by what they do; a head that is tied to the embedding counts as embedding.

    So do the rows of new tokens, in the embedding and in the head. The matrices of an adapter count as hidden. The
    head of a reward model is its scalar one. `unreached`: ids of those that no document reaches.
    """
    looked_up = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    embedded = {id(parameter) for module in looked_up for parameter in module.parameters(recurse=False)}
    heads = [model.get_output_embeddings(), dict(model.named_children()).get(SCORE)]
    head_weights = {id(head.weight) for head in heads if head is not None}
    embedded |= {id(head.rows) for head in heads if isinstance(head, HeadWithRows)}
    kinds: dict[ParamKind, list[nn.Parameter]] = {"hidden": [], "head": [], "embedding": [], "vector": []}
    kinds |= {"unreached": []} if unreached else {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in unreached:
            kinds["unreached"].append(parameter)
        elif id(parameter) in embedded:
            kinds["embedding"].append(parameter)
        elif parameter.ndim < 2:
            kinds["vector"].append(parameter)
        else:
            kinds["head" if id(parameter) in head_weights else "hidden"].append(parameter)
    return kinds
