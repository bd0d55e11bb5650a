"""A source is resolved once in a build, however many ask at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from boxwright.errors import InvalidInputError
from boxwright.sources.resolutions import Resolutions, resolve_once


class Server:
    """Answers with how often it was asked."""

    def __init__(self, *, fails: bool = False) -> None:
        self.asked = 0
        self.fails = fails

    async def __call__(self) -> int:
        self.asked += 1
        answer = self.asked
        await asyncio.sleep(0)
        if self.fails:
            raise InvalidInputError("gone")
        return answer


def once(
    server: Server, *builds: Resolutions, key: str = "k", accept: Callable[[int], bool] = bool
) -> asyncio.Future[int]:
    return asyncio.ensure_future(resolve_once(builds, int, key, server, accept))


def test_all_who_ask_in_one_build_get_one_answer() -> None:
    async def main() -> None:
        server, build = Server(), Resolutions()
        assert await asyncio.gather(*(once(server, build) for _ in range(5))) == [1] * 5
        assert await once(server, build, key="other") == 2
        assert await once(server, Resolutions()) == 3

    asyncio.run(main())


def test_without_a_build_nothing_is_remembered() -> None:
    async def main() -> None:
        server = Server()
        assert [await once(server), await once(server)] == [1, 2]

    asyncio.run(main())


def test_builds_that_share_a_step_share_its_answer() -> None:
    async def main() -> None:
        server, first, second = Server(), Resolutions(), Resolutions()
        assert await once(server, first) == 1
        assert await once(server, second, first) == 1
        assert await once(server, second) == 1

    asyncio.run(main())


def test_two_builds_that_want_each_others_steps_do_not_wait_for_ever() -> None:
    async def main() -> None:
        server, first, second = Server(), Resolutions(), Resolutions()
        async with asyncio.timeout(120):
            found = await asyncio.gather(once(server, first, second), once(server, second, first))
        assert found == [1, 1]

    asyncio.run(main())


def test_an_answer_that_does_not_serve_is_kept_beside_the_new_one() -> None:
    async def main() -> None:
        server, build = Server(), Resolutions()
        assert await once(server, build) == 1
        assert await once(server, build, accept=lambda n: n > 1) == 2
        assert await once(server, build) == 1
        assert await once(server, build, accept=lambda n: n > 1) == 2

    asyncio.run(main())


def test_a_failure_is_not_remembered() -> None:
    async def main() -> None:
        server, build = Server(fails=True), Resolutions()
        with pytest.raises(InvalidInputError):
            await once(server, build)
        server.fails = False
        assert await once(server, build) == 2

    asyncio.run(main())


def test_kinds_of_sources_are_kept_apart() -> None:
    async def main() -> None:
        build = Resolutions()

        async def text() -> str:
            return "text"

        assert await once(Server(), build) == 1
        assert await resolve_once([build], str, "k", text) == "text"

    asyncio.run(main())


def test_a_job_has_one_memory() -> None:
    values: dict[str, object] = {}
    assert Resolutions.of(values) is Resolutions.of(values)
