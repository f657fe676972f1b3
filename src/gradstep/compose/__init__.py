"""What is put together of optimizers: partitions of a model, wrappers around a step, schedules."""
