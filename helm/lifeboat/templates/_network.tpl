{{/* Who is admitted: this namespace or this release alone, and the lists. Takes root, namespaces and cidrs. */}}
{{- define "lifeboat.networkPeers" -}}
{{- if .root.Values.networkPolicy.allowNamespace -}}
- podSelector: {}
{{- else -}}
- podSelector:
    matchLabels:
      {{- include "lifeboat.selectorLabels" .root | nindent 6 }}
{{- end }}
{{- range .namespaces }}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . | quote }}
{{- end }}
{{- range .cidrs }}
- ipBlock:
    cidr: {{ . | quote }}
{{- end }}
{{- end -}}
