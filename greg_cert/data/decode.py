"""One encoded image as a tensor, or one clear error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from greg_cert.data.reject import data_error

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")  # by content, whatever the name says
_EXPECTED = "a complete, readable image file"
_GREY = {"1", "L", "LA"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


def decode_image(path: Path, *, field: str) -> Tensor:
    """The pixels of an image file, as `decode_bytes` gives them.

    Raises:
        DataError: The file cannot be read, or as `decode_bytes`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(str(path), error, field=field) from error
    return decode_bytes(content, str(path), field=field)


def decode_bytes(content: bytes, title: str, *, field: str) -> Tensor:
    """The pixels of an encoded image, uint8 (1, H, W) if it is grey and (3, H, W) if it is colour.

    Transparency is dropped. Images of more than 8 bits a channel are refused, since converting them
    silently would clip them, and so are those of more pixels than Pillow thinks harmless, of which
    a small file can declare any number.

    Args:
        content: The file's bytes.
        title: What errors call the file.
        field: Path of the field that it came from.

    Raises:
        DataError: It is truncated, damaged, no image, too large, or has more than 8 bits a channel.
    """
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError as pillow_error

    most = pillow.MAX_IMAGE_PIXELS
    try:
        with pillow.open(io.BytesIO(content), formats=_FORMATS) as image:
            mode = image.mode
            if most is not None and image.width * image.height > most:
                raise ValueError(f"{image.width}x{image.height} pixels, more than {most}")
            if mode in _GREY:
                pixels = np.array(_as(image, "L"))[None]  # (1, H, W)
            elif mode in _COLOUR:
                # A palette may carry transparency of its own, which RGB alone would warn of.
                opaque = image.convert("RGBA") if mode in {"P", "PA"} else image
                pixels = np.array(_as(opaque, "RGB")).transpose(2, 0, 1)  # (3, H, W)
            else:
                pixels = None
    except pillow_error as error:  # its own words name an object in memory
        raise data_error(field, _EXPECTED, f"{title!r}, which is none of a known format") from error
    except Exception as error:  # Pillow's decoders raise all kinds on damaged files
        raise unreadable(title, error, field=field) from error
    if pixels is None:
        raise data_error(field, "images of 8 bits a channel", f"{title!r} of mode {mode}")
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _as(image: Image, mode: str) -> Image:
    return image if image.mode == mode else image.convert(mode)


def unreadable(title: str, error: Exception, *, field: str) -> Exception:
    """The `DataError` for a file that could not be read or decoded."""
    found = f"{title!r} ({type(error).__name__}: {error})"
    return data_error(field, _EXPECTED, found)
