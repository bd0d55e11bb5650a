"""Checks SSH signatures (OpenSSH PROTOCOL.sshsig), as git makes them with ``gpg.format=ssh``."""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import re

from boxwright.core.dataclass import dataclass
from boxwright.sources.openpgp import MAX_BYTES, SignatureError

BEGIN = b"-----BEGIN SSH SIGNATURE-----"
_ARMOR = re.compile(
    rb"\A-----BEGIN SSH SIGNATURE-----\r?\n(.*?)-----END SSH SIGNATURE-----\s*\Z", re.DOTALL
)
_MAGIC = b"SSHSIG"
_NAMESPACE = b"git"
_HASHES = frozenset({b"sha256", b"sha512"})
_RSA_HASHES = {b"rsa-sha2-256": "SHA256", b"rsa-sha2-512": "SHA512"}
_CURVES = {
    b"nistp256": ("SECP256R1", "SHA256"),
    b"nistp384": ("SECP384R1", "SHA384"),
    b"nistp521": ("SECP521R1", "SHA512"),
}
_MIN_RSA_BITS = 2048


class _Strings:
    """Fields of SSH's wire format (RFC 4251, 5), read from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, count: int) -> bytes:
        if count > len(self._data):
            raise SignatureError("SSH data ends early")
        found, self._data = self._data[:count], self._data[count:]
        return found

    def number(self) -> int:
        return int.from_bytes(self.take(4))

    def string(self) -> bytes:
        return self.take(self.number())

    def mpint(self) -> int:
        return int.from_bytes(self.string(), signed=True)


@dataclass(frozen=True, slots=True)
class _SshSignature:
    """What a signature says of itself: the key in it, over which hash, and the bytes."""

    key: bytes
    hash_name: bytes
    blob: bytes

    @classmethod
    def parse(cls, armored: bytes) -> _SshSignature:
        match = _ARMOR.match(armored) if len(armored) <= MAX_BYTES else None
        if match is None:
            raise SignatureError("failed to decode ssh signature PEM block")
        try:
            data = base64.b64decode(b"".join(match[1].split()), validate=True)
        except binascii.Error as exc:
            raise SignatureError("SSH signature is not base64", detail=str(exc)) from exc
        fields = _Strings(data)
        if fields.take(len(_MAGIC)) != _MAGIC:
            raise SignatureError("not an SSH signature")
        version = fields.number()
        if version != 1:
            raise SignatureError(f"unsupported SSH signature version: {version}")
        key, namespace = fields.string(), fields.string()
        fields.string()  # reserved
        hash_name, blob = fields.string(), fields.string()
        if hash_name not in _HASHES:
            shown = hash_name[:40].decode("ascii", "replace")
            raise SignatureError(f"unsupported SSH signature hash algorithm: {shown}")
        if namespace != _NAMESPACE:
            raise SignatureError(f"unexpected SSH signature namespace: {namespace[:40]!r}")
        return cls(key, hash_name, blob)

    def signed(self, data: bytes) -> bytes:
        """Return what the key has signed."""
        digest = hashlib.new(self.hash_name.decode(), data).digest()
        parts = (_NAMESPACE, b"", self.hash_name, digest)
        return _MAGIC + b"".join(len(part).to_bytes(4) + part for part in parts)


def verify_ssh(data: bytes, signature: bytes, public_keys: bytes) -> None:
    """Check a signature of git's namespace.

    Args:
        data: What was signed.
        signature: Armored.
        public_keys: Lines as in ``authorized_keys``; one of them has to have signed.

    Raises:
        SignatureError: it is not a good signature of one of the keys.
    """
    made = _SshSignature.parse(signature)
    known = _authorized_keys(public_keys)
    if made.key not in known:
        raise SignatureError("failed to verify ssh signature", detail="public key does not match")
    _verify(made, made.signed(data))


def _authorized_keys(text: bytes) -> list[bytes]:
    """Return the keys of all lines; options before a key and comments after it are skipped."""
    found = []
    for line in text[:MAX_BYTES].splitlines():
        words = line.split()
        for kind, encoded in itertools.pairwise(words):
            try:
                blob = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                continue
            if blob.startswith(len(kind).to_bytes(4) + kind):
                found.append(blob)
                break
    if not found:
        raise SignatureError(
            "failed to parse ssh public key", detail="no key as in authorized_keys was given"
        )
    return found


def _verify(made: _SshSignature, signed: bytes) -> None:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    key, blob = _Strings(made.key), _Strings(made.blob)
    kind, algorithm, signature = key.string(), blob.string(), blob.string()
    try:
        match kind:
            case b"ssh-ed25519" if algorithm == kind:
                _verify_ed25519(key.string(), signature, signed)
            case b"sk-ssh-ed25519@openssh.com" if algorithm == kind:
                point, application = key.string(), key.string()
                _verify_ed25519(point, signature, _token(application, blob, signed))
            case b"ssh-rsa" if algorithm in _RSA_HASHES:
                exponent, modulus = key.mpint(), key.mpint()
                _verify_rsa(exponent, modulus, signature, signed, _RSA_HASHES[algorithm])
            case _ if kind.startswith(b"ecdsa-sha2-") and algorithm == kind:
                _verify_ecdsa(key.string(), key.string(), signature, signed)
            case b"sk-ecdsa-sha2-nistp256@openssh.com" if algorithm == kind:
                curve, point, application = key.string(), key.string(), key.string()
                _verify_ecdsa(curve, point, signature, _token(application, blob, signed))
            case _:
                shown = b" by ".join((algorithm[:40], kind[:40])).decode("ascii", "replace")
                raise SignatureError("unsupported SSH signature", detail=shown)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as exc:
        raise SignatureError(
            "failed to verify ssh signature", detail="it does not fit the content"
        ) from exc


def _token(application: bytes, blob: _Strings, signed: bytes) -> bytes:
    """Return what a hardware token has signed (OpenSSH PROTOCOL.u2f)."""
    head = hashlib.sha256(application).digest()
    return head + blob.take(5) + hashlib.sha256(signed).digest()


def _verify_ed25519(point: bytes, signature: bytes, signed: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    ed25519.Ed25519PublicKey.from_public_bytes(point).verify(signature, signed)


def _verify_rsa(
    exponent: int, modulus: int, signature: bytes, signed: bytes, hash_name: str
) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    if modulus.bit_length() < _MIN_RSA_BITS:
        raise SignatureError(f"RSA key too short: {modulus.bit_length()} bits")
    public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    length = (modulus.bit_length() + 7) // 8
    algorithm: hashes.HashAlgorithm = getattr(hashes, hash_name)()
    public.verify(signature.rjust(length, b"\0"), signed, padding.PKCS1v15(), algorithm)


def _verify_ecdsa(curve: bytes, point: bytes, signature: bytes, signed: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    if curve not in _CURVES:
        raise ValueError("unknown curve")
    curve_name, hash_name = _CURVES[curve]
    public = ec.EllipticCurvePublicKey.from_encoded_point(getattr(ec, curve_name)(), point)
    numbers = _Strings(signature)
    encoded = utils.encode_dss_signature(numbers.mpint(), numbers.mpint())
    algorithm: hashes.HashAlgorithm = getattr(hashes, hash_name)()
    public.verify(encoded, signed, ec.ECDSA(algorithm))
