"""Values of a tokenizer's files that are read with the first text only."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import write_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from llmtrain.data.tokenize import load_tokenizer
from llmtrain.models.folders.open import open_model


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_max_length": {}}, "tokenizer_config.json: model_max_length={}: give a number"),
        ({"model_max_length": "many"}, "tokenizer_config.json: model_max_length='many': give a number"),
        ({"model_max_length": True}, "tokenizer_config.json: model_max_length=True: give a number"),
        ({"model_input_names": ["input_ids", 3]}, None),
    ],
)
def test_a_tokenizer_that_reads_no_text_is_refused_as_it_is_opened(
    fields: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    write_model(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    if said is None:
        load_tokenizer(str(tmp_path))
        return
    for opened in (load_tokenizer, open_model):
        with pytest.raises(ValueError, match=re.escape(said)) as caught:
            opened(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_a_tokenizer_of_a_few_letters_need_not_know_others(tmp_path: Path) -> None:
    backend = Tokenizer(WordLevel({"A": 0, "C": 1, "G": 2, "T": 3, "<eos>": 4}))
    backend.pre_tokenizer = Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("GATTACA")["input_ids"] == [2, 0, 3, 3, 0, 1, 0]


def test_an_id_that_no_vocabulary_has_is_refused_before_memory_is_taken_for_all_below_it(tmp_path: Path) -> None:
    write_model(tmp_path)
    path = tmp_path / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["vocab"]["G"] = 2**31
    path.write_text(json.dumps(tree))
    for opened in (load_tokenizer, open_model):
        with pytest.raises(ValueError, match="the token 'G' has the id 2,147,483,648, which no vocabulary has"):
            opened(str(tmp_path))
