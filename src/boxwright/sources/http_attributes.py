"""What an http source asks for, and BuildKit's cache key of what it gets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.errors import InvalidInputError, UnimplementedError
from boxwright.sources.http_request import redacted

_HEADERS = ("Accept", "User-Agent")
_DEFAULT_NAME = "download"
_HTTP_DATE = re.compile(
    r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT"
    r"|\w+, \d\d-\w{3}-\d\d \d\d:\d\d:\d\d [A-Z]{3,4}"
    r"|\w{3} \w{3} [ \d]?\d \d\d:\d\d:\d\d \d{4}",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class HttpAttributes:
    """The attributes of an http source op (solver/pb attr.go); ``headers`` are sorted.

    ``signature`` and ``public_keys`` are armored OpenPGP; both or none are there.
    """

    url: str
    checksum: Digest | None = None
    filename: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    auth_secret: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    signature: bytes = b""
    public_keys: bytes = b""

    @classmethod
    def parse(cls, url: str, attrs: Mapping[str, str]) -> HttpAttributes:
        """Read the attributes.

        Headers that may not be set are ignored, as BuildKit does.

        Raises:
            InvalidInputError: one is malformed, or one of two is missing.
            UnimplementedError: one is not served.
        """
        try:
            _ = urlsplit(url).hostname
        except ValueError as exc:
            raise InvalidInputError(f'parse "{redacted(url)}"', detail=str(exc)) from exc
        plain = {
            name: value
            for name, value in attrs.items()
            if name.startswith("http.") and not name.startswith("http.header.")
        }
        checksum = plain.pop("http.checksum", "")
        found = cls(
            url,
            Digest(checksum) if checksum else None,
            plain.pop("http.filename", ""),
            parse_go_int("http.perm", plain.pop("http.perm", "0")),
            parse_go_int("http.uid", plain.pop("http.uid", "0")),
            parse_go_int("http.gid", plain.pop("http.gid", "0")),
            plain.pop("http.authheadersecret", ""),
            _headers(attrs),
            plain.pop("http.sig.signature", "").encode("utf-8", "surrogateescape"),
            plain.pop("http.sig.pubkey", "").encode("utf-8", "surrogateescape"),
        )
        if bool(found.signature) != bool(found.public_keys):
            raise InvalidInputError(
                "http signature verification requires both pubkey and signature"
            )
        if plain:
            raise UnimplementedError(f"attribute {min(plain)} of http sources")
        return found

    @property
    def request_digest(self) -> Digest:
        """What an answer may be used again for: everything that shapes the snapshot."""
        parts = [self.url, self.filename, self.mode, self.uid, self.gid]
        return Digest.of(gojson.encode([*parts, self.auth_secret, self.headers]))

    def cache_key(self, digest: Digest, filename: str, modified: datetime | None) -> str:
        """Return the digest of BuildKit's key structure."""
        fields: dict[str, object] = {
            "Filename": filename,
            "Perm": self.mode,
            "UID": self.uid,
            "GID": self.gid,
            "Checksum": str(digest),
        }
        if modified is not None:
            from email.utils import format_datetime

            fields["LastModTime"] = format_datetime(modified, usegmt=True)
        if self.auth_secret:
            fields["AuthHeaderSecret"] = self.auth_secret
        if self.headers:
            fields["Header"] = [{"Name": name, "Value": value} for name, value in self.headers]
        return str(Digest.of(gojson.encode(fields)))


def _headers(attrs: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    wanted = {
        name.removeprefix("http.header.").lower(): value
        for name, value in sorted(attrs.items())
        if name.startswith("http.header.")
    }
    return tuple((name, wanted[name.lower()]) for name in _HEADERS if name.lower() in wanted)


def parse_go_int(name: str, text: str) -> int:
    """Return a whole number as Go's ``ParseInt(text, 0, 64)`` reads it: ``0644`` is octal.

    Raises:
        InvalidInputError: it is none.
    """
    digits = text.removeprefix("-").removeprefix("+")
    is_octal = len(digits) > 1 and digits.startswith("0") and digits[1].isdecimal()
    try:
        if not text.isascii() or text != text.strip():
            raise ValueError(text)
        return int(text, 8 if is_octal else 0)
    except ValueError as exc:
        raise InvalidInputError(f"attribute {name} is no number", detail=repr(text[:50])) from exc


def parse_http_date(text: str) -> datetime | None:
    """Return the time of a header (RFC 9110, 5.6.7) in UTC; None if it is none.

    Only the three forms of the RFC count, as in Go: the parser for mail takes many more.
    """
    from email.utils import parsedate_to_datetime

    if not _HTTP_DATE.fullmatch(text):
        return None
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return found.astimezone(UTC)


def choose_filename(url: str, given: str, disposition: str = "") -> str:
    """Return the name that a download gets: the given one, the server's, or the URL's."""
    if given:
        return safe_filename(given)
    if disposition:
        from email.message import Message

        message = Message()
        message["Content-Disposition"] = disposition
        named = message.get_filename("")
        if named and not named.endswith("/"):
            return safe_filename(named)
    try:
        path = unquote(urlsplit(url).path).rstrip("/")
    except ValueError:
        path = ""
    return safe_filename(path)


def safe_filename(text: str) -> str:
    """Return the last part of a path as a plain name without control characters."""
    name = text.strip().rstrip("/").rpartition("/")[2]
    is_control = any(ord(char) < 0x20 or 0x7F <= ord(char) <= 0x9F for char in name)
    return _DEFAULT_NAME if name in {"", ".", ".."} or is_control else name
