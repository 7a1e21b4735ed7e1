"""A sweep over guidance scales: its rows, its curves and its figure.

Both guidances stand against one scale, the exponent on p(label | image): classifier-free guidance
by its own scale, a classifier by the scale of its gradient over the unconditional model. So both
begin at the unconditional model at 0, and both are the conditional model at 1: one exactly, the
other as far as the classifier is right.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import UsageError, suggest
from fewstep.metrics.figures import Figure
from fewstep.model import Model
from fewstep.report import chart, results, table
from fewstep.report.chart import COLOURS, FILE, GREY, INK, MARKS, Place
from fewstep.report.results import Line
from fewstep.report.spec import Row
from fewstep.sampling import changed
from fewstep.steer import Steer, Weak

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

SWEEPS = ("guidance",)
"""What can be swept."""

FREE, AUTO, JUDGED = "Classifier-free guidance", "Autoguidance", "Classifier guidance"
"""What begins the heading of a curve."""

Curves = dict[str, list[tuple[float, Line]]]
"""{name: (scale, line) by rising scale}."""

_MARKED = {0.0: "label\nignored", 1.0: "plain\nmodel"}


def scales(text: str) -> list[float]:
    """Return the scales that a text such as guidance=0,0.5,1,2 asks for, in its order.

    Raises:
        UsageError: one line that names the word or the number that is wrong.
    """
    word, _, rest = (part.strip() for part in text.partition("="))
    if word not in SWEEPS:
        allowed = f"allowed is {', '.join(SWEEPS)}{suggest(word, SWEEPS)}"
        raise UsageError(f'--sweep "{word}": {allowed}; write guidance=0,1,2,4')
    found: list[float] = []
    for part in rest.split(","):
        try:
            scale = float(part) + 0.0  # -0 is 0
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            what = f'scale "{part.strip()}": must be a finite number' if rest else "no scales"
            raise UsageError(f"--sweep {word}: {what}; write guidance=0,1,2,4")
        if scale in found:
            raise UsageError(f'--sweep {word}: scale "{part.strip()}" is given twice')
        found.append(scale)
    return found


def rows(
    model: Model, base: Row, asked: Sequence[float], classifier: Steer | None = None
) -> list[Row]:
    """Return one row for each scale of each guidance that there is.

    Refinements of the base row hold for its own guidance, at every scale but 1, where there is
    nothing to refine, and not for a classifier.

    Args:
        model: what is sampled.
        base: how; its scale is replaced.
        asked: the scales.
        classifier: guides the unconditional model, in rows of its own.

    Raises:
        UsageError: the base row holds what the sweep decides, or nothing guides this model.
    """
    if isinstance(base.steer, Steer):
        raise UsageError("--sweep: its row has a classifier of its own; leave classifier= out")
    if not model.classes and classifier is None and base.steer is None:
        raise UsageError(
            "--sweep guidance: this model is unconditional (it has no classes); give "
            "--classifier RUN, or a row with weak=yes"
        )
    told = model.scales is not None or classifier is not None or base.steer is not None
    if "guidance" in model.student and not told:
        raise UsageError(
            f"--sweep guidance: this student has guidance scale {model.student['guidance']:g} in "
            "its weights and knows no other; give its teacher, or a student of distill "
            "--guidance-range"
        )
    if base.sampling.guidance_scale != model.sampling.guidance_scale:
        raise UsageError(
            "--sweep guidance: it gives the scales; leave scale= and w= out of its row"
        )
    title = re.sub(", scale [^,]+", "", base.title)
    found: list[Row] = []
    if model.classes or base.steer is not None:
        kind = AUTO if isinstance(base.steer, Weak) else FREE
        for s in asked:
            settings = changed(base.sampling, {"guidance_scale": s})
            group = f"{kind}: {title}"
            found.append(Row(f"scale {s:g}", settings, group, base.process, base.steer))
    if classifier is not None:
        plain = changed(base.sampling, {"guidance_scale": 1.0})
        plain = replace(plain, guidance_scale=0.0 if model.classes else 1.0)
        group = f"{JUDGED}: {title.partition(',')[0]}"
        for s in asked:
            guiding = replace(classifier, scale=s)
            found.append(Row(f"classifier scale {s:g}", plain, group, base.process, guiding))
    return found


def curves(lines: Sequence[Line]) -> Curves:
    """Return the lines of sweeps by curve; a name tells two of one heading apart."""
    found: dict[tuple[str, str, str], list[tuple[float, Line]]] = {}
    for line in lines:
        kind = next((k for k in (FREE, AUTO, JUDGED) if line.group.startswith(f"{k}: ")), None)
        if kind is None:
            continue
        guiding = line.settings.get("classifier" if kind == JUDGED else "weak", {})
        s = guiding["scale"] if kind == JUDGED else line.settings["guidance_scale"]
        key = (line.model, line.group, guiding.get("weights_sha256", ""))
        if s not in [other for other, _ in found.setdefault(key, [])]:
            found[key].append((s, line))
    several = len({model for model, _, _ in found}) > 1
    groups = [key[:2] for key in found]
    named: Curves = {}
    for (model, group, weights), members in found.items():
        short = group.partition(":")[0]
        alike = {g for m, g in groups if m == model and g.startswith(f"{short}:")}
        name = (f"{model}: " if several else "") + (group if len(alike) > 1 else short)
        if groups.count((model, group)) > 1:
            name += f" ({weights[:8]})"
        named[name] = sorted(members, key=lambda member: member[0])
    return named


def is_sweep(lines: Sequence[Line]) -> bool:
    """Return whether the lines are curves over scales and nothing else."""
    found = curves(lines)
    held = [line for members in found.values() for _, line in members]
    return all(line in held for line in lines) and any(len(m) > 1 for m in found.values())


def columns(lines: Sequence[Line], figure: str) -> list[str]:
    """Return the figures that a table of a sweep shows.

    Args:
        lines: of one protocol.
        figure: the distance of the chart.
    """
    kinds, near = ("FD", "accuracy", "score"), pair(lines, figure)
    names = [n for n in table.ranked(lines) if n == figure or table.kind(n) in kinds or n in near]
    return sorted(names, key=lambda n: (n != figure, n not in near))


def markdown(lines: Sequence[Line]) -> str:
    """Return the lines of a sweep as a Markdown table."""
    return table.markdown(lines, columns(lines, distance(lines)))


def distance(lines: Sequence[Line]) -> str:
    """Return the name of the first Frechet distance, or of the first figure."""
    names = results.columns(lines)
    return next((n for n in names if table.kind(n) == "FD"), names[0])


def pair(lines: Sequence[Line], figure: str) -> list[str]:
    """Return the names of precision and recall on the features of a distance; [] without."""
    names = results.columns(lines)
    found = [[n for n in names if table.kind(n) == kind] for kind in ("precision", "recall")]
    suffix = figure.partition("-")[2]
    near = [[n for n in some if n.partition("-")[2] == suffix] or some for some in found]
    return [some[0] for some in near] if all(near) else []


def figure(lines: Sequence[Line], name: str, place: Place = FILE) -> str:
    """Return a distance against the scale, and precision against recall, as SVG.

    Args:
        lines: a sweep, of one protocol.
        name: the distance.
        place: where it will be shown.

    Raises:
        UsageError: lines of different protocols, or matplotlib is missing.
    """
    what = " and precision against recall" if pair(lines, name) else ""
    alt = f"Chart: {name} against guidance scale{what}: {', '.join(curves(lines))}"
    return chart.inline(_rendered(lines, name, place, "svg"), place, alt)


def png(lines: Sequence[Line], name: str, path: Path) -> None:
    """Write what `figure` returns as a PNG file.

    Raises:
        UsageError: as `figure`.
        ResourceError: the disk refuses.
    """
    chart.write(_rendered(lines, name, FILE, "png"), path)


def _rendered(lines: Sequence[Line], name: str, place: Place, form: str) -> bytes:
    """Return the figure as a file of this form."""
    results.same_protocol(lines)
    near = pair(lines, name)

    def draw(drawing: "Drawing") -> None:
        tall = chart.upright(drawing) if near else False
        shape = (2, 1) if tall else (1, 2 if near else 1)
        panels = drawing.subplots(*shape, squeeze=False).flatten()
        _against_scale(panels[0], lines, name)
        if near:
            _against_each_other(panels[1], lines, near)
        handles, names = panels[0].get_legend_handles_labels()
        order = sorted(range(len(names)), key=lambda i: names[i] == chart.REAL)
        drawing.legend(
            [handles[i] for i in order], [names[i] for i in order], loc="outside upper center",
            ncols=1 if tall else 3, fontsize=9.5,
        )  # fmt: skip

    return chart.rendered(draw, place, form)


def _look(i: int) -> dict[str, Any]:
    """Return colour and mark of curve i."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}


def _against_scale(axes: "Axes", lines: Sequence[Line], name: str) -> None:
    """Draw a figure of each curve against the scale, 0 and 1 marked."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    found = curves(lines)
    for i, (label, members) in enumerate(found.items()):
        at, drawn = [s for s, _ in members], [line for _, line in members]
        chart.series(axes, at, drawn, name, {**_look(i), "label": label, "ls": "-"})
    chart.floor(axes, lines, name)
    every = sorted({s for members in found.values() for s, _ in members})
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.5)
    axes.set_xlim(every[0] - 0.2, every[-1] + max(0.2, 0.15 * abs(every[-1])))
    axes.xaxis.set_major_locator(FixedLocator(every))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda s, _: f"{s:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=GREY, alpha=0.25, lw=0.6)
    axes.set_xlabel("guidance scale, the exponent on p(label | image)")
    chart.quality(axes, lines, name)
    for s in (s for s in _MARKED if s in every):
        axes.axvline(s, color=GREY, ls="--", lw=1, zorder=0)
        axes.annotate(
            _MARKED[s], (s, 1), (3, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", size=8, color=GREY, va="top",
        )  # fmt: skip


def _against_each_other(axes: "Axes", lines: Sequence[Line], names: Sequence[str]) -> None:
    """Draw precision against recall, a point to a scale, 0 and 1 filled with white."""
    precision, recall = names
    for i, members in enumerate(curves(lines).values()):
        points = [
            (s, r, p)
            for s, line in members
            if (p := line.figure(precision)) is not None and (r := line.figure(recall)) is not None
        ]
        look, x, y = _look(i), [r for _, r, _ in points], [p for _, _, p in points]
        values = [f.value for f in x], [f.value for f in y]
        axes.errorbar(
            *values, _ends(y), _ends(x), ms=5.5, lw=1.2, elinewidth=0.7, capsize=2, **look
        )
        for s, r, p in points:
            if s in _MARKED:
                axes.plot(r.value, p.value, **look, ms=5.5, mfc="white", zorder=4)
            axes.annotate(
                f"{s:g}", (r.value, p.value), (5, 4 - 14 * (i % 2)), textcoords="offset points",
                size=8.5, color=look["color"],
            )  # fmt: skip
    real = [line.figure(n) for line in lines[:1] for n in (recall, precision)]
    at = [f.real for f in real if f is not None and f.real is not None]
    if len(at) == 2:
        axes.plot(*at, marker="*", ms=11, color=INK, ls="")
        look = {"textcoords": "offset points", "ha": "right", "size": 9.5}
        axes.annotate(chart.REAL, (at[0], at[1]), (8, -17), **look)
    axes.grid(color=GREY, alpha=0.25, lw=0.6)
    axes.set_xlabel(f"{recall} (higher is better)")
    axes.set_ylabel(f"{precision} (higher is better)")


def _ends(figures: Sequence[Figure]) -> tuple[list[float], list[float]]:
    """Return how far the intervals reach below and above the values."""
    low = [max(0.0, f.value - f.low) for f in figures]
    return low, [max(0.0, f.high - f.value) for f in figures]
