# shellcheck shell=bash
# What all scripts of the test clusters share: names, addresses, processes, waiting. Sourced.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${LIFEBOAT_CACHE:-$HOME/.cache/lifeboat}
bin=$cache/bin
# Several pairs can run side by side, each with names and addresses of its own: LIFEBOAT_PAIR=1 to 9.
pair=${LIFEBOAT_PAIR:-0}
state=$cache/clusters${LIFEBOAT_PAIR:+-$pair}
prefix=lb${LIFEBOAT_PAIR:-}
host_net=10.$((77 + pair)) pod_net=10.$((88 + pair)) service_net=10.$((99 + pair))
kubeconfig=$state/kubeconfig
sites=(gold golddr)
places=(gold golddr third)
# How long up waits for one condition, in seconds. Generous: a machine may be busy compiling.
limit=${LIFEBOAT_WAIT:-120}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "$*"
  exit 1
}

need_root() { [[ $EUID -eq 0 ]] || die 'run as root: it makes network namespaces, mounts and cgroups'; }

is_site() { [[ " ${sites[*]} " == *" $1 "* ]]; }

# --- addresses ---------------------------------------------------------------------------------
# Every place is a network namespace lb-PLACE; all of them hang on one router namespace, lb-router:
#   10.77.N.2 the place's host   10.88.N.0/24 its pods   10.99.N.0/24 its Services   (N: 1, 2, 3)
#   10.77.0.1 this machine, 10.77.0.2 the router
# (another pair counts up from there: lb1-PLACE, 10.78, 10.89, 10.100)

index() {
  case $1 in
    gold) echo 1 ;; golddr) echo 2 ;; third) echo 3 ;;
    *) die "no such place: $1 (there are: ${places[*]})" ;;
  esac
}
netns() { printf '%s-%s' "$prefix" "$1"; }
host_ip() { printf '%s.%s.2' "$host_net" "$(index "$1")"; }
gateway_ip() { printf '%s.%s.1' "$host_net" "$(index "$1")"; }
pod_range() { printf '%s.%s.0/24' "$pod_net" "$(index "$1")"; }
service_range() { printf '%s.%s.0/24' "$service_net" "$(index "$1")"; }
api_service_ip() { printf '%s.%s.1' "$service_net" "$(index "$1")"; }
dns_ip() { printf '%s.%s.10' "$service_net" "$(index "$1")"; }

# in_place PLACE CMD…: not `ip netns exec`, which replaces /sys and so hides the cgroups
in_place() {
  local place=$1
  shift
  nsenter --net="/run/netns/$(netns "$place")" "$@"
}

# The programs of the clusters never use a proxy of the machine's: everything is local.
kube() {
  local site=$1
  shift
  "$bin/kubectl" --kubeconfig "$state/$site/kubeconfig" --request-timeout=10s "$@"
}

# --- processes ---------------------------------------------------------------------------------
# A pid file holds the pid, its start time and the machine's boot id: a number alone may by now be
# somebody else's process.

start_time() { # the 22nd field, counted after the command, which may hold blanks
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  # shellcheck disable=SC2086 # one word a field
  set -- $stat
  [[ $1 != Z ]] || return 1
  printf '%s' "${20}"
}

write_pid() { printf '%s %s %s\n' "$2" "$(start_time "$2")" "$(</proc/sys/kernel/random/boot_id)" >"$1"; }

# live_pid FILE: prints the pid when it is still the process that was started
live_pid() {
  local pid began boot
  [[ -s $1 ]] && read -r pid began boot <"$1" || return 1
  [[ $boot == "$(</proc/sys/kernel/random/boot_id)" ]] || return 1
  [[ $(start_time "$pid") == "$began" ]] || return 1
  printf '%s' "$pid"
}

# end_process FILE: SIGTERM, then SIGKILL after five seconds
end_process() {
  local pid
  if pid=$(live_pid "$1"); then
    kill -TERM "$pid" 2>/dev/null || true
    wait_for 5 gone "$1" || kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$1"
}

gone() { ! live_pid "$1" >/dev/null; }

# start_process PIDFILE LOG CMD…: in a session of its own, holding none of our locks
start_process() {
  local pidfile=$1 log=$2
  shift 2
  setsid "$@" >"$log" 2>&1 </dev/null 7>&- 8>&- 9>&- &
  write_pid "$pidfile" $!
}

# --- waiting -----------------------------------------------------------------------------------

# wait_for SECONDS CMD…: until CMD succeeds
wait_for() {
  local until=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < until)) || return 1
    sleep 0.1 # the pace of asking, not a time to wait for
  done
}

# lock NAME: one up, down or kill at a time for a site (fd 9) or for the shared parts (fd 8)
lock() {
  mkdir -p "$state/locks"
  if [[ $1 == shared ]]; then
    exec 8>"$state/locks/shared"
    flock -w 300 8 || die 'another script holds the shared lock for five minutes'
  else
    exec 9>"$state/locks/$1"
    flock -w 300 9 || die "another script holds the lock of $1 for five minutes"
  fi
}
unlock_shared() { exec 8>&-; }

# names_or_all NAME…: the sites asked for, or both
names_or_all() {
  local name
  if [[ $# -eq 0 ]]; then
    printf '%s\n' "${sites[@]}"
    return
  fi
  for name; do
    is_site "$name" || die "no such cluster: $name (there are: ${sites[*]})"
    printf '%s\n' "$name"
  done
}
