"""OCI content descriptors (image-spec, descriptor.md)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a blob is, how large it is (bytes) and its digest; ``data`` is the blob itself."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str = ""
    data: bytes = b""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object in the field order that Go's encoder writes."""
        out: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.urls:
            out["urls"] = list(self.urls)
        if self.annotations:
            out["annotations"] = dict(sorted(self.annotations.items()))
        if self.data:
            out["data"] = base64.b64encode(self.data).decode("ascii")
        if self.platform is not None:
            out["platform"] = self.platform.to_json()
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        return out

    @classmethod
    def from_json(cls, data: object) -> Descriptor:
        """Read one descriptor object.

        Raises:
            InvalidInputError: a required field is missing or of the wrong type.
        """
        if not isinstance(data, dict):
            raise InvalidInputError("invalid descriptor", detail="not a JSON object")
        size = data.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidInputError("invalid descriptor", detail=f"size is {size!r}")
        platform = data.get("platform")
        try:
            embedded = base64.b64decode(str(data.get("data") or ""), validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidInputError("invalid descriptor", detail=f"data: {error}") from None
        return cls(
            media_type=str(data.get("mediaType") or ""),
            digest=Digest(str(data.get("digest") or "")),
            size=size,
            annotations={str(k): str(v) for k, v in (data.get("annotations") or {}).items()},
            platform=Platform.from_json(platform) if isinstance(platform, dict) else None,
            urls=tuple(str(u) for u in data.get("urls") or ()),
            artifact_type=str(data.get("artifactType") or ""),
            data=embedded,
        )
