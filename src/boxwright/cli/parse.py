"""The small languages of build flags: ``type=oci,dest=out.tar`` and its like.

They are buildx's: comma separated fields with CSV quoting, each ``key=value``.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.cli.errors import UsageError
from boxwright.core.dataclass import dataclass

if TYPE_CHECKING:
    import ssl

    from boxwright.client.localcache import CacheSpec
    from boxwright.client.request import Export
    from boxwright.session.providers.secrets import SecretSource
    from boxwright.session.providers.ssh import AgentSource

_TRUE = frozenset(("1", "t", "true"))
_FALSE = frozenset(("0", "f", "false"))
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def split_fields(text: str) -> list[str]:
    """Split one CSV line.

    Raises:
        UsageError: a quote is not closed.
    """
    try:
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as exc:
        raise UsageError(f"invalid value {text!r}", detail=str(exc)) from exc
    return rows[0] if rows else []


def parse_pairs(text: str, flag: str) -> dict[str, str]:
    """Parse ``key=value,…``; keys are lower-cased.

    Raises:
        UsageError: a field is no pair.
    """
    pairs: dict[str, str] = {}
    for item in split_fields(text):
        key, separator, value = item.partition("=")
        if not separator:
            raise UsageError(
                f"invalid value for {flag}: {text!r}",
                detail=f"field {item!r} must be a key=value pair",
            )
        pairs[key.strip().lower()] = value
    return pairs


def parse_assignments(items: Iterable[str], flag: str) -> dict[str, str]:
    """Parse repeated ``KEY=VALUE`` flags.

    Raises:
        UsageError: one has no ``=``.
    """
    found: dict[str, str] = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator:
            raise UsageError(f"invalid value for {flag}: {item!r}", hint="write KEY=VALUE")
        found[key] = value
    return found


def parse_build_args(items: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Parse ``NAME=VALUE`` and ``NAME`` (taken from the environment, if it is set there)."""
    found: dict[str, str] = {}
    for item in items:
        name, separator, value = item.partition("=")
        if separator:
            found[name] = value
        elif name in environ:
            found[name] = environ[name]
    return found


def parse_bool(text: str, flag: str) -> bool:
    """Parse a truth value as Go's ``strconv.ParseBool`` does.

    Raises:
        UsageError: it is none.
    """
    lowered = text.lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise UsageError(f"invalid value for {flag}: {text!r}", hint="write true or false")


def parse_bytes(text: str, flag: str) -> int:
    """Parse ``64m`` and its like into bytes.

    Raises:
        UsageError: it is no size.
    """
    lowered = text.strip().lower().removesuffix("ib").removesuffix("b")
    unit = lowered[-1] if lowered and lowered[-1] in _UNITS else "b"
    number = lowered.removesuffix(unit)
    try:
        return int(float(number) * _UNITS[unit])
    except ValueError:
        raise UsageError(f"invalid size for {flag}: {text!r}", hint="write 64m or 1g") from None


def parse_secrets(items: Iterable[str]) -> tuple[SecretSource, ...]:
    """Parse ``--secret id=NAME[,src=FILE|,env=VARIABLE][,type=file|env]``."""
    from boxwright.session.providers.secrets import SecretSource

    found = []
    for item in items:
        pairs = parse_pairs(item, "--secret")
        kind = pairs.pop("type", "")
        secret_id = pairs.pop("id", "")
        path = pairs.pop("src", "") or pairs.pop("source", "")
        variable = pairs.pop("env", "")
        if pairs or kind not in {"", "file", "env"}:
            odd = next(iter(pairs), "") or f"type={kind}"
            raise UsageError(
                f"unexpected {odd!r} in --secret", hint="write id=NAME,src=FILE or id=NAME,env=VAR"
            )
        if not secret_id:
            raise UsageError("--secret needs an id", hint="write id=NAME,src=FILE")
        if kind == "env" and not variable:
            path, variable = "", path
        found.append(SecretSource(secret_id, path, variable))
    return tuple(found)


def parse_ssh(items: Iterable[str]) -> tuple[AgentSource, ...]:
    """Parse ``--ssh default`` and ``--ssh ID=SOCKET[,raw=true]``."""
    from boxwright.session.providers.ssh import AgentSource

    found = []
    for item in items:
        agent_id, _, rest = item.partition("=")
        paths, raw = [], False
        for part in filter(None, rest.split(",")):
            if part.startswith("raw="):
                raw = parse_bool(part.removeprefix("raw="), "--ssh")
            else:
                paths.append(part)
        if len(paths) > 1:
            raise UsageError("--ssh takes one socket", detail=f"for {agent_id!r}: {paths}")
        found.append(AgentSource(agent_id, paths[0] if paths else "", raw))
    return tuple(found)


def parse_cache(items: Iterable[str], flag: str) -> tuple[CacheSpec, ...]:
    """Parse ``type=registry,ref=…``; a bare reference is a registry cache."""
    from boxwright.client.localcache import CacheSpec

    found = []
    for item in items:
        if "type=" not in item and "=" not in item:
            found.append(CacheSpec("registry", {"ref": item}))
            continue
        pairs = parse_pairs(item, flag)
        kind = pairs.pop("type", "")
        if not kind:
            raise UsageError(f"{flag} requires type=<type>", detail=item)
        found.append(CacheSpec(kind, pairs))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Output:
    """One ``--output``: exporter type, destination (``-`` is standard output), attributes."""

    type: str
    dest: str
    attrs: Mapping[str, str]


def parse_output(text: str) -> Output:
    """Parse ``type=TYPE[,dest=PATH][,KEY=VALUE…]``, or a bare path (``-``: tar to stdout).

    Raises:
        UsageError: there is no type.
    """
    fields = split_fields(text)
    if len(fields) == 1 and fields[0] == text and not text.startswith("type="):
        return Output("tar", "-", {}) if text == "-" else Output("local", text, {})
    pairs = parse_pairs(text, "--output")
    kind = pairs.pop("type", "")
    if not kind:
        raise UsageError("--output requires type=<type>", detail=text)
    dest = pairs.pop("dest", "") or pairs.pop("output", "")
    if kind == "registry":
        kind = "image"
        pairs.setdefault("push", "true")
    return Output(kind, dest, pairs)


def to_export(output: Output) -> Export:
    """Return the client's form of an output.

    Raises:
        UsageError: a file or folder is missing, or a tar would go to a terminal.
    """
    from boxwright.client.request import Export

    kind, dest, attrs = output.type, output.dest, dict(output.attrs)
    if kind == "local":
        if not dest:
            raise UsageError("output directory is required for local exporter")
        return Export(kind, attrs, path=Path(dest))
    if kind in {"tar", "oci", "docker"}:
        if not parse_bool(attrs.get("tar", "true"), "tar"):
            if not dest or kind == "tar":
                raise UsageError(
                    f"tar=false needs a folder for the {kind} exporter", hint="add dest=FOLDER"
                )
            return Export(kind, attrs, path=Path(dest))
        if dest not in {"", "-"}:
            if os.path.isdir(dest):
                raise UsageError(f"destination file {dest} is a directory")
            return Export(kind, attrs, path=Path(dest))
        if sys.stdout.isatty():
            raise UsageError(
                f"dest file is required for {kind} exporter: refusing to write to a terminal",
                hint="add dest=FILE, or redirect standard output",
            )
        return Export(kind, attrs, stream=sys.stdout.buffer)
    if dest:
        raise UsageError(f"dest is not supported by the {kind} exporter")
    return Export(kind, attrs)


def parse_auth_tls(items: Iterable[str]) -> dict[str, ssl.SSLContext]:
    """Parse ``--registry-auth-tlscontext host=HOST[,ca=FILE][,cert=FILE,key=FILE][,insecure]``.

    Raises:
        UsageError: a part is missing, or a file can't be used.
    """
    found: dict[str, ssl.SSLContext] = {}
    for item in items:
        pairs = parse_pairs(item, "--registry-auth-tlscontext")
        host = pairs.pop("host", "")
        ca, cert, key = (pairs.pop(name, "") for name in ("ca", "cert", "key"))
        is_insecure = pairs.pop("insecure", "false").lower() in {"1", "t", "true"}
        if not host or pairs:
            odd = f"unexpected {next(iter(pairs))!r}" if pairs else "no host"
            raise UsageError(
                f"{odd} in --registry-auth-tlscontext", hint="write host=HOST,ca=FILE"
            )
        if bool(cert) != bool(key) or not (ca or cert or is_insecure):
            raise UsageError(
                "--registry-auth-tlscontext requires ca=FILE, cert=FILE,key=FILE or insecure=true"
            )
        found[host] = _auth_context(ca, cert, key, is_insecure=is_insecure)
    return found


def _auth_context(ca: str, cert: str, key: str, *, is_insecure: bool) -> ssl.SSLContext:
    import ssl

    from boxwright.registry.trust import client_context

    try:
        context = client_context(ca)
        if cert:
            context.load_cert_chain(cert, key)
    except OSError as exc:
        raise UsageError(f"can't use the files of --registry-auth-tlscontext: {exc}") from exc
    if is_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
