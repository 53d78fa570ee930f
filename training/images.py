"""Images in memory, and how one file becomes one: as it is, or refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

_PLAIN = ("1", "L", "P", "RGB", "YCbCr")
"""Pillow's modes that have one reading in 8 bits of RGB; YCbCr is JPEG's, of the full range."""
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_DEEP = ("PNG", "TIFF", "JPEG2000")
"""Formats whose grey levels of 16 bits Pillow gives from 0; of others it says no sign or scale."""
_ORIENTATION, _BITS, _PHOTOMETRIC, _EXTRA = 274, 258, 262, 338  # tags of EXIF and TIFF
_ALLOWED = "images must be grey, palette or RGB, of 8 or 16 bits, and opaque"


@dataclass(frozen=True, eq=False)
class Images:
    """Inputs and targets of one split.

    `pixels` are uint8 (N, H, W, C), `targets` int64 (N,); for a regression both are float32 (N, 1).
    """

    pixels: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, chosen: Tensor) -> Images:
        """Give the images that a boolean mask or indices choose."""
        return Images(self.pixels[chosen], self.targets[chosen])


Parts = tuple[Images, Images | None, tuple[str, ...]]
"""Training part, test part (None where the source has none), class names (none: a regression)."""


def decode(file: Path) -> tuple[np.ndarray, int]:
    """Decode one file to RGB, (H, W, 3) uint8; second comes its largest level if it has 16 bits.

    Of 16 bits the upper 8 are taken. EXIF's orientation is applied, an alpha channel that is opaque
    everywhere is dropped, and colour profiles are not applied.

    Raises:
        ValueError: it is damaged or no image, or has no one reading in 8 bits: several frames, real
            transparency, floats, signed or 32-bit integers, CMYK, Lab, further channels.
    """
    try:
        with Image.open(file) as image:
            # A camera's MPO holds previews and depth maps behind its one picture.
            frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
            image.load()
            wrong = f"holds {frames} images" if frames > 1 else _wrong(image)
            pixels, largest = (np.empty(0), 0) if wrong else _pixels(image)
    # Damaged files leave PIL's decoders as any of these.
    except (
        *(OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError),
        *(OverflowError, Image.DecompressionBombError, Image.DecompressionBombWarning),
    ) as error:
        raise ValueError(f"{file} is no image that can be read ({error})") from None
    if wrong:
        raise ValueError(f"{_ALLOWED}; {file} {wrong}")
    return pixels, largest


def _wrong(image: Any) -> str:
    """Say why an image cannot be used as it is; nothing if it can."""
    tags = getattr(image, "tag_v2", {})
    if tags and 0 in np.atleast_1d(tags.get(_EXTRA, ())):
        return "has channels beside its colours"
    if _is_deep(image):
        if "transparency" in image.info:
            return "has a transparent level"
        return "counts its levels from white" if tags.get(_PHOTOMETRIC) == 0 else ""
    if image.mode not in (*_PLAIN, *_ALPHA):
        kind = {"F": "floats", "I": "integers of unknown range"}.get(image.mode, image.mode)
        kind = "16-bit levels of unknown range" if image.mode.startswith("I;16") else kind
        return f"holds {kind} ({image.format})"
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        return "is transparent in places"
    return ""


def _is_deep(image: Any) -> bool:
    """Say whether these are grey levels of 0 to 65535, or of a TIFF's 12 bits."""
    # PGM's levels of more than 8 bits come as 32-bit integers, spread from its maxval to 65535.
    return (image.format in _DEEP and image.mode.startswith("I;16")) or (
        image.format in ("PPM", "PNG") and image.mode == "I"
    )


def _pixels(image: Any) -> tuple[np.ndarray, int]:
    """Give (H, W, 3) uint8, and the largest level of 16 bits, or 0 where there are 8."""
    bits = 8
    if _is_deep(image):
        bits = int(np.max(getattr(image, "tag_v2", {}).get(_BITS, 16)))
    if image.info and image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if bits == 8:
        if image.has_transparency_data:
            image = image.convert("RGBA")  # of such palettes Pillow warns otherwise
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), 0
    levels = np.asarray(image)
    grey = (levels >> (bits - 8)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2), int(levels.max()) << (16 - bits)
