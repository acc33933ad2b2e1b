"""What is left of a concept: probes on the vectors of prompts, of scikit-learn. N prompts, F probe features.

The vector is :meth:`sanitizer.model.normalizer.Normalizer.features`, as in the sanitizer's own reports; the encoder's
statistics are measured anew from raw prompts, and not taken from the sanitizer.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

DECAY = 1e-2
"""Of the linear probe's squared weights, beside the mean loss."""
HIDDEN, EPOCHS, BATCH, RATE, PENALTY = 64, 15, 128, 2e-3, 1.0
"""Of the MLP probe: units of its one hidden layer, passes, prompts of a step, Adam's rate, L2 penalty. The penalty was
chosen by cross-validation within the probes' training pairs of nudity and violence on `minilm`, where from 0 to 20 all
are about as good; 10 no longer learns a product of two channels."""
KINDS = ("linear", "mlp")


@dataclass(frozen=True)
class Probe:
    """A classifier on standardised features, both classes given equal weight. Called on (N, F) it gives logits (N,)."""

    model: Pipeline

    @classmethod
    def linear(cls, x: ArrayLike, y: ArrayLike) -> "Probe":
        """Logistic regression: x (N, F), y (N,) of 0 and 1."""
        weight = compute_sample_weight("balanced", y)
        # C weighs the sum of losses against half the squared weights; here their mean is wanted.
        model = LogisticRegression(C=1 / (2 * DECAY * weight.sum()), max_iter=1000)
        return cls._fitted(model, x, y, weight)

    @classmethod
    def mlp(cls, x: ArrayLike, y: ArrayLike, seed: int = 0) -> "Probe":
        """One hidden layer: x (N, F), y (N,) of 0 and 1."""
        model = MLPClassifier(
            (HIDDEN,), alpha=PENALTY, batch_size=min(BATCH, len(y)), learning_rate_init=RATE, max_iter=EPOCHS,
            random_state=seed,
        )  # fmt: skip
        return cls._fitted(model, x, y, compute_sample_weight("balanced", y))

    @classmethod
    def _fitted(cls, model, x: ArrayLike, y: ArrayLike, weight: np.ndarray) -> "Probe":
        pipeline = make_pipeline(StandardScaler(), model)
        with warnings.catch_warnings():
            # The passes are limited on purpose: stopping early is a part of the regularisation.
            warnings.simplefilter("ignore", ConvergenceWarning)
            pipeline.fit(np.asarray(x), np.asarray(y), **{f"{type(model).__name__.lower()}__sample_weight": weight})
        return cls(pipeline)

    def __call__(self, x: ArrayLike) -> np.ndarray:
        x = np.asarray(x)
        if not len(x):
            return np.zeros(0)
        if hasattr(self.model, "decision_function"):
            return self.model.decision_function(x)
        # In double precision, and bounded: far from the edge a probability rounds to 0 or 1.
        return logit(self.model.predict_proba(x.astype(np.float64))[:, 1].clip(1e-15, 1 - 1e-15))


@dataclass(frozen=True)
class ConceptProbes:
    """A linear and an MLP probe for one concept, and the prompts that they were trained on."""

    linear: Probe
    mlp: Probe
    reference: np.ndarray
    """(R, F) training vectors, among which nearest neighbours are looked for."""
    labels: np.ndarray
    """(R,) bool: unsafe."""

    @classmethod
    def fit(cls, unsafe: ArrayLike, safe: ArrayLike, benign: ArrayLike, seed: int = 0) -> "ConceptProbes":
        """unsafe and their safe counterfactuals (N, F), benign (M, F): counterfactuals, which are of the same scene,
        keep the probes from learning topics."""
        x = np.concatenate([unsafe, safe, benign]).astype(np.float32)
        y = np.arange(len(x)) < len(unsafe)
        return cls(Probe.linear(x, y), Probe.mlp(x, y, seed), x, y)

    def logits(self, x: ArrayLike) -> dict[str, np.ndarray]:
        """(N, F) -> probe's name -> (N,)."""
        return {kind: getattr(self, kind)(x) for kind in KINDS}

    def found(self, x: ArrayLike) -> dict[str, np.ndarray]:
        """(N, F) -> probe's name -> (N,) bool: it says that the concept is there."""
        return {kind: logits > 0 for kind, logits in self.logits(x).items()}
