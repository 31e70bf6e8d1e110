#!/bin/sh
# Prints the path of a Go toolchain that builds go.mod's modules, or says what to do and fails.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
wanted=$(sed -n 's/^go //p' "$here/go.mod")
advice="install Go 1.21 or later (Debian 13, Ubuntu 24.04: package golang-go; Debian 12: package golang-go, or from
  bookworm-backports; elsewhere see https://go.dev/doc/install). It fetches Go $wanted by itself, through GOPROXY."

command -v go >/dev/null 2>&1 || { echo "kubernetes: there is no Go toolchain: $advice" >&2; exit 1; }
cd "$here"
have=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | sed 's/^go//; s/[^0-9.].*//')
newer() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | tail -1)" = "$1" ]; }

if newer "$have" "$wanted"; then
    command -v go
elif newer "$have" 1.21; then
    # From 1.21 on, Go fetches the toolchain that go.mod asks for.
    export GOTOOLCHAIN=auto
    root=$(go env GOROOT) || { echo "kubernetes: Go $have cannot fetch Go $wanted: check GOPROXY and the network" >&2; exit 1; }
    echo "$root/bin/go"
else
    # Before, the same module can be fetched as any other; only its programs are not marked as such.
    system=$(go env GOOS)-$(go env GOARCH)
    root=${XDG_CACHE_HOME:-$HOME/.cache}/horizon/go/$wanted
    if [ ! -x "$root/bin/go" ]; then
        echo "kubernetes: fetching Go $wanted with Go $have" >&2
        cd /
        from=$(GOFLAGS=-modcacherw go mod download -json "golang.org/toolchain@v0.0.1-go$wanted.$system" \
            | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
        [ -n "$from" ] || { echo "kubernetes: Go $have cannot fetch Go $wanted: $advice" >&2; exit 1; }
        mkdir -p "$(dirname "$root")"
        part=$(mktemp -d "$root.XXXXXX")
        cp -r "$from/." "$part"
        find "$part/bin" "$part/pkg/tool" -type f -exec chmod 755 {} +
        chmod 755 "$part"
        mv -T "$part" "$root" 2>/dev/null || rm -rf "$part"
    fi
    echo "$root/bin/go"
fi
