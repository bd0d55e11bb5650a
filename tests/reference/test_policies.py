"""Policies of a newer buildx look at the attestations of images through our daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from peers import Daemons
from programs import Buildx, Context, Registry, Run, registry

pytestmark = [
    pytest.mark.reference,
    pytest.mark.root,
    pytest.mark.peer("docker-registry"),
    pytest.mark.skipif(
        not os.environ.get("BUILDX"), reason="BUILDX names no buildx with policies"
    ),
]
__all__ = ["registry"]

POLICY = """
package docker
default allow := false
allow if input.local
allow if {
  input.image.hasProvenance
  input.image.provenance.predicateType == "https://slsa.dev/provenance/v1"
  input.image.provenance.buildType == data.wanted
}
deny_msg contains "no provenance of ours" if { input.image; not allow }
decision := {"allow": allow, "deny_msg": deny_msg}
""".replace(
    "data.wanted",
    '"https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"',
)


@pytest.fixture
def buildx(daemons: Daemons, tmp_path: Path) -> Buildx:
    """Upstream's buildx with our daemon; upstream's ends at images without an index."""
    made = Buildx(os.environ["BUILDX"], tmp_path / "buildx", daemons.ours)
    made.config.mkdir()
    made("create", "--name", "remote", "--driver", "remote", daemons.ours).ok()
    return made


def test_an_image_without_provenance_is_denied(
    buildx: Buildx, context: Context, registry: Registry, tmp_path: Path
) -> None:
    names = {}
    for word, flag in (("with", "mode=max"), ("without", "false")):
        names[word] = f"{registry.host}/{word}:v1"
        context.dockerfile(f"FROM scratch\nCOPY Dockerfile /{word}\n", base=False)
        push = ("-t", names[word], "--push", context.path)
        buildx.build("--provenance", flag, "--sbom", "false", *push).ok()
    user = Context(tmp_path / "user")
    user.path.mkdir()
    user.write("Dockerfile.rego", POLICY)

    def build_from(word: str) -> Run:
        user.dockerfile(f"FROM {names[word]}\nCOPY Dockerfile /user\n", base=False)
        return buildx.build("-o", f"type=local,dest={tmp_path}/out", user.path)

    allowed = build_from("with").ok()
    assert "resolve missing fields [image.hasProvenance image.provenance" in allowed.err
    assert (tmp_path / "out/with").exists()
    assert (tmp_path / "out/user").exists()
    denied = build_from("without")
    assert denied.status != 0
    assert "no provenance of ours" in denied.err
