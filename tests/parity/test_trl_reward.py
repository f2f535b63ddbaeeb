"""The reward model beside TRL's RewardTrainer: the same pairs give the same loss and the same gradients.

Ours hold the prompt of a pair once or twice, TRL's always twice.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_chat import write_model
from tiny_pairs import pairs, write_pairs
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from llmtrain.batch import PreferencePairs
from llmtrain.config.rl import PreferenceDataConfig
from llmtrain.config.sections import TunedModelConfig
from llmtrain.data.chat.encode import ChatEncoder
from llmtrain.data.packing.pairs import collate_pairs, pack_pairs
from llmtrain.data.store.kinds import build_pair_stores
from llmtrain.models.folders.kind import REWARD
from llmtrain.models.folders.model import ExportSpec, export_model
from llmtrain.models.load import load_pretrained
from llmtrain.models.wrappers.checks import wrap_reward_model
from llmtrain.models.wrappers.reward_model import RewardModel, pooling_pad_id, score_model
from llmtrain.objectives.reward import PairwiseReward

# Of TRL and what it calls.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NUM_PAIRS, MAX_SEQ_LEN = 6, 2048
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[RewardModel, dict[bool, PreferencePairs], Path]:
    """Our model, one batch of pairs by whether they share prompts, and the folder of the model as others load it."""
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = AutoTokenizer.from_pretrained(write_model(folder / "base"))
    encoder = ChatEncoder(tokenizer, plain=False, loss_on="completion")
    config = TunedModelConfig(path=str(folder / "base"))
    causal = load_pretrained(config, tokenizer, max_seq_len=128)
    pad = pooling_pad_id(tokenizer, encoder.end_of_turn_ids)
    module = wrap_reward_model(
        score_model(causal, config, pad_token_id=pad, seed=0), "segments", 128, torch.device("cpu")
    )
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    export_model(folder / "model", weights, "", ExportSpec(module.model.config, tokenizer, REWARD))
    data = PreferenceDataConfig.model_validate(
        {
            "train": str(write_pairs(folder / "pairs.jsonl", seed=4, num_pairs=NUM_PAIRS)),
            "eval_fraction": 0.0,
            "max_seq_len": MAX_SEQ_LEN,
            "cache_dir": str(folder / "cache"),
        }
    )
    stores = build_pair_stores(data, encoder, report=lambda line: None)
    (store,) = stores.train
    batches = {
        shared: collate_pairs([(0, pack_pairs(store, MAX_SEQ_LEN, share_prompts=shared).pack(0))])
        for shared in (True, False)
    }
    return module, batches, folder / "model"


def theirs(folder: Path, scratch: Path, batch: PreferencePairs, centering: float | None) -> tuple[Tensor, Any]:
    """TRL's loss of the same pairs, and the model with its gradients."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32),
        args=RewardConfig(
            output_dir=str(scratch),
            per_device_train_batch_size=NUM_PAIRS,
            center_rewards_coefficient=centering,
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            max_length=None,
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "chosen": [
                        {"role": "user", "content": row["prompt"]},
                        {"role": "assistant", "content": row["chosen"]},
                    ],
                    "rejected": [
                        {"role": "user", "content": row["prompt"]},
                        {"role": "assistant", "content": row["rejected"]},
                    ],
                }
                for row in pairs(seed=4, num_pairs=NUM_PAIRS)
            ]
        ),
        processing_class=tokenizer,
    )
    laid = list(zip(batch.prefix_lengths, batch.segment_lengths[::2], batch.segment_lengths[1::2], strict=True))
    parts = [part.tolist() for part in batch.input_ids.split([length for pair in laid for length in pair])]
    sides = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    rows = [{"chosen_ids": prefix + chosen, "rejected_ids": prefix + rejected} for prefix, chosen, rejected in sides]
    if batch.margins is not None:
        rows = [row | {"margin": margin} for row, margin in zip(rows, batch.margins.tolist(), strict=True)]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    return loss.detach(), trainer.model


@pytest.mark.parametrize("shared", [True, False], ids=["once", "twice"])
@pytest.mark.parametrize(("centering", "margin"), [(0.0, False), (0.05, False), (0.0, True)])
def test_loss_and_gradients_are_those_of_trl(
    ours: tuple[RewardModel, dict[bool, PreferencePairs], Path],
    tmp_path: Path,
    centering: float,
    margin: bool,
    shared: bool,
) -> None:
    module, batches, folder = ours
    batch = batches[shared]
    if margin:
        batch = replace(batch, margins=torch.linspace(-1, 2, NUM_PAIRS))
    assert any(batch.prefix_lengths) == shared
    objective = PairwiseReward(margin=margin, centering=centering)
    module.zero_grad()
    share, _ = objective.loss(module, batch, dict(objective.counts(batch)))
    share.backward()
    expected, model = theirs(folder, tmp_path, batch, centering or None)
    assert float(share.detach()) == pytest.approx(float(expected), abs=TOLERANCE)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in module.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=TOLERANCE, msg=name)
