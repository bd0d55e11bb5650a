"""Source vertices: images, local directories, git, HTTP, OCI layouts.

Attribute names are facts of the wire (``SourceOp.attrs``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Unpack

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.errors import InvalidInputError
from boxwright.llb import build_caps as caps
from boxwright.llb.build_giturl import parse_git_url, split_fragment
from boxwright.llb.marshal import Constraints, Marshalled, Marshaller, OpOptions, Output
from boxwright.llb.state import State
from boxwright.wire.pb import ops_pb2 as pb

ResolveMode = Literal["default", "pull", "local"]
Differ = Literal["", "none", "metadata"]

_PLATFORM_SPECIFIC = ("docker-image://", "oci-layout://")


@dataclass(frozen=True, slots=True)
class GitSignature:
    """Who has to have signed a commit, or the annotated tag that leads to it.

    Attributes:
        public_keys: Armored OpenPGP keys, or lines of SSH keys as in ``authorized_keys``.
        reject_expired: Whether an OpenPGP key must not have expired by today.
        require_tag: Only the signature of a tag counts.
        ignore_tag: Only the signature of the commit counts.
    """

    public_keys: str
    reject_expired: bool = False
    require_tag: bool = False
    ignore_tag: bool = False

    def add_to(self, attrs: dict[str, str]) -> list[str]:
        """Set the attributes; return the capabilities they need."""
        return _set(
            attrs,
            (self.public_keys, "git.sig.pubkey", caps.SOURCE_GIT_SIGNATURE_VERIFY),
            (self.reject_expired, "git.sig.rejectexpired", ""),
            (self.require_tag, "git.sig.requiresignedtag", ""),
            (self.ignore_tag, "git.sig.ignoresignedtag", ""),
        )


class SourceOp:
    """A vertex without inputs, named by an identifier and attributes."""

    def __init__(
        self, identifier: str, attrs: Mapping[str, str], constraints: Constraints
    ) -> None:
        if not identifier:
            raise InvalidInputError("a source needs an identifier")
        self.identifier = identifier
        self.attrs = dict(attrs)
        self.constraints = constraints

    def inputs(self) -> Sequence[Output]:
        """Return nothing: sources have no inputs."""
        return ()

    def output(self) -> Output:
        """Return the source's one output."""
        return Output(self, platform=self.constraints.platform)

    def marshal(self, marshaller: Marshaller) -> Marshalled:
        """Return the op's bytes."""
        attrs, constraints = self.attrs, self.constraints
        if self.identifier.startswith("local://") and "local.session" not in attrs:
            attrs = {**attrs, "local.unique": marshaller.local_unique_id}
            constraints = constraints.with_caps(caps.SOURCE_LOCAL_UNIQUE)
        specific = self.identifier.startswith(_PLATFORM_SPECIFIC)
        op = marshaller.new_op(constraints, platform=specific)
        op.source.CopyFrom(pb.SourceOp(identifier=self.identifier, attrs=attrs))
        return Marshalled.of(op, constraints)


def source(
    identifier: str,
    attrs: Mapping[str, str] | None = None,
    *,
    caps: Sequence[str] = (),
    **options: Unpack[OpOptions],
) -> State:
    """Return the state of any source, given as it stands on the wire."""
    constraints = Constraints.of(options).with_caps(*caps)
    return State.new(SourceOp(identifier, attrs or {}, constraints).output())


def image(
    ref: str,
    *,
    resolve_mode: ResolveMode = "default",
    checksum: Digest | None = None,
    layer_limit: int | None = None,
    internal: bool = False,
    **options: Unpack[OpOptions],
) -> State:
    """Return the root filesystem of an image in a registry.

    Args:
        ref: A reference in full or familiar form; ``latest`` is the default tag.
        resolve_mode: ``pull`` asks the registry always, ``local`` prefers a local copy.
        checksum: The manifest digest that the image must have.
        layer_limit: Take only that many layers from the bottom.
        internal: Hide the pull's record from ordinary usage listings.
        options: See :class:`OpOptions`.

    Raises:
        InvalidInputError: ``ref`` is not an image reference.
    """
    full = str(Reference.parse(ref).with_default_tag())
    attrs: dict[str, str] = {}
    needs = [caps.SOURCE_IMAGE]
    if resolve_mode != "default":
        attrs["image.resolvemode"] = resolve_mode
        if resolve_mode == "pull":
            needs.append(caps.SOURCE_IMAGE_RESOLVE_MODE)
    if internal:
        attrs["image.recordtype"] = "internal"
    if layer_limit is not None:
        attrs["image.layerlimit"] = str(layer_limit)
        needs.append(caps.SOURCE_IMAGE_LAYER_LIMIT)
    if checksum:
        attrs["image.checksum"] = checksum
        needs.append(caps.SOURCE_IMAGE_CHECKSUM)
    return source("docker-image://" + full, attrs, caps=needs, **options)


def local(
    name: str,
    /,
    *,
    session_id: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow: Sequence[str] = (),
    shared_key: str = "",
    differ: Differ = "",
    differ_required: bool = False,
    metadata_only: bool = False,
    metadata_exceptions: Sequence[str] = (),
    **options: Unpack[OpOptions],
) -> State:
    """Return a directory that the client of the build offers under ``name``.

    Args:
        name: The name the client has given the directory.
        session_id: The session to read it from; the build's own where empty.
        include: Patterns of what is sent; everything where empty.
        exclude: ``.dockerignore`` patterns of what is not sent.
        follow: Paths of which only they, and what their symlinks lead to, are sent.
        shared_key: A hint by which builds reuse what was sent before.
        differ: How the daemon tells what changed; ``none`` sends everything again.
        differ_required: Fail where the daemon does not know ``differ``.
        metadata_only: Send names and attributes without contents.
        metadata_exceptions: Patterns of files that are sent whole nevertheless.
        options: See :class:`OpOptions`.
    """
    attrs: dict[str, str] = {}
    needs = [caps.SOURCE_LOCAL]
    needs += _set(
        attrs,
        (session_id, "local.session", caps.SOURCE_LOCAL_SESSION_ID),
        (_json(include), "local.includepattern", caps.SOURCE_LOCAL_INCLUDE_PATTERNS),
        (_json(follow), "local.followpaths", caps.SOURCE_LOCAL_FOLLOW_PATHS),
        (_json(exclude), "local.excludepatterns", caps.SOURCE_LOCAL_EXCLUDE_PATTERNS),
        (shared_key, "local.sharedkeyhint", caps.SOURCE_LOCAL_SHARED_KEY_HINT),
    )
    if differ:
        attrs["local.differ"] = differ
        if differ_required:
            needs.append(caps.SOURCE_LOCAL_DIFFER)
    if metadata_only:
        attrs["local.metadatatransfer"] = "true"
        if metadata_exceptions:
            attrs["local.metadatatransferexclude"] = _json(metadata_exceptions)
        needs.append(caps.SOURCE_METADATA_TRANSFER)
    return source("local://" + name, attrs, caps=needs, **options)


def git(
    url: str,
    ref: str = "",
    *,
    subdir: str = "",
    keep_git_dir: bool = False,
    checksum: str = "",
    skip_submodules: bool = False,
    mtime: str = "",
    fetch_by_commit: bool = False,
    auth_token_secret: str = "GIT_AUTH_TOKEN",  # noqa: S107 - a secret's name
    auth_header_secret: str = "GIT_AUTH_HEADER",  # noqa: S107 - a secret's name
    known_ssh_hosts: str = "",
    ssh_id: str = "",
    bundle: str = "",
    bundle_session_id: str = "",
    bundle_store_id: str = "",
    checkout_bundle: bool = False,
    signed: GitSignature | None = None,
    **options: Unpack[OpOptions],
) -> State:
    """Return the work tree of a git repository.

    Args:
        url: The remote; ``https://`` is assumed without a scheme.
        ref: A branch, tag or commit; ``ref:subdir`` is taken apart.
        subdir: The directory inside the repository to take.
        keep_git_dir: Keep ``.git``.
        checksum: The commit that ``ref`` must resolve to.
        skip_submodules: Do not check out submodules.
        mtime: ``commit`` gives all files the commit's time.
        fetch_by_commit: Fetch ``checksum`` itself, whatever ``ref`` now is.
        auth_token_secret: The secret with an HTTP token.
        auth_header_secret: The secret with an HTTP ``Authorization`` header.
        known_ssh_hosts: Lines of a ``known_hosts`` file; the daemon scans where empty.
        ssh_id: The forwarded ssh agent to use.
        bundle: Take the commit, which ``checksum`` must name, from this bundle: the identifier
            of a single blob (``docker-image+blob://NAME@DIGEST``, ``oci-layout+blob://…``).
        bundle_session_id: The client with the layout that the bundle is in.
        bundle_store_id: That layout's name.
        checkout_bundle: Make a bundle of commit and history, the file ``bundle``, in place of the
            work tree.
        signed: Who has to have signed the commit or tag.
        options: See :class:`OpOptions`.

    Raises:
        InvalidInputError: ``url`` has a scheme that git can't fetch.
    """
    remote = parse_git_url(url)
    if remote is None:
        remote = parse_git_url("https://" + url)
    assert remote is not None
    ref, fragment_subdir = split_fragment(ref)
    subdir = subdir or fragment_subdir
    identifier = remote.identifier
    if ref or subdir:
        identifier += "#" + ref + (f":{subdir}" if subdir else "")
    attrs = {"git.fullurl": remote.remote}
    needs = [caps.SOURCE_GIT, caps.SOURCE_GIT_FULL_URL]
    own_auth = (auth_token_secret, auth_header_secret) != ("GIT_AUTH_TOKEN", "GIT_AUTH_HEADER")
    auth = caps.SOURCE_GIT_HTTP_AUTH if own_auth else ""
    needs += _set(
        attrs,
        (keep_git_dir, "git.keepgitdir", caps.SOURCE_GIT_KEEP_DIR),
        (checksum, "git.checksum", caps.SOURCE_GIT_CHECKSUM),
        (skip_submodules, "git.skipsubmodules", caps.SOURCE_GIT_SKIP_SUBMODULES),
        (mtime, "git.mtime", caps.SOURCE_GIT_MTIME),
        (fetch_by_commit, "git.fetchbycommit", caps.SOURCE_GIT_FETCH_BY_COMMIT),
        (auth_token_secret, "git.authtokensecret", auth),
        (auth_header_secret, "git.authheadersecret", auth),
        (bundle, "git.bundle", caps.SOURCE_GIT_BUNDLE),
        (bundle_session_id, "oci.session", ""),
        (bundle_store_id, "oci.store", ""),
        (checkout_bundle, "git.checkoutbundle", caps.SOURCE_GIT_CHECKOUT_BUNDLE),
    )
    if signed is not None:
        needs += signed.add_to(attrs)
    if remote.scheme == "ssh":
        needs += [caps.SOURCE_GIT_KNOWN_SSH_HOSTS, caps.SOURCE_GIT_MOUNT_SSH_SOCK]
        attrs["git.mountsshsock"] = ssh_id or "default"
        _set(attrs, (known_ssh_hosts, "git.knownsshhosts", ""))
    return source("git://" + identifier, attrs, caps=needs, **options)


def http(
    url: str,
    *,
    filename: str = "",
    checksum: Digest | None = None,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    auth_header_secret: str = "",
    headers: Mapping[str, str] | None = None,
    signature: str = "",
    public_keys: str = "",
    **options: Unpack[OpOptions],
) -> State:
    """Return a directory that holds one downloaded file.

    Args:
        url: An http or https URL.
        filename: The file's name; taken from the response where empty.
        checksum: What the content must hash to.
        mode: Permission bits.
        uid: The file's owner.
        gid: The file's group.
        auth_header_secret: The secret with an ``Authorization`` header.
        headers: ``accept`` and ``user-agent`` to send.
        signature: An armored OpenPGP signature of the content; needs ``public_keys``.
        public_keys: Armored keys, of which one has to have signed.
        options: See :class:`OpOptions`.
    """
    attrs = _file_attrs(filename, mode, uid, gid)
    needs = [caps.SOURCE_HTTP]
    if checksum:
        attrs["http.checksum"] = checksum
        needs.append(caps.SOURCE_HTTP_CHECKSUM)
    if "http.perm" in attrs:
        needs.append(caps.SOURCE_HTTP_PERM)
    needs += [caps.SOURCE_HTTP_UID_GID for name in ("http.uid", "http.gid") if name in attrs]
    if auth_header_secret:
        attrs["http.authheadersecret"] = auth_header_secret
        needs.append(caps.SOURCE_HTTP_AUTH)
    if headers is not None:
        attrs |= {f"http.header.{key.lower()}": value for key, value in headers.items()}
        needs.append(caps.SOURCE_HTTP_HEADER)
    needs += _set(
        attrs,
        (public_keys, "http.sig.pubkey", caps.SOURCE_HTTP_SIGNATURE_VERIFY),
        (signature, "http.sig.signature", caps.SOURCE_HTTP_SIGNATURE_VERIFY),
    )
    return source(url, attrs, caps=needs, **options)


def oci_layout(
    ref: str,
    *,
    session_id: str = "",
    store_id: str = "",
    layer_limit: int | None = None,
    **options: Unpack[OpOptions],
) -> State:
    """Return the root filesystem of an image in an OCI layout that the client offers."""
    attrs: dict[str, str] = {}
    if session_id:
        attrs["oci.session"] = session_id
    if store_id:
        attrs["oci.store"] = store_id
    if layer_limit is not None:
        attrs["oci.layerlimit"] = str(layer_limit)
    return source("oci-layout://" + ref, attrs, caps=[caps.SOURCE_OCI_LAYOUT], **options)


def image_blob(
    ref: str,
    *,
    filename: str = "",
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    **options: Unpack[OpOptions],
) -> State:
    """Return a directory that holds one blob of a registry's repository as a file.

    Args:
        ref: ``NAME@DIGEST``.
        filename: The file's name; the digest's hexadecimal part where empty.
        mode: Permission bits.
        uid: The file's owner.
        gid: The file's group.
        options: See :class:`OpOptions`.

    Raises:
        InvalidInputError: ``ref`` has a tag, or no digest.
    """
    attrs = _file_attrs(filename, mode, uid, gid)
    return source(
        "docker-image+blob://" + _digested(ref), attrs, caps=[caps.SOURCE_IMAGE_BLOB], **options
    )


def oci_layout_blob(
    ref: str,
    *,
    store_id: str,
    session_id: str = "",
    filename: str = "",
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    **options: Unpack[OpOptions],
) -> State:
    """Return a directory that holds one blob of a client's OCI layout as a file.

    Args:
        ref: ``NAME@DIGEST``; the name says nothing.
        store_id: The layout's name.
        session_id: The client that offers it; the build's own where empty.
        filename: As for :func:`image_blob`; so are the others.
        mode: Permission bits.
        uid: The file's owner.
        gid: The file's group.
        options: See :class:`OpOptions`.

    Raises:
        InvalidInputError: ``ref`` has a tag, or no digest.
    """
    attrs = _file_attrs(filename, mode, uid, gid)
    _set(attrs, (session_id, "oci.session", ""), (store_id, "oci.store", ""))
    return source(
        "oci-layout+blob://" + _digested(ref), attrs, caps=[caps.SOURCE_IMAGE_BLOB], **options
    )


def _digested(ref: str) -> str:
    found = Reference.parse(ref)
    if found.digest is None or found.tag:
        raise InvalidInputError("a blob is named NAME@DIGEST, without a tag", detail=ref[:200])
    return str(found)


def _file_attrs(filename: str, mode: int, uid: int, gid: int) -> dict[str, str]:
    """Return how the one file of a source lies in its directory."""
    attrs: dict[str, str] = {}
    bits = mode & 0o777
    _set(
        attrs,
        (filename, "http.filename", ""),
        (f"0{bits:o}" if bits else "", "http.perm", ""),
        (str(uid) if uid else "", "http.uid", ""),
        (str(gid) if gid else "", "http.gid", ""),
    )
    return attrs


def _set(attrs: dict[str, str], *rows: tuple[str | bool, str, str]) -> list[str]:
    """Set the attributes that have a value; return the capabilities they need."""
    needs = []
    for value, attr, cap in rows:
        if value:
            attrs[attr] = "true" if value is True else str(value)
            if cap:
                needs.append(cap)
    return needs


def _json(values: Sequence[str]) -> str:
    """Return a JSON array, or "" for nothing."""
    return gojson.dumps(list(values)) if values else ""
