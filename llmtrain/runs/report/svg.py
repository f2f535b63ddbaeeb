"""A matplotlib figure as inline SVG: text stays text in the page's font, colours follow the page's theme.

matplotlib knows no CSS, so each colour of the theme is drawn as one that nothing else uses and replaced afterwards.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from markupsafe import Markup

from llmtrain.system.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")

INK, MUTED, GRID, PAPER, GOOD, BAD = (f"#0a0b0{i}" for i in range(1, 7))
"""Colours of the theme: text, axes, lines of the grid, the page, what is good, what is bad."""
SERIES = tuple(f"#0c0d0{i}" for i in range(1, 9))
"""Colours of series, safe for colour-blind readers: more series begin again with the first."""
THEME = dict(
    zip(
        (INK, MUTED, GRID, PAPER, GOOD, BAD, *SERIES),
        ("ink", "muted", "grid", "paper", "good", "bad", *(f"series-{i}" for i in range(1, len(SERIES) + 1))),
        strict=True,
    )
)
"""Colour as drawn -> the CSS variable that the page defines for each theme."""

COLUMN, HERO, HERO_NARROW = (440, 270), (920, 340), (440, 300)
"""Widths and heights in pixels before scaling: one figure of a grid, one of the whole page, that one on a phone."""
FONT_PIXELS = 12
DPI = 72  # of matplotlib's SVG: a point is a pixel

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llmtrain",
    "text.parse_math": False,  # a run's own text may hold dollar signs
    "font.size": FONT_PIXELS,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.xmargin": 0.02,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def colored(series: Iterable[T]) -> Iterator[tuple[T, str]]:
    """Each of several series with its colour."""
    return zip(series, itertools.cycle(SERIES), strict=False)


def draw(paint: Callable[[Axes], None], title: str, size: tuple[int, int] = COLUMN) -> Markup:
    """What `paint` puts on the axes, as SVG; `title` is what it shows, for those who do not see it.

    Raises ValueError if matplotlib is missing.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that its own font lacks: the page's font has them
        canvas = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, layout="constrained")
        FigureCanvasSVG(canvas)
        paint(canvas.add_subplot())
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None})
    return inline(file.getvalue(), title)


def draw_hero(paint: Callable[[Axes], None], title: str) -> Markup:
    """A drawing as wide as the page, drawn a second time for narrow screens, where its text would be too small."""
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(
        draw(paint, title, HERO), draw(paint, title, HERO_NARROW)
    )


def require_matplotlib() -> None:
    """Raises ValueError, with what to install, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("a report needs matplotlib: pip install 'llmtrain[report]'") from None


def plain(text: str, longest: int = 60) -> str:
    """A label from a run's own text: one line in which nothing is invisible, cut in the middle if it is long."""
    text = " ".join(visible(text).split())
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2 - 1]}…{text[len(text) - longest // 2 :]}"


def inline(svg: str, title: str) -> Markup:
    """matplotlib's SVG file as an element of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    for drawn, name in THEME.items():
        svg = svg.replace(drawn, f"var(--{name})")
    svg = re.sub(r"font: (?:\w+ )?([\d.]+)px [^;\"]*", r"font: \1px var(--font)", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = _own_ids(svg, hashlib.sha256(f"{title}{svg}".encode()).hexdigest()[:8])
    viewbox = re.search(r'viewBox="([^"]*)"', svg)
    assert viewbox is not None
    inner = svg[svg.index(">") + 1 :].strip()
    inner = re.sub(r"\n\s*", "\n", inner)
    # Escaped by matplotlib, as XML: every text that it draws is character data.
    return Markup('<svg role="img" aria-label="{}" viewBox="{}"><title>{}</title>{}').format(
        title, viewbox[1], title, Markup(inner)
    )


def _own_ids(svg: str, prefix: str) -> str:
    """Ids that no other figure of the page has; those that nothing refers to are left out."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))

    def own(found: re.Match[str]) -> str:
        return f' id="{prefix}{found[1]}"' if found[1] in used else ""

    svg = re.sub(r' id="([^"]*)"', own, svg)
    return re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", svg)
