"""What can be done to an image through its noise: encode it, decode it, walk between two.

`encode` finds the noise from which DDIM makes an image (`encode`), `slerp` walks between two
noises (`between`).
"""

from fewstep.edit.between import frames, slerp
from fewstep.edit.encode import Code, decode, encode

__all__ = ["Code", "decode", "encode", "frames", "slerp"]
