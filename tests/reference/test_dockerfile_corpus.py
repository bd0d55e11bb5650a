"""Dockerfiles of public projects: our definition against upstream's, op by op."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from corpus_texts import Entry, corpus_folder, entries, hosts, registry_of_everything
from programs import PROGRAM, run, wait_until

pytestmark = [pytest.mark.reference, pytest.mark.root]


def test_the_list_is_long_enough() -> None:
    listed = entries()
    assert len({entry.repository for entry in listed}) >= 60
    assert len({(entry.repository, entry.path) for entry in listed}) == len(listed)
    assert all(len(entry.commit) == 40 and entry.exercises for entry in listed)


@pytest.fixture(scope="module")
def texts() -> dict[Entry, bytes]:
    """The texts that were fetched."""
    folder = corpus_folder()
    if folder is None:
        pytest.skip("BOXWRIGHT_CORPUS names no folder")
    found = {entry: entry.text(folder) for entry in entries()}
    return {entry: text for entry, text in found.items() if text is not None}


@pytest.fixture(scope="module")
def addresses(
    texts: dict[Entry, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Our daemon and upstream's; every registry is the one that has everything."""
    folder = tmp_path_factory.mktemp("corpus")
    with registry_of_everything() as registry, (folder / "log").open("wb") as log:
        tables = [
            f'[registry."{name}"]\n  mirrors = ["{registry}"]\n'
            for name in hosts([*texts.values()])
        ]
        tables.append(f'[registry."{registry}"]\n  http = true\n')
        config = folder / "buildkitd.toml"
        config.write_text("".join(tables))
        started = []
        sockets = [f"unix://{folder}/{name}.sock" for name in ("ours", "upstream")]
        commands = [
            [
                PROGRAM,
                "daemon",
                "--config",
                config,
                "--root",
                folder / "ours",
                "--addr",
                sockets[0],
            ],
            [
                *(os.environ["BUILDKITD"], "--config", config, "--root", folder / "upstream"),
                *("--addr", sockets[1], "--oci-worker-net", "host", "--oci-worker-binary", "runc"),
            ],
        ]
        try:
            for argv in commands:
                started.append(subprocess.Popen(argv, stdout=log, stderr=log))
            for address in sockets:
                wait_until(lambda address=address: _answers(address), address)
            yield sockets[0], sockets[1]
        finally:
            for process in started:
                process.terminate()
                process.wait(30)


def _answers(address: str) -> bool:
    argv = [os.environ["BUILDCTL"], "--addr", address, "debug", "workers"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def convert(address: str, folder: Path) -> dict[str, Any] | str:
    """Return the definition that a daemon makes of a Dockerfile, or how its error begins."""
    argv = [os.environ["BUILDCTL"], "--addr", address, "build", "--frontend", "dockerfile.v0"]
    argv += ["--local", f"context={folder}", "--local", f"dockerfile={folder}"]
    argv += ["--opt", "requestid=frontend.convertllb", "--opt", "platform=linux/amd64"]
    done = run([*argv, "--progress", "rawjson"])
    if done.status:
        said = done.err.strip().splitlines()[-1].rpartition("failed to solve: ")[2]
        return said.partition(": ")[0]
    start = done.out.index("{")
    answer = json.JSONDecoder().raw_decode(done.out[start:])[0]
    return comparable(answer)


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """Name each op by what it is and what it stands on, without what is new in every session.

    That is the session's id in local sources, through which every digest above differs, and the
    ids of progress groups.
    """
    ops = answer["def"]
    names: dict[str, str] = {}
    while len(names) < len(ops):
        for digest, op in ops.items():
            inputs = [item["digest"] for item in op.get("inputs", ())]
            if digest in names or not all(item in names for item in inputs):
                continue
            op.get("source", {}).get("attrs", {}).pop("local.session", None)
            for item in op.get("inputs", ()):
                item["digest"] = names[item["digest"]]
            names[digest] = sha256(json.dumps(op, sort_keys=True).encode()).hexdigest()
    metadata = answer.get("metadata") or {}
    for meta in metadata.values():
        for key in ("progress_group", "progressGroup"):
            meta.get(key, {}).pop("id", None)
    locations = (answer.get("source") or {}).get("locations") or {}
    return {
        "ops": {names[digest]: op for digest, op in ops.items()},
        "metadata": {names[digest]: meta for digest, meta in metadata.items()},
        "locations": {names[digest]: where for digest, where in locations.items()},
    }


def test_every_definition_is_upstreams(
    texts: dict[Entry, bytes], addresses: tuple[str, str], tmp_path: Path
) -> None:
    unequal = {}
    for number, (entry, text) in enumerate(texts.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "Dockerfile").write_bytes(text)
        ours, theirs = (convert(address, folder) for address in addresses)
        if ours != theirs:
            name = f"{entry.repository}:{entry.path}"
            unequal[name] = (str(ours)[:400], str(theirs)[:400])
    converted = len(texts) - len(unequal)
    print(
        f"{converted} of {len(texts)} Dockerfiles of {len({e.repository for e in texts})} projects"
    )
    assert unequal == {}
