"""Points in the plane: the law that each set states, the same points again, and bad files."""

import math

import numpy as np
import pytest
import torch

from fewstep import lab
from fewstep.errors import DataError, UsageError
from fewstep.lab import sets

ARC = 2 / math.pi  # mean height of a half circle
WORKED_OUT = {
    "two-modes": ((3.0, 3.0), (17.0, 17.0)),  # 1 + 0.2 * 0.8 * 10^2
    "rings": ((0.0, 0.0), (2.5025 / 2, 2.5025 / 2)),  # E r^2 / 2, r = 1 or 2 and 0.05 of noise
    "moons": (
        (0.5, 0.25),
        (0.75 + 0.05**2, (0.5 + 0.75 - ARC) / 2 - 0.25**2 + 0.05**2),
    ),
    "grid": ((0.0, 0.0), (2.01, 2.01)),
}


@pytest.mark.parametrize("name", lab.SETS)
def test_a_set_has_the_mean_and_the_deviation_it_states(name: str) -> None:
    x = lab.points(name, 200_000, seed=3).double()
    said = lab.SETS[name]
    std = torch.tensor(said.std, dtype=torch.float64)
    away = (x.mean(0) - torch.tensor(said.mean, dtype=torch.float64)) / std
    assert float(away.abs().max()) < 4 / 200_000**0.5
    assert float((x.std(0) / std - 1).abs().max()) < 0.007


@pytest.mark.parametrize("name", WORKED_OUT)
def test_what_a_set_states_is_what_its_law_gives(name: str) -> None:
    mean, variance = WORKED_OUT[name]
    assert lab.SETS[name].mean == mean
    assert lab.SETS[name].std == pytest.approx([v**0.5 for v in variance], abs=5e-5)


def test_the_seed_decides_and_nothing_else() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name in lab.SETS:
        x = lab.points(name, 50, seed=1)
        assert x.shape == (50, 2)
        assert x.dtype == torch.float32
        assert torch.equal(x, lab.points(name, 50, seed=1))
        assert not torch.equal(x, lab.points(name, 50, seed=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_standard_points_keep_their_shape() -> None:
    x = lab.points("moons", 1000)
    y = lab.standard(3 * x + 7)
    assert float(y.mean(0).abs().max()) < 1e-6
    assert float(y.square().mean()) == pytest.approx(0.25, rel=1e-5)
    assert torch.allclose(y, lab.standard(x), atol=1e-5)
    sides = y.std(0) / x.std(0)
    assert float(sides[0]) == pytest.approx(float(sides[1]), rel=1e-5)


@pytest.mark.parametrize("head", ["", "x,y\n", "\ufeff"])
def test_points_of_a_table(tmp_path, head: str) -> None:
    x = lab.points("grid", 30).numpy()
    path = tmp_path / "some points.CSV"
    path.write_text(head + "\n".join(f"{a}, {b}" for a, b in x) + "\n\n", "utf-8")
    assert torch.equal(sets.read(path), torch.from_numpy(x))
    np.save(tmp_path / "x.npy", x.astype(np.float64))
    assert torch.equal(sets.read(tmp_path / "x.npy"), torch.from_numpy(x))


GOOD = "".join(f"{i},{i * i}\n" for i in range(30))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "1,2,3\n", "line 31 has 3 columns; 2 are needed"),
        (GOOD + "1\n", "line 31 has 1 columns"),
        (GOOD + "a,b\n", "line 31 is 'a,b'; 2 numbers are needed"),
        (
            GOOD + "nan,1\n5,inf\n",
            "row 31 of 32 has a value that is not finite, or beyond float32 (of 2 such rows)",
        ),
        (GOOD[:20], "points; at least 20 are needed"),
        ("", "0 points; at least 20"),
        ("x,y\n" + "2,2\n" * 30, "all points are the same"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text: str, said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        sets.read(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_bad_files_are_refused(tmp_path) -> None:
    np.save(tmp_path / "three.npy", np.zeros((30, 3)))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]] * 30))
    np.save(tmp_path / "objects.npy", np.array([[{}, 1]] * 30), allow_pickle=True)
    np.save(tmp_path / "large.npy", np.diag(np.full(30, 1e300))[:, :2])
    np.savez(tmp_path / "packed.npz", x=np.zeros((30, 2)))
    (tmp_path / "packed.npz").rename(tmp_path / "packed.npy")
    (tmp_path / "text.npy").write_text(GOOD)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "x.txt").write_text(GOOD)
    for name, said in {
        "three.npy": r"float64 of shape \(30, 3\); numbers of shape \(n, 2\)",
        "words.npy": r"<U1 of shape \(30, 2\); numbers",
        "objects.npy": "is no .npy array of numbers",
        "text.npy": "is no .npy array of numbers",
        "large.npy": "row 1 of 30 has a value that is not finite, or beyond float32",
        "packed.npy": "is no .npy array of numbers",
        "bytes.csv": "cannot be read",
        "x.txt": "is no .csv and no .npy",
        "none.csv": "no such file; --data takes two-modes, rings",
    }.items():
        with pytest.raises(DataError, match=said):
            sets.read(tmp_path / name)


def test_bad_names_and_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match='did you mean "moons"'):
        lab.points("moon", 5)
    with pytest.raises(UsageError, match="0 points"):
        lab.points("moons", 0)


def test_very_large_and_far_points_can_be_used(tmp_path) -> None:
    np.save(tmp_path / "x.npy", 1e38 * np.arange(60.0).reshape(30, 2) / 60)
    x = lab.standard(sets.read(tmp_path / "x.npy"))
    assert float(x.square().mean()) == pytest.approx(0.25, rel=1e-5)
