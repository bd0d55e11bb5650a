"""Provenance documents: SLSA v1 and v0.2 predicates as BuildKit writes them.

Fields and their order are those of BuildKit's Go types (solver/llbsolver/provenance/types), so that
documents of both compare equal but for times and ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from boxwright._version import DOCKERFILE_VERSION
from boxwright.core import gobool, gojson
from boxwright.core.dataclass import dataclass, field
from boxwright.core.descriptor import Descriptor
from boxwright.core.gojson import time_text
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.engine.llbjson import build_steps, to_json
from boxwright.engine.provenance import Capture, commit_digest, redact, request_record
from boxwright.errors import InvalidInputError
from boxwright.exporters.attestation import PREDICATE_SLSA_02, PREDICATE_SLSA_1
from boxwright.oci.purl import image_url
from boxwright.ops.execop import StepUsage
from boxwright.sources.bloblocator import LAYOUT_SCHEME, BlobLocator
from boxwright.wire.pb import ops_pb2 as pb

_BUILD_TYPE_1 = (
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
)
_BUILD_TYPE_02 = "https://mobyproject.org/buildkit@v1"
_COMPATIBILITY_VERSION = 30
_PRIVATE = ("build-arg:", "label:")
_CONFIGS = "input-metadata:"
_VERSIONS = {"v1": PREDICATE_SLSA_1, "v0.2": PREDICATE_SLSA_02}


class IncompleteMaterialsError(InvalidInputError):
    """Complete materials were asked for, and something can't be named."""

    def __init__(self, folders: Sequence[str]) -> None:
        named = "; ".join(f"local source {name or '<unnamed>'}" for name in folders)
        super().__init__(
            "provenance materials are incomplete",
            detail=named or "a step runs a build of its own",
            hint="build from git, http or images, or leave complete-materials out",
        )


@dataclass(frozen=True, slots=True)
class ProvenanceOptions:
    """What ``attest:provenance`` asks for.

    Attributes:
        version: ``v1`` or ``v0.2``.
        with_steps: Steps, sources and layers, too (``mode=max``).
        builder_id: Who builds.
        filename: Of the file in local outputs.
        reproducible: What the document claims.
        inline_only: Only for outputs that always carry attestations.
        complete: Fail if something that was used can't be named.
        with_usage: What steps and machine were doing, too; of use with steps only.
    """

    version: str = "v1"
    with_steps: bool = True
    builder_id: str = ""
    filename: str = "provenance.json"
    reproducible: bool = False
    inline_only: bool = False
    complete: bool = False
    with_usage: bool = False

    @classmethod
    def parse(cls, attributes: Mapping[str, str]) -> ProvenanceOptions:
        """Read the attributes; unknown ones are ignored, as BuildKit does.

        Raises:
            InvalidInputError: a value is malformed.
        """
        version = attributes.get("version", "v1")
        if version not in _VERSIONS:
            raise InvalidInputError(
                f"invalid provenance SLSA version: {version}", hint="use v1 or v0.2"
            )
        mode = attributes.get("mode", "max")
        if mode not in {"min", "max", "full"}:
            raise InvalidInputError(f'invalid mode "{mode}"', hint="use min or max")
        return cls(
            version,
            mode != "min",
            attributes.get("builder-id", ""),
            attributes.get("filename", "provenance.json"),
            _flag(attributes, "reproducible"),
            attributes.get("inline-only", "") in gobool.TRUE,
            _flag(attributes, "complete-materials"),
            attributes.get("capture-usage", "") in gobool.TRUE,
        )

    @property
    def predicate_type(self) -> str:
        """URI of the predicate."""
        return _VERSIONS[self.version]


def _flag(attributes: Mapping[str, str], key: str) -> bool:
    text = attributes.get(key, "false")
    value = gobool.parse(text)
    if value is None:
        raise InvalidInputError(f"failed to parse {key} flag {text!r}")
    return value


@dataclass(frozen=True, slots=True)
class Invocation:
    """One build: its id, and when it began and ended (ns since the epoch)."""

    id: str
    started_ns: int
    finished_ns: int


@dataclass(slots=True)
class Predicate:
    """Everything that both versions of the document say."""

    materials: list[dict[str, Any]]
    config_source: dict[str, Any]
    request: dict[str, Any]
    builder_id: str
    reproducible: bool
    request_complete: bool
    materials_complete: bool
    hermetic: bool
    build_config: dict[str, Any] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    builder_facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls, found: Capture, options: ProvenanceOptions, definition: pb.Definition
    ) -> Predicate:
        """Return the document of one result, but for times and layers.

        Raises:
            IncompleteMaterialsError: it must be complete, and is not.
        """
        record = request_record(
            str(found.request.get("frontend", "")), found.request.get("args", {}), found
        )
        notes: dict[str, Any] = {}
        args = record["request"].get("args", {})
        vcs = _take_vcs(args)
        if vcs:
            notes["vcs"] = vcs
        complete = not found.incomplete and not found.local
        if options.complete and not complete:
            raise IncompleteMaterialsError(list(found.local))
        predicate = cls(
            materials=_materials(found),
            config_source=record["configSource"],
            request=_request(record["request"], found),
            builder_id=options.builder_id,
            reproducible=options.reproducible,
            request_complete=bool(found.request.get("frontend")),
            materials_complete=complete,
            hermetic=complete and not found.network,
            notes=notes,
        )
        if options.with_steps:
            predicate._add_steps(definition, found.usage if options.with_usage else {})
        else:
            request, scrubbed = _scrub(predicate.request)
            predicate.request = request
            predicate.request_complete &= not scrubbed
        predicate.request["compatibilityVersion"] = _COMPATIBILITY_VERSION
        return predicate

    def _add_steps(self, definition: pb.Definition, usage: Mapping[str, StepUsage]) -> None:
        made = build_steps(definition)
        self.numbers = made.numbers
        for digest, used in usage.items():
            if digest in made.numbers:
                made.steps[made.numbers[digest]]["resourceUsage"] = _usage(used)
        self.build_config = {"llbDefinition": made.steps, "digestMapping": made.mapping()}
        source = definition.Source
        if not source.infos:
            return
        infos = []
        for info in source.infos:
            own = build_steps(info.definition if info.HasField("definition") else None)
            shown: dict[str, Any] = {"filename": info.filename, "language": info.language}
            shown |= {key: to_json(info)[key] for key in ("data",) if info.data}
            shown["llbDefinition"], shown["digestMapping"] = own.steps, own.mapping()
            infos.append({key: value for key, value in shown.items() if value})
        locations = {
            f"step{made.numbers[digest]}": to_json(source.locations[digest])
            for digest in source.locations
            if digest in made.numbers
        }
        self.notes["source"] = {
            **({"locations": dict(sorted(locations.items()))} if locations else {}),
            "infos": infos,
        }

    def add_layers(self, layers: Mapping[tuple[str, int], Sequence[Sequence[Descriptor]]]) -> None:
        """Add the blobs of steps' results, by vertex digest and output."""
        found = {
            f"step{self.numbers[digest]}:{output}": [
                [item.to_json() for item in chain] for chain in chains
            ]
            for (digest, output), chains in layers.items()
            if digest in self.numbers
        }
        if found:
            self.notes["layers"] = dict(sorted(found.items()))

    def add_machine(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Add what the machine was doing at some moments of the build."""
        self.notes["sysUsage"] = list(samples)

    def to_json(self, version: str, run: Invocation) -> dict[str, Any]:
        """Return the document in the version that was asked for."""
        return self._slsa_02(run) if version == "v0.2" else self._slsa_1(run)

    def _slsa_1(self, run: Invocation) -> dict[str, Any]:
        definition: dict[str, Any] = {"buildType": _BUILD_TYPE_1}
        if self.materials:
            definition["resolvedDependencies"] = self.materials
        internal: dict[str, Any] = {"builderPlatform": _platform(), **self._environment()}
        if self.build_config is not None:
            internal["buildConfig"] = _without_empty(self.build_config)
        definition["externalParameters"] = {
            "configSource": self.config_source,
            "request": self.request,
        }
        definition["internalParameters"] = gojson.through_map(internal)
        metadata: dict[str, Any] = {
            "invocationId": run.id,
            "startedOn": time_text(run.started_ns),
            "finishedOn": time_text(run.finished_ns),
            "buildkit_metadata": self.notes,
        }
        if self.hermetic:
            metadata["buildkit_hermetic"] = True
        metadata["buildkit_completeness"] = {
            "request": self.request_complete,
            "resolvedDependencies": self.materials_complete,
        }
        if self.reproducible:
            metadata["buildkit_reproducible"] = True
        details = {"builder": {"id": self.builder_id}, "metadata": metadata}
        return {"buildDefinition": definition, "runDetails": details}

    def _environment(self) -> dict[str, Any]:
        """Return what is known of the builder besides its platform."""
        if self.request.get("frontend") != "dockerfile.v0":
            return dict(self.builder_facts)
        return {"dockerfileVersion": DOCKERFILE_VERSION, **self.builder_facts}

    def _slsa_02(self, run: Invocation) -> dict[str, Any]:
        config = dict(self.config_source)
        if "path" in config:
            config["entryPoint"] = config.pop("path")
        out: dict[str, Any] = {"builder": {"id": self.builder_id}, "buildType": _BUILD_TYPE_02}
        if self.materials:
            out["materials"] = self.materials
        out["invocation"] = {
            "configSource": config,
            "parameters": self.request,
            "environment": gojson.through_map({"platform": _platform(), **self._environment()}),
        }
        if self.build_config is not None:
            out["buildConfig"] = _without_empty(self.build_config)
        metadata: dict[str, Any] = {
            "buildInvocationID": run.id,
            "buildStartedOn": time_text(run.started_ns),
            "buildFinishedOn": time_text(run.finished_ns),
            "completeness": {
                "parameters": self.request_complete,
                "environment": True,
                "materials": self.materials_complete,
            },
            "reproducible": self.reproducible,
            f"{_BUILD_TYPE_02}#metadata": self.notes,
        }
        if self.hermetic:
            metadata[f"{_BUILD_TYPE_02}#hermetic"] = True
        out["metadata"] = metadata
        return out


def _platform() -> str:
    host = Platform.host()
    return "/".join(part for part in (host.os, host.architecture, host.variant) if part)


def _usage(used: StepUsage) -> dict[str, Any]:
    """Return what a step has used as the last of BuildKit's samples of its control group."""
    found: dict[str, Any] = {"timestamp": time_text(used.ended_ns)}
    if used.cpu_usec:
        found["cpuStat"] = {"usageNanos": used.cpu_usec * 1000}
    if used.memory_peak_bytes:
        found["memoryStat"] = {"peak": used.memory_peak_bytes}
    return {"samples": [found]}


def _without_empty(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item}


def _materials(found: Capture) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for image in found.images:
        kind = "oci" if image.local else "docker"
        item: dict[str, Any] = {
            "uri": image_url(Reference.parse(image.ref), image.platform, kind=kind)
        }
        if image.digest:
            item["digest"] = _digest(image.digest)
        out.append(item)
    for (text, is_local), digest in found.blobs.items():
        kind = "oci" if is_local else "docker"
        uri = image_url(Reference.parse(text), None, kind=kind, ref_type="blob")
        out.append({"uri": uri, "digest": _digest(digest)})
    for url, commit in found.git.items():
        out.append({"uri": url, "digest": commit_digest(commit)})
        out += [_bundle(url, bundle) for source, bundle in found.bundles if source == url]
    out += [{"uri": url, "digest": _digest(digest)} for url, digest in found.http.items()]
    return out


def _bundle(url: str, text: str) -> dict[str, Any]:
    """Return the blob that a commit was taken from."""
    scheme, _, body = text.partition("://")
    bundle = BlobLocator.parse(scheme, body, {})
    kind = "oci" if scheme == LAYOUT_SCHEME else "docker"
    uri = image_url(bundle.ref, None, kind=kind, ref_type="bundle", vcs_url=url)
    return {"uri": uri, "digest": _digest(bundle.digest)}


def _digest(text: str) -> dict[str, str]:
    algorithm, _, encoded = text.partition(":")
    return {algorithm: encoded}


def _take_vcs(args: dict[str, str]) -> dict[str, str]:
    """Take what clients tell about the context's repository out of the options."""
    found = {}
    for key in [key for key in args if key.startswith("vcs:")]:
        value = args.pop(key)
        name = key.removeprefix("vcs:")
        if value:
            found[name] = redact(value) if name == "source" else value
    return found


def _request(request: Mapping[str, Any], found: Capture) -> dict[str, Any]:
    """Return the request in the order of Go's fields."""
    secrets = [_named(name, optional=optional) for name, optional in found.secrets.items()]
    agents = [_named(name, optional=optional) for name, optional in found.ssh.items()]
    out = {
        "frontend": request.get("frontend"),
        "args": request.get("args"),
        "secrets": secrets,
        "ssh": agents,
        "locals": [{"name": name} for name in found.local],
        "inputs": found.request.get("inputs"),
        "root": found.request.get("root"),
    }
    return {key: value for key, value in out.items() if value}


def _named(name: str, *, optional: bool) -> dict[str, Any]:
    return {"id": name, "optional": True} if optional else {"id": name}


def _scrub(request: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Leave out what may be private: build arguments, labels, names of secrets.

    Configs of images that other builds have made (``input-metadata:``) have their build
    arguments in the history; BuildKit leaves those in. Here they keep their names alone.

    Returns:
        The rest, and whether arguments or labels were left out.
    """
    out = {key: value for key, value in request.items() if key not in {"secrets", "ssh"}}
    args = dict(out.get("args") or {})
    kept = {k: v for k, v in args.items() if not k.startswith(_PRIVATE)}
    scrubbed = len(kept) < len(args)
    for name in args:
        if name.startswith(_CONFIGS):
            kept[name] = ""
            scrubbed = True
    out["args"] = kept
    records = dict(out.get("inputs") or {})
    for name, record in records.items():
        records[name], inner = _scrub_record(record)
        scrubbed |= inner
    out["inputs"] = records
    if "root" in out:
        out["root"], inner = _scrub_record(out["root"])
        scrubbed |= inner
    return {key: value for key, value in out.items() if value}, scrubbed


def _scrub_record(record: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    request, scrubbed = _scrub(record["request"])
    return {"configSource": record["configSource"], "request": request}, scrubbed
