#!/bin/sh
# Makes the keys and signatures of test_ssh_signature.py with OpenSSH; run it in this folder.
# The private keys are thrown away, so all of them are made anew each time.
set -eu
keys=$(mktemp -d)
trap 'rm -rf "$keys"' EXIT
printf 'signed by ssh\n' > content

make() { # NAME TYPE BITS
  ssh-keygen -q -t "$2" ${3:+-b "$3"} -N '' -C "$1@example.com" -f "$keys/$1"
  cp "$keys/$1.pub" .
}
sign() { # KEY FILE OPTIONS...
  key=$1 file=$2
  shift 2
  ssh-keygen -q -Y sign -f "$keys/$key" "$@" < content > "$file.sig"
}

make ed25519 ed25519 ''
make rsa rsa 2048
make p256 ecdsa 256
make p384 ecdsa 384
make p521 ecdsa 521
make short rsa 1024
for name in ed25519 rsa p256 p384 p521 short; do
  sign $name $name -n git
done
sign ed25519 sha256 -n git -O hashalg=sha256
sign ed25519 file -n file
