"""The configuration as frozen dataclasses: the schema, its defaults and its documentation.

The keys are those of ``buildkitd.toml``; what BuildKit does not know lives under
``[boxwright]``, which its decoder ignores. ``docs/configuration`` is generated from the
``doc`` of each field, so a key without one fails a test.
"""

from __future__ import annotations

from typing import Any

from boxwright.core.dataclass import dataclass, field


def key(
    name: str, default: Any, doc: str, *, example: Any = None, is_effective: bool = True
) -> Any:
    """Declare a TOML key.

    Args:
        name: As the file spells it.
        default: Its value when it is left out.
        doc: The sentence that documents it.
        example: A value for the documentation, where the default does not show one.
        is_effective: False for keys that are accepted and change nothing; setting one warns.
    """
    metadata = {"key": name, "doc": doc, "example": example, "is_effective": is_effective}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TlsConfig:
    """``[grpc.tls]``: the daemon's own certificate and the CA that clients must chain to."""

    cert: str = key(
        "cert",
        "",
        "PEM file with the server certificate (and chain).",
        example="/etc/boxwright/tls/server.pem",
    )
    key_file: str = key(
        "key",
        "",
        "PEM file with the server's private key.",
        example="/etc/boxwright/tls/server.key",
    )
    ca: str = key(
        "ca",
        "",
        "PEM file; when set, clients must present a certificate it signed.",
        example="/etc/boxwright/tls/ca.pem",
    )


@dataclass(frozen=True)
class GrpcConfig:
    """``[grpc]``: where the daemon listens."""

    address: tuple[str, ...] = key(
        "address",
        (),
        "Addresses to listen on: unix:///path or tcp://host:port.",
        example=("unix:///run/boxwright/boxwright.sock", "tcp://0.0.0.0:1234"),
    )
    debug_address: str = key(
        "debugAddress", "", "Accepted for compatibility; nothing listens.", is_effective=False
    )
    uid: int | None = key(
        "uid", None, "Owner of the unix socket; the daemon's own by default.", example=0
    )
    gid: int | None = key(
        "gid", None, "Group of the unix socket; the daemon's own by default.", example=998
    )
    tls: TlsConfig = key("tls", TlsConfig, "Certificates of the tcp listener.")


@dataclass(frozen=True)
class LogConfig:
    """``[log]``: the daemon's own log."""

    format: str = key("format", "text", "text or json.")
    level: str = key("level", "info", "debug, info, warn or error.")


@dataclass(frozen=True)
class DnsConfig:
    """``[dns]``: overrides of the resolver that build steps see."""

    nameservers: tuple[str, ...] = key(
        "nameservers", (), "Replace the resolver's servers.", example=("10.0.0.2",)
    )
    options: tuple[str, ...] = key(
        "options", (), "Replace the resolver's options.", example=("ndots:1",)
    )
    search_domains: tuple[str, ...] = key(
        "searchDomains", (), "Replace the search list.", example=("example.com",)
    )


@dataclass(frozen=True)
class CdiConfig:
    """``[cdi]``: devices that steps may ask for (Container Device Interface)."""

    disabled: bool = key("disabled", False, "No devices.")
    spec_dirs: tuple[str, ...] = key(
        "specDirs",
        ("/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"),
        "Folders of CDI specifications (.json, .yaml).",
    )
    auto_allowed: tuple[str, ...] = key(
        "autoAllowed",
        (),
        "Devices or kinds that builds get without --allow.",
        example=("vendor.example/gpu",),
    )


@dataclass(frozen=True)
class KeypairConfig:
    """``[[registry."host".keypair]]``: a client certificate for one registry."""

    key_file: str = key(
        "key", "", "PEM file with the client's private key.", example="/etc/boxwright/client.key"
    )
    cert: str = key(
        "cert", "", "PEM file with the client certificate.", example="/etc/boxwright/client.pem"
    )


@dataclass(frozen=True)
class RegistryConfig:
    """``[registry."host"]``: how one registry host is reached."""

    mirrors: tuple[str, ...] = key(
        "mirrors",
        (),
        "Hosts (with optional path) tried first.",
        example=("mirror.example.com", "other.example.com/hub"),
    )
    http: bool | None = key("http", None, "Speak plain HTTP to this host.", example=True)
    insecure: bool | None = key(
        "insecure", None, "Do not verify this host's certificate.", example=True
    )
    ca: tuple[str, ...] = key(
        "ca", (), "PEM files trusted for this host.", example=("/etc/boxwright/registry-ca.pem",)
    )
    keypair: tuple[KeypairConfig, ...] = key("keypair", (), "Client certificates.")
    tls_config_dir: tuple[str, ...] = key(
        "tlsconfigdir",
        (),
        "Folders with *.crt, *.cert and *.key files, as Docker's certs.d.",
        example=("/etc/docker/certs.d/registry.example.com",),
    )


@dataclass(frozen=True)
class GcPolicyConfig:
    """``[[worker.oci.gcpolicy]]``: one rule of garbage collection."""

    all: bool = key("all", False, "Apply to internal and frontend records too.")
    filters: tuple[str, ...] = key(
        "filters",
        (),
        "Record filters; a record that matches any.",
        example=("type==source.local",),
    )
    keep_duration: str | int = key(
        "keepDuration", 0, "Keep records used within this time (seconds, or 48h).", example="48h"
    )
    keep_bytes: str | int = key("keepBytes", 0, "Deprecated spelling of reservedSpace.")
    reserved_space: str | int = key(
        "reservedSpace",
        0,
        "Bytes, size or percentage that are always kept. Rules that say nothing else are refused.",
        example="10GB",
    )
    max_used_space: str | int = key(
        "maxUsedSpace",
        0,
        "Bytes, size or percentage above which records are removed.",
        example="60%",
    )
    min_free_space: str | int = key(
        "minFreeSpace", 0, "Bytes, size or percentage of the disk to keep free.", example="20%"
    )


@dataclass(frozen=True)
class OciWorkerConfig:
    """``[worker.oci]``: the one worker of this daemon."""

    enabled: bool = key(
        "enabled", True, "There is one worker; it can't be switched off.", is_effective=False
    )
    labels: dict[str, str] = key(
        "labels", dict, "Extra labels of the worker.", example={"pool": "ci"}
    )
    platforms: tuple[str, ...] = key(
        "platforms", (), "Platforms to build for; found out if empty.", example=("linux/amd64",)
    )
    snapshotter: str = key("snapshotter", "auto", "auto, overlayfs, native or fuse-overlayfs.")
    rootless: bool = key(
        "rootless", False, "Run without root; found out by itself.", is_effective=False
    )
    no_process_sandbox: bool = key(
        "noProcessSandbox",
        False,
        "Share the daemon's process namespace with steps, as a masked /proc makes necessary; "
        "rootless only.",
    )
    binary: str = key(
        "binary", "", "The OCI runtime; crun, then runc, by default.", example="runc"
    )
    default_cgroup_parent: str = key(
        "defaultCgroupParent", "", "Cgroup that steps run under.", example="/boxwright"
    )
    apparmor_profile: str = key(
        "apparmor-profile",
        "",
        "AppArmor profile of steps; it must be loaded. Insecure steps run without.",
        example="docker-default",
    )
    max_parallelism: int = key(
        "max-parallelism", 0, "Steps that run at once; 0 is no limit.", example=4
    )
    network_mode: str = key(
        "networkMode",
        "auto",
        "The network of steps: host, none, cni, bridge; auto is cni if cniConfigPath exists, "
        "else host.",
    )
    cni_config_path: str = key(
        "cniConfigPath", "/etc/buildkit/cni.json", "CNI configuration: one plugin, or a list."
    )
    cni_binary_path: str = key("cniBinaryPath", "/opt/cni/bin", "Folder of the CNI plugins.")
    cni_pool_size: int = key(
        "cniPoolSize", 0, "Connected networks kept for the next steps.", example=4
    )
    bridge_name: str = key("bridgeName", "buildkit0", "The bridge of networkMode bridge.")
    bridge_subnet: str = key("bridgeSubnet", "10.10.0.0/16", "Its addresses.")
    gc: bool = key("gc", True, "Collect garbage by itself.")
    gc_keep_storage: str | int = key("gckeepstorage", 0, "Deprecated spelling of reservedSpace.")
    reserved_space: str | int = key(
        "reservedSpace",
        0,
        "Space that collection leaves alone; without maxUsedSpace and minFreeSpace, all that the "
        "state may use.",
        example="10GB",
    )
    max_used_space: str | int = key(
        "maxUsedSpace",
        0,
        "Space that the state may use at most; 80% of the disk, 100GB at most, where reservedSpace "
        "and minFreeSpace are not set either.",
        example="60%",
    )
    min_free_space: str | int = key(
        "minFreeSpace",
        0,
        "Space of the disk to keep free; 20% where reservedSpace and maxUsedSpace are not set "
        "either.",
        example="20%",
    )
    gc_policy: tuple[GcPolicyConfig, ...] = key("gcpolicy", (), "Rules, tried in their order.")


@dataclass(frozen=True)
class WorkerConfig:
    """``[worker]``."""

    oci: OciWorkerConfig = key("oci", OciWorkerConfig, "The worker.")


@dataclass(frozen=True)
class HistoryConfig:
    """``[history]``: how long finished builds are remembered."""

    max_age: str | int = key(
        "maxAge", 172800, "Seconds (or 48h) that a record is kept.", example="168h"
    )
    max_entries: int = key("maxEntries", 50, "Records that are kept at least, whatever their age.")


@dataclass(frozen=True)
class RegistryServeConfig:
    """``[boxwright.registry]``: the registry embedded in the daemon."""

    address: str = key(
        "address", "", "host:port to serve the image store on.", example="127.0.0.1:5000"
    )
    tls_cert: str = key(
        "tlsCert",
        "",
        "PEM file with its certificate (and chain); without, it speaks plain HTTP.",
        example="/etc/boxwright/tls/registry.pem",
    )
    tls_key: str = key(
        "tlsKey",
        "",
        "PEM file with its private key.",
        example="/etc/boxwright/tls/registry.key",
    )
    users: str = key(
        "users",
        "",
        "File of NAME:PASSWORD lines; without, everybody who can connect may use it.",
        example="/etc/boxwright/registry-users",
    )
    read_only: bool = key("readOnly", False, "Serve what is there, take nothing.")


@dataclass(frozen=True)
class DiskConfig:
    """``[boxwright.disk]``: the hard cap on the state folder."""

    cap: str | int = key(
        "cap",
        0,
        "Bytes, size or percentage of the disk that the state folder never exceeds; 0: the disk.",
        example="16GiB",
    )
    headroom: str | int = key(
        "headroom",
        0,
        "What steps must leave free before cache is removed under them; a part of the cap by "
        "default.",
        example="512MiB",
    )


@dataclass(frozen=True)
class BoxwrightConfig:
    """``[boxwright]``: keys that BuildKit does not have."""

    registry: RegistryServeConfig = key("registry", RegistryServeConfig, "The embedded registry.")
    disk: DiskConfig = key("disk", DiskConfig, "The hard cap on the state folder.")
    pull_hosts: dict[str, str] = key(
        "pullHosts",
        dict,
        "For a registry host that is pushed to, the one that pullers know it by.",
        example={"localhost:5001": "k3d-registry.localhost:5001"},
    )
    registry_logins: str = key(
        "registryLogins",
        "",
        "Docker's config.json with the daemon's own logins, used for all clients where a client "
        "has none for a host.",
        example="/etc/boxwright/registry-logins.json",
    )
    stall_timeout: str | int = key(
        "stallTimeout",
        "60s",
        "How long nothing may move in a transfer from or to a registry before it is begun again.",
    )
    log_quota: str | int = key(
        "logQuota",
        "1GiB",
        "Bytes of progress and log kept for one build; above, its head and tail.",
    )


@dataclass(frozen=True)
class Config:
    """The whole of ``buildkitd.toml``."""

    debug: bool = key("debug", False, "Deprecated; the same as log.level = debug.")
    root: str = key("root", "", "State folder.", example="/var/lib/boxwright")
    insecure_entitlements: tuple[str, ...] = key(
        "insecure-entitlements",
        (),
        "Entitlements that a build may ask for; devices too, unless [cdi] is disabled.",
        example=("network.host",),
    )
    provenance_env_dir: str = key(
        "provenanceEnvDir",
        "/etc/buildkit/provenance.d",
        "Folder of JSON files whose keys provenance documents say of this builder.",
    )
    log: LogConfig = key("log", LogConfig, "The daemon's log.")
    dns: DnsConfig = key("dns", DnsConfig, "The resolver of steps.")
    cdi: CdiConfig = key("cdi", CdiConfig, "Devices for steps.")
    grpc: GrpcConfig = key("grpc", GrpcConfig, "Listeners.")
    worker: WorkerConfig = key("worker", WorkerConfig, "The worker.")
    registry: dict[str, RegistryConfig] = key("registry", dict, "Registry hosts.")
    history: HistoryConfig = key("history", HistoryConfig, "Finished builds.")
    boxwright: BoxwrightConfig = key("boxwright", BoxwrightConfig, "Keys of our own.")
