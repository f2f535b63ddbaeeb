"""The model card that goes into `model/`: what a person would publish. The rest is in `training.json` beside it.

Base, licence where its own card says it, method in a sentence, data by name, an example that runs, held-out numbers
before and after, limits for the person to write.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmtrain.config.load import parsed_yaml
from llmtrain.models.folders.card_before_after import Pair, pair_lines
from llmtrain.models.folders.files import CARD, TRAINING
from llmtrain.models.folders.kind import LANGUAGE, ModelKind
from llmtrain.models.folders.markdown import HUB_ID, cell, code, hub_link, plain, python_text
from llmtrain.models.folders.origin import Origin
from llmtrain.system.paths import is_local, local_path

MODEL_LIBRARY, ADAPTER_LIBRARY = "library_name: transformers", "library_name: peft"
NAME = re.compile(r'from_pretrained\(\s*"((?:[^"\\]|\\.)*)"')

CHAT = """

messages = [{"role": "user", "content": "What can you do?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
CONTINUE = """

inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0], skip_special_tokens=True))"""

OTHER_WEIGHTS = (
    "peft by itself loads {hub_id}, as `adapter_config.json` names it: those are the original weights, not the "
    "rounded ones that this adapter was trained on, so its answers differ from those that were measured."
)
MERGES_FIRST = (
    "Its base is made from {base}. {command} makes it again and adds the adapter in; the base's "
    "place on another machine is given with `--base PATH`. OUTPUT then opens as the model does here:"
)

SHOWN_VALUES = {
    "eval_loss": "loss",
    "eval_error_rate": "error rate of the next token",
    "eval_bits_per_byte": "bits per byte",
    "eval_accuracy": "accuracy: chosen above rejected",
    "eval_score": "mean score of answers",
}
"""Held-out values that a reader of a card compares, and what they are; all others are in the run's metrics.jsonl."""

METHODS = {
    "dpo": "direct preference optimisation (DPO)",
    "cdpo": "conservative DPO",
    "ipo": "identity preference optimisation (IPO)",
    "orpo": "odds ratio preference optimisation (ORPO)",
    "simpo": "simple preference optimisation (SimPO)",
    "kto": "Kahneman-Tversky optimisation (KTO)",
    "gae": "proximal policy optimisation (PPO) with a critic",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from."""

    config: Mapping[str, Any]  # the run's, resolved
    ledger: Mapping[str, Any]
    before: Mapping[str, float]  # the first evaluation's values; empty: nothing was held out
    after: Mapping[str, float]  # those of the exported step
    num_parameters: int
    chats: bool = True  # its tokenizer has a chat template
    has_stop_texts: bool = False  # `generate` wants the tokenizer to look for them
    is_adapter: bool = False  # the folder holds an adapter, no whole model
    origin: Origin | None = None  # where the base comes from; None: the model was new
    kind: ModelKind = LANGUAGE
    pair: Pair | None = None  # both models on the same things; None: not measured


def model_card(facts: CardFacts) -> str:
    """A Hugging Face model card."""
    config, kind = facts.config, facts.kind
    name, origin = model_name(config), facts.origin
    front: dict[str, Any] = {"pipeline_tag": kind.pipeline, "tags": ["llmtrain"]}
    if origin is not None and origin.hub_id is not None and HUB_ID.fullmatch(origin.hub_id):
        front["base_model"] = origin.hub_id
    licence = None if origin is None else base_licence(origin.hub_id or origin.path)
    if licence is not None:
        front["license"] = licence
    merges_first = facts.is_adapter and origin is not None and origin.peft_path != origin.path
    loads = kind.adapter_code if facts.is_adapter and not merges_first else kind.code
    example = loads.replace("PATH", python_text(name)) + (
        "" if not kind.generates else CHAT if facts.chats else CONTINUE
    )
    if facts.has_stop_texts:
        example = example.replace("max_new_tokens=200", "max_new_tokens=200, tokenizer=tokenizer")
    merging = code(f"llmtrain merge {shlex.quote(name)} OUTPUT")
    return "\n".join(
        [
            "---",
            ADAPTER_LIBRARY if facts.is_adapter else MODEL_LIBRARY,
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# {plain(name.rsplit('/', 1)[-1])}",
            "",
            _subject(facts),
            "",
            f"**Licence:** {_licence_note(origin, licence)}",
            "",
            "## Use",
            "",
            *([MERGES_FIRST.format(command=merging, base=_linked(origin)), ""] if merges_first and origin else []),
            *(
                [OTHER_WEIGHTS.format(hub_id=code(origin.hub_id)), ""]
                if merges_first and origin and origin.hub_id
                else []
            ),
            "```python",
            example,
            "```",
            "",
            f"{code(name)} is this folder: give its path, or its name on the hub.",
            "",
            "## Training",
            "",
            method(config),
            "",
            *_data(facts),
            "",
            "## Results",
            "",
            *_results(facts),
            "",
            *([*pair_lines(facts.pair), ""] if facts.pair is not None else []),
            "## Limits",
            "",
            "*To be written by whoever publishes this model: what it is for, what it gets wrong, on whose text it was "
            "trained and whether they agreed, what it must not be used for.* It was not tested for safety, bias or "
            "truth by training it.",
            "",
            f"Every setting, version and the account of the data: [{TRAINING}]({TRAINING}). Trained with llmtrain.",
            "",
        ]
    )


def as_model_card(adapter_card: str, kind: ModelKind) -> str:
    """The card of an adapter as that of the model that it was merged into."""
    named = NAME.search(adapter_card)
    name = "PATH" if named is None else named.group(1)
    adapted, merged = kind.adapter_code.replace("PATH", name), kind.code.replace("PATH", name)
    card = adapter_card.replace(ADAPTER_LIBRARY, MODEL_LIBRARY, 1).replace(adapted, merged, 1)
    for of_an_adapter in (MERGES_FIRST, OTHER_WEIGHTS):
        card = re.sub(rf"^{re.escape(of_an_adapter.partition('{')[0])}.*\n\n", "", card, flags=re.MULTILINE)
    return card.replace("An adapter of", "An adapter, merged, of", 1)


def model_name(config: Mapping[str, Any]) -> str:
    """What a run's model is called: its name on the hub, else the run's folder."""
    run = config["run"]
    return str(run.get("push_to_hub") or Path(run["dir"]).name)


def base_licence(base: str | None) -> str | None:
    """The licence that a base's own card names, in its folder or among what the hub's client has; None: unknown."""
    if base is None:
        return None
    card = local_path(base) / CARD
    if not card.is_file():
        if is_local(base) or ":" in base:
            return None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(base, CARD)
        if not isinstance(found, str):
            return None
        card = Path(found)
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    try:
        front = parsed_yaml(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except ValueError:
        return None
    licence = front.get("license") if isinstance(front, dict) else None
    return licence if isinstance(licence, str) else None


def method(config: Mapping[str, Any]) -> str:
    """How a configuration trains, in a sentence or two."""
    train, optim, adapter = config.get("train", {}), config.get("optim", {}), config.get("adapter", {})
    if "reward" in config:
        what = "A reward model (Bradley-Terry) on pairs of a chosen and a rejected answer"
    elif "preference" in config:
        what = f"Trained on preferences by {METHODS[config['preference']['loss']]}"
    elif "policy" in config:
        advantage = config["policy"]["advantage"]
        what = f"Reinforcement learning on its own answers by {METHODS.get(advantage, f'the advantage {advantage!r}')}"
    elif "adapter" in config:
        what = "Supervised fine-tuning on conversations, the loss on answers"
    else:
        what = "Pretraining on documents" if config.get("model", {}).get("path") is None else "Continued pretraining"
    how = "every weight"
    if adapter.get("kind", "none") != "none":
        how = f"{'DoRA' if adapter['kind'] == 'dora' else 'LoRA'} of rank {adapter['rank']}"
        how += " on a base in 4 bits (QLoRA)" if config["model"].get("quantize") else ""
    epochs = train.get("epochs") or 1
    length = f"{train['steps']:,} steps" if train.get("steps") else f"{epochs:g} epoch{'s' * (epochs != 1)}"
    if not optim:
        return f"{what}; {how}."
    return (
        f"{what}; {how}; {length}, {optim['name']} at a peak learning rate of {optim['lr']:g} ({optim['schedule']}), "
        f"{train['precision']}."
    )


def _subject(facts: CardFacts) -> str:
    origin, noun = facts.origin, facts.kind.noun
    size = f"{facts.num_parameters:,} parameters"
    if facts.is_adapter and origin is not None:
        return f"An adapter of {_linked(origin)}: a {noun}, {size} trained."
    return f"A {noun} of {size}" + ("." if origin is None else f", trained from {_linked(origin)}.")


def _linked(origin: Origin) -> str:
    """A base by its name: linked where the hub has it, without the path of a folder."""
    linked = None if origin.hub_id is None else hub_link(origin.hub_id)
    if origin.form == "hub" and linked is not None:
        return linked
    name = code(Path(origin.path.rpartition(":")[2]).name)
    if origin.form == "adapter" and Path(origin.path).name == "model":  # of a run
        name = code(Path(origin.path).parent.name)
    return name if linked is None else f"{name} ({linked})"


def _licence_note(base: Origin | None, licence: str | None) -> str:
    if licence is not None:
        return f"{plain(licence)}, that of its base."
    if base is None:
        return "not chosen yet."
    return "unknown: its base's card names none here; look it up before you publish."


def _data(facts: CardFacts) -> Iterator[str]:
    """What was trained on: each source by name, with its rows and tokens."""
    yield "| data | rows | tokens |"
    yield "| --- | --- | --- |"
    accounts = facts.ledger.get("train", [])
    for index, source in enumerate(facts.config["data"]["train"]):
        account = accounts[index] if index < len(accounts) else {}
        rows = account.get("kept", {}).get("train", {}).get("documents")
        tokens = account.get("tokens", {}).get("train", {}).get("tokens")
        cells = ("" if each is None else f"{each:,}" for each in (rows, tokens))
        yield f"| {cell(_source_name(source['path']))} | {' | '.join(cells)} |"
    if (trained := facts.ledger.get("training", {}).get("tokens_trained")) is not None:
        yield ""
        yield f"{int(trained):,} tokens were trained on, repeats included."


def _source_name(path: str) -> str:
    if is_local(path) or Path(path).suffix or any(character in path for character in "*?["):
        return code(Path(path).name)
    return hub_link(path, "datasets/")


def _results(facts: CardFacts) -> Iterator[str]:
    """Held-out values before and after training."""
    shown = {name: what for name, what in SHOWN_VALUES.items() if name in facts.after}
    if "eval_score" in shown:
        shown.pop("eval_loss", None)  # of rollouts: minus the score
    if not shown:
        yield "Nothing was held out, so nothing is known of how it came out."
        return
    yield "| on held-out data | before | after |"
    yield "| --- | --- | --- |"
    for name, what in shown.items():
        before = f"{facts.before[name]:.4g}" if name in facts.before else ""
        yield f"| {what} (`{name}`) | {before} | {facts.after[name]:.4g} |"
    yield ""
    yield "From the run's `metrics.jsonl`; one run, so differences of this size may be chance."
