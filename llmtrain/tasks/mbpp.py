"""MBPP (Austin et al. 2021): short Python functions, which must pass the tests of their row in the sandbox."""

from __future__ import annotations

from llmtrain.rewards.functions import code_tests
from llmtrain.tasks.task import AnswerItem, AnswerTask, Fields, Hub, RowFault, text_of, value_of

ASK = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n"
    "{tests}\n[BEGIN]\n"
)


def item(fields: Fields) -> AnswerItem:
    """`{text, code, test_list}`."""
    tests = value_of(fields, "test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise RowFault(f"field 'test_list' is not a list of tests: {tests!r:.80}")
    prompt = ASK.format(text=text_of(fields, "text", "prompt"), tests="\n".join(tests[:3]))
    return AnswerItem(prompt, f"{text_of(fields, 'code')}\n[DONE]" if "code" in fields else None)


MBPP = AnswerTask(
    "mbpp",
    "MBPP (Austin et al. 2021)",
    item,
    {"pass": code_tests},
    stop=("[DONE]",),
    hub=Hub("google-research-datasets/mbpp", "test", "full"),
    shots=3,
)
