r"""Score matching: losses that the score of the data minimises, per sample.

With s the network and J its Jacobian, the explicit loss |s - grad log p|^2 / 2 needs the truth.
`implicit` differs from it by a constant and needs tr J, one backward pass per entry; `sliced`
replaces the trace by v^T J v for random v, one backward pass per v; `denoising` learns the score
of the data blurred by sigma, without any, and is what diffusion models train.

`implicit` and `sliced` fall without bound on data in a lower dimension or on quantised values: add
noise first. Batch normalisation couples samples, so that J is not theirs.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.errors import UsageError
from fewstep.shapes import Number, like

Score = Callable[[Tensor], Tensor]
"""score(x) -> the gradient of the log density at x, both of shape (B, *)."""


def denoising(score: Score, x0: Tensor, sigma: Number, eps: Tensor, power: float = 2.0) -> Tensor:
    """Return sigma^power |s(x0 + sigma eps) + eps / sigma|^2 / 2, summed over entries.

    NCSN's loss, for power 2: |sigma s + eps|^2 / 2, which is D / 2 times the mean squared error of
    `Denoising(view="eps")`. Its least value is not 0.

    Args:
        score: of the blurred data at these levels, from and to shape (B, *).
        x0: clean batch, shape (B, *).
        sigma: noise level of each sample, a float or shape (B,), > 0, in units of the data.
        eps: standard normal noise, shape (B, *).
        power: NCSN's anneal_power; 2 makes all levels count about equally.

    Returns:
        shape (B,).

    Source: Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011;
        weights: Song and Ermon, 2019, eq. 5-6 (arXiv 1907.05600).
    """
    level = like(sigma, x0)
    error = level * score(x0 + level * eps) + eps
    return (level ** (power - 2) * error.square()).flatten(1).sum(1) / 2


def implicit(score: Score, x: Tensor) -> Tensor:
    """Return tr J + |s|^2 / 2: the explicit loss up to a constant, in mean over the data.

    Args:
        score: from and to shape (B, *).
        x: data, shape (B, *) with D entries each: D backward passes.

    Returns:
        shape (B,).

    Source: Hyvärinen, "Estimation of Non-Normalized Statistical Models by Score Matching", 2005,
        theorem 1.
    """
    one = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    axes = one.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
    s, curvatures = quadratic(score, x, axes)
    return curvatures.sum(0) + s.flatten(1).square().sum(1) / 2


def sliced(score: Score, x: Tensor, v: Tensor, reduced: bool = True) -> Tensor:
    """Return v^T J v + |s|^2 / 2 (reduced) or v^T J v + (v^T s)^2 / 2, averaged over projections.

    The first is `implicit` in mean only if E[v v^T] = I; the second up to the scale of v v^T, so
    that with v of unit length it is 1 / D of that. The first has the smaller variance as a rule
    only; in 1 to 4 dimensions it may have the larger.

    Args:
        score: from and to shape (B, *).
        x: data, shape (B, *).
        v: M projections of each sample, shape (M, B, *), as from `projections`.
        reduced: whether |s|^2 is taken as it is.

    Returns:
        shape (B,).

    Source: Song et al., "Sliced Score Matching", 2019, section 3 (arXiv 1905.07088).
    """
    s, curvatures = quadratic(score, x, v)
    if reduced:
        return curvatures.mean(0) + s.flatten(1).square().sum(1) / 2
    along = (v * s).flatten(2).sum(2)
    return (curvatures + along.square() / 2).mean(0)


def quadratic(score: Score, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores and v^T J v, with one forward pass (and one mask of a dropout).

    Args:
        score: from and to shape (B, *).
        x: data, shape (B, *).
        v: M projections of each sample, shape (M, B, *).

    Returns:
        s, shape (B, *), and the curvatures, shape (M, B); both have gradients in the parameters
        where gradients are on.

    Raises:
        ValueError: v of another shape.
    """
    if v.shape[1:] != x.shape:
        raise ValueError(f"projections of shape {tuple(v.shape)}: expected (M, *{tuple(x.shape)})")
    training = torch.is_grad_enabled()
    # the fused kernels of attention have no second derivative
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = x.detach().requires_grad_()
        s = score(x)
        curvatures = []
        for one in v:
            (slope,) = torch.autograd.grad(
                (s * one).sum(), x, create_graph=training, retain_graph=True
            )
            curvatures.append((slope * one).flatten(1).sum(1))
    return (s if training else s.detach()), torch.stack(curvatures)


def projections(x: Tensor, count: int, noise: torch.Generator, law: str = "rademacher") -> Tensor:
    """Draw directions for `sliced`.

    Args:
        x: data, shape (B, *), D entries each.
        count: M, projections of each sample, >= 1.
        noise: generator on the device of x.
        law: "rademacher" (signs), "gaussian" or "sphere" (length sqrt(D)), all with E[v v^T] = I;
            "unit" (length 1), which is what the authors' program uses with reduced=False and must
            not be used with reduced=True.

    Returns:
        shape (M, B, *), dtype of x.

    Raises:
        UsageError: unknown law, or count < 1.
    """
    if law not in ("rademacher", "gaussian", "sphere", "unit") or count < 1:
        raise UsageError(
            f'{count} projections of law "{law}": allowed are rademacher, gaussian, sphere and '
            "unit, at least 1"
        )
    v = torch.randn((count, *x.shape), generator=noise, device=x.device, dtype=x.dtype)
    if law == "gaussian":
        return v
    if law == "rademacher":
        return torch.where(v < 0, -1.0, 1.0).to(x.dtype)
    length = v.flatten(2).norm(dim=2).reshape(count, len(x), *(1,) * (x.ndim - 1))
    return v / length * (x[0].numel() ** 0.5 if law == "sphere" else 1.0)
