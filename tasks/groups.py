"""Finite groups by name, as tables of products: symmetric, alternating and cyclic, and direct products of these."""

import re
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from math import factorial

import numpy as np

from specreg.tasks.strings import Integers

__all__ = ["Group", "group"]

_FACTOR = re.compile(r"([SAZ])([1-9][0-9]*)")
_LARGEST = 1000  # elements: a table of a million products


@dataclass(frozen=True, eq=False)
class Group:
    """A finite group, its elements numbered, 0 the identity."""

    table: Integers
    """(n, n): table[a, b] is the product a·b, which for permutations is first a, then b."""
    names: tuple[str, ...]
    """How each element is shown."""

    @property
    def order(self) -> int:
        """The number of elements."""
        return len(self.table)

    @property
    def commutative(self) -> bool:
        """Whether a·b = b·a for all elements."""
        return bool((self.table == self.table.T).all())

    @property
    def element_orders(self) -> tuple[int, ...]:
        """The orders above 1 of the elements, each once: the periods of their powers."""
        found, power, elements = set(), np.arange(self.order), np.arange(self.order)
        for order in range(1, self.order + 1):
            if (power[elements] == 0).any():
                found.add(order)
            elements = elements[power[elements] != 0]
            power = self.table[power, np.arange(self.order)]
        return tuple(sorted(found - {1}))

    @property
    def solvable(self) -> bool:
        """Whether repeated commutator subgroups end in the identity alone."""
        inverse = np.argmax(self.table == 0, axis=1)
        members = np.arange(self.order)
        while True:
            there = self.table[members[:, None], members]
            back = self.table[inverse[members][:, None], inverse[members]]
            derived = self._generated(np.unique(self.table[back, there]))
            if derived.size == members.size:
                return bool(members.size == 1)
            members = derived

    def _generated(self, elements: Integers) -> Integers:
        """Return the elements of the subgroup that some elements generate."""
        while True:
            products = np.unique(self.table[elements[:, None], elements])
            if products.size == elements.size:
                return elements
            elements = products


@cache
def group(name: str) -> Group:
    """Return the group of a name such as "S5", "A5", "Z60" or "A4xZ5" (also with ×).

    S_n and A_n have their permutations in lexicographic order, Z_n its residues, a direct product the pairs in
    lexicographic order. Raises ValueError for another name or more than 1,000 elements.
    """
    factors = [_FACTOR.fullmatch(part) for part in re.split("[x×]", name)]
    if not all(factors):
        raise ValueError(f"group is {name!r}; give S, A or Z with a number, or a product of these: S5, A5, Z60, A4xZ5")
    kinds = [(factor[1], int(factor[2])) for factor in factors if factor]
    order = 1
    for kind, degree in kinds:
        # no factorial of a large number is computed
        order *= degree if kind == "Z" else factorial(min(degree, 10)) // (2 if kind == "A" and degree > 1 else 1)
    if order > _LARGEST:
        raise ValueError(f"group is {name!r}, of {order:,} elements or more; at most {_LARGEST:,} are tabulated")
    product = _factor(*kinds[0])
    for kind, degree in kinds[1:]:
        product = _direct_product(product, _factor(kind, degree))
    product.table.flags.writeable = False
    return product


def _factor(kind: str, degree: int) -> Group:
    if kind == "Z":
        residues = np.arange(degree)
        return Group((residues[:, None] + residues) % degree, tuple(str(residue) for residue in range(degree)))
    elements = [element for element in permutations(range(degree)) if kind == "S" or _even(element)]
    chosen = np.array(elements)
    number = {element: index for index, element in enumerate(elements)}
    composed = chosen[:, chosen].transpose(1, 0, 2)  # [a, b, place] = b[a[place]]
    table = [[number[tuple(element)] for element in row] for row in composed.tolist()]
    return Group(np.array(table), tuple("".join(str(place + 1) for place in element) for element in elements))


def _even(element: tuple[int, ...]) -> bool:
    """Whether a permutation has an even number of inversions."""
    inversions = sum(a > b for place, a in enumerate(element) for b in element[place + 1 :])
    return inversions % 2 == 0


def _direct_product(left: Group, right: Group) -> Group:
    first, second = np.divmod(np.arange(left.order * right.order), right.order)
    table = left.table[first[:, None], first] * right.order + right.table[second[:, None], second]
    return Group(table, tuple(f"{a},{b}" for a in left.names for b in right.names))
