"""Checkpoints: safetensors and JSON with a manifest of SHA-256 digests; a flipped bit is refused by name. No pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from specreg.studies.errors import UsageError
from specreg.studies.files import json_text, new_folder, sha256, write_json

KEPT = 2  # so that one that a disk damaged leaves another to go on from
MANIFEST = "manifest.json"


class CheckpointError(UsageError):
    """A checkpoint that cannot be trusted: names the file and says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of model and optimiser, and the plain values beside them."""

    step: int
    model: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder`/step-00000100 at once, then drop all but the last two."""
    path = folder / f"step-{checkpoint.step:08d}"
    with new_folder(path) as draft:
        save_file(_plain(checkpoint.model), draft / "model.safetensors")
        save_file(_plain(checkpoint.optimiser), draft / "optimiser.safetensors")
        write_json(draft / "state.json", {"step": checkpoint.step, **checkpoint.state})
        digests = {file.name: sha256(file) for file in sorted(draft.iterdir())}
        write_json(draft / MANIFEST, digests)
    for old in saved(folder)[:-KEPT]:
        shutil.rmtree(old)
    return path


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; unfinished ones have another name."""
    return sorted(folder.glob("step-" + "[0-9]" * 8))


def load(path: Path) -> Checkpoint:
    """Read one checkpoint; raises `CheckpointError` naming the file that is missing, cut off or altered."""
    verify(path)
    try:
        state = json.loads((path / "state.json").read_text())
        model, optimiser = load_file(path / "model.safetensors"), load_file(path / "optimiser.safetensors")
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {ADVICE}") from None
    return Checkpoint(state.pop("step"), model, optimiser, state)


def verify(path: Path) -> None:
    """Compare every file with the manifest."""
    try:
        text = (path / MANIFEST).read_text()
        names = dict(json.loads(text))
        if text != json_text(names):  # so that a bit in its white space is noticed too
            raise ValueError(text)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST}: missing or damaged ({type(error).__name__}); {ADVICE}") from None
    for name in ("model.safetensors", "optimiser.safetensors", "state.json"):
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing; {ADVICE}")
        if sha256(file) != names.get(name):
            raise CheckpointError(f"{file}: the content is not what was written (SHA-256 differs); {ADVICE}")


ADVICE = "remove this folder to go on from the checkpoint before it, or from the start"


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors."""
    state = optimiser.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, entry in state.items() for name, value in entry.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put named tensors back as the optimiser's state."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def load_into(model: torch.nn.Module, path: Path) -> Checkpoint:
    """Read a checkpoint and give its parameters to a model."""
    checkpoint = load(path)
    try:
        model.load_state_dict(dict(checkpoint.model))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit run.toml beside it ({error})") from None
    return checkpoint
