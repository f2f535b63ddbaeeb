"""Small real runs whose verdict is known, because the fault was planted: too few steps, too little data, a huge lr, ...

The text is a chain of letters: the next letter depends on the one before, or on the two before, and a document may end
after each. It takes a small model a hundred steps to learn, the least loss that it allows is known, and no document can
be guessed from another.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_chat
import tiny_run
import yaml

ALPHABET = "abcdefghijklmnop"
LEAST_LETTERS, MOST_LETTERS = 6, 58
STOP = 1 / 30  # of a document after each letter from LEAST_LETTERS on: its end cannot be foreseen
NUM_HELD_OUT = 60
QUESTION_LETTERS = 4

MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"config": tiny_run.MODEL},
    "gpt2": {"architecture": "gpt2", "config": {"n_embd": 48, "n_layer": 2, "n_head": 3, "n_positions": 64}},
}


@dataclass(frozen=True)
class Plant:
    """How a run is given its fault."""

    num_documents: int = 4000
    num_chat_documents: int | None = None  # for the smaller model of chats; None: as many
    order: float = 0.0  # share of letters that depend on two letters before
    num_letters: int = len(ALPHABET)
    is_chain: bool = True  # whether a letter depends on those before
    num_odd: int = 0  # documents of letters in any order
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Planted:
    """A run that was trained."""

    run: Path
    least_loss: float  # that the held-out text allows: the loss of its own source


def _training(steps: int, lr: float, **sections: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return {
        "train": {"steps": steps, **sections.pop("train", {})},
        "optim": {"lr": lr, **sections.pop("optim", {})},
        **sections,
    }


SMALL_BATCH = {"global_batch_tokens": 256, "microbatch_tokens": 256}  # in which one document is seen

CONSTANT = {"schedule": "constant"}
UNBOUNDED = CONSTANT | {"max_grad_norm": None}
RARELY = {"every": 15}

PLANTS: Mapping[str, Sequence[Plant]] = {
    "underfitting": (Plant(sections=_training(24, 5e-3, eval={"every": 2})), Plant(sections=_training(120, 3e-4))),
    "healthy": (Plant(num_documents=7000, sections=_training(240, 5e-3, eval=RARELY)),),
    "converged": (Plant(num_letters=3, is_chain=False, sections=_training(200, 5e-3, optim=CONSTANT)),),
    "overfitting": (Plant(num_documents=16, order=0.5, sections=_training(200, 1e-2)),),
    "diverged": (
        Plant(order=0.5, sections=_training(100, 1.0, optim=UNBOUNDED)),
        Plant(sections=_training(120, 3.0, optim=UNBOUNDED | {"warmup_steps": 119})),
    ),
    "spiking": (Plant(num_odd=16, num_documents=1500, sections=_training(240, 5e-3, train=SMALL_BATCH)),),
    "data exhausted": (Plant(num_documents=300, num_chat_documents=240, sections=_training(400, 5e-3, eval=RARELY)),),
}


def length(drawn: random.Random) -> int:
    letters = LEAST_LETTERS
    while letters < MOST_LETTERS and drawn.random() > STOP:
        letters += 1
    return letters


def documents(chain: Chain, num_documents: int, seed: int) -> Iterator[str]:
    drawn = random.Random(seed)
    for _ in range(num_documents):
        yield chain.text(drawn, length(drawn))


class Chain:
    """Transitions between letters, drawn from a seed."""

    def __init__(self, seed: int, planted: Plant) -> None:
        drawn = random.Random(f"chain {seed}")
        self._letters, self._order = ALPHABET[: planted.num_letters], planted.order
        self._after_one = {a: self._followers(drawn) for a in self._letters}
        if not planted.is_chain:
            self._after_one = dict.fromkeys(self._letters, self._followers(drawn))
        self._after_two = {a + b: self._followers(drawn) for a in self._letters for b in self._letters}

    def _followers(self, drawn: random.Random) -> str:
        """Letters to draw the next one from: three likely ones."""
        first, second, third = drawn.sample(self._letters, 3)
        return first * 5 + second * 2 + third

    def text(self, drawn: random.Random, length: int) -> str:
        letters = [drawn.choice(self._letters)]
        letters.append(drawn.choice(self._after_one[letters[0]]))
        while len(letters) < length:
            before = "".join(letters[-2:])
            is_pair = drawn.random() < self._order
            letters.append(drawn.choice(self._after_two[before] if is_pair else self._after_one[before[1]]))
        return "".join(letters)

    def least_loss(self, texts: Sequence[str], num_given: int = 0) -> float:
        """The loss per letter, ends included, of one who knows the chain: no model can do better on average.

        `num_given`: first letters of each text that are not predicted.
        """
        losses = [
            -math.log(self._probability(text, place)) for text in texts for place in range(num_given, len(text) + 1)
        ]
        return sum(losses) / len(losses)

    def _probability(self, text: str, place: int) -> float:
        """Of a letter given those before it; of the end of the text for the place after the last one."""
        stop = 0.0 if place < LEAST_LETTERS else 1.0 if place >= MOST_LETTERS else STOP
        if place == len(text):
            return stop
        before, letter = text[max(0, place - 2) : place], text[place]
        if not before:
            return 1 / len(self._letters)
        of_one = self._after_one[before[-1]]
        chance = of_one.count(letter) / len(of_one)
        if len(before) == 2:
            of_two = self._after_two[before]
            chance = (1 - self._order) * chance + self._order * of_two.count(letter) / len(of_two)
        return (1 - stop) * chance


def plant(folder: Path, word: str, *, seed: int, model: str = "llama", kind: int = 0) -> Planted:
    """Train a run in `folder` whose verdict should be `word`.

    `model`: one of MODELS, which is pretrained, or `chat`, which is tuned on the same text as questions and answers.
    """
    planted = PLANTS[word][kind]
    folder.mkdir(parents=True, exist_ok=True)
    chain = Chain(seed, planted)
    is_chat = model == "chat"
    num_documents = (planted.num_chat_documents if is_chat else None) or planted.num_documents
    texts = list(documents(chain, num_documents, seed))
    drawn = random.Random(seed)
    for _ in range(planted.num_odd):
        texts.insert(drawn.randrange(len(texts)), "".join(drawn.choices(ALPHABET, k=60)))
    held_out = list(documents(chain, NUM_HELD_OUT, seed + 10_000))
    sections: dict[str, dict[str, Any]] = {
        "run": {"dir": str(folder / "run"), "seed": seed},
        "data": {
            "train": str(_write(folder / "train.jsonl", texts, is_chat)),
            "eval": str(_write(folder / "held_out.jsonl", held_out, is_chat)),
            "max_seq_len": 64,
            "cache_dir": str(folder / "cache"),
        },
        "train": {"global_batch_tokens": 512, "microbatch_tokens": 512},
        "eval": {"every": 10},
        "checkpoint": {"every": None},
        "log": {"every": 1, "report": False},
    }
    if is_chat:
        sections["model"] = {"path": str(tiny_chat.write_model(folder / "base"))}
        sections["data"] |= {"max_seq_len": 128}
        sections["train"] = {"global_batch_tokens": 1024, "microbatch_tokens": 1024}
    else:
        sections["model"] = dict(MODELS[model])
        sections["data"]["isolate_documents"] = False  # one attention per pack: twice as fast
        sections["tokenizer"] = {"path": str(tiny_run.write_tokenizer(folder / "tokenizer"))}
    for name, section in planted.sections.items():
        sections[name] = sections.get(name, {}) | dict(section)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(sections), encoding="utf-8")
    ended = tiny_run.run_here(config, recipe=tiny_run.SFT if is_chat else tiny_run.PRETRAIN)
    assert ended.code == 0 or "not finite" in ended.err, ended.err
    return Planted(folder / "run", chain.least_loss(held_out, QUESTION_LETTERS if is_chat else 0))


def _write(path: Path, texts: Sequence[str], is_chat: bool) -> Path:
    """Texts as rows, of a chat as a question, the first letters, and an answer, the others; the file."""
    rows = (
        {"prompt": text[:QUESTION_LETTERS], "completion": text[QUESTION_LETTERS:]} if is_chat else {"text": text}
        for text in texts
    )
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path
