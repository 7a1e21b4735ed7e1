"""The same road on a GPU: what a CPU cannot show. Run by `make test-slow` where there is one."""

import dataclasses

import pytest
import torch

from fewstep import data, exact, guide, nets, objectives, process, solvers
from fewstep.denoiser import NetDenoiser
from fewstep.model import Model, Sampling
from fewstep.train.config import FitConfig
from fewstep.train.fit import fit

pytestmark = pytest.mark.gpu


def tiny() -> Model:
    train, _ = data.digits()
    config = nets.UNetConfig(
        in_channels=1, out_channels=1, size=8, width=32, mult=(1, 2), depth=1, attention=(4,),
        heads=1, classes=10,
    )  # fmt: skip
    denoiser = NetDenoiser(nets.UNet(config), process.Cosine())
    return Model(denoiser, train.shape, train.classes)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fit_then_sample_with_labels_from_the_cpu(tmp_path, precision) -> None:
    """Train, come back on the GPU, be guided there, stop and go on."""
    train, _ = data.digits()
    config = FitConfig(steps=6, batch_size=32, checkpoint_every=3, precision=precision)
    model = fit(tiny(), train, objectives.Denoising(), config, tmp_path, device="cuda")
    assert next(model.denoiser.parameters()).is_cuda
    guided = guide.ClassifierFree(model.denoiser, 2.0)
    for solver in solvers.ALL:
        times = solvers.grids.uniform(3)
        x = solvers.generate(guided, (10, 1, 8, 8), times, solver, torch.arange(10))
        assert x.is_cuda
        assert bool(x.isfinite().all())
    longer = dataclasses.replace(config, steps=8)
    fit(tiny(), train, objectives.Denoising(), longer, tmp_path, device="cuda")


def test_a_report_of_a_model_on_the_gpu(tmp_path) -> None:
    """The judge stays on the CPU, the model does not."""
    pytest.importorskip("torch_fidelity")
    from fewstep.metrics import pixels
    from fewstep.report.cells import Labels
    from fewstep.report.judge import Judge, Reals, protocol
    from fewstep.report.spec import Row
    from fewstep.report.work import Item, Subject, Work

    model = tiny()
    model.denoiser.cuda()
    judge = Judge(protocol("small-1k", 40), Reals("digits", *data.digits()), [pixels()])
    row = Row("row", Sampling(steps=3))
    item = Item.of_row(row, Subject(model, "tiny", "0", Labels((1,) * 10)), tmp_path)
    work = Work(judge, [item])
    list(work.make())
    line = work.line(item, 40)
    assert line.figure("FD-pixels").value > 0
    assert torch.cuda.get_device_name() in line.record["sampled on"]


def test_a_gpu_and_a_cpu_agree_on_an_exact_denoiser() -> None:
    """The same seeds, the same images: noise is drawn on the CPU, only arithmetic differs."""
    means = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    cpu = exact.Mixture(process.Cosine(), means, 0.3)
    x = solvers.PerImage(range(8))(torch.empty(8, 3, 4, 4))
    for solver in solvers.ALL:
        ends = []
        for device in ("cpu", "cuda"):
            steps = solvers.sample(
                cpu.to(device), (8, 3, 4, 4), solvers.grids.uniform(20), solver, x=x.to(device)
            )
            *_, last = steps
            ends.append(last.x.cpu())
        assert float((ends[0] - ends[1]).abs().max()) < 1e-3
