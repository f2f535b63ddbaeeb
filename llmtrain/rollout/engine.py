"""What a rollout asks of a generation engine. `local` is one; another needs a class with these members and no more.

    with generator.current_weights():
        responses = generator.generate(prompts, sample_ids, sampling)

A client of a vLLM server, for example, sends the policy's weights to the server in `current_weights`, and requests in
`generate`. Nothing outside of an engine's own package knows which one generates.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from llmtrain.batch import SamplingMask
from llmtrain.models.stop_texts import StopTexts


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled. Raises ValueError for a value out of its range."""

    max_new_tokens: int
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # the fewest likeliest tokens whose probabilities sum to this (Holtzman et al. 2020); 1: off
    top_k: int | None = None  # this many likeliest tokens, before top_p; None: off
    stop_ids: tuple[int, ...] = ()  # tokens that end a response and belong to it
    stop_texts: StopTexts | None = None  # texts that end a response, with the token that completes one
    seed: int = 0
    rollout: int = 0  # number of the rollout: each has its own noise

    def __post_init__(self) -> None:
        ranges = {
            "max_new_tokens": (self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature, 0 <= self.temperature < float("inf"), "0 or more"),
            "top_p": (self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k, self.top_k is None or self.top_k >= 1, "at least 1, or none"),
        }
        for name, (value, holds, allowed) in ranges.items():
            if not holds:
                raise ValueError(f"rollout.{name}={value}: must be {allowed}")

    @property
    def excludes_tokens(self) -> bool:
        """Whether some tokens of the vocabulary cannot be sampled, so that responses have a sampling mask."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k is not None)


@dataclass(frozen=True)
class Generated:
    """One response."""

    response_ids: list[int]  # at least one
    logprobs: list[float]  # of each token, in nats, under the distribution that it was sampled from
    stopped: bool  # by a stop token, the last of `response_ids`, or a stop text; False: by max_new_tokens
    sampling_mask: SamplingMask | None = None  # on the CPU; None: no token was excluded
    values: list[float] = field(default_factory=list)  # of the state before each token, if the engine gives values
    stop_text: str | None = None  # the stop text that the last token completed; None: something else ended it


class Generator(Protocol):
    """Samples responses from the policy."""

    @property
    def gives_values(self) -> bool:
        """Whether responses come with the critic's values: a value head on the policy's trunk costs nothing there."""
        ...

    def current_weights(self) -> AbstractContextManager[None]:
        """A context in which `generate` samples with the weights that the policy has on entry. Collective."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int], sampling: Sampling
    ) -> list[Generated] | None:
        """A response to each prompt, in order; None if this rank was asked to stop before all ended.

        Not collective: each rank calls it for its own prompts. `sample_ids` are unique. The tokens of a sample should
        depend only on the weights, its prompt, (seed, rollout, sample id), and not on the other samples of the call:
        then any number of ranks samples the same. Raises ValueError for a prompt that cannot be answered.
        """
        ...
