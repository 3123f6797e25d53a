"""One image at a time: is it accepted, how far does that hold, and what is the nearest attack?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from greg_cert.certificates.methods import PROOFS, RADIUS_METHOD, STOPPED_BY, chosen_methods
from greg_cert.config import VerifyConfig
from greg_cert.errors import UsageError
from greg_cert.evaluation.decision import Decision
from greg_cert.runs.inference import device_of
from greg_cert.scores import score_of
from greg_cert.verify.attack.pgd import smallest_attack
from greg_cert.verify.attack.plan import AttackPlan, AttackResult
from greg_cert.verify.certificates import Certificates
from greg_cert.verify.certify import certify
from greg_cert.verify.graph.agreement import check_agreement
from greg_cert.verify.scorer import SIDES, Detector, Margin, check_inputs, logit_function
from greg_cert.verify.settings import certify_options

_BATCH = 64  # images attacked at once


@dataclass(frozen=True)
class Verdict:
    """What is said of one image; score, gradient norm, status and radii as in `Certificates`.

    Attributes:
        label: class of the largest logit among the ID classes.
        confidence: its softmax probability over the ID classes.
        threshold: γ.
        accepted: whether S(x) ≤ γ, which is proven not to change within `radius_certified`.
        radius_method: the proof that gave the certified radius, where `best` was asked for.
        stopped_by: what stopped that search; None as `radius_method`.
        attacked: (C, H, W) nearest image found on which the decision is the other one, in float64,
            perhaps outside [0, 1]; None where none was found.
        attacked_label: its class; None as `attacked`.
        attacked_score: its score; None as `attacked`.
    """

    label: int
    confidence: float
    score: float
    threshold: float
    accepted: bool
    gradient_norm: float
    status: str
    radius_certified: float
    radius_refuted: float
    radius_method: str | None
    stopped_by: str | None
    radius_attack: float
    attacked: Tensor | None
    attacked_label: int | None
    attacked_score: float | None


def verdicts_on(
    model: nn.Module, images: Tensor, decision: Decision, settings: VerifyConfig
) -> list[Verdict]:
    """The verdicts on images (B, C, H, W) of raw pixels in [0, 1].

    Accepted images are certified to stay accepted, rejected ones to stay rejected.

    Args:
        model: raw images to logits.
        images: at least one.
        decision: score and threshold.
        settings: norm, largest radius, methods, engine, seed, cuts, memory; the rest is ignored,
            the device too: all runs where the model is.

    Warns:
        ContradictionWarning: an attack contradicts a certificate, which would be a bug.

    Raises:
        UsageError: a method that proves nothing of the model itself.
        UnsupportedModelError: a layer that cannot be bounded soundly.
    """
    methods = chosen_methods(settings.method)
    if not set(methods) & set(PROOFS):
        raise UsageError(
            f"--method: expected one of {', '.join(PROOFS)}, but got {settings.method!r}, "
            "which is about another function than the model that is asked here"
        )
    x = check_inputs(images).to(device_of(model))
    logits, value, size = logit_function(model), score_of(decision.score), settings.batch or _BATCH
    with torch.no_grad():
        scores = torch.cat([value(logits(part)) for part in x.split(size)])
    accepted = (scores <= decision.threshold).cpu()
    verdicts: dict[int, Verdict] = {}
    for side in SIDES:
        detector = Detector(logits, decision.score, Margin(decision.threshold, side))
        rows = (accepted == (detector.margin.sign > 0)).nonzero().squeeze(1)
        for part in rows.split(size) if len(rows) else ():
            certificates = certify(
                model,
                x[part],
                decision.threshold,
                side=side,
                score=decision.score,
                indices=part,
                attack="best" in methods,  # which stops at a share of it
                **certify_options(settings),
            )
            plan = AttackPlan(detector.margin, settings.norm_value, settings.seed)
            attack = smallest_attack(detector.score, x[part], settings.max_radius, plan, part)
            check_agreement(logits, None, x[part] + attack.delta, "the end of an attack")
            certificates = certificates.against(attack.radius)
            certificates.warn()
            found = _verdicts(detector, x[part], decision.num_classes, certificates, attack)
            verdicts |= zip(part.tolist(), found, strict=True)
    return [verdicts[row] for row in range(len(x))]


def _verdicts(
    detector: Detector, x: Tensor, num_classes: int, found: Certificates, attack: AttackResult
) -> list[Verdict]:
    """What certificates and attacks say of samples that are all on one side."""
    moved, margin = x + attack.delta, detector.margin
    with torch.no_grad():
        confidence, label = detector.logits(x)[:, :num_classes].softmax(1).max(1)
        moved_logits = detector.logits(moved)
    moved_to, moved_score = moved_logits[:, :num_classes].argmax(1), detector.value(moved_logits)
    verdicts = []
    for i in range(len(x)):
        hit = math.isfinite(float(attack.radius[i]))
        verdicts.append(
            Verdict(
                label=int(label[i]),
                confidence=float(confidence[i]),
                score=float(found.score[i]),
                threshold=margin.threshold,
                accepted=margin.sign > 0,
                gradient_norm=float(found.gradient_norm[i]),
                status=str(found.status[i]),
                radius_certified=float(found.radius_certified[i]),
                radius_refuted=float(found.radius_refuted[i]),
                radius_method=_text(found, RADIUS_METHOD, i),
                stopped_by=_text(found, STOPPED_BY, i),
                radius_attack=float(attack.radius[i]),
                attacked=moved[i].cpu() if hit else None,
                attacked_label=int(moved_to[i]) if hit else None,
                attacked_score=float(moved_score[i]) if hit else None,
            )
        )
    return verdicts


def _text(found: Certificates, column: str, row: int) -> str | None:
    return str(found.other[column][row]) if column in found.other else None
