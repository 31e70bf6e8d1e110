#!/bin/bash
# A certificate authority, and certificates of it for Postgres and Redis; made once.
#   certificates.sh [FOLDER [OWNER [NAME...]]]     (an empty OWNER leaves the files with whoever runs this)
set -euo pipefail
folder=${1:-/certificates} owner=${2-999:999} # 999 is the user of both images
names=("${@:3}")
[ ${#names[@]} -gt 0 ] || names=(localhost postgres redis)
mkdir -p "$folder"
cd "$folder"
[ ! -e done ] || exit 0

# ECDSA with SHA-256: libpq's channel binding knows no digest for Ed25519.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 3650 -subj "/CN=Horizon databases" \
    -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.crt

called=IP:127.0.0.1,IP:::1
for name in "${names[@]}"; do called+=,DNS:$name; done
for server in postgres redis; do
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj "/CN=$server" -keyout $server.key -out $server.csr
    openssl x509 -req -in $server.csr -CA ca.crt -CAkey ca.key -days 3650 -out $server.crt \
        -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$called")
    rm $server.csr
done
# Nothing more is signed.
rm ca.key
# The names that redis.conf has.
cp redis.crt tls.crt
cp redis.key tls.key
chmod 0600 ./*.key
chmod 0644 ./*.crt
[ -z "$owner" ] || chown "$owner" ./*.key ./*.crt
touch done
