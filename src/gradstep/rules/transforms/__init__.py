"""Stages: small rules that stand before or behind another in a chain, one file a family."""
