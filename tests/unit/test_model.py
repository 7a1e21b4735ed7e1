"""A model says everything about itself and comes back; bad words are refused with the nearest."""

import doctest
import importlib
import json
import math
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor

import fewstep
from fewstep import guide, model, process, sampling, solvers
from fewstep.denoiser import EDM, EPS, SCORE, NetDenoiser, V, _Edm
from fewstep.errors import UsageError
from fewstep.labels import LABELS, angle, index
from fewstep.langevin import ladder
from fewstep.model import Model, Sampling, from_description
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.process import VP, Cosine, Process, Tabulated


def unet() -> Model:
    config = UNetConfig(
        in_channels=1, out_channels=1, size=8, width=8, mult=(1, 2), depth=1, attention=(4,),
        heads=2, groups=4, classes=2,
    )  # fmt: skip
    denoiser = NetDenoiser(UNet(config), Tabulated((0.1, 0.2, 0.3)), EPS, index)
    preset = Sampling("heun", 7, "karras", guidance_scale=2.0, clip=False)
    return Model(denoiser, (1, 8, 8), ("cat", "dog"), preset, {"data": "toy", "licence": None})


def mlp() -> Model:
    net = MLP(MLPConfig(dim=2, width=16, layers=1, classes=2, null=False))
    return Model(NetDenoiser(net, Cosine(0.01), EDM, angle, null=False), (2,), ("a", "b"))


@pytest.mark.parametrize("make", [unet, mlp])
def test_a_model_comes_back_from_its_description(make: Any) -> None:
    before = make()
    text = json.dumps(before.describe(), allow_nan=False)
    after = from_description(json.loads(text))
    assert json.dumps(after.describe(), allow_nan=False) == text
    for name in ("shape", "classes", "sampling"):
        assert getattr(after, name) == getattr(before, name)
    assert after.denoiser.process == before.denoiser.process
    assert after.denoiser.param is before.denoiser.param
    assert after.denoiser.label is before.denoiser.label
    assert after.denoiser.null is before.denoiser.null
    assert after.denoiser.net.config == before.denoiser.net.config
    after.denoiser.load_state_dict(before.denoiser.state_dict())
    x, y = torch.randn(2, *before.shape, generator=torch.Generator()), torch.tensor([0, 1])
    assert torch.equal(after.denoiser(x, 0.5, y).x0, before.denoiser(x, 0.5, y).x0)


@pytest.mark.parametrize("make", [unet, mlp])
def test_an_empty_model_draws_nothing_and_lacks_only_weights(make: Any) -> None:
    facts = make().describe()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    empty = from_description(facts, empty=True)
    assert torch.equal(torch.get_rng_state(), before)
    full = from_description(facts)
    assert not torch.equal(torch.get_rng_state(), before)
    assert [(k, v.shape, v.device) for k, v in empty.denoiser.state_dict().items()] == [
        (k, v.shape, v.device) for k, v in full.denoiser.state_dict().items()
    ]
    for (name, ours), (_, theirs) in zip(
        empty.denoiser.named_buffers(), full.denoiser.named_buffers(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def edit(path: str, value: Any) -> dict[str, Any]:
    """Return the description of the MLP with one entry changed; None removes it."""
    description = json.loads(json.dumps(mlp().describe()))
    *parents, last = path.split(".")
    inner = description
    for name in parents:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return description


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "net.name",
            "MLPP",
            r"net 'MLPP': allowed are UNet, MLP, EncoderUNet, TextUNet \(did you mean \"MLP\"\?\)",
        ),
        ("net.wdth", 3, r"net has no field 'wdth' \(did you mean \"width\"\?\)"),
        ("process.name", "Cosin", r'process "Cosin".*did you mean "Cosine"'),
        ("process.flor", 1, r"process Cosine has no parameter 'flor'.*\"floor\""),
        ("param", "EDN", "param 'EDN': allowed are"),
        ("label", "angel", r"label 'angel'.*did you mean \"angle\""),
        ("sampling.step", 3, r"sampling has no field 'step' \(did you mean \"steps\"\?\)"),
        ("shape", None, "model description: shape missing"),
        ("process", None, "model description: process missing"),
    ],
)
def test_refuses_descriptions_it_does_not_know(path: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_description(edit(path, value))


def test_refuses_to_describe_what_no_table_holds() -> None:
    foreign = Model(NetDenoiser(torch.nn.Linear(2, 2), VP()), (2,))
    with pytest.raises(ValueError, match="a model with a Linear"):
        foreign.describe()
    odd = NetDenoiser(MLP(MLPConfig()), VP(), _Edm(0.7))
    with pytest.raises(ValueError, match=r"EDM\(0\.7\) is not in the closed tables"):
        odd.describe()


def test_labels_by_name_and_number() -> None:
    m = unet()
    assert [m.label_index(x) for x in ("cat", "dog", 0, "1")] == [0, 1, 0, 1]
    for label in ("dgo", 2, -1, "", "2", "²"):
        with pytest.raises(UsageError, match="allowed are cat, dog"):
            m.label_index(label)
    with pytest.raises(UsageError, match='did you mean "dog"'):
        m.label_index("dgo")
    digits = Model(m.denoiser, (1, 8, 8), ("7", "3"))
    assert digits.label_index("3") == digits.label_index(3) == 1  # a name wins over a number
    for label in ("0", 1):  # is it a missing class or an index? nobody knows
        with pytest.raises(UsageError, match="allowed are 7, 3"):
            digits.label_index(label)
    with pytest.raises(UsageError, match="unconditional"):
        Model(m.denoiser, (1, 8, 8)).label_index("cat")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "huen"}, r'sampler "huen": allowed are .*did you mean "heun"'),
        ({"spacing": "karas"}, r'spacing "karas": allowed are .*did you mean "karras"'),
        ({"steps": 0}, "steps 0: must be"),
        ({"steps": 10**9}, "must be a whole number"),
        ({"sampler": "heun", "eta": 0.5}, "eta 0.5: only the sampler ddim"),
        ({"eta": -1.0}, "eta -1.0: must be"),
        ({"eta": 3.0, "steps": 5}, "largest legal eta"),
        ({"guidance_scale": float("nan")}, "must be a finite number"),
        ({"guidance_scale": 2.0}, "never saw the null condition"),
        (
            {"steps": 1001, "spacing": "trailing"},
            r"must be in 1\.\.1000, .* subset of 1000 steps; use .* even, karras or logsnr",
        ),
    ],
)
def test_a_plan_refuses_bad_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sampling.plan(mlp(), Sampling(**values))


def test_a_plan_counts_and_samples() -> None:
    plan = sampling.plan(unet(), Sampling("ddim", 3, "trailing", guidance_scale=2.0))
    assert plan.nfe == 6
    assert plan.times.tolist() == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])
    unconditional = Model(unet().denoiser, (1, 8, 8))
    with pytest.raises(UsageError, match="has no classes"):
        sampling.plan(unconditional, Sampling(guidance_scale=2.0))
    for name in sampling.SAMPLERS:
        if name == "ddpm-learned":
            continue  # for networks with twice the channels: tests/unit/test_recipes_learned.py
        *_, last = sampling.walk(unet(), Sampling(name, 3), [0, -1], 2)
        assert last.x.shape == (2, 1, 8, 8)
        assert float(last.x.detach().abs().max()) <= 1.2


def test_labels_of_the_noise_level() -> None:
    table = Tabulated(steps=1000)
    assert [round(float(index(table, (i + 1) / 1000)), 9) for i in (0, 500, 999)] == [0, 500, 999]
    assert angle(Cosine(0.0), 0.3) == pytest.approx(300)
    assert LABELS["quarter_log_sigma"](process.EDM(1.0), 0.5) == pytest.approx(
        -0.6931 / 4, abs=1e-4
    )
    with pytest.raises(ValueError, match="has no table"):
        index(VP(), 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"betas": "lienar"}, 'betas "lienar".*did you mean "linear"'),
        ({"steps": 1}, "at least 2"),
        ({"betas": (0.1, 1.0)}, r"beta\[1\] = 1: must be above 0"),
        ({"betas": (-0.1, 0.5)}, r"beta\[0\] = -0.1: must be above 0"),
        ({"betas": 5}, "betas 5: must be"),
        ({"betas": None}, "betas None: must be"),
        ({"betas": (0.1, "many")}, "betas .*: must be"),
        ({"steps": 10.5}, r"steps 10\.5: must be a whole number"),
        ({"steps": True}, "steps True: must be a whole number"),
        ({"steps": "10"}, "steps '10': must be a whole number"),
        ({"zero_terminal_snr": "no"}, "zero_terminal_snr 'no': must be a bool"),
        ({"zero_terminal_snr": 1}, "zero_terminal_snr 1: must be a bool"),
    ],
)
def test_refuses_tables_that_are_none(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Tabulated(**values)


@pytest.mark.parametrize(
    ("kind", "values", "rule"),
    [
        (VP, {"beta_min": 0.0}, "0 < beta_min < beta_max"),
        (VP, {"beta_min": 20.0}, "0 < beta_min < beta_max"),
        (VP, {"beta_max": math.inf}, "finite"),
        (VP, {"beta_min": math.nan}, "finite"),
        (Cosine, {"floor": 1.0}, "0 <= floor < 1"),
        (Cosine, {"floor": -1e-9}, "0 <= floor < 1"),
        (Cosine, {"floor": "warm"}, "floor='warm'"),
        (Cosine, {"floor": False}, "floor=False"),
        (process.VE, {"sigma_min": 0.0}, "0 < sigma_min < sigma_max"),
        (process.VE, {"sigma_max": 0.01}, "0 < sigma_min < sigma_max"),
        (process.VE, {"sigma_max": math.inf}, "finite"),
        (process.EDM, {"sigma_max": 0.0}, "sigma_max > 0"),
        (process.EDM, {"sigma_max": math.inf}, "finite"),
    ],
)
def test_refuses_processes_outside_their_range(
    kind: type[Process], values: dict[str, Any], rule: str
) -> None:
    with pytest.raises(UsageError, match=rule) as error:
        process.from_description({"name": kind.__name__, **values})
    assert repr(next(iter(values.values()))) in str(error.value)


def test_the_ends_of_the_ranges_are_open_or_closed_as_they_say() -> None:
    assert Cosine(0).alpha(1.0) == pytest.approx(0.0, abs=1e-15)
    assert VP(1, 2).alpha(0.0) == 1.0


def test_a_table_is_copied_to_a_device_once() -> None:
    """The CPU is where the table is; the device without memory stands for an accelerator."""
    p, t = Tabulated(steps=100), torch.tensor([0.05, 1.0])
    far = p._table(torch.device("meta"))
    assert p._table(torch.device("meta")) is far
    assert p._table(t.device) is p._table(t.device)
    assert p._table(t.device).device.type == "cpu"
    assert torch.equal(p.alpha(t), Tabulated(steps=100).alpha(t))
    assert p.time(p.logsnr(t.double())).tolist() == pytest.approx([0.05, 1.0])


def test_labels_of_another_process_or_kind_are_not_remembered() -> None:
    told: list[float] = []

    def net(x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        told.append(float(label[0]))
        return x

    d = NetDenoiser(torch.nn.Identity(), Cosine(0.0))
    d.net.forward = net
    x = torch.zeros(1, 1)
    d(x, 0.5)
    d.process = Cosine(0.5)
    d(x, 0.5)
    d.label = LABELS["quarter_log_sigma"]
    d(x, 0.5)
    d(x, 0.5)
    assert told[:2] == pytest.approx([500.0, 250.0])
    assert told[2] == told[3] == pytest.approx(0.25 * math.log(math.tan(math.pi / 8)), rel=1e-6)


def test_a_compiled_denoiser_is_the_one_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def compiled(f: Any) -> Any:
        def run(x: Tensor, t: float, cond: Any = None) -> Any:
            calls.append(t)
            return f(x, t, cond)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    d = NetDenoiser(MLP(MLPConfig(dim=2, width=16, layers=1)), VP())
    plain = d(torch.zeros(1, 2), 0.5).x0
    d.compile()
    assert torch.equal(d(torch.zeros(1, 2), 0.5).x0, plain)
    assert torch.equal(guide.Clamp(d)(torch.zeros(1, 2), 0.25).x_t, torch.zeros(1, 2))
    assert calls == [0.5, 0.25]


def modules() -> list[str]:
    """Return the names of all modules of the package."""
    return [m.name for m in pkgutil.walk_packages(fewstep.__path__, "fewstep.")]


@pytest.mark.parametrize("name", [n for n in modules() if not n.endswith("__main__")])
def test_the_examples_in_the_documentation_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_tables_of_names_are_closed() -> None:
    assert set(model.NETS) == {"UNet", "MLP", "EncoderUNet", "TextUNet"}
    assert set(model.INPUTS) == {"known", "low_res", "guidance"}


@pytest.mark.parametrize("param", [EPS, SCORE])
def test_pure_noise_cannot_be_predicted_from_eps(param):
    """At zero terminal SNR x0 = (x_t - sigma eps) / 0: refused at once, V is accepted."""
    pure = Tabulated(zero_terminal_snr=True)
    with pytest.raises(UsageError, match="zero_terminal_snr"):
        NetDenoiser(torch.nn.Identity(), pure, param)
    NetDenoiser(torch.nn.Identity(), pure, V)


def test_langevin_steps_go_with_their_sampler_and_ladder() -> None:
    """Another sampler drops them; another ladder only their size, and the same ladder nothing."""
    preset = Sampling("annealed-langevin", 19, each=3, snr=0.3)
    for changes, want in (
        ({"sampler": "ddim"}, (None, None)),
        ({"sampler": "predictor-corrector", "snr": 0.2}, (None, 0.2)),
        ({"steps": 19, "clip": False}, (3, 0.3)),
        ({"steps": 5}, (3, None)),
        ({"each": 1}, (1, None)),
        ({"each": 1, "snr": 0.1}, (1, 0.1)),
        ({"eta": 0.0}, (3, 0.3)),
    ):
        got = sampling.changed(preset, changes)
        assert (got.each, got.snr) == want, changes
    other = Sampling("predictor-corrector", 19, snr=0.2)
    assert sampling.changed(other, {"steps": 5}).snr == 0.2


def test_the_size_of_langevin_steps_is_by_the_ladder() -> None:
    """NCSNv2's technique 4 on the levels of the grid, for a process that ends clean."""
    plan = sampling.plan(unet(), Sampling("annealed-langevin", 12, "logsnr", each=4))
    assert isinstance(plan.solver, solvers.PredictorCorrector)
    p = unet().denoiser.process
    ratios = torch.tensor([p.sigma(t) / p.alpha(t) for t in plan.times[:-1].tolist()])
    assert plan.solver.snr == pytest.approx(ladder.snr_for(ratios, 4), rel=1e-3)
    fixed = sampling.plan(unet(), Sampling("annealed-langevin", 12, each=4, snr=0.2)).solver
    assert isinstance(fixed, solvers.PredictorCorrector)
    assert (fixed.each, fixed.snr) == (4, 0.2)
    with pytest.raises(UsageError, match="steps 1: annealed-langevin"):
        sampling.plan(unet(), Sampling("annealed-langevin", 1))
    with pytest.raises(UsageError, match="each and snr: not of the sampler ddim"):
        sampling.plan(unet(), Sampling("ddim", 5, each=2, snr=0.1))
