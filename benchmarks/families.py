"""Speed of each path against padding in plain transformers, on the same rows at 40 % fill.

    python benchmarks/families.py [--repeats 7] [--threads 1]

A step is the forward and the backward of the loss of one batch. The three ways take turns, and what counts is the
median over repeats of the ratio within one turn:

    packs    llmtrain, on the path that the start-up check takes
    rows     llmtrain's fallback: documents sorted into rows of about one length
    plain    transformers, the same documents in one batch, padded to the longest, with a mask: TRL without packing
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmtrain.batch import IGNORE_INDEX, PackedTokens
from llmtrain.models.attention import ATTENTION
from llmtrain.models.paths.path import Path, can_switch
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm

WIDTH, VOCAB, LONGEST, NUM_DOCUMENTS, FILL = 256, 2048, 256, 16, 0.4
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "pad_token_id": 0,
    "max_position_embeddings": 1024,
}
TURNS = {"layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"]}
DELTA = {"linear_num_key_heads": 4, "linear_num_value_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
STATES = {"num_heads": 8, "head_dim": 64, "n_groups": 1, "state_size": 32, "chunk_size": 64}
MODELS = {
    "lfm2 (short convolutions)": ("lfm2", SHAPE | {"layer_types": ["conv", "full_attention"] * 2}),
    "qwen3_5_text (gated delta)": ("qwen3_5_text", SHAPE | TURNS | DELTA),
    "mamba2": ("mamba2", SHAPE | STATES),
    "gptj (rows only)": ("gptj", {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 4, "n_head": 4, "n_positions": 512}),
}


def documents(seed: int) -> list[torch.Tensor]:
    """Documents whose batch, padded to the longest, is filled by FILL."""
    drawn = random.Random(seed)
    lengths = [LONGEST]
    while len(lengths) < NUM_DOCUMENTS:
        lengths.append(min(LONGEST, max(8, int(drawn.expovariate(1 / (LONGEST * 0.38))))))
    scale = (FILL * NUM_DOCUMENTS * LONGEST - LONGEST) / (sum(lengths) - LONGEST)
    lengths[1:] = [min(LONGEST, max(4, int(length * scale))) for length in lengths[1:]]
    drawn.shuffle(lengths)
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]


def packed(texts: list[torch.Tensor]) -> PackedTokens:
    labels = [torch.cat([text[1:], torch.tensor([IGNORE_INDEX])]) for text in texts]
    return PackedTokens(
        input_ids=torch.cat(texts),
        labels=torch.cat(labels),
        position_ids=torch.cat([torch.arange(len(text)) for text in texts]),
        segment_lengths=tuple(len(text) for text in texts),
        num_trained=sum(len(text) - 1 for text in texts),
        sample_ids=(0,),
    )


def make_model(architecture: str, fields: dict[str, object]) -> PreTrainedModel:
    torch.manual_seed(0)
    for attention in (ATTENTION, "sdpa", "eager"):
        try:
            shape = AutoConfig.for_model(architecture, **fields)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(shape, attn_implementation=attention)
        except (KeyError, ValueError):
            continue
        if attention != ATTENTION or can_switch(model):
            return model.train()
    raise ValueError(architecture)


def plain_loss(model: PreTrainedModel, texts: list[torch.Tensor]) -> torch.Tensor:
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=IGNORE_INDEX)
    loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
    return loss


def seconds(loss: Callable[[], torch.Tensor], model: PreTrainedModel) -> float:
    started = time.perf_counter()
    loss().backward()
    model.zero_grad()
    return time.perf_counter() - started


def measure(name: str, repeats: int) -> str:
    """One line of the table: how many times as fast as plain."""
    architecture, fields = MODELS[name]
    model, of_rows, plain = (make_model(architecture, fields) for _ in range(3))
    module = wrap_causal_lm(model, "segments", 512, torch.device("cpu")).train()
    attention = ("sdpa" if of_rows._supports_sdpa else "eager") if can_switch(of_rows) else module.path.attention
    path = Path("padded", {}, attention)
    rows = CausalLMLoss(path.put_into(of_rows), "padded", module.form, path).train()
    if can_switch(plain):
        plain.set_attn_implementation(attention)
    faster: dict[str, list[float]] = {"packs": [], "rows": []}
    fill = []
    for turn in range(repeats + 1):
        texts = documents(turn)
        batch = packed(texts)
        fill.append(batch.num_tokens / (NUM_DOCUMENTS * LONGEST))
        stock = seconds(lambda texts=texts: plain_loss(plain, texts), plain)
        ours = seconds(lambda batch=batch: module(batch).objective / batch.num_trained, model)
        padded = seconds(lambda batch=batch: rows(batch).objective / batch.num_trained, of_rows)
        if turn:  # the first warms up
            faster["packs"].append(stock / ours)
            faster["rows"].append(stock / padded)
    ratios = "  ".join(
        f"{way} {statistics.median(found):.2f}x ({min(found):.2f} to {max(found):.2f})" for way, found in faster.items()
    )
    return f"{name:28} fill {statistics.mean(fill):.0%}  {ratios}  [{module.path.line}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in MODELS:
        print(measure(name, options.repeats), flush=True)


if __name__ == "__main__":
    main()
