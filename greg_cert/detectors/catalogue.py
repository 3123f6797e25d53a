"""Which post-hoc detectors there are: all that is known of each but its code, which is named.

A new detector is a function in a file below this folder and one entry here; names, options, errors
and listings follow. Nothing here imports torch, so that the command line can judge names at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal

Value = int | float
Kind = Literal["fraction", "count", "positive", "nonnegative"]
Needs = Literal["logits", "features", "network"]


@dataclass(frozen=True)
class Option:
    """One hyperparameter of a detector."""

    name: str
    kind: Kind  # which values it takes
    default: Value | None  # published, or None where `rule` picks one when the detector is fitted
    rule: str  # what the value is, or how it is picked


@dataclass(frozen=True)
class DetectorInfo:
    """What is known of a detector before it is built.

    Attributes:
        name: Short name, OpenOOD's where it has one.
        title: What tables call it.
        module: File below this folder with its code, a function of its name (`-` as `_`); or the
            full name of a module, in a room that reads this one.
        needs: What it reads: logits, penultimate features (and the head), or images, on which it
            runs the network itself.
        source: Authors, title of the paper, venue and year.
        fitted: Whether it has to see ID training data first.
        held_out: Whether that has to be ID data that the network was not trained on instead, such
            as the calibration split.
        labelled: Whether that data must have labels.
        options: Its hyperparameters.
        aliases: Other names that are taken for it.
    """

    name: str
    title: str
    module: str
    needs: Needs
    source: str
    fitted: bool = False
    held_out: bool = False
    labelled: bool = False
    options: tuple[Option, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def defaults(self) -> dict[str, Value | None]:
        """Each option's default; None where it is picked when fitted."""
        return {option.name: option.default for option in self.options}

    @property
    def method(self) -> Callable[..., Any]:
        """Its code, which gives a `greg_cert.detectors.fitted.Fitted`.

        Called with the `Head` where it needs features, or with the `Penultimate` where it needs the
        network; then, where it is fitted, with features (N, D) or logits (N, K) of the training
        data, or the images themselves where it needs the network, and labels (N,) where it needs
        them; then with its options by name.
        """
        above = self.module.startswith("greg_cert.")
        code = import_module(self.module if above else f"greg_cert.detectors.{self.module}")
        found: Callable[..., Any] = getattr(code, self.name.replace("-", "_"))
        return found


_T = Option("temperature", "positive", 1.0, "divides the logits")
_ASH = (Option("percentile", "fraction", 0.9, "share of the features set to 0"),)

_RADIUS = "radius of the ball in raw pixels, "
_PASSES = Option("passes", "count", 4000, "most passes of the network that a sample may cost")

_ASH_PAPER = (
    "Djurisic et al., 'Extremely Simple Activation Shaping for Out-of-Distribution Detection', "
    "ICLR 2023"
)
_DIM = Option(
    "dim", "count", None, "principal: half the rank of the training features, D/2 if full"
)
_VIM_PAPER = "Wang et al., 'ViM: Out-Of-Distribution with Virtual-logit Matching', CVPR 2022"
_SCALING_PAPER = (
    "Hendrycks et al., 'Scaling Out-of-Distribution Detection for Real-World Settings', ICML 2022"
)

_PRO_PAPER = (
    "Chen et al., 'Leveraging Perturbation Robustness to Enhance Out-of-Distribution Detection', "
    "CVPR 2025"
)


def _path(eps: float, steps: int) -> tuple[Option, ...]:
    """Options of a search that climbs."""
    size = Option("eps", "nonnegative", eps, "size of a step in raw pixels")
    return size, Option("steps", "count", steps, "how many")


# A table, an entry a detector.
# fmt: off
_ALL = (
    DetectorInfo("msp", "MSP", "logit_methods", "logits",
        source="Hendrycks and Gimpel, 'A Baseline for Detecting Misclassified and "
               "Out-of-Distribution Examples in Neural Networks', ICLR 2017",
        aliases=("max_softmax",)),
    DetectorInfo("tempscale", "Temperature scaling", "logit_methods", "logits",
        source="Guo et al., 'On Calibration of Modern Neural Networks', ICML 2017",
        fitted=True, held_out=True, labelled=True, aliases=("temp_scaling",),
        options=(Option("temperature", "positive", None,
                        "divides the logits: least loss of the labels in [0.05, 20]"),)),
    DetectorInfo("mls", "MaxLogit", "logit_methods", "logits", source=_SCALING_PAPER,
        aliases=("max_logit",)),
    DetectorInfo("ebo", "Energy", "logit_methods", "logits",
        source="Liu et al., 'Energy-based Out-of-distribution Detection', NeurIPS 2020",
        aliases=("energy",), options=(_T,)),
    DetectorInfo("entropy", "Entropy", "logit_methods", "logits",
        source="Chan et al., 'Entropy Maximization and Meta Classification for "
               "Out-of-Distribution Detection in Semantic Segmentation', ICCV 2021"),
    DetectorInfo("gen", "GEN", "logit_methods", "logits",
        source="Liu et al., 'GEN: Pushing the Limits of Softmax-Based Out-of-Distribution "
               "Detection', CVPR 2023",
        options=(Option("gamma", "positive", 0.1, "exponent"),
                 Option("top", "count", 100,
                        "how many of the largest probabilities, at most all"))),
    DetectorInfo("klm", "KL matching", "logit_methods", "logits", source=_SCALING_PAPER,
        fitted=True),
    DetectorInfo("openmax", "OpenMax", "logit_methods", "logits",
        source="Bendale and Boult, 'Towards Open Set Deep Networks', CVPR 2016", fitted=True,
        labelled=True,
        options=(Option("tail", "count", 20,
                        "largest distances of a class, which the Weibull fits"),
                 Option("alpha", "count", 3, "how many of the largest logits are revised"))),
    DetectorInfo("odin", "ODIN", "network.gradients", "network",
        source="Liang et al., 'Enhancing The Reliability of Out-of-distribution Image Detection "
               "in Neural Networks', ICLR 2018",
        options=(Option("temperature", "positive", 1000.0, "divides the logits"),
                 Option("eps", "nonnegative", 0.0014, "step in raw pixels"))),
    DetectorInfo("adascale", "AdaSCALE-A", "network.gradients", "network",
        source="Regmi, 'AdaSCALE: Adaptive Scaling for OOD Detection', arXiv 2025", fitted=True,
        aliases=("adascale-a",),
        options=(Option("p_min", "fraction", 0.6, "left out of the sum where features shift most"),
                 Option("p_max", "fraction", 0.85, "the same where they shift least"),
                 Option("weight", "nonnegative", 10.0, "of the shift, the paper's lambda"),
                 Option("share", "fraction", 0.05, "share of the pixel values that are moved"),
                 Option("eps", "nonnegative", 0.113, "step in raw pixels"))),
    DetectorInfo("gradnorm", "GradNorm", "features.weights", "features",
        source="Huang et al., 'On the Importance of Gradients for Detecting Distributional "
               "Shifts in the Wild', NeurIPS 2021", options=(_T,)),
    DetectorInfo("react", "ReAct", "features.shaping", "features",
        source="Sun et al., 'ReAct: Out-of-distribution Detection With Rectified Activations', "
               "NeurIPS 2021", fitted=True,
        options=(Option("percentile", "fraction", 0.9, "of the training features: the clip"),)),
    DetectorInfo("vra", "VRA", "features.shaping", "features",
        source="Xu et al., 'VRA: Variational Rectified Activation for Out-of-distribution "
               "Detection', NeurIPS 2023", fitted=True,
        options=(Option("low", "fraction", 0.6, "percentile of a feature, below which it is 0"),
                 Option("high", "fraction", 0.9, "percentile of a feature: the clip"))),
    DetectorInfo("ash", "ASH-S", "features.shaping", "features", source=_ASH_PAPER,
        aliases=("ash-s",), options=_ASH),
    DetectorInfo("ash-b", "ASH-B", "features.shaping", "features", source=_ASH_PAPER, options=_ASH),
    DetectorInfo("ash-p", "ASH-P", "features.shaping", "features", source=_ASH_PAPER, options=_ASH),
    DetectorInfo("scale", "SCALE", "features.shaping", "features",
        source="Xu et al., 'Scaling for Training Time and Post-hoc Out-of-distribution Detection "
               "Enhancement', ICLR 2024",
        options=(Option("percentile", "fraction", 0.85,
                        "share of the features left out of the sum"),)),
    DetectorInfo("lts", "LTS", "features.shaping", "features",
        source="Djurisic et al., 'Logit Scaling for Out-of-Distribution Detection', Machine "
               "Vision and Applications 2025",
        options=(Option("percentile", "fraction", 0.95,
                        "share of the features left out of the sum"),)),
    DetectorInfo("optfs", "OptFS", "features.shaping", "features",
        source="Zhao et al., 'Towards Optimal Feature-Shaping Methods for Out-of-Distribution "
               "Detection', ICLR 2024", fitted=True,
        options=(Option("bins", "count", 100, "intervals of the shaping function"),
                 Option("tail", "fraction", 0.001,
                        "share of the features left out at either end"))),
    DetectorInfo("dice", "DICE", "features.weights", "features",
        source="Sun and Li, 'DICE: Leveraging Sparsification for Out-of-Distribution Detection', "
               "ECCV 2022", fitted=True,
        options=(Option("p", "fraction", 0.9, "share of the head's weights set to 0"),)),
    DetectorInfo("line", "LINe", "features.line", "features",
        source="Ahn et al., 'LINe: Out-of-Distribution Detection by Leveraging Important "
               "Neurons', CVPR 2023", fitted=True, labelled=True,
        options=(Option("p_a", "fraction", None, "features pruned: 0.9 up to 10 classes, else 0.1"),
                 Option("p_w", "fraction", None, "weights pruned: 0.9 up to 100 classes, else 0.1"),
                 Option("clip", "positive", None,
                        "clip: 90th percentile of the training features"))),
    DetectorInfo("she", "SHE", "features.prototypes", "features",
        source="Zhang et al., 'Out-of-Distribution Detection based on In-Distribution Data "
               "Patterns Memorization with Modern Hopfield Energy', ICLR 2023", fitted=True,
        labelled=True),
    DetectorInfo("knn", "KNN", "features.neighbours", "features",
        source="Sun et al., 'Out-of-Distribution Detection with Deep Nearest Neighbors', ICML "
               "2022", fitted=True,
        options=(Option("k", "count", None,
                        "50, but at most half the mean number of images a class"),)),
    DetectorInfo("nnguide", "NNGuide", "features.neighbours", "features",
        source="Park et al., 'Nearest Neighbor Guidance for Out-of-Distribution Detection', ICCV "
               "2023", fitted=True,
        options=(Option("k", "count", 10, "neighbours, at most all training images"),)),
    DetectorInfo("mds", "Mahalanobis", "features.gaussians", "features",
        source="Lee et al., 'A Simple Unified Framework for Detecting Out-of-Distribution "
               "Samples and Adversarial Attacks', NeurIPS 2018", fitted=True, labelled=True,
        aliases=("mahalanobis",)),
    DetectorInfo("mdspp", "Mahalanobis++", "features.gaussians", "features",
        source="Mueller and Hein, 'Mahalanobis++: Improving OOD Detection via Feature "
               "Normalization', ICML 2025", fitted=True, labelled=True,
        aliases=("mahalanobis++", "mds++")),
    DetectorInfo("rmds", "Relative Mahalanobis", "features.gaussians", "features",
        source="Ren et al., 'A Simple Fix to Mahalanobis Distance for Improving Near-OOD "
               "Detection', arXiv 2021", fitted=True, labelled=True),
    DetectorInfo("vim", "ViM", "features.subspace", "features",
        source=_VIM_PAPER, fitted=True,
        options=(_DIM,)),
    DetectorInfo("residual", "Residual", "features.subspace", "features", source=_VIM_PAPER,
        fitted=True, options=(_DIM,)),
    DetectorInfo("neco", "NECO", "features.subspace", "features",
        source="Ben Ammar et al., 'NECO: NEural Collapse Based Out-of-distribution Detection', "
               "ICLR 2024", fitted=True,
        options=(Option("dim", "count", None,
                        "100, but at most half the rank of the training features"),)),
    DetectorInfo("weiper", "WeiPer+KLD", "features.weiper", "features",
        source="Granz et al., 'WeiPer: OOD Detection using Weight Perturbations of Class "
               "Projections', NeurIPS 2024", fitted=True,
        options=(Option("delta", "nonnegative", 1.8, "length of a perturbation over its row's"),
                 Option("lambda_1", "nonnegative", 2.5, "weight of the logits' divergence"),
                 Option("lambda_2", "nonnegative", 0.1, "weight of the mean MSP"),
                 Option("smoothing", "count", 4, "bins averaged, of features"),
                 Option("smoothing_perturbed", "count", 15, "bins averaged, of logits"))),
    DetectorInfo("fdbd", "fDBD", "features.prototypes", "features",
        source="Liu and Qin, 'Fast Decision Boundary based Out-of-Distribution Detector', ICML "
               "2024", fitted=True),
    DetectorInfo("nci", "NCI", "features.prototypes", "features",
        source="Liu and Qin, 'Detecting Out-of-Distribution Through the Lens of Neural "
               "Collapse', CVPR 2025", fitted=True,
        options=(Option("alpha", "nonnegative", 1e-4, "weight of the features' l1 norm"),)),
    DetectorInfo("rankfeat", "RankFeat", "network.rankfeat", "network",
        source="Song et al., 'RankFeat: Rank-1 Feature Removal for Out-of-distribution Detection', "
               "NeurIPS 2022", options=(_T,)),
    DetectorInfo("gram", "Gram", "network.gram", "network",
        source="Sastry and Oore, 'Detecting Out-of-Distribution Examples with Gram Matrices', ICML "
               "2020", fitted=True,
        options=(Option("powers", "count", 10, "orders of the Gram matrices, 1 to this"),)),
    DetectorInfo("nac", "NAC-UE", "network.coverage", "network",
        source="Liu et al., 'Neuron Activation Coverage: Rethinking Out-of-distribution Detection "
               "and Generalization', ICLR 2024", fitted=True,
        options=(Option("alpha", "positive", 100.0, "steepness of the sigmoid"),
                 Option("bins", "count", 50, "intervals of a neuron's state, made even"),
                 Option("full", "count", 50, "training images that cover an interval"),
                 Option("images", "count", 1000, "training images that are counted"),
                 Option("layers", "count", None,
                        "penultimate features and last stages: 4, or all if fewer"))),
    DetectorInfo("pro-msp", "PRO-MSP", "network.pro", "network", source=_PRO_PAPER,
        options=(_T, *_path(0.00075, 1))),
    DetectorInfo("pro-ent", "PRO-ENT", "network.pro", "network", source=_PRO_PAPER,
        options=_path(0.00035, 2)),
    DetectorInfo("pro-gen", "PRO-GEN", "network.pro", "network", source=_PRO_PAPER,
        options=(Option("gamma", "positive", 0.1, "exponent"),
                 Option("top", "count", 100, "how many of the largest probabilities"),
                 *_path(0.000025, 3))),
    DetectorInfo("pro-energy", "PRO energy", "network.pro", "network", source=_PRO_PAPER,
        aliases=("pro-ebo",), options=(_T, *_path(0.00035, 2))),
    DetectorInfo("certified-energy", "Certified energy, l-inf (proven bound)",
        "greg_cert.verify.score_detector", "network",
        source="proven bound of the score of " + _PRO_PAPER,
        options=(Option("eps", "positive", 0.0007, _RADIUS + "pro-energy's"), _PASSES)),
    DetectorInfo("certified-energy-l2", "Certified energy, l2 (proven bound)",
        "greg_cert.verify.score_detector", "network",
        source="proven bound of the score of " + _PRO_PAPER,
        options=(Option("eps", "positive", 0.02,
                        _RADIUS + "which holds pro-energy's path on 784 of them"),
                 _PASSES)),
)
# fmt: on

DETECTORS: Mapping[str, DetectorInfo] = MappingProxyType({info.name: info for info in _ALL})
ALIASES: Mapping[str, str] = MappingProxyType(
    {alias: info.name for info in _ALL for alias in info.aliases}
)
