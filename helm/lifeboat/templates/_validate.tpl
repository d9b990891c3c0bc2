{{/* What a schema cannot say: values that exclude or require each other. */}}
{{- define "lifeboat.validate" -}}
{{- $v := .Values -}}
{{- if eq $v.site.name $v.peer.name -}}
{{- fail (printf "site.name and peer.name are both %q: the two sites need different names, as the members of Patroni carry them" $v.site.name) -}}
{{- end -}}
{{- if and $v.peer.nodePort (not $v.peer.host) -}}
{{- fail "peer.nodePort needs peer.host: a node port is reached through a node, not through the Service" -}}
{{- end -}}
{{- if and (has $v.peer.tls.mode (list "verify-ca" "verify-full")) (not $v.peer.tls.existingSecret) -}}
{{- fail (printf "peer.tls.mode %s needs peer.tls.existingSecret: the certificate authority to verify the peer with" $v.peer.tls.mode) -}}
{{- end -}}
{{- if and $v.postgresql.storage.existingClaim (ne (int $v.patroni.replicas) 1) -}}
{{- fail "postgresql.storage.existingClaim needs patroni.replicas: 1, as members cannot share a volume" -}}
{{- end -}}
{{- if hasKey $v.patroni.extraDcs "standby_cluster" -}}
{{- fail "patroni.extraDcs must not hold standby_cluster: follow and promote decide on it at run time" -}}
{{- end -}}
{{- if gt (add (int $v.patroni.loopWait) (mul 2 (int $v.patroni.retryTimeout))) (int64 $v.patroni.ttl) -}}
{{- fail "patroni: loopWait + 2 × retryTimeout must not exceed ttl, or Patroni changes them by itself" -}}
{{- end -}}
{{- if not $v.patroni.enabled -}}
{{- if not $v.patroni.scope -}}{{- fail "patroni.enabled: false needs patroni.scope, the scope of the Patroni that exists" -}}{{- end -}}
{{- if not $v.auth.existingSecret -}}{{- fail "patroni.enabled: false needs auth.existingSecret, the credentials of the Patroni that exists" -}}{{- end -}}
{{- end -}}
{{- if and (eq $v.site.role "standby") (not $v.auth.existingSecret) -}}
{{- if not (and $v.auth.passwords.superuser $v.auth.passwords.replication $v.auth.passwords.app) -}}
{{- fail "a standby site is a copy of its peer and needs the peer's credentials: copy the Secret and set auth.existingSecret, or set all of auth.passwords" -}}
{{- end -}}
{{- end -}}
{{- if and (eq $v.site.role "standby") (eq $v.monitor.kind "CronJob") -}}
{{- $_ := include "lifeboat.monitorMode" . -}}
{{- $probe := mul (int $v.monitor.attempts) (add (include "lifeboat.seconds" $v.monitor.interval | int) (include "lifeboat.seconds" $v.monitor.timeout | int)) -}}
{{- if gt (add $probe 15) (int64 $v.monitor.activeDeadlineSeconds) -}}
{{- fail (printf "monitor: %d attempts × (interval %s + timeout %s) take up to %d s and leave less than 15 s of activeDeadlineSeconds %d for the decision" (int $v.monitor.attempts) $v.monitor.interval $v.monitor.timeout $probe (int $v.monitor.activeDeadlineSeconds)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* auto needs something that can tell a dead peer from a cut link. */}}
{{- define "lifeboat.monitorMode" -}}
{{- $m := .Values.monitor -}}
{{- $sure := or $m.witnesses .Values.peer.context.existingSecret $m.acceptSplitBrain -}}
{{- if and (eq $m.mode "auto") (not $sure) -}}
{{- fail "monitor.mode auto needs monitor.witnesses, peer.context.existingSecret, or monitor.acceptSplitBrain: true; two sites alone cannot tell a dead peer from a cut link" -}}
{{- end -}}
{{- default (ternary "auto" "approve" (not (empty $sure))) $m.mode -}}
{{- end -}}

{{/* A duration of the values (90s, 2m, 1h30m; less than a second counts as one) in seconds, rounded up. */}}
{{- define "lifeboat.seconds" -}}
{{- $total := 0 -}}
{{- range regexFindAll "[0-9]+(ms|h|m|s)" . -1 -}}
{{- $number := regexFind "^[0-9]+" . | atoi -}}
{{- if hasSuffix "ms" . -}}{{- $total = add $total (div (add $number 999) 1000) -}}
{{- else if hasSuffix "h" . -}}{{- $total = add $total (mul $number 3600) -}}
{{- else if hasSuffix "m" . -}}{{- $total = add $total (mul $number 60) -}}
{{- else -}}{{- $total = add $total $number -}}
{{- end -}}
{{- end -}}
{{- $total -}}
{{- end -}}
