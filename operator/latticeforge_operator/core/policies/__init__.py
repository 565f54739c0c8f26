"""One small file per policy, each a function of values."""
