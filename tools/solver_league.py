"""Which solver at which budget: errors to the exact solution, written as docs/results/solvers.

python tools/solver_league.py                # the exact mixture and the shipped digits
python tools/solver_league.py runs/mnist     # and a model of MNIST, made by: fewstep train mnist
python tools/solver_league.py --check        # measures nothing: page and figure as stored?

Every cell is stored as soon as it is measured; interrupted, the same command goes on.
"""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import metrics, sampling, solvers, steer
from fewstep.cli.resolve import find
from fewstep.conditions import Cond
from fewstep.data import digits
from fewstep.denoiser import Denoiser, NetDenoiser
from fewstep.exact import Mixture
from fewstep.files import replacing
from fewstep.model import Model, Sampling
from fewstep.process import Cosine
from fewstep.report import chart, spec
from fewstep.train import engine
from fewstep.tune import Course

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "docs/results/solvers.json"
BUDGETS = (5, 6, 8, 10, 15, 20, 50)
GRIDS = ("even", "karras", "logsnr", "ays-sd15")
SAMPLERS = (
    "ddim", "euler", "heun", "dpmpp", "dpmpp3", "dpmpp3-legacy", "dpmpp-2s", "unipc", "unipc2",
    "deis", "deis-tab", "ipndm",
)  # fmt: skip
FINE = 200  # steps of the reference
JUDGED = 1000  # images of a Frechet distance
TUNE = "fewstep tune"  # stands as a sampler
LEADERS = 3  # samplers of a budget that are judged by it, beside ddim


@dataclass(frozen=True)
class Subject:
    """What is solved.

    Attributes:
        name: a key of the results.
        denoiser: with guidance and clipping.
        shape: of one sample.
        classes: how many are asked for in turn; 0 = none.
        n: samples an error is the mean of; sample i draws its noise from seed i.
        dtype: of the samples.
        fine: steps of the reference.
        model: with the settings that the denoiser follows; None for the mixture.
        far: grids on which more than 20 evaluations are measured.
    """

    name: str
    denoiser: Denoiser
    shape: tuple[int, ...]
    classes: int
    n: int
    dtype: torch.dtype = torch.float32
    fine: int = FINE
    model: Model | None = None
    far: tuple[str, ...] = GRIDS

    def solved(self, times: Tensor, solver: solvers.Solver, n: int = 0) -> Tensor:
        """Return the samples that a solver makes, shape (n, *)."""
        done = []
        for ids in torch.arange(n or self.n).split(250):
            noise = solvers.PerImage(solvers.image_seeds(0, len(ids), int(ids[0])))
            x = noise(torch.empty(len(ids), *self.shape, dtype=self.dtype))
            x = x * self.denoiser.process.prior_std(float(times[0]))
            cond: Cond = ids % self.classes if self.classes else None
            for step in solvers.sample(self.denoiser, tuple(x.shape), times, solver, cond, x=x):
                x = step.x
            done.append(x)
        return torch.cat(done)

    def way(self, sampler: str, grid: str, budget: int) -> tuple[Tensor, solvers.Solver] | None:
        """Return grid and solver of so many evaluations, or None where no number of steps fits.

        A guided evaluation counts once.
        """
        counting = NetDenoiser(torch.nn.Identity(), self.denoiser.process)
        for n in range(budget, 0, -1):
            times = sampling.grid(grid, self.denoiser.process, n)
            solver = sampling.SAMPLERS[sampler](0.0, n)
            cost = solvers.nfe(counting, times, solver)
            if cost <= budget:
                return (times, solver) if cost == budget else None
        return None

    def exact(self) -> Tensor:
        """Return the end points of the ODE from t = 1, in more steps than matter."""
        solver = sampling.SAMPLERS["dpmpp3"](0.0, self.fine)
        return self.solved(sampling.grid("even", self.denoiser.process, self.fine), solver)


def subjects(run: Path | None) -> Iterator[Subject]:
    """Yield what is measured: the exact mixture, digits and, where there is a run, its model."""
    means = torch.tensor([[-1.0, 0.3], [0.8, -0.6], [0.2, 1.1]], dtype=torch.float64)
    std = torch.tensor([0.04, 0.09, 0.0625], dtype=torch.float64).sqrt()
    weights = torch.tensor([0.3, 0.45, 0.25], dtype=torch.float64)
    toy = Mixture(Cosine(), means, std, weights=weights)
    yield Subject("exact mixture", toy, (2,), 0, 1000, dtype=torch.float64, fine=4000)
    models: list[tuple[str, str, int]] = [("digits", "digits", 64)]
    if run is not None:
        models.append(("mnist", str(run), 24))
    for name, word, n in models:
        model = find(word).model
        for scale in (model.sampling.guidance_scale, 1.0):
            settings = replace(model.sampling, guidance_scale=scale)
            told = replace(model, sampling=settings)
            guided = steer.guided(model, settings)
            size = model.shape, len(model.classes), n
            far = GRIDS[:1] if name == "mnist" else GRIDS
            yield Subject(f"{name}, scale {scale:g}", guided, *size, model=told, far=far)


def measure(subject: Subject, cells: dict[str, Any]) -> None:
    """Add the errors of a subject that are not there yet."""
    wanted = [
        (f"{subject.name}/{s}/{g}/{budget}", s, g, budget)
        for budget in BUDGETS
        for s in SAMPLERS
        for g in (subject.far if budget > 20 else GRIDS)
        if s != "euler" or subject.model is None
    ]
    wanted = [w for w in wanted if w[0] not in cells]
    total, spent, began = sum(w[3] for w in wanted), 0, time.monotonic()
    exact = subject.exact() if wanted else torch.empty(0)
    for k, (key, sampler, grid, budget) in enumerate(wanted):
        way = subject.way(sampler, grid, budget)
        spent += budget
        if way is None:
            continue
        error = float((subject.solved(*way) - exact).square().mean().sqrt())
        cells[key] = {"rms": float(f"{error:.4g}"), "steps": len(way[0]) - 1}
        save(cells)
        if k % 20 == 0:
            left = (total - spent) * (time.monotonic() - began) / spent
            print(f"{key} {error:.3g}  ETA {left:.0f} s", file=sys.stderr, flush=True)


def tuned(subject: Subject, cells: dict[str, Any]) -> None:
    """Add what fewstep tune finds, from other noise than that of the errors."""
    budgets = BUDGETS if subject.far == GRIDS else BUDGETS[:-1]
    wanted = [b for b in budgets if f"{subject.name}/{TUNE}/found/{b}" not in cells]
    if subject.model is None or not wanted:
        return
    exact = subject.exact()
    course = Course.of(subject.model, subject.model.sampling, seed=10_000)
    for budget in wanted:
        best = course.tried(budget)[0].sampling
        error = float((subject.solved(*_way(subject, best)) - exact).square().mean().sqrt())
        cell = {"rms": float(f"{error:.4g}"), "steps": budget, "sampling": best.plain()}
        cells[f"{subject.name}/{TUNE}/found/{budget}"] = cell
        save(cells)
        print(f"{subject.name} {TUNE} {budget}: {error:.3g}", file=sys.stderr, flush=True)


def _way(subject: Subject, found: Sampling) -> tuple[Tensor, solvers.Solver]:
    """Return grid and solver of settings."""
    assert subject.model is not None
    plan = sampling.plan(subject.model, found)
    return plan.times, plan.solver


def judge(subject: Subject, cells: dict[str, Any]) -> None:
    """Add Frechet distances of digits: of the leaders of each budget, and of ddim."""
    train, held_out = digits()
    extractor = metrics.classifier(train)
    real = extractor(torch.from_numpy(held_out.pixels)).vectors
    for budget in (b for b in BUDGETS if b <= 15):
        ranked = sorted(leaders(cells, subject.name, budget).items(), key=lambda kv: kv[1][0])
        names = dict.fromkeys([name for name, _ in ranked[:LEADERS]] + ["ddim"])
        for sampler in names:
            cell = cells[f"{subject.name}/{sampler}/{dict(ranked)[sampler][1]}/{budget}"]
            if "fd" in cell:
                continue
            if sampler == TUNE:
                kept: dict[str, Any] = dict(cell["sampling"])
                levels = kept.pop("levels", None)
                way = _way(subject, Sampling(**kept, levels=levels and tuple(levels)))
            else:
                way = subject.way(sampler, dict(ranked)[sampler][1], budget)
            assert way is not None
            made = sampling.to_uint8(subject.solved(*way, n=JUDGED))
            distance = metrics.frechet_distance(real, extractor(made).vectors)
            cell["fd"] = float(f"{distance:.4g}")
            save(cells)
            print(f"{subject.name} {sampler} {budget}: FD {distance:.3g}", file=sys.stderr)


def leaders(cells: Mapping[str, Any], subject: str, budget: int) -> dict[str, tuple[float, str]]:
    """Return, for every sampler, its least error at a budget and on which grid."""
    found: dict[str, tuple[float, str]] = {}
    for key, cell in cells.items():
        name, sampler, grid, cost = key.split("/")
        if (name, int(cost)) == (subject, budget):
            found[sampler] = min(found.get(sampler, (math.inf, "")), (cell["rms"], grid))
    return found


def winners(cells: Mapping[str, Any], *, guided: bool) -> dict[int, tuple[str, str]]:
    """Return sampler and grid of least worst-case error at each budget, over the real models.

    Only samplers of one evaluation a step: the number of steps is what users give. The error of
    each model is divided by the least at that budget.
    """
    errors: dict[int, dict[str, dict[tuple[str, str], float]]] = {}
    for key, cell in cells.items():
        name, sampler, grid, budget = key.split("/")
        real = name != "exact mixture" and name.endswith("scale 1") != guided
        if real and sampler != TUNE and cell["steps"] == int(budget):
            errors.setdefault(int(budget), {}).setdefault(name, {})[sampler, grid] = cell["rms"]
    found = {}
    for budget, models in sorted(errors.items()):
        shared = set.intersection(*(set(ways) for ways in models.values()))
        least = {name: min(ways.values()) for name, ways in models.items()}
        found[budget] = min(
            sorted(shared), key=lambda w: max(models[n][w] / least[n] for n in models)
        )
    return found


def page(cells: Mapping[str, Any]) -> str:
    """Return the page: how it was measured, the winners, and a table for each subject."""
    names = list(dict.fromkeys(key.split("/")[0] for key in cells))
    out = [TEXT, "## What `fewstep sample --steps N` takes\n"]
    out.append("| evaluations | guided | not guided |\n|---:|---|---|")
    both = winners(cells, guided=True), winners(cells, guided=False)
    for budget in both[0]:
        ways = (f"{spec.TITLES[s]}, {g}" for s, g in (w[budget] for w in both))
        out.append(f"| {budget} | {' | '.join(ways)} |")
    for name in names:
        out.append(f"\n## {name}\n\n{_table(cells, name)}")
    return "\n".join(out) + "\n"


def _table(cells: Mapping[str, Any], name: str) -> str:
    """Return the error of every sampler on its best grid, the least of a column in bold."""
    budgets = [b for b in BUDGETS if leaders(cells, name, b)]
    ranked = {b: leaders(cells, name, b) for b in budgets}
    rows = [["", *map(str, budgets)], ["---", *["---:"] * len(budgets)]]
    for sampler in (s for s in (*SAMPLERS, TUNE) if any(s in r for r in ranked.values())):
        row = [spec.TITLES.get(sampler, sampler)]
        for b in budgets:
            error, grid = ranked[b].get(sampler, (math.inf, ""))
            best = min(e for e, _ in ranked[b].values())
            shown = "-" if not grid else f"{error:.3g} {grid}"
            row.append(f"**{shown}**" if error == best else shown)
        rows.append(row)
    judged = [b for b in budgets if "fd" in cells[f"{name}/ddim/{ranked[b]['ddim'][1]}/{b}"]]
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    if not judged:
        return text
    lines = [f"| | {' | '.join(map(str, judged))} |", f"|---|{'---:|' * len(judged)}"]
    seen = [
        s
        for s in (*SAMPLERS, TUNE)
        if any("fd" in _cell(cells, name, s, ranked, b) for b in judged)
    ]
    for sampler in seen:
        found = [_cell(cells, name, sampler, ranked, b).get("fd") for b in judged]
        shown = " | ".join("-" if f is None else f"{f:.2f}" for f in found)
        lines.append(f"| {spec.TITLES.get(sampler, sampler)} | {shown} |")
    return f"{text}\n\nFD-classifier of {JUDGED} images, the leaders and DDIM:\n\n" + "\n".join(
        lines
    )


def _cell(
    cells: Mapping[str, Any],
    name: str,
    sampler: str,
    ranked: Mapping[int, Mapping[str, tuple[float, str]]],
    budget: int,
) -> dict[str, Any]:
    """Return the cell of a sampler on its best grid, {} where there is none."""
    grid = ranked[budget].get(sampler, (0.0, ""))[1]
    return cells.get(f"{name}/{sampler}/{grid}/{budget}", {})


def figure(cells: Mapping[str, Any]) -> str:
    """Return the errors against evaluations as SVG: a panel to each subject, a line a sampler."""
    names = list(dict.fromkeys(key.split("/")[0] for key in cells))
    names = [n for n in names if not n.endswith("scale 1")]

    def draw(drawing: Any) -> None:
        panels = drawing.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            for i, sampler in enumerate((*SAMPLERS, TUNE)):
                points = [(b, leaders(cells, name, b).get(sampler)) for b in BUDGETS]
                known = [(b, p[0]) for b, p in points if p is not None] or [(5, math.nan)]
                look = {"color": chart.COLOURS[i % 8], "ls": ("-", "--")[i // 8], "lw": 1.3}
                title = spec.TITLES.get(sampler, sampler)
                axes.plot(*zip(*known, strict=True), label=title, **look)
            axes.set(xscale="log", yscale="log", title=name, xlabel="evaluations")
            axes.set_xticks([5, 10, 20, 50], ["5", "10", "20", "50"])
            axes.set_ylim(0.0007, 0.7)
            axes.set_yticks([0.001, 0.01, 0.1], ["0.001", "0.01", "0.1"])
            axes.minorticks_off()
            axes.grid(color=chart.GREY, alpha=0.25, lw=0.6)
        panels[0].set_ylabel("rms error to the exact solution")
        drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside right", fontsize=8)

    place = chart.Place((4.0 * len(names) + 2, 4.2))
    svg = chart.rendered(draw, place, "svg")
    return chart.inline(svg, place, "Chart: error of the solvers against evaluations") + "\n"


TEXT = """# Which solver at which budget

Made by

```sh
fewstep train mnist                        # half an hour on a CPU
python tools/solver_league.py runs/mnist
```

Every solver starts from the same noise (sample i: seed i) on every grid and is compared with the
end points of the same ODE, solved in 200 steps of DPM-Solver++(3M) (4,000 for the mixture): root
mean square over pixels in [-1, 1] and samples. Each entry is the least over the grids even,
karras, logsnr and ays-sd15, with the grid's name. An evaluation is one call of the denoiser; a
guided one asks the network twice. Models are sampled as their settings say (clipped, scale 2) and
without guidance (scale 1), classes in turn: 64 digits of 8x8 (the shipped model) and, for the hour
that a CPU needs, 24 of MNIST, with 50 evaluations on even alone. So few are ruled by the one or
two that end as another digit: ways of MNIST within a third of each other are not told apart. The
mixture is three Gaussians in the plane, 1,000 samples in float64. Euler is DDIM, as a law of the
tests says, and measured on the mixture alone; "-" is where no number of steps has so many
evaluations.

"fewstep tune" is the first of what that command finds, from the trajectories of 32 other images of
the model; on MNIST as its settings say, up to 20 evaluations.

`fewstep sample --steps N` takes, where nothing else is said, the sampler and grid of least
worst-case error over digits and MNIST (the error divided by the least of that model); samplers of
two evaluations a step are left out there. Other numbers of steps take the nearest of those
measured. The error to the ODE is what a solver can be blamed for; it is not the quality of the
images, which Frechet distances judge: beyond 5 evaluations those of the leaders differ less than
they would between two sets of images.

![Error against evaluations, a line to each solver](solvers.svg)
"""


def save(cells: Mapping[str, Any]) -> None:
    """Store the cells: the whole file or none."""
    with replacing(STORED) as aside:
        aside.write_text(json.dumps(cells, indent=0) + "\n", "utf-8")


def main(words: list[str]) -> int:
    """Measure, store and write, or compare; return the exit code."""
    cells = json.loads(STORED.read_text("utf-8")) if STORED.exists() else {}
    pages = STORED.with_suffix(".md"), STORED.with_suffix(".svg")
    if words == ["--check"]:
        made = page(cells), figure(cells)
        return int(tuple(p.read_text("utf-8") for p in pages) != made)
    run = Path(words[0]) if words else None
    if run is None:
        print("without MNIST: fewstep train mnist, then give runs/mnist", file=sys.stderr)
    for subject in subjects(run):
        measure(subject, cells)
        plain = subject.name.endswith("scale 1")
        if subject.name.startswith("digits") or not plain:
            tuned(subject, cells)
        if subject.name.startswith("digits") and not plain:
            judge(subject, cells)
    pages[0].write_text(page(cells), "utf-8")
    pages[1].write_text(figure(cells), "utf-8")
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    engine.tune_cpu()
    sys.exit(main(sys.argv[1:]))
