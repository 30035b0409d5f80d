"""Studies end to end, with real workers and a real database: results, failures, refusals, seeds, pruning, resuming."""

import json
import math
import os
import random
import re
import subprocess
import sys
import textwrap
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from specreg.studies.configuration import Run
from specreg.studies.definition import StudyError, load_study, studies_available, top_level_names
from specreg.studies.driver import StudyFailedError, run_study
from specreg.studies.events import RungReached, StudyEnded, TrialFinished, TrialRetried, TrialStarted
from specreg.studies.lease import Lease, StudyInUseError, start_time
from specreg.studies.proposals import halved, training_seed
from specreg.studies.pruning import RUNGS, RungRule
from specreg.studies.storage import StudyChangedError, database_file, open_study
from specreg.studies.worker import Job, Report, cause, classified, one_line, outcome

CURVE = Path(__file__).parent / "studies_for_tests" / "curve.py"
SPACE = """
from specreg.studies.configuration import Budget, Run
OBJECTIVES = {"loss": "minimize"}
def configure(trial):
    return Run(model={"name": "lru", "x": trial.suggest_float("x", 0, 1)}, task={"name": "digits"})
"""


def study(folder, evaluate, space=SPACE):
    """A study file of these lines, loaded; the lines are the body of `evaluate`."""
    path = folder / "own_study.py"
    body = textwrap.indent(textwrap.dedent(evaluate), "    ")
    path.write_text(f"{space}\ndef evaluate(run, report):\n    x = run.model['x']\n{body}\n")
    return load_study(str(path))


def run(definition, folder, budget, **arguments):
    """All events of a study."""
    return list(run_study(definition, folder, budget=budget, workers=2, **arguments))


def trials(folder):
    """What is stored, read as the report reads it."""
    with open_study(folder) as stored:
        return stored.get_trials()


def of(events, kind):
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]


# Results


def test_results_are_stored_whole(tmp_path):
    """Every slot has its run, its directory, its metrics and its values, and the driver's events say the same."""
    events = run(load_study(str(CURVE)), tmp_path, 4)
    stored = trials(tmp_path)
    assert [trial.user_attrs["slot"] for trial in stored] == [0, 1, 2, 3]
    for trial in stored:
        attributes = trial.user_attrs
        configuration = Run.from_json(attributes["run"])
        accuracy = configuration.model["radius"] - configuration.model["rate"]
        assert trial.state == TrialState.COMPLETE and "reason" not in attributes and attributes["attempts"] == 1
        assert trial.values == [accuracy, 1e3 * configuration.model["radius"]]
        assert attributes["metrics"]["accuracy"] == [accuracy] * 2
        assert attributes["rungs"] == [[step, accuracy * (step + 1) / 4] for step in (0, 1, 3)]
        assert (tmp_path / attributes["directory"] / "1" / "seed.txt").is_file()
    assert {event.slot: list(event.values.values()) for event in of(events, TrialFinished)} == {
        trial.user_attrs["slot"]: trial.values for trial in stored
    }
    assert events[-1] == StudyEnded("finished", 4, 4, advice="")


def test_study_attributes_and_best(tmp_path):
    """The study says what it is, and its best trial by the first objective; the lease is given back."""
    definition = load_study(str(CURVE))
    run(definition, tmp_path, 5, seed=3)
    with open_study(tmp_path) as stored:
        attributes, finished = stored.user_attrs, stored.get_trials()
    assert attributes["objectives"] == {"accuracy": "maximize", "macs": "minimize"}
    assert attributes["digest"] == definition.digest and attributes["seed"] == 3 and attributes["repeats"] == 2
    assert attributes["lease"] is None
    complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    best = max(complete, key=lambda trial: trial.values[0])
    assert attributes["best"] == {
        "slot": best.user_attrs["slot"],
        "values": {"accuracy": best.values[0], "macs": best.values[1]},
        "directory": best.user_attrs["directory"],
    }


def test_repeats_have_seeds_of_their_own(tmp_path):
    """Each repeat's seed follows from the study's seed, the configuration and its number, and reaches `evaluate`."""
    run(load_study(str(CURVE)), tmp_path, 3, seed=5)
    seen = set()
    for trial in trials(tmp_path):
        configuration = Run.from_json(trial.user_attrs["run"])
        expected = [training_seed(5, configuration, repeat) for repeat in range(2)]
        assert trial.user_attrs["metrics"]["seed"] == expected and configuration.seed == expected[0]
        directory = tmp_path / trial.user_attrs["directory"]
        assert [int((directory / str(repeat) / "seed.txt").read_text()) for repeat in range(2)] == expected
        seen.update(expected)
    assert len(seen) == 6


def test_objectives_are_means_over_repeats(tmp_path):
    """Two seeds, two losses, one value."""
    definition = study(tmp_path, "return {'loss': float(run.seed)}", SPACE + "REPEATS = 3\n")
    run(definition, tmp_path, 1)
    (trial,) = trials(tmp_path)
    losses = trial.user_attrs["metrics"]["loss"]
    assert len(set(losses)) == 3 and trial.value == pytest.approx(sum(losses) / 3, rel=1e-15)


def test_workers_print_into_their_directory(tmp_path, capfd):
    """Standard output belongs to the driver."""
    run(study(tmp_path, "print('spoken'); return {'loss': x}"), tmp_path, 1)
    assert (tmp_path / "trials/0000/output.txt").read_text() == "spoken\n"
    assert "spoken" not in "".join(capfd.readouterr())


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    """Workers do not import their driver's script."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nprint('begun')\n"
        "from specreg.studies.definition import load_study\nfrom specreg.studies.driver import run_study\n"
        f"*_, last = run_study(load_study({str(CURVE)!r}), Path({str(tmp_path)!r}), budget=2)\n"
        "print(last.outcome, 'torch' in sys.modules)\n"
    )
    answer = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (answer.stdout, answer.stderr) == ("begun\nfinished False\n", "")


def test_a_study_without_evaluate_trains_its_runs(tmp_path):
    """The default evaluation leaves a run directory, and its validation accuracies are the rungs."""
    (tmp_path / "trained.py").write_text(
        "from specreg.studies.configuration import Budget, Run\n"
        "OBJECTIVES = {'accuracy': 'maximize', 'macs': 'minimize'}\n"
        "def configure(trial):\n"
        "    model = {'name': 'lru', 'd_model': trial.suggest_int('d_model', 4, 8), 'd_state': 4, 'depth': 1}\n"
        "    budget = Budget(steps=4, batch_size=8, evaluate_every=2, checkpoint_every=4)\n"
        "    return Run(model=model, task={'name': 'digits'}, budget=budget)\n"
    )
    run(load_study(str(tmp_path / "trained.py")), tmp_path, 2)
    for trial in trials(tmp_path):
        directory = tmp_path / trial.user_attrs["directory"] / "0"
        assert trial.state == TrialState.COMPLETE and [step for step, _ in trial.user_attrs["rungs"]] == [2, 4]
        assert Run.from_toml((directory / "run.toml").read_text()) == Run.from_json(trial.user_attrs["run"])
        assert json.loads((directory / "summary.json").read_text())["accuracy"] == trial.values[0]


# Failures


def test_divergence_fails_the_trial_and_not_the_study(tmp_path):
    """NaN and the infinities, as a result or on the way, never reach Optuna; the cause is stored, the study goes on."""
    body = """
    if x < 0.5:
        bad = float(("nan", "inf", "-inf")[int(x * 1e6) % 3])
        if x < 0.25:
            report(1, bad)
        return {"loss": bad}
    return {"loss": x}
    """
    events = run(study(tmp_path, body), tmp_path, 12)
    failed = [trial for trial in trials(tmp_path) if trial.params["x"] < 0.5]
    assert 0 < len(failed) < 12 and len(of(events, TrialFinished)) == 12
    for trial in failed:
        assert trial.state == TrialState.PRUNED and trial.values is None
        assert trial.user_attrs["reason"] == "diverged"
        assert any(word in trial.user_attrs["message"] for word in ("nan", "inf"))
    assert all(math.isfinite(trial.value) for trial in trials(tmp_path) if trial.state == TrialState.COMPLETE)


def test_metrics_beside_the_objectives_may_be_infinite(tmp_path):
    """They are stored as null, which JSON has."""
    run(study(tmp_path, "return {'loss': x, 'distance': float('inf')}"), tmp_path, 1)
    (trial,) = trials(tmp_path)
    assert trial.state == TrialState.COMPLETE and trial.user_attrs["metrics"]["distance"] == [None]


def test_the_same_exception_three_times_stops_the_study(tmp_path):
    """The error names cause and place; the traceback lies in the trial's directory, nothing is left running."""
    with pytest.raises(StudyFailedError, match=r"ValueError at own_study\.py:\d+.*no such layer") as caught:
        run(study(tmp_path, "raise ValueError('no such layer\\n\\x1b[31m')"), tmp_path, 12)
    failed = [trial for trial in trials(tmp_path) if trial.state == TrialState.FAIL]
    assert len(failed) == 3 and not any(trial.state == TrialState.RUNNING for trial in trials(tmp_path))
    for trial in failed:
        assert trial.user_attrs["reason"] == "exception"
        assert re.fullmatch(r"ValueError at own_study\.py:\d+: no such layer \[31m", trial.user_attrs["message"])
        assert "Traceback" in (tmp_path / trial.user_attrs["directory"] / "traceback.txt").read_text()
    assert "\x1b" not in str(caught.value)


def test_exceptions_here_and_there_do_not_stop_it(tmp_path):
    """A trial in two fails, each time in another way than the trial before."""
    body = """
    if int(x * 1e6) % 2:
        raise (ValueError, KeyError, RuntimeError)[int(x * 1e6) % 3](x)
    return {"loss": x}
    """
    events = run(study(tmp_path, body), tmp_path, 10, seed=1)
    assert events[-1].outcome == "finished"
    assert {trial.state for trial in trials(tmp_path)} == {TrialState.COMPLETE, TrialState.FAIL}


@pytest.mark.parametrize(
    ("configure", "message"), [("raise ValueError('odd width')", "odd width"), ("return None", "return a Run")]
)
def test_a_configure_that_fails_stops_the_study(tmp_path, configure, message):
    """Nothing is started for it."""
    space = f"OBJECTIVES = {{'loss': 'minimize'}}\ndef configure(trial):\n    {configure}\n"
    with pytest.raises(StudyFailedError, match=message):
        run(study(tmp_path, "return {'loss': 0.0}", space), tmp_path, 8)
    assert not (tmp_path / "trials").exists()


@pytest.mark.parametrize("result", ["{'lost': x}", "{}"])
def test_a_missing_objective_is_named(tmp_path, result):
    """With the nearest metric that was returned."""
    with pytest.raises(StudyFailedError, match="no objective 'loss'"):
        run(study(tmp_path, f"return {result}"), tmp_path, 4)


@pytest.mark.parametrize("limit", [16, 0])
def test_out_of_memory_is_tried_once_more_with_half_the_batch(tmp_path, limit):
    """32 examples are too many: 16 do in one case, and nothing does in the other."""
    body = f"""
    if run.budget.batch_size > {limit}:
        raise MemoryError("too large")
    return {{"loss": x}}
    """
    events = run(study(tmp_path, body), tmp_path, 4)
    assert [(event.reason, event.attempt) for event in of(events, TrialRetried)] == [("out of memory", 1)] * 4
    for trial in trials(tmp_path):
        assert Run.from_json(trial.user_attrs["run"]).budget.batch_size == 16
        assert trial.user_attrs.get("reason") == (None if limit else "out of memory")
        assert trial.state == (TrialState.COMPLETE if limit else TrialState.PRUNED)


def test_a_worker_that_always_dies_is_given_up(tmp_path):
    """Five attempts with the same parameters; three such trials in a row stop the study."""
    with pytest.raises(StudyFailedError, match="worker died"):
        run(study(tmp_path, "import os; os.kill(os.getpid(), 9)"), tmp_path, 9)
    given_up = [trial for trial in trials(tmp_path) if trial.state == TrialState.PRUNED]
    assert [trial.user_attrs["attempts"] for trial in given_up] == [5] * 3
    assert all(trial.user_attrs["reason"] == "worker died" for trial in given_up)


def test_an_attempt_that_died_leaves_nothing_to_the_next(tmp_path):
    """The second attempt finds an empty run directory; its parameters are those of the first."""
    body = """
    import os
    assert not list(report.directory.iterdir())
    (report.directory / "half.txt").write_text("half")
    if not (report.directory.parent / "second").exists():
        (report.directory.parent / "second").touch()
        os._exit(0)
    return {"loss": x}
    """
    events = run(study(tmp_path, body), tmp_path, 2)
    assert [event.reason for event in of(events, TrialRetried)] == ["worker died"] * 2
    assert all(trial.state == TrialState.COMPLETE for trial in trials(tmp_path))
    started = of(events, TrialStarted)
    assert len(started) == 4 and all(event.run == started[event.slot].run for event in started)


def test_errors_are_classified():
    """By type, and torch's allocator by its words."""
    torch = pytest.importorskip("torch")
    assert classified(FloatingPointError()) == "diverged"
    assert classified(MemoryError()) == classified(torch.OutOfMemoryError()) == "out of memory"
    assert classified(SystemExit(1)) == classified(RuntimeError("shape")) == "exception"
    try:
        torch.empty(2**55)
    except RuntimeError as error:
        assert classified(error) == "out of memory"
    try:
        [][0]
    except IndexError as error:
        assert cause(error).startswith("IndexError at test_study.py:")
    assert one_line("a\nb\t\x1b c") == "a b c" and len(one_line("x" * 999)) == 300


# Pruning


def test_trials_below_the_median_are_stopped(tmp_path):
    """With two objectives, by the first; the stopped ones did not get to their end and have no value."""
    events = run(load_study(str(CURVE)), tmp_path, 24, deterministic=True)
    stored = {trial.user_attrs["slot"]: trial for trial in trials(tmp_path)}
    stopped = {event.slot: event for event in of(events, RungReached) if event.pruned}
    assert 0 < len(stopped) < 20
    for slot, event in stopped.items():
        bar = [
            value
            for other, trial in stored.items()
            if other < slot - slot % 2 and trial.state == TrialState.COMPLETE
            for step, value in trial.user_attrs["rungs"]
            if step == event.step
        ]
        assert len(bar) >= 6 and sum(value > event.value for value in bar) >= len(bar) / 2
        assert stored[slot].state == TrialState.PRUNED and stored[slot].values is None
        assert stored[slot].user_attrs["reason"] == "pruned"


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_rule_stops_the_worse_half(direction):
    """Of distinct values the worse half and never more, whatever their order; none before the warm-up."""
    rule = RungRule(direction, warmup=4)
    for count in range(4, 12):
        values = [float(value) for value in range(count)]
        random.Random(count).shuffle(values)
        assert sum(rule.stops(value, values) for value in values) == (count - 1) // 2
        best = max(values) if direction == "maximize" else min(values)
        assert not rule.stops(best, values)
    assert not rule.stops(-1.0 if direction == "maximize" else 9.0, [1.0, 2.0, 3.0])


def test_at_most_eight_values_reach_the_driver(tmp_path):
    """Of a thousand: the 1st, 2nd, 4th, … 128th."""
    asked = []
    report = Report(tmp_path, lambda step, value: bool(asked.append(step)))
    for step in range(1, 1001):
        report(step, 0.0)
    assert asked == list(RUNGS) and len(asked) == 8


def test_a_report_without_a_driver_stops_nothing(tmp_path):
    """`evaluate` is an ordinary function in a script of one's own."""
    Report(tmp_path)(1, 0.5)
    with pytest.raises(FloatingPointError, match="step 2"):
        Report(tmp_path)(2, math.nan)


# Resuming


def test_a_larger_budget_extends_the_study(tmp_path):
    """What was there stays as it was."""
    definition = load_study(str(CURVE))
    run(definition, tmp_path, 3)
    before = trials(tmp_path)
    events = run(definition, tmp_path, 6)
    assert trials(tmp_path)[:3] == before and len(trials(tmp_path)) == 6
    assert events[0].finished == 3 and [event.slot for event in of(events, TrialFinished)] != []
    assert {event.slot for event in of(events, TrialStarted)} == {3, 4, 5}
    assert run(definition, tmp_path, 2)[1:] == [StudyEnded("finished", 6, 2, advice="")]


def test_a_closed_study_goes_on_where_it_was(tmp_path):
    """Closed after each trial, and run through: the same configurations, one trial for each slot."""
    definition = load_study(str(CURVE))
    for _ in range(40):
        events = run_study(definition, tmp_path / "closed", budget=8, workers=2, deterministic=True)
        last = next(event for event in events if isinstance(event, TrialFinished | StudyEnded))
        events.close()
        if isinstance(last, StudyEnded):
            break
        assert not any(trial.state == TrialState.RUNNING for trial in trials(tmp_path / "closed"))
    run(definition, tmp_path / "through", 8, deterministic=True)
    assert [trial.params for trial in trials(tmp_path / "closed")] == [
        trial.params for trial in trials(tmp_path / "through")
    ]


def test_seeds_make_different_studies(tmp_path):
    """The study's seed decides the proposals, and nothing else does."""
    definition = load_study(str(CURVE))
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        run(definition, tmp_path / name, 4, seed=seed, deterministic=True)
    one, again, two = ([trial.params for trial in trials(tmp_path / name)] for name in ("one", "again", "two"))
    assert one == again != two and len({json.dumps(parameters) for parameters in one}) == 4


# Refusals


def test_a_second_driver_is_refused(tmp_path):
    """While the first runs; not after it has been closed."""
    definition = load_study(str(CURVE))
    first = run_study(definition, tmp_path, budget=4, workers=2)
    next(first)
    with pytest.raises(StudyInUseError, match=f"process {os.getpid()}"):
        next(run_study(definition, tmp_path, budget=4))
    first.close()
    assert run(definition, tmp_path, 4)[-1].outcome == "finished"


def test_another_study_of_the_same_name_is_refused(tmp_path):
    """By objectives, code and seed; comments and layout are no change, and another name is the way out."""
    definition = study(tmp_path, "return {'loss': x}")
    run(definition, tmp_path, 1)
    with pytest.raises(StudyChangedError, match=r"objectives were .*loss.*another name"):
        run(replace(definition, objectives={"accuracy": "maximize"}), tmp_path, 2)
    with pytest.raises(StudyChangedError, match="code and search space are others"):
        run(study(tmp_path, "return {'loss': x}", SPACE.replace("0, 1", "0, 2")), tmp_path, 2)
    with pytest.raises(StudyChangedError, match="give seed 0 again"):
        run(definition, tmp_path, 2, seed=1)
    same = study(tmp_path, "return {'loss': x}  # as before", SPACE.replace("0, 1", "0,  1"))
    assert run(same, tmp_path, 2)[-1].finished == 2
    assert run(replace(definition, repeats=2), tmp_path, 1, name="other")[-1].finished == 1
    with pytest.raises(StudyError, match=r"holds 2 studies \(other, own-study\)"), open_study(tmp_path):
        pass


HOSTILE = ["", ".hidden", "../up", "/etc/x", "a/b", "a b", "a\0b", "a\nb", "<script>", "[red]", "x" * 101, "é", "-x"]
HOSTILE += ["\u202eabc", "a\n"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(tmp_path, name):
    """Before anything is written."""
    with pytest.raises(StudyError, match="cannot name a study"):
        run(load_study(str(CURVE)), tmp_path / "new", 1, name=name)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/db?password=hunter2",
        "mysql+odd://hunter2:hunter2@host/db",
        "sqlite:///x.db?key=hunter2",
        "sqlite://me:hunter2@host/x.db",
        "sqlite://hunter2@/x.db",
        "sqlite://me:hunter2@host/:memory:",
        "hunter2 ://@",
        "postgresql://me:hunter2@host:notaport/db",
    ],
)
def test_a_password_is_never_shown(tmp_path, url):
    """Not in the error, nor in the traceback that a user would send."""
    with pytest.raises(StudyError) as caught:
        run(load_study(str(CURVE)), tmp_path, 1, storage_url=url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "sqlite:///" in str(caught.value)


def test_a_url_places_the_database(tmp_path):
    """Run directories stay in the study's folder."""
    url = f"sqlite:///{tmp_path}/else where/all.db"
    run(load_study(str(CURVE)), tmp_path / "folder", 1, storage_url=url)
    assert database_file(url, tmp_path).is_file() and not (tmp_path / "folder/study.db").exists()
    with open_study(tmp_path / "folder", storage_url=url) as stored:
        assert stored.study_name == "curve"
    assert (tmp_path / "folder/trials/0000/0/seed.txt").is_file()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    """And is left as it was."""
    (tmp_path / "study.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StudyError, match=r"study\.db cannot be opened .* not a database"):
        run(load_study(str(CURVE)), tmp_path, 1)
    assert (tmp_path / "study.db").read_bytes() == b"not a database" * 100
    with pytest.raises(StudyError, match="does not exist"), open_study(tmp_path / "nothing"):
        pass


def test_reading_cannot_write(tmp_path):
    """The report opens the database read-only."""
    run(load_study(str(CURVE)), tmp_path, 1)
    with open_study(tmp_path) as stored, pytest.raises(Exception, match="commit"):
        stored.set_user_attr("seed", 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0}, "budget is a whole number from 1"),
        ({"budget": 1, "workers": 0}, "workers is a whole number from 1"),
        ({"budget": 1, "seed": -1}, "seed is a whole number from 0"),
        ({"budget": 1, "device": "cudda"}, "did you mean cuda"),
    ],
)
def test_arguments_are_checked(tmp_path, arguments, message):
    """Each with what is allowed."""
    with pytest.raises(StudyError, match=message):
        next(run_study(load_study(str(CURVE)), tmp_path, **arguments))


# Definitions


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "needs a table such as OBJECTIVES"),
        ("OBJECTIVES = {}", "needs a table such as OBJECTIVES"),
        ("OBJECTIVES = {'loss': 'minimise'}", "did you mean minimize"),
        ("OBJECTIVES = {1: 'minimize'}", "are metric names, got 1"),
        ("OBJECTIVES = {'loss': 'minimize'}", r"needs def configure\(trial\)"),
        ("OBJECTIVES = {'loss': 'minimize'}\ndef configure(): ...", r"configure\(\) cannot be called as"),
        (SPACE + "REPEATS = 0", "whole number from 1, got 0"),
        (SPACE + "def evaluate(run): ...", r"cannot be called as def evaluate\(run, report\)"),
        ("import nothing_of_that_name", "broken.py cannot be imported: ModuleNotFoundError"),
        ("def", "cannot be imported: SyntaxError"),
    ],
)
def test_a_definition_says_what_it_lacks(tmp_path, code, message):
    """With the file's name in front."""
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(StudyError, match=message) as caught:
        load_study(str(tmp_path / "broken.py"))
    assert str(caught.value).startswith("broken.py")


def test_unknown_studies_get_their_neighbours(tmp_path):
    """By name and by path."""
    (tmp_path / "mine.py").write_text(SPACE)
    with pytest.raises(StudyError, match=r"did you mean mine\.py"):
        load_study(str(tmp_path / "mime.py"))
    with pytest.raises(StudyError, match=r"given by its path, as in \./nonesuch\.py"):
        load_study("nonesuch")


def test_studies_are_found_without_importing_them():
    """By what stands at the top level of their files; each of them loads."""
    assert {"OBJECTIVES", "configure", "evaluate"} <= top_level_names(CURVE)
    assert "sleeper" not in studies_available() and "driver" not in studies_available()
    for name in studies_available():
        assert load_study(name).name == name


def test_a_study_file_may_import_its_neighbours(tmp_path):
    """Without hiding modules that are installed."""
    (tmp_path / "neighbour_of_mine.py").write_text("WIDTH = 3\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('hidden')\n")
    (tmp_path / "mine.py").write_text("import json\nfrom neighbour_of_mine import WIDTH\n" + SPACE)
    assert load_study(str(tmp_path / "mine.py")).objectives == {"loss": "minimize"}


# Parts


def test_a_job_is_text(tmp_path):
    """And gives the same result in this process as in a worker."""
    configuration = Run(model={"name": "lru", "radius": 0.5, "rate": 0.25}, task={"name": "digits"})
    job = Job(str(CURVE), configuration.to_json(), (7, 8), str(tmp_path), "token", threads=1)
    assert Job.from_json(job.to_json()) == job
    answer = outcome(job, lambda step, value: False)
    assert answer == {"kind": "result", "metrics": {"accuracy": [0.25] * 2, "macs": [500.0] * 2, "seed": [7.0, 8.0]}}
    assert outcome(job, lambda step, value: True)["reason"] == "pruned"


def test_halving_stops_at_one():
    """32, 16, … 1, None."""
    sizes, run_ = [], Run(model={"name": "lru"}, task={"name": "digits"})
    while run_ is not None:
        sizes.append(run_.budget.batch_size)
        run_ = halved(run_)
    assert sizes == [32, 16, 8, 4, 2, 1]


def test_a_process_is_known_by_its_start():
    """This one is alive, a finished one is not, and the same id with another start is somebody else."""
    lease = Lease.of_this_process()
    assert lease.start_time == start_time(os.getpid()) is not None and not lease.is_held_elsewhere()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held = replace(lease, pid=child.pid, start_time=start_time(child.pid))
    assert held.is_held_elsewhere() and not replace(held, start_time=1).is_held_elsewhere()
    child.communicate(b"\n")
    assert not held.is_held_elsewhere()
