"""The store as a state machine: whatever the order of calls, nothing live is lost."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import ALGORITHMS, Digest
from boxwright.store import Store
from boxwright.store.leases import Lease


class StoreMachine(RuleBasedStateMachine):
    """Writes, refs, leases, tags, collections and restarts against a model of what is live."""

    blobs = Bundle("blobs")
    leases = Bundle("leases")

    @initialize()
    def open(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="bw-store-"))
        self.store = Store.open(self.root)
        self.stored: dict[Digest, bytes] = {}
        self.refs: dict[Digest, set[Digest]] = {}
        self.leased: dict[str, set[Digest]] = {}
        self.tags: dict[str, Digest] = {}

    @rule(target=blobs, data=st.binary(max_size=3), algorithm=st.sampled_from(ALGORITHMS))
    def put(self, data: bytes, algorithm: str) -> Digest:
        with self.store.blobs.writer(algorithm=algorithm) as writer:
            writer.write(data)
            digest, _ = writer.commit()
        self.stored[digest] = data
        return digest

    @rule(parent=blobs, child=blobs)
    def refer(self, parent: Digest, child: Digest) -> None:
        if parent in self.stored:
            self.store.blobs.add_refs(parent, [child])
            self.refs.setdefault(parent, set()).add(child)

    @rule(target=leases)
    def lease(self) -> Lease:
        lease = self.store.leases.create(persistent=True)
        self.leased[lease.id] = set()
        return lease

    @rule(lease=leases, digest=blobs)
    def hold(self, lease: Lease, digest: Digest) -> None:
        if lease.id in self.leased:
            self.store.leases.add(lease.id, "blob", [digest])
            self.leased[lease.id].add(digest)

    @rule(lease=consumes(leases))
    def give_up(self, lease: Lease) -> None:
        self.store.leases.release(lease.id)
        self.leased.pop(lease.id, None)

    @rule(name=st.sampled_from("ab"), digest=blobs)
    def tag(self, name: str, digest: Digest) -> None:
        self.store.images.set(name, Descriptor("application/x", digest, 1))
        self.tags[name] = digest

    @rule(name=st.sampled_from("ab"))
    def untag(self, name: str) -> None:
        assert self.store.images.delete(name) is (self.tags.pop(name, None) is not None)

    def live(self) -> set[Digest]:
        pending = [*self.tags.values(), *(d for held in self.leased.values() for d in held)]
        found: set[Digest] = set()
        while pending:
            digest = pending.pop()
            if digest not in found:
                found.add(digest)
                pending += self.refs.get(digest, ())
        return found

    @rule()
    def collect(self) -> None:
        live = self.live()
        gone = {digest for digest in self.stored if digest not in live}
        assert self.store.gc(grace_ns=0).blobs == len(gone)
        for digest in gone:
            del self.stored[digest]
            self.refs.pop(digest, None)

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        if not clean:  # recovery must change nothing that is whole
            self.store.close()
            self.store = Store.open(self.root)
            self.store.db.execute("UPDATE meta SET value = '0' WHERE key = 'clean'")
        self.store.close()
        self.store = Store.open(self.root)

    @invariant()
    def holds_exactly_the_model(self) -> None:
        assert {info.digest for info in self.store.blobs.walk()} == set(self.stored)
        assert set(self.store.blobs.files()) == set(self.stored)
        for digest, data in self.stored.items():
            assert self.store.blobs.read(digest) == data

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.root)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
