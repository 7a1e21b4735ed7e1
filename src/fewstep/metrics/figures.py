"""A figure: a number that is never bare.

It carries an interval for what other seeds would have given, and the same number for real images
against real images (the floor of a distance, the ceiling of a share), because a distance of 0.4
or a precision of 0.6 may be all that real images get at this N.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A measured number with its interval.

    Attributes:
        name: such as "FD-pixels", "FID", "accuracy".
        value: the number.
        low: lower end of the 95 % interval over other samples from the same model.
        high: upper end; both equal to the value if no interval is known.
        real: what real images get: those not in the reference, against the reference; None if
            there are none.
        real_n: how many real images gave that; if fewer than N, `real` was scaled to N by the
            law of the bias where the figure has one (distances), else it is as measured; 0 if
            there were none and `real` is what the law says.
        better: "lower" or "higher".
    """

    name: str
    value: float
    low: float
    high: float
    real: float | None = None
    real_n: int = 0
    better: str = "lower"

    def plain(self) -> dict[str, Any]:
        """Return the figure as JSON values."""
        return asdict(self)
