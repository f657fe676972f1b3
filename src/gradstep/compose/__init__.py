"""What is put together of optimizers: partitions of a model, wrappers around a step, schedules."""

from gradstep.compose import schedule as schedule
