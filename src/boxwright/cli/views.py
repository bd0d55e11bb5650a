"""Records of a daemon as text and as JSON, in the forms of buildctl."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from boxwright.cli import units
from boxwright.cli.errors import UsageError
from boxwright.core.gojson import time_text

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from boxwright.wire.pb.control_pb2 import UsageRecord
    from boxwright.wire.pb.ops_pb2 import Platform
    from boxwright.wire.pb.worker_pb2 import BuildkitVersion, WorkerRecord

_JSON_TEMPLATES = frozenset(("{{json .}}", "{{ json . }}", "json"))
_ID_WIDTH, _RECLAIMABLE_WIDTH = 71, 11


def wants_json(template: str) -> bool:
    """Return whether a ``--format`` asks for JSON; only that template is known.

    Raises:
        UsageError: another template.
    """
    if template and template.strip() not in _JSON_TEMPLATES:
        raise UsageError(
            f"unsupported --format {template!r}", hint="write '{{json .}}' and use jq"
        )
    return bool(template)


def to_json(data: Any) -> str:  # noqa: ANN401 - anything that JSON can hold
    """Return compact JSON."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def _time(stamp: Timestamp) -> str:
    return time_text(stamp.seconds * 1_000_000_000 + stamp.nanos)


def _spoken_time(stamp: Timestamp) -> str:
    """Return a time as Go prints it."""
    return _time(stamp).replace("T", " ").removesuffix("Z") + " +0000 UTC"


def usage_json(record: UsageRecord) -> dict[str, Any]:
    """Return a usage record (client.UsageInfo of BuildKit's Go client)."""
    return {
        "id": record.ID,
        "mutable": record.Mutable,
        "inUse": record.InUse,
        "size": record.Size,
        "createdAt": _time(record.CreatedAt),
        "lastUsedAt": _time(record.LastUsedAt) if record.HasField("LastUsedAt") else None,
        "usageCount": record.UsageCount,
        "parents": list(record.Parents) or None,
        "description": record.Description,
        "recordType": record.RecordType,
        "shared": record.Shared,
    }


def usage_table(records: Iterable[UsageRecord], *, with_head: bool = True) -> str:
    """Return one line for each record; a star marks mutable and shared ones."""
    head = "ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED\n" if with_head else ""
    return units.tabbed(head + "".join(map(_usage_row, records)))


def _usage_row(record: UsageRecord) -> str:
    name = record.ID + ("*" if record.Mutable else "")
    size = units.size(record.Size) + ("*" if record.Shared else "")
    reclaimable = str(not record.InUse).lower()
    return f"{name:<{_ID_WIDTH}}\t{reclaimable:<{_RECLAIMABLE_WIDTH}}\t{size}\t\n"


def usage_details(record: UsageRecord) -> str:
    """Return everything about one record."""
    rows: list[tuple[str, object]] = [("ID", record.ID)]
    if record.Parents:
        rows.append(("Parents", ";".join(record.Parents)))
    rows += [
        ("Created at", _spoken_time(record.CreatedAt)),
        ("Mutable", str(record.Mutable).lower()),
        ("Reclaimable", str(not record.InUse).lower()),
        ("Shared", str(record.Shared).lower()),
        ("Size", units.size(record.Size)),
    ]
    if record.Description:
        rows.append(("Description", record.Description))
    rows.append(("Usage count", record.UsageCount))
    if record.HasField("LastUsedAt"):
        rows.append(("Last used", _spoken_time(record.LastUsedAt)))
    if record.RecordType:
        rows.append(("Type", record.RecordType))
    return units.tabbed("".join(f"{key}:\t{value}\n" for key, value in rows)) + "\n"


def usage_summary(records: Iterable[UsageRecord]) -> str:
    """Return the sums of a listing."""
    total = reclaimable = shared = 0
    for record in records:
        total += record.Size
        reclaimable += 0 if record.InUse else record.Size
        shared += record.Size if record.Shared else 0
    rows = []
    if shared:
        rows += [("Shared", shared), ("Private", total - shared)]
    rows += [("Reclaimable", reclaimable), ("Total", total)]
    return units.tabbed("".join(f"{key}:\t{units.size(value)}\n" for key, value in rows))


def platform_text(platform: Platform) -> str:
    """Return ``os/arch[/variant]``."""
    return "/".join(filter(None, (platform.OS, platform.Architecture, platform.Variant)))


def _version_json(version: BuildkitVersion) -> dict[str, Any]:
    found = {
        "package": version.package,
        "version": version.version,
        "revision": version.revision,
    }
    if version.dockerfileVersion:
        found["dockerfileVersion"] = version.dockerfileVersion
    return found


def info_json(version: BuildkitVersion) -> dict[str, Any]:
    """Return the answer of Info."""
    return {"buildkitVersion": _version_json(version)}


def worker_json(worker: WorkerRecord) -> dict[str, Any]:
    """Return a worker (client.WorkerInfo of BuildKit's Go client)."""
    return {
        "id": worker.ID,
        "labels": dict(sorted(worker.Labels.items())),
        "platforms": [_platform_json(each) for each in worker.platforms],
        "gcPolicy": [
            {
                "all": rule.all,
                "filter": list(rule.filters) or None,
                "keepDuration": rule.keepDuration,
                "reservedSpace": rule.reservedSpace,
                "maxUsedSpace": rule.maxUsedSpace,
                "minFreeSpace": rule.minFreeSpace,
            }
            for rule in worker.GCPolicy
        ],
        "buildkitVersion": _version_json(worker.BuildkitVersion),
        "cdiDevices": [
            {
                "name": device.Name,
                "autoAllow": device.AutoAllow,
                "annotations": dict(device.Annotations),
                "onDemand": device.OnDemand,
            }
            for device in worker.CDIDevices
        ]
        or None,
    }


def _platform_json(platform: Platform) -> dict[str, str]:
    fields = {"architecture": platform.Architecture, "os": platform.OS}
    return fields | ({"variant": platform.Variant} if platform.Variant else {})


def workers_table(workers: Sequence[WorkerRecord]) -> str:
    """Return one line for each worker."""
    rows = [("ID", "PLATFORMS")]
    rows += [(each.ID, ",".join(map(platform_text, each.platforms))) for each in workers]
    return units.tabbed("".join(f"{first}\t{second}\n" for first, second in rows))


def worker_details(worker: WorkerRecord) -> str:
    """Return everything about a worker."""
    version = worker.BuildkitVersion
    lines = [
        f"ID:\t{worker.ID}",
        f"Platforms:\t{','.join(map(platform_text, worker.platforms))}",
        f"BuildKit:\t{version.package} {version.version} {version.revision}",
    ]
    if version.dockerfileVersion:
        lines.append(f"Dockerfile:\t{version.dockerfileVersion}")
    lines.append("Labels:")
    lines += [f"\t{key}:\t{value}" for key, value in sorted(worker.Labels.items())]
    for number, rule in enumerate(worker.GCPolicy):
        lines.append(f"GC Policy rule#{number}:")
        lines.append(f"\tAll:\t{str(rule.all).lower()}")
        if rule.filters:
            lines.append(f"\tFilters:\t{' '.join(rule.filters)}")
        if rule.keepDuration:
            lines.append(f"\tKeep duration:\t{duration_text(rule.keepDuration)}")
        lines += [
            f"\t{label}:\t{units.exact_size(value)}"
            for label, value in (
                ("Reserved space", rule.reservedSpace),
                ("Minimum free space", rule.minFreeSpace),
                ("Maximum used space", rule.maxUsedSpace),
            )
            if value
        ]
    return units.tabbed("\n".join(lines)) + "\n"


def duration_text(duration_ns: int) -> str:
    """Return a duration as Go prints it: ``48h0m0s``."""
    whole_s, rest_ns = divmod(duration_ns, 1_000_000_000)
    hours, minutes, seconds = whole_s // 3600, whole_s // 60 % 60, whole_s % 60
    tail = f"{seconds + rest_ns / 1e9:g}s"
    if hours:
        return f"{hours}h{minutes}m{tail}"
    return f"{minutes}m{tail}" if minutes else tail


def labels_text(labels: Mapping[str, str]) -> str:
    """Return labels in one line."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
