"""LLB definitions: build, marshal, decode, verify.

The names below are the builder::

    from boxwright import llb

    base = llb.image("debian:12")
    built = base.run("make", cwd="/src", mounts=[llb.bind("/src", llb.local("context"))]).root
    definition = llb.scratch().copy(built, "/src/app", "/app").marshal()

They are imported when they are first used: the engine needs other modules of this package
long before, if ever, it needs the builder.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boxwright.llb.build_env import EnvList
    from boxwright.llb.build_ops import build, diff, from_definition, merge, passthrough
    from boxwright.llb.exec_op import (
        CdiDevice,
        ExecState,
        Mount,
        ProxyEnv,
        Secret,
        Ssh,
        bind,
        cache,
        secret,
        ssh,
        tmpfs,
    )
    from boxwright.llb.file_op import CopyOptions, FileAction, copy, mkdir, mkfile, rm, symlink
    from boxwright.llb.marshal import (
        DeferredOutput,
        LinuxResources,
        Output,
        ProgressGroup,
        SourceLocation,
        SourceMap,
        SourceRange,
    )
    from boxwright.llb.source_op import (
        GitSignature,
        git,
        http,
        image,
        image_blob,
        local,
        oci_layout,
        oci_layout_blob,
        source,
    )
    from boxwright.llb.state import HostIP, State, Ulimit, scratch

__all__ = [
    "CdiDevice",
    "CopyOptions",
    "DeferredOutput",
    "EnvList",
    "ExecState",
    "FileAction",
    "GitSignature",
    "HostIP",
    "LinuxResources",
    "Mount",
    "Output",
    "ProgressGroup",
    "ProxyEnv",
    "Secret",
    "SourceLocation",
    "SourceMap",
    "SourceRange",
    "Ssh",
    "State",
    "Ulimit",
    "bind",
    "build",
    "cache",
    "copy",
    "diff",
    "from_definition",
    "git",
    "http",
    "image",
    "image_blob",
    "local",
    "merge",
    "mkdir",
    "mkfile",
    "oci_layout",
    "oci_layout_blob",
    "passthrough",
    "rm",
    "scratch",
    "secret",
    "source",
    "ssh",
    "symlink",
    "tmpfs",
]

_MODULES = {
    "EnvList": "build_env",
    "build": "build_ops",
    "diff": "build_ops",
    "from_definition": "build_ops",
    "merge": "build_ops",
    "passthrough": "build_ops",
    "CdiDevice": "exec_op",
    "ExecState": "exec_op",
    "Mount": "exec_op",
    "ProxyEnv": "exec_op",
    "Secret": "exec_op",
    "Ssh": "exec_op",
    "bind": "exec_op",
    "cache": "exec_op",
    "secret": "exec_op",
    "ssh": "exec_op",
    "tmpfs": "exec_op",
    "CopyOptions": "file_op",
    "FileAction": "file_op",
    "copy": "file_op",
    "mkdir": "file_op",
    "mkfile": "file_op",
    "rm": "file_op",
    "symlink": "file_op",
    "DeferredOutput": "marshal",
    "LinuxResources": "marshal",
    "Output": "marshal",
    "ProgressGroup": "marshal",
    "SourceLocation": "marshal",
    "SourceMap": "marshal",
    "SourceRange": "marshal",
    "GitSignature": "source_op",
    "git": "source_op",
    "http": "source_op",
    "image": "source_op",
    "image_blob": "source_op",
    "local": "source_op",
    "oci_layout": "source_op",
    "oci_layout_blob": "source_op",
    "source": "source_op",
    "HostIP": "state",
    "State": "state",
    "Ulimit": "state",
    "scratch": "state",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = found
    return found
