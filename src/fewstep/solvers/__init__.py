"""Solvers, grids and the loop that samples.

A solver is a frozen value with a pure step from one time to another (`base`): `DDIM`, `DDPM`
(`ddim`), `Euler`, `Heun` (`runge_kutta`), `HeunChurn` (`churn`), `DPMSolverPP`,
`DPMSolverPP2S` (`multistep`), `UniPC` (`unipc`), `DEIS`, `IPNDM` (`adams`), `PredictorCorrector`
(`corrector`), `Consistency` (`consistency`). Their names in presets are in `named`. A grid is a
tensor of times (`grids`, `levels`). `sample` iterates over steps, `generate` returns images, `nfe`
counts network evaluations, `PerImage` is the noise of a batch.
"""

from fewstep.solvers import grids, levels
from fewstep.solvers.adams import DEIS, IPNDM
from fewstep.solvers.base import Noise, Solver
from fewstep.solvers.churn import HeunChurn
from fewstep.solvers.consistency import Consistency
from fewstep.solvers.corrector import PredictorCorrector
from fewstep.solvers.ddim import DDIM, DDPM
from fewstep.solvers.multistep import DPMSolverPP, DPMSolverPP2S
from fewstep.solvers.noise import PerImage, image_seeds
from fewstep.solvers.runge_kutta import Euler, Heun
from fewstep.solvers.sample import Step, generate, nfe, sample
from fewstep.solvers.unipc import UniPC

ALL: tuple[Solver, ...] = (
    DDIM(),
    DDIM(0.5),
    DDIM(1.0),
    DDPM("small"),
    DDPM("large"),
    Euler(),
    Heun(),
    HeunChurn(),
    DPMSolverPP(1),
    DPMSolverPP(2),
    DPMSolverPP(3),
    DPMSolverPP2S(),
    UniPC(1, "bh1"),
    UniPC(2),
    UniPC(3),
    DEIS(3),
    DEIS(3, "t"),
    IPNDM(),
    PredictorCorrector(),
    PredictorCorrector(DDIM(), rule="level"),
    PredictorCorrector(None, each=3, snr=0.3, rule="level"),
    Consistency(),
)
"""One of each solver: the laws run over this list, so a new one is tested by standing here."""

__all__ = [
    "ALL",
    "DDIM",
    "DDPM",
    "DEIS",
    "IPNDM",
    "Consistency",
    "DPMSolverPP",
    "DPMSolverPP2S",
    "Euler",
    "Heun",
    "HeunChurn",
    "Noise",
    "PerImage",
    "PredictorCorrector",
    "Solver",
    "Step",
    "UniPC",
    "generate",
    "grids",
    "image_seeds",
    "levels",
    "nfe",
    "sample",
]
