"""What every test runs under: no network, a separate cache, few threads, shapes and types checked at each call."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import shape_checks

shape_checks.install("llmtrain")

import pytest
import torch

torch.set_num_threads(1)
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:  # as a shell starts what it puts into the background, or nohup
        signal.signal(number, handler)  # or the runs of tests would ignore it too


@pytest.fixture(scope="session", autouse=True)
def separate_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that the user, or another version, keeps in the shared cache decides a test."""
    os.environ["LLMTRAIN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """What a worker says of a test, with half surrogate pairs written out: they would end the whole session."""
    return _writable((yield))


def _writable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _writable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_writable(each) for each in value)
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
