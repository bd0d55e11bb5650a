"""Package URLs of images: the facts are those of BuildKit's util/purl tests."""

from __future__ import annotations

import pytest

from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.oci.purl import image_url

DIGEST = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
ARM = Platform("linux", "arm", "v7")


@pytest.mark.parametrize(
    ("ref", "platform", "url"),
    [
        ("alpine", None, "pkg:docker/alpine@latest"),
        ("library/alpine:3.15", None, "pkg:docker/alpine@3.15"),
        (f"alpine:latest@{DIGEST}", None, f"pkg:docker/alpine@latest?digest={DIGEST}"),
        (f"alpine@{DIGEST}", None, f"pkg:docker/alpine?digest={DIGEST}"),
        ("user/test:v2", None, "pkg:docker/user/test@v2"),
        ("ghcr.io/foo/bar", None, "pkg:docker/ghcr.io/foo/bar@latest"),
        ("localhost:5000/a", None, "pkg:docker/localhost%3A5000/a@latest"),
        ("busybox", ARM, "pkg:docker/busybox@latest?platform=linux%2Farm%2Fv7"),
        (
            f"busybox@{DIGEST}",
            ARM,
            f"pkg:docker/busybox?digest={DIGEST}&platform=linux%2Farm%2Fv7",
        ),
    ],
)
def test_image_url(ref: str, platform: Platform | None, url: str) -> None:
    assert image_url(Reference.parse(ref), platform) == url


def test_images_of_layouts_and_parts_of_images() -> None:
    url = image_url(Reference.parse("a"), None, kind="oci", ref_type="blob")
    assert url == "pkg:oci/a@latest?ref_type=blob"
