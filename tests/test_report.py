"""Reports: statistics against direct computations, a study that trained, damaged files, and names that mean harm."""

import io
import itertools
import json
import math
import re
import shlex
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from rich.console import Console
from scipy import stats

from specreg.spectrum import log_timescale
from specreg.studies import report_figures, report_markdown, report_page, report_terminal, spectrum_report
from specreg.studies.configuration import ConfigurationError
from specreg.studies.definition import StudyError, load_study
from specreg.studies.driver import run_study
from specreg.studies.recorded_spectra import BINS, EDGES, Head, Values, shares
from specreg.studies.recording import decode
from specreg.studies.report import SPECTRAL_STATISTICS, collect
from specreg.studies.report_statistics import (
    Estimate,
    Sample,
    correlations,
    group_by_landing,
    group_by_name,
    holm,
    importances,
    interval,
    on_front,
    p_value,
    partial,
)
from specreg.studies.report_text import for_markdown, mean_and_spread, number, over_seeds, shown
from specreg.studies.spectrum_figures import DecayAxis, bin_edges, disc, moduli, modulus_text, outside

STUDIES = Path(__file__).parent / "studies_for_tests"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a study that trained four trials, its best one tested."""
    from specreg.studies.evaluation import test

    folder = tmp_path_factory.mktemp("trained")
    list(run_study(load_study(str(STUDIES / "reported.py")), folder, budget=4, workers=2))
    best = collect(folder).best
    for repeat in (0, 1):
        test(folder / best.trial.directory / str(repeat))
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The folder of a study whose names mean harm."""
    folder = tmp_path_factory.mktemp("hostile")
    list(run_study(load_study(str(STUDIES / "hostile.py")), folder, budget=9, workers=2))
    return folder


def on_terminal(report, width=80, **settings):
    """What the terminal shows."""
    stream = io.StringIO()
    report_terminal.show(report, Console(file=stream, width=width, highlight=False, emoji=False, **settings))
    return stream.getvalue()


# Statistics


def test_bins_are_half_open_at_every_edge():
    """A modulus on an edge belongs to the bin above it, the next smaller one that float32 has to the bin below."""
    for place, edge in enumerate(EDGES):
        on = np.array([math.log(edge)], dtype=np.float32)
        below = np.nextafter(on, np.float32(-np.inf))
        assert shares(on.astype(float))[place + 1] == 1
        assert shares(below.astype(float))[place] == 1
    assert shares(np.array([-math.inf]))[0] == 1 and shares(np.array([1e4]))[-1] == 1


def test_shares_count_what_a_loop_counts():
    """Against plain comparisons of moduli away from the edges."""
    modulus = np.random.default_rng(0).uniform(0.01, 1.99, 500)
    counted = [sum(a <= m < b for m in modulus) / 500 for a, b in zip([0, *EDGES], [*EDGES, math.inf], strict=True)]
    assert shares(np.log(modulus)) == pytest.approx(counted, abs=1e-12) and len(BINS) == len(counted)


@pytest.mark.parametrize(("rho", "count"), [(0.0, 10), (0.62, 25), (-0.9, 7)])
def test_interval_is_the_published_formula(rho, count):
    """Bonett and Wright 2000, written out with z = 1.959964."""
    error = 1.959963984540054 * math.sqrt((1 + rho * rho / 2) / (count - 3))
    transformed = 0.5 * math.log((1 + rho) / (1 - rho))
    ends = [(math.exp(2 * t) - 1) / (math.exp(2 * t) + 1) for t in (transformed - error, transformed + error)]
    assert interval(rho, count) == pytest.approx(ends, abs=1e-12)


@pytest.mark.parametrize(("rho", "count", "controls"), [(1.0, 30, 0), (-1 + 1e-12, 30, 0), (0.3, 4, 0), (0.3, 6, 2)])
def test_no_interval_where_there_is_none(rho, count, controls):
    """Neither a point at ±1 nor a formula that divides by next to nothing."""
    assert interval(rho, count, controls) == (None, None)


@pytest.mark.parametrize("count", [4, 5, 6])
def test_p_of_a_perfect_order_is_two_in_n_factorial(count):
    """Of all orders, two have |ρ| = 1: never 0, as the t approximation has it."""
    x = np.arange(count, dtype=float)
    assert p_value(x, x**3) == p_value(x, -x) == pytest.approx(2 / math.factorial(count), rel=1e-12)


def test_p_value_against_counting_every_order():
    """With ties, by scipy's ρ of each of 120 orders."""
    x, y = np.array([1.0, 2.0, 2.0, 4.0, 5.0]), np.array([2.0, 1.0, 3.0, 3.0, 7.0])
    observed = abs(stats.spearmanr(x, y).statistic)
    orders = [abs(stats.spearmanr(x, order).statistic) for order in itertools.permutations(y)]
    assert p_value(x, y) == pytest.approx(np.mean(np.array(orders) >= observed - 1e-12), rel=1e-12)


@pytest.mark.parametrize("count", [30, 199, 201])
def test_p_value_of_many_trials(count):
    """Near the t approximation where that holds, and the same on each call."""
    draw = np.random.default_rng(count)
    x = draw.normal(size=count)
    y = 1.5 / math.sqrt(count) * x + draw.normal(size=count)
    assert p_value(x, y) == p_value(x, y) == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.015)


def test_interval_covers_the_true_correlation():
    """In 19 of 20 samples: bivariate normal with Pearson 0.6 has Spearman 6/π · asin(0.3)."""
    truth, covered = 6 / math.pi * math.asin(0.3), 0
    draws = np.random.default_rng(0).multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=(600, 30))
    for sample in draws:
        low, high = interval(float(stats.spearmanr(*sample.T).statistic), 30)
        covered += low <= truth <= high
    assert 0.93 <= covered / 600 <= 0.975


def test_correlations_against_scipy():
    """ρ is scipy's, the strongest first; constants are left out and infinities not counted."""
    draw = np.random.default_rng(1)
    score = draw.normal(size=20)
    weak, strong = draw.normal(size=20), score + 0.1 * draw.normal(size=20)
    weak[3] = math.nan
    found = correlations({"weak": weak, "constant": np.ones(20), "strong": strong}, score, np.empty((20, 0)))
    assert [entry.statistic for entry in found] == ["strong", "weak"] and [entry.count for entry in found] == [20, 19]
    assert found[0].rho == pytest.approx(stats.spearmanr(strong, score).statistic, abs=1e-12)
    kept = np.isfinite(weak)
    assert found[1].rho == pytest.approx(stats.spearmanr(weak[kept], score[kept]).statistic, abs=1e-12)
    assert found[0].partial is None


def test_partial_correlation_against_its_formula():
    """With one control: (ρxy − ρxz ρyz) / √((1 − ρxz²)(1 − ρyz²)), and a common cause leaves nothing."""
    draw = np.random.default_rng(2)
    z = draw.normal(size=60)
    x, y = z + 0.2 * draw.normal(size=60), z + 0.2 * draw.normal(size=60)
    xy, xz, yz = (float(stats.spearmanr(a, b).statistic) for a, b in ((x, y), (x, z), (y, z)))
    rho, low, high = partial(x, y, z[:, None])
    assert rho == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)), abs=1e-10)
    assert xy > 0.8 and low < 0 < high and (low, high) == interval(rho, 60, 1)


def test_holm_by_hand():
    """Three tests: 3p, 2p and p in order, never decreasing."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def searched(count, conditional=False):
    """Trials whose loss is 3·strong, with two parameters that do nothing."""
    draw, unit = np.random.default_rng(3), FloatDistribution(0, 1)
    samples = []
    for place in range(count):
        values = {"strong": draw.random(), "idle": draw.random(), "kind": ("a", "b")[place % 2]}
        space = {"strong": unit, "idle": unit, "kind": CategoricalDistribution(("a", "b"))}
        if conditional and place % 2:
            values["branch"], space["branch"] = draw.random(), unit
        samples.append(Sample(values, space, 3 * values["strong"] + 0.01 * draw.random()))
    return samples


@pytest.mark.parametrize(("conditional", "method"), [(False, "fANOVA"), (True, "PED-ANOVA")])
def test_importances_find_what_matters(conditional, method):
    """The one parameter that acts stands far over the floor; the others do not, and are not to be relied on if few."""
    found = importances(searched(60, conditional), group_by_name)
    assert found.method == method and found.entries[0].parameter == "strong" and found.entries[0].share > 0.8
    assert sum(entry.share for entry in found.entries) == pytest.approx(1)
    assert found.entries[0].share > 3 * found.floor > 0 and found.reliable
    assert all(entry.share <= max(found.floor, 0.1) for entry in found.entries[1:])
    assert not importances(searched(12, conditional), group_by_name).reliable
    assert importances(searched(3), group_by_name) is None


def test_groups_by_where_values_land():
    """The run decides; the name only where the value lands nowhere."""
    runs = [
        (
            {"width": 8 * k, "how_fast": 0.1 / k, "innermost": 0.3 + 0.1 * k, "x": f"band{k}", "weight_decay": k},
            {
                "model": {"name": "lru", "d_model": 8 * k},
                "init": f"ring({0.3 + 0.1 * k}, 0.99)",
                "penalties": [f"band{k}(0.5, 1.0)*0.1"],
                "optimiser": {"learning_rate": 0.1 / k},
            },
        )
        for k in (1, 2, 3)
    ]
    group = group_by_landing(runs)
    expected = ["architecture", "training", "spectrum", "spectrum", "training"]
    assert [group(name) for name in runs[0][0]] == expected
    assert [group_by_name(n) for n in ("init.r_min", "penalty_weight", "weight.x", "learning_rate", "depth")] == [
        "spectrum", "spectrum", "spectrum", "training", "architecture",
    ]  # fmt: skip


def test_front_against_brute_force():
    """A point is on the front if nothing beats it in one and equals or beats it in the other."""
    points = [tuple(point) for point in np.random.default_rng(4).integers(0, 6, (40, 2)).tolist()]
    expected = [not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points) for p in points]
    assert on_front(points) == expected


def test_estimates_in_words():
    """Sample standard deviation, decimals as the spread asks for."""
    found = Estimate.of([0.90, 0.92])
    assert found.deviation == pytest.approx(0.02 / math.sqrt(2)) and mean_and_spread(found) == "0.910 ± 0.014"
    assert mean_and_spread(Estimate.of([0.5])) == "0.5" and mean_and_spread(Estimate.of([12.0, 15.0])) == "13.5 ± 2.1"
    assert over_seeds(Estimate.of([0.5])) == "1 seed" and over_seeds(found) == "mean ± sd of 2 seeds"
    words = [number(value) for value in (1.5e6, 792_736.0, 12_345.0, 1e-5, math.inf, math.nan)]
    assert words == ["1.5 M", "793 k", "12,345", "1e-05", "∞", "undefined"]
    assert [shown(v) for v in (None, True, 7, "a\x1bb\nc", "y" * 400)] == [
        "–",
        "yes",
        "7",
        "a\\x1bb c",
        "y" * 300 + "…",
    ]


# Axes


def test_axis_spreads_what_is_near_the_circle():
    """0.99 and 0.9999 stand two decades apart, growth mirrors decay, and order is kept from 0 to far beyond 1."""
    axis = DecayAxis(5)
    near = axis.position(np.log([0.99, 0.9999]))
    assert near[1] - near[0] == pytest.approx(2, abs=0.01)
    modulus = np.array([1e-40, 0.1, 0.5, 0.9, 0.99, 0.9999, 1.0, 1.0001, 1.01, 2.0, 1e6])
    places = axis.position(np.log(modulus))
    assert (np.diff(places) > 0).all() and places[6] == 5
    assert axis.position(np.array([-0.01])) + axis.position(np.array([0.01])) == pytest.approx(10)
    assert np.isfinite(axis.position(np.array([-math.inf, math.inf]))).all()
    assert [modulus_text(v) for v in (-1.0, -0.1, -0.01, -1e-4, 0.01)] == ["0.37", "0.90", "0.99", "0.9999", "1.01"]


def a_head(before, after):
    """A head with these real eigenvalues."""
    values = [Values(np.log(np.array(modulus)), np.zeros(len(modulus))) for modulus in (before, after)]
    return Head("layers.0", 0, *values)


def right_of_the_circle(drawn, axis):
    """The tallest bar of the moduli's rows beyond |λ| = 1."""
    rows = [np.array([trace.x, trace.y]) for trace in drawn.data if trace.mode == "lines"]
    return max(float(y[x > axis.decades].max(initial=0.0)) for x, y in rows)


@pytest.mark.parametrize("largest", [0.989, 1 - 1e-9, 1.0])
def test_no_bar_beyond_the_circle_unless_modes_grow(largest):
    """No bin straddles |λ| = 1, and what does not grow lies left of it, also where the axis joins both sides."""
    modulus = np.append(np.random.default_rng(0).uniform(0.8, 0.989, 200), largest)
    for axis in (DecayAxis.of([np.log(modulus)]), DecayAxis(2)):
        assert right_of_the_circle(moduli([a_head(modulus, modulus)], axis, ()), axis) == 0
        grown = a_head(modulus, np.append(modulus, 1 + 1e-9))
        assert right_of_the_circle(moduli([grown], axis, ()), axis) > 0


@pytest.mark.parametrize(("reach", "edge"), [((-0.4, 3.25), 3.0), ((0.0, math.pi), 0.0), ((-1.3, 7.77), 4.0)])
def test_bins_are_equal_and_split_at_the_edge(reach, edge):
    """The edge is an edge to the last bit, and the reach is covered."""
    edges = bin_edges(37, reach, edge)
    assert edge in edges and edges[0] <= reach[0] and edges[-1] >= reach[1]
    assert np.diff(edges) == pytest.approx((reach[1] - reach[0]) / 37, rel=1e-6)


def test_axis_has_room_and_ticks_near_the_circle():
    """0.99 is told from 1 however fast the modes decay, 0.999 where they reach it."""
    fast, slow = (DecayAxis.of([np.log(np.full(100, modulus))]) for modulus in (0.7, 0.999))
    assert [text.split("<br>")[0] for text in fast.ticks(growing=False)[1]] == ["0.37", "0.90", "0.99", "1"]
    assert "0.999<br>1,000" in slow.ticks(growing=False)[1]
    assert slow.position(np.log(np.array([0.999])))[0] <= slow.decades - 0.5


def test_disc_of_real_eigenvalues_has_a_density():
    """The second axis is the imaginary part only where something is drawn against it."""
    real = a_head([0.5, 0.6], [0.7, 0.8])
    turning = replace(real, after=Values(real.after.log_modulus, np.array([0.1, 0.2])))
    assert disc(real, ()).layout.yaxis.title.text == "density" and disc(turning, ()).layout.yaxis.title.text == "Im λ"


# A study that trained


def test_report_tells_what_the_files_say(trained):
    """Best trial, test accuracy and chance against the storage and the files; spectra against what was recorded."""
    report = collect(trained)
    rows = [trial for trial in report.trials if trial.outcome == "completed"]
    best = max(rows, key=lambda trial: trial.mean("accuracy"))
    assert report.best.trial.slot == best.slot and report.best.score.count == 2 and report.best.chance == 0.1
    runs = [trained / best.directory / str(repeat) for repeat in (0, 1)]
    summaries = [json.loads((run / "summary.json").read_text())["accuracy"] for run in runs]
    tests = [json.loads((run / "test.json").read_text())["accuracy"] for run in runs]
    assert report.best.score.mean == pytest.approx(np.mean(summaries))
    assert report.best.score.deviation == pytest.approx(np.std(summaries, ddof=1))
    assert report.best.test.mean == pytest.approx(np.mean(tests)) and not report.notes
    last = decode(runs[0] / "spectra" / "step-00000020.safetensors")
    for head in report.spectra.heads:
        layer = last[head.layer]
        assert np.array_equal(head.after.log_modulus, layer.log_modulus[head.head].double().numpy())
        assert np.array_equal(head.after.influence.mean, layer.memory.influence[:, head.head].double().numpy())
        assert head.after.influence.half_life == float(layer.memory.half_life[head.head])
    assert len(report.spectra.heads) == sum(len(layer.log_modulus) for layer in last.values())
    for track in report.spectra.tracks:
        assert track.steps == (0, 10, 20)
        expected = np.quantile(last[track.layer].log_modulus.double().numpy(), 0.5, method="inverted_cdf")
        assert track.quantiles[-1][2] == expected
    region = report.spectra.regions[0]
    assert (region.low, region.high) == pytest.approx((math.exp(-1), math.exp(-1 / 64)), abs=1e-4)


def test_every_recorded_statistic_has_a_name(trained):
    """What a run records of its spectra at the end is what the report relates to the score."""
    report = collect(trained)
    assert set(SPECTRAL_STATISTICS) <= set(report.best.trial.metrics)


def test_heads_beyond_the_disc_are_listed_one_by_one(trained):
    """Name and figure of each head stand together."""
    report = collect(trained)
    far = np.array([0.0] * 97 + [1.0] * 3)
    heads = tuple(
        replace(head, after=Values(far, np.zeros(100)), layer="layers.0", head=place)
        for place, head in enumerate(report.spectra.heads[:2])
    )
    page = report_page.page(replace(report, spectra=replace(report.spectra, heads=heads)))
    assert "layers.0 head 0: 3 %; layers.0 head 1: 3 %." in " ".join(page.split())


def test_few_trials_are_said_to_be_few(trained):
    """Below six trials every renderer says so, with no interval at ρ = ±1; from six on none does."""
    report = collect(trained)
    score = [0.1, 0.2, 0.3, 0.4]
    few = correlations({"mean_phase": score}, score, np.empty((4, 0)))
    assert few[0].rho == 1 and (few[0].low, few[0].high) == (None, None) and few[0].p_value == pytest.approx(1 / 12)
    shown_in = lambda found: every_renderer(replace(report, correlations=found)).count("too few trials")  # noqa: E731
    assert shown_in(few) == 3
    assert shown_in(tuple(replace(entry, count=6) for entry in few)) == 0
    mixed = replace(report, correlations=(*few, replace(few[0], count=6)))
    assert mixed.doubt() == "rows with n below 6 have too few trials to rely on"


def test_one_seed_has_no_deviation_to_speak_of(trained):
    """Neither "1 seeds" nor "± sd of 1 seed"."""
    report = collect(trained)
    text = every_renderer(replace(report, best=replace(report.best, score=Estimate.of([0.5]))))
    assert "1 seeds" not in text and "sd of 1 seed" not in text and "0.5 (1 seed)" in text


def test_the_best_run_is_trained_again_from_its_own_file(trained):
    """The command names run.toml where it is, and what it holds is what the report prints."""
    report = collect(trained)
    words = shlex.split(report.commands()[0])
    file = trained / "trials" / f"{report.best.trial.slot:04d}" / "0" / "run.toml"
    assert words == ["specreg", "train", "--config", str(file), "--out", "runs/again"]
    assert file.read_text().strip() == report.best.run_toml.strip()
    text = every_renderer(report)
    assert text.count(report.commands()[0]) >= 2 and text.count("the study's own") + text.count("study&#39;s own") == 3


@pytest.mark.parametrize("known", [0, 1, 2])
def test_trials_without_a_spectral_distance_are_drawn_too(trained, known):
    """Only trials with a target have one, and a model's trials may all be without."""
    report = collect(trained)
    point = report.points[0]
    points = tuple(
        replace(point, slot=slot, model=f"model {slot % 2}", distance=0.5 if slot < known else None)
        for slot in range(4)
    )
    drawn = report_figures.front(replace(report, points=points))
    assert sum(len(trace.x) for trace in drawn.data if trace.text is not None) == 4


def test_time_constant_is_the_spectrums_own(trained):
    """−1/log|λ| of the median mode agrees with `log_timescale` where modes decay."""
    for head in collect(trained).spectra.heads:
        middle = torch.tensor(
            float(np.quantile(head.after.log_modulus, 0.5, method="inverted_cdf")), dtype=torch.float64
        )
        assert math.log(head.after.time_constant()) == pytest.approx(float(log_timescale(middle)), abs=1e-9)
        assert outside(head) == np.mean(head.after.modulus > 1.25)


def test_json_has_no_infinity_and_no_values(trained):
    """One document that every reader takes, of moderate size."""
    text = json.dumps(collect(trained).to_dict(), allow_nan=False)
    assert len(text) < 60_000 and json.loads(text)["best"]["test"]["count"] == 2
    infinite = Values(np.array([-math.inf, 800.0]), np.zeros(2)).to_dict()
    assert infinite["modulus"] == {"min": 0.0, "median": 0.0, "max": None}
    json.dumps(infinite, allow_nan=False)


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_fits_and_is_plain_off_a_terminal(trained, width):
    """No line is wider than asked, no escape sequence and no blank at a line's end; the same facts on a terminal."""
    report = collect(trained)
    plain = on_terminal(report, width)
    assert max(map(len, plain.splitlines())) <= width and "\x1b" not in plain
    assert all(line == line.rstrip() for line in plain.splitlines())
    for word in (
        "accuracy, test",
        "chance",
        "layers.1",
        "gauge: as applied",
        "before",
        "after",
        "half-life",
        "κ max",
        "closed form",
    ):
        assert word in plain
    assert "\x1b[" in on_terminal(report, width, force_terminal=True)
    colourless = on_terminal(report, width, force_terminal=True, no_color=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", colourless)


def test_ascii_streams_are_served(trained):
    """A stream that only takes ASCII gets bars of "="."""
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii", errors="replace")
    report_terminal.show(collect(trained), Console(file=stream, width=80, highlight=False))
    stream.flush()
    assert b"best trial" in buffer.getvalue()


def test_spectrum_report_of_one_run(trained):
    """From the run directory alone; its numbers are the study's; a folder without a run is refused."""
    report = collect(trained)
    run = trained / report.best.trial.directory / "0"
    found = spectrum_report.collect(run)
    assert found.to_dict()["heads"] == report.spectra.to_dict()["heads"] and not found.notes
    stream = io.StringIO()
    spectrum_report.show(found, Console(file=stream, width=80))
    assert "layers.0" in stream.getvalue() and found.spectra.subject in stream.getvalue()
    assert "Content-Security-Policy" in spectrum_report.page(found)
    with pytest.raises(ConfigurationError, match="no recorded spectra"):
        spectrum_report.collect(trained)


def test_markdown_tables_are_whole(trained):
    """Every row of a table has as many cells as its header, and run.toml stands in it unchanged."""
    report = collect(trained)
    text = report_markdown.markdown(report)
    check_tables(text)
    assert report.best.run_toml.strip() in text


# What is missing or damaged


@pytest.fixture
def damaged(trained, tmp_path):
    """A copy of the study to be damaged, and the first run directory of its best trial."""
    folder = tmp_path / "study"
    shutil.copytree(trained, folder)
    return folder, folder / collect(folder).best.trial.directory / "0"


def every_renderer(report):
    """Page, Markdown and terminal in one text; none may raise."""
    json.dumps(report.to_dict(), allow_nan=False)
    return report_page.page(report) + report_markdown.markdown(report) + on_terminal(report)


def test_damaged_files_become_notes(damaged):
    """Cut spectra, a nonsense environment, no test and a broken run.toml: said, and the rest is shown."""
    folder, run = damaged
    path = run / "spectra" / "step-00000020.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    (run / "environment.json").write_text("[1, 2")
    (run / "test.json").write_text("{}")
    (run / "run.toml").write_text("model = 1")
    report = collect(folder)
    noted = " ".join(report.notes)
    for word in ("step-00000020.safetensors", "environment.json", "1 of 2 seeds", "run.toml"):
        assert word in noted
    assert report.spectra.last_step == 10 and report.best.run_toml is not None
    assert "step-00000020.safetensors" in every_renderer(report)


def test_spectra_with_nan_are_left_out(damaged):
    """A file with a NaN is not drawn in part."""
    from specreg.spectrum import Spectrum
    from specreg.studies.files import write_bytes
    from specreg.studies.recording import encode

    folder, run = damaged
    nan = Spectrum(torch.full((1, 1, 1, 4), math.nan), torch.zeros(1, 1, 1, 4), torch.ones(4))
    write_bytes(run / "spectra" / "step-00000020.safetensors", encode({"layers.0": nan}, {}, 20))
    report = collect(folder)
    assert report.spectra.last_step == 10 and "no usable eigenvalues" in " ".join(report.notes)


def test_without_run_directories(damaged):
    """The spectral part says that there is nothing, and the search is reported all the same."""
    folder, _ = damaged
    shutil.rmtree(folder / "trials")
    report = collect(folder)
    assert report.spectra is None and "no run directories" in " ".join(report.notes)
    text = every_renderer(report)
    assert report.best.run_toml is not None and "No spectra were recorded" in text
    assert report.commands() == () and "specreg train" not in text and "directory is gone" in text


def test_a_directory_outside_the_study_is_not_read(damaged, tmp_path):
    """A stored path that climbs out of the folder leads nowhere."""
    folder, run = damaged
    shutil.move(run.parent, tmp_path / "elsewhere")
    with closing(sqlite3.connect(folder / "study.db")) as database:
        elsewhere = json.dumps("../elsewhere")
        database.execute("UPDATE trial_user_attributes SET value_json = ? WHERE key = 'directory'", (elsewhere,))
        database.commit()
    report = collect(folder)
    assert report.spectra is None and "outside the study" in " ".join(report.notes)


def test_a_study_that_optuna_alone_has_run(tmp_path):
    """No attributes of ours: objectives from Optuna, one value a trial, failed and pruned ones counted."""
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=storage, study_name="plain", sampler=optuna.samplers.RandomSampler(0))

    def objective(trial):
        if trial.number % 5 == 4:
            raise optuna.TrialPruned
        return trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1) / 10

    study.optimize(objective, n_trials=20)
    study._storage._backend.engine.dispose()
    report = collect(tmp_path)
    assert dict(report.objectives) == {"objective 0": "minimize"} and report.health.outcomes == {
        "completed": 16,
        "pruned": 4,
    }
    assert report.best.score.mean == pytest.approx(study.best_value) and report.cost == "seconds"
    every_renderer(report)


def test_an_empty_study(tmp_path):
    """Nothing has been run: every renderer says so."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    optuna.create_study(storage=storage, study_name="empty")
    storage.remove_session()
    storage.engine.dispose()
    report = collect(tmp_path)
    assert report.best is None and "no trial has been completed" in every_renderer(report)
    with pytest.raises(StudyError):
        collect(tmp_path / "nowhere")


# Names that mean harm


class Elements(HTMLParser):
    """Counts elements and keeps attributes."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_page_has_no_elements_of_others(hostile):
    """Three scripts, all ours; no image, no handler, no control character, nothing of a template evaluated."""
    page = report_page.page(collect(hostile))
    elements = Elements()
    elements.feed(page)
    assert elements.tags.count("script") == 3 and not {"img", "iframe", "base"} & set(elements.tags)
    assert not any(name.startswith("on") for name in elements.attributes)
    own = page.replace(report_page.get_plotlyjs(), "")
    assert "<script>alert" not in own and not CONTROLS.search(own) and "{{ 7 * 7 }}" in own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in own


def test_figures_carry_no_markup_of_others(hostile):
    """plotly reads a little HTML in texts: everybody's names come to it as entities."""
    page = report_page.page(collect(hostile))
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    texts = json.dumps(figures, ensure_ascii=False)
    assert "&lt;script&gt;" in texts and "<script" not in texts and "<img" not in texts


def test_markdown_is_escaped(hostile):
    """No HTML, no broken table, no control character."""
    text = report_markdown.markdown(collect(hostile))
    outside_code = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside_code and "<img" not in outside_code and not CONTROLS.search(text)
    check_tables(outside_code)
    assert for_markdown("a|b`c*_[x](y)<z>") == r"a\|b\`c\*\_\[x\](y)&lt;z&gt;"


@pytest.mark.parametrize("terminal", [False, True])
def test_terminal_shows_brackets_and_no_escapes(hostile, terminal):
    """Markup is text, control characters are written out."""
    text = on_terminal(collect(hostile), 120, force_terminal=terminal, no_color=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "[red]x[/]" in plain.replace("\n", "") and "\\x1b[31m" in plain and not CONTROLS.search(plain)
    assert text.count("\x1b[31m") == 0


def test_correlations_of_a_study_without_training(hostile):
    """Statistics that a custom `evaluate` returns are related to the score; the failures are counted by reason."""
    report = collect(hostile)
    found = {entry.statistic: entry for entry in report.correlations}
    assert found["spectral_distance"].rho == -1 and report.spectra is None
    assert report.health.reasons == {"exception": 3} and "<script>" in report.health.messages["exception"]
    assert report.best.score.mean == max(trial.mean("accuracy") for trial in report.trials if trial.reason is None)


def test_a_fence_is_longer_than_what_it_holds():
    """A configuration with backticks cannot end its block."""
    assert report_markdown.fenced("a\n````\nb", "toml")[0] == "`````toml"


def test_running_study_is_said(trained):
    """A held lease shows."""
    report = replace(collect(trained), running=True)
    assert "driver holds" in on_terminal(report) and "driver holds" in report_page.page(report)


def check_tables(text):
    """Each row has as many unescaped bars as its header."""
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()]
        assert len(set(bars)) == 1, block
