"""``Classifier`` and ``Regressor``: training behind scikit-learn's ``fit`` and ``predict``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from fnloop.data.batches import Batches
from fnloop.loop.fit import fit
from fnloop.loop.history import History
from fnloop.loop.predict import predict
from fnloop.optim.algorithms.adam import adamw
from fnloop.optim.base import Optimizer
from fnloop.stages.grad import grad
from fnloop.stages.pipe import pipe
from fnloop.stages.update import update
from fnloop.trees.show import short
from fnloop.values.counts import as_count
from fnloop.values.start import to_module
from fnloop.values.state import State

_ROWS = 4096
"""Examples that are predicted at once."""


def perceptron(inputs: int, outputs: int) -> nn.Module:
    """A model with one hidden layer of 64 units.

    >>> perceptron(4, 3)(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, outputs))


class _Estimator(BaseEstimator):
    """What both have in common."""

    state_: State
    history_: History
    n_iter_: int

    def __init__(
        self,
        model: Callable[[int, int], nn.Module] = perceptron,
        optimizer: Optimizer | None = None,
        *,
        step: Callable[[Any], Any] | None = None,
        epochs: int = 100,
        batch_size: int = 32,
        callbacks: Sequence[Any] = (),
        dtype: str = "float64",
        random_state: Any = 0,
    ) -> None:
        self.model, self.optimizer, self.step = model, optimizer, step
        self.epochs, self.batch_size, self.callbacks = epochs, batch_size, callbacks
        self.dtype, self.random_state = dtype, random_state

    def _train(self, loss: Any, x: np.ndarray, y: Tensor, outputs: int) -> None:
        who = type(self).__name__
        if isinstance(self.model, nn.Module):
            raise TypeError(
                f"{who}(model=...) takes a function that builds a model, of the numbers of inputs "
                f"and outputs, got the module {short(self.model)}: each fit trains a model of its "
                "own. Write lambda inputs, outputs: nn.Linear(inputs, outputs)."
            )
        epochs = as_count(self.epochs, f"{who}(epochs=...)", 1)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if self.step is None:
            step: Any = pipe(loss, grad, update(self.optimizer or adamw(1e-2)))
        else:
            step = self.step(loss)
        inputs = x.shape[1]
        state = step.init(lambda: self.model(inputs, outputs).to(self._dtype), seed)
        rows = self._tensor(x)
        _check_outputs(state, rows[:2], outputs)
        data = Batches((rows, y), self.batch_size, seed=seed)
        self.state_, self.history_ = fit(
            step, state, data, epochs=epochs, callbacks=[*self.callbacks], progress=False
        )
        self.n_iter_ = self.history_.rows[-1]["epoch"]

    def _scores(self, x: Any) -> Tensor:
        """The model's outputs, float64."""
        check_is_fitted(self, "state_")
        checked: Any = validate_data(self, x, reset=False, dtype=np.float64)
        batches = Batches(self._tensor(checked), _ROWS, shuffle=False)
        return torch.cat([*predict(_call, self.state_, batches)]).double()

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(x)).to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        found = getattr(torch, self.dtype, None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise ValueError(f'dtype takes "float32" or "float64", got {self.dtype!r}.')
        return found

    @property
    def module_(self) -> nn.Module:
        """The trained model, in evaluation mode."""
        check_is_fitted(self, "state_")
        return to_module(self.state_).eval()


class Classifier(ClassifierMixin, _Estimator):
    """A classifier for scikit-learn that trains a model by cross-entropy.

    Args:
        model: A function of the numbers of features and of classes that builds a model. It takes
            rows ``[n, features]`` and returns scores ``[n, classes]``.
        optimizer: Of fnloop; default ``fl.optim.adamw(1e-2)``.
        step: A function that builds the training step from the loss, for more than an optimizer:
            ``lambda loss: fl.pipe(loss, fl.grad, fl.update(optimizer), fl.ema(0.99))``.
        epochs, batch_size, callbacks: As for `fl.fit` and `fl.Batches`.
        dtype: Of the model and the data: ``"float64"``, as in scikit-learn, or ``"float32"``.
        random_state: A seed, a ``RandomState`` or None, as in scikit-learn. All randomness is a
            function of it.

    Attributes:
        classes_: The classes, sorted.
        state_: The state after training.
        history_: The history of training.
        module_: The trained ``nn.Module``.
        n_iter_: Epochs trained.

    >>> from sklearn.datasets import load_iris
    >>> x, y = load_iris(return_X_y=True)
    >>> Classifier(epochs=20).fit(x, y).score(x, y) > 0.95
    True
    """

    classes_: np.ndarray

    def fit(self, X: Any, y: Any) -> Classifier:
        """Train on rows ``[n, features]`` and their classes ``[n]``."""
        checked: Any = validate_data(self, X, y, dtype=np.float64)
        x, y = checked
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        self._train(_cross_entropy, x, torch.from_numpy(indices), len(self.classes_))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row."""
        best = self._scores(X).argmax(1).numpy()
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities of the classes ``[n, classes]``."""
        return self._scores(X).softmax(1).numpy()


class Regressor(RegressorMixin, _Estimator):
    """A regressor for scikit-learn that trains a model by the squared error.

    Args:
        model: A function of the numbers of features and of targets that builds a model. It takes
            rows ``[n, features]`` and returns ``[n, targets]``.
        optimizer, step, epochs, batch_size, callbacks, dtype, random_state: As for `Classifier`.

    Attributes:
        state_, history_, module_, n_iter_: As for `Classifier`.

    >>> x = np.linspace(-1, 1, 64)[:, None]
    >>> Regressor().fit(x, x[:, 0] ** 2).score(x, x[:, 0] ** 2) > 0.95
    True
    """

    _flat: bool

    def fit(self, X: Any, y: Any) -> Regressor:
        """Train on rows ``[n, features]`` and their targets ``[n]`` or ``[n, targets]``."""
        checked: Any = validate_data(
            self, X, y, dtype=np.float64, y_numeric=True, multi_output=True
        )
        x, y = checked
        self._flat = y.ndim == 1
        target = self._tensor(y.reshape(len(y), -1))
        self._train(_squared_error, x, target, target.shape[1])
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The targets of each row, shaped as those of `fit`."""
        found = self._scores(X).numpy()
        return found[:, 0] if self._flat else found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = True
        tags.target_tags.multi_output = True
        return tags


def _check_outputs(state: State, rows: Tensor, outputs: int) -> None:
    """Refuse a model of another shape: the squared error would broadcast it."""
    (found,) = predict(_call, state, [rows])
    expected = (len(rows), outputs)
    if not isinstance(found, Tensor) or found.shape != expected:
        raise ValueError(
            f"For rows {short(rows)} the model returns {short(found)}; expected the shape "
            f"{list(expected)}, a number for each class or target. Usual causes: it does not use "
            "the number of outputs that it is given, or drops the last dimension."
        )


def _call(model: Any, rows: Tensor) -> Tensor:
    return model(rows)


def _cross_entropy(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def _squared_error(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.mse_loss(model(x), y)
