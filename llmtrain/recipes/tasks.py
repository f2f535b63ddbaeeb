"""Tasks at each evaluation of a run (`eval.tasks`)."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmtrain.config.recipes import RecipeConfig
from llmtrain.config.sections import EvalConfig
from llmtrain.eval.tasks.during import WithTasks
from llmtrain.eval.tasks.measure import Asking
from llmtrain.eval.tasks.opened import generated
from llmtrain.eval.tasks.subject import Subject, position_limit
from llmtrain.models.stops import stop_ids
from llmtrain.models.wrappers.actor_critic import ActorCritic
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.protocols import Evaluate
from llmtrain.recipes.trainer import Run
from llmtrain.tasks.rows import TaskRows, read_tasks


def task_rows(config: EvalConfig) -> list[TaskRows]:
    """The items that `eval.tasks` asks for. Raises ValueError, naming the key or the row."""
    return read_tasks(config.tasks, "eval.tasks", config.task_data, config.task_items)


def with_tasks(
    run: Run[RecipeConfig],
    evaluate: Evaluate | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    of_template: Sequence[int],
    module: CausalLMLoss | ActorCritic,
) -> Evaluate | None:
    """An evaluation that also measures tasks, if the run asks for them and they can be had; else says why not.

    `evaluate`: None, as what is returned then: nothing is held out, so the run does not evaluate.
    `of_template`: the tokens by which training ends an answer, beside the model's own. `module` computes `model`.
    """
    config, runtime = run.config, run.runtime
    if not config.eval.tasks:
        return evaluate
    if evaluate is None:
        runtime.say("eval.tasks: nothing is measured: nothing is held out (data.eval, data.eval_fraction)")
        return None
    if (reason := runtime.refusal("rollouts")) is not None:
        runtime.say(f"eval.tasks: nothing is measured under {runtime.engine}: {reason}")
        return evaluate
    tasks = task_rows(config.eval)
    for each in tasks:
        runtime.say(f"eval.tasks: {each.task.name}: {len(each.rows):,} items of {each.path}")
    subject = Subject(
        model, tokenizer, module.kernel, module.whole_logits, position_limit(model), shares_prefixes=False
    )
    answers = generated(subject, lambda: run.stop.requested is not None)
    return WithTasks(evaluate, tasks, subject, Asking(answers, stop_ids(model, of_template)), runtime)
