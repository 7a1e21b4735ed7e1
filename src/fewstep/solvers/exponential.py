"""What the multistep exponential integrators share: past predictions and the integral over one.

In half log-SNR, lam = ln(alpha / sigma), the linear part of the ODE is solved exactly and

    x_s = sigma_s / sigma_t x_t + alpha_s int_0^h e^(u - h) x0(lam_t + u) du,    h = lam_s - lam_t,
    x_s = alpha_s / alpha_t x_t + sigma_s int_0^h e^(u - h) eps(-lam_t + u) du,  h = lam_t - lam_s

are one formula: the methods differ in the polynomial that stands for the prediction.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep import shapes
from fewstep.prediction import scaled_sum
from fewstep.shapes import Number, like


class Node(NamedTuple):
    """A prediction and its place, lam or -lam (a float or shape (B,))."""

    place: Number
    value: Tensor


class History(NamedTuple):
    """How many steps are done and the last nodes, newest first."""

    done: int = 0
    nodes: tuple[Node, ...] = ()

    def then(self, node: Node, keep: int) -> "History":
        """Return the history after one more step, of at most `keep` nodes."""
        return History(self.done + 1, (node, *self.nodes)[:keep])


def half_logsnr(alpha: Number, sigma: Number) -> Number:
    """Return ln(alpha / sigma), -inf at pure noise and inf at clean data."""
    return shapes.log(alpha) - shapes.log(sigma)


def moments(h: Number, n: int) -> list[Number]:
    """Return int_0^h e^(u - h) u^k du for k = 0 .. n.

    M_0 = 1 - e^-h and M_k = h^k - k M_(k-1), which cancels for short steps: below 1 the series
    h^(k+1) sum_j (-h)^j k! / (k + j + 1)! is taken. Those of a float are remembered, as every
    batch of a sampler asks for the same.

    Args:
        h: length of the step, a float or shape (B,), of either sign.
        n: highest power, >= 0.

    Returns:
        n + 1 numbers in the form of h.
    """
    if not isinstance(h, Tensor):
        return list(_moments(h, n))
    pairs = zip(_recursion(h, n), _series(h, n), strict=True)
    short = h.abs() < 1
    return [torch.where(short, torch.as_tensor(b), torch.as_tensor(a)) for a, b in pairs]


@lru_cache(maxsize=4096)
def _moments(h: float, n: int) -> tuple[Number, ...]:
    return tuple(_series(h, n) if abs(h) < 1 else _recursion(h, n))


def _recursion(h: Number, n: int) -> list[Number]:
    out: list[Number] = [-shapes.expm1(-h)]
    for k in range(1, n + 1):
        out.append(h**k - k * out[-1])
    return out


def _series(h: Number, n: int) -> list[Number]:
    out: list[Number] = []
    for k in range(n + 1):
        total: Number = 0.0 * h
        for j in reversed(range(20)):
            total = total * -h + math.factorial(k) / math.factorial(k + j + 1)
        out.append(total * h ** (k + 1))
    return out


def follow(
    a: Number,
    x: Tensor,
    b: Number,
    nodes: Sequence[Node],
    scale: Number = 0.0,
    weights: Sequence[Number] = (),
) -> Tensor:
    """Return a x + b P(0) + scale sum_(k > 0) weights_k c_k, P the polynomial through the nodes.

    P(u) = c_0 + c_1 u + ... has u = 0 at the first node, so that the first two terms are the step
    of order one. With weights = `moments` the third is the exact integral of
    e^(u - h) (P(u) - P(0)).

    Args:
        a: factor of x, a float or shape (B,).
        x: shape (B, *).
        b: factor of the first prediction, a float or shape (B,).
        nodes: different places; the last one may be pure noise (-inf) and then weighs nothing.
        scale: factor of the sum, a float or shape (B,).
        weights: what stands for u^k, at least one per node where there are two nodes or more.

    Returns:
        shape (B, *).
    """
    values = [node.value for node in nodes]
    if len(nodes) == 1:
        return scaled_sum(like(a, x), x, like(b, x), values[0])
    places, used = [node.place for node in nodes], list(weights[: len(nodes)])
    if any(isinstance(c, Tensor) for c in (scale, *places, *used)):
        shares = _shares(places, scale, used)
    else:
        shares = _known_shares(tuple(places), scale, tuple(used))
    out = scaled_sum(like(a, x), x, like(b + shares[0], x), values[0])
    return add(out, shares[1:], values[1:])


def add(out: Tensor, shares: Sequence[Number], values: Sequence[Tensor]) -> Tensor:
    """Add each value times its share, a float or shape (B,), to out, in place; return out."""
    for share, value in zip(shares, values, strict=True):
        if isinstance(share, Tensor):
            out.addcmul_(torch.as_tensor(like(share, value)), value)
        else:
            out.add_(value, alpha=share)
    return out


def _shares(places: Sequence[Number], scale: Number, weights: Sequence[Number]) -> list[Number]:
    """Return the factor of each prediction in that sum: divided differences, written out."""
    n = len(places)
    rows: list[list[Number]] = [[float(i == j) for j in range(n)] for i in range(n)]
    out: list[Number] = [0.0] * n
    basis: list[Number] = [0.0, 1.0]  # coefficients of u, u (u - u_1), ...
    for k in range(1, n):
        inverse = [shapes.divide(1.0, places[i + k] - places[i]) for i in range(n - k)]
        rows = [
            [(b - a) * c for a, b in zip(*pair, strict=True)]
            for pair, c in zip(pairwise(rows), inverse, strict=True)
        ]
        weight = scale * sum(b * w for b, w in zip(basis, weights, strict=False))
        if isinstance(weight, Tensor):  # of a batch of steps, some may end on clean data
            weight = weight.nan_to_num(0.0, 0.0, 0.0)
        out = [total + weight * c for total, c in zip(out, rows[0], strict=True)]
        u = places[k] - places[0]
        basis = [a - u * b for a, b in zip([0.0, *basis], [*basis, 0.0], strict=True)]
    return out


_known_shares = lru_cache(maxsize=4096)(_shares)
