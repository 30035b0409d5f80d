"""Which operations run, and which of them anything comes of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Record(TorchDispatchMode):
    """The operations that ran, and which tensors each took and gave."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self._calls: list[tuple[list[Tensor], list[Tensor]]] = []  # the tensors are kept, so that no id is used twice

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        arguments = list(tensors((args, kwargs or {})))
        written = arguments[:1] if function._schema.is_mutable else []
        self.names.append(str(function))
        self._calls.append((arguments, [*tensors(result), *written]))
        return result

    def wasted(self, results: Sequence[Tensor]) -> list[str]:
        """The operations from which no chain of uses leads to `results`."""
        used = {id(tensor) for tensor in results}
        wasted = []
        for name, (arguments, given) in zip(reversed(self.names), reversed(self._calls), strict=True):
            if any(id(tensor) in used for tensor in given):
                used.update(id(tensor) for tensor in arguments)
            else:
                wasted.append(name)
        return wasted[::-1]


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dictionaries and dataclasses: a state has no prescribed type."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from tensors(part)
    elif is_dataclass(tree) and not isinstance(tree, type):
        yield from tensors([getattr(tree, field.name) for field in fields(tree)])
