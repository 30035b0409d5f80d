"""Real processes, signals and databases: whatever is killed, every slot is filled once and with its own trial."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState

from specreg.studies.definition import load_study
from specreg.studies.driver import run_study
from specreg.studies.lease import StudyInUseError, start_time
from specreg.studies.storage import open_study

HERE = Path(__file__).parent / "studies_for_tests"
SLEEPER = HERE / "sleeper.py"
BUDGET, WORKER_KILLS, DRIVER_KILLS = 40, 20, 5
MARGIN = 10  # trials left for the last kill: a pruned one takes a quarter of the time, and all could be over before it
PAUSE = 1.0 if os.environ.get("SPECREG_FULL") == "1" else 0.15  # seconds a trial


class Drivers:
    """Starts drivers of one study in processes of their own, one after another, and reads what they log."""

    def __init__(self, folder, *, budget=BUDGET, deterministic=True, pause=PAUSE):
        self.folder, self.budget, self.deterministic, self.pause = folder, budget, deterministic, pause
        self.log = folder.with_suffix(".jsonl")
        self.log.touch()

    def start(self, *, die_at_commit=0):
        """A new driver process, which may kill itself at its n-th commit."""
        command = [sys.executable, "-W", "error", HERE / "drive.py", SLEEPER, self.folder, self.budget]
        command += [int(self.deterministic), self.log]
        environment = {**os.environ, "STUDY_PAUSE": str(self.pause), "OMP_NUM_THREADS": "1"}
        environment["STUDY_DIE_AT_COMMIT"] = str(die_at_commit)
        self.process = subprocess.Popen([str(part) for part in command], env=environment)
        return self.process

    def finish(self):
        """Wait for the driver, starting one if there is none, and return its exit status."""
        if self.process.poll() is not None:
            self.start()
        return self.process.wait(120)

    def entries(self, kind):
        """What was logged so far of one kind."""
        lines = self.log.read_text().splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
        return [entry for entry in entries if entry["kind"] == kind]

    def living_workers(self):
        """Workers that are alive, of any of the drivers; a process id alone could be somebody else's by now."""
        return [entry["pid"] for entry in self.entries("worker") if lives(entry)]

    def kill_driver(self):
        """SIGKILL, and see that its workers follow it."""
        self.process.kill()
        self.process.wait()
        assert eventually(lambda: not self.living_workers(), seconds=5), "a worker has outlived its driver"


def lives(entry):
    """Whether a logged process still exists."""
    return entry["start_time"] is not None and start_time(entry["pid"]) == entry["start_time"]


def eventually(condition, seconds=60):
    """Whether a condition becomes true in time."""
    end = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return answer


def stored(folder):
    """What a study says of each slot, and the trials that filled none."""
    with open_study(folder) as study:
        trials = study.get_trials()
    slots = sorted((trial for trial in trials if "slot" in trial.user_attrs), key=lambda t: t.user_attrs["slot"])
    return slots, [trial for trial in trials if "slot" not in trial.user_attrs]


def record(trial):
    """What must not depend on who was killed."""
    attributes = trial.user_attrs
    return (attributes["slot"], trial.params, trial.state, trial.values, attributes["run"], attributes["rungs"])


def kill_a_worker(drivers, generator):
    """SIGKILL a living worker at a random moment of its life, of a study that is not over."""
    while True:
        assert eventually(lambda: drivers.living_workers() or drivers.process.poll() is not None), "no worker to kill"
        assert drivers.process.poll() is None, "the study was over before everything was killed"
        time.sleep(generator.uniform(0, PAUSE))
        if alive := drivers.living_workers():
            os.kill(generator.choice(alive), signal.SIGKILL)
            return


@pytest.mark.parametrize("deterministic", [True, False])
def test_every_slot_is_filled_once_whatever_is_killed(tmp_path, deterministic):
    """20 workers and 5 drivers of a study of 40 trials are killed, spread over it, at random moments of a trial."""
    generator = random.Random(deterministic)
    victims = generator.sample(["worker"] * WORKER_KILLS + ["driver"] * DRIVER_KILLS, WORKER_KILLS + DRIVER_KILLS)
    drivers = Drivers(tmp_path / "killed", deterministic=deterministic)
    drivers.start()
    for index, victim in enumerate(victims):
        enough = index * (BUDGET - MARGIN) // len(victims)
        assert eventually(lambda enough=enough: len(drivers.entries("finished")) >= enough)
        if victim == "worker":
            kill_a_worker(drivers, generator)
        else:
            time.sleep(generator.uniform(0, PAUSE))
            drivers.kill_driver()
            drivers.start()
    assert drivers.finish() == 0

    slots, others = stored(drivers.folder)
    assert [trial.user_attrs["slot"] for trial in slots] == list(range(BUDGET))  # none lost, none twice
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in slots)
    assert all(trial.user_attrs.get("reason") in (None, "pruned") for trial in slots)
    assert all(t.state == TrialState.FAIL and t.user_attrs["reason"] == "driver died" for t in others)
    assert len(others) <= DRIVER_KILLS
    assert max(Counter(entry["slot"] for entry in drivers.entries("finished")).values()) == 1
    assert sum(trial.user_attrs["attempts"] - 1 for trial in slots) <= WORKER_KILLS
    assert not drivers.living_workers()
    assert sqlite3.connect(drivers.folder / "study.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert [entry["torch"] for entry in drivers.entries("imported")] == [False]
    if deterministic:
        expected = undisturbed(tmp_path / "undisturbed")
        assert [record(trial) for trial in slots] == expected
        assert any(state == TrialState.PRUNED for _, _, state, *_ in expected)


def undisturbed(folder, budget=BUDGET):
    """The same study with nothing killed."""
    for _ in run_study(load_study(str(SLEEPER)), folder, budget=budget, workers=2, deterministic=True):
        pass
    slots, others = stored(folder)
    assert not others and len(slots) == budget
    return [record(trial) for trial in slots]


def test_a_driver_may_die_at_any_commit(tmp_path):
    """Drivers that die at their 1st, 4th, 7th, … commit still make the undisturbed study between them."""
    drivers = Drivers(tmp_path / "killed", budget=6, pause=0)
    for commit in range(1, 40, 3):
        if drivers.start(die_at_commit=commit).wait(60) == 0:
            break
        assert drivers.process.returncode == -signal.SIGKILL
    assert commit > 20, "the study was over too soon to show anything"
    assert drivers.finish() == 0
    slots, others = stored(drivers.folder)
    assert all(t.state == TrialState.FAIL and t.user_attrs["reason"] == "driver died" for t in others) and others
    assert [record(trial) for trial in slots] == undisturbed(tmp_path / "undisturbed", budget=6)


@pytest.mark.parametrize(("signals", "outcome"), [(1, "drained"), (2, "interrupted")])
def test_interrupts_save_the_state(tmp_path, signals, outcome):
    """The first interrupt waits for what runs, the second does not; both can be continued to the very same study."""
    drivers = Drivers(tmp_path / "interrupted", budget=6, pause=0.8)
    process = drivers.start()
    assert eventually(lambda: len(drivers.entries("worker")) == 4)  # the second batch has just begun
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert process.wait(30) == 0
    (ended,) = drivers.entries("ended")
    slots, _ = stored(drivers.folder)
    states = Counter(trial.state for trial in slots)
    assert ended["outcome"] == outcome and "run the same command again" in ended["advice"]
    assert not drivers.living_workers() and states[TrialState.RUNNING] == 0
    marked = [trial for trial in slots if trial.user_attrs.get("reason") == "interrupted"]
    assert bool(marked) == (signals == 2) and all(trial.state == TrialState.WAITING for trial in marked)

    assert drivers.finish() == 0
    slots, others = stored(drivers.folder)
    assert not others and len(slots) == 6 and all(trial.state.is_finished() for trial in slots)
    assert not any(trial.user_attrs.get("reason") == "interrupted" for trial in slots)


def test_of_two_drivers_at_once_one_is_refused(tmp_path):
    """The lock decides at once, however close they are."""
    first, second = (Drivers(tmp_path / "contested", budget=4, pause=0.5) for _ in range(2))
    processes = [first.start(), second.start()]
    assert sorted(process.wait(60) for process in processes) == [0, 2]
    assert [entry["error"] for entry in first.entries("refused")] == ["StudyInUseError"]
    slots, others = stored(first.folder)
    assert len(slots) == 4 and not others


def test_a_living_driver_is_found_without_its_lock_file(tmp_path):
    """The recorded lease holds where somebody has removed the lock file."""
    drivers = Drivers(tmp_path / "held", budget=4, pause=1)
    process = drivers.start()
    assert eventually(drivers.living_workers)
    (drivers.folder / "study.db.sleeper.lock").unlink()
    with pytest.raises(StudyInUseError, match=f"process {process.pid}"):
        next(run_study(load_study(str(SLEEPER)), drivers.folder, budget=4, workers=2))
    assert process.wait(60) == 0


def test_a_worker_that_hangs_follows_its_driver(tmp_path):
    """A stopped process reads no end of file; the kernel ends it, as it would one stuck in foreign code."""
    drivers = Drivers(tmp_path / "hanging", budget=4, pause=60)
    drivers.start()
    assert eventually(lambda: len(drivers.living_workers()) == 2)
    time.sleep(0.5)  # beyond the first lines of the worker, where it asks the kernel for this
    os.kill(drivers.living_workers()[0], signal.SIGSTOP)
    drivers.kill_driver()
