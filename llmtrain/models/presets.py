"""Sizes of new models by name."""

from __future__ import annotations

from typing import Any

# Llama shapes: hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, intermediate_size,
# tie_word_embeddings. From 60m on the proportions follow SmolLM2 (135M, 360M) and Llama 2 and 3 (1B, 3B, 7B).
PRESETS: dict[str, tuple[int, int, int, int, int, bool]] = {
    "1m": (128, 4, 4, 4, 384, True),
    "3m": (192, 6, 6, 6, 512, True),
    "10m": (320, 8, 5, 5, 864, True),
    "60m": (512, 16, 8, 4, 1408, True),
    "125m": (768, 14, 12, 4, 2048, True),
    "350m": (960, 32, 15, 5, 2560, True),
    "1b": (2048, 16, 32, 8, 8192, True),
    "3b": (3072, 28, 24, 8, 8192, True),
    "7b": (4096, 32, 32, 32, 11008, False),
}
SHAPE_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "tie_word_embeddings",
)


def preset_fields(name: str) -> dict[str, Any]:
    """The fields of a preset's configuration. Raises ValueError for a name that does not exist."""
    if name not in PRESETS:
        raise ValueError(f"model.preset={name!r}: there are {', '.join(PRESETS)}")
    return dict(zip(SHAPE_FIELDS, PRESETS[name], strict=True))


def preset_size(name: str, vocab_size: int) -> int:
    """Weights of a Llama of a preset's shape. Raises ValueError for a name that does not exist."""
    shape = preset_fields(name)
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    key_width = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    layer = 2 * width * width + 2 * width * key_width + 3 * width * inner + 2 * width
    tables = 1 if shape["tie_word_embeddings"] else 2
    return tables * vocab_size * width + shape["num_hidden_layers"] * layer + width
