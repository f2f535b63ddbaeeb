"""TRL's side of `ppo.py`, set up as one who knows it would; run by the Python of an environment with TRL 1.12.

    python benchmarks/ppo_peer.py full|lora SETTING.json

PPOTrainer with SDPA, AdamW (fused), fp32, no gradient checkpointing, no sample generations, nothing saved or reported,
on the prompts and models of `ppo_inputs.py`. `full`: policy and value model are trained whole, the reference is a copy;
`lora`: the policy has an adapter and is its own reference without it, the value model is trained whole, since the
trainer knows no other. The last line is JSON: the clock after each update.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trl_settings import ON_A_CPU


def train(setting: dict[str, Any], inputs: Path, has_adapter: bool, folder: str) -> dict[str, Any]:
    """A run of PPOTrainer."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            seconds.append(time.perf_counter())

    def loaded(kind: Any, path: str | Path) -> Any:
        return kind.from_pretrained(path, attn_implementation="sdpa", dtype=torch.float32)

    tokenizer = AutoTokenizer.from_pretrained(inputs / "tokenizer")
    lines = (inputs / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    microbatch = setting["peer_microbatch"]
    lora = LoraConfig(
        r=setting["rank"], lora_alpha=setting["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=microbatch,
            gradient_accumulation_steps=setting["episodes"] // microbatch,
            num_mini_batches=1,
            num_ppo_epochs=setting["epochs"],
            total_episodes=setting["episodes"] * setting["updates"],
            local_rollout_forward_batch_size=setting["episodes"],
            response_length=setting["response_tokens"],
            stop_token=None,
            temperature=1.0,
            kl_coef=setting["kl_coef"],
            learning_rate=setting["lr"],
            num_sample_generations=0,
            **ON_A_CPU,
            logging_steps=1,
        ),
        processing_class=tokenizer,
        model=loaded(AutoModelForCausalLM, setting["model"]),
        ref_model=None,
        reward_model=loaded(AutoModelForSequenceClassification, inputs / "reward"),
        value_model=loaded(AutoModelForSequenceClassification, inputs / "reward"),
        train_dataset=Dataset.from_list([{"input_ids": json.loads(line)["input_ids"]} for line in lines]),
        peft_config=lora if has_adapter else None,
        callbacks=[Clock()],
    )
    trainer.train()
    return {"seconds": seconds}


def main() -> None:
    kind, path = sys.argv[1:]
    setting = json.loads(Path(path).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(train(setting, Path(path).parent, kind == "lora", folder)))


if __name__ == "__main__":
    main()
