"""Sections about one set of images: its classes, and how near it comes to the training images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.metrics.figures import Figure
from fewstep.report import table
from fewstep.report.page import Section, data_uri, escape, html_cell, html_table

_MANY = 30  # more classes than this are not shown one by one
_WORST = 20


def confusion(counts: Tensor, classes: Sequence[str]) -> Section:
    """Return what a classifier takes the images of each class for.

    Args:
        counts: rows asked for, columns seen, shape (K, K).
        classes: K names.
    """
    title = "Asked for and seen"
    if len(classes) > _MANY:
        return Section(title, _mistakes(counts, classes))
    share = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in classes)
    rows = []
    for i, name in enumerate(classes):
        row = "".join(
            f'<td class="heat{" right" if i == j else ""}" '
            f'style="--h:{min(70, (40 if i == j else 200) * float(share[i, j])):.0f}">'
            f"{int(n) or ''}</td>"
            for j, n in enumerate(counts[i].tolist())
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{row}</tr>')
    caption = "Rows: the class asked for. Columns: the class that the classifier sees."
    corner = '<th scope="col">asked for</th>'
    return Section(title, html_table(caption, f"<tr>{corner}{head}</tr>", rows))


def per_class(figures: Sequence[Figure]) -> Section:
    """Return a figure of each class as a table; the worst ones if there are many classes.

    Args:
        figures: named "FIGURE of CLASS".
    """
    chosen = list(figures)
    caption = "Every class against the real images of that class"
    if len(chosen) > _MANY:
        chosen = sorted(chosen, key=lambda f: f.value, reverse=True)[:_WORST]
        caption = f"The {_WORST} classes that are farthest from their real images"
    wide, most = table.places(chosen), max((f.value for f in chosen), default=0.0)
    rows = []
    for f in chosen:
        length = 100 * max(0.0, f.value) / most if most > 0 else 0
        bar = f'<span class="bar" style="width:{length / 10:.1f}rem"></span>'
        name = f.name.partition(" of ")[2] or f.name
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th>{html_cell(f, wide)}'
            f'<td class="left">{bar}</td></tr>'
        )
    what = escape(chosen[0].name.partition(" of ")[0]) if chosen else ""
    head = f'<tr><th scope="col">class</th><th scope="col">{what}</th><td></td></tr>'
    return Section("Class by class", html_table(caption, head, rows))


def pairs(near: Sequence[tuple[int, int, float]], made: Tensor, train: Tensor) -> Section:
    """Return the generated images that lie nearest to training images, beside these.

    Args:
        near: (number of the generated image, number of the training image, distance).
        made: the generated images of the pairs, in their order, uint8, shape (P, C, H, W).
        train: the training images of the pairs, uint8, same shape.
    """
    cards = []
    for i, (a, b, far) in enumerate(near):
        uri = data_uri(torch.stack((made[i], train[i])), 2)
        cards.append(
            f'<figure><img alt="generated image {a} beside training image {b}" src="{uri}">'
            f"<figcaption><small>made {a}, training {b}<br>distance {far:.3g}</small></figcaption>"
            "</figure>"
        )
    text = (
        "Left: generated. Right: the training image nearest to it. Near is "
        "not yet copied: the copy rate says how much nearer than unseen real images they are."
    )
    body = f'<p class="note">{text}</p><div class="pairs">{"".join(cards)}</div>'
    return Section("Closest to the training images", body)


def _mistakes(counts: Tensor, classes: Sequence[str]) -> str:
    """Return the most frequent mistakes as a table."""
    wrong = counts.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True)[:_WORST].tolist()
    k, rows = len(classes), []
    for at in order:
        if n := int(wrong.flatten()[at]):
            asked, seen = (escape(str(classes[c])) for c in (at // k, at % k))
            rows.append(f'<tr><th scope="row">{asked}</th><td>{seen}</td><td>{n}</td></tr>')
    head = "".join(f'<th scope="col">{w}</th>' for w in ("asked for", "seen", "images"))
    return html_table("The most frequent mistakes of the classifier or the model", head, rows)
