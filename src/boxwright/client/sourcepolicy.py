"""Source policy files: JSON as BuildKit's clients read it (``sourcepolicy.Policy``)."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError

from boxwright.errors import InvalidInputError, NotFoundError
from boxwright.wire.pb import sourcepolicy_pb2

VARIABLE = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY"
"""The environment variable that names the file, as for ``buildx``."""


def read_policy(path: str | Path) -> sourcepolicy_pb2.Policy:
    """Return the policy in a file: JSON, or the encoded message.

    Raises:
        NotFoundError: the file can't be read.
        InvalidInputError: it is no policy.
    """
    from google.protobuf import json_format

    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        raise NotFoundError(
            f"cannot read source policy {path}", detail=exc.strerror or ""
        ) from exc
    policy = sourcepolicy_pb2.Policy()
    try:
        return json_format.Parse(data, policy)
    except (json_format.ParseError, UnicodeDecodeError) as exc:
        reason = str(exc)
    if not data.lstrip().startswith(b"{"):
        try:
            return sourcepolicy_pb2.Policy.FromString(data)
        except DecodeError:
            pass
    raise InvalidInputError(
        f"{path} is not a source policy",
        detail=reason,
        hint='it looks like {"rules": [{"action": "DENY", "selector": {"identifier": "…"}}]}',
    )
