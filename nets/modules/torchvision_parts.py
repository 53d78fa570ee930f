"""What a torchvision ResNet is made of, and what of it our networks have, checked part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nets.modules.user_changes import HOOKS, tensor_hooks

Kinds = Mapping[str, tuple[type | None, ...]]

_STAGES = ("layer1", "layer2", "layer3", "layer4")
_MODEL: Kinds = {
    "conv1": (nn.Conv2d,),
    "bn1": (nn.BatchNorm2d,),
    "relu": (nn.ReLU,),
    "maxpool": (nn.MaxPool2d, nn.Identity),
    **dict.fromkeys(_STAGES, (nn.Sequential,)),
    "avgpool": (nn.AdaptiveAvgPool2d,),
    "fc": (nn.Linear,),
}
_BASIC: Kinds = {
    "conv1": (nn.Conv2d,),
    "bn1": (nn.BatchNorm2d,),
    "conv2": (nn.Conv2d,),
    "bn2": (nn.BatchNorm2d,),
    "relu": (nn.ReLU,),
}
_BLOCKS: dict[str, Kinds] = {
    "BasicBlock": _BASIC,
    "Bottleneck": {**_BASIC, "conv3": (nn.Conv2d,), "bn3": (nn.BatchNorm2d,)},
}
_SHORTCUT: Kinds = {"0": (nn.Conv2d,), "1": (nn.BatchNorm2d,)}
_SETTINGS = {
    nn.Conv2d: "in_channels out_channels kernel_size stride padding dilation groups padding_mode",
    nn.BatchNorm2d: "num_features eps momentum affine track_running_stats",
    nn.Linear: "in_features out_features",
    nn.MaxPool2d: "kernel_size stride padding dilation ceil_mode return_indices",
    nn.AdaptiveAvgPool2d: "output_size",
}
_POOLS = {"maxpool": nn.MaxPool2d(3, 2, 1), "avgpool": nn.AdaptiveAvgPool2d(1)}
_PAIRS = {"kernel_size", "stride", "padding", "dilation", "output_size"}


def pair(size: Any) -> Any:
    """Give a size in the form (height, width); a padding may be a word."""
    if isinstance(size, tuple | list):
        return tuple(size)
    return size if isinstance(size, str) else (size, size)


def check_parts(model: Any) -> None:
    """Raise a ValueError unless the modules are those of a torchvision ResNet, as it makes them."""
    _check_model(model)
    _check_children("", model, _MODEL)
    kinds = set()
    for stage in _STAGES:
        blocks = _children(getattr(model, stage))
        if not blocks or [*blocks] != [str(number) for number in range(len(blocks))]:
            raise _refusal(stage, "Sequential of blocks from 0 on", ", ".join(blocks) or "none")
        for number, block in blocks.items():
            path = f"{stage}.{number}"
            if not _is_torchvisions(type(block), tuple(_BLOCKS)):
                raise _refusal(path, "BasicBlock or Bottleneck of torchvision", _line(block))
            kinds.add(type(block).__name__)
            first = number == "0"
            shortcut = (nn.Sequential, None) if first else (None,)
            parts = {**_BLOCKS[type(block).__name__], "downsample": shortcut}
            _check_children(path, block, parts)
            if "downsample" in _children(block):
                _check_children(f"{path}.downsample", _children(block)["downsample"], _SHORTCUT)
    if len(kinds) > 1:
        raise ValueError("model must have blocks of one kind, got BasicBlock and Bottleneck")
    for path, module in model.named_modules():
        _check_untouched(path, module)


def check_layers(model: nn.Module, net: nn.Module, homes: Mapping[str, str]) -> None:
    """Raise a ValueError unless each layer of the model does what its twin in our network does.

    Args:
        model: with the parts of a torchvision ResNet.
        net: ours; its values are not used.
        homes: by module of the model, where its twin is.
    """
    owners: dict[Any, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        twin = net.get_submodule(homes[path]) if path in homes else _POOLS.get(path)
        _check_settings(path, module, twin)
        found, wanted = entries(module), entries(twin) if type(module) in _SETTINGS else {}
        if found.keys() != wanted.keys():
            tensors = f"parameters and buffers{' of ' if path else ''}{path}"
            raise _refusal(tensors, _names(wanted), _names(found))
        for leaf, value in found.items():
            name = f"{path}.{leaf}"
            _check_value(name, value, wanted[leaf])
            place = (value.device, value.data_ptr())
            if place in owners:
                raise _refusal(name, "a tensor of its own", f"that of {owners[place]}")
            owners[place] = name
    devices = sorted({str(device) for device, _ in owners})
    if len(devices) > 1:
        raise _refusal("", "on one device", ", ".join(devices))


def entries(module: Any) -> dict[str, Tensor]:
    """Give the parameters and buffers of a module itself."""
    own = {**module._parameters, **module._buffers}
    return {name: value for name, value in own.items() if value is not None}


def _check_model(model: Any) -> None:
    if _is_torchvisions(type(model), ("ResNet",)):
        return
    kind = type(model)
    if isinstance(model, type):
        got, advice = f"the class {model.__name__}", "; pass an object of it"
    elif isinstance(model, nn.Module):
        inner = next((part for part in ("module", "_orig_mod") if hasattr(model, part)), "")
        got = f"{kind.__module__}.{kind.__name__}"
        advice = f"; pass model.{inner}" if inner else ""
        if any(_is_torchvisions(base, ("ResNet",)) for base in kind.__mro__):
            advice = "; a subclass may do anything, so load its weights into such a ResNet"
    else:
        got = repr(model) if model is None or isinstance(model, str) else kind.__name__
        advice = ""
    raise ValueError(f"model must be a ResNet of torchvision.models, got {got}{advice}")


def _is_torchvisions(kind: type, names: tuple[str, ...]) -> bool:
    return kind.__module__ == "torchvision.models.resnet" and kind.__name__ in names


def _children(module: nn.Module) -> dict[str, nn.Module]:
    # named_children() leaves out what is there twice
    return {name: child for name, child in module._modules.items() if child is not None}


def _check_children(path: str, module: nn.Module, kinds: Kinds) -> None:
    children = _children(module)
    for name in (*kinds, *children):
        part = f"{path}.{name}" if path else name
        if name not in kinds:
            raise _refusal(
                part, "left out, as a torchvision ResNet has no such part", _line(children[name])
            )
        kind = type(children[name]) if name in children else None
        if kind not in kinds[name]:
            wanted = " or ".join(kind.__name__ if kind else "None" for kind in kinds[name])
            raise _refusal(part, f"{wanted}, as torchvision makes it", _line(children.get(name)))


def _check_untouched(path: str, module: nn.Module) -> None:
    """Raise a ValueError if something was put over the module that a copy would not have."""
    hooks = [hook for kind in HOOKS for hook in getattr(module, kind).values()]
    if hooks:
        raise _refusal(path, "without hooks, which are not taken over", _called(hooks[0]))
    if module._compiled_call_impl is not None:
        raise _refusal(path, "not compiled; compile what is taken over", "one after compile()")
    for name in vars(module):
        if callable(getattr(type(module), name, None)):
            method = f"{name} of {path}" if path else name
            raise _refusal(method, "the method of its class", "one put in its place")


def _check_settings(path: str, module: nn.Module, twin: Any) -> None:
    for setting in _SETTINGS.get(type(module), "").split():
        found, wanted = (getattr(each, setting) for each in (module, twin))
        if setting in _PAIRS:
            found, wanted = pair(found), pair(wanted)
        if found != wanted:
            raise _refusal(f"{setting} of {path}", repr(wanted), repr(found))


def _check_value(name: str, value: Tensor, wanted: Tensor) -> None:
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
        raise _refusal(name, "a plain tensor", f"{type(value).__name__}, {value.layout}")
    if value.device.type == "meta":
        raise _refusal(name, "on a device that holds its values", "the meta device")
    if value.shape != wanted.shape or value.is_floating_point() != wanted.is_floating_point():
        kind = "floating" if wanted.is_floating_point() else "integer"
        raise _refusal(
            name, f"{kind} of shape {tuple(wanted.shape)}", f"{value.dtype} of {tuple(value.shape)}"
        )
    if hooks := tensor_hooks(value):
        raise _refusal(name, "without hooks, which are not taken over", _called(hooks[0]))


def _refusal(part: str, wanted: str, got: str) -> ValueError:
    return ValueError(f"{part + ' of ' if part else ''}model must be {wanted}, got {got}")


def _names(values: Mapping[str, Any]) -> str:
    return ", ".join(values) or "none"


def _called(hook: Any) -> str:
    return getattr(hook, "__qualname__", type(hook).__name__)


def _line(module: Any) -> str:
    line, home = str(module).splitlines()[0].removesuffix("("), type(module).__module__
    own = isinstance(module, nn.Module) and not home.startswith("torch.nn.")
    return f"{home}.{line}" if own else line
