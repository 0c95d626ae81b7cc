"""The errors of this room."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used: names the file (and column), what was wanted, and what to do."""


class BrokenFileError(DataError):
    """One file that cannot be read. The loader counts these and goes on, up to a stated share."""
