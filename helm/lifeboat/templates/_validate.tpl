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
{{- include "lifeboat.validateLabels" . -}}
{{- if .Release.IsUpgrade -}}
{{- include "lifeboat.validateSite" . -}}
{{- end -}}
{{- if eq $v.site.role "witness" -}}
{{- include "lifeboat.validateWitness" . -}}
{{- else -}}
{{- include "lifeboat.validateTls" . -}}
{{- include "lifeboat.validateHba" . -}}
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
{{- if and (eq $v.site.role "standby") (ne $v.monitor.kind "none") -}}
{{- $_ := include "lifeboat.monitorMode" . -}}
{{- end -}}
{{- if eq $v.monitor.kind "Deployment" -}}
{{- include "lifeboat.validateEvery" . -}}
{{- else if include "lifeboat.monitorRuns" . -}}
{{- include "lifeboat.validateBudget" . -}}
{{- include "lifeboat.validateSchedule" . -}}
{{- end -}}
{{- range $name := list "serviceMonitor" "prometheusRule" -}}
{{- if and (index $v.metrics $name).enabled (ne $v.monitor.kind "Deployment") -}}
{{- fail (printf "metrics.%s.enabled needs monitor.kind Deployment: a monitor of kind %s serves no metrics" $name $v.monitor.kind) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that select: another value, or a key that is there twice, would cut the members off from their Services and from Patroni. */}}
{{- define "lifeboat.validateLabels" -}}
{{- $v := .Values -}}
{{- $reserved := "^(application|cluster-name|role|app\\.kubernetes\\.io/(name|instance|component|managed-by|part-of|version)|helm\\.sh/chart)$" -}}
{{- range $place, $labels := dict
  "commonLabels" $v.commonLabels
  "patroni.podLabels" $v.patroni.podLabels
  "monitor.podLabels" $v.monitor.podLabels
  "witness.podLabels" $v.witness.podLabels
  "followHook.podLabels" $v.followHook.podLabels
  "metrics.serviceMonitor.labels" $v.metrics.serviceMonitor.labels
  "metrics.prometheusRule.labels" $v.metrics.prometheusRule.labels -}}
{{- range $key, $_ := $labels -}}
{{- if and (regexMatch $reserved $key) (or (regexMatch "[./]" $key) (not (hasPrefix "metrics." $place))) -}}
{{- fail (printf "%s must not hold %s: the chart or Patroni sets this label, and Services, network policies and Patroni select by such labels; choose another key" $place $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
The StatefulSet's name holds the site's. With the values of another site helm would delete the one that runs, and make another with
empty volumes. Without a cluster (helm template) nothing is found.
*/}}
{{- define "lifeboat.validateSite" -}}
{{- $own := ternary (include "lifeboat.statefulset" .) "" (not (empty (include "lifeboat.patroniRuns" .))) -}}
{{- $labels := dict "app.kubernetes.io/instance" (.Release.Name | trunc 63 | trimSuffix "-") "app.kubernetes.io/part-of" "lifeboat" "app.kubernetes.io/component" "patroni" -}}
{{- $namespace := .Release.Namespace -}}
{{- range (lookup "apps/v1" "StatefulSet" $namespace "").items -}}
{{- $name := .metadata.name -}}
{{- $found := .metadata.labels | default dict -}}
{{- $ours := true -}}
{{- range $key, $value := $labels -}}{{- if ne (get $found $key) $value -}}{{- $ours = false -}}{{- end -}}{{- end -}}
{{- if and $ours (ne $name $own) -}}
{{- fail (printf "this upgrade would delete the StatefulSet %s, which release %s runs in namespace %s; the values are those of site %s: check -f, --kube-context and -n. If it is meant: kubectl -n %s delete statefulset %s (its volumes stay), then upgrade" $name $.Release.Name $namespace $.Values.site.name $namespace $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A witness asks no API, so it discovers no port; and it is nothing but a witness. */}}
{{- define "lifeboat.validateWitness" -}}
{{- $v := .Values -}}
{{- if not (and $v.peer.host (int $v.peer.port)) -}}
{{- fail "site.role witness needs peer.host and peer.port: where the site that it watches is reached from its place, by a way of its own" -}}
{{- end -}}
{{- $w := $v.witness -}}
{{- $attempts := int64 $w.attempts -}}
{{- $longest := add (mul $attempts (include "lifeboat.milliseconds" $w.timeout | int64)) (mul (sub $attempts 1) (include "lifeboat.milliseconds" $w.interval | int64)) -}}
{{- if ge $longest 5000 -}}
{{- fail (printf "witness: an answer about a dead peer would take %d ms (attempts %d × timeout %s, and the pauses between them), and the monitor waits 5000 ms for it: lower witness.attempts, interval or timeout" $longest $attempts $w.timeout) -}}
{{- end -}}
{{- range $name := list "serviceMonitor" "prometheusRule" -}}
{{- if (index $v.metrics $name).enabled -}}
{{- fail (printf "metrics.%s.enabled does not go with site.role witness: a witness serves no metrics" $name) -}}
{{- end -}}
{{- end -}}
{{- if $v.tunnel.transportServerClaim.enabled -}}
{{- fail "tunnel.transportServerClaim.enabled does not go with site.role witness: nobody connects to a database there" -}}
{{- end -}}
{{- end -}}

{{/* One setting of Patroni for the peer and for the members: what cannot work within the site is refused. */}}
{{- define "lifeboat.validateTls" -}}
{{- $v := .Values -}}
{{- if $v.patroni.enabled -}}
{{- $strict := include "lifeboat.tlsIsDemanded" . -}}
{{- $own := $v.postgresql.tls.existingSecret -}}
{{- if and $strict (not $own) -}}
{{- fail (printf "peer.tls.mode %s needs postgresql.tls.existingSecret: Patroni has one setting for replication from the peer and between the members of this site, so this site's server needs TLS too" $v.peer.tls.mode) -}}
{{- end -}}
{{- if and (eq $v.peer.tls.mode "disable") $own (not $v.postgresql.pgHba) -}}
{{- fail "peer.tls.mode disable does not fit postgresql.tls.existingSecret: the members of this site would be refused by their own pg_hba.conf, which demands TLS" -}}
{{- end -}}
{{- if and $strict $v.postgresql.pgHba -}}
{{- $local := false -}}
{{- range $v.postgresql.pgHba -}}{{- if regexMatch "^local\\s+(\\S*,)?replication[,\\s]" . -}}{{- $local = true -}}{{- end -}}{{- end -}}
{{- if not $local -}}
{{- fail (printf "postgresql.pgHba needs a line such as `local replication all scram-sha-256`: with peer.tls.mode %s Patroni looks at its own server by the socket" $v.peer.tls.mode) -}}
{{- end -}}
{{- end -}}
{{- if and $v.patroni.tls.verifyClient (not $v.patroni.tls.existingSecret) -}}
{{- fail "patroni.tls.verifyClient needs patroni.tls.existingSecret: without TLS nobody shows a certificate" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Without a line for it nobody can stream: neither the peer nor the replicas. What an included file says is not known. */}}
{{- define "lifeboat.validateHba" -}}
{{- $lines := .Values.postgresql.pgHba -}}
{{- if and .Values.patroni.enabled $lines -}}
{{- $admits := false -}}
{{- range $lines -}}
{{- if regexMatch "^\\s*(host\\S*\\s+(\\S*,)?replication[,\\s]|host\\S*\\s+\\S*@|include)" . -}}{{- $admits = true -}}{{- end -}}
{{- end -}}
{{- if not $admits -}}
{{- fail (printf "postgresql.pgHba needs a line such as `%s replication all all scram-sha-256`: the database `all` does not include replication, so neither the peer nor the members of this site could stream" (ternary "hostssl" "host" (not (empty .Values.postgresql.tls.existingSecret)))) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* promote restarts its count after a gap of two periods: a round that takes longer than usual must not look like one. */}}
{{- define "lifeboat.validateEvery" -}}
{{- $m := .Values.monitor -}}
{{- $every := include "lifeboat.milliseconds" $m.every | int64 -}}
{{- if lt $every 1000 -}}
{{- fail (printf "monitor.every %s must be at least 1s" $m.every) -}}
{{- end -}}
{{- if ge (mul 2 $every) (include "lifeboat.milliseconds" $m.period | int64) -}}
{{- fail (printf "monitor.every %s must be less than half of monitor.period %s: a gap of more than two periods restarts the count of failures" $m.every $m.period) -}}
{{- end -}}
{{- end -}}

{{/*
What a run may take must fit its time limit, so that a promotion that is not verified is reported before the limit ends the run.
Patroni renews its lease once in a round, so promote watches for one round and a little; witnesses are asked meanwhile, and once
more right before the patch. follow begins with promote and waits by itself.
*/}}
{{- define "lifeboat.validateBudget" -}}
{{- $m := .Values.monitor -}}
{{- $attempts := int64 $m.attempts -}}
{{- $interval := include "lifeboat.seconds" $m.interval | int64 -}}
{{- $timeout := include "lifeboat.seconds" $m.timeout | int64 -}}
{{- $probe := mul $attempts (add $interval $timeout) -}}
{{- $lease := add (int64 .Values.patroni.loopWait) 5 -}}
{{- $witnesses := ternary 5 0 (not (empty $m.witnesses)) -}}
{{- $verify := include "lifeboat.seconds" $m.verifyTimeout | int64 -}}
{{- $total := add $probe $lease $witnesses $verify -}}
{{- if gt $total (int64 $m.activeDeadlineSeconds) -}}
{{- $parts := list
  (printf "%d s for the probe (attempts %d × (interval %d s + timeout %d s))" $probe $attempts $interval $timeout)
  (printf "%d s to watch the local lease (patroni.loopWait %d s + 5 s)" $lease (int64 .Values.patroni.loopWait)) -}}
{{- if $witnesses -}}{{- $parts = append $parts (printf "%d s to ask the witnesses once more" $witnesses) -}}{{- end -}}
{{- $parts = append $parts (printf "%d s for verifyTimeout" $verify) -}}
{{- fail (printf "monitor: a run may take %d s, more than activeDeadlineSeconds %d: %s. Lower monitor.attempts, interval, timeout or verifyTimeout, or raise monitor.activeDeadlineSeconds, which must stay below monitor.period" $total (int64 $m.activeDeadlineSeconds) (join ", " $parts)) -}}
{{- end -}}
{{- $follow := include "lifeboat.monitorFollowSeconds" . | int64 -}}
{{- if and $m.followPort (gt (add $probe $follow) (int64 $m.activeDeadlineSeconds)) -}}
{{- fail (printf "monitor: a run may take %d s, more than activeDeadlineSeconds %d: %d s for the probe (attempts %d × (interval %d s + timeout %d s)), %d s for replication to work at a corrected port. Lower monitor.attempts, interval or timeout, raise monitor.activeDeadlineSeconds, or set monitor.followPort: false" (add $probe $follow) (int64 $m.activeDeadlineSeconds) $probe $attempts $interval $timeout $follow) -}}
{{- end -}}
{{- end -}}

{{/*
The period must be what the schedule says: promote restarts its count after a gap of two periods. Only the plain forms of a
schedule are judged; another one may well be right. A step that does not divide the hour has a shorter gap at the hour's end.
*/}}
{{- define "lifeboat.validateSchedule" -}}
{{- $m := .Values.monitor -}}
{{- $gap := 0 -}}
{{- $shortest := 0 -}}
{{- if eq $m.schedule "* * * * *" -}}
{{- $gap = 60 -}}
{{- else if regexMatch "^\\*/[1-9][0-9]* \\* \\* \\* \\*$" $m.schedule -}}
{{- $step := min 60 (regexFind "[0-9]+" $m.schedule | atoi) -}}
{{- $gap = mul 60 $step -}}
{{- $shortest = mul 60 (mod 60 $step) -}}
{{- else if regexMatch "^[0-5]?[0-9] \\* \\* \\* \\*$" $m.schedule -}}
{{- $gap = 3600 -}}
{{- end -}}
{{- if $gap -}}
{{- $shortest = default $gap $shortest -}}
{{- if ne (include "lifeboat.seconds" $m.period | int64) (int64 $gap) -}}
{{- fail (printf "monitor.period %s does not fit monitor.schedule %q, which runs every %d s: set monitor.period to %ds, or change the schedule" $m.period $m.schedule $gap $gap) -}}
{{- end -}}
{{- if ge (int64 $m.activeDeadlineSeconds) (int64 $shortest) -}}
{{- fail (printf "monitor.activeDeadlineSeconds %d must be below the %d s between two runs of monitor.schedule %q, or the next run ends this one (concurrencyPolicy Replace)" (int64 $m.activeDeadlineSeconds) $shortest $m.schedule) -}}
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

{{/* A duration of the values (90s, 2m, 1h30m, 500ms) in milliseconds. */}}
{{- define "lifeboat.milliseconds" -}}
{{- $total := 0 -}}
{{- range regexFindAll "[0-9]+(ms|h|m|s)" . -1 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $total = add $total (mul (regexFind "^[0-9]+" . | atoi) (get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit)) -}}
{{- end -}}
{{- $total -}}
{{- end -}}

{{/* The same in seconds, rounded up. */}}
{{- define "lifeboat.seconds" -}}
{{- div (add (include "lifeboat.milliseconds" . | int64) 999) 1000 -}}
{{- end -}}

{{/* A size of the values (16MiB, 1GB, plain bytes) in bytes. */}}
{{- define "lifeboat.bytes" -}}
{{- $units := dict "" 1 "B" 1 "kB" 1000 "KB" 1000 "MB" 1000000 "GB" 1000000000 "KiB" 1024 "MiB" 1048576 "GiB" 1073741824 "TiB" 1099511627776 -}}
{{- mul (regexFind "^[0-9]+" . | atoi) (get $units (regexFind "[A-Za-z]*$" .)) -}}
{{- end -}}
