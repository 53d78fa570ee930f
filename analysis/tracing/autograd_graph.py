"""What takes layers' outputs, by the autograd graph: a relu, or more than a norm.

It is looked up once for each layer: in the first step that is read and in which it runs and has a
gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

LOOKED_AGAIN = 32
"""Steps that are read after which it is looked again at what was not seen to go anywhere."""
_WRAPPING = "BackwardHookFunctionBackward"


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
            self._reached.add(maker(output))

    def note(self, path: str, response: Tensor) -> None:
        """Note a response of a layer before anything works on it in place."""
        self._responses.append((path, maker(response)))

    def note_norm(self, feeder: str, x: Tensor, output: Any) -> None:
        """Note what a layer fed to a norm, and what the norm made of it."""
        made = maker(x)
        if made is not None and not self.looked(feeder):
            normed = maker(output) if isinstance(output, Tensor) else None
            self._norms.append((feeder, made, normed))

    def end_forward(self, output: Any) -> None:
        """Look at the graph behind an output; None where the forward failed."""
        if output is not None:
            self.look(output)
        self._forget()

    def look(self, output: Any = ()) -> None:
        """Look at the graph behind all that was reached, also where the network did not run."""
        if self._responses or self._norms:
            ends = {maker(tensor) for tensor in _tensors(output)} - {None}
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
            found = self._found.setdefault(path, set())
            if takers.get(node) or node in ends:  # else it was not seen where it goes
                found.add(_is_rectified(node, takers))

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


def is_wrapped(x: Tensor) -> bool:
    """Say whether a tensor is what torch made of another for hooks on a backward pass."""
    return x.grad_fn is not None and x.grad_fn.name() == _WRAPPING


def maker(x: Tensor) -> Any:
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
        if isinstance(one, Tensor):
            continue
        if isinstance(one, Mapping):
            stack += one.values()
        elif isinstance(one, list | tuple):
            stack += one
        elif is_dataclass(one):
            stack += [getattr(one, item.name, None) for item in fields(one)]
        else:
            held = getattr(one, "__dict__", {}).values()
            stack += [part for part in held if isinstance(part, Tensor | Mapping | list | tuple)]
    return [one for one in seen.values() if isinstance(one, Tensor)]
