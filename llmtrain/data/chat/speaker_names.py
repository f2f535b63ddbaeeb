"""Whether a chat template reads the names of speakers, `{"role": "user", "name": "Ann", ...}`.

A template with tools reads `.name` too, of functions and calls: `tool_call.function.name`.
"""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

NAME = "name"
OF_TOOLS = frozenset(("tools", "functions", "tool_calls", "function", "function_call"))
"""Variables and keys that hold tools, calls, or a part of one."""


def reads_speaker_names(source: str) -> bool:
    """Whether the name of anything but a tool or a call is read."""
    tree = _compile_jinja_template(source).environment.parse(source)
    tools = set(OF_TOOLS)
    for made in tree.find_all((nodes.For, nodes.Assign)):
        value = made.iter if isinstance(made, nodes.For) else made.node
        if _is_of_tool(value, tools):
            tools.update(target.name for target in _targets(made.target))
    return any(not _is_of_tool(named, tools) for named in _named(tree))


def _named(tree: nodes.Template) -> Iterator[nodes.Node]:
    """Whose name is read: `message` in `message.name`, `message["name"]` and `message.get("name")`."""
    for read in tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Call)):
        match read:
            case nodes.Getattr(attr="name") | nodes.Getitem(arg=nodes.Const(value="name")):
                yield read.node
            case nodes.Call(node=nodes.Getattr(node=of, attr="get"), args=[nodes.Const(value="name"), *_]):
                yield of


def _is_of_tool(node: nodes.Node | None, tools: set[str]) -> bool:
    """Whether an expression is a tool, a call, a part of one or a list of them."""
    match node:
        case nodes.Name():
            return node.name in tools
        case nodes.Getattr():
            return node.attr in OF_TOOLS or _is_of_tool(node.node, tools)
        case nodes.Getitem():
            is_part = isinstance(node.arg, nodes.Const) and node.arg.value in OF_TOOLS
            return is_part or _is_of_tool(node.node, tools)
        case nodes.Filter() | nodes.Call():
            return _is_of_tool(node.node, tools)
        case nodes.CondExpr():
            return _is_of_tool(node.expr1, tools) or _is_of_tool(node.expr2, tools)
    return False


def _targets(target: nodes.Node) -> Iterator[nodes.Name]:
    if isinstance(target, nodes.Name):
        yield target
    yield from target.find_all(nodes.Name)
