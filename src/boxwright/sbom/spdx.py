"""SPDX 2.3 documents (https://spdx.github.io/spdx-spec/v2.3/) as JSON."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from boxwright._version import __version__
from boxwright.core import gojson
from boxwright.sbom.packages import Package
from boxwright.sbom.scan import Scan

_NONE = "NOASSERTION"
_NAMESPACE = uuid.UUID("7f1b9b4e-3f0c-5b5e-9a53-0d3e7a3d6a11")


def document(found: Scan, name: str, created_s: int) -> bytes:
    """Return the document of a tree; equal trees have equal documents but for the date.

    Args:
        found: What was found.
        name: Of the tree.
        created_s: Date of the document, seconds since the epoch.
    """
    root_id = "SPDXRef-Root"
    packages = [_root(name, root_id, found), *map(_package, found.packages)]
    relations = [_relation("SPDXRef-DOCUMENT", "DESCRIBES", root_id)]
    relations += [_relation(root_id, "CONTAINS", item["SPDXID"]) for item in packages[1:]]
    content = gojson.encode([name, packages])
    created = gojson.time_text(created_s * 1_000_000_000)
    value = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"urn:uuid:{uuid.uuid5(_NAMESPACE, _hex(content))}",
        "creationInfo": {"created": created, "creators": [f"Tool: boxwright-{__version__}"]},
        "packages": packages,
        "relationships": relations,
    }
    return gojson.encode(value, indent=1)


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _relation(subject: str, kind: str, related: str) -> dict[str, str]:
    return {
        "spdxElementId": subject,
        "relationshipType": kind,
        "relatedSpdxElement": related,
    }


def _root(name: str, identity: str, found: Scan) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": name,
        "SPDXID": identity,
        "downloadLocation": _NONE,
        "filesAnalyzed": False,
        "primaryPackagePurpose": "CONTAINER",
    }
    if found.distribution.id:
        system = f"{found.distribution.id} {found.distribution.version}".strip()
        out["comment"] = f"operating system: {system}"
    return out


def _package(item: Package) -> dict[str, Any]:
    identity = _hex(f"{item.url}\n{item.source}".encode())[:16]
    out: dict[str, Any] = {
        "name": f"{item.namespace}/{item.name}" if _is_path(item) else item.name,
        "SPDXID": f"SPDXRef-Package-{item.kind}-{identity}",
        "downloadLocation": _NONE,
        "filesAnalyzed": False,
    }
    if item.version:
        out["versionInfo"] = item.version
    out |= {
        "supplier": item.supplier or _NONE,
        "sourceInfo": f"found in {item.source}",
        "licenseConcluded": _NONE,
        "licenseDeclared": item.license or _NONE,
        "copyrightText": _NONE,
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": item.url,
            }
        ],
    }
    return out


def _is_path(item: Package) -> bool:
    """Return whether the namespace is part of what users call the package."""
    return bool(item.namespace) and item.kind in {"npm", "golang"}
