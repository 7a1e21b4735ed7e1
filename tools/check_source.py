"""Check the rules of the source that no linter knows: `python tools/check_source.py [ROOT]`.

Each rule is a small function from a parsed file to findings; `check(root)` runs them all over
`src`, `tools`, `benchmarks` and `tests` below `root`. The rules: budgets of files and functions,
docstrings of public names, which third party a layer may import and where, no unsafe loader, and
the words we do not use. A line that ends in `# budget: table` exempts the function that starts
there: a table of options or of names is long without being complicated.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FILE_LINES = 400
FUNCTION_LINES = 60  # the docstring is not counted
PARAMETERS = 8
PRAGMA = "# budget: table"
FOLDERS = ("src", "tools", "benchmarks", "tests")
WORDS = re.compile(r"(^|_)(schedul(e|er|es|ers|ing)|pipelines?|managers?|utils?)($|_)")
# What counts as a word on shape: (B, C, H, W), (B,), (), (n + 1,), "shape", "like x_t", "scalar".
SHAPE = re.compile(r"\((\.\.\.|[A-Za-z0-9_+* ]*)(,[^)]*)?\)|shape|\blike\b|\bscalar\b|\bsame\b")

# Third parties by layer: (at the head of the file, inside a function only).
CORE = ({"torch", "numpy"}, set[str]())
TRAIN = ({"torch", "numpy", "accelerate", "safetensors", "PIL"}, {"psutil"})
OUTPUT = (
    {"torch", "numpy", "pydantic", "yaml", "safetensors", "PIL"},
    {"matplotlib", "diffusers", "onnx", "onnxruntime", "tokenizers"},
)
COMMAND = (
    {"typer", "rich", "click"},
    {"torch", "numpy", "yaml", "pydantic", "PIL", "safetensors", "accelerate", "psutil"},
)
THIRD_PARTIES: dict[str, tuple[set[str], set[str]]] = {
    **dict.fromkeys(("errors", "files"), (set[str](), set[str]())),
    **dict.fromkeys(("conditions", "shapes", "process", "prediction", "reverse", "labels"), CORE),
    **dict.fromkeys(("denoiser", "exact", "classifier", "nets"), CORE),
    **dict.fromkeys(("guide", "solvers", "objectives", "sampling", "steer"), CORE),
    "distill": (CORE[0], CORE[1] | {"lpips"}),
    **dict.fromkeys(("langevin", "tune"), CORE),
    "likelihood": (CORE[0], CORE[1] | {"torchdiffeq"}),
    "model": ({"torch", "numpy"}, {"safetensors"}),
    "data": ({"torch", "numpy"}, {"PIL", "pyarrow"}),
    "edit": ({"torch", "numpy"}, {"PIL"}),
    "metrics": ({"torch", "numpy"}, {"torch_fidelity", "torchvision", "scipy", "safetensors"}),
    "students": ({"torch"}, set()),
    "train": (TRAIN[0], TRAIN[1] | {"rich"}),
    **dict.fromkeys(("recipes", "report", "interop"), OUTPUT),
    "lab": ({"torch", "numpy"}, {"matplotlib"}),
    **dict.fromkeys(("cli", "studio"), COMMAND),
    "__init__": (set(), set()),
    "__main__": (set(), set()),
}
SHAPED = {
    "conditions", "shapes", "process", "prediction", "reverse", "labels", "denoiser", "exact",
    "nets", "data", "guide", "classifier", "solvers", "objectives", "metrics", "distill", "edit",
    "langevin", "likelihood", "lab", "tune",
}  # fmt: skip

UNSAFE_MODULES = {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
UNSAFE_NAMES = {"eval", "exec", "__import__"}
UNSAFE_CALLS = {"torch.load", "torch.save", "os.system", "os.popen"} | {
    f"yaml.{name}" for name in ("load", "load_all", "unsafe_load", "full_load", "unsafe_load_all")
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Finding:
    """Say which rule a line breaks."""

    path: Path
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


@dataclass(frozen=True)
class Source:
    """Hold one parsed file; `part` is its place in the package, such as "solvers" ("" outside)."""

    path: Path
    text: str
    tree: ast.Module
    part: str
    # Names of the base classes and the documented methods of every class of the package.
    classes: dict[str, tuple[list[str], set[str]]] = field(default_factory=dict)

    def finding(self, node: ast.AST | None, rule: str, text: str) -> Finding:
        """Return a finding at the line of `node`, or at line 1."""
        return Finding(self.path, getattr(node, "lineno", 1), rule, text)


def budgets(source: Source) -> Iterator[Finding]:
    """Yield files, functions and parameter lists over the budget."""
    lines = source.text.splitlines()
    if len(lines) > FILE_LINES:
        yield source.finding(None, "file-length", f"{len(lines)} lines, at most {FILE_LINES}")
    if source.path.parts[0] == "tests":
        return
    for node in ast.walk(source.tree):
        if not isinstance(node, Function):
            continue
        head = lines[node.lineno - 1 : node.body[0].lineno]
        if any(line.rstrip().endswith(PRAGMA) for line in head):
            continue
        length = code_lines(node)
        if length > FUNCTION_LINES and not (source.part == "nets" and node.name == "forward"):
            text = f"{node.name} has {length} lines of code, at most {FUNCTION_LINES}"
            yield source.finding(node, "function-length", text)
        count = parameters(node)
        if count > PARAMETERS:
            text = f"{node.name} takes {count} parameters, at most {PARAMETERS}"
            yield source.finding(node, "parameters", text)


def code_lines(node: Function) -> int:
    """Return the lines from `def` to the end, less those of the docstring."""
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node, clean=False) is not None:
        first = node.body[0]
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def parameters(node: Function) -> int:
    """Return how many parameters a function takes, self and cls not counted."""
    named = [*node.args.posonlyargs, *node.args.args]
    own = 1 if named and named[0].arg in ("self", "cls") else 0
    stars = (node.args.vararg is not None) + (node.args.kwarg is not None)
    return len(named) - own + len(node.args.kwonlyargs) + stars


def docstrings(source: Source) -> Iterator[Finding]:
    """Yield public names of the package without a docstring, or without shapes of tensors."""
    if not source.part:
        return
    if ast.get_docstring(source.tree) is None:
        yield source.finding(None, "docstring", "the module has none")
    for owner, node in public(source.tree):
        name = f"{owner.name}.{node.name}" if owner else node.name
        text = ast.get_docstring(node)
        if text is None:
            inherited = owner is not None and documented(owner.name, node.name, source.classes)
            if not (inherited or decorated(node, "overload", "setter")):
                yield source.finding(node, "docstring", f"{name} has none")
            continue
        if owner is None and isinstance(node, Function) and source.part in SHAPED:
            tensors = [a.arg for a in arguments(node) if is_tensor(a.annotation)]
            if tensors and "Args:" not in text and len(text.splitlines()) > 1:
                yield source.finding(node, "shapes", f"{name}: no Args: for {', '.join(tensors)}")
            elif tensors and not SHAPE.search(text):
                yield source.finding(node, "shapes", f"{name}: no shape of {', '.join(tensors)}")


def public(tree: ast.Module) -> Iterator[tuple[ast.ClassDef | None, ast.ClassDef | Function]]:
    """Yield (class or None, definition) for what a reader of the module may use."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        yield None, node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, Function) and not inner.name.startswith("_"):
                    yield node, inner


def documented(owner: str, name: str, classes: dict[str, tuple[list[str], set[str]]]) -> bool:
    """Return whether a base class of `owner` in the package documents the method `name`.

    `forward` of a torch module is documented by the class: it is what the class is for.
    """
    bases, _ = classes.get(owner, ([], set()))
    if name == "forward" and "Module" in bases:
        return True
    return any(
        name in classes[base][1] or documented(base, name, classes)
        for base in bases
        if base in classes and base != owner
    )


def decorated(node: ast.ClassDef | Function, *names: str) -> bool:
    """Return whether the last word of one of the decorators is among `names`."""
    return any(dotted(decorator).split(".")[-1] in names for decorator in node.decorator_list)


def arguments(node: Function) -> list[ast.arg]:
    """Return the named arguments."""
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def is_tensor(annotation: ast.expr | None) -> bool:
    """Return whether an annotation is `Tensor` or an optional one."""
    return annotation is not None and "Tensor" in re.findall(r"\w+", ast.unparse(annotation))


def third_parties(source: Source) -> Iterator[Finding]:
    """Yield imports that the layer of the file does not allow."""
    if not source.part:
        return
    if source.part not in THIRD_PARTIES:
        text = f"{source.part} is in no layer: add it to tools/check_source.py and pyproject.toml"
        yield source.finding(None, "layer", text)
        return
    head, inside = THIRD_PARTIES[source.part]
    known = sys.stdlib_module_names | {"fewstep", "__future__"}
    lazy = {id(n) for f in ast.walk(source.tree) if isinstance(f, Function) for n in ast.walk(f)}
    lazy |= {id(n) for block in type_checking(source.tree) for n in ast.walk(block)}
    for node, name in imports(source.tree):
        top = name.split(".")[0]
        if top in known or top in head or (top in inside and id(node) in lazy):
            continue
        where = "only inside a function" if top in inside else "not in this layer"
        yield source.finding(node, "third-party", f"{top}: {where}")


def type_checking(tree: ast.Module) -> list[ast.If]:
    """Return the blocks that only a type checker reads."""
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    return [node for node in blocks if dotted(node.test).split(".")[-1] == "TYPE_CHECKING"]


def imports(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Yield every absolute import: the statement and the module's full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node, node.module


def dotted(node: ast.expr) -> str:
    """Return "a.b.c" for such an expression (of a call: its function), else ""."""
    if isinstance(node, ast.Call):
        return dotted(node.func)
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(source: Source) -> Iterator[Finding]:
    """Yield loaders that run what they read, in the package."""
    if not source.part:
        return
    for node, name in imports(source.tree):
        if name.split(".")[0] in UNSAFE_MODULES:
            yield source.finding(node, "unsafe", f"import {name}")
        names = [a.name for a in node.names] if isinstance(node, ast.ImportFrom) else []
        for hidden in (f"{name}.{n}" for n in names if f"{name}.{n}" in UNSAFE_CALLS):
            yield source.finding(node, "unsafe", hidden)
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name == "torch.load" and weights_only(node):
            continue
        if name in UNSAFE_CALLS or (isinstance(node.func, ast.Name) and name in UNSAFE_NAMES):
            yield source.finding(node, "unsafe", f"{name}()")
        for word in node.keywords:
            if word.arg in ("allow_pickle", "shell", "trust_remote_code") and not (
                isinstance(word.value, ast.Constant) and word.value.value is False
            ):
                yield source.finding(node, "unsafe", f"{name}({word.arg}=...)")


def weights_only(node: ast.Call) -> bool:
    """Return whether the call says `weights_only=True`, literally: torch then runs no code."""
    return any(
        word.arg == "weights_only"
        and isinstance(word.value, ast.Constant)
        and word.value.value is True
        for word in node.keywords
    )


def words(source: Source) -> Iterator[Finding]:
    """Yield public names made of words that say nothing here, or two things."""
    if not source.part:
        return
    names: list[tuple[ast.AST | None, str]] = [
        (node, node.name) for _, node in public(source.tree)
    ]
    names.append((None, source.path.stem))
    for node, name in names:
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        if WORDS.search(snake):
            yield source.finding(node, "word", f"{name}: not a word of ours (see CONTRIBUTING)")


RULES = (budgets, docstrings, third_parties, unsafe, words)


def read(root: Path) -> list[Source]:
    """Parse every Python file below the folders of `root`."""
    classes: dict[str, tuple[list[str], set[str]]] = {}
    sources: list[Source] = []
    for path in sorted(p for folder in FOLDERS for p in (root / folder).rglob("*.py")):
        inside = path.relative_to(root)
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, filename=str(inside))
        package = inside.parts[:2] == ("src", "fewstep")
        part = inside.parts[2].removesuffix(".py") if package else ""
        sources.append(Source(inside, text, tree, part, classes))
        for node in (n for n in tree.body if package and isinstance(n, ast.ClassDef)):
            bases = [dotted(base).split(".")[-1] for base in node.bases]
            methods = [inner for inner in node.body if isinstance(inner, Function)]
            classes[node.name] = (bases, {m.name for m in methods if ast.get_docstring(m)})
    return sources


def check(root: Path) -> list[Finding]:
    """Return every finding below `root`, in the order of the files."""
    return [finding for source in read(root) for rule in RULES for finding in rule(source)]


def main() -> int:
    """Print the findings, one a line; return 1 if there are any."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    findings = check(root)
    for finding in findings:
        print(finding)
    print(f"check_source: {len(findings)} findings" if findings else "check_source: all kept")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
