"""What was run, as a paragraph of plain sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from llmtrain.data.ledger import SPLITS, Split
from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.ending import ending, last_step
from llmtrain.runs.report.html import code
from llmtrain.runs.report.svg import plain
from llmtrain.runs.report.values import count, counted, duration, given, is_finite, number, percent

Sentence = str | Markup

PREFERENCE_NAMES = {"dpo": "DPO", "kto": "KTO", "ipo": "IPO", "orpo": "ORPO", "simpo": "SimPO", "cpo": "CPO"}


def story(record: RunRecord) -> Markup:
    """The paragraph; a sentence whose facts the run's files lack is left out."""
    return Markup(" ").join(Markup("{}").format(sentence) for sentence in _sentences(record))


def setting(record: RunRecord, key: str) -> Any:
    """The value of a dotted key of the configuration; None also if the run's version did not have it."""
    value: Any = record.config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def kind_of(record: RunRecord) -> str:
    """What kind of training it was."""
    match record.recipe:
        case "pretrain":
            return "Pretraining" if setting(record, "model.path") is None else "Continued pretraining"
        case "sft":
            return "Supervised fine-tuning (SFT)"
        case "reward":
            return "Training of a reward model"
        case "preference":
            loss = str(setting(record, "preference.loss") or "dpo")
            return f"Preference tuning ({PREFERENCE_NAMES.get(loss, loss)})"
    return f"Reinforcement learning ({policy_method(record)})"


def policy_method(record: RunRecord) -> str:
    """The loss and the advantage of a policy run: PPO is `ppo` with `gae`."""
    loss, advantage = str(setting(record, "policy.loss")), str(setting(record, "policy.advantage"))
    return "PPO" if (loss, advantage) == ("ppo", "gae") else f"{loss} loss, {advantage} advantage"


def _sentences(record: RunRecord) -> Iterator[Sentence]:
    yield _subject(record)
    yield _plan(record)
    yield from _machine(record)
    yield from _done(record)
    yield ending(record).sentence


def _subject(record: RunRecord) -> Sentence:
    parts = Markup("{} of {}{} on {}{}.")
    return parts.format(kind_of(record), _model(record), _adapter(record), _data(record), _judge(record))


def _model(record: RunRecord) -> Sentence:
    path, weights = setting(record, "model.path"), record.environment.get("parameters")
    size = f" with {counted(weights, 'weight')}" if is_finite(weights) else ""
    if path is not None:
        return Markup("{}{}").format(code(plain(PurePath(str(path)).name)), size)
    preset, architecture = setting(record, "model.preset"), setting(record, "model.architecture")
    shape = f" of preset {preset}" if preset is not None else ""
    return f"a new {architecture} model{shape}{size}"


def _adapter(record: RunRecord) -> Sentence:
    kind = setting(record, "adapter.kind")
    if kind is None:
        return ""
    weights, trained = record.environment.get("parameters"), record.environment.get("trained_parameters")
    share = ""
    if is_finite(weights) and is_finite(trained) and weights:
        share = f": {counted(trained, 'weight')} trained, {percent(trained / weights)}"
    if kind == "none":
        return ", all of them trained," if not share or trained == weights else f" ({share.removeprefix(': ')})"
    bits = " on a base in 4 bits" if setting(record, "model.quantize") else ""
    names = {"lora": "a LoRA", "dora": "a DoRA"}
    rank = setting(record, "adapter.rank")
    return f" by {names.get(kind, kind)} adapter of rank {rank}{bits}{share and f' ({share[2:]})'}"


def _data(record: RunRecord) -> Sentence:
    sources = [str(source.get("path")) for source in setting(record, "data.train") or () if isinstance(source, Mapping)]
    names = [plain(PurePath(path).name or path, 40) for path in sources]
    named = Markup(", ").join(code(name) for name in names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
    kept = {split: rows_kept(record, split) for split in SPLITS}
    if kept["train"] is None:
        return named
    held_out = f" (and {count(kept['eval'])} held out)" if kept["eval"] else " (none held out)"
    return Markup("{} of {}{}").format(counted(kept["train"], unit_of(record)), named, held_out)


def _judge(record: RunRecord) -> Sentence:
    rewards = setting(record, "rollout.rewards")
    if not isinstance(rewards, list):
        return ""
    names = [reward.get("name") if isinstance(reward, Mapping) else reward for reward in rewards]
    return Markup(", rewarded by {}").format(
        Markup(", ").join(code(plain(PurePath(str(name)).name, 40)) for name in names)
    )


def is_kto(record: RunRecord) -> bool:
    """Whether it learned from labelled answers instead of pairs."""
    return record.recipe == "preference" and setting(record, "preference.loss") == "kto"


def unit_of(record: RunRecord) -> str:
    """What a row of the data is."""
    units = {"pretrain": "document", "sft": "row", "reward": "pair", "policy": "prompt"}
    if is_kto(record):
        return "labelled answer"
    return units.get(record.recipe, "pair")


def rows_kept(record: RunRecord, split: Split) -> int | None:
    """Documents or rows to train on or held out, of all sources; None: the ledger does not say."""
    own, held_out = record.ledger.get("train", ()), record.ledger.get("eval", ())
    if not own:
        return None
    kept = sum(source["kept"][split]["documents"] for source in own)
    if split == "eval":  # a held-out source is not split: all that is kept of it is held out
        kept += sum(tally["documents"] for source in held_out for tally in source["kept"].values())
    return int(kept)


def _plan(record: RunRecord) -> Sentence:
    epochs, steps = setting(record, "train.epochs"), setting(record, "train.steps")
    length = f"{given(epochs)} {'epoch' if epochs == 1 else 'epochs'}" if epochs else f"{counted(steps or 0, 'step')}"
    prompts, samples = setting(record, "rollout.num_prompts"), setting(record, "rollout.samples_per_prompt")
    if prompts is not None:
        batch = f"rollouts of {counted(prompts, 'prompt')} with {counted(samples or 1, 'sample')} each"
    else:
        batch = f"batches of {count(setting(record, 'train.global_batch_tokens') or 0)} tokens"
    return f"The plan: {length} in {batch}, with {_optimizer(record)}."


def _optimizer(record: RunRecord) -> str:
    names = {
        "adamw": "AdamW",
        "muon": "Muon",
        "adamw8bit": "AdamW in 8 bits",
        "paged_adamw8bit": "paged AdamW in 8 bits",
    }
    name, schedule = setting(record, "optim.name"), setting(record, "optim.schedule")
    shapes = {
        "cosine": "falling along a cosine",
        "linear": "falling on a line",
        "wsd": "constant, then falling (WSD)",
        "constant": "constant",
    }
    end = setting(record, "optim.min_lr_ratio")
    to = f" to {given(end * 100)} % of it" if schedule in ("cosine", "linear", "wsd") and is_finite(end) else ""
    lr = given(setting(record, "optim.lr"))
    if name == "muon":
        peak = f"{given(setting(record, 'optim.muon_lr'))} (AdamW for what is no hidden matrix: {lr})"
    else:
        peak = lr
    return f"{names.get(name, name)} at a peak learning rate of {peak}, {shapes.get(schedule, schedule)}{to}"


def _machine(record: RunRecord) -> Iterator[Sentence]:
    environment = record.environment
    if not environment:
        return
    device, processes = str(environment.get("device", "an unknown device")), environment.get("world_size", 1)
    engine = environment.get("engine", "single")
    where = {"cpu": f"on {environment.get('cpus', 'unknown')} CPU cores"}.get(device, f"on {device}")
    many = f" in {processes} processes ({engine})" if processes != 1 else ""
    precision = setting(record, "train.precision") or "fp32"
    packages = environment.get("packages", {})
    versions = ", ".join(
        f"{name} {packages[name]}" for name in ("llmtrain", "torch", "transformers") if name in packages
    )
    started = str(environment.get("started", ""))[:16].replace("T", " ")
    yield Markup("It ran {}{} in {}{}, with {}.").format(
        where, many, precision, f", last started {plain(started)}" if started else "", versions
    )


def _done(record: RunRecord) -> Iterator[Sentence]:
    if not record.train_rows:
        yield "No training step is on record."
        return
    last = record.train_rows[-1]
    tokens, elapsed, spent = last.get("tokens"), last.get("elapsed_seconds"), last.get("train_seconds")
    epochs = last.get("epoch", record.ledger.get("training", {}).get("epochs"))
    parts = [counted(last_step(record), "step")]
    parts += [counted(tokens, "trained token")] if is_finite(tokens) else []
    parts += [f"{number(epochs)} {'epoch' if epochs == 1 else 'epochs'}"] if is_finite(epochs) else []
    time = f" in {duration(elapsed)}" if is_finite(elapsed) else ""
    time += f", {duration(spent)} of it in training steps" if time and is_finite(spent) else ""
    yield f"It did {', '.join(parts)}{time}."
