"""A start-up check on the user's own model: documents together must equal documents alone, our head the model's own.

The path that a run takes (`models/paths`) is the fastest that a small copy of the model computes rightly, gradients
included, and the model itself too. What no path computes, and what a head does besides projecting, is found here,
before a step is trained. The reference is the model as `transformers` runs it, one document at a time.
The same comparison finds out whether the documents of a pair can share their prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.models.adapters.quantized import fp32_arithmetic
from llmtrain.models.attention import sharing_obstacle
from llmtrain.models.context import num_positions
from llmtrain.models.heads.score import SCORE
from llmtrain.models.paths.choose import difference, in_fp32, paths, pseudo_random
from llmtrain.models.paths.path import Path, can_switch, is_on_plain_packs
from llmtrain.models.trunk import Documents, Inputs, pack_inputs, run_its_trunk, run_model, run_trunk
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.head_form import head_form
from llmtrain.models.wrappers.reward_model import RewardModel
from llmtrain.protocols import Report
from llmtrain.system.device import AttentionKernel

LENGTHS = (5, 3, 8, 8)
PAIRS = ((5, 1, 3), (0, 2, 3), (6, 2, 2))  # tokens of a prefix, and of the two documents after it
SCORE_TOLERANCE = 1e-5  # of the largest score, in fp32

Run = Callable[[Inputs], Tensor]
"""What a model is called with -> an output of each token: logits, or the last hidden state."""


def wrap_causal_lm(
    model: PreTrainedModel, kernel: AttentionKernel, max_seq_len: int, device: torch.device
) -> CausalLMLoss:
    """Move a model to its device and wrap it for training, after comparing it with itself.

    `kernel`: of attention in packs, if the model can run them. Takes the head in chunks if its form is known, else the
    model's own logits. Raises ValueError, naming the architecture, for a model that sees later
    tokens, or computes documents together otherwise than one by one, whatever the path.
    """
    with checking(model, device):
        batch = probe(model, LENGTHS, max_seq_len)
        _require_causal(model, max_seq_len)
        path, logits, _ = _find_path(model, run_model, batch, kernel, max_seq_len)
        form = head_form(model, batch, logits, in_fp32(path.kernel), max_seq_len)
    return CausalLMLoss(model, path.kernel, form, path)


def wrap_reward_model(
    model: PreTrainedModel, kernel: AttentionKernel, max_seq_len: int, device: torch.device
) -> RewardModel:
    """The same for a model with a scalar head, whose scores must be those of `transformers` too."""
    with checking(model, device):
        batch = probe(model, LENGTHS, max_seq_len)
        path, _, hidden = _find_path(model, run_its_trunk, batch, kernel, max_seq_len)
        _check_scores(model, batch, hidden)
    return RewardModel(model, path.kernel, path=path)


def require_score_of_last_token(model: PreTrainedModel) -> None:
    """Raise ValueError for a model with a scalar head that `transformers` does not score by its last token."""
    with checking(model, model.device):
        batch = probe(model, LENGTHS, max(LENGTHS))
        run = partial(run_its_trunk, model)
        _check_scores(model, batch, torch.cat(_one_by_one(model, run, batch.input_ids.split(batch.segment_lengths))))


def shares_prompts(
    model: PreTrainedModel, kernel: AttentionKernel, max_seq_len: int, device: torch.device, report: Report
) -> bool:
    """Whether the documents of a pair can share their prompt in a pack; reports it, or the reason why not.

    `model` has passed the check of packs and is on its device. The kernel must know shared prefixes, and hidden
    states of pairs that share one must be those of `transformers`, one document at a time.
    """
    obstacle = (
        sharing_obstacle(kernel) or _grouping_obstacle(model) or _sharing_error(model, kernel, max_seq_len, device)
    )
    report(
        "a pair's prompt is computed once"
        if obstacle is None
        else f"a pair's prompt is computed twice, since {obstacle}"
    )
    return obstacle is None


@contextmanager
def checking(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """A model on its device, without dropout or gradients and in fp32; then as it was, but for its place."""
    nn.Module.to(model, device)  # the model's own `to` is not typed
    was_training = model.training
    model.eval()
    with torch.no_grad(), fp32_arithmetic(model):
        yield
    model.train(was_training)


def probe(model: PreTrainedModel, lengths: Sequence[int], max_seq_len: int) -> Documents:
    """A pack of documents of these lengths, as far as a run has such ones, on the model's device."""
    longest = min(max_seq_len, num_positions(model.config) or max_seq_len)
    lengths = tuple(min(length, longest) for length in lengths)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Documents(pseudo_random(model, sum(lengths)), positions.to(model.device), lengths)


def _find_path(
    model: PreTrainedModel,
    run: Callable[[nn.Module, Inputs], Tensor],
    batch: Documents,
    kernel: AttentionKernel,
    max_seq_len: int,
) -> tuple[Path, Float[Tensor, "tokens outputs"], Float[Tensor, "tokens outputs"]]:
    """The path that the model is on from now, its outputs of documents together, and of one by one.

    Raises ValueError if no path is right.
    """
    singles = torch.cat(_one_by_one(model, partial(run, model), batch.input_ids.split(batch.segment_lengths)))
    for path in paths(model, kernel, max_seq_len, run):
        path.put_into(model)
        together = run(model, pack_inputs(batch, in_fp32(path.kernel))).float()
        if difference(together, singles) is None:
            return path, together, singles
    raise AssertionError("`paths` raises after the last")


def _require_causal(model: PreTrainedModel, max_seq_len: int) -> None:
    """Raise ValueError for a model that sees later tokens: it would learn to copy the next one, not to predict it."""
    ids = pseudo_random(model, min(LENGTHS[-1], max_seq_len))
    if len(ids) < 2:
        return
    other = ids.clone()
    other[-1] = next(id_ for id_ in pseudo_random(model, 99, seed=1) if id_ != ids[-1])
    first, second = (each[:-1] for each in _one_by_one(model, partial(run_model, model), [ids, other]))
    if difference(second, first) is not None:
        raise ValueError(
            f"{model.config.model_type}: its outputs depend on later tokens, as an encoder's do, so it cannot be "
            "trained to predict them; some architectures take model.config.is_decoder=true"
        )


def _one_by_one(
    model: PreTrainedModel, run: Run, documents: Sequence[Int[Tensor, " _"]]
) -> list[Float[Tensor, "_ ..."]]:
    """Each document alone, through the model's own eager attention."""
    own: str = model.config._attn_implementation
    if can_switch(model):
        model.set_attn_implementation("eager")
    outputs = [run({"input_ids": document[None], "use_cache": False}).float() for document in documents]
    if can_switch(model):
        model.set_attn_implementation(own)
    return outputs


def _check_scores(model: PreTrainedModel, batch: Documents, hidden: Float[Tensor, "tokens hidden"]) -> None:
    """Raise ValueError if `transformers` scores a conversation otherwise than by the hidden state of its last token."""
    documents = batch.input_ids.split(batch.segment_lengths)

    def score(inputs: Inputs) -> Tensor:
        assert isinstance(inputs, dict)
        scores: Tensor = model(**inputs).logits
        return scores[:, 0]

    stock = torch.cat(_one_by_one(model, score, documents))
    last_tokens = torch.tensor(batch.segment_lengths).cumsum(0).to(hidden.device) - 1
    scores = model.get_submodule(SCORE)(hidden[last_tokens])[:, 0]
    worst = float((scores - stock).abs().max())
    if not worst <= SCORE_TOLERANCE * float(stock.abs().max()):
        raise ValueError(
            f"{model.config.model_type}: transformers does not score a conversation by its last token (scores differ "
            f"by {worst:.2g}), so others would load another reward model"
        )


def _grouping_obstacle(model: PreTrainedModel) -> str | None:
    """Why documents of a model with modules per group cannot share a prefix; None: it has none.

    A group takes a prefix for a document of its length, which is wrong where RoPE goes by the length of the whole.
    """
    return None if is_on_plain_packs(model) else f"{model.config.model_type} has modules that run per whole document"


def _sharing_error(
    model: PreTrainedModel, kernel: AttentionKernel, max_seq_len: int, device: torch.device
) -> str | None:
    """How pairs that share a prefix are computed wrongly; None: they are not."""
    pairs = [(min(prefix, max_seq_len - max(lengths)), *lengths) for prefix, *lengths in PAIRS]
    ids = pseudo_random(model, sum(sum(pair) for pair in pairs)).to(device)
    documents, positions = [], []
    for pair, (prefix, chosen, _) in zip(ids.split([sum(pair) for pair in pairs]), pairs, strict=True):
        documents += [pair[: prefix + chosen], torch.cat([pair[:prefix], pair[prefix + chosen :]])]
        positions += [torch.arange(prefix + chosen), torch.arange(prefix, len(documents[-1]))]
    with checking(model, device):
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
        found = difference(run(pack_inputs(batch, kernel)).float(), torch.cat(singles))
    if found is None:
        return None
    return f"{model.config.model_type} computes them differently when they are shared (hidden states {found})"
