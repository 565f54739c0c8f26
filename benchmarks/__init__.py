"""Measurements: each prints a table, and none is a test."""
