"""A Kubernetes operator for stacks of fine-tuning stages."""

__version__ = "0.1.0"
