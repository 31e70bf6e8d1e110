#!/bin/sh
# Says what this machine lacks, before anything is compiled; installs it when run as root on Debian or Ubuntu.
#   tests/setup.sh [build|lab|services|bench|fuzz]...   (HORIZON_SETUP=print never installs)
set -eu

missing=""       # packages of Debian and Ubuntu
trouble=""       # what no package mends

need() { # need PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 || PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 \
        || case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
}

build() {
    need cc gcc
    ! command -v cc >/dev/null 2>&1 || echo '#include <stdlib.h>' | cc -E - >/dev/null 2>&1 || missing="$missing libc6-dev"
    need make make
    if [ "$(uname -m)" = x86_64 ]; then # what .cargo/config.toml links with
        need clang clang
        need ld.lld lld
    fi
    if ! command -v cargo >/dev/null 2>&1; then
        trouble="$trouble
  cargo is missing: install the Rust toolchain with rustup (package rustup on Debian 13 and Ubuntu 24.04, then
  'rustup default stable'; elsewhere see https://rustup.rs). The version in rust-toolchain.toml follows by itself."
    fi
}

lab() {
    need ip iproute2
    need nft nftables
    need setpriv util-linux
    need swtpm swtpm # a TPM in software
    need dbus-daemon dbus-daemon
    need dbus-send dbus-bin
    need gnome-keyring-daemon gnome-keyring
    need hostname hostname
    if [ ! -e /dev/net/tun ]; then
        trouble="$trouble
  /dev/net/tun is missing: 'modprobe tun' as root; a container needs '--device /dev/net/tun --cap-add NET_ADMIN'."
    elif [ "$(id -u)" != 0 ] && { [ ! -r /dev/net/tun ] || [ ! -w /dev/net/tun ]; }; then
        trouble="$trouble
  this user may not open /dev/net/tun: run as root, or 'sudo chmod 0666 /dev/net/tun'."
    fi
    if [ "$(id -u)" != 0 ] && ! unshare --user --map-root-user --net --mount true 2>/dev/null; then
        trouble="$trouble
  this user may not make namespaces: run as root, or allow it with
  'sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0' (Ubuntu) or
  'sudo sysctl kernel.unprivileged_userns_clone=1' (older Debian)."
    elif [ "$(id -u)" = 0 ] && ! unshare --net --mount true 2>/dev/null; then
        trouble="$trouble
  root may not make namespaces here: a container needs '--privileged', or '--cap-add SYS_ADMIN --cap-add NET_ADMIN
  --security-opt seccomp=unconfined --security-opt apparmor=unconfined'."
    fi
}

services() { # what the tests start themselves; no daemon of the machine is used
    set -- /usr/lib/postgresql/*/bin/initdb
    [ -x "$1" ] || need initdb postgresql
    need redis-server redis-server
    need redis-sentinel redis-sentinel
    need redis-cli redis-tools
    need openssl openssl
    need softhsm2-util softhsm2 # a hardware security module in software
    set -- /usr/lib/*/faketime/libfaketimeMT.so.1
    [ -e "$1" ] || need libfaketimeMT.so.1 libfaketime
    need go golang-go # any from 1.19 on: it fetches the version that tests/kubernetes/go.mod names
    set -- /etc/ssl/certs/*.pem
    [ -e "$1" ] || need update-ca-certificates ca-certificates
}

bench() {
    need iperf3 iperf3
    command -v go >/dev/null 2>&1 \
        || echo "setup: no Go toolchain (1.24 or later): the figures will lack their wireguard-go baseline" >&2
}

fuzz() { need g++ g++; }

[ $# -gt 0 ] || set -- build lab
for part in "$@"; do "$part"; done

if [ -n "$missing" ]; then
    install="apt-get install -y --no-install-recommends$missing"
    if [ "$(id -u)" = 0 ] && [ "${HORIZON_SETUP:-}" != print ] && command -v apt-get >/dev/null 2>&1; then
        echo "setup: installing what is missing: $install"
        # Installing a package shall start no server on this machine, now or when it boots.
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
            trap 'rm -f "$policy"' EXIT
        fi
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive $install >/dev/null
        for daemon in $missing; do case $daemon in postgresql|redis-*)
            ! command -v systemctl >/dev/null 2>&1 || systemctl --quiet disable "$daemon" 2>/dev/null || true
        esac; done
    else
        trouble="$trouble
  packages are missing:  sudo $install"
    fi
fi
if [ -n "$trouble" ]; then
    echo "setup: this machine is not ready yet:$trouble" >&2
    exit 1
fi
