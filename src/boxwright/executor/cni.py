"""Networks of CNI plugins: reading a configuration, adding and removing a namespace.

Source: the CNI specification 1.0.0. A plugin is a program that gets its orders in the
environment, its configuration on standard input, and answers in JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boxwright.core.dataclass import dataclass, field
from boxwright.errors import BoxwrightError, Code

_log = logging.getLogger(__name__)

_INTERFACE = "eth0"
_LIMIT_BYTES = 1 << 20
_PLUGIN_TIMEOUT_S = 60.0
_DEFAULT_VERSION = "0.1.0"

Json = dict[str, Any]


class NetworkConfigError(BoxwrightError):
    """The network that the configuration names can't be used."""

    code = Code.CONFIG


class NetworkSetupError(BoxwrightError):
    """A plugin could not connect or disconnect a step."""

    code = Code.RUNTIME_FAILED


@dataclass(frozen=True, slots=True)
class CniNetwork:
    """A list of plugins that connect a namespace one after the other.

    Attributes:
        name: The network's name.
        version: Of the specification that the plugins shall speak.
        plugins: Their configurations, in order.
        programs: Where each of them lies.
        path: Where plugins look for those that they call themselves.
    """

    name: str
    version: str
    plugins: Sequence[Json]
    programs: Sequence[str]
    path: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    async def add(self, container_id: str, namespace: str, *, hostname: str = "") -> Json:
        """Connect a namespace; what was begun is undone if it fails.

        Args:
            container_id: Unique among connected ones.
            namespace: Path of the network namespace.
            hostname: Told to plugins that serve names.

        Raises:
            NetworkSetupError: a plugin refused.
        """
        result: Json = {}
        try:
            for config, program in zip(self.plugins, self.programs, strict=True):
                asked = self._config(config, result)
                said = await self._run("ADD", program, asked, container_id, namespace, hostname)
                result = said or result
        except BaseException:
            await asyncio.shield(self.remove(container_id, namespace, hostname=hostname))
            raise
        return result

    async def remove(
        self, container_id: str, namespace: str, *, hostname: str = "", result: Json | None = None
    ) -> None:
        """Disconnect a namespace; what a plugin refuses is logged, as nobody can do more."""
        pairs = list(zip(self.plugins, self.programs, strict=True))
        for config, program in reversed(pairs):
            asked = self._config(config, result or {})
            try:
                await self._run("DEL", program, asked, container_id, namespace, hostname)
            except NetworkSetupError as error:
                _log.warning("network of a step: %s: %s", error.brief, error.detail)

    def _config(self, config: Json, result: Json) -> Json:
        asked = {**config, "cniVersion": self.version, "name": self.name}
        if result:
            asked["prevResult"] = result
        return asked

    async def _run(
        self,
        command: str,
        program: str,
        config: Json,
        container_id: str,
        namespace: str,
        hostname: str,
    ) -> Json:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container_id,
            "CNI_NETNS": namespace,
            "CNI_IFNAME": "lo" if config.get("type") == "loopback" else _INTERFACE,
            "CNI_PATH": self.path,
            **({"CNI_ARGS": f"K8S_POD_NAME={hostname};IgnoreUnknown=1"} if hostname else {}),
            **self.environment,
        }
        what = f"network plugin {os.path.basename(program)} failed to {command}"
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,
                limit=_LIMIT_BYTES,
            )
        except OSError as exc:
            raise NetworkSetupError(what, detail=str(exc)) from exc
        try:
            async with asyncio.timeout(_PLUGIN_TIMEOUT_S):
                out, err = await process.communicate(json.dumps(config).encode())
        except TimeoutError as exc:
            raise NetworkSetupError(what, detail=f"no end after {_PLUGIN_TIMEOUT_S} s") from exc
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await asyncio.shield(process.wait())
        said = _object(out)
        if process.returncode:
            detail = ": ".join(str(said[key]) for key in ("msg", "details") if said.get(key))
            last = err.decode(errors="replace").strip()[-300:]
            raise NetworkSetupError(what, detail=detail or last or f"status {process.returncode}")
        return said


def _object(data: bytes) -> Json:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def load(config_path: Path, binaries: Path) -> CniNetwork:
    """Read a ``.conf``, ``.json`` or ``.conflist`` file and find its plugins.

    Raises:
        NetworkConfigError: the file or a plugin is missing or malformed.
    """
    try:
        data = json.loads(config_path.read_bytes())
    except OSError as exc:
        raise NetworkConfigError(
            f'failed to read cni config "{config_path}"', detail=exc.strerror or str(exc)
        ) from exc
    except ValueError as exc:
        raise NetworkConfigError(f"{config_path} is no JSON", detail=str(exc)) from exc
    if not isinstance(data, dict):
        raise NetworkConfigError(f"{config_path} is no network configuration")
    return parse(data, (binaries,), str(config_path))


def parse(data: Json, folders: Sequence[Path], where: str) -> CniNetwork:
    """Return the network that a decoded configuration describes.

    Args:
        data: One plugin's configuration, or one with a list of ``plugins``.
        folders: Where plugins lie.
        where: For errors: what it was read from.

    Raises:
        NetworkConfigError: it is malformed or a plugin is not there.
    """
    plugins = data.get("plugins", [data])
    if not isinstance(plugins, list) or not plugins:
        raise NetworkConfigError(f"{where}: no plugins")
    programs = []
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise NetworkConfigError(f"{where}: a plugin has no type")
        found = [folder / kind for folder in folders if os.access(folder / kind, os.X_OK)]
        if not found:
            looked = ", ".join(map(str, folders))
            raise NetworkConfigError(
                f'failed to find network plugin "{kind}"',
                detail=f"looked in {looked}",
                hint="set worker.oci.cniBinaryPath to the folder of the CNI plugins "
                "(Debian: apt-get install containernetworking-plugins, /usr/lib/cni)",
            )
        programs.append(str(found[0]))
    return CniNetwork(
        name=str(data.get("name") or "boxwright"),
        version=str(data.get("cniVersion") or _DEFAULT_VERSION),
        plugins=plugins,
        programs=programs,
        path=os.pathsep.join(map(str, folders)),
    )


def bridge_config(bridge: str, subnet: str) -> Json:
    """Return the network behind a bridge of our own, with addresses of ``subnet``."""
    return {
        "cniVersion": "1.0.0",
        "name": "boxwright",
        "plugins": [
            {
                "type": "bridge",
                "bridge": bridge,
                "isDefaultGateway": True,
                "ipMasq": True,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]]},
            },
            {"type": "firewall", "backend": "", "ingressPolicy": "same-bridge"},
        ],
    }
