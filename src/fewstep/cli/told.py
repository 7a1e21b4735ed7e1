"""From what the user tells a model beside its settings to a condition: classes, texts, images.

Every class, text or image is a subject, and of each subject the user wants some images. Where two
kinds are told, one of them may be single: one text for many small images, one class for all.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli import console
from fewstep.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fewstep.cli.resolve import Found
    from fewstep.conditions import Caption, Cond
    from fewstep.model import Model

_FILES = "PNG, JPEG, WebP, BMP or GIF"
_WHITE = 128  # a mask is black or white; this is the border


@dataclass(frozen=True)
class Said:
    """What the user said.

    Attributes:
        labels: words for classes, or None.
        texts: captions, or None.
        low_res: images to enlarge: a file or a folder.
        image: an image to complete.
        mask: where it is to be completed: white; black stays.
    """

    labels: list[str] | None = None
    texts: list[str] | None = None
    low_res: Path | None = None
    image: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Told:
    """What the network is told, image by image.

    Attributes:
        cond: the condition of all images, or None.
        names: what to call the class or the text of each image, None = nothing was told.
        each: images of one class, text or image, which stand together.
    """

    cond: "Cond"
    names: list[str | None]
    each: int

    @property
    def free(self) -> bool:
        """Whether no image has a class or a text, so that there is nothing to guide towards."""
        return all(name is None for name in self.names)


def tell(found: "Found", classes: "Model", said: Said, number: int | None) -> Told:
    """Return the condition of what the user said.

    Args:
        found: the model that is to be told.
        classes: the model that has the classes: this one, or the classifier that guides.
        said: what the user said.
        number: images of each subject; None = 16, or 1 of an image.

    Raises:
        UsageError: something that this model cannot be told, or needs and is not told.
        DataError: images or a tokenizer that cannot be used.
    """
    from fewstep.conditions import Known, LowRes

    model = found.model
    _check(model, said)
    labels, texts = class_indices(classes, said.labels), _texts(model, said.texts)
    small, partial = _small(model, said.low_res), _partial(model, said)
    parts = [x for x in (labels, texts, small, partial) if x is not None]
    subjects = max(map(len, parts), default=1)
    if {len(x) for x in parts} - {1, subjects}:
        raise UsageError(
            f"{' and '.join(str(len(x)) for x in parts)} labels, texts or images: give one of a "
            "kind, or as many of each"
        )
    each = number or (16 if small is None and partial is None else 1)
    spread = _Spread(subjects, each)
    cond: Cond = None
    names: list[str | None] = [None] * (subjects * each)
    if labels is not None:
        import torch

        cond = spread(torch.tensor(labels))
        names = spread.words([classes.classes[k] for k in labels])
    if texts is not None:
        cond, names = spread(_captions(found, texts)), spread.words(texts)
    if small is not None:
        cond = LowRes(spread(small), cond)
    if partial is not None:
        whole = spread(partial)
        cond = Known(whole[:, :-1], whole[:, -1:], cond)
    return Told(cond, names, each)


@dataclass(frozen=True)
class _Spread:
    """Give every subject its images: the first `each` rows are of the first subject.

    Attributes:
        subjects: number of subjects; what there is one of goes to all.
        each: images of a subject.
    """

    subjects: int
    each: int

    def rows(self, n: int) -> list[int]:
        """Return which of n subjects every image is of."""
        return [min(k, n - 1) for k in range(self.subjects) for _ in range(self.each)]

    def __call__(self, cond: Any) -> Any:
        """Return a condition or a tensor of all images."""
        import torch

        from fewstep import conditions

        tensor = cond if isinstance(cond, torch.Tensor) else cond[0]
        return conditions.rows(cond, torch.tensor(self.rows(len(tensor))))

    def words(self, words: list[str]) -> list[str | None]:
        """Return the word of each image; an empty one says nothing."""
        return [words[k] or None for k in self.rows(len(words))]


def _check(model: "Model", said: Said) -> None:
    """Refuse what the network cannot be told, and what it must be told and is not."""
    size = "x".join(map(str, model.shape[1:]))
    for name, given, option in (
        ("low_res", said.low_res, "--low-res"),
        ("known", said.image, "--image"),
        ("known", said.mask, "--mask"),
    ):
        if given is not None and name not in model.inputs:
            raise UsageError(f"{option} {given}: this model is shown no such image; leave it out")
        if given is None and name in model.inputs:
            what = {
                "--low-res": "enlarges images: give --low-res FILE, or a folder of images",
                "--image": f"completes an image: give --image FILE, which is fitted to {size}",
                "--mask": "completes an image: give --mask FILE, white where it is to be painted",
            }
            raise UsageError(f"this model {what[option]}")
    if said.texts is not None and model.text is None:
        raise UsageError(f"--text {said.texts[0]!r}: this model reads no text; leave it out")
    if said.labels is not None and model.text is not None:
        raise UsageError(f"--label {said.labels[0]}: this model has no classes; give --text")


def class_indices(model: "Model", words: list[str] | None) -> list[int] | None:
    """Return the classes that the user named, or None where none is asked for.

    Args:
        model: has the classes.
        words: names, several with commas between them, or "all"; None or empty = not said.

    Raises:
        UsageError: no such class, or none said to a model that never saw the null condition.
    """
    if not words:
        if model.classes and not model.denoiser.null:
            why = "model never saw the null condition (objective.drop was 0)"
            if model.student:
                why = "student has its guidance in its weights and knows no null condition"
            raise UsageError(
                f"this {why}, so it needs a label: --label {model.classes[0]}, ... or all"
            )
        if model.classes:
            console.note(
                "no --label: images of any class, without guidance; --label all for every class"
            )
        return None
    if words == ["all"] and model.classes:
        return list(range(len(model.classes)))
    # A class name may hold a comma: the whole word goes first.
    names = [n for w in words for n in ([w] if w in model.classes else w.split(","))]
    return [model.label_index(name.strip()) for name in names]


def _texts(model: "Model", texts: list[str] | None) -> list[str] | None:
    """Return the texts, or None where the model reads none."""
    if model.text is None:
        return None
    if not model.text.padding and not all(texts or [""]):
        raise UsageError("this model has no empty text (no learned padding): give --text TEXT")
    if texts is None:
        console.note("no --text: images of anything, without guidance")
    return texts or [""]


def _captions(found: "Found", texts: list[str]) -> "Caption":
    """Return texts as tokens; the empty one needs no tokenizer."""
    from fewstep.interop.tokens import NAME, Tokenizer, nothing

    config = found.model.text
    assert config is not None
    path = found.path / NAME
    if not any(texts):
        return nothing(len(texts), config.context)
    if not path.is_file():
        raise UsageError(
            f"--text {texts[0]!r}: {found.path} has no tokenizer; import the checkpoint again "
            "with --tokenizer tokenizer.json (GPT-2's)"
        )
    return Tokenizer.read(path, config.vocab).captions(texts, config.context)


def _small(model: "Model", path: Path | None) -> "Tensor | None":
    """Return the images to enlarge, (N, C, h, w) in [-1, 1]."""
    if path is None:
        return None
    from fewstep import data
    from fewstep.data.arrays import is_array

    path = path.expanduser()
    side = model.about.get("low_res")
    if path.is_file() and not is_array(path):
        return read_image(path, model.shape[0], side)
    how = "error" if side is None else "stretch"
    images = data.load(path, size=side, resize=how, channels=model.shape[0])
    return _floats(images.pixels)


def _partial(model: "Model", said: Said) -> "Tensor | None":
    """Return image and mask as channels, (1, C + 1, H, W); 1 in the last one is known."""
    if said.image is None or said.mask is None:
        return None
    import torch

    channels, *size = model.shape
    image = read_image(said.image, channels, *size)
    return torch.cat([image, read_mask(said.mask, *size).to(image.dtype)], 1)


def read_mask(path: Path, *size: int) -> "Tensor":
    """Return where an image is known, bool, (1, 1, H, W): all that is not white in the file.

    Args:
        path: of a mask, black and white.
        size: H and W that it is stretched to.

    Raises:
        UsageError, DataError: as `read_image`.
    """
    white = read_image(path, 1, *size) >= _WHITE / 127.5 - 1
    if white.all() or not white.any():
        what = "white: nothing is known" if white.all() else "black: nothing is to be painted"
        console.warn(f"{path}: all of the mask is {what}")
    return ~white


def read_image(path: Path, channels: int, *size: int | None, told: bool = True) -> "Tensor":
    """Return one image file, (1, C, H, W) in [-1, 1].

    Args:
        path: of a PNG, JPEG, WebP, BMP or GIF.
        channels: C, 1 or 3.
        size: H and W that it is stretched to, or one number for both; None keeps its own.
        told: whether stretching is said.

    Raises:
        UsageError: no such file.
        DataError: no image, or a damaged one.
    """
    from fewstep.data.decode import Target, Unreadable, decode

    width, height = own = image_size(path)
    height, width = size[0] or height, size[-1] or width
    try:
        pixels = decode(_content(path), Target(channels, height, width, "stretch"))
    except Unreadable as error:
        raise _unfit(path, error) from None
    if told and own != (width, height):
        console.note(f"{path}: {own[0]}x{own[1]}, stretched to {width}x{height}")
    return _floats(pixels[None])


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image file.

    Raises:
        UsageError, DataError: as `read_image`.
    """
    from fewstep.data.decode import Unreadable, header

    try:
        own = header(_content(path))
    except Unreadable as error:
        raise _unfit(path, error) from None
    return own.width, own.height


def _content(path: Path) -> bytes:
    """Return the bytes of a file."""
    path = path.expanduser()
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {what}; give an image file: {_FILES}")
    return path.read_bytes()


def _unfit(path: Path, reason: Exception) -> DataError:
    """Return what to raise for a file that is no image, or a damaged one."""
    advice = "" if "allowed" in str(reason) else f"; give a whole image file: {_FILES}"
    return DataError(f"{path}: {reason}{advice}")


def _floats(pixels: "NDArray[np.uint8]") -> "Tensor":
    """Return bytes as numbers in [-1, 1], of the same shape."""
    import torch

    return torch.tensor(pixels).float() / 127.5 - 1
