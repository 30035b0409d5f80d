"""The command line as a user meets it: exit codes, one message, JSON, nothing written on bad input."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "specreg.studies.cli"]
TINY = [
    "--set",
    "model.d_model=8",
    "--set",
    "model.depth=1",
    "--set",
    "model.d_state=4",
    "--set",
    "budget.batch_size=4",
]


def specreg(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def refused(done: subprocess.CompletedProcess[str], cwd: Path, *parts: str) -> None:
    """One clear message, exit 2, no stack trace, nothing written."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("specreg: ") and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr, (part, done.stderr)
    assert not list(cwd.iterdir()), list(cwd.iterdir())


TRAIN = ["train", "--model", "lru", "--task", "digits"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "--model", "lrv", "--task", "digits"], ["no model 'lrv'", "lru"]),
        (["train", "--model", "lru", "--task", "digts"], ["no task 'digts'", "digits"]),
        ([*TRAIN, "--set", "model.d_stat=3"], ["d_state"]),
        ([*TRAIN, "--set", "budgt.steps=3"], ["budget"]),
        ([*TRAIN, "--set", "nonsense"], ["model.d_state=64"]),
        ([*TRAIN, "--steps", "0"], ["budget.steps", "1"]),
        ([*TRAIN, "--steps", "many"], ["--steps"]),
        ([*TRAIN, "--init", "ring(0.9, 1.5)"], ["r_max <= 1"]),
        ([*TRAIN, "--init", "__import__('os').system('touch owned')"], ["cannot read"]),
        ([*TRAIN, "--penalty", "(lambda: band(0, 1))()"], ["cannot read"]),
        ([*TRAIN, "--penalty", "bend(0.5, 1.0)"], ["band"]),
        ([*TRAIN, "--device", "cuda:99"], ["cuda"]),
        (["train", "--task", "digits"], ["--model"]),
        (["train", "--resume"], ["--out"]),
        (["train", "--resume", "--out", "nowhere"], ["nowhere"]),
        (["train", "--config", "missing.toml"], ["missing.toml"]),
        (["train", "--model", "mamba2", "--task", "cifar10-gray", "--data", "."], ["cifar10-gray.npz", "--data"]),
        (
            ["train", "--model", "lru", "--task", "imdb", "--data", "."],
            ["https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz", "--download"],
        ),
        (["tasks", "show", "mnist", "--data", "."], ["train-images-idx3-ubyte.gz", "--download"]),
        ([*TRAIN, "--set", "budget.steps=none"], ["budget.steps", "'none'"]),
        (["train", "--resume", "--out", "nowhere", "--download"], ["nothing else"]),
        (["eval", "nowhere", "--longest", "0"], ["--longest"]),
        (["tasks", "score"], ["RUN_DIR"]),
        (["tasks", "score", "nowhere"], ["nowhere"]),
        ([*TRAIN, "--out", ""], ["--out", "not empty"]),
        ([*TRAIN, "--data", ""], ["--data", "not empty"]),
        (["train", "--config", ""], ["--config", "not empty"]),
        (["eval", ""], ["RUN_DIR", "not empty"]),
        (["spectrum", ""], ["RUN_DIR", "not empty"]),
        (["study", "run", "digits", "--out", ""], ["--out", "not empty"]),
        (["study", "run", "digits", "--name", ""], ["''", "letters"]),
        (["study", "report", "digits", "--html", ""], ["--html", "not empty"]),
        (
            ["train", "--model", "softmax-attention", "--task", "digits", "--init", "ring(0.9, 0.99)"],
            ["cannot be init"],
        ),
        (["train", "--bogus"], ["--bogus"]),
        (["eval", "nowhere"], ["nowhere"]),
        (["spectrum", "nowhere"], ["nowhere"]),
        (["list", "modles"], ["models"]),
        (["study", "run", "digit"], ["digits"]),
        (["study", "run", "<script>alert(1)</script>"], []),
        (["study", "run", "../digits"], []),
        (["study", "run", "digits", "--name", "a/b"], ["a/b"]),
        (["study", "run", "digits", "--name", "<b>x</b>"], ["<b>x</b>"]),
        (["study", "run", "digits", "--trials", "0"], ["1"]),
        (["study", "run", "digits", "--workers", "0"], ["1"]),
        (["study", "run", "missing.py"], ["missing.py"]),
        (["study", "report", "digits"], ["digits"]),
        (["study", "run", "digits", "--storage", "not a url"], ["sqlite:///"]),
        (["study", "run", "digits", "--storage", "sqlite:////proc/nowhere/x.db"], ["/proc/nowhere"]),
    ],
    ids=lambda value: " ".join(value)[:60] if value else "-",
)
def test_bad_input_is_refused(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    refused(specreg(*arguments, cwd=tmp_path), tmp_path, *parts)


@pytest.mark.parametrize("verb", ["run", "report"])
def test_a_password_is_never_shown(verb: str, tmp_path: Path) -> None:
    url = "postgresql://user:hunter2@127.0.0.1:1/db?password=hunter3"
    done = specreg("study", verb, "digits", "--storage", url, "--debug", cwd=tmp_path)
    assert done.returncode == 2
    assert "hunter" not in done.stdout + done.stderr


def test_a_study_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text("OBJECTIVES = {'accuracy': 'upwards'}\ndef configure(trial): ...\n")
    done = specreg("study", "run", "study.py", cwd=tmp_path)
    assert done.returncode == 2 and "maximize" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["study.py"]


def test_json_is_one_document_also_on_failure(tmp_path: Path) -> None:
    done = specreg(*TRAIN, *TINY, "--steps", "2", "--out", "run", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert document["ok"] and 0 <= document["data"]["accuracy"] <= 1
    document = json.loads(specreg(*TRAIN, *TINY, "--steps", "2", "--out", "run", "--json", cwd=tmp_path).stdout)
    assert not document["ok"] and document["error"]["exit"] == 2 and "--resume" in document["error"]["message"]
    for arguments in (["list", "models"], ["list", "studies"], ["eval", "run"], ["spectrum", "run"]):
        done = specreg(*arguments, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["ok"]
    document = json.loads(specreg("study", "run", "--nothing", "--json", cwd=tmp_path).stdout)
    assert not document["ok"]


@pytest.mark.parametrize("kind", ["models", "tasks", "targets", "penalties", "studies"])
def test_lists_show_what_there_is(kind: str, tmp_path: Path) -> None:
    known = {"models": "lru", "tasks": "cifar10-gray", "targets": "ring", "penalties": "per_head", "studies": "digits"}
    done = specreg("list", kind, cwd=tmp_path, COLUMNS="80")
    assert done.returncode == 0 and known[kind] in done.stdout and "\x1b" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = specreg(*TRAIN, "--init", "ring(0.9, 0.99)", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "d_state" not in done.stderr and "parameters" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_dry_run_shows_what_is_left_at_its_default(tmp_path: Path) -> None:
    """As comments, so that what is printed is a run.toml; a setting that was given is not among them."""
    given = ["--set", "model.d_state=8", "--dry-run"]
    done = specreg(*TRAIN, *given, cwd=tmp_path)
    comments = [line for line in done.stdout.splitlines() if line.startswith("# model.")]
    assert "# model.d_model=64 (default)" in comments and not any("d_state" in line for line in comments)
    (tmp_path / "run.toml").write_text(done.stdout)
    assert specreg("train", "--config", "run.toml", "--dry-run", cwd=tmp_path).stdout == done.stdout
    defaults = json.loads(specreg(*TRAIN, *given, "--json", cwd=tmp_path).stdout)["data"]["defaults"]
    assert defaults["model.depth"] == 2 and "model.d_state" not in defaults


def test_a_run_can_be_repeated_from_its_own_file(tmp_path: Path) -> None:
    assert specreg(*TRAIN, *TINY, "--steps", "3", "--out", "a", cwd=tmp_path).returncode == 0
    assert specreg("train", "--config", "a/run.toml", "--out", "b", cwd=tmp_path).returncode == 0
    assert (tmp_path / "a/run.toml").read_text() == (tmp_path / "b/run.toml").read_text()
    assert json.loads((tmp_path / "a/summary.json").read_text()) == json.loads(
        (tmp_path / "b/summary.json").read_text()
    )


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    assert specreg(*TRAIN, *TINY, "--steps", "2", "--out", "run", cwd=tmp_path).returncode == 0
    file = tmp_path / "run/checkpoint/step-00000002/model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    done = specreg("train", "--resume", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2 and "model.safetensors" in done.stderr and "Traceback" not in done.stderr


def test_a_loss_that_diverges_ends_with_1_and_its_cause(tmp_path: Path) -> None:
    wild = [
        "--set",
        "optimiser.learning_rate=1e30",
        "--set",
        "optimiser.clip_norm=0",
        "--set",
        "optimiser.warmup_share=0",
    ]
    done = specreg(*TRAIN, *TINY, *wild, "--steps", "20", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1 and "task loss is" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    command = [*COMMAND, *TRAIN, "--steps", "100000", "--out", "run", "--set", "budget.checkpoint_every=5", "--quiet"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("run/checkpoint/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "specreg train --resume --out run" in errors and "Traceback" not in errors


def test_a_spectrum_page_is_written_whole(tmp_path: Path) -> None:
    assert specreg(*TRAIN, *TINY, "--steps", "2", "--out", "run", cwd=tmp_path).returncode == 0
    assert specreg("spectrum", "run", "--html", "page.html", cwd=tmp_path).returncode == 0
    assert (tmp_path / "page.html").read_text().rstrip().endswith("</html>")
    done = specreg("spectrum", "run", "--html", "missing/page.html", cwd=tmp_path)
    assert done.returncode == 2 and "does not exist" in done.stderr


def test_help_is_quick(tmp_path: Path) -> None:
    """At most 0.25 s of processor time, best of five."""
    best = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert specreg("--help", cwd=tmp_path).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best <= 0.25, best


def test_version(tmp_path: Path) -> None:
    assert specreg("--version", cwd=tmp_path).stdout.startswith("specreg ")


FAILING = """
OBJECTIVES = {"score": "maximize"}

def configure(trial):
    trial.suggest_float("x", 0, 1)
    from specreg.studies.configuration import Run
    return Run(model={"name": "lru"}, task={"name": "digits"})

def evaluate(run, report):
    return {"score": float("nan")}
"""


def test_a_study_in_which_nothing_completes_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    done = specreg("study", "run", "failing.py", "--trials", "2", cwd=tmp_path)
    assert done.returncode == 1 and "no trial of 2 completed" in done.stderr and "diverged" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failed_trial_says_where(tmp_path: Path) -> None:
    """The file and the line of an exception stand in its message."""
    (tmp_path / "failing.py").write_text(FAILING.replace("return {", "raise ValueError('odd width')\n    return {"))
    done = specreg("study", "run", "failing.py", "--trials", "2", cwd=tmp_path)
    assert done.returncode == 1 and "ValueError at failing.py:10: odd width" in done.stderr


def test_resuming_a_run_that_has_ended_says_so(tmp_path: Path) -> None:
    assert specreg(*TRAIN, *TINY, "--steps", "2", "--out", "run", cwd=tmp_path).returncode == 0
    done = specreg("train", "--resume", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0 and "ended already" in done.stderr


def test_a_directory_without_a_readable_configuration_is_no_run(tmp_path: Path) -> None:
    assert specreg(*TRAIN, *TINY, "--steps", "2", "--out", "run", cwd=tmp_path).returncode == 0
    (tmp_path / "run/run.toml").write_text("")
    for command in ("spectrum", "eval"):
        done = specreg(command, "run", cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    done = specreg("train", "--model", "\x1b[31mlru\u202e", "--task", "digits", cwd=tmp_path)
    assert done.returncode == 2 and "\x1b" not in done.stderr and "\u202e" not in done.stderr
