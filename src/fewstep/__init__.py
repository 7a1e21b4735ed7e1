"""fewstep: from your own images to a conditional generator, and from 1000 steps to a few.

The public API is this list of names. They are loaded on first use, so that `import fewstep`
itself costs nothing and the command line can answer `--help` without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Process": "process",
    "VP": "process",
    "Cosine": "process",
    "VE": "process",
    "EDM": "process",
    "Tabulated": "process",
    "Prediction": "prediction",
    "Denoiser": "denoiser",
    "NetDenoiser": "denoiser",
    "Model": "model",
    "Sampling": "model",
    "sample": "solvers",
    "generate": "solvers",
    "nfe": "solvers",
    "fit": "train.fit",
    "FitConfig": "train.config",
    "load_model": "train.checkpoint",
    "save_model": "train.checkpoint",
}
_MODULES = (
    "data",
    "denoiser",
    "distill",
    "edit",
    "errors",
    "exact",
    "guide",
    "lab",
    "langevin",
    "likelihood",
    "metrics",
    "model",
    "nets",
    "objectives",
    "prediction",
    "process",
    "sampling",
    "shapes",
    "solvers",
    "students",
    "train",
)

__all__ = ["__version__", *_HOME, *_MODULES]

if TYPE_CHECKING:
    from fewstep import (
        data,
        denoiser,
        distill,
        edit,
        errors,
        exact,
        guide,
        lab,
        langevin,
        likelihood,
        metrics,
        model,
        nets,
        objectives,
        prediction,
        process,
        sampling,
        shapes,
        solvers,
        students,
        train,
    )
    from fewstep.denoiser import Denoiser, NetDenoiser
    from fewstep.model import Model, Sampling
    from fewstep.prediction import Prediction
    from fewstep.process import EDM, VE, VP, Cosine, Process, Tabulated
    from fewstep.solvers import generate, nfe, sample
    from fewstep.train.checkpoint import load_model, save_model
    from fewstep.train.config import FitConfig
    from fewstep.train.fit import fit


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name in _HOME:
        value = getattr(import_module(f"fewstep.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"fewstep.{name}")
    else:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
