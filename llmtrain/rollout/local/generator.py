"""The local engine: the policy's own module generates, on the device that it trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from torch import nn
from transformers import PreTrainedModel

from llmtrain.protocols import Ranks
from llmtrain.rollout.engine import Generated, Sampling
from llmtrain.rollout.local.generate import generate
from llmtrain.system.precision import training_precision


class LocalGenerator:
    """A Generator over the plain model inside of what wraps it for training."""

    def __init__(
        self,
        policy: PreTrainedModel,
        ranks: Ranks,
        should_stop: Callable[[], bool],
        value_head: nn.Module | None = None,
    ) -> None:
        """`should_stop` is asked every few tokens. `value_head`: (tokens, hidden) -> (tokens,), on the same trunk."""
        self._policy, self._value_head = policy, value_head
        self._ranks, self._should_stop = ranks, should_stop
        self._parts = nn.ModuleList([policy] if value_head is None else [policy, value_head])

    @property
    def gives_values(self) -> bool:
        return self._value_head is not None

    def current_weights(self) -> AbstractContextManager[None]:
        """The weights are the policy's own: sharded ones are gathered, so that ranks may call it unequally often."""
        return self._ranks.gathered(self._parts)

    def generate(
        self, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int], sampling: Sampling
    ) -> list[Generated] | None:
        """As `Generator.generate`, in the precision of training."""
        with training_precision(self._policy, self._ranks.device, self._ranks.dtype):
            return generate(self._policy, prompts, sample_ids, sampling, self._should_stop, value_head=self._value_head)
