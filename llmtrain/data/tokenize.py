"""Text -> token ids, in parallel.

A document's ids are what its tokenizer gives with its own special tokens (a BOS if it adds one), and the
EOS at the end where there is one. Text that spells a special token stays text.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from llmtrain.data.ledger import Split
from llmtrain.data.sources.text import LINE_CUT, PIECE_CHARS, SPACE_CUT
from llmtrain.system.cores import encoding_threads
from llmtrain.system.files import one_line
from llmtrain.system.paths import is_local, local_path, no_folder
from llmtrain.system.tokenizer import require_reading

Ids = np.ndarray[Any, Any]

UNUSUAL = "\U0010fffd"
"""A character for private use, which no vocabulary of characters has."""
SPACE_CUT_SAMPLE_CHARS = 1 << 14


@dataclass(frozen=True)
class Piece:
    """A document, or a part of a long one."""

    text: str
    split: Split
    first: bool  # starts its document
    last: bool  # ends its document
    document_bytes: int  # UTF-8 bytes of the whole document


def load_tokenizer(
    path: str, revision: str | None = None, trust_remote_code: bool = False, key: str = "tokenizer.path"
) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder or on the hub, which the configuration's `key` names.

    Raises ValueError if there is none, or none that the `tokenizers` library runs.
    """
    local = local_path(path)
    if is_local(path) and not local.is_dir():
        raise ValueError(f"{key}={path}: {no_folder(path)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(local) if local.is_dir() else path, revision=revision, trust_remote_code=trust_remote_code
        )
        require_reading(tokenizer)
    except Exception as error:  # transformers raises its own and its libraries' errors, of many classes
        if "instantiate the backend tokenizer" in str(error):
            raise ValueError(f"{key}={path}: holds no tokenizer.json: name a tokenizer in tokenizer.path") from None
        raise ValueError(f"{key}={path}: no tokenizer can be loaded: {one_line(error)}") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"{key}={path}: {type(tokenizer).__name__} is not run by the `tokenizers` library; "
            "convert it to a tokenizer.json first"
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _processor_template(str(local) if local.is_dir() else path, revision)
    return tokenizer


def _processor_template(path: str, revision: str | None) -> str | None:
    """The chat template of a processor of images and text, which older folders keep in a file of its own."""
    found = cached_file(
        path,
        "chat_template.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    template = None if found is None else json.loads(Path(found).read_text(encoding="utf-8")).get("chat_template")
    return template if isinstance(template, str) else None


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """32 hexadecimal digits, different wherever documents would get different ids."""
    return encoder_fingerprint(TextEncoder(tokenizer))


def encoder_fingerprint(encoder: TextEncoder) -> str:
    """The same, of a tokenizer whose encoder is made already."""
    hasher = blake2b(encoder.backend.to_str().encode(), digest_size=16)
    hasher.update(repr((encoder.prefix, encoder.suffix)).encode())
    return hasher.hexdigest()


class TextEncoder:
    """Turns texts into ids, many at a time, on all cores.

    `prefix` and `suffix` are the ids that belong around each document: BOS, EOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError(f"{type(tokenizer).__name__} is not run by the `tokenizers` library")
        self.backend: Tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # a copy: ours to change
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True
        self.prefix, self.suffix = _around(self.backend)
        if tokenizer.eos_token_id is not None and self.suffix[-1:] != (tokenizer.eos_token_id,):
            self.suffix += (tokenizer.eos_token_id,)
        self.vocab_size = 1 + max(self.backend.get_vocab(with_added_tokens=True).values())
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        unknown = tokenizer.unk_token_id
        self.unknown_id: int | None = None if unknown in (*self.prefix, *self.suffix) else unknown
        self._known: set[str] = set()
        self._drops_unknown = _ids_or_none(self.backend, UNUSUAL) == []

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, nothing put around them.

        Raises ValueError for text that the tokenizer fails on, or would leave out without a trace.
        """
        self.require_known(texts)
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"the tokenizer cannot encode this text: {one_line(error)}") from None
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]

    def encode_ahead(self, batches: Iterable[Sequence[Piece]]) -> Iterator[tuple[Sequence[Piece], list[Ids]]]:
        """Each batch with the ids of its texts, in order; the next two are encoded while the caller works and reads.

        Encoding itself runs without Python's lock, so it overlaps with reading and with making arrays.
        """
        waiting: deque[tuple[Sequence[Piece], Future[list[Ids]]]] = deque()
        with ThreadPoolExecutor(max_workers=2) as pool:
            for batch in batches:
                waiting.append((batch, pool.submit(self.encode, [piece.text for piece in batch])))
                if len(waiting) > 2:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()

    def lost(self, text: str) -> Counter[str]:
        r"""The characters that its ids do not give back, with how often: unknown, normalised, stripped.

        Of `Été\n` an uncased tokenizer loses `É`, and one that splits at white space the line end. Spaces that decoding
        adds are no loss, nor is the one space at the start of a text that SentencePiece's tokenizers add.
        """
        ids = _ids_or_none(self.backend, text)
        if ids is None:
            return Counter()  # `encode` refuses it
        decoded = self.backend.decode(ids, skip_special_tokens=True)
        spelled = "".join(self.backend.id_to_token(each) or "" for each in ids)
        if text in (decoded, spelled) or text == f" {decoded}":
            return Counter()
        return Counter(text) - Counter(decoded)

    def can_cut(self, sample: str) -> bool:
        """Whether texts may be encoded in pieces: tried at every line cut of a sample, and at many space cuts.

        Each kind is also tried in place of the other, since the sample may have one kind only.
        """
        sample = sample[: 2 * PIECE_CHARS]
        short = sample[:SPACE_CUT_SAMPLE_CHARS]
        trials = (
            (sample, LINE_CUT),
            (short.replace(" ", "\n"), LINE_CUT),
            (short, SPACE_CUT),
            (short.replace("\n", " "), SPACE_CUT),
        )
        return all(self._equal_in_pieces(text, [found.start() for found in cut.finditer(text)]) for text, cut in trials)

    def require_known(self, texts: Sequence[str]) -> None:
        """Raises ValueError for a character, white space aside, that has no token at all."""
        for text in texts if self._drops_unknown else ():
            for char in set(text) - self._known:
                if not char.isspace() and not _ids_or_none(self.backend, char):
                    raise ValueError(
                        f"the tokenizer has no token for {char!r} (U+{ord(char):04X}) and no unknown token, so it "
                        "would vanish; give the tokenizer an unknown token, or train it on all characters"
                    )
                self._known.add(char)

    def _equal_in_pieces(self, text: str, cuts: Sequence[int]) -> bool:
        whole, *pieces = self.encode([text, *(text[start:end] for start, end in pairwise([0, *cuts, len(text)]))])
        return np.array_equal(whole, np.concatenate(pieces))


def batch_chars() -> int:
    """Characters of a batch: a quarter of a megabyte per thread, so that long pieces keep every thread busy too."""
    return encoding_threads(os.environ) << 18


def _around(backend: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer puts before and after a text.

    Raises ValueError if what it puts there depends on the text.
    """
    texts = (backend.decode([token_id]) for token_id in sorted(backend.get_vocab(with_added_tokens=False).values()))
    probe = next((text for text in texts if text and _ids_or_none(backend, text)), None)
    if probe is None:
        raise ValueError("the tokenizer gives no ids to the text of any of its tokens: it cannot be used here")
    plain, full = (backend.encode(probe, add_special_tokens=special).ids for special in (False, True))
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start]), tuple(full[start + len(plain) :])
    raise ValueError("the tokenizer changes a text's own ids when it adds special tokens: it cannot be used here")


def _ids_or_none(backend: Tokenizer, text: str) -> list[int] | None:
    """The ids of a text; None if the tokenizer fails on it."""
    try:
        return list(backend.encode(text, add_special_tokens=False).ids)
    except Exception:  # the library raises no narrower class
        return None
