"""What an image is: platforms, configs, attestations; and whether all of it is there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from boxwright.client.imagecopy import ImageTree, is_attestation
from boxwright.client.imageplaces import ImageDamagedError, ImagePlace
from boxwright.core.dataclass import dataclass, field
from boxwright.core.descriptor import Descriptor
from boxwright.core.platform import Platform
from boxwright.errors import BoxwrightError, Code, InvalidInputError, LimitExceededError
from boxwright.exporters.attached import PREDICATE_TYPE, REFERENCE_DIGEST
from boxwright.exporters.attestation import MAX_BYTES, PREDICATE_SPDX
from boxwright.oci import mediatypes
from boxwright.oci.manifest import Manifest

_PROVENANCE = "https://slsa.dev/provenance/"
_CYCLONEDX = "https://cyclonedx.org/bom"
_CONFIG_BYTES = 8 << 20
_FIELD = re.compile(r"\{\{-?\s*(json\s+)?\.([A-Za-z0-9_./\"\[\] -]*?)\s*-?\}\}")


class ImageIncompleteError(BoxwrightError):
    """An image of which something is missing, or that does not say what it should."""

    code = Code.REGISTRY_FAILED


@dataclass(slots=True)
class Statements:
    """What is said about one image: the predicates by kind of statement."""

    provenance: dict[str, Any] | None = None
    sboms: list[dict[str, Any]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def kinds(self) -> list[str]:
        """Return ``provenance``, ``sbom`` and the types of other statements."""
        found = ["provenance"] if self.provenance is not None else []
        found += ["sbom"] if self.sboms else []
        return found + self.others


@dataclass(slots=True)
class ImageOfPlatform:
    """One image of a tree.

    Attributes:
        entry: In the index, or the root.
        platform: As text; empty if nothing says it.
        config: The decoded config; None for an artifact that has no such config.
        attestations: The manifests that say something about it.
    """

    entry: Descriptor
    platform: str
    config: dict[str, Any] | None
    attestations: list[Descriptor] = field(default_factory=list)


async def images_of(tree: ImageTree, *, with_configs: bool = True) -> list[ImageOfPlatform]:
    """Return the images of a tree, in its order.

    Raises:
        BoxwrightError: a config is not there or malformed.
    """
    found = []
    entries = tree.entries()
    for entry in entries:
        if is_attestation(entry) or mediatypes.is_index(entry.media_type):
            continue
        config = await _config(tree, entry) if with_configs else None
        platform = entry.platform
        if platform is None and config is not None and config.get("os"):
            platform = Platform.from_json(config)
        said = [e for e in entries if e.annotations.get(REFERENCE_DIGEST) == entry.digest]
        found.append(ImageOfPlatform(entry, str(platform or ""), config, said))
    return found


async def _config(tree: ImageTree, entry: Descriptor) -> dict[str, Any] | None:
    manifest = Manifest.decode(tree.bodies[entry.digest][1])
    if not mediatypes.is_config(manifest.config.media_type):
        return None
    return await _object(tree, manifest.config, _CONFIG_BYTES)


async def _object(tree: ImageTree, blob: Descriptor, limit: int) -> dict[str, Any]:
    if blob.size > limit:
        raise LimitExceededError(f"blob {blob.digest} is too large", detail=f"{blob.size} bytes")
    _, place = tree.blobs[blob.digest]
    with await place.open(blob) as file:
        data = file.read(limit + 1)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{place.name}: a blob is no valid JSON", detail=f"{blob.digest}: {error}"
        ) from None
    if not isinstance(value, dict):
        raise InvalidInputError(f"{place.name}: a blob is no JSON object", detail=str(blob.digest))
    return value


async def statements_of(tree: ImageTree, image: ImageOfPlatform) -> Statements:
    """Return the predicates of what is said about an image.

    Raises:
        ImageDamagedError: a statement is about another image.
        BoxwrightError: one is not there or malformed.
    """
    found = Statements()
    for entry in image.attestations:
        for layer in Manifest.decode(tree.bodies[entry.digest][1]).layers:
            kind = layer.annotations.get(PREDICATE_TYPE, "")
            statement = await _object(tree, layer, MAX_BYTES)
            _check_subject(statement, image, layer)
            predicate = statement.get("predicate")
            predicate = predicate if isinstance(predicate, dict) else {}
            if kind.startswith(_PROVENANCE):
                found.provenance = predicate
            elif kind in {PREDICATE_SPDX, _CYCLONEDX}:
                found.sboms.append(predicate)
            else:
                found.others.append(kind or layer.media_type)
    return found


def _check_subject(
    statement: Mapping[str, Any], image: ImageOfPlatform, layer: Descriptor
) -> None:
    """Refuse a statement about packages of another digest than its image's.

    Statements of scanners have subjects of their own, and those of images without a name none.
    """
    kind = str(statement.get("predicateType") or "")
    subjects = statement.get("subject")
    if not kind.startswith(_PROVENANCE) or not isinstance(subjects, list) or not subjects:
        return
    digests = {
        value
        for item in subjects
        if isinstance(item, dict) and isinstance(item.get("digest"), dict)
        for value in item["digest"].values()
    }
    if image.entry.digest.hex not in digests:
        raise ImageDamagedError(
            "provenance of another image",
            detail=f"statement {layer.digest} beside image {image.entry.digest}",
        )


async def check(
    tree: ImageTree, place: ImagePlace, required: Sequence[str] = ()
) -> list[tuple[ImageOfPlatform, Statements]]:
    """Confirm that every blob of an image is there, and that its attestations are about it.

    Args:
        tree: All manifests have been read.
        place: Where it is.
        required: Kinds of statements that each image must have.

    Returns:
        The images and what is said about them.

    Raises:
        ImageIncompleteError: a blob or a statement is missing.
        ImageDamagedError: a statement is about something else.
    """
    missing = [digest for digest, (blob, _) in tree.blobs.items() if not await place.has(blob)]
    if missing:
        raise ImageIncompleteError(
            f"{place.name} is not complete",
            detail=f"{len(missing)} of {len(tree.blobs)} blobs are missing or damaged: "
            + ", ".join(missing[:3]),
            hint="push it again",
        )
    digests = {str(entry.digest) for entry in tree.entries()}
    for entry in tree.entries():
        about = entry.annotations.get(REFERENCE_DIGEST)
        if about is not None and about not in digests:
            raise ImageDamagedError(
                f"{place.name} has an attestation about an image that is not in it",
                detail=f"{entry.digest} is about {about}",
            )
    found = []
    for image in await images_of(tree):
        said = await statements_of(tree, image)
        lacking = [kind for kind in required if kind not in said.kinds()]
        if lacking:
            raise ImageIncompleteError(
                f"{place.name} has no {' and no '.join(lacking)} for {image.platform}",
                detail=f"it has {', '.join(said.kinds()) or 'no attestations'}",
                hint="build it with --provenance and --sbom",
            )
        found.append((image, said))
    return found


# --- formats -------------------------------------------------------------------------------


async def render(template: str, name: str, tree: ImageTree) -> str:
    """Fill a template of the form that ``docker buildx imagetools inspect`` takes.

    Only fields are known (``{{.Name}}``, ``{{.Manifest.Digest}}``, ``{{json .Image}}``,
    ``{{json (index .SBOM "linux/amd64")}}`` without ``index``): no functions but ``json``.

    Raises:
        InvalidInputError: the template has something else.
    """
    rest = _FIELD.sub("", template)
    if "{{" in rest or "}}" in rest:
        raise InvalidInputError(
            "the format can't be filled",
            detail=rest.strip()[:200],
            hint="use {{.Field}} and {{json .Field}}",
        )
    values: dict[str, Any] = {}
    out, end = [], 0
    for found in _FIELD.finditer(template):
        path = [part for part in found[2].split(".") if part]
        value = await _value(path, name, tree, values)
        out.append(template[end : found.start()])
        out.append(_text(value, as_json=bool(found[1])))
        end = found.end()
    return "".join([*out, template[end:]])


async def _value(path: Sequence[str], name: str, tree: ImageTree, values: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON value
    if not path:
        return {key: await _value([key], name, tree, values) for key in _TOP[:3]}
    head, *rest = path
    if head not in _TOP:
        raise InvalidInputError(f"no field {head!r}", hint=f"there are {', '.join(_TOP)}")
    if head not in values:
        values[head] = await _top(head, name, tree)
    value = values[head]
    for key in rest:
        folded = {str(k).lower(): v for k, v in value.items()} if isinstance(value, dict) else {}
        if key.lower() not in folded:
            raise InvalidInputError(f"no field {'.'.join(path)!r}")
        value = folded[key.lower()]
    return value


_TOP = ("Name", "Manifest", "Image", "Provenance", "SBOM")


async def _top(head: str, name: str, tree: ImageTree) -> Any:  # noqa: ANN401 - any JSON value
    if head == "Name":
        return name
    if head == "Manifest":
        root = {**tree.root.to_json(), "schemaVersion": 2}
        if mediatypes.is_index(tree.root.media_type):
            root["manifests"] = [entry.to_json() for entry in tree.entries()]
        return root
    images = await images_of(tree)
    found: dict[str, Any] = {}
    for image in images:
        if head == "Image":
            found[image.platform] = image.config
            continue
        said = await statements_of(tree, image)
        if head == "Provenance" and said.provenance is not None:
            found[image.platform] = {"SLSA": said.provenance}
        if head == "SBOM" and said.sboms:
            sboms: dict[str, Any] = {"SPDX": said.sboms[0]}
            if said.sboms[1:]:
                sboms["AdditionalSPDXs"] = said.sboms[1:]
            found[image.platform] = sboms
    return next(iter(found.values()), {}) if len(images) == 1 else found


def _text(value: Any, *, as_json: bool) -> str:  # noqa: ANN401 - any JSON value
    if as_json:
        return json.dumps(value, indent=2, ensure_ascii=False)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
