"""Names and attributes that mark deletions in layers (OCI image-spec, layer.md, "Whiteouts")."""

from __future__ import annotations

from typing import Final

from boxwright.errors import BoxwrightError, Code

PREFIX: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
OVERLAY_OPAQUE_VALUE: Final = b"y"


class WhiteoutError(BoxwrightError):
    """A whiteout whose name would reach outside its own folder."""

    code = Code.HOSTILE_INPUT

    def __init__(self, name: bytes) -> None:
        super().__init__(
            "invalid whiteout in a layer",
            detail=name[:300].decode("utf-8", "backslashreplace"),
        )


def overlay_opaque_xattr(*, userxattr: bool) -> str:
    """Return the attribute by which overlayfs marks a folder that hides all layers below."""
    return "user.overlay.opaque" if userxattr else "trusted.overlay.opaque"


def is_overlay_xattr(name: str) -> bool:
    """Return whether ``name`` steers overlayfs; archives may never set such a one."""
    return name.startswith(("trusted.overlay.", "user.overlay."))


def hidden_name(base: bytes) -> bytes:
    """Return the name that the whiteout file ``base`` hides.

    Raises:
        WhiteoutError: it hides nothing, or a folder's own ``.`` or ``..``.
    """
    name = base[len(PREFIX) :]
    if name in {b"", b".", b".."}:
        raise WhiteoutError(base)
    return name
