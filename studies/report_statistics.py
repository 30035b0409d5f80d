"""Statistics of a search: means over seeds, correlations with intervals, parameter importances, fronts."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from scipy import stats

from specreg.studies.storage import quiet_optuna

Group = Literal["architecture", "spectrum", "training"]
LEVEL = 0.95
FANOVA_LIMIT = 100  # trials: beyond, fANOVA takes minutes
TRIALS_A_PARAMETER = 10  # fewer, and importances are not to be relied on
FEWEST_TRIALS = 30
FEWEST_PAIRS = 6  # trials; fewer, and a correlation is not to be relied on
EXACT = 8  # trials up to which every pairing is counted: 8! = 40,320
PAIRINGS = 9_999  # drawn beyond; p is at least 1/10,000
ASYMPTOTIC = 200  # trials; beyond, the t approximation holds
DUMMIES = 20  # made-up parameters that do nothing, whose importance is the floor


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with the sample standard deviation, None for one seed."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Of at least one finite value."""
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), deviation, len(values))


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ of a spectral statistic with the score over completed trials."""

    statistic: str
    count: int
    rho: float
    low: float | None  # interval of level LEVEL; None where there is none
    high: float | None
    p_value: float  # Holm-corrected over the table
    partial: float | None  # ρ with the controls held fixed; None: too few trials, or nothing left to vary
    partial_low: float | None
    partial_high: float | None

    @property
    def enough(self) -> bool:
        """Whether there are FEWEST_PAIRS trials."""
        return self.count >= FEWEST_PAIRS


@dataclass(frozen=True)
class Importance:
    """A parameter's share of the explained variance of the score."""

    parameter: str
    group: Group
    share: float


@dataclass(frozen=True)
class Importances:
    """Shares by parameter, largest first, and what they are worth."""

    method: str
    entries: tuple[Importance, ...]
    floor: float  # share that a parameter without effect gets, 95th percentile
    trials: int
    reliable: bool

    def by_group(self) -> dict[Group, float]:
        """The shares summed over each group, largest first."""
        sums: dict[Group, float] = {}
        for entry in self.entries:
            sums[entry.group] = sums.get(entry.group, 0.0) + entry.share
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class Sample:
    """What the importance of parameters is computed from: one completed trial."""

    parameters: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    loss: float  # to be low


# Correlation


def interval(rho: float, count: int, controls: int = 0) -> tuple[float, float] | tuple[None, None]:
    """An interval for Spearman's ρ: tanh(atanh ρ ± z √((1 + ρ²/2)/(n − 3 − controls))).

    Source: Bonett and Wright, Sample size requirements for estimating Pearson, Kendall and Spearman correlations,
    Psychometrika 65, 2000. None where n − controls is below 5 or |ρ| is 1, of which the formula makes a point.
    """
    if abs(rho) > 1 - 1e-9 or count - controls < 5:
        return None, None
    error = math.sqrt((1 + rho**2 / 2) / (count - 3 - controls))
    z = float(stats.norm.ppf(0.5 + LEVEL / 2)) * error
    return math.tanh(math.atanh(rho) - z), math.tanh(math.atanh(rho) + z)


def p_value(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Two-sided p of Spearman's ρ under independence: the share of pairings of x and y whose |ρ| is as large.

    Every pairing up to EXACT trials, PAIRINGS random ones (the same on each call) up to ASYMPTOTIC, beyond Student's t.
    """
    if len(x) > ASYMPTOTIC:
        return float(stats.spearmanr(x, y).pvalue)
    centred = [stats.rankdata(values) - (len(x) + 1) / 2 for values in (x, y)]  # quarters: their sums are exact

    def strength(ranks: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        product: NDArray[np.float64] = np.abs(np.sum(ranks * centred[1], axis=axis))
        return product

    found = stats.permutation_test(
        (centred[0],),
        strength,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=math.factorial(EXACT) if len(x) <= EXACT else PAIRINGS,
        alternative="greater",
        random_state=np.random.default_rng(0),  # called `rng` from scipy 1.15 on, which takes this name too
    )
    return float(found.pvalue)


def correlations(
    statistics: Mapping[str, Sequence[float]],
    score: Sequence[float],
    controls: NDArray[np.float64],  # (trials, k)
) -> tuple[Correlation, ...]:
    """ρ of each statistic with the score, strongest first; statistics that do not vary are left out."""
    found = []
    for name, values in statistics.items():
        x, y = np.asarray(values, dtype=float), np.asarray(score, dtype=float)
        kept = np.isfinite(x) & np.isfinite(y)
        count = int(kept.sum())
        if count < 4 or np.ptp(x[kept]) == 0 or np.ptp(y[kept]) == 0:
            continue
        rho = float(np.clip(stats.spearmanr(x[kept], y[kept]).statistic, -1, 1))
        low, high = interval(rho, count)
        held, held_low, held_high = partial(x[kept], y[kept], controls[kept])
        chance = p_value(x[kept], y[kept])
        found.append(Correlation(name, count, rho, low, high, chance, held, held_low, held_high))
    corrected = holm([entry.p_value for entry in found])
    whole = [Correlation(**{**vars(c), "p_value": p}) for c, p in zip(found, corrected, strict=True)]
    return tuple(sorted(whole, key=lambda entry: -abs(entry.rho)))


def partial(
    x: NDArray[np.float64], y: NDArray[np.float64], controls: NDArray[np.float64]
) -> tuple[float | None, float | None, float | None]:
    """Spearman's ρ of x and y with the ranks of the controls regressed out of both, and its interval."""
    ranks = [stats.rankdata(column) for column in controls.T if np.ptp(column) > 0]
    design = np.column_stack([np.ones(len(x)), *ranks])
    held = int(np.linalg.matrix_rank(design)) - 1
    if held == 0 or len(x) - held < 4:
        return None, None, None
    residuals = []
    for values in (x, y):
        rank = stats.rankdata(values)
        residual = rank - design @ np.linalg.lstsq(design, rank, rcond=None)[0]
        if np.linalg.norm(residual) < 1e-9 * np.linalg.norm(rank):
            return None, None, None
        residuals.append(residual)
    rho = float(np.clip(np.corrcoef(*residuals)[0, 1], -1, 1))
    return rho, *interval(rho, len(x), held)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of p-values for the number of tests (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    corrected, running = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values)):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = running
    return corrected


# Importance


def importances(samples: Sequence[Sample], group_of: Callable[[str], Group]) -> Importances | None:
    """fANOVA where every trial has the same parameters and there are at most FANOVA_LIMIT, else PED-ANOVA.

    The floor is the 95th percentile of the share that a parameter drawn at random, which does nothing, is given.
    None where nothing can be compared: fewer than four trials, equal scores, or fewer than two parameters that vary.
    Sources: Hutter et al., ICML 2014 (fANOVA); Watanabe et al. 2023, arXiv 2304.10255 (PED-ANOVA).
    """
    names = sorted({name for sample in samples for name in sample.parameters})
    varied = [name for name in names if len({repr(s.parameters.get(name)) for s in samples}) > 1]
    if len(samples) < 4 or len({sample.loss for sample in samples}) < 2 or len(varied) < 2:
        return None
    same = all(set(sample.parameters) == set(names) for sample in samples)
    evaluator: BaseImportanceEvaluator
    if same and len(samples) <= FANOVA_LIMIT:
        method, evaluator = "fANOVA", FanovaImportanceEvaluator(n_trees=32, seed=0)
    else:
        method, evaluator = "PED-ANOVA", PedAnovaImportanceEvaluator()
    found = evaluated(samples, evaluator)
    floor = dummy_floor(samples, evaluator)
    entries = [Importance(name, group_of(name), share) for name, share in found.items()]
    enough = len(samples) >= max(FEWEST_TRIALS, TRIALS_A_PARAMETER * len(varied))
    entries.sort(key=lambda entry: -entry.share)
    return Importances(method, tuple(entries), floor, len(samples), enough)


def evaluated(samples: Sequence[Sample], evaluator: BaseImportanceEvaluator) -> dict[str, float]:
    """Shares that sum to 1, from Optuna's evaluator on a study in memory."""
    with quiet_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few trials: the caller says so in its own words
        study = optuna.create_study(direction="minimize")
        for sample in samples:
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(sample.parameters), distributions=dict(sample.distributions), value=sample.loss
                )
            )
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    shares = {name: float(share) if math.isfinite(share) else 0.0 for name, share in found.items()}
    total = sum(shares.values())
    return {name: share / total if total > 0 else 0.0 for name, share in shares.items()}


def dummy_floor(samples: Sequence[Sample], evaluator: BaseImportanceEvaluator) -> float:
    """What a parameter without effect gets from this many trials: 95th percentile over DUMMIES random ones."""
    names = {name for sample in samples for name in sample.parameters}
    dummy = "dummy" + "_" * max((len(name) for name in names), default=0)
    draws = np.random.default_rng(0).random((DUMMIES, len(samples)))
    shares = [
        evaluated(
            [
                Sample(
                    {**sample.parameters, dummy: float(value)},
                    {**sample.distributions, dummy: FloatDistribution(0, 1)},
                    sample.loss,
                )
                for sample, value in zip(samples, row, strict=True)
            ],
            evaluator,
        ).get(dummy, 0.0)
        for row in draws
    ]
    return float(np.quantile(shares, 0.95))


# Which parameters are spectral

_SPECTRAL = {
    "eigenvalue", "eigenvalues", "init", "initial", "initialisation", "modulus", "penalties", "penalty", "phase",
    "radius", "ring", "spectral", "spectrum", "target", "timescale",
}  # fmt: skip
_TRAINING = {"batch", "budget", "clip", "decay", "epochs", "learning", "lr", "optimiser", "rate", "steps", "warmup"}
_OFF = {"none", "off", "no", "published", "false"}


def group_by_landing(runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Callable[[str], Group]:
    """Where in the `Run` a parameter's values land decides its group; its name decides where they land nowhere.

    Takes (parameters, run as nested tables) of each trial. `init`, `penalties` and the spectral learning rate are
    spectrum; `optimiser` and `budget` are training; `model` is architecture.
    """

    def group_of(name: str) -> Group:
        having = [(parameters[name], run) for parameters, run in runs if name in parameters]
        if len({repr(value) for value, _ in having}) > 1:
            for group, lands in _LANDINGS:
                if all(lands(value, run) for value, run in having):
                    return group
        return group_by_name(name)

    return group_of


def group_by_name(name: str) -> Group:
    """A parameter's group from the words of its name: `init.r_min` and `penalty_weight` are spectrum."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    if _SPECTRAL & set(words) or (words[:1] == ["weight"] and words[1:2] not in ([], ["decay"])):
        return "spectrum"
    return "training" if _TRAINING & set(words) else "architecture"


def _in_spectral_text(value: Any, run: Mapping[str, Any]) -> bool:
    texts = [*(run.get("penalties") or ()), *([run["init"]] if run.get("init") else [])]
    if isinstance(value, str):
        word = value.lower().replace("-", "_")
        return (not texts and word in _OFF) or any(word in text for text in texts)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    numbers = [float(found) for text in texts for found in re.findall(r"(?<![\w.])[-+]?\d+\.?\d*(?:e[-+]?\d+)?", text)]
    return any(math.isclose(value, number, rel_tol=1e-3) for number in numbers)


def _in_table(table: str, key: str | None = None) -> Callable[[Any, Mapping[str, Any]], bool]:
    def lands(value: Any, run: Mapping[str, Any]) -> bool:
        settings: Mapping[str, Any] = run.get(table) or {}
        entries = settings.values() if key is None else [settings.get(key)]
        return any(type(entry) is type(value) and entry == value for entry in entries)

    return lands


_LANDINGS: tuple[tuple[Group, Callable[[Any, Mapping[str, Any]], bool]], ...] = (
    ("spectrum", _in_table("optimiser", "spectral_learning_rate")),
    ("architecture", _in_table("model")),
    ("training", _in_table("optimiser")),
    ("training", _in_table("budget")),
    ("spectrum", _in_spectral_text),
)


# Fronts


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:  # both to be low
    """Whether each point is dominated by no other: none is at least as low in both and lower in one."""
    return [not any(a <= x and b <= y and (a < x or b < y) for a, b in points) for x, y in points]
