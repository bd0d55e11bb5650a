"""The configuration as frozen dataclasses: the schema, its defaults and its documentation.

The keys are those of ``buildkitd.toml``; what BuildKit does not know lives under
``[boxwright]``, which its decoder ignores. ``docs/configuration`` is generated from the
``doc`` of each field, so a key without one fails a test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def key(name: str, default: Any, doc: str) -> Any:
    """Declare a TOML key with its default and the sentence that documents it."""
    metadata = {"key": name, "doc": doc}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TlsConfig:
    """``[grpc.tls]``: the daemon's own certificate and the CA that clients must chain to."""

    cert: str = key("cert", "", "PEM file with the server certificate (and chain).")
    key_file: str = key("key", "", "PEM file with the server's private key.")
    ca: str = key("ca", "", "PEM file; when set, clients must present a certificate it signed.")


@dataclass(frozen=True)
class GrpcConfig:
    """``[grpc]``: where the daemon listens."""

    address: tuple[str, ...] = key(
        "address", (), "Addresses to listen on: unix:///path or tcp://host:port."
    )
    debug_address: str = key("debugAddress", "", "Accepted for compatibility; nothing listens.")
    uid: int | None = key("uid", None, "Owner of the unix socket; the daemon's own by default.")
    gid: int | None = key("gid", None, "Group of the unix socket; the daemon's own by default.")
    tls: TlsConfig = key("tls", TlsConfig, "Certificates of the tcp listener.")


@dataclass(frozen=True)
class LogConfig:
    """``[log]``: the daemon's own log."""

    format: str = key("format", "text", "text or json.")
    level: str = key("level", "info", "debug, info, warn or error.")


@dataclass(frozen=True)
class DnsConfig:
    """``[dns]``: overrides of the resolver that build steps see."""

    nameservers: tuple[str, ...] = key("nameservers", (), "Replace the resolver's servers.")
    options: tuple[str, ...] = key("options", (), "Replace the resolver's options.")
    search_domains: tuple[str, ...] = key("searchDomains", (), "Replace the search list.")


@dataclass(frozen=True)
class KeypairConfig:
    """``[[registry."host".keypair]]``: a client certificate for one registry."""

    key_file: str = key("key", "", "PEM file with the client's private key.")
    cert: str = key("cert", "", "PEM file with the client certificate.")


@dataclass(frozen=True)
class RegistryConfig:
    """``[registry."host"]``: how one registry host is reached."""

    mirrors: tuple[str, ...] = key("mirrors", (), "Hosts (with optional path) tried first.")
    http: bool | None = key("http", None, "Speak plain HTTP to this host.")
    insecure: bool | None = key("insecure", None, "Do not verify this host's certificate.")
    ca: tuple[str, ...] = key("ca", (), "PEM files trusted for this host.")
    keypair: tuple[KeypairConfig, ...] = key("keypair", (), "Client certificates.")
    tls_config_dir: tuple[str, ...] = key(
        "tlsconfigdir", (), "Folders with *.crt, *.cert and *.key files, as Docker's certs.d."
    )


@dataclass(frozen=True)
class GcPolicyConfig:
    """``[[worker.oci.gcpolicy]]``: one rule of garbage collection."""

    all: bool = key("all", False, "Apply to internal and frontend records too.")
    filters: tuple[str, ...] = key("filters", (), "Record filters; a record that matches any.")
    keep_duration: str | int = key(
        "keepDuration", 0, "Keep records used within this time (seconds, or 48h)."
    )
    keep_bytes: str | int = key("keepBytes", 0, "Deprecated spelling of reservedSpace.")
    reserved_space: str | int = key(
        "reservedSpace", 0, "Bytes, size or percentage that are always kept."
    )
    max_used_space: str | int = key(
        "maxUsedSpace", 0, "Bytes, size or percentage above which records are removed."
    )
    min_free_space: str | int = key(
        "minFreeSpace", 0, "Bytes, size or percentage of the disk to keep free."
    )


@dataclass(frozen=True)
class OciWorkerConfig:
    """``[worker.oci]``: the one worker of this daemon."""

    enabled: bool = key("enabled", True, "There is one worker; it can't be switched off.")
    labels: dict[str, str] = key("labels", dict, "Extra labels of the worker.")
    platforms: tuple[str, ...] = key(
        "platforms", (), "Platforms to build for; found out if empty."
    )
    snapshotter: str = key("snapshotter", "auto", "auto, overlayfs, native or fuse-overlayfs.")
    rootless: bool = key("rootless", False, "Run without root; found out by itself.")
    no_process_sandbox: bool = key(
        "noProcessSandbox", False, "Share the daemon's process namespace with steps."
    )
    binary: str = key("binary", "", "The OCI runtime; crun, then runc, by default.")
    default_cgroup_parent: str = key("defaultCgroupParent", "", "Cgroup that steps run under.")
    apparmor_profile: str = key("apparmor-profile", "", "AppArmor profile of steps.")
    max_parallelism: int = key("max-parallelism", 0, "Steps that run at once; 0 is no limit.")
    network_mode: str = key("networkMode", "auto", "auto, host, none, bridge or cni.")
    cni_config_path: str = key("cniConfigPath", "/etc/buildkit/cni.json", "CNI configuration.")
    cni_binary_path: str = key("cniBinaryPath", "/opt/cni/bin", "Folder of the CNI plugins.")
    gc: bool = key("gc", True, "Collect garbage by itself.")
    gc_keep_storage: str | int = key("gckeepstorage", 0, "Deprecated spelling of reservedSpace.")
    reserved_space: str | int = key("reservedSpace", 0, "Space that collection leaves alone.")
    max_used_space: str | int = key("maxUsedSpace", 0, "Space that the state may use at most.")
    min_free_space: str | int = key("minFreeSpace", 0, "Space of the disk to keep free.")
    gc_policy: tuple[GcPolicyConfig, ...] = key("gcpolicy", (), "Rules, tried in their order.")


@dataclass(frozen=True)
class WorkerConfig:
    """``[worker]``."""

    oci: OciWorkerConfig = key("oci", OciWorkerConfig, "The worker.")


@dataclass(frozen=True)
class HistoryConfig:
    """``[history]``: how long finished builds are remembered."""

    max_age: str | int = key("maxAge", 172800, "Seconds (or 48h) that a record is kept.")
    max_entries: int = key("maxEntries", 50, "Records that are kept at least, whatever their age.")


@dataclass(frozen=True)
class RegistryServeConfig:
    """``[boxwright.registry]``: the registry embedded in the daemon."""

    address: str = key("address", "", "host:port to serve the image store on; off when empty.")


@dataclass(frozen=True)
class BoxwrightConfig:
    """``[boxwright]``: keys that BuildKit does not have."""

    registry: RegistryServeConfig = key("registry", RegistryServeConfig, "The embedded registry.")
    log_quota: str | int = key("logQuota", "1GiB", "Compressed bytes of log kept for one step.")


@dataclass(frozen=True)
class Config:
    """The whole of ``buildkitd.toml``."""

    debug: bool = key("debug", False, "Deprecated; the same as log.level = debug.")
    root: str = key("root", "", "State folder.")
    insecure_entitlements: tuple[str, ...] = key(
        "insecure-entitlements", (), "Entitlements that a build may ask for."
    )
    log: LogConfig = key("log", LogConfig, "The daemon's log.")
    dns: DnsConfig = key("dns", DnsConfig, "The resolver of steps.")
    grpc: GrpcConfig = key("grpc", GrpcConfig, "Listeners.")
    worker: WorkerConfig = key("worker", WorkerConfig, "The worker.")
    registry: dict[str, RegistryConfig] = key("registry", dict, "Registry hosts.")
    history: HistoryConfig = key("history", HistoryConfig, "Finished builds.")
    boxwright: BoxwrightConfig = key("boxwright", BoxwrightConfig, "Keys of our own.")
