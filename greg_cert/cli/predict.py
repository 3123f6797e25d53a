"""`greg-cert predict`."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from greg_cert.cli import screen
from greg_cert.cli.settings import offers, verify_settings

if TYPE_CHECKING:
    from torch import Tensor

    from greg_cert.data.geometry import Crop
    from greg_cert.evaluation.decision import Decision
    from greg_cert.verify.run.single_image import Verdict


@offers(
    *("norm", "max_radius", "method", "until_share", "budget", "seconds_per_sample", "tpr"),
    "device",
)
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder, or YAML file of a model.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the attacked images: PNG, and .npy with the exact pixels."),
    ] = None,
    settings: Any = None,
    trust: screen.Trust = None,
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Say of single images: class, score, accepted or not, and how far that provably holds.

    The threshold accepts 95 % (--tpr) of the run's calibration split. An accepted image has a
    certified radius inside which it stays accepted; a rejected one, inside which it stays rejected.
    The nearest image found on which the decision is the other one bounds that radius from above.
    Images are cropped to a square and resized as the run's data were.

    Example: greg-cert predict runs/greg+ photo.png --out attacked
    """
    screen.speak(json=json, quiet=quiet)
    import torch

    from greg_cert.certificates.format import CONTRADICTED
    from greg_cert.devices import find_device
    from greg_cert.errors import EngineError
    from greg_cert.evaluation.decision import decision_of
    from greg_cert.runs.subjects import open_subject
    from greg_cert.verify.certificates import ContradictionWarning
    from greg_cert.verify.run.single_image import verdicts_on

    subject = open_subject(run, trust=trust)
    chosen = verify_settings(subject.config.verify, **settings)
    where = find_device(chosen.device)
    with screen.waiting(f"read {run}"):
        model = subject.load_model().to(where)  # which sees to what the manifest must tell
    sizes = subject.manifest["model"]
    crop = getattr(subject.config.data.id, "crop", 1.0)
    pixels = torch.cat(
        [read_image(path, sizes["in_channels"], sizes["image_size"], crop) for path in images]
    )
    with screen.bar("predict") as tell:
        tell(0, 2, "threshold from the calibration split")
        decision = decision_of(subject, chosen.tpr, where)
        tell(1, 2, "certify and attack")
        with warnings.catch_warnings():  # said below, image by image
            warnings.simplefilter("ignore", ContradictionWarning)
            verdicts = verdicts_on(model, pixels, decision, chosen)
        tell(2, 2, "")
    files: list[dict[str, Path]] = [{} for _ in images]
    if out is not None:
        files = [
            {} if v.attacked is None else save_attacked(out, name, v.attacked)
            for name, v in zip(unique_stems(images), verdicts, strict=True)
        ]
    found = list(zip(images, verdicts, files, strict=True))
    screen.record(
        {
            "schema": 1,
            "run": str(run),
            "norm": chosen.norm,
            "tpr": decision.tpr,
            "score": decision.score,
            "threshold": decision.threshold,
            "method": chosen.method,
            "images": [_record(path, v, decision, saved) for path, v, saved in found],
        }
    )
    for path, verdict, saved in found:
        screen.plain(*lines(path, verdict, decision, chosen))
        screen.plain(*(f"  saved: {file}" for file in saved.values()))
    if broken := [str(path) for path, v, _ in found if v.status == CONTRADICTED]:
        raise EngineError(
            f"an attack contradicts the proof for {', '.join(broken)}; do not rely "
            "on the others, and please report this as a bug, with the run and the image"
        )


def read_image(path: Path, channels: int, size: int, crop: Crop = 1.0) -> Tensor:
    """One image file as (1, C, H, W) float32 in [0, 1], of the size that the model takes.

    `crop` is what is kept of it, as in the run's ID data.
    """
    from greg_cert.data.files.decode import decode_image, fitted
    from greg_cert.data.types import unit_range

    stored, shape = decode_image(path, field="IMAGE"), {"channels": channels, "size": size}
    return unit_range(fitted(stored, str(path), field="IMAGE", crop=crop, **shape)[None])


def unique_stems(images: list[Path]) -> list[str]:
    """A file name for each image; numbered where two have the same, whatever their case."""
    stems = [path.stem for path in images]
    lower = [stem.lower() for stem in stems]
    taken = set(lower)
    found = []
    for stem, low in zip(stems, lower, strict=True):
        name, number = stem, 0
        while lower.count(low) > 1 and name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        found.append(name)
    return found


def rounded_down(radius: float) -> str:
    """Four significant digits, never more than what was proven."""
    from decimal import ROUND_FLOOR, Context, Decimal

    return f"{float(Context(prec=4, rounding=ROUND_FLOOR).plus(Decimal(radius))):.4g}"


def save_attacked(out: Path, name: str, image: Tensor) -> dict[str, Path]:
    """Write an image (C, H, W) as PNG (clipped to [0, 1], 8 bits) and as exact array."""
    import io

    import numpy as np
    from PIL import Image

    from greg_cert.files import write_files

    array = image.numpy()
    shown = np.clip(np.rint(array * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    png, exact = io.BytesIO(), io.BytesIO()
    Image.fromarray(shown.squeeze(2) if shown.shape[2] == 1 else shown).save(png, "PNG")
    np.save(exact, array, allow_pickle=False)
    contents = {"png": png.getvalue(), "npy": exact.getvalue()}
    files = write_files(out, {f"{name}.attacked.{kind}": v for kind, v in contents.items()})
    return dict(zip(contents, files, strict=True))


def lines(path: Path, v: Verdict, decision: Decision, settings: Any) -> list[str]:
    """What is said of one image on the terminal."""
    norm = "l2" if settings.norm == "2" else "linf"
    word, sign = ("accepted", "<=") if v.accepted else ("rejected", ">")
    held = f"stays {word} within {norm} radius"
    if v.radius_certified > 0:
        by = "" if v.radius_method is None else f" by {v.radius_method}"
        proven = f"{held} {rounded_down(v.radius_certified)} (proof{by})"
    elif math.isnan(v.radius_refuted):
        proven = f"{held}: nothing proven"
    else:
        proven = f"{held}: nothing; a proof of {v.radius_refuted:.4g} is contradicted by the attack"
    found = [
        f"{path}: {word} as in-distribution"
        if v.accepted
        else f"{path}: {word}, out-of-distribution",
        f"  class {decision.name_of(v.label)} (confidence {v.confidence:.4f}"
        + ("" if v.accepted else "; means little, as the image was rejected")
        + ")",
        f"  score {v.score:.4f} {sign} threshold {v.threshold:.4f} "
        f"({decision.score}, accepts {100 * decision.tpr:g} % of {decision.calibration_samples} "
        "calibration images)",
        f"  {proven}; slope at the image {v.gradient_norm:.4g} (estimate)",
    ]
    if v.attacked_label is None:
        found.append(f"  no attack found within {settings.max_radius:g}")
    else:
        other = "rejected" if v.accepted else "accepted"
        found.append(
            f"  nearest attack found at {v.radius_attack:.4g} (upper bound): "
            f"class {decision.name_of(v.attacked_label)}, score {v.attacked_score:.4f}, {other}"
        )
    return found


def _record(path: Path, v: Verdict, decision: Decision, saved: dict[str, Path]) -> dict[str, Any]:
    attacked = None
    if v.attacked_label is not None:
        attacked = {
            "radius": v.radius_attack,
            "class": v.attacked_label,
            "class_name": decision.name_of(v.attacked_label),
            "score": v.attacked_score,
            "files": {kind: str(file) for kind, file in saved.items()},
        }
    return {
        "image": str(path),
        "accepted": v.accepted,
        "class": v.label,
        "class_name": decision.name_of(v.label),
        "confidence": v.confidence,
        "score": v.score,
        "gradient_norm": v.gradient_norm,
        "status": v.status,
        "radius_certified": v.radius_certified,
        "radius_method": v.radius_method,
        "stopped_by": v.stopped_by,
        "attack": attacked,
    }
