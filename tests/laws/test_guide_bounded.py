"""Laws of the guidances of today: what they leave alone, and what they are for."""

import math

import pytest
import torch
from torch import Tensor

from fewstep import guide, solvers
from fewstep.denoiser import NetDenoiser, V
from fewstep.errors import UsageError
from fewstep.exact import Gaussian
from fewstep.process import EDM, VP, Process
from fewstep.solvers import grids
from laws.cases import PROCESSES, counted, largest, mixture, normal, walk
from laws.test_guide import B, Deaf, point

every_process = pytest.mark.parametrize("p", PROCESSES, ids=str)


def kinds(denoiser, scale: float) -> list:
    """Return every guidance of a scale here, as users would set it."""
    return [
        guide.Auto(denoiser, denoiser, scale),
        guide.Rescaled(denoiser, scale),
        guide.Projected(denoiser, scale, momentum=0.0),
        guide.Projected(denoiser, scale, parallel=0.3, radius=0.5),
    ]


@every_process
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_guidance_without_a_difference_does_nothing(p: Process, scale: float) -> None:
    x_t, t, y = point(p)
    deaf = Deaf(mixture(p))
    plain = deaf(x_t, t).x0
    for g in kinds(deaf, scale):
        assert largest(g(x_t, t, y).x0, plain) < 1e-6, g


@every_process
def test_scale_one_is_the_conditional_model(p: Process) -> None:
    x_t, t, y = point(p)
    want = mixture(p)(x_t, t, y).x0
    for g in kinds(mixture(p), 1.0):
        assert torch.equal(g(x_t, t, y).x0, want)


@every_process
@pytest.mark.parametrize("scale", [-0.5, 0.3, 2.7])
def test_autoguidance_by_the_unconditional_model_is_classifier_free(p: Process, scale) -> None:
    x_t, t, y = point(p)
    exact = mixture(p)
    auto = guide.Auto(exact, guide.Unconditional(exact), scale)(x_t, t, y)
    free = guide.ClassifierFree(exact, scale)(x_t, t, y)
    assert largest(auto.x0, free.x0) < 1e-10 * (1 + largest(free.x0))
    assert largest(auto.eps, free.eps) < 1e-10 * (1 + largest(free.eps))


def test_autoguidance_undoes_a_shared_mistake() -> None:
    """A good model too wide by one share and a weak one by four: scale 4/3 meets the truth."""
    p, true = VP(), 0.5
    wide = [Gaussian(p, torch.zeros(1, dtype=torch.float64), true)]
    x, times = normal(B, 1), grids.uniform(20)

    class Off(Deaf):
        def __init__(self, share: float) -> None:
            super().__init__(wide[0])
            self.share = share

        def forward(self, x_t, t, cond=None):
            plain = self.denoiser(x_t, t)
            return plain.with_x0(plain.x0 * (1 + self.share))

    g = guide.Auto(Off(0.1), Off(0.4), 4 / 3)
    got = walk(g, x, times, solvers.DDIM())
    assert largest(got, walk(wide[0], x, times, solvers.DDIM())) < 1e-10


@every_process
@pytest.mark.parametrize("view", ["v", "eps", "x0"])
def test_rescaling_gives_the_contrast_of_the_conditional_model(p: Process, view: str) -> None:
    x_t, t, y = point(p)
    exact = mixture(p)
    cond = exact(x_t, t, y).view(view)
    whole = guide.Rescaled(exact, 4.0, 1.0, view)(x_t, t, y)
    ratio = whole.view(view).std(1, correction=0) / cond.std(1, correction=0)
    assert largest(ratio, 1.0) < 1e-5
    none = guide.Rescaled(exact, 4.0, 0.0, view)(x_t, t, y)
    free = guide.ClassifierFree(exact, 4.0)(x_t, t, y)
    assert largest(none.view(view), free.view(view)) < 1e-10 * (1 + largest(free.view(view)))


@every_process
@pytest.mark.parametrize("scale", [0.0, 0.3, 4.0])
def test_projection_of_nothing_is_classifier_free(p: Process, scale: float) -> None:
    x_t, t, y = point(p)
    got = guide.Projected(mixture(p), scale, parallel=1.0)(x_t, t, y).x0
    want = guide.ClassifierFree(mixture(p), scale)(x_t, t, y).x0
    assert largest(got, want) < 1e-6 * (1 + largest(want))


@every_process
def test_a_projected_update_is_across_the_prediction(p: Process) -> None:
    x_t, t, y = point(p)
    cond = mixture(p)(x_t, t, y).x0
    for radius in (math.inf, 0.2):
        update = guide.Projected(mixture(p), 5.0, radius=radius)(x_t, t, y).x0 - cond
        assert float(update.abs().max()) > 1e-3
        inner = (update * cond).sum(1).abs()
        assert bool((inner <= 1e-6 * (update.norm(dim=1) * cond.norm(dim=1)) + 1e-12).all())
        assert float(update.norm(dim=1).max()) <= 4 * radius * (1 + 1e-12)


def test_the_running_sum_is_of_one_run() -> None:
    """Two runs of one guidance are equal, and differ from one without momentum."""
    p = EDM()
    x, times = 80 * normal(6, 2), grids.karras(p, 8)
    y = torch.arange(6) % 2
    g = guide.Projected(mixture(p), 4.0, parallel=1.0, momentum=-0.5)
    first, second = (walk(g, x, times, solvers.Euler(), y) for _ in range(2))
    plain = guide.Projected(mixture(p), 4.0, parallel=1.0)
    assert torch.equal(first, second)
    assert largest(first, walk(plain, x, times, solvers.Euler(), y)) > 1e-3
    with pytest.raises(UsageError, match="one time"):
        g(x, p.time(torch.linspace(3, -3, 6, dtype=torch.float64)), y)


def test_the_update_is_the_shortened_running_sum() -> None:
    """r = d + momentum r, cut to the radius, then across + parallel along, step after step."""
    exact, y = mixture(VP()), torch.arange(6) % 2
    scale, parallel, radius, momentum = 4.0, 0.3, 0.7, -0.6
    g = guide.Projected(exact, scale, parallel, radius, momentum)
    total, shortened = torch.zeros(6, 2, dtype=torch.float64), 0
    for t in (0.9, 0.6, 0.4, 0.2):
        x_t = normal(6, 2, seed=round(10 * t))
        cond = exact(x_t, t, y).x0
        total = cond - exact(x_t, t).x0 + momentum * total
        share = (radius / total.norm(dim=1, keepdim=True)).clamp(max=1)
        shortened += int((share < 1).sum())
        along = (share * total * cond).sum(1, keepdim=True) / (cond * cond).sum(1, keepdim=True)
        along = along * cond
        want = cond + (scale - 1) * (share * total - along + parallel * along)
        assert largest(g(x_t, t, y).x0, want) < 1e-12
    assert 0 < shortened < 24


def test_an_image_without_contrast_is_left_alone() -> None:
    """A fresh network says v = 0: no contrast to bring back, and nothing divided by it."""
    net = torch.nn.Module()
    net.forward = lambda x, label, cond=None: torch.zeros_like(x)
    fresh = NetDenoiser(net, VP(), V)
    for n in (3, B):
        got = guide.Rescaled(fresh, 4.0)(normal(n, 2), 0.5, torch.arange(n) % 2)
        assert largest(got.v) < 1e-12


def test_projection_along_nothing_is_plain_guidance() -> None:
    """Where the conditional image is 0 everywhere there is no direction to project on."""
    p = VP()

    class Dark(Deaf):
        def forward(self, x_t, t, cond=None):
            said = self.denoiser(x_t, t)
            return said if cond is None else said.with_x0(0 * said.x0)

    dark = Dark(Gaussian(p, torch.ones(2, dtype=torch.float64), 1.0))
    x_t, y = normal(B, 2), torch.zeros(B, dtype=torch.long)
    got, want = guide.Projected(dark, 3.0), guide.ClassifierFree(dark, 3.0)
    assert largest(got(x_t, 0.5, y).x0, want(x_t, 0.5, y).x0) < 1e-12


@pytest.mark.parametrize("percentile", [50.0, 99.5, 100.0])
def test_a_threshold_keeps_the_range_and_leaves_images_within_it(percentile: float) -> None:
    p = VP()
    draw = normal(4, 3, 5, 5)
    draw[0] = draw[0].clamp(-0.9, 0.9)

    class Says(Deaf):
        def forward(self, x_t, t, cond=None):
            return self.denoiser(x_t, t).with_x0(draw)

    base = Gaussian(p, torch.zeros(3, 5, 5, dtype=torch.float64), 1.0)
    got = guide.Threshold(Says(base), percentile)(normal(4, 3, 5, 5, seed=1), 0.5).x0
    assert torch.equal(got[0], draw[0])
    assert float(got.abs().max()) <= 1
    for image, said in zip(got[1:], draw[1:], strict=True):
        size = said.abs().flatten().sort().values
        bound = max(1.0, float(size[math.ceil(75 * percentile / 100) - 1]))
        want: Tensor = said.clamp(-bound, bound) / bound
        assert torch.equal(image, want)


def test_scale_one_costs_one_evaluation() -> None:
    for kind in (guide.Rescaled, guide.Projected):
        base = counted(VP())
        kind(base, 1.0)(normal(3, 2), 0.5, torch.zeros(3, dtype=torch.long))
        assert base.net.images == 3
    base, weak = counted(VP()), counted(VP())
    guide.Auto(base, weak, 1.0)(normal(3, 2), 0.5)
    assert (base.net.images, weak.net.images) == (3, 0)


BAD = {
    "auto nan": lambda d: guide.Auto(d, d, math.nan),
    "auto other process": lambda d: guide.Auto(d, mixture(EDM()), 2.0),
    "threshold 0": lambda d: guide.Threshold(d, 0.0),
    "threshold 101": lambda d: guide.Threshold(d, 101.0),
    "threshold nan": lambda d: guide.Threshold(d, math.nan),
    "rescaled inf": lambda d: guide.Rescaled(d, math.inf),
    "rescaled mix": lambda d: guide.Rescaled(d, 2.0, 1.1),
    "rescaled view": lambda d: guide.Rescaled(d, 2.0, 0.5, "score"),
    "projected nan": lambda d: guide.Projected(d, math.nan),
    "projected parallel": lambda d: guide.Projected(d, 2.0, parallel=math.nan),
    "projected radius": lambda d: guide.Projected(d, 2.0, radius=0.0),
    "projected momentum": lambda d: guide.Projected(d, 2.0, momentum=1.0),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused(case: str) -> None:
    with pytest.raises(UsageError):
        BAD[case](mixture(VP()))


@pytest.mark.parametrize("kind", [guide.Rescaled, guide.Projected])
def test_a_model_that_never_saw_the_null_is_refused(kind) -> None:
    base = counted(VP())
    base.null = False
    with pytest.raises(UsageError, match="null"):
        kind(base, 2.0)
    kind(base, 1.0)
