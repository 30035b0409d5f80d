"""The command line. Nothing here imports torch, scipy or optuna before a command's own work begins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import specreg
from specreg.studies.console import INTERRUPTED, WRONG_USAGE, Output, failed, run

app = typer.Typer(
    help="What does a sequence model remember, and can it be made to remember better?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
study_app = typer.Typer(help="Search architecture and spectrum together.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(study_app, name="study")
tasks_app = typer.Typer(help="Look at the tasks.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(tasks_app, name="tasks")


def named_path(text: str) -> Path:
    """A path of at least one character: pathlib takes the empty one for the folder where the command was called."""
    if not text:
        raise typer.BadParameter("a path is not empty; for the folder you are in write .")
    return Path(text)


OPTION: dict[str, Any] = {"parser": named_path, "metavar": "<Path>"}
ARGUMENT: dict[str, Any] = {"parser": named_path, "metavar": "RUN_DIR"}
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no talk.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show stack traces.")]
Storage = Annotated[str | None, typer.Option(help="Where the study is kept, as in sqlite:///folder/study.db.")]
Folder = Annotated[
    Path | None, typer.Option("--out", help="The study's folder; runs/studies/NAME without it.", **OPTION)
]
Name = Annotated[str | None, typer.Option(help="The study's name in the storage; without it that of STUDY.")]
Data = Annotated[Path | None, typer.Option(help="Folder with the task's data files.", **OPTION)]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch public data files that are missing; nothing is without it.")
]
Html = Annotated[Path | None, typer.Option(help="Write one HTML file that opens offline.", **OPTION)]
Kind = Literal["models", "tasks", "targets", "penalties", "studies"]


def show_version(asked: bool) -> None:
    """Print the version and end."""
    if asked:
        print(f"specreg {specreg.__version__}")
        raise typer.Exit


@app.callback()
def specreg_command(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    """What does a sequence model remember, and can it be made to remember better?"""


@app.command("list")
def list_members(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List what there is, with settings and defaults."""

    def body() -> object:
        from specreg.studies import listing

        return listing.show(kind, output)

    output = Output(json, quiet, debug)
    raise typer.Exit(run(output, body))


@app.command()
def train(
    model: Annotated[str | None, typer.Option(help="A name from `specreg list models`.")] = None,
    task: Annotated[str | None, typer.Option(help="A name from `specreg list tasks`, or NAME:PRESET.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="One setting, as in model.d_state=64 or task.train_examples=none (no limit); may be repeated.",
        ),
    ] = None,
    init: Annotated[str | None, typer.Option(help="Target spectrum at the start, as in 'ring(0.9, 0.99)'.")] = None,
    penalty: Annotated[
        list[str] | None,
        typer.Option(help="Spectral loss with its weight, as in 'band(0.5, 1.0)*0.1'; may be repeated."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of parameters and dropout.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    data: Data = None,
    download: Download = False,
    config: Annotated[
        Path | None, typer.Option(help="A run.toml to start from; the other options change it.", **OPTION)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; a name under runs/ without it.", **OPTION)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show the configuration; write nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train one model on one task."""

    def body() -> object:
        from specreg.studies import commands

        given = commands.Given(model, task, settings or [], init, penalty or [], steps, seed, device, data, config)
        if resume:
            return commands.resume(given, out, download, output)
        return commands.train(given, out, dry_run, download, output)

    output = Output(json, quiet, debug)
    raise typer.Exit(run(output, body))


@app.command("eval")
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="A trained run's directory.", **ARGUMENT)],
    longest: Annotated[
        int | None, typer.Option(help="Leave out other sizes of more steps than this; all are measured without.", min=1)
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Accuracy of a trained run's best model: test split, slices, and the sizes that it was not trained on."""

    def body() -> object:
        from specreg.studies import commands

        return commands.evaluate(run_dir, longest, output)

    output = Output(json, quiet, debug)
    raise typer.Exit(run(output, body))


@app.command()
def spectrum(
    run_dir: Annotated[Path, typer.Argument(help="A run's directory.", **ARGUMENT)],
    html: Html = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Eigenvalues of each layer and head, how well they are known and what is read, before and after training."""

    def body() -> object:
        from specreg.studies import commands

        return commands.spectrum(run_dir, html, output)

    output = Output(json, quiet, debug)
    raise typer.Exit(run(output, body))


@tasks_app.command("show")
def tasks_show(
    name: Annotated[str, typer.Argument(help="A name from `specreg list tasks`, or NAME:PRESET.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, as in length=512; may be repeated.")
    ] = None,
    examples: Annotated[int, typer.Option(help="How many examples.", min=1, max=1000)] = 10,
    data: Data = None,
    download: Download = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Decoded examples with their targets and what is scored, the sizes, the chance level and the source."""

    def body() -> object:
        from specreg.studies import task_view

        return task_view.show(name, settings or [], examples, data, download, output)

    output = Output(json, quiet, debug)
    raise typer.Exit(run(output, body))


@tasks_app.command("table")
def tasks_table(json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Every task in one Markdown table: what it probes, length, classes, chance, known spectral need, source."""

    def body() -> object:
        from specreg.studies import task_view

        return task_view.table(output)

    output = Output(json, quiet, debug)
    raise typer.Exit(run(output, body))


@tasks_app.command("score")
def tasks_score(
    run_dirs: Annotated[
        list[Path], typer.Argument(help="Trained runs of one model.", parser=named_path, metavar="RUN_DIR...")
    ],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """MAD's score of a model: the best run at each published setting, their mean over settings, then over tasks."""

    def body() -> object:
        from specreg.studies import scoring

        return scoring.score(run_dirs, output)

    output = Output(json, quiet, debug)
    raise typer.Exit(run(output, body))


@study_app.command("run")
def study_run(
    study: Annotated[str, typer.Argument(help="A name from `specreg list studies`, or a Python file.")],
    trials: Annotated[int, typer.Option(help="Finished trials to reach, those of earlier calls included.")] = 20,
    storage: Storage = None,
    workers: Annotated[int, typer.Option(help="Trials at a time, each in its own process.")] = 1,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same configurations whatever is killed and when.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the study.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    name: Name = None,
    out: Folder = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a study, or go on with it: the same command again continues what was stopped."""

    def body() -> object:
        from specreg.studies import commands

        place = commands.Place(study, name, out, storage)
        return commands.run_study(place, trials, workers, deterministic, seed, device, output)

    output = Output(json, quiet, debug)
    raise typer.Exit(run(output, body))


@study_app.command("report")
def study_report(
    study: Annotated[str, typer.Argument(help="The study's name, or its Python file.")],
    storage: Storage = None,
    html: Html = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the report as Markdown.", **OPTION)] = None,
    name: Name = None,
    out: Folder = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """What a study found, from its storage and run directories alone."""

    def body() -> object:
        from specreg.studies import commands

        return commands.report(commands.Place(study, name, out, storage), html, markdown, output)

    output = Output(json, quiet, debug)
    raise typer.Exit(run(output, body))


def main() -> None:
    """The console script: 0 done, 1 ran and failed, 2 wrong usage, 130 interrupted."""
    output = Output(json="--json" in sys.argv)
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = failed(output, INTERRUPTED, "interrupted", "interrupted")
    except Exception as error:  # what the parser raises: typer names no public base for it
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            sys.exit(WRONG_USAGE)
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "specreg"
        code = failed(output, WRONG_USAGE, "usage", f"{error.format_message()} (see `{command} --help`)")
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
