"""Fixtures of all tests."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# The same examples every time, and no deadline: a busy machine is not a failure.
settings.register_profile("fewstep", derandomize=True, deadline=None, database=None)
settings.load_profile("fewstep")

# A shell ignores SIGINT in what it runs in the background, and so do the processes of its tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of its own for the whole run, one for all workers: a classifier is trained once."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    os.environ["FEWSTEP_CACHE"] = str(folder / "cache")


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of optional test data: $FEWSTEP_SHARED or `shared` beside the repository."""
    folder = Path(os.environ.get("FEWSTEP_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no optional test data at {folder} (set FEWSTEP_SHARED)")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is none, with the reason."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
