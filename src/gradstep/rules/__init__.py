"""The rules, one file a family. Each is a function of a few lines; everything else follows."""

from gradstep.rules.adadelta import adadelta
from gradstep.rules.adafactor import adafactor
from gradstep.rules.adagrad import adagrad
from gradstep.rules.adam import adam
from gradstep.rules.adamax import adamax
from gradstep.rules.asgd import asgd
from gradstep.rules.lion import lion
from gradstep.rules.muon import muon
from gradstep.rules.nadam import nadam
from gradstep.rules.radam import radam
from gradstep.rules.rmsprop import rmsprop
from gradstep.rules.rprop import rprop
from gradstep.rules.sgd import sgd
from gradstep.rules.sparse_adam import sparse_adam
from gradstep.rules.transforms import clip_by_global_norm, clip_by_value, decay_weights

__all__ = [
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "asgd",
    "clip_by_global_norm",
    "clip_by_value",
    "decay_weights",
    "lion",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "sparse_adam",
]
