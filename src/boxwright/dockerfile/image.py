"""The image config that a stage builds up: what a stage starts with, history entries."""

from __future__ import annotations

from boxwright.core.gojson import time_text
from boxwright.core.platform import Platform
from boxwright.llb.exec_op import default_path
from boxwright.oci.image import ContainerConfig, History, Image

HISTORY_COMMENT = "buildkit.dockerfile.v0"
"""What other tools tell by that an image came from a Dockerfile, and how."""


def empty_image(platform: Platform) -> Image:
    """Return the config of ``FROM scratch``."""
    image = Image(platform=platform, rootfs_type="layers")
    image.config = ContainerConfig(working_dir="/")
    if platform.os != "windows":
        image.config.env = ["PATH=" + default_path(platform.os)]
    return image


def set_env(env: list[str], key: str, value: str) -> None:
    """Set a variable in a config's list, in its old place if it is there already."""
    for index, item in enumerate(env):
        if item.partition("=")[0] == key:
            env[index] = f"{key}={value}"
            return
    env.append(f"{key}={value}")


def commit(
    image: Image, created_by: str, *, layer: bool, by_vertex: bool, epoch: int | None
) -> None:
    """Append a history entry.

    Args:
        image: The config to change.
        created_by: The instruction as it was carried out.
        layer: Whether it made a layer.
        by_vertex: Whether a step of the graph did it; such entries are marked.
        epoch: Seconds since 1970 to date the entry with; undated where None.
    """
    if by_vertex:
        created_by += " # buildkit"
    image.history.append(
        History(
            created="" if epoch is None else time_text(epoch * 1_000_000_000),
            created_by=created_by,
            comment=HISTORY_COMMENT,
            empty_layer=not layer,
        )
    )


def auto_detect_platform(
    image: Platform, target: Platform, supported: tuple[Platform, ...]
) -> Platform:
    """Return the platform of a base image that is not for ``target``, if it can be run."""
    if (image.os, image.architecture) == (target.os, target.architecture):
        return target
    for platform in supported:
        if (platform.os, platform.architecture) == (image.os, image.architecture):
            return platform
    return target


def default_shell(os: str) -> list[str]:
    """Return what shell forms are run by where no SHELL says otherwise."""
    return ["cmd", "/S", "/C"] if os == "windows" else ["/bin/sh", "-c"]


def with_shell(image: Image, args: tuple[str, ...]) -> list[str]:
    """Return the argument list of a shell form."""
    shell = image.config.shell or default_shell(image.platform.os)
    return [*shell, " ".join(args)]
