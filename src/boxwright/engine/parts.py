"""What an engine is made of, opened in order and closed in reverse."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from pathlib import Path

from boxwright.config.load import ConfigError, parse_size, parse_timeout_s
from boxwright.core.clock import Clock
from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.engine.images import ImageProvider, Images
from boxwright.engine.keyfacts import KeyCollector
from boxwright.engine.keyrecords import KeyRecords
from boxwright.engine.provenance import RequestRecords
from boxwright.engine.resultstorage import SnapshotResults
from boxwright.engine.settings import EngineSettings, gc_policies
from boxwright.engine.sourcemeta import SourceMetadataResolver
from boxwright.executor import runtime
from boxwright.executor.cdi import CdiRegistry
from boxwright.executor.executor import Executor, ExecutorConfig
from boxwright.executor.hosts import Dns
from boxwright.executor.networks import Networks, NetworkSettings
from boxwright.linux import apparmor
from boxwright.ops.execmounts import MountWorld
from boxwright.ops.factory import OpFactory
from boxwright.ops.sshsocket import forward_socket
from boxwright.ops.stepgate import StepGate
from boxwright.registry.auth import AuthSource
from boxwright.registry.hosts import Hosts
from boxwright.session.manager import SessionManager
from boxwright.snapshots.backend import BackendName
from boxwright.snapshots.cachemounts import CacheMounts
from boxwright.snapshots.manager import SnapshotManager
from boxwright.solver.cachemanager import LocalCacheManager
from boxwright.solver.jobs import Solver
from boxwright.sources.base import SourceProvider, SourceResolver
from boxwright.sources.blob import BlobFiles, BlobSources
from boxwright.sources.bloblocator import LAYOUT_SCHEME, REGISTRY_SCHEME
from boxwright.sources.fetch import BlobFetcher
from boxwright.sources.git import GitSources
from boxwright.sources.git_access import GitAccess
from boxwright.sources.git_repository import GitRepositories
from boxwright.sources.http import HttpDownloads, HttpSources
from boxwright.sources.local import LocalSources
from boxwright.sources.oci_layout import OciLayoutProvider
from boxwright.sources.registry import RegistryClients
from boxwright.store.cachekeys import CacheKeyStore
from boxwright.store.store import Store

_log = logging.getLogger(__name__)

_BACKENDS: dict[str, BackendName] = {
    "auto": "overlay",
    "overlayfs": "overlay",
    "native": "native",
    "fuse-overlayfs": "fuse",
}


@dataclass
class Parts:
    """The collaborators of one engine."""

    store: Store
    snapshots: SnapshotManager
    executor: Executor
    sessions: SessionManager
    fetcher: BlobFetcher
    registry_clients: RegistryClients
    images: Images
    downloads: HttpDownloads
    source_metadata: SourceMetadataResolver
    cache: LocalCacheManager
    solver: Solver
    gate: StepGate
    mount_world: MountWorld
    keys: KeyCollector
    worker_id: str
    snapshotter_name: str
    disk_bytes: int
    early_slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """How many layers are made at once before an export asks for them."""
    damaged_caches: set[Digest] = field(default_factory=set)
    """Roots of remote caches that can't deliver what they promise."""
    requests: RequestRecords = field(default_factory=RequestRecords)
    """What running builds were asked for, for those that use their results."""

    async def close(self) -> None:
        """Close everything, last opened first."""
        await self.solver.close()
        await self.gate.close()
        await self.executor.close()
        await self.registry_clients.close()
        await self.downloads.close()
        await self.snapshots.close(sync=True)
        await to_worker(self.store.close)


async def open_parts(settings: EngineSettings, clock: Clock) -> Parts:
    """Open the state folder and wire everything to it.

    Raises:
        BoxwrightError: the folder is in use, too new, or can't be used; or no snapshots or
            processes can be made on this machine.
    """
    gc_policies(settings.config.worker.oci, 1 << 40)  # refuses bad rules while nothing is open
    store = await to_worker(Store.open, settings.root, clock=clock, rootless=settings.rootless)
    try:
        return await _wire(settings, store, clock)
    except BaseException:
        store.close()
        raise


def _networks(settings: EngineSettings, run_dir: Path) -> Networks:
    worker = settings.config.worker.oci
    wanted = NetworkSettings(
        mode=worker.network_mode,
        config_path=Path(worker.cni_config_path),
        binaries=Path(worker.cni_binary_path),
        pool_size=worker.cni_pool_size,
        bridge=worker.bridge_name,
        subnet=worker.bridge_subnet,
    )
    return Networks.open(wanted, run_dir / "net", is_root=not settings.rootless)


def _own_logins(path: str) -> AuthSource | None:
    """Return the daemon's logins for registries, if a file of them is named."""
    if not path:
        return None
    from boxwright.session.providers.filelogins import FileLogins

    return FileLogins(Path(path))


def _shares_processes(settings: EngineSettings) -> bool:
    if not settings.config.worker.oci.no_process_sandbox:
        return False
    if not settings.rootless:
        raise ConfigError(
            "noProcessSandbox is not allowed for root",
            detail="steps could kill any process of this machine",
            hint="leave it out, or run the daemon as an ordinary user",
        )
    _log.warning("noProcessSandbox: steps can see and kill the daemon's own processes")
    return True


def _apparmor_profile(settings: EngineSettings) -> str:
    profile = settings.config.worker.oci.apparmor_profile
    if profile and not apparmor.is_enabled():
        raise ConfigError(
            f"the AppArmor profile {profile} can't confine steps",
            detail="this kernel has no AppArmor, or does not use it",
            hint="leave apparmor-profile out, or start the machine with AppArmor",
        )
    return profile


async def _wire(settings: EngineSettings, store: Store, clock: Clock) -> Parts:
    worker = settings.config.worker.oci
    backend = _BACKENDS.get(worker.snapshotter, "overlay")
    snapshots = await to_worker(SnapshotManager.open, store, backend=backend)
    dns, cdi = settings.config.dns, settings.config.cdi
    networks = await to_worker(_networks, settings, store.root / "run")
    executor = Executor.open(
        ExecutorConfig(
            run_dir=store.root / "run",
            runtimes=(worker.binary,) if worker.binary else runtime.CANDIDATES,
            cgroups=not settings.rootless,
            cgroup_parent=worker.default_cgroup_parent,
            networks=networks,
            dns=Dns(dns.nameservers, dns.options, dns.search_domains),
            cdi=None if cdi.disabled else CdiRegistry(cdi.spec_dirs, cdi.auto_allowed),
            shares_processes=_shares_processes(settings),
            apparmor_profile=await to_worker(_apparmor_profile, settings),
        )
    )
    sessions = SessionManager()
    clients = RegistryClients(
        Hosts(
            settings.config.registry,
            config_file=str(settings.config_path or "buildkitd.toml"),
            pull_hosts=settings.config.boxwright.pull_hosts,
        ),
        sessions,
        await to_worker(_own_logins, settings.config.boxwright.registry_logins),
        stall_timeout_s=parse_timeout_s(settings.config.boxwright.stall_timeout),
    )
    images = Images(store, clients, sessions)
    fetcher = BlobFetcher(store.blobs)
    keep_owner = not settings.rootless
    downloads = HttpDownloads(snapshots, keep_owner=keep_owner)
    cache_mounts = snapshots.cache_mounts or CacheMounts(snapshots)
    local = LocalSources(snapshots, keep_owner=keep_owner)
    blobs = BlobFiles(snapshots, clients, sessions, keep_owner=keep_owner)
    providers: dict[str, SourceProvider] = {
        "git": GitSources(
            snapshots,
            GitRepositories(cache_mounts, store.db),
            GitAccess(executor.run_dir, forward_socket),
            blobs,
        ),
        "http": HttpSources("http", downloads),
        "https": HttpSources("https", downloads),
        "docker-image": ImageProvider(images, snapshots, fetcher),
        REGISTRY_SCHEME: BlobSources(REGISTRY_SCHEME, blobs),
        LAYOUT_SCHEME: BlobSources(LAYOUT_SCHEME, blobs),
        "oci-layout": OciLayoutProvider(sessions, snapshots, fetcher),
        "local": local,
    }
    sources = SourceResolver(providers)
    factory = OpFactory(
        snapshots, executor, sources, sessions, max_parallelism=worker.max_parallelism
    )
    results = SnapshotResults(snapshots)
    cache = LocalCacheManager("local", CacheKeyStore(store.db), results)
    solver = Solver(factory.resolve, cache, clock=clock)
    usage = os.statvfs(settings.root)
    disk = settings.config.boxwright.disk
    disk_bytes = usage.f_blocks * usage.f_frsize
    await to_worker(
        store.room.limit,
        parse_size(disk.cap, total_bytes=disk_bytes),
        parse_size(disk.headroom, total_bytes=disk_bytes),
    )
    return Parts(
        store=store,
        snapshots=snapshots,
        executor=executor,
        sessions=sessions,
        fetcher=fetcher,
        registry_clients=clients,
        images=images,
        downloads=downloads,
        source_metadata=SourceMetadataResolver(sources, sessions),
        cache=cache,
        solver=solver,
        gate=factory.gate,
        mount_world=MountWorld(snapshots, cache_mounts, executor.run_dir),
        keys=KeyCollector(KeyRecords(store.db), local),
        worker_id=_worker_id(settings.root),
        snapshotter_name="overlayfs" if backend == "overlay" else backend,
        disk_bytes=disk_bytes,
    )


def _worker_id(root: Path) -> str:
    """Return this state folder's id, made once."""
    path = root / "worker-id"
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        fresh = uuid.uuid4().hex[:25]
        staged = path.with_suffix(".new")
        staged.write_text(fresh, "ascii")
        staged.replace(path)
        return fresh
