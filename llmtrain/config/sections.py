"""The schema of a run: every key, its type, its range, its meaning.

A recipe's configuration is one YAML file plus dotted overrides (`optim.lr=1e-4`), which `load.py` reads;
everything else receives the sections it needs, already validated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

from llmtrain.config.marks import BY_CONTENT, IMMATERIAL, MAY_CHANGE, Feature, Needs, OnResume
from llmtrain.system.paths import local_path

Positive = Annotated[int, Field(gt=0, strict=True)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
LARGEST = 2**63 - 1
"""Whole number of a configuration: tensors and files hold no larger one."""
WARMUP_FRACTION, MAX_DEFAULT_WARMUP_STEPS = 0.05, 2000


def is_on_hub(path: str | None) -> bool:
    """Whether a path is a name on the hub, so that it can have revisions."""
    return path is not None and not local_path(path).exists() and not path.endswith(".gguf")


MUON = Needs("optim.name=muon", lambda optim: optim.name == "muon")


class Section(BaseModel):
    """One section of a configuration: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    @field_validator("*")
    @classmethod
    def _in_64_bits(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError("the number has more than 64 bits, which nothing here counts to")
        return value


class RunConfig(Section):
    dir: Annotated[str, IMMATERIAL]
    """Folder of the run: configuration, metrics, checkpoints and the final model go here."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of initialisation, sample order and dropout."""
    resume: Annotated[Literal["auto", "never"], IMMATERIAL] = "auto"
    """`auto` continues the run in `run.dir` from its last good checkpoint; `never` refuses a folder in use."""
    push_to_hub: Annotated[str | None, IMMATERIAL] = None
    """Hub repository that the final model is pushed to (private unless it exists); None: off."""
    timeout_minutes: Annotated[float, Field(gt=0, le=525_600), IMMATERIAL] = 30
    """A collective that takes longer fails and names the ranks that did not arrive; a year at most."""

    @field_validator("dir")
    @classmethod
    def _in_the_home_folder(cls, value: str) -> str:
        return os.path.expanduser(value)  # a shell leaves the ~ of run.dir=~/runs/x as it is


class PretrainedModelConfig(Section):
    path: Annotated[str, BY_CONTENT]
    """Folder, hub id, `.gguf` file, or `PACKAGE:FILE.gguf` of an installed Python package, of the model to train."""
    revision: Annotated[str | None, BY_CONTENT, Needs("model.path on the hub", lambda model: is_on_hub(model.path))] = (
        None
    )
    """Commit, tag or branch of the hub model; the commit it resolves to is recorded."""
    dropout: Fraction | None = None
    """Dropout of every kind the architecture has, an error if it has none; None: as its configuration says."""
    attention: Literal["auto", "segments", "varlen", "mask"] = "auto"
    """Attention within documents: SDPA per segment, torch's varlen kernel (CUDA), one block mask; auto: by device."""
    trust_remote_code: bool = False
    """Run model code that the hub repository brings. Off unless you have read it."""
    config: dict[str, Any] = {}
    """Other positions for the given model: `rope_parameters`, `max_position_embeddings`, `sliding_window`."""


class ModelConfig(PretrainedModelConfig):
    path: Annotated[str | None, BY_CONTENT] = None  # type: ignore[assignment]
    """Folder, hub id or `.gguf` file of a model to continue from; None: a new model from `preset` or `config`."""
    preset: str | None = None
    """Size preset of a new model: `1m`, `3m`, `10m`, `60m`, `125m`, `350m`, `1b`, `3b`, `7b` (Llama shapes)."""
    architecture: Annotated[str, Needs("a new model: no model.path", lambda model: model.path is None)] = "llama"
    """`transformers` model type of a new model: llama, qwen3, gemma2, gpt2, ..."""
    config: dict[str, Any] = {}
    """Fields of the architecture's configuration, over the preset; with `path`, only those of its positions."""


class TunedModelConfig(PretrainedModelConfig):
    quantize: Annotated[Literal["nf4"] | None, Feature("quantize")] = None
    """Hold the frozen base in 4 bits (QLoRA, Dettmers et al. 2023); needs an adapter, CUDA, bitsandbytes. None: off."""
    dtype: Literal["auto", "fp32"] = "auto"
    """Type of frozen linear layers under an adapter. auto: as they are saved, where `train.precision` computes in 16
    bits and nothing else reads them (SFT, reward models, preferences): the same numbers in half the memory; fp32."""
    neftune_alpha: Annotated[float, Field(gt=0)] | None = None
    """Noise on the embeddings in training, uniform in +-alpha/sqrt(tokens * width) (NEFTune uses 5); None: off."""


class TokenizerConfig(Section):
    path: Annotated[str | None, BY_CONTENT] = None
    """Folder or hub id of the tokenizer; None: that of `model.path`."""
    revision: Annotated[
        str | None, BY_CONTENT, Needs("tokenizer.path on the hub", lambda tokenizer: is_on_hub(tokenizer.path))
    ] = None
    """Commit, tag or branch of the hub tokenizer."""


class TrainConfig(Section):
    steps: Annotated[Positive | None, MAY_CHANGE] = None
    """Optimizer steps of the run; exactly one of `steps` and `epochs` is given."""
    epochs: Annotated[Annotated[float, Field(gt=0)] | None, MAY_CHANGE] = None
    """Passes over the training packs, in place of `steps`: to the nearest pack, the last step being shorter."""
    global_batch_tokens: Positive = 65536
    """Tokens of one optimizer step over all ranks; a multiple of `data.max_seq_len`."""
    microbatch_tokens: Annotated[Positive, MAY_CHANGE] = 16384
    """Tokens of one forward and backward on one rank: as many whole packs as fit."""
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Feature("fp16", ("fp16",)), Feature("bf16", ("bf16",))] = (
        "fp32"
    )
    """Arithmetic of forward and backward; weights and optimizer state stay fp32."""
    compile: Annotated[bool, MAY_CHANGE, Feature("compile")] = False
    """Compile the model with torch.compile: faster on GPUs, minutes of compilation for little on CPUs."""
    activation_checkpointing: Annotated[bool, MAY_CHANGE, Feature("activation_checkpointing")] = False
    """Recompute each layer's activations in backward: less memory, about a third more arithmetic."""
    label_smoothing: Fraction = 0.0
    """Label smoothing (Szegedy et al. 2016, section 7); the logged loss stays plain cross-entropy."""
    z_loss: NonNegative = 0.0
    """Coefficient of log(Z)^2 (PaLM, section 5, uses 1e-4)."""
    ema_decay: Annotated[Fraction | None, Feature("ema")] = None
    """Keep an exponential moving average of the weights, evaluate it and export it; None: off."""
    max_nonfinite_steps: Annotated[Positive, MAY_CHANGE] = 10
    """Stop after this many steps in a row with a non-finite loss or gradient; each is skipped and counted."""
    spike_factor: Annotated[Annotated[float, Field(gt=1)] | None, MAY_CHANGE, Feature("spike rollback")] = None
    """Loss over its running mean from which a run rolls back to its last checkpoint and skips the batch; None: off."""


class OptimConfig(Section):
    name: Annotated[
        Literal["adamw", "muon", "adamw8bit", "paged_adamw8bit"],
        Feature("muon", ("muon",)),
        Feature("8-bit optimizer", ("adamw8bit", "paged_adamw8bit")),
    ] = "adamw"
    """`muon` orthogonalises the updates of hidden matrices; embeddings, head and vectors keep AdamW. The 8-bit forms
    hold AdamW's state in one byte per value (bitsandbytes, CUDA); paged: on the host if memory runs out."""
    lr: Annotated[float, Field(gt=0)] = 6e-4
    """Peak learning rate of AdamW (GPT-3, table 2.1, 125M: 6e-4)."""
    muon_lr: Annotated[float, Field(gt=0), MUON] = 0.02
    """Peak learning rate of Muon's matrices (Jordan et al. 2024: 0.02)."""
    beta1: Fraction = 0.9
    """AdamW's first-moment decay (GPT-3)."""
    beta2: Fraction = 0.95
    """AdamW's second-moment decay (GPT-3)."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon (GPT-3)."""
    momentum: Annotated[Fraction, MUON] = 0.95
    """Muon's Nesterov momentum (Jordan et al. 2024)."""
    weight_decay: NonNegative = 0.1
    """Decoupled L2 weight decay of matrices (GPT-3); norms, biases and embeddings have none."""
    l1: Annotated[NonNegative, Feature("l1")] = 0.0
    """Proximal L1 on the same matrices: after each step weights shrink towards zero by lr * l1."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the gradient's global norm (GPT-3: 1.0); None: off."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "cosine"
    """Learning rate after warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warm-up from zero; None: a twentieth of all steps, at most 2000 (Llama 2 and 3 use 2000)."""
    decay_fraction: Annotated[
        float, Field(gt=0, le=1), Needs("optim.schedule=wsd", lambda optim: optim.schedule == "wsd")
    ] = 0.2
    """Last share of the steps in which `wsd` decays (Hagele et al. 2024: 0.2)."""
    min_lr_ratio: Annotated[
        float, Field(ge=0, le=1), Needs("a schedule that decays", lambda optim: optim.schedule != "constant")
    ] = 0.1
    """Learning rate at the end over its peak (GPT-3: 0.1)."""

    def warmup(self, num_steps: int) -> int:
        """Warm-up steps of a run of so many. Raises ValueError if nothing is left of it."""
        warmup = self.warmup_steps
        if warmup is None:
            warmup = min(int(WARMUP_FRACTION * num_steps), MAX_DEFAULT_WARMUP_STEPS)
        if warmup >= num_steps:
            raise ValueError(f"optim.warmup_steps={warmup} leaves nothing of the run's {num_steps} steps: lower it")
        return warmup


def _answers(evaluation: Any) -> bool:
    return bool(evaluation.samples > 0 or evaluation.before_after > 0)


class EvalConfig(Section):
    every: Annotated[Positive | None, MAY_CHANGE] = 500
    """Steps between evaluations, which also run at the start and the end; None: only there."""
    tokens: Positive | None = None
    """Held-out tokens of an evaluation, in whole packs; None: all."""
    patience: Annotated[Positive | None, MAY_CHANGE] = None
    """Stop after this many evaluations without a lower held-out loss, and export the best checkpoint; None: off."""
    samples: Annotated[int, Field(ge=0), MAY_CHANGE] = 4
    """Held-out prompts answered at each evaluation, always the same ones, kept in `samples.jsonl`; 0: off."""
    sample_tokens: Annotated[Positive, MAY_CHANGE, Needs("eval.samples or eval.before_after", _answers)] = 128
    """Most tokens of such an answer, and at most half of `data.max_seq_len`."""
    tasks: Annotated[list[str], MAY_CHANGE] = []
    """Tasks measured at each evaluation, each as TASK, TASK=FILE or FILE.jsonl (`llmtrain eval --tasks list`)."""
    task_data: Annotated[str | None, MAY_CHANGE, Needs("eval.tasks", lambda evaluation: bool(evaluation.tasks))] = None
    """A file, or a folder with a file per task, for tasks that name none; None: the hub."""
    task_items: Annotated[Positive, MAY_CHANGE, Needs("eval.tasks", lambda evaluation: bool(evaluation.tasks))] = 100
    """How many items of each task, the first ones."""
    task_chat: Annotated[bool, MAY_CHANGE, Needs("eval.tasks", lambda evaluation: bool(evaluation.tasks))] = False
    """Ask the questions of tasks through the chat template, as `llmtrain eval --chat` does; else as plain text."""
    before_after: Annotated[int, Field(ge=0), MAY_CHANGE] = 32
    """Answers to held-out prompts, and pieces of general text, measured before and after training for the model card,
    with the held-out loss and the items of `eval.tasks`; 0: off."""
    general_text: Annotated[
        str | None, MAY_CHANGE, Needs("eval.before_after above 0", lambda evaluation: evaluation.before_after > 0)
    ] = None
    """File or folder of texts whose loss is measured before and after training: what the model forgets; None: off."""


class CheckpointConfig(Section):
    every: Positive | None = 500
    """Steps between checkpoints; one is also written at the end and on SIGTERM or SIGUSR1. None: only then."""
    keep: Positive = 2
    """How many of the newest checkpoints are kept; the best one is kept as well if `best` is on."""
    best: Annotated[bool, Feature("best checkpoint")] = False
    """Also keep the checkpoint with the lowest held-out loss; saved at each evaluation that improves."""
    export_best: Annotated[bool, MAY_CHANGE] = False
    """Export the best checkpoint's weights to `model/` instead of the last; needs `best`."""
    export_dtype: Annotated[Literal["auto", "fp32", "bf16", "fp16"], MAY_CHANGE] = "auto"
    """Type of exported weights. auto: that of the model that the run starts from; of a new model, bf16 if it was
    trained in it, else fp32."""


class LogConfig(Section):
    every: Positive = 10
    """Steps between rows of `metrics.jsonl` and lines of the log."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []
    """Trackers that get the same rows, through accelerate."""
    project: Annotated[str, Needs("log.trackers", lambda log: bool(log.trackers))] = "llmtrain"
    """Project name given to the trackers."""
    profile: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """First and last step of a torch.profiler trace, written to `profile/` in the run folder; None: off."""
    report: bool = True
    """Write `report.html` into the run folder at the end: what the run did, on one page; needs `llmtrain[report]`."""


def iter_keys(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of a schema with its field, depth first in the order of definition."""
    for name, field in schema.model_fields.items():
        inner = section_of(field)
        if inner is not None:
            yield from iter_keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def section_of(field: FieldInfo) -> type[Section] | None:
    """The schema of a field that is a section; None: it is a key."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def elements_of(field: FieldInfo) -> type[Section] | None:
    """The schema of the elements of a field that is a list of sections; None: it is none."""
    for annotation in (field.annotation, *get_args(field.annotation)):
        for element in get_args(annotation) if get_origin(annotation) is list else ():
            if isinstance(element, type) and issubclass(element, Section):
                return element
    return None


def marks_on_resume(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, OnResume]]:
    """Every dotted key, or whole section, that may differ when a run is continued; `data.train[].path` in a list."""
    for name, field in schema.model_fields.items():
        marks = [mark for mark in field.metadata if isinstance(mark, OnResume)]
        inner, element = section_of(field), elements_of(field)
        yield from ((f"{prefix}{name}", mark) for mark in marks)
        if inner is not None and not marks:
            yield from marks_on_resume(inner, f"{prefix}{name}.")
        if element is not None and not marks:
            yield from marks_on_resume(element, f"{prefix}{name}[].")
