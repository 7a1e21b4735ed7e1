"""Read a network's flags off the shapes of its weights.

A checkpoint of OpenAI's programs holds tensors and no word about the network. Nearly all of it can
be told from names and shapes: widths, levels, depth, where attention sits, how it resamples, what
it is conditioned on. Not to be seen are the number of attention heads, their order, and the size
of the images: those must be said.

Inside: `seen`, in the words of the programs' command lines.

Source: the repository openai/guided-diffusion (names; no code).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

_ENTRY = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.")


def seen(shapes: Shapes) -> list[dict[str, Any]]:
    """Return what the shapes say of a network, as flags.

    Args:
        shapes: their name -> shape of every parameter.

    Returns:
        the networks that the shapes may be of, usually one: flags of `published_config`, with
        attention as downsampling factors (`attention_factors`), as the size is not known.

    Raises:
        ValueError: no network of this family: what is missing is named.
    """
    needed = {"input_blocks.0.0.weight": 4, "time_embed.0.weight": 2}
    if "token_embedding.weight" in shapes:
        needed["positional_embedding"] = 2
    for name, axes in needed.items():
        if len(shapes.get(name, ())) != axes:
            raise ValueError(
                f"no tensor {name!r} of {axes} axes: not a network of guided-diffusion's family"
            )
    inputs = _entries(shapes, "input_blocks")
    flags = _common(shapes) | _text(shapes)
    if not _entries(shapes, "output_blocks"):
        flags |= _classifier(shapes)
    found = []
    for levels, depth in _splits(inputs) if inputs < len(shapes) else ():
        own = _levels(shapes, levels, depth)
        if own is not None:
            found.append(flags | own)
    if not found:
        raise ValueError(
            f"input_blocks has {inputs} entries, which are no levels of residual blocks: not a "
            "network of guided-diffusion's family"
        )
    return found


def _entries(shapes: Shapes, part: str) -> int:
    """Count the entries of the flat list of the encoder or of the decoder."""
    matches = (_ENTRY.match(name) for name in shapes)
    return max((int(m[2]) + 1 for m in matches if m and m[1] == part), default=0)


def _splits(entries: int) -> Iterator[tuple[int, int]]:
    """Yield the levels and depths that make a list of this length: levels (depth + 1)."""
    for levels in range(1, entries):
        if entries % levels == 0 and entries // levels > 1:
            yield levels, entries // levels - 1


def _common(shapes: Shapes) -> dict[str, Any]:
    """Return what every network of the family says."""
    in_channels = shapes["input_blocks.0.0.weight"][1]
    block = shapes.get("input_blocks.1.0.emb_layers.1.weight", (0,))[0]
    out = shapes.get("input_blocks.1.0.out_layers.3.weight", (1,))[0]
    flags: dict[str, Any] = {
        "num_channels": shapes["time_embed.0.weight"][1],
        "in_channels": in_channels,
        "use_scale_shift_norm": block == 2 * out,
    }
    if "out.2.weight" in shapes and "output_blocks.0.0.in_layers.0.weight" in shapes:
        flags["out_channels"] = shapes["out.2.weight"][0]
    if "label_emb.weight" in shapes:
        flags["num_classes"] = shapes["label_emb.weight"][0]
    return flags


def _text(shapes: Shapes) -> dict[str, Any]:
    """Return the flags of GLIDE's transformer."""
    if "token_embedding.weight" not in shapes:
        return {}
    layers = {name.split(".")[2] for name in shapes if name.startswith("transformer.resblocks.")}
    context, width = shapes["positional_embedding"]
    return {
        "n_vocab": shapes["token_embedding.weight"][0],
        "text_ctx": context,
        "xf_width": width,
        "xf_layers": len(layers),
        "xf_final_ln": "final_ln.weight" in shapes,
        "xf_padding": "padding_embedding" in shapes,
    }


def _classifier(shapes: Shapes) -> dict[str, Any]:
    """Return the flags of a classifier's head."""
    heads = {
        "attention": ("out.2.qkv_proj.weight", 3, "out.2.c_proj.weight"),
        "spatial_v2": ("out.1.weight", 1, "out.3.weight"),
        "spatial": ("out.0.weight", 2, "out.2.weight"),  # 1 axis: the norm of a half U-Net
        "adaptive": ("out.3.weight", 4, "out.3.weight"),
    }
    for pool, (needed, axes, last) in heads.items():
        if len(shapes.get(needed, ())) == axes and last in shapes:
            return {"classifier_pool": pool, "num_classes": shapes[last][0]}
    raise ValueError("no output_blocks and no head of a classifier: the file is not complete")


def _levels(shapes: Shapes, levels: int, depth: int) -> dict[str, Any] | None:
    """Return the flags of this many levels, or None if the entries are not so."""
    width = shapes["time_embed.0.weight"][1]  # the first convolution may be narrower
    mult, factors, ways = [], [], set[str]()
    for level in range(levels):
        first = 1 + level * (depth + 1)
        blocks = [_block(shapes, first + k) for k in range(depth)]
        if None in blocks or len({attends for _, attends in filter(None, blocks)}) > 1:
            return None
        widths = [out for out, _ in filter(None, blocks)]
        if len(set(widths)) > 1:
            return None
        mult.append(widths[0] / width)
        factors += [2**level] if all(attends for _, attends in filter(None, blocks)) else []
        if level < levels - 1:
            ways.add(_way(shapes, first + depth))
    if len(ways) > 1 or "" in ways:
        return None
    way = ways.pop() if ways else "block"
    return {
        "num_res_blocks": depth,
        "channel_mult": ",".join(f"{m:g}" for m in mult),
        "attention_factors": factors,
        "resblock_updown": way == "block",
        "conv_resample": way != "pool",
    }


def _block(shapes: Shapes, entry: int) -> tuple[int, bool] | None:
    """Return the width and whether there is attention in an entry that is a residual block."""
    out = shapes.get(f"input_blocks.{entry}.0.out_layers.3.weight")
    return None if out is None else (out[0], f"input_blocks.{entry}.1.qkv.weight" in shapes)


def _way(shapes: Shapes, entry: int) -> str:
    """Return how an entry resamples: by a block, a convolution or a pool; "" = it does not."""
    names = {name.split(".")[3] for name in shapes if name.startswith(f"input_blocks.{entry}.0.")}
    if not names:
        return "pool"
    if names == {"op"}:
        return "conv"
    plain = "in_layers" in names and "skip_connection" not in names
    return "block" if plain and f"input_blocks.{entry}.1.qkv.weight" not in shapes else ""
