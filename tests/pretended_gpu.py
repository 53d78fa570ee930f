"""A CPU that pretends to be a GPU, to see what a GPU would refuse, wait for, or do too early.

Tensors made for "cuda", and what is made of them, are marked by their memory; to Python they lie on
cuda:0, and they are computed where they are. Every operation is looked at on its way, those of the
backward pass too. What this cannot show: that kernels are there and what they compute.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_captured_step import Recorder
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.computing.optimizer import DTYPES, Precision

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
ROOT = Path(__file__).parents[1]
_BASE: Any = torch._C.TensorBase  # pyright: ignore[reportAttributeAccessIssue]
_WAIT = ("nonzero", "masked_select", "_unique2", "bincount", "equal", "_local_scalar_dense")
_COPIES = ("copy_", "_foreach_copy_", "_to_copy")
_INDEXES = ("index", "index_put_", "_index_put_impl_")
_OF_TORCH = ("__torch_dispatch__", "__torch_function__", "__call__", "inner", "_fn")
"""Functions between the backward pass and what it calls."""


class Stream:
    """Knows what of every stream it waits for, as numbers of their operations."""

    device = GPU

    def __init__(self, *_: Any) -> None:
        self.past: Counter[Stream] = Counter()

    def wait_stream(self, other: Stream) -> None:
        self.past |= other.past

    def synchronize(self) -> None: ...


class Memory:
    """Which operations have written and read some memory last, by their streams."""

    def __init__(self) -> None:
        self.written: dict[Stream, int] = {}
        self.read: dict[Stream, int] = {}


class PretendedGpu(TorchDispatchMode):
    """Marks memory and looks at operations; `faults` counts what a GPU would not do, or wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: Counter[str] = Counter()
        self.busy = False  # whether nothing may wait for the host, or get anything from there
        self.capturing = False
        self.stream = Stream()
        self.beside: Counter[Stream] = Counter()  # operations of other streams than the first
        self._marked: dict[int, StorageWeakRef] = {}  # holds addresses, so that none is used again
        self._memory: dict[int, Memory] = {}  # of a capture under way

    def has(self, x: torch.Tensor) -> bool:
        return x.layout is torch.strided and _key(x) in self._marked

    def mark(self, values: Any) -> None:
        for x in _tensors(values):
            self._marked.setdefault(_key(x), StorageWeakRef(_BASE.untyped_storage(x)))

    def take_back(self, x: torch.Tensor) -> None:
        self._marked.pop(_key(x), None)

    def fault(self, what: str, operation: Any) -> None:
        frame: Any = sys._getframe(1)
        while frame and ROOT not in (path := Path(frame.f_code.co_filename)).parents:
            frame = frame.f_back
        while frame and (path.parent.name == "tests" or ".venv" in path.parts):
            frame = frame.f_back
            path = Path(frame.f_code.co_filename) if frame else path
        at = f"{path.name}:{frame.f_lineno}" if frame else "no file of ours"
        self.faults[f"{what}: {operation} at {at}"] += 1

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        before, self.busy = self.busy, True
        yield
        self.busy = before

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        made_there = _is_gpu(kwargs.get("device"))
        if made_there:
            kwargs["device"] = CPU
        given = _tensors((args, kwargs))
        there = [self.has(x) for x in given]
        self._check(func, given, there, args)
        if self.capturing:
            self._order(func, given, args, kwargs)
        out = func(*args, **kwargs)
        host = {_key(x) for x, on_gpu in zip(given, there) if not on_gpu}
        if made_there or any(there) or (not given and _in_backward()):
            self.mark([x for x in _tensors(out) if _key(x) not in host])
        if self.capturing and not func.is_view:
            self._note(_tensors(out), written=True)
        return out

    def _check(self, func: Any, given: list[Any], there: list[bool], args: Any) -> None:
        if not any(there):
            return
        name = func.overloadpacket.__name__
        host = [x for x, on_gpu in zip(given, there) if not on_gpu and x.device == CPU]
        if name in _COPIES or (name in _INDEXES and there[0]):
            if self.busy and host:
                self.fault("a copy between host and device", func)
        elif any(x.dim() for x in host):
            self.fault("memory of host and device", func)
        masks = name in _INDEXES and any(x.dtype == torch.bool for x in _tensors(args[1]))
        if self.busy and (name in _WAIT or masks):
            self.fault("a wait for the device", func)

    def _order(self, func: Any, given: list[Any], args: Any, kwargs: Any) -> None:
        """See that what a stream reads and writes is there, and read, by then."""
        now, self.stream.past[self.stream] = self.stream, self.stream.past[self.stream] + 1
        named = dict(zip([one.name for one in func._schema.arguments], args)) | kwargs
        changed = [named.get(one.name) for one in func._schema.arguments if _writes(one)]
        for x in () if func.is_view else given:
            known = self._memory.setdefault(_key(x), Memory())
            if any(number > now.past[stream] for stream, number in known.written.items()):
                self.fault("read before it is written", func)
        for x in _tensors(changed):
            known = self._memory[_key(x)]
            if any(number > now.past[stream] for stream, number in known.read.items()):
                self.fault("written before it is read", func)
        self._note([] if func.is_view else given, written=False)
        self._note(_tensors(changed), written=True)
        if now is not self.main:
            self.beside[now] += 1

    def _note(self, values: list[Any], written: bool) -> None:
        for x in values:
            known = self._memory.setdefault(_key(x), Memory())
            place = known.written if written else known.read
            place[self.stream] = self.stream.past[self.stream]

    @contextmanager
    def capture(self) -> Iterator[None]:
        self.capturing, self.main = True, self.stream
        self._memory.clear()
        with self.without_waiting():
            yield
        self.capturing = False
        for stream in {one for known in self._memory.values() for one in known.written}:
            if stream.past[stream] > self.main.past[stream]:
                self.fault("not waited for at the end", "a stream")


class _Functions(TorchFunctionMode):
    """Takes the device out of what would ask CUDA for it before any operation is seen."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, gpu = dict(kwargs or {}), self._gpu
        if isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        if func in (torch.Tensor.to, torch.Tensor.cpu):
            return self._moved(func, *args, **kwargs)
        if func is torch.Tensor.pin_memory:
            return args[0].clone()
        if func is torch.Tensor.tolist and gpu.busy and gpu.has(args[0]):
            gpu.fault("a wait for the device", "tolist")
        if func is torch.Tensor.numpy and gpu.has(args[0]):
            raise TypeError("numpy cannot read what lies on a GPU")
        made_there = _is_gpu(kwargs.get("device"))
        if made_there:
            kwargs["device"] = CPU
            if func is torch.tensor and gpu.busy:
                gpu.fault("a copy between host and device", "torch.tensor")
        out = func(*args, **kwargs)
        if made_there:
            gpu.mark(out)
        return out

    def _moved(self, func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        rest = list(args)
        device = CPU if func is torch.Tensor.cpu else kwargs.pop("device", None)
        if rest and isinstance(rest[0], str | torch.device | None):
            device = rest.pop(0)
        elif rest and isinstance(rest[0], torch.Tensor):
            device, rest[0] = rest[0].device, rest[0].dtype
        kwargs |= zip(("dtype", "non_blocking", "copy"), rest)
        kwargs["dtype"] = kwargs.get("dtype") or x.dtype
        if device is None or x.is_meta or torch.device(device).type == "meta":
            where = {} if device is None else {"device": device}
            return torch.Tensor.to(x, **where, **kwargs)
        if _is_gpu(device) == self._gpu.has(x):
            return torch.Tensor.to(x, **kwargs)
        if self._gpu.busy:
            self._gpu.fault("a copy between host and device", "to")
        kwargs["copy"] = True
        out = torch.Tensor.to(x, **kwargs)
        if _is_gpu(device):
            self._gpu.mark(out)
        else:
            self._gpu.take_back(out)
        return out


def _key(x: torch.Tensor) -> int:
    return _BASE.untyped_storage(x)._cdata


def _tensors(values: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _writes(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _in_backward() -> bool:
    """Say whether an operation is the backward pass's own, and no hook's."""
    frame: Any = sys._getframe(2)
    while frame and frame.f_code.co_name in _OF_TORCH:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"


class Graphs(Recorder):
    """Captures as `CudaGraphs` does; what a replay does is looked at no more."""

    gpu: PretendedGpu

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        def captured() -> None:
            with self.gpu.capture():
                work()

        return super().record(captured)


@contextmanager
def pretended_gpu(patch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """Pretend for a while; runs on "cuda" are captured by `Graphs`."""
    gpu = PretendedGpu()
    device = _BASE.device
    group: Any = torch.optim.Optimizer._group_tensors_by_device_and_dtype
    engine: Any = torch.autograd._engine_run_backward  # pyright: ignore

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        found = group(lists, with_indices).items()
        return {
            (GPU if any(x is not None and gpu.has(x) for x in value[0][0]) else at, dtype): value
            for (at, dtype), value in found
        }

    def backward(*args: Any, **kwargs: Any) -> Any:
        with _Functions(gpu):  # in here torch has put all modes of functions away
            return engine(*args, **kwargs)

    def autocast(precision: Precision) -> torch.autocast:
        enabled = precision.dtype != DTYPES["float32"]
        dtype = precision.dtype if enabled else None
        return torch.autocast("cpu", dtype, enabled=enabled, cache_enabled=False)

    def there(x: torch.Tensor) -> torch.device:
        return GPU if gpu.has(x) else device.__get__(x)

    of_cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda **_: True,
        "get_device_name": lambda *_: "pretended",
        "get_device_properties": lambda *_: SimpleNamespace(total_memory=2**36),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "manual_seed": lambda _: None,
        "_lazy_init": lambda: None,
        "device": lambda _: nullcontext(),
        "is_current_stream_capturing": lambda: gpu.capturing,
        "Stream": Stream,
        "current_stream": lambda *_: gpu.stream,
        "stream": gpu.on,
    }
    for name, value in of_cuda.items():
        patch.setattr(torch.cuda, name, value)
    streams = SimpleNamespace(is_capturing=lambda: gpu.capturing)
    patch.setattr(torch.accelerator, "current_stream", lambda *_: streams)
    patch.setattr(torch.Tensor, "device", property(there), raising=False)
    patch.setattr(torch.Tensor, "is_cuda", property(gpu.has), raising=False)
    patch.setattr(torch.Tensor, "is_cpu", property(lambda x: there(x) == CPU), raising=False)
    patch.setattr(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", grouped)
    patch.setattr(torch.autograd, "_engine_run_backward", backward)
    patch.setattr(Precision, "autocast", autocast)
    patch.setattr("training.stepping.captured_step.CudaGraphs", type("", (Graphs,), {"gpu": gpu}))
    with _Functions(gpu), gpu:
        yield gpu
