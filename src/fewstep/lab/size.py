"""How much work the laboratory does: all of it, or a quick look."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Say how many of what.

    Attributes:
        points: of the data set, where it is drawn and trained on.
        kept: points that stand for the data set where its density is worked out exactly.
        training: optimizer steps.
        learned: largest relative error of the learned score, as a share.
        chains: Langevin chains on a Gaussian.
        modes: Langevin chains between two modes.
        cloud: samples in a small picture.
        truth: steps of the reference solution of an ODE.
    """

    points: int = 20_000
    kept: int = 400
    training: int = 1500
    learned: float = 0.02
    chains: int = 100_000
    modes: int = 4000
    cloud: int = 500
    truth: int = 400


FULL = Size()
"""As the page is meant."""
QUICK = Size(
    points=8000,
    kept=200,
    training=300,
    learned=0.05,
    chains=30_000,
    modes=2000,
    cloud=200,
    truth=200,
)
"""A look within seconds; the learned score may be worse."""
