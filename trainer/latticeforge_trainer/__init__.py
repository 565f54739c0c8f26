"""The trainer: what runs inside the pods of a step."""
