"""The arrows between packages and the other rules of the house, read off the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# folder -> packages that it may import besides itself
ALLOWED = {
    "kernels": set(),
    "speechkit": {"kernels"},
    "kws": {"speechkit", "kernels"},
    "asr": {"speechkit", "kernels"},
    "active_learning": {"speechkit"},
}
NESTED = {ROOT / "speechkit" / "density"}
TRAINERS = {
    "speechkit/training.py",
    "kws/fit.py",
    "asr/fit.py",
    "speechkit/density/fit.py",
}
RECIPE_LINES = 120
POSITIONAL = 3

SOURCES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES + RECIPES}


def name(path):
    return path.relative_to(ROOT).as_posix()


def imported(tree):
    """Yield the modules that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            # "from speechkit import kws" names the package in its second half
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(module):
    """Return our package that a module belongs to, or None."""
    first, *rest = module.split(".")
    if first != "speechkit":
        return None
    return rest[0] if rest and rest[0] in ALLOWED else "speechkit"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_arrows_between_packages(path):
    own = path.relative_to(ROOT).parts[0]
    packages = {package_of(module) for module in imported(TREES[path])} - {None, own}
    assert packages <= ALLOWED[own]


@pytest.mark.parametrize("path", [*SOURCES, *RECIPES, *ROOT.glob("tests/**/*.py")], ids=name)
def test_bare_names_are_never_imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = set(ALLOWED) - {"speechkit"}
    assert bare.isdisjoint(module.split(".")[0] for module in imported(tree))


def test_only_the_command_line_names_the_packages_above():
    above = re.compile(r"speechkit\.(kws|asr|active_learning)[.:\w]*")
    naming = {
        name(path)
        for path in SOURCES
        if path.is_relative_to(ROOT / "speechkit")
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and above.fullmatch(node.value)
    }
    assert naming <= {"speechkit/cli.py"}


def test_packages_are_flat():
    flat = {ROOT / folder for folder in ALLOWED} | NESTED
    assert [name(path) for path in SOURCES if path.parent not in flat] == []


def test_only_what_trains_imports_lightning():
    trainers = {
        name(path)
        for path in SOURCES
        if any(module.split(".")[0] == "lightning" for module in imported(TREES[path]))
    }
    assert trainers <= TRAINERS


def test_the_root_module_holds_version_and_path_only():
    tree = TREES[ROOT / "speechkit" / "__init__.py"]
    kinds = [type(node) for node in tree.body]
    assert kinds == [ast.Expr, ast.ImportFrom, ast.Assign, ast.If]
    assert list(imported(tree)) == ["pathlib.Path"]


def public_functions(tree):
    """Yield (name, function, whether it is a method) of what a module offers."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, False
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    static = any(
                        getattr(d, "id", "") == "staticmethod" for d in method.decorator_list
                    )
                    yield f"{node.name}.{method.name}", method, not static


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_public_functions_of_many_arguments_name_some(path):
    unnamed = [
        label
        for label, function, method in public_functions(TREES[path])
        if len(function.args.posonlyargs + function.args.args) - method > POSITIONAL
        and not function.args.kwonlyargs
    ]
    assert unnamed == []


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipes_are_thin(path):
    loops = (ast.For, ast.While)
    nodes = list(ast.walk(TREES[path]))
    assert len(path.read_text(encoding="utf-8").splitlines()) <= RECIPE_LINES
    assert not any(isinstance(node, ast.ClassDef) for node in nodes)
    inner = [
        n for loop in nodes if isinstance(loop, loops) for n in ast.walk(loop) if n is not loop
    ]
    assert not any(isinstance(node, loops) for node in inner)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import speechkit.kws.detector", {"lightning", "librosa", "matplotlib"}),
        ("import speechkit.kernels", {"torch", "triton"}),
        ("import speechkit.reports, speechkit.errors, speechkit.files", {"torch", "numpy"}),
    ],
)
def test_imports_stay_light(statement, absent):
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert absent.isdisjoint(done.stdout.split())
