"""Challenges, tokens and passwords: who is sent what."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.registry.auth import (
    AnonymousAuth,
    Credentials,
    StaticAuth,
    Token,
    TokenCache,
    parse_challenges,
    parse_token,
    realm_is_safe,
)
from boxwright.registry.errors import RegistryAuthError, RegistryUnreachableError
from boxwright.testing.registry import Auth, Failure, FakeRegistry, Faults

_USERS = {"ann": "s3cret-of-ann"}


def _login(registry, user="ann", secret="s3cret-of-ann"):
    return StaticAuth({registry.host: Credentials(user, secret)})


def test_challenges_of_one_value_and_of_many():
    one = 'Bearer realm="https://a/t",service="s, x",scope="repository:a:pull,push"'
    assert [c.scheme for c in parse_challenges([one, "Basic realm=r"])] == ["bearer", "basic"]
    assert parse_challenges([one])[0].parameters["scope"] == "repository:a:pull,push"
    both = parse_challenges([one + ', Basic realm="x\\"y"'])
    assert [c.scheme for c in both] == ["bearer", "basic"]
    assert both[0].parameters["service"] == "s, x"
    assert both[1].parameters == {"realm": 'x"y'}
    assert [c.scheme for c in parse_challenges(["Negotiate, Basic realm=r"])] == [
        "negotiate",
        "basic",
    ]


@given(st.text(max_size=200))
def test_any_header_is_read_without_failing(text):
    for challenge in parse_challenges([text]):
        assert challenge.scheme


def test_tokens_are_read_from_any_json():
    assert parse_token({"token": "a"}) == Token("a")
    assert parse_token({"access_token": "a", "expires_in": 120}) == Token("a", 120.0)
    assert parse_token([]) is None
    assert parse_token({"token": ""}) is None
    assert "abc" not in repr(Token("abc"))
    assert "abc" not in repr(Credentials("u", "abc"))


def test_a_newer_token_survives_the_refusal_of_an_older_one():
    cache = TokenCache()
    cache.put("h", "s", Token("new"))
    cache.drop("h", "s", "old")
    assert cache.get("h", "s") == "new"
    cache.drop("h", "s", "new")
    assert cache.get("h", "s") is None


@pytest.mark.parametrize(
    ("realm", "scheme", "safe"),
    [
        ("https://auth.example/token", "http", True),
        ("https://auth.example/token", "https", True),
        ("http://auth.example/token", "https", False),
        ("http://auth.example/token", "http", True),
        ("ftp://auth.example/token", "http", False),
    ],
)
def test_realms_that_credentials_may_go_to(realm, scheme, safe):
    assert realm_is_safe(realm, scheme) is safe


def test_anonymous_token_is_fetched_once_for_many_requests(kit, run):
    async def work():
        async with FakeRegistry(auth=Auth("bearer")) as registry:
            registry.put_manifest("team/app", "1", {"schemaVersion": 2})
            async with kit.client() as client:
                for _ in range(5):
                    await client.fetch_manifest(kit.ref(registry))
            return registry

    assert run(work()).count("GET", "/token") == 1


def test_many_requests_at_once_share_one_login(kit, run):
    import asyncio

    async def work():
        async with FakeRegistry(auth=Auth("bearer", _USERS)) as registry:
            registry.put_manifest("team/app", "1", {"schemaVersion": 2})
            async with kit.client(auth=_login(registry)) as client:
                ref = kit.ref(registry)
                await asyncio.gather(*(client.fetch_manifest(ref) for _ in range(30)))
            return registry

    assert run(work()).count("GET", "/token") == 1


def test_basic_login(kit, run):
    async def work():
        async with FakeRegistry(auth=Auth("basic", _USERS)) as registry:
            registry.put_manifest("team/app", "1", {"schemaVersion": 2})
            async with kit.client(auth=_login(registry)) as client:
                await client.fetch_manifest(kit.ref(registry))

    run(work())


@pytest.mark.parametrize("kind", ["basic", "bearer"])
@pytest.mark.parametrize("secret", ["wrong-secret", None])
def test_wrong_or_missing_password_is_an_auth_error_without_the_secret(kit, run, kind, secret):
    async def work():
        async with FakeRegistry(auth=Auth(kind, _USERS)) as registry:
            auth = _login(registry, secret=secret) if secret else AnonymousAuth()
            async with kit.client(auth=auth) as client:
                with pytest.raises(RegistryAuthError) as caught:
                    await client.fetch_manifest(kit.ref(registry))
                return caught.value, registry

    error, registry = run(work())
    assert error.status == 401
    assert registry.host in error.brief
    assert "docker login" in error.hint
    assert "secret" not in f"{error} {error.hint}"


def test_identity_token_is_exchanged_by_post(kit, run):
    async def work():
        auth = Auth("bearer", _USERS, refresh_tokens=frozenset({"identity"}))
        async with FakeRegistry(auth=auth) as registry:
            registry.put_manifest("team/app", "1", {"schemaVersion": 2})
            async with kit.client(auth=_login(registry, "", "identity")) as client:
                await client.fetch_manifest(kit.ref(registry))
            return registry

    assert run(work()).count("POST", "/token") == 1


def test_a_token_that_ran_out_is_renewed(kit, run):
    async def work():
        async with FakeRegistry(auth=Auth("bearer", _USERS, uses=2)) as registry:
            registry.put_manifest("team/app", "1", {"schemaVersion": 2})
            async with kit.client(auth=_login(registry)) as client:
                for _ in range(6):
                    await client.fetch_manifest(kit.ref(registry))
            return registry

    assert run(work()).count("GET", "/token") == 3


def test_credentials_are_not_sent_to_a_plain_http_realm(kit, run, authority):
    from boxwright.config.schema import RegistryConfig
    from boxwright.registry.hosts import Hosts

    context = authority.server_context(authority.issue("server", "127.0.0.1"))

    async def work():
        async with FakeRegistry(auth=Auth("bearer", _USERS)) as thief:
            auth = Auth("bearer", _USERS, realm=f"{thief.url}/token")
            async with FakeRegistry(auth=auth, tls=context) as registry:
                hosts = Hosts({registry.host: RegistryConfig(ca=(str(authority.ca),))})
                async with kit.client(hosts, _login(registry)) as client:
                    with pytest.raises(RegistryAuthError, match="plain HTTP"):
                        await client.fetch_manifest(kit.ref(registry))
            return thief.requests

    assert run(work()) == []


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_logins_do_not_follow_a_redirect_to_another_host(kit, run, kind):
    async def work():
        async with FakeRegistry() as storage:
            digest = storage.put_blob("team/app", b"layer")
            faults = Faults(redirect_blobs=storage.url)
            async with FakeRegistry(auth=Auth(kind, _USERS), faults=faults) as registry:
                registry.put_blob("team/app", b"layer")
                sink = kit.Memory()
                async with kit.client(auth=_login(registry)) as client:
                    await client.fetch_blob(kit.ref(registry), kit.descriptor(b"layer"), sink)
                assert bytes(sink.data) == b"layer"
                assert any("Authorization" in r.headers for r in registry.requests)
            return digest, storage.requests

    digest, requests = run(work())
    assert [r.path.rpartition("/")[2] for r in requests] == [digest]
    assert all("Authorization" not in r.headers for r in requests)


def test_an_upload_that_leads_to_another_host_is_sent_without_login(kit, run):
    async def work():
        async with FakeRegistry() as storage, FakeRegistry(auth=Auth("basic", _USERS)) as registry:
            where = {"Location": f"{storage.url}/v2/team/app/blobs/uploads/u1"}
            begun = Failure("POST", "/uploads/", 202, headers=where)
            storage.faults.failures = [Failure("PUT", "/uploads/", 201)]
            async with kit.client(auth=_login(registry)) as client:
                ref = kit.ref(registry)
                await client.has_blob(ref, kit.descriptor(b"x").digest)
                registry.faults.failures = [begun]
                await client.push_blob(ref, kit.descriptor(b"x"), kit.reader(b"x"))
            return storage.requests

    requests = run(work())
    assert [r.method for r in requests] == ["PUT"]
    assert "Authorization" not in requests[0].headers


def test_a_mirror_never_sees_the_login_of_the_registry_it_mirrors(kit, run):
    from boxwright.config.schema import RegistryConfig
    from boxwright.registry.hosts import Hosts

    async def work():
        async with (
            FakeRegistry(auth=Auth("basic", _USERS)) as mirror,
            FakeRegistry(auth=Auth("basic", _USERS)) as registry,
        ):
            registry.put_manifest("team/app", "1", {"schemaVersion": 2})
            hosts = Hosts({registry.host: RegistryConfig(mirrors=(mirror.host,))})
            async with kit.client(hosts, _login(registry)) as client:
                await client.fetch_manifest(kit.ref(registry))
            return mirror.requests

    requests = run(work())
    assert requests
    assert all("Authorization" not in r.headers for r in requests)


def test_token_server_that_is_down_is_named(kit, run):
    async def work():
        auth = Auth("bearer", _USERS, realm="http://127.0.0.1:1/token")
        async with FakeRegistry(auth=auth) as registry, kit.client() as client:
            with pytest.raises(RegistryUnreachableError) as caught:
                await client.fetch_manifest(kit.ref(registry))
            return caught.value

    error = run(work())
    assert "token server" in error.brief
    assert "127.0.0.1:1" in error.detail


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"token": ""}'])
def test_token_server_that_answers_nonsense(kit, run, body):
    async def work():
        faults = Faults(failures=[Failure("GET", "/token", 200, body=body)])
        auth = Auth("bearer")
        async with FakeRegistry(auth=auth, faults=faults) as registry, kit.client() as client:
            with pytest.raises(RegistryAuthError, match="token server"):
                await client.fetch_manifest(kit.ref(registry))

    run(work())


def test_basic_header_is_utf8(kit, run):
    async def work():
        async with FakeRegistry(auth=Auth("basic", {"ünn": "pä:ss"})) as registry:
            registry.put_manifest("team/app", "1", {"schemaVersion": 2})
            async with kit.client(auth=_login(registry, "ünn", "pä:ss")) as client:
                await client.fetch_manifest(kit.ref(registry))
            return registry.requests[-1].headers["Authorization"]

    assert base64.b64decode(run(work())[6:]).decode() == "ünn:pä:ss"
