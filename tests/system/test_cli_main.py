"""The entry of the command line: what help costs, and how everything ends."""

import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import typer

import fewstep
from fewstep.cli import main as entry
from fewstep.cli import resolve
from fewstep.errors import NumericError, Preempted
from tests.system.cli_runs import call, process, refused


def run(code, **options):
    return subprocess.run([sys.executable, *code], capture_output=True, text=True, **options)


def imported(words):
    """Return the modules that a command imports, from a process of its own."""
    code = (
        "import sys\nfrom fewstep.cli.main import main\n"
        f"main({words!r})\nprint('MODULES', *sys.modules)"
    )
    done = run(["-c", code], check=True)
    return set(done.stdout.split("MODULES")[1].split())


def test_help_lists_the_verbs_and_loads_nothing():
    modules = imported(["--help"])
    assert not modules & {"torch", "typer", "rich", "numpy", "click", "yaml", "pydantic"}


@pytest.mark.parametrize("verb", ["demo", "train", "sample", "lab", "doctor"])
def test_help_of_a_verb_does_not_load_torch(verb):
    assert not imported([verb, "--help"]) & {"torch", "numpy", "pydantic", "yaml"}


def test_sampling_does_not_load_the_compiler(tmp_path):
    """Nor what it leans on: they take longer than the rest of the command."""
    loaded = imported(["sample", "digits-1step", "-n", "1", "-o", str(tmp_path / "x.png")])
    assert "torch" in loaded
    assert not loaded & {"torch._dynamo", "sympy", "matplotlib", "accelerate"}


def test_help_costs_a_few_bare_pythons():
    def seconds(*words):
        began = time.perf_counter()
        run(list(words), check=True)
        return time.perf_counter() - began

    pairs = [(seconds("-c", "pass"), seconds("-m", "fewstep", "--help")) for _ in range(7)]
    bare, ours = min(a for a, _ in pairs), min(b for _, b in pairs)
    assert ours <= 5 * bare, (ours, bare)
    assert ours < 0.1


def test_version_and_help(capsys):
    assert call(capsys, "--version") == (0, f"fewstep {fewstep.__version__}\n", "")
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(f"  {verb}" in out for verb in ("demo", "train", "sample", "doctor"))
    assert "studio" not in out  # planned verbs are not promised


def test_unknown_verb_names_the_nearest(capsys):
    refused(call(capsys, "smaple"), 2, "smaple", '"sample"', "doctor")


def test_unknown_verb_of_a_real_process(tmp_path):
    folder = tmp_path / "a b"
    folder.mkdir()
    p = process("trian", cwd=folder, stdout=-1, stderr=-1)
    out, err = p.communicate(timeout=60)
    refused((p.returncode, out, err), 2, '"train"')
    assert out == ""


@pytest.fixture
def verb(monkeypatch):
    """Return a function that makes the verb `doctor` end with an error."""

    def plant(error):
        app = typer.Typer()

        @app.command()
        def _() -> None:
            raise error

        monkeypatch.setattr(entry, "import_module", lambda name: SimpleNamespace(app=app))

    return plant


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (NumericError("weight 3 is NaN"), 5, "weight 3 is NaN"),
        (RuntimeError("odd"), 70, "bug"),
        (MemoryError(), 6, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 6, "batch"),
        (PermissionError(13, "Permission denied", "x.png"), 6, "x.png: Permission denied"),
        (ModuleNotFoundError("No module named 'zzz'", name="zzz"), 2, "zzz is not installed"),
        (ValueError("two\nlines"), 70, "two lines"),
    ],
)
def test_every_error_is_one_line_and_a_code(capsys, verb, error, code, said):
    verb(error)
    answer = call(capsys, "doctor")
    refused(answer, code, said)
    assert len(answer[2].splitlines()) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Preempted("SIGTERM: saved")])
def test_being_stopped_is_no_error(capsys, verb, error):
    verb(error)
    code, _, err = call(capsys, "doctor")
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 75)
    assert err.startswith("fewstep: stopped: ")


def test_debug_shows_the_traceback_wherever_it_stands(capsys, verb):
    verb(NumericError("weight 3 is NaN"))
    for words in (["--debug", "doctor"], ["doctor", "--debug"]):
        code, _, err = call(capsys, *words)
        assert code == 5
        assert "Traceback" in err
        assert "fewstep: error: weight 3 is NaN" in err


def test_a_closed_pipe_is_quiet(tmp_path):
    with process("doctor", "--format", "json", cwd=tmp_path, stdout=-1, stderr=-1) as p:
        p.stdout.close()
        err = p.stderr.read()
    assert (p.returncode, err) == (141, "")


def test_doctor_says_what_is_here(capsys):
    code, out, err = call(capsys, "doctor")
    assert code == 0, out
    assert err == ""
    assert "torch" in out
    assert re.search(r"self-test  one image, .* on (cpu|cuda|mps): ", out)
    if "digits" in resolve.shipped():
        assert "sample digits --label 7 -n 16)" in out
    refused(call(capsys, "doctor", "--format", "xml"), 2, "xml", "json")
