"""How well models classify and detect: metrics, saved scores, tables over runs and seeds."""

from greg_cert.evaluation.evaluator import Detection, Evaluator, Predictions
from greg_cert.evaluation.model import Evaluation, evaluate_model

__all__ = ["Detection", "Evaluation", "Evaluator", "Predictions", "evaluate_model"]
