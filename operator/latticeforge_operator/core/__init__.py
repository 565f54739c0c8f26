"""Decisions. Pure: no Kubernetes client, no clock, no file, no network; `now` is a parameter."""
