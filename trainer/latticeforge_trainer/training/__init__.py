"""Training of one stage: the loop, and what it stands on."""
