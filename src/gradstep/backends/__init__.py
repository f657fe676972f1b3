"""Backends: what makes the steps, and the door for one from outside the package.

A backend derives from :class:`Backend`, its bindings from :class:`Binding`. Once registered it is
named by ``engine=``::

    gradstep.backends.register(MyBackend())
    optimizer = gradstep.Adam(model.parameters(), engine=MyBackend.name)
"""

from gradstep.backends.base import Backend as Backend
from gradstep.backends.base import Binding as Binding
from gradstep.backends.base import Run as Run
from gradstep.backends.base import Values as Values
from gradstep.backends.dispatch import engines as engines
from gradstep.backends.dispatch import register as register
