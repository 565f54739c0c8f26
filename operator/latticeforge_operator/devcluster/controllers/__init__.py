"""The control plane's loops: Jobs, Deployments, scheduling, volumes and the node.

Each decision is a pure function of objects and the time; the loops around them read, decide and
write, whenever something changed, and go on after any error.
"""
