"""Locks by name."""

from __future__ import annotations

import asyncio
import gc
import random

from boxwright.core.locks import KeyedLocks


def test_one_at_a_time_whatever_others_do():
    async def main() -> None:
        locks = KeyedLocks()
        inside: dict[str, int] = {}
        source = random.Random(3)

        async def use(key: str) -> None:
            for _ in range(20):
                async with locks(key):
                    inside[key] = inside.get(key, 0) + 1
                    assert inside[key] == 1
                    for _ in range(source.randrange(3)):
                        await asyncio.sleep(0)
                    inside[key] -= 1
                locks(f"other {source.random()}")  # between a release and the waking of a waiter
                for _ in range(source.randrange(2)):
                    await asyncio.sleep(0)

        await asyncio.gather(*(use(key) for key in "aabbbcc" * 3))

    asyncio.run(main())


def test_a_lock_that_nobody_wants_is_forgotten():
    async def main() -> None:
        locks = KeyedLocks()
        for number in range(100):
            async with locks(number):
                pass
        gc.collect()
        assert len(locks._locks) == 0

    asyncio.run(main())


def test_a_waiter_gets_the_lock_that_was_held():
    async def main() -> None:
        locks = KeyedLocks()
        order: list[str] = []

        async def use(name: str) -> None:
            async with locks("k"):
                order.append(f"{name} in")
                await asyncio.sleep(0)
                order.append(f"{name} out")

        async with locks("k"):
            waiting = [asyncio.create_task(use(name)) for name in "xy"]
            await asyncio.sleep(0)
        locks("other")
        waiting.append(asyncio.create_task(use("z")))  # comes when it is free for a moment
        await asyncio.gather(*waiting)
        pairs = list(zip(order[::2], order[1::2], strict=True))
        assert all(first[0] == second[0] for first, second in pairs)
        assert sorted(first[0] for first, _ in pairs) == ["x", "y", "z"]

    asyncio.run(main())
