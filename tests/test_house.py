"""The rules of the house, checked on its source: sizes, docstrings, floors, and nothing that unpickles."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import dsee

HOUSE = Path(dsee.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))
NAMES = [path.relative_to(HOUSE).as_posix() for path in FILES]

#: From the ground up; a module imports from its own floor or a lower one.
FLOORS = [
    {"architectures", "gradients", "kernels", "masks", "steps", "modes", "errors", "processes", "_version"},
    {"support", "update", "pruning", "measure"},
    {"surgery"},
    {"artifact", "runtime"},
    {"tasks", "training", "recipes"},
    {"report"},
    {"cli"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
#: The doors: they announce what is inside and so know every floor.
DOORS = {"__init__.py", "__main__.py", "registration.py"}
#: Where registration looks into the house: its own imports decide how high it stands.
FLOOR["registration"] = FLOOR["artifact"]


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def undocumented(tree):
    """Public functions and classes of a module, and public methods of its public classes, without a docstring."""
    found = []

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.If | ast.Try):
                visit(node.body, prefix)
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if not named or node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None:
                found.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{node.name}.")

    visit(tree.body, "")
    return found


def imported(tree):
    """Dotted names of the house that a module imports, anywhere in it; ``dsee.prune`` counts as where prune lives."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            if module == "dsee":
                yield from (f"dsee.{alias.name}" for alias in node.names)
            elif module.startswith("dsee."):
                yield module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("dsee."))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dsee":
            yield dsee._HOME.get(node.attr, f"dsee.{node.attr}")


def too_high(tree, room):
    """Imports that reach above the floor of a room."""
    return [name for name in imported(tree) if FLOOR[name.split(".")[1]] > FLOOR[room]]


def unsafe(tree):
    """Ways to run what a file contains: pickle and its kin, torch.load, remote code, eval."""
    found = []
    safe = {"yaml.SafeLoader"} | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            wanted = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
            found += [name for name in modules if name.split(".")[0] in wanted]
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                found += ["torch.load" for alias in node.names if alias.name == "load"]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in {"torch.load", "yaml.unsafe_load"}:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "yaml.load":
            loaders = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "Loader"]
            found += [] if loaders and set(loaders) <= safe else ["yaml.load"]
        elif isinstance(node, ast.keyword) and node.arg in {"trust_remote_code", "allow_pickle"}:
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.append(node.arg)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
            found.append(node.func.id)
    return found


def test_the_house_is_where_the_tests_look():
    assert {"__init__.py", "update/layer.py", "surgery/cut.py", "cli/app.py"} <= set(NAMES)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_file_is_over_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_half_of_the_files_have_130_lines_at_most():
    assert statistics.median(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES) <= 130


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_function_is_over_70_lines(path):
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions(parsed(path))}
    assert {name: length for name, length in lengths.items() if length > 70} == {}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_everything_public_is_documented(path):
    tree = parsed(path)
    assert ast.get_docstring(tree)
    assert undocumented(tree) == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_go_down(path):
    room = path.relative_to(HOUSE).parts[0].removesuffix(".py")
    if path.relative_to(HOUSE).as_posix() in DOORS:
        assert room in {"__init__", "__main__", "registration"}
    else:
        assert too_high(parsed(path), room) == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_is_unpickled_and_no_foreign_code_runs(path):
    assert unsafe(parsed(path)) == []


def test_every_room_has_a_floor():
    rooms = {name.split("/")[0].removesuffix(".py") for name in NAMES if name not in DOORS}
    assert rooms <= set(FLOOR)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=flag)",
        "np.load('x', allow_pickle=True)",
        "eval('1')",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "class Mine(yaml.Loader): ...\nyaml.load(text, Loader=Mine)",
    ],
)
def test_the_search_for_unsafe_code_finds_it(code):
    assert unsafe(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "AutoModel.from_pretrained('x', trust_remote_code=False)",
        "class Mine(yaml.SafeLoader): ...\nyaml.load(text, Loader=Mine)",
        "yaml.safe_load(text)",
        "json.load(stream)",
        "model.eval()",
    ],
)
def test_the_search_for_unsafe_code_passes_over_the_rest(code):
    assert unsafe(ast.parse(code)) == []


@pytest.mark.parametrize(
    ("code", "room"),
    [
        ("from dsee.cli.app import app", "report"),
        ("import dsee.surgery.cut", "pruning"),
        ("def f():\n    from dsee import training", "artifact"),
        ("import dsee\ndsee.prune(model)", "update"),
        ("from dsee.measure.flops import flops", "architectures"),
    ],
)
def test_the_search_for_imports_finds_one_that_goes_up(code, room):
    assert len(too_high(ast.parse(code), room)) == 1
    assert too_high(ast.parse(code), "cli") == []


def test_the_search_for_docstrings_finds_what_has_none():
    code = "class A:\n    def f(self): ...\n    def _g(self): ...\ndef h(): ...\ndef _i(): ...\ndef j():\n    'doc'"
    assert undocumented(ast.parse(code)) == ["A", "A.f", "h"]


@pytest.mark.parametrize(
    "code",
    [
        "import dsee_command, dsee",
        "import dsee_command, dsee.runtime.onnx_model",
        "import dsee_command, dsee.artifact.manifest",
        "import dsee_command, dsee.cli.app",
    ],
)
def test_the_command_starts_without_torch(code):
    check = "import sys; heavy = {'torch', 'transformers', 'peft', 'datasets', 'sklearn'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {check}; print(sorted(heavy))"], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
