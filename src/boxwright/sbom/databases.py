"""What package managers have written down: dpkg, apk, Python's and npm's metadata.

All of it comes from the tree and is not trusted: texts are limited, and what is malformed is no
package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from boxwright.sbom.packages import Distribution, Package, plain, spdx_license

_SEPARATORS = re.compile(r"[-_.]+")


def os_release(text: str) -> Distribution:
    """Read ``os-release`` (os-release(5))."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals:
            found[key] = plain(value.strip("\"'"))
    return Distribution(found.get("ID", ""), found.get("VERSION_ID", ""))


def _supplier(kind: str, name: str) -> str:
    """Return ``Name <address>`` as SPDX writes suppliers."""
    return f"{kind}: {name.replace('<', '(').replace('>', ')')}" if name else ""


def _paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of a control file (deb822(5)); continuation lines are left out."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            if fields:
                yield fields
            fields = {}
        elif line[0] not in " \t":
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), plain(value))
    if fields:
        yield fields


def dpkg(text: str, distribution: Distribution, source: str) -> Iterator[Package]:
    """Yield the installed packages of ``/var/lib/dpkg/status`` or a file of ``status.d``."""
    for fields in _paragraphs(text):
        status = fields.get("status", "install ok installed").split()
        name, version = fields.get("package", ""), fields.get("version", "")
        if not name or not version or status[-1:] != ["installed"]:
            continue
        maintainer = fields.get("maintainer", "")
        origin, _, origin_version = fields.get("source", "").partition(" ")
        upstream = origin + (f"@{origin_version.strip('()')}" if origin_version else "")
        yield Package(
            "deb",
            name,
            version,
            namespace=distribution.id or "debian",
            supplier=_supplier("Organization", maintainer),
            source=source,
            qualifiers=(
                ("arch", fields.get("architecture", "")),
                *distribution.qualifier,
                ("upstream", upstream),
            ),
        )


def apk(text: str, distribution: Distribution, source: str) -> Iterator[Package]:
    """Yield the packages of ``/lib/apk/db/installed`` (apk-tools' installed database)."""
    for block in text.split("\n\n"):
        fields = {line[0]: plain(line[2:]) for line in block.splitlines() if line[1:2] == ":"}
        name, version = fields.get("P", ""), fields.get("V", "")
        if not name or not version:
            continue
        maintainer = fields.get("m", "")
        origin = fields.get("o", "")
        yield Package(
            "apk",
            name,
            version,
            namespace=distribution.id or "alpine",
            license=spdx_license(fields.get("L", "")),
            supplier=_supplier("Person", maintainer),
            source=source,
            qualifiers=(
                ("arch", fields.get("A", "")),
                *distribution.qualifier,
                ("upstream", origin if origin != name else ""),
            ),
        )


def python(text: str, source: str) -> Package | None:
    """Read ``METADATA`` or ``PKG-INFO`` (core metadata specification)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            break  # the description follows
        key, colon, value = line.partition(":")
        if colon and line[0] not in " \t":
            fields.setdefault(key.lower(), plain(value))
    name, version = fields.get("name", ""), fields.get("version", "")
    if not name or not version:
        return None
    return Package(
        "pypi",
        _SEPARATORS.sub("-", name).lower(),
        version,
        license=spdx_license(fields.get("license-expression", "")),
        supplier=_supplier("Person", fields.get("author", "")),
        source=source,
    )


def npm(text: str, source: str) -> Package | None:
    """Read the ``package.json`` of an installed package."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    name, version = value.get("name"), value.get("version")
    if not isinstance(name, str) or not isinstance(version, str) or not name or not version:
        return None
    found = value.get("license")
    scope, slash, short = plain(name).rpartition("/")
    return Package(
        "npm",
        short,
        plain(version),
        namespace=scope if slash else "",
        license=spdx_license(found) if isinstance(found, str) else "",
        source=source,
    )
