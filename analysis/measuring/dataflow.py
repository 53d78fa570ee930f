"""Where layers' outputs go in a forward pass: which norm takes them, and whether a relu does.

Which norm takes which layer's output is seen by looking whether it is the very tensor that the
layer gave, unchanged since. Which responses a relu follows is looked up in the autograd graph, once
for each layer: in the first step that is read and in which it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any
from weakref import ref

from torch import Tensor


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
    """

    def __init__(self, certain: Mapping[str, str]) -> None:
        self.pairs = self._certain = dict(certain)
        self._feeding = set(certain.values())
        self._givers: dict[str, set[str]] = {}  # by norm; "" for what no layer gave
        self._takers: dict[str, set[str]] = {}  # by layer; "" for what no norm took
        self._given: list[_Given] = []
        self._whole = 0  # how many of them are of forwards that came to their end
        self._latest: dict[int, _Given] = {}  # by the tensor's id

    def give(self, path: str, output: Tensor) -> bool:
        """Note what a layer gives, and say whether it is known to feed a norm."""
        given = _Given(path, ref(output), _version(output))
        self._given.append(given)
        self._latest[id(output)] = given
        return path in self._feeding

    def take(self, norm: str, x: Any) -> None:
        """Note what a norm takes."""
        given = self._latest.get(id(x))
        if given and given.tensor() is x and given.version == _version(x):
            given.takers.add(norm)
        else:
            given = None
        self._givers.setdefault(norm, set()).add(given.path if given else "")

    def begin_forward(self) -> None:
        """Forget what was given in a forward that failed or was interrupted."""
        del self._given[self._whole :]

    def end_forward(self) -> None:
        """End a forward."""
        self._whole = len(self._given)

    def prune(self) -> None:
        """Keep nothing of outputs that no norm can take any more."""
        open_ones = [given for given in self._given if given.tensor() is not None]
        self._put_away([given for given in self._given if given.tensor() is None])
        self._given, self._whole = open_ones, len(open_ones)
        self._latest = {id(given.tensor()): given for given in open_ones}

    def _put_away(self, several: Sequence[_Given]) -> None:
        for given in several:
            self._takers.setdefault(given.path, set()).update(given.takers or {""})

    def settle(self) -> bool:
        """Bring `pairs` up to date at the end of a step, and say whether they changed."""
        self._put_away(self._given)
        self._given, self._whole = [], 0
        self._latest.clear()
        seen = {norm: next(iter(paths)) for norm, paths in self._givers.items() if len(paths) == 1}
        unseen = {n: p for n, p in self._certain.items() if n not in self._givers}
        pairs = {
            norm: path
            for norm, path in {**seen, **unseen}.items()
            if path and self._takers.get(path, {norm}) == {norm}
        }
        changed = pairs != self.pairs
        self.pairs, self._feeding = pairs, set(pairs.values())
        return changed


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


class Relus:
    """Which layers' responses a relu takes, each time that they run in their first step."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        self._nodes: dict[str, list[Any]] = {}  # of a forward pass under way
        self._found: dict[str, set[bool]] = {}  # of the step

    def follows(self, path: str) -> bool | None:
        """Say whether a relu follows a layer; None where its first step is not over yet."""
        return self._known.get(path)

    def note(self, path: str, response: Tensor) -> None:
        """Note a response of a layer before anything works on it in place."""
        self._nodes.setdefault(path, []).append(response.grad_fn)

    def end_forward(self, output: Any) -> None:
        """Look for relus in the graph behind an output; None where the forward failed."""
        if output is None:
            self._nodes.clear()
        if not self._nodes:
            return
        taken = _rectified(tensor.grad_fn for tensor in _tensors(output))
        for path, nodes in self._nodes.items():
            self._found.setdefault(path, set()).update(node in taken for node in nodes)
        self._nodes.clear()

    def settle(self) -> None:
        """End the step: what was not seen to be followed by a relu is held not to be."""
        for path in self._nodes:  # a forward pass that the network itself did not end
            self._found.setdefault(path, set()).add(False)
        self._known.update({path: found == {True} for path, found in self._found.items()})
        self._nodes.clear()
        self._found.clear()


def _rectified(roots: Iterable[Any]) -> set[Any]:
    """Give the nodes of the graph whose results a relu takes."""
    seen, taken, stack = set(), set(), [root for root in roots if root is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        behind = [one for one, _ in node.next_functions if one is not None]
        if _is_relu(node) and behind:
            taken.add(behind[0])
            if behind[0].name() == "ToCopyBackward0":  # to another precision
                taken.update(one for one, _ in behind[0].next_functions)
        stack += behind
    return taken


def _is_relu(node: Any) -> bool:
    """Whether a node gives 0 where its input is not above 0, and nowhere else."""
    kind = node.name()
    if kind == "HardtanhBackward0":  # relu6
        return node._saved_min_val == 0
    if kind in ("ClampBackward1", "ClampMinBackward0"):
        return node._saved_min == 0
    return kind == "ReluBackward0"


def _tensors(output: Any) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)
    elif is_dataclass(output):
        yield from _tensors([getattr(output, item.name) for item in fields(output)])
