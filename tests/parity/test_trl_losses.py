"""Losses and advantages beside TRL's own trainers: its padded batch through a tiny model, and ours without padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_chat import write_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)

from llmtrain.objectives.advantages import group_mean, leave_one_out
from llmtrain.objectives.policy_losses import AGGREGATIONS, POLICY_LOSS_FUNCTIONS, PolicyTokens, kl_loss
from llmtrain.objectives.preference_losses import (
    PAIR_LOSS_FUNCTIONS,
    PairLogprobs,
    PreferenceOptions,
    bradley_terry,
    kto,
)

# Of TRL and what it calls.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

TOLERANCE = 1e-5
PROMPTS = ["ab", "hello", "c d e", "why"]
CHOSEN = [" yes", " a longer answer", " no", " because"]
REJECTED = [" maybe not", " n", " nobody knows", " b"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base"), chat=False)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """The options of every trainer here: all rows in one batch, in turn, on the CPU."""
    return {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": len(PROMPTS),
        "train_sampling_strategy": "sequential",
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }


def tokenizer_of(base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base)


def causal_lm(base: Path, seed: int) -> PreTrainedModel:
    """The base's model with weights so far from those of other seeds that log ratios are of the order of one."""
    return shaken(AutoModelForCausalLM.from_pretrained(base), seed)


def shaken(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def answer_logprobs(model: nn.Module, ids: Tensor, first: int) -> Tensor:
    """Logprobs of the tokens from `first` on, of one sequence alone."""
    logits = model(input_ids=ids[None]).logits[0, :-1]
    return logits.log_softmax(-1).gather(-1, ids[1:, None])[first - 1 :, 0]


def padded_answers(model: nn.Module, batch: dict[str, Tensor], prefix: str = "") -> tuple[Tensor, Tensor]:
    """The summed logprob and the length of each answer of a right-padded batch of TRL's."""
    rows = zip(*(batch[f"{prefix}{name}"] for name in ("input_ids", "attention_mask", "completion_mask")), strict=True)
    answers = []
    for ids, seen, trained in rows:
        first = int(trained.nonzero()[0])
        answers.append(answer_logprobs(model, ids[seen.bool()], first))
    return torch.stack([logprobs.sum() for logprobs in answers]), torch.tensor([float(len(a)) for a in answers])


def only_batch(trainer: Any) -> dict[str, Tensor]:
    (batch,) = trainer.get_train_dataloader()
    return batch


@pytest.mark.parametrize("centering", [None, 0.01])
def test_the_reward_loss_is_that_of_trl(base: Path, settings: dict[str, Any], centering: float | None) -> None:
    rows = {"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED, "margin": [0.5, 0.0, -0.2, 1.0]}
    model = shaken(AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), seed=1)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**settings, center_rewards_coefficient=centering),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer_of(base),
    )
    batch = only_batch(trainer)
    theirs = trainer.compute_loss(trainer.model.eval(), dict(batch))
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    scores = torch.stack([model(input_ids=ids[seen.bool()][None]).logits[0, 0] for ids, seen in pairs])
    chosen, rejected = scores.chunk(2)
    losses = bradley_terry(chosen, rejected, margins=batch["margin"], centering=centering or 0.0)
    assert losses.sum().item() / len(PROMPTS) == pytest.approx(theirs.item(), abs=TOLERANCE)


def dpo_trainer(base: Path, settings: dict[str, Any], num_pairs: int, **options: Any) -> DPOTrainer:
    rows = {"prompt": PROMPTS[:num_pairs], "chosen": CHOSEN[:num_pairs], "rejected": REJECTED[:num_pairs]}
    return DPOTrainer(
        model=causal_lm(base, seed=1),
        ref_model=causal_lm(base, seed=2),
        args=DPOConfig(**settings, **options),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer_of(base),
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "label_smoothing", "num_pairs"),
    [
        ("dpo", "sigmoid", 0.0, 4),
        ("ipo", "ipo", 0.0, 4),
        # TRL's sigmoid loss takes no label smoothing. Its AOT loss does, and that of one pair is cDPO's.
        ("cdpo", "aot", 0.2, 1),
    ],
)
def test_a_loss_over_pairs_is_that_of_trl(
    base: Path, settings: dict[str, Any], ours: str, theirs: str, label_smoothing: float, num_pairs: int
) -> None:
    options = {"beta": 0.3, "label_smoothing": label_smoothing}
    trainer = dpo_trainer(base, settings, num_pairs, loss_type=[theirs], **options)
    batch = only_batch(trainer)
    with torch.no_grad():
        expected = trainer.compute_loss(trainer.model.eval(), dict(batch))
        logprobs, lengths = padded_answers(trainer.model, batch)
        ref_logprobs, _ = padded_answers(trainer.ref_model, batch)
    pairs = PairLogprobs(*logprobs.chunk(2), *ref_logprobs.chunk(2), *lengths.chunk(2))
    losses = PAIR_LOSS_FUNCTIONS[ours](pairs, PreferenceOptions(**options)).losses
    assert losses.sum().item() / num_pairs == pytest.approx(expected.item(), abs=TOLERANCE)


def test_the_kto_loss_is_that_of_trl(base: Path, settings: dict[str, Any]) -> None:
    rows = {"prompt": PROMPTS, "completion": CHOSEN, "label": [True, False, True, True]}
    weights = {"desirable_weight": 0.8, "undesirable_weight": 1.5}
    trainer = KTOTrainer(
        model=causal_lm(base, seed=1),
        ref_model=causal_lm(base, seed=2),
        args=KTOConfig(**settings, beta=0.3, **weights),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer_of(base),
    )
    batch = only_batch(trainer)
    with torch.no_grad():
        expected = trainer.compute_loss(trainer.model.eval(), dict(batch))
        (logprobs, _), (ref_logprobs, _) = (padded_answers(m, batch) for m in (trainer.model, trainer.ref_model))
        (mixed, _), (ref_mixed, _) = (padded_answers(m, batch, "KL_") for m in (trainer.model, trainer.ref_model))
    kl = (mixed - ref_mixed).mean().clamp(min=0)
    losses, _ = kto(logprobs - ref_logprobs, batch["label"], kl, beta=0.3, **weights)
    assert losses.sum().item() / len(PROMPTS) == pytest.approx(expected.item(), abs=TOLERANCE)


PROMPT_LENGTHS, RESPONSE_LENGTHS = (3, 3, 6, 6), (5, 2, 4, 7)
MAX_RESPONSE_TOKENS = 9


def grpo_trainer(base: Path, settings: dict[str, Any], rewards: Sequence[float] = (), **options: Any) -> GRPOTrainer:
    return GRPOTrainer(
        model=causal_lm(base, seed=1),
        reward_funcs=lambda **columns: list(rewards),
        args=GRPOConfig(**settings, num_generations=2, max_completion_length=MAX_RESPONSE_TOKENS, **options),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer_of(base),
    )


def recorded_experience(model: nn.Module, advantages: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Prompts with responses, and the batch TRL makes of them: old and reference logprobs lie around the policy's."""
    generator = torch.Generator().manual_seed(0)
    sequences = [
        torch.randint(0, 256, (prompt + response,), generator=generator)
        for prompt, response in zip(PROMPT_LENGTHS, RESPONSE_LENGTHS, strict=True)
    ]
    longest_prompt, longest = max(PROMPT_LENGTHS), max(RESPONSE_LENGTHS)
    batch = {name: torch.zeros(4, longest_prompt, dtype=torch.long) for name in ("prompt_ids", "prompt_mask")}
    batch |= {name: torch.zeros(4, longest, dtype=torch.long) for name in ("completion_ids", "completion_mask")}
    batch |= {name: torch.zeros(4, longest) for name in ("old_per_token_logps", "ref_per_token_logps")}
    for row, (ids, prompt, response) in enumerate(zip(sequences, PROMPT_LENGTHS, RESPONSE_LENGTHS, strict=True)):
        batch["prompt_ids"][row, longest_prompt - prompt :] = ids[:prompt]
        batch["prompt_mask"][row, longest_prompt - prompt :] = 1
        batch["completion_ids"][row, :response] = ids[prompt:]
        batch["completion_mask"][row, :response] = 1
        with torch.no_grad():
            logprobs = answer_logprobs(model, ids, prompt)
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            batch[name][row, :response] = logprobs + 0.4 * torch.randn(response, generator=generator)
    batch["advantages"], batch["num_items_in_batch"] = advantages, torch.tensor(float(sum(RESPONSE_LENGTHS)))
    return sequences, batch


@pytest.mark.parametrize(
    ("loss", "aggregation", "clips", "theirs"),
    [
        ("ppo", "sequence_mean", (0.2, 0.2), {"loss_type": "grpo"}),
        ("ppo", "sequence_mean", (0.2, 0.2), {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False}),
        ("ppo", "token_mean", (0.2, 0.28), {"loss_type": "dapo", "epsilon_high": 0.28}),
        ("ppo", "constant_length", (0.2, 0.2), {"loss_type": "dr_grpo"}),
        ("gspo", "sequence_mean", (0.05, 0.1), {"loss_type": "grpo", "epsilon": 0.05, "epsilon_high": 0.1}),
        # TRL's bound is that of the weight itself, ours is its distance to one.
        ("cispo", "token_mean", (1.0, 0.2), {"loss_type": "cispo", "epsilon_high": 1.2}),
    ],
    ids=["grpo", "grpo with kl", "dapo", "dr_grpo", "gspo", "cispo"],
)
def test_a_policy_loss_and_its_gradient_are_those_of_trl(
    base: Path,
    settings: dict[str, Any],
    loss: str,
    aggregation: str,
    clips: tuple[float, float],
    theirs: dict[str, Any],
) -> None:
    level = "sequence" if loss == "gspo" else "token"
    trainer = grpo_trainer(base, settings, importance_sampling_level=level, **theirs)
    model = trainer.model.eval()
    advantages = torch.tensor([0.7, -1.1, -0.4, 1.3])
    sequences, batch = recorded_experience(model, advantages)
    parameters = list(model.parameters())
    expected = trainer.compute_loss(model, batch)
    expected_gradients = torch.autograd.grad(expected, parameters)

    given = batch["completion_mask"].bool()
    logprobs = torch.cat([answer_logprobs(model, i, p) for i, p in zip(sequences, PROMPT_LENGTHS, strict=True)])
    old_logprobs, ref_logprobs = batch["old_per_token_logps"][given], batch["ref_per_token_logps"][given]
    by_token = advantages.repeat_interleave(torch.tensor(RESPONSE_LENGTHS))
    losses, clipped = POLICY_LOSS_FUNCTIONS[loss](
        PolicyTokens(logprobs, old_logprobs, by_token, RESPONSE_LENGTHS), *clips
    )
    losses = losses + theirs.get("beta", 0.0) * kl_loss(logprobs, ref_logprobs, "k3")
    totals = {"tokens": float(sum(RESPONSE_LENGTHS)), "sequences": float(len(RESPONSE_LENGTHS))}
    share = AGGREGATIONS[aggregation](losses, RESPONSE_LENGTHS, totals, MAX_RESPONSE_TOKENS)

    assert clipped.any() and not clipped.all()
    assert share.item() == pytest.approx(expected.item(), abs=TOLERANCE)
    for gradient, other in zip(torch.autograd.grad(share, parameters), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=TOLERANCE)


def generated(trainer: Any) -> dict[str, Any]:
    """What a trainer makes of two prompts with two responses each."""
    trainer.model.eval()
    return trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS[:2] for _ in range(2)])


@pytest.mark.parametrize(("scale_rewards", "normalise"), [("group", True), ("none", False)])
def test_the_advantage_over_a_group_is_that_of_trl(
    base: Path, settings: dict[str, Any], scale_rewards: str, normalise: bool
) -> None:
    rewards = [0.3, 1.0, -0.5, -0.4]
    trainer = grpo_trainer(base, settings, rewards, scale_rewards=scale_rewards)
    advantages = group_mean(torch.tensor(rewards), 2, normalise)
    torch.testing.assert_close(advantages, generated(trainer)["advantages"], rtol=0, atol=TOLERANCE)


def test_the_advantage_over_the_others_is_that_of_trl(base: Path, settings: dict[str, Any]) -> None:
    rewards = [0.3, 1.0, -0.5, -0.4]
    trainer = RLOOTrainer(
        model=causal_lm(base, seed=1),
        reward_funcs=lambda **columns: rewards,
        args=RLOOConfig(**settings, num_generations=2, max_completion_length=MAX_RESPONSE_TOKENS, beta=0.0),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer_of(base),
    )
    advantages = leave_one_out(torch.tensor(rewards), 2)
    torch.testing.assert_close(advantages, generated(trainer)["advantages"], rtol=0, atol=TOLERANCE)
