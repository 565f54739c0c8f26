"""What cannot be estimated."""

from __future__ import annotations


class EstimateError(ValueError):
    """A model or GPU is not known well enough; the message is one sentence for its user."""
