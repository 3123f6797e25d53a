"""How well models classify and detect: metrics, saved scores, tables over runs and seeds."""

from greg_cert.evaluation.evaluator import Evaluator, evaluate_model
from greg_cert.evaluation.figures import Detection, Evaluation, Predictions

__all__ = ["Detection", "Evaluation", "Evaluator", "Predictions", "evaluate_model"]
