"""LLB definitions: build, marshal, decode, verify.

The names below are the builder::

    from boxwright import llb

    base = llb.image("debian:12")
    built = base.run("make", cwd="/src", mounts=[llb.bind("/src", llb.local("context"))]).root
    definition = llb.scratch().copy(built, "/src/app", "/app").marshal()
"""

from boxwright.llb.build_env import EnvList
from boxwright.llb.build_ops import diff, from_definition, merge, passthrough
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
from boxwright.llb.source_op import git, http, image, local, oci_layout, source
from boxwright.llb.state import HostIP, State, Ulimit, scratch

__all__ = [
    "CdiDevice",
    "CopyOptions",
    "DeferredOutput",
    "EnvList",
    "ExecState",
    "FileAction",
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
    "cache",
    "copy",
    "diff",
    "from_definition",
    "git",
    "http",
    "image",
    "local",
    "merge",
    "mkdir",
    "mkfile",
    "oci_layout",
    "passthrough",
    "rm",
    "scratch",
    "secret",
    "source",
    "ssh",
    "symlink",
    "tmpfs",
]
