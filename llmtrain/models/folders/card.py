"""The model card that goes into `model/`: what it was trained on, how, and how it came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from llmtrain.models.folders.kind import LANGUAGE, ModelKind

MODEL_LIBRARY, ADAPTER_LIBRARY = "library_name: transformers", "library_name: peft"


def model_card(
    *,
    config: Mapping[str, Any],
    ledger: Mapping[str, Any],
    values: Mapping[str, float],
    versions: Mapping[str, str],
    num_parameters: int,
    adapter_of: str | None = None,
    kind: ModelKind = LANGUAGE,
) -> str:
    """A Hugging Face model card from a run's resolved configuration, ledger, last values and versions.

    `adapter_of` is the base that an adapter was trained on; None: the folder holds a whole model.
    """
    front: dict[str, Any] = {"pipeline_tag": kind.pipeline, "tags": ["llmtrain"]}
    library, code, subject = MODEL_LIBRARY, kind.code, f"A {kind.noun}"
    if adapter_of is not None:
        front["base_model"] = adapter_of
        library, code, subject = ADAPTER_LIBRARY, kind.adapter_code, f"A {kind.noun}, an adapter of `{adapter_of}`,"
    sources = [source["path"] for source in config["data"]["train"]]
    lines = [
        "---",
        library,
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {config['run']['dir'].rstrip('/').split('/')[-1]}",
        "",
        f"{subject} of {num_parameters:,} parameters, trained with llmtrain on "
        + ", ".join(f"`{source}`" for source in sources)
        + ".",
        "",
        "```python",
        code,
        "```",
        "",
        "## Results",
        "",
        *_table(("value", "last"), ((name, f"{value:.6g}") for name, value in values.items())),
        "",
        "## Data",
        "",
        "```yaml",
        yaml.safe_dump(dict(ledger), sort_keys=False, allow_unicode=True).strip(),
        "```",
        "",
        "## Configuration",
        "",
        "```yaml",
        yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).strip(),
        "```",
        "",
        "## Versions",
        "",
        *_table(("package", "version"), versions.items()),
        "",
    ]
    return "\n".join(lines)


def as_model_card(adapter_card: str, kind: ModelKind) -> str:
    """The card of an adapter as that of the model that it was merged into."""
    return adapter_card.replace(ADAPTER_LIBRARY, MODEL_LIBRARY, 1).replace(kind.adapter_code, kind.code, 1)


def _table(head: tuple[str, str], rows: Any) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
