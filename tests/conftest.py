"""What every test runs under: no network, few threads, shapes and types of llmtrain checked at each call."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import jaxtyping

jaxtyping.install_import_hook("llmtrain", "shape_checks.check_shapes")

import torch

torch.set_num_threads(1)
