"""Publishing a finished model: what is uploaded, its card, and the two kinds of destination.

    lineage ──▶ card, curve ──▶ bundle ──▶ hub | folder

`bundle` is the exact content of the repository; `hub` and `folder` make a destination equal to it.
Both are idempotent: they compare first and change only what differs, in one atomic step.
"""
