"""Checks detached OpenPGP signatures against public keys that are given, and nothing else.

Sequoia PGP does it, by its standard policy; there is no keyring and no web of trust. It runs in a
process of its own with bounded memory: it would stop the engine while it hashes (it keeps the
interpreter's lock), and what it parses comes from strangers. BuildKit's util/pgpsign has the
rules that are added here.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.errors import BoxwrightError, Code

if TYPE_CHECKING:
    from pysequoia import Cert, Sig
    from pysequoia.packet import Packet

MAX_BYTES = 1 << 20
_MEMORY_BYTES = 512 << 20
_CLOCK_SKEW = timedelta(minutes=5)
_HASHES = frozenset({"SHA256", "SHA384", "SHA512"})
_ALGORITHMS = frozenset({"RSAEncryptSign", "RSASign", "ECDSA", "EdDSA", "Ed25519", "Ed448"})


class SignatureError(BoxwrightError):
    """A signature that is missing, malformed, or not by the key that was asked for."""

    code = Code.SIGNATURE


def verify_detached(
    data: bytes | Path, signature: bytes, public_keys: bytes, *, reject_expired: bool = False
) -> None:
    """Check a signature in a process of its own; blocks until that has ended.

    Args:
        data: What was signed, or the file that holds it.
        signature: Armored; the first one in it whose key is given counts.
        public_keys: One or more armored blocks.
        reject_expired: Whether the key must hold today, not only when the signature was made.

    Raises:
        SignatureError: it is not a good signature of one of the keys.
    """
    if max(len(signature), len(public_keys)) > MAX_BYTES:
        raise SignatureError("OpenPGP signature or public keys are too large")
    texts = [signature.decode("latin-1"), public_keys.decode("latin-1")]
    signed = [None, str(data)] if isinstance(data, Path) else [data.decode("latin-1"), None]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "boxwright.sources.openpgp"],
        input=json.dumps([*signed, *texts, reject_expired]).encode(),
        capture_output=True,
        check=False,
        env={**os.environ, "RUST_BACKTRACE": "0"},
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        lines = [line for line in said if not line.startswith("note: ")]  # on Rust's stacks
        detail = (lines or [f"its process ended with {done.returncode}"])[-1]
        raise SignatureError("OpenPGP signature could not be checked", detail=detail)
    if refused := json.loads(done.stdout):
        raise SignatureError(refused[0], detail=refused[1])


def check(
    data: bytes | Path, signature: bytes, public_keys: bytes, *, reject_expired: bool
) -> None:
    """Check a signature as `verify_detached` does, but in this process, and without limits."""
    from pysequoia import verify

    certs, signatures = _read_keys(public_keys), _read_signatures(signature)
    now = datetime.now(UTC)
    for made in signatures:
        _check_strength(made)
        found = next(((c, *k) for c in certs for k in _keys(c) if _is_by(made, k[0])), None)
        if found is None:
            continue
        cert, key, bindings = found
        _check_times(made, now)
        if cert.is_revoked:
            raise SignatureError("key revoked")
        source = {"file": data} if isinstance(data, Path) else {"bytes": data}
        try:
            verify(**source, store=lambda _ids, cert=cert: [cert], signature=made)
            expires = cert.expiration if reject_expired else None
        except RuntimeError as exc:
            raise SignatureError("invalid OpenPGP signature", detail=_why(cert, made)) from exc
        if reject_expired:
            _check_today(key, bindings, expires, now)
        return
    raise SignatureError(
        "OpenPGP signature is by an unknown key",
        detail=f"signature by {_issuer(signatures[0])}; no key with this id was given",
    )


def _read_keys(text: bytes) -> list[Cert]:
    from pysequoia import Cert

    try:
        found = Cert.split_bytes(text)
    except RuntimeError as exc:
        raise SignatureError("failed to read armored public key", detail=_cause(exc)) from exc
    if not found:
        raise SignatureError("failed to read armored public key", detail="no armored data found")
    merged: dict[str, Cert] = {}
    for cert in found:  # the same key twice: all that either says of it counts
        known = merged.get(cert.fingerprint)
        merged[cert.fingerprint] = cert if known is None else known.merge(cert)
    return list(merged.values())


def _read_signatures(text: bytes) -> list[Sig]:
    from pysequoia import Sig
    from pysequoia.packet import PacketPile, Tag

    try:
        packets = [packet for packet in PacketPile.from_bytes(text) if packet.tag == Tag.Signature]
        found = [Sig.from_bytes(bytes(packet)) for packet in packets]
    except RuntimeError as exc:
        raise SignatureError("failed to read armored signature", detail=_cause(exc)) from exc
    if not found:
        raise SignatureError("no OpenPGP signature found")
    return found


def _keys(cert: Cert) -> Iterator[tuple[Packet, Sequence[Packet]]]:
    """Yield primary key and subkeys, each with the signatures that follow it."""
    from pysequoia.packet import PacketPile, Tag

    found: list[tuple[Packet, list[Packet]]] = []
    for packet in PacketPile.from_bytes(bytes(cert)):
        if packet.key_id:
            found.append((packet, []))
        elif packet.tag == Tag.Signature and found:
            found[-1][1].append(packet)
    yield from found


def _issuer(made: Sig) -> str:
    return (made.issuer_key_id or made.issuer_fingerprint or "nobody").upper()


def _is_by(made: Sig, key: Packet) -> bool:
    if made.issuer_fingerprint:
        return made.issuer_fingerprint == key.fingerprint
    return made.issuer_key_id == key.key_id


def _check_strength(made: Sig) -> None:
    hash_name, algorithm = (
        str(each).rpartition(".")[2] for each in (made.hash_algorithm, made.key_algorithm)
    )
    if hash_name not in _HASHES:
        raise SignatureError(f"rejecting weak/unknown hash: {hash_name}")
    if algorithm not in _ALGORITHMS:
        raise SignatureError(f"rejecting unsupported pubkey algorithm: {algorithm}")


def _check_times(made: Sig, now: datetime) -> None:
    if made.created is not None and made.created > now + _CLOCK_SKEW:
        raise SignatureError("signature creation time is in the future")
    if made.expiration is not None and made.expiration < now:
        raise SignatureError("signature expired")


def _check_today(
    key: Packet, bindings: Sequence[Packet], expires: datetime | None, now: datetime
) -> None:
    """Check primary key and, if that has signed, subkey; the library asks about their past."""
    from pysequoia.packet import SignatureType, Tag

    ends = [expires]
    if key.tag == Tag.PublicSubkey:
        if any(each.signature_type == SignatureType.SubkeyRevocation for each in bindings):
            raise SignatureError("key revoked", detail="the subkey that signed")
        bound = [b for b in bindings if b.signature_type == SignatureType.SubkeyBinding]
        newest = max(bound, key=lambda each: each.signature_created or now)
        ends.append(newest.signature_expiration_time)
        if key.key_created is not None and newest.key_validity_period is not None:
            ends.append(key.key_created + newest.key_validity_period)
    if any(end is not None and end < now for end in ends):
        raise SignatureError("key expired", detail=f"key {key.key_id}")


def _why(cert: Cert, made: Sig) -> str:
    """Say why nothing was verified, if the library can tell: it is the key's fault."""
    why = "it does not fit the content"
    try:
        _ = cert.expiration
    except RuntimeError as exc:
        why = f"the key is refused: {_cause(exc)}"
    return f"signature by {_issuer(made)}: {why}"


def _cause(exc: RuntimeError) -> str:
    """Return the innermost cause in a text of the library, without its stack."""
    lines = str(exc).partition("\n\nStack backtrace:")[0].strip().splitlines()
    return (lines or ["it says nothing"])[-1].strip().removeprefix("1: ")


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    content, path, signature, public_keys, reject_expired = json.load(sys.stdin)
    data = Path(path) if path is not None else content.encode("latin-1")
    texts = signature.encode("latin-1"), public_keys.encode("latin-1")
    try:
        check(data, *texts, reject_expired=reject_expired)
    except SignatureError as exc:
        json.dump([exc.brief, exc.detail], sys.stdout)
    else:
        json.dump([], sys.stdout)


if __name__ == "__main__":
    _main()
