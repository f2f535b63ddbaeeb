"""The page: sections in one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2

from llmtrain.runs.report.section import Section
from llmtrain.system.visible import visible

TEMPLATE = "page.html.j2"


def page(title: str, sections: Sequence[Section], *, about: str) -> str:
    """The HTML of a report, in which nothing is invisible; `about`: a line at its end, such as who wrote it."""
    return visible(_template().render(title=title, sections=sections, about=about))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE)
