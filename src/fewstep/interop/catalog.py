"""List the published checkpoints: file, program, and the flags they are run with.

The flags are those of the programs' own pages. From flags and tensors everything follows: the
network (`published`), the noising process, how the output is read and how it is sampled by
default; a checkpoint that somebody trained with these programs is described the same way.

Inside: `Entry`, `CATALOG`, `parsed` (flags as text), `described` (a model's description).

Source: the pages and launch files of the repositories openai/guided-diffusion,
openai/improved-diffusion, openai/consistency_models and openai/glide-text2im. All four and their
weights are under the MIT licence; their model cards state what the weights are meant for.
"""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise, zip_longest
from typing import Any

from fewstep.errors import UsageError, suggest
from fewstep.interop.published import ADM, CONSISTENCY, GLIDE, IMPROVED, PROGRAMS
from fewstep.model import Sampling
from fewstep.nets.encoder import EncoderConfig
from fewstep.nets.layout import UNetConfig
from fewstep.nets.text import TextUNetConfig
from fewstep.process import EDM, Process, Tabulated
from fewstep.solvers.grids import karras

LICENCE = "MIT"


@dataclass(frozen=True)
class Entry:
    """A checkpoint that was published.

    Attributes:
        file: the name under which it was published.
        what: a line about it.
        program: the repository whose program runs it.
        flags: of the program's command line.
    """

    file: str
    what: str
    program: str
    flags: str


_BLOCKS = "--resblock_updown True --use_scale_shift_norm True --attention_resolutions 32,16,8"
_LINEAR = "--diffusion_steps 1000 --noise_schedule linear --learn_sigma True"
_ADM_256 = f"{_BLOCKS} {_LINEAR} --image_size 256 --num_channels 256 --num_head_channels 64"
_LSUN = f"{_ADM_256} --class_cond False --dropout 0.1"
_KARRAS = f"{_BLOCKS} --image_size 64 --num_channels 192 --num_head_channels 64 "
_KARRAS_64 = f"{_KARRAS} --num_res_blocks 3 --class_cond True"
_KARRAS_256 = (
    "--attention_resolutions 32,16,8 --class_cond False --use_scale_shift_norm False "
    "--image_size 256 --num_channels 256 --num_head_channels 64 --num_res_blocks 2 "
    "--resblock_updown True"
)
_TEACHER = "--training_mode edm --weight_schedule karras --dropout 0.1"
_STUDENT = "--training_mode consistency_distillation --weight_schedule uniform"
_COSINE_4000 = "--diffusion_steps 4000 --noise_schedule cosine --learn_sigma True --num_heads 4"
_SMALL = f"{_COSINE_4000} --num_channels 128 --num_res_blocks 3"
_UNSCALED = "--rescale_learned_sigmas False --rescale_timesteps False"
_OLD_LSUN = (
    f"{_LINEAR} {_UNSCALED} --image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 "
    "--use_scale_shift_norm False --attention_resolutions 16"
)
_TEXT = "--diffusion_steps 1000 --learn_sigma True"


def _classifier(size: int, depth: int, betas: str) -> Entry:
    flags = f"--image_size {size} --classifier_depth {depth} --noise_schedule {betas}"
    what = f"noisy classifier, ImageNet {size}x{size}"
    return Entry(f"{size}x{size}_classifier.pt", what, ADM, flags)


# Two steps, as found by the authors: indices of a Karras grid, the last one its end.
_TWO_STEPS = {
    "cd-l2-imagenet64": "--ts 0,22,39 --steps 40",
    "cd-lpips-imagenet64": "--ts 0,22,39 --steps 40",
    "ct-imagenet64": "--ts 0,106,200 --steps 201",
    "cd-l2-bedroom256": "--ts 0,18,39 --steps 40",
    "cd-lpips-bedroom256": "--ts 0,17,39 --steps 40",
    "ct-bedroom256": "--ts 0,67,150 --steps 151",
    "ct-cat256": "--ts 0,62,150 --steps 151",
}


def _pair(data: str, label: str, net: str) -> dict[str, Entry]:
    """Return teacher and students of one data set."""
    ways = {
        "edm": ("_ema", "EDM, the teacher", _TEACHER),
        "cd-l2": ("_l2", "consistency distillation, l2", _STUDENT),
        "cd-lpips": ("_lpips", "consistency distillation, LPIPS", _STUDENT),
        "ct": ("", "consistency training", _STUDENT),
    }
    return {
        f"{way}-{data}": Entry(
            f"{way.partition('-')[0]}_{data}{end}.pt",
            f"{what}, {label}",
            CONSISTENCY,
            f"{net} {flags} {_TWO_STEPS.get(f'{way}-{data}', '')}".rstrip(),
        )
        for way, (end, what, flags) in ways.items()
    }


CATALOG: Mapping[str, Entry] = {
    "adm-imagenet64": Entry(
        "64x64_diffusion.pt",
        "ADM, ImageNet 64x64, classes",
        ADM,
        f"{_BLOCKS} --image_size 64 --class_cond True --diffusion_steps 1000 --dropout 0.1 "
        "--learn_sigma True --noise_schedule cosine --num_channels 192 --num_head_channels 64 "
        "--num_res_blocks 3 --use_new_attention_order True",
    ),
    "adm-imagenet128": Entry(
        "128x128_diffusion.pt",
        "ADM, ImageNet 128x128, classes",
        ADM,
        f"{_BLOCKS} {_LINEAR} --image_size 128 --class_cond True --num_channels 256 --num_heads 4",
    ),
    "adm-imagenet256": Entry(
        "256x256_diffusion.pt", "ADM, ImageNet 256x256, classes", ADM,
        f"{_ADM_256} --class_cond True",
    ),
    "adm-imagenet256-uncond": Entry(
        "256x256_diffusion_uncond.pt", "ADM, ImageNet 256x256, no classes", ADM,
        f"{_ADM_256} --class_cond False",
    ),
    "adm-imagenet512": Entry(
        "512x512_diffusion.pt", "ADM, ImageNet 512x512, classes", ADM,
        f"{_BLOCKS} {_LINEAR} --image_size 512 --class_cond True --num_channels 256 "
        "--num_head_channels 64",
    ),
    "adm-classifier64": _classifier(64, 4, "cosine"),
    "adm-classifier128": _classifier(128, 2, "linear"),
    "adm-classifier256": _classifier(256, 2, "linear"),
    "adm-classifier512": _classifier(512, 2, "linear"),
    "adm-upsample-64-256": Entry(
        "64_256_upsampler.pt", "upsampler, ImageNet 64x64 to 256x256, classes", ADM,
        f"{_BLOCKS} {_LINEAR} --large_size 256 --small_size 64 --class_cond True "
        "--num_channels 192 --num_heads 4",
    ),
    "adm-upsample-128-512": Entry(
        "128_512_upsampler.pt", "upsampler, ImageNet 128x128 to 512x512, classes", ADM,
        f"--attention_resolutions 32,16 {_LINEAR} --large_size 512 --small_size 128 "
        "--class_cond True --num_channels 192 --num_head_channels 64 --resblock_updown True",
    ),
    "adm-lsun-bedroom": Entry("lsun_bedroom.pt", "ADM, LSUN bedrooms 256x256", ADM, _LSUN),
    "adm-lsun-cat": Entry("lsun_cat.pt", "ADM, LSUN cats 256x256", ADM, _LSUN),
    "adm-lsun-horse": Entry("lsun_horse.pt", "ADM, LSUN horses 256x256", ADM, _LSUN),
    "adm-lsun-horse-nodropout": Entry(
        "lsun_horse_nodropout.pt", "ADM, LSUN horses 256x256, trained without dropout", ADM,
        _LSUN.replace("0.1", "0.0"),
    ),
    "glide-base": Entry(
        "base.pt", "GLIDE (filtered), text to 64x64", GLIDE,
        f"{_TEXT} --noise_schedule squaredcos_cap_v2",
    ),
    "glide-upsample": Entry(
        "upsample.pt", "GLIDE (filtered), text and 64x64 to 256x256", GLIDE,
        f"{_TEXT} --noise_schedule linear --image_size 256 --num_res_blocks 2 --super_res True "
        "--small_size 64",
    ),
    "glide-base-inpaint": Entry(
        "base_inpaint.pt", "GLIDE (filtered), text and a partial image to 64x64", GLIDE,
        f"{_TEXT} --noise_schedule squaredcos_cap_v2 --inpaint True",
    ),
    "glide-upsample-inpaint": Entry(
        "upsample_inpaint.pt", "GLIDE (filtered), text, 64x64 and a partial image to 256x256",
        GLIDE,
        f"{_TEXT} --noise_schedule linear --image_size 256 --num_res_blocks 2 --super_res True "
        "--inpaint True --small_size 64",
    ),
    **_pair("imagenet64", "ImageNet 64x64, classes", _KARRAS_64),
    **_pair("bedroom256", "LSUN bedrooms 256x256", _KARRAS_256),
    **_pair("cat256", "LSUN cats 256x256", _KARRAS_256),
    "iddpm-cifar10": Entry(
        "cifar10_uncond_50M_500K.pt", "improved DDPM, CIFAR-10, hybrid loss", IMPROVED,
        f"{_SMALL} --image_size 32 --dropout 0.3",
    ),
    "iddpm-cifar10-vlb": Entry(
        "cifar10_uncond_vlb_50M_500K.pt", "improved DDPM, CIFAR-10, bound", IMPROVED,
        f"{_SMALL} --image_size 32 --dropout 0.3 --use_kl True",
    ),
    "iddpm-imagenet64": Entry(
        "imagenet64_uncond_100M_1500K.pt", "improved DDPM, ImageNet 64x64, hybrid loss", IMPROVED,
        f"{_SMALL} --image_size 64",
    ),
    "iddpm-imagenet64-vlb": Entry(
        "imagenet64_uncond_vlb_100M_1500K.pt", "improved DDPM, ImageNet 64x64, bound", IMPROVED,
        f"{_SMALL} --image_size 64 --use_kl True",
    ),
    "iddpm-imagenet64-cond": Entry(
        "imagenet64_cond_270M_250K.pt", "improved DDPM, ImageNet 64x64, classes", IMPROVED,
        f"{_COSINE_4000} {_UNSCALED} --image_size 64 --num_channels 192 --num_res_blocks 3 "
        "--class_cond True",
    ),
    "iddpm-upsample-64-256": Entry(
        "upsample_cond_500K.pt", "improved DDPM, ImageNet 64x64 to 256x256, classes", IMPROVED,
        f"--diffusion_steps 4000 --noise_schedule linear {_UNSCALED} --large_size 256 "
        "--small_size 64 --num_channels 192 --num_res_blocks 2 --num_heads 4 "
        "--learn_sigma True --class_cond True",
    ),
    "iddpm-lsun-bedroom-1200k": Entry(
        "lsun_uncond_100M_1200K_bs128.pt", "improved DDPM, LSUN bedrooms 256x256", IMPROVED,
        _OLD_LSUN,
    ),
    "iddpm-lsun-bedroom-2400k": Entry(
        "lsun_uncond_100M_2400K_bs64.pt", "improved DDPM, LSUN bedrooms 256x256", IMPROVED,
        _OLD_LSUN,
    ),
}  # fmt: skip
"""Name -> checkpoint."""


def parsed(text: str) -> dict[str, Any]:
    """Return flags given as on a command line: `--class_cond True` or `class_cond=True`.

    Raises:
        UsageError: a flag without a value, or a word that is none.
    """
    try:
        words = [part for word in shlex.split(text) for part in word.split("=", 1)]
    except ValueError as error:
        raise UsageError(f"--flags: {error}") from None
    pairs = list(zip_longest(words[::2], words[1::2], fillvalue="--"))
    for name, value in pairs:
        if value.startswith("--"):
            raise UsageError(f"--flags: {name} has no value; give pairs such as --num_heads 4")
    return {name.lstrip("-"): _value(value) for name, value in pairs}


def _value(word: str) -> Any:
    """Return a flag's value as the programs read it; lists such as 32,16,8 stay text."""
    if word.lower() in ("true", "false", "yes", "no", "t", "f", "y", "n"):
        return word.lower() in ("true", "yes", "t", "y")
    for kind in (int, float):
        with suppress(ValueError):  # then it is the next kind, or text
            return kind(word)
    return word


def described(program: str, flags: Mapping[str, Any], config: UNetConfig) -> dict[str, Any]:
    """Return the description of a model (see `fewstep.model`), without the network's part.

    Args:
        program: one of `PROGRAMS`.
        flags: of the network and of its diffusion.
        config: the network.

    Raises:
        UsageError: a noise schedule, a way of training or a program that is not known, a
            consistency network whose way of training is not said, another `sigma_min`, or `ts`
            that are no indices of its grid.
    """
    if program not in PROGRAMS:
        near = suggest(program, PROGRAMS)
        raise UsageError(f"program {program!r}: allowed are {', '.join(PROGRAMS)}{near}")
    classifies, reads = isinstance(config, EncoderConfig), isinstance(config, TextUNetConfig)
    classes = config.out_channels if classifies else config.classes
    null = config.padding if isinstance(config, TextUNetConfig) else not classes
    images = config.out_channels // (2 if _learned(config) else 1)
    inputs = _inputs(config.in_channels, images) if not classifies else []
    noising = _noising(program, flags, inputs)
    facts: dict[str, Any] = {
        "shape": [config.in_channels if classifies else images, config.size, config.size],
        "classes": [str(k) for k in range(classes)],
        **({"inputs": inputs} if inputs else {}),
        **noising,
        "null": null,  # without vectors for padding a network does not see that a text is empty
        "sampling": asdict(_preset(noising["param"], reads and null, inputs)),
    }
    if noising["param"] == "CONSISTENCY" and "ts" in flags:
        facts["tuned"] = _multistep(flags)
    for name in ("param", "null") if classifies else ():
        del facts[name]
    return facts


def _learned(config: UNetConfig) -> bool:
    """Return whether the network says its variance; images of these programs have 3 channels."""
    return config.out_channels == 6


def _inputs(channels: int, images: int) -> list[str]:
    """Return the further images that make this number of input channels."""
    ways = {
        images: [],
        2 * images: ["low_res"],
        2 * images + 1: ["known"],
        3 * images + 1: ["known", "low_res"],
    }
    if channels not in ways:
        raise UsageError(
            f"{channels} input channels for images of {images}: allowed are "
            f"{', '.join(map(str, ways))} (a small image and a partial one beside the noisy one)"
        )
    return ways[channels]


def _noising(program: str, flags: Mapping[str, Any], inputs: list[str]) -> dict[str, Any]:
    """Return process, label and reading of the output."""
    process: Process
    if program == CONSISTENCY:
        process = EDM(float(flags.get("sigma_max", 80.0)))
        param, label = _MODES[_mode(flags)], "log_sigma_250"
    else:
        base = program == GLIDE and "low_res" not in inputs
        own = "squaredcos_cap_v2" if base else "linear"
        betas = str(flags.get("noise_schedule", own))
        known = {"linear": "linear", "cosine": "cosine", "squaredcos_cap_v2": "cosine"}
        if betas not in known:
            raise UsageError(
                f"noise_schedule {betas!r}: allowed are {', '.join(known)}{suggest(betas, known)}"
            )
        process = Tabulated(known[betas], int(flags.get("diffusion_steps", 1000)))
        param = "X0" if flags.get("predict_xstart") else "EPS"
        scaled = flags.get("rescale_timesteps", program == IMPROVED)
        label = "index_of_thousand" if scaled else "index"
    return {"process": process.describe(), "param": param, "label": label}


_MODES = {
    "edm": "EDM",
    "progdist": "EDM",
    "consistency_distillation": "CONSISTENCY",
    "consistency_training": "CONSISTENCY",
}
"""How the consistency models' program reads what it trained in each mode."""


def _mode(flags: Mapping[str, Any]) -> str:
    """Return the way of training; teachers' and students' tensors are alike."""
    if "training_mode" not in flags:
        raise UsageError(
            "teacher or student cannot be told from the tensors: give --flags 'training_mode=M', "
            f"one of {', '.join(_MODES)}"
        )
    mode = str(flags["training_mode"])
    if mode not in _MODES:
        raise UsageError(
            f"flag training_mode = {mode}: allowed are {', '.join(_MODES)}{suggest(mode, _MODES)}"
        )
    least = 0.002
    if _MODES[mode] == "CONSISTENCY" and flags.get("sigma_min", least) != least:
        raise UsageError(
            f"flag sigma_min = {flags['sigma_min']}: only {least}, the published one, is read"
        )
    return mode


def _preset(param: str, guided: bool, inputs: list[str]) -> Sampling:
    """Return how such a model is sampled by default, as on the programs' pages but faster."""
    if param == "EDM":
        return Sampling("heun", 40, "karras")
    if param == "CONSISTENCY":
        return Sampling("consistency", 1, "karras")
    scale = 3.0 if guided and "low_res" not in inputs else 1.0
    return Sampling("ddim", 50, "respace", guidance_scale=scale)


def _multistep(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preset of the program's multistep sampling, by its number of steps.

    Its `ts` are indices of a Karras grid of `steps` levels, noisy first, and end with that of the
    least level, from which no step begins.
    """
    word, steps = str(flags["ts"]), int(flags.get("steps", 40))
    found = [int(part) if part.isdecimal() else -1 for part in word.split(",")]
    rises = all(a < b for a, b in pairwise([-1, *found]))
    if not (rises and len(found) > 1 and found[-1] == steps - 1):
        raise UsageError(
            f"flag ts = {word}: must be rising indices of {steps} noise levels (flag steps), the "
            f"last {steps - 1}, such as 0,{steps // 2},{steps - 1}"
        )
    process = EDM(float(flags.get("sigma_max", 80.0)))
    times = karras(process, steps, high=process.sigma_max).tolist()
    levels = [float(process.sigma(times[k])) for k in found[:-1]]
    few = Sampling(
        "consistency", len(levels), "karras", levels=tuple(float(f"{r:.6g}") for r in levels)
    )
    return {str(few.steps): asdict(few)}
