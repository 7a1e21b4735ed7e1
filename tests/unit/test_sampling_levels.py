"""Noise levels in place of a spacing: what they mean, where they are kept and what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from fewstep import sampling
from fewstep.denoiser import NetDenoiser
from fewstep.errors import UsageError
from fewstep.model import Model, Sampling
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.process import Cosine
from fewstep.recipes import schema
from fewstep.sampling import changed, grid, ratios
from fewstep.solvers.levels import ALIGN_YOUR_STEPS

LEVELS = (14.6, 2.0, 0.3)
LISTED = Sampling(steps=3, levels=LEVELS)


def toy() -> Model:
    net = MLP(MLPConfig(dim=2, width=8, layers=1))
    return Model(NetDenoiser(net, Cosine()), (2,), sampling=LISTED)


def test_a_plan_stops_at_the_levels() -> None:
    p = Cosine()
    times = sampling.plan(toy(), LISTED).times.tolist()
    assert [p.sigma(t) / p.alpha(t) for t in times] == pytest.approx([*LEVELS, 0.0])


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_published_lists_are_spacings(name: str) -> None:
    p = Cosine()
    times = grid(f"ays-{name}", p, 10).tolist()
    want = [*ALIGN_YOUR_STEPS[name], 0.0]
    assert [p.sigma(t) / p.alpha(t) for t in times] == pytest.approx(want)
    assert len(grid(f"ays-{name}", p, 7)) == 8


def test_a_list_beyond_the_process_is_refused() -> None:
    with pytest.raises(UsageError, match="noise level 0 is 700: must lie above 0 and up to 636"):
        grid("ays-svd", Cosine(), 10)


def test_levels_are_written_only_where_set() -> None:
    assert "levels" not in Sampling().plain()
    assert LISTED.plain()["levels"] == list(LEVELS)


@pytest.mark.parametrize(
    ("changes", "levels", "steps"),
    [
        ({"sampler": "ipndm"}, LEVELS, 3),
        ({"steps": 3}, LEVELS, 3),
        ({"steps": 5}, None, 5),
        ({"spacing": "karras"}, None, 3),
        ({"levels": (3.0, 1.0)}, (3.0, 1.0), 2),
    ],
)
def test_another_grid_is_not_that_of_the_levels(
    changes: dict[str, Any], levels: tuple[float, ...] | None, steps: int
) -> None:
    now = changed(LISTED, changes)
    assert (now.levels, now.steps) == (levels, steps)


def test_what_is_refused() -> None:
    for word in ("", "x", "1,2", "1,1", "2,-1", "nan", "inf,1", "0", "2,0,1"):
        with pytest.raises(UsageError, match=r"--levels .*: must be falling noise"):
            ratios(f"--levels {word}", word)
    with pytest.raises(UsageError, match="levels and spacing even: give one of them"):
        changed(Sampling(), {"levels": LEVELS, "spacing": "even"})
    with pytest.raises(UsageError, match="3 noise levels are as many steps, not 4"):
        sampling.plan(toy(), replace(LISTED, steps=4))


def test_a_recipe_may_list_levels() -> None:
    assert schema.Sampling.model_validate({"levels": [14.6, 2, 0.3]}).levels == LEVELS
    assert schema.Sampling().levels is None
    with pytest.raises(ValueError, match="must be falling noise levels"):
        schema.Sampling.model_validate({"levels": [1, 2]})
