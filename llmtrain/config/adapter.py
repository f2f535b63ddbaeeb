"""The section `adapter`: what is trained beside a frozen base."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, create_model, field_validator, model_validator

from llmtrain.config.marks import Feature, Needs
from llmtrain.config.sections import Fraction, Positive, Section

ADAPTER = Needs("adapter.kind=lora or dora", lambda adapter: adapter.kind != "none")
OF_ITS_FOLDER = ("rank", "alpha", "rslora", "target", "target_parameters", "layers", "modules_to_save")
"""Keys that an adapter's folder decides, where its training goes on."""
RANGE = re.compile(r"(\d+)(?:-(\d+))?")


class _AdapterKeys(Section):
    kind: Annotated[Literal["none", "lora", "dora"], Feature("adapter", ("lora",)), Feature("dora", ("dora",))] = "none"
    """What is trained: every weight (`none`), or a peft adapter on a frozen base."""
    rank: Annotated[Positive, ADAPTER] = 16
    """Rank of the adapter's matrices (Hu et al. 2021)."""
    alpha: Annotated[float, Field(gt=0), ADAPTER] = 32
    """Scale of the update: alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    rslora: Annotated[bool, ADAPTER] = False
    """Rank-stabilised scale (Kalajdzievski 2023)."""
    dropout: Annotated[Fraction, ADAPTER] = 0.0
    """Dropout on the adapter's input."""
    target: Annotated[str | list[str], ADAPTER] = "all-linear"
    """Modules that get an adapter: every linear layer but the head (QLoRA, section 4), names such as `[q_proj]`, or a
    regular expression of the whole name (`.*\\.(q|v)_proj`)."""
    target_parameters: Annotated[list[str], ADAPTER, Feature("adapter on experts")] = []
    """Parameters that get one beside these modules: experts, which are no linear layers, as in
    `[experts.gate_up_proj, experts.down_proj]`; `target: []` leaves them alone with it."""
    layers: Annotated[str | list[int] | None, ADAPTER] = None
    """Layers that get one: `8-15`, `0-3,12-15` or a list of numbers, from 0; None: all."""
    modules_to_save: Annotated[list[str], ADAPTER] = []
    """Modules that are trained in full beside it and saved with it: `[lm_head]`, `[embed_tokens, norm]`."""
    merge: Annotated[bool, ADAPTER] = False
    """Also write `merged/`, the base with the adapter added in, at the end; `llmtrain merge` does it later."""

    @field_validator("target")
    @classmethod
    def _is_an_expression(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("layers")
    @classmethod
    def _are_layers(cls, value: str | list[int] | None) -> str | list[int] | None:
        if value is not None:
            layer_numbers(value)
        return value

    @model_validator(mode="after")
    def _fits_its_parameters(self) -> Self:
        if not self.target and not self.target_parameters:
            raise ValueError("target: names no module")
        if self.target_parameters and (self.kind == "dora" or self.dropout > 0):
            key = "kind=dora" if self.kind == "dora" else f"dropout={self.dropout:g}"
            raise ValueError(f"{key}: peft has none on target_parameters: leave one of the two out")
        return self

    @property
    def continues(self) -> bool:
        """Whether the adapter that `model.path` names goes on being trained."""
        return bool(vars(self)["continue"])

    def chosen_layers(self) -> list[int] | None:
        """The numbers in `layers`, in order; None: all layers."""
        return None if self.layers is None else layer_numbers(self.layers)


def layer_numbers(value: str | list[int]) -> list[int]:
    """The layers that `8-15`, `0-3,12-15` or a list names, in order. Raises ValueError for what names none."""
    if not isinstance(value, str):
        if not value or min(value) < 0:
            raise ValueError("give numbers of layers, from 0, as in [0, 1, 2] or 8-15")
        return sorted(set(value))
    return sorted(set(_numbers(value)))


def _numbers(text: str) -> Iterator[int]:
    for part in text.split(","):
        found = RANGE.fullmatch(part.strip())
        if found is None:
            raise ValueError("give ranges of layers, from 0, as in 8-15 or 0-3,12-15")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"the range {part.strip()} is empty: give the lower number first")
        yield from range(first, last + 1)


GOES_ON: Any = (
    Annotated[bool, ADAPTER],
    Field(
        default=False,
        description="Go on training the adapter that `model.path` names, on its base; false: it is added into its base "
        "and a new adapter starts.",
    ),
)

if TYPE_CHECKING:

    class AdapterConfig(_AdapterKeys): ...

else:  # `continue` is a word of Python, so no field of a class can be written so
    AdapterConfig = create_model("AdapterConfig", __base__=_AdapterKeys, **{"continue": GOES_ON})
    AdapterConfig.__doc__ = None
