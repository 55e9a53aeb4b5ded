"""What `pip install` takes, compared with the tree."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import speechkit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
NOT_INSTALLED = {"tests", "recipes", "build", "dist", "out"}

# import names that are not those of their distributions
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "espeakng_loader": "espeakng-loader"}


def folder_of(package):
    return ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))


def sources():
    """Yield all Python files of the tree that are there to be installed."""
    for folder in sorted(path for path in ROOT.iterdir() if path.is_dir()):
        if not folder.name.startswith(".") and folder.name not in NOT_INSTALLED:
            yield from sorted(folder.rglob("*.py"))


def test_every_package_has_its_folder():
    missing = [p for p in SETUPTOOLS["packages"] if not (folder_of(p) / "__init__.py").is_file()]
    assert missing == []


def test_every_file_belongs_to_a_package():
    folders = {folder_of(package) for package in SETUPTOOLS["packages"]}
    assert [path for path in sources() if path.parent not in folders] == []


def test_data_that_packages_read_is_installed():
    data = SETUPTOOLS["package-data"]
    for package in SETUPTOOLS["packages"]:
        own = {
            path.name
            for pattern in data.get(package, [])
            for path in folder_of(package).glob(pattern)
        }
        there = {path.name for path in folder_of(package).glob("*.json")}
        assert there <= own, package


def test_mypy_checks_every_package():
    # a package that lies in its parent's folder is found with the parent
    apart = {p for p in SETUPTOOLS["packages"] if "." not in p or p in SETUPTOOLS["package-dir"]}
    assert set(PROJECT["tool"]["mypy"]["packages"]) == apart


@pytest.mark.parametrize("package", sorted(SETUPTOOLS["package-dir"]))
def test_links_for_static_tools_and_imports_lead_to_the_same_folder(package):
    folder = folder_of(package)
    link = ROOT / ".links" / package.replace(".", "/")
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == folder.resolve()
    assert list(__import__(package, fromlist=["_"]).__path__) == [str(folder)]


def test_there_is_no_other_link():
    links = {path.name for path in (ROOT / ".links" / "speechkit").iterdir()}
    assert links == {package.partition(".")[2] for package in SETUPTOOLS["package-dir"]}


def test_the_version_has_one_source():
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "speechkit.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", speechkit.__version__)
    naming = [p for p in sources() if f'"{speechkit.__version__}"' in p.read_text(encoding="utf-8")]
    assert naming == [ROOT / "speechkit" / "__init__.py"]


def test_the_installed_version_is_that_of_the_tree():
    try:
        installed = metadata.version(PROJECT["project"]["name"])
    except metadata.PackageNotFoundError:
        pytest.skip("not installed: this is a plain checkout")
    assert installed == speechkit.__version__


def test_the_command_is_there():
    module, _, function = PROJECT["project"]["scripts"]["speechkit"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_every_import_is_a_declared_dependency():
    extras = PROJECT["project"]["optional-dependencies"]
    requirements = [*PROJECT["project"]["dependencies"], *(r for e in extras.values() for r in e)]
    declared = {re.match(r"[\w.-]+", r)[0].lower().replace("_", "-") for r in requirements}
    undeclared = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for first in {module.split(".")[0] for module in modules}:
                name = DISTRIBUTIONS.get(first, first.replace("_", "-"))
                if first not in sys.stdlib_module_names | {"speechkit"} and name not in declared:
                    undeclared.add(first)
    assert undeclared == set()
