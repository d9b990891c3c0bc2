# shellcheck shell=bash
# One single-node Kubernetes cluster: certificates, configuration, programs, and their end.
# Sourced after lib.sh and network.sh.

components=(etcd apiserver containerd controller-manager scheduler kubelet proxy dns)

dir_of() { printf '%s/%s' "$state" "$1"; }

# --- certificates ------------------------------------------------------------------------------

# certificate DIR NAME SUBJECT EXTENSION
certificate() {
  local pki=$1 name=$2
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$3" \
    -keyout "$pki/$name.key" -out "$pki/$name.csr" 2>/dev/null
  openssl x509 -req -in "$pki/$name.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial -days 3650 \
    -out "$pki/$name.crt" -extfile <(printf '%s\n' "$4") 2>/dev/null
  rm "$pki/$name.csr"
}

# authority SITE FILE KEY…: with a key usage, which Python 3.13 wants to see
authority() {
  openssl req -x509 "${@:3}" -nodes -days 3650 -subj "/CN=$1-ca" -addext keyUsage=critical,keyCertSign,cRLSign \
    -out "$2" 2>/dev/null
}

# renew_authority SITE PKI: where it is of a time when it had no key usage. All certificates stay, as the key does;
# the controller manager, which tells the pods of it, is started anew.
renew_authority() {
  ! openssl x509 -in "$2/ca.crt" -noout -ext keyUsage 2>/dev/null | grep -q Sign || return 0
  authority "$1" "$2/ca.crt.new" -key "$2/ca.key"
  mv "$2/ca.crt.new" "$2/ca.crt"
  end_process "$state/$1/pids/controller-manager"
}

make_certificates() {
  local site=$1 pki new ip
  pki=$(dir_of "$site")/pki
  if [[ -d $pki ]]; then
    renew_authority "$site" "$pki"
    return
  fi
  mkdir -p "${pki%/*}"
  new=$(mktemp -d "$pki.XXXXXX")
  ip=$(host_ip "$site")
  authority "$site" "$new/ca.crt" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout "$new/ca.key"
  certificate "$new" apiserver /CN=kube-apiserver "subjectAltName=IP:127.0.0.1,IP:$ip,IP:$(api_service_ip "$site"),\
DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
  certificate "$new" admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth
  certificate "$new" kubelet "/O=system:nodes/CN=system:node:$site" "subjectAltName=IP:$ip,DNS:$site"
  openssl genrsa -out "$new/service-accounts.key" 2048 2>/dev/null
  mv "$new" "$pki" # whole or not at all
}

# kubeconfig_of SITE…: one file with a context for each
kubeconfig_of() {
  local site pki
  local clusters='' users='' contexts=''
  for site; do
    pki=$(dir_of "$site")/pki
    clusters+="
- {name: $site, cluster: {server: 'https://$(host_ip "$site"):6443', certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}}"
    users+="
- {name: $site, user: {client-certificate-data: $(base64 -w0 "$pki/admin.crt"), client-key-data: $(base64 -w0 "$pki/admin.key")}}"
    contexts+="
- {name: $site, context: {cluster: $site, user: $site}}"
  done
  printf 'apiVersion: v1\nkind: Config\ncurrent-context: %s\nclusters:%s\nusers:%s\ncontexts:%s\n' \
    "$1" "$clusters" "$users" "$contexts"
}

# write_shared_kubeconfig: with the clusters that exist
write_shared_kubeconfig() {
  local site existing=()
  for site in "${sites[@]}"; do
    [[ ! -d $(dir_of "$site")/pki ]] || existing+=("$site")
  done
  if [[ ${#existing[@]} -eq 0 ]]; then
    rm -f "$kubeconfig"
  else
    (umask 077 && kubeconfig_of "${existing[@]}" >"$kubeconfig.new")
    mv "$kubeconfig.new" "$kubeconfig"
  fi
}

# --- configuration -----------------------------------------------------------------------------

containerd_config() {
  cat <<EOT
version = 2
root = "$1/containerd"
state = "$1/run"
[grpc]
  address = "$1/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  sandbox_image = "localhost/lifeboat-pause:dev"
  # All that must go with the power lies below one folder.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$1/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = false
EOT
}

# ptp, not bridge: all traffic of pods is routed, so Services work without the module br_netfilter.
cni_config() {
  cat <<EOT
{"cniVersion": "1.0.0", "name": "lifeboat", "plugins": [
  {"type": "ptp", "ipMasq": true, "ipam": {"type": "host-local", "dataDir": "$2/addresses",
    "ranges": [[{"subnet": "$(pod_range "$1")"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
EOT
}

# cgroupRoot of its own: with a shared one, each kubelet would end the other's pods.
kubelet_config() {
  cat <<EOT
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $2/pki/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /$prefix-$1
cgroupsPerQOS: true
enforceNodeAllocatable: []
failSwapOn: false
failCgroupV1: false
containerRuntimeEndpoint: unix://$2/containerd.sock
clusterDNS: ["$(dns_ip "$1")"]
clusterDomain: cluster.local
resolvConf: $2/resolv.conf
tlsCertFile: $2/pki/kubelet.crt
tlsPrivateKeyFile: $2/pki/kubelet.key
evictionHard: {nodefs.available: "1%", imagefs.available: "1%", memory.available: "50Mi"}
imageGCHighThresholdPercent: 100
oomScoreAdj: 0
podLogsDir: $2/podlogs
registerNode: true
EOT
}

# Names outside the cluster do not exist (NXDOMAIN): there is nobody to ask, and a failure
# (SERVFAIL) would look like a DNS server in trouble. A block of its own: where both are in one,
# CoreDNS asks `template` before `kubernetes`.
dns_config() {
  cat <<EOT
cluster.local:53 {
  bind $(host_ip "$1")
  errors
  ready 127.0.0.1:8181
  kubernetes cluster.local {
    kubeconfig $2/kubeconfig $1
    pods insecure
    ttl 5
  }
}
.:53 {
  bind $(host_ip "$1")
  template ANY ANY . {
    rcode NXDOMAIN
  }
}
EOT
}

write_configuration() {
  local site=$1 dir
  dir=$(dir_of "$site")
  mkdir -p "$dir"/{logs,pids,cni,podlogs,volumes}
  chmod 700 "$dir"
  (umask 077 && kubeconfig_of "$site" >"$dir/kubeconfig")
  containerd_config "$dir" >"$dir/containerd.toml"
  cni_config "$site" "$dir" >"$dir/cni/10-lifeboat.conflist"
  kubelet_config "$site" "$dir" >"$dir/kubelet.yaml"
  dns_config "$site" "$dir" >"$dir/Corefile"
  printf 'nameserver %s\n' "$(host_ip "$site")" >"$dir/resolv.conf"
}

# --- cgroups -----------------------------------------------------------------------------------

# cgroup_parents: where a folder of ours belongs; each controller in version 1, the one tree in 2
cgroup_parents() {
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    printf '/sys/fs/cgroup\n'
  else
    # Version 2 may be mounted beside, without controllers; runc makes folders there too.
    awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts
  fi
}

make_cgroups() {
  local parent
  while IFS= read -r parent; do
    mkdir -p "$parent/$prefix-$1"
    if [[ -e $parent/cgroup.controllers ]]; then
      for controller in cpu cpuset memory pids io; do
        printf '+%s' "$controller" >"$parent/cgroup.subtree_control" 2>/dev/null || true
      done
    elif [[ -e $parent/cpuset.cpus ]]; then # version 1: empty until filled, and then nothing starts
      cat "$parent/cpuset.cpus" >"$parent/$prefix-$1/cpuset.cpus"
      cat "$parent/cpuset.mems" >"$parent/$prefix-$1/cpuset.mems"
    fi
  done < <(cgroup_parents)
}

cgroup_pids() {
  local parent
  while IFS= read -r parent; do
    [[ ! -d $parent/$prefix-$1 ]] || find "$parent/$prefix-$1" -name cgroup.procs -exec cat {} + 2>/dev/null || true
  done < <(cgroup_parents)
}

remove_cgroups() {
  local parent
  while IFS= read -r parent; do
    [[ ! -d $parent/$prefix-$1 ]] || find "$parent/$prefix-$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
  done < <(cgroup_parents)
}

# --- programs ----------------------------------------------------------------------------------

# running SITE COMPONENT: alive, and in the namespace that the place has now
running() {
  local pid
  pid=$(live_pid "$state/$1/pids/$2") || return 1
  [[ /proc/$pid/ns/net -ef /run/netns/$(netns "$1") ]]
}

# start SITE COMPONENT CMD…: unless it runs
start() {
  local site=$1 component=$2
  shift 2
  running "$site" "$component" && return
  start_process "$state/$site/pids/$component" "$state/$site/logs/$component.log" \
    nsenter --net="/run/netns/$(netns "$site")" "$@"
}

start_etcd() {
  start "$1" etcd "$bin/etcd" --data-dir "$2/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380
}

start_apiserver() {
  start "$1" apiserver "$bin/kube-apiserver" --etcd-servers http://127.0.0.1:2379 \
    --advertise-address "$(host_ip "$1")" --bind-address 0.0.0.0 --service-cluster-ip-range "$(service_range "$1")" \
    --client-ca-file "$2/pki/ca.crt" --tls-cert-file "$2/pki/apiserver.crt" --tls-private-key-file "$2/pki/apiserver.key" \
    --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$2/pki/service-accounts.key" \
    --service-account-signing-key-file "$2/pki/service-accounts.key" --authorization-mode Node,RBAC --allow-privileged \
    --kubelet-client-certificate "$2/pki/admin.crt" --kubelet-client-key "$2/pki/admin.key" \
    --kubelet-preferred-address-types InternalIP --profiling=false
}

start_containerd() {
  start "$1" containerd containerd -c "$2/containerd.toml" --log-level warn
}

start_controller_manager() {
  start "$1" controller-manager "$bin/kube-controller-manager" --kubeconfig "$2/kubeconfig" --leader-elect=false \
    --authentication-kubeconfig "$2/kubeconfig" --authorization-kubeconfig "$2/kubeconfig" \
    --service-account-private-key-file "$2/pki/service-accounts.key" --root-ca-file "$2/pki/ca.crt" \
    --use-service-account-credentials --cluster-signing-cert-file "$2/pki/ca.crt" \
    --cluster-signing-key-file "$2/pki/ca.key" --profiling=false
}

start_scheduler() {
  start "$1" scheduler "$bin/kube-scheduler" --kubeconfig "$2/kubeconfig" --leader-elect=false \
    --authentication-kubeconfig "$2/kubeconfig" --authorization-kubeconfig "$2/kubeconfig" --profiling=false
}

start_kubelet() {
  start "$1" kubelet "$bin/kubelet" --config "$2/kubelet.yaml" --kubeconfig "$2/kubeconfig" --hostname-override "$1" \
    --root-dir "$2/kubelet" --cert-dir "$2/kubelet-pki" --node-ip "$(host_ip "$1")"
}

# The conntrack limits belong to the machine: 0 leaves them alone.
start_proxy() {
  start "$1" proxy "$bin/kube-proxy" --kubeconfig "$2/kubeconfig" --hostname-override "$1" --proxy-mode nftables \
    --cluster-cidr "$(pod_range "$1")" --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 \
    --conntrack-tcp-timeout-close-wait 0
}

start_dns() {
  start "$1" dns "$bin/coredns" -conf "$2/Corefile"
}

# --- the end -----------------------------------------------------------------------------------

# site_pids SITE: all processes of a site: those started, those in its namespace, those of its pods,
# and containerd's shims, which outlive both it and the namespace's name
site_pids() {
  local component
  for component in "${components[@]}"; do
    if live_pid "$state/$1/pids/$component"; then echo; fi
  done
  if has_netns "$(netns "$1")"; then ip netns pids "$(netns "$1")"; fi
  cgroup_pids "$1"
  pgrep -f -- "^/usr/bin/containerd-shim-runc-v2 .* -address $(dir_of "$1")/containerd\.sock" || true
}

kill_site_processes() {
  local pids
  mapfile -t pids < <(site_pids "$1" | sort -un)
  [[ ${#pids[@]} -gt 0 ]] || return 0
  kill -KILL "${pids[@]}" 2>/dev/null || true
  return 1 # asked again until none is left
}

mounts_below() { awk -v below="$1/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo; }

unmount_below() {
  local target
  while IFS= read -r target; do
    umount -l "$target" 2>/dev/null || true
  done < <(mounts_below "$1" | sort -r)
  [[ -z $(mounts_below "$1") ]]
}

# The sockets of containerd's shims lie in a folder shared with other containerds: only ours go.
remove_shim_sockets() {
  local address
  for address in "$1"/run/io.containerd.runtime.v2.task/*/*/address; do
    [[ -e $address ]] || continue
    address=$(<"$address")
    rm -f "${address#unix://}"
  done
}

# power_off SITE: every process at once, and what a reboot would clear; the disk stays
power_off() {
  local site=$1 dir
  dir=$(dir_of "$site")
  wait_for 20 kill_site_processes "$site" || die "processes of $site do not end: $(site_pids "$site" | tr '\n' ' ')"
  remove_shim_sockets "$dir"
  wait_for 10 unmount_below "$dir" || die "mounts below $dir do not go: see /proc/self/mountinfo"
  remove_cgroups "$site"
  rm -rf "$dir/run" "$dir/pids" "$dir/addresses" "$dir/containerd.sock" "$dir/containerd.sock.ttrpc"
}

# erase SITE: the disk too
erase() {
  find /var/log/containers -lname "$state/$1/*" -delete 2>/dev/null || true # the kubelet's links to logs
  remove_place "$1"
  rm -rf --one-file-system "$(dir_of "$1")"
}
