"""`fewstep edit`: what can be done to images with any diffusion model.

`walk` encodes an image into its noise and walks between two; `fill` completes, colours, enlarges
and redraws. Both open models, read images and write pictures by `way`.
"""

from fewstep.cli import options
from fewstep.cli.edit import fill, walk

app = options.app()
for command in (
    walk.encode,
    walk.interpolate,
    fill.inpaint,
    fill.colorize,
    fill.superres,
    fill.stroke,
):
    app.command()(command)

__all__ = ["app"]
