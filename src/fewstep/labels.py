"""Labels: what a network is told about the noise level, never t itself.

`angle` is our default. The others are those of published networks; `nothing` is for networks that
see the noise level in their input.
"""

import math
from collections.abc import Callable, Mapping

from fewstep import shapes
from fewstep.process import Process, Tabulated
from fewstep.shapes import Number

Label = Callable[[Process, Number], Number]
"""What the network is told about the noise level, as a function of process and time."""


def angle(process: Process, t: Number) -> Number:
    """Return the noise level as an angle, 1000 (2 / pi) atan(sigma / alpha), in [0, 1000].

    It depends on the log-SNR alone, is bounded for every process, and equals 1000 t for the
    cosine process, so that sinusoidal embeddings made for 1000 diffusion steps fit.

    Args:
        process: gives alpha and sigma.
        t: time in [0, 1], a float or shape (B,).

    Returns:
        a float or shape (B,), in [0, 1000]; 0 is clean.
    """
    phi = shapes.atan2(process.sigma(t), process.alpha(t))
    return phi * (2000 / math.pi)


def index(process: Process, t: Number) -> Number:
    """Return the index 0..T-1 of the table, T t - 1, as published discrete networks want it.

    Args:
        process: a `Tabulated` process of T steps.
        t: time in [0, 1], a float or shape (B,); (i + 1) / T is entry i.

    Returns:
        a float or shape (B,), in [-1, T - 1]; -1 is clean, which such networks never saw.

    Raises:
        ValueError: the process has no table.

    Source: Ho et al., 2020, released program (arXiv 2006.11239).
    """
    if not isinstance(process, Tabulated):
        raise ValueError(f"label index: {process} has no table; use a Tabulated process")
    return t * float(process.steps) - 1


def index_of_thousand(process: Process, t: Number) -> Number:
    """Return the index of a table of T entries as if it had 1000, 1000 t - 1000 / T.

    Args:
        process: a `Tabulated` process of T steps.
        t: time in [0, 1], a float or shape (B,); (i + 1) / T is entry i.

    Returns:
        a float or shape (B,), in [-1000 / T, 1000 - 1000 / T].

    Raises:
        ValueError: the process has no table.

    Source: Nichol and Dhariwal, 2021, released program, `rescale_timesteps` (arXiv 2102.09672).
    """
    if not isinstance(process, Tabulated):
        raise ValueError(f"label index_of_thousand: {process} has no table; use Tabulated")
    return index(process, t) * (1000 / process.steps)


def log_sigma_250(process: Process, t: Number) -> Number:
    """Return 250 ln(sigma / alpha), the label of the published consistency models and teachers.

    Args:
        process: gives the log-SNR.
        t: time in [0, 1], a float or shape (B,).

    Returns:
        a float or shape (B,); -inf where sigma is 0.

    Source: Song et al., 2023, released program: 1000 times the label of EDM (arXiv 2303.01469).
    """
    return process.logsnr(t) * -125.0


def quarter_log_sigma(process: Process, t: Number) -> Number:
    """Return ln(sigma / alpha) / 4, the label of EDM networks.

    Args:
        process: gives the log-SNR.
        t: time in [0, 1], a float or shape (B,).

    Returns:
        a float or shape (B,); -inf where sigma is 0.

    Source: Karras et al., 2022, table 1, c_noise (arXiv 2206.00364).
    """
    return process.logsnr(t) * (-0.125)


def nothing(process: Process, t: Number) -> Number:
    """Return 0: the network must see the noise level in its input.

    With the parametrisation EPS this is NCSNv2's score net(x) / sigma (technique 3).

    Args:
        process: unused.
        t: time in [0, 1], a float or shape (B,).

    Returns:
        a float or shape (B,).

    Source: Song and Ermon, 2020, section 3.3 (arXiv 2006.09011).
    """
    del process
    return t * 0.0


LABELS: Mapping[str, Label] = {
    label.__name__: label
    for label in (angle, index, index_of_thousand, log_sigma_250, nothing, quarter_log_sigma)
}
"""The closed table of names that a stored model may use."""
