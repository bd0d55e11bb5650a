"""Look at what goes wrong: a failing command, and a file that is not there.

Usage: failure.py [unix:///path/of/a/daemon.sock]
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from engines import engine

from boxwright import llb
from boxwright.client import BuildRequest, Client
from boxwright.errors import BoxwrightError


async def attempt(client: Client, state: llb.State) -> None:
    """Build, and print the failure as the command line would."""
    request = BuildRequest(definition=state.marshal(), locals={"programs": Path("/bin")})
    try:
        await client.build(request)
    except BoxwrightError as error:
        print(f"{error.code}: {error.brief}")
        for line in (*error.detail.splitlines(), error.hint):
            print(f"    {line}" if line else "", end="\n" if line else "")


async def main() -> None:
    programs = llb.local("programs", include=["busybox"], name="programs")
    copied = llb.CopyOptions(create_parents=True)
    base = llb.scratch().copy(programs, "/busybox", "/bin/sh", copied)
    async with engine() as client:
        await attempt(client, base.run("echo about to fail; exit 3").root)
        await attempt(client, llb.scratch().copy(base, "/not/there", "/"))


if __name__ == "__main__":
    asyncio.run(main())
