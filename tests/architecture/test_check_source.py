"""Plant one violation of each rule in a small tree and see that the checker names it."""

from pathlib import Path

import pytest

from tools import check_source

CLEAN = '''"""Do one thing."""

from torch import Tensor


def double(x: Tensor) -> Tensor:
    """Return twice `x`, shape (B, ...)."""
    return 2 * x
'''


def findings(tmp_path: Path, source: str, place: str = "src/fewstep/guide.py") -> list[str]:
    """Return "rule: text" for each finding in a tree that holds this one file."""
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    file.write_text(source)
    return [f"{found.rule}: {found.text}" for found in check_source.check(tmp_path)]


def test_clean_file_has_no_findings(tmp_path):
    assert findings(tmp_path, CLEAN) == []


LONG = "def long():\n    '''Do.'''\n" + "    a = 1\n" * 60
WIDE = "def wide(a, b, c, d, e, f, g, h, *, i=0):\n    '''Do.'''\n"
METHOD = "class A:\n    '''An A.'''\n\n    def method(self):\n        return 1\n"
PLANTED = {
    "file-length: 401 lines": CLEAN + "\n" * (401 - CLEAN.count("\n")),
    "function-length: long has 61 lines": CLEAN + LONG,
    "parameters: wide takes 9": CLEAN + WIDE,
    "docstring: the module has none": "x = 1\n",
    "docstring: bare has none": CLEAN + "def bare():\n    return 1\n",
    "docstring: A.method has none": CLEAN + METHOD,
    "shapes: double: no shape of x": CLEAN.replace(", shape (B, ...)", ""),
    "shapes: double: no Args: for x": CLEAN.replace("...).", "...).\n\n    More."),
    "third-party: accelerate: not in this layer": CLEAN + "import accelerate\n",
    "unsafe: import pickle": CLEAN + "import pickle\n",
    "unsafe: torch.load()": CLEAN + "import torch\nx = torch.load('a')\n",
    "unsafe: torch.load": CLEAN + "from torch import load\n",
    "unsafe: eval()": CLEAN + "x = eval('1')\n",
    "unsafe: exec()": CLEAN + "exec('1')\n",
    "unsafe: np.load(allow_pickle=...)": CLEAN + "x = np.load('a', allow_pickle=True)\n",
    "unsafe: subprocess.run(shell=...)": CLEAN + "subprocess.run('a', shell=flag)\n",
    "unsafe: yaml.load()": CLEAN + "x = yaml.load('a', Loader)\n",
    "word: NoiseScheduler": CLEAN + "class NoiseScheduler:\n    '''A.'''\n",
}


@pytest.mark.parametrize("expected", PLANTED)
def test_planted_violation_is_named(tmp_path, expected):
    found = findings(tmp_path, PLANTED[expected])
    assert len(found) == 1, found
    assert found[0].startswith(expected)


LOAD = CLEAN + "import torch\nx = torch.load('a', {})\n"


@pytest.mark.parametrize(
    ("keywords", "count"),
    [
        ("weights_only=True", 0),
        ("map_location='cpu', weights_only=True", 0),
        ("weights_only=False", 1),
        ("weights_only=flag", 1),
        ("weights_only=1", 1),
        ("weights_only='True'", 1),
        ("map_location='cpu'", 1),
        ("**{'weights_only': True}", 1),
        ("safe=True", 1),
    ],
)
def test_torch_load_is_allowed_only_for_weights(tmp_path, keywords, count):
    assert findings(tmp_path, LOAD.format(keywords)) == ["unsafe: torch.load()"] * count


@pytest.mark.parametrize("name", ["torch.save", "yaml.load"])
def test_weights_only_excuses_no_other_call(tmp_path, name):
    text = CLEAN + f"x = {name}('a', weights_only=True)\n"
    found = findings(tmp_path, text)
    assert found == [f"unsafe: {name}()"]


def test_metrics_read_safetensors_only_inside_a_function(tmp_path):
    text = CLEAN + "\n\ndef _read():\n    import safetensors\n"
    assert findings(tmp_path / "a", text, "src/fewstep/metrics/classifier.py") == []
    found = findings(tmp_path / "b", CLEAN + "import safetensors\n", "src/fewstep/metrics/a.py")
    assert found == ["third-party: safetensors: only inside a function"]


def test_layer_of_an_unknown_module_is_asked_for(tmp_path):
    assert findings(tmp_path, CLEAN, "src/fewstep/extra.py")[0].startswith("layer: extra is in no")


def test_file_named_by_an_empty_word(tmp_path):
    found = findings(tmp_path, CLEAN, "src/fewstep/nets/utils.py")
    assert found == ["word: utils: not a word of ours (see CONTRIBUTING)"]


LAZY = '"""Do."""\n\n\ndef _read():\n    import PIL\n'


def test_lazy_import_is_allowed_only_inside_a_function(tmp_path):
    assert findings(tmp_path / "a", LAZY, "src/fewstep/data/folder.py") == []
    head = LAZY + "\n\nimport PIL\n"
    expected = ["third-party: PIL: only inside a function"]
    assert findings(tmp_path / "b", head, "src/fewstep/data/folder.py") == expected
    assert findings(tmp_path / "c", LAZY) == ["third-party: PIL: not in this layer"]


def test_import_for_the_type_checker_counts_as_lazy(tmp_path):
    block = '"""Do."""\n\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import PIL\n'
    assert findings(tmp_path, block, "src/fewstep/data/folder.py") == []


FORWARD = "    def forward(self):\n        '''Do.'''\n" + "        1\n" * 70


def test_forward_of_a_network_may_be_long(tmp_path):
    text = CLEAN + "class A:\n    '''A.'''\n\n" + FORWARD
    assert findings(tmp_path / "a", text, "src/fewstep/nets/unet.py") == []
    assert findings(tmp_path / "b", text)[0].startswith("function-length: forward")


def test_table_is_exempt_where_it_says_so(tmp_path):
    table = WIDE.replace("i=0):", "i=0):  # budget: table")
    assert findings(tmp_path, CLEAN + table) == []


BASE = "class Base:\n    '''A.'''\n\n    def step(self):\n        {}\n\n\n"
LEAF = "class Leaf(Base):\n    '''A.'''\n\n    def step(self):\n        return 1\n"


def test_documented_base_speaks_for_its_leaves(tmp_path):
    assert findings(tmp_path / "a", CLEAN + BASE.format("'''Step.'''") + LEAF) == []
    found = findings(tmp_path / "b", CLEAN + BASE.format("return 0") + LEAF)
    assert found == ["docstring: Base.step has none", "docstring: Leaf.step has none"]


def test_docstring_does_not_count_as_code(tmp_path):
    text = "def f():\n    '''Do.\n" + "\n    more\n" * 40 + "    '''\n"
    assert findings(tmp_path, CLEAN + text) == []
