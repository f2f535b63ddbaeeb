"""What of a model draws random numbers in training.

Its noise follows from the seed, the step and the rank, so the same number of ranks draws the same, another one another.
"""

from __future__ import annotations

from torch import nn

from llmtrain.models.load import DROPOUT_FIELDS
from llmtrain.models.paths.small import noise_of
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.protocols import TrainedModule


def drawn_noise(module: TrainedModule) -> list[str]:
    """The kinds of noise that a module draws when it is trained, in the words of the configuration."""
    noise = []
    fields = {name for trunk in module.trunks() for name in noise_of(trunk.config.get_text_config())}
    if any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules()):
        noise.append("dropout")
    elif not fields.isdisjoint(DROPOUT_FIELDS):
        noise.append("dropout")  # that a layer applies without a module for it, as in attention
    noise += sorted(name for name in fields if name.endswith(("layerdrop", "jitter_noise", "jitter_eps")))
    if isinstance(module, CausalLMLoss) and module.neftune_alpha is not None:
        noise.append("NEFTune")
    return noise
