"""The fastest path that is right, found on a small copy of the model before a step is trained.

Right: the outputs of every token, and the gradient of every parameter, are those of `transformers`' own forward of one
document at a time. Packs hold several documents, longer ones before shorter ones and after them, past every bound that
depends on a document's length: so a window that is ignored, frequencies by the length of the pack or a state that goes
on into the next document shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.models.context import num_positions
from llmtrain.models.paths.leaks import leaking_class
from llmtrain.models.paths.path import Path, can_switch
from llmtrain.models.paths.runs import ByRuns, Classes, run_by_groups
from llmtrain.models.paths.small import as_trained, made_from, seeded, small_copy, stock_copy
from llmtrain.models.paths.tried import Fault, tried
from llmtrain.models.text_part import special_token_ids
from llmtrain.models.trunk import Documents, Inputs, pack_inputs
from llmtrain.system.device import ROWS, AttentionKernel

PACKS = ((23, 5, 17, 3, 10), (10, 3, 17, 5, 70))
"""Tokens of each document: longer before shorter ones, and after; past the blocks of 64 that some mixers compute in."""

LEAK_PACKS = ((24, 5), (6, 5))  # sums that are no width of a model
OUTPUT_TOLERANCE = 1e-4  # of the outputs' spread, in fp32; a leak is off by a hundredth or more
GRADIENT_TOLERANCE = 1e-2  # of a parameter's gradient: norm of the difference to norm
SMALL_GRADIENT = 1e-4  # of the largest norm: below it, rounding may be all there is
MAX_CLASSES = 6
UNLIMITED_POSITIONS = 8192  # of a model that names no limit

Run = Callable[[nn.Module, Inputs], Float[Tensor, "tokens outputs"]]
"""A model and its inputs -> an output of each token: `run_model`, or `run_trunk` of its trunk."""


_KNOWN: dict[Any, Path] = {}  # the first path of models that this process has seen


class Reference(NamedTuple):
    """What a path must give."""

    outputs: Float[Tensor, "tokens outputs"]
    gradients: dict[str, Tensor]


def paths(model: PreTrainedModel, kernel: AttentionKernel, max_seq_len: int, run: Run) -> Iterator[Path]:
    """Paths that are right on a small copy of the model, the fastest first.

    `kernel`: of attention in packs. Raises ValueError, after the last, if none is left: with what is wrong in packs.
    """
    key = (made_from(model), kernel, max_seq_len, run)
    if key in _KNOWN:
        yield _KNOWN[key]
    trial = Trial(model, max_seq_len, run)
    obstacles: list[str] = []
    for path in _candidates(trial, kernel, obstacles):
        if (fault := trial.fault(path)) is None:
            if key not in _KNOWN:
                _KNOWN[key] = path
                yield path
            elif path != _KNOWN[key]:
                yield path
            obstacles.append("the model itself, not its small copy, computes packed documents otherwise")
        else:
            obstacles.append(fault)
    raise ValueError(
        f"{model.config.model_type}: neither packs nor rows of documents are computed as they are alone "
        f"({obstacles[0]}), so this architecture cannot be trained here"
    )


def path_of(model: PreTrainedModel, run: Run) -> Path:
    """The fastest path of a model that is not trained, for documents of any length that its positions allow.

    Raises ValueError as `paths` does.
    """
    return next(paths(model, "segments", num_positions(model.config) or UNLIMITED_POSITIONS, run))


def is_right_at_any_length(path: Path, model: PreTrainedModel, run: Run) -> bool:
    """Whether a path found for documents of some length is also that for documents of all positions of a model."""
    longest = path_of(model, run)
    return _exactness(path) == _exactness(longest)


def _exactness(path: Path) -> tuple[str, dict[type[nn.Module], bool], bool]:
    """What is padded on a path, however far: its kernel of rows, and whether modules run on equal lengths.

    Last: whether the model's layers separate documents themselves.
    """
    kernel = path.kernel if path.kernel in ROWS else "packs"
    kernel = "padded" if kernel == "fixed" else kernel
    return kernel, {cls: how == "equal" for cls, how in path.by_groups.items()}, path.hands_bounds


def _candidates(trial: Trial, kernel: AttentionKernel, obstacles: list[str]) -> Iterator[Path]:
    if trial.packs:
        yield Path(kernel)
        if classes := trial.leaking(kernel):
            yield Path(kernel, hands_bounds=True)
            padded: Classes = {cls: "padded" if has_weights else "equal" for cls, has_weights in classes.items()}
            equal: Classes = dict.fromkeys(classes, "equal")
            yield Path(kernel, padded)
            yield Path(kernel, equal, needs_equal=any(classes.values()))
    else:
        obstacles.append(f"{trial.small.config.model_type} does not go through transformers' attention interface")
    groupings: tuple[Literal["padded", "equal"], ...] = ("padded", "equal")
    for grouping in groupings:
        for attention in trial.row_attentions:
            yield Path(grouping, {}, attention, obstacles[0])


class Trial:
    """A small copy of a model, and what it computes one document at a time, in fp32 also under autocast."""

    def __init__(self, model: PreTrainedModel, max_seq_len: int, run: Run) -> None:
        own: str = model.config._attn_implementation
        self.packs = can_switch(model)
        self.row_attentions = ("sdpa", "eager") if can_switch(model) else (own,)
        self.small = small_copy(model, max_seq_len, own)
        self._run = run
        self._packs = [tuple(min(length, max_seq_len) for length in pack) for pack in PACKS]
        stock = stock_copy(model, max_seq_len, self.small)
        found = tried(lambda: self._reference(stock))
        if isinstance(found, Fault):
            raise ValueError(
                f"{model.config.model_type}: transformers does not compute one document alone ({found}), so this "
                "architecture cannot be trained here"
            )
        self._references = found

    def _reference(self, stock: PreTrainedModel) -> list[Reference]:
        """What the documents of each pack give alone; in training, and `small` with it, unless noise decides that."""
        with seeded(stock.device):
            if not tried(partial(self._draws_noise, as_trained(stock))):
                as_trained(self.small)
            else:
                stock.eval()
            return [self._one_by_one(stock, self._documents(pack)) for pack in self._packs]

    @torch.no_grad()
    def _draws_noise(self, model: PreTrainedModel) -> bool:
        """Whether a model computes one document differently the second time."""
        inputs: Inputs = {"input_ids": self._documents(self._packs[0][:1]).input_ids[None], "use_cache": False}
        with _without_autocast(model):
            first, second = (self._run(model, inputs).float() for _ in range(2))
        return difference(second, first) is not None

    def fault(self, path: Path) -> str | None:
        """What is wrong on this path, in a few words; None: nothing."""
        for lengths, reference in zip(self._packs, self._references, strict=True):
            with seeded(self.small.device):
                found = tried(partial(self._together, path, lengths))
            if isinstance(found, Fault):
                return f"documents cannot be computed together ({found})"
            if fault := _fault(found, reference):
                return fault
        return None

    def leaking(self, kernel: AttentionKernel) -> dict[type[nn.Module], bool]:
        """Class of the modules in which a document sees another -> whether they have weights."""
        classes: dict[type[nn.Module], bool] = {}
        while len(classes) < MAX_CLASSES:
            model = copy.deepcopy(self.small)
            run_by_groups(model, model.base_model, dict.fromkeys(classes, "equal"))

            def run(lengths: Sequence[int], model: PreTrainedModel = model) -> object:
                with torch.no_grad(), _without_autocast(model):
                    return self._run(model, pack_inputs(self._documents(lengths), in_fp32(kernel)))

            cls = tried(partial(leaking_class, model, run, *LEAK_PACKS))
            if cls is None or isinstance(cls, Fault) or cls in classes or issubclass(cls, ByRuns):
                return classes
            classes[cls] = any(True for module in model.modules() if type(module) is cls for _ in module.parameters())
        return classes

    def _documents(self, lengths: Sequence[int]) -> Documents:
        """Documents of these lengths; the last is the same in all packs that end with its length."""
        last = pseudo_random(self.small, lengths[-1], seed=1)
        others = pseudo_random(self.small, sum(lengths[:-1]), seed=0)
        positions = torch.cat([torch.arange(length) for length in lengths])
        return Documents(torch.cat([others, last]), positions.to(last.device), tuple(lengths))

    def _together(self, path: Path, lengths: Sequence[int]) -> Reference:
        """The same on a path."""
        model = path.put_into(copy.deepcopy(self.small))
        inputs = pack_inputs(self._documents(lengths), in_fp32(path.kernel))
        return _with_gradients(model, partial(self._run, model, inputs))

    def _one_by_one(self, model: PreTrainedModel, documents: Documents) -> Reference:
        model.zero_grad()
        pieces = documents.input_ids.split(documents.segment_lengths)

        def run() -> Tensor:
            return torch.cat([self._run(model, {"input_ids": each[None], "use_cache": False}) for each in pieces])

        return _with_gradients(model, run)


def pseudo_random(model: PreTrainedModel, count: int, seed: int = 0) -> Int[Tensor, " tokens"]:
    """Pseudo-random tokens, none of them padding or an image, without touching torch's global generator."""
    special = special_token_ids(model.config)
    plain = [id_ for id_ in range(model.config.get_text_config().vocab_size) if id_ not in special]
    drawn = torch.randint(len(plain), (count,), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(plain)[drawn].to(model.device)


def same_outputs_and_gradients(model: PreTrainedModel, run: Callable[[], Tensor], own: Callable[[], Tensor]) -> bool:
    """Whether two computations of a model's outputs agree, and the gradient of every parameter through them."""
    expected = _with_gradients(model, own)
    model.zero_grad()
    return _fault(_with_gradients(model, run), expected) is None


def _without_autocast(model: PreTrainedModel) -> torch.autocast:
    return torch.autocast(model.device.type, enabled=False)


def _with_gradients(model: PreTrainedModel, run: Callable[[], Tensor]) -> Reference:
    """Outputs, and the gradients of their sum by weights that are drawn."""
    with torch.enable_grad(), _without_autocast(model):
        outputs = run().float()
        weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2)).to(outputs.device)
        (outputs * weights).sum().backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return Reference(outputs.detach(), gradients)


def difference(found: Float[Tensor, "tokens outputs"], expected: Float[Tensor, "tokens outputs"]) -> str | None:
    """By how much outputs differ beyond rounding; None: they do not."""
    spread = float((expected - expected.mean(0)).abs().max())
    worst = float((found - expected).abs().max())
    return None if worst <= OUTPUT_TOLERANCE * spread else f"outputs differ by {worst:.2g} of {spread:.2g}"


def _fault(found: Reference, expected: Reference) -> str | None:
    """By how much outputs or gradients differ beyond rounding; None: they do not."""
    if (fault := difference(found.outputs, expected.outputs)) is not None:
        return fault
    largest = max((float(gradient.norm()) for gradient in expected.gradients.values()), default=0.0)
    for name, gradient in expected.gradients.items():
        norm = float(gradient.norm())
        other = found.gradients.get(name)
        off = norm if other is None else float((other - gradient).norm())
        if not off <= GRADIENT_TOLERANCE * max(norm, SMALL_GRADIENT * largest):
            return f"the gradient of {name} differs by {off:.2g} of {norm:.2g}"
    return None


def in_fp32(kernel: AttentionKernel) -> AttentionKernel:
    """The kernel of a check: varlen has no fp32."""
    return "segments" if kernel == "varlen" else kernel
