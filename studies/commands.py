"""The bodies of the commands: from checked options to work and its result."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from specreg.studies.configuration import NONE, ConfigurationError, Run
from specreg.studies.console import Output
from specreg.studies.files import write_text
from specreg.studies.interrupts import first_interrupt

if TYPE_CHECKING:
    from specreg.studies.events import Event
    from specreg.studies.training import Step


@dataclass(frozen=True)
class Given:
    """What `specreg train` was told; None and empty: left out."""

    model: str | None
    task: str | None
    settings: Sequence[str]
    init: str | None
    penalties: Sequence[str]
    steps: int | None
    seed: int | None
    device: str | None
    data: Path | None
    config: Path | None

    def run(self) -> Run:
        """The whole configuration: a file or the defaults, then --set, then the options with names of their own."""
        changes: list[tuple[str, Any]] = [setting(text) for text in self.settings]
        named = {
            "init": self.init,
            "penalties": list(self.penalties) or None,
            "budget.steps": self.steps,
            "seed": self.seed,
            "device": self.device,
            "task.data": None if self.data is None else str(self.data),
        }
        changes += [(path, value) for path, value in named.items() if value is not None]
        run = self._start()
        for path, value in changes:
            run = run.updated(path, value)
        return run

    def _start(self) -> Run:
        if self.config is None:
            if self.model is None or self.task is None:
                raise ConfigurationError(
                    "give --model and --task (see `specreg list models`), or --config, or --resume"
                )
            from specreg.studies.building import task_settings

            return Run(model={"name": self.model}, task=task_settings(self.task))
        try:
            run = Run.from_toml(self.config.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self.config}: cannot be read ({error})") from None
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.config}: {error}") from None
        run = run if self.model is None else run.updated("model.name", self.model)
        if self.task is None:
            return run
        if ":" in self.task:
            raise ConfigurationError(
                "a preset stands in place of a configuration: give --task NAME:PRESET without --config"
            )
        return run.updated("task.name", self.task)


@dataclass(frozen=True)
class Place:
    """Which study, and where it is kept."""

    study: str  # a name in the package, or a Python file
    name: str | None
    out: Path | None
    storage: str | None

    @property
    def shown_name(self) -> str:
        """The study's name in the storage."""
        from specreg.studies.storage import checked_name

        return checked_name(Path(self.study).stem.replace("_", "-") if self.name is None else self.name)

    @property
    def folder(self) -> Path:
        """Where run directories lie: --out, else beside a storage that was named, else under runs/studies."""
        from specreg.studies.storage import database_file

        if self.out is not None:
            return self.out
        if self.storage is not None:
            return database_file(self.storage, Path()).parent / self.shown_name
        return Path("runs/studies") / self.shown_name

    def options(self) -> str:
        """The options that find the study again."""
        parts = [quote(self.study)]
        parts += ["--name", quote(self.name)] if self.name else []
        parts += ["--out", quote(str(self.out))] if self.out else []
        parts += ["--storage", quote(self.storage)] if self.storage else []
        return " ".join(parts)


def train(given: Given, out: Path | None, dry_run: bool, download: bool, output: Output) -> dict[str, Any]:
    """Train a run from its start, its data downloaded first where that was asked for."""
    run = given.run()
    directory = out or Path("runs") / f"{run.task['name']}-{run.model['name']}-{run.digest()[:8]}-seed{run.seed}"
    if dry_run:
        return describe(run, output)
    from specreg.studies import data_files, training
    from specreg.studies.building import build_task

    if download:
        data_files.fetch_missing(build_task(run), output.say)

    return follow(training.train(run, directory), run, directory, output)


def resume(given: Given, out: Path | None, download: bool, output: Output) -> dict[str, Any]:
    """Go on with a run that was stopped."""
    if given != Given(None, None, [], None, [], None, None, None, None, None) or out is None or download:
        raise ConfigurationError("--resume takes --out and nothing else: the configuration is the one in run.toml")
    from specreg.studies import training
    from specreg.studies.run_directory import RunDirectory

    run = RunDirectory(out).run()
    if RunDirectory(out).summary() is not None:
        output.say("this run has ended already: nothing is left to do")
    return follow(training.train(run, out, resume=True), run, out, output)


def follow(steps: Generator[Step, None, None], run: Run, directory: Path, output: Output) -> dict[str, Any]:
    """Show a training run as it goes; its summary at the end. Ctrl-C ends it after the step, with a checkpoint."""
    from specreg.studies.run_directory import RunDirectory

    with first_interrupt() as interrupted, output.progress("training", run.budget.steps) as advance:
        for step in steps:
            note = f"loss {step.task_loss:.3f}" + "".join(f"  penalty {value:.3g}" for value in step.penalties.values())
            advance(step.step, note)
            if step.evaluation is not None:
                output.say(
                    f"step {step.step:>6}  {note}  validation accuracy {step.evaluation.accuracy:.4f}"
                    f"  {timescale_of(step)}"
                )
            if interrupted.is_set() and step.step < run.budget.steps:
                steps.close()
                raise KeyboardInterrupt(
                    f"stopped after step {step.step}; go on with: specreg train --resume --out {quote(str(directory))}"
                )
    summary = RunDirectory(directory).summary() or {}
    if not output.json:
        print(
            f"validation accuracy {summary['accuracy']:.4f} at step {summary['best_step']} "
            f"(chance {summary['chance']:.4f}), {summary['parameters']:,} parameters"
        )
        print(f"in {directory}; see `specreg spectrum {quote(str(directory))}`")
    return {"directory": str(directory), **summary}


def timescale_of(step: Step) -> str:
    """The median time constant, in words."""
    log_timescale = (step.spectrum or {}).get("median_log_timescale", float("nan"))
    return f"median τ {math.exp(log_timescale):.3g} steps" if log_timescale < math.log(1e6) else "median |λ| ≥ 1"


def describe(run: Run, output: Output) -> dict[str, Any]:
    """The resolved configuration, what model and task take as default, and the size; nothing is written."""
    from dataclasses import asdict

    from specreg.studies.building import build_parts, count_parameters, left_at_default

    parts, defaults = build_parts(run), left_at_default(run)
    facts = {"parameters": count_parameters(parts.model), "macs": parts.model.macs(parts.task.max_length)}
    if not output.json:
        print(run.to_toml())
        for name, value in defaults.items():
            print(f"# {name}={value} (default)")
        print(f"# {facts['parameters']:,} parameters, {facts['macs']:,} multiply-accumulates a sequence")
    return {"run": asdict(run), "defaults": defaults, **facts}


def evaluate(run_dir: Path, longest: int | None, output: Output) -> dict[str, Any]:
    """Accuracy of a run's best model on the test split, by slices, and at the task's other sizes."""
    from dataclasses import asdict

    from specreg.studies import evaluation

    score = evaluation.test(run_dir)
    if not output.json:
        print(f"test accuracy {score.accuracy:.4f}, loss {score.loss:.4f}")
        if score.published_accuracy is not None:
            print(f"accuracy as this task publishes it: {score.published_accuracy:.4f}")
        for name, accuracies in score.slices.items():
            print(f"  by {name}: " + "  ".join(f"{value}: {each:.3f}" for value, each in accuracies.items()))
    sizes = {}
    for name, size in evaluation.extrapolate(run_dir, math.inf if longest is None else longest):
        sizes[name] = asdict(size)
        if not output.json:
            measured = f"not measured: {size.reason}" if size.accuracy is None else f"{size.accuracy:.4f}"
            print(f"  at {name}: {measured} (chance {size.chance:.4f})", flush=True)
    return {**asdict(score), "extrapolations": sizes}


def spectrum(run_dir: Path, html: Path | None, output: Output) -> dict[str, Any]:
    """A run's eigenvalues, before and after training."""
    from specreg.studies import spectrum_report
    from specreg.studies.run_directory import RunDirectory

    RunDirectory(run_dir).run()  # a directory without a readable run.toml is no run
    report = spectrum_report.collect(run_dir)
    if html is not None:
        save(html, spectrum_report.page(report), output)
    if not output.json:
        spectrum_report.show(report, output.console())
    return report.to_dict()


def run_study(
    place: Place, trials: int, workers: int, deterministic: bool, seed: int, device: str, output: Output
) -> dict[str, Any]:
    """Run a study until its budget is spent, then test what it chose on the split that selection never saw."""
    from specreg.studies.definition import load_study
    from specreg.studies.driver import run_study as events_of

    if trials < 1 or workers < 1:
        raise ConfigurationError(f"--trials and --workers are whole numbers from 1, got {trials} and {workers}")
    events = events_of(
        load_study(place.study),
        place.folder,
        budget=trials,
        workers=workers,
        deterministic=deterministic,
        storage_url=place.storage,
        seed=seed,
        device=device,
        name=place.shown_name,
    )
    again = f"specreg study run {place.options()} --trials {trials} --workers {workers}"
    with output.progress(place.shown_name, trials) as advance:
        for event in events:
            tell(event, advance, output, again)
    from specreg.studies.events import StudyEnded

    assert isinstance(event, StudyEnded)
    if event.outcome != "finished":
        raise KeyboardInterrupt(f"stopped with {event.finished} of {trials} trials; go on with: {again}")
    with first_interrupt() as interrupted:
        chosen = test_best(place, output)
    if interrupted.is_set():
        raise KeyboardInterrupt(f"all {trials} trials are done; go on with: specreg study report {place.options()}")
    if chosen["best"] is None:
        raise RuntimeError(f"no trial of {trials} completed: see output.txt and traceback.txt in {place.folder}/trials")
    output.say(f"report: specreg study report {place.options()} --html report.html")
    return {"study": place.shown_name, "folder": str(place.folder), "finished": event.finished, **chosen}


def tell(event: Event, advance: Callable[[int, str], None], output: Output, again: str) -> None:
    """One line for what a reader wants to know while a study runs."""
    from specreg.studies import events

    match event:
        case events.StudyStarted():
            left = f", {event.unfinished} left by an earlier call" if event.unfinished else ""
            output.say(f"study {event.name} in {event.folder}: {event.finished} of {event.budget} trials done{left}")
            advance(event.finished, "")
        case events.TrialFinished():
            figures = "  ".join(f"{name} {value:.4g}" for name, value in event.values.items())
            outcome = figures if event.reason is None else f"{event.reason}: {event.message}"
            if event.reason == "exception":
                outcome += f" (more in trials/{event.slot:04d}, if it had begun)"
            output.say(f"trial {event.slot:>4}  {event.seconds:6.1f} s  {outcome}")
            advance(event.finished, "")
        case events.TrialRetried():
            output.say(f"trial {event.slot:>4}  {event.reason}, attempt {event.attempt}: {event.message}; once more")
        case events.Draining():
            output.say(
                f"waiting for {len(event.running)} running trials; again to stop at once. Go on later with: {again}"
            )
        case _:
            pass


def test_best(place: Place, output: Output) -> dict[str, Any]:
    """Test accuracy of the best trial's runs, one for each seed; kept beside them for the report."""
    from statistics import fmean

    from specreg.studies.storage import open_study

    with open_study(place.folder, name=place.shown_name, storage_url=place.storage) as study:
        best = study.user_attrs.get("best")
    if best is None:
        return {"best": None}
    runs = [path.parent for path in sorted((place.folder / best["directory"]).glob("*/run.toml"))]
    output.say(f"best on the validation split: trial {best['slot']} in {place.folder / best['directory']}")
    if not runs:
        return {"best": best}
    from specreg.studies import evaluation

    scores = [evaluation.test(run).accuracy for run in runs]
    sizes = {name for run in runs for name, _ in evaluation.extrapolate(run)}
    seeds = "1 seed" if len(scores) == 1 else f"mean of {len(scores)} seeds"
    output.say(f"its accuracy on the test split: {fmean(scores):.4f} ({seeds})")
    if sizes:
        output.say(f"the report has it at {len(sizes)} other sizes too: {', '.join(sorted(sizes))}")
    return {"best": best, "test_accuracy": fmean(scores)}


def report(place: Place, html: Path | None, markdown: Path | None, output: Output) -> dict[str, Any]:
    """A study's report on the terminal and in files."""
    from specreg.studies import report_markdown, report_page, report_terminal
    from specreg.studies.report import collect

    found = collect(place.folder, name=place.shown_name, storage_url=place.storage)
    if html is not None:
        save(html, report_page.page(found), output)
    if markdown is not None:
        save(markdown, report_markdown.markdown(found), output)
    if not output.json and not output.quiet:
        report_terminal.show(found, output.console())
    return found.to_dict()


def save(path: Path, text: str, output: Output) -> None:
    """Write a report whole or not at all."""
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path}: the folder {path.parent} does not exist")
    try:
        write_text(path, text)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror})") from None
    output.say(f"wrote {path}")


def setting(text: str) -> tuple[str, Any]:
    """`model.d_state=64` as a path and a value: a number or a boolean where it reads as one, else text.

    `none`, or `None`, takes away a setting that may be left out.
    """
    path, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)?", path.strip()):
        raise ConfigurationError(f"--set {text!r}: write it as model.d_state=64")
    try:
        return path.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path.strip(), NONE if value.strip() == "None" else value.strip()
