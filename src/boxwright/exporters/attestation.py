"""Attestations of a result: what a frontend or the engine says about it, as in-toto statements.

An attestation is one statement (``in-toto``: a predicate, from a file of a ref or made when it
is asked for) or a ``bundle``: a folder of whole statements, taken apart by :func:`unbundle`. Refs
come from builds and are not trusted: reads are confined to the ref and limited.

Sources: in-toto Statement v1; BuildKit docs/attestations/attestation-storage.md.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.workers import to_worker
from boxwright.errors import InvalidInputError, LimitExceededError
from boxwright.linux.files import openat2_in_root
from boxwright.snapshots.refs import ImmutableRef

MAX_BYTES = 40 << 20
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_SPDX = "https://spdx.dev/Document"
PREDICATE_SLSA_02 = "https://slsa.dev/provenance/v0.2"
PREDICATE_SLSA_1 = "https://slsa.dev/provenance/v1"
REASON_KEY = "reason"
INLINE_ONLY_KEY = "inline-only"
SBOM_CORE_KEY = "sbom-core"
_PROVENANCE_PREFIX = "https://slsa.dev/provenance/"
_MAX_BUNDLED = 1024
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[ \t\r\n]+', re.DOTALL)

Kind = Literal["in-toto", "bundle"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What a statement is about: digests (by algorithm) of something, or the result itself."""

    name: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    is_self: bool = True


@dataclass(frozen=True, slots=True)
class Attestation:
    """One attestation, or a bundle of them.

    Attributes:
        kind: ``in-toto`` or ``bundle``.
        path: the file in ``ref``, or the folder of a bundle; its last part names the file in
            local outputs.
        predicate_type: URI of the predicate; what all statements of a bundle must have.
        subjects: what it is about; the result if none are given.
        metadata: ``reason``, ``inline-only``, ``sbom-core``.
        ref: the tree with the content.
        content: makes the predicate's JSON when it is asked for, instead of ``ref``.
    """

    kind: Kind = "in-toto"
    path: str = ""
    predicate_type: str = ""
    subjects: tuple[Subject, ...] = ()
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    ref: ImmutableRef | None = None
    content: Callable[[], Awaitable[bytes]] | None = None

    @property
    def inline_only(self) -> bool:
        """Whether only outputs that always carry attestations get it."""
        return self.metadata.get(INLINE_ONLY_KEY) == b"true"

    @property
    def is_core_sbom(self) -> bool:
        """Whether it is the bill of materials of the result itself."""
        core = self.metadata.get(SBOM_CORE_KEY)
        name = os.path.basename(self.path).partition(".")[0]
        return core is not None and name == core.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Statement:
    """A whole statement; ``predicate`` is JSON text."""

    predicate_type: str
    subjects: tuple[tuple[str, Mapping[str, str]], ...]
    predicate: bytes

    def encode(self) -> bytes:
        """Return the bytes as an image stores them."""
        head = gojson.encode(self._head())
        return head[:-1] + b',"predicate":' + compact(self.predicate) + b"}"

    def encode_indented(self) -> bytes:
        """Return the bytes as files have them."""
        whole = {**self._head(), "predicate": json.loads(self.predicate or b"null")}
        return gojson.encode(whole, indent=2)

    def _head(self) -> dict[str, Any]:
        return {
            "_type": STATEMENT_TYPE,
            "predicateType": self.predicate_type,
            "subject": [
                {"name": name, "digest": dict(sorted(digests.items()))}
                for name, digests in self.subjects
            ],
        }


def compact(text: bytes) -> bytes:
    """Return JSON text without blanks, escaped as Go does; numbers stay as they are written."""
    if not text:
        return b"null"
    short = _TOKEN.sub(lambda found: found[0] if found[0][:1] == b'"' else b"", text)
    return gojson.escape(short.decode("utf-8", "replace")).encode()


def digest_map(*digests: str) -> dict[str, str]:
    """Return digests (``algorithm:hex``) as in-toto writes them."""
    return {algorithm: text for algorithm, _, text in (item.partition(":") for item in digests)}


async def unbundle(attestations: Sequence[Attestation]) -> list[Attestation]:
    """Return single statements: bundles taken apart, the result's own SBOM first.

    Raises:
        InvalidInputError: one has no content or path, is malformed, or is provenance that
            does not come from the engine.
    """
    found: list[Attestation] = []
    for item in attestations:
        _check(item)
        if item.kind == "bundle":
            found += await _open_bundle(item)
            continue
        if item.predicate_type.startswith(_PROVENANCE_PREFIX) and item.content is None:
            raise InvalidInputError("frontend may not set provenance attestations")
        found.append(item)
    for item in found:
        _check(item)
    return sorted(found, key=lambda item: not item.is_core_sbom)


def _check(item: Attestation) -> None:
    if item.kind != "bundle" and not item.path:
        raise InvalidInputError("attestation does not have set path")
    if item.ref is None and item.content is None:
        raise InvalidInputError("attestation does not have available content")


async def _open_bundle(bundle: Attestation) -> list[Attestation]:
    if bundle.content is not None or bundle.ref is None:
        raise InvalidInputError("no ref provided for attestation bundle")
    async with bundle.ref.mounted() as root:
        files = await to_worker(_read_folder, root, bundle.path)
    out = []
    for name, data in files:
        statement = _decode_statement(data, name)
        kind = str(statement.get("predicateType") or "")
        if bundle.predicate_type and kind != bundle.predicate_type:
            raise InvalidInputError(
                f"bundle entry {kind} does not match required predicate type"
                f" {bundle.predicate_type}"
            )
        if kind.startswith(_PROVENANCE_PREFIX):
            raise InvalidInputError("frontend may not bundle provenance attestations")
        out.append(
            replace(
                bundle,
                kind="in-toto",
                path=os.path.join(bundle.path, name),
                predicate_type=kind,
                subjects=tuple(_subjects(statement)),
                ref=None,
                content=_constant(gojson.encode(gojson.through_map(statement.get("predicate")))),
            )
        )
    return out


def _constant(data: bytes) -> Callable[[], Awaitable[bytes]]:
    async def content() -> bytes:
        return data

    return content


def _decode_statement(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            "cannot decode in-toto statement", detail=f"{name}: {error}"
        ) from None
    if not isinstance(value, dict):
        raise InvalidInputError("in-toto statement is not a single JSON object", detail=name)
    return value


def _subjects(statement: Mapping[str, Any]) -> list[Subject]:
    found = statement.get("subject") or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InvalidInputError("cannot decode in-toto statement", detail="subject is no list")
    out = []
    for item in found:
        digests = item.get("digest") or {}
        if not isinstance(digests, dict):
            raise InvalidInputError("cannot decode in-toto statement", detail="malformed digest")
        pairs = {str(kind): str(value) for kind, value in digests.items()}
        out.append(Subject(str(item.get("name") or ""), pairs, is_self=False))
    return out


async def read(item: Attestation) -> bytes:
    """Return the predicate's JSON; empty if there is none.

    Raises:
        InvalidInputError: there is nothing to read, or it is no regular file or no JSON.
        LimitExceededError: it is over 40 MiB.
    """
    if item.content is not None:
        return await item.content()
    if item.ref is None:
        raise InvalidInputError("no available content for attestation")
    async with item.ref.mounted() as root:
        data = await to_worker(_read_file, root, item.path)
    try:
        json.loads(data or b"null")
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            "cannot read in-toto attestation", detail=f"{item.path}: {error}"
        ) from None
    return data


async def statements(
    attestations: Sequence[Attestation], result: Sequence[tuple[str, Mapping[str, str]]]
) -> list[Statement]:
    """Return the statements of attestations that have been unbundled.

    Args:
        attestations: What is to be said.
        result: Names and digests of the result itself.

    Raises:
        InvalidInputError: a predicate can't be read.
    """
    out = []
    for item in attestations:
        found: list[tuple[str, Mapping[str, str]]] = []
        for subject in item.subjects or (Subject(),):
            if not subject.is_self:
                found.append((subject.name or "_", subject.digests))
                continue
            for name, digests in result:
                found.append((name, digests))
                if subject.name not in {"", "_"}:
                    found.append((subject.name, digests))
        out.append(Statement(item.predicate_type, tuple(found), await read(item)))
    return out


def _open_below(root: Path, path: str, flags: int) -> int:
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return openat2_in_root(folder, path or ".", flags)
    except OSError as error:
        raise InvalidInputError(
            "cannot read in-toto attestation", detail=f"{path}: {error.strerror}"
        ) from error
    finally:
        os.close(folder)


def _read_file(root: Path, path: str) -> bytes:
    fd = _open_below(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidInputError(f"{path} is not a regular file")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise LimitExceededError(f"{path} exceeds {MAX_BYTES} bytes")
    return data


def _read_folder(root: Path, path: str) -> list[tuple[str, bytes]]:
    fd = _open_below(root, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = sorted(os.listdir(fd))
    finally:
        os.close(fd)
    if len(names) > _MAX_BUNDLED:
        raise LimitExceededError("too many files in an attestation bundle", detail=str(len(names)))
    return [(name, _read_file(root, os.path.join(path, name))) for name in names]
