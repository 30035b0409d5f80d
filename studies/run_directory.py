"""The files of one run: configuration, environment, metrics, spectra, checkpoints, summary."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from specreg.studies.configuration import ConfigurationError, Run
from specreg.studies.files import sync_file, write_bytes, write_json, write_text

PACKAGES = ("specreg", "torch", "numpy", "scipy", "optuna", "safetensors", "scikit-learn")


@dataclass(frozen=True)
class RunDirectory:
    """A folder that holds one run, and nothing that has to be unpickled or trusted."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where training goes on from."""
        return self.path / "checkpoint"

    @property
    def best(self) -> Path:
        """The model of the best validation score."""
        return self.path / "best"

    def create(self, run: Run, data: Mapping[str, str]) -> None:
        """Make the folder, write the configuration and the digests of the data; raises if a run is there already."""
        if (self.path / "run.toml").exists():
            raise ConfigurationError(f"{self.path} holds a run already: go on with --resume, or choose another folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{self.path}: cannot make this folder ({error.strerror})") from None
        write_json(self.path / "environment.json", environment(run) | ({"data": dict(data)} if data else {}))
        write_text(self.path / "run.toml", run.to_toml())

    def run(self) -> Run:
        """The configuration; raises `ConfigurationError` where there is none or it cannot be read."""
        file = self.path / "run.toml"
        try:
            return Run.from_toml(file.read_text())
        except OSError:
            raise ConfigurationError(f"{self.path}: no run here ({file.name} is missing)") from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"{file}: not text") from None

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut off by a kill is left out."""
        try:
            lines = (self.path / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        records = []
        for line in lines:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break  # everything after a torn line is rewritten by the resumed run
        return records

    def go_back_to(self, step: int) -> None:
        """Forget what came after a checkpoint that training goes on from, and what a kill left half made."""
        kept = [json.dumps(record) for record in self.metrics() if record["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(line + "\n" for line in kept))
        later = [file for at, file in self.spectra().items() if at > step]
        later += [folder for folder in self.best.glob("step-*") if int(folder.name.removeprefix("step-")) > step]
        for path in (*later, *self.path.glob(".*"), *self.path.glob("*/.*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def note_resumption(self, run: Run) -> None:
        """Add to environment.json where and when a run was taken up again."""
        file = self.path / "environment.json"
        try:
            known = json.loads(file.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ConfigurationError(
                f"{file}: cannot be read ({error}); a run is resumed in its own directory"
            ) from None
        write_json(file, {**known, "resumed": [*known.get("resumed", []), environment(run)]})

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line of metrics."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def sync_metrics(self) -> None:
        """Have the metrics reach the disk, before a checkpoint that counts on them."""
        if (self.path / "metrics.jsonl").exists():
            sync_file(self.path / "metrics.jsonl")

    def write_spectra(self, step: int, content: bytes) -> None:
        """Keep a recorded spectrum under its step."""
        folder = self.path / "spectra"
        folder.mkdir(exist_ok=True)
        write_bytes(folder / f"step-{step:08d}.safetensors", content)

    def spectra(self) -> dict[int, Path]:
        """Recorded spectra by step, in order."""
        files = sorted((self.path / "spectra").glob("step-" + "[0-9]" * 8 + ".safetensors"))
        return {int(file.stem.removeprefix("step-")): file for file in files}

    def write_summary(self, summary: Mapping[str, Any], name: str = "summary") -> None:
        """Keep final figures, `summary` or `test`."""
        write_json(self.path / f"{name}.json", dict(summary))

    def summary(self, name: str = "summary") -> dict[str, Any] | None:
        """Final figures, or None for a run that has not ended (or was never tested)."""
        try:
            content = json.loads((self.path / f"{name}.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return content if isinstance(content, dict) else None


def environment(run: Run) -> dict[str, Any]:
    """Versions, hardware, commit and seeds: enough to know what a figure was made with."""
    import torch

    gpu = torch.cuda.get_device_name(run.device) if run.device.startswith("cuda") else None
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "commit": commit(),
        "seed": run.seed,
        "data_seed": run.data_seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str | None:
    """The commit of the sources, with "+" if they were changed; None for an installed wheel."""
    here = Path(__file__).parent
    try:
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)  # a wheel may lie inside somebody's repository
        sha = _git(here, "rev-parse", "HEAD")
        return sha + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
