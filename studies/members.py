"""What there is: models, tasks, targets and penalties, found by looking into the packages. Imports torch when asked."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from types import ModuleType


def models() -> dict[str, type]:
    """Mixers by name: models/mamba2.py is "mamba2"."""
    from specreg.models.mixer import Mixer

    return _one_a_module(importlib.import_module("specreg.models"), Mixer)


def tasks() -> dict[str, type]:
    """Tasks by name: tasks/cifar10_gray.py is "cifar10-gray"."""
    from specreg.tasks.task import Task

    return _one_a_module(importlib.import_module("specreg.tasks"), Task)


def targets() -> dict[str, type]:
    """Target spectra by name: LogUniformTimescale is "log_uniform_timescale"."""
    from specreg import targets as module

    return _concrete(module, module.Target)


def penalties() -> dict[str, type]:
    """Penalties by name: TimescaleDistance is "timescale_distance"."""
    from specreg import penalties as module

    return _concrete(module, module.Penalty)


def schedules() -> dict[str, type]:
    """Schedules of a term's weight by name: Ramp is "ramp"."""
    from specreg import terms as module

    return {"constant": module.Constant, "ramp": module.Ramp}


def canonical(name: str) -> str:
    """The name as listed: `pseudo_lti_mamba2` and `pseudo-lti-mamba2` are the same."""
    return name.replace("_", "-")


def summary(member: type) -> str:
    """The first sentence of a member's docstring."""
    return (inspect.getdoc(member) or "").split("\n\n")[0].replace("\n", " ")


def _one_a_module(package: ModuleType, base: type) -> dict[str, type]:
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for member in _concrete(module, base).values():
            found[canonical(info.name)] = member
    return found


def _concrete(module: ModuleType, base: type) -> dict[str, type]:
    """Classes defined in `module`, or in a package below it, that are a `base` and can be made, by snake-case name."""
    return {
        snake_case(name): member
        for name, member in vars(module).items()
        if inspect.isclass(member)
        and issubclass(member, base)
        and f"{member.__module__}.".startswith(f"{module.__name__}.")
        and not inspect.isabstract(member)
    }


def snake_case(name: str) -> str:
    """LogUniformTimescale → log_uniform_timescale, S4DLin → s4d_lin."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
