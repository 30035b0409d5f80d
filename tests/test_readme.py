"""The README's examples run as they stand, and what it names exists."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path

import pytest

from specreg import estimators
from specreg.estimators import Estimator

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=[f"example {i}" for i in range(len(EXAMPLES))])
def test_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def test_all_examples_are_there() -> None:
    assert len(EXAMPLES) == 3
    assert "Dense(rnn.weight_hh_l0)" in EXAMPLES[0] and "def objective" in EXAMPLES[2]
    for member in vars(estimators).values():
        if inspect.isclass(member) and issubclass(member, Estimator) and not member.__name__.startswith("Applied"):
            assert member is Estimator or member.__name__ in EXAMPLES[1], member


def test_files_that_are_named_exist() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path
    for folder in ("specreg", "models", "tasks", "studies", "tests", "tests/benchmarks"):
        assert f"`{folder}/`" in README or f"`{folder}`" in README
        assert (ROOT / folder).is_dir()


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"^[A-Z_]{4,}$|TODO|FIXME", README, re.MULTILINE)
