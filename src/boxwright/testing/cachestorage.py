"""One suite for every :class:`~boxwright.solver.types.CacheKeyStorage`.

A test module subclasses :class:`CacheStorageSuite` and gives it a ``storage`` fixture.
"""

from __future__ import annotations

from boxwright.core.cacheinfo import CacheInfoLink, CacheResult, root_key
from boxwright.core.digest import Digest
from boxwright.solver.types import CacheKeyStorage

_DIGEST = Digest.of(b"op")
_LINK = CacheInfoLink(0, 1, _DIGEST)


class CacheStorageSuite:
    """What the solver relies on."""

    def test_results_are_kept_per_key(self, storage: CacheKeyStorage) -> None:
        """Each key lists its own results."""
        for key, result in (("foo", "foo0"), ("foo", "foo1"), ("bar", "bar0")):
            storage.add_result(key, CacheResult(result, 5))
        assert sorted(r.id for r in storage.results("foo")) == ["foo0", "foo1"]
        assert storage.results("bar") == [CacheResult("bar0", 5)]
        assert storage.results("baz") == []
        assert storage.load("foo", "foo1") == CacheResult("foo1", 5)
        assert storage.load("foo", "bar0") is None
        assert storage.load("baz", "foo1") is None

    def test_a_result_is_replaced_by_one_of_its_id(self, storage: CacheKeyStorage) -> None:
        """The time of a result is that of the last time it was saved."""
        storage.add_result("foo", CacheResult("r", 1))
        storage.add_result("foo", CacheResult("r", 2))
        assert storage.results("foo") == [CacheResult("r", 2)]

    def test_links_lead_under_their_condition_only(self, storage: CacheKeyStorage) -> None:
        """All four parts of the condition count."""
        storage.add_link("foo", _LINK, "target")
        storage.add_link("foo", _LINK, "second")
        storage.add_link("bar", _LINK, "other")
        assert sorted(storage.links("foo", _LINK)) == ["second", "target"]
        assert storage.has_link("foo", _LINK, "target")
        assert not storage.has_link("bar", _LINK, "target")
        assert not storage.has_link("foo", _LINK, "other")
        for other in (
            _LINK._replace(input=1),
            _LINK._replace(output=0),
            _LINK._replace(digest=Digest.of(b"x")),
            _LINK._replace(selector=Digest.of(b"x")),
        ):
            assert storage.links("foo", other) == []

    def test_a_link_is_stored_once(self, storage: CacheKeyStorage) -> None:
        """Adding it again changes nothing."""
        for _ in range(2):
            storage.add_link("foo", _LINK, "target")
        assert storage.links("foo", _LINK) == ["target"]
        assert len(storage.backlinks("target")) == 1

    def test_digests_of_any_kind_come_back(self, storage: CacheKeyStorage) -> None:
        """Ids are digests, random digests or plain words."""
        for key in (Digest.of(b"k"), "random:abcd", "0123abcd"):
            link = CacheInfoLink(2, 0, key, Digest.of(b"selector"))
            storage.add_link(key, link, "target " + key)
            assert storage.links(key, link) == ["target " + key]
            storage.add_result(key, CacheResult("r", 1))
            assert key in set(storage.ids())
        assert len(storage.ids_by_result("r")) == 3

    def test_existence(self, storage: CacheKeyStorage) -> None:
        """A key exists if it has a result or leads somewhere, not if it is only led to."""
        storage.add_link("foo", _LINK, "target")
        assert storage.exists("foo")
        assert not storage.exists("target")
        storage.add_result("target", CacheResult("r", 1))
        assert storage.exists("target")
        assert not storage.exists("nothing")

    def test_releasing_the_last_result_removes_the_key(self, storage: CacheKeyStorage) -> None:
        """One level."""
        storage.add_result("foo", CacheResult("foo0", 1))
        storage.add_result("foo", CacheResult("foo1", 1))
        storage.release("foo0")
        assert [r.id for r in storage.results("foo")] == ["foo1"]
        storage.release("foo1")
        assert list(storage.ids()) == []
        storage.release("foo1")

    def test_a_chain_stays_while_it_leads_to_a_result(self, storage: CacheKeyStorage) -> None:
        """Several levels: a parent without results stays for its children."""
        storage.add_result("foo", CacheResult("foo-result", 1))
        for sub in ("sub0", "sub1"):
            storage.add_result(sub, CacheResult(f"{sub}-result", 1))
            storage.add_link("foo", _LINK, sub)
        storage.release("sub0-result")
        assert not storage.exists("sub0")
        assert storage.links("foo", _LINK) == ["sub1"]
        storage.release("foo-result")
        assert storage.exists("foo")
        assert storage.results("foo") == []
        storage.release("sub1-result")
        assert not storage.exists("foo")
        assert list(storage.ids()) == []

    def test_a_deep_chain_is_removed_whole(self, storage: CacheKeyStorage) -> None:
        """Removal does not depend on how deep Python may recurse."""
        with storage.batch():
            for i in range(3000):
                storage.add_link(f"k{i}", _LINK, f"k{i + 1}")
            storage.add_result("k3000", CacheResult("r", 1))
        storage.release("r")
        assert list(storage.ids()) == []

    def test_backlinks_name_root_keys(self, storage: CacheKeyStorage) -> None:
        """Their digest has the output worked in, as exported caches want it."""
        storage.add_result("sub", CacheResult("r", 1))
        storage.add_link("foo", CacheInfoLink(3, 1, _DIGEST, "sel"), "sub")
        expected = CacheInfoLink(3, 0, root_key(_DIGEST, 1), "sel")
        assert storage.backlinks("sub") == [("foo", expected)]
        assert storage.backlinks("foo") == []

    def test_keys_by_result(self, storage: CacheKeyStorage) -> None:
        """One result may stand under several keys."""
        for key, result in (("foo", "r"), ("foo2", "r"), ("bar", "other")):
            storage.add_result(key, CacheResult(result, 1))
        assert sorted(storage.ids_by_result("r")) == ["foo", "foo2"]
        assert storage.ids_by_result("none") == []
        assert sorted(storage.result_ids()) == ["other", "r"]
        storage.release("r")
        assert list(storage.ids()) == ["bar"]
