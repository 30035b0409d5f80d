"""The packages' import table, checked on the sources' syntax trees, and what stays out of the command line's way."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"specreg": "specreg", "models": "specreg.models", "tasks": "specreg.tasks", "studies": "specreg.studies"}
ALLOWED = {  # of our own packages, beside itself
    "specreg": set(),
    "models": {"specreg"},
    "tasks": set(),
    "studies": {"specreg", "models", "tasks"},
}


def sources() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names if module in ("specreg",))


def package_of(module: str) -> str | None:
    """The folder that a module of ours lies in."""
    for folder in ("models", "tasks", "studies"):
        if module == f"specreg.{folder}" or module.startswith(f"specreg.{folder}."):
            return folder
    return "specreg" if module == "specreg" or module.startswith("specreg.") else None


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_table(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    for module in imported(ast.parse(path.read_text())):
        assert module.split(".")[0] not in ("models", "tasks", "studies", "tests"), f"{path}: import specreg.… instead"
        package = package_of(module)
        if package is not None and not (package == "specreg" and module == "specreg"):
            assert package == own or package in ALLOWED[own], f"{path}: {own} may not import {module}"


def test_core_needs_only_numerics() -> None:
    allowed = {"torch", "numpy", "scipy", "specreg"} | set(sys.stdlib_module_names)
    for path in (ROOT / "specreg").rglob("*.py"):
        for module in imported(ast.parse(path.read_text())):
            top = module.split(".")[0]
            testing = "testing" in path.parts and top in ("pytest", "safetensors")
            assert top in allowed or testing, f"{path}: specreg may not import {module}"


def test_every_package_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join([FOLDERS[path.relative_to(ROOT).parts[0]], *path.relative_to(ROOT).parts[1:-1]])
        for path in sources()
        if path.name == "__init__.py"
    }
    assert listed == found


@pytest.mark.parametrize(
    "arguments",
    [[], ["list"], ["train"], ["eval"], ["spectrum"], ["study"], ["study", "run"], ["study", "report"]],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['specreg', *{arguments!r}, '--help']\n"
        "from specreg.studies.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'scipy', 'optuna', 'numpy', 'plotly', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_import_specreg_imports_nothing_heavy() -> None:
    code = "import specreg, sys; assert not {'torch', 'scipy', 'optuna', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_studies_configure_without_torch() -> None:
    code = "import specreg.studies.digits, specreg.studies.commands, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_mention_of_a_time_step_index_in_the_models() -> None:
    """Indexing x[:, t] in a loop has a quadratic backward: sequences are unbound, chunked or scanned instead."""
    for path in (ROOT / "models").glob("*.py"):
        for loop in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.For)):
            names = {name.id for name in ast.walk(loop.target) if isinstance(name, ast.Name)}
            for node in ast.walk(loop):
                if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and len(node.slice.elts) == 2:
                    second = node.slice.elts[1]
                    assert not (isinstance(second, ast.Name) and second.id in names), f"{path}:{node.lineno}"
