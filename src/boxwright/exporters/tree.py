"""The ``local`` and ``tar`` outputs: the files of a result, without an image around them."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.core.workers import to_worker
from boxwright.errors import InvalidInputError
from boxwright.exporters.archive import send_pieces
from boxwright.exporters.base import (
    ExportContext,
    ExportResult,
    ExportSource,
    parse_bool,
    parse_epoch,
    source_epoch,
)
from boxwright.exporters.statementfiles import MODE, statement_files
from boxwright.fsutil.layerlinks import LayerFinder
from boxwright.fsutil.tar import Entry, EntryType, TarWriter
from boxwright.linux import mount
from boxwright.oci.platforms import ResultPlatform
from boxwright.progress.step import StepProgress
from boxwright.session.treewalk import below_root
from boxwright.snapshots.layers import LayerForm
from boxwright.snapshots.refs import ImmutableRef

_TYPES = {
    stat.S_IFREG: EntryType.FILE,
    stat.S_IFDIR: EntryType.DIRECTORY,
    stat.S_IFLNK: EntryType.SYMLINK,
    stat.S_IFCHR: EntryType.CHARACTER,
    stat.S_IFBLK: EntryType.BLOCK,
    stat.S_IFIFO: EntryType.FIFO,
}


@dataclass(slots=True)
class TreeOptions:
    """What ``local`` and ``tar`` outputs share.

    Attributes:
        epoch_set: ``source-date-epoch`` was given, even if empty.
        epoch_s: modification time of all files, seconds since the epoch.
        platform_split: a folder for each platform; None means if there are several.
        delete: (``local``) files of the destination that the result lacks are removed.
        attestation_prefix: prefix of the names of attestation files.
    """

    epoch_set: bool = False
    epoch_s: int | None = None
    platform_split: bool | None = None
    delete: bool = False
    attestation_prefix: str = ""

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, str]) -> TreeOptions:
        """Read the attributes; those that are not ours are ignored, as upstream does.

        Raises:
            InvalidInputError: a value is malformed.
        """
        options = cls(attestation_prefix=attributes.get("attestation-prefix", ""))
        if "source-date-epoch" in attributes:
            options.epoch_set = True
            options.epoch_s = parse_epoch("source-date-epoch", attributes["source-date-epoch"])
        if "platform-split" in attributes:
            options.platform_split = parse_bool("platform-split", attributes["platform-split"])
        mode = attributes.get("mode", "")
        if mode not in {"", "copy", "delete"}:
            raise InvalidInputError(
                f"invalid local exporter mode {mode!r}", hint="use copy or delete"
            )
        options.delete = mode == "delete"
        return options

    def splits(self, source: ExportSource) -> bool:
        """Return whether each platform gets a folder of its own."""
        return source.is_map if self.platform_split is None else self.platform_split

    def epoch(self, source: ExportSource, platform: ResultPlatform) -> int | None:
        """Return the modification time that all files get, if any."""
        return self.epoch_s if self.epoch_set else source_epoch(source, platform)


@asynccontextmanager
async def _root(ref: ImmutableRef | None) -> AsyncIterator[Path]:
    if ref is not None:
        async with ref.mounted() as root:
            yield root
        return
    with tempfile.TemporaryDirectory(prefix="boxwright-empty-") as empty:
        yield Path(empty)


async def _finder(ref: ImmutableRef | None) -> LayerFinder:
    return LayerFinder(await ref.stack() if ref is not None else ())


class _SplitFinder:
    """Finds layers where each platform has a folder of its own."""

    def __init__(self, finders: Mapping[str, LayerFinder]) -> None:
        self._finders = {os.fsencode(name): finder for name, finder in finders.items()}

    def __call__(self, path: bytes) -> int:
        name, _, below = path.partition(b"/")
        return self._finders[name](below)


def _folder_name(platform: ResultPlatform) -> str:
    return platform.id.replace("/", "_")


@dataclass(slots=True)
class LocalExporter:
    """One ``local`` output: a folder on the client."""

    options: TreeOptions
    type: str = "local"
    name: str = "exporting to client directory"

    def layer_forms(self, _source: ExportSource) -> dict[str, LayerForm]:
        """Return nothing: files are wanted, no layers."""
        return {}

    async def export(self, source: ExportSource, context: ExportContext) -> ExportResult:
        """Send the files, all platforms in one transfer.

        Raises:
            InvalidInputError: two platforms have the same file and are not kept apart.
            SessionLostError: the client is gone.
        """
        platforms = source.platforms()
        split = self.options.splits(source)
        session = await context.sessions.get(context.session_id)
        async with AsyncExitStack() as stack:
            roots = {
                _folder_name(platform): await stack.enter_async_context(
                    _root(source.find(platform))
                )
                for platform in platforms
            }
            finders = {
                _folder_name(platform): await _finder(source.find(platform))
                for platform in platforms
            }
            layer_of: Callable[[bytes], int] | None = None
            folders = await self._statements(source, roots, stack, context)
            if split:
                for name, folder in folders.items():
                    pair = {"": folder, name: roots[name]}
                    roots[name] = await stack.enter_async_context(_merged(pair, context))
                root = await stack.enter_async_context(_side_by_side(roots, context))
                layer_of = _SplitFinder(finders)
            elif len(roots) > 1:
                await to_worker(_check_apart, roots)
                roots |= {f"{name}/": folder for name, folder in folders.items()}
                root = await stack.enter_async_context(_merged(roots, context))
            else:
                root = next(iter(roots.values()))
                if folders:
                    pair = {"": next(iter(folders.values())), "root": root}
                    root = await stack.enter_async_context(_merged(pair, context))
                layer_of = next(iter(finders.values()))
            with _transfer(context.step, platforms if split else (), self.options) as count:
                await session.send_tree(
                    root,
                    exporter_id=context.exporter_id,
                    mtime_ns=self._mtime_ns(source),
                    layer_of=layer_of,
                    is_split=split,
                    on_sent=count,
                )
        return ExportResult()

    async def _statements(
        self,
        source: ExportSource,
        roots: Mapping[str, Path],
        stack: AsyncExitStack,
        context: ExportContext,
    ) -> dict[str, Path]:
        """Write the attestations; return a folder for each platform that has some."""
        shared = source.is_map and not self.options.splits(source)
        folders = {}
        for platform in source.platforms():
            name = _folder_name(platform)
            files = await statement_files(
                source.attestations.get(platform.id, ()),
                roots[name],
                prefix=self.options.attestation_prefix,
                suffix=name if shared else "",
            )
            if files:
                folder = await stack.enter_async_context(_staging(context))
                await to_worker(_write_files, folder, files)
                folders[name] = folder
        return folders

    def _mtime_ns(self, source: ExportSource) -> int | None:
        epochs = (self.options.epoch(source, platform) for platform in source.platforms())
        epoch_s = next((each for each in epochs if each is not None), None)
        return None if epoch_s is None else epoch_s * 1_000_000_000


@contextmanager
def _transfer(
    step: StepProgress, platforms: Sequence[ResultPlatform], options: TreeOptions
) -> Iterator[Callable[[int], None]]:
    """Show the one transfer as BuildKit's, which are one for each platform that has a folder."""
    ids = [f"copying files {each.id}" for each in platforms] if not options.delete else []
    if len(ids) < 2:
        with step.transfer(ids[0] if ids else "copying files") as count:
            yield count
        return
    with ExitStack() as parts:
        for status_id in ids:
            parts.enter_context(step.part(status_id, name="transferring"))
        yield lambda _size: None  # of which platform the bytes are, nobody says


@asynccontextmanager
async def _staging(context: ExportContext) -> AsyncIterator[Path]:
    """Give a folder for mounts; they are gone when it is."""
    folder = Path(await to_worker(tempfile.mkdtemp, prefix="export-", dir=context.store.mounts))
    await to_worker(os.chmod, folder, 0o755)
    try:
        yield folder
    finally:
        mount.unmount_below(folder)
        shutil.rmtree(folder)


@asynccontextmanager
async def _side_by_side(roots: Mapping[str, Path], context: ExportContext) -> AsyncIterator[Path]:
    """Give a folder with one folder for each platform."""
    async with _staging(context) as folder:
        for name, root in roots.items():
            (folder / name).mkdir(0o755)
            await to_worker(mount.bind, root, folder / name, read_only=True)
        yield folder


@asynccontextmanager
async def _merged(roots: Mapping[str, Path], context: ExportContext) -> AsyncIterator[Path]:
    """Give the files of all platforms in one folder."""
    async with _staging(context) as folder:
        target = folder / "merged"
        target.mkdir()
        await to_worker(
            mount.overlay,
            target,
            lower=list(roots.values()),
            upper=None,
            work=None,
            userxattr=context.store.rootless,
        )
        yield target


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.write_bytes(data)
        path.chmod(MODE)


def _check_apart(roots: Mapping[str, Path]) -> None:
    """Refuse two platforms that would write the same file."""
    seen: dict[str, str] = {}
    for name, root in roots.items():
        for folder, _, files in os.walk(root):
            for file in files:
                path = os.path.relpath(os.path.join(folder, file), root)
                if path in seen:
                    raise InvalidInputError(
                        f"cannot overwrite {path} from {seen[path]} with {name} when split"
                        " option is disabled"
                    )
                seen[path] = name


@dataclass(slots=True)
class TarExporter:
    """One ``tar`` output: an archive of the files, sent to the client."""

    options: TreeOptions
    type: str = "tar"
    name: str = "exporting to client tarball"

    def layer_forms(self, _source: ExportSource) -> dict[str, LayerForm]:
        """Return nothing: files are wanted, no layers."""
        return {}

    async def export(self, source: ExportSource, context: ExportContext) -> ExportResult:
        """Send the archive.

        Raises:
            SessionLostError: the client is gone.
        """
        platforms = source.platforms()
        session = await context.sessions.get(context.session_id)
        async with AsyncExitStack() as stack:
            parts = []
            for platform in platforms:
                root = await stack.enter_async_context(_root(source.find(platform)))
                folder = _folder_name(platform) if source.is_map else ""
                epoch_s = self.options.epoch(source, platform)
                files = await statement_files(
                    source.attestations.get(platform.id, ()),
                    root,
                    prefix=self.options.attestation_prefix,
                )
                finder = await _finder(source.find(platform))
                now_s = context.clock.now_ns() // 1_000_000_000
                parts.append(_Part(folder, root, epoch_s, finder, files, now_s))
            with context.step.part("sending tarball"):
                sink = await session.send_file({}, exporter_id=context.exporter_id)
                await send_pieces(sink, _archive(sorted(parts, key=lambda part: part.folder)))
        return ExportResult()


@dataclass(frozen=True, slots=True)
class _Part:
    """The files of one platform; ``folder`` is empty if they are all there is.

    ``files`` are more files for the top folder, which were made at ``now_s``.
    """

    folder: str
    root: Path
    epoch_s: int | None
    layer_of: LayerFinder
    files: Mapping[str, bytes]
    now_s: int

    def statements(self, prefix: bytes) -> Iterator[tuple[Entry, bytes]]:
        """Yield the additional files in order of their names."""
        mtime = self.now_s if self.epoch_s is None else self.epoch_s
        for name, data in sorted(self.files.items()):
            yield Entry(prefix + os.fsencode(name), mode=MODE, size=len(data), mtime=mtime), data


def _archive(parts: list[_Part]) -> Iterator[bytes]:
    pieces: list[bytes] = []
    tar = TarWriter(pieces.append)
    for part in parts:
        epoch_s = part.epoch_s
        prefix = b""
        if part.folder:
            prefix = os.fsencode(part.folder) + b"/"
            tar.add(Entry(prefix, EntryType.DIRECTORY, 0o755, mtime=epoch_s or 0))
        for entry, data in part.statements(prefix):
            tar.add(entry, data)
        hidden = {os.fsencode(name) for name in part.files}
        links: dict[tuple[int, int], bytes] = {}
        for path, info in _walk(os.fsencode(part.root)):
            member = _entry(path, prefix, info, epoch_s)
            if member is None or member.name.removeprefix(prefix) in hidden:
                continue
            entry = member
            if part.folder and entry.linkname.startswith(b"/"):
                entry.linkname = below_root(os.fsencode(part.folder), entry.linkname)
            if info.st_nlink > 1 and entry.type not in {EntryType.DIRECTORY, EntryType.SYMLINK}:
                layer = part.layer_of(entry.name.removeprefix(prefix))
                first = links.setdefault((layer, info.st_ino), entry.name)
                if first is not entry.name:
                    entry.type, entry.linkname, entry.size = EntryType.HARD_LINK, first, 0
            yield from _member(tar, entry, path, pieces)
    tar.close()
    yield from pieces


def _walk(root: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield full paths (with ``//`` between root and the rest) in byte order of names."""
    stack = [root + b"/"]
    while stack:
        path = stack.pop()
        if path != root + b"/":
            info = os.lstat(path)
            yield path, info
            if not stat.S_ISDIR(info.st_mode):
                continue
        names = sorted(os.listdir(path), reverse=True)
        stack += [path + b"/" + name for name in names]


def _entry(path: bytes, prefix: bytes, info: os.stat_result, epoch_s: int | None) -> Entry | None:
    kind = _TYPES.get(stat.S_IFMT(info.st_mode))
    if kind is None:
        return None
    name = prefix + path.partition(b"//")[2].replace(b"//", b"/")
    # Go rounds a time when no PAX header is asked for
    mtime = (info.st_mtime_ns + 500_000_000) // 1_000_000_000
    entry = Entry(
        name + (b"/" if kind == EntryType.DIRECTORY else b""),
        kind,
        stat.S_IMODE(info.st_mode),
        info.st_uid,
        info.st_gid,
        info.st_size if kind == EntryType.FILE else 0,
        mtime if epoch_s is None else epoch_s,
    )
    if kind == EntryType.SYMLINK:
        entry.linkname = os.readlink(path)
    elif kind in {EntryType.CHARACTER, EntryType.BLOCK}:
        entry.dev_major, entry.dev_minor = os.major(info.st_rdev), os.minor(info.st_rdev)
    if kind != EntryType.SYMLINK:
        for attribute in os.listxattr(path, follow_symlinks=False):
            entry.xattrs[attribute] = os.getxattr(path, attribute, follow_symlinks=False)
    return entry


def _member(tar: TarWriter, entry: Entry, path: bytes, pieces: list[bytes]) -> Iterator[bytes]:
    if entry.type == EntryType.FILE:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            tar.add_file(entry, fd)
        finally:
            os.close(fd)
    else:
        tar.add_header(entry)
    yield from pieces
    pieces.clear()
