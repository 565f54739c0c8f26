"""Models on disk and in memory: loading, adapters, merging, writing shards."""
