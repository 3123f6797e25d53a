"""Which post-hoc detectors there are and what may be set, told without importing torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from greg_cert.errors import UsageError
from greg_cert.models.names import near_miss

Value = int | float
Kind = Literal["fraction", "count", "positive", "nonnegative"]
Needs = Literal["logits", "features", "gradients"]

_ALLOWED = {
    "fraction": "a number in [0, 1)",
    "count": "an integer >= 1",
    "positive": "a finite number > 0",
    "nonnegative": "a finite number >= 0",
}


@dataclass(frozen=True)
class Option:
    """One hyperparameter of a detector.

    Attributes:
        name: What it is called.
        kind: Which values it takes.
        default: Published value, or None where `rule` picks one when the detector is fitted.
        rule: What the value is, or how it is picked.
    """

    name: str
    kind: Kind
    default: Value | None
    rule: str


@dataclass(frozen=True)
class DetectorInfo:
    """What is known of a detector before it is built.

    Attributes:
        name: Short name, OpenOOD's where it has one.
        title: What tables call it.
        source: Authors, title of the paper, venue and year.
        needs: What it reads: logits, penultimate features (and the head), or gradients with
            respect to the pixels (and so the network itself).
        fitted: Whether it has to see ID training data first.
        labelled: Whether that data must have labels.
        options: Its hyperparameters.
    """

    name: str
    title: str
    source: str
    needs: Needs
    fitted: bool = False
    labelled: bool = False
    options: tuple[Option, ...] = ()

    @property
    def defaults(self) -> dict[str, Value | None]:
        """Each option's default; None where it is picked when fitted."""
        return {option.name: option.default for option in self.options}


_T = Option("temperature", "positive", 1.0, "divides the logits")
_ASH = (Option("percentile", "fraction", 0.9, "share of the features set to 0"),)

_ASH_PAPER = (
    "Djurisic et al., 'Extremely Simple Activation Shaping for Out-of-Distribution Detection', "
    "ICLR 2023"
)
_SCALING_PAPER = (
    "Hendrycks et al., 'Scaling Out-of-Distribution Detection for Real-World Settings', ICML 2022"
)

_ALL = (
    DetectorInfo(
        "msp",
        "MSP",
        "Hendrycks and Gimpel, 'A Baseline for Detecting Misclassified and Out-of-Distribution "
        "Examples in Neural Networks', ICLR 2017",
        "logits",
    ),
    DetectorInfo("mls", "MaxLogit", _SCALING_PAPER, "logits"),
    DetectorInfo(
        "ebo",
        "Energy",
        "Liu et al., 'Energy-based Out-of-distribution Detection', NeurIPS 2020",
        "logits",
        options=(_T,),
    ),
    DetectorInfo(
        "entropy",
        "Entropy",
        "Chan et al., 'Entropy Maximization and Meta Classification for Out-of-Distribution "
        "Detection in Semantic Segmentation', ICCV 2021",
        "logits",
    ),
    DetectorInfo(
        "gen",
        "GEN",
        "Liu et al., 'GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection', "
        "CVPR 2023",
        "logits",
        options=(
            Option("gamma", "positive", 0.1, "exponent"),
            Option("top", "count", 100, "how many of the largest probabilities, at most all"),
        ),
    ),
    DetectorInfo("klm", "KL matching", _SCALING_PAPER, "logits", fitted=True),
    DetectorInfo(
        "openmax",
        "OpenMax",
        "Bendale and Boult, 'Towards Open Set Deep Networks', CVPR 2016",
        "logits",
        fitted=True,
        labelled=True,
        options=(
            Option("tail", "count", 20, "largest distances of a class, which the Weibull fits"),
            Option("alpha", "count", 3, "how many of the largest logits are revised"),
        ),
    ),
    DetectorInfo(
        "odin",
        "ODIN",
        "Liang et al., 'Enhancing The Reliability of Out-of-distribution Image Detection in "
        "Neural Networks', ICLR 2018",
        "gradients",
        options=(
            Option("temperature", "positive", 1000.0, "divides the logits"),
            Option("eps", "nonnegative", 0.0014, "step in raw pixels"),
        ),
    ),
    DetectorInfo(
        "gradnorm",
        "GradNorm",
        "Huang et al., 'On the Importance of Gradients for Detecting Distributional Shifts in the "
        "Wild', NeurIPS 2021",
        "features",
        options=(_T,),
    ),
    DetectorInfo(
        "react",
        "ReAct",
        "Sun et al., 'ReAct: Out-of-distribution Detection With Rectified Activations', "
        "NeurIPS 2021",
        "features",
        fitted=True,
        options=(Option("percentile", "fraction", 0.9, "of the training features: the clip"),),
    ),
    DetectorInfo("ash", "ASH-S", _ASH_PAPER, "features", options=_ASH),
    DetectorInfo("ash-b", "ASH-B", _ASH_PAPER, "features", options=_ASH),
    DetectorInfo("ash-p", "ASH-P", _ASH_PAPER, "features", options=_ASH),
    DetectorInfo(
        "scale",
        "SCALE",
        "Xu et al., 'Scaling for Training Time and Post-hoc Out-of-distribution Detection "
        "Enhancement', ICLR 2024",
        "features",
        options=(
            Option("percentile", "fraction", 0.85, "share of the features left out of the sum"),
        ),
    ),
    DetectorInfo(
        "lts",
        "LTS",
        "Djurisic et al., 'Logit Scaling for Out-of-Distribution Detection', "
        "Machine Vision and Applications 2025",
        "features",
        options=(
            Option("percentile", "fraction", 0.95, "share of the features left out of the sum"),
        ),
    ),
    DetectorInfo(
        "dice",
        "DICE",
        "Sun and Li, 'DICE: Leveraging Sparsification for Out-of-Distribution Detection', "
        "ECCV 2022",
        "features",
        fitted=True,
        options=(Option("p", "fraction", 0.9, "share of the head's weights set to 0"),),
    ),
    DetectorInfo(
        "line",
        "LINe",
        "Ahn et al., 'LINe: Out-of-Distribution Detection by Leveraging Important Neurons', "
        "CVPR 2023",
        "features",
        fitted=True,
        labelled=True,
        options=(
            Option("p_a", "fraction", None, "features pruned: 0.9 up to 10 classes, else 0.1"),
            Option("p_w", "fraction", None, "weights pruned: 0.9 up to 100 classes, else 0.1"),
            Option("clip", "positive", None, "clip: 90th percentile of the training features"),
        ),
    ),
    DetectorInfo(
        "she",
        "SHE",
        "Zhang et al., 'Out-of-Distribution Detection based on In-Distribution Data Patterns "
        "Memorization with Modern Hopfield Energy', ICLR 2023",
        "features",
        fitted=True,
        labelled=True,
    ),
    DetectorInfo(
        "knn",
        "KNN",
        "Sun et al., 'Out-of-Distribution Detection with Deep Nearest Neighbors', ICML 2022",
        "features",
        fitted=True,
        options=(
            Option("k", "count", None, "50, but at most half the mean number of images a class"),
        ),
    ),
    DetectorInfo(
        "nnguide",
        "NNGuide",
        "Park et al., 'Nearest Neighbor Guidance for Out-of-Distribution Detection', ICCV 2023",
        "features",
        fitted=True,
        options=(
            Option("k", "count", None, "10, but at most half the mean number of images a class"),
        ),
    ),
    DetectorInfo(
        "mds",
        "Mahalanobis",
        "Lee et al., 'A Simple Unified Framework for Detecting Out-of-Distribution Samples and "
        "Adversarial Attacks', NeurIPS 2018",
        "features",
        fitted=True,
        labelled=True,
    ),
    DetectorInfo(
        "rmds",
        "Relative Mahalanobis",
        "Ren et al., 'A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection', "
        "arXiv 2021",
        "features",
        fitted=True,
        labelled=True,
    ),
    DetectorInfo(
        "vim",
        "ViM",
        "Wang et al., 'ViM: Out-Of-Distribution with Virtual-logit Matching', CVPR 2022",
        "features",
        fitted=True,
        options=(
            Option("dim", "count", None, "half the rank of the training features, D/2 if full"),
        ),
    ),
    DetectorInfo(
        "fdbd",
        "fDBD",
        "Liu and Qin, 'Fast Decision Boundary based Out-of-Distribution Detector', ICML 2024",
        "features",
        fitted=True,
    ),
    DetectorInfo(
        "nci",
        "NCI",
        "Liu and Qin, 'Detecting Out-of-Distribution Through the Lens of Neural Collapse', "
        "CVPR 2025",
        "features",
        fitted=True,
        options=(Option("alpha", "nonnegative", 1e-4, "weight of the features' l1 norm"),),
    ),
)

DETECTORS: Mapping[str, DetectorInfo] = MappingProxyType({info.name: info for info in _ALL})

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "energy": "ebo",
        "max_logit": "mls",
        "max_softmax": "msp",
        "ash-s": "ash",
        "mahalanobis": "mds",
    }
)


def parse_detector(text: str) -> tuple[str, dict[str, Value]]:
    """The short name of a detector and the options set, of a text such as `ash:percentile=0.8`.

    Args:
        text: a name of `DETECTORS` or `ALIASES`, then perhaps `:` and `option=value` pairs with
            commas between them.

    Returns:
        The name in `DETECTORS`, and the options that the text sets, judged by `check_options`.

    Raises:
        UsageError: for an unknown name, an unknown option, or a value that it cannot have.
    """
    name, colon, rest = text.strip().partition(":")
    name = known_name(name.strip())
    given: dict[str, Value] = {}
    for pair in rest.split(",") if colon else ():
        option, equals, value = (part.strip() for part in pair.partition("="))
        if not (option and equals and value):
            raise UsageError(
                f"detector {name}: expected option=value pairs after ':', but got {pair!r}"
            )
        if option in given:
            raise UsageError(f"detector {name}: expected {option} once, but got it twice")
        given[option] = _number(name, option, value)
    return name, check_options(name, given)


def known_name(name: str) -> str:
    """The name in `DETECTORS` of a detector, of that name or an alias in any case of letters.

    Raises:
        UsageError: for an unknown name; the message lists the choices and the nearest one.
    """
    lower = name.lower()
    found = ALIASES.get(lower, lower)
    if found not in DETECTORS:
        hint = near_miss(lower, [*DETECTORS, *ALIASES])
        raise UsageError(f"detector: expected one of {', '.join(DETECTORS)}{hint}, got {name!r}")
    return found


def check_options(name: str, given: Mapping[str, object]) -> dict[str, Value]:
    """The options themselves, where each is one that the detector has and its value fits.

    Args:
        name: a name of `DETECTORS`.
        given: option to value; a value of None is the same as leaving the option out.

    Returns:
        Option to value, counts as int and the others as float.

    Raises:
        UsageError: for an unknown option, or a value that it cannot have.
    """
    known = {option.name: option for option in DETECTORS[name].options}
    checked: dict[str, Value] = {}
    for key, value in given.items():
        if key not in known:
            choices = f"one of the options {', '.join(known)}" if known else "no option"
            hint = near_miss(key, list(known))
            raise UsageError(f"detector {name}: expected {choices}{hint}, but got {key!r}")
        if value is None:
            continue
        checked[key] = _checked(f"detector {name}: expected {key}", known[key].kind, value)
    return checked


def _checked(what: str, kind: Kind, value: object) -> Value:
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and _fits(kind, value)
    ):
        return int(value) if kind == "count" else float(value)
    raise UsageError(f"{what} to be {_ALLOWED[kind]}, but got {value!r}")


def _fits(kind: Kind, value: Value) -> bool:
    if kind == "fraction":
        return 0.0 <= value < 1.0
    if kind == "count":
        return value >= 1 and value == int(value)
    return value > 0.0 if kind == "positive" else value >= 0.0


def _number(name: str, option: str, text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"detector {name}: expected {option} to be a number, but got {text!r}"
        ) from None
