"""The score of each response: a weighted sum of rewards, checked number by number.

A reward is one of ours, a function of the user's or TRL's, or a trained reward model. One that returns None for a
response abstains: the sum is that of the others. One that fails is reported in one line, with the sample that it failed
on, and stops the run, or abstains for the batch; either is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from numbers import Real
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, TrainerState

from llmtrain.data.prompts import Prompt as PromptRow
from llmtrain.data.thoughts import OPENED_LAST
from llmtrain.models.stop_texts import text_before
from llmtrain.rewards.batch import ScoreBatch, Scores, WeightedReward
from llmtrain.rewards.calls import Failed, OutOfTime, Patience, gathered, in_thread, with_retries
from llmtrain.rewards.row import RowError
from llmtrain.system.files import error_and_place

EXCERPT_CHARS = 60
LARGEST = float(np.finfo(np.float32).max)  # of a score: advantages are computed in fp32
PROMPT_END_TOKENS = 16  # that may hold a template's `<think>\n`


class RewardFailed(ValueError):
    """A reward that raised, ran out of time, or returned no scores."""


class Response(Protocol):
    """A sampled response."""

    @property
    def response_ids(self) -> Sequence[int]: ...
    @property
    def stopped(self) -> bool: ...  # by a stop token, the last of `response_ids`, or a stop text
    @property
    def stop_text(self) -> str | None: ...  # the text that ended it


def score_responses(
    rewards: Sequence[WeightedReward],
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[PromptRow],
    responses: Sequence[Response],
    sample_ids: Sequence[int],
    *,
    patience: Patience = Patience(),
    state: Callable[[], TrainerState] = TrainerState,
) -> Scores:
    """The scores of sampled responses, as text. Raises RewardFailed naming the sample at fault."""
    pairs = zip(prompts, responses, strict=True)
    batch = ScoreBatch(
        prompts=[prompt.messages for prompt in prompts],
        responses=[answer_text(prompt.ids, response, tokenizer) for prompt, response in pairs],
        rows=[prompt.row for prompt in prompts],
        sample_ids=sample_ids,
        completion_ids=[list(response.response_ids) for response in responses],
        state=state(),
    )
    return score(rewards, batch, patience)


def response_text(response: Response, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a response without its stop token, or up to its stop text; other special tokens are shown.

    "yes<|im_start|>user more<|im_end|>", stopped by <|im_end|>, is "yes<|im_start|>user more".
    """
    text = str(tokenizer.decode(ids_before_stop(response), skip_special_tokens=False))
    return text_before(text, response.stop_text)


def ids_before_stop(response: Response) -> list[int]:
    """The ids of a response without its stop token; those of a stop text stay."""
    ids = list(response.response_ids)
    return ids[:-1] if response.stopped and response.stop_text is None else ids


def answer_text(prompt_ids: Sequence[int], response: Response, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of an answer: of its response, after the `<think>` that the prompt's template may have opened.

    After a prompt that ends in "assistant\\n<think>\\n", "2 + 2...</think>4" is "<think>\\n2 + 2...</think>4".
    """
    return opened_by(prompt_ids, tokenizer) + response_text(response, tokenizer)


def opened_by(prompt_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The `<think>` that the end of a prompt opens for its answer, with the white space after it; "" if it does not."""
    end = str(tokenizer.decode(list(prompt_ids)[-PROMPT_END_TOKENS:], skip_special_tokens=False))
    opened = OPENED_LAST.search(end)
    return opened[0] if opened else ""


def score(rewards: Sequence[WeightedReward], batch: ScoreBatch, patience: Patience = Patience()) -> Scores:
    """The scores of a batch. Without responses no reward is called.

    Raises RewardFailed, one line with the reward and the sample, if a reward raises, is out of time, or returns
    anything but a finite number or None for each response; with `patience.on_error` "abstain" it abstains instead.
    """
    names = [reward.name for reward in rewards]
    assert len(set(names)) == len(names), f"rewards of one name: {names}"
    by_reward: dict[str, list[float | None]] = {name: [] for name in names}
    failed = dict.fromkeys(names, 0)
    if len(batch):
        for reward, returned in _returned(rewards, batch, patience):
            try:
                by_reward[reward.name] = _checked(reward, returned, batch, patience)
            except RewardFailed:
                if patience.on_error == "stop":
                    raise
                by_reward[reward.name] = [None] * len(batch)
                failed[reward.name] = len(batch)
    weighted = [(reward.weight, by_reward[reward.name]) for reward in rewards]
    total = [
        sum(weight * value for weight, values in weighted if (value := values[i]) is not None)
        for i in range(len(batch))
    ]
    return Scores([float(each) for each in total], by_reward, failed, batch.logged)


def logged_rewards(by_reward: Mapping[str, list[float | None]]) -> Mapping[str, list[float | None]]:
    """The rewards that are logged one by one: all of several; none if there is one, which is the total."""
    return by_reward if len(by_reward) > 1 else {}


def _returned(
    rewards: Sequence[WeightedReward], batch: ScoreBatch, patience: Patience
) -> list[tuple[WeightedReward, Any]]:
    """What each reward returns, or Failed; coroutine functions are awaited together, the others called in turn."""
    coroutines = [reward for reward in rewards if reward.is_async]
    found = gathered([partial(reward.function, batch) for reward in coroutines], patience) if coroutines else []
    returned = dict(zip([reward.name for reward in coroutines], found, strict=True))
    for reward in rewards:
        if not reward.is_async:
            try:
                returned[reward.name] = with_retries(partial(_call, reward, batch, patience), patience.retries)
            except (Exception, SystemExit) as error:
                returned[reward.name] = Failed(error)
    return [(reward, returned[reward.name]) for reward in rewards]


def _call(reward: WeightedReward, batch: ScoreBatch, patience: Patience) -> Any:
    if reward.is_ours:  # they limit themselves, and models compute on this thread's device
        return reward.function(batch)
    return in_thread(partial(reward.function, batch), patience.seconds)


def _checked(reward: WeightedReward, returned: Any, batch: ScoreBatch, patience: Patience) -> list[float | None]:
    """The scores of a reward. Raises RewardFailed."""

    def sample(number: int) -> str:
        text = " ".join(batch.responses[number].split())
        excerpt = text if len(text) <= EXCERPT_CHARS else f"{text[:EXCERPT_CHARS]}..."
        return f"sample {batch.sample_ids[number]} ({excerpt!r})"

    if isinstance(returned, Failed):
        number, raised = _culprit(reward, batch, returned.error, patience)
        where = "the batch" if number is None else sample(number)
        raise RewardFailed(f"reward {reward.name} failed on {where}: {_described(raised)}") from returned.error
    try:
        scores = listed_scores(returned)
    except TypeError:
        raise RewardFailed(
            f"reward {reward.name} returned {type(returned).__name__}, not a list of {len(batch)} numbers"
        ) from None
    if len(scores) != len(batch):
        raise RewardFailed(
            f"reward {reward.name} returned {len(scores)} scores for {len(batch)} responses, the first of them "
            f"{sample(0)}: return one for each"
        )
    for number, value in enumerate(scores):
        if value is not None and not (isinstance(value, Real) and _fits(value)):
            shown = _shown(value)
            raise RewardFailed(
                f"reward {reward.name} returned {shown} for {sample(number)}: return a finite number, or None to "
                "abstain"
            )
    return [None if value is None else float(value) for value in scores]


def _fits(value: Real) -> bool:
    """Whether fp32 holds a number; an integer may be too large for any float."""
    try:
        return abs(float(value)) <= LARGEST
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    """What a reward returned that is no score."""
    if not isinstance(value, Real):
        return f"{value!r:.40} ({type(value).__name__})"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return "a number that fp32 does not hold"


def listed_scores(returned: Any) -> list[Any]:
    """What a function returned, in order. Raises TypeError for what has none: the keys of a dict are no scores."""
    if isinstance(returned, Mapping | Set):
        raise TypeError(f"{type(returned).__name__}, not a list")
    return [_plain(value) for value in returned]


def _plain(value: Any) -> Any:
    """A number of numpy (a truth value is one, as Python's) or a tensor of one number as Python has it."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        return value.item()
    return value


def _culprit(
    reward: WeightedReward, batch: ScoreBatch, error: BaseException, patience: Patience
) -> tuple[int | None, BaseException]:
    """The first sample that a reward fails on alone, and its error; None and the batch's error if there is none."""
    if isinstance(error, OutOfTime) or reward.is_async or patience.on_error == "abstain":
        return None, error
    for number in range(len(batch)):
        try:
            _call(reward, batch.only(number), patience)
        except (Exception, SystemExit) as raised:
            return number, raised
    return None, error


def _described(error: BaseException) -> str:
    """An error in one line; with the line of code that raised it, unless it is about the row or the time."""
    if isinstance(error, RowError | OutOfTime):
        return str(error)
    return error_and_place(error)
