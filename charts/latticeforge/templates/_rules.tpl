{{- /* Generated; `make chart` writes it anew. */ -}}
{{- define "latticeforge.rules.inNamespace" -}}
# see what users ask for
- apiGroups: [latticeforge.dev]
  resources: [stackedtrainings]
  verbs: [list, watch]
# say where it stands
- apiGroups: [latticeforge.dev]
  resources: [stackedtrainings/status]
  verbs: [patch]
# run the attempts of the steps
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, patch, delete]
# bill them and tell why they wait or fail
- apiGroups: ['']
  resources: [pods]
  verbs: [list, watch]
# configs to the pods, reports back
- apiGroups: ['']
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
# who the pods are, how they meet
- apiGroups: ['']
  resources: [serviceaccounts, services]
  verbs: [create, patch]
# the volume of a stack
- apiGroups: ['']
  resources: [persistentvolumeclaims]
  verbs: [create, patch, delete]
# tell people; see why a Job gets no pods
- apiGroups: ['']
  resources: [events]
  verbs: [list, create]
# let the pods report, and nothing else
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [create, patch]
{{- end }}
{{- define "latticeforge.rules.inCluster" -}}
# see where stacks can run
- apiGroups: [latticeforge.dev]
  resources: [gpupools]
  verbs: [list, watch]
{{- end }}
{{- define "latticeforge.rules.everywhere" -}}
# notice a reinstalled definition
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [list, watch]
{{- end }}
