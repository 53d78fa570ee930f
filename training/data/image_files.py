"""How one file becomes an image: as it is, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

_MODES = ("1", "L", "P", "RGB", "YCbCr", "LA", "La", "PA", "RGBA", "RGBa")
"""Pillow's modes that have one reading as RGB of 8 bits; YCbCr is JPEG's, of the full range."""
_ALLOWED = "images must be grey, palette or RGB of up to 8 bits a channel, opaque, one to a file"
_KINDS = {"F": "floats", "I": "integers of more than 8 bits", "RGBX": "channels beside its colours"}
_ORIENTATION, _BITS, _EXTRA = 274, 258, 338
"""Tags of EXIF and TIFF."""


def decode(file: Path) -> np.ndarray:
    """Decode one file to RGB, (H, W, 3) uint8.

    Grey levels are repeated, fewer bits than 8 spread over 0 to 255. EXIF's orientation is applied,
    an alpha channel that is opaque everywhere is dropped, and colour profiles are not applied.

    Raises:
        ValueError: it is damaged or no image, or no 8 bits of RGB hold it as it is: more bits,
            floats, real transparency, several images, CMYK, Lab, further channels.
    """
    try:
        # By its name Pillow 13 maps a file at its upright size, and mangles a turned grey TIFF.
        with file.open("rb") as stream, Image.open(stream) as image:
            # A camera's MPO holds previews and depth maps behind its one picture.
            count = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
            wrong = f"holds {count} images" if count > 1 else _unfit(image)
            if not wrong:
                pixels = _pixels(image)
                if pixels is not None:
                    return pixels
                wrong = "is transparent in places"
    # Damaged files leave PIL's decoders as any of these.
    except (
        *(OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError),
        *(OverflowError, Image.DecompressionBombError, Image.DecompressionBombWarning),
    ) as error:
        raise ValueError(f"{file} is no image that can be read ({error})") from None
    raise ValueError(f"{_ALLOWED}; {file} {wrong}")


def _unfit(image: Any) -> str:
    """Say why an image that is not decoded yet does not fit into 8 bits of RGB; nothing if it does.

    Pillow cuts off what is more, without a word: 16 bits of colour, a fourth band.
    """
    if image.mode not in _MODES:
        deep = "16 bits a channel" if image.mode.startswith("I;16") else image.mode
        return f"holds {_KINDS.get(image.mode, deep)} ({image.format})"
    tags = getattr(image, "tag_v2", {})
    bits = [int(bits) for bits in np.atleast_1d(tags.get(_BITS, 8))] if tags else [8]
    for tile in image.tile:
        how = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if ";16" in str(how[0]) or tile.codec_name == "SGI16":
            bits.append(16)
        if tile.codec_name.startswith("ppm") and max(how[1:], default=0) > 255:
            bits.append(16)
    if max(bits) > 8:
        return f"holds {max(bits)} bits a channel ({image.format})"
    if tags and 0 in np.atleast_1d(tags.get(_EXTRA, ())):
        return f"holds channels beside its colours ({image.format})"
    return ""


def _pixels(image: Any) -> np.ndarray | None:
    """Give an image as RGB, (H, W, 3) uint8; None if it is not opaque."""
    image.load()
    if image.info and image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            return None
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
