"""What the theory knows of a start: the limit, its loss and rank, and how fast it is reached."""

from deeplin.prediction.conserved import rank_and_balance
from deeplin.prediction.predicting import predict, predict_flow
from deeplin.prediction.statement import Prediction

__all__ = ["Prediction", "predict", "predict_flow", "rank_and_balance"]
