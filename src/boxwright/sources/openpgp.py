"""Checks detached OpenPGP signatures against public keys that are given, and nothing else.

There is no keyring and no web of trust: who gives the keys trusts them. A key counts if it was
made for signing and is bound to its primary key as RFC 9580 wants it. The rules for what is too
weak are BuildKit's (util/pgpsign): SHA-2, RSA of 2048 bits or more, ECDSA or EdDSA.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from boxwright.core.dataclass import dataclass, field
from boxwright.sources.openpgp_packets import (
    ECDSA,
    EDDSA,
    PUBLIC_KEY,
    RSA,
    SIGNATURE,
    TAG_PUBLIC_KEY,
    TAG_PUBLIC_SUBKEY,
    TAG_SIGNATURE,
    TAG_USER_ATTRIBUTE,
    TAG_USER_ID,
    PgpKey,
    PgpSignature,
    SignatureError,
    dearmor,
    packets,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

_HASHES = {8: "sha256", 9: "sha384", 10: "sha512"}
_BINDING_HASHES = {**_HASHES, 2: "sha1", 11: "sha224"}
_BINARY, _TEXT = 0x00, 0x01
_CERTIFICATIONS = frozenset(range(0x10, 0x14))
_BINDING, _CROSS = 0x18, 0x19
_KEY_REVOCATION, _SUBKEY_REVOCATION, _ID_REVOCATION = 0x20, 0x28, 0x30
_MAY_SIGN = 0x02
_MIN_RSA_BITS = 2048
_CLOCK_SKEW_S = 300
_PIECE_BYTES = 1 << 20
_ED25519 = bytes.fromhex("2b06010401da470f01")
_CURVES = {
    bytes.fromhex("2a8648ce3d030107"): "SECP256R1",
    bytes.fromhex("2b81040022"): "SECP384R1",
    bytes.fromhex("2b81040023"): "SECP521R1",
    bytes.fromhex("2b8104000a"): "SECP256K1",
    bytes.fromhex("2b2403030208010107"): "BrainpoolP256R1",
    bytes.fromhex("2b240303020801010b"): "BrainpoolP384R1",
    bytes.fromhex("2b240303020801010d"): "BrainpoolP512R1",
}


@dataclass(slots=True)
class _Subkey:
    key: PgpKey
    binding: PgpSignature | None = None
    revocations: list[PgpSignature] = field(default_factory=list)


@dataclass(slots=True)
class _Identity:
    binding: PgpSignature | None = None
    is_revoked: bool = False


@dataclass(slots=True)
class PublicKey:
    """A primary key with what it says of itself; every signature in here has been checked."""

    primary: PgpKey
    identities: list[_Identity] = field(default_factory=list)
    subkeys: list[_Subkey] = field(default_factory=list)
    revocations: list[PgpSignature] = field(default_factory=list)

    @property
    def binding(self) -> PgpSignature | None:
        """The signature that says what the primary key is for: of the main identity."""
        found = [i.binding for i in self.identities if i.binding is not None and not i.is_revoked]
        return max(found, key=lambda s: (s.is_primary_id, s.created_s), default=None)

    def signers(self, key_id: bytes) -> Iterator[tuple[PgpKey, PgpSignature, _Subkey | None]]:
        """Yield the keys with an id that may sign, each with what binds it."""
        main = self.binding
        if main is None:
            return
        if self.primary.key_id == key_id and (main.flags or 0) & _MAY_SIGN:
            yield self.primary, main, None
        for subkey in self.subkeys:
            bound = subkey.binding
            if subkey.key.key_id == key_id and bound and (bound.flags or 0) & _MAY_SIGN:
                yield subkey.key, bound, subkey


def read_public_keys(data: bytes) -> list[PublicKey]:
    """Return the keys of one or more armored blocks; those that can't be used are left out.

    Raises:
        SignatureError: there is none.
    """
    try:
        blocks = dearmor(data, PUBLIC_KEY)
    except SignatureError as exc:
        raise SignatureError("failed to read armored public key", detail=str(exc)) from exc
    if not blocks:
        raise SignatureError("failed to read armored public key", detail="no armored data found")
    found: list[PublicKey] = []
    failure = SignatureError("no key in it")
    for block in blocks:
        for group in _grouped(block):
            try:
                found.append(_read_key(group))
            except SignatureError as exc:
                failure = exc
    if not found:
        raise SignatureError("failed to read armored public key", detail=str(failure))
    return found


def verify_detached(
    open_data: Callable[[], BinaryIO],
    signature: bytes,
    public_keys: bytes,
    *,
    reject_expired: bool = False,
) -> None:
    """Check an armored signature; blocks while the data is read.

    Args:
        open_data: Opens what was signed.
        signature: Armored; the first one in it whose key is given counts.
        public_keys: One or more armored blocks.
        reject_expired: Whether key and signature must hold today, not only when it was made.

    Raises:
        SignatureError: it is not a good signature of one of the keys.
    """
    signatures = _read_signatures(signature)
    keys = read_public_keys(public_keys)
    _check_strength(signatures[0])
    for made in signatures:
        if not made.issuer:
            raise SignatureError("OpenPGP signature does not say whose it is")
        found = [(key, *each) for key in keys for each in key.signers(made.issuer)]
        if not found:
            continue
        _check_strength(made)
        with open_data() as data:
            digest = _hash_stream(made, data)
        for key, signer, bound, subkey in found:
            if _is_good(signer, made, digest):
                _check_validity(key, signer, bound, subkey, made, reject_expired=reject_expired)
                return
        raise SignatureError(
            "invalid OpenPGP signature",
            detail=f"signature by {made.issuer.hex().upper()}: it does not fit the content",
        )
    issuer = signatures[0].issuer.hex().upper()
    raise SignatureError(
        "OpenPGP signature is by an unknown key",
        detail=f"signature by {issuer}; no key for signing with this id was given",
    )


def _read_signatures(armored: bytes) -> list[PgpSignature]:
    blocks = dearmor(armored, SIGNATURE)
    found = [
        PgpSignature.parse(body)
        for block in blocks[:1]
        for tag, body in packets(block)
        if tag == TAG_SIGNATURE
    ]
    if not found:
        raise SignatureError("no OpenPGP signature found")
    return found


def _grouped(block: bytes) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the packets of each primary key."""
    group: list[tuple[int, bytes]] = []
    for tag, body in packets(block):
        if tag == TAG_PUBLIC_KEY and group:
            yield group
            group = []
        group.append((tag, body))
    if group:
        yield group


def _read_key(group: Sequence[tuple[int, bytes]]) -> PublicKey:
    tag, body = group[0]
    if tag != TAG_PUBLIC_KEY:
        raise SignatureError("first OpenPGP packet is no public key")
    found = PublicKey(PgpKey.parse(body))
    place: _Identity | _Subkey | None = None
    signed = found.primary.framed
    for tag, body in group[1:]:
        if tag in {TAG_USER_ID, TAG_USER_ATTRIBUTE}:
            mark = b"\xb4" if tag == TAG_USER_ID else b"\xd1"
            signed = found.primary.framed + mark + len(body).to_bytes(4) + body
            place = _Identity()
            if tag == TAG_USER_ID:
                found.identities.append(place)
        elif tag == TAG_PUBLIC_SUBKEY:
            place = _Subkey(PgpKey.parse(body))
            signed = found.primary.framed + place.key.framed
            found.subkeys.append(place)
        elif tag == TAG_SIGNATURE:
            _attach(found, place, signed, body)
    if found.binding is None:
        raise SignatureError("OpenPGP key without a valid identity")
    return found


def _attach(key: PublicKey, place: _Identity | _Subkey | None, signed: bytes, body: bytes) -> None:
    """Take a signature of the primary key over itself, an identity or a subkey.

    Those of others, and bad ones, count as absent.
    """
    try:
        made = PgpSignature.parse(body)
    except SignatureError:
        return
    if made.critical_notations or not _is_own(key.primary, made, signed):
        return
    match place:
        case _Subkey():
            if made.kind == _SUBKEY_REVOCATION:
                place.revocations.append(made)
            elif made.kind == _BINDING and _is_cross_signed(place.key, made, signed):
                place.binding = _newer(place.binding, made)
        case _Identity():
            if made.kind == _ID_REVOCATION:
                place.is_revoked = True
            elif made.kind in _CERTIFICATIONS:
                place.binding = _newer(place.binding, made)
        case None:
            if made.kind == _KEY_REVOCATION:
                key.revocations.append(made)


def _newer(known: PgpSignature | None, made: PgpSignature) -> PgpSignature:
    return made if known is None or made.created_s > known.created_s else known


def _is_own(primary: PgpKey, made: PgpSignature, signed: bytes) -> bool:
    if made.hash_id not in _BINDING_HASHES or made.issuer not in {b"", primary.key_id}:
        return False
    digest = hashlib.new(_BINDING_HASHES[made.hash_id], signed + made.suffix).digest()
    return _is_good(primary, made, digest)


def _is_cross_signed(subkey: PgpKey, binding: PgpSignature, signed: bytes) -> bool:
    """Return whether a subkey that signs says itself that it belongs to the primary key."""
    if not (binding.flags or 0) & _MAY_SIGN:
        return True
    try:
        made = PgpSignature.parse(binding.embedded)
    except SignatureError:
        return False
    return made.kind == _CROSS and _is_own(subkey, made, signed)


def _hash_stream(made: PgpSignature, data: BinaryIO) -> bytes:
    hasher = hashlib.new(_HASHES[made.hash_id])
    if made.kind == _TEXT:  # line ends are CRLF, whatever they are in the file
        ends_in_cr = False
        while piece := data.read(_PIECE_BYTES):
            first = b"\n" if ends_in_cr and piece.startswith(b"\n") else b""
            ends_in_cr = piece.endswith(b"\r")
            text = piece[len(first) :].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            hasher.update(first + text)
    else:
        while piece := data.read(_PIECE_BYTES):
            hasher.update(piece)
    hasher.update(made.suffix)
    return hasher.digest()


def _check_strength(made: PgpSignature) -> None:
    if made.kind not in {_BINARY, _TEXT}:
        raise SignatureError("OpenPGP signature is not one over data", detail=f"type {made.kind}")
    if made.hash_id not in _HASHES:
        raise SignatureError(f"rejecting weak/unknown hash: {made.hash_id}")
    if made.algorithm not in RSA and made.algorithm not in {ECDSA, EDDSA}:
        raise SignatureError(f"rejecting unsupported pubkey algorithm: {made.algorithm}")
    if made.critical_notations:
        raise SignatureError(
            "OpenPGP signature has a critical notation that is not known",
            detail=", ".join(made.critical_notations),
        )


def _check_validity(
    key: PublicKey,
    signer: PgpKey,
    bound: PgpSignature,
    subkey: _Subkey | None,
    made: PgpSignature,
    *,
    reject_expired: bool,
) -> None:
    now_s = time.time()
    if made.created_s > now_s + _CLOCK_SKEW_S:
        raise SignatureError("signature creation time is in the future")
    for revocation in key.revocations:
        reason = revocation.revocation[1]
        raise SignatureError(f"key revoked: {reason}" if reason else "key revoked")
    for revocation in subkey.revocations if subkey is not None else ():
        if revocation.is_compromise or revocation.created_s <= made.created_s or reject_expired:
            raise SignatureError("key revoked", detail="the subkey that signed")
    moment_s = now_s if reject_expired else made.created_s
    main = key.binding
    for part, binding in ((key.primary, main), (signer, bound)):
        if binding is not None and _is_over(part.created_s, binding.key_expires_s, moment_s):
            raise SignatureError("key expired", detail=f"key {part.key_id.hex().upper()}")
    if _is_over(made.created_s, made.expires_s, moment_s):
        raise SignatureError("signature expired")
    if key.primary.algorithm in RSA and key.primary.numbers[0].bit_length() < _MIN_RSA_BITS:
        bits = key.primary.numbers[0].bit_length()
        raise SignatureError(f"RSA key too short: {bits} bits")


def _is_over(start_s: int, length_s: int, moment_s: float) -> bool:
    return length_s > 0 and moment_s > start_s + length_s


def _is_good(key: PgpKey, made: PgpSignature, digest: bytes) -> bool:
    """Return whether a key has made the signature over this digest."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    same = key.algorithm == made.algorithm or {key.algorithm, made.algorithm} <= RSA
    if not same or digest[:2] != made.tag:
        return False
    try:
        if key.algorithm in RSA:
            _verify_rsa(key, made, digest)
        elif key.algorithm == ECDSA:
            _verify_ecdsa(key, made, digest)
        elif key.algorithm == EDDSA:
            _verify_eddsa(key, made, digest)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, OverflowError):
        return False
    return True


def _verify_rsa(key: PgpKey, made: PgpSignature, digest: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

    modulus, exponent = key.numbers
    public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    signature = made.numbers[0].to_bytes((modulus.bit_length() + 7) // 8)
    hashed = utils.Prehashed(_algorithm(made))
    public.verify(signature, digest, padding.PKCS1v15(), hashed)


def _verify_ecdsa(key: PgpKey, made: PgpSignature, digest: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    name = _CURVES.get(key.curve)
    if name is None:
        raise ValueError("unknown curve")
    curve = getattr(ec, name)()
    point = _bytes_of(key.numbers[0])
    public = ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    signature = utils.encode_dss_signature(*made.numbers)
    public.verify(signature, digest, ec.ECDSA(utils.Prehashed(_algorithm(made))))


def _verify_eddsa(key: PgpKey, made: PgpSignature, digest: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    point = _bytes_of(key.numbers[0])
    if key.curve != _ED25519 or len(point) != 33 or point[0] != 0x40:
        raise ValueError("unknown curve")
    public = ed25519.Ed25519PublicKey.from_public_bytes(point[1:])
    public.verify(b"".join(number.to_bytes(32) for number in made.numbers), digest)


def _bytes_of(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)


def _algorithm(made: PgpSignature) -> HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    found: HashAlgorithm = getattr(hashes, _BINDING_HASHES[made.hash_id].upper())()
    return found
