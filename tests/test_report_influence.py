"""κ, certificates and influence: recorded beside the eigenvalues, read back, drawn; files of before; hostile words."""

import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from specreg.invariants import effective_memory, half_life
from specreg.spectrum import Spectrum
from specreg.studies import members, report_markdown, report_page, spectrum_report, training
from specreg.studies.building import build_parts
from specreg.studies.configuration import Budget, Run
from specreg.studies.influence_figures import at_half_life, influence_drawings, influence_figure, reach, round_numbers
from specreg.studies.recorded_spectra import Head, Influence, Values
from specreg.studies.recording import (
    CLOSED_FORM,
    DENSE_SOLVE,
    VALUES_A_HEAD,
    decode,
    encode,
    mean_memory,
    memories_of,
    spectra_of,
    systems_of,
)
from specreg.studies.run_directory import RunDirectory
from specreg.tasks.task import Batch

EVIL = "<script>alert(1)</script>[red]x[/]|\x1b[31m"


def settings(model):
    """A small run of two layers."""
    return Run(
        model={"name": model, "d_model": 8, "d_state": 4, "depth": 2},
        task={"name": "digits"},
        budget=Budget(steps=2, batch_size=4, evaluate_every=2),
    )


@pytest.fixture
def trained(tmp_path):
    """The run directory of a small model with two heads or more."""
    list(training.train(settings("mamba2"), tmp_path / "run"))
    return tmp_path / "run"


def all_shown(report, width=100):
    """Terminal, Markdown and page of a run's spectra, and its JSON checked."""
    json.dumps(report.to_dict(), allow_nan=False)
    stream = io.StringIO()
    spectrum_report.show(report, Console(file=stream, width=width, highlight=False, markup=False))
    markdown = "\n".join(report_markdown.spectra(report.spectra))
    return {"terminal": stream.getvalue(), "markdown": markdown, "page": spectrum_report.page(report)}


# Recording


@pytest.mark.parametrize("model", sorted(members.models()))
def test_what_is_read_is_recorded_for_every_head(model, tmp_path):
    """Against the systems themselves; with padding, which neither writes nor reads; κ is 1, in closed form."""
    parts = build_parts(settings(model))
    inputs = torch.randn(3, 20, 1, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[1, 15:] = False
    batch = Batch(inputs, torch.zeros(3, dtype=torch.long), mask)
    systems, memories = systems_of(parts.model, batch), memories_of(parts.model, batch)
    (tmp_path / "file").write_bytes(encode(spectra_of(systems), memories, 0))
    for name, layer in decode(tmp_path / "file").items():
        memory, system = layer.memory, systems[name]
        assert memory.lags.tolist() == list(range(20)) and memory.influence.shape == (20, len(layer.log_modulus))
        assert torch.equal(memory.half_life, half_life(system)) and layer.certificate == CLOSED_FORM
        assert torch.equal(layer.condition, torch.ones_like(layer.log_modulus))
        for lag in (0, 1, 7):
            (influence,) = system.influence([lag])
            counts = mask if system.mask is None else system.mask.expand(3, 20)
            readers = [(b, t) for b in range(3) for t in range(lag, 20) if system.mask is None or counts[b, t]]
            full = influence.expand(3, 20 - lag, -1)
            expected = torch.stack([full[b, t - lag] for b, t in readers]).double().mean(0)
            assert memory.influence[lag].double() == pytest.approx(expected, rel=1e-5)
    each = [effective_memory(system).mean() for system in systems.values()]
    assert mean_memory(memories) == pytest.approx(float(torch.stack(each).mean()), rel=1e-6)


def test_conditions_are_those_of_the_eigenvalues_beside_them(tmp_path):
    """Whatever values are drawn of many: κ is made from the modulus, so that a wrong place shows."""
    draw = torch.Generator().manual_seed(0)
    log_modulus = -torch.rand(5, 700, 2, 3, generator=draw)
    mask = torch.rand(5, 700, generator=draw) < 0.8
    dense = Spectrum(log_modulus, torch.zeros_like(log_modulus), torch.ones(3), mask, condition=1 - 100 * log_modulus)
    constant = Spectrum(*torch.randn(2, 1, 1, 2, 4, generator=draw), torch.ones(4))
    (tmp_path / "file").write_bytes(encode({"a": dense, "b": constant}, {}, 0))
    layers = decode(tmp_path / "file")
    assert layers["a"].certificate == DENSE_SOLVE and layers["b"].certificate == CLOSED_FORM
    assert torch.equal(layers["a"].condition, 1 - 100 * layers["a"].log_modulus)
    assert layers["a"].condition.shape == (2, VALUES_A_HEAD // 3 * 3) and layers["a"].memory is None
    assert torch.equal(layers["b"].condition, torch.ones(2, 4))


def test_the_summary_agrees_with_what_was_recorded(trained):
    """Every recorded step has every figure, and the summary's memory is the mean of what was recorded last."""
    files = RunDirectory(trained)
    last = decode(files.spectra()[2])
    assert set(files.spectra()) == {0, 2} and set(last) == {"layers.0", "layers.1"}
    each = [layer.memory.effective_memory.mean() for layer in last.values()]
    assert files.summary()["effective_memory"] == pytest.approx(float(torch.stack(each).mean()), rel=1e-6)


# Showing


def test_every_renderer_shows_what_was_recorded(trained):
    """The figures of the file, in each form; JSON has the influence itself."""
    report = spectrum_report.collect(trained)
    head = report.spectra.heads[1]
    for form, text in all_shown(report).items():
        for word in ("half-life", "memory", "κ max", "closed form", f"{head.after.influence.half_life:.3g}"):
            assert word in text, (form, word)
    found = report.to_dict()["heads"][1]["after"]
    assert found["condition"] == {"max": 1.0} and found["certificate"] == "closed form"
    assert found["influence"]["lags"] == [int(lag) for lag in head.after.influence.lags]
    assert found["influence"]["mean"] == pytest.approx(list(head.after.influence.mean), rel=1e-6)
    assert 'id="plot-influence-1"' in all_shown(report)["page"]


@pytest.mark.parametrize(("width", "tables"), [(80, 3), (120, 2), (200, 1)])
def test_terminal_uses_the_width(trained, width, tables):
    """As few tables as fit, no column folded."""
    text = all_shown(spectrum_report.collect(trained), width)["terminal"]
    headers = [line for line in text.splitlines() if line.split()[:2] == ["layer", "head"]]
    assert len(headers) == tables and max(map(len, text.splitlines())) <= width
    assert all(word in " ".join(headers) for word in ("min |λ|", "τ, steps", "half-life", "certificate", "10–100"))


def of_an_earlier_version(path):
    """Rewrite a file of spectra as it was before κ and influence were recorded."""
    tensors = {name: t for name, t in load_file(path).items() if name.endswith((".log_modulus", ".phase"))}
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    save_file(tensors, path, {"step": "0", "gauge": "as applied", "layers": json.dumps(layers)})


def test_files_of_an_earlier_version_are_shown_without_the_columns(trained):
    """No note, no empty column, no empty figure; where one step is newer, dashes stand for the other."""
    files = RunDirectory(trained).spectra()
    of_an_earlier_version(files[0])
    report = spectrum_report.collect(trained)
    assert not report.notes and report.spectra.heads[0].before.condition is None
    assert all("–" in text and "κ max" in text for text in all_shown(report).values())
    of_an_earlier_version(files[2])
    report = spectrum_report.collect(trained)
    assert not report.notes and len(report.spectra.heads) == 8
    for form, text in all_shown(report).items():
        assert not any(word in text for word in ("κ max", "half-life", "certificate", "plot-influence")), form
        assert "layers.1" in text
    found = report.to_dict()["heads"][0]["after"]
    assert (found["condition"], found["certificate"], found["influence"]) == ({"max": None}, None, None)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [("influence", math.inf, "influence of layers.1 is not finite"), ("half_life", math.nan, "is not finite"),
     ("condition", math.nan, "no usable eigenvalues"), ("influence", None, "cannot be read")],
)  # fmt: skip
def test_what_is_not_finite_becomes_a_note(trained, field, value, part):
    """Influence beyond the number range costs its own figure and columns alone; a NaN in κ, the file."""
    path = RunDirectory(trained).spectra()[2]
    tensors, name = load_file(path), f"layers.1.{field}"
    tensors[name] = torch.zeros(3, 1) if value is None else tensors.get(name, tensors["layers.1.phase"]).clone()
    if value is not None:
        tensors[name].view(-1)[0] = value
    certificates = json.dumps({"layers.0": "closed form", "layers.1": "dense solve"})
    layers = json.dumps(["layers.0", "layers.1"])
    save_file(tensors, path, {"step": "2", "gauge": "as applied", "layers": layers, "certificates": certificates})
    report = spectrum_report.collect(trained)
    assert any(part in note for note in report.notes), report.notes
    if "influence of" in part:
        assert report.spectra.last_step == 2 and report.spectra.heads[-1].after.influence is None
        assert report.spectra.heads[0].after.influence is not None
    all_shown(report)


def test_a_certificate_that_means_harm_does_none(trained):
    """Text of a file stays text, in the page, Markdown and terminal."""
    found = spectrum_report.collect(trained)
    heads = tuple(replace(head, after=replace(head.after, certificate=EVIL)) for head in found.spectra.heads)
    shown = all_shown(replace(found, spectra=replace(found.spectra, heads=heads)), 200)
    assert "<script>alert" not in shown["page"].replace(report_page.get_plotlyjs(), "")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown["page"] and "<script" not in shown["markdown"]
    assert "[red]x[/]" in shown["terminal"] and "\x1b" not in "".join(shown.values())
    rows = [line for line in shown["markdown"].splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_a_dense_solve_shows_its_worst_condition(trained):
    """The largest κ of a head, also an infinite one; JSON has no infinity."""
    found = spectrum_report.collect(trained)
    for worst, word in ((1234.5, "1234"), (math.inf, "∞")):
        condition = np.append(np.ones(len(found.spectra.heads[0].after.phase) - 1), worst)
        after = replace(found.spectra.heads[0].after, condition=condition, certificate=DENSE_SOLVE)
        heads = (replace(found.spectra.heads[0], after=after), *found.spectra.heads[1:])
        for text in all_shown(replace(found, spectra=replace(found.spectra, heads=heads))).values():
            assert word in text and "dense solve" in text


# Figures


def an_influence(mean, half=2.5):
    """Influence at lags 0, 1, 2, …"""
    return Influence(np.arange(len(mean), dtype=float), np.array(mean, dtype=float), half, 0.1)


def some_heads(count, mean=(1.0, 0.5, 0.25, 0.125), layer="layers.0"):
    """Heads that read alike."""
    values = Values(np.zeros(1), np.zeros(1), np.ones(1), CLOSED_FORM, an_influence(mean))
    return [Head(layer, head, values, values) for head in range(count)]


def test_the_dot_lies_on_the_curve():
    """At the half-life, on the straight line of the figure: in log influence against log(1 + lag)."""
    influence = an_influence([8.0, 4.0, 2.0, 1.0])
    share = (math.log(3.5) - math.log(3)) / (math.log(4) - math.log(3))
    assert at_half_life(influence) == pytest.approx(2 ** (1 - share))
    assert at_half_life(an_influence([8.0, 4.0, 2.0, 1.0], 2.0)) == pytest.approx(2.0)
    assert at_half_life(an_influence([0.0, 0.0, 0.0])) == 0.0


def test_few_heads_have_a_line_each_and_many_a_band():
    """Twelve lines before and twelve after; thirteen heads are a median and a band, each with one dot."""
    (few,), (many,) = influence_drawings(some_heads(12)), influence_drawings(some_heads(13))
    lines = [trace for trace in few.figure.data if trace.mode == "lines"]
    assert len(lines) == 24 and sum(trace.showlegend for trace in lines) == 2
    assert [len(trace.x) for trace in few.figure.data if trace.mode == "markers"] == [12, 12]
    kinds = [(trace.mode, trace.fill) for trace in many.figure.data]
    assert kinds == 2 * [("lines", "toself"), ("lines", None), ("markers", None)]
    assert [len(trace.x) for trace in many.figure.data if trace.mode == "markers"] == [1, 1]


def test_nothing_is_drawn_where_nothing_is_read():
    """Zeros have no place on a logarithmic axis: a gap in a line, no panel where there is nothing else."""
    assert influence_drawings(some_heads(2, (0.0, 0.0, 0.0))) == []
    (drawing,) = influence_drawings(some_heads(1, (1.0, 0.0, 0.5)) + some_heads(1, (0.0, 0.0), "layers.1"))
    assert drawing.key == "influence-0" and drawing.figure.data[0].y == (1.0, None, 0.5)
    (band,) = influence_drawings(some_heads(13, (1.0, 1e-3, 0.0)))
    assert min(min(trace.y) for trace in band.figure.data if trace.fill == "toself") > 0


def test_axes_have_room_for_lag_0_and_for_six_decades():
    """Every lag has a place; a flat curve has a decade around it, a steep one is cut; ticks are round and inside."""
    drawn = influence_figure({"before": [an_influence([1.0, 1e-3, 1e-30])], "after": [an_influence([2.0, 1.0, 1.0])]})
    assert drawn.data[0].x[0] == 1 and drawn.layout.xaxis.ticktext[0] == "0" and drawn.layout.xaxis.tickvals[0] == 1
    low, high = drawn.layout.yaxis.range
    assert high - low == pytest.approx(6.2) and high >= math.log10(2)
    assert reach([np.array([3.0, 3.0])]) == pytest.approx((math.log10(3) - 0.5, math.log10(3) + 0.5))
    assert round_numbers(-1.5, 0.5, (1, 3)) == [0.1, 0.3, 1.0, 3.0]
