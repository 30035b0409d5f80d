"""Training: resumed runs equal straight ones, weight 0 changes no bit, penalties move spectra, damage is refused."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from specreg.spectrum import Spectrum
from specreg.studies import checkpoints, evaluation, training
from specreg.studies.building import build_parts, build_terms, count_parameters, optimiser_groups
from specreg.studies.configuration import Budget, ConfigurationError, Optimiser, Run
from specreg.studies.recording import counted_values
from specreg.studies.run_directory import RunDirectory

DATA = Path(os.environ.get("SPECREG_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
FAR = "timescale_distance(log_uniform_timescale(1, 1024))"


def small(model: str = "lru", **settings: object) -> Run:
    run = Run(
        model={"name": model, "d_model": 16, "d_state": 8, "depth": 1, "convolution_width": 3},
        task={"name": "digits"},
        budget=Budget(steps=12, batch_size=8, evaluate_every=4, checkpoint_every=3),
    )
    for path, value in settings.items():
        run = run.updated(path.replace("__", "."), value)
    return run


def untimed(directory: Path) -> list[dict[str, object]]:
    return [
        {key: value for key, value in line.items() if key != "timing"} for line in RunDirectory(directory).metrics()
    ]


def finish(run: Run, directory: Path | None = None, resume: bool = False) -> list[training.Step]:
    return list(training.train(run, directory, resume))


@pytest.mark.parametrize("model", ["lru", "mamba2", "softmax-attention"])
@pytest.mark.parametrize("stop", [1, 3, 5, 11])
@pytest.mark.parametrize("forgotten", [False, True])
def test_stopped_anywhere_and_resumed_is_the_same_run(model: str, stop: int, forgotten: bool, tmp_path: Path) -> None:
    run = small(model, penalties=["band(0.5, 0.9)*0.1"], model__dropout=0.1)
    straight = finish(run, tmp_path / "straight")
    steps = training.train(run, tmp_path / "stopped")
    for step in steps:
        if step.step == stop:
            break
    steps.close()
    assert checkpoints.saved(tmp_path / "stopped" / "checkpoint")[-1].name == f"step-{stop:08d}"
    if forgotten:  # as after a kill: back to the checkpoint before, or to the start
        shutil.rmtree(checkpoints.saved(tmp_path / "stopped" / "checkpoint")[-1])
    resumed = finish(run, tmp_path / "stopped", resume=True)
    assert resumed == straight[-len(resumed) :]
    assert untimed(tmp_path / "stopped") == untimed(tmp_path / "straight")
    assert RunDirectory(tmp_path / "stopped").summary() == RunDirectory(tmp_path / "straight").summary()


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    finish(small(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert finish(small(), tmp_path, resume=True) == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


COMMAND = [sys.executable, "-m", "specreg.studies.cli"]


def kill_three_times(arguments: list[str], directory: Path, kills: int) -> None:
    """Start the command, SIGKILL it after a random while, resume; until it was killed often enough, then let it end."""
    draw = random.Random(len(arguments))
    resume = ["train", "--resume", "--out", str(directory), "--quiet"]
    for attempt in range(kills):
        begun = (directory / "run.toml").exists()
        process = subprocess.Popen([*COMMAND, *(resume if begun else arguments)], stdout=subprocess.DEVNULL)
        aim = 8 + 30 * attempt + draw.randrange(20)
        deadline = time.monotonic() + 120
        while len(RunDirectory(directory).metrics()) < aim and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run([*COMMAND, *resume], check=True, stdout=subprocess.DEVNULL, timeout=300)


@pytest.mark.parametrize("model", ["lru", "mamba2"])
def test_killed_three_times_ends_with_identical_metrics(model: str, tmp_path: Path) -> None:
    settings = ["--model", model, "--task", "digits", "--steps", "120", "--set", "model.d_model=16", "--set"]
    settings += [
        "budget.checkpoint_every=10",
        "--set",
        "budget.evaluate_every=40",
        "--penalty",
        f"{FAR}*0.1",
        "--quiet",
    ]
    subprocess.run([*COMMAND, "train", *settings, "--out", str(tmp_path / "a")], check=True, stdout=subprocess.DEVNULL)
    kill_three_times(["train", *settings, "--out", str(tmp_path / "b")], tmp_path / "b", kills=3)
    assert len(untimed(tmp_path / "a")) == 120
    assert untimed(tmp_path / "b") == untimed(tmp_path / "a")
    assert RunDirectory(tmp_path / "b").summary() == RunDirectory(tmp_path / "a").summary()


@pytest.mark.skipif(not (DATA / "cifar10-gray.npz").exists(), reason=f"needs cifar10-gray.npz in {DATA}")
def test_mamba2_on_grey_cifar_survives_a_kill(tmp_path: Path) -> None:
    settings = ["--model", "mamba2", "--task", "cifar10-gray", "--data", str(DATA), "--set", "task.length=256"]
    settings += ["--steps", "30", "--set", "model.d_model=16", "--set", "model.depth=1", "--set", "budget.batch_size=8"]
    settings += ["--set", "budget.checkpoint_every=10", "--set", "budget.evaluate_every=30", "--quiet"]

    subprocess.run([*COMMAND, "train", *settings, "--out", str(tmp_path / "a")], check=True, stdout=subprocess.DEVNULL)
    kill_three_times(["train", *settings, "--out", str(tmp_path / "b")], tmp_path / "b", kills=1)
    assert untimed(tmp_path / "b") == untimed(tmp_path / "a")


def test_a_term_of_weight_zero_changes_no_bit(tmp_path: Path) -> None:
    without = finish(small())
    with_zero = finish(small(penalties=[f"{FAR}*0"]))
    assert [(s.task_loss, s.evaluation) for s in without] == [(s.task_loss, s.evaluation) for s in with_zero]


@pytest.mark.parametrize("model", ["lru", "mamba2"])
def test_a_penalty_moves_the_spectrum_within_200_steps(model: str) -> None:
    """From Ring(0.9, 0.99) to LogUniformTimescale(1, 1024): a tenth of the distance, the task learnt as before."""
    heads = {"heads": 8} if model == "mamba2" else {"d_state": 64}
    run = Run(
        model={"name": model, "d_model": 32, "depth": 1, "convolution_width": 4, **heads},
        task={"name": "digits"},
        init="ring(0.9, 0.99)",
        penalties=(FAR,),
        optimiser=Optimiser(learning_rate=5e-3, spectral_learning_rate=0.05),
        budget=Budget(steps=200, evaluate_every=50),
    )
    parts = build_parts(run)
    start = training.measure(parts, training.held_out(parts))["spectral_distance"]
    steps = finish(run)
    distances = [s.spectrum["spectral_distance"] for s in steps if s.spectrum is not None]
    assert min(distances) < start / 10, (start, distances)

    def late(steps: list[training.Step]) -> float:
        return sum(s.task_loss for s in steps[-30:]) / 30

    plain = late(finish(run.updated("penalties", [])))
    assert late(steps) < plain + 0.25, "the task is learnt as without the term"
    assert late(steps) < steps[0].task_loss


def test_a_loss_that_is_not_finite_names_its_cause() -> None:
    run = small(optimiser__learning_rate=1e30, optimiser__warmup_share=0.0, optimiser__clip_norm=0.0)
    with pytest.raises(training.DivergedError, match=r"task loss is (nan|inf) at step \d+"):
        finish(run)
    with pytest.raises(training.DivergedError, match=r"(validation loss|gradient's norm) is"):
        finish(run.updated("budget.steps", 1))
    with pytest.raises(training.DivergedError, match="penalty band"):
        training.check_finite(1.0, {"band(0, 1)": math.nan}, 3)


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    run = small(budget__steps=40, budget__evaluate_every=1, budget__patience=2, optimiser__learning_rate=1e-30)
    steps = finish(run, tmp_path)
    summary = RunDirectory(tmp_path).summary()
    assert summary is not None and len(steps) < 40
    assert summary["best_step"] == len(steps) - 2
    assert checkpoints.saved(tmp_path / "best")[-1].name == f"step-{summary['best_step']:08d}"


def test_the_test_split_is_read_by_test_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = build_parts(small())
    seen = []
    original = type(parts.task).batches
    monkeypatch.setattr(
        type(parts.task), "batches", lambda self, split, size: (seen.append(split), original(self, split, size))[1]
    )
    finish(small(), tmp_path)
    assert set(seen) == {"validation"}
    score = evaluation.test(tmp_path)
    assert seen[-1] == "test"
    assert RunDirectory(tmp_path).summary("test") == {"accuracy": score.accuracy, "loss": score.loss}


def test_spectral_parameters_have_their_own_group() -> None:
    parts = build_parts(small("mamba2"))
    groups = optimiser_groups(parts.model, Optimiser(spectral_learning_rate=0.5, weight_decay=0.1))
    spectral = {id(p) for mixer in parts.model.mixers() for p in mixer.spectral_parameters()}
    mine = [group for group in groups if {id(p) for p in group["params"]} & spectral]
    assert len(mine) == 1 and {id(p) for p in mine[0]["params"]} == spectral
    assert mine[0]["lr"] == 0.5 and mine[0]["weight_decay"] == 0
    assert sum(p.numel() for g in groups for p in g["params"]) == count_parameters(parts.model)


def test_the_random_state_of_the_user_stays_untouched() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    finish(small(model__dropout=0.2, budget__steps=2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "name", ["lru", "mamba2", "pseudo-lti-mamba2", "softmax-attention", "linear-attention", "norm-attention"]
)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_parameter_budget_is_met(name: str, depth: int) -> None:
    run = Run(
        model={"name": name, "parameters": 40_000, "depth": depth, "gate": True, "d_state": 32}, task={"name": "digits"}
    )
    assert abs(count_parameters(build_parts(run).model) - 40_000) <= 4_000


def test_autocast_and_compile_train() -> None:
    steps = finish(small("mamba2", autocast=True, budget__steps=3, penalties=[f"{FAR}*0.1"]))
    assert all(math.isfinite(step.task_loss) for step in steps)


def test_one_flipped_bit_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    finish(small(), tmp_path)
    latest = checkpoints.saved(tmp_path / "checkpoint")[-1]
    draw = random.Random(0)
    for file in sorted(latest.iterdir()):
        original = file.read_bytes()
        for _ in range(15):
            position, bit = draw.randrange(len(original)), draw.randrange(8)
            damaged = bytearray(original)
            damaged[position] ^= 1 << bit
            file.write_bytes(damaged)
            with pytest.raises(checkpoints.CheckpointError, match=str(latest)):
                checkpoints.load(latest)
        file.write_bytes(original)
    checkpoints.load(latest)


def test_truncated_and_missing_files_are_refused(tmp_path: Path) -> None:
    finish(small(), tmp_path)
    latest = checkpoints.saved(tmp_path / "checkpoint")[-1]
    for file in sorted(latest.iterdir()):
        original = file.read_bytes()
        for length in (0, 1, len(original) // 2, len(original) - 1):
            file.write_bytes(original[:length])
            with pytest.raises(checkpoints.CheckpointError, match=str(latest)):
                finish(small(), tmp_path, resume=True)
        file.unlink()
        with pytest.raises(checkpoints.CheckpointError, match=file.name):
            checkpoints.load(latest)
        file.write_bytes(original)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    finish(small(), tmp_path)
    (tmp_path / "run.toml").write_text(small(model__d_state=9).to_toml())
    with pytest.raises(checkpoints.CheckpointError, match=r"does not fit run\.toml"):
        finish(small(model__d_state=9), tmp_path, resume=True)


def test_another_run_is_not_taken_up_in_its_place(tmp_path: Path) -> None:
    finish(small(), tmp_path)
    other = small(seed=5, budget__batch_size=9, optimiser__learning_rate=0.5)
    with pytest.raises(ConfigurationError, match=r"budget\.batch_size, optimiser\.learning_rate, seed differ"):
        finish(other, tmp_path, resume=True)
    with pytest.raises(ConfigurationError, match="no run here"):
        finish(small(), tmp_path / "nowhere", resume=True)


def test_what_a_kill_left_half_made_is_swept_up(tmp_path: Path) -> None:
    run = small()
    steps = training.train(run, tmp_path)
    for step in steps:
        if step.step == 7:
            break
    steps.close()
    for leftover in (tmp_path / "checkpoint" / ".step-00000009.x", tmp_path / "best" / "step-00000011"):
        leftover.mkdir()
    (tmp_path / ".metrics.jsonl.y").touch()
    (tmp_path / "spectra" / "step-00000011.safetensors").touch()
    finish(run, tmp_path, resume=True)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") or "00000011" in path.name]
    assert len(json.loads((tmp_path / "environment.json").read_text())["resumed"]) == 1


def test_a_schedule_turns_a_term_on(tmp_path: Path) -> None:
    steps = finish(small(penalties=["band(0.5, 0.9)*0.1@ramp(3, 6)"]))
    assert [bool(step.penalties) for step in steps[:6]] == [False] * 4 + [
        True
    ] * 2  # a factor for steps done: 0, 1, 2, …
    with pytest.raises(ConfigurationError, match="did you mean ramp"):
        build_terms(("band(0, 1)*0.1@rmp(3, 6)",))


def test_recorded_values_come_from_all_places() -> None:
    """64 examples of 64 steps: every n-th of them would be the same few columns."""
    place = torch.arange(64.0).view(1, 64, 1, 1).expand(64, 64, 2, 3) + torch.arange(3) / 10
    log_modulus, _ = counted_values(Spectrum(-place, torch.zeros_like(place), torch.ones(3)))
    assert log_modulus.shape == (2, 1023)
    steps, values = (-log_modulus[0]).floor().unique(return_counts=True)
    assert len(steps) == 64 and int(values.max()) < 3 * 30
    assert torch.equal(log_modulus[0].view(-1, 3).diff().abs().round(decimals=3), torch.full((341, 2), 0.1))


def test_a_run_directory_is_not_overwritten(tmp_path: Path) -> None:
    finish(small(), tmp_path)
    with pytest.raises(ConfigurationError, match="--resume"):
        finish(small(), tmp_path)


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    run = small("mamba2")
    finish(run, tmp_path)
    files = RunDirectory(tmp_path)
    assert files.run() == run
    assert list(files.spectra()) == [0, 4, 8, 12]
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["seed"] == run.seed
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") or path.suffix in (".pt", ".pkl")]


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    finish(small(), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "train_l')
    assert RunDirectory(tmp_path).metrics()[-1]["step"] == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__name": "lrv"}, "did you mean lru"),
        ({"model__d_stat": 3}, "did you mean d_state"),
        ({"model__d_state": "many"}, "model.d_state"),
        ({"model__d_state": 0}, "at least 1"),
        ({"model__depth": 0}, "model.depth"),
        ({"task__name": "digit"}, "did you mean digits"),
        ({"task__sed": 3}, "did you mean seed"),
        ({"budget__steps": 0}, "budget.steps"),
        ({"optimiser__learning_rate": -1.0}, "optimiser.learning_rate"),
        ({"init": "ring(0.9, 1.2)"}, "r_max <= 1"),
        ({"init": "rng(0.9, 0.95)"}, "did you mean ring"),
        ({"penalties": ["ring(0.9, 0.99)"]}, "timescale_distance"),
        ({"penalties": ["band(0.5)"]}, "the form is band"),
        ({"penalties": ["band(0.5, 1.0)*-1"]}, "at least 0"),
        ({"penalties": ["().__class__"]}, "cannot read"),
        ({"device": "abacus"}, "write cpu"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_written(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        finish(small(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["softmax-attention", "linear-attention", "norm-attention"])
def test_attention_says_at_construction_that_it_cannot_be_initialised(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be initialised"):
        build_parts(small(name, model__heads=2, init="ring(0.9, 0.99)"))


def test_a_real_model_refuses_a_target_with_phases() -> None:
    with pytest.raises(ConfigurationError, match="asks for phases"):
        build_parts(small("mamba2", init="ring(0.9, 0.99, max_phase=1.0)"))


def test_terms_carry_their_weight() -> None:
    (term,) = build_terms(("per_head(band(0.5, 1.0))*0.25",))
    assert term.weight == 0.25 and term.name == "per_head(band(0.5, 1.0))*0.25"
