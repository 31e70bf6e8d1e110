#!/bin/sh
# Prints a folder with etcd, kube-apiserver, kube-controller-manager, kubectl and helm.
#   build.sh published     prints a folder with the program `published` instead (see published/main.go)
#
# They come from KUBEBUILDER_ASSETS, as for envtest; what is not there, or all of it without that variable, is built once
# from Go modules into ${XDG_CACHE_HOME:-~/.cache}/horizon/kubernetes, in a folder named after a hash of their sources.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/horizon/kubernetes
all="etcd kube-apiserver kube-controller-manager kubectl helm"
what=${1:-kubernetes}
[ "$what" = kubernetes ] || here=$here/$what
stamp=$what-$(cat "$here"/go.mod "$here"/go.sum "$here"/*.go "$here"/*.txt 2>/dev/null | sha256sum | cut -c1-16)

missing=$all
assets=""
if [ "$what" = kubernetes ] && [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
    assets=$KUBEBUILDER_ASSETS missing=""
    [ -d "$assets" ] || { echo "kubernetes: KUBEBUILDER_ASSETS=$assets is no folder" >&2; exit 1; }
    for program in $all; do [ -x "$assets/$program" ] || missing="$missing $program"; done
    if [ -z "$missing" ]; then echo "$assets"; exit 0; fi
    stamp=$stamp-$(echo "$assets$missing" | sha256sum | cut -c1-8)
fi

folder=$cache/$stamp
if [ -e "$folder/complete" ]; then echo "$folder"; exit 0; fi

go=$("$(dirname "$0")/go.sh")
mkdir -p "$cache"
exec 9>"$cache/$stamp.lock"
flock 9
if [ -e "$folder/complete" ]; then echo "$folder"; exit 0; fi # built by another while this one waited

part=$(mktemp -d "$cache/.$stamp.XXXXXX")
trap 'rm -rf "$part"' EXIT
cd "$here"
version=$(sed -n 's/^\tk8s.io\/kubernetes v//p' go.mod)
x=k8s.io/component-base/version
flags="-s -w -X $x.gitVersion=v$version -X $x.gitMajor=${version%%.*} -X $x.gitMinor=$(echo "$version" | cut -d. -f2)"
flags="$flags -X k8s.io/client-go/pkg/version.gitVersion=v$version"
build() { CGO_ENABLED=0 "$go" build -buildvcs=false -trimpath -ldflags "$flags" -o "$@" >&2; }
if [ "$what" != kubernetes ]; then
    echo "$what: building it, once: about 2 minutes on 2 cores" >&2
    build "$part/$what" .
elif [ -z "$assets" ]; then
    echo "kubernetes: building Kubernetes $version, etcd and helm, once: about 5 minutes on 2 cores" >&2
    build "$part/kubernetes" .
    for program in $all; do ln -s kubernetes "$part/$program"; done
else
    echo "kubernetes: KUBEBUILDER_ASSETS lacks$missing: building that of Kubernetes $version, once: some minutes" >&2
    for program in $all; do
        case " $missing " in
        *" $program "*) case $program in
            etcd) build "$part/etcd" go.etcd.io/etcd/server/v3 ;;
            helm) build "$part/helm" helm.sh/helm/v4/cmd/helm ;;
            *) build "$part/$program" "k8s.io/kubernetes/cmd/$program" ;;
            esac ;;
        *) ln -s "$assets/$program" "$part/$program" ;;
        esac
    done
fi
chmod 755 "$part"
touch "$part/complete"
mv -T "$part" "$folder"
trap - EXIT
echo "$folder"
