"""torch.optim's classes, by their names and with their arguments; each a few lines over a rule."""

from gradstep.torch_optim.adagrad import Adagrad
from gradstep.torch_optim.adam import Adam, AdamW
from gradstep.torch_optim.lion import Lion
from gradstep.torch_optim.rmsprop import RMSprop
from gradstep.torch_optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "RMSprop"]
