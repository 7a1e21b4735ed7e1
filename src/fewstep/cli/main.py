"""The entry: which verb, and what becomes of its errors.

Help must come at once, so this module imports nothing but the standard library, and little of
that; the verb's own module is imported after its name is known. Every problem ends as one line on
stderr and an exit code: 2 usage, 3 data, 4 checkpoint, 5 numeric, 6 resource, 75 preempted and
saved, 130 interrupted, 70 a bug of ours. `lab` returns 1 where a number is not reproduced.
`--debug`, anywhere on the line, shows the traceback.
"""

import os
import sys
from importlib import import_module

VERBS = {
    "demo": ("fewstep.cli.demo", "train on real digits, steer, sample, judge: one report"),
    "train": ("fewstep.cli.train", "train a model from a recipe or a folder, or continue a run"),
    "sample": ("fewstep.cli.sample", "make images with a model"),
    "tune": ("fewstep.cli.tune", "find the sampler and grid of few steps for a model"),
    "evaluate": ("fewstep.cli.evaluate", "measure images under a stated protocol"),
    "compare": ("fewstep.cli.compare", "what steps cost: quality against steps against time"),
    "edit": (
        "fewstep.cli.edit",
        "encode, walk between, complete, colour, enlarge and redraw images",
    ),
    "distill": ("fewstep.cli.distill", "a student of few steps, and what it costs"),
    "lab": ("fewstep.cli.lab", "what the talk says, measured on points: pictures and numbers"),
    "import": ("fewstep.cli.import_", "make a model of a published checkpoint on your disk"),
    "doctor": ("fewstep.cli.doctor", "look at this machine and this installation"),
}
"""Each verb with its module and its line in the help."""

OK, USAGE, RESOURCE, BUG, PIPE, INTERRUPTED = 0, 2, 6, 70, 141, 130


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the words after `fewstep`; those of the process when None.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    head = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in head
    words = [w for w in head if w != "--debug"] + words[len(head) :]
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return OK
    if words[0] in ("-V", "--version", "version"):
        from fewstep import __version__

        print(f"fewstep {__version__}")
        return OK
    if words[0] not in VERBS:
        return _fail(_unknown(words[0]), USAGE)
    return _guarded(words[0], words[1:], debug)


def help_text() -> str:
    """Return what `fewstep --help` prints."""
    verbs = "\n".join(f"  {verb:<8} {line}" for verb, (_, line) in VERBS.items())
    return (
        "Usage: fewstep VERB [ARGUMENTS]\n\n"
        "From your own images to a conditional generator, and from 1000 steps to a few.\n\n"
        f"Verbs:\n{verbs}\n\n"
        "Options:\n"
        "  --help     this text; `fewstep VERB --help` explains a verb\n"
        "  --version  print the version\n"
        "  --debug    show the traceback of an error\n\n"
        "Try: fewstep sample digits --label 7 -n 16 -o sevens.png"
    )


def _guarded(verb: str, words: list[str], debug: bool) -> int:
    """Run a verb; turn every way it can end into an exit code."""
    import warnings

    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = _run(verb, words)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            # The reader has gone (`| head`): nobody is left to be told.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE
        except KeyboardInterrupt:
            return _fail("interrupted", INTERRUPTED)
        except Exception as error:
            if debug:
                import traceback

                traceback.print_exc()
            return _fail(*_explain(error, verb))


def _run(verb: str, words: list[str]) -> int:
    """Import the verb's module and run its command; return the exit code."""
    # Threads that wait for work by spinning stop each other when the machine has other work too:
    # training on two cores was three to eight times slower. libgomp reads this when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    module = import_module(VERBS[verb][0])
    import typer

    # Names of files may hold bytes that the terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    command = typer.main.get_command(module.app)
    try:
        # Not command.main(), which has its own ideas of what to print when something goes wrong.
        with command.make_context(f"fewstep {verb}", words, obj=[*words]) as context:
            code = command.invoke(context)
    except typer.Exit as end:  # --help ends so
        code = end.exit_code
    return code if isinstance(code, int) else OK


def _explain(error: Exception, verb: str) -> tuple[str, int]:
    """Return the line and the exit code of an error."""
    from fewstep.errors import FewstepError

    kind = type(error).__name__
    if isinstance(error, FewstepError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # typer's own: option unknown, missing, misread
        from fewstep.cli.options import explain

        context = getattr(error, "ctx", None)
        where = f"fewstep {verb}" if context is None else context.command_path
        return f"{explain(error)}; see {where} --help", USAGE
    if kind == "Abort":
        return "interrupted", INTERRUPTED
    if isinstance(error, MemoryError) or _out_of_memory(error):
        advice = "take a smaller batch (train.batch_size, or train.accumulate), image or -n"
        return f"out of memory; {advice}", RESOURCE
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("fewstep"):
        return f"{error.name} is not installed; fewstep {verb} needs it: pip install it", USAGE
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", RESOURCE
    return (
        f"this is a bug of fewstep ({kind}: {error}); run again with --debug and report what "
        "it prints",
        BUG,
    )


def _out_of_memory(error: Exception) -> bool:
    """Return whether torch asked for memory in vain; it raises a RuntimeError on a CPU."""
    said = str(error)
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in said or "not enough memory" in said)
    )


def _unknown(verb: str) -> str:
    from fewstep.errors import suggest

    return f"no such verb {verb!r}{suggest(verb, VERBS)}; there are: {', '.join(VERBS)}"


def _fail(message: str, code: int) -> int:
    """Say on stderr in one line why the command ended."""
    from fewstep.cli.console import one_line, rank

    # Under torchrun all processes meet the same wrong usage; one of them says it.
    if rank() == 0 or code not in (USAGE, 75, INTERRUPTED):
        word = "stopped" if code in (75, INTERRUPTED) else "error"
        where = f" (process {rank()})" if rank() else ""
        print(f"fewstep: {word}{where}: {one_line(message)}", file=sys.stderr, flush=True)
    return code


def _show_warning(message: Warning | str, *_: object) -> None:
    """Print a warning as one line, without the line of source that Python adds."""
    from fewstep.cli.console import warn

    warn(str(message))
