import asyncio

import pytest

from boxwright.errors import InvalidInputError
from boxwright.registry.auth import Credentials
from boxwright.session.base import SecretNotFoundError, SessionLostError
from boxwright.session.inprocess import InProcessSession
from boxwright.session.manager import SessionManager
from boxwright.session.providers.localdirs import LocalDirs
from boxwright.session.providers.secrets import SecretSource, SecretsProvider
from boxwright.session.services import SessionServices


def session(**secrets):
    offered = [SecretSource(key, value=value) for key, value in secrets.items()]
    return InProcessSession(SessionServices(secrets=SecretsProvider(offered, {})))


def test_a_late_session_is_waited_for():
    async def main():
        manager, late = SessionManager(), session()
        asking = asyncio.ensure_future(manager.get(late.id))
        await asyncio.sleep(0)
        manager.attach(session())
        await asyncio.sleep(0)
        assert not asking.done()
        manager.attach(late)
        assert await asking is late

    asyncio.run(main())


def test_a_session_that_does_not_come_is_lost():
    async def main():
        with pytest.raises(SessionLostError):
            await SessionManager().get("absent", timeout_s=0)

    asyncio.run(main())


def test_a_prefix_of_the_id_is_ignored():
    async def main():
        manager, one = SessionManager(), session()
        manager.attach(one)
        assert await manager.get(f"build:{one.id}") is one

    asyncio.run(main())


def test_an_id_is_given_once_but_again_after_the_end():
    async def main():
        manager, one = SessionManager(), session()
        manager.attach(one)
        with pytest.raises(InvalidInputError):
            manager.attach(one)
        manager.detach(one)
        again = session()
        again.id = one.id
        manager.attach(again)
        assert await manager.get(one.id) is again

    asyncio.run(main())


def test_a_group_asks_one_after_the_other():
    async def main():
        manager = SessionManager()
        first, second = session(a=b"1"), session(a=b"2", b=b"3")
        for each in (first, second):
            manager.attach(each)
        group = manager.group([first.id, second.id, first.id])
        assert group.ids == (first.id, second.id)
        assert await group.secret("a") == b"1"
        assert await group.secret("b") == b"3"
        with pytest.raises(SecretNotFoundError):
            await group.secret("c")
        assert await group.any(lambda s: s.secret("a"), first=second.id) == b"2"

    asyncio.run(main())


def test_a_session_that_joins_while_others_fail_is_asked_too():
    async def main():
        manager = SessionManager()
        first, late = session(), session(s=b"found")
        manager.attach(first)
        group = manager.group([first.id])

        async def ask(one):
            if one is first:
                manager.attach(late)
                group.add(late.id)
            return await one.secret("s")

        assert await group.any(ask) == b"found"

    asyncio.run(main())


def test_an_empty_group_has_no_logins_but_no_sessions_either():
    async def main():
        group = SessionManager().group()
        assert await group.credentials("host") is None
        assert await group.fetch_token("host", "realm", "service", ()) is None
        with pytest.raises(SessionLostError):
            await group.secret("s")

    asyncio.run(main())


def test_local_folders_are_found_where_they_can_be_read(tmp_path):
    async def main():
        manager = SessionManager()
        without = session()
        with_dir = InProcessSession(SessionServices(dirs=LocalDirs({"context": tmp_path})))
        for each in (without, with_dir):
            manager.attach(each)
        group = manager.group([without.id, with_dir.id])
        assert await group.get_local("context") == (with_dir, tmp_path)
        assert await group.get_local("other") is None

    asyncio.run(main())


def test_secrets_are_not_in_representations():
    assert "hush" not in repr(Credentials("u", "hush"))
