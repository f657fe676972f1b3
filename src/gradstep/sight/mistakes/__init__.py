"""Diagnoses: what goes wrong in a training loop, where, why it hurts, and what to write.

``diagnosis.py`` watches; each other file knows one kind of mistakes. docs/mistakes.md lists them.
"""

from gradstep.sight.mistakes.diagnosis import Diagnosis, diagnose
from gradstep.sight.mistakes.finding import Finding, Mistake, MistakeError, MistakeWarning
from gradstep.sight.mistakes.place import Place
from gradstep.sight.mistakes.watched import Family, Watched

__all__ = [
    "Diagnosis",
    "Family",
    "Finding",
    "Mistake",
    "MistakeError",
    "MistakeWarning",
    "Place",
    "Watched",
    "diagnose",
]
