"""Stages of training: the methods by name, and what each of them stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from greg_cert.outlier_losses import OUTLIER_LOSSES
from greg_cert.scores import SCORES
from greg_cert.section import Count, Natural, NonNegative, NormName, Number, Positive, Section

Margin = Number | Literal["auto"]
if TYPE_CHECKING:
    ScoreName = str
    OutlierLossName = str
else:
    ScoreName = Literal[tuple(SCORES)]
    OutlierLossName = Literal["none", *OUTLIER_LOSSES]
Strategy = Literal["random", "greedy", "dos", "two_ended", "posterior"]
_Decay = Annotated[float, Field(ge=0, lt=1)]
_MOMENTUM, _BETAS = 0.9, (0.9, 0.999)

_MARGIN = {"score": "energy", "outlier_loss": "margin", "lambda_score": 0.1}
_UNIFORM = {"score": "max_softmax", "outlier_loss": "uniform", "lambda_score": 0.5}
_ABSENT = {"score": "absent_class", "outlier_loss": "absent_class", "lambda_score": 0.3}
_MIXED = {"score": "absent_class", "outlier_loss": "openmix", "lambda_score": 1.0}
_GRADIENT = {"gradient": True}
# The methods, and what each sets where the configuration does not say otherwise. What each default
# rests on is told in docs/choosing.md.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "ce": {},
    "oe": _UNIFORM,
    "energy": _MARGIN,
    "greg": {**_MARGIN, **_GRADIENT},
    "oe+grad": {**_UNIFORM, **_GRADIENT},
    "dos": {**_ABSENT, "strategy": "dos"},
    "openmix": _MIXED,
    "poem": {**_MARGIN, "strategy": "posterior"},
    "poem+grad": {**_MARGIN, **_GRADIENT, "strategy": "posterior"},
    "greg+": {**_MARGIN, **_GRADIENT, "strategy": "two_ended"},
    "dos+grad": {**_ABSENT, **_GRADIENT, "strategy": "dos"},
    "openmix+grad": {**_MIXED, **_GRADIENT},
}
if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[tuple(PRESETS)]


class StageConfig(Section):
    """One stage of training: a method, and the schedule of its optimiser.

    A method is a name for values of `score`, `outlier_loss`, `lambda_score`, `gradient` and
    `strategy`; each may be set beside it.
    """

    method: Method
    """`ce` cross-entropy; `oe` outlier exposure; `energy` the margin loss of the energy score;
    `greg` the gradient penalty too; `greg+` picks auxiliary samples by clustering besides; `dos`
    diverse outliers of an absent class; `openmix` mixtures of ID images and outliers, towards an
    absent class; `poem` outliers near the boundary, by posterior sampling; `…+grad` any of these
    with the gradient penalty.
    """
    epochs: Count
    """Passes over the ID training split."""
    lr: Positive
    """Learning rate at the start."""
    schedule: Literal["cosine", "constant", "steps"] = "cosine"
    """`cosine` to zero over the stage's steps, `constant`, or a tenth after each of `milestones`
    (`steps`).
    """
    milestones: tuple[Count, ...] = ()
    """Epochs of `steps`, done when the rate falls."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """`sgd`; `adam`, which the authors' code takes but for CIFAR without clusters; `adamw`."""
    momentum: _Decay = _MOMENTUM
    """Of `sgd`, with Nesterov's correction where it is positive."""
    betas: tuple[_Decay, _Decay] = _BETAS
    """Of `adam` and `adamw`: decay rates of the means of gradients and of their squares."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty of the weights, a part of the gradient; of `adamw` a part of the step instead."""
    batch_size: Count = 64
    """ID samples a step, over all processes."""
    score: ScoreName = "energy"
    """OOD score that margins and the gradient penalty are about, and that the run is evaluated by
    when this is its last stage.
    """
    outlier_loss: OutlierLossName = "none"
    """L_S: `margin` of the score; `uniform` cross-entropy of outliers to the uniform distribution;
    `absent_class` cross-entropy of outliers to a class of their own; `openmix` that of mixtures
    with ID images to both classes, by their shares.
    """
    lambda_score: NonNegative = 0.0
    """Weight λ_S of it."""
    gradient: bool = False
    """Whether the norm of the score's input gradient is penalised."""
    lambda_grad: NonNegative = 0.03
    """Weight λ_∇ of the gradient loss; by default 1 beside scaling reference."""
    m_in: Margin = "auto"
    """Margin of ID scores, or `auto`: their mean when the stage begins."""
    m_out: Margin = "auto"
    """Margin of auxiliary scores, or `auto`: their mean when the stage begins."""
    scaling: Literal["paper", "reference"] = "paper"
    """`paper`: L_∇ is the sum of two mean norms; `reference`: as the authors' code has it, the mean
    norm of the rows of one number's gradient by the whole batch, weaker by about the samples of a
    step.
    """
    gradient_space: Literal["pixel", "normalized"] = "pixel"
    """Whether the gradient is by raw pixels in [0, 1] or by normalised ones."""
    penalty_every: Count = 1
    """Steps from one penalty to the next, of the gradient or of L̄, which weighs as many times λ_∇
    or λ_L.
    """
    estimator: Literal["finite-difference", "double-backward"] = "double-backward"
    """How the gradient penalty is differentiated: `double-backward` exactly; `finite-difference`
    with one more forward pass, which compiles.
    """
    lambda_lipschitz: NonNegative = 0.0
    """Weight λ_L of L̄, the formula of the score's proven Lipschitz constant over all inputs, its
    norms of layers by power iteration; 0: no such term.
    """
    lipschitz_norm: NormName = "2"
    """Of the perturbations that L̄ is about."""
    lambda_lipschitz_ramp: NonNegative = 2.0
    """Epochs over which λ_L rises from 0 when the stage begins."""
    clip_grad: Positive | None = None
    """Largest norm of a step's gradient, by all weights together; None: no limit."""
    aux_ratio: Count = 1
    """Auxiliary samples a step for each ID sample."""
    strategy: Strategy = "random"
    """Which of the candidates are taken: `random`; `greedy`: lowest scores; `dos`: lowest score of
    each cluster; `two_ended`: lowest (for L_S) and highest (for L_∇) of each; `posterior`: nearest
    the boundary that a Bayesian linear model draws.
    """
    candidates: Count = 6
    """Auxiliary candidates a step for each ID sample, where `strategy` chooses."""
    pool: Count | None = None
    """Auxiliary images drawn anew each epoch, from which all steps of it choose at once; None: each
    step chooses from candidates of its own.
    """
    clusters: Count | None = None
    """How many clusters (`dos`, `two_ended`); by default one a sample wanted in a step, and 1,024
    in a `pool`.
    """
    ranks: tuple[Natural, Count] | None = None
    """Which of a step's candidates are clustered, by rank of their score, the hardest being 0:
    [16, 384] are ranks 16 to 383, as in the authors' DOS; None: all.
    """
    singletons: Literal["repeat", "random"] = "repeat"
    """What stands for an end that its cluster is too small for: `repeat`, the image of the other
    end; `random`, a candidate that is not taken yet, as in the authors' code.
    """
    mix_alpha: Positive = 10.0
    """Both parameters of the beta distribution that a step's share of ID images in its mixtures is
    drawn from (`openmix`).
    """
    share_ends: bool = False
    """Whether both ends of `two_ended` serve both losses, as in the authors' code."""
    augment: Literal["none", "shift", "shift_flip", "resized_crop_flip"] = "none"
    """`shift`: random shifts by up to an eighth of the image; `shift_flip`: mirrored too;
    `resized_crop_flip`: parts of 8 to 100 % of the image, resized and mirrored, as is usual on
    ImageNet; of image files on disk, parts of the whole picture.
    """
    augment_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the images that are augmented, drawn anew each time."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("method"), str):
            return values
        preset = dict(PRESETS.get(values["method"], {}))
        if values.get("scaling") == "reference":
            preset["lambda_grad"] = 1.0
        return {**preset, **values}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        fixed = isinstance(self.m_in, float) and isinstance(self.m_out, float)
        if fixed and not self.m_in < self.m_out:  # type: ignore[operator]
            raise ValueError(f"expected m_in < m_out, but got {self.m_in} and {self.m_out}")
        if self.method == "ce" and (self.uses_outliers or self.gradient):
            raise ValueError("expected a method with outliers beside outlier_loss or gradient")
        if self.method == "ce" and (self.strategy != "random" or self.pool is not None):
            raise ValueError("expected a method with outliers beside strategy or pool, but got ce")
        if self.method != "ce" and self.outlier_loss == "none" and not self.gradient:
            raise ValueError(
                f"expected an outlier_loss or gradient beside method {self.method}, but got neither"
            )
        before = [*self.milestones, self.epochs]
        if (self.schedule == "steps") != bool(self.milestones) or before != sorted({*before}):
            raise ValueError(
                f"expected rising milestones below {self.epochs} epochs beside schedule steps "
                f"alone, but got {list(self.milestones)} and {self.schedule}"
            )
        sgd = self.optimizer == "sgd"
        other, usual = ("betas", _BETAS) if sgd else ("momentum", _MOMENTUM)
        if getattr(self, other) != usual:
            raise ValueError(
                f"expected no {other} beside optimizer {self.optimizer}, "
                f"but got {getattr(self, other)}"
            )
        if SCORES[self.score].absent != self.has_absent_class:
            raise ValueError(
                "expected score and outlier_loss to be both of an absent class or neither, "
                f"but got {self.score} and {self.outlier_loss}"
            )
        if self.share_ends and self.strategy != "two_ended":
            raise ValueError(
                f"expected strategy two_ended beside share_ends, but got {self.strategy}"
            )
        wanted = self.batch_size * self.aux_ratio
        if self.pool is None and self.chooses and self.clusters and wanted % self.clusters:
            raise ValueError(
                f"expected clusters to divide batch_size * aux_ratio = {wanted}, "
                f"but got {self.clusters}"
            )
        if self.pool is None and self.chooses and self.candidates < self.aux_ratio:
            raise ValueError(
                f"expected candidates >= aux_ratio = {self.aux_ratio}, but got {self.candidates}"
            )
        return self

    @model_validator(mode="after")
    def _enough_to_cluster(self) -> Self:
        random = self.singletons == "random"
        if self.ranks is None and not random:
            return self
        if self.strategy not in ("dos", "two_ended") or self.pool is not None:
            raise ValueError(
                "expected strategy dos or two_ended and no pool beside ranks or singletons, "
                f"but got {self.strategy} and {self.pool or 'none'}"
            )
        candidates = self.batch_size * self.candidates
        start, stop = self.ranks or (0, candidates)
        left = max(0, min(stop, candidates) - start)
        ends = 2 if random and self.strategy == "two_ended" else 1
        wanted = self.batch_size * self.aux_ratio * ends
        if left < wanted:
            raise ValueError(
                f"expected ranks and candidates to leave {wanted} to choose from in a step of "
                f"{candidates} candidates, but got {left}"
            )
        return self

    @property
    def uses_outliers(self) -> bool:
        """Whether the stage needs auxiliary samples."""
        return self.method != "ce"

    @property
    def has_absent_class(self) -> bool:
        """Whether the last logit is of a class that no ID sample has."""
        loss = OUTLIER_LOSSES.get(self.outlier_loss)
        return loss is not None and loss.absent

    @property
    def mixes(self) -> bool:
        """Whether outliers come mixed with ID images."""
        loss = OUTLIER_LOSSES.get(self.outlier_loss)
        return loss is not None and loss.mixes

    @property
    def uses_margins(self) -> bool:
        """Whether margins have a say: in the margin loss, or in which samples are smoothed."""
        loss = OUTLIER_LOSSES.get(self.outlier_loss)
        all_smoothed = self.scaling == "reference" and self.has_absent_class
        return (self.gradient and not all_smoothed) or (loss is not None and loss.uses_margins)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the terms that its loss has beside the cross-entropy, by setting."""
        weights = {"lambda_score": self.lambda_score if self.uses_outliers else 0.0}
        weights["lambda_grad"] = self.lambda_grad if self.gradient else 0.0
        weights["lambda_lipschitz"] = self.lambda_lipschitz
        return {setting: weight for setting, weight in weights.items() if weight}

    @property
    def chooses(self) -> bool:
        """Whether the model is asked which candidates to take."""
        return self.uses_outliers and self.strategy != "random"

    @property
    def chooses_by_features(self) -> bool:
        """Whether candidates are compared by their penultimate features, too."""
        return self.chooses and self.strategy != "greedy"

    @property
    def one_list(self) -> bool:
        """Whether the same auxiliary samples serve L_S and L_∇."""
        return self.strategy != "two_ended" or self.share_ends
