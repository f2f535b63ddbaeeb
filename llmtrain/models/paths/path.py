"""The path of a run: how its model computes several documents in one call, and what is changed in it for that."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel

from llmtrain.models.attention import ATTENTION
from llmtrain.models.experts import route_in_fp32
from llmtrain.models.paths.bounds import hand_bounds, is_handed_bounds
from llmtrain.models.paths.runs import ByRuns, Classes, run_by_groups
from llmtrain.protocols import Sharding
from llmtrain.system.device import ROWS, AttentionKernel


def can_switch(model: PreTrainedModel) -> bool:
    """Whether a model's attention goes through `transformers`' interface, so that another can take its place."""
    return bool(model._can_set_attn_implementation())


def is_on_plain_packs(model: PreTrainedModel) -> bool:
    """Whether the path that a model was last put into is packs by its attention alone."""
    by_groups = any(isinstance(module, ByRuns) for module in model.modules())
    return model.config._attn_implementation == ATTENTION and not by_groups and not is_handed_bounds(model)


_ROW = {
    "padded": "padded to the longest beside it",
    "equal": "beside others of its length",
    "fixed": "padded in one of four groups by length",
}


@dataclass(frozen=True)
class Path:
    """One way to compute several documents."""

    kernel: AttentionKernel
    by_groups: Classes = field(default_factory=dict)  # modules that run per group of documents
    attention: str = ATTENTION  # transformers' name of the attention that the model runs with
    obstacle: str | None = None  # why no faster path is right; None: this is the fastest
    needs_equal: bool = False  # modules with weights run on documents of one length only
    hands_bounds: bool = False  # the model's layers are handed the bounds of the documents

    @property
    def line(self) -> str:
        """One line for the log: what runs how, and whether it is slower than it could be."""
        if self.kernel in ROWS:
            how = _ROW[self.kernel]
            return f"a document runs as a row, {how}: slower than packs, as {self.obstacle}"
        names = ", ".join(sorted(each.__name__ for each in self.by_groups))
        others = f"; {names} per group of them" if names else ""
        others += "; other layers are handed the documents' bounds" if self.hands_bounds else ""
        return f"documents run in packs, attention by {self.kernel}{others}"

    def for_shards(self, sharding: Sharding) -> Path:
        """The same for an engine that shards parameters: every rank makes equally many calls that gather them.

        So documents are padded in a fixed number of groups. Raises ValueError for a path on which padding is
        wrong: then the number of calls depends on the documents.
        """
        by_groups, gathers_in_groups = dict(self.by_groups), sharding == "modules"
        if self.kernel == "equal" or (gathers_in_groups and self.needs_equal):
            raise ValueError(
                f"this engine shards parameters ({'ZeRO-3' if gathers_in_groups else 'FSDP2'}), but ranks would call "
                f"this model unequally often, as {self.line}: take DDP, ZeRO-1 or ZeRO-2"
            )
        if gathers_in_groups:
            by_groups = {cls: "fixed" if how == "padded" else how for cls, how in by_groups.items()}
        return replace(self, kernel="fixed" if self.kernel == "padded" else self.kernel, by_groups=by_groups)

    def put_into(self, model: PreTrainedModel) -> PreTrainedModel:
        """Let a model compute documents on this path, its routers in fp32, in place; the model."""
        if model.config._attn_implementation != self.attention:
            model.set_attn_implementation(self.attention)
        hand_bounds(model, self.hands_bounds)
        run_by_groups(model, model.base_model, self.by_groups)
        route_in_fp32(model)
        return model
