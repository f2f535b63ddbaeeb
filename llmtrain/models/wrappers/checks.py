"""A start-up check on the user's own model: packed must equal one by one, our head the model's own.

An architecture that lets a document see its neighbour (a recurrent state, a convolution, positions of its
own), that bypasses the attention interface, or that does more than project at its head is found here,
before a step is trained. The reference is the model as `transformers` runs it, one document at a time.
The same comparison finds out whether the documents of a pair can share their prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.models.adapters.quantized import fp32_arithmetic
from llmtrain.models.attention import ATTENTION, sharing_obstacle
from llmtrain.models.heads.head import is_projection
from llmtrain.models.heads.score import SCORE
from llmtrain.models.text_part import special_token_ids
from llmtrain.models.trunk import Documents, pack_inputs, run_model, run_trunk
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.reward_model import RewardModel
from llmtrain.protocols import Report
from llmtrain.system.device import AttentionKernel

LENGTHS = (5, 3, 8, 8)
PAIRS = ((5, 1, 3), (0, 2, 3), (6, 2, 2))  # tokens of a prefix, and of the two documents after it
PACKING_TOLERANCE = 1e-4  # of the outputs' spread, in fp32; a leak is off by a hundredth or more
HEAD_TOLERANCE = 1e-6  # the same arithmetic on both sides; a softcap of 30 on logits of a new model is off by 1e-4
SCORE_TOLERANCE = 1e-5  # of the largest score, in fp32

Run = Callable[[dict[str, Any]], Tensor]
"""The keyword arguments of a model's call -> an output of each token: logits, or the last hidden state."""


def wrap_causal_lm(
    model: PreTrainedModel, kernel: AttentionKernel, max_seq_len: int, device: torch.device
) -> CausalLMLoss:
    """Move a model to its device and wrap it for training, after comparing it with itself.

    Takes the chunked head if it gives the model's own logits, else the model's own logits. Raises ValueError, naming
    the architecture, for a model that does not compute packed documents as it computes them one by one.
    """
    with _checking(model, device):
        batch, run = _probe(model, max_seq_len, device), partial(run_model, model)
        logits, _ = _check_packs(model, run, batch, kernel)
        whole_logits = not _head_projects(model, batch, logits, kernel)
    return CausalLMLoss(model, kernel, whole_logits)


def wrap_reward_model(
    model: PreTrainedModel, kernel: AttentionKernel, max_seq_len: int, device: torch.device
) -> RewardModel:
    """The same for a model with a scalar head, whose scores must be those of `transformers` too."""
    with _checking(model, device):
        batch, run = _probe(model, max_seq_len, device), partial(run_trunk, model.base_model)
        _, hidden = _check_packs(model, run, batch, kernel)
        _check_scores(model, batch, hidden)
    return RewardModel(model, kernel)


def shares_prompts(
    model: PreTrainedModel, kernel: AttentionKernel, max_seq_len: int, device: torch.device, report: Report
) -> bool:
    """Whether the documents of a pair can share their prompt in a pack; reports it, or the reason why not.

    `model` has passed the check of packs and is on its device. The kernel must know shared prefixes, and hidden
    states of pairs that share one must be those of `transformers`, one document at a time.
    """
    obstacle = sharing_obstacle(kernel) or _sharing_error(model, kernel, max_seq_len, device)
    report(
        "a pair's prompt is computed once"
        if obstacle is None
        else f"a pair's prompt is computed twice, since {obstacle}"
    )
    return obstacle is None


@contextmanager
def _checking(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """A model on its device, without dropout or gradients and in fp32; then as it was, but for its place."""
    nn.Module.to(model, device)  # the model's own `to` is not typed
    was_training = model.training
    model.eval()
    with torch.no_grad(), fp32_arithmetic(model):
        yield
    model.train(was_training)


def _probe(model: PreTrainedModel, max_seq_len: int, device: torch.device) -> Documents:
    """A pack of four documents."""
    lengths = tuple(min(length, max_seq_len) for length in LENGTHS)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Documents(_tokens(model, sum(lengths)).to(device), positions.to(device), lengths)


def _tokens(model: PreTrainedModel, count: int) -> Int[Tensor, " tokens"]:
    """Pseudo-random tokens, none of them padding or an image, without touching torch's global generator."""
    special = special_token_ids(model.config)
    plain = [id_ for id_ in range(model.config.get_text_config().vocab_size) if id_ not in special]
    drawn = torch.randint(len(plain), (count,), generator=torch.Generator().manual_seed(0))
    return torch.tensor(plain)[drawn]


def _check_packs(
    model: PreTrainedModel, run: Run, batch: Documents, kernel: AttentionKernel
) -> tuple[Float[Tensor, "tokens outputs"], Float[Tensor, "tokens outputs"]]:
    """The outputs of a pack, and of its documents one by one. Raises ValueError if they differ."""
    try:
        singles = torch.cat(_one_by_one(model, run, batch.input_ids.split(batch.segment_lengths)))
        packed = run(pack_inputs(batch, _kernel_in_fp32(kernel))).float()
    except (KeyError, AttributeError, TypeError) as error:  # how models that bypass the interface fail
        raise ValueError(
            f"{model.config.model_type} does not go through transformers' attention interface ({error}), "
            "so this architecture cannot be trained on packs"
        ) from error
    if difference := _difference(packed, singles):
        raise ValueError(
            f"{model.config.model_type}: packed documents are not computed as they are alone (outputs "
            f"{difference}), so this architecture cannot be trained on packs"
        )
    return packed, singles


def _one_by_one(
    model: PreTrainedModel, run: Run, documents: Sequence[Int[Tensor, " _"]]
) -> list[Float[Tensor, "_ ..."]]:
    """Each document alone, through the model's own eager attention."""
    model.set_attn_implementation("eager")
    outputs = [run({"input_ids": document[None], "use_cache": False}).float() for document in documents]
    model.set_attn_implementation(ATTENTION)
    return outputs


def _difference(found: Float[Tensor, "tokens outputs"], expected: Float[Tensor, "tokens outputs"]) -> str | None:
    """By how much outputs differ beyond rounding; None: they do not."""
    spread = float((expected - expected.mean(0)).abs().max())
    worst = float((found - expected).abs().max())
    return None if worst <= PACKING_TOLERANCE * spread else f"differ by {worst:.2g} of {spread:.2g}"


def _kernel_in_fp32(kernel: AttentionKernel) -> AttentionKernel:
    """The kernel of a check: varlen has no fp32."""
    return "segments" if kernel == "varlen" else kernel


def _head_projects(
    model: PreTrainedModel, batch: Documents, logits: Float[Tensor, "tokens vocab"], kernel: AttentionKernel
) -> bool:
    """Whether the head is a plain projection of the last hidden state, and so can run in chunks."""
    head = model.get_output_embeddings()
    if head is None or not is_projection(head):
        return False
    hidden = run_trunk(model.base_model, pack_inputs(batch, _kernel_in_fp32(kernel)))
    difference = head(hidden).float() - logits
    return bool(difference.abs().max() <= HEAD_TOLERANCE * logits.abs().max())


def _check_scores(model: PreTrainedModel, batch: Documents, hidden: Float[Tensor, "tokens hidden"]) -> None:
    """Raise ValueError if `transformers` scores a conversation otherwise than by the hidden state of its last token."""
    documents = batch.input_ids.split(batch.segment_lengths)
    stock = torch.cat(_one_by_one(model, lambda inputs: model(**inputs).logits[:, 0], documents))
    last_tokens = torch.tensor(batch.segment_lengths).cumsum(0).to(hidden.device) - 1
    scores = model.get_submodule(SCORE)(hidden[last_tokens])[:, 0]
    worst = float((scores - stock).abs().max())
    if not worst <= SCORE_TOLERANCE * float(stock.abs().max()):
        raise ValueError(
            f"{model.config.model_type}: transformers does not score a conversation by its last token (scores differ "
            f"by {worst:.2g}), so others would load another reward model"
        )


def _sharing_error(
    model: PreTrainedModel, kernel: AttentionKernel, max_seq_len: int, device: torch.device
) -> str | None:
    """How pairs that share a prefix are computed wrongly; None: they are not."""
    pairs = [(min(prefix, max_seq_len - max(lengths)), *lengths) for prefix, *lengths in PAIRS]
    ids = _tokens(model, sum(sum(pair) for pair in pairs)).to(device)
    documents, positions = [], []
    for pair, (prefix, chosen, _) in zip(ids.split([sum(pair) for pair in pairs]), pairs, strict=True):
        documents += [pair[: prefix + chosen], torch.cat([pair[:prefix], pair[prefix + chosen :]])]
        positions += [torch.arange(prefix + chosen), torch.arange(prefix, len(documents[-1]))]
    with _checking(model, device):
        run = partial(run_trunk, model.base_model)
        singles = _one_by_one(model, run, documents)
        for number, (prefix, *_) in enumerate(pairs):
            singles[2 * number + 1] = singles[2 * number + 1][prefix:]  # in the pack the prefix is there once
        batch = Documents(
            ids,
            torch.cat(positions).to(device),
            segment_lengths=tuple(length for _, *both in pairs for length in both),
            prefix_lengths=tuple(prefix for prefix, *_ in pairs),
        )
        difference = _difference(run(pack_inputs(batch, kernel)).float(), torch.cat(singles))
    if difference is None:
        return None
    return f"{model.config.model_type} computes them differently when they are shared (hidden states {difference})"
