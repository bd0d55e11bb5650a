"""A frontend as somebody outside would write it, and an image that it runs in.

The program speaks ``LLBBridge`` on its standard input and output. Its image holds nothing but
this machine's Python, the modules that it imports, and the libraries that those need.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, json, os, socket, sys
from boxwright.llb.source_op import http, local
from boxwright.llb.file_op import mkfile, copy
from boxwright.llb.state import State
from boxwright.llb.build_ops import from_definition
from boxwright.wire import methods
from boxwright.wire.bytestream import SocketStream
from boxwright.wire.client import Connection
from boxwright.wire.pb import gateway_pb2, ops_pb2

def options():
    found, number = {}, 0
    while (text := os.environ.get(f"BUILDKIT_FRONTEND_OPT_{number}")) is not None:
        key, _, value = text.partition("=")
        found[key] = value
        number += 1
    return found

async def main():
    opts = options()
    mode = opts.get("build-arg:MODE", "")
    print("frontend says", mode, file=sys.stderr, flush=True)
    if mode == "crash":
        sys.exit(3)
    if mode == "silent":
        return
    sock = socket.socket(fileno=0)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(SocketStream, sock=sock)
    link = Connection.over(stream)
    pong = await link.unary(methods.BRIDGE_PING, gateway_pb2.PingRequest())
    if mode == "hang":
        await asyncio.sleep(3600)
    if mode == "error":
        request = gateway_pb2.ReturnRequest()
        request.error.code, request.error.message = 3, "the frontend does not like this"
        await link.unary(methods.BRIDGE_RETURN, request)
        return
    inputs = await link.unary(methods.BRIDGE_INPUTS, gateway_pb2.InputsRequest())
    context = local("context", session_id=os.environ["BUILDKIT_SESSION_ID"])
    solved = await link.unary(
        methods.BRIDGE_SOLVE,
        gateway_pb2.SolveRequest(
            Definition=context.marshal(), allowResultReturn=True, allowResultArrayRef=True
        ),
    )
    text = await link.unary(
        methods.BRIDGE_READ_FILE,
        gateway_pb2.ReadFileRequest(Ref=solved.result.ref.id, FilePath="recipe"),
    )
    told = {
        "recipe": text.Data.decode(),
        "workers": len(json.loads(os.environ["BUILDKIT_WORKERS"])),
        "product": os.environ["BUILDKIT_EXPORTEDPRODUCT"],
        "caps": len(pong.LLBCaps) > 10,
        "metadata": os.path.getsize("/run/config/buildkit/metadata/frontend.bin") > 0,
        "inputs": sorted(inputs.Definitions),
    }
    made = State().file(mkfile("/made", json.dumps(told).encode()))
    if mode == "resolve":
        url = opts["build-arg:URL"]
        question = gateway_pb2.ResolveSourceMetaRequest(Source=ops_pb2.SourceOp(identifier=url))
        answers = [
            await link.unary(methods.BRIDGE_RESOLVE_SOURCE_META, question) for _ in range(2)
        ]
        digests = "\\n".join(answer.HTTP.Checksum for answer in answers).encode()
        made = State().file(copy(http(url), "/file", "/file")).file(mkfile("/digests", digests))
    solved = await link.unary(
        methods.BRIDGE_SOLVE,
        gateway_pb2.SolveRequest(
            Definition=made.marshal(), allowResultReturn=True, allowResultArrayRef=True
        ),
    )
    result = gateway_pb2.Result(ref=solved.result.ref)
    result.metadata["containerimage.config"] = json.dumps({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        "config": {"Labels": {"by": "frontend"}},
    }).encode()
    await link.unary(methods.BRIDGE_RETURN, gateway_pb2.ReturnRequest(result=result))
    await link.close()

asyncio.run(main())
"""


def _closure(code: str) -> list[Path]:
    """Return the files that a program's imports load, by running only its imports."""
    imports = [line for line in code.splitlines() if line.startswith(("import ", "from "))]
    listing = (
        "\nimport sys, encodings.idna, encodings.ascii, encodings.latin_1, asyncio.base_events, hpack"
        "\nfor m in list(sys.modules.values()):"
        "\n    f = getattr(m, '__file__', None)"
        "\n    if f: print(f)"
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(imports) + listing],
        capture_output=True,
        text=True,
        check=True,
    )
    files = {Path(line) for line in done.stdout.splitlines() if line.startswith("/")}
    binaries = [str(file) for file in files if ".so" in file.name] + [sys.executable]
    linked = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False)
    words = (word for line in linked.stdout.splitlines() for word in line.split())
    files |= {Path(word) for word in words if word.startswith("/") and not word.endswith(":")}
    return sorted(files)


def write_image_context(folder: Path) -> None:
    """Write a build context whose Dockerfile makes the frontend's image."""
    root = folder / "root"
    python = Path(sys.executable).resolve()
    for path in (*_closure(PROGRAM), python):
        for source in {path, path.resolve()}:
            target = root / str(source).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(source, target)
    (root / "frontend.py").write_text(PROGRAM)
    paths = [p for p in sys.path if p] + [str(Path(__file__).parents[2] / "src")]
    libraries = {str(p.parent) for p in _closure(PROGRAM) if ".so" in p.name}
    command = [str(python), "-sB", "/frontend.py"]
    quoted = ", ".join(f'"{part}"' for part in command)
    (folder / "Dockerfile").write_text(
        "FROM scratch\nCOPY root /\n"
        f"ENV PYTHONHOME={sys.base_prefix} PYTHONPATH={':'.join(dict.fromkeys(paths))}\n"
        f"ENV LD_LIBRARY_PATH={':'.join(sorted(libraries))}\n"
        'LABEL moby.buildkit.frontend.network.none="true" '
        'moby.buildkit.frontend.caps="moby.buildkit.frontend.inputs"\n'
        f"ENTRYPOINT [{quoted}]\n"
    )
