{{/* Parts that every pod shares. */}}

{{- define "lifeboat.image" -}}
{{- $name := .repository -}}
{{- if .registry -}}{{- $name = printf "%s/%s" .registry .repository -}}{{- end -}}
{{- if .digest -}}{{- printf "%s@%s" $name .digest -}}{{- else -}}{{- printf "%s:%s" $name .tag -}}{{- end -}}
{{- end -}}

{{- define "lifeboat.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- if not .Values.openshift }}
runAsUser: {{ int .Values.security.runAsUser }}
runAsGroup: {{ int .Values.security.runAsGroup }}
fsGroup: {{ int .Values.security.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- end -}}

{{- define "lifeboat.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Every pod names its own service account; only those whose steps call the API get its token. */}}
{{- define "lifeboat.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Takes a component's values. */}}
{{- define "lifeboat.scheduling" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The pod's own name and id: the object that Events are about. */}}
{{- define "lifeboat.podEnv" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
{{- end -}}

{{/* The replication role: it may read pg_monitor's views, and no table of the application. */}}
{{- define "lifeboat.sqlEnv" -}}
- name: PGUSER
  valueFrom:
    secretKeyRef:
      name: {{ include "lifeboat.secret" . }}
      key: {{ .Values.auth.keys.replicationUsername | quote }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "lifeboat.secret" . }}
      key: {{ .Values.auth.keys.replicationPassword | quote }}
- name: PGDATABASE
  value: postgres
{{- end -}}

{{- define "lifeboat.alertEnv" -}}
{{- with .Values.alerts.webhook }}
{{- if .existingSecret }}
- name: LIFEBOAT_WEBHOOK_URL
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret | quote }}
      key: {{ .key | quote }}
- name: LIFEBOAT_WEBHOOK_FORMAT
  value: {{ .format | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The dead-man switch hears from the step that ends a chain only: an early step's success says nothing of the chain. */}}
{{- define "lifeboat.pingEnv" -}}
{{- with .Values.alerts.ping }}
{{- if .existingSecret }}
- name: LIFEBOAT_PING_URL
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret | quote }}
      key: {{ .key | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Arguments of port-discover, without what differs between its callers. */}}
{{- define "lifeboat.portDiscoverArgs" -}}
- port-discover
- --service={{ include "lifeboat.peerService" . }}
{{- with .Values.peer.portName }}
- --port-name={{ . }}
{{- end }}
{{- if .Values.peer.nodePort }}
- --node-port
{{- end }}
- --dir=/intercom
{{- end -}}

{{/* Where the peer is: a port of the values, or the one that port-discover wrote. */}}
{{- define "lifeboat.peerArgs" -}}
- --host={{ include "lifeboat.peerHost" . }}
{{- if eq (int .Values.peer.port) 0 }}
- --port-file=/intercom/tsc_port
{{- else }}
- --port={{ int .Values.peer.port }}
{{- end }}
{{- end -}}

{{/* Arguments of follow that both its forms share. */}}
{{- define "lifeboat.followArgs" -}}
- follow
- --scope={{ include "lifeboat.scope" . }}
- --site={{ .Values.site.name }}
- --role={{ .Values.site.role }}
{{- if eq .Values.site.role "standby" }}
{{ include "lifeboat.peerArgs" . }}
- --slot={{ include "lifeboat.slot" .Values.site.name }}
{{- end }}
{{- end -}}

{{- define "lifeboat.podFailurePolicy" -}}
rules:
  # The pod was evicted or its node drained: says nothing about the step.
  - action: Ignore
    onPodConditions:
      - type: DisruptionTarget
  # Wrong configuration, refused by a guard, found wrong: trying again cannot help.
  - action: FailJob
    onExitCodes:
      operator: In
      values: [2, 3, 4]
{{- end -}}
