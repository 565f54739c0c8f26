{{- define "latticeforge.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Name of what is in no namespace: releases of one name in several namespaces do not meet. */ -}}
{{- define "latticeforge.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "latticeforge.name" .) }}
{{- end }}

{{- define "latticeforge.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "latticeforge.name" .) }}
{{- end }}

{{- define "latticeforge.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "latticeforge.labels" -}}
{{ include "latticeforge.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* An image by its digest, or else by its tag. Takes (list image context). */ -}}
{{- define "latticeforge.image" -}}
{{- $image := index . 0 -}}
{{- $context := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $context.Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- /* Security contexts that the restricted Pod Security profile asks for. */ -}}
{{- define "latticeforge.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "latticeforge.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "latticeforge.pullSecrets" -}}
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
