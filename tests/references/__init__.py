"""The rules that torch.optim has not: a file a family, each with ``REFERENCES``, a list of rows.

A file that is added here is found by itself. Its formula is written from the paper, in plain NumPy,
and without a look at the rule; see ``reference.py``.
"""
