"""A study without training whose names are written by somebody who means harm; every third trial fails with a word."""

from specreg.studies.configuration import Run

SCRIPT, MARKUP, ESCAPE = "<script>alert(1)</script>", "[red]x[/]", "\x1b[31mred\x1b[0m|`*\u202e"
OBJECTIVES = {"accuracy": "maximize", f"cost {SCRIPT}{MARKUP}{ESCAPE}": "minimize"}


def configure(trial):
    """Names of parameters and of categories."""
    x = trial.suggest_float(f"{SCRIPT}{MARKUP}{ESCAPE}", 0, 1)
    word = trial.suggest_categorical("]]></script><img src=x onerror=alert(2)>", [SCRIPT, MARKUP, ESCAPE])
    return Run(model={"name": f"{SCRIPT}{MARKUP}", "x": x, "word": word, "slot": trial.number}, task={"name": ESCAPE})


def evaluate(run, report):
    """A closed form, with statistics that a spectrum would have."""
    if run.model["slot"] % 3 == 2:
        raise ValueError(f"{SCRIPT} {MARKUP} {ESCAPE} {{{{ 7 * 7 }}}}")
    x = run.model["x"]
    cost = next(name for name in OBJECTIVES if name != "accuracy")
    return {
        "accuracy": x,
        cost: 10 * (x - 0.5) ** 2,
        "spectral_distance": 1 - x**3,
        "mean_phase": (7 * x) % 1,
        "chance": 0.1,
    }
