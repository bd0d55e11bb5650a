"""Package URLs of images, as attestations name what was built and what it was built from.

Escaping and the order of qualifiers are those of packageurl-go, so that names compare equal with
BuildKit's.
"""

from __future__ import annotations

from urllib.parse import quote

from boxwright.core.platform import Platform
from boxwright.core.reference import Reference


def image_url(
    ref: Reference,
    platform: Platform | None,
    *,
    kind: str = "docker",
    ref_type: str = "",
    vcs_url: str = "",
) -> str:
    """Return the package URL of an image.

    Args:
        ref: The image; without tag and digest its tag is ``latest``.
        platform: Which image of an index.
        kind: ``docker`` for images of registries, ``oci`` for those of layouts.
        ref_type: What is named, if it is not an image.
        vcs_url: The repository that it holds, if it does.
    """
    ref = ref.with_default_tag()
    name = Reference(ref.host, ref.path).familiar
    qualifiers = {}
    if ref.digest is not None:
        qualifiers["digest"] = str(ref.digest)
    if platform is not None:
        normal = platform.normalized()
        parts = (normal.os, normal.architecture, normal.variant)
        qualifiers["platform"] = "/".join(part for part in parts if part)
    if ref_type:
        qualifiers["ref_type"] = ref_type
    if vcs_url:
        qualifiers["vcs_url"] = vcs_url
    url = f"pkg:{kind}/" + "/".join(_escape(part) for part in name.split("/"))
    if ref.tag:
        url += f"@{_escape(ref.tag)}"
    if qualifiers:
        url += "?" + "&".join(f"{key}={_query(value)}" for key, value in qualifiers.items())
    return url


def _escape(text: str) -> str:
    return quote(text, safe="-_.~")


def _query(text: str) -> str:
    return quote(text, safe="-_.~:@$&+=")
