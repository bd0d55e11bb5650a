"""The ``oci`` and ``docker`` outputs: an image as one tar archive, sent to the client.

Both are an OCI image layout; ``docker`` adds the ``manifest.json`` that ``docker load`` of
all versions reads. Entries are in order of their names with zero times, so that an equal
image is an equal archive.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, cast

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.gojson import time_text
from boxwright.core.reference import Reference
from boxwright.core.workers import to_worker
from boxwright.errors import InvalidInputError, UnimplementedError
from boxwright.exporters.base import (
    NAME_KEY,
    ExportContext,
    ExportResult,
    ExportSource,
    parse_bool,
    source_epoch,
)
from boxwright.exporters.image import image_names, image_response, with_attributes
from boxwright.exporters.options import ImageOptions, check_names
from boxwright.exporters.writer import CommittedImage, commit_image, layer_forms
from boxwright.fsutil.tar import Entry, EntryType, TarWriter
from boxwright.oci import layout
from boxwright.session.base import FileSink, OutputDeclinedError, Session
from boxwright.snapshots.layers import LayerForm
from boxwright.store import Store

_CHUNK = 1 << 20
_EXPORT_STORE = "export"
_MODES = {layout.INDEX_FILE: 0o644, layout.DOCKER_MANIFEST_FILE: 0o644}


@dataclass(slots=True)
class ArchiveExporter:
    """One ``oci`` or ``docker`` output.

    Attributes:
        type: ``oci`` or ``docker``.
        options: what all image outputs share.
        tar: one archive; otherwise blobs go one by one into the client's content store.
        metadata: attributes that are not ours; added to the frontend's metadata.
    """

    type: str
    options: ImageOptions
    tar: bool = True
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the progress calls this output."""
        return f"exporting to {self.type} image format"

    @classmethod
    def from_attributes(cls, kind: str, attributes: Mapping[str, str]) -> ArchiveExporter:
        """Read the attributes of an ``oci`` or ``docker`` output.

        Raises:
            InvalidInputError: a value is malformed.
        """
        options, rest = ImageOptions.take(attributes)
        check_names(options.name, "parse")
        tar = parse_bool("tar", rest.pop("tar"), empty=True) if "tar" in rest else True
        return cls(kind, options, tar, rest)

    def layer_forms(self, source: ExportSource) -> dict[str, LayerForm]:
        """Return in which form each platform's layers will be wanted.

        Raises:
            BoxwrightError: the result can't be exported with these attributes.
        """
        return layer_forms(*with_attributes(source, self.options, self.metadata))

    async def export(self, source: ExportSource, context: ExportContext) -> ExportResult:
        """Make the image and send it.

        Raises:
            InvalidInputError: ``docker`` can't hold several platforms.
            SessionLostError: the client that wanted the archive is gone.
        """
        if self.type == "docker" and source.is_map:
            raise InvalidInputError(
                "docker exporter does not currently support exporting manifest lists",
                hint="use type=oci or push the image",
            )
        source, options = with_attributes(source, self.options, self.metadata)
        image = await commit_image(source, options, context)
        image = replace(image, descriptor=self._dated(image.descriptor, source, context))
        names = [_full_name(name) for name in image_names(source, options)]
        result = ExportResult(image_response(image), image.descriptor)
        if names:
            result.response[NAME_KEY] = ",".join(names)
        session = await context.sessions.get(context.session_id)
        if self.tar:
            files = await to_worker(self._files, image, names, context.store)
            with context.step.part("sending tarball"):
                sink = await session.send_file(result.response, exporter_id=context.exporter_id)
                await send_pieces(sink, _archive(context.store, files))
        else:
            await _send_blobs(session, image.descriptor.digest, context.store)
        return result

    def _dated(
        self, descriptor: Descriptor, source: ExportSource, context: ExportContext
    ) -> Descriptor:
        if layout.CREATED in descriptor.annotations:
            return descriptor
        epoch_s = self.options.epoch_s
        if not self.options.epoch_set:
            epoch_s = source_epoch(source, None)
        seconds = epoch_s if epoch_s is not None else context.clock.now_ns() // 1_000_000_000
        created = time_text(seconds * 1_000_000_000)
        return replace(descriptor, annotations={**descriptor.annotations, layout.CREATED: created})

    def _files(
        self, image: CommittedImage, names: Sequence[str], store: Store
    ) -> dict[str, bytes | Digest | None]:
        """Return the members of the archive: content, blob to copy, or None for a folder."""
        files: dict[str, bytes | Digest | None] = {
            layout.LAYOUT_FILE: layout.LAYOUT_BYTES,
            layout.INDEX_FILE: layout.encode_index(
                layout.named_descriptors(image.descriptor, names)
            ),
            "blobs/": None,
        }
        if self.type == "docker":
            manifests = [(manifest, names) for manifest in image.manifests.values()]
            files[layout.DOCKER_MANIFEST_FILE] = layout.encode_docker_manifest(manifests)
        for digest in _graph(store, image.descriptor.digest):
            files[layout.blob_path(digest)] = digest
            files[f"blobs/{digest.algorithm}/"] = None
        return dict(sorted(files.items()))


def _full_name(name: str) -> str:
    return str(Reference.parse(name).with_default_tag())


def _graph(store: Store, root: Digest) -> list[Digest]:
    """Return all blobs of an image, each before those that refer to it."""
    found: dict[Digest, None] = {}
    pending = [(root, iter(store.blobs.refs(root)))]
    while pending:
        digest, children = pending[-1]
        child = next((item for item in children if item not in found), None)
        if child is None:
            found[digest] = None
            pending.pop()
        else:
            pending.append((child, iter(store.blobs.refs(child))))
    return list(found)


class ContentWriter(Protocol):
    """A session whose client takes single blobs (containerd's Content service)."""

    async def write_content(
        self, store_id: str, digest: Digest, size: int, pieces: Iterator[bytes]
    ) -> None:
        """Write one blob; one that the client has already is not sent.

        Args:
            store_id: which of the client's stores.
            digest: the blob, verified by the client.
            size: its bytes.
            pieces: its content; blocks, so it is iterated in a worker.
        """
        ...


async def _send_blobs(session: Session, root: Digest, store: Store) -> None:
    """Copy an image into the client's content store, whose index the client writes itself."""
    if not hasattr(session, "write_content"):
        raise UnimplementedError(
            "this client takes no single blobs", hint="leave tar=false out of the output"
        )
    writer = cast("ContentWriter", session)
    for digest in await to_worker(_graph, store, root):
        size = os.stat(store.blobs.path(digest)).st_size
        await writer.write_content(_EXPORT_STORE, digest, size, _content(store, digest))


def _content(store: Store, digest: Digest) -> Iterator[bytes]:
    with store.blobs.open(digest) as file:
        while data := file.read(_CHUNK):
            yield data


async def send_pieces(sink: FileSink, pieces: Iterator[bytes]) -> None:
    """Send what ``pieces`` yields (it runs in a worker); the sink is closed or aborted.

    Raises:
        SessionLostError: the client is gone.
    """
    try:
        while piece := await to_worker(next, pieces, b""):
            await sink.write(piece)
        await sink.close()
    except OutputDeclinedError:
        await sink.abort()
    except BaseException:
        await sink.abort()
        raise


def _archive(store: Store, files: Mapping[str, bytes | Digest | None]) -> Iterator[bytes]:
    """Yield the bytes of the archive."""
    pieces: list[bytes] = []
    tar = TarWriter(pieces.append)
    for name, content in files.items():
        entry = Entry(name.encode(), mode=_MODES.get(name, 0o444))
        if content is None:
            entry.type, entry.mode = EntryType.DIRECTORY, 0o755
            tar.add(entry)
        elif isinstance(content, bytes):
            tar.add(entry, content)
        else:
            yield from _blob(store, tar, entry, content, pieces)
    tar.close()
    yield from pieces


def _blob(
    store: Store, tar: TarWriter, entry: Entry, digest: Digest, pieces: list[bytes]
) -> Iterator[bytes]:
    with store.blobs.open(digest) as file:
        entry.size = os.fstat(file.fileno()).st_size
        tar.add_header(entry)
        while data := file.read(_CHUNK):
            tar.write(data)
            yield from pieces
            pieces.clear()
        tar.end_content(entry.size)
