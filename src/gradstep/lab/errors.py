"""What can go wrong in the lab. Each message is one line that says what and where."""


class BadInput(Exception):
    """Something that the user gave cannot be used; nothing has been changed."""


class DataError(BadInput):
    """A data set is missing, cut short or of another format."""


class SettingsError(BadInput):
    """Settings that are out of range, or not those of the run that is to go on."""


class UnknownOptimizer(SettingsError):
    """No optimizer of that name; the message names those that come near."""


class DeviceError(BadInput):
    """No such device here."""


class RunError(BadInput):
    """The folder of a run cannot be used for that."""


class CheckpointError(Exception):
    """A file is no checkpoint of this run, or a damaged one."""


class ProcessLost(Exception):
    """Another process of the run has ended, and this one cannot go on alone."""


class DiskError(Exception):
    """The disk did not take a file. What was written before is whole."""
