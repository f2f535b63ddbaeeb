"""What `llmtrain data` prints of a source: its size, what it fits and why not, the commands to run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from llmtrain.config.data import Source
from llmtrain.config.load import parsed_yaml, validate
from llmtrain.config.sections import Section
from llmtrain.config.shipped import shipped_configs
from llmtrain.data.ledger import not_read_summary
from llmtrain.data.personal import masked
from llmtrain.data.survey import BYTES_PER_TOKEN, Fit, State, Survey, Use, survey
from llmtrain.system.counted import counted
from llmtrain.system.nearest import nearest
from llmtrain.system.terminal import say

NAMES: Mapping[Use, str] = {
    "sft": "instructions and chats, for sft",
    "pairs": "preference pairs, for reward models and DPO",
    "kto": "labelled answers, for KTO",
    "prompts": "prompts, for PPO and its family",
    "pretrain": "plain text, for pretrain",
}
"""Use -> what it is called, in the order in which they are listed."""
COMMANDS: Mapping[Use, Sequence[tuple[str, str, str, str]]] = {
    "sft": (
        ("preview", "sft_smollm2_lora", "see which tokens will be trained", ""),
        ("sft", "sft_smollm2_lora", "supervised fine-tuning, LoRA on SmolLM2", ""),
    ),
    "pairs": (
        ("rlhf", "reward_smollm2_hh", "a reward model", ""),
        ("rlhf", "dpo_smollm2", "DPO: preferences without a reward model", ""),
    ),
    "kto": (("rlhf", "dpo_smollm2", "KTO: labelled answers without a reward model", "preference.loss=kto"),),
    "prompts": (("rlhf", "ppo_smollm2_brief", "PPO; set rollout.rewards to what a good answer is", ""),),
    "pretrain": (
        ("tokenizer", "bpe_32k", "a tokenizer", ""),
        ("pretrain", "demo", "a small new model, with that tokenizer", ""),
    ),
}
"""Use -> the commands: verb, shipped configuration, what it makes, an override."""
ORDER: Sequence[State] = ("fits", "partly", "no")
LONG_TOKENS = 1024
"""`data.max_seq_len` of most configurations."""
FEW_ROWS = 50
MANY_FIELDS = 12
LISTED_FIELDS = re.compile(r"by the fields '.*?(?=; |$)")
"""What messages say of a row's fields, which are listed above them."""
PAIRS_AS_ANSWERS = "pairs: chosen answers count as desirable, rejected ones do not"


class Looked(Section):
    """What a command line asks to look at."""

    train: list[Source]


def print_surveys(sources: Sequence[Source], limit: int) -> list[Survey]:
    """Look at up to `limit` rows of each source, print what fits, and the commands. Raises ValueError."""
    surveys = [_surveyed(source, limit) for source in sources]
    for number, found in enumerate(surveys):
        for line in ([""] if number else []) + list(lines_of(found)):
            say(masked(line))
    for line in ("", *commands_of(surveys)):
        say(line)
    return surveys


def _surveyed(source: Source, limit: int) -> Survey:
    try:
        return survey(source, limit)
    except ValueError as error:
        asks = "set the source's split to one of them, or to all for every file"
        raise ValueError(str(error).replace(asks, "add split=NAME, or split=all for every file")) from None


def sources_of(given: Sequence[str]) -> list[Source]:
    """The sources that paths and keys name. Raises ValueError."""
    paths: list[str] = []
    keys: dict[str, Any] = {}
    for word in given:
        name, equals, text = word.partition("=")
        if not equals or "/" in name or "." in name:
            paths.append(word)
            continue
        if name not in Source.model_fields or name in ("path", "weight"):
            near = nearest(name, [key for key in Source.model_fields if key not in ("path", "weight")])
            raise ValueError(f"{word}: a source has no key {name}" + (f": the nearest is {near}" if near else ""))
        try:
            keys[name] = parsed_yaml(text)
        except ValueError as error:
            raise ValueError(f"{word}: the value is {error}") from None
    if not paths:
        raise ValueError("usage: llmtrain data PATH [PATH ...] [key=value ...]")
    try:
        return validate(Looked, {"train": [{"path": path, **keys} for path in paths]}).train
    except ValueError as error:
        raise ValueError(str(error).replace("train.0.", "")) from None


def lines_of(found: Survey) -> Iterator[str]:
    """What a source holds and what fits."""
    yield size_line(found)
    if found.not_read:
        yield f"  not read: {not_read_summary(found.not_read)}"
    if found.fields and found.main.num_fit:
        more = ", ..." if len(found.fields) > MANY_FIELDS else ""
        yield f"  fields: {', '.join(list(found.fields)[:MANY_FIELDS])}{more}"
    yield ""
    for use in sorted(NAMES, key=lambda use: ORDER.index(found.state(use))):
        fit, state = found.fits[use], found.state(use)
        if state == "no":
            yield f"  {state:7}{NAMES[use]}: {reason(fit, found)}"
        elif found.takes_pairs(use):
            yield f"  {state:7}{NAMES[use]}: {PAIRS_AS_ANSWERS}"
        else:
            yield f"  {state:7}{NAMES[use]}: {fit.num_fit:,} of {counted(fit.num_rows, found.unit)}"
            yield f"         {fit.described}"
            yield from (f"         {line}" for line in misfits(fit, found))
    remarks = list(notable(found))
    if remarks:
        yield ""
        yield from (f"  {line}" for line in remarks)


def size_line(found: Survey) -> str:
    """How much there is."""
    where = "" if found.num_files in (None, 1) else f" in {found.num_files:,} files"
    where = ", a dataset of the hub" if found.num_files is None else where
    first = "" if found.is_whole else "the first "
    tokens = found.main.num_bytes / BYTES_PER_TOKEN
    if not found.main.num_fit:
        return f"{found.source.path}: {first}{counted(found.num_rows, found.unit)}{where}"
    return (
        f"{found.source.path}: {first}{counted(found.num_rows, found.unit)}{where}, {_size(found.main.num_bytes)}, "
        f"very roughly {_rounded(tokens)} tokens of text"
    )


def misfits(fit: Fit, found: Survey) -> Iterator[str]:
    """Why rows do not fit, of a kind that others fit."""
    if fit.faults:
        reasons = ", ".join(f"{count:,} {why}" for why, count in fit.faults.most_common())
        yield f"{fit.faults.total():,} left out: {reasons}; the first: {reason(fit, found)}"


def reason(fit: Fit, found: Survey) -> str:
    """Why a row does not fit, in short."""
    text = fit.first_fault or "it has no rows"
    if text.removeprefix(f"{found.source.path}: ").startswith("no document with text"):
        text = text.partition("; ")[2] or text
    for cut in ("; name them by the source's fields", "; set the source's text_field", "; name ", " (read as "):
        text = text.partition(cut)[0]
    text = LISTED_FIELDS.sub("by its fields", text)
    return _short(text.removeprefix(f"{found.source.path}: "), found)


def _short(where: str, found: Survey) -> str:
    """A place without the folder that was asked for: `rows.jsonl:3`."""
    path = found.source.path.rstrip("/")
    return where.replace(f"{path}/", "").replace(path, path.rpartition("/")[2])


def notable(found: Survey) -> Iterator[str]:
    """What to know before training on it."""
    fit = found.main
    if any("choose one by the source's fields" in each.first_fault for each in found.fits.values()):
        yield "several formats fit: add one of the choices above to this command, as fields={...}"
    if not fit.num_fit:
        listed = ", ".join(f"{name} ({value})" for name, value in found.fields.items())
        if listed:
            yield f"its fields: {listed}"
            yield f"name what they are: {_fields_command(found)}"
        return
    if fit.copies:
        first = next(iter(fit.copies))
        repeats = "repeat earlier ones" if fit.copies.total() > 1 else "repeats an earlier one"
        yield f"{counted(fit.copies.total(), found.unit)} {repeats} word for word, the first: {_short(first, found)}"
    longer = fit.num_longer(LONG_TOKENS)
    if longer and found.unit == "row":
        size, where = fit.longest
        where = _short(where, found)
        yield (
            f"{counted(longer, 'row')} may be longer than {LONG_TOKENS:,} tokens (the longest, {where}, "
            f"roughly {_rounded(size / BYTES_PER_TOKEN)}): data.max_seq_len says what fits, data.on_long_row what "
            "becomes of the rest"
        )
    if found.unit == "row" and found.is_whole and fit.num_fit < FEW_ROWS:
        yield f"only {counted(fit.num_fit, 'row')}: enough to try the commands, too few to learn much or to measure it"


def commands_of(surveys: Sequence[Survey]) -> Iterator[str]:
    """The commands that all sources fit, or, if there are none, those that all fit in part."""
    states = {use: max((found.state(use) for found in surveys), key=ORDER.index) for use in NAMES}
    best = next((state for state in ORDER[:-1] if state in states.values()), None)
    if best is None:
        yield "nothing here can be trained on as it is"
        return
    yield "to run:"
    shipped = shipped_configs("recipes", "tokenizer")
    for use, state in states.items():
        for verb, config, remark, override in COMMANDS[use] if state == best else ():
            if config in shipped:
                yield f"  # {remark}"
                yield f"  {_command(verb, config, surveys, use, override)}"


def _command(verb: str, config: str, surveys: Sequence[Survey], use: Use, override: str) -> str:
    sources = [found.source.model_dump(exclude_defaults=True) for found in surveys]
    given: list[Any] = [source["path"] if source.keys() == {"path"} else source for source in sources]
    value = _yaml(given[0] if len(given) == 1 else given)
    words = [f"{'sources' if verb == 'tokenizer' else 'data.train'}={value}"]
    if verb == "tokenizer":
        words.append("output=runs/tokenizer")
    if verb == "pretrain":
        words += ["tokenizer.path=runs/tokenizer", "run.dir=runs/pretrain"]
    words += [override] if override else []
    if any(found.serving(use).num_bad for found in surveys):
        words.append("on_bad_row=skip" if verb == "tokenizer" else "data.on_bad_row=skip")
    return f"llmtrain {verb} {config} {' '.join(map(shlex.quote, words))}"


def _yaml(value: Any) -> str:
    """A value as an override has it, on one line."""
    if isinstance(value, str):
        return value if _is_plain(value) else json.dumps(value, ensure_ascii=False)
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False).strip()


def _is_plain(text: str) -> bool:
    """Whether YAML reads a text as itself, without quotes."""
    try:
        return bool(parsed_yaml(text) == text)
    except ValueError:
        return False


def _fields_command(found: Survey) -> str:
    """The command with the fields named, as far as can be guessed."""
    texts = [name for name, value in found.fields.items() if value.startswith('"')]
    prompt, completion = texts if len(texts) == 2 else ("FIELD", "FIELD")
    path = shlex.quote(found.source.path)
    return f"llmtrain data {path} 'fields={{prompt: {prompt}, completion: {completion}}}'"


def _size(num_bytes: int) -> str:
    """`12 kB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes} bytes"


def _rounded(number: float) -> str:
    """Two digits: `1,200`, `3.4 million`."""
    if number >= 1e6:
        return f"{number / 1e6:.2g} million"
    digits = max(0, len(str(int(number))) - 2)
    return f"{round(number, -digits):,.0f}"
