"""Estimators: scikit-learn's own checks, pipelines, grid searches, and what fnloop adds."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

import fnloop as fl
from fnloop.sklearn import Classifier, Regressor

DIGITS = load_digits(return_X_y=True)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs)


@pytest.mark.parametrize("estimator", [Classifier(epochs=50), Regressor(epochs=50)])
def test_scikit_learns_own_checks(estimator):
    done = check_estimator(estimator, on_skip=None)
    assert {each["status"] for each in done} <= {"passed", "skipped"}
    skipped = {each["check_name"] for each in done if each["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}  # which asks for a variable of the environment


def test_a_pipeline_and_a_grid_search_choose_a_learning_rate():
    x, y = DIGITS
    pipeline = make_pipeline(StandardScaler(), Classifier(linear, epochs=20))
    rates = [fl.optim.sgd(1e-4), fl.optim.sgd(0.1)]
    search = GridSearchCV(pipeline, {"classifier__optimizer": rates}, cv=2)
    search.fit(x[:600], y[:600])
    assert search.best_params_["classifier__optimizer"] == rates[1]
    assert search.score(x[600:], y[600:]) > 0.85


def test_a_linear_regression_is_that_of_scikit_learn():
    x, y = load_diabetes(return_X_y=True)
    x, y = StandardScaler().fit_transform(x), (y - y.mean()) / y.std()
    decay = 0.1  # Ridge adds alpha |w|^2 to the sum of squares, and here it is their mean
    chain = fl.optim.chain(fl.optim.add_decayed_weights(decay, "weight"), fl.optim.sgd(0.2))
    model = Regressor(linear, chain, epochs=700, batch_size=len(x)).fit(x, y)
    expected = Ridge(alpha=decay * len(x) / 2).fit(x, y)
    np.testing.assert_allclose(model.module_.weight.detach()[0], expected.coef_, atol=1e-4)


def test_a_step_of_ones_own_callbacks_and_the_state():
    x, y = DIGITS
    averaged = Classifier(
        step=lambda loss: fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), fl.ema(0.9)),
        callbacks=[fl.every(1, fl.early_stopping("loss", patience=1, min_delta=0.5), unit="epoch")],
        epochs=30,
        dtype="float32",
    )
    averaged.fit(x / 16, y)
    assert averaged.n_iter_ < 30 and averaged.history_.status == "stopped"
    assert averaged.state_["ema"]["0.weight"].dtype is torch.float32
    assert not averaged.module_.training
    again = pickle.loads(pickle.dumps(averaged.set_params(step=None, callbacks=())))
    np.testing.assert_array_equal(again.predict_proba(x), averaged.predict_proba(x))


def test_the_random_state_decides_everything():
    x, y = DIGITS
    one, two, other = (Classifier(epochs=1, random_state=s).fit(x, y) for s in (1, 1, 2))
    assert fl.tree_equal(one.state_, two.state_)
    assert not fl.tree_equal(one.state_.params, other.state_.params)


def test_several_targets_keep_their_shape():
    x = np.random.RandomState(0).randn(40, 3)
    assert Regressor(epochs=1).fit(x, x[:, :2]).predict(x).shape == (40, 2)
    assert Regressor(epochs=1).fit(x, x[:, 0]).predict(x).shape == (40,)


def test_scores_over_folds():
    x, y = DIGITS
    assert cross_val_score(Classifier(epochs=10), x / 16, y, cv=2).mean() > 0.9


def test_a_dtype_that_is_none():
    with pytest.raises(ValueError, match='"float32" or "float64"'):
        Classifier(dtype="int64").fit(*DIGITS)


def test_what_cannot_be_trained_is_refused():
    x, y = load_diabetes(return_X_y=True)
    with pytest.raises(TypeError, match=r"a function that builds a model, .* got the module"):
        Regressor(nn.Linear(10, 1)).fit(x, y)
    with pytest.raises(ValueError, match=r"Regressor\(epochs=...\) takes a whole number of at"):
        Regressor(epochs=0).fit(x, y)
    # Against targets [n, 1] the squared error would broadcast it.
    with pytest.raises(ValueError, match=r"returns f64\[2\]; expected the shape \[2, 1\]"):
        Regressor(lambda i, o: nn.Sequential(nn.Linear(i, o), nn.Flatten(0))).fit(x, y)
    x, y = DIGITS
    with pytest.raises(ValueError, match=r"returns f64\[2,13\]; expected the shape \[2, 10\]"):
        Classifier(lambda inputs, classes: nn.Linear(inputs, classes + 3)).fit(x, y)
