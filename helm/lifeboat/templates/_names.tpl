{{/* Names. 36 characters of fullname leave room for every suffix: 52 for a CronJob or StatefulSet, 63 for a Service or label. */}}

{{- define "lifeboat.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 36 | trimSuffix "-" -}}
{{- end -}}

{{- define "lifeboat.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 36 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 36 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 36 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lifeboat.scope" -}}
{{- default (include "lifeboat.fullname" .) .Values.patroni.scope -}}
{{- end -}}

{{/* Whether this release runs Patroni: not where it attaches to one, and not at the place of a witness. */}}
{{- define "lifeboat.patroniRuns" -}}
{{- if and .Values.patroni.enabled (ne .Values.site.role "witness") -}}
true
{{- end -}}
{{- end -}}

{{- define "lifeboat.statefulset" -}}
{{- printf "%s-%s" (include "lifeboat.fullname" .) .Values.site.name -}}
{{- end -}}

{{/* The Service that leads to this site's leader. */}}
{{- define "lifeboat.primaryService" -}}
{{- $own := printf "%s-primary" (include "lifeboat.fullname" .) -}}
{{- if .Values.patroni.enabled -}}{{- $own -}}{{- else -}}{{- default $own .Values.patroni.service -}}{{- end -}}
{{- end -}}

{{- define "lifeboat.peerService" -}}
{{- default (printf "%s-primary-%s" (include "lifeboat.fullname" .) .Values.peer.name) .Values.peer.service -}}
{{- end -}}

{{- define "lifeboat.peerHost" -}}
{{- default (include "lifeboat.peerService" .) .Values.peer.host -}}
{{- end -}}

{{- define "lifeboat.secret" -}}
{{- default (printf "%s-auth" (include "lifeboat.fullname" .)) .Values.auth.existingSecret -}}
{{- end -}}

{{/* A site's name as a replication slot: the active side keeps one per peer, the standby side streams from its own. */}}
{{- define "lifeboat.slot" -}}
{{- . | replace "-" "_" -}}
{{- end -}}

{{/* The member pods by name, as a JSON list. Eight at least, so that scaling up by hand keeps working. */}}
{{- define "lifeboat.members" -}}
{{- if .Values.patroni.enabled -}}
{{- $sts := include "lifeboat.statefulset" . -}}
{{- $names := list -}}
{{- range $i := until (max 8 (int .Values.patroni.replicas) | int) -}}
{{- $names = append $names (printf "%s-%d" $sts $i) -}}
{{- end -}}
{{- $names | toJson -}}
{{- else -}}
{{- .Values.patroni.members | toJson -}}
{{- end -}}
{{- end -}}
