"""One family through every step of training, its second step compared with plain transformers, a document at a time.

Each step is a run of the real recipe in this process: two optimizer steps on one pack of eight documents. After the
first, `llmtrain export --step 1` writes a folder; plain transformers (or peft) loads it, and its loss and gradient on
the same documents, one by one, must be what the run logged for its second step. That covers the forward on packs, the
backward, the optimizer's write, the export and the loading, with nothing of llmtrain on the other side.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny_run
import torch
import yaml
from families.tiny import num_parameters, tiny_config
from tiny_chat import CHATML
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from llmtrain.models.adapters.lora import expected_warnings
from llmtrain.models.folders.reward import open_classifier

VOCAB = 272  # of 260 tokens
SPREAD = 0.15  # of every matrix, so that a model of width 64 doesn't answer everything alike
LENGTHS = (40, 5, 23, 3, 31, 11, 2, 17)  # tokens of the documents: longer than a window and shorter, in one pack
MAX_SEQ_LEN = 512
LARGEST = 4_000_000  # parameters; what can't be shrunk below is not built
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 2e-5, 2e-3  # relative
GAP_TOLERANCE = 1e-3  # nats between the logprobs of generation and of training
RECIPES = {
    "pretrain": tiny_run.PRETRAIN,
    "sft": tiny_run.SFT,
    "lora": tiny_run.SFT,
    "reward": tiny_run.RLHF,
    "ppo": tiny_run.RLHF,
}
STEPS = tuple(RECIPES)


@dataclass(frozen=True)
class Outcome:
    """What became of one step of one family."""

    verdict: str  # exact, slower, refused, WRONG, crash or not built
    detail: str = ""  # the slower path, the reason, the figures or the error

    def __str__(self) -> str:
        return self.verdict if not self.detail else f"{self.verdict}: {self.detail}"


def documents() -> list[dict[str, list[int]]]:
    """The documents of every family, as rows of ids whose first half is not trained."""
    drawn = random.Random(7)
    rows = []
    for length in LENGTHS:
        ids = [drawn.randrange(33, 126) for _ in range(length)]
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return rows


def write_base(folder: Path, family: str) -> str:
    """A random model of a family with a tokenizer of bytes; the class of its model. Raises what its class raises."""
    tiny_run.write_tokenizer(folder, special_tokens=("<|bos|>", "<|im_end|>", "<|pad|>"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    config = tiny_config(family, VOCAB)
    for part in {id(each): each for each in (config, config.get_text_config())}.values():
        part.bos_token_id, part.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        part.pad_token_id = tokenizer.pad_token_id
    auto: Any = AutoModelForCausalLM
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        auto = AutoModelForImageTextToText
    with torch.device("meta"):
        if (size := num_parameters(auto.from_config(config))) > LARGEST:
            raise ValueError(f"{size:,} parameters at the least")
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("A_log"):
                parameter.normal_(std=SPREAD)
    with torch.no_grad():
        model.eval()(input_ids=torch.arange(40, 46)[None])  # or its sizes do not fit each other
    if model.generation_config is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    return type(model).__name__


def run_family(family: str, folder: Path, steps: tuple[str, ...] = STEPS) -> dict[str, Outcome]:
    """What became of each step; `built` only, if the model can't be built."""
    shutil.rmtree(folder, ignore_errors=True)
    base = folder / "base"
    base.mkdir(parents=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_base(base, family)
    except Exception as error:  # each architecture fails in its own way
        return {"built": Outcome("not built", one_line(error))}
    write_rows(folder)
    return {step: run_step(step, base, folder) for step in steps}


def write_rows(folder: Path) -> None:
    """What all steps train on: the documents, as texts, as trained in part, and as pairs; and a reward."""
    rows = documents()
    pairs = [{"prompt": [], "chosen": a["input_ids"], "rejected": b["input_ids"]} for a, b in pair_up(rows)]
    write_jsonl(folder / "rows.jsonl", rows)
    write_jsonl(folder / "texts.jsonl", [{"input_ids": row["input_ids"]} for row in rows])
    write_jsonl(folder / "pairs.jsonl", [as_chat(pair) for pair in pairs])
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")


REWARD = """
def share_low(prompts, responses, rows):
    return [sum(letter < "P" for letter in response) / (len(response) + 1) for response in responses]
"""


def pair_up(rows: list[dict[str, list[int]]]) -> Iterator[tuple[dict[str, list[int]], dict[str, list[int]]]]:
    return zip(rows[::2], rows[1::2], strict=True)


def as_chat(pair: dict[str, Any]) -> dict[str, Any]:
    """A pair of texts, of which the tokens are bytes."""
    return {"prompt": "ab", **{side: bytes(pair[side]).decode() for side in ("chosen", "rejected")}}


def run_step(step: str, base: Path, folder: Path) -> Outcome:
    """One step of a family: the run, and what it logged against plain transformers."""
    place = folder / step
    place.mkdir()
    config = place / "config.yaml"
    config.write_text(yaml.safe_dump(configuration(step, base, folder)), encoding="utf-8")
    try:
        ended = tiny_run.run_here(config, recipe=RECIPES[step])
    except Exception as error:
        return Outcome("crash", one_line(error))
    if ended.code == 2:
        return Outcome("refused", refusal(ended.err, base))
    if ended.code:
        return Outcome("crash", one_line(ended.err.strip().splitlines()[-1]))
    try:
        if step == "ppo":
            return compared_policy(place / "run")
        export_first_step(place / "run", place / "first")
        return compared(step, place, base, documents())
    except Exception as error:
        return Outcome("crash", f"after the run: {one_line(error)}")


def configuration(step: str, base: Path, folder: Path) -> dict[str, Any]:
    """The configuration of a step's run: all documents in one pack, two steps, no clipping."""
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / step / "run")},
        "model": {"path": str(base)},
        "data": {"train": str(folder / "rows.jsonl"), "max_seq_len": MAX_SEQ_LEN, "cache_dir": str(folder / "cache")},
        "train": {"steps": 2, "global_batch_tokens": MAX_SEQ_LEN, "microbatch_tokens": MAX_SEQ_LEN},
        "optim": {"lr": 0.001, "warmup_steps": 0},
        "checkpoint": {"every": 1, "keep": 2},
        "log": {"every": 1, "report": False},
    }
    match step:
        case "pretrain":
            tree["data"]["train"] = str(folder / "texts.jsonl")
            tree["data"]["eval_fraction"] = 0.0
        case "sft":
            tree["data"]["eval_fraction"] = 0.0
        case "lora":
            tree["data"]["eval_fraction"] = 0.0
            tree["adapter"] = {"kind": "lora", "rank": 4, "alpha": 8}
        case "reward":
            tree["data"] |= {"train": str(folder / "pairs.jsonl"), "eval_fraction": 0.0}
            tree["reward"] = {}
        case "ppo":
            tree["data"] |= {"train": str(folder / "pairs.jsonl"), "eval_fraction": 0.0}
            tree["rollout"] = {
                "rewards": [f"{folder / 'reward.py'}:share_low"],
                "num_prompts": 2,
                "samples_per_prompt": 2,
                "max_new_tokens": 12,
            }
            tree["policy"] = {"kl_coef": 0.01}
            del tree["train"]["global_batch_tokens"]
    return tree


def export_first_step(run: Path, output: Path) -> None:
    from llmtrain.cli.export import run as export

    export(SimpleNamespace(run=run, step="1", output=output, dtype=None))  # type: ignore[arg-type]


def compared(step: str, place: Path, base: Path, rows: list[dict[str, list[int]]]) -> Outcome:
    """The second row of the metrics against the plain model of the first step's folder."""
    second = next(row for row in tiny_run.metrics(place / "run") if row["step"] == 2)
    facts = json.loads((place / "run" / "environment.json").read_text(encoding="utf-8"))
    if step == "reward":
        loss, norm = plain_pairs(place, base)
    else:
        if step != "lora":
            require_same_parts(place / "first", base)
        labels = [row["input_ids"] if step == "pretrain" else row["labels"] for row in rows]
        model = plain_model(place / "first", base)
        loss, norm = plain_loss(model, [row["input_ids"] for row in rows], labels)
    off = abs(second["loss"] - loss) / abs(loss), abs(second["grad_norm"] - norm) / norm
    figures = f"loss {off[0]:.0e}, gradient {off[1]:.0e}"
    if not (off[0] <= LOSS_TOLERANCE and off[1] <= GRADIENT_TOLERANCE):
        return Outcome("WRONG", figures)
    return Outcome(*path_of(facts, figures))


def plain_model(folder: Path, base: Path) -> PreTrainedModel:
    """The model of a folder in plain transformers, an adapter of it in plain peft; as the base's class has it."""
    if (folder / "adapter_config.json").is_file():
        from peft import PeftModel

        with expected_warnings():
            model: Any = PeftModel.from_pretrained(loaded(base), str(folder), is_trainable=True)
        return model
    return loaded(folder)


def loaded(folder: Path) -> PreTrainedModel:
    """A folder as the class that its configuration names. Raises AssertionError for weights that it lacks."""
    import transformers

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    cls = getattr(transformers, config["architectures"][0])
    model, info = cls.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model


def require_same_parts(folder: Path, base: Path) -> None:
    """Raise AssertionError unless a folder is of the base's class, and what is beside its text model is the base's."""
    before, after = loaded(base), loaded(folder)
    assert type(before) is type(after), (type(before), type(after))
    if before.config.get_text_config() is before.config:
        return
    text = {id(parameter) for part in text_parts(after) for parameter in part.parameters()}
    own = dict(before.named_parameters())
    beside = {name: parameter for name, parameter in after.named_parameters() if id(parameter) not in text}
    changed = [name for name, parameter in beside.items() if not torch.equal(parameter, own[name])]
    assert not changed, f"{len(changed)} of {len(beside)} weights beside the text model changed, {changed[0]} is one"


def text_parts(model: PreTrainedModel) -> list[nn.Module]:
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    return [part for part in parts if part is not None]


def plain_loss(model: nn.Module, ids: list[list[int]], labels: list[list[int]]) -> tuple[float, float]:
    """The mean loss over the trained tokens of all documents, each alone, and the norm of its gradient."""
    model.train()
    total = torch.zeros(())
    count = sum(label != -100 for each in labels for label in each[1:])
    for document, targets in zip(ids, labels, strict=True):
        logits = model(input_ids=torch.tensor([document]), use_cache=False).logits[0].float()
        total = total + cross_entropy(logits[:-1], torch.tensor(targets[1:]), reduction="sum", ignore_index=-100)
    (total / count).backward()
    return float(total.detach() / count), gradient_norm(model)


def plain_pairs(place: Path, base: Path) -> tuple[float, float]:
    """The loss of pairs by a reward model in plain transformers, and the norm of its gradient."""
    folder = place / "first"
    if type(AutoConfig.from_pretrained(folder)) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        open_classifier(folder)  # which makes it known to transformers
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return pairs_loss(model, AutoTokenizer.from_pretrained(folder), place.parent / "pairs.jsonl")


def pairs_loss(model: nn.Module, tokenizer: Any, pairs: Path) -> tuple[float, float]:
    """The loss of the pairs in a file by a plain model that scores, and the norm of its gradient."""
    model.train()
    margins: list[Tensor] = []
    for line in pairs.read_text(encoding="utf-8").splitlines():
        row, scores = json.loads(line), []
        for side in ("chosen", "rejected"):
            messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
            scores.append(model(**inputs, use_cache=False).logits[0, 0])
        margins.append(scores[0] - scores[1])
    loss = -logsigmoid(torch.stack(margins)).mean()
    loss.backward()
    return float(loss.detach()), gradient_norm(model)


def compared_policy(run: Path) -> Outcome:
    """Logprobs of generation against those of training, which are one model's while no step has moved it."""
    rows = [row for row in tiny_run.metrics(run) if row["step"] >= 1]
    gap = rows[0]["rollout_logprob_difference_max"]
    loaded(run / "model")
    if not gap <= GAP_TOLERANCE:
        return Outcome("WRONG", f"logprobs differ by {gap:.0e}")
    facts = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return Outcome(*path_of(facts, f"logprobs {gap:.0e}"))


def path_of(facts: dict[str, Any], figures: str) -> tuple[str, str]:
    """The verdict of a step whose numbers are right, by the path that its run says it took."""
    how = str(facts["path"]).partition(":")[0].removeprefix("documents run ")
    if how.startswith("in packs"):
        _, _, mixers = how.partition("; ")
        return "exact", f"{mixers}; {figures}" if mixers else figures
    return "slower", f"{how}; {figures}"


def gradient_norm(model: nn.Module) -> float:
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.stack([grad.double().norm() for grad in grads]).norm())


def refusal(err: str, base: Path) -> str:
    """The reason of a refusal: its one line, without the path of this run. Raises ValueError for more than one."""
    lines = [line for line in err.strip().splitlines() if line]
    return lines[-1].removeprefix("error: ").replace(f"model.path={base}: ", "")


def one_line(error: object) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200] if isinstance(error, BaseException) else text[:200]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
