"""What one process of the policy engine tests does: updates on recorded experience, for every placement of the roles.

Writes the trained states (`KIND.safetensors`), what each rank read in between (`KIND_read_RANK.safetensors`) and what
it saw (`seen.json`) into the folder given. One process trains on the experience of both ranks, and once more on the
mean of microbatch means (`mean_of_means.safetensors`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, LlamaConfig

from llmtrain.batch import Experience, PackedTokens
from llmtrain.config.recipes import PolicyStageConfig
from llmtrain.models.attention import ATTENTION
from llmtrain.models.folders.continued import AdapterPlan
from llmtrain.models.wrappers.actor_critic import ActorCritic
from llmtrain.models.wrappers.roles import build_roles
from llmtrain.objectives.policy import PolicyObjective
from llmtrain.rollout.engine import Generated, Sampling
from llmtrain.rollout.local.generate import generate
from llmtrain.rollout.packing import Episode, ResponseFields, as_experience, pack_episodes
from llmtrain.train.optim import make_optimizer
from llmtrain.train.runtime import Runtime

STEPS, VOCAB = 3, 48
RESPONSE_TOKENS = ((25, 5), (4, 1))  # by rank of two, by microbatch: 5:1 and more between any two
NUM_READ = (3, 1)  # packs that each rank reads between steps: ranks that do not call the model equally often
NEW_TOKENS = (3, 20)  # of the responses that each rank draws between steps: they end at different lengths
FULL, LORA = {"kind": "none"}, {"kind": "lora", "rank": 4, "alpha": 32}
KINDS: dict[str, dict[str, Any]] = {
    "full_head": {"adapter": FULL, "policy": {"critic": "head"}},
    "full_separate": {"adapter": FULL, "policy": {"critic": "separate"}},
    "lora_head": {"adapter": LORA, "policy": {"critic": "head"}},
    "lora_separate": {"adapter": LORA, "policy": {"critic": "separate"}},
}
SHAPE = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    tie_word_embeddings=True,
    use_cache=False,
)


def configured(kind: str) -> PolicyStageConfig:
    """A stage whose loss has every term: surrogate, critic, KL, entropy."""
    sections = KINDS[kind]
    policy = {"kl_placement": "loss", "kl_estimator": "k3", "entropy_coef": 0.01, "critic_lr": 2e-3} | sections[
        "policy"
    ]
    return PolicyStageConfig.model_validate(
        {
            "run": {"dir": "unused"},
            "model": {"path": "unused"},
            "data": {"train": "unused", "max_seq_len": 64},
            "adapter": sections["adapter"],
            "policy": policy,
            "rollout": {"rewards": ["unused"], "max_new_tokens": 32},
            "train": {"steps": STEPS, "microbatch_tokens": 64},
            "optim": {"lr": 1e-3, "max_grad_norm": 0.5},
        }
    )


def pack_of(step: int, owner: int, number: int) -> tuple[PackedTokens, list[Episode]]:
    """One episode of a rank's microbatch."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * owner + number)
    ids = torch.randint(0, VOCAB, (3 + RESPONSE_TOKENS[owner][number],), generator=generator).tolist()
    episodes = [Episode(10 * owner + number, tuple(ids[:3]), Generated(ids[3:], [], True))]
    return pack_episodes(episodes), episodes


def recorded(step: int, owner: int, number: int) -> Experience:
    """A microbatch of experience as it was recorded, with ratios and values on both sides of what clips them."""
    packed, episodes = pack_of(step, owner, number)
    generator = torch.Generator().manual_seed(7 + 1000 * step + 10 * owner + number)
    drawn = [torch.randn(packed.num_trained, generator=generator) for _ in range(5)]
    of_responses = ResponseFields(
        old_logprobs=-3.9 + 0.2 * drawn[0],
        ref_logprobs=-3.9 + 0.2 * drawn[1],
        advantages=drawn[2],
        old_values=0.2 * drawn[3],
        returns=drawn[4],
    )
    return as_experience(packed, episodes, of_responses)


def train(
    runtime: Runtime, model: nn.Module, optimizer: Optimizer, config: PolicyStageConfig, step: int, mean_of_means: bool
) -> None:
    """One step on the experience of this rank; of both ranks, in one process."""
    objective = PolicyObjective(config.policy, config.rollout.max_new_tokens)
    owners = range(2) if runtime.world_size == 1 else [runtime.rank]
    batches = [recorded(step, owner, number) for owner in owners for number in range(2)]
    runtime.set_lr(optimizer, [group["peak_lr"] for group in optimizer.param_groups])
    totals, _ = runtime.sum_counts([objective.counts(batch) for batch in batches], False)
    for i, batch in enumerate(batches):
        own = objective.counts(batch)
        with runtime.microbatch(last=i == len(batches) - 1):
            share, _ = objective.loss(model, batch.to(runtime.device), own if mean_of_means else totals)
            runtime.backward(share / 4 if mean_of_means else share)
    assert runtime.step().applied


@torch.no_grad()
def read(runtime: Runtime, module: ActorCritic, reference: nn.Module) -> dict[str, Tensor]:
    """What a rollout asks for: responses, and what policy, critic and reference say of packs."""
    owners = range(2) if runtime.world_size == 1 else [runtime.rank]
    said = {}
    with runtime.gathered(module):
        for owner in owners:
            settings = Sampling(max_new_tokens=NEW_TOKENS[owner], seed=3)
            responses = generate(module.model, [(5, 6), (7,)], [2 * owner, 2 * owner + 1], settings, lambda: False)
            assert responses is not None
            said[f"{owner}/responses"] = torch.tensor([response.response_ids for response in responses])
            for number in range(NUM_READ[owner]):
                pack = pack_of(100 + number, owner, 0)[0].to(runtime.device)
                outputs = module(pack)
                said[f"{owner}/{number}/logprobs"], said[f"{owner}/{number}/values"] = outputs.logprobs, outputs.values
                said[f"{owner}/{number}/reference"] = reference(pack).logprobs
    return said


def full_state(runtime: Runtime, model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Weights and optimizer state by name, on the main process."""
    state = runtime.named_state()
    return {f"{name}/{key}": value.clone() for name, tensors in state for key, value in tensors.items()}


def storages(module: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in module.parameters()}


def run(runtime: Runtime, kind: str, folder: Path, name: str, mean_of_means: bool = False) -> dict[str, Any]:
    """Train and read by turns; what was seen of the engine."""
    config = configured(kind)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPE, attn_implementation=ATTENTION)
    adapter = config.adapter
    plan = None if adapter.kind == "none" else AdapterPlan(adapter, (), config.run.seed)
    roles = build_roles(config, model, plan, None, runtime, sharding=runtime.sharding)
    module, reference, parameters = roles.module, roles.reference, roles.module.parameters_by_kind()
    assert reference is not None
    num_parameters = sum(p.numel() for p in module.parameters())
    num_trained = sum(p.numel() for group in parameters.values() for p in group)
    prepared, optimizer = runtime.prepare(module, make_optimizer(parameters, config.optim, config.policy.critic_lr))
    prepared.train()
    said = {f"0/{name}": value for name, value in read(runtime, module, reference).items()}
    for step in range(STEPS):
        train(runtime, prepared, optimizer, config, step, mean_of_means)
        said |= {f"{step + 1}/{name}": value for name, value in read(runtime, module, reference).items()}
    seen = {
        "engine": runtime.engine,
        "world_size": runtime.world_size,
        "class": type(prepared).__name__,
        "num_parameters": num_parameters,
        "num_trained": num_trained,
        "num_trained_here": sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
    }
    if runtime.engine == "zero3":
        seen["num_parameters_here"] = sum(p.ds_tensor.numel() for p in module.parameters())
        seen["num_whole_here"] = sum(p.numel() for p in module.parameters())
    with runtime.gathered(module):
        seen["reference_shares"] = storages(reference) <= storages(module)
    state = full_state(runtime, prepared, optimizer)
    if runtime.is_main:
        save_file(state, folder / f"{name}.safetensors")
    save_file(said, folder / f"{name}_read_{runtime.rank}.safetensors")
    return seen


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    runtime = Runtime(precision="fp32", max_grad_norm=0.5, seed=1, timeout_minutes=2.0)
    if runtime.engine == "zero3":  # else parameters as small as these would stay whole between steps
        zero = runtime._accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero["stage3_param_persistence_threshold"] = 0
    seen = {kind: run(runtime, kind, folder, kind) for kind in KINDS}
    if runtime.world_size == 1:
        run(runtime, "full_head", folder, "mean_of_means", mean_of_means=True)
    if runtime.is_main:
        (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")
    runtime.finish()


if __name__ == "__main__":
    main()
