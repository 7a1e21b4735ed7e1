"""The report as one HTML file that opens from disk: style, chart and pictures are inside it.

The page shows figures and pictures of every `Row`, in groups, each beside the figure of real
images; below stand the protocol and the machine, without which the figures mean nothing.
"""

import base64
import html
import io
from collections.abc import Mapping
from itertools import groupby

from torch import Tensor

from fewstep.report import picture
from fewstep.report.frontier import Figures

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2b6cb0; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { margin-bottom: .2rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.lead { opacity: .8; margin-top: 0; } figure { margin: 1.5rem 0; } svg { max-width: 100%; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } .scroll { overflow-x: auto; }
.rows { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
.rows figure { margin: 0; background: var(--soft); padding: .8rem; border-radius: .5rem; }
.rows img { width: 100%; image-rendering: pixelated; display: block; }
figcaption { margin-bottom: .5rem; } figcaption b { color: var(--accent); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; }
code { background: var(--soft); padding: .1rem .3rem; border-radius: .2rem; }
"""

_TITLES = (
    ("steps", "sampling steps"),
    ("NFE", "network evaluations per image"),
    ("N", "images that were made and measured"),
    ("images/s", "on this machine, after a warm-up"),
    ("accuracy", "share of images that a classifier takes for the class asked for"),
    ("FD-pixels", "Frechet distance of the raw pixels to held-out real images; lower is better"),
    ("floor", "the same distance of as many real training images"),
)


_GUIDED = "guided"


def render(
    title: str, lead: str, figures: list[Figures], facts: Mapping[str, str], hint: list[str]
) -> str:
    """Return the page.

    Args:
        title: headline.
        lead: one sentence below it.
        figures: measured rows; neighbours of one group stand together.
        facts: protocol and machine, name to text.
        hint: commands to try next.

    Returns:
        HTML that refers to nothing outside itself.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>']
    parts.append(f"<figure>{chart(figures)}</figure>")
    for group, members in groupby(figures, key=lambda f: f.row.group):
        rows = list(members)
        parts += [f"<h2>{html.escape(group)}</h2>", _table(rows), _pictures(rows)]
    parts.append("<h2>Protocol</h2><dl>")
    parts += [f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()]
    parts.append("</dl><h2>Next</h2>")
    parts += [f"<p><code>{html.escape(line)}</code></p>" for line in hint]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def chart(figures: list[Figures]) -> str:
    """Return an SVG of quality against network evaluations.

    Quality is the Frechet distance over its floor, so that rows of different N may stand in one
    picture: 1 is what real images get. Unguided rows of one sampler are joined by a line.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    series: dict[str, list[Figures]] = {}
    for f in figures:
        name = f.row.sampling.sampler if f.row.sampling.guidance_scale == 1 else _GUIDED
        name += ", strided" if f.row.process is not None else ""
        drawn = series.setdefault(name, [])
        if f.nfe not in [other.nfe for other in drawn] or name == _GUIDED:
            drawn.append(f)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fewstep", "font.size": 11}):
        plot = Figure(figsize=(9, 4), layout="constrained")
        axes = plot.subplots()
        for name, rows in series.items():
            rows.sort(key=lambda f: f.nfe)
            x, y = [f.nfe for f in rows], [f.distance / f.floor for f in rows]
            axes.plot(x, y, "o" if name == _GUIDED else "o-", label=name)
            for f, at, high in zip(rows, x, y, strict=True):
                word = f.row.title if name == _GUIDED else f"{f.row.sampling.steps}"
                axes.annotate(word, (at, high), (5, 4), textcoords="offset points", size=8)
        axes.axhline(1, color="grey", linestyle=":", label="real images")
        axes.set(xscale="log", xlabel="network evaluations per image")
        axes.set_ylabel("FD-pixels over its floor (lower is better)")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False, fontsize=9)
        text = io.StringIO()
        # no metadata: its names are addresses, and the page refers to nothing outside
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        plot.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace("<svg ", '<svg style="background:#fff" ', 1)


def _table(rows: list[Figures]) -> str:
    """Return the figures of a group as a table."""
    head = "".join(f'<th title="{html.escape(why)}">{name}</th>' for name, why in _TITLES)
    lines = [
        f"<tr><td>{html.escape(f.row.title)}</td><td>{f.row.sampling.steps}</td><td>{f.nfe}</td>"
        f"<td>{f.row.images}</td><td>{f.images_per_second:.1f}</td><td>{f.accuracy:.3f}</td>"
        f"<td>{f.distance:.3f}</td><td>{f.floor:.3f}</td></tr>"
        for f in rows
    ]
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>'
        f"{''.join(lines)}</tbody></table></div>"
    )


def _pictures(rows: list[Figures]) -> str:
    """Return the pictures of a group: the same seeds and labels in each."""
    parts = ['<div class="rows" style="margin-top:1.2rem">']
    for f in rows:
        name = html.escape(f.row.title)
        parts.append(
            f"<figure><figcaption><b>{name}</b> &middot; {f.nfe} evaluations</figcaption>"
            f'<img alt="{name}: generated images" src="{data_uri(f.pixels)}"></figure>'
        )
    return "\n".join([*parts, "</div>"])


def data_uri(pixels: Tensor, columns: int = 10) -> str:
    """Return images as one PNG inside a URI.

    Args:
        pixels: uint8, shape (K, C, H, W).
        columns: images in a row.
    """
    sheet = picture.grid(
        pixels.numpy(), columns, scale=picture.factor(*pixels.shape[2:]) // 2 or 1
    )
    file = io.BytesIO()
    sheet.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
