"""Which images a run sees: data.json in its folder holds their content, however they are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.recording.files import write_whole

if TYPE_CHECKING:  # torch, which a front door does not wait for
    from training.data.augmenting import Augment
    from training.data.images import Images
    from training.data.splits import Splits

NAME = "data.json"
PARTS = ("train", "validation", "test")
_CHUNK = 2**24


def identity_of(splits: Splits, augment: Augment) -> dict[str, Any]:
    """Give what makes data the same: classes, numbers, pixels, targets and order of every part."""
    parts = {name: getattr(splits, name) for name in PARTS}
    return {
        "classes": list(splits.names),
        "image": list(splits.image),
        "images": {name: len(part) for name, part in parts.items()},
        "content": {name: _hash(part) for name, part in parts.items()},
        "augmentation": str(augment),
    }


def _hash(images: Images) -> str:
    """Give a hash of pixels and targets in their order.

    What is computed and not read, the sine's points, is left out: its last digits are a processor's
    own.
    """
    found = blake2b(digest_size=16)
    if not images.pixels.is_floating_point():
        for values in (images.pixels, images.targets):
            for chunk in values.flatten().split(_CHUNK):
                found.update(chunk.numpy().tobytes())
    return found.hexdigest()


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in what the data of two runs differ, the first before and the second now; or nothing."""
    if before["classes"] != now["classes"]:
        return _classes(before["classes"], now["classes"])
    if before["image"] != now["image"]:
        sizes = (" x ".join(map(str, each["image"])) for each in (now, before))
        return "images of {} instead of {}".format(*sizes)
    told = []
    for part in PARTS:
        count, earlier = now["images"][part], before["images"][part]
        if count != earlier:
            told.append(f"{count} instead of {earlier} {part} images")
        elif now["content"][part] != before["content"][part]:
            told.append(f"{count} {part} images of other content or in another order")
    if told:
        return ", ".join(told)
    if before["augmentation"] != now["augmentation"]:
        return f"augmentation {now['augmentation']} instead of {before['augmentation']}"
    return ""


def _classes(before: list[str], now: list[str]) -> str:
    new, gone = ([name for name in a if name not in b] for a, b in ((now, before), (before, now)))
    told = [f"{word} {', '.join(names)}" for word, names in (("new", new), ("gone", gone)) if names]
    return f"other classes ({'; '.join(told) or 'in another order'})"


def check_same_data(folder: Path, now: Mapping[str, Any]) -> None:
    """Raise a ValueError that says what differs if a folder's run saw other data.

    A run of an earlier version, which did not say what it saw, passes.
    """
    path = folder / NAME
    if not path.exists():
        return
    try:
        told = difference(json.loads(path.read_text(encoding="utf-8")), now)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"out: {path} cannot be read") from None
    if told:
        raise ValueError(f"data must be those of the run in {folder}, got {told}")


def settle(folder: Path, now: Mapping[str, Any]) -> None:
    """Check that a folder's run sees the data that it saw, or write down which these are."""
    check_same_data(folder, now)
    if not (folder / NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / NAME, json.dumps(now, indent=2) + "\n")
