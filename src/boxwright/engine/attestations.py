"""Attestations that a solve request asks for, added to what its frontend has made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from boxwright.core import gojson
from boxwright.core.clock import Clock
from boxwright.core.dataclass import dataclass, replace
from boxwright.core.descriptor import Descriptor
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.core.workers import to_worker
from boxwright.dockerfile.sbom import CORE_NAME
from boxwright.engine import systemusage
from boxwright.engine.bridge import BuildBridge, SolveSpec
from boxwright.engine.predicate import Invocation, Predicate, ProvenanceOptions
from boxwright.engine.provenance import Capture, Provenance
from boxwright.engine.results import FrontendResult, LazyRef, ResultAttestation
from boxwright.engine.scanning import scanned, to_scan, with_content
from boxwright.errors import InvalidInputError
from boxwright.exporters.attestation import (
    INLINE_ONLY_KEY,
    PREDICATE_SPDX,
    REASON_KEY,
    Attestation,
)
from boxwright.llb.build_ops import from_definition
from boxwright.oci.annotations import without_internal
from boxwright.oci.platforms import parse_platforms
from boxwright.session.services import new_id
from boxwright.solver.exporter import (
    ExportLink,
    ExportMode,
    ExportOptions,
    ExportResult,
    ExportWalk,
)
from boxwright.solver.jobs import Job
from boxwright.solver.types import CachedResult, Remote, Result
from boxwright.wire.pb import ops_pb2

_PREFIXES = ("attest:", "build-arg:BUILDKIT_ATTEST_")

Layers = dict[tuple[str, int], list[list[Descriptor]]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for; None where it does not.

    Attributes:
        provenance: Its options.
        sbom: Attributes of the scanner.
    """

    provenance: ProvenanceOptions | None = None
    sbom: Mapping[str, str] | None = None

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Wanted:
        """Read the frontend's options ``attest:…`` and ``build-arg:BUILDKIT_ATTEST_…``.

        Raises:
            InvalidInputError: a kind or an attribute is unknown or malformed.
        """
        if not any(key.startswith(_PREFIXES) for key in options):
            return cls()
        # Not at start: see boxwright.engine.preload.
        from boxwright.dockerfile.options import parse_attestations

        found = parse_attestations(options)
        provenance = found.get("provenance")
        return cls(
            ProvenanceOptions.parse(provenance) if provenance is not None else None,
            found.get("sbom"),
        )


class Documents:
    """Makes the provenance of one build's results.

    Args:
        provenance: Knows what they were made from.
        job: Claims the vertices as long as this is used.
        started_ns: When the build began, since the epoch.
        clock: Tells when the first document was asked for: the build's end.
        builder_facts: What each document says of this builder.
        samples: What the machine was doing so far; the history, for which no build waits, makes
            do with the end.
    """

    def __init__(
        self,
        provenance: Provenance,
        job: Job,
        started_ns: int,
        clock: Clock,
        builder_facts: Mapping[str, Any] | None = None,
        samples: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._samples = samples
        self._builder_facts = builder_facts or {}
        self._provenance = provenance
        self._job = job
        self._started_ns = started_ns
        self._clock = clock
        self._finished_ns = 0
        self._id = new_id()

    def add(self, result: FrontendResult, options: ProvenanceOptions) -> None:
        """Add provenance for every platform of a result that has been evaluated.

        Raises:
            IncompleteMaterialsError: it must be complete, and is not.
            InvalidInputError: the result's platforms are malformed.
        """
        for platform in parse_platforms(result.metadata):
            ref = _ref(result, platform.id)
            if ref is None:
                continue
            key = platform.id if result.refs is not None else ""
            make = self.maker(result, key, ref, options)
            if make is None:
                continue
            form = Attestation(
                path=options.filename,
                predicate_type=options.predicate_type,
                metadata={
                    REASON_KEY: b"provenance",
                    INLINE_ONLY_KEY: b"true" if options.inline_only else b"false",
                },
                content=make,
            )
            result.attestations.setdefault(platform.id, []).append(ResultAttestation(form))

    def maker(
        self, result: FrontendResult, key: str, ref: LazyRef, options: ProvenanceOptions
    ) -> Callable[[], Awaitable[bytes]] | None:
        """Return what writes one document; None if nothing is known about the ref.

        Raises:
            IncompleteMaterialsError: it must be complete, and is not.
        """
        found = self._provenance.capture(result, key, ref, self._job)
        if found is None:
            return None
        predicate = self._predicate(found, options, ref.definition)

        async def write() -> bytes:
            return await self._write(predicate, await ref.result(), options)

        return write

    async def for_record(
        self, result: FrontendResult, builder_id: str
    ) -> Callable[[], Awaitable[dict[str, bytes]]]:
        """Return what writes whole documents for the build's record, when the job may be over.

        They are by platform id, empty for one ref.

        Args:
            result: Has been evaluated and exported.
            builder_id: Who builds.
        """
        refs = {"": result.ref} if result.refs is None else result.refs
        options = ProvenanceOptions(builder_id=builder_id, with_usage=True)
        self._finish()
        captured = []
        for key, ref in refs.items():
            found = ref and self._provenance.capture(result, key, ref, self._job)
            if ref and found:
                captured.append((key, found, ref.definition, await ref.result()))

        async def write() -> dict[str, bytes]:
            return {
                key: await self._write(self._predicate(found, options, made), solved, options)
                for key, found, made, solved in captured
            }

        return write

    def _predicate(
        self, found: Capture, options: ProvenanceOptions, definition: ops_pb2.Definition
    ) -> Predicate:
        predicate = Predicate.make(found, options, definition)
        predicate.builder_facts = self._builder_facts
        return predicate

    def _finish(self) -> None:
        """Note that the build has ended, unless an earlier document did."""
        self._finished_ns = self._finished_ns or self._clock.now_ns()

    async def _write(
        self, predicate: Predicate, solved: CachedResult, options: ProvenanceOptions
    ) -> bytes:
        self._finish()
        run = Invocation(self._id, self._started_ns, self._finished_ns)
        if options.with_steps:
            predicate.add_layers(await known_layers(solved))
            if options.with_usage:
                now = await to_worker(systemusage.sample, self._finished_ns)
                predicate.add_machine([*self._samples, now])
        document = predicate.to_json(options.version, run)
        return await to_worker(partial(gojson.encode, document, indent=2))


def _ref(result: FrontendResult, platform_id: str) -> LazyRef | None:
    if result.refs is None:
        return result.ref
    if platform_id not in result.refs:
        raise InvalidInputError(f"could not find ref {platform_id}")
    return result.refs[platform_id]


async def known_layers(result: CachedResult) -> Layers:
    """Return the blobs that the steps behind a result have already, by vertex and output."""
    target = _LayerTarget()
    if result.cache_keys:

        async def make_none(_result: Result) -> list[Remote]:
            return []

        options = ExportOptions(
            make_none, ExportMode.REMOTE_ONLY, export_roots=True, ignore_backlinks=True
        )
        await ExportWalk(target).export(result.cache_keys[0].exporter, options)
    return target.layers


class _LayerTarget:
    """Takes the layers from a walk over cache records."""

    def __init__(self) -> None:
        self.layers: Layers = {}

    def add(
        self,
        digest: str,
        deps: Sequence[Sequence[ExportLink]],
        results: Sequence[ExportResult],
    ) -> object | None:
        """Note the layers of a record's results."""
        del digest, deps
        for item in results:
            if not item.vertex:
                continue
            chain = [_shown(descriptor) for descriptor in item.remote.descriptors]
            chains = self.layers.setdefault((item.vertex, item.index), [])
            if chain and chain not in chains:
                chains.append(chain)
        return self


def _shown(descriptor: Descriptor) -> Descriptor:
    return replace(descriptor, annotations=without_internal(descriptor.annotations))


async def exported(result: FrontendResult, created_s: int) -> dict[str, list[Attestation]]:
    """Return the attestations of a result that has been evaluated, as exporters take them.

    Args:
        result: The result.
        created_s: Date of documents that are made now, seconds since the epoch.
    """
    found: dict[str, list[Attestation]] = {}
    for key, items in result.attestations.items():
        for item in items:
            form = item.form
            if item.ref is not None:
                form = with_content(replace(form, ref=await item.ref.snapshot()), created_s)
            found.setdefault(key, []).append(form)
    return found


async def add_sbom(
    bridge: BuildBridge,
    result: FrontendResult,
    attributes: Mapping[str, str],
    options: Mapping[str, str],
) -> None:
    """Add bills of materials to a result whose frontend has made none.

    Args:
        bridge: Of the build.
        result: Has been evaluated.
        attributes: ``generator``, if it is not the built-in one, and its parameters.
        options: Of the frontend; the cache and how images are looked up are taken from it.

    Raises:
        BoxwrightError: the scanner can't be looked up, or fails.
    """
    kinds = {item.form.predicate_type for items in result.attestations.values() for item in items}
    if PREDICATE_SPDX in kinds:
        return
    refs = {item.id: _ref(result, item.id) for item in parse_platforms(result.metadata)}
    generator = attributes.get("generator")
    if generator is None:
        for key, ref in refs.items():
            if ref is not None:
                made = ResultAttestation(to_scan(CORE_NAME), ref.retain())
                result.attestations.setdefault(key, []).append(made)
        return
    # Not at start: see boxwright.engine.preload.
    from boxwright.dockerfile.sbom import find_scanner

    parameters = {key: value for key, value in attributes.items() if key != "generator"}
    platform = bridge.worker_platforms[0] if bridge.worker_platforms else Platform.host()
    name = str(Reference.parse(generator).with_default_tag())
    mode = options.get("image-resolve-mode") or "default"
    scanner = await find_scanner(bridge, name, parameters, platform, mode)
    for key, ref in refs.items():
        if ref is None:
            continue
        no_cache = options.get("no-cache") == ""
        out = scanner.scan(key, from_definition(ref.definition), {}, ignore_cache=no_cache)
        solved = await bridge.solve(SolveSpec(definition=out.marshal(platform)))
        made = ResultAttestation(scanned(), solved.ref)
        result.attestations.setdefault(key, []).append(made)
        if solved.ref is not None:
            await solved.ref.result()
