"""Prompts -> responses: the decoding loop of the `transformers` engine, over any causal LM that trains on packs.

Distinct prompts are prefilled in one packed forward, without padding and once for all samples that share one; then
every response grows by a token a step, in one batch. Rows that end make room for prompts that wait. Noise comes from
`noise.exponentials`, so a sample's tokens are the same in any batch, up to what rounding does to its logits.

The bound of that: it holds to the bit where layers are packed (`step_linear`), for long responses in fp32 on a CPU with
MKL. Elsewhere a library may compute a row otherwise beside others, and then about one token in a hundred thousand is
another.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.batch import KeptTokens
from llmtrain.rollout.local.cache import LayerStates, RowCache
from llmtrain.rollout.local.forward import ROWS_MULTIPLE, Forward, Said
from llmtrain.rollout.local.noise import exponentials
from llmtrain.rollout.local.sampling import Sampling, draw, noise_count

STEPS_PER_CHUNK = 8  # between chunks rows come and go, and the loop can be stopped
PREFILL_TOKENS = 8192  # of one packed forward
MAX_ROWS = 64
PACKED_MIN_TOKENS = 96  # steps; in about as many, packing saves the time that it takes


@dataclass(frozen=True)
class Generated:
    """One response: its tokens, their logprobs under the distribution they were drawn from, and how it ended."""

    response_ids: list[int]
    logprobs: list[float]
    stopped: bool  # by a stop token, which is the last of `response_ids`; else the budget ended it
    kept: KeptTokens | None = None  # what each token was drawn among, on the CPU; None: any token
    values: list[float] = field(default_factory=list)  # of the state that each token was drawn in, by a value head


@dataclass
class _Row:
    prompt: tuple[int, ...]
    sample_id: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
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
    value_head: nn.Module | None = None,
    max_rows: int = MAX_ROWS,
) -> list[Generated] | None:
    """A response to each prompt, in order; None once `should_stop` says so, which is asked every few tokens.

    The model is the plain one inside of what wraps it for training, its parameters whole on this rank, its adapter on
    or off as it is found. `value_head`, (tokens, hidden) -> (tokens,), reads what the output head does. `max_rows`
    responses grow at once. Raises ValueError for a prompt that is empty, or too long for the model's positions, and
    for logits that are not finite.
    """
    assert len(set(sample_ids)) == len(sample_ids) == len(prompts)
    _check_prompts(model, prompts, sample_ids, settings)
    answers = [_Row(tuple(prompt), sample) for prompt, sample in zip(prompts, sample_ids, strict=True)]
    waiting, rows, cache = deque(answers), list[_Row](), RowCache()
    with Forward.opened(model, value_head, packs=settings.max_new_tokens >= PACKED_MIN_TOKENS) as forward:
        while waiting or not all(row.ended for row in rows):
            if should_stop():
                return None
            rows, cache = _admit(forward, waiting, rows, cache, settings, max_rows)
            if all(row.ended for row in rows):  # with their first token
                continue
            with forward.steps_of(cache.num_rows):
                for _ in range(STEPS_PER_CHUNK):
                    if all(row.ended for row in rows):
                        break
                    _step(forward, rows, cache, settings)
    return [Generated(row.ids, row.logprobs, row.stopped, _kept(row), row.values) for row in answers]


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


def _admit(
    forward: Forward,
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
    states = _start(forward, joining, settings)
    rows = [*(rows[number] for number in kept), *joining]
    steps_left = settings.max_new_tokens - min(len(row.ids) for row in rows)
    return rows, cache.rearranged(kept, states, _width(forward, len(rows), cache.num_rows, steps_left), needed)


def _start(forward: Forward, joining: Sequence[_Row], settings: Sampling) -> list[LayerStates]:
    """Give each row its first token; the keys and values of its prompt."""
    distinct = list(dict.fromkeys(row.prompt for row in joining))
    states: list[LayerStates] = []
    said: list[Said] = []
    numbers: dict[tuple[int, ...], int] = {}
    for prompts in _by_tokens(distinct):
        numbers |= {prompt: len(numbers) + place for place, prompt in enumerate(prompts)}
        prompt_states, behind = forward.prefill(prompts)
        states += prompt_states
        said.append(behind)
    order = [numbers[row.prompt] for row in joining]
    if joining:
        _extend(joining, Said.joined(said).at(order), settings)
    return [states[number] for number in order]


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


def _step(forward: Forward, rows: Sequence[_Row], cache: RowCache, settings: Sampling) -> None:
    """One more token for each row; a row that ended repeats its last step, unheard."""
    padding = [0] * (cache.num_rows - len(rows))
    positions = [len(row.prompt) + len(row.ids) - 1 for row in rows] + padding
    said = forward.step([row.ids[-1] for row in rows] + padding, positions, cache)
    _extend(rows, said.first(len(rows)), settings)


def _extend(rows: Sequence[_Row], said: Said, settings: Sampling) -> None:
    """Draw each row's next token. Raises ValueError for logits that are not finite."""
    samples, positions = [row.sample_id for row in rows], [len(row.ids) for row in rows]
    noise = exponentials(settings.seed, settings.rollout, samples, positions, noise_count(said.logits.shape[-1]))
    token_ids, logprobs, kept = draw(said.logits, noise, settings)
    kept_ids = [None] * len(rows) if kept is None else kept.ids.cpu().split(kept.counts)
    values = [[]] * len(rows) if said.values is None else said.values[:, None].tolist()
    for row, token_id, logprob, value, among in zip(
        rows, token_ids.tolist(), logprobs.tolist(), values, kept_ids, strict=True
    ):
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
        row.values += value
        row.kept += [] if among is None else [among]
        row.stopped = token_id in settings.stop_ids
        row.ended = row.stopped or len(row.ids) == settings.max_new_tokens


def _width(forward: Forward, num_rows: int, current: int, steps_left: int) -> int:
    """Rows of the batch that holds `num_rows`: on a CPU a multiple, narrower only where packing anew is worth it."""
    if forward.device.type != "cpu":
        return num_rows
    if forward.packs and num_rows <= current and (current < 2 * num_rows or steps_left < PACKED_MIN_TOKENS):
        return current
    return -(-num_rows // ROWS_MULTIPLE) * ROWS_MULTIPLE
