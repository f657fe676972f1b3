"""Engines: how a rule is run over the tensors of a group."""
