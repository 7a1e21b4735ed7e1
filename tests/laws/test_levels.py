"""Grids of given noise levels, and the published lists."""

import math

import pytest

from fewstep.errors import UsageError
from fewstep.process import EDM, VE, VP, Process, Tabulated
from fewstep.solvers import grids, levels


@pytest.mark.parametrize("p", [VP(), EDM(), Tabulated(), VE(0.01, 50.0)], ids=str)
def test_a_list_is_visited_level_by_level(p: Process) -> None:
    wanted = [14.0, 3.0, 0.5, 0.02]
    for given in (wanted, [*wanted, 0.0]):
        times = levels.listed(p, given).tolist()
        assert len(times) == 5
        assert times[-1] == 0
        assert [p.sigma(t) / p.alpha(t) for t in times[:-1]] == pytest.approx(wanted, rel=1e-9)


def test_the_levels_of_karras_are_karras() -> None:
    p = EDM()
    want = grids.karras(p, 18)
    got = levels.listed(p, [float(p.sigma(t)) for t in want.tolist()])
    assert got.tolist() == pytest.approx(want.tolist(), rel=1e-12)


def test_align_your_steps_and_its_interpolation() -> None:
    """10 steps are the list itself, whose indices for a table of 1000 linear betas are known."""
    p = EDM(1000.0)
    for name, given in levels.ALIGN_YOUR_STEPS.items():
        times = levels.align_your_steps(p, 10, name).tolist()
        assert [p.sigma(t) for t in times] == pytest.approx([*given, 0.0])
        twice = levels.align_your_steps(p, 19, name).tolist()
        assert twice[::2][:10] == pytest.approx(times[:10])
        assert p.sigma(twice[1]) == pytest.approx(math.sqrt(given[0] * given[1]))
    assert len(levels.align_your_steps(p, 1)) == 2


def test_what_the_lists_refuse() -> None:
    p = EDM()
    for bad, words in (
        ([], "at least one"),
        ([1.0, 2.0], "does not fall"),
        ([1.0, 1.0], "does not fall"),
        ([90.0], "up to 80"),
        ([1.0, -1.0], "must lie above 0"),
        ([math.nan], "must lie above 0"),
    ):
        with pytest.raises(UsageError, match=words):
            levels.listed(p, bad)
    with pytest.raises(UsageError, match=r'list "sd1": allowed are .*did you mean "sd15"'):
        levels.align_your_steps(p, 10, "sd1")
    with pytest.raises(UsageError, match="at least 1"):
        levels.align_your_steps(p, 0)
