"""A driver to be killed: runs a study and appends what happens to a file, one JSON object a line.

No `if __name__ == "__main__"` on purpose: workers must not run their driver's script again.
"""

import json
import os
import signal
import sys
from itertools import count
from pathlib import Path

from sqlalchemy import event as events
from sqlalchemy.engine import Engine

from specreg.studies.definition import StudyError, load_study
from specreg.studies.driver import run_study
from specreg.studies.events import StudyEnded, TrialFinished, TrialStarted
from specreg.studies.lease import start_time

commits = count(1)


@events.listens_for(Engine, "commit")
def die(connection):
    """Die as by SIGKILL at the commit that the environment names, before it is made."""
    if next(commits) == int(os.environ.get("STUDY_DIE_AT_COMMIT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)


source, folder, budget, deterministic, log = sys.argv[1:]


def note(**entry):
    """Append one line to the log, in one write."""
    with Path(log).open("a") as file:
        file.write(json.dumps(entry) + "\n")


note(kind="driver", pid=os.getpid(), start_time=start_time(os.getpid()))
try:
    for event in run_study(
        load_study(source), Path(folder), budget=int(budget), workers=2, deterministic=bool(int(deterministic))
    ):
        if isinstance(event, TrialStarted):
            note(kind="worker", pid=event.pid, start_time=start_time(event.pid), slot=event.slot)
        elif isinstance(event, TrialFinished):
            note(kind="finished", slot=event.slot)
        elif isinstance(event, StudyEnded):
            note(kind="ended", outcome=event.outcome, advice=event.advice)
except StudyError as error:
    note(kind="refused", error=type(error).__name__)
    sys.exit(2)
note(kind="imported", torch="torch" in sys.modules)
