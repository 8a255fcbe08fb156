"""Estimators for scikit-learn: a classifier and a regressor, for pipelines and grid searches.

Imported by its own name, ``import fnloop.sklearn``, since it needs scikit-learn.
"""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.sklearn.estimators import Classifier as Classifier
from fnloop.sklearn.estimators import Regressor as Regressor
from fnloop.sklearn.estimators import perceptron as perceptron

__getattr__ = _suggesting(__name__)
