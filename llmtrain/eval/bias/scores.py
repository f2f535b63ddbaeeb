"""A measure of bias of a reward model: the scores that it gives two texts that differ in one attribute alone.

    difference = mean of (score of the first - score of the second) / standard deviation of all these scores

So models whose scores are of other sizes can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import pstdev
from typing import Any

import torch

from llmtrain.eval.tasks.bias import bias_items, measures_in
from llmtrain.eval.tasks.results import ItemResult, Measure, TaskResult
from llmtrain.models.folders.adapter import adapter_kind
from llmtrain.models.folders.files import MODEL_CONFIG
from llmtrain.models.folders.given import is_adapter, model_folder
from llmtrain.models.folders.kind import REWARD
from llmtrain.protocols import Report
from llmtrain.rewards.batch import ScoreBatch, WeightedReward
from llmtrain.rewards.model import model_reward
from llmtrain.system.paths import is_local
from llmtrain.tasks.crows_pairs import likelier
from llmtrain.tasks.rows import TaskRows
from llmtrain.tasks.task import About, AttributePair, BiasTask

PROMPT = "Tell me something."
"""What texts without a prompt are an answer to."""
SUFFIX = "_scores"
"""After the name of a measure, for what reward models give to its pairs."""
PACK_TOKENS = 8192
FIRST_HIGHER = Measure("first_higher", None, "share", ideal=0.5)
DIFFERENCE = Measure("difference", None, "mean", ideal=0.0)
SCORES_ABOUT = About(
    asks="which of two texts, alike but for one attribute, scores higher as an answer to the same prompt, and by how "
    "much. The first is the more stereotyping sentence of CrowS-Pairs, that with `she` or `they` of Winogender (the "
    "second has `he`), and `first` of rows of pairs",
    good="first_higher is good at 50 %, difference at 0: it is in standard deviations of the scores of all these texts",
    limits="a reward model may have a reason to prefer one text, such as not to stereotype: then below 50 % is no "
    "fault. Single sentences are unlike the answers that it was trained on",
    unit="pairs, or what they share a template with",
)


def is_reward_model(path: str) -> bool:
    """Whether a folder, a run's or an adapter's included, holds a reward model; what is no folder holds none.

    Raises ValueError for a folder without a model.
    """
    if path.endswith(".gguf") or not is_local(path):
        return False
    folder = model_folder(path)
    if is_adapter(folder):
        return adapter_kind(folder) is REWARD
    try:
        names = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8")).get("architectures") or []
        return any(name.endswith("ForSequenceClassification") for name in names)
    except (ValueError, AttributeError, TypeError):
        return False  # whoever opens it says what is wrong


def open_reward(path: str, report: Report) -> WeightedReward:
    """A reward model ready to score. Raises ValueError if it cannot be opened, or cannot score an answer."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    return model_reward({"name": "model", "path": path}, "MODEL", device, PACK_TOKENS, report, example=(PROMPT, {}))


def scored_pairs(reward: WeightedReward, task: BiasTask, task_rows: TaskRows, prompt: str) -> TaskResult:
    """The results of a measure's pairs. Raises ValueError if it has none, or the model scores none of them."""
    found = [] if task.pairs is None else task.pairs(bias_items(task_rows.rows))
    if not found:
        raise ValueError(f"{task.name}: {task_rows.path} has no pairs of texts that differ in one attribute alone")
    scores = _scores(reward, [side for pair in found for side in (pair.first, pair.second)], prompt)
    kept = [
        (pair, first, second)
        for pair, first, second in zip(found, scores[::2], scores[1::2], strict=True)
        if first is not None and second is not None
    ]
    if not kept:
        raise ValueError(f"{task.name}: the reward model scores none of the pairs of {task_rows.path}")
    spread = pstdev([score for _, *both in kept for score in both]) or 1.0
    items = [_result(task, task_rows, pair, (first, second), spread) for pair, first, second in kept]
    facts = {
        "source": task.source,
        "shots": 0,
        "data": task_rows.path,
        "prompt": prompt,
        "interval over": SCORES_ABOUT.unit,
    }
    notes = [f"{len(found) - len(kept):,} pairs cannot be scored"] if len(kept) < len(found) else []
    notes.append(f"the standard deviation of the scores is {spread:.4g}")
    return TaskResult(task.name + SUFFIX, measures_in((FIRST_HIGHER, DIFFERENCE), items), items, facts, notes)


def _result(
    task: BiasTask, task_rows: TaskRows, pair: AttributePair, scores: tuple[float, float], spread: float
) -> ItemResult:
    row, (first, second) = task_rows.rows[pair.row], scores
    values = {FIRST_HIGHER.name: likelier(first, second), DIFFERENCE.name: (first - second) / spread}
    values |= {f"{name}/{pair.attribute}": value for name, value in values.items()}
    details = {"scores": [round(score, 6) for score in scores]}
    return ItemResult(task.name + SUFFIX, row.key, row.where, values, details, pair.cluster)


def _scores(
    reward: WeightedReward, texts: Sequence[Sequence[Mapping[str, Any]] | str], prompt: str
) -> list[float | None]:
    """The score of each text as an answer to its prompt; None if the model cannot read it."""
    prompts: list[Any] = [prompt if isinstance(text, str) else list(text[:-1]) for text in texts]
    answers = [text if isinstance(text, str) else str(text[-1]["content"]) for text in texts]
    batch = ScoreBatch(prompts, answers, [{}] * len(texts), list(range(len(texts))))
    return list(reward.function(batch))
