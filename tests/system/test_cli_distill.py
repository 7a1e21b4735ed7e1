"""fewstep distill: stages run, go on where they were, and end in a student."""

import os
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest

from fewstep.cli import climb
from fewstep.report import results
from fewstep.students import run as distillation
from tests.system import distilling
from tests.system.cli_runs import call, copy, refused
from tests.system.distilling import described, everything, started, weights

WAY = ("--method", "progressive", "--start", "8", "-n", "40")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run on class folders, in folders whose names hold a space."""
    return distilling.teacher(tmp_path_factory.mktemp("a place"))


@pytest.fixture(scope="module")
def straight(teacher, tmp_path_factory):
    """A distillation of three stages that nothing disturbed: exit code, output, folder."""
    place = tmp_path_factory.mktemp("straight on")
    words = (teacher, "--to", "1", *WAY, "--images", "9600", "-o", "st u")
    p = started(*words, cwd=place)
    out, err = p.communicate(timeout=170)
    return p.returncode, out, err, place / "st u"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder whose name holds a space, in a hurry."""
    stub = tmp_path / "bin" / "fewstep"  # so that the printed commands are the short ones
    stub.parent.mkdir()
    stub.touch(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    return distilling.settle(tmp_path, monkeypatch)


# ---------------------------------------------------------------- the ladder, and what it leaves
def test_the_ladder_is_told_while_it_is_made(straight, teacher):
    code, out, err, place = straight
    assert code == 0, err
    assert out.splitlines()[0] == "distillation: st u"
    for line in (
        "method progressive",
        "stage 1: 8 -> 4 steps, 60 updates of 32 images",
        "stage 3: 2 -> 1 step, 120 updates of 32 images",
        "4 steps, update 50: copy error 0.",
        "ETA",
    ):
        assert line in err, line
    assert f"teacher: {teacher}" in err
    rungs = [line for line in out.splitlines() if ": copy error" in line]
    assert [line.split(":")[0] for line in rungs] == ["4 steps", "2 steps", "1 step"]
    counts = ["4 evaluations", "2 evaluations", "2 evaluations"]  # guided: two to a step
    assert all(f"; {n} of the teacher: " in line for n, line in zip(counts, rungs, strict=True))
    assert all("FD-classifier" in line for line in rungs)
    heads = next(line for line in out.splitlines() if "FD-classifier" in line and "NFE" in line)
    assert "FD-pixels" not in heads  # what decides comes first, and there is no room for all
    page = (place / "report.html").read_text()
    assert page.index(">FD-classifier</th>") < page.index(">FD-pixels</th>")
    assert {"student", "stages", "eval", "results.json", "report.html"} <= {
        each.name for each in place.iterdir()
    }


def test_a_student_says_how_it_is_sampled_and_whose_it_is(straight, teacher):
    said = described(straight[3] / "student")
    assert (said["sampling"]["sampler"], said["sampling"]["steps"]) == ("ddim", 1)
    assert said["sampling"]["guidance_scale"] == 1
    student = said["student"]
    assert (student["kind"], student["steps"], student["guidance"]) == ("progressive", 1, 2.0)
    assert student["teacher"] == "a run"  # by name: where it lies is nobody's business
    assert student["images"] == 9600
    assert "recipe" not in said["about"]


def test_the_students_of_a_ladder_are_one_block_of_the_table(straight):
    _, out, _, place = straight
    lines = results.load(place / "results.json")
    students = [line.record["student"] for line in lines if "student" in line.record]
    assert [student["steps"] for student in students] == [4, 2, 1]
    own = described(place / "student")["student"]
    assert {student["ladder"] for student in students} == {own["ladder"]}
    assert out.splitlines().count("students of a run") == 1  # its heading
    page = (place / "report.html").read_text()
    assert page.count(">students of a run</th>") == 1
    assert len(set(re.findall("weights of students of a run, progressive [124]", page))) == 3


def test_the_last_line_is_a_command_that_works(straight, monkeypatch, capsys):
    monkeypatch.chdir(straight[3].parent)
    last = straight[1].splitlines()[-1]
    assert last.startswith("next: ")
    words = shlex.split(last.removeprefix("next: "))
    at = words.index("sample")
    assert words[at:] == ["sample", "st u", "--label=a", "-n", "16"]
    code, out, err = call(capsys, *words[at:])
    assert code == 0, err
    assert "ddim 1 step, 1 network evaluation each" in out


def test_a_student_is_measured_by_the_images_of_its_teacher(straight, capsys, monkeypatch):
    """Without --data, found in the folder of the distillation, and judged in it."""
    place = copy(straight[3], "st u")
    code, out, err = call(capsys, "compare", "st u", "-n", "40")
    assert code == 0, err
    assert err.count("a progressive student, measured in the way that it was made for") == 1
    assert "DDIM 1" in out
    assert "DDIM 50" not in out
    assert "some images" in out
    assert f"results: {place / 'eval'}" in out
    code, out, err = call(capsys, "evaluate", "st u", "-n", "40")
    assert code == 0, err
    assert f"report: {place / 'eval'}" in out
    refused(call(capsys, "compare", "st u", "-n", "40", "--preset", "frontier"), 2, "student")
    code, out, err = call(capsys, "compare", place / "student", "--samplers", "ddim:1", "-n", "40")
    assert code == 0, err


# ---------------------------------------------------------------- stopped, killed, gone on
def at_stage(place, name, p, step=0):
    """Wait until a stage trains, or has saved a step."""
    log = place / "stages" / name / ("checkpoints" if step else "metrics.jsonl")
    want = log / f"step-{step:08d}" if step else log
    deadline = time.monotonic() + 90
    while not want.exists():
        assert p.poll() is None, p.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_stopped_and_killed_it_ends_with_the_same_bits(straight, teacher, folder):
    """SIGTERM and SIGKILL within the second stage of three, SIGINT within the third."""
    words = (teacher, "--to", "1", *WAY, "--images", "9600", "-o", "st u")
    place = folder / "st u"
    p = started(*words, cwd=folder)
    at_stage(place, "2", p)
    p.send_signal(signal.SIGTERM)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 75, err
    assert "fewstep: stopped: SIGTERM: saved after step" in err
    assert "the same command continues the run" in err
    assert not (place / "stages" / "1").exists()
    p = started("st u", cwd=folder)
    at_stage(place, "2", p, step=100)
    p.send_signal(signal.SIGKILL)
    p.communicate(timeout=60)
    assert not (place / "student").exists()
    p = started(*words, cwd=folder)
    at_stage(place, "1", p)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130, err
    p = started("st u", cwd=folder)
    _, err = p.communicate(timeout=90)
    assert p.returncode == 0, err
    assert weights(place / "student") == weights(straight[3] / "student")
    assert described(place / "student") == described(straight[3] / "student")


TRIAL, BETWEEN = "fewstep.students.Pace._timed", "fewstep.cli.climb._worse"


@pytest.mark.parametrize(
    ("at", "number", "code"),
    [(TRIAL, signal.SIGTERM, 75), (BETWEEN, signal.SIGUSR1, 75), (BETWEEN, signal.SIGINT, 130)],
)
def test_a_signal_in_a_trial_or_between_stages(teacher, capsys, monkeypatch, at, number, code):
    """It ends at once, with a line; what was trained stays, and the handlers are as before."""
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    words = ("distill", teacher, "--to", "2", *WAY, "--images", "3200", "-o", "st u")
    with monkeypatch.context() as patch:
        patch.setattr(at, lambda *_: os.kill(os.getpid(), number))
        got, _, err = call(capsys, *words)
    assert got == code, err
    line = err.splitlines()[-1]
    assert line.startswith(f"fewstep: stopped: {number.name}: what is finished is kept; the same")
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
    stages = sorted(place.name for place in Path().glob("st u/stages/*"))
    assert stages == ([] if at == TRIAL else ["4"])
    monkeypatch.setattr(climb, "_worse", lambda *_: False)
    got, _, err = call(capsys, *words)
    assert got == 0, err
    assert ("stages/4: steps 0 to" in err) is (at == TRIAL)


def test_a_damaged_checkpoint_of_a_stage_is_passed_over(straight, capsys):
    place = copy(straight[3], "st u")
    shutil.rmtree(place / "student")
    first, last = sorted((place / "stages" / "1" / "checkpoints").iterdir())
    (last / "weights.safetensors").write_bytes(b"")
    code, _, err = call(capsys, "distill", "st u")
    assert code == 0, err
    assert last.name in err
    assert f"steps {int(first.name[-8:])} to 120" in err
    assert weights(place / "student") == weights(straight[3] / "student")


def test_two_at_once(straight, teacher, capsys, folder):
    words = (teacher, "--to", "1", *WAY, "--images", "9600", "-o", "st u")
    p = started(*words, cwd=folder)
    at_stage(folder / "st u", "4", p)
    answer = call(capsys, "distill", "st u")
    p.send_signal(signal.SIGKILL)
    p.communicate()
    refused(answer, 2, "st u", f"{p.pid}@", "is training here", "-o")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("--guidance-scale", "3"), "guidance 2.0 -> 3.0"),
        (("--to", "2"), "to 1 -> 2"),
        (("--method", "ect"), "method progressive -> ect"),
        (("--seed", "1"), "seed 0 -> 1"),
        (("--guidance-range", "1..3"), "scales None -> (1.0, 3.0)"),
    ],
)
def test_another_distillation_in_the_same_folder(straight, teacher, capsys, changes, named):
    place = copy(straight[3], "st u")
    before = everything(place)
    words = dict(zip(*[iter(("--to", "1", *WAY))] * 2, strict=True)) | {changes[0]: changes[1]}
    if "ect" in changes:
        del words["--start"]
    pairs = [word for pair in words.items() for word in pair]
    refused(call(capsys, "distill", teacher, *pairs, "-o", "st u"), 2, "st u", named)
    assert everything(place) == before


def test_other_images_or_another_teacher(straight, teacher, capsys):
    place = copy(straight[3], "st u")
    before = everything(place)
    words = ("--to", "1", *WAY, "-o", "st u")
    other = distilling.folders("other images", count=60)
    refused(call(capsys, "distill", teacher, *words, "--data", other), 2, "st u", "data ")
    refused(call(capsys, "distill", "st u", "--data", other), 2, "st u", "data ")
    run = copy(teacher, "a run")
    assert call(capsys, "train", run, "train.steps=61")[0] == 0
    answer = call(capsys, "distill", run, *words)
    refused(answer, 2, "st u", "weights ")
    assert everything(place) == before


def test_what_has_begun_goes_on_as_it_is(straight, capsys):
    copy(straight[3], "st u")
    for words in (("--to", "1"), ("--seed", "3"), ("--guidance-scale", "3"), ("--budget", "1m")):
        refused(call(capsys, "distill", "st u", *words), 2, words[0], "goes on as it is")


def test_the_teacher_is_gone(straight, teacher, capsys, folder):
    copy(teacher, "a run")
    words = ("a run", "--to", "4", *WAY, "--images", "640", "-o", "st u")
    assert call(capsys, "distill", *words)[0] == 0
    Path("a run").rename("elsewhere")
    line = refused(call(capsys, "distill", "st u"), 4, "st u", folder / "a run", "is gone")
    code, _, err = call(capsys, "sample", "st u", "--label", "a", "-n", "1", "-o", "x.png")
    assert code == 0, err
    said, before = distillation.planned(Path("st u")), weights("st u/student")
    advised = shlex.split(line.partition("in place of TEACHER: ")[2])
    advised[advised.index("TEACHER")] = "elsewhere"
    code, _, err = call(capsys, *advised[advised.index("distill") :])
    assert code == 0, err
    now = distillation.planned(Path("st u"))
    assert Path(now["asked"]["model"]).is_relative_to(folder / "elsewhere")
    moved = {"model": 0, "name": 0}
    assert {**now, "asked": now["asked"] | moved} == {**said, "asked": said["asked"] | moved}
    assert call(capsys, "distill", "st u")[0] == 0
    assert weights("st u/student") == before


def test_the_same_command_on_a_finished_one(straight, capsys, teacher):
    place = copy(straight[3], "st u")
    before = weights(place / "student")
    words = (teacher, "--to", "1", *WAY, "--images", "20000", "-o", "st u")
    code, out, err = call(capsys, "distill", *words)
    assert code == 0, err
    assert "--images: not of use any more" in err
    assert "steps 0 to" not in err
    assert weights(place / "student") == before
    assert out.splitlines()[-1] == "next: fewstep sample 'st u' --label=a -n 16"


# ---------------------------------------------------------------- worse than its teacher
def test_a_student_worse_than_its_teacher_ends_the_ladder(teacher, capsys, monkeypatch):
    """The one before it is kept; without any, the command says so and fails."""
    worse = climb._worse

    def second(work, found, reals, judge, rung):
        worse(work, found, reals, judge, rung)
        return rung.stage.steps == limit

    monkeypatch.setattr(climb, "_worse", second)
    words = ("--to", "1", *WAY, "--images", "3200", "--seed")
    limit = 2
    code, _, err = call(capsys, "distill", teacher, *words, "0", "-o", "kept")
    assert code == 0, err
    assert described("kept/student")["sampling"]["steps"] == 4
    assert not Path("kept/stages/1").exists()
    limit = 4
    answer = call(capsys, "distill", teacher, *words, "1", "-o", "none")
    refused(answer, 5, "none", "no student was kept", "--images 6400")
    assert "next: " not in answer[1]
    assert not Path("none/student").exists()


def test_no_student_was_kept_and_what_to_do(teacher, capsys, monkeypatch):
    """The folder remembers it; every verb names one command, in a new folder, that works."""
    with monkeypatch.context() as patch:
        patch.setattr(climb, "_worse", lambda *_: True)
        words = ("--to", "4", *WAY, "--images", "640", "--guidance-scale", "1.5", "-o")
        first = call(capsys, "distill", teacher, *words, "st u")
    before = everything("st u")
    lines = [refused(first, 5, "st u", "no student was kept", "worse than its teacher")]
    for code, verb in ((4, "sample"), (4, "evaluate"), (5, "distill")):
        lines.append(refused(call(capsys, verb, "st u"), code, "no student was kept"))
    again = call(capsys, "distill", teacher, *words, "st u")
    lines.append(refused(again, 5, "st u", "no student was kept"))
    assert everything("st u") == before
    named = {line.partition("begin anew: ")[2] for line in lines}
    assert len(named) == 1
    command = shlex.split(named.pop())
    at = command.index("distill")
    want = ["--to", "4", "--method", "progressive", "--start", "8", "--guidance-scale", "1.5"]
    assert command[at + 1].startswith(str(teacher))
    assert command[at + 2 :][: len(want)] == want
    assert command[-6:] == ["--images", "1280", "-n", "40", "-o", "st u-2"]
    monkeypatch.setattr(climb, "_worse", lambda *_: False)
    code, out, err = call(capsys, *command[at:])
    assert code == 0, err
    assert "next: " in out
    Path("st u-2").rename("elsewhere")
    Path("st u-2").write_text("mine")
    refused(call(capsys, "sample", "st u"), 4, "-o 'st u-3'")


def test_a_failure_names_the_seed_the_data_and_a_longer_budget():
    from fewstep.cli.wished import anew

    asked = {"model": "m", "to": 2, "method": "ect", "guidance": 1.0, "scales": None, "seed": 7}
    kept = {"data": "im ages", "number": None, "device": "cpu"}
    said = {"asked": asked, "kept": kept, "budget": None, "images": None, "start": None}
    line = anew(said, Path("none"))
    words = "m --to 2 --method ect --guidance-scale 1 --seed 7 --data 'im ages' --device cpu"
    assert line.endswith(f"distill {words} --budget 1200s -o none-2")
    line = anew({**said, "budget": 90.0, "asked": {**asked, "scales": (1.0, 3.5)}}, Path("none"))
    assert "--guidance-range 1..3.5" in line
    assert "--guidance-scale" not in line
    assert "--budget 180s" in line


def test_a_run_has_its_students_in_it(teacher, capsys):
    run = copy(teacher, "a run")
    words = ("--to", "4", *WAY, "--images", "640")
    code, out, err = call(capsys, "distill", run, *words)
    assert code == 0, err
    place = "a run/students/progressive-4-s2"
    assert out.splitlines()[0] == f"distillation: {place}"
    assert distillation.planned(Path(place))["budget"] is None
    code, out, err = call(capsys, "distill", run, *words, "--guidance-scale", "1")
    assert code == 0, err
    assert out.splitlines()[0] == "distillation: a run/students/progressive-4"
