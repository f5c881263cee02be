"""Errors that a user can mend.

The command line turns a `UserError` into one message on standard error and exit code 2, without a traceback. Everything
else that escapes is a fault of ours: exit code 1.
"""

from __future__ import annotations


class UserError(Exception):
    """Says where it happened, what was found and what was expected; `cure` says how to mend it."""

    def __init__(self, message: str, *, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message}\n  {self.cure}" if self.cure else self.message


class RecipeError(UserError):
    """A recipe that cannot be read, or does not fit its schema."""


class DataError(UserError):
    """A data set that is missing, unreadable, or cannot be split as asked."""


class ModelError(UserError):
    """A model that does not exist, or does not fit the images or the classes."""


class StoreError(UserError):
    """A file of ours that is missing, damaged, or belongs to something else."""


class RunError(UserError):
    """A run folder that cannot be used as asked."""


class BilevelError(UserError):
    """A label meta-gradient that cannot be computed: an unknown optimiser step, a failing estimator, a NaN."""
