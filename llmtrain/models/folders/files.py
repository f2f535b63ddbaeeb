"""The names of files in a model's folder."""

from __future__ import annotations

MODEL_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
GENERATION_CONFIG = "generation_config.json"
CARD = "README.md"
ADAPTER_BASE = "base.json"  # weights and configuration of an adapter's base, by which it is known again
REWARD_CARD = "reward_card.json"  # in the run's folder, beside the folder of the model, or in that of an exported one
