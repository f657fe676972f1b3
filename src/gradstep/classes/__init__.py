"""Classes that are made from declarations and rules."""
