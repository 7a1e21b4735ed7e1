"""The names of the samplers, as presets, recipes and the command line say them."""

from collections.abc import Callable, Mapping

from fewstep.solvers.adams import DEIS, IPNDM
from fewstep.solvers.base import Solver
from fewstep.solvers.churn import HeunChurn
from fewstep.solvers.consistency import Consistency
from fewstep.solvers.corrector import PredictorCorrector
from fewstep.solvers.ddim import DDIM, DDPM
from fewstep.solvers.multistep import DPMSolverPP, DPMSolverPP2S
from fewstep.solvers.runge_kutta import Euler, Heun
from fewstep.solvers.unipc import UniPC

EACH = 5
"""Langevin steps of annealed-langevin at a level of noise, unless said."""

SAMPLERS: Mapping[str, Callable[[float, int], Solver]] = {
    "ddim": lambda eta, n: DDIM(eta),
    "ddpm": lambda eta, n: DDPM("small"),
    "ddpm-large": lambda eta, n: DDPM("large"),
    "ddpm-learned": lambda eta, n: DDPM("learned"),
    "euler": lambda eta, n: Euler(),
    "heun": lambda eta, n: Heun(),
    "heun-churn": lambda eta, n: HeunChurn(steps=n),
    "dpmpp": lambda eta, n: DPMSolverPP(2),
    "dpmpp3": lambda eta, n: DPMSolverPP(3, steps=n),
    "dpmpp3-legacy": lambda eta, n: DPMSolverPP(3, legacy=True, steps=n),
    "dpmpp-2s": lambda eta, n: DPMSolverPP2S(),
    "unipc": lambda eta, n: UniPC(3, steps=n),
    "unipc2": lambda eta, n: UniPC(2, steps=n),
    "deis": lambda eta, n: DEIS(3),
    "deis-tab": lambda eta, n: DEIS(3, "t"),
    "ipndm": lambda eta, n: IPNDM(4),
    "annealed-langevin": lambda eta, n: PredictorCorrector(None, EACH, rule="level"),
    "predictor-corrector": lambda eta, n: PredictorCorrector(),
    "predictor-corrector-level": lambda eta, n: PredictorCorrector(snr=0.176, rule="level"),
    "predictor-corrector-ddim": lambda eta, n: PredictorCorrector(DDIM()),
    "consistency": lambda eta, n: Consistency(),
}
"""Names of the samplers; each makes a solver from eta and the number of steps. "ddpm-large" is
the talk's sigma-hat, "ddpm-learned" for networks with a learned variance, "consistency" for those
that say where a trajectory ends."""
