"""Layouts in folders of the client."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from boxwright.session.providers.contents import remove_unreferenced

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def put(folder: Path, data: bytes, algorithm: str, media_type: str = "a/b") -> dict[str, Any]:
    """Write a blob; return its descriptor."""
    name = hashlib.new(algorithm, data).hexdigest()
    path = folder / "blobs" / algorithm / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {"mediaType": media_type, "digest": f"{algorithm}:{name}", "size": len(data)}


def test_what_is_referred_to_stays_under_whichever_digest(tmp_path: Path) -> None:
    kept, manifests = [], []
    for outer, inner in (("sha256", "sha512"), ("sha512", "sha384"), ("sha384", "sha256")):
        layer, config = put(tmp_path, outer.encode(), inner), put(tmp_path, b"{}" * 9, inner)
        body = json.dumps({"config": config, "layers": [layer]}).encode()
        manifests.append(put(tmp_path, body, outer, MANIFEST))
        kept += [layer, config, manifests[-1]]
    index = put(tmp_path, json.dumps({"manifests": manifests}).encode(), "sha512", INDEX)
    (tmp_path / "index.json").write_text(json.dumps({"manifests": [index]}))
    for algorithm in ("sha256", "sha384", "sha512"):
        put(tmp_path, b"unused", algorithm)
    (tmp_path / "blobs/sha512/.staged").touch()  # another's, not finished

    assert remove_unreferenced(tmp_path) == 3
    left = {str(each.relative_to(tmp_path / "blobs")) for each in tmp_path.glob("blobs/*/*")}
    assert left == {
        "sha512/.staged",
        *(each["digest"].replace(":", "/") for each in (*kept, index)),
    }
