"""Which ways of sampling are compared: rows, from a short text or from a preset by name.

The text is a list such as `ddpm:1000,ddim:50,ddim:10:eta=0.5,dpmpp:10`: commas separate rows, a
row is NAME:STEPS and then KEY=VALUE for what differs from the model's own settings. The preset
"ddim-table" is the table of the talk: Song, Meng, Ermon, "Denoising Diffusion Implicit Models",
2021, table 1 (arXiv 2010.02502), whose published figures are `PUBLISHED`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fewstep.errors import UsageError, suggest
from fewstep.model import Sampling
from fewstep.process import Cosine, Process, Tabulated
from fewstep.sampling import LANGEVIN, MAX_STEPS, SAMPLERS, SPACINGS, changed, ratios
from fewstep.steer import DIALS, Steer, Weak, dial, dials

TITLES: Mapping[str, str] = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "ddpm-large": "sigma-hat",
    "ddpm-learned": "DDPM, learned variance",
    "euler": "Euler",
    "heun": "Heun",
    "heun-churn": "Heun with churn",
    "dpmpp": "DPM-Solver++(2M)",
    "dpmpp3": "DPM-Solver++(3M)",
    "dpmpp3-legacy": "DPM-Solver++(3M), legacy",
    "dpmpp-2s": "DPM-Solver++(2S)",
    "unipc": "UniPC-3",
    "unipc2": "UniPC-2",
    "deis": "DEIS-3",
    "deis-tab": "DEIS-tAB3",
    "ipndm": "iPNDM-4",
    "annealed-langevin": "annealed Langevin",
    "predictor-corrector": "predictor-corrector",
    "predictor-corrector-level": "predictor-corrector, level",
    "predictor-corrector-ddim": "predictor-corrector, DDIM",
}
"""What people call the samplers."""

PROCESSES: Mapping[str, Callable[[], Process | None]] = {
    "own": lambda: None,
    "linear": Tabulated,
    "cosine": Cosine,
}
"""Along which process to sample: the model's own, DDPM's linear betas or the cosine."""

KEYS = (
    "eta", "scale", "w", "spacing", "levels", "clip", "process", *DIALS, *LANGEVIN, "classifier",
    "weak",
)  # fmt: skip
"""What a row may change after NAME:STEPS."""

PRESETS = ("frontier", "ddim-table", "demo")
"""Names of lists of rows for any model; `preset` makes them."""

FRONTIER = "ddim:50,ddim:20,ddim:10,ddim:5,dpmpp:10,dpmpp:5,heun:9,ddpm:50"
"""What is compared where nothing is said."""

ETAS = ("0", "0.2", "0.5", "1", "sigma-hat")
"""Rows of the talk's table: eta of DDIM, and DDPM with the larger variance."""

STEPS = (10, 20, 50, 100, 1000)
"""Columns of the talk's table: S of T = 1000 steps."""

STRIDES = ("quadratic", "uniform")
"""Subsets of the T steps in the talk's table: of CIFAR-10 and of CelebA."""

SOURCE = "Song, Meng, Ermon, Denoising Diffusion Implicit Models, 2021, table 1 (arXiv 2010.02502)"
"""Where `PUBLISHED` comes from."""


def _published(*rows: tuple[float, ...]) -> dict[tuple[str, int], float]:
    """Return {(row, S): FID} of a table in the order of `ETAS` and `STEPS`."""
    table = zip(ETAS, rows, strict=True)
    return {(eta, s): fid for eta, row in table for s, fid in zip(STEPS, row, strict=True)}


PUBLISHED: Mapping[str, Mapping[tuple[str, int], float]] = {
    "CIFAR-10": _published(
        (13.36, 6.84, 4.67, 4.16, 4.04),
        (14.04, 7.11, 4.77, 4.25, 4.09),
        (16.66, 8.35, 5.25, 4.46, 4.29),
        (41.07, 18.36, 8.01, 5.78, 4.73),
        (367.43, 133.37, 32.72, 9.99, 3.17),
    ),
    "CelebA": _published(
        (17.33, 13.73, 9.17, 6.53, 3.51),
        (17.66, 14.11, 9.51, 6.79, 3.64),
        (19.86, 16.06, 11.01, 8.09, 4.28),
        (33.12, 26.03, 18.48, 13.93, 5.98),
        (299.71, 183.83, 71.71, 45.20, 3.26),
    ),
}
"""FID of other models on other data: {data: {(row, S): FID}}. Only the shape compares."""


@dataclass(frozen=True)
class Row:
    """One way of sampling.

    Attributes:
        title: what to call it, short and unique.
        sampling: the settings.
        group: heading under which the row is shown.
        process: sample along this process instead of the model's own; the network, which is
            told the noise level and not the time, does not mind.
        steer: the noisy classifier or the weaker model that guides.
    """

    title: str
    sampling: Sampling
    group: str = ""
    process: Process | None = None
    steer: Steer | Weak | None = None

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON values; the process is None where it is the model's own."""
        process = None if self.process is None else self.process.describe()
        guiding = {} if self.steer is None else self.steer.describe()
        return {**self.sampling.plain(), "process": process, **guiding}


def parse(
    text: str, preset: Sampling, classifier: Steer | None = None, weak: Weak | None = None
) -> list[Row]:
    """Return the rows that a text asks for.

    Args:
        text: NAME:STEPS[:KEY=VALUE...], rows apart by commas; the keys are `KEYS`: eta (of ddim),
            scale (of guidance) or w = scale - 1, spacing, levels (14.6/2/0.3 in place of it, as
            many as steps), clip (yes or no), process (`PROCESSES`), the dials of `steer.dial`,
            each and snr (of Langevin steps), classifier (its scale), weak (yes or no).
        preset: the model's own settings, which hold for what is not said; eta is 0 for every
            sampler but ddim.
        classifier: what guides a row with classifier=SCALE.
        weak: what guides a row with weak=yes.

    Returns:
        rows in the order of the text.

    Raises:
        UsageError: one line that names the row, the key and what is allowed.

    >>> [row.title for row in parse("ddim:50,ddim:10:eta=0.5,dpmpp:10:w=1", Sampling())]
    ['DDIM 50', 'DDIM 10, eta 0.5', 'DPM-Solver++(2M) 10, scale 2']
    """
    rows: list[Row] = []
    said: list[str] = []
    for word in (part.strip() for part in text.split(",")):
        if not word:
            raise UsageError(f'samplers "{text}": an empty row; write NAME:STEPS, such as ddim:50')
        row = _row(word, preset, classifier, weak)
        for other, before in zip(rows, said, strict=True):
            if replace(other, title="") == replace(row, title=""):
                raise UsageError(
                    f'row "{word}": the same settings as the row "{before}"; leave one out'
                )
        rows.append(row)
        said.append(word)
    return rows


def own(preset: Sampling) -> Row:
    """Return the row of the model's own settings."""
    return Row(_title(preset, "own", preset, None), preset)


def preset(
    name: str, sampling: Sampling, own: Process | None = None, spacing: str = "uniform"
) -> list[Row]:
    """Return the rows of a preset.

    Args:
        name: a name in `PRESETS`.
        sampling: the model's own settings.
        own: the model's own process; it matters to "ddim-table".
        spacing: the strides of "ddim-table", "quadratic" or "uniform".

    Raises:
        UsageError: unknown name or spacing.
    """
    if name == "frontier":
        return parse(FRONTIER, replace(sampling, eta=0.0))
    if name == "ddim-table":
        return ddim_table(sampling, spacing, own)
    if name == "demo":
        return _demo(sampling)
    raise UsageError(f'preset "{name}": allowed are {", ".join(PRESETS)}{suggest(name, PRESETS)}')


def ddim_table(
    sampling: Sampling, spacing: str = "uniform", own: Process | None = None
) -> list[Row]:
    """Return the 25 rows of the talk's table, with guidance scale 1.

    They run along DDPM's linear betas with T = 1000 unless the model's own process is a table of
    at least 1000 steps. Predictions are clipped as the model's settings say: the published runs
    did not clip in the rows of eta, and did in those of sigma-hat.

    Args:
        sampling: the model's own settings.
        spacing: "quadratic", as the published figures of CIFAR-10, or "uniform", as of CelebA.
        own: the model's own process.

    Raises:
        UsageError: another spacing.
    """
    if spacing not in STRIDES:
        raise UsageError(
            f'spacing "{spacing}": the ddim-table takes {" or ".join(STRIDES)}'
            f"{suggest(spacing, STRIDES)}"
        )
    discrete = isinstance(own, Tabulated) and own.steps >= max(STEPS)
    along = "the model's own table" if discrete else "DDPM's linear betas, T = 1000"
    process = None if discrete else Tabulated()
    clipped = "clipped" if sampling.clip else "not clipped"
    group = f"The talk's table: {along}, {spacing} strides, predictions {clipped}"
    rows = []
    for eta in ETAS:
        hat = eta == "sigma-hat"
        named = {"sampler": "ddpm-large" if hat else "ddim", "eta": 0.0 if hat else float(eta)}
        row = changed(sampling, {**named, "spacing": spacing, "guidance_scale": 1.0})
        name = eta if hat else f"eta {eta}"
        rows += [Row(f"{name}, S = {s}", replace(row, steps=s), group, process) for s in STEPS]
    return rows


def _demo(sampling: Sampling) -> list[Row]:
    """Return the ways of sampling that the demo compares."""
    own = {"sampler": "ddim", "eta": 0.0, "guidance_scale": 1.0, "spacing": "even"}
    plain = changed(sampling, own)
    sweep = "Guidance: DDIM, 20 steps, classifier-free scale"
    speed = "Fewer steps, without guidance (scale 1)"
    talk = "The talk's table: DDPM's linear betas, T = 1000, uniform strides"
    rows = [
        Row(f"scale {s:g}", replace(plain, steps=20, guidance_scale=s), sweep)
        for s in (0.0, 1.0, 2.0, 4.0)
    ]
    words = "ddpm:1000,ddpm:50,ddim:50,ddim:20,ddim:10,ddim:5,dpmpp:10,dpmpp:5"
    rows += [replace(row, group=speed) for row in parse(words, plain)]
    strided = "ddim:10,ddpm-large:10,ddim:50,ddpm-large:50"
    rows += [
        replace(row, title=f"{row.title}, strided", group=talk, process=Tabulated())
        for row in parse(strided, replace(plain, spacing="uniform"))
    ]
    return rows


def _row(word: str, preset: Sampling, classifier: Steer | None, weak: Weak | None) -> Row:
    """Return the row that NAME:STEPS:KEY=VALUE... asks for."""
    where = f'row "{word}"'
    name, *rest = (part.strip() for part in word.split(":"))
    if name not in SAMPLERS:
        raise UsageError(
            f'{where}: sampler "{name}": allowed are {", ".join(SAMPLERS)}'
            f"{suggest(name, SAMPLERS)}"
        )
    if not rest or "=" in rest[0]:
        raise UsageError(f"{where}: the number of steps is missing; write {name}:50")
    said: dict[str, str] = {}
    for pair in rest[1:]:
        key, sign, value = (part.strip() for part in pair.partition("="))
        if key not in KEYS:
            allowed = f"allowed are {', '.join(KEYS)}, each as KEY=VALUE"
            raise UsageError(f'{where}: key "{key}": {allowed}{suggest(key, KEYS)}')
        if not sign:
            raise UsageError(f'{where}: key "{key}" has no value; write {key}=VALUE')
        if key in said:
            raise UsageError(f'{where}: key "{key}" is given twice')
        said[key] = value
    for one, other, hint in (
        ("scale", "w", " (scale = w + 1)"), ("clip", "threshold", ""), ("spacing", "levels", ""),
        ("classifier", "weak", ""),
    ):  # fmt: skip
        if one in said and other in said:
            raise UsageError(f"{where}: {one} and {other}: give one of them{hint}")
    changes: dict[str, Any] = {"sampler": name, "steps": _steps(where, rest[0])}
    if name != "ddim" and "eta" in said:
        raise UsageError(f"{where}: eta: only the sampler ddim has this dial, not {name}")
    for key, value in said.items():
        changes.update(_value(where, key, value))
    process, steer = changes.pop("process", "own"), None
    if (scale := changes.pop("classifier", None)) is not None:
        if classifier is None:
            raise UsageError(f"{where}: classifier: which one? give --classifier RUN")
        steer = replace(classifier, scale=scale)
    if changes.pop("weak", False):
        if weak is None:
            raise UsageError(f"{where}: weak: which model? give --weak RUN")
        steer = weak
    sampling = changed(preset, changes)
    n = len(sampling.levels or ())
    if "levels" in said and n != sampling.steps:
        raise UsageError(
            f'{where}: levels "{said["levels"]}": {n} noise levels are as many steps, not '
            f"{sampling.steps}; give as many of both"
        )
    title = _title(sampling, process, preset, steer)
    return Row(title, sampling, process=PROCESSES[process](), steer=steer)


def _steps(where: str, word: str) -> int:
    """Return a number of steps."""
    number = int(word) if word.isdecimal() and word.isascii() and len(word) < 10 else 0
    if not 1 <= number <= MAX_STEPS:
        raise UsageError(f'{where}: steps "{word}": must be a whole number in 1..{MAX_STEPS}')
    return number


def _value(where: str, key: str, value: str) -> dict[str, Any]:
    """Return the change of the settings that KEY=VALUE stands for."""
    if key in DIALS:
        return dial(f'{where}: {key} "{value}"', key, value)
    if key == "each":
        if not (value.isdecimal() and value.isascii() and 0 < len(value) < 6 and int(value)):
            raise UsageError(f'{where}: each "{value}": must be a whole number in 1..99999')
        return {key: int(value)}
    if key == "levels":
        return {key: ratios(f'{where}: {key} "{value}"', value, "/")}
    if key in ("eta", "scale", "w", "classifier", "snr"):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or (key == "eta" and number < 0):
            wanted = "a number >= 0 (0 = DDIM, 1 = DDPM)" if key == "eta" else "a finite number"
            raise UsageError(f'{where}: {key} "{value}": must be {wanted}')
        number += 0.0  # -0 is 0
        if key in ("eta", "classifier", "snr"):
            return {key: number}
        return {"guidance_scale": number + 1 if key == "w" else number}
    yes = ("yes", "no")
    allowed = {"spacing": SPACINGS, "clip": yes, "weak": yes, "process": tuple(PROCESSES)}[key]
    if value not in allowed:
        raise UsageError(
            f'{where}: {key} "{value}": allowed are {", ".join(allowed)}{suggest(value, allowed)}'
        )
    return {key: value == "yes" if allowed is yes else value}


def _title(s: Sampling, process: str, preset: Sampling, steer: Steer | Weak | None) -> str:
    """Return a title that is another one for other settings."""
    parts = [f"{TITLES.get(s.sampler, s.sampler)} {s.steps}"]
    if s.eta:
        parts.append(f"eta {_short(s.eta)}")
    if s.guidance_scale != 1 or preset.guidance_scale != 1:
        parts.append(f"scale {_short(s.guidance_scale)}")
    if s.levels is not None:
        parts.append(f"levels {'/'.join(map(_short, s.levels))}")
    elif s.spacing != preset.spacing or preset.levels is not None:
        parts.append(s.spacing)
    if s.clip != preset.clip:
        parts.append("clipped" if s.clip else "not clipped")
    if process != "own":
        parts.append(f"{process} process")
    now, own = dials(s), dials(preset)
    parts += [f"{k} {now.get(k, 'off')}" for k in DIALS if now.get(k) != own.get(k)]
    same = (s.steps, s.spacing) == (preset.steps, preset.spacing)
    for k in LANGEVIN:
        value = getattr(s, k)
        if value is not None and not (same and value == getattr(preset, k)):
            parts.append(f"{k} {_short(value)}")
    if isinstance(steer, Steer):
        parts.append(f"classifier {_short(steer.scale)}")
    if isinstance(steer, Weak):
        parts.append("weak model")
    return ", ".join(parts)


def _short(number: float) -> str:
    """Return the number in full, without a needless ".0".

    >>> _short(2.0), _short(0.25)
    ('2', '0.25')
    """
    return repr(float(number)).removesuffix(".0")
