"""What `fewstep sample --explain` says: every time of the grid with its noise, and the cost."""

import json
from typing import TYPE_CHECKING, Any

from fewstep.cli import guidance
from fewstep.cli.console import count

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.model import Sampling
    from fewstep.steer import Steer, Weak


def show(
    found: "Found",
    preset: "Sampling",
    facts: dict[str, Any],
    form: str,
    steer: "Steer | Weak | None",
) -> None:
    """Print every time of the grid with its noise level, and what it costs."""
    from fewstep import sampling
    from fewstep.process import Tabulated
    from fewstep.solvers import grids

    process = found.model.denoiser.process
    times = sampling.plan(found.model, preset, steer).times.tolist()
    total = process.steps if isinstance(process, Tabulated) else 1000
    strided = preset.spacing in grids.SPACINGS and preset.levels is None
    rows = []
    for t in times:
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        index = round(t * total) - 1 if strided and t > 0 else None
        logsnr = float(process.logsnr(t)) if alpha > 0 and sigma > 0 else None
        rows.append({"t": t, "index": index, "alpha": alpha, "sigma": sigma, "logsnr": logsnr})
    if form == "json":
        print(json.dumps({**facts, "times": rows}))
        return
    s = facts["sampling"]
    where = "listed noise levels" if preset.levels else f"spacing {s['spacing']}"
    print(
        f"{found.name}: {s['sampler']}, {count(facts['steps'], 'step')}, {where}, "
        f"eta {s['eta']:g}, {guidance.shown(facts)}"
        f"{guidance.stated(facts)}"
    )
    print("step       t  index   alpha   sigma   logsnr")
    for i, row in enumerate(rows):
        index = "-" if row["index"] is None else row["index"]
        logsnr = "-" if row["logsnr"] is None else f"{row['logsnr']:.3f}"
        print(
            f"{i:>4} {row['t']:>7.4f} {index:>6} {row['alpha']:>7.4f} {row['sigma']:>7.4f} "
            f"{logsnr:>8}"
        )
    print(f"network evaluations per image: {facts['nfe']}")
