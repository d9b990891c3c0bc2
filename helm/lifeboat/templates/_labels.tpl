{{- define "lifeboat.selectorLabels" -}}
app.kubernetes.io/name: {{ include "lifeboat.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* Labels without the chart's version: objects that Patroni writes to must not change with every upgrade. */}}
{{- define "lifeboat.stableLabels" -}}
{{ include "lifeboat.selectorLabels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: lifeboat
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "lifeboat.labels" -}}
{{ include "lifeboat.stableLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* What makes Patroni see a pod or a ConfigMap as its own. Nothing else may carry these, or `patronictl remove` would take it. */}}
{{- define "lifeboat.patroniLabels" -}}
application: patroni
cluster-name: {{ include "lifeboat.scope" . | quote }}
{{- end -}}
