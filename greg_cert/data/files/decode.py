"""One encoded image as a tensor, or one clear error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greg_cert.data.geometry import Crop, conform
from greg_cert.data.reject import data_error
from greg_cert.files import plain_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")  # by content, whatever the name says
_EXPECTED = "a complete, readable image file"
_GREY = {"1", "L", "LA"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_MOST = 255
_ORIENTATION = 0x0112  # of EXIF, which counts from the upright picture, 1
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def fitted(
    image: Tensor, title: str, *, field: str, channels: int, size: int, crop: Crop
) -> Tensor:
    """One decoded image (1 or 3, H, W) as (channels, size, size), by `conform`.

    Raises:
        DataError: It is smaller than what `crop` is to cut from it.
    """
    height, width = image.shape[1:]
    if crop == "image_size" and min(height, width) < size:
        expected = f"images of at least {size}x{size} beside crop: image_size"
        raise data_error(field, expected, f"{title!r} of {height}x{width}")
    return conform(image[None], channels=channels, size=size, crop=crop)[0]


def decode_image(path: Path, *, field: str) -> Tensor:
    """The pixels of an image file, as `decode_bytes` gives them.

    Raises:
        DataError: The file cannot be read, or as `decode_bytes`.
    """
    try:
        content = plain_file(path).read_bytes()
    except OSError as error:
        raise unreadable(str(path), error, field=field) from error
    return decode_bytes(content, str(path), field=field)


def decode_bytes(content: bytes, title: str, *, field: str) -> Tensor:
    """The pixels of an encoded image, uint8 (1, H, W) if it is grey and (3, H, W) if it is colour.

    The picture is turned as its EXIF (or XMP) orientation says, as every viewer shows it. CMYK is
    converted without a colour profile. What could only be guessed at is refused: more than 8 bits a
    channel, which converting would cut off; pixels that are transparent, whose colour depends on
    what lies behind; and several frames (of an MPO, which phones write, the first is the picture).
    So are images of more pixels than Pillow thinks harmless, of which a small file can declare any
    number. `title` is what errors call the file.

    Raises:
        DataError: It is truncated, damaged, no image, too large, or refused as above.
    """
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError as pillow_error

    most = pillow.MAX_IMAGE_PIXELS
    try:
        with pillow.open(io.BytesIO(content), formats=_FORMATS) as image:
            if most is not None and image.width * image.height > most:
                raise ValueError(f"{image.width}x{image.height} pixels, more than {most}")
            unfit = _unfit(image)
            if unfit is None:
                return torch.from_numpy(np.ascontiguousarray(_pixels(image)))
    except pillow_error as error:  # its own words name an object in memory
        raise data_error(field, _EXPECTED, f"{title!r}, which is none of a known format") from error
    except Exception as error:  # Pillow's decoders raise all kinds on damaged files
        raise unreadable(title, error, field=field) from error
    expected, found, hint = unfit
    raise data_error(field, expected, f"{title!r} {found}", hint=hint)


def _unfit(image: ImageFile) -> tuple[str, str, str] | None:
    """What was expected, what found, and what helps, where a picture could only be guessed at."""
    if image.mode not in _GREY | _COLOUR:
        return "images of 8 bits a channel", f"of mode {image.mode}", ""
    if _is_deep(image):
        return "images of 8 bits a channel", "of more", ""
    if image.format != "MPO" and getattr(image, "is_animated", False):
        return "images of one frame", "of several", "Save the frame that is meant"
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        least, _ = image.convert("RGBA").getchannel("A").getextrema()
        if least != _MOST:
            hint = "Put it on a background, or save it without transparency"
            return "opaque images", "with transparent pixels", hint
    return None


def _is_deep(image: ImageFile) -> bool:
    """Whether the file has more than 8 bits a channel, which Pillow's mode alone does not tell."""
    stored = [tile[3] for tile in image.tile]  # how the decoder is told to read it
    if image.format == "PNG":
        return any(str(raw).endswith("16B") for raw in stored)
    if image.format == "PPM":
        return any(isinstance(raw, tuple) and raw[1] > _MOST for raw in stored)
    return False


def _pixels(image: Image) -> NDArray[np.uint8]:
    """The upright picture, (1, H, W) or (3, H, W)."""
    image = _upright(image)
    if image.mode in _GREY:
        return np.array(image.convert("L"))[None]
    # A palette may carry transparency of its own, which RGB alone would warn of.
    opaque = image.convert("RGBA") if image.mode in {"P", "PA"} else image
    return np.array(opaque.convert("RGB")).transpose(2, 0, 1)


def _upright(image: Image) -> Image:
    """The picture as its orientation says."""
    from PIL.Image import Transpose

    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata says nothing, and the pixels may be sound
        return image
    return image if turn is None else image.transpose(Transpose[turn])


def unreadable(title: str, error: Exception, *, field: str) -> Exception:
    """The `DataError` for a file that could not be read or decoded."""
    found = f"{title!r} ({type(error).__name__}: {error})"
    return data_error(field, _EXPECTED, found)
