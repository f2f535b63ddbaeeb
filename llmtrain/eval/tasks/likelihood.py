"""The log-likelihood of continuations: many items in one packed forward, the context of an item's choices once.

    logprob(continuation | context) = sum over its tokens of log p(token | all before it)

What counts as the continuation's tokens is as in lm-evaluation-harness: spaces at the end of the context go to the
continuation, both are tokenized together, and the context's own tokens are taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmtrain.data.rendering import prompt_ids, prompt_text
from llmtrain.eval.tasks.subject import Subject
from llmtrain.models.heads.head import output_head
from llmtrain.models.text_part import require_rows
from llmtrain.models.trunk import Documents, pack_inputs, run_model, run_trunk

CPU_PACK_TOKENS, PACK_TOKENS = 2048, 16384  # of a forward; an item that is longer has one of its own
HEAD_CHUNK = 512  # labels whose logits are in memory at a time


class Request(NamedTuple):
    """A continuation and what it continues, in tokens; at least one of each."""

    context: Sequence[int]
    continuation: Sequence[int]


class Likelihood(NamedTuple):
    """What a model says of a continuation."""

    logprob: float  # nats
    is_greedy: bool  # each token is the likeliest
    num_tokens: int
    num_cut: int  # tokens of the context that were left out, as the model has too few positions


@dataclass(frozen=True)
class _Sequence:
    """An input of the model, whose last outputs are scored."""

    ids: tuple[int, ...]  # without the last token, which predicts nothing
    labels: tuple[int, ...]  # of the last len(labels) places
    num_cut: int


def request_of(subject: Subject, context: str, continuation: str) -> Request:
    """The tokens of a continuation, and of what it continues; without a context that is the token before any text."""
    if not context:
        return Request([subject.first_id], list(subject.tokenizer.encode(continuation, add_special_tokens=False)))
    stripped = context.rstrip()
    moved = context[len(stripped) :] + continuation
    if not stripped:
        return Request([subject.first_id], list(subject.tokenizer.encode(moved, add_special_tokens=False)))
    before = subject.encoded(stripped)
    return Request(before, subject.encoded(stripped + moved)[len(before) :])


def chat_request_of(subject: Subject, question: str, answer: str) -> Request:
    """The tokens of an answer, without the space before it, and of all that the chat template writes before it.

    So nothing is scored of what it writes before an answer that is there, such as an empty thought (Qwen3) or a channel
    (gpt-oss). Both are tokenized together. Raises ValueError for a tokenizer without a template.
    """
    said, tokenizer = answer.strip(), subject.tokenizer
    asked = [{"role": "user", "content": question}]
    text = prompt_text(tokenizer, [*asked, {"role": "assistant", "content": said}])
    if not text.endswith(said):  # the template changes it
        return Request(prompt_ids(tokenizer, asked), list(tokenizer.encode(said, add_special_tokens=False)))
    before, whole = (list(tokenizer.encode(each, add_special_tokens=False)) for each in (text.removesuffix(said), text))
    is_shared = [one == other for one, other in zip(before, whole, strict=False)]
    num_shared = is_shared.index(False) if False in is_shared else len(is_shared)  # a space may join the answer
    return Request(whole[:num_shared], whole[num_shared:])


def likelihoods(
    subject: Subject,
    groups: Sequence[Sequence[Request]],
    done: Callable[[int], None] = lambda count: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[list[Likelihood]] | None:
    """The likelihood of each continuation, by groups of requests whose contexts may be equal; None if asked to stop.

    `done` gets the number of groups of each forward. Raises ValueError for a continuation that has no tokens, or more
    than the model has positions.
    """
    sequences = [[_sequence(request, subject.max_tokens) for request in group] for group in groups]
    ids = (id_ for each in chain.from_iterable(sequences) for id_ in (*each.ids, *each.labels))
    require_rows(subject.model, ids, subject.tokenizer)
    found: list[list[Likelihood]] = [[] for _ in groups]
    for pack in _packs(sequences, subject):
        if should_stop():
            return None
        members = [sequences[number] for number in pack]
        results = iter(_of_pack(subject, members))
        for number in pack:
            found[number] = [next(results) for _ in sequences[number]]
        done(len(pack))
    return found


def _sequence(request: Request, max_tokens: int) -> _Sequence:
    context, continuation = tuple(request.context), tuple(request.continuation)
    if not continuation:
        raise ValueError("a continuation has no tokens of its own, so that it has no likelihood")
    if len(continuation) > max_tokens:
        raise ValueError(f"a continuation of {len(continuation):,} tokens exceeds the model's {max_tokens:,} positions")
    whole = (*context, *continuation)
    kept = whole[-(max_tokens + 1) :]
    return _Sequence(kept[:-1], continuation, len(whole) - len(kept))


def _packs(sequences: Sequence[Sequence[_Sequence]], subject: Subject) -> Iterator[list[int]]:
    """Numbers of groups, of equally many sequences each, by length: as many as a pack holds, at least one."""
    room = CPU_PACK_TOKENS if subject.model.device.type == "cpu" else PACK_TOKENS
    order = sorted(
        range(len(sequences)), key=lambda i: (len(sequences[i]), -sum(len(each.ids) for each in sequences[i]))
    )
    pack: list[int] = []
    size = 0
    for number in order:
        group = sequences[number]
        shared = _prefix_length(group, subject)
        tokens = sum(len(each.ids) for each in group) - shared * (len(group) - 1)
        if pack and (size + tokens > room or len(group) != len(sequences[pack[0]])):
            yield pack
            pack, size = [], 0
        pack.append(number)
        size += tokens
    if pack:
        yield pack


def _prefix_length(group: Sequence[_Sequence], subject: Subject) -> int:
    """Tokens that all sequences of a group begin with and none of which predicts a label."""
    if len(group) == 1 or not subject.shares_prefixes:
        return 0
    length = min(len(each.ids) - len(each.labels) for each in group)
    first = group[0].ids
    for other in group[1:]:
        length = next((i for i in range(length) if other.ids[i] != first[i]), length)
    return length


def _of_pack(subject: Subject, groups: Sequence[Sequence[_Sequence]]) -> list[Likelihood]:
    """The likelihoods of all sequences of the groups, in order, from one forward."""
    ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    prefixes: list[int] = []
    places: list[int] = []  # in the pack, of the outputs that predict labels
    for group in groups:
        prefix = _prefix_length(group, subject)
        prefixes.append(prefix)
        ids += group[0].ids[:prefix]
        positions += range(prefix)
        for each in group:
            own = each.ids[prefix:]
            ids += own
            positions += range(prefix, prefix + len(own))
            lengths.append(len(own))
            places += range(len(ids) - len(each.labels), len(ids))
    device = subject.model.device
    documents = Documents(
        torch.tensor(ids, device=device), torch.tensor(positions, device=device), tuple(lengths), tuple(prefixes)
    )
    sequences = [each for group in groups for each in group]
    labels = torch.tensor([label for each in sequences for label in each.labels], device=device)
    logprobs, greedy = _scored(subject, documents, torch.tensor(places, device=device), labels)
    counts = [len(each.labels) for each in sequences]
    return [
        Likelihood(float(values.double().sum()), bool(best.all()), len(each.labels), each.num_cut)
        for each, values, best in zip(sequences, logprobs.split(counts), greedy.split(counts), strict=True)
    ]


def _scored(
    subject: Subject, documents: Documents, places: Int[Tensor, " labels"], labels: Int[Tensor, " labels"]
) -> tuple[Float[Tensor, " labels"], Tensor]:
    """The logprob of each label, and whether it is the likeliest token, both on the CPU."""
    model = subject.model
    with torch.no_grad():
        inputs = pack_inputs(documents, subject.kernel)
        if subject.whole_logits:
            parts: Iterable[Tensor] = run_model(model, inputs)[places].split(HEAD_CHUNK)
        else:
            head, hidden = output_head(model), run_trunk(model.base_model, inputs)[places]
            parts = (head.logits(part) for part in hidden.split(HEAD_CHUNK))
        logprobs, greedy = [], []
        for logits, wanted in zip(parts, labels.split(HEAD_CHUNK), strict=True):
            log_probs = logits.float().log_softmax(-1)
            logprobs.append(log_probs.gather(-1, wanted[:, None])[:, 0].cpu())
            greedy.append((log_probs.argmax(-1) == wanted).cpu())
    return torch.cat(logprobs), torch.cat(greedy)
