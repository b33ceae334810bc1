"""What can go wrong, as one tree.

    CellmeterError
    ├── BadUsage            an argument or option that cannot be used
    ├── MissingExtra        an optional dependency is not installed
    ├── RunNotFound         no run answers to that name
    ├── RunUnreadable       a folder is there, but it is no run, or a damaged one
    ├── RecorderUnavailable the recorder could not be started or is gone
    ├── ExportFailed        a server did not take what was sent to it
    └── FetchFailed         a server did not tell what it was asked for

Every message is one line for the user: what happened, where, and what to do.
"""


class CellmeterError(Exception):
    """Base of all errors that cellmeter raises on purpose."""


class BadUsage(CellmeterError):
    """An argument or option that cannot be used."""


class MissingExtra(CellmeterError):
    """An optional dependency is not installed."""

    def __init__(self, needs: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {needs}, which is not installed: pip install 'cellmeter[{extra}]'")


class RunNotFound(CellmeterError):
    """No run answers to that name."""


class RunUnreadable(CellmeterError):
    """A folder is there, but it is no run, or a damaged one."""


class RecorderUnavailable(CellmeterError):
    """The recorder could not be started or is gone."""


class ExportFailed(CellmeterError):
    """A server did not take what was sent to it."""


class FetchFailed(CellmeterError):
    """A server did not tell what it was asked for."""
