{{/*
The steps of the monitor. The CronJob has a container for each, the Deployment repeats them in one process: their arguments are
written here once for both.
*/}}

{{/*
Where there is a monitor: a CronJob only watches, so it has nothing to do on an active site; a Deployment also tells who leads. A
witness is asked by the monitor of the standby site.
*/}}
{{- define "lifeboat.monitorRuns" -}}
{{- if or (eq .Values.site.role "standby") (and (eq .Values.site.role "active") (eq .Values.monitor.kind "Deployment")) -}}
{{- if ne .Values.monitor.kind "none" -}}
true
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lifeboat.monitorPortDiscoverArgs" -}}
{{ include "lifeboat.portDiscoverArgs" . }}
- --skip-if-promoted={{ include "lifeboat.scope" . }}
{{- end -}}

{{/* A Deployment probes again in its next round, a moment later. */}}
{{- define "lifeboat.monitorProbeArgs" -}}
{{- $m := .Values.monitor -}}
- pg-probe
{{ include "lifeboat.peerArgs" . }}
{{ include "lifeboat.peerTlsArgs" . }}
- --attempts={{ eq $m.kind "Deployment" | ternary 1 (int $m.attempts) }}
- --interval={{ $m.interval }}
- --timeout={{ $m.timeout }}
- --dir=/intercom
{{- end -}}

{{- define "lifeboat.monitorPromoteArgs" -}}
{{- $m := .Values.monitor -}}
- promote
- --scope={{ include "lifeboat.scope" . }}
- --site={{ .Values.site.name }}
- --mode={{ include "lifeboat.monitorMode" . }}
- --failures={{ int $m.failures }}
- --for={{ $m.for }}
- --max-lag={{ $m.maxLag }}
- --period={{ $m.period }}
{{- range $m.witnesses }}
- --witness={{ . }}
{{- end }}
{{- if .Values.peer.context.existingSecret }}
- --peer-context={{ default .Values.peer.name .Values.peer.context.name }}
{{- with .Values.peer.context.namespace }}
- --peer-namespace={{ . }}
{{- end }}
{{- with .Values.peer.context.scope }}
- --peer-scope={{ . }}
{{- end }}
{{- end }}
{{- if $m.acceptSplitBrain }}
- --accept-split-brain
{{- end }}
{{- with include "lifeboat.localTlsArgs" . }}
{{ . }}
{{- end }}
- --verify-timeout={{ $m.verifyTimeout }}
- --alert-repeat={{ .Values.alerts.repeatEvery }}
- --dir=/intercom
{{- end -}}

{{/* Host and port to stream from are those that this run's probe met the peer at. */}}
{{- define "lifeboat.monitorFollowArgs" -}}
{{ include "lifeboat.followSiteArgs" . }}
- --host={{ include "lifeboat.peerHost" . }}
{{- /* Of an attached Patroni nobody knows whether its peer has such a slot: it keeps the one that it has, or none. */}}
{{- if .Values.patroni.enabled }}
- --slot={{ include "lifeboat.slot" .Values.site.name }}
{{- end }}
- --probe-file=/intercom/probe.json
{{- with include "lifeboat.localTlsArgs" . }}
{{ . }}
{{- end }}
- --wait={{ include "lifeboat.monitorFollowSeconds" . }}s
- --alert-repeat={{ .Values.alerts.repeatEvery }}
{{- end -}}

{{/* Time for replication to work at the corrected place: three rounds of Patroni and a little, as follow itself reckons. */}}
{{- define "lifeboat.monitorFollowSeconds" -}}{{ add (mul 3 (int .Values.patroni.loopWait)) 5 }}{{- end -}}

{{/* All of them as one command line of `lifeboat monitor`. */}}
{{- define "lifeboat.monitorSteps" -}}
{{- if eq (int .Values.peer.port) 0 -}}
{{ include "lifeboat.monitorPortDiscoverArgs" . }}
- --then
{{ end -}}
{{ include "lifeboat.monitorProbeArgs" . }}
- --then
{{ include "lifeboat.monitorPromoteArgs" . }}
{{- if .Values.monitor.followPort }}
- --then
{{ include "lifeboat.monitorFollowArgs" . }}
{{- end }}
{{- end -}}

{{/* The second path. The binary finds its own cluster in the pod, also where this is set. */}}
{{- define "lifeboat.monitorContextEnv" -}}
{{- if .Values.peer.context.existingSecret -}}
- name: KUBECONFIG
  value: /etc/lifeboat-context/kubeconfig
{{- end -}}
{{- end -}}

{{- define "lifeboat.monitorContextMount" -}}
{{- if .Values.peer.context.existingSecret -}}
- name: peer-context
  mountPath: /etc/lifeboat-context
  readOnly: true
{{- end -}}
{{- end -}}

{{- define "lifeboat.monitorVolumes" -}}
{{ include "lifeboat.intercomVolume" . }}
{{- with include "lifeboat.peerTlsVolume" . }}
{{ . }}
{{- end }}
{{- with .Values.peer.context.existingSecret }}
- name: peer-context
  secret:
    secretName: {{ . | quote }}
    items:
      - key: {{ $.Values.peer.context.key | quote }}
        path: kubeconfig
{{- end }}
{{- end -}}

{{- define "lifeboat.monitorPodMetadata" -}}
labels:
  {{- include "lifeboat.stableLabels" . | nindent 2 }}
  app.kubernetes.io/component: monitor
  {{- with .Values.monitor.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.monitor.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What the pods of both kinds have in common, apart from their containers. */}}
{{- define "lifeboat.monitorPodSpec" -}}
serviceAccountName: {{ include "lifeboat.fullname" . }}-monitor
enableServiceLinks: false
terminationGracePeriodSeconds: 10
securityContext:
  {{- include "lifeboat.podSecurityContext" . | nindent 2 }}
{{- with include "lifeboat.imagePullSecrets" . | trim }}
{{ . }}
{{- end }}
{{- with include "lifeboat.scheduling" .Values.monitor | trim }}
{{ . }}
{{- end }}
{{- with .Values.monitor.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
