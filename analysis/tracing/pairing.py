"""Which norm takes which layer's output in a forward pass.

It is seen by looking whether it is the very tensor that the layer gave, unchanged since, if perhaps
in the wrapping that torch gives to what goes into and comes out of modules with hooks on their
backward pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

from torch import Tensor

from analysis.tracing.autograd_graph import Graph, is_wrapped, maker

WRAPPED = 16
"""Of how many outputs, the latest, is kept what made them: a wrapped one is known by it."""


@dataclass(eq=False)
class _Given:
    """An output of a layer that may feed a norm, and the norms that took it."""

    path: str
    tensor: ref[Tensor]  # not to keep it longer than the net does
    version: int
    takers: set[str] = field(default_factory=set)


class Pairing:
    """Which norm takes the output of which layer, the one always that of the other.

    Args:
        certain: feeders by norm, for norms that have not run yet.
        graph: tells what else takes a feeder's output.
    """

    def __init__(self, certain: Mapping[str, str], graph: Graph) -> None:
        self._graph = graph
        self.pairs = self._certain = dict(certain)
        self._feeding = set(certain.values())
        self._givers: dict[str, set[str]] = {}  # by norm; "" for what no layer gave
        self._takers: dict[str, set[str]] = {}  # by layer; "" for what no norm took
        self._given: list[_Given] = []
        self._whole = 0  # how many of them are of forwards that came to their end
        self._latest: dict[int, _Given] = {}  # by the tensor's id
        self.hooked = False  # whether modules have hooks on their backward pass
        self._wrapped: deque[tuple[Any, _Given]] = deque(maxlen=WRAPPED)  # perhaps; by what made it

    def give(self, path: str, output: Tensor) -> bool:
        """Note what a layer gives, and say whether it is known to feed a norm and nothing else."""
        given = _Given(path, ref(output), _version(output))
        self._given.append(given)
        self._latest[id(output)] = given
        if output.grad_fn is None:
            return path in self._feeding
        if self.hooked:
            self._wrapped.append((maker(output), given))
        return path in self._feeding and self._graph.looked(path)

    def take(self, norm: str, x: Any, output: Any) -> None:
        """Note what a norm takes, and what it made of it."""
        given = self._giver(x)
        if given and given.version == _version(x):
            given.takers.add(norm)
            self._graph.note_norm(given.path, x, output)
        else:
            given = None
        self._givers.setdefault(norm, set()).add(given.path if given else "")

    def _giver(self, x: Any) -> _Given | None:
        given = self._latest.get(id(x))
        if given and given.tensor() is x:
            return given
        if isinstance(x, Tensor) and is_wrapped(x):
            made = maker(x)
            return next((one for node, one in self._wrapped if node is made), None)
        return None

    def begin_forward(self) -> None:
        """Forget what was given in a forward that failed or was interrupted."""
        del self._given[self._whole :]
        self._wrapped.clear()

    def end_forward(self, whole: bool) -> None:
        """End a forward, or one that failed."""
        if whole:
            self._whole = len(self._given)
        self._wrapped.clear()

    def prune(self) -> None:
        """Keep nothing of outputs that no norm can take any more."""
        open_ones = [given for given in self._given if given.tensor() is not None]
        self._put_away([given for given in self._given if given.tensor() is None])
        self._given, self._whole = open_ones, len(open_ones)
        self._latest = {id(given.tensor()): given for given in open_ones}
        self._wrapped.clear()

    def _put_away(self, several: Sequence[_Given]) -> None:
        for given in several:
            self._takers.setdefault(given.path, set()).update(given.takers or {""})

    def settle(self) -> bool:
        """Bring `pairs` up to date at the end of a step, and say whether they changed."""
        self._put_away(self._given)
        self._given, self._whole = [], 0
        self._latest.clear()
        self._wrapped.clear()
        seen = {norm: next(iter(paths)) for norm, paths in self._givers.items() if len(paths) == 1}
        unseen = {n: p for n, p in self._certain.items() if n not in self._givers}
        pairs = {
            norm: path
            for norm, path in {**seen, **unseen}.items()
            if path and self._takers.get(path, {norm}) == {norm} and path not in self._graph.shared
        }
        changed = pairs != self.pairs
        self.pairs, self._feeding = pairs, set(pairs.values())
        return changed


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
