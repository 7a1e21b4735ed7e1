"""What can be done to an image through its noise: encode it, walk to another, change parts of it.

`encode` finds the noise from which DDIM makes an image (`encode`), `slerp` walks between two
noises (`between`). `complete` fills in what was not measured, where `Pixels`, `Luminance` and
`BlockMeans` say what was (`measure`), `stroke` redraws a sketch and `denoise` takes noise away
(`change`).
"""

from fewstep.edit.between import frames, slerp
from fewstep.edit.change import Repeat, complete, denoise, nearest, remaining, stroke
from fewstep.edit.encode import Code, decode, encode
from fewstep.edit.measure import BlockMeans, Luminance, Measure, Pixels, enlarged, put, within

__all__ = [
    "BlockMeans",
    "Code",
    "Luminance",
    "Measure",
    "Pixels",
    "Repeat",
    "complete",
    "decode",
    "denoise",
    "encode",
    "enlarged",
    "frames",
    "nearest",
    "put",
    "remaining",
    "slerp",
    "stroke",
    "within",
]
