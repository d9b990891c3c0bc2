{{/*
The alerts of this site, as a JSON object with the list `rules`. Where this site has no steps (an active one), what they find is not
known. A value that is not known is absent or NaN, and NaN compares as false: where that must alarm, the fresh values are sought.
*/}}
{{- define "lifeboat.rules" -}}
{{- $v := .Values -}}
{{- $site := $v.site.name -}}
{{- $peer := $v.peer.name -}}
{{- $own := include "lifeboat.seriesSelector" . -}}
{{- $notPromoted := printf "and ignoring (phase) lifeboat_phase{%s,phase=\"promoted\"} == 0" $own -}}
{{- $every := div (add (include "lifeboat.milliseconds" $v.monitor.every | int64) 999) 1000 -}}
{{- $late := max 120 (mul 4 $every) -}}
{{- $rules := list (dict
  "alert" "LifeboatMonitorAbsent" "for" "5m" "severity" "critical" "page" "README.md"
  "expr" (printf "absent(time() - lifeboat_last_round_timestamp_seconds{%s} < %d)" $own $late)
  "summary" (printf "The monitor of site %s does not run: no round of it has ended for more than 5 minutes." $site)) -}}
{{- if eq $v.site.role "standby" -}}
{{- $rules = concat $rules (list
  (dict "alert" "LifeboatPeerUnreachable" "for" "1m" "severity" "critical" "page" "PeerUnreachable.md"
    "expr" (printf "lifeboat_peer_failures{%s} > 0 %s" $own $notPromoted)
    "summary" (printf "Site %s does not reach its peer %s." $site $peer))
  (dict "alert" "LifeboatLagHigh" "for" "5m" "severity" "warning" "page" "PromotionRefused.md"
    "expr" (printf "lifeboat_peer_lag_bytes{%s} > %d %s" $own (include "lifeboat.bytes" $v.monitor.maxLag | int64) $notPromoted)
    "summary" (printf "Site %s is more than %s of WAL behind its peer %s: a promotion would be refused." $site $v.monitor.maxLag $peer))
  (dict "alert" "LifeboatLastGoodProbeOld" "for" "1m" "severity" "warning" "page" "ProbeBlind.md"
    "expr" (printf "lifeboat_phase{%s,phase=\"watching\"} == 1 unless ignoring (phase) time() - lifeboat_last_good_probe_timestamp_seconds{%s} < 300" $own $own)
    "summary" (printf "The monitor of site %s has learned nothing of its peer %s for more than 5 minutes." $site $peer))
  (dict "alert" "LifeboatAwaitingApproval" "for" "0s" "severity" "critical" "page" "AwaitingApproval.md"
    "expr" (printf "lifeboat_phase{%s,phase=\"awaiting-approval\"} == 1" $own)
    "summary" (printf "Peer %s is gone, and site %s could lead: a person must decide." $peer $site))
  (dict "alert" "LifeboatPromoting" "for" "5m" "severity" "critical" "page" "PromotionNotVerified.md"
    "expr" (printf "lifeboat_phase{%s,phase=\"promoting\"} == 1" $own)
    "summary" (printf "Site %s was to be promoted, but has not been seen to accept a write for 5 minutes." $site))
  (dict "alert" "LifeboatHeld" "for" "24h" "severity" "info" "page" "README.md"
    "expr" (printf "lifeboat_held{%s} == 1" $own)
    "summary" (printf "The promotion of site %s has been held for a day." $site))
  (dict "alert" "LifeboatMonitorWithoutLease" "for" "5m" "severity" "critical" "page" "ProbeBlind.md"
    "expr" (printf "max(lifeboat_monitor_leader{%s}) == 0" $own)
    "summary" (printf "The monitor of site %s has no Lease: nobody watches its peer %s." $site $peer))) -}}
{{- end -}}
{{- if $v.metrics.prometheusRule.splitBrain.enabled -}}
{{- $rules = append $rules (dict
  "alert" "LifeboatSplitBrain" "for" "1m" "severity" "critical" "page" "SplitBrain.md" "pair" true
  "expr" (printf "sum by (%s) (lifeboat_primary) > 1" (join ", " $v.metrics.prometheusRule.splitBrain.by))
  "summary" "Both sites lead: the writes of one of them will be lost.") -}}
{{- end -}}
{{- dict "rules" $rules | toJson -}}
{{- end -}}

{{/* The series of this release, and of this site where its own ServiceMonitor names it. */}}
{{- define "lifeboat.seriesSelector" -}}
{{- printf "namespace=%q,job=%q" .Release.Namespace (printf "%s-monitor" (include "lifeboat.fullname" .)) -}}
{{- if .Values.metrics.serviceMonitor.enabled -}}{{- printf ",site=%q" .Values.site.name -}}{{- end -}}
{{- end -}}
