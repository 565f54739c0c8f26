"""The Kubernetes side: Kopf wiring, observation, manifests, server-side apply.

`python -m latticeforge_operator.cluster` is the operator. Nothing here decides: events wake
`Reconciler`, which reads the mirror, asks `core.reconcile`, and carries the decision out.
"""
