"""Bills of materials made by a scanner image (BuildKit docs/attestations/sbom-protocol.md).

The scanner runs as one step: the result is mounted at ``/run/src/core/sbom``, what is scanned
besides below ``/run/src/extras``, and it leaves in-toto statements in ``/run/out``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from boxwright.core.dataclass import dataclass
from boxwright.core.platform import Platform
from boxwright.dockerfile.bridge import MetaResolver
from boxwright.errors import InvalidInputError
from boxwright.llb.exec_op import Mount, tmpfs
from boxwright.llb.source_op import image
from boxwright.llb.state import State

CORE_NAME = "sbom"
_SOURCES = "/run/src"
_OUT = "/run/out/"


@dataclass(frozen=True, slots=True)
class Scanner:
    """A scanner image that has been looked up.

    Attributes:
        ref: In full form.
        platform: What it runs on.
        args: Its entrypoint and command.
        env: Its variables, then those of the protocol's parameters.
    """

    ref: str
    platform: Platform
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    parameters: Mapping[str, str]

    def scan(
        self, name: str, core: State, extras: Mapping[str, State], *, ignore_cache: bool = False
    ) -> State:
        """Return the folder in which the scanner leaves its statements.

        Args:
            name: Of the platform, for progress.
            core: The result.
            extras: What is scanned besides, by name.
            ignore_cache: Scan again.
        """
        state = image(self.ref, platform=self.platform)
        for key, value in self._environment(has_extras=bool(extras)):
            state = state.add_env(key, value)
        mounts = [
            tmpfs("/tmp"),  # noqa: S108 - inside the scanner
            Mount(f"{_SOURCES}/core/{CORE_NAME}", core, readonly=True),
            *(
                Mount(f"{_SOURCES}/extras/{CORE_NAME}-{key}", extras[key], readonly=True)
                for key in sorted(extras)
            ),
            Mount(_OUT, State()),
        ]
        done = state.dir(self.cwd or "/").run(
            self.args,
            mounts=mounts,
            name=f"[{name}] generating sbom using {self.ref}",
            ignore_cache=ignore_cache,
        )
        return done.mount(_OUT)

    def _environment(self, *, has_extras: bool) -> list[tuple[str, str]]:
        out = [
            *self.env,
            ("BUILDKIT_SCAN_DESTINATION", _OUT),
            ("BUILDKIT_SCAN_SOURCE", f"{_SOURCES}/core/{CORE_NAME}"),
        ]
        if has_extras:
            out.append(("BUILDKIT_SCAN_SOURCE_EXTRAS", f"{_SOURCES}/extras"))
        out += [(f"BUILDKIT_SCAN_{key}", self.parameters[key]) for key in sorted(self.parameters)]
        return out


async def find_scanner(
    resolver: MetaResolver,
    generator: str,
    parameters: Mapping[str, str],
    platform: Platform,
    resolve_mode: str,
) -> Scanner:
    """Look a scanner image up.

    Raises:
        InvalidInputError: the image has no command.
        BoxwrightError: it can't be resolved.
    """
    found = await resolver.resolve_image_config(
        generator, platform=platform, resolve_mode=resolve_mode, log_name=""
    )
    config = _config(found.config, generator)
    args = [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
    if not args:
        raise InvalidInputError(f"scanner {found.ref} does not have cmd")
    env = tuple(str(item).partition("=")[::2] for item in config.get("Env") or ())
    cwd = str(config.get("WorkingDir") or "")
    return Scanner(found.ref, platform, tuple(map(str, args)), env, cwd, dict(parameters))


def _config(data: bytes, generator: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    config = value.get("config") if isinstance(value, dict) else None
    if not isinstance(config, dict):
        raise InvalidInputError(f"scanner {generator} has no valid config")
    return config
