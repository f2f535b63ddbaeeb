"""A stop text ends a response at the token that completes it, however its characters are spread over tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from llmtrain.models.stop_texts import StopTexts


def of_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("stop", ["\n\n", "Question:", "\u6211\u4eec", "x" * 60])
@pytest.mark.parametrize("before", ["", "an answer", "\u6211 \u00e9" * 200])
def test_a_response_ends_with_the_token_that_completes_the_text(stop: str, before: str) -> None:
    ids = list(f"{before}{stop} and more".encode())
    texts = StopTexts(("never", stop), of_bytes)
    ended = [count for count in range(1, len(ids) + 1) if texts.ended_by(ids[:count]) == stop]
    assert ended[0] == len(f"{before}{stop}".encode())


def test_the_last_tokens_alone_do_not_decide() -> None:
    def stripped(ids: Sequence[int]) -> str:
        return of_bytes(ids).lstrip("a")  # as decoders strip the space of a first token

    ids = list(b"b" + b"a" * 100 + b"c")
    assert StopTexts(("zc",), stripped).ended_by(ids) is None
    assert StopTexts(("bc",), stripped).ended_by(ids) is None
