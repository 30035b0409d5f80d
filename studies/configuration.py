"""A run as data: everything that decides what is trained, validated, and written as text that repeats it.

Imports no torch, so that a study's `configure` and the command line stay quick. The names in `model` and `task`
and their own settings are checked against the classes themselves when the run is built (`specreg.studies.building`).
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from dataclasses import asdict, fields, replace
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from specreg.studies.errors import UsageError
from specreg.studies.expressions import parse, unknown

Setting = str | bool | int | float
Settings = dict[str, Setting]
NONE = "none"  # how a setting is taken away in text: TOML has no word for it
STRICT = ConfigDict(extra="forbid", strict=False)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**12)]


class ConfigurationError(UsageError):
    """A setting that cannot be used: says which, what was given and what is allowed."""


@dataclass(frozen=True, config=STRICT)
class Optimiser:
    """AdamW with linear warm-up and a cosine to `final_share` of the rate; spectral parameters are never decayed."""

    learning_rate: Positive = 3e-3
    spectral_learning_rate: Positive | None = None  # None: the same as learning_rate
    weight_decay: NonNegative = 0.01
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05  # of all steps
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    clip_norm: NonNegative = 1.0  # largest norm of the gradient, that of spectral parameters apart; 0: none


@dataclass(frozen=True, config=STRICT)
class Budget:
    """How long and how often: steps, examples a step, and the steps between evaluations, spectra and checkpoints."""

    steps: Count = 600
    batch_size: Count = 32
    evaluation_batch_size: Count | None = None  # None: as many examples as fill 32,768 steps
    evaluate_every: Count = 100
    checkpoint_every: Count | None = None  # None: a tenth of the steps, at most 500
    patience: Count | None = None  # evaluations without a better validation score before stopping; None: never

    @property
    def checkpoint_interval(self) -> int:
        """Steps between checkpoints."""
        return self.checkpoint_every or min(500, -(-self.steps // 10))


@dataclass(frozen=True, config=STRICT)
class Run:
    """One training run, whole: the same object as `run.toml`, `specreg train` and a study's `configure`."""

    model: Settings
    task: Settings
    init: str | None = None  # target expression, e.g. "ring(0.9, 0.99)"
    penalties: tuple[str, ...] = ()  # with weight and schedule, e.g. "band(0.5, 1.0)*0.1@ramp(0, 100)"
    optimiser: Optimiser = Field(default_factory=Optimiser)
    budget: Budget = Field(default_factory=Budget)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = "cpu"
    autocast: bool = False  # bfloat16 where it is safe; spectra stay in float32
    compile: bool = False

    @field_validator("model", "task", mode="before")
    @classmethod
    def _spelt(cls, settings: Any) -> Any:
        """None in its spelling: whether a setting may be None, only the class that it goes to can tell."""
        if not isinstance(settings, dict):
            return settings
        return {key: NONE if value is None else value for key, value in settings.items()}

    @field_validator("model", "task")
    @classmethod
    def _named(cls, settings: Settings) -> Settings:
        if not isinstance(settings.get("name"), str):
            raise ValueError('needs a name, as in name = "lru"')
        if bad := [key for key, value in settings.items() if isinstance(value, float) and not math.isfinite(value)]:
            raise ValueError(f"{bad[0]} must be finite")
        return settings

    @model_validator(mode="after")
    def _expressions(self) -> Self:
        for text in self.penalties:
            parse(text)
        init = None if self.init is None else parse(self.init)
        if init is not None and (init.weight, init.schedule) != (None, None):
            raise ValueError(f"init takes a target without weight and schedule, got {self.init!r}")
        return self

    def to_json(self) -> str:
        """One line of JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Run:
        """The run of `to_json`. Raises `ConfigurationError` naming the key that cannot be used."""
        return cls.from_mapping(json.loads(text))

    @classmethod
    def from_mapping(cls, data: dict[str, Any]) -> Run:
        """A run from nested tables, as read from TOML or JSON; `none` takes away a setting that may be left out."""
        tables = {name: without_none(TABLES[name], data[name]) for name in TABLES if isinstance(data.get(name), dict)}
        try:
            return TypeAdapter(cls).validate_python(without_none(cls, {**data, **tables}))
        except ValidationError as error:
            raise ConfigurationError(explain(error)) from None

    def to_toml(self) -> str:
        """The whole configuration as TOML, defaults included; settings that are off (None) are left out."""
        return toml(asdict(self))

    @classmethod
    def from_toml(cls, text: str) -> Run:
        """The run of `to_toml`."""
        try:
            return cls.from_mapping(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"not TOML: {error}") from None

    def digest(self) -> str:
        """A short hash of everything but the seed, the device and where data lies: repeats and machines share it."""
        task = {key: value for key, value in self.task.items() if key != "data"}
        same = replace(self, seed=0, device="cpu", task=task)
        return hashlib.sha256(same.to_json().encode()).hexdigest()[:16]

    def differences(self, other: Run) -> list[str]:
        """The settings in which two runs differ, where data lies and the device left out."""
        mine, theirs = asdict(self), asdict(other)
        names = sorted({*settings_of(mine), *settings_of(theirs)} - {"task.data", "device"})
        return [name for name in names if _at(mine, name) != _at(theirs, name)]

    def updated(self, path: str, value: Any) -> Run:
        """The run with one setting changed, addressed as in `optimiser.learning_rate` or `model.d_state`."""
        data = asdict(self)
        table, _, key = path.partition(".")
        if not key:
            if table not in data or isinstance(data[table], dict):
                raise ConfigurationError(unknown("setting", path, settings_of(data)))
            return Run.from_mapping({**data, table: value})
        if not isinstance(data.get(table), dict):
            raise ConfigurationError(
                unknown("table of settings", table, [k for k, v in data.items() if isinstance(v, dict)])
            )
        return Run.from_mapping({**data, table: {**data[table], key: value}})


def settings_of(data: dict[str, Any]) -> list[str]:
    """Every setting by its whole name, as in `budget.steps`."""
    names = []
    for key, value in data.items():
        names += [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key]
    return names


def toml(data: dict[str, Any]) -> str:
    """Nested tables of plain values as TOML; every JSON string is a TOML basic string."""
    lines = [
        f"{key} = {_value(value)}" for key, value in data.items() if value is not None and not isinstance(value, dict)
    ]
    for name, table in data.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]"]
            lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items() if value is not None]
    return "\n".join(lines) + "\n"


TABLES: dict[str, type] = {"optimiser": Optimiser, "budget": Budget}


def without_none(cls: Any, table: dict[str, Any]) -> dict[str, Any]:
    """The settings of a class, `none` as None for those that are None by default."""
    optional = {field.name for field in fields(cls) if field.default is None}
    return {key: None if value == NONE and key in optional else value for key, value in table.items()}


def explain(error: ValidationError) -> str:
    """pydantic's findings in one line: key, what is wrong, what was given."""
    findings = []
    for finding in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in finding["loc"]) or "run"
        message = finding["msg"].removeprefix("Value error, ")
        if finding["type"] == "unexpected_keyword_argument":
            *table, key = finding["loc"]
            owner = TABLES.get(str(table[0]) if table else "", Run)
            findings.append(f"{where}: {unknown('setting', str(key), [field.name for field in fields(owner)])}")
        elif finding["type"] == "value_error":
            findings.append(f"{where}: {message}" if finding["loc"] else message)
        else:
            findings.append(f"{where}: {message[0].lower()}{message[1:]}, got {finding['input']!r}")
    return "; ".join(findings)


def _at(data: dict[str, Any], name: str) -> Any:
    table, _, key = name.partition(".")
    value = data.get(table)
    return value.get(key) if key and isinstance(value, dict) else value


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
