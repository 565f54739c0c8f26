"""The `latticeforge` command: run a stack here, watch one anywhere, make data, print CRDs."""

from latticeforge_operator.cli.commands import main

__all__ = ["main"]
