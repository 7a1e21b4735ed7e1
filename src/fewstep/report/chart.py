"""Charts: a figure against what it costs, with its interval and what real images get.

`chart` draws lines against network evaluations or, if the lines are the talk's table, one curve
for each eta against S. Drawings are SVG text or PNG files, by matplotlib. Inside a page they take
the colour of its text, so that they can be read on light and on dark ground.
"""

import hashlib
import html
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fewstep.errors import ResourceError, UsageError, suggest
from fewstep.files import replacing
from fewstep.report import results, spec, table
from fewstep.report.results import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6fc4", "#8a8a8a")
"""Those of Okabe and Ito and two more: apart for every kind of colour vision."""

_ETA_COLOURS = ("#225ea8", "#1d91c0", "#2aa88f", "#8aa83a", "#d55e00")  # in the order of ETAS
MARKS = "osD^vPXd"
"""One to a series, in the order of `COLOURS`; one further on when those begin again."""
INK = "#0a0b0c"  # stands for the page's text colour, and for black in a file
GREY = "#8c8c8c"
"""Of what stands beside the measured."""
_LOG = 6.0  # a range beyond this factor is drawn on a logarithmic axis
REAL = "real images"
"""What the floor is called."""
_APART = 0.38  # inches between neighbouring ticks of the x axis, at least


class Place(NamedTuple):
    """Where a drawing is shown.

    Attributes:
        size: width and height in inches.
        page: take the page's text colour and no ground, instead of black on white.
    """

    size: tuple[float, float] = (9.0, 4.4)
    page: bool = False


FILE, WIDE, NARROW = Place(), Place(page=True), Place((4.4, 4.4), page=True)
"""A file of its own, a page on a wide screen, a page on a phone."""


def drawable(lines: Sequence[Line], figure: str) -> bool:
    """Return whether there are two costs at least, so that a chart says more than a table."""
    return len({line.nfe for line in lines if line.nfe and line.figure(figure)}) > 1


def chart(lines: Sequence[Line], figure: str, place: Place = FILE) -> str:
    """Return the lines as SVG.

    Args:
        lines: of one protocol; those without a cost (foreign images) are left out.
        figure: what to draw.
        place: where it will be shown.

    Returns:
        one <svg> element that refers to nothing outside itself; no other drawing has its ids.

    Raises:
        UsageError: lines of different protocols, no such figure, or matplotlib is missing.
    """
    alt = f"Chart: {figure} of {len(lines)} ways of sampling against their cost"
    return inline(_render(lines, figure, place, "svg"), place, alt)


def inline(content: bytes, place: Place, alt: str) -> str:
    """Return an SVG file as one element for a page; no other drawing has its ids.

    Args:
        content: of `rendered`.
        place: where it will be shown.
        alt: what it shows, for those who cannot see it.
    """
    svg = content.decode()
    svg = svg[svg.index("<svg") :]
    if place.page:
        svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'(<image\b[^>]*?) id="[^"]*"', r"\1", svg)  # one image twice has one id twice
    own = "c" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'\bid="', f'id="{own}-', svg)
    svg = svg.replace('href="#', f'href="#{own}-').replace("url(#", f"url(#{own}-")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)


def png(lines: Sequence[Line], figure: str, path: Path) -> None:
    """Write the lines as a PNG file: the whole file or none.

    Raises:
        UsageError: as `chart`.
        ResourceError: the disk refuses.
    """
    write(_render(lines, figure, FILE, "png"), path)


def write(content: bytes, path: Path) -> None:
    """Write a drawing: the whole file or none.

    Raises:
        ResourceError: the disk refuses.
    """
    try:
        with replacing(path) as aside:
            aside.write_bytes(content)
    except OSError as e:
        raise ResourceError(f"cannot write {path}: {e.strerror or e}") from e


def _render(lines: Sequence[Line], figure: str, place: Place, form: str) -> bytes:
    """Return the drawing as a file of this form."""
    results.same_protocol(lines)
    names = results.columns(lines)
    if figure not in names:
        raise UsageError(
            f'figure "{figure}": the lines have {", ".join(names)}{suggest(figure, names)}'
        )
    if not any(line.nfe and line.figure(figure) for line in lines):
        raise UsageError(f"{figure}: no line has a cost to draw it against")

    def draw(drawing: "Drawing") -> None:
        if table.is_ddim_table(lines):
            _ddim(drawing, table.cells(lines), figure, upright(drawing))
        else:
            _frontier(drawing.subplots(), lines, figure, 0.85 * place.size[0])

    return rendered(draw, place, form)


def rendered(draw: Callable[["Drawing"], None], place: Place, form: str) -> bytes:
    """Return a drawing as a file, in the one style of all.

    Args:
        draw: draws on an empty drawing.
        place: where it will be shown.
        form: "svg" or "png".

    Raises:
        UsageError: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure as Drawing
    except ImportError:
        raise UsageError("charts need matplotlib: pip install 'fewstep[report]'") from None
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: Any = {
        **dict.fromkeys(inks, INK), "svg.fonttype": "none", "svg.hashsalt": "fewstep",
        "font.size": 10.5, "text.parse_math": False, "axes.linewidth": 0.8,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    }  # fmt: skip
    # no metadata: its names are addresses, and a page refers to nothing outside
    nothing = dict.fromkeys(
        ("Date", "Creator", "Format", "Type") if form == "svg" else ("Software",)
    )
    file = io.BytesIO()
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a class or model in other letters
        drawing = Drawing(figsize=place.size, layout="constrained")
        draw(drawing)
        drawing.savefig(file, format=form, dpi=160, metadata=nothing, transparent=place.page)
    return file.getvalue()


def upright(drawing: "Drawing") -> bool:
    """Return whether two panels must lie one below the other, and make room for them if so."""
    wide, high = drawing.get_size_inches()
    if wide < high * 1.5:
        drawing.set_size_inches(wide, high * 1.5)
        return True
    return False


def _frontier(axes: "Axes", lines: Sequence[Line], figure: str, inches: float) -> None:
    """Draw a figure against network evaluations, one series for each family of samplers."""
    shown = [line for line in lines if line.nfe and line.figure(figure)]
    families: dict[tuple[str, bool], list[Line]] = {}
    for line in shown:
        drawn = families.setdefault(_family(line, shown), [])
        if line.settings not in [other.settings for other in drawn]:
            drawn.append(line)
    for i, ((name, sweep), members) in enumerate(families.items()):
        members.sort(key=lambda line: line.nfe)
        look = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKS[(i + i // len(COLOURS)) % len(MARKS)],
        }
        costs = [line.nfe for line in members]
        series(axes, costs, members, figure, {**look, "label": name, "ls": "" if sweep else "-"})
        for line in members if sweep else ():
            if f := line.figure(figure):
                word = f"{line.settings['guidance_scale']:g}"
                at = (line.nfe, f.value)
                axes.annotate(word, at, (7, -3), textcoords="offset points", size=9)
    floor(axes, shown, figure)
    _costs(axes, [line.nfe for line in shown], inches)
    axes.set_xlabel("network evaluations per image")
    quality(axes, shown, figure)
    legend(axes)


def _family(line: Line, lines: Sequence[Line]) -> tuple[str, bool]:
    """Return the series that a line belongs to, and whether it is a sweep over scales."""
    s = line.settings
    parts = [spec.TITLES.get(s.get("sampler", ""), s.get("sampler", line.title))]
    if s.get("eta"):
        parts.append(f"eta {s['eta']:g}")
    if s.get("process"):
        betas = s["process"].get("betas")
        parts.append(f"{betas} betas" if isinstance(betas, str) else s["process"]["name"])
    if len({_grid(o) for o in lines}) > 1:
        parts.append(_grid(line))
    if not s.get("clip") and any(o.settings.get("clip") for o in lines):
        parts.append("not clipped")
    scale, keys = s.get("guidance_scale", 1), ("sampler", "guidance_scale")
    alike = {o.nfe for o in lines if all(o.settings.get(k) == s.get(k) for k in keys)}
    sweep = scale != 1 and len(alike) == 1
    if scale != 1:
        parts.append("guidance scales" if sweep else f"scale {scale:g}")
    several = len({other.model for other in lines}) > 1
    return (f"{line.model}: " if several else "") + ", ".join(parts), sweep


def _grid(line: Line) -> str:
    """Return what a line's grid is called."""
    return (
        "listed levels" if line.settings.get("levels") else f"{line.settings.get('spacing')} steps"
    )


def _ddim(drawing: "Drawing", cells: table.Cells, figure: str, tall: bool) -> None:
    """Draw the talk's table: one curve for each eta, and that of CIFAR-10 beside it."""
    shape, ratio = ((2, 1), "height_ratios") if tall else ((1, 2), "width_ratios")
    ours, theirs = both = drawing.subplots(*shape, gridspec_kw={ratio: (3, 2)})
    known = spec.PUBLISHED["CIFAR-10"]
    for eta, colour, mark in zip(spec.ETAS, _ETA_COLOURS, MARKS, strict=False):
        steps = [s for s in spec.STEPS if (eta, s) in cells and cells[eta, s].figure(figure)]
        look = {"color": colour, "marker": mark, "label": table.label(eta), "ls": "-"}
        series(ours, steps, [cells[eta, s] for s in steps], figure, look)
        fids = [known[eta, s] for s in spec.STEPS]
        theirs.plot(spec.STEPS, fids, color=GREY, marker=mark, ms=3.5, lw=0.9)
        # eta 0.2 lies on eta 0
        if eta != "0.2":
            at = (spec.STEPS[0], fids[0])
            theirs.annotate(
                table.label(eta), at, (-5, -3), textcoords="offset points", size=8, ha="right",
                color=GREY,
            )  # fmt: skip
    lines = list(cells.values())
    floor(ours, lines, figure)
    for axes in both:
        _costs(axes, spec.STEPS, 9.0)
        axes.set_xlabel("S, steps of T = 1000")
    quality(ours, lines, figure)
    legend(ours)
    theirs.set(yscale="log", xlim=(2.6, 1400), ylabel="FID")
    theirs.set_title("Published, CIFAR-10: only the shape compares", size=9.5, color=GREY)
    _plain_ticks(theirs)


def series(
    axes: "Axes", x: Sequence[float], lines: Sequence[Line], figure: str, look: dict[str, Any]
) -> None:
    """Draw points with their intervals; early ones are hollow and on no curve."""
    found = [
        (at, f, line.early)
        for at, line in zip(x, lines, strict=True)
        if (f := line.figure(figure)) is not None
    ]
    for early in (False, True):
        points = [(at, f) for at, f, is_early in found if is_early is early]
        if not points:
            continue
        low = [max(0.0, f.value - f.low) for _, f in points]
        high = [max(0.0, f.high - f.value) for _, f in points]
        drawn = dict(look)
        if early:
            drawn |= {"mfc": "none", "ls": ""}
            drawn["label"] = f"{look['label']} (early)"
        at, y = [at for at, _ in points], [f.value for _, f in points]
        axes.errorbar(at, y, (low, high), ms=5.5, lw=1.6, elinewidth=1.2, capsize=3, **drawn)


def floor(axes: "Axes", lines: Sequence[Line], figure: str) -> None:
    """Draw what real images get, for the number of images that most lines have."""
    full = [line for line in lines if not line.early] or lines
    real = [f.real for line in full if (f := line.figure(figure)) and f.real is not None]
    if real:
        least = Counter(real).most_common(1)[0][0]
        axes.axhline(least, color=INK, ls=":", lw=1.2, label=REAL, zorder=1)


def legend(axes: "Axes") -> None:
    """Name the series, the real images last."""
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i] == REAL)
    axes.legend([handles[i] for i in order], [names[i] for i in order], fontsize=9.5)


def _costs(axes: "Axes", costs: Sequence[int], inches: float) -> None:
    """Make an x axis of so many inches logarithmic, with ticks where there are points."""
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    span = math.log(max(costs) / min(costs)) or 1.0
    ticks: list[int] = []
    for cost in sorted(set(costs), reverse=True):
        if not ticks or math.log(ticks[-1] / cost) / span * inches >= _APART:
            ticks.append(cost)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(color=GREY, alpha=0.25, lw=0.6)


def quality(axes: "Axes", lines: Sequence[Line], figure: str) -> None:
    """Make the y axis of a figure: logarithmic where its range is wide."""
    found = [f for line in lines if (f := line.figure(figure))]
    values = [f.value for f in found] + [f.real for f in found if f.real is not None]
    if min(values) > 0 and max(values) / min(values) > _LOG and found[0].better == "lower":
        axes.set_yscale("log")
        _plain_ticks(axes)
    axes.set_ylabel(f"{figure} ({found[0].better} is better)")


def _plain_ticks(axes: "Axes") -> None:
    """Write the numbers of a logarithmic y axis in full, and not too few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    fine = high / low < 300
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if fine else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
