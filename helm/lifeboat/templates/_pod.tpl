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

{{/*
The token of the pod's service account, for a pod with a container that does not call the API: those that do mount the volume.
It is what Kubernetes gives to every container of a pod (automountServiceAccountToken), with the same time to live.
*/}}
{{- define "lifeboat.tokenVolume" -}}
- name: token
  projected:
    sources:
      - serviceAccountToken:
          expirationSeconds: 3607
          path: token
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
{{- end -}}

{{- define "lifeboat.tokenMount" -}}
- name: token
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end -}}

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

{{/*
The steps speak SQL as the replication role, in the database postgres. Any role may ask who a server is, and write the message that
verifies a promotion. Only pg_monitor, which post-bootstrap grants to this one, sees the state of the WAL receiver. The role owns
nothing and reads no table of the application by SQL, but it is not a harmless one: replication copies the whole cluster.
*/}}
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

{{/* Whose follow it is, in all its forms. */}}
{{- define "lifeboat.followSiteArgs" -}}
- follow
- --scope={{ include "lifeboat.scope" . }}
- --site={{ .Values.site.name }}
- --role={{ .Values.site.role }}
{{- end -}}

{{/* Arguments of follow before Patroni starts, and in the hook. */}}
{{- define "lifeboat.followArgs" -}}
{{ include "lifeboat.followSiteArgs" . }}
{{- if eq .Values.site.role "standby" }}
{{ include "lifeboat.peerArgs" . }}
{{- /* Of an attached Patroni nobody knows whether its peer has such a slot: it keeps the one that it has, or none. */}}
{{- if .Values.patroni.enabled }}
- --slot={{ include "lifeboat.slot" .Values.site.name }}
{{- end }}
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

{{/*
What the steps hand each other. In memory: a node whose disk is full keeps no step from telling what it saw, what it holds of
passwords is on no disk, and nothing outlives the pod that took the facts.
*/}}
{{- define "lifeboat.intercomVolume" -}}
- name: intercom
  emptyDir:
    medium: Memory
    sizeLimit: 16Mi
{{- end -}}
