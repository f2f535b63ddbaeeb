"""What every test runs under: no network, few threads, shapes and types of llmtrain checked at each call."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import shape_checks

shape_checks.install("llmtrain")

import torch

torch.set_num_threads(1)
