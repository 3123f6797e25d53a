"""A classifier in an ONNX file, as a torch module; nothing in the file is executed or unpickled."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from greg_cert.errors import RunError
from greg_cert.files import plain_file
from greg_cert.models.onnx.graph import translate
from greg_cert.models.onnx.step import MOST

FIRST_OPSET = 9
_TOLERANCE = 1e-4  # of float32 logits, relative to the largest


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file holds.

    Attributes:
        sha256: Its fingerprint, without that of external data.
        module: Images (B, C, H, W), as the file takes them, to logits (B, K), in evaluation mode.
    """

    path: Path
    sha256: str
    opset: int
    producer: str
    module: nn.Module
    image_shape: tuple[int, int, int]
    num_classes: int

    def summary(self) -> str:
        """The file in one line."""
        shape = "x".join(map(str, self.image_shape))
        return f"{self.path} (ONNX, opset {self.opset}): images {shape}, {self.num_classes} classes"

    def to_dict(self) -> dict[str, Any]:
        """Where the network came from, for a manifest."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "module"}
        shape = list(self.image_shape)
        return told | {"path": str(self.path), "image_shape": shape, "summary": self.summary()}


def read_onnx(path: Path) -> OnnxFile:
    """The classifier in an ONNX file, checked against ONNX's own implementation on random images.

    The input is one float32 tensor (B, C, H, W) with a dynamic batch axis, or one of 1; the output
    one tensor of logits (B, K). Normalisation inside the file stays inside.

    Raises:
        RunError: the package onnx is missing, the file cannot be read, has other inputs or outputs,
            an operator set that is not supported, or is not what it seems.
        UnsupportedModelError: names the first operation that has no torch layer here.
    """
    try:
        import onnx
    except ImportError as error:
        raise RunError(
            "model.onnx: expected the package onnx, which reads such files, but it is missing: "
            "pip install 'greg-cert[onnx]'"
        ) from error
    try:
        content = plain_file(path).read_bytes()
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf and the checker raise kinds of their own
        raise RunError(
            f"model.onnx: expected a valid ONNX file, but got {path} "
            f"({type(error).__name__}: {error})"
        ) from error
    opset = _opset(proto, path, onnx.defs.onnx_opset_version())
    name, batch, image_shape = _input(proto, path)
    if len(proto.graph.output) != 1:
        found = ", ".join(o.name for o in proto.graph.output)
        raise RunError(f"model.onnx: expected one output, the logits, in {path}, but got {found}")
    module = translate(proto, name, image_shape, opset, fixed_batch=batch == 1)
    theirs = _reference(proto, name, image_shape, batch or 2, path)
    num_classes = _check(module, theirs, path)
    sha256 = hashlib.sha256(content).hexdigest()
    producer = f"{proto.producer_name} {proto.producer_version}".strip()
    return OnnxFile(path, sha256, opset, producer, module, image_shape, num_classes)


def _opset(proto: Any, path: Path, newest: int) -> int:
    versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    if not versions or not FIRST_OPSET <= versions[0] <= newest:
        raise RunError(
            f"model.onnx: expected operator set {FIRST_OPSET} to {newest} in {path}, "
            f"but got {versions[0] if versions else 'none'}"
        )
    return int(versions[0])


def _input(proto: Any, path: Path) -> tuple[str, int, tuple[int, int, int]]:
    """Name, batch size, 0 for a dynamic one, and (C, H, W)."""
    weights = {t.name for t in proto.graph.initializer}
    inputs = [i for i in proto.graph.input if i.name not in weights]
    if len(inputs) != 1:
        found = ", ".join(i.name for i in inputs) or "none"
        raise RunError(f"model.onnx: expected one input, the images, in {path}, but got {found}")
    kind = inputs[0].type.tensor_type
    name = inputs[0].name
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    if kind.elem_type != 1:  # TensorProto.FLOAT
        raise RunError(f"model.onnx: expected a float32 input in {path}, but {name!r} is not")
    sizes = [d for d in shape[1:] if isinstance(d, int) and d > 0]
    if len(shape) != 4 or len(sizes) != 3:
        raise RunError(
            f"model.onnx: expected an input (B, C, H, W) of fixed C, H and W in {path}, "
            f"but {name!r} is {_shown(shape)}"
        )
    if math.prod(sizes) > MOST:
        raise RunError(
            f"model.onnx: expected images of at most {MOST:,} values in {path}, "
            f"but {name!r} is {_shown(shape)}"
        )
    batch = shape[0] if isinstance(shape[0], int) else 0
    if batch > 1:
        raise RunError(
            f"model.onnx: expected a dynamic batch axis, or one of 1, in {path}, "
            f"but {name!r} is {_shown(shape)}: export with a dynamic batch axis"
        )
    return name, batch, (sizes[0], sizes[1], sizes[2])


def _shown(shape: list[Any]) -> str:
    return f"({', '.join(map(str, shape))})"


def _reference(
    proto: Any, name: str, image_shape: tuple[int, ...], batch: int, path: Path
) -> tuple[Tensor, Tensor]:
    """Three random images, and the logits of the first two in ONNX's own implementation."""
    from onnx.reference import ReferenceEvaluator

    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, *image_shape, generator=generator)
    x[1] = torch.randn(image_shape, generator=generator)
    try:
        whole: Any = ReferenceEvaluator(proto)
        parts = [whole.run(None, {name: part.numpy()})[0] for part in x[:2].split(batch)]
    except Exception as error:  # whatever an operation that it lacks raises
        raise RunError(
            f"model.onnx: expected {path} to run in ONNX's reference implementation, "
            f"but got {error}"
        ) from error
    return x, torch.from_numpy(np.concatenate([np.asarray(p) for p in parts]))


@torch.no_grad()
def _check(module: nn.Module, theirs: tuple[Tensor, Tensor], path: Path) -> int:
    """K, where the module gives logits (B, K) that are those of the file, each of its own image."""
    x, expected = theirs
    found, alone = module(x), torch.cat([module(image) for image in x.split(1)])
    if found.ndim != 2 or found.shape[1] < 2:
        raise RunError(
            f"model.onnx: expected logits (B, K) of {path}, but got {tuple(found.shape)} for B = 3"
        )
    slack = _TOLERANCE * (1.0 + float(expected.abs().max()))
    for other, what in ((alone, "those of each image alone"), (expected, "those of the file")):
        if other.shape[1:] != found.shape[1:] or not (
            (found[: len(other)] - other).abs().max() <= slack
        ):
            raise RunError(
                f"model.onnx: expected the logits of {path}, once it is translated, to be {what}, "
                "but they differ"
            )
    return int(found.shape[1])
