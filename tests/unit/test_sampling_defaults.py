"""What a number of steps alone means: a tuned preset, else the winner of docs/results/solvers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fewstep import sampling
from fewstep.denoiser import CONSISTENCY, NetDenoiser
from fewstep.model import Model, Sampling, from_description
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.process import EDM, Cosine, Tabulated
from fewstep.sampling import DEFAULTS, SAMPLERS, changed, for_steps, plan
from fewstep.solvers import Consistency
from tools import solver_league

ROOT = Path(__file__).resolve().parents[2]
TUNED = Sampling("unipc", 4, levels=(9.0, 3.0, 1.0, 0.2), guidance_scale=3.0)


def toy(**more: Any) -> Model:
    net = MLP(MLPConfig(dim=2, width=8, layers=1, classes=2))
    return Model(NetDenoiser(net, Cosine()), (2,), ("a", "b"), Sampling(steps=20), **more)


def test_the_table_is_that_of_the_stored_measurements() -> None:
    cells = json.loads((ROOT / "docs/results/solvers.json").read_text())
    for guided in (True, False):
        assert DEFAULTS[guided] == solver_league.winners(cells, guided=guided)
    assert (ROOT / "docs/results/solvers.md").read_text() == solver_league.page(cells)
    assert (ROOT / "docs/results/solvers.svg").read_text() == solver_league.figure(cells)
    assert all(SAMPLERS[s](0.0, 9).evals == 1 for t in DEFAULTS.values() for s, _ in t.values())


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize(
    ("steps", "budget"), [(3, 5), (5, 5), (7, 8), (9, 10), (13, 15), (28, 20), (40, 50)]
)
def test_the_nearest_number_of_evaluations_decides(steps: int, budget: int, guided: bool) -> None:
    got, why = for_steps(toy(), {"steps": steps}, guided=guided)
    assert (got["sampler"], got["spacing"]) == DEFAULTS[guided][budget]
    assert got["steps"] == steps
    assert f"{steps} steps: sampler {got['sampler']}, spacing {got['spacing']}" in why
    assert f"at {budget} " in why
    assert ("guided" in why) == guided
    plan(toy(), changed(toy().sampling, got))


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"guidance_scale": 3.0},
        {"steps": 20},
        {"steps": 1},
        {"steps": 2},
        {"steps": 5, "sampler": "heun"},
        {"steps": 5, "spacing": "karras"},
        {"steps": 5, "levels": TUNED.levels},
        {"steps": 5, "eta": 0.0},
    ],
    ids=str,
)
def test_what_is_said_or_preset_stays(asked: dict[str, Any]) -> None:
    assert for_steps(toy(tuned={5: TUNED}), asked, guided=True) == (asked, "")


def test_a_tuned_preset_goes_first() -> None:
    model = toy(tuned={4: TUNED, 20: replace(TUNED, levels=None, spacing="karras")})
    got, why = for_steps(model, {"steps": 4, "guidance_scale": 1.5}, guided=True)
    own = {"sampler": "unipc", "eta": 0.0}
    assert got == {"steps": 4, "guidance_scale": 1.5, "levels": TUNED.levels, **own}
    assert "fewstep tune at guidance scale 3" in why
    got, _ = for_steps(model, {"steps": 20}, guided=True)
    assert got == {"steps": 20, "spacing": "karras", **own}
    assert "fewstep tune" not in for_steps(model, {"steps": 4}, guided=False)[1]


def test_a_consistency_model_takes_its_middle_level() -> None:
    """Two steps over the level that was found; another number of steps, over those of its spacing.

    The grid of Karras' levels ends above that at which the function is the identity.
    """
    net = toy().denoiser.net
    own = Sampling("consistency", 1, "karras")
    two = Sampling("consistency", 2, "karras", levels=(80.0, 1.382))
    model = Model(NetDenoiser(net, EDM(), CONSISTENCY), (2,), sampling=own, tuned={2: two})
    got, why = for_steps(model, {"steps": 2}, guided=False)
    assert why == "2 steps: sampler consistency on noise levels found for this model"
    made = plan(model, changed(own, got))
    assert made.solver == Consistency(0.002)
    assert EDM().sigma(made.times).tolist() == pytest.approx([80, 1.382, 0])
    got, why = for_steps(model, {"steps": 3}, guided=False)
    assert (got, why) == ({"steps": 3}, "")
    made = plan(model, changed(own, got))
    assert made.nfe == 3
    assert EDM().sigma(made.times).tolist() == pytest.approx([80, 9.723, 0.470, 0], abs=1e-3)
    again = changed(own, {"levels": (80.0, 0.8)})
    assert EDM().sigma(plan(model, again).times).tolist() == pytest.approx([80, 0.8, 0])
    plain = replace(model, denoiser=NetDenoiser(net, EDM()))
    assert plan(plain, again).solver == Consistency(0.0)


def test_presets_of_another_kind_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that draws noise, models made for few steps, a process without signal at its end."""
    noisy = replace(toy(), sampling=Sampling("ddpm", 50))
    net = toy().denoiser.net
    consistent = replace(toy(), denoiser=NetDenoiser(net, Cosine(), CONSISTENCY))
    blind = replace(toy(), denoiser=NetDenoiser(net, Tabulated(zero_terminal_snr=True)))
    asked = {"steps": 5}
    few = replace(toy(), sampling=Sampling(steps=9))
    for model in (noisy, consistent, few):
        assert for_steps(model, asked, guided=False) == (asked, "")
    # iPNDM cannot start where no signal is left
    monkeypatch.setattr(sampling, "DEFAULTS", {False: {5: ("ipndm", "even")}})
    assert for_steps(toy(), asked, guided=False)[0]["sampler"] == "ipndm"
    assert for_steps(blind, asked, guided=False) == (asked, "")


def test_a_model_keeps_its_tuned_presets() -> None:
    model = toy(tuned={4: TUNED})
    again = from_description(json.loads(json.dumps(model.describe())))
    assert again.tuned == {4: TUNED}
    assert "tuned" not in toy().describe()
