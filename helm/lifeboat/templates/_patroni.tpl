{{/*
Patroni's dynamic configuration. It is bootstrap.dcs of a cluster that is born, and what the follow hook merges into a running one.
It never holds standby_cluster: that belongs to `follow` and `promote`.
*/}}
{{- define "lifeboat.dcs" -}}
{{- $dcs := dict -}}
{{- if .Values.patroni.enabled -}}
{{- $parameters := merge (dict "wal_receiver_timeout" .Values.patroni.walReceiverTimeout) .Values.postgresql.parameters -}}
{{- $dcs = dict
  "ttl" (int .Values.patroni.ttl)
  "loop_wait" (int .Values.patroni.loopWait)
  "retry_timeout" (int .Values.patroni.retryTimeout)
  "maximum_lag_on_failover" (int64 .Values.patroni.maximumLagOnFailover)
  "postgresql" (dict "use_pg_rewind" true "use_slots" true "parameters" $parameters)
-}}
{{- end -}}
{{- if eq .Values.site.role "active" -}}
{{- $slot := dict (include "lifeboat.slot" .Values.peer.name) (dict "type" "physical") -}}
{{- $_ := set $dcs "slots" $slot -}}
{{- end -}}
{{- mergeOverwrite $dcs (deepCopy .Values.patroni.extraDcs) | toJson -}}
{{- end -}}

{{/* Patroni's configuration on this pod, apart from bootstrap. A copy starts with a fast checkpoint: a spread one keeps it waiting for minutes. Patroni reads it at its start only, so a change restarts the pods. */}}
{{- define "lifeboat.patroniLocal" -}}
{{- $tls := .Values.postgresql.tls.existingSecret -}}
{{- $rest := .Values.patroni.tls -}}
{{- $host := ternary "hostssl" "host" (not (empty $tls)) -}}
{{- $strict := include "lifeboat.tlsIsDemanded" . -}}
{{- $hba := list "local all all scram-sha-256" -}}
{{- if $strict -}}{{- $hba = append $hba "local replication all scram-sha-256" -}}{{- end -}}
{{- $hba = concat $hba (list
  (printf "%s all all all scram-sha-256" $host)
  (printf "%s replication all all scram-sha-256" $host))
-}}
{{- $parameters := dict "unix_socket_directories" "/tmp" -}}
{{- if $tls -}}
{{- $parameters = merge $parameters (dict "ssl" "on" "ssl_cert_file" "/etc/lifeboat-tls/tls.crt" "ssl_key_file" "/etc/lifeboat-tls/tls.key") -}}
{{- end -}}
{{- $restapi := dict "listen" "0.0.0.0:8008" "allowlist_include_members" true -}}
{{- $postgresql := dict
    "listen" "0.0.0.0:5432"
    "data_dir" "/var/lib/postgresql/data"
    "bin_dir" .Values.postgresql.binDir
    "pgpass" "/tmp/pgpass"
    "use_unix_socket" true
    "basebackup" (dict "checkpoint" "fast")
    "pg_hba" (default $hba .Values.postgresql.pgHba)
    "parameters" $parameters
-}}
{{- /* Patroni looks at its own server by a replication connection too. By TCP the certificate would have to name localhost. */ -}}
{{- if $strict -}}{{- $_ := set $postgresql "use_unix_socket_repl" true -}}{{- end -}}
{{- $configuration := dict
  "scope" (include "lifeboat.scope" .)
  "kubernetes" (dict
    "labels" (dict "application" "patroni")
    "scope_label" "cluster-name"
    "role_label" "role"
    "leader_label_value" .Values.patroni.leaderLabelValue
    "standby_leader_label_value" .Values.patroni.leaderLabelValue
    "follower_label_value" "replica"
    "use_endpoints" false)
  "restapi" $restapi
  "postgresql" $postgresql
-}}
{{- if $rest.existingSecret -}}
{{- $pair := dict "certfile" "/etc/lifeboat-patroni/tls.crt" "keyfile" "/etc/lifeboat-patroni/tls.key" -}}
{{- $authority := printf "/etc/lifeboat-patroni/%s" $rest.caKey -}}
{{- $_ := merge $restapi $pair (dict "cafile" $authority) -}}
{{- if $rest.verifyClient -}}{{- $_ := set $restapi "verify_client" "optional" -}}{{- end -}}
{{- $_ := set $configuration "ctl" (merge (dict "cacert" $authority) $pair) -}}
{{- end -}}
{{- $configuration | toJson -}}
{{- end -}}

{{/* Whether connections to the peer, and so between the members, have TLS or do not come about. */}}
{{- define "lifeboat.tlsIsDemanded" -}}
{{- if has .Values.peer.tls.mode (list "require" "verify-ca" "verify-full") -}}true{{- end -}}
{{- end -}}

{{/* The name of a member, for certificates that must name it: one for all members names `*.<fullname>-members.<namespace>.svc`. */}}
{{- define "lifeboat.memberName" -}}
$(PATRONI_NAME).{{ include "lifeboat.fullname" . }}-members.$(PATRONI_KUBERNETES_NAMESPACE).svc
{{- end -}}

{{/*
TLS to this site's own members. They have the peer's settings, as Patroni has one for both; where this site's server has no TLS, or
is not the chart's, what it offers is taken.
*/}}
{{- define "lifeboat.localTlsArgs" -}}
{{- if and .Values.patroni.enabled .Values.postgresql.tls.existingSecret -}}
{{ include "lifeboat.peerTlsArgs" . }}
{{- end -}}
{{- end -}}

{{- define "lifeboat.localTlsMount" -}}
{{- if include "lifeboat.localTlsArgs" . -}}{{- include "lifeboat.peerTlsMount" . -}}{{- end -}}
{{- end -}}

{{- define "lifeboat.localTlsVolume" -}}
{{- if include "lifeboat.localTlsArgs" . -}}{{- include "lifeboat.peerTlsVolume" . -}}{{- end -}}
{{- end -}}

{{- define "lifeboat.peerTlsArgs" -}}
- --sslmode={{ .Values.peer.tls.mode }}
{{- if .Values.peer.tls.existingSecret }}
- --sslrootcert=/etc/lifeboat-peer/{{ .Values.peer.tls.key }}
{{- end }}
{{- end -}}

{{- define "lifeboat.peerTlsMount" -}}
{{- if .Values.peer.tls.existingSecret -}}
- name: peer-tls
  mountPath: /etc/lifeboat-peer
  readOnly: true
{{- end -}}
{{- end -}}

{{- define "lifeboat.peerTlsVolume" -}}
{{- with .Values.peer.tls.existingSecret -}}
- name: peer-tls
  secret:
    secretName: {{ . | quote }}
    items:
      - key: {{ $.Values.peer.tls.key | quote }}
        path: {{ $.Values.peer.tls.key | quote }}
{{- end -}}
{{- end -}}

{{- define "lifeboat.patroniConfiguration" -}}
{{- $configuration := include "lifeboat.patroniLocal" . | fromJson -}}
{{- $bootstrap := dict
  "dcs" (include "lifeboat.dcs" . | fromJson)
  "initdb" (list
    (dict "encoding" "UTF8")
    (dict "locale" "C.UTF-8")
    (dict "auth-host" "scram-sha-256")
    (dict "auth-local" "scram-sha-256")
    "data-checksums")
  "post_bootstrap" "/usr/local/bin/lifeboat post-bootstrap"
-}}
{{- set $configuration "bootstrap" $bootstrap | toPrettyJson -}}
{{- end -}}

{{/* What the hook merges; empty where the chart has nothing to say (a Patroni that exists already, on a standby site). */}}
{{- define "lifeboat.mergeFile" -}}
{{- $dcs := include "lifeboat.dcs" . | fromJson -}}
{{- if $dcs -}}/etc/lifeboat/dcs.json{{- end -}}
{{- end -}}
