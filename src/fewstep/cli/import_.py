"""`fewstep import`: a published checkpoint becomes a model folder.

The file lies on this machine; nothing is downloaded. Only tensors are read from it, never code.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import console, options
from fewstep.errors import UsageError, suggest

if TYPE_CHECKING:
    from fewstep.model import Model

app = options.app()


@app.command(name="import")
def import_(  # budget: table
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="a checkpoint on this machine: .pt or .safetensors"),
    ] = None,
    name: Annotated[
        Path | None,
        typer.Option("--as", metavar="FOLDER", help="where the model goes; by default its name"),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="the published checkpoints that are known")
    ] = False,
    architecture: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="one of --list; by default told from file and tensors"),
    ] = None,
    flags: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="for a checkpoint of your own: the flags it was trained with, such as "
            "'--image_size 64 --num_heads 4 --noise_schedule cosine'",
        ),
    ] = None,
    program: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="with --flags: whose flags, openai/guided-diffusion"),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="for a model that reads text: GPT-2's tokenizer.json, or vocab.bpe (merges.txt)",
        ),
    ] = None,
    form: Annotated[str, options.FORMAT] = "human",
) -> None:
    """Make a model of a published checkpoint, or of your own from the same programs.

    The file is read as tensors only: a file with code in it is refused and nothing of it runs.
    """
    if listing:
        _list(form)
        return
    if file is None:
        raise UsageError("import what? give the FILE of a checkpoint, or --list")
    if architecture is not None and flags is not None:
        raise UsageError("--architecture and --flags: give one of them")
    if program is not None and flags is None:
        raise UsageError(f"--program {program}: belongs to --flags")
    _import(file, name, architecture, flags, program, tokenizer, form)


def _import(  # budget: table
    file: Path,
    name: Path | None,
    architecture: str | None,
    flags: str | None,
    program: str | None,
    tokenizer: Path | None,
    form: str,
) -> None:
    """Read, convert, save, report."""
    from fewstep.interop import catalog, importing, weights
    from fewstep.train import checkpoint

    if name is not None and name.suffix.lower() in checkpoint.PICKLES:
        raise UsageError(f"--as {name}: a model is a folder; leave {name.suffix} out of its name")
    file = file.expanduser()
    state = weights.read(file)
    if architecture is None and flags is None:
        architecture = importing.identify(file.name, state)
        if architecture is None:
            raise UsageError(
                f"{file}: unknown architecture, no published checkpoint has these tensors; if it "
                "is one of your own, give the flags it was trained with: --flags '--image_size 64 "
                "--num_heads 4 --noise_schedule linear'"
            )
        published = catalog.CATALOG[architecture].file
        if file.name != published:
            console.note(
                f"{file.name}: taken for {architecture} ({published}) by its tensors alone; a "
                "network of your own needs --flags, and has your licence"
            )
    about: dict[str, Any] = {"file": file.name, "sha256": _sha256(file)}
    if architecture is not None:
        entry = importing.entry_of(architecture)
        said, whose = catalog.parsed(entry.flags), entry.program
        about |= {"name": architecture, "what": entry.what, "licence": catalog.LICENCE}
    else:
        said = catalog.parsed(flags or "")
        whose = _program(program) if program else importing.program_of(state, said)
    about |= {"program": whose, "source": f"https://github.com/{whose}"}
    model = importing.convert(state, whose, said, about)
    extra = _tokens(tokenizer, model)
    folder = (name or Path(architecture or file.stem)).expanduser()
    checkpoint.save_model(model, folder, extra=extra)
    _report(folder, model, bool(extra), form)


def _program(word: str) -> str:
    """Return a program's full name; the part after the slash is enough."""
    from fewstep.interop.published import PROGRAMS

    known = {p.partition("/")[2]: p for p in PROGRAMS} | {p: p for p in PROGRAMS}
    if word not in known:
        raise UsageError(
            f"--program {word}: allowed are {', '.join(PROGRAMS)}{suggest(word, known)}"
        )
    return known[word]


def _sha256(file: Path) -> str:
    """Return the hash of the file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tokens(tokenizer: Path | None, model: "Model") -> dict[str, str]:
    """Return the tokenizer's file for the model's folder."""
    if tokenizer is None:
        return {}
    if model.text is None:
        raise UsageError(f"--tokenizer {tokenizer}: this model reads no text")
    from fewstep.interop.tokens import NAME, Tokenizer

    return {NAME: Tokenizer.read(tokenizer.expanduser(), model.text.vocab).text()}


def _list(form: str) -> None:
    """Print the catalog."""
    from dataclasses import asdict

    from fewstep.interop.catalog import CATALOG, LICENCE

    if form == "json":
        rows = [
            {"name": name, "licence": LICENCE, **asdict(entry)} for name, entry in CATALOG.items()
        ]
        print(json.dumps(rows))
        return
    wide = max(map(len, CATALOG))
    files = max(len(entry.file) for entry in CATALOG.values())
    for program in dict.fromkeys(entry.program for entry in CATALOG.values()):
        print(
            f"{program}: licence {LICENCE}; what the weights are meant for is said on "
            f"https://github.com/{program}"
        )
        for name, entry in CATALOG.items():
            if entry.program == program:
                print(f"  {name:<{wide}}  {entry.file:<{files}}  {entry.what}")
    print(
        "download a file yourself, then: fewstep import FILE; checkpoints of your own from these "
        "programs: --flags"
    )


def _report(folder: Path, model: "Model", tokenized: bool, form: str) -> None:
    """Print what was made and the next command."""
    from fewstep.model import parameter_count

    about = model.about
    count = parameter_count(model.denoiser)
    facts = {
        "folder": str(folder),
        "parameters": count,
        "shape": list(model.shape),
        "classes": len(model.classes),
        "inputs": list(model.inputs),
        "about": dict(about),
    }
    if form == "json":
        print(json.dumps(facts))
        return
    size = "x".join(map(str, model.shape))
    kind = "noisy classifier" if model.classifier else "model"
    told = [f"{len(model.classes)} classes"] if model.classes else []
    told += ["text"] if model.text else []
    told += [{"low_res": "a small image", "known": "a partial image"}[x] for x in model.inputs]
    what = f" ({about['what']})" if "what" in about else ""
    console.result(
        f"{folder}: {kind}{what}, {count:,} parameters, images {size}, "
        f"told: {', '.join(told) or 'nothing'}"
    )
    licence = about.get("licence", "unknown: ask whoever trained it")
    console.result(f"licence of the weights: {licence}; source: {about['source']}")
    if model.text and not tokenized:
        console.result("no tokenizer: import again with --tokenizer tokenizer.json to give texts")
    console.result(f"next: {_next(folder, model)}")


def _next(folder: Path, model: "Model") -> str:
    """Return a command that uses the model."""
    if model.classifier:
        return console.command(
            "sample", "MODEL", "--classifier", str(folder), "--label", model.classes[0]
        )
    words = ["-n", "4"]
    words += ["--label", model.classes[0]] if model.classes else []
    words += ["--text", "a red boat on a lake"] if model.text else []
    words += ["--low-res", "small.png"] if "low_res" in model.inputs else []
    words += ["--image", "photo.png", "--mask", "mask.png"] if "known" in model.inputs else []
    return console.command("sample", str(folder), *words)
