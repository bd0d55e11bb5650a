#!/bin/sh
# Makes the keys and signatures of test_openpgp.py with GnuPG 2.2; run it in this folder.
# The private keys are thrown away, so all of them are made anew each time.
set -eu
GNUPGHOME=$(mktemp -d)
export GNUPGHOME
trap 'rm -rf "$GNUPGHOME"' EXIT
printf 'line one\nline two\n' > content

gpg() { # TIME ARGUMENTS...
  time=$1
  shift
  command gpg --batch --quiet --yes --no-tty --no-auto-check-trustdb --pinentry-mode loopback \
    --passphrase '' --faked-system-time "$time!" "$@"
}
make() { gpg 20240101T000000 --quick-gen-key "$1 <$1@example.com>" "$2" "$3" "$4"; }
sign() { # KEY FILE TIME [OPTIONS...]
  user=$1 file=$2 time=$3
  shift 3
  gpg "$time" "$@" --local-user "<$user@example.com>" --armor --output "$file.asc" \
    --detach-sign content
}
export_key() { gpg 20240201T000000 --armor --export "<$1@example.com>" > "$1.pub"; }
fingerprint() {
  gpg 20240201T000000 --list-keys --with-colons "<$1@example.com>" | awk -F: '/^fpr:/ {print $10; exit}'
}

make rsa rsa2048 sign never
make ed ed25519 sign never
make p256 nistp256 sign never
make p521 nistp521 sign never
make brain brainpoolP384r1 sign never
make weak rsa1024 sign never
make subkey rsa2048 cert never
gpg 20240101T000000 --quick-add-key "$(fingerprint subkey)" ed25519 sign never
for name in rsa ed p256 p521 brain weak subkey; do
  sign $name $name 20240102T000000
  export_key $name
done
sign rsa sha1 20240102T000000 --digest-algo SHA1
sign rsa sha512 20240102T000000 --digest-algo SHA512
sign rsa text 20240102T000000 --textmode
sign rsa late 20990101T000000
sign rsa short 20240102T000000 --default-sig-expire 1d
make expired ed25519 sign seconds=86400
sign expired expired 20240101T010000
export_key expired
make certonly ed25519 cert never
export_key certonly
make revoked ed25519 sign never
sign revoked revoked 20240102T000000
sed 's/^:---/---/' "$GNUPGHOME/openpgp-revocs.d/$(fingerprint revoked).rev" > "$GNUPGHOME/revoke"
gpg 20240301T000000 --import "$GNUPGHOME/revoke"
export_key revoked

make dsa dsa2048 sign never
sign dsa dsa 20240102T000000 --digest-algo SHA256
gpg 20240101T000000 --cert-digest-algo SHA1 --quick-gen-key 'sha1bound <sha1bound@example.com>' \
  rsa2048 sign never
sign sha1bound sha1bound 20240102T000000
for name in subexpired subrevoked; do make $name ed25519 cert never; done
gpg 20240101T000000 --quick-add-key "$(fingerprint subexpired)" ed25519 sign seconds=86400
gpg 20240101T000000 --quick-add-key "$(fingerprint subrevoked)" ed25519 sign never
for name in subexpired subrevoked; do sign $name $name 20240101T010000; done
printf 'key 1\nrevkey\ny\n2\n\ny\nsave\n' |
  gpg 20240301T000000 --no-batch --command-fd 0 --edit-key '<subrevoked@example.com>' 2> /dev/null
for name in dsa sha1bound subexpired subrevoked; do export_key $name; done
