"""The models of a policy run: one that trains, its reference, and its critic.

With an adapter all roles use one base: the reference is the base itself, and a separate critic has only its own
adapter. Without one each role has its own weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from llmtrain.config.recipes import PolicyStageConfig
from llmtrain.models.adapters.weight_sharing import frozen_copy, shared_copy
from llmtrain.models.cpu.prepare import prepare_layers
from llmtrain.models.folders.continued import AdapterPlan
from llmtrain.models.text_part import require_trunk
from llmtrain.models.trunk import run_trunk
from llmtrain.models.wrappers.actor_critic import ActorCritic, ValueHead
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.critic_init import CriticStart, start_critic
from llmtrain.models.wrappers.prepare import prepare_causal_lm, reach_all
from llmtrain.protocols import Ranks, Sharding


@dataclass(frozen=True)
class PolicyRoles:
    """The modules of a policy run."""

    module: ActorCritic  # policy and critic, which train
    reference: ActorCritic | None  # frozen; None: no KL is asked for
    description: str  # for the log


def build_roles(
    config: PolicyStageConfig,
    model: PreTrainedModel,
    plan: AdapterPlan | None,
    critic_start: CriticStart | None,
    ranks: Ranks,
    *,
    sharding: Sharding,
) -> PolicyRoles:
    """Policy, critic and reference from the model that the run starts from, which becomes the policy's.

    `plan`: the adapter that policy and critic train; None: they train every weight. `critic_start`: the reward model
    that the critic starts as; None: at zero. Raises ValueError as `prepare_causal_lm` and `start_critic` do.
    """
    policy, has_adapter = config.policy, plan is not None
    prepare_layers(model, ranks.device, shards_parameters=sharding != "none")
    has_critic = policy.has_critic
    reference_model: PreTrainedModel | None = None
    critic_model: PreTrainedModel | None = None
    if policy.kl_coef > 0:
        reference_model = shared_copy(model) if has_adapter else frozen_copy(model)
    if has_critic:
        require_trunk(model)
    if has_critic and policy.critic == "separate":
        critic_model = shared_copy(model) if has_adapter else copy.deepcopy(model)
    # The reference is what the policy starts as: with an adapter that goes on being trained, it has that one.
    starts_with_it = reference_model if plan is not None and plan.start is not None else None
    for adapted in (model, critic_model, starts_with_it):
        if plan is not None and adapted is not None:
            plan.put_into(adapted)
            prepare_layers(adapted, ranks.device, shards_parameters=sharding != "none")
    checked = prepare_causal_lm(config, model, ranks, sharding=sharding)

    width = model.config.get_text_config().hidden_size
    head = ValueHead(width).to(ranks.device) if has_critic else None
    trunk = None if critic_model is None else checked.path.put_into(critic_model).base_model.to(ranks.device)
    if trunk is not None:
        assert isinstance(trunk, PreTrainedModel)
        reach_all(trunk, run_trunk, checked.kernel, config.data.max_seq_len, sharding=sharding)
    parts = ["policy with a value head" if has_critic and trunk is None else "policy"]
    parts += ["critic with its own trunk"] if trunk is not None else []
    if head is not None and critic_start is not None:
        start_critic(critic_start, head, trunk)
        starts = "the critic starts" if trunk is None else "the critic and its trunk start"
        parts.append(f"{starts} as the reward model {critic_start.path}")
    trains_entropy = policy.entropy_coef > 0
    module = ActorCritic(checked, config.rollout.temperature, head, trunk, trains_entropy=trains_entropy)
    reference = None
    if reference_model is not None:
        nn.Module.to(reference_model, ranks.device)
        checked.path.put_into(reference_model)
        reference_loss = CausalLMLoss(reference_model, checked.kernel, checked.form, checked.path)
        reference = ActorCritic(reference_loss, config.rollout.temperature, trains_entropy=False)
        reference.requires_grad_(False).eval()
        parts.append(f"reference on {'the same base' if has_adapter else 'a copy of the weights'}")
    return PolicyRoles(module, reference, ", ".join(parts))
