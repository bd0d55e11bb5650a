"""The cache-map digest of every op, equal to BuildKit's byte for byte.

A digest is the sha256 of a JSON document in the form that Go's encoder writes, made from the
op after everything was removed that must not change the key. How each input enters the key is
told by a :class:`DepSpec`. All of this is a pure function of the op; the sources' own keys are
given. Equality with BuildKit is proved by ``tests/golden/cachekeys``.
"""

from __future__ import annotations

import base64
import json
import posixpath
from collections.abc import Iterable, Sequence

from google.protobuf.message import Message

from boxwright.core.cacheinfo import RANDOM_PREFIX
from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError
from boxwright.wire.pb import ops_pb2 as pb

_EMPTY = -1
_ROOT = "/"


class CacheMapError(InvalidInputError):
    """An op whose key can't be made: it refers to what it does not have."""


@dataclass(frozen=True, slots=True)
class Selector:
    """A part of an input whose content counts. An empty path is the whole input."""

    path: str = ""
    wildcard: bool = False
    follow_links: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    required: tuple[str, ...] = ()

    @property
    def filtered(self) -> bool:
        """Whether the path alone does not tell what is selected."""
        return self.wildcard or bool(self.include) or bool(self.exclude)


@dataclass(frozen=True, slots=True)
class DepSpec:
    """How one input enters the key.

    Attributes:
        selector: Digest that narrows the input's definition keys; empty for none.
        content: What to digest for a content key; None if the input has no content key.
        preprocess: Whether the input's files must be there before the op runs.
    """

    selector: str = ""
    content: tuple[Selector, ...] | None = None
    preprocess: bool = False


@dataclass(frozen=True, slots=True)
class CacheMapSpec:
    """An op's share of its key, and one entry per input."""

    digest: str
    deps: tuple[DepSpec, ...] = ()


def cache_map(op: pb.Op, input_count: int, platform: Platform | None = None) -> CacheMapSpec:
    """Return the cache map of any op but a source.

    Args:
        op: A validated op (:func:`boxwright.llb.definition.validate`).
        input_count: The number of its inputs.
        platform: What the op runs on; this machine's if None. Only commands depend on it.

    Raises:
        CacheMapError: it refers to inputs that it does not have, or is a source.
    """
    match op.WhichOneof("op"):
        case "exec":
            return exec_cache_map(op.exec, input_count, platform or Platform.host())
        case "file":
            return file_cache_map(op.file, input_count)
        case "merge":
            count = len(op.merge.inputs)
            return _plain("buildkit.merge.v0", "Merge", op.merge, count)
        case "diff":
            sides = (op.diff.lower.input, op.diff.upper.input)
            count = sum(side != _EMPTY for side in sides)
            return _plain("buildkit.diff.v0", "Diff", op.diff, count)
        case "build":
            return _plain("buildkit.build.v0", "Exec", op.build, input_count)
        case "passthrough":
            kind = "buildkit.passthrough.v0"
            return _plain(kind, "Passthrough", op.passthrough, input_count)
    raise CacheMapError("no cache key for this operation", detail=str(op.WhichOneof("op")))


def source_cache_map(key: str) -> CacheMapSpec:
    """Return the cache map of a source from the key that it resolved to.

    Keys that start with ``session:`` are worth nothing in another session.
    """
    digest = Digest.of(f"buildkit.source.v0:{key}".encode())
    if key.startswith("session:"):
        return CacheMapSpec(RANDOM_PREFIX + digest.hex)
    return CacheMapSpec(digest)


def content_key(digests: Iterable[str]) -> Digest:
    """Return the content key of an input from the digests of its selected parts, in order."""
    return Digest.of(b"\0".join(d.encode() for d in digests))


def _plain(kind: str, field: str, message: Message, count: int) -> CacheMapSpec:
    document = {"Type": kind, field: to_json(message)}
    return CacheMapSpec(_digest(document), (DepSpec(),) * count)


# -- commands -----------------------------------------------------------------------------


def exec_cache_map(op: pb.ExecOp, input_count: int, platform: Platform) -> CacheMapSpec:
    """Return the cache map of a command.

    Left out of the key: proxy settings, addresses of extra hosts, mount selectors (they are in
    the inputs' part), and ids and sharing of cache mounts other than a Dockerfile's default.

    Raises:
        CacheMapError: a mount refers to an input that is not there, or wants a content key
            that would be wrong.
    """
    return CacheMapSpec(_digest(exec_document(op, platform)), _exec_deps(op, input_count))


def exec_document(op: pb.ExecOp, platform: Platform) -> dict[str, object]:
    """Return what the digest of a command is made of."""
    keyed = pb.ExecOp()
    keyed.CopyFrom(op)
    for host in keyed.meta.extraHosts:
        host.IP = ""
    for mount in keyed.mounts:
        mount.selector = ""
        if mount.HasField("cacheOpt") and not _is_default_cache(mount):
            mount.cacheOpt.ID = ""
            mount.cacheOpt.sharing = pb.CacheSharingOpt.SHARED
    keyed.meta.ClearField("proxy_env")
    if len(keyed.mounts) == 1 and _is_plain_root(keyed.mounts[0]):
        # Old versions forgot the mounts; the most common case keeps its key.
        keyed.ClearField("mounts")
    document: dict[str, object] = {
        "Type": "buildkit.exec.v0",
        "Exec": to_json(keyed),
        "OS": platform.os,
        "Arch": platform.architecture,
    }
    if platform.variant:
        document["Variant"] = platform.variant
    if platform.os_version:
        document["OSVersion"] = platform.os_version
    if platform.os_features:
        document["OSFeatures"] = list(platform.os_features)
    return document


def _is_default_cache(mount: pb.Mount) -> bool:
    """Whether the id is the target, alone or behind a namespace: a Dockerfile's default."""
    if mount.cacheOpt.sharing != pb.CacheSharingOpt.SHARED:
        return False
    name = mount.cacheOpt.ID
    return name == mount.dest or ("/" in name and name.partition("/")[2] == mount.dest)


def _is_plain_root(mount: pb.Mount) -> bool:
    return (
        mount.dest == _ROOT
        and not mount.readonly
        and mount.mountType == pb.MountType.BIND
        and not mount.HasField("cacheOpt")
        and not mount.HasField("SSHOpt")
        and not mount.HasField("secretOpt")
        and not mount.resultID
    )


def _exec_deps(op: pb.ExecOp, input_count: int) -> tuple[DepSpec, ...]:
    selected: list[list[str]] = [[] for _ in range(input_count)]
    by_content = [False] * input_count
    no_input = {pb.MountType.SECRET, pb.MountType.SSH, pb.MountType.TMPFS}
    for mount in op.mounts:
        if mount.mountType in no_input or mount.input == _EMPTY:
            continue
        if not 0 <= mount.input < input_count:
            raise CacheMapError(
                "a mount refers to an input that is not there",
                detail=f"{mount.dest}: input {mount.input} of {input_count}",
            )
        path = clean_path(f"/{mount.selector}")
        selected[mount.input].append(path)
        by_content[mount.input] = _mount_by_content(mount, path)
    return tuple(
        DepSpec(
            selector=Digest.of(b"\0".join(p.encode() for p in paths)) if paths else "",
            content=_whole_or(dedupe_paths(paths)) if content else None,
            preprocess=True,
        )
        for paths, content in zip(selected, by_content, strict=True)
    )


def _mount_by_content(mount: pb.Mount, path: str) -> bool:
    """Whether a mount may be keyed by what it shows.

    Not if the command can write to a part of an input and the whole goes on to later steps:
    files outside the part would come from another build.
    """
    safe = mount.output == _EMPTY or mount.readonly or path == _ROOT
    if mount.contentCache == pb.MountContentCache.OFF:
        return False
    if mount.contentCache == pb.MountContentCache.ON:
        if not safe:
            raise CacheMapError(
                "a mount can't be cached by content",
                detail=f"{mount.dest}: a part of its input, writable, and passed on",
            )
        return True
    # Digesting whole root file systems costs more than it would save.
    return safe and mount.dest != _ROOT


def _whole_or(paths: Sequence[str]) -> tuple[Selector, ...]:
    """Return selectors for the paths, or one for the whole input if any of them is its root."""
    if any(path in {"", _ROOT} for path in paths):
        return (Selector(),)
    return tuple(Selector(path, follow_links=True) for path in paths) or (Selector(),)


# -- file operations ----------------------------------------------------------------------


def file_cache_map(op: pb.FileOp, input_count: int) -> CacheMapSpec:
    """Return the cache map of a file operation.

    Of a copied path only its last name is in the key: where it lay is in the selector, and
    what it holds in the content key. Inputs that are changed have neither.

    Raises:
        CacheMapError: an owner refers to an input that is not there.
    """
    selectors: dict[int, list[Selector]] = {}
    changed: set[int] = set()
    actions: list[bytes] = []
    indexes: list[list[int]] = []
    for action in op.actions:
        actions.append(_encode(to_json(keyed_action(action, input_count, selectors))))
        changed.add(action.input)
        indexes.append([action.input, action.secondaryInput, action.output])
    document: dict[str, object] = {
        "Type": "buildkit.file.v0",
        "Actions": [base64.b64encode(action).decode() for action in actions],
    }
    if not _is_default_order(indexes):
        document["indexes"] = indexes
    deps = [DepSpec(preprocess=True)] * input_count
    for index, selected in selectors.items():
        if not 0 <= index < input_count:
            raise CacheMapError(
                "a file operation refers to an input that is not there",
                detail=f"input {index} of {input_count}",
            )
        if index not in changed:
            paths = sorted((s.path.encode() for s in selected), reverse=True)
            digest = Digest.of(b"\0".join(paths))
            deps[index] = DepSpec(digest, dedupe_selectors(selected), preprocess=True)
    return CacheMapSpec(_digest(document), tuple(deps))


def keyed_action(
    action: pb.FileAction, input_count: int, selectors: dict[int, list[Selector]]
) -> Message:
    """Return the part of an action that is in the key, and note what it selects of inputs."""
    match action.WhichOneof("action"):
        case "mkdir":
            _select_owner(action.mkdir.owner, selectors)
            return action.mkdir
        case "mkfile":
            _select_owner(action.mkfile.owner, selectors)
            return action.mkfile
        case "symlink":
            return action.symlink
        case "rm":
            return action.rm
        case "copy":
            _select_owner(action.copy.owner, selectors)
            if action.secondaryInput == _EMPTY or action.secondaryInput >= input_count:
                return action.copy
            selectors.setdefault(action.secondaryInput, []).append(_copy_selector(action.copy))
            keyed = pb.FileActionCopy()
            keyed.CopyFrom(action.copy)
            keyed.src = base_name(keyed.src)
            return keyed
    raise CacheMapError("a file action is of no known kind")


def _copy_selector(copy: pb.FileActionCopy) -> Selector:
    return Selector(
        path=copy.src,
        wildcard=copy.allowWildcard and has_wildcard(copy.src),
        follow_links=copy.followSymlink,
        include=tuple(copy.include_patterns),
        exclude=tuple(copy.exclude_patterns),
        required=tuple(copy.required_paths),
    )


def _select_owner(owner: pb.ChownOpt, selectors: dict[int, list[Selector]]) -> None:
    """A name is looked up in a file of an input: what that file holds counts."""
    for who, path in (("user", "/etc/passwd"), ("group", "/etc/group")):
        named: pb.UserOpt = getattr(owner, who)
        if named.WhichOneof("user") != "byName":
            continue
        if named.byName.input < 0:
            return
        selectors.setdefault(named.byName.input, []).append(Selector(path, follow_links=True))


def _is_default_order(indexes: list[list[int]]) -> bool:
    """Whether the actions form a simple chain; old versions left that out of the key."""
    if not indexes:
        return False
    last = len(indexes) - 1
    for number, (source, secondary, output) in enumerate(indexes):
        if source != (0 if number == 0 else last + number):
            return False
        if secondary not in {_EMPTY, 1}:
            return False
        if output != (0 if number == last else _EMPTY):
            return False
    return True


def dedupe_selectors(selectors: Sequence[Selector]) -> tuple[Selector, ...]:
    """Drop plain paths that lie under other plain paths, and sort by path."""
    plain = [s.path for s in selectors if not s.filtered and not s.follow_links]
    followed = [s.path for s in selectors if not s.filtered and s.follow_links]
    kept = [Selector(path) for path in dedupe_paths(plain)]
    kept += [Selector(path, follow_links=True) for path in dedupe_paths(followed)]
    kept += [s for s in selectors if s.filtered]
    return tuple(sorted(kept, key=lambda s: s.path.encode()))


def dedupe_paths(paths: Sequence[str]) -> list[str]:
    """Drop paths that lie under others; a single one is returned as it is."""
    if len(paths) <= 1:
        return list(paths)
    unique = set(paths)
    return sorted(
        (
            path
            for path in unique
            if not any(
                path != other and path.startswith(other if other.endswith("/") else f"{other}/")
                for other in unique
            )
        ),
        key=str.encode,
    )


def has_wildcard(path: str) -> bool:
    """Return whether a path has a pattern character that is not escaped."""
    escaped = False
    for char in path:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char in "*?[":
            return True
    return False


def base_name(path: str) -> str:
    """Return the last element of a path as Go's ``path.Base`` does: ``.`` for nothing."""
    if not path:
        return "."
    return path.rstrip("/").rpartition("/")[2] or "/"


def clean_path(path: str) -> str:
    """Return an absolute path without ``.``, ``..`` and repeated slashes."""
    return "/" + posixpath.normpath(path).lstrip("/")


# -- Go's JSON ----------------------------------------------------------------------------


def to_json(message: Message) -> dict[str, object]:
    """Return a message as Go's encoder sees it: declared names, zero values left out."""
    if isinstance(message, pb.UserOpt):
        return {"User": _user(message)}
    document: dict[str, object] = {}
    for field, value in sorted(message.ListFields(), key=lambda item: item[0].number):
        if hasattr(value, "items"):
            keys = sorted(value, key=str.encode)
            document[field.name] = {key: _value(value[key]) for key in keys}
        elif isinstance(value, str | bytes | bool | int | Message):
            document[field.name] = _value(value)
        else:
            document[field.name] = [_value(item) for item in value]
    return document


def _user(message: pb.UserOpt) -> dict[str, object]:
    if message.WhichOneof("user") == "byName":
        return {"byName": to_json(message.byName)}
    return {"byId": message.byID} if message.byID else {}


def _value(value: object) -> object:
    if isinstance(value, Message):
        return to_json(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def _encode(document: object) -> bytes:
    """Return the bytes that Go's ``json.Marshal`` writes."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        if char in text:
            text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode()


def _digest(document: object) -> Digest:
    return Digest.of(_encode(document))
