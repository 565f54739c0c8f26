"""A kubelet that runs a pod's containers as local processes.

What a pod can count on:

- **The image is this machine.** Images are ignored: a container sees the machine's programs and
  files. The folder of the interpreter that runs the devcluster comes first on PATH, so `python`
  is that environment. There is no image to take an entry point from: `command` is required.
- **Paths are translated, not mounted.** There is no mount namespace. Where a volumeMount's
  `mountPath` occurs as a path in command, args, env values or workingDir, the kubelet writes the
  host's folder instead. Contents of files are not translated: a path inside a ConfigMap's file
  must be relative, or be passed through env or args. Read-only mounts are not enforced.
- **Names are translated, not resolved.** `<hostname>.<subdomain>[.<namespace>.svc…]`, the stable
  names of a headless Service's pods, become 127.0.0.1 in command, args and env values.
- **Environment.** PATH, LANG, HOME (a scratch folder, which is also the working directory unless
  the container names one), what the machine says of proxies, certificates and CUDA, the pod's own
  env, and CUDA_VISIBLE_DEVICES: the GPUs that it requested, or none.
- **The API.** Unless `automountServiceAccountToken` is false: KUBERNETES_SERVICE_HOST and _PORT,
  KUBECONFIG, and a folder in place of /var/run/secrets/kubernetes.io/serviceaccount. The server
  speaks plain HTTP, so `ca.crt` is empty, and clients should load KUBECONFIG.
- **An end.** SIGTERM goes to the whole process group, which then has the grace period; after it,
  and whenever a container's first process ends by itself, everything that the container has
  started is killed. When the devcluster dies, in whatever way, its containers die at once (on
  Linux without exception; elsewhere a process that left its group is not found once its parent is
  gone).

Not implemented: probes, lifecycle hooks, sidecars, user ids and security contexts, resource limits,
/dev/termination-log (use terminationMessagePolicy FallbackToLogsOnError).
"""
