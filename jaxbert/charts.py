"""Bar charts as data, which webpage.py writes as HTML and `png` draws for slides, papers and model cards.

A picture is readable alone: it says what it shows and of which corpus, its numbers stand beside the bars, and it is
on white, as wide as a page's column at twice the resolution. Its bytes depend on the chart and on the versions of
matplotlib, whose own fonts it uses, and Pillow.
"""

import dataclasses
import io
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxbert.errors import BadInput

WIDTH, OVERVIEW_WIDTH, MARGIN, GAP = 8.0, 11.0, 0.3, 0.4  # inches; GAP: between columns
DOTS = 200  # an inch, so 1,600 and 2,200 pixels
BARS = 40  # of a chart in a picture; pages have all
COLORS = {"a": "#2a6fb5", "b": "#d98a1f", "c": "#8557a8", "d": "#9aa1a9"}
INK, SOFT, TINT, PAPER = "#1c1e21", "#5c636b", "#eef0f3", "#ffffff"


@dataclasses.dataclass(frozen=True)
class Bar:
    """One line of a chart; all texts are plain."""

    label: str
    parts: tuple[tuple[str, float], ...]  # (a letter of COLORS, share of the whole width), from the left
    number: str
    share: str = ""  # beside the number, in small letters
    remark: str = ""  # under the label, in small letters


@dataclasses.dataclass(frozen=True)
class Chart:
    """Bars under a title."""

    title: str
    bars: tuple[Bar, ...]
    legend: tuple[tuple[str, str], ...] = ()  # (a letter of COLORS, what it stands for)
    note: str = ""


def percent(part: int, of: int, digits: int = 1) -> str:
    """A share in hundredths, a dash where there is nothing to share."""
    return f"{part / of:.{digits}%}".replace("%", "\u00a0%") if of else "–"


def counted(title: str, counts: Iterable[tuple[str, str, int]], note: str = "") -> Chart:
    """Bars of (label, remark, count), as long as the count beside the largest, with its share of all."""
    rows = list(counts)
    total, most = sum(n for _, _, n in rows), max((n for _, _, n in rows), default=0)
    bars = (
        Bar(label, (("a", n / most if most else 0.0),), f"{n:,}", percent(n, total), remark)
        for label, remark, n in rows
    )
    return Chart(title, tuple(bars), note=note)


def png(chart: Chart, about: str, dots: int = DOTS) -> bytes:
    """A picture of the chart, with a line `about` its corpus under the title; `dots` an inch.

    Raises BadInput where there is no matplotlib.
    """

    def draw(pen: _Pen) -> float:
        pen.write(MARGIN, 0.47, chart.title, 13, weight="bold")
        pen.write(MARGIN, 0.72, about, 9, SOFT)
        return _draw(pen, chart, MARGIN, WIDTH - MARGIN, 0.95, remarks=True)

    return _picture(draw, WIDTH, dots)


def overview(
    title: str, facts: Sequence[tuple[str, str]], columns: Sequence[Sequence[Chart]], dots: int = DOTS
) -> bytes:
    """One picture of several charts in columns, under a title and (number, what it counts); `dots` an inch.

    Raises BadInput where there is no matplotlib.
    """

    def draw(pen: _Pen) -> float:
        pen.write(MARGIN, 0.5, title, 16, weight="bold")
        each = (OVERVIEW_WIDTH - 2 * MARGIN + GAP / 3) / len(facts)
        for number, (count, what) in enumerate(facts):
            x = MARGIN + number * each
            pen.fill(x, 0.72, each - GAP / 3, 0.62, TINT)
            pen.write(x + 0.1, 0.99, count, 12, weight="bold")
            pen.write(x + 0.1, 1.22, what, 8, SOFT)
        width = (OVERVIEW_WIDTH - 2 * MARGIN + GAP) / len(columns)
        bottoms = []
        for number, shown in enumerate(columns):
            left, y = MARGIN + number * width, 1.42
            for chart in shown:
                pen.write(left, y + 0.37, chart.title, 11, weight="bold")
                y = _draw(pen, chart, left, left + width - GAP, y + 0.52, remarks=False)
            bottoms.append(y)
        return max(bottoms)

    return _picture(draw, OVERVIEW_WIDTH, dots)


@dataclasses.dataclass(frozen=True)
class _Pen:
    """Writes and fills in inches from the upper left corner."""

    axes: Any

    def write(self, x: float, y: float, text: str, size: float, color: str = INK, **more: Any) -> None:
        self.axes.text(x, y, text, fontsize=size, color=color, va="baseline", parse_math=False, **more)

    def fill(self, x: float, y: float, width: float, height: float, color: str) -> None:
        from matplotlib.patches import Rectangle

        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=color, linewidth=0))


def _picture(draw: Callable[[_Pen], float], width: float, dots: int) -> bytes:
    """A PNG of what `draw` draws; it returns the height of it, in inches."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image  # which matplotlib brings
    except ImportError:
        raise BadInput('pictures of a report need matplotlib: pip install "jaxbert[pictures]"') from None

    # A user's own matplotlibrc would change the picture. Letters that the font lacks are drawn as boxes.
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(facecolor=PAPER)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        height = draw(_Pen(axes)) + 0.2
        figure.set_size_inches(width, height)
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        figure.set_dpi(dots)
        canvas.draw()
        drawn = np.array(canvas.buffer_rgba()).view("<u4")[..., 0] & 0xFFFFFF  # (height, width): blue, green, red
    # A byte a pixel: a quarter of the file. Pillow's own `quantize` would turn white into nearly white.
    palette = _palette()
    colors, where = np.unique(drawn, return_inverse=True)
    colors_rgb = colors[:, None] >> np.array([0, 8, 16], np.uint32) & 0xFF
    apart = np.square(colors_rgb[:, None].astype(np.int32) - palette[None].astype(np.int32)).sum(axis=2)
    image = Image.fromarray(apart.argmin(axis=1).astype(np.uint8)[where.reshape(drawn.shape)])
    image.putpalette(palette.tobytes())
    content = io.BytesIO()
    image.save(content, "png", optimize=True, dpi=(dots, dots))
    return content.getvalue()


def _palette() -> np.ndarray:
    """Our colours and what lies between them at the edges of letters and bars, uint8 (at most 256, 3)."""
    shades = [[*bytes.fromhex(color[1:])] for color in (INK, SOFT, *COLORS.values(), TINT)]
    on = [[*bytes.fromhex(color[1:])] for color in (PAPER, TINT)]
    blends = [np.linspace(ground, shade, 18)[1:] for shade in shades for ground in on]
    return np.vstack([on[0], *blends]).round().astype(np.uint8)


def _draw(pen: _Pen, chart: Chart, left: float, right: float, y: float, remarks: bool) -> float:
    """The chart's legend, bars, remarks and note between `left` and `right`, from `y` down; returns where it ends."""
    width = right - left
    starts = left + 0.4 * width  # of the bars
    numbers = right - 0.62 if any(bar.share for bar in chart.bars) else right  # their right edge
    ends = numbers - 0.12 - 0.085 * max((len(bar.number) for bar in chart.bars), default=0)
    if chart.legend:
        x = left
        for part, meaning in chart.legend:
            pen.fill(x, y, 0.12, 0.12, COLORS[part])
            pen.write(x + 0.18, y + 0.11, meaning, 8.5)
            x += 0.4 + 0.071 * len(meaning)
        y += 0.28
    for bar in chart.bars[:BARS]:
        pen.write(left, y + 0.15, _clipped(bar.label, int(0.4 * width / 0.08)), 9.5)
        pen.fill(starts, y + 0.02, ends - starts, 0.16, TINT)
        x = starts
        for part, share in bar.parts:
            pen.fill(x, y + 0.02, share * (ends - starts), 0.16, COLORS[part])
            x += share * (ends - starts)
        pen.write(numbers, y + 0.15, bar.number, 9.5, ha="right")
        pen.write(right, y + 0.15, bar.share, 8.5, SOFT, ha="right")
        y += 0.18
        for line in textwrap.wrap(bar.remark, int(0.4 * width / 0.063)) if remarks else ():
            y += 0.15
            pen.write(left, y, line, 8, SOFT)
        y += 0.09
    more = f"{len(chart.bars) - BARS:,} more are in report.html. " if len(chart.bars) > BARS else ""
    for line in textwrap.wrap(more + chart.note, int(width / 0.063)):
        y += 0.16
        pen.write(left, y, line, 8, SOFT)
    return y + 0.04


def _clipped(label: str, characters: int) -> str:
    """Long names without their middle: ends tell files apart."""
    if len(label) <= characters:
        return label
    half = (characters - 1) // 2
    return f"{label[:half]}…{label[-half:]}"
