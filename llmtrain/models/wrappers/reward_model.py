"""A reward model: a causal trunk with a scalar head, packed conversations in, a score for each out.

    score = w . h,   h the last hidden state of a conversation's last token, which ends its last answer

The trunk comes from any causal model, with an adapter or without, so that policy, reference and reward model can
share one base. The model is `transformers`' own for sequence classification, with one label.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.batch import PackedTokens, PreferencePairs, segment_ends
from llmtrain.config.sections import PretrainedModelConfig
from llmtrain.models.folders.classes import reward_class, scores_here_only
from llmtrain.models.heads.score import SCORE, ScoreHead
from llmtrain.models.param_kinds import parameters_by_kind
from llmtrain.models.paths.path import Path
from llmtrain.models.text_part import require_trunk
from llmtrain.models.trunk import layer_classes, pack_inputs, run_trunk
from llmtrain.models.unreached import Unreached
from llmtrain.protocols import ParamKind, TrainedModule
from llmtrain.system.device import AttentionKernel
from llmtrain.system.files import one_line


class RewardModel(TrainedModule):
    """The one module that is trained: packed conversations in, a score for each out."""

    def __init__(
        self, model: PreTrainedModel, kernel: AttentionKernel, label: int = 0, path: Path | None = None
    ) -> None:
        """`label`: the one of several whose score is taken; `path`: that the model is on, None for packs."""
        super().__init__()
        self.model, self._label = model, label
        self._no_split_modules = layer_classes(model)  # what FSDP shards layer by layer
        self.kernel: AttentionKernel = kernel
        self.path = path or Path(kernel)
        self.unreached = Unreached()

    def trunks(self) -> list[PreTrainedModel]:
        return [self.model]

    def parameters_by_kind(self) -> dict[ParamKind, list[nn.Parameter]]:
        return parameters_by_kind(self.model, self.unreached.ids)

    def facts(self) -> dict[str, str | bool]:
        return {"attention": self.kernel, "path": self.path.line, "unreached": self.unreached.line}

    def forward(self, batch: PreferencePairs | PackedTokens) -> Float[Tensor, " segments"]:
        """The score of each document, at its last token: the last of a segment."""
        hidden = run_trunk(self.model.base_model, pack_inputs(batch, self.kernel))
        scores: Tensor = self.model.get_submodule(SCORE)(hidden[segment_ends(batch).to(hidden.device)])
        return scores[:, self._label]


def score_model(
    causal: PreTrainedModel, config: PretrainedModelConfig, *, pad_token_id: int, seed: int
) -> PreTrainedModel:
    """A model for sequence classification with one label around a causal model's trunk, an adapter in it included.

    Its head is that of the checkpoint, if that is a reward model already, else drawn from `seed` with standard
    deviation 1 / sqrt(width + 1) (Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO").
    `causal` is used up. Raises ValueError for an architecture without such a form, and for a classifier.
    """
    shape = causal.config
    is_reward_model = any(name.endswith("ForSequenceClassification") for name in shape.architectures or ())
    if is_reward_model and shape.num_labels != 1:
        raise ValueError(f"model.path={config.path}: a classifier with {shape.num_labels} labels is not a reward model")
    require_trunk(causal)
    shape.num_labels, shape.pad_token_id = 1, pad_token_id
    shape.get_text_config().pad_token_id = pad_token_id
    try:
        with torch.device("meta"):
            model: PreTrainedModel = reward_class(shape).from_config(
                shape,
                attn_implementation=causal.config._attn_implementation,
                trust_remote_code=config.trust_remote_code,
            )
    except ValueError as error:
        raise ValueError(f"{shape.model_type} has no form for sequence classification: {one_line(error)}") from None
    if type(model.base_model) is not type(causal.base_model):
        raise ValueError(
            f"{shape.model_type}: its form for sequence classification is around {type(model.base_model).__name__}, "
            f"its language model around {type(causal.base_model).__name__}"
        )
    if not isinstance(dict(model.named_children()).get(SCORE), nn.Linear):
        raise ValueError(f"{shape.model_type}: its form for sequence classification has no head named {SCORE}")
    width = shape.get_text_config().hidden_size
    head = ScoreHead(width, 1, bias=False)
    with torch.no_grad():
        if is_reward_model:
            head.weight.copy_(_trained_head(config, str(shape.name_or_path)))
        else:
            head.weight.normal_(std=(width + 1) ** -0.5, generator=torch.Generator().manual_seed(seed))
    model.add_module(model.base_model_prefix, causal.base_model)
    model.add_module(SCORE, head.to(causal.device))
    model.config = shape  # one configuration, which also says which attention the trunk uses
    return model.train(causal.training)


def loading_note(shape: PreTrainedConfig) -> str | None:
    """One line on who loads a reward model of this family, if it is not everyone with transformers."""
    if not scores_here_only(shape):
        return None
    return (
        f"transformers has no class for a reward model of {shape.model_type}: its folder loads with llmtrain, "
        "which has one (README.md in it says how)"
    )


def pooling_pad_id(tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> int:
    """The padding token of a reward model: one that never ends a conversation.

    `transformers` scores the last token that is not padding. Many chat models pad with the end-of-turn token: then it
    would score the token before. Raises ValueError if the tokenizer has no other.
    """
    special = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    by_name = sorted(special, key=lambda id_: ("pad" not in special[id_].lower(), id_ == tokenizer.bos_token_id, id_))
    for token_id in (tokenizer.pad_token_id, tokenizer.unk_token_id, *by_name):
        if token_id is not None and token_id not in stop_ids:
            return int(token_id)
    raise ValueError(
        "the tokenizer has no special token but those that end an answer, and a reward model needs one more for "
        "padding: set data.chat_template=ours, or tokenizer.path to a tokenizer with a padding token of its own"
    )


def _trained_head(config: PretrainedModelConfig, path: str) -> Float[Tensor, "1 hidden"]:
    """The head's weights of a checkpoint that is a reward model."""
    shape = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    model = reward_class(shape).from_pretrained(
        path,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        dtype=torch.float32,
    )
    weight: Tensor = model.get_submodule(SCORE).weight
    return weight.detach()
