"""The rules, one file a family. Each is a function of a few lines; everything else follows."""

from gradstep.rules.adagrad import adagrad
from gradstep.rules.adam import adam
from gradstep.rules.lion import lion
from gradstep.rules.rmsprop import rmsprop
from gradstep.rules.sgd import sgd
from gradstep.rules.transforms import clip_by_value, decay_weights

__all__ = ["adagrad", "adam", "clip_by_value", "decay_weights", "lion", "rmsprop", "sgd"]
