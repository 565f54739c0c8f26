"""A one-machine stand-in for a Kubernetes cluster, for laptops and tests.

An in-memory API that kubectl, Helm and Kopf can talk to (`server`), the controllers that a stack
relies on (`controllers`), and a kubelet that runs a pod's containers as local processes
(`kubelet`). It is no cluster: one node, loopback only, nothing survives it but volumes.
"""
