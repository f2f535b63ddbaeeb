"""The model card that goes into `model/`: what it was trained on, how, and how it came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def model_card(
    *,
    config: Mapping[str, Any],
    ledger: Mapping[str, Any],
    values: Mapping[str, float],
    versions: Mapping[str, str],
    num_parameters: int,
) -> str:
    """A Hugging Face model card from a run's resolved configuration, ledger, last values and versions."""
    front = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["llmtrain"]}
    sources = [source["path"] for source in config["data"]["train"]]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {config['run']['dir'].rstrip('/').split('/')[-1]}",
        "",
        f"A causal language model of {num_parameters:,} parameters, trained with llmtrain on "
        + ", ".join(f"`{source}`" for source in sources)
        + ".",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
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


def _table(head: tuple[str, str], rows: Any) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
