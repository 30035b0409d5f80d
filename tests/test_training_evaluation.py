"""Evaluation of a trained model: other sizes, published accuracies, MAD's score; answers decoded from last states."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from specreg.models.backbone import Backbone, sinusoids
from specreg.models.last_state_decoder import LastStateDecoder
from specreg.models.lru import LRU
from specreg.studies import evaluation, members, scoring, tested
from specreg.studies.building import assemble, build_parts, build_task, count_parameters, task_settings
from specreg.studies.cli import app
from specreg.studies.configuration import Budget, ConfigurationError, Optimiser, Run
from specreg.studies.console import Output
from specreg.studies.report_statistics import Estimate
from specreg.studies.run_directory import RunDirectory
from specreg.studies.training import train
from specreg.tasks.compression import Compression
from specreg.tasks.mad import BATCH_SIZE, SETTINGS, MADTask, mad_setting
from specreg.tasks.task import UNSCORED, Task

MODEL = {"name": "lru", "d_model": 8, "depth": 1, "d_state": 4}
PARITY = {"name": "parity", "longest": 12, "validation_examples": 40, "test_examples": 60}
QUIET = Output(json=True, quiet=True)


def trained(directory: Path, task: dict[str, Any], model: dict[str, Any] = MODEL, steps: int = 2, **more: Any) -> Path:
    budget = Budget(steps=steps, batch_size=8, evaluate_every=steps)
    for _ in train(Run(model=model, task=task, budget=budget, **more), directory):
        pass
    return directory


def plain_accuracy(directory: Path, task: Task) -> float:
    """Mean over test examples of the share answered right, one example at a time."""
    _, parts = evaluation.load_best(directory)
    shares = []
    with torch.no_grad():
        for batch in task.batches("test", 1):
            answers = parts.model.eval()(batch.inputs, batch.mask).argmax(-1)
            scored = batch.targets != UNSCORED
            shares.append((answers == batch.targets)[scored].double().mean().item())
    return sum(shares) / len(shares)


class TestExtrapolation:
    """`Task.extrapolations` in the evaluation of a run."""

    @pytest.mark.parametrize("positions", ["none", "sinusoidal"])
    def test_accuracy_is_that_of_the_longer_task(self, tmp_path: Path, positions: str) -> None:
        run = trained(tmp_path, PARITY, {**MODEL, "positions": positions})
        task = build_task(Run(model=MODEL, task=PARITY))
        found = dict(evaluation.extrapolate(run))
        assert list(found) == list(task.extrapolations())
        for name, longer in task.extrapolations().items():
            assert longer.max_length > task.max_length
            assert found[name].length == longer.max_length
            assert found[name].chance == longer.chance
            assert found[name].accuracy == pytest.approx(plain_accuracy(run, longer))

    def test_learned_positions_end_by_name(self, tmp_path: Path) -> None:
        found = dict(evaluation.extrapolate(trained(tmp_path, PARITY, {**MODEL, "positions": "learned"})))
        longest = build_task(Run(model=MODEL, task=PARITY)).max_length
        assert found
        for size in found.values():
            assert size.accuracy is None and size.reason == f"the model's positions were learned up to {longest} steps"

    def test_shorter_sizes_fit_learned_positions(self, tmp_path: Path) -> None:
        task = {"name": "induction-heads", "length": 255, "extrapolate_to": 512, "test_examples": 20}
        found = dict(evaluation.extrapolate(trained(tmp_path, task, {**MODEL, "positions": "learned"}, 1)))
        measured = {name: size.accuracy is not None for name, size in found.items()}
        assert measured == {"length-64": True, "length-128": True, "length-256": True, "length-512": False}

    def test_at_the_command_line(self, tmp_path: Path) -> None:
        run = trained(tmp_path, PARITY)
        spoken = CliRunner().invoke(app, ["eval", str(run), "--longest", "300"])
        assert spoken.exit_code == 0, spoken.stderr
        assert "by length: " in spoken.stdout
        shown = CliRunner().invoke(app, ["tasks", "show", "parity"]).stdout
        assert "also at    length-100, length-256, length-500" in shown
        lines = [line for line in spoken.stdout.splitlines() if line.startswith("  at length-")]
        assert len(lines) == 3 and all("(chance 0.5000)" in line for line in lines)
        left_out = "  at length-500: not measured: 499 steps are more than the 300 asked for (chance 0.5000)"
        assert left_out in lines
        data = json.loads(CliRunner().invoke(app, ["eval", str(run), "--json"]).stdout)["data"]
        assert data["published_accuracy"] is None
        assert data["extrapolations"]["length-500"]["accuracy"] is not None
        kept = RunDirectory(run).summary("test") or {}
        assert kept["extrapolations"] == data["extrapolations"] and kept["accuracy"] == data["accuracy"]

    def test_batches_hold_no_more_steps(self) -> None:
        task = build_task(Run(model=MODEL, task=PARITY))
        longer = task.extrapolations()["length-500"]
        for asked, here, there in ((None, 2**15 // task.max_length, 2**15 // 499), (64, 64, 1)):
            run = Run(model=MODEL, task=PARITY, budget=Budget(evaluation_batch_size=asked))
            assert evaluation.evaluation_batch_size(run, build_parts(run)) == here
            assert evaluation.evaluation_batch_size(run, build_parts(run), longer) == there

    def test_sizes_are_reported_over_seeds(self) -> None:
        """Shorter first; what is damaged or was not measured is left out."""
        sizes = {"b": {"length": 9, "accuracy": 0.5}, "a": {"length": 12, "accuracy": 0.25}, "c": {"accuracy": None}}
        tests: list[dict[str, Any]] = [{"extrapolations": sizes}, {"extrapolations": {"b": {"accuracy": 0.7}, "d": 3}}]
        found = tested.accuracies_by_size([*tests, {}, {"extrapolations": [1]}])
        assert found == {"b": Estimate.of([0.5, 0.7]), "a": Estimate.of([0.25])}
        assert list(found) == ["b", "a"]
        assert tested.estimated(["x", None, math.nan]) is None


def plain_macro(answers: Tensor, targets: Tensor, classes: int) -> float:
    """Mean over batches of the mean over classes of the share right, counted by hand."""
    means = []
    for first in range(0, len(answers), BATCH_SIZE):
        pairs = [
            (answer, target)
            for row in range(first, min(first + BATCH_SIZE, len(answers)))
            for answer, target in zip(answers[row].tolist(), targets[row].tolist(), strict=True)
            if target != UNSCORED
        ]
        shares = []
        for label in range(classes):
            asked = [answer == target for answer, target in pairs if target == label]
            if asked or any(answer == label for answer, _ in pairs):
                shares.append(sum(asked) / len(asked) if asked else 0.0)
        means.append(sum(shares) / len(shares))
    return sum(means) / len(means)


class TestPublishedAccuracy:
    """The accuracy that a task publishes where it is not the mean over examples."""

    def test_mads_alone_is_another(self) -> None:
        others = {name: cls for name, cls in members.tasks().items() if not issubclass(cls, MADTask)}
        assert len(members.tasks()) - len(others) == len(SETTINGS)
        for cls in others.values():
            assert cls.tiny().published_accuracy is None

    @pytest.mark.parametrize("name", sorted(SETTINGS))
    def test_right_answers_are_worth_1_and_the_commonest_one_class(self, name: str) -> None:
        task = members.tasks()[name].tiny()
        publish = task.published_accuracy
        assert publish is not None
        targets = torch.cat([batch.targets for batch in task.batches("test", 50)])
        assert publish(targets.clamp(min=0), targets) == 1.0
        commonest = targets[targets != UNSCORED].mode().values
        constant = publish(torch.full_like(targets, int(commonest)), targets)
        assert constant == pytest.approx(
            plain_macro(torch.full_like(targets, int(commonest)), targets, task.num_classes)
        )
        assert constant < 1.0

    def test_of_a_run_it_is_the_definition(self, tmp_path: Path) -> None:
        settings = {"name": "memorization", "vocab_size": 32, "length": 16, "train_examples": "none"}
        run = trained(tmp_path, {**settings, "test_examples": 300, "validation_examples": 50}, steps=60)
        score = evaluation.test(run)
        _, parts = evaluation.load_best(run)
        batch = next(iter(parts.task.batches("test", 300)))
        with torch.no_grad():
            answers = parts.model.eval()(batch.inputs).argmax(-1)
        expected = plain_macro(answers, batch.targets, parts.task.num_classes)
        assert score.published_accuracy == pytest.approx(expected)
        assert score.published_accuracy != pytest.approx(score.accuracy)
        assert (RunDirectory(run).summary("test") or {})["published_accuracy"] == score.published_accuracy
        assert f"publishes it: {expected:.4f}" in CliRunner().invoke(app, ["eval", str(run)]).stdout


def a_run(directory: Path, preset: str, accuracy: float | None, **changes: Any) -> Path:
    """A run directory as training and testing leave it, no model in it."""
    run = replace(Run(model=MODEL, task=task_settings(preset)), **changes)
    RunDirectory(directory).create(run, {})
    if accuracy is not None:
        RunDirectory(directory).write_summary({"accuracy": 0.0, "published_accuracy": accuracy}, "test")
    return directory


class TestScore:
    """`specreg tasks score`."""

    def test_every_setting_is_known_by_its_fields(self) -> None:
        for task, settings in SETTINGS.items():
            for name in settings:
                preset = members.tasks()[task].presets()[name]
                assert mad_setting(preset) == (task, name)
                assert mad_setting(replace(preset, seed=5, validation_examples=7)) == (task, name)
                assert mad_setting(replace(preset, test_examples=7)) is None
        assert mad_setting(Compression.tiny()) is None
        assert mad_setting(members.tasks()["mqar"]()) is None

    def test_best_runs_mean_over_settings_mean_over_tasks(self, tmp_path: Path) -> None:
        given = (
            ("compression:mad", 0.2, 1e-3),
            ("compression:mad", 0.6, 1e-4),
            ("compression:mad-vocab-32", 0.2, 1e-3),
            ("memorization:mad", 0.9, 1e-3),
        )
        runs = [
            a_run(tmp_path / str(place), preset, accuracy, optimiser=Optimiser(learning_rate=rate))
            for place, (preset, accuracy, rate) in enumerate(given)
        ]
        found = scoring.score(runs, QUIET)
        assert found["tasks"] == pytest.approx({"memorization": 0.9, "compression": 0.4})
        assert found["mean"] == pytest.approx(0.65)
        assert found["settings"]["compression:mad"] == 0.6
        assert len(found["missing"]) == 63
        spoken = CliRunner().invoke(app, ["tasks", "score", *map(str, runs)])
        assert spoken.exit_code == 0
        assert "mean over tasks          0.6500  (3 of 66 settings, 4 runs)" in spoken.stdout
        assert "not MAD's score" in spoken.stdout

    def test_with_all_settings_it_is_mads(self, tmp_path: Path) -> None:
        runs = [
            a_run(tmp_path / task / name, f"{task}:{name}", place / len(settings))
            for task, settings in SETTINGS.items()
            for place, name in enumerate(settings)
        ]
        spoken = CliRunner().invoke(app, ["tasks", "score", *map(str, runs)])
        means = [sum(range(len(settings))) / len(settings) ** 2 for settings in SETTINGS.values()]
        expected = f"MAD score                {sum(means) / 6:.4f}  (all 66 settings, 66 runs)"
        assert spoken.stdout.splitlines()[-1] == expected
        assert "not MAD's" not in spoken.stdout

    def test_what_cannot_be_scored(self, tmp_path: Path) -> None:
        first = a_run(tmp_path / "a", "compression:mad", 0.5)
        other = a_run(tmp_path / "b", "memorization:mad", 0.5, model={**MODEL, "d_model": 16})
        tiny = a_run(tmp_path / "c", "compression:tiny", 0.5)
        untrained = a_run(tmp_path / "d", "compression:mad", None)
        for runs, message in (
            ([first, other], "of two models"),
            ([tiny], "no published setting of MAD"),
            ([untrained], "has not ended"),
            ([tmp_path / "nowhere"], "no run here"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                scoring.score(runs, QUIET)

    def test_a_run_without_a_test_is_tested(self, tmp_path: Path) -> None:
        run = trained(tmp_path, task_settings("memorization:mad"), steps=1)
        assert RunDirectory(run).summary("test") is None
        found = scoring.score([run], QUIET)
        assert found["settings"] == {"memorization:mad": evaluation.test(run).published_accuracy}


class TestNone:
    """The word that takes a setting away where TOML has none."""

    def test_through_the_run_directory(self, tmp_path: Path) -> None:
        arguments = ["train", "--model", "lru", "--task", "memorization:tiny", "--steps", "2", "--out", "run"]
        small = [*("--set", "model.d_model=8"), *("--set", "model.depth=1"), *("--set", "budget.batch_size=4")]
        for place, word in enumerate(("none", "None")):
            folder = tmp_path / str(place)
            set_to = ["--set", f"task.train_examples={word}"]
            result = CliRunner().invoke(app, [*arguments[:-1], str(folder), *small, *set_to])
            assert result.exit_code == 0, result.stderr
            text = (folder / "run.toml").read_text()
            assert 'train_examples = "none"' in text
            run = RunDirectory(folder).run()
            assert Run.from_toml(run.to_toml()) == run == Run.from_json(run.to_json())
            assert build_task(run).size("train") is None
            again = CliRunner().invoke(app, ["train", "--config", str(folder / "run.toml"), "--out", str(folder / "b")])
            assert again.exit_code == 0 and (folder / "b" / "run.toml").read_text() == text

    def test_settings_of_the_run_itself(self) -> None:
        run = Run(model=MODEL, task=PARITY, init="ring(0.9, 0.99)", budget=Budget(patience=3))
        assert run.updated("budget.patience", "none").budget.patience is None
        assert run.updated("init", "none").init is None
        assert Run.from_toml('[model]\nname = "lru"\n[task]\nname = "digits"\n[budget]\npatience = "none"\n') == Run(
            model={"name": "lru"}, task={"name": "digits"}
        )

    def test_python_writes_its_own_word(self) -> None:
        run = Run(model=MODEL, task={"name": "memorization", "train_examples": None})  # type: ignore[dict-item]
        assert run.task["train_examples"] == "none" and build_task(run).size("train") is None

    def test_a_preset_may_have_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cls = members.tasks()["memorization"]
        endless = cls(train_examples=None)
        monkeypatch.setattr(cls, "presets", lambda: {"endless": endless})
        settings = task_settings("memorization:endless")
        assert settings == {"name": "memorization", "train_examples": "none"}
        assert build_task(Run(model=MODEL, task=settings)) == endless

    @pytest.mark.parametrize("setting", ["task.vocab_size", "budget.steps", "model.depth", "optimiser.weight_decay"])
    def test_what_cannot_be_taken_away(self, setting: str) -> None:
        with pytest.raises(ConfigurationError, match=rf"{setting}.*'none'"):
            build_parts(Run(model=MODEL, task={"name": "memorization"}).updated(setting, "none"))

    def test_a_choice_of_that_name_stays(self) -> None:
        run = Run(model=MODEL, task={"name": "mqar", "mix": "none"})
        assert build_task(run) == members.tasks()["mqar"](mix="none")


def decoder(**settings: Any) -> LastStateDecoder:
    torch.manual_seed(0)
    fixed = {"num_classes": 5, "max_length": 9, "vocab_size": 5, "per_position": True}
    return LastStateDecoder([LRU(8, d_state=4) for _ in range(2)], **fixed | settings).double()


def without(model: LastStateDecoder, inputs: Tensor, mask: Tensor | None) -> Tensor:
    """The logits from the definition, an example and a position at a time, as if padding had never been there."""
    rows = []
    for row, tokens in enumerate(inputs):
        real = tokens if mask is None else tokens[mask[row]]
        x = model.embedding(real[None])
        for block in model.blocks:
            x = block(x, None)
        places = sinusoids(inputs.shape[1], x.shape[2]).double()
        rows.append(torch.stack([model.head(model.norm(model.decoder(x[0, -1] + place))) for place in places]))
    return torch.stack(rows)


class TestLastStateDecoder:
    """The read-out of MAD's compression."""

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("length", [1, 9, 20])
    def test_is_its_definition(self, masked: bool, length: int) -> None:
        model = decoder()
        inputs = torch.randint(5, (4, length), generator=torch.Generator().manual_seed(0))
        lengths = torch.tensor([length, max(1, length // 2), 1, length])
        mask = torch.arange(length) < lengths[:, None] if masked else None
        logits, expected = model(inputs, mask), without(model, inputs, mask)
        torch.testing.assert_close(logits, expected)
        answered, systems = model.with_systems(inputs, mask)
        torch.testing.assert_close(answered, logits)
        assert len(systems) == 2

    def test_no_answer_depends_on_what_stands_at_its_position(self) -> None:
        """Only the output at the last real step has a gradient, also where an answer is asked before it."""
        model = decoder()
        x = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
        mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
        for given, last in ((None, (5, 5)), (mask, (5, 3))):
            (gradient,) = torch.autograd.grad(model._answer(x, given)[..., 0].sum(), x)
            moved = gradient.abs().sum(-1) > 0
            assert [row.nonzero().flatten().tolist() for row in moved] == [[place] for place in last]

    def test_is_traced_whole(self) -> None:
        model = decoder()
        inputs, mask = torch.zeros(2, 9, dtype=torch.int64), torch.arange(9) < torch.tensor([[9], [4]])
        torch._dynamo.reset()
        traced: Any = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # dynamo's own, others in each version
            torch.testing.assert_close(traced(inputs, mask), model(inputs, mask))
        torch._dynamo.reset()

    def test_settings(self) -> None:
        with pytest.raises(ValueError, match="per_position cannot be False"):
            decoder(per_position=False)
        assert decoder(tied=True, positions="sinusoidal", norm="rms")(torch.zeros(1, 9, dtype=torch.int64)).shape == (
            1,
            9,
            5,
        )
        model = decoder()
        linear = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear))
        assert model.macs(9) == 9 * linear + sum(mixer.core_macs(9) for mixer in model.mixers())

    def test_is_chosen_by_the_task(self) -> None:
        for readout, kind in (("last", LastStateDecoder), ("steps", Backbone)):
            run = Run(model=MODEL, task={"name": "compression", "readout": readout})
            model = build_parts(run).model
            assert type(model) is kind
            assert count_parameters(model) > 0
            shown = CliRunner().invoke(app, ["tasks", "show", "compression", "--set", f"readout={readout}"]).stdout
            assert ("decoded from the last state alone" in shown) == (readout == "last")
        for name, cls in members.tasks().items():
            if name != "compression":
                assert not cls.tiny().from_last_state, name


class Peeking(Compression):
    """The same targets for a model that answers position by position, as a control."""

    from_last_state = False


def accuracies(task: Compression, steps: int, rate: float) -> Iterator[float]:
    """Validation accuracy of a small model before each of so many steps, and after the last."""
    torch.manual_seed(0)
    model = assemble(LRU, {"d_model": 32, "d_state": 16, "depth": 1}, task, None)
    optimiser = torch.optim.AdamW(model.parameters(), rate)
    held_out = next(iter(task.batches("validation", 200)))
    for step in range(steps + 1):
        with torch.no_grad():
            yield task.score(model(held_out.inputs), held_out).mean().item()
        batch = task.train_batch(step, 64)
        optimiser.zero_grad()
        task.loss(model(batch.inputs), batch).backward()
        optimiser.step()


class TestCompression:
    """Training on the published read-out."""

    settings: ClassVar[dict[str, Any]] = {"vocab_size": 8, "length": 16, "readout": "last", "validation_examples": 200}

    def test_training_cannot_see_the_answers(self) -> None:
        """After three large steps a model that can copy its input has, and one that decodes the last state has not."""
        peeked = list(accuracies(Peeking(**self.settings), 3, 0.03))[-1]
        task = Compression(**self.settings)
        decoded = list(accuracies(task, 3, 0.03))[-1]
        assert peeked > 0.5
        assert decoded < task.chance + 0.06

    def test_it_can_be_learnt(self) -> None:
        """Two tokens fit into the state of a small model."""
        *_, last = accuracies(Compression(**{**self.settings, "vocab_size": 5, "length": 3}), 300, 0.01)
        assert last > 0.95
