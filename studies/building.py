"""From a run's text to what is trained: task, model, loss terms, optimiser. Here every name and setting is checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from pydantic import ConfigDict, ValidationError, create_model

from specreg.estimators import AppliedOperator, AppliedSystem, Estimator, Exact, Lyapunov
from specreg.models.backbone import Backbone
from specreg.models.last_state_decoder import LastStateDecoder
from specreg.models.mixer import Mixer
from specreg.models.two_towers import TwoTowers
from specreg.penalties import Penalty
from specreg.studies import members
from specreg.studies.configuration import NONE, ConfigurationError, Optimiser, Run, explain
from specreg.studies.data_files import require
from specreg.studies.expressions import build, parse, unknown
from specreg.targets import Target
from specreg.tasks.task import Task
from specreg.terms import Constant, Term

T = TypeVar("T")
D_MODEL, DEPTH = 64, 2  # where a run does not say
WIDEST = 2**16
PARAMETER_TOLERANCE = 0.1  # a parameter budget is met to ±10 %


@dataclass(frozen=True)
class Parts:
    """Everything that a run names, made."""

    task: Task
    model: Backbone
    terms: tuple[Term, ...]
    target: Target | None  # of the first penalty that has one, or else of the initialisation
    device: torch.device


def build_parts(run: Run) -> Parts:
    """Make a run's task, model and terms; raises `ConfigurationError` for a name or setting that cannot be used.

    The user's random state stays untouched: parameters are drawn from the run's own seed.
    """
    device = usable_device(run.device)
    task = build_task(run)
    require(task)
    terms = build_terms(run.penalties)
    init = None if run.init is None else build_target(run.init)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = make_checked(lambda: build_model(run, task, init))  # a task's sizes may stand in its files
    aims = [getattr(term.penalty, "target", None) for term in terms]
    target = next((aim for aim in [*aims, init] if aim is not None), None)
    return Parts(task, model.to(device), terms, target, device)


def build_task(run: Run) -> Task:
    """The task that a run names, with its settings and data seed."""
    return make_task({"seed": run.data_seed, **run.task})


def make_task(settings: Mapping[str, Any]) -> Task:
    """The task of a name and settings, as `task_settings` gives them."""
    cls = named("task", str(settings["name"]), members.tasks())
    return make("task", cls, {key: value for key, value in settings.items() if key != "name"})  # type: ignore[no-any-return]


def task_settings(text: str) -> dict[str, Any]:
    """What `NAME` or `NAME:PRESET` stands for: the name, and the settings in which the preset is no default."""
    name, _, preset = text.partition(":")
    if not preset:
        return {"name": text}
    cls = named("task", name, members.tasks())
    presets: Mapping[str, Task] = cls.presets()
    if preset not in presets:
        raise ConfigurationError(unknown(f"preset of {name}", preset, presets))
    settings = {field.name: getattr(presets[preset], field.name) for field in fields(cls) if field.name != "seed"}
    defaults = defaults_of(cls)
    changed = {key: value for key, value in settings.items() if value != defaults.get(key)}
    return {"name": name} | {key: NONE if value is None else value for key, value in changed.items()}


def build_target(text: str) -> Target:
    """The target of an expression such as `ring(0.9, 0.99)`."""
    target = _expressed(text, members.targets(), "target")
    if not isinstance(target, Target):
        raise ConfigurationError(f"{text!r} is not a target")
    return target


def build_terms(penalties: tuple[str, ...]) -> tuple[Term, ...]:
    """A loss term for each expression such as `band(0.5, 1.0)*0.1@ramp(0, 100)`; weight 1 by default."""
    terms = []
    for text in penalties:
        penalty = _expressed(text, {**members.targets(), **members.penalties()}, "penalty")
        if isinstance(penalty, Target):
            name = parse(text).name
            raise ConfigurationError(f"{text!r} is a target: as a penalty write timescale_distance({name}(…))")
        found = parse(text)
        weight = 1.0 if found.weight is None else found.weight
        schedule = Constant()
        if found.schedule is not None:
            schedule = make_checked(partial(build, found.schedule, members.schedules(), "schedule"))
        terms.append(make_checked(partial(Term, text, estimator_for(text, penalty), penalty, weight, schedule)))
    return tuple(terms)


def estimator_for(text: str, penalty: Penalty) -> Estimator[Any]:
    """What finds that which a penalty takes, of the systems that our models hand out."""
    for estimator in (Exact(), AppliedSystem(), AppliedOperator(), Lyapunov(1)):
        if issubclass(estimator.gives, penalty.takes):
            return estimator
    raise ConfigurationError(
        f"{text!r} takes a {penalty.takes.__name__}, which models do not hand out: build a Term with its own estimator"
    )


def build_model(run: Run, task: Task, init: Target | None) -> Backbone:
    """The backbone with a run's mixer; `model.parameters` asks for a budget, and d_model is found to meet it."""
    settings = dict(run.model)
    cls = named("model", str(settings.pop("name")), members.models())
    budget = settings.pop("parameters", None)
    if budget is None:
        return assemble(cls, settings, task, init)
    if not isinstance(budget, int) or budget < 1 or "d_model" in settings:
        raise ConfigurationError("model.parameters is a count of at least 1, given in place of model.d_model")
    heads = settings.get("heads", 4)
    unit = heads if isinstance(heads, int) and heads > 0 else 1  # what else it may be, the mixer itself refuses

    def count(width: int) -> int:
        with torch.device("meta"):  # shapes alone: no memory, no random numbers
            return count_parameters(assemble(cls, {**settings, "d_model": width * unit}, task, None))

    return assemble(cls, {**settings, "d_model": width_for(budget, count) * unit}, task, init)


def width_for(budget: int, count: Callable[[int], int]) -> int:
    """The width whose parameter count, which grows with it, comes nearest to a budget; raises beyond ±10 %."""
    low, high = 1, 2
    while count(high) < budget and high < WIDEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < budget else (low, middle)
    best = min((low, high), key=lambda width: abs(count(width) - budget))
    if abs(count(best) - budget) > PARAMETER_TOLERANCE * budget:
        raise ConfigurationError(
            f"model.parameters: no width comes within 10 % of {budget:,}; the nearest has {count(best):,}"
        )
    return best


def assemble(cls: type[Mixer], settings: Mapping[str, Any], task: Task, init: Target | None) -> Backbone:
    """`depth` mixers in a backbone; each setting goes to the one whose constructor has it."""
    settings = {"d_model": D_MODEL, **settings}
    depth = settings.pop("depth", DEPTH)
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
        raise ConfigurationError(f"model.depth: a number of layers of at least 1, got {depth!r}")
    shared = {key: settings.pop(key) for key in BACKBONE_SETTINGS if key in settings}
    fixed: dict[str, Any] = {
        "num_classes": task.num_classes,
        "max_length": task.max_length,
        "vocab_size": task.vocab_size,
        "channels": task.channels,
        "per_position": task.per_position,
    }
    mixers = [make("model", cls, settings, also=("depth", "parameters", *BACKBONE_SETTINGS)) for _ in range(depth)]
    if init is not None:
        for mixer in mixers:
            make_checked(partial(mixer.initialise, init))
    backbone = TwoTowers if task.towers == 2 else LastStateDecoder if task.from_last_state else Backbone
    model = make("model", partial(backbone, mixers, **fixed), shared, signature_of=Backbone)
    assert isinstance(model, Backbone)
    return model


BACKBONE_SETTINGS = ("mlp_ratio", "norm", "positions", "dropout", "tied")


def left_at_default(run: Run) -> dict[str, Any]:
    """The settings of model and task that a run does not give, as `model.d_state`, without those that are off."""
    model = named("model", str(run.model["name"]), members.models())
    task = named("task", str(run.task["name"]), members.tasks())
    backbone = {key: value for key, value in defaults_of(Backbone).items() if key in BACKBONE_SETTINGS}
    width = {} if "parameters" in run.model else {"d_model": D_MODEL}  # else it is found to meet that budget
    tables = {
        "model": {**width, "depth": DEPTH, **defaults_of(model), **backbone},
        "task": {key: value for key, value in defaults_of(task).items() if key != "seed"},  # that is data_seed
    }
    given = {"model": run.model, "task": run.task}
    return {
        f"{table}.{key}": value
        for table, defaults in tables.items()
        for key, value in defaults.items()
        if key not in given[table] and value is not None
    }


def defaults_of(cls: type) -> dict[str, Any]:
    """The settings that a constructor does not need to be given."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in HANDED_IN and p.default is not p.empty}


def named(kind: str, name: str, known: Mapping[str, type]) -> Any:
    """The member of that name; an unknown one is answered with its nearest neighbours."""
    try:
        return known[members.canonical(name)]
    except KeyError:
        raise ConfigurationError(unknown(kind, name, known)) from None


def make(
    table: str,
    cls: Callable[..., Any],
    settings: Mapping[str, Any],
    also: tuple[str, ...] = (),
    signature_of: Any = None,
) -> Any:
    """Call `cls` with settings checked against its signature: unknown names get their nearest, types are converted.

    The word `none` is None where a setting may be None.
    """
    signature = signature_of or cls
    hints = get_type_hints(signature.__init__)
    parameters = inspect.signature(signature).parameters
    allowed = {name: p for name, p in parameters.items() if name in hints and name not in HANDED_IN}
    for key in settings:
        if key not in allowed:
            raise ConfigurationError(f"{table}.{key}: {unknown('setting', key, [*allowed, *also])}")
    settings = {key: None if value == NONE and admits_none(hints[key]) else value for key, value in settings.items()}
    fields: dict[str, Any] = {key: (hints[key], ...) for key in settings}
    form = create_model("Settings", __config__=ConfigDict(extra="forbid"), **fields)
    try:
        checked = form(**settings)
    except ValidationError as error:
        raise ConfigurationError("; ".join(f"{table}.{finding}" for finding in explain(error).split("; "))) from None
    return make_checked(lambda: cls(**{key: getattr(checked, key) for key in settings}))


def admits_none(hint: Any) -> bool:
    """Whether a type has None among its values, and not the word for it too."""
    choices = get_args(hint)
    return type(None) in choices and not any(NONE in get_args(choice) for choice in choices)


HANDED_IN = ("self", "init", "mixers", "return")


def make_checked(maker: Callable[[], T]) -> T:
    """Call a constructor or reader; its error, or a missing file, becomes one of configuration, word for word."""
    try:
        return maker()
    except ConfigurationError:
        raise
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise ConfigurationError(str(error)) from error


def optimiser_groups(model: Backbone, settings: Optimiser) -> list[dict[str, Any]]:
    """AdamW's groups: matrices with decay, vectors without, spectral parameters without and at their own rate.

    Weight decay is a hidden spectral regulariser: on a log rate or a Δ bias it drags every modulus to a fixed value.
    """
    spectral = {id(p) for mixer in model.mixers() for p in mixer.spectral_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    rate = settings.learning_rate
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in trained if id(p) not in spectral and p.dim() > 1],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in trained if id(p) not in spectral and p.dim() <= 1], "weight_decay": 0.0},
        {"params": [p for p in trained if id(p) in spectral], "weight_decay": 0.0},
    ]
    for group, own in zip(groups, (rate, rate, settings.spectral_learning_rate or rate), strict=True):
        group["lr"] = group["peak"] = own
        group["spectral"] = group is groups[-1]
    return [group for group in groups if group["params"]]


def count_parameters(model: torch.nn.Module) -> int:
    """Trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def usable_device(name: str) -> torch.device:
    """The device of that name, if this machine has it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigurationError(f"device {name!r}: write cpu, cuda or cuda:N") from None
    if device.type == "cpu" and device.index is not None:
        raise ConfigurationError(f"device {name!r}: write cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device 'cuda': this machine has no usable GPU; use cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigurationError(f"device {name!r}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device {name!r}: write cpu, cuda or cuda:N")
    return device


def _expressed(text: str, classes: Mapping[str, type], kind: str) -> Any:
    return make_checked(lambda: build(parse(text), classes, kind))
