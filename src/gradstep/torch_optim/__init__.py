"""torch.optim's classes, by their names and with their arguments; each a few lines over a rule."""

from gradstep.torch_optim.adadelta import Adadelta
from gradstep.torch_optim.adafactor import Adafactor
from gradstep.torch_optim.adagrad import Adagrad
from gradstep.torch_optim.adam import Adam, AdamW
from gradstep.torch_optim.adamax import Adamax
from gradstep.torch_optim.asgd import ASGD
from gradstep.torch_optim.lbfgs import LBFGS
from gradstep.torch_optim.muon import Muon
from gradstep.torch_optim.nadam import NAdam
from gradstep.torch_optim.radam import RAdam
from gradstep.torch_optim.rmsprop import RMSprop
from gradstep.torch_optim.rprop import Rprop
from gradstep.torch_optim.sgd import SGD
from gradstep.torch_optim.sparse_adam import SparseAdam

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
]
