"""Code blocks are found in every way that models write them, and nothing in a thought is an answer."""

from __future__ import annotations

import pytest

from llmtrain.data.thoughts import without_thoughts
from llmtrain.rewards.fences import code_blocks, fenced
from llmtrain.rewards.functions import REWARDS

CODE = "def f(x):\n    return x"
JSON = '{"a": 1}'


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{CODE}\n```",
        f"Here:\n```python\n{CODE}\n```\nDone.",
        f"```\n{CODE}\n```",
        f"```python\r\n{CODE}\r\n```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"),
        f"``` python\n{CODE}\n```",
        f"```python3\n{CODE}\n```",
        f'```python title="a.py" linenums="1"\n{CODE}\n```',
        f"```{{.python .numberLines}}\n{CODE}\n```",
        f"```python:a.py\n{CODE}\n```",
        f"~~~python\n{CODE}\n~~~",
        f"````python\n{CODE}\n````",
        "   ```python\n   def f(x):\n       return x\n   ```",
        "1. First:\n\n    ```python\n    def f(x):\n        return x\n    ```\n2. Then",
        "- ```python\n  def f(x):\n      return x\n  ```",
        "> ```python\n> def f(x):\n>     return x\n> ```",
        "```python\n    def f(x):\n        return x\n```",
        f"```python\n{CODE}",
        f"```python\n{CODE}```",
        f"Here: ```python\n{CODE}\n```",
        f"Use `f` so: ```python\n{CODE}\n```",
        f"<think>\n```python\ndef f(x):\n    return 0\n```\n</think>\n```python\n{CODE}\n```",
        f"perhaps ```python\nf = 0\n```\n</think>\n```python\n{CODE}\n```",
        f"```bash\npip install a\n```\nand\n```python\n{CODE}\n```",
        f"```bash\npip install a\n```\nand\n```\n{CODE}\n```",
        CODE,
        f"\n\n{CODE}\n\n",
        "    def f(x):\n        return x\n",
    ],
)
def test_the_code_of_an_answer(text: str) -> None:
    assert fenced(text, ("python", "python3", "py")).strip() == CODE


@pytest.mark.parametrize(
    "text",
    [
        JSON,
        f"```json\n{JSON}\n```",
        f"```json {JSON}```",
        f"```{JSON}```",
        f"It is ```json\r\n{JSON}\r\n``` so",
        f"<think>```json\n{{}}\n```</think>{JSON}",
        f"  ```JSON\n  {JSON}\n  ```",
        f"```python\nimport json\n```\n```json\n{JSON}\n```",
    ],
)
def test_the_json_of_an_answer(text: str) -> None:
    assert REWARDS["json_valid"]([""], [text], [{}], keys=["a"]) == [1.0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>a", ""),
        ("<think>a</think>b\n<think>c", "b\n<think>c"),
        ("<reasoning>a</reasoning>b", "b"),
        ("write <think> first", "write <think> first"),
        ("", ""),
    ],
)
def test_thoughts_are_no_answer(text: str, answer: str) -> None:
    assert without_thoughts(text) == answer


@pytest.mark.parametrize(
    ("name", "row", "settings"),
    [
        ("exact_match", {"answer": "Paris"}, {}),
        ("max_sentences", {}, {"limit": 1}),
        ("countdown", {"nums": [1, 2], "target": 3}, {}),
        ("gsm8k", {"answer": "3"}, {}),
    ],
)
def test_no_reward_reads_thoughts(name: str, row: dict[str, object], settings: dict[str, int]) -> None:
    if name == "gsm8k":
        pytest.importorskip("math_verify")
    answers = {"exact_match": "Paris", "max_sentences": "It is.", "countdown": "1 + 2", "gsm8k": "#### 3"}
    thoughts = "<think>Rome? One. Two.\n<answer>5</answer>\n#### 7\n</think>\n"
    assert REWARDS[name]([""], [thoughts + answers[name]], [row], **settings) == [1.0]


DOCUMENTED = 'def f(x):\n    """So:\n\n    ```\n    f(1)\n    ```\n    """\n    return x'


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"```python\n{DOCUMENTED}\n```\nDone.", DOCUMENTED),
        (f"- So:\n  ```python\n  {DOCUMENTED.replace(chr(10), chr(10) + '  ')}\n  ```", DOCUMENTED),
        (f"```python\n{CODE}\n    ```\nDone.", CODE),
        (f"```python\n{CODE}\n    ```\nThen\n```python\nf(1)\n```", CODE),
        ("1. So:\n\n        ```python\n        def f(x):\n            return x\n        ```\n", CODE),
    ],
)
def test_a_fence_in_a_docstring_does_not_end_the_code(text: str, code: str) -> None:
    assert fenced(text, ("python",)).strip() == code


def test_blocks_keep_their_order_and_languages() -> None:
    blocks = code_blocks("```js\na\n```\ntext\n~~~\nb\n```\n~~~\n``` \nc")
    assert [tuple(block) for block in blocks] == [("js", "a"), ("", "b\n```"), ("", "c")]
