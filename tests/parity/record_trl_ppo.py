"""What TRL 1.12's own PPOTrainer computes on small experiences, for `test_trl_ppo.py`; run by hand, once.

    python -m venv trl112 && trl112/bin/pip install trl==1.12.0 pandas -c constraints-without-trl.txt
    trl112/bin/python tests/parity/record_trl_ppo.py tests/parity/trl_ppo_1_12.json

TRL 1.12 is the last release with PPO and cannot share an environment with our TRL. Its trainer runs unmodified: one
update of a Llama of a few hundred random weights; what is written are variables of its `train` at two moments: where it
whitens the advantages, and at each backward. Nothing is computed here. The models are not needed again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy
import torch
import trl
from datasets import Dataset
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

VOCABULARY, PAD, STOP = 12, 0, 1
PROMPTS = [[5, 3], [7, 2, 9], [4, 4, 8, 6], [10], [11, 2], [3, 9, 5]]
RESPONSE_TOKENS = 8
SEED = 22  # of the draws: responses that stop early and late, and none that draws padding
GAE_LAMBDA, KL_COEF, CLIP, VALUE_CLIP = 0.9, 0.2, 0.1, 0.1

EXPERIENCE = {  # of `train`, where it whitens: name here -> name there
    "responses": "responses",
    "sequence_lengths": "sequence_lengths",  # of a response, less one
    "padding_mask": "padding_mask",
    "padding_mask_p1": "padding_mask_p1",
    "logprobs": "logprobs",
    "ref_logprobs": "ref_logprobs",
    "values": "values",
    "scores": "scores",
    "kl": "kl",
    "rewards": "rewards",
    "raw_advantages": "advantages",
    "returns": "returns",
}
UPDATE = {  # of `train`, at a backward
    "indices": "micro_batch_inds",
    "new_logprobs": "new_logprobs",
    "new_values": "vpred",
    "ratio": "ratio",
    "advantages": "mb_advantage",
    "policy_loss": "pg_loss",
    "value_loss": "vf_loss",
    "value_clip_fraction": "vf_clipfrac",
    "loss": "loss",
}


@dataclass(frozen=True)
class Tokens:
    """All that the trainer asks of a tokenizer."""

    pad_token_id: int
    eos_token_id: int


def model_of(kind: type, seed: int, pad_token_id: int) -> Any:
    """A Llama so small and so spread that its distributions and values differ everywhere."""
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        num_labels=1,
        pad_token_id=pad_token_id,
        eos_token_id=STOP,
        bos_token_id=None,
        attn_implementation="eager",
    )
    model = kind(shape)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.6)
    return model


def record(
    *, stop_token: str | None, kl_estimator: str, microbatch: int, pad_token_id: int = PAD, copies: int = 1
) -> dict[str, Any]:
    """One update of three passes: the experience, and each microbatch of each pass.

    The data holds the prompts `copies` times; once, the update's batch is also the last one of an epoch.
    """
    policy, reference = (model_of(LlamaForCausalLM, seed, pad_token_id) for seed in (1, 2))
    reward, value = (model_of(LlamaForSequenceClassification, seed, pad_token_id) for seed in (3, 4))
    width = max(map(len, PROMPTS))
    experience: dict[str, Any] = {}
    updates: list[dict[str, Any]] = []

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        padded = [[pad_token_id] * (width - len(row["input_ids"])) + row["input_ids"] for row in rows]
        return {"input_ids": torch.tensor(padded)}

    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder,
                per_device_train_batch_size=microbatch,
                gradient_accumulation_steps=len(PROMPTS) // microbatch,
                num_ppo_epochs=3,
                total_episodes=len(PROMPTS),
                response_length=RESPONSE_TOKENS,
                stop_token=stop_token,
                temperature=1.0,
                kl_estimator=kl_estimator,
                kl_coef=KL_COEF,
                lam=GAE_LAMBDA,
                cliprange=CLIP,
                cliprange_value=VALUE_CLIP,
                learning_rate=0.01,
                seed=SEED,
                num_sample_generations=0,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            processing_class=Tokens(pad_token_id, STOP),
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_list([{"input_ids": prompt} for prompt in PROMPTS * copies]),
            data_collator=collate,
        )
        whiten, backward, log = ppo_trainer.masked_whiten, trainer.accelerator.backward, trainer.log
        metrics: dict[str, float] = {}

        def whitening(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
            whitened = whiten(values, mask, shift_mean)
            experience.update(seen(sys._getframe(1), EXPERIENCE), whitened=plain(whitened))
            return whitened

        def going_backward(loss: Tensor) -> None:
            updates.append(seen(sys._getframe(1), UPDATE))
            backward(loss)

        def logging(values: dict[str, float]) -> None:
            metrics.update({name: value for name, value in values.items() if name.startswith(("policy/", "val/clip"))})
            log(values)

        ppo_trainer.masked_whiten = whitening
        trainer.accelerator.backward = going_backward
        trainer.log = logging
        numpy.random.seed(0)  # the order of episodes within a pass
        trainer.train()
        ppo_trainer.masked_whiten = whiten
    return {
        "kl_estimator": kl_estimator,
        "kl_coef": KL_COEF,
        "gae_lambda": GAE_LAMBDA,
        "clip": CLIP,
        "value_clip": VALUE_CLIP,
        "value_coef": trainer.args.vf_coef,
        "experience": experience,
        "updates": updates,
        "metrics": metrics,
    }


def seen(frame: FrameType, names: dict[str, str]) -> dict[str, Any]:
    """Local variables of the trainer's `train`."""
    assert frame.f_code.co_name == "train", frame.f_code.co_name
    return {name: plain(frame.f_locals[there]) for name, there in names.items()}


def plain(value: Any) -> Any:
    """A tensor or array as JSON has it, with the digits that distinguish fp32 numbers."""
    if isinstance(value, Tensor | numpy.ndarray):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(item) for item in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def main() -> None:
    assert trl.__version__ == "1.12.0", trl.__version__
    whole = len(PROMPTS)
    recorded = {
        "stopped": record(stop_token="eos", kl_estimator="k1", microbatch=whole),
        "full_length": record(stop_token=None, kl_estimator="k3", microbatch=whole),
        "microbatches": record(stop_token="eos", kl_estimator="k1", microbatch=2, copies=2),
        "last_batch": record(stop_token="eos", kl_estimator="k1", microbatch=2),
        "pad_is_stop": record(stop_token="eos", kl_estimator="k1", microbatch=whole, pad_token_id=STOP),
    }
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(json.dumps({"trl": trl.__version__, "stop_token_id": STOP, **recorded}) + "\n")


if __name__ == "__main__":
    main()
