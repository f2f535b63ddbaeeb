"""Tasks at each evaluation of a run (`eval.tasks`)."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmtrain.config.recipes import RecipeConfig
from llmtrain.eval.tasks.during import WithTasks
from llmtrain.eval.tasks.measure import Asking
from llmtrain.eval.tasks.opened import generated
from llmtrain.eval.tasks.subject import Subject, position_limit
from llmtrain.models.stops import stop_ids
from llmtrain.models.wrappers.actor_critic import ActorCritic
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.protocols import Evaluate
from llmtrain.recipes.items import items_of
from llmtrain.recipes.trainer import Run


def with_tasks(
    run: Run[RecipeConfig],
    evaluate: Evaluate,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    of_template: Sequence[int],
    module: CausalLMLoss | ActorCritic,
) -> Evaluate:
    """An evaluation that also measures tasks, if the run asks for them and they can be had; else says why not.

    `of_template`: the tokens by which training ends an answer, beside the model's own. `module` computes `model`.
    """
    config, runtime = run.config, run.runtime
    if not config.eval.tasks:
        return evaluate
    if (reason := runtime.refusal("rollouts")) is not None:
        runtime.say(f"eval.tasks: nothing is measured under {runtime.engine}: {reason}")
        return evaluate
    tasks = items_of(config.eval).tasks
    for each in tasks:
        runtime.say(f"eval.tasks: {each.task.name}: {len(each.rows):,} items of {each.path}")
    subject = trained_subject(model, tokenizer, module)
    return WithTasks(evaluate, tasks, subject, asking_of(run, subject, of_template), runtime)


def trained_subject(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, module: CausalLMLoss | ActorCritic
) -> Subject:
    """The model that a run trains, as tasks measure it; `module` computes it."""
    positions = position_limit(model)
    return Subject(model, tokenizer, module.kernel, module.whole_logits, positions, shares_prefixes=False)


def asking_of(run: Run[RecipeConfig], subject: Subject, of_template: Sequence[int]) -> Asking:
    """How it answers: until a signal asks the run to stop."""
    answers = generated(subject, lambda: run.stop.requested is not None)
    return Asking(answers, stop_ids(subject.model, of_template))
