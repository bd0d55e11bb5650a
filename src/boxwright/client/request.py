"""What a build is asked for, and what it answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from boxwright.client import localcache
from boxwright.client.failedstep import FailedStep
from boxwright.client.localcache import CacheSpec, CacheWriters
from boxwright.core import gobool
from boxwright.core.dataclass import dataclass, field
from boxwright.errors import InvalidInputError
from boxwright.session.base import FileSink
from boxwright.session.providers.auth import AuthProvider
from boxwright.session.providers.contents import OciLayouts, publish
from boxwright.session.providers.localdirs import LocalDirs
from boxwright.session.providers.outputs import (
    FolderOutput,
    OpenSink,
    OutputSinks,
    PathSink,
    StreamSink,
)
from boxwright.session.providers.secrets import SecretSource, SecretsProvider
from boxwright.session.providers.ssh import AgentSource, SshProvider
from boxwright.session.providers.uploads import UploadProvider
from boxwright.session.services import SessionServices, new_id
from boxwright.wire.pb import control_pb2, ops_pb2, sourcepolicy_pb2

_DESCRIPTOR_KEY = "containerimage.descriptor"
_FILE_EXPORTERS = frozenset(("oci", "docker", "tar"))


@dataclass(frozen=True, slots=True)
class Export:
    """One output.

    Attributes:
        type: ``image``, ``oci``, ``docker``, ``local`` or ``tar``.
        attrs: Attributes for the exporter.
        path: Target file of ``oci``, ``docker`` and ``tar``, folder of ``local``.
        stream: Open binary file instead of ``path`` (standard output).
        sink: Makes the sink of the output instead of both.
    """

    type: str
    attrs: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    stream: BinaryIO | None = None
    sink: Callable[[], FileSink] | None = None

    @property
    def is_layout(self) -> bool:
        """Whether the output is an OCI layout in a folder (``tar=false``)."""
        return self.type in {"oci", "docker"} and self.attrs.get("tar") in gobool.FALSE


@dataclass(slots=True)
class BuildRequest:
    """A build, as BuildKit's clients ask for it.

    Attributes:
        frontend: ``dockerfile.v0``, ``gateway.v0``, or empty with a ``definition``.
        definition: An LLB graph.
        opts: Options of the frontend.
        locals: Folders that the build may read, by name.
        uploads: Streams that the build may pull once (see ``UploadProvider.add``).
        layouts: OCI layouts that the build may read images from.
        auth: Registry logins; None offers none.
        exports: Outputs; none builds into the cache only.
        entitlements: Extra rights that the build may use (``network.host`` …).
        source_policy: Rules for what the build may use (``sourcepolicy.read_policy``).
        shared_key: Finds the last state of the same folders on a remote daemon again.
        via_gateway: Run the frontend through the gateway and return its metadata, as
            subrequests (``--call``) need it.
        on_failed_step: Called when a command failed, while its state can still be looked into;
            goes with ``via_gateway``.
        ref: Name of the build; random if empty.
        internal: Leave the build out of the history.
    """

    frontend: str = ""
    definition: ops_pb2.Definition | None = None
    opts: dict[str, str] = field(default_factory=dict)
    frontend_inputs: Mapping[str, ops_pb2.Definition] = field(default_factory=dict)
    locals: Mapping[str, Path] = field(default_factory=dict)
    uploads: UploadProvider | None = None
    layouts: OciLayouts | None = None
    secrets: tuple[SecretSource, ...] = ()
    ssh: tuple[AgentSource, ...] = ()
    auth: AuthProvider | None = None
    exports: tuple[Export, ...] = ()
    cache_from: tuple[CacheSpec, ...] = ()
    cache_to: tuple[CacheSpec, ...] = ()
    entitlements: tuple[str, ...] = ()
    source_policy: sourcepolicy_pb2.Policy | None = None
    shared_key: str = ""
    via_gateway: bool = False
    on_failed_step: Callable[[FailedStep], Awaitable[None]] | None = None
    ref: str = field(default_factory=new_id)
    internal: bool = False

    def services(self) -> SessionServices:
        """Return the session that goes with the request.

        Raises:
            InvalidInputError: an export has no target, or one that its type can't use.
            BoxwrightError: a shared folder, secret or agent is not there.
        """
        self.cache_from = localcache.resolve_imports(self.cache_from)
        dirs = LocalDirs(self.locals) if self.locals else None
        if dirs is not None:
            dirs.check()
        return SessionServices(
            dirs=dirs,
            auth=self.auth,
            secrets=SecretsProvider(self.secrets) if self.secrets else None,
            ssh=SshProvider(self.ssh) if self.ssh else None,
            outputs=_output_sinks(self.exports),
            uploads=self.uploads,
            layouts=self._layouts(),
            shared_key=self.shared_key,
        )

    def _layouts(self) -> OciLayouts | None:
        layouts = localcache.offer(self.layouts, self.cache_from, self.cache_to)
        for export in self.exports:
            if export.is_layout and export.path is not None:
                layouts = layouts or OciLayouts()
                layouts.add_target(export.path)
        return layouts

    def publish_layouts(self, response: Mapping[str, str], writers: CacheWriters) -> None:
        """Enter what was written into layouts (``tar=false``) in their indexes; blocks.

        Args:
            response: What the build answered.
            writers: Of its local caches, from before it began.

        Raises:
            BoxwrightError: an index can't be read or written.
        """
        localcache.publish(self.cache_to, response, writers)
        for export in self.exports:
            if export.is_layout and export.path is not None:
                descriptor = json.loads(base64.b64decode(response[_DESCRIPTOR_KEY]))
                names = [name for name in response.get("image.name", "").split(",") if name]
                publish(export.path, descriptor, names)

    def message(self, session_id: str) -> control_pb2.SolveRequest:
        """Return the Solve message (control.proto)."""
        exporters = [control_pb2.Exporter(Type=e.type, Attrs=e.attrs) for e in self.exports]
        message = control_pb2.SolveRequest(
            Ref=self.ref,
            Session=session_id,
            Exporters=exporters,
            Cache=control_pb2.CacheOptions(
                Exports=_cache_entries(self.cache_to), Imports=_cache_entries(self.cache_from)
            ),
            Entitlements=self.entitlements,
            Internal=self.internal,
        )
        if self.source_policy is not None:
            message.SourcePolicy.CopyFrom(self.source_policy)
        if exporters:  # daemons older than several exporters read these
            message.ExporterDeprecated = exporters[0].Type
            message.ExporterAttrsDeprecated.update(exporters[0].Attrs)
        if self.via_gateway:
            return message
        message.Frontend = self.frontend
        message.FrontendAttrs.update(self.opts)
        if self.definition is not None:
            message.Definition.CopyFrom(self.definition)
        for name, definition in self.frontend_inputs.items():
            message.FrontendInputs[name].CopyFrom(definition)
        return message


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What a build answered.

    Attributes:
        ref: The build's name.
        exporter_response: ``containerimage.digest`` and so on.
        metadata: Metadata of the frontend's result, for builds through the gateway.
    """

    ref: str
    exporter_response: Mapping[str, str]
    metadata: Mapping[str, bytes] = field(default_factory=dict)


def _cache_entries(specs: tuple[CacheSpec, ...]) -> list[control_pb2.CacheOptionsEntry]:
    return [control_pb2.CacheOptionsEntry(Type=spec.type, Attrs=spec.attrs) for spec in specs]


def _output_sinks(exports: tuple[Export, ...]) -> OutputSinks | None:
    outputs = OutputSinks()
    for number, export in enumerate(exports):
        if export.type == "local":
            if export.path is None:
                raise InvalidInputError(
                    "output directory is required for local exporter", hint="add dest=FOLDER"
                )
            mirror = export.attrs.get("mode", "").strip().lower() == "delete"
            outputs.folders[number] = FolderOutput(export.path, mirror=mirror)
        elif export.is_layout:
            if export.path is None:
                raise InvalidInputError(
                    f"output directory is required for {export.type} exporter with tar=false",
                    hint="add dest=FOLDER",
                )
        elif export.type in _FILE_EXPORTERS:
            outputs.files[number] = _opener(export)
        elif export.path is not None or export.stream is not None:
            raise InvalidInputError(
                f"the {export.type} exporter has no output file", hint="leave dest out"
            )
    return outputs if outputs.files or outputs.folders else None


def _opener(export: Export) -> OpenSink:
    sink, stream, path = export.sink, export.stream, export.path
    if sink is not None:
        return lambda _: sink()
    if stream is not None:
        return lambda _: StreamSink(stream)
    if path is not None:
        if path.is_dir():
            raise InvalidInputError(f"destination file {path} is a directory")
        return lambda _: PathSink(path)
    raise InvalidInputError(
        f"output file is required for {export.type} exporter",
        hint="add dest=FILE, or dest=- for standard output",
    )
