"""FSDP2's engine over DTensors of one rank: it trains, skips, saves and loads as the plain engine does.

accelerate has no FSDP on CPUs, so a substitute shards the module as accelerate would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from llmtrain.train.engines.base import Engine, EngineSettings
from llmtrain.train.engines.plain import PlainEngine

SETTINGS = EngineSettings(precision="fp32", max_grad_norm=0.5, timeout=timedelta(seconds=60))


class StandIn:
    """What the engines use of accelerate, for one process."""

    num_processes, scaler = 1, None

    def __init__(self, shards: bool) -> None:
        self._shards = shards
        self.distributed_type = DistributedType.FSDP if shards else DistributedType.NO

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        if self._shards:
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
            optimizer.param_groups[0]["params"] = list(model.parameters())
        return model, optimizer

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def prepared(make: Any, *, shards: bool) -> tuple[Engine, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 2))
    engine = make(StandIn(shards), SETTINGS)
    engine.prepare(model, AdamW(model.parameters(), lr=0.1))
    engine.make_state()
    return engine, model


def train(engine: Engine, model: nn.Module, first: int, last: int, *, bad: int = -1) -> list[bool]:
    """Steps of two microbatches; whether each was applied."""
    applied = []
    for step in range(first, last):
        for number in range(2):
            batch = torch.randn(3, 6, generator=torch.Generator().manual_seed(10 * step + number))
            with engine.microbatch(last=number == 1):
                engine.backward(model(batch).square().sum())
        applied.append(engine.step(torch.tensor(step != bad)).applied)
    return applied


def full_state(engine: Engine) -> dict[str, dict[str, Tensor]]:
    named = engine.named_state(is_main=True)
    return {name: {key: value.clone() for key, value in tensors.items()} for name, tensors in named}


def test_it_trains_what_the_plain_engine_trains_and_skips_what_it_skips() -> None:
    (sharded, model), (plain, reference) = prepared(PlainEngine, shards=True), prepared(PlainEngine, shards=False)
    assert isinstance(next(model.parameters()), DTensor) and (sharded.sharding, plain.sharding) == ("layers", "none")
    assert train(sharded, model, 0, 5, bad=3) == train(plain, reference, 0, 5, bad=3) == [True, True, True, False, True]
    found, wanted = full_state(sharded), full_state(plain)
    assert found.keys() == wanted.keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    for name, tensors in wanted.items():
        for key, value in tensors.items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-6, atol=1e-7)


def test_going_back_is_exact_to_the_bit() -> None:
    engine, model = prepared(PlainEngine, shards=True)
    train(engine, model, 0, 2)
    saved = full_state(engine)
    train(engine, model, 2, 4)
    wanted = full_state(engine)
    engine.load_named_state(lambda name: dict(saved[name]))
    restored = full_state(engine)
    assert all(torch.equal(restored[name][key], saved[name][key]) for name in saved for key in saved[name])
    train(engine, model, 2, 4)
    went_on = full_state(engine)
    assert all(torch.equal(went_on[name][key], wanted[name][key]) for name in wanted for key in wanted[name])


def test_ranks_that_do_not_write_get_names_only() -> None:
    engine, _ = prepared(PlainEngine, shards=True)
    assert [tensors for _, tensors in engine.named_state(is_main=False)] == [{}] * 4


def test_state_is_whole_after_a_forward_without_a_backward_and_can_be_set_then() -> None:
    engine, model = prepared(PlainEngine, shards=True)
    train(engine, model, 0, 2)
    wanted = full_state(engine)
    model(torch.ones(3, 6))
    assert not isinstance(next(model.parameters()), DTensor)  # what an evaluation leaves
    found = full_state(engine)
    assert {name: set(found[name]) for name in found} == {name: set(wanted[name]) for name in wanted}
    train(engine, model, 2, 4)
    model(torch.ones(3, 6))
    engine.load_named_state(lambda name: dict(wanted[name]))
    restored = full_state(engine)
    assert all(torch.equal(restored[name][key], wanted[name][key]) for name in wanted for key in wanted[name])
