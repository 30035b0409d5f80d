"""A study as a module: what it optimises, how a trial is configured, and what is computed for it."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from specreg.studies.configuration import Run
from specreg.studies.errors import UsageError
from specreg.studies.expressions import unknown

if TYPE_CHECKING:
    import optuna

    from specreg.studies.worker import Report

Direction = Literal["maximize", "minimize"]
T = TypeVar("T")
DIRECTIONS: tuple[Direction, ...] = ("maximize", "minimize")
REQUIRED = frozenset({"OBJECTIVES", "configure"})


class StudyError(UsageError):
    """A study that cannot be used as asked: says what was given, what is allowed and what to do."""


@dataclass(frozen=True)
class Definition:
    """A study module, read and checked.

    `source` finds the module again in another process: its name in `specreg.studies`, or the absolute path of a file.
    `digest` is of the module's code, the search space being part of it; comments and layout do not count.
    """

    name: str
    source: str
    objectives: Mapping[str, Direction]
    repeats: int
    configure: Callable[[optuna.Trial], Run]
    evaluate: Callable[[Run, Report], Mapping[str, float]] | None  # None: train the run
    digest: str


def studies_available() -> tuple[str, ...]:
    """Names of the studies in this package: its modules that have OBJECTIVES and configure, found without importing."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple(shown_name(file.stem) for file in files if REQUIRED.issubset(top_level_names(file)))


def load_study(source: str) -> Definition:
    """The study of that name in `specreg.studies`, or in the Python file at that path.

    Raises `StudyError` where there is none, where it cannot be imported, and for each thing it has to have and has not.
    """
    is_path = source.endswith(".py") or "/" in source
    module = module_at(Path(source)) if is_path else module_named(source)
    return define(module, str(Path(source).resolve()) if is_path else source)


def define(module: ModuleType, source: str) -> Definition:
    """Check what a study module offers. Raises `StudyError` with the module's file in front."""
    file = Path(cast(str, module.__file__))
    try:
        return Definition(
            name=shown_name(file.stem),
            source=source,
            objectives=checked_objectives(getattr(module, "OBJECTIVES", None)),
            repeats=checked_repeats(getattr(module, "REPEATS", 1)),
            configure=checked_function(module, "configure", "trial"),
            evaluate=checked_function(module, "evaluate", "run", "report") if hasattr(module, "evaluate") else None,
            digest=code_digest(file.read_text(encoding="utf-8")),
        )
    except StudyError as error:
        raise StudyError(f"{file.name}: {error}") from None


def checked_objectives(objectives: Any) -> dict[str, Direction]:
    """OBJECTIVES as a table of direction by metric name, at least one."""
    form = 'a table such as OBJECTIVES = {"accuracy": "maximize"}'
    if not isinstance(objectives, Mapping) or not objectives:
        raise StudyError(f"a study needs {form}, got {objectives!r}")
    for metric, direction in objectives.items():
        if not isinstance(metric, str) or not metric:
            raise StudyError(f"the names in OBJECTIVES are metric names, got {metric!r}")
        if direction not in DIRECTIONS:
            raise StudyError(f"OBJECTIVES[{metric!r}]: {unknown('direction', str(direction), list(DIRECTIONS))}")
    return dict(objectives)


def checked_repeats(repeats: Any) -> int:
    """REPEATS as a number of seeds, at least one."""
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise StudyError(f"REPEATS is the number of seeds a trial, a whole number from 1, got {repeats!r}")
    return repeats


def checked_function(module: ModuleType, name: str, *parameters: str) -> Callable[..., Any]:
    """The module's function of that name, which must take exactly these arguments by position."""
    form = f"def {name}({', '.join(parameters)})"
    function = getattr(module, name, None)
    if not callable(function):
        raise StudyError(f"a study needs {form}, got {function!r}")
    try:
        inspect.signature(function).bind(*parameters)
    except TypeError as error:
        given = f"{name}{inspect.signature(function)}"
        raise StudyError(f"{given} cannot be called as {form}: {error}") from None
    return cast(Callable[..., Any], function)


def code_digest(code: str) -> str:
    """A hash of Python code that comments and layout do not change, 16 hexadecimal digits."""
    return hashlib.sha256(ast.unparse(ast.parse(code)).encode()).hexdigest()[:16]


def module_named(name: str) -> ModuleType:
    """The study module of that name in this package; "-" and "_" are the same."""
    if shown_name(name) not in studies_available():
        message = unknown("study", name, list(studies_available())) if studies_available() else f"no study {name!r}"
        raise StudyError(f"{message}; a study of your own is given by its path, as in ./{name}.py")
    return imported(name, lambda: importlib.import_module(f"specreg.studies.{name.replace('-', '_')}"))


def module_at(path: Path) -> ModuleType:
    """The study module in a file; modules beside it can be imported by it, installed ones coming first."""
    if not path.is_file():
        near = unknown("file", path.name, [file.name for file in path.parent.glob("*.py")])
        raise StudyError(f"{near} (in {path.parent})")
    path = path.resolve()
    name = f"specreg_study_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a path to a regular .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    loader = spec.loader
    imported(path.name, lambda: loader.exec_module(module))
    return module


def imported(name: str, run: Callable[[], T]) -> T:
    """Run an import; whatever it raises becomes a `StudyError` that names the study, its cause kept."""
    try:
        return run()
    except Exception as error:
        raise StudyError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def top_level_names(file: Path) -> set[str]:
    """Names that a Python file assigns or defines at its top level, read from the text."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names.update(assigned(node.targets if isinstance(node, ast.Assign) else [node.target]))
    return names


def assigned(targets: Iterable[ast.expr]) -> Iterable[str]:
    """The plain names among the targets of an assignment."""
    return (target.id for target in targets if isinstance(target, ast.Name))


def shown_name(module_name: str) -> str:
    """A module's name as it is written on the command line."""
    return module_name.replace("_", "-")
