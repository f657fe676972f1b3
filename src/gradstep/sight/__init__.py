"""Seeing a step: what a rule did to one weight, in numbers that a person can check.

- ``element``: the numbers that one weight's step starts from
- ``surroundings``: what it takes from other weights, by sums and matrix functions
- ``arithmetic``: the kernel's arithmetic for that weight, to the last bit
- ``digits``: so many digits that each printed equation holds
- ``explanation``: the rule's formula, line by line, with the numbers put in
- ``armed``, ``places``, ``account``: ``gradstep.explain``, the weights that it is asked for, and
  each one's step as it happened
- ``rule_formula``: ``gradstep.formula``, a rule alone
- ``page``, ``text``, ``markdown``, ``html``, ``latex``, ``show``: the forms of both
- ``catalogue``, ``description``: the rules by name, and what each says of itself
- ``watch``, ``statistics``, ``histograms``, ``records``, ``sinks``, ``watch_pictures``: what every
  n-th step of a training does to each parameter, and where that is kept
- ``lr_find``, ``restored``: a learning rate, found by trial and without a trace
- ``ink``: colours on a terminal, plain text elsewhere
"""
