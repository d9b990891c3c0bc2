# shellcheck shell=bash
# The pool of volumes: `local` PersistentVolumes on folders. fsGroup applies to them, unlike to
# hostPath, so restricted pods can write. Sourced after lib.sh.

volume_count=24

# volume SITE NAME: the manifest, as one line of JSON
volume() {
  cat <<EOT
{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "$2", "labels": {"lifeboat-tests/pool": "true"}},
 "spec": {"capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
  "storageClassName": "local", "volumeMode": "Filesystem", "local": {"path": "$state/$1/volumes/$2"},
  "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions":
   [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["$1"]}]}]}}}}
EOT
}

# recycle_volumes SITE: volumes whose claim is gone are wiped and offered anew; missing ones are made
recycle_volumes() {
  local site=$1 name all used released=() missing=()
  all=$(kube "$site" get persistentvolumes -l lifeboat-tests/pool -o json |
    jq -r '.items[] | "\(.metadata.name) \(.status.phase)"')
  mapfile -t released < <(awk '$2 == "Released" || $2 == "Failed" { print $1 }' <<<"$all")
  [[ ${#released[@]} -eq 0 ]] || kube "$site" delete persistentvolumes --wait --timeout=30s "${released[@]}" >/dev/null
  used=$(awk '$2 != "Released" && $2 != "Failed" { print $1 }' <<<"$all")
  for name in $(seq -f 'volume-%02.0f' "$volume_count"); do
    grep -qx "$name" <<<"$used" && continue
    rm -rf --one-file-system "${state:?}/$site/volumes/$name"
    mkdir -p "$state/$site/volumes/$name"
    missing+=("$name")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  for name in "${missing[@]}"; do volume "$site" "$name"; done | kube "$site" create -f - >/dev/null
  say "$site: ${#missing[@]} volumes made, ${#released[@]} of them wiped"
}
