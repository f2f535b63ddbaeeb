"""The decoding loop of the local engine: prompts -> responses, over any causal LM that trains on packs.

Distinct prompts are prefilled in one packed forward, without padding and once for all samples of a prompt. Then every
response grows by one token per step, in one batch; prompts that wait take the place of responses that ended. The noise
of a token is a pure function of its sample and position (`noise`), so a sample's tokens are the same in any batch, up
to rounding in its logits.

With packed layers (`cpu_linear`: long responses in fp32 on a CPU with MKL) that holds to the bit. Elsewhere a library
may round a row differently beside other rows, which changes about one token in a hundred thousand.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from torch import nn
from transformers import PreTrainedModel

from llmtrain.batch import SamplingMask
from llmtrain.models.context import num_positions
from llmtrain.rollout.engine import Generated, Sampling
from llmtrain.rollout.local.cache import LayerStates, RowCache
from llmtrain.rollout.local.forward import ROWS_MULTIPLE, Forward, Outputs
from llmtrain.rollout.local.noise import exponentials
from llmtrain.rollout.local.sampling import draw, noise_count
from llmtrain.rollout.local.ways import way_of
from llmtrain.rollout.local.whole_rows import as_transformers_runs_it, grow

STEPS_PER_CHUNK = 8  # rows join and leave, and the loop can be stopped, between chunks only
PREFILL_TOKENS = 8192  # per packed forward
MAX_ROWS = 64
PACKED_MIN_TOKENS = 96  # steps, after which packing the layers has saved the time that it takes


@dataclass
class _Row:
    """A response that grows."""

    prompt: tuple[int, ...]
    sample_id: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    masks: list[SamplingMask | None] = field(default_factory=list)  # of each token
    stopped: bool = False  # by a stop token or a stop text
    stop_text: str | None = None
    ended: bool = False

    def generated(self) -> Generated:
        """The response as it is by now."""
        mask = SamplingMask.concat(self.masks)
        return Generated(self.ids, self.logprobs, self.stopped, mask, self.values, self.stop_text)


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sample_ids: Sequence[int],
    sampling: Sampling,
    should_stop: Callable[[], bool],
    *,
    value_head: nn.Module | None = None,
    max_rows: int = MAX_ROWS,
) -> list[Generated] | None:
    """A response to each prompt, in order; None once `should_stop`, asked every few tokens, returns True.

    The model is the plain one inside of what wraps it for training, its parameters whole on this rank, its adapter on
    or off as it is. `value_head`, (tokens, hidden) -> (tokens,), reads the input of the output head. At most `max_rows`
    responses grow at once. Raises ValueError for a prompt that is empty or too long for the model's positions, and for
    logits that are not finite.
    """
    assert len(set(sample_ids)) == len(sample_ids) == len(prompts)
    _check_prompts(model, prompts, sample_ids, sampling)
    responses = [_Row(tuple(prompt), sample) for prompt, sample in zip(prompts, sample_ids, strict=True)]
    way = way_of(model)
    if way == "packs":
        return _by_packs(model, responses, sampling, should_stop, value_head, max_rows)
    return _by_rows(model, responses, sampling, should_stop, value_head, max_rows, cached=way == "cached")


def _by_packs(
    model: PreTrainedModel,
    responses: Sequence[_Row],
    sampling: Sampling,
    should_stop: Callable[[], bool],
    value_head: nn.Module | None,
    max_rows: int,
) -> list[Generated] | None:
    """The responses, whose prompts are prefilled in packs; those that wait take the place of those that ended."""
    waiting, rows, cache = deque(responses), list[_Row](), RowCache()
    with Forward.opened(model, value_head, packs=sampling.max_new_tokens >= PACKED_MIN_TOKENS) as forward:
        while waiting or not all(row.ended for row in rows):
            if should_stop():
                return None
            rows, cache = _admit(forward, waiting, rows, cache, sampling, max_rows)
            if all(row.ended for row in rows):  # each with its first token
                continue
            with forward.steps_of(cache.num_rows):
                for _ in range(STEPS_PER_CHUNK):
                    if all(row.ended for row in rows):
                        break
                    _step(forward, rows, cache, sampling)
    return [row.generated() for row in responses]


def _by_rows(
    model: PreTrainedModel,
    responses: Sequence[_Row],
    sampling: Sampling,
    should_stop: Callable[[], bool],
    value_head: nn.Module | None,
    max_rows: int,
    *,
    cached: bool,
) -> list[Generated] | None:
    """The same by `transformers`' own `generate`: prompts of one length at a time, shorter ones first."""
    stops = False

    def has_ended() -> bool:
        nonlocal stops
        stops = stops or should_stop()
        return stops or all(row.ended for row in rows)

    def extend(outputs: Outputs) -> list[int]:
        _extend(rows, outputs, sampling)
        return [row.ids[-1] for row in rows]

    ordered = sorted(responses, key=lambda row: len(row.prompt))
    with as_transformers_runs_it(model):
        for _, group in groupby(ordered, key=lambda row: len(row.prompt)):
            waiting = list(group)
            for start in range(0, len(waiting), max_rows):
                rows = waiting[start : start + max_rows]
                if should_stop():
                    return None
                prompts = [row.prompt for row in rows]
                grow(model, prompts, sampling.max_new_tokens, extend, has_ended, value_head, cached=cached)
                if stops:
                    return None
    return [row.generated() for row in responses]


def _check_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int], sampling: Sampling
) -> None:
    positions = num_positions(model.config)
    for prompt, sample in zip(prompts, sample_ids, strict=True):
        if not prompt:
            raise ValueError(
                f"sample {sample}: its prompt has no tokens: give the tokenizer a chat template, or the row a text"
            )
        if positions is not None and len(prompt) + sampling.max_new_tokens > positions:
            raise ValueError(
                f"sample {sample}: a prompt of {len(prompt):,} tokens and rollout.max_new_tokens="
                f"{sampling.max_new_tokens} exceed the model's {positions:,} positions: shorten one of them"
            )


def _admit(
    forward: Forward,
    waiting: deque[_Row],
    rows: list[_Row],
    cache: RowCache,
    sampling: Sampling,
    max_rows: int,
) -> tuple[list[_Row], RowCache]:
    """Drop rows that ended, let waiting ones join with their first token, and make room for the next chunk."""
    growing = [number for number, row in enumerate(rows) if not row.ended]
    joining = [waiting.popleft() for _ in range(min(max_rows - len(growing), len(waiting)))]
    needed = STEPS_PER_CHUNK + max(
        [len(row.prompt) for row in joining] + [len(rows[number].prompt) + len(rows[number].ids) for number in growing]
    )
    if len(growing) == len(rows) and not joining and needed <= cache.columns:
        return rows, cache
    states = _start(forward, joining, sampling)
    rows = [*(rows[number] for number in growing), *joining]
    steps_left = sampling.max_new_tokens - min(len(row.ids) for row in rows)
    return rows, cache.rearranged(growing, states, _width(forward, len(rows), cache.num_rows, steps_left), needed)


def _start(forward: Forward, joining: Sequence[_Row], sampling: Sampling) -> list[LayerStates]:
    """Prefill the prompts and give each row its first token; returns the keys and values of each row's prompt."""
    distinct = list(dict.fromkeys(row.prompt for row in joining))
    states: list[LayerStates] = []
    outputs: list[Outputs] = []
    numbers: dict[tuple[int, ...], int] = {}
    for prompts in _by_tokens(distinct):
        numbers |= {prompt: len(numbers) + place for place, prompt in enumerate(prompts)}
        prompt_states, prompt_outputs = forward.prefill(prompts)
        states += prompt_states
        outputs.append(prompt_outputs)
    order = [numbers[row.prompt] for row in joining]
    if joining:
        _extend(joining, Outputs.concat(outputs).at(order), sampling)
    return [states[number] for number in order]


def _by_tokens(prompts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Prompts by length, in groups of at most PREFILL_TOKENS; a longer prompt is a group by itself."""
    group: list[tuple[int, ...]] = []
    for prompt in sorted(prompts, key=len):
        if group and sum(map(len, group)) + len(prompt) > PREFILL_TOKENS:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def _step(forward: Forward, rows: Sequence[_Row], cache: RowCache, sampling: Sampling) -> None:
    """Add a token to each row; finished rows keep stepping, and their output is ignored."""
    padding = [0] * (cache.num_rows - len(rows))
    positions = [len(row.prompt) + len(row.ids) - 1 for row in rows] + padding
    outputs = forward.step([row.ids[-1] for row in rows] + padding, positions, cache)
    _extend(rows, outputs.first(len(rows)), sampling)


def _extend(rows: Sequence[_Row], outputs: Outputs, sampling: Sampling) -> None:
    """Sample each row's next token. Raises ValueError for logits that are not finite."""
    samples, positions = [row.sample_id for row in rows], [len(row.ids) for row in rows]
    noise = exponentials(sampling.seed, sampling.rollout, samples, positions, noise_count(outputs.logits.shape[-1]))
    token_ids, logprobs, mask = draw(outputs.logits, noise, sampling)
    masks = [None] * len(rows) if mask is None else SamplingMask(mask.ids.cpu(), mask.counts).split([1] * len(rows))
    values = [[]] * len(rows) if outputs.values is None else outputs.values[:, None].tolist()
    for row, token_id, logprob, value, token_mask in zip(
        rows, token_ids.tolist(), logprobs.tolist(), values, masks, strict=True
    ):
        if row.ended:
            continue
        if not math.isfinite(logprob):
            raise ValueError(
                f"sample {row.sample_id}: the model's logits are not finite after token "
                f"{len(row.prompt) + len(row.ids)}: training has diverged; resume from an earlier checkpoint with a "
                "lower optim.lr"
            )
        row.ids.append(token_id)
        row.logprobs.append(logprob)
        row.values += value
        row.masks.append(token_mask)
        row.stopped = token_id in sampling.stop_ids
        if not row.stopped and sampling.stop_texts is not None:
            row.stop_text = sampling.stop_texts.ended_by(row.ids)
            row.stopped = row.stop_text is not None
        row.ended = row.stopped or len(row.ids) == sampling.max_new_tokens


def _width(forward: Forward, num_rows: int, current: int, steps_left: int) -> int:
    """Rows of the batch that holds `num_rows`: on a CPU a multiple, and narrower only if packing again pays off."""
    if forward.device.type != "cpu":
        return num_rows
    if forward.packs and num_rows <= current and (current < 2 * num_rows or steps_left < PACKED_MIN_TOKENS):
        return current
    return -(-num_rows // ROWS_MULTIPLE) * ROWS_MULTIPLE
