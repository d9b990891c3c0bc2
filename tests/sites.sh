# shellcheck shell=bash
# The two sites in $namespace, asked by kubectl and psql: what tests/demo and benches/failovers share. Sourced after
# tests/clusters/lib.sh; the caller sets namespace. With GOLD_CONTEXT and GOLDDR_CONTEXT they are on clusters of your own.
# shellcheck disable=SC2154 # lib.sh and the caller set what is used here

node_ports=() # of gold and golddr

own_clusters() { [[ -n ${GOLD_CONTEXT:-}${GOLDDR_CONTEXT:-} ]]; }

# clusters SCRIPT ARGUMENTS…: a script of tests/clusters, or what clusters of your own have in its place
clusters() { if own_clusters; then "$here/../own-clusters" "$@"; else "$here/$1" "${@:2}"; fi; }

# alone: while this program runs, neither the suite nor another demo or measurement works on the same pair: it would mend the links
# that this one cuts (fd 7; tests/e2e holds the same lock). What this program starts is not another one.
alone() {
  [[ -z ${LIFEBOAT_ALONE:-} ]] && ! own_clusters || return 0
  export LIFEBOAT_ALONE=1
  mkdir -p "$state/locks"
  exec 7>"$state/locks/e2e"
  flock -n 7 && return
  say 'another program works on these clusters; waiting for its end'
  flock 7
}

on() { # SITE KUBECTL-ARGUMENTS…
  local site=$1
  shift
  kubectl --context "$site" -n "$namespace" --request-timeout=10s "$@"
}

password() { on gold get secret lifeboat-auth -o jsonpath="{.data.$1-password}" | base64 -d; }

# find_port SITE: the node port by which this machine comes to the site's primary
find_port() {
  own_clusters && return
  node_ports[$(index "$1")]=$(on "$1" get service "lifeboat-primary-$1" -o jsonpath='{.spec.ports[0].nodePort}') &&
    [[ -n ${node_ports[$(index "$1")]} ]]
}

# connect_to SITE: sets the command that opens a session of the application on a site's primary. On clusters of your own it runs in the
# primary's pod, as nobody knows how this machine could reach its port.
connect_to() {
  local options=(-qAtX -v ON_ERROR_STOP=1 -U app -d app)
  if own_clusters; then
    # shellcheck disable=SC2016 # the variable is the pod's
    connection=(kubectl --context "$1" -n "$namespace" exec -i service/lifeboat-primary -c patroni --
      sh -c 'PGPASSWORD=$LIFEBOAT_APP_PASSWORD exec psql "$@"' psql -h /tmp "${options[@]}")
  else
    connection=(psql -h "$(host_ip "$1")" -p "${node_ports[$(index "$1")]}" "${options[@]}")
  fi
}

# session SITE PSQL-ARGUMENTS…
session() {
  local connection
  connect_to "$1"
  "${connection[@]}" "${@:2}"
}

record() { on golddr get configmap lifeboat-dr -o jsonpath='{.data.state\.json}'; }
holds() { [[ $(jq "$2" <<<"$1") == true ]]; } # JSON CONDITION
saw_good_probe() { holds "$(record)" '.phase == "watching" and .failures == 0 and .last_good.local_lsn != null'; }

# The standby is a copy, so it has the same passwords.
copy_secret() {
  on gold get secret lifeboat-auth -o json |
    jq '{apiVersion, kind, metadata: {name: .metadata.name}, data}' | on golddr apply -f - >/dev/null
}

# make_namespace SITE: one that takes only pods under the restricted standard
make_namespace() {
  { if own_clusters; then clusters claim "$namespace"; else kubectl --context "$1" create namespace "$namespace" >/dev/null; fi; } &&
    kubectl --context "$1" label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted >/dev/null
}

# start_witness PIDFILE LOG ADDRESS: at the third place, looks at Gold by a way of its own
start_witness() {
  PGUSER=replicator PGPASSWORD=$(password replication) start_process "$1" "$2" \
    "$here/enter" third "$binary" witness --listen "$3" --peer "$(host_ip gold):${node_ports[1]}"
}
# witness_sees ADDRESS VERDICT
witness_sees() { [[ $(curl -sf --noproxy '*' -m 15 "http://$1/v1/peer" | jq -r .verdict) == "$2" ]]; }

# --- time ---------------------------------------------------------------------------------------

now() { printf '%s' "$((${EPOCHREALTIME/[.,]/} / 1000))"; } # milliseconds
milliseconds() { date -d "$1" +%s%3N; }
