"""A start-up check on the user's own model: packed must equal one by one, our head the model's own.

An architecture that lets a document see its neighbour (a recurrent state, a convolution, positions of its
own), that bypasses the attention interface, or that does more than project at its head is found here,
before a step is trained. The reference is the model as `transformers` runs it, one document at a time.
Whether the documents of a pair may share their prompt is found in the same way.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.batch import PackedTokens
from llmtrain.models.adapters.quantized import fp32_arithmetic
from llmtrain.models.attention import ATTENTION, plan_segments, sharing_obstacle
from llmtrain.models.wrappers.causal_lm import CausalLMLoss, is_projection
from llmtrain.protocols import Report
from llmtrain.system.device import AttentionKernel

LENGTHS = (5, 3, 8, 8)
PAIRS = ((5, 1, 3), (0, 2, 3), (6, 2, 2))  # tokens of a prefix, and of two documents behind it
PACKING_TOLERANCE = 1e-4  # of the spread of the logits, in fp32; a leak is off by a hundredth or more
HEAD_TOLERANCE = 1e-6  # the same arithmetic on both sides; a softcap of 30 on logits of a new model is off by 1e-4


def with_loss(model: PreTrainedModel, kernel: AttentionKernel, max_seq_len: int, device: torch.device) -> CausalLMLoss:
    """Move a model to its device and wrap it for training, after comparing it with itself.

    Takes the chunked head where it gives the loss of the model's own logits, the model's own logits elsewhere.
    Raises ValueError, naming the architecture, for a model whose packed logits differ from one-by-one logits.
    """
    lengths = tuple(min(length, max_seq_len) for length in LENGTHS)
    check_kernel: AttentionKernel = "segments" if kernel == "varlen" else kernel  # the check runs in fp32
    nn.Module.to(model, device)  # the model's own `to` is not typed
    was_training = model.training
    model.eval()
    with torch.no_grad(), fp32_arithmetic(model):
        batch = _probe(lengths, model.config.vocab_size, device)
        try:
            singles, packed = _stock_logits(model, batch), _packed_logits(model, batch, check_kernel)
        except (KeyError, AttributeError, TypeError) as error:  # how models that bypass the interface fail
            raise ValueError(
                f"{model.config.model_type} does not go through transformers' attention interface ({error}), "
                "so this architecture cannot be trained on packs"
            ) from error
        spread = float((singles - singles.mean(-1, keepdim=True)).abs().max())
        worst = float((packed - singles).abs().max())
        if not worst <= PACKING_TOLERANCE * spread:
            raise ValueError(
                f"{model.config.model_type}: packed documents are not computed as they are one by one (logits "
                f"differ by {worst:.2g} of {spread:.2g}), so this architecture cannot be trained on packs"
            )
        own_logits = not is_projection(model.get_output_embeddings()) or not _head_projects(
            model, batch, packed, check_kernel
        )
    model.train(was_training)
    return CausalLMLoss(model, kernel, own_logits)


def shares_prompts(
    model: PreTrainedModel, kernel: AttentionKernel, max_seq_len: int, device: torch.device, report: Report
) -> bool:
    """Whether the documents of a pair can share their prompt in a pack; says so, or why it stands twice.

    `model` has passed the check of packs and is on its device. The kernel must know shared prefixes, and hidden
    states of pairs that share one must be those of `transformers`, one document at a time.
    """
    obstacle = sharing_obstacle(kernel) or _sharing_error(model, kernel, max_seq_len, device)
    report("prompts: once a pair" if obstacle is None else f"prompts: twice a pair, since {obstacle}")
    return obstacle is None


@torch.no_grad()
def _sharing_error(
    model: PreTrainedModel, kernel: AttentionKernel, max_seq_len: int, device: torch.device
) -> str | None:
    """How pairs that share a prefix are computed wrongly; None: they are not."""
    pairs = [(min(prefix, max_seq_len - max(behind)), *behind) for prefix, *behind in PAIRS]
    ids = _probe(tuple(sum(pair) for pair in pairs), model.config.vocab_size, device).input_ids
    prefixes, behind = [prefix for prefix, *_ in pairs], [length for _, *both in pairs for length in both]
    positions, expected = [], []
    was_training = model.training
    model.eval()
    with fp32_arithmetic(model):
        model.set_attn_implementation("eager")
        for pair, (prefix, chosen, _) in zip(ids.split([sum(pair) for pair in pairs]), pairs, strict=True):
            first, second = pair[: prefix + chosen], torch.cat([pair[:prefix], pair[prefix + chosen :]])
            first_hidden, second_hidden = (
                model.base_model(input_ids=document[None], use_cache=False).last_hidden_state[0]
                for document in (first, second)
            )
            expected += [first_hidden, second_hidden[prefix:]]
            positions += [torch.arange(len(first)), torch.arange(prefix, len(second))]
        model.set_attn_implementation(ATTENTION)
        shared = model.base_model(
            input_ids=ids[None],
            position_ids=torch.cat(positions).to(device)[None],
            segments=plan_segments(behind, kernel, device, prefixes),
            use_cache=False,
        ).last_hidden_state[0]
    model.train(was_training)
    singles = torch.cat(expected)
    spread, worst = float((singles - singles.mean(0)).abs().max()), float((shared - singles).abs().max())
    if worst <= PACKING_TOLERANCE * spread:
        return None
    difference = f"hidden states differ by {worst:.2g} of {spread:.2g}"
    return f"{model.config.model_type} computes otherwise where they are shared ({difference})"


def _probe(lengths: tuple[int, ...], vocab_size: int, device: torch.device) -> PackedTokens:
    """Pseudo-random tokens, each with a label, without touching torch's global generator."""
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    return PackedTokens(
        input_ids=torch.randint(vocab_size, (total,), generator=generator),
        labels=torch.randint(vocab_size, (total,), generator=generator),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        segment_lengths=lengths,
        num_trained=total,
        sample_ids=(),
    ).to(device)


def _stock_logits(model: PreTrainedModel, batch: PackedTokens) -> Float[Tensor, "tokens vocab"]:
    """Each document alone, through the model's own eager attention."""
    model.set_attn_implementation("eager")
    documents = batch.input_ids.split(batch.segment_lengths)
    logits = torch.cat([model(input_ids=document[None], use_cache=False).logits[0] for document in documents])
    model.set_attn_implementation(ATTENTION)
    return logits.float()


def _packed_logits(
    model: PreTrainedModel, batch: PackedTokens, kernel: AttentionKernel
) -> Float[Tensor, "tokens vocab"]:
    segments = plan_segments(batch.segment_lengths, kernel, batch.input_ids.device)
    outputs = model(
        input_ids=batch.input_ids[None], position_ids=batch.position_ids[None], segments=segments, use_cache=False
    )
    return outputs.logits[0].float()


def _head_projects(
    model: PreTrainedModel, batch: PackedTokens, logits: Float[Tensor, "tokens vocab"], kernel: AttentionKernel
) -> bool:
    """Whether the head is a plain projection of the last hidden state, and so can run in chunks."""
    segments = plan_segments(batch.segment_lengths, kernel, batch.input_ids.device)
    hidden = model.base_model(
        input_ids=batch.input_ids[None], position_ids=batch.position_ids[None], segments=segments, use_cache=False
    ).last_hidden_state[0]
    difference = model.get_output_embeddings()(hidden).float() - logits
    return bool(difference.abs().max() <= HEAD_TOLERANCE * logits.abs().max())
