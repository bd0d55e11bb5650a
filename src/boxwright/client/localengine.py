"""The process behind :func:`boxwright.client.local.local_engine`.

Owns a state folder's engine on its socket until standard input ends, which it also does when the
program at its other end is killed. Says ``ready`` on standard output, or what went wrong.

Usage: python -m boxwright.client.localengine ROOT [CONFIG]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boxwright.engine.settings import EngineSettings


def main(argv: list[str]) -> int:
    """Enter the namespaces, open the engine, serve until standard input ends."""
    from boxwright.engine.process import enter
    from boxwright.errors import BoxwrightError

    try:
        # Before anything that could start a thread.
        is_root = os.geteuid() == 0
        entered = enter()
        from boxwright.config.load import default_path, load
        from boxwright.engine.settings import EngineSettings

        root = Path(argv[0])
        path = Path(argv[1]) if len(argv) > 1 else None
        loaded = load(path, default=default_path(os.environ, is_root=is_root))
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        _run(
            EngineSettings(
                root=root,
                config=loaded.config,
                rootless=entered.rootless,
                config_path=loaded.path,
            )
        )
    except BoxwrightError as exc:
        sys.stdout.write("\n".join(filter(None, (exc.brief, exc.detail, exc.hint))) + "\n")
        return exc.exit_code
    return 0


def _run(settings: EngineSettings) -> None:
    import asyncio

    import uvloop

    async def serve() -> None:
        from boxwright.client.ownership import own_engine
        from boxwright.core.workers import install_pool

        loop = asyncio.get_running_loop()
        install_pool(loop)
        async with own_engine(settings):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            gone = asyncio.Event()
            loop.add_reader(sys.stdin.fileno(), gone.set)
            await gone.wait()
            loop.remove_reader(sys.stdin.fileno())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
