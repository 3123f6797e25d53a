"""One image file as a tensor, or one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from greg_cert.data.reject import data_error

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

_GREY = {"1", "L", "LA"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


def decode_image(path: Path, *, field: str) -> Tensor:
    """The pixels of an image file, uint8 (1, H, W) if it is grey and (3, H, W) if it is colour.

    Transparency is dropped. Files of more than 8 bits a channel are refused, since converting them
    silently would clip them.

    Raises:
        DataError: The file is truncated, damaged, no image, or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode in _GREY:
                pixels = np.array(image.convert("L"))[None]  # (1, H, W)
            elif mode in _COLOUR:
                # A palette may carry transparency of its own, which RGB alone would warn of.
                opaque = image.convert("RGBA") if mode in {"P", "PA"} else image
                pixels = np.array(opaque.convert("RGB")).transpose(2, 0, 1)  # (3, H, W)
            else:
                pixels = None
    except Exception as error:  # Pillow's decoders raise all kinds on damaged files
        found = f"{str(path)!r} ({type(error).__name__}: {error})"
        raise data_error(field, "a complete, readable image file", found) from error
    if pixels is None:
        raise data_error(field, "images of 8 bits a channel", f"{str(path)!r} of mode {mode}")
    return torch.from_numpy(np.ascontiguousarray(pixels))
