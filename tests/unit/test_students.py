"""Plans from budgets, and teachers turned into students: what is kept, what is converted."""

import dataclasses

import pytest
import torch

from fewstep import sampling, steer
from fewstep.denoiser import BOTH, EDM, EPS, SCORE, X0, Denoiser, NetDenoiser, V
from fewstep.distill import Progressive
from fewstep.errors import UsageError
from fewstep.exact import Gaussian
from fewstep.model import Model, Sampling, from_description
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.prediction import Prediction
from fewstep.process import EDM as EDMProcess
from fewstep.process import Cosine, Tabulated
from fewstep.solvers import grids
from fewstep.students import make, plan
from fewstep.students.plan import Stage
from fewstep.students.run import apart

CONFIG = {"width": 8, "mult": (1, 2), "depth": 1, "classes": 3, "groups": 4, "dropout": 0.2}


def model(param=V, process=None, outputs: int = 1, scale: float = 1.0) -> Model:
    """Return a small random model of 8x8 images; no layer answers with zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UNetConfig(in_channels=1, out_channels=outputs, **CONFIG)
        net = UNet(config)
        for weights in net.parameters():
            if not weights.any():
                torch.nn.init.normal_(weights, std=0.1)
    denoiser = NetDenoiser(net, process or Cosine(), param).eval()
    return Model(denoiser, (1, 8, 8), ("a", "b", "c"), Sampling(guidance_scale=scale))


@pytest.mark.parametrize(
    ("to", "images", "want"),
    [(4, 1e6, [16, 8, 4]), (1, 1e6, [16, 8, 4, 2, 1]), (1, 20_000, [8, 4, 2, 1]), (16, 1e6, [16]),
     (32, 1e6, [32]), (4, 4000, [4])],
)  # fmt: skip
def test_a_budget_becomes_a_ladder(to: int, images: float, want: list[int]) -> None:
    """As many halvings as it bears; all stages alike, but those of 2 and 1 step twice as long."""
    stages = plan.ladder(to, images)
    assert [stage.steps for stage in stages] == want
    assert sum(stage.images for stage in stages) == pytest.approx(images, rel=0.05)
    long = [stage.images for stage in stages if stage.steps <= 2]
    short = [stage.images for stage in stages if stage.steps > 2]
    assert all(a == pytest.approx(2 * b, rel=0.05) for a in long for b in short)
    assert all(stage.updates >= plan.LEAST for stage in stages)


@pytest.mark.parametrize(("images", "batch"), [(1e9, 512), (110_000, 128), (30_000, 32)])
def test_a_large_budget_buys_larger_batches(images: float, batch: int) -> None:
    (stage,) = plan.single("ect", 1, images)
    assert stage.batch_size == batch


BUILDS = {
    "ect": lambda n: plan.single("ect", 1, n),
    **{f"to {to}": lambda n, to=to: plan.ladder(to, n) for to in (1, 4, 16)},
    **{f"{to}, told": lambda n, to=to: plan.ladder(to, n, guided=True) for to in (1, 2, 4, 16)},
    "from 32, told": lambda n: plan.ladder(4, n, 32, guided=True),
}


@pytest.mark.parametrize("images", [10.0, 1000.0])
@pytest.mark.parametrize("name", BUILDS)
def test_a_budget_that_is_too_small_says_how_much(name: str, images: float) -> None:
    """The share that is said is true: so much is enough, and a little less is not."""
    with pytest.raises(plan.TooSmall) as found:
        BUILDS[name](images)
    assert 0 < found.value.share < 1
    BUILDS[name](1.001 * images / found.value.share)
    with pytest.raises(plan.TooSmall):
        BUILDS[name](0.98 * images / found.value.share)


def test_the_rate_of_a_ladder_goes_with_the_step() -> None:
    """Twice the steps, half the rate; those of one step have no more than 3e-4."""
    stages = plan.ladder(1, 1e6)
    assert [s.lr for s in stages] == pytest.approx([2.5e-5, 5e-5, 1e-4, 2e-4, 3e-4])


@pytest.mark.parametrize("to", [3, 5, 48, 64])
def test_halving_ends_at_powers_of_two(to: int) -> None:
    with pytest.raises(UsageError, match=r"--to \d+: the halving .* 1, 2, 4, 8, 16 or 32"):
        plan.method("progressive", to)


def test_a_start_that_is_not_halved_to_the_end() -> None:
    for start in (3, 24, 8, 4):
        with pytest.raises(UsageError, match=r"8"):
            plan.ladder(8, 1e6, start)


@pytest.mark.parametrize("method", ["progressive", "ect"])
@pytest.mark.parametrize("param", [V, EDM], ids=str)
def test_a_regular_student_begins_as_its_teacher(param, method: str) -> None:
    """The same prediction bit for bit, without dropout, and with weights of its own."""
    teacher = model(param)
    student = make.student(teacher, method)
    x, t, y = torch.randn(3, 1, 8, 8), torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0, 1, -1])
    ours = student.denoiser.train()(x, t, y).x0
    assert torch.equal(ours, teacher.denoiser.eval()(x, t, y).x0)
    with torch.no_grad():
        student.net.head.bias.add_(1.0)
    assert not torch.equal(student.denoiser(x, t, y).x0, teacher.denoiser(x, t, y).x0)


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_network_that_says_eps_becomes_one_that_says_both(outputs: int) -> None:
    """x0 = alpha^2 of what eps implies, at first; a learned variance is left out."""
    teacher = model(EPS, Tabulated(), outputs)
    student = make.student(teacher, "ect")
    assert student.denoiser.param is BOTH
    assert not student.learned_variance
    x, t, y = torch.randn(3, 1, 8, 8), torch.tensor([1.0, 0.5, 0.01]), torch.tensor([0, 1, -1])
    alpha, _ = teacher.denoiser.levels(x, t)
    with torch.no_grad():
        want = alpha**2 * teacher.denoiser(x, t, y).x0
        got = student.denoiser.eval()(x, t, y).x0
    assert float((got - want).abs().max()) < 1e-4
    again = from_description(student.describe())
    assert again.denoiser.param is BOTH


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("method", ["progressive", "ect"])
def test_a_student_of_a_student_that_says_both_begins_as_it(outputs: int, method: str) -> None:
    """The ladder's second stage, of a teacher that said eps."""
    first = make.student(model(EPS, Tabulated(), outputs), "progressive")
    second = make.student(first, method)
    x, t, y = torch.randn(3, 1, 8, 8), torch.tensor([1.0, 0.5, 0.01]), torch.tensor([0, 1, -1])
    with torch.no_grad():
        want = first.denoiser.eval()(x, t, y).x0
        assert torch.equal(second.denoiser.eval()(x, t, y).x0, want)


def test_a_network_that_says_the_image_becomes_one_that_says_both() -> None:
    teacher = model(X0)
    assert make.student(teacher, "progressive").denoiser.param is X0
    student = make.student(teacher, "ect")
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, -1])
    with torch.no_grad():
        assert torch.equal(student.denoiser.eval()(x, 0.0, y).x0, x)
        near = student.denoiser(x, 1.0, y).x0 - teacher.denoiser(x, 1.0, y).x0
    assert float(near.abs().max()) < 1e-2


REFINED = {"guidance_low": 0.3, "guidance_high": 3.0, "guidance_rescale": 0.7}


@pytest.mark.parametrize("t", [0.05, 0.5, 0.99])
def test_a_teacher_is_guided_as_its_preset_says(t: float) -> None:
    """With interval and rescale, and without what bounds its images; plain at scale 1."""
    base = model()
    refined = dataclasses.replace(
        base, sampling=Sampling(**REFINED, guidance_scale=3, threshold=99.0)
    )
    x, y = (
        torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2]),
    )
    settings = Sampling(**REFINED, guidance_scale=2.0, clip=False)
    want = steer.guided(base, settings)(x, t, y).x0
    assert torch.equal(make.teacher(refined, 2.0)(x, t, y).x0, want)
    assert torch.equal(make.teacher(refined, 1.0)(x, t, y).x0, base.denoiser(x, t, y).x0)


def test_guidance_that_a_student_cannot_learn() -> None:
    base = model()
    moving = dataclasses.replace(
        base, sampling=Sampling(apg=True, apg_momentum=-0.5, guidance_scale=3)
    )
    with pytest.raises(UsageError, match=r"momentum -0.5: is made of the steps before"):
        make.check(moving, "progressive", 2.0)
    make.check(moving, "progressive", 1.0)
    refined = dataclasses.replace(base, sampling=Sampling(**REFINED, guidance_scale=3))
    with pytest.raises(UsageError, match=r"--guidance-range: .* \(interval, rescale\)"):
        make.check(refined, "progressive", 1.0, (1.0, 3.0))


def test_a_variance_that_was_learned_is_left_out() -> None:
    student = make.student(model(V, outputs=2), "progressive")
    assert student.net.config.out_channels == 1


def test_a_network_that_says_the_score_is_refused() -> None:
    with pytest.raises(UsageError, match="SCORE"):
        make.student(model(SCORE), "progressive")


@pytest.mark.parametrize("process", [Cosine(), EDMProcess(), Tabulated()], ids=str)
@pytest.mark.parametrize("steps", [8, 4, 2, 1])
def test_a_student_is_sampled_on_the_times_it_learned(process, steps: int) -> None:
    """The preset's grid is every second time of the grid that its teacher was walked on."""
    teacher = model(V, process)
    stage, times = Stage("progressive", steps, 100, 32, 1e-4), make.grid(teacher, 16)
    goal = make.objective(stage, make.Taught(make.teacher(teacher, 1.0), times))
    assert isinstance(goal, Progressive)
    assert len(goal.times) == 2 * steps + 1
    preset = make.sampling(teacher, stage, times)
    found = sampling.plan(dataclasses.replace(teacher, sampling=preset), preset).times
    assert found.tolist() == pytest.approx(list(goal.times[::2]), abs=1e-9)
    assert float(found[0]) == pytest.approx(float(times[0]), abs=1e-12)
    assert found[-1] == 0


def test_guidance_is_in_the_teacher_and_no_clipping() -> None:
    plain, guided = (make.teacher(model(scale=3.0), s) for s in (1.0, 2.0))
    x, y = 5 * torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    own = model().denoiser
    with torch.no_grad():
        a, b = own(x, 0.4, y).x0, own(x, 0.4, None).x0
        assert torch.equal(plain(x, 0.4, y).x0, a)
        assert torch.allclose(guided(x, 0.4, y).x0, 2 * a - b, atol=1e-5)
    assert not any(p.requires_grad for p in guided.parameters())
    assert float(a.abs().max()) > 1.0


def student(kind: str, steps: int) -> Model:
    preset = (
        Sampling("consistency", steps, levels=make.middles(80.0, steps))
        if kind == "consistency"
        else Sampling("ddim", steps)
    )
    record = {"kind": kind, "steps": steps, "guidance": 2.0}
    return dataclasses.replace(model(), sampling=preset, student=record)


@pytest.mark.parametrize(
    "changes",
    [{"steps": 50}, {"sampler": "heun"}, {"spacing": "karras"}, {"eta": 1.0}, {"levels": (9.0,)}],
)
def test_a_student_is_sampled_as_it_was_made(changes) -> None:
    """50 steps of DDIM on a one-step student are refused, with both named."""
    one = student("progressive", 1)
    sampling.plan(one, one.sampling)
    with pytest.raises(UsageError, match="progressive student, made for 1 step of ddim"):
        sampling.plan(one, sampling.changed(one.sampling, changes))
    free = dataclasses.replace(one, student={})
    if "levels" not in changes:
        sampling.plan(free, sampling.changed(free.sampling, changes))


def test_guidance_is_not_put_upon_guidance() -> None:
    one = student("progressive", 1)
    with pytest.raises(UsageError, match=r"guidance scale 3: .* guidance scale 2 in its weights"):
        sampling.plan(one, sampling.changed(one.sampling, {"guidance_scale": 3.0}))


def test_a_student_is_described_and_built_again() -> None:
    one = student("progressive", 4)
    again = from_description(one.describe())
    assert again.student == one.student
    assert again.sampling == one.sampling
    assert "student" not in model().describe()


class Ends(Denoiser):
    """The consistency function of N(0, 0.5^2) on EDM's process."""

    def __init__(self) -> None:
        super().__init__()
        self.process, self.gain = EDMProcess(), torch.nn.Parameter(torch.ones(()))
        self.net = torch.nn.Identity()

    def forward(self, x_t, t, cond=None):
        del cond
        alpha, sigma = self.levels(x_t, t)
        end = self.gain * 0.5 * x_t / (sigma**2 + 0.25) ** 0.5
        return Prediction.from_x0(x_t, alpha, sigma, end)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_copy_error_is_that_of_the_first_step(steps: int) -> None:
    """Later ones draw noise of their own: an exact student of any steps has hardly any."""
    shape, process = (1, 8, 8), EDMProcess()
    by = make.Taught(Gaussian(process, torch.zeros(shape), 0.5), grids.karras(process, 80))
    preset = Sampling("consistency", steps, levels=make.middles(80.0, steps), clip=False)
    taught = Model(Ends(), shape, (), preset, student={"kind": "consistency", "steps": steps})
    assert apart(by, taught, Stage("ect", steps, 100, 32, 1e-4)) < 0.05
