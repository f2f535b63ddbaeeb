"""Rows of new tokens that are trained while the rest of the embedding, and of the head, stays frozen.

A chat template may bring tokens that the base does not know. An adapter cannot teach them: their rows of the
embedding, and of an untied head, are held next to the frozen matrices and replace the rows there. peft
has the same (`trainable_token_indices`) and reads what is exported; these forms do without its copy of the
whole matrix at each forward, and leave the head able to take its loss in chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.models.heads.cross_entropy import chunked_loss
from llmtrain.models.heads.head import Head
from llmtrain.models.heads.logprobs import LogprobOptions, TokenLogprobs
from llmtrain.protocols import LossOptions, TokenLoss


class EmbeddingWithRows(nn.Embedding):
    """An embedding in which `rows` replace the rows `row_ids`; Gemma's multiplies what it looks up by its `scale`."""

    rows: nn.Parameter
    row_ids: Tensor
    scale: float | None = None

    @classmethod
    def of(cls, embedding: nn.Embedding, rows: nn.Parameter, row_ids: Int[Tensor, " rows"]) -> Self:
        """The same matrix with rows."""
        module = cls(embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, device="meta")
        module.weight, module.scale = embedding.weight, _scale(embedding)
        _attach(module, rows, row_ids)
        return module.train(embedding.training)

    def forward(self, input_ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch hidden"]:
        """The embeddings, in the dtype of the frozen ones."""
        is_row = input_ids[..., None] == self.row_ids  # (*batch, rows)
        embedded = super().forward(input_ids)
        rows = nn.functional.embedding(is_row.int().argmax(-1), self.rows).to(embedded.dtype)
        looked_up = torch.where(is_row.any(-1, keepdim=True), rows, embedded)
        return looked_up if self.scale is None else looked_up * _as_tensor(self.scale, looked_up)


class HeadWithRows(Head):
    """An output projection in which `rows` replace the rows `row_ids`; a bias stays the projection's."""

    has_logprobs: ClassVar[bool] = False

    rows: nn.Parameter
    row_ids: Tensor

    @classmethod
    def with_rows(cls, projection: nn.Linear, rows: nn.Parameter, row_ids: Int[Tensor, " rows"]) -> Self:
        """The same projection with rows."""
        module = cls.of(projection)
        _attach(module, rows, row_ids)
        return module

    def forward(  # type: ignore[override]
        self,
        hidden: Float[Tensor, "*batch hidden"],
        labels: Int[Tensor, " tokens"] | None = None,
        options: LossOptions | LogprobOptions = LossOptions(),
        weights: Float[Tensor, " tokens"] | None = None,
    ) -> Tensor | TokenLoss | TokenLogprobs:
        """As Head: the projection, or with `labels` the summed loss."""
        if labels is not None:
            assert isinstance(options, LossOptions), "has_logprobs is False"
            own = self.rows, self.row_ids
            return chunked_loss(hidden, self.weight, self.bias, labels, options, *own, weights, self.form)
        logits = nn.functional.linear(hidden, self.weight, self.bias)
        bias = None if self.bias is None else self.bias[self.row_ids]
        rows = nn.functional.linear(hidden, self.rows.to(self.weight.dtype), bias)
        return logits.index_copy(-1, self.row_ids, rows.to(logits.dtype))


def train_rows(model: PreTrainedModel, token_ids: Sequence[int]) -> None:
    """Make the rows of some tokens trainable in place, in fp32, starting from the values they have.

    A tied head shares the embedding's rows. Raises ValueError for an embedding or a head that is more than a
    matrix.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if (
        not isinstance(embedding, nn.Embedding)
        or not _only_scales(embedding)
        or not isinstance(head, nn.Linear)
        or type(head) not in (nn.Linear, Head)
    ):
        raise ValueError(
            f"{model.config.model_type}: its embedding and head do not support trained rows for new tokens; set "
            "data.chat_template to one of tokens that the tokenizer has, or adapter.kind to none"
        )
    ids = torch.tensor(sorted(token_ids), device=embedding.weight.device)
    rows = _own_rows(embedding.weight, ids)
    head_rows = rows if head.weight is embedding.weight else _own_rows(head.weight, ids)
    names = {module: name for name, module in model.named_modules()}
    model.set_submodule(names[embedding], EmbeddingWithRows.of(embedding, rows, ids))
    model.set_submodule(names[head], HeadWithRows.with_rows(head, head_rows, ids.clone()))


def _scale(embedding: nn.Embedding) -> float | None:
    """What an embedding multiplies its rows by; None: it does not say so."""
    named = {**vars(embedding), **dict(embedding.named_buffers(recurse=False))}.get("embed_scale")
    return None if named is None else float(named)


def _as_tensor(scale: float, like: Tensor) -> Tensor:
    return torch.tensor(scale, dtype=torch.float32, device=like.device).to(like.dtype)


@torch.no_grad()
def _only_scales(embedding: nn.Embedding) -> bool:
    """Whether an embedding gives its rows as they are, or times its scale."""
    ids = torch.arange(min(8, embedding.num_embeddings), device=embedding.weight.device)
    rows, scale = nn.functional.embedding(ids, embedding.weight), _scale(embedding)
    return torch.equal(embedding(ids), rows if scale is None else rows * _as_tensor(scale, rows))


def _own_rows(weight: Float[Tensor, "vocab hidden"], ids: Int[Tensor, " rows"]) -> nn.Parameter:
    return nn.Parameter(weight.detach()[ids].float())


def _attach(module: nn.Module, rows: nn.Parameter, row_ids: Int[Tensor, " rows"]) -> None:
    module.register_buffer("row_ids", row_ids)  # saved with the rows: an export needs to know whose they are
    module.register_parameter("rows", rows)
