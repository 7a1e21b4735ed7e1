"""The errors that a user of the command line may meet, each with its exit code.

An error is one line that says what is wrong, where, what is allowed and what to do. The library
raises these classes where data, files or settings come in; the command line prints the line and
exits with the code. Anything else that reaches the user is a bug (exit 70).
"""

from collections.abc import Iterable
from difflib import get_close_matches


class FewstepError(Exception):
    """Report a problem in one line; `exit_code` is what the command line returns."""

    exit_code = 70


class UsageError(FewstepError, ValueError):
    """Report a wrong argument, option or configuration value."""

    exit_code = 2


class DataError(FewstepError, ValueError):
    """Report images, labels or folders that cannot be used."""

    exit_code = 3


class CheckpointError(FewstepError):
    """Report a checkpoint or model that is missing, damaged or of another kind."""

    exit_code = 4


class NumericError(FewstepError):
    """Report a value that is not finite where it must be."""

    exit_code = 5


class ResourceError(FewstepError):
    """Report a full disk, missing permission or missing memory."""

    exit_code = 6


class MemoryShort(ResourceError):
    """Report missing memory, for those who can do with less."""


class Preempted(FewstepError):
    """Report that the run was told to stop (SIGTERM, SIGUSR1) and has saved itself."""

    exit_code = 75


class Interrupted(FewstepError):
    """Report that the user interrupted the run (Ctrl-C) and that it has saved itself."""

    exit_code = 130


def suggest(word: str, allowed: Iterable[str]) -> str:
    """Return ' (did you mean "x"?)' for the allowed word nearest to `word`, or ''.

    >>> suggest("guidence", ["guidance", "steps"])
    ' (did you mean "guidance"?)'
    """
    near = get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f' (did you mean "{near[0]}"?)' if near else ""
