# shellcheck shell=bash
# The network of the test clusters: namespaces on one router namespace. Sourced after lib.sh.
#
# The router is a namespace too, not the machine itself: so neither the machine's packet filter
# (Docker's drops what it does not know) nor its sysctls play a part, and ours hit nothing else.

router=$prefix-router

in_router() { nsenter --net="/run/netns/$router" "$@"; }

has_netns() { [[ -e /run/netns/$1 ]] && nsenter --net="/run/netns/$1" true 2>/dev/null; }

make_netns() {
  has_netns "$1" && return
  [[ ! -e /run/netns/$1 ]] || ip netns delete "$1"
  ip netns add "$1"
  nsenter --net="/run/netns/$1" ip link set lo up
  nsenter --net="/run/netns/$1" sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 \
    net.ipv4.conf.default.rp_filter=0
}

# Elements of the sets are pairs of interfaces of the router; `link` adds and removes them.
# The rule with `ct state` is there from the start, since the kernel tracks connections of a
# namespace only while a rule asks for it, and drop-new must know those from before.
# Pods are reached from this machine only: between real clusters, nobody routes pod addresses.
faults_table() {
  cat <<'NFT'
table inet lifeboat {
  set cut { type ifname . ifname; }
  set rejected { type ifname . ifname; }
  set drop_new { type ifname . ifname; }
  chain forward {
    type filter hook forward priority -10; policy accept;
    iifname . oifname @cut drop
    iifname . oifname @rejected meta l4proto tcp reject with tcp reset
    iifname . oifname @rejected reject
    ct state new iifname . oifname @drop_new drop
    ct state new iifname != "root" ip daddr @PODS@ reject with icmp net-unreachable
  }
}
NFT
}

make_router() {
  make_netns "$router"
  in_router nft list table inet lifeboat >/dev/null 2>&1 || faults_table | sed "s|@PODS@|$pod_net.0.0/16|" | in_router nft -f -
  if ! in_router ip -o link show root >/dev/null 2>&1; then
    ip link delete "$prefix-root" 2>/dev/null || true
    ip link add "$prefix-root" type veth peer name root netns "$router"
  fi
  in_router ip address replace "$host_net.0.2/24" dev root
  in_router ip link set root up
  ip address replace "$host_net.0.1/24" dev "$prefix-root"
  ip link set "$prefix-root" up
  ip route replace "$host_net.0.0/16" via "$host_net.0.2"
  ip route replace "$pod_net.0.0/16" via "$host_net.0.2"
}

# make_place PLACE: its namespace, and its cable to the router
make_place() {
  local place=$1
  make_netns "$(netns "$place")"
  if ! in_place "$place" ip -o link show eth0 >/dev/null 2>&1 ||
    ! in_router ip -o link show "$place" >/dev/null 2>&1; then
    in_router ip link delete "$place" 2>/dev/null || true
    in_place "$place" ip link delete eth0 2>/dev/null || true
    # The kernel ends the interfaces of a deleted namespace a moment later.
    wait_for 10 ip link add "eth0" netns "$(netns "$place")" type veth peer name "$place" netns "$router" ||
      die "no cable from $place to the router"
  fi
  in_router ip address replace "$(gateway_ip "$place")/24" dev "$place"
  in_router ip link set "$place" up
  in_place "$place" ip address replace "$(host_ip "$place")/24" dev eth0
  in_place "$place" ip link set eth0 up
  in_place "$place" ip route replace default via "$(gateway_ip "$place")"
  ! is_site "$place" || in_router ip route replace "$(pod_range "$place")" via "$(host_ip "$place")"
}

make_network() {
  make_router
  make_place third
  make_place "$1"
}

# remove_netns NAME: with all that still lives in it, which can only be ours
remove_netns() {
  [[ -e /run/netns/$1 ]] || return 0
  local pids
  pids=$(ip netns pids "$1" 2>/dev/null) || pids=
  # shellcheck disable=SC2086 # one word a pid
  [[ -z $pids ]] || kill -KILL $pids 2>/dev/null || true
  ip netns delete "$1"
}

remove_place() {
  if has_netns "$router"; then in_router ip link delete "$1" 2>/dev/null || true; fi
  remove_netns "$(netns "$1")"
}

remove_shared_network() {
  remove_place third
  remove_netns "$router"
  ip link delete "$prefix-root" 2>/dev/null || true
}
