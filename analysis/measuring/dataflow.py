"""Where layers' outputs go in a forward pass: which norm takes them, and whether a relu does.

Which norm takes which layer's output is seen by looking whether it is the very tensor that the
layer gave, unchanged since, if perhaps in the wrapping that torch gives to what goes into and comes
out of modules with hooks on their backward pass. What else takes it, and which responses a relu
follows, is looked up in the autograd graph, once for each layer: in the first step that is read and
in which it runs and has a gradient.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any
from weakref import ref

from torch import Tensor

WRAPPED = 16
"""Of how many outputs, the latest, is kept what made them: a wrapped one is known by it."""
LOOKED_AGAIN = 32
"""Steps that are read after which it is looked again at what was not seen to go anywhere."""
_WRAPPING = "BackwardHookFunctionBackward"


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
        self._wrapped: deque[tuple[Any, _Given]] = deque(maxlen=WRAPPED)  # perhaps; by what made it

    def give(self, path: str, output: Tensor) -> bool:
        """Note what a layer gives, and say whether it is known to feed a norm and nothing else."""
        given = _Given(path, ref(output), _version(output))
        self._given.append(given)
        self._latest[id(output)] = given
        if output.grad_fn is not None:
            self._wrapped.append((output.grad_fn, given))
        return path in self._feeding and (output.grad_fn is None or self._graph.looked(path))

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
        if isinstance(x, Tensor) and x.grad_fn is not None and x.grad_fn.name() == _WRAPPING:
            made = _maker(x)
            return next((one for node, one in self._wrapped if node is made), None)
        return None

    def begin_forward(self) -> None:
        """Forget what was given in a forward that failed or was interrupted."""
        del self._given[self._whole :]
        self._wrapped.clear()

    def end_forward(self) -> None:
        """End a forward."""
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


class Graph:
    """What takes layers' outputs in the autograd graph, looked up in the first step of each.

    Whether a relu takes a response each time, and whether what feeds a norm feeds more than that.
    """

    def __init__(self) -> None:
        self.shared: set[str] = set()  # layers that feed a norm and more
        self._fed: set[str] = set()  # layers that feed a norm and were looked at
        self._known: dict[str, bool] = {}  # whether a relu follows
        self._found: dict[str, set[bool]] = {}  # of the step
        self._unseen: set[str] = set()  # that went nowhere
        self._steps = 0
        # of a forward pass under way
        self._responses: list[tuple[str, Any]] = []
        self._norms: list[tuple[str, Any, Any]] = []
        self._reached: set[Any] = set()  # what made the outputs of layers

    def follows(self, path: str) -> bool | None:
        """Say whether a relu follows a layer; None where its first step is not over yet."""
        return self._known.get(path)

    def looked(self, path: str) -> bool:
        """Say whether it was looked up what takes a layer that feeds a norm."""
        return path in self._fed

    def reach(self, output: Tensor) -> None:
        """Note any output, to look at the graph behind it too."""
        if self._responses or self._norms:
            self._reached.add(_maker(output))

    def note(self, path: str, response: Tensor) -> None:
        """Note a response of a layer before anything works on it in place."""
        self._found.setdefault(path, set())
        self._responses.append((path, response.grad_fn))

    def note_norm(self, feeder: str, x: Tensor, output: Any) -> None:
        """Note what a layer fed to a norm, and what the norm made of it."""
        if not self.looked(feeder) and x.grad_fn is not None:
            normed = _maker(output) if isinstance(output, Tensor) else None
            self._norms.append((feeder, _maker(x), normed))

    def end_forward(self, output: Any) -> None:
        """Look at the graph behind an output; None where the forward failed."""
        if output is not None:
            self.look(output)
        self._forget()

    def look(self, output: Any = ()) -> None:
        """Look at the graph behind all that was reached, also where the network did not run."""
        if self._responses or self._norms:
            ends = {_maker(tensor) for tensor in _tensors(output)} - {None}
            takers = _takers((ends | self._reached) - {None})
            self._look_for_relus(ends, takers)
            self._look_around_norms(ends, takers)
        self._forget()

    def settle(self) -> None:
        """End the step: what was not seen to be followed by a relu is held not to be."""
        self.look()
        self._known.update({path: found == {True} for path, found in self._found.items()})
        self._unseen |= {path for path, found in self._found.items() if not found}
        self._found.clear()
        self._steps += 1
        if self._steps % LOOKED_AGAIN == 0:
            for path in self._unseen:
                del self._known[path]
            self._unseen.clear()

    def _look_for_relus(self, ends: set[Any], takers: Mapping[Any, set[Any]]) -> None:
        for path, node in self._responses:
            if takers.get(node) or node in ends:  # else it was not seen where it goes
                self._found[path].add(_is_rectified(node, takers))

    def _look_around_norms(self, ends: set[Any], takers: Mapping[Any, set[Any]]) -> None:
        inside: dict[Any, set[Any]] = {}
        for _, node, normed in self._norms:
            inside.setdefault(node, set()).update(_between(normed, node))
        for path, node, _ in self._norms:
            self._fed.add(path)
            if node in ends or takers.get(node, set()) - inside[node]:
                self.shared.add(path)

    def _forget(self) -> None:
        self._responses.clear()
        self._norms.clear()
        self._reached.clear()


def _behind(node: Any) -> list[Any]:
    """Give the nodes whose results a node takes."""
    nodes = [_unwrapped(one, which) for one, which in node.next_functions]
    return [one for one in nodes if one is not None]


def _maker(x: Tensor) -> Any:
    """Give the node that made a tensor, before any wrapping; None where it is in no graph."""
    return _unwrapped(x.grad_fn, x.output_nr)


def _unwrapped(node: Any, which: int) -> Any:
    """Give the node whose result another gives as its output of a number, if that only wraps it."""
    while node is not None and node.name() == _WRAPPING:
        node, which = node.next_functions[which]
    return node


def _takers(ends: Iterable[Any]) -> dict[Any, set[Any]]:
    """Give the nodes that take what a node gave, of all nodes in the graph behind some."""
    takers: dict[Any, set[Any]] = {node: set() for node in ends}
    stack = list(takers)
    while stack:
        node = stack.pop()
        for one in _behind(node):
            if one not in takers:
                takers[one] = set()
                stack.append(one)
            takers[one].add(node)
    return takers


def _between(last: Any, first: Any) -> set[Any]:
    """Give the nodes in the graph behind one, and that one, but none behind another."""
    found, stack = {first}, [last]
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found.add(node)
            stack += _behind(node)
    return found - {first}


def _is_rectified(node: Any, takers: Mapping[Any, set[Any]]) -> bool:
    """Whether a relu takes what a node gave, perhaps in another precision."""
    taking = takers.get(node, set())
    copies = [takers[one] for one in taking if one.name() == "ToCopyBackward0"]
    return any(map(_is_relu, taking.union(*copies)))


def _is_relu(node: Any) -> bool:
    """Whether a node gives 0 where its input is not above 0, and nowhere else."""
    kind = node.name()
    if kind == "HardtanhBackward0":  # relu6
        return node._saved_min_val == 0
    if kind in ("ClampBackward1", "ClampMinBackward0"):
        return node._saved_min == 0
    return kind == "ReluBackward0"


def _tensors(output: Any) -> list[Tensor]:
    """Give the tensors in an output, in collections and in what an object holds itself."""
    seen: dict[int, Any] = {}
    stack = [output]
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, Mapping):
            stack += one.values()
        elif isinstance(one, list | tuple):
            stack += one
        elif is_dataclass(one):
            stack += [getattr(one, item.name) for item in fields(one)]
        elif not isinstance(one, Tensor):
            held = getattr(one, "__dict__", {}).values()
            stack += [part for part in held if isinstance(part, Tensor | Mapping | list | tuple)]
    return [one for one in seen.values() if isinstance(one, Tensor)]
