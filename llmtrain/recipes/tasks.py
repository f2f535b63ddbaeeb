"""Tasks at each evaluation of a run (`eval.tasks`)."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmtrain.config.recipes import RecipeConfig
from llmtrain.data.rendering import sources_of
from llmtrain.eval.tasks.during import WithTasks
from llmtrain.eval.tasks.measure import Asking
from llmtrain.eval.tasks.opened import generated
from llmtrain.eval.tasks.subject import Subject, position_limit
from llmtrain.models.paths.choose import is_right_at_any_length
from llmtrain.models.stops import stops_of
from llmtrain.models.trunk import run_model
from llmtrain.models.wrappers.actor_critic import ActorCritic
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.protocols import Evaluate
from llmtrain.recipes.items import items_of
from llmtrain.recipes.trainer import Run


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
    tasks = items_of(config.eval).tasks
    if config.eval.task_chat and not sources_of(tokenizer.chat_template):
        raise ValueError("eval.task_chat: the tokenizer has no chat template: leave it off, or name one")
    for each in tasks:
        runtime.say(f"eval.tasks: {each.task.name}: {len(each.rows):,} items of {each.path}")
    subject = trained_subject(model, tokenizer, module, config.data.max_seq_len)
    return WithTasks(evaluate, tasks, subject, asking_of(run, subject, of_template), runtime)


def trained_subject(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, module: CausalLMLoss | ActorCritic, max_seq_len: int
) -> Subject:
    """The model that a run trains, as tasks measure it; `module` computes it.

    Contexts are up to the model's positions, or `max_seq_len` if the path of training is right up to it only.
    """
    positions = position_limit(model)
    if not is_right_at_any_length(module.path, model, run_model):
        positions = min(positions, max_seq_len)
    return Subject(model, tokenizer, module.kernel, module.whole_logits, positions, shares_prefixes=False)


def asking_of(run: Run[RecipeConfig], subject: Subject, of_template: Sequence[int]) -> Asking:
    """How it answers: until a signal asks the run to stop."""
    answers = generated(subject, lambda: run.stop.requested is not None)
    stops = stops_of(subject.model, subject.tokenizer, of_template)
    return Asking(answers, stops, chat=run.config.eval.task_chat)
