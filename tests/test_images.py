"""The user's images are used as they are, or refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.data.image_files import decode

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLOURS = np.random.default_rng(0).integers(256, size=(6, 8, 3), dtype=np.uint8)
DEEP = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1365


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def png(path: Path, depth: int, kind: int, rows: bytes, **chunks: bytes) -> Path:
    """Write a PNG of 8 x 6 that Pillow cannot write; `kind` is the colour type."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 6, depth, kind, 0, 0, 0))
    body += b"".join(chunk(name.encode(), content) for name, content in chunks.items())
    stride = len(rows) // 6
    lines = b"".join(b"\0" + rows[at : at + stride] for at in range(0, len(rows), stride))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )
    return path


# As they are


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp", "gif"])
def test_grey_levels_and_colours_are_kept(suffix: str, tmp_path: Path):
    options = {"lossless": True} if suffix == "webp" else {}
    grey = decode(saved(tmp_path / f"grey.{suffix}", Image.fromarray(RAMP), **options))
    assert (grey.dtype, grey.shape) == (np.uint8, (6, 8, 3))
    assert (grey == RAMP[:, :, None]).all()
    if suffix != "gif":
        colour = decode(saved(tmp_path / f"colour.{suffix}", Image.fromarray(COLOURS), **options))
        assert np.array_equal(colour, COLOURS)


def test_few_levels_are_spread_and_palettes_looked_up(tmp_path: Path):
    bits = Image.fromarray(RAMP > 100)
    assert np.array_equal(decode(saved(tmp_path / "1.png", bits))[:, :, 0], (RAMP > 100) * 255)
    nibbles = bytes(range(24))  # 4 bits a level
    levels = np.frombuffer(nibbles, np.uint8).repeat(2) >> np.tile([4, 0], 24) & 15
    four = decode(png(tmp_path / "4.png", 4, 0, nibbles))
    assert np.array_equal(four[:, :, 0], levels.reshape(6, 8) * 17)
    pgm = tmp_path / "100.pgm"
    pgm.write_bytes(b"P5 8 6 100\n" + bytes(range(0, 96, 2)))
    expected = np.arange(0, 96, 2).reshape(6, 8) * 2.55
    assert np.abs(decode(pgm)[:, :, 0] - expected).max() <= 1
    palette = Image.fromarray(COLOURS).quantize(16)
    looked_up = np.asarray(palette.convert("RGB"))
    for suffix in ("png", "gif", "bmp", "tif"):
        assert np.array_equal(decode(saved(tmp_path / f"p.{suffix}", palette)), looked_up)


def test_an_opaque_alpha_channel_is_dropped(tmp_path: Path):
    alpha = np.full((6, 8, 1), 255, np.uint8)
    for suffix in ("png", "tif"):
        rgba = Image.fromarray(np.concatenate([COLOURS, alpha], 2))
        assert np.array_equal(decode(saved(tmp_path / f"rgba.{suffix}", rgba)), COLOURS)
        grey = Image.fromarray(np.concatenate([RAMP[:, :, None], alpha], 2))
        assert (decode(saved(tmp_path / f"la.{suffix}", grey)) == RAMP[:, :, None]).all()
    rgb = Image.fromarray(COLOURS | 1)  # no pixel has the colour that is named as transparent
    unused = saved(tmp_path / "unused.png", rgb, transparency=(0, 0, 0))
    assert np.array_equal(decode(unused), COLOURS | 1)
    palette = Image.fromarray(COLOURS).quantize(16)
    opaque = saved(tmp_path / "opaque.png", palette, transparency=b"\xff" * 16)
    assert np.array_equal(decode(opaque), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_a_turned_image_is_seen_upright(orientation: int, suffix: str, tmp_path: Path):
    exif = Image.Exif()
    exif[274] = orientation
    turned = {
        **{1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud},
        **{5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1)},
        **{7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90},
    }[orientation]
    palette = Image.fromarray(COLOURS).quantize(16)
    for number, image in enumerate((Image.fromarray(COLOURS), Image.fromarray(RAMP), palette)):
        if suffix == "jpg" and image.mode == "P":
            continue
        options = {"lossless": True} if suffix == "webp" else {}
        plain = decode(saved(tmp_path / f"plain{number}.{suffix}", image, **options))
        got = decode(saved(tmp_path / f"{number}.{suffix}", image, exif=exif, **options))
        assert np.array_equal(got, turned(plain))


def test_a_colour_profile_is_not_applied(tmp_path: Path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = saved(tmp_path / "a.png", Image.fromarray(COLOURS), icc_profile=profile)
    assert np.array_equal(decode(file), COLOURS)


def test_the_one_picture_of_a_camera_is_used(tmp_path: Path):
    image, preview = Image.fromarray(COLOURS), Image.fromarray(COLOURS[:3, :4])
    file = saved(tmp_path / "a.mpo", image, save_all=True, append_images=[preview])
    with Image.open(file) as stored:
        assert (stored.format, stored.n_frames) == ("MPO", 2)  # pyright: ignore
        expected = np.asarray(stored)
    assert np.array_equal(decode(file), expected)


# Refused by name


def float_tiff(path: Path) -> Path:
    return saved(path, Image.fromarray((DEEP / 65535).astype(np.float32)))


def maps(path: Path) -> Path:
    path.write_bytes(b"Pf 8 6 -1\n" + (DEEP / 65535).astype("<f4").tobytes())
    return path


def pnm(header: bytes, values: np.ndarray) -> Any:
    def write(path: Path) -> Path:
        path.write_bytes(header + values.astype(">u2").tobytes())
        return path

    return write


def plain_pgm(path: Path) -> Path:
    path.write_text("P2 8 6 4095\n" + " ".join(map(str, (DEEP >> 4).ravel())))
    return path


def sgi(path: Path) -> Path:
    header = struct.pack(">HBBHHHHll", 474, 0, 2, 2, 8, 6, 1, 0, 65535)
    path.write_bytes(header.ljust(512, b"\0") + DEEP.astype(">u2").tobytes())
    return path


def frames(path: Path) -> Path:
    images = [Image.fromarray(part) for part in (COLOURS, 255 - COLOURS)]
    return saved(path, images[0], save_all=True, append_images=images[1:])


def stored(image: Image.Image, **options: Any) -> Any:
    return lambda path: saved(path, image, **options)


HOLES = np.concatenate([COLOURS, np.where(RAMP > 9, 255, 254).astype(np.uint8)[:, :, None]], 2)
BLACK = Image.fromarray(COLOURS // 200 * 200)
PALETTE = Image.fromarray(COLOURS).quantize(16)
SIXTEEN = "holds 16 bits a channel"
REFUSED = {
    "16.png": (stored(Image.fromarray(DEEP)), SIXTEEN),
    "16.tif": (stored(Image.fromarray(DEEP)), SIXTEEN),
    "packed.tif": (stored(Image.fromarray(DEEP), compression="tiff_lzw"), SIXTEEN),
    "16.jp2": (stored(Image.fromarray(DEEP)), SIXTEEN),
    "big.tif": (stored(Image.fromarray(DEEP.astype(">u2"))), SIXTEEN),
    "16.pgm": (pnm(b"P5 8 6 65535\n", DEEP), "holds integers of more than 8 bits"),
    "12.pgm": (pnm(b"P5 8 6 4095\n", DEEP >> 4), "holds integers of more than 8 bits"),
    "plain.pgm": (plain_pgm, "holds integers of more than 8 bits"),
    "16.ppm": (pnm(b"P6 8 6 65535\n", DEEP.repeat(3)), SIXTEEN),
    "grey48.png": (lambda p: png(p, 16, 0, DEEP.astype(">u2").tobytes()), SIXTEEN),
    "rgb48.png": (lambda p: png(p, 16, 2, DEEP.repeat(3).astype(">u2").tobytes()), SIXTEEN),
    "la32.png": (lambda p: png(p, 16, 4, DEEP.repeat(2).astype(">u2").tobytes()), SIXTEEN),
    "rgba64.png": (lambda p: png(p, 16, 6, DEEP.repeat(4).astype(">u2").tobytes()), SIXTEEN),
    "16.sgi": (sgi, SIXTEEN),
    "32.tif": (stored(Image.fromarray(DEEP.astype(np.int32))), "holds integers of more than 8"),
    "float.tif": (float_tiff, "holds floats"),
    "float.pfm": (maps, "holds floats"),
    "cmyk.jpg": (stored(Image.fromarray(COLOURS).convert("CMYK")), "holds CMYK"),
    "cmyk.tif": (stored(Image.fromarray(COLOURS).convert("CMYK")), "holds CMYK"),
    "lab.tif": (stored(Image.new("LAB", (8, 6))), "holds LAB"),
    "bands.tif": (stored(Image.new("RGBX", (8, 6))), "holds channels beside its colours"),
    "rgba.png": (stored(Image.fromarray(HOLES)), "is transparent in places"),
    "rgba.tif": (stored(Image.fromarray(HOLES)), "is transparent in places"),
    "rgba.webp": (stored(Image.fromarray(HOLES), lossless=True), "is transparent in places"),
    "la.png": (stored(Image.fromarray(HOLES[:, :, 2:])), "is transparent in places"),
    "rgb.png": (stored(BLACK, transparency=(0, 0, 0)), "is transparent in places"),
    "l.png": (stored(Image.fromarray(RAMP), transparency=0), "is transparent in places"),
    "bit.png": (stored(Image.fromarray(RAMP > 9), transparency=0), "is transparent in places"),
    "palette.png": (stored(PALETTE, transparency=3), "is transparent in places"),
    "soft.png": (stored(PALETTE, transparency=b"\xff\x80"), "is transparent in places"),
    "palette.gif": (stored(PALETTE, transparency=3), "is transparent in places"),
    **{f"frames.{end}": (frames, "holds 2 images") for end in ("gif", "png", "tif", "webp")},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_8_bits_of_rgb_cannot_hold_is_refused(name: str, tmp_path: Path):
    write, why = REFUSED[name]
    file = write(tmp_path / name)
    allowed = (
        "^images must be grey, palette or RGB of up to 8 bits a channel, opaque, one to a file"
    )
    with pytest.raises(ValueError, match=f"{allowed}; .*/{name} {why}") as refusal:
        decode(file)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "content", [b"", b"notes", b"\x89PNG\r\n\x1a\n", b"P5 8 6 255\n123", b"II*\0"]
)
def test_what_is_damaged_or_no_image_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png is no image that can be read"):
        decode(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore")  # of Pillow; reading a folder does the same
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "bmp", "webp", "jp2"])
def test_a_file_that_is_cut_anywhere_is_refused_or_whole(suffix: str, tmp_path: Path):
    file = saved(tmp_path / f"a.{suffix}", Image.fromarray(COLOURS).convert("RGB"))
    whole, content = decode(file), file.read_bytes()
    for end in range(0, len(content), max(1, len(content) // 40)):
        file.write_bytes(content[:end])
        try:
            got = decode(file)
        except ValueError:
            continue  # its one line is looked at above
        assert np.array_equal(got, whole)


def test_an_image_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = saved(tmp_path / "a.png", Image.fromarray(COLOURS))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(
        ValueError, match=r"a\.png is no image that can be read .*decompression bomb"
    ):
        decode(file)
