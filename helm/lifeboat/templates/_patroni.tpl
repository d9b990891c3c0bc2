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
{{- $host := ternary "hostssl" "host" (not (empty $tls)) -}}
{{- $hba := list
  "local all all scram-sha-256"
  (printf "%s all all all scram-sha-256" $host)
  (printf "%s replication all all scram-sha-256" $host)
-}}
{{- $parameters := dict "unix_socket_directories" "/tmp" -}}
{{- if $tls -}}
{{- $parameters = merge $parameters (dict "ssl" "on" "ssl_cert_file" "/etc/lifeboat-tls/tls.crt" "ssl_key_file" "/etc/lifeboat-tls/tls.key") -}}
{{- end -}}
{{- dict
  "scope" (include "lifeboat.scope" .)
  "kubernetes" (dict
    "labels" (dict "application" "patroni")
    "scope_label" "cluster-name"
    "role_label" "role"
    "leader_label_value" .Values.patroni.leaderLabelValue
    "standby_leader_label_value" .Values.patroni.leaderLabelValue
    "follower_label_value" "replica"
    "use_endpoints" false)
  "restapi" (dict "listen" "0.0.0.0:8008" "allowlist_include_members" true)
  "postgresql" (dict
    "listen" "0.0.0.0:5432"
    "data_dir" "/var/lib/postgresql/data"
    "bin_dir" .Values.postgresql.binDir
    "pgpass" "/tmp/pgpass"
    "use_unix_socket" true
    "basebackup" (dict "checkpoint" "fast")
    "pg_hba" (default $hba .Values.postgresql.pgHba)
    "parameters" $parameters)
  | toJson -}}
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
