"""What goes wrong in a run or a study, in one line that says what to do."""


class RunError(ValueError):
    """A run that cannot be started as asked for."""


class ResultsError(ValueError):
    """Results that do not belong together, or cannot be read or written."""
