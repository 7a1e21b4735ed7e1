r"""Langevin steps within the levels of a grid: annealed Langevin dynamics, predictor-corrector.

A corrector takes steps of Langevin dynamics at one level of noise, which pull samples towards the
density of that level; a predictor goes from one level to the next. With data of unit signal and
noise r = sigma / alpha, one step of a corrector is, in the two ways of writing it,

    NCSN's paper     y + delta / 2 score + sqrt(delta) z
    the programs     y + a score + sqrt(2 a) z,            delta = 2 a,   a = rho r^2

where rho has no unit: with the network's eps it is x + sigma (sqrt(2 rho) z - rho eps) along any
process. rho is 2 snr^2 for score_sde's snr; epsilon / sigma_L^2 for NCSNv2's epsilon and that of
both NCSN programs; and half of that for the epsilon of NCSN's paper, algorithm 1.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep import shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.process import Process
from fewstep.shapes import Number, like
from fewstep.solvers.base import Noise, Solver, check_finite, draw
from fewstep.solvers.ddim import DDPM
from fewstep.solvers.unipc import UniPC

RULES = ("level", "norm")
REVERSE_DIFFUSION = DDPM("large")


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Go to the next level with a predictor, then take Langevin steps there.

    The first step takes those of its own level before: so all levels are corrected but clean data.
    A walk that ends at t = 0 ends with the posterior mean there, also where the process still has
    noise (`VE`): NCSNv2's last denoising, without which FID is 20 points away. A ladder of L
    levels of a `VE` is L - 1 steps, of the processes that end clean L steps.

    Without a predictor this is annealed Langevin dynamics: a level begins with the samples of the
    one above as they are.

    Args:
        predictor: any solver but a correcting `UniPC`, or None. `DDPM("large")` is reverse
            diffusion, score_sde's for `VE`, `DDPM("small")` its ancestral sampling;
            `DDIM()` takes fewer levels.
        each: Langevin steps at a level, >= 1; 1 of score_sde, T of NCSN.
        snr: of score_sde, in (0, 1): 0.16 (norm), 0.176 (level, NCSNv2's 6.2e-6), 0.316 (NCSN).
        rule: "level", rho = 2 snr^2 ("ald" in score_sde, and NCSN's), or "norm",
            rho = 2 (snr |z| / |eps|)^2 ("langevin"), with the norms of each image, not their means
            over the batch, so that no image depends on others. Both without the factor 1 - beta
            that the program has for its variance-preserving tables.
        denoise: whether a process that ends with noise ends with the denoising.

    Raises:
        UsageError: a number or rule outside what is allowed; from `check`, a start without
            signal.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
        Equations", 2021, algorithms 2, 4 and 5 (arXiv 2011.13456), in the order of the released
        program, corrector first; Song and Ermon, 2019, algorithm 1 (arXiv 1907.05600), and 2020,
        algorithm 1 (arXiv 2006.09011).
    """

    predictor: Solver | None = REVERSE_DIFFUSION
    each: int = 1
    snr: float = 0.16
    rule: str = "norm"
    denoise: bool = True

    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.each < 1 or not 0 < self.snr < 1:
            raise UsageError(
                f"each {self.each}, snr {self.snr:g}: needs at least 1 Langevin step at a level "
                "and an snr between 0 and 1, from which on they diverge"
            )
        if isinstance(self.predictor, UniPC) and self.predictor.corrector:
            raise UsageError(
                f"{self.predictor} as predictor: its corrector would undo the Langevin steps; use "
                "UniPC(corrector=False)"
            )
        if self.rule not in RULES:
            raise UsageError(f'rule "{self.rule}": allowed are {" and ".join(RULES)}')

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Number,
        s: Number,
        cond: Cond = None,
        carry: Any = None,
        noise: Noise | None = None,
    ) -> tuple[Tensor, Any]:
        """Return x_s; see `Solver.step`."""
        if carry is None:
            x, carry = self._corrected(denoiser, x, t, cond, noise), (None,)
        alpha_s, sigma_s = denoiser.process.levels(s)
        if self.predictor is not None:
            x, own = self.predictor.step(denoiser, x, t, s, cond, carry[0], noise)
        else:
            x, own = _carried(denoiser, x, t, s, cond), None
        if shapes.at_zero(sigma_s):
            return x, (own,)
        y = self._corrected(denoiser, x, s, cond, noise)
        at_end = torch.as_tensor(s) == 0
        if self.denoise and bool(at_end.any()):
            mean = like(alpha_s, x) * denoiser(y, s, cond).x0
            y = mean if at_end.ndim == 0 else torch.where(_rows(at_end, x), mean, y)
        if isinstance(sigma_s, Tensor):  # some of the steps may end on clean data
            y = torch.where(_rows(sigma_s > 0, x), y, x)
        return y, (own,)

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError on a rising grid or one that touches pure noise."""
        super().check(process, times)
        check_finite(self, process, times)
        if self.predictor is not None:
            self.predictor.check(process, times)

    def _corrected(
        self, denoiser: Denoiser, x: Tensor, t: Number, cond: Cond, noise: Noise | None
    ) -> Tensor:
        """Return x after the Langevin steps at t."""
        sigma = like(denoiser.process.sigma(t), x)
        for _ in range(self.each):
            eps, z = denoiser(x, t, cond).eps, draw(noise, x, self)
            rho: Number = 2 * self.snr**2
            if self.rule == "norm":
                rho = like(rho * (_norm(z) / _norm(eps)) ** 2, x)
            x = x + sigma * (shapes.sqrt(2 * rho) * z - rho * eps)
        return x


def _carried(denoiser: Denoiser, x: Tensor, t: Number, s: Number, cond: Cond) -> Tensor:
    """Return x with the signal level of s and the noise of t; clean where s is clean."""
    alpha_s, sigma_s = denoiser.process.levels(s)
    if shapes.at_zero(sigma_s):
        return alpha_s * denoiser(x, t, cond).x0
    y = like(alpha_s / denoiser.process.alpha(t), x) * x
    if isinstance(sigma_s, Tensor) and bool((sigma_s == 0).any()):
        clean = like(alpha_s, x) * denoiser(x, t, cond).x0
        y = torch.where(_rows(sigma_s > 0, x), y, clean)
    return y


def _rows(which: Tensor, x: Tensor) -> Tensor:
    """Return a mask of samples, shape (B,), ready to choose from x."""
    return which.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))


def _norm(x: Tensor) -> Tensor:
    """Return the norms of the samples, shape (B,)."""
    return x.flatten(1).norm(dim=1)
