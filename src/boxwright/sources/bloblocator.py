"""Where a single blob is: in a registry's repository or in a client's OCI layout."""

from __future__ import annotations

from collections.abc import Mapping

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.errors import InvalidInputError

REGISTRY_SCHEME = "docker-image+blob"
LAYOUT_SCHEME = "oci-layout+blob"
BLOB_SCHEMES = frozenset((REGISTRY_SCHEME, LAYOUT_SCHEME))
_SESSION_ATTR = "oci.session"
_STORE_ATTR = "oci.store"


@dataclass(frozen=True, slots=True)
class BlobLocator:
    """Where a blob is.

    Attributes:
        scheme: One of the two.
        ref: Repository and digest; of a layout the name says nothing.
        digest: Of the blob, SHA-256.
        store_id: The client's name of the layout.
        session_id: The client to ask, if one is named.
    """

    scheme: str
    ref: Reference
    digest: Digest
    store_id: str = ""
    session_id: str = ""

    @classmethod
    def parse(cls, scheme: str, body: str, attrs: Mapping[str, str]) -> BlobLocator:
        """Read ``<scheme>://<body>``.

        Raises:
            InvalidInputError: it is malformed, or has no SHA-256 digest.
        """
        ref = Reference.parse(body)
        if ref.digest is None or ref.digest.algorithm != "sha256":
            raise InvalidInputError(
                "a blob is named by its SHA-256 digest", detail=f"{scheme}://{body[:200]}"
            )
        is_layout = scheme == LAYOUT_SCHEME
        return cls(
            scheme,
            ref,
            ref.digest,
            attrs.get(_STORE_ATTR, "") if is_layout else "",
            attrs.get(_SESSION_ATTR, "") if is_layout else "",
        )

    @classmethod
    def parse_bundle(cls, text: str, attrs: Mapping[str, str]) -> BlobLocator:
        """Read the attribute ``git.bundle``; a layout's name is the store unless one is given.

        Raises:
            InvalidInputError: it is malformed, or of another scheme.
        """
        scheme, separator, body = text.partition("://")
        if not separator or scheme not in BLOB_SCHEMES:
            raise InvalidInputError(
                f"git.bundle locator scheme {scheme!r} is not supported",
                detail=f"{text[:200]!r}; expected {REGISTRY_SCHEME} or {LAYOUT_SCHEME}",
            )
        named = {_STORE_ATTR: body.rpartition("@")[0], **attrs}
        return cls.parse(scheme, body, named)

    def __str__(self) -> str:
        """Return the locator as it is written."""
        return f"{self.scheme}://{self.ref}"
