"""Pictures that could be taken in more than one way: turned, or refused, wherever they lie."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_files import picture, read
from PIL import Image, ImageOps

from greg_cert.cli.predict import read_image
from greg_cert.data.files.decode import decode_bytes
from greg_cert.errors import DataError

PIXELS = picture(6, 9, 3)
ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def decode(content: bytes) -> torch.Tensor:
    return decode_bytes(content, "a.png", field="data.id.path")


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "P"), ("WEBP", "RGB")])
def test_a_picture_is_turned_as_its_exif_says(orientation: int, kind: str, mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    content = encoded(image, kind, exif=turned(orientation), lossless=True)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.array_equal(decode(content).permute(1, 2, 0).numpy(), np.array(upright))
    assert decode(content).shape == ((3, 9, 6) if orientation in (5, 6, 7, 8) else (3, 6, 9))


def test_orientation_in_xmp_counts_and_damaged_metadata_does_not() -> None:
    image = Image.fromarray(PIXELS)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    upside_down = decode(encoded(image, "WEBP", xmp=xmp, lossless=True))
    assert np.array_equal(upside_down.permute(1, 2, 0).numpy(), PIXELS[::-1, ::-1])
    for exif in (b"Exif\0\0nothing", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        kept = decode(encoded(image, "WEBP", exif=exif, lossless=True))
        assert np.array_equal(kept.permute(1, 2, 0).numpy(), PIXELS)


def test_every_way_to_an_image_turns_it(tmp_path: Path) -> None:
    """A folder in memory and on disk, an archive, `predict`; sizes are of what is seen."""
    for i, orientation in enumerate((1, 6)):
        shown = Image.fromarray(PIXELS if i == 0 else np.ascontiguousarray(np.rot90(PIXELS)))
        (tmp_path / "set").mkdir(exist_ok=True)
        shown.save(tmp_path / "set" / f"{i}.jpg", exif=turned(orientation), quality=100)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "set", "set")
    for path, more in (("set", {}), ("set.tar", {}), ("set", {"keep": "disk"})):
        size = 4 if more else None
        found = read(tmp_path / path, labelled=False, channels=3, size=size, **more).stored()
        assert (found[0].float() - found[1].float()).abs().max() < 60  # JPEG is lossy
        assert (found[0].float() - found[1].rot90(dims=(1, 2)).float()).abs().max() > 60
    one, other = (read_image(tmp_path / "set" / f"{i}.jpg", 3, 6) for i in range(2))
    assert (one - other).abs().max() < 0.25


def ppm(maximum: int, kind: int = 6) -> bytes:
    values = b" 1" * 12 if kind == 3 else bytes(12 * (2 if maximum > 255 else 1))
    return f"P{kind}\n2 2\n{maximum}\n".encode() + values


def png(depth: int, colour: int) -> bytes:
    """A PNG of 2x2 pixels whose values are all 0, but for alpha, which is opaque."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    pixel = bytes(depth // 8) * (channels - (colour > 3)) + b"\xff" * (depth // 8) * (colour > 3)
    header = struct.pack(">IIBBBBB", 2, 2, depth, colour, 0, 0, 0)
    data = zlib.compress(2 * (b"\0" + 2 * pixel))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("colour", [0, 2, 4, 6])  # grey, RGB, grey and alpha, RGBA
def test_sixteen_bits_are_refused_rather_than_cut(colour: int) -> None:
    assert decode(png(8, colour)).shape == (1 if colour in (0, 4) else 3, 2, 2)
    with pytest.raises(DataError, match=r"^data\.id\.path: expected images of 8 bits a channel"):
        decode(png(16, colour))


@pytest.mark.parametrize("content", [ppm(65535), ppm(1023), ppm(65535, 3), ppm(4095, 5)])
def test_deep_ppm_is_refused_too(content: bytes) -> None:
    with pytest.raises(DataError, match="8 bits a channel"):
        decode(content)


def test_fewer_bits_are_exact() -> None:
    assert decode(ppm(15, 3)).unique().tolist() == [17]
    found = decode(encoded(Image.fromarray(PIXELS[..., 0] > 99)))
    assert np.array_equal(found[0].numpy(), np.where(PIXELS[..., 0] > 99, 255, 0))


@pytest.mark.parametrize(
    ("mode", "kind", "said"),
    [("I;16", "PNG", "mode I;16"), ("F", "PPM", "mode F"), ("F", "TIFF", "none of a known format")],
)
def test_other_modes_and_formats_are_refused(mode: str, kind: str, said: str) -> None:
    with pytest.raises(DataError, match=f"'a.png'.* {said}"):
        decode(encoded(Image.new(mode, (4, 4)), kind))


def with_alpha(mode: str, alpha: int) -> bytes:
    image = Image.fromarray(PIXELS).convert(mode)
    layer = Image.new("L", image.size, 255)
    layer.putpixel((2, 3), alpha)
    image.putalpha(layer)
    return encoded(image)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_transparent_pixels_are_refused_and_an_opaque_layer_is_not(
    mode: str, channels: int
) -> None:
    plain = decode(encoded(Image.fromarray(PIXELS).convert(mode)))
    assert torch.equal(decode(with_alpha(mode, 255)), plain)
    assert len(plain) == channels
    with pytest.raises(DataError, match=r"opaque images, but got 'a.png' with transparent pixels"):
        decode(with_alpha(mode, 254))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_colour_that_stands_for_transparent(mode: str) -> None:
    image = Image.fromarray(np.array([[0, 0, 7]], np.uint8), mode="L").convert(mode)
    used: Any = image.getpixel((0, 0))
    unused: Any = (1, 2, 3) if mode == "RGB" else 200
    with pytest.raises(DataError, match="opaque images"):
        decode(encoded(image, transparency=used))
    assert decode(encoded(image, transparency=unused))[0].tolist() == [[0, 0, 7]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_several_frames_are_refused(kind: str) -> None:
    frames = [Image.fromarray(np.full((6, 6, 3), v, np.uint8)) for v in (10, 200)]
    with pytest.raises(DataError, match=r"images of one frame, but got 'a.png' of several"):
        decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert decode(encoded(frames[0], kind)).shape == (3, 6, 6)


def test_a_phones_second_picture_is_passed_over() -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (10, 200)]
    found = decode(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert found.float().mean() < 20
