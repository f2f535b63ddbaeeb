"""Calls of functions that are not ours: each in a thread, with a limit of time, again if it fails.

A thread, since such a function may wait for ever, and may use signals, which belong to training (math-verify does, in
the main thread only). A function out of time is left running: Python cannot end a thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Patience:
    """How long a function may take, how often it may fail, and what happens then."""

    seconds: float | None = None  # of each call
    retries: int = 0
    on_error: Literal["stop", "abstain"] = "stop"


class OutOfTime(Exception):
    """A function took longer than it may."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it took more than {seconds:g} seconds: raise rollout.reward_seconds, or make it faster")


def in_thread(function: Callable[[], Any], seconds: float | None) -> Any:
    """What a function returns or raises. Raises OutOfTime."""
    ended: list[tuple[Any, BaseException | None]] = []
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def run() -> None:
        if device is not None:  # is each thread's own
            torch.cuda.set_device(device)
        try:
            ended.append((function(), None))
        except BaseException as error:  # SystemExit too: it would end the thread without a word
            ended.append((None, error))

    thread = threading.Thread(target=run, daemon=True, name="reward")
    thread.start()
    thread.join(seconds)
    if not ended:
        assert seconds is not None
        raise OutOfTime(seconds)
    value, error = ended[0]
    if error is not None:
        raise error
    return value


def with_retries(call: Callable[[], Any], retries: int) -> Any:
    """What a call returns; it is made again as often as that if it raises."""
    for left in range(retries, -1, -1):
        try:
            return call()
        except (Exception, SystemExit):
            if not left:
                raise
    raise AssertionError("it has returned or raised")


def gathered(calls: Sequence[Callable[[], Awaitable[Any]]], patience: Patience) -> list[Any]:
    """What coroutine functions return or raise, all awaited at once; in a thread, with an event loop of its own."""

    async def one(call: Callable[[], Awaitable[Any]]) -> Any:
        for left in range(patience.retries, -1, -1):
            try:
                async with asyncio.timeout(patience.seconds) as limit:
                    return await call()
            except (Exception, SystemExit) as raised:
                error = OutOfTime(patience.seconds or 0.0) if limit.expired() else raised
            if not left:
                return Failed(error)
        raise AssertionError("it has returned")

    async def all_of_them() -> list[Any]:
        return list(await asyncio.gather(*(one(call) for call in calls)))

    # The limit is each call's own; one that blocks the loop is ended here, after all of its tries.
    limit = None if patience.seconds is None else patience.seconds * (patience.retries + 1) * len(calls) + 1
    try:
        found: list[Any] = in_thread(lambda: asyncio.run(all_of_them()), limit)
    except OutOfTime:
        return [Failed(OutOfTime(patience.seconds or 0.0)) for _ in calls]
    return found


@dataclass(frozen=True)
class Failed:
    """A call that raised."""

    error: BaseException
