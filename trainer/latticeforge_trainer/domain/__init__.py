"""The intelligence-assessment domain: its exact arithmetic and the data generated from it.

Everything here is torch-free and deterministic: the same seed gives the same bytes on every
platform, because the arithmetic is decimal and the draws come from ``random.Random``.
"""
