"""Prompts -> responses: the decoding loop of the `transformers` engine, over any causal LM that trains on packs.

Distinct prompts are prefilled in one packed forward, without padding and once for all samples that share one; then
every response grows by a token a step, in one batch. Rows that end make room for prompts that wait. Noise comes from
`noise.exponentials`, so a sample's tokens are the same in any batch, up to what rounding does to its logits.

The bound of that: it holds to the bit on a CPU with MKL where the layers can be packed. Elsewhere a library may
compute a row otherwise beside others, and then about one token in a hundred thousand is another.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from llmtrain.batch import KeptTokens
from llmtrain.models.attention import plan_segments
from llmtrain.rollout.cache import CACHED_ATTENTION, LayerStates, PackedStates, RowCache
from llmtrain.rollout.noise import exponentials
from llmtrain.rollout.packed_linear import PackedLinears, can_pack
from llmtrain.rollout.sampling import Sampling, draw, noise_count

STEPS_PER_CHUNK = 8  # between chunks rows come and go, and the loop can be stopped
PREFILL_TOKENS = 8192  # of one packed forward
MAX_ROWS = 64
PACKED_MIN_TOKENS = 64  # steps; in about as many, packing saves the time that it takes
ROWS_MULTIPLE = 8  # of a batch on a CPU; a product of 9 to 15 rows takes longer than one of 16
PREFILL_MIN_TOKENS = 16  # below, MKL takes another path


@dataclass(frozen=True)
class Generated:
    """One response: its tokens, their logprobs under the distribution they were drawn from, and how it ended."""

    response_ids: list[int]
    logprobs: list[float]
    stopped: bool  # by a stop token, which is the last of `response_ids`; else the budget ended it
    kept: KeptTokens | None = None  # what each token was drawn among, on the CPU; None: any token


@dataclass
class _Row:
    prompt: tuple[int, ...]
    sample_id: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)  # for each token what it was drawn among, where that is not all
    stopped: bool = False
    ended: bool = False


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sample_ids: Sequence[int],
    settings: Sampling,
    should_stop: Callable[[], bool],
    *,
    max_rows: int = MAX_ROWS,
) -> list[Generated] | None:
    """A response to each prompt, in order; None once `should_stop` says so, which is asked every few tokens.

    The model is the plain one inside of what wraps it for training, its parameters whole on this rank, its adapter on
    or off as it is found. `max_rows` responses grow at once. Raises ValueError for a prompt that is empty, or too long
    for the model's positions, and for logits that are not finite.
    """
    assert len(set(sample_ids)) == len(sample_ids) == len(prompts)
    _check_prompts(model, prompts, sample_ids, settings)
    answers = [_Row(tuple(prompt), sample) for prompt, sample in zip(prompts, sample_ids, strict=True)]
    waiting, rows, cache = deque(answers), list[_Row](), RowCache()
    with _generating(model):
        packs = settings.max_new_tokens >= PACKED_MIN_TOKENS and can_pack(model)
        linears: PackedLinears | None = None
        while waiting or not all(row.ended for row in rows):
            if should_stop():
                return None
            rows, cache = _admit(model, waiting, rows, cache, settings, max_rows)
            if packs and (linears is None or linears.rows != cache.num_rows):
                linears = None  # the old copies go first
                linears = PackedLinears(model, cache.num_rows)
            with linears.in_use() if linears is not None else nullcontext():
                for _ in range(STEPS_PER_CHUNK):
                    if all(row.ended for row in rows):
                        break
                    _step(model, rows, cache, settings)
    return [Generated(row.ids, row.logprobs, row.stopped, _kept(row)) for row in answers]


def _kept(row: _Row) -> KeptTokens | None:
    return KeptTokens(torch.cat(row.kept), tuple(len(ids) for ids in row.kept)) if row.kept else None


def _check_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int], settings: Sampling
) -> None:
    shape = model.config
    field_name = shape.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    positions: int | None = shape.to_dict().get(field_name)
    for prompt, sample in zip(prompts, sample_ids, strict=True):
        if not prompt:
            raise ValueError(f"sample {sample}: its prompt has no token: give the tokenizer a chat template, or a text")
        if positions is not None and len(prompt) + settings.max_new_tokens > positions:
            raise ValueError(
                f"sample {sample}: a prompt of {len(prompt):,} tokens and rollout.max_new_tokens="
                f"{settings.max_new_tokens} exceed the model's {positions:,} positions: shorten one of them"
            )


@contextmanager
def _generating(model: PreTrainedModel) -> Iterator[None]:
    """The model without dropout and gradients, with attention over the cache; then as it was."""
    modes = [(module, module.training) for module in model.modules()]
    attention: str = model.config._attn_implementation
    # A model compiled for packs would be compiled anew for the shapes of each step.
    compiled = model.base_model._compiled_call_impl is not None
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    model.eval()
    model.set_attn_implementation(CACHED_ATTENTION)
    try:
        with torch.no_grad(), eager:
            yield
    finally:
        model.set_attn_implementation(attention)
        for module, training in modes:
            module.training = training


def _admit(
    model: PreTrainedModel,
    waiting: deque[_Row],
    rows: list[_Row],
    cache: RowCache,
    settings: Sampling,
    max_rows: int,
) -> tuple[list[_Row], RowCache]:
    """Leave out rows that ended, let waiting ones in with their first token, and make room for the next chunk."""
    kept = [number for number, row in enumerate(rows) if not row.ended]
    joining = [waiting.popleft() for _ in range(min(max_rows - len(kept), len(waiting)))]
    needed = STEPS_PER_CHUNK + max(
        [len(row.prompt) for row in joining] + [len(rows[number].prompt) + len(rows[number].ids) for number in kept]
    )
    if len(kept) == len(rows) and not joining and needed <= cache.columns:
        return rows, cache
    states = _start(model, joining, settings)
    rows = [*(rows[number] for number in kept), *joining]
    steps_left = settings.max_new_tokens - min(len(row.ids) for row in rows)
    return rows, cache.rearranged(kept, states, _width(model, len(rows), cache.num_rows, steps_left), needed)


def _start(model: PreTrainedModel, joining: Sequence[_Row], settings: Sampling) -> list[LayerStates]:
    """Give each row its first token; the keys and values of its prompt."""
    distinct = list(dict.fromkeys(row.prompt for row in joining))
    states: dict[tuple[int, ...], LayerStates] = {}
    logits: dict[tuple[int, ...], Float[Tensor, " vocab"]] = {}
    for prompts in _by_tokens(distinct):
        prompt_states, prompt_logits = _prefill(model, prompts)
        states.update(zip(prompts, prompt_states, strict=True))
        logits.update(zip(prompts, prompt_logits, strict=True))
    if joining:
        _extend(joining, torch.stack([logits[row.prompt] for row in joining]), settings)
    return [states[row.prompt] for row in joining]


def _by_tokens(prompts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Prompts in groups of at most PREFILL_TOKENS, or of one, each group's of equal length together."""
    group: list[tuple[int, ...]] = []
    for prompt in sorted(prompts, key=len):
        if group and sum(map(len, group)) + len(prompt) > PREFILL_TOKENS:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def _prefill(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]]
) -> tuple[list[LayerStates], Float[Tensor, "prompts vocab"]]:
    """Keys and values of each prompt, and the logits behind its last token, from one packed forward."""
    device = model.device
    lengths = [len(prompt) for prompt in prompts]
    lacking = max(0, PREFILL_MIN_TOKENS - sum(lengths))
    packed = [token for prompt in prompts for token in prompt] + [0] * lacking
    segment_lengths = [*lengths, lacking] if lacking else lengths
    ends = torch.tensor(lengths).cumsum(0)
    last = torch.cat([ends - 1, torch.zeros(max(0, PREFILL_MIN_TOKENS - len(prompts)), dtype=torch.long)])
    cache = PackedStates()
    outputs = model(
        input_ids=torch.tensor([packed], device=device),
        position_ids=torch.cat([torch.arange(length) for length in segment_lengths])[None].to(device),
        segments=plan_segments(segment_lengths, "segments", device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=last.to(device),
    )
    states = [cache.span(end - length, end) for length, end in zip(lengths, ends.tolist(), strict=True)]
    return states, outputs.logits[0, : len(prompts)]


def _step(model: PreTrainedModel, rows: Sequence[_Row], cache: RowCache, settings: Sampling) -> None:
    """One more token for each row; a row that ended repeats its last step, unheard."""
    device = model.device
    padding = [0] * (cache.num_rows - len(rows))
    positions = [len(row.prompt) + len(row.ids) - 1 for row in rows] + padding
    cache.place(positions, device)
    outputs = model(
        input_ids=torch.tensor([row.ids[-1] for row in rows] + padding, device=device)[:, None],
        position_ids=torch.tensor(positions, device=device)[:, None],
        past_key_values=cache,
        cached=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    _extend(rows, outputs.logits[: len(rows), -1], settings)


def _extend(rows: Sequence[_Row], logits: Float[Tensor, "rows vocab"], settings: Sampling) -> None:
    """Draw each row's next token. Raises ValueError for logits that are not finite."""
    samples, positions = [row.sample_id for row in rows], [len(row.ids) for row in rows]
    noise = exponentials(settings.seed, settings.rollout, samples, positions, noise_count(logits.shape[-1]))
    token_ids, logprobs, kept = draw(logits, noise, settings)
    kept_ids = [None] * len(rows) if kept is None else kept.ids.cpu().split(kept.counts)
    for row, token_id, logprob, among in zip(rows, token_ids.tolist(), logprobs.tolist(), kept_ids, strict=True):
        if row.ended:
            continue
        if not math.isfinite(logprob):
            raise ValueError(
                f"sample {row.sample_id}: the model's logits are not finite behind its token "
                f"{len(row.prompt) + len(row.ids)}: it has diverged; go on from an earlier checkpoint, at a lower "
                "optim.lr"
            )
        row.ids.append(token_id)
        row.logprobs.append(logprob)
        row.kept += [] if among is None else [among]
        row.stopped = token_id in settings.stop_ids
        row.ended = row.stopped or len(row.ids) == settings.max_new_tokens


def _width(model: PreTrainedModel, num_rows: int, current: int, steps_left: int) -> int:
    """Rows of the batch that holds `num_rows`: on a CPU a multiple, and narrower only where that is worth packing."""
    if model.device.type != "cpu":
        return num_rows
    if num_rows <= current and (current < 2 * num_rows or steps_left < PACKED_MIN_TOKENS):
        return current
    return -(-num_rows // ROWS_MULTIPLE) * ROWS_MULTIPLE
