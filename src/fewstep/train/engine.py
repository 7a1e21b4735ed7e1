"""The machine around the training loop: device, precision, processes, signals, the run's lock.

Nothing here knows what is being trained. One process needs no launcher and opens no process
group; under `torchrun` or `accelerate launch` the same code trains on all ranks.
"""

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.errors import Interrupted, MemoryShort, Preempted, ResourceError, UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision = Literal["auto", "fp32", "bf16"]


def devices() -> list[str]:
    """Return the names that `pick_device` accepts on this machine."""
    found = ["auto", "cpu"]
    if torch.cuda.is_available():
        found += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name; `auto` is cuda, else mps, else cpu.

    Raises:
        UsageError: it is not there; the message lists what is.
    """
    there = devices()
    if name not in there:
        raise UsageError(f"device {name!r}: not on this machine; there is: {', '.join(there)}")
    if name == "auto":
        name = next(d for d in ("cuda", "mps", "cpu") if d in there)
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """Return fp32 or bf16; `auto` is bf16 where the device has instructions for it, else fp32.

    `bf16` is strict: it is also taken where it is emulated, and refused where it is not there.
    float16 is not offered: without loss scaling it turns into NaN, and bf16 needs none.

    Raises:
        UsageError: the name is unknown or the device lacks bf16.
    """
    able = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
    if name not in ("auto", "fp32", "bf16"):
        raise UsageError(f"precision {name!r}: auto, fp32 or bf16")
    if name == "bf16" and not able:
        raise UsageError(f"precision bf16: {device} does not support it; use fp32")
    if name == "auto":
        name = "bf16" if _native_bf16(device) else "fp32"
    return "bf16" if name == "bf16" else "fp32"


def _native_bf16(device: torch.device) -> bool:
    """Return whether bf16 is faster than fp32 here: emulation, which torch also counts, is not."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public name for it; every CPU with AMX has these instructions too.
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and probe is not None and bool(probe())


def tune_cpu() -> bool:
    """Keep freed memory in the process (glibc): 1.2 to 1.5 times faster training on a CPU.

    By default glibc gives every large tensor back to the kernel and takes zeroed pages anew.
    The switch holds for the whole process, so the command line throws it, never an import.

    Returns:
        whether it was done; False where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim, threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        return bool(mallopt(threshold, 1 << 30)) and bool(mallopt(trim, 2**31 - 1))
    return False


@dataclass(frozen=True)
class Alone:
    """Stand in for accelerate's Accelerator where one process trains.

    An Accelerator fixes device and precision for the whole process, and a second one of another
    kind raises; training alone needs none.

    Args:
        device: where it trains.
    """

    device: torch.device
    num_processes: int = 1
    process_index: int = 0
    is_main_process: bool = True

    def wait_for_everyone(self) -> None:
        """Return at once."""

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensor: there are no others."""
        return tensor

    def prepare_model(self, net: nn.Module) -> nn.Module:
        """Return the network itself."""
        return net

    def no_sync(self, net: nn.Module) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()


Processes: TypeAlias = "Alone | Accelerator"
"""The processes that train together."""


def accelerator(device: torch.device) -> Processes:
    """Return accelerate's view of the processes; precision and device stay in our hands."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Alone(device)
    from accelerate import Accelerator

    return Accelerator(cpu=device.type == "cpu", mixed_precision="no")


def entropy(seed: int, *where: int) -> list[int]:
    """Return two independent 64-bit seeds for a place in the run, such as (rank, step, micro).

    Hashing the whole tuple, not adding, so that (seed 0, step 1) and (seed 1, step 0) differ.
    """
    words = np.random.SeedSequence([seed, *where]).generate_state(2, np.uint64)
    return [int(w) for w in words]


@contextmanager
def memory(advice: str) -> Iterator[None]:
    """Turn a lack of memory, on whichever device, into one line with advice.

    Raises:
        MemoryShort: the block ran out of memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        cpu = isinstance(e, RuntimeError) and "can't allocate memory" in str(e)
        if not (cpu or isinstance(e, torch.OutOfMemoryError | MemoryError)):
            raise
        raise MemoryShort(f"out of memory: {advice}") from e


@contextmanager
def all_digits() -> Iterator[None]:
    """Let a GPU convolve in float32 as it is: by default it keeps 10 of 23 bits (TF32)."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


class Signals:
    """Turn SIGTERM, SIGUSR1 and SIGINT into a wish to stop after the current step.

    A context: the handlers hold inside it. A second signal leaves the process at once.

    Attributes:
        wanted: the number of the signal that came, or 0.
    """

    CAUGHT = (signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if os.name == "posix" else []))

    def __init__(self) -> None:
        self.wanted = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Hold the handlers; outside the main thread the process is someone else's."""
        with suppress(ValueError):
            for number in self.CAUGHT:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        # A launcher repeats the signal by itself (and kills after a time of its own).
        if self.wanted and "LOCAL_RANK" not in os.environ:
            os._exit(128 + number)
        self.wanted = number


def stopped(number: int, step: int, saved: Path) -> Preempted | Interrupted:
    """Return the error that ends a run which was told to stop and has saved itself."""
    kind = Interrupted if number == signal.SIGINT else Preempted
    name = signal.Signals(number).name
    return kind(f"{name}: saved after step {step} in {saved}; the same command continues the run")


@contextmanager
def locked(run: Path, option: str = "out") -> Iterator[None]:
    """Hold the run folder, so that two trainers never write into it.

    The kernel drops the lock with the process, however that ends: nothing stale can be left.

    Args:
        run: the folder; it is made.
        option: what names it on the command line, for messages.

    Raises:
        UsageError: another process holds it; the message names pid@host.
        ResourceError: the folder cannot be made or written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        fd = os.open(run / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except (FileExistsError, NotADirectoryError) as e:
        raise UsageError(f"{option}={run}: a file is in the way; choose another `{option}`") from e
    except OSError as e:
        raise ResourceError(f"cannot write {run}: {e.strerror}; choose another `{option}`") from e
    try:
        if not _try_lock(fd):
            owner = os.pread(fd, 200, 0).decode(errors="replace").strip()
            raise UsageError(
                f"{run}: {owner} is training here; stop it or choose another `{option}`"
            )
        os.truncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}@{socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    """Take the lock; False if it is taken. File systems without locks count as free."""
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True
