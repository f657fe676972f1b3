"""Matrix functions that rules share: bases that rounding cannot turn, batches of matrices."""
