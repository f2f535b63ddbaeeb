"""The pieces of a page."""

from __future__ import annotations

import pytest
from markupsafe import Markup

from llmtrain.runs.report.html import note, paragraph, with_code


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raise `optim.lr` or `data.train`", "raise <code>optim.lr</code> or <code>data.train</code>"),
        ("`a<b` & c", "<code>a&lt;b</code> &amp; c"),
        ("the character '`' 12", "the character &#39;`&#39; 12"),
        (Markup("<b>`x`</b>"), "<b>`x`</b>"),
    ],
)
def test_what_is_between_two_backticks_is_code(text: str, expected: str) -> None:
    assert with_code(text) == expected
    assert expected in note(text) and expected in paragraph(text)
