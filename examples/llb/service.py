"""A Python service: dependencies first, so that a changed source does not install them again."""

import sys

from boxwright import llb

base = llb.image("python:3.13-slim").dir("/app").add_env("PYTHONDONTWRITEBYTECODE", "1")
context = llb.local("context", exclude=[".git", "**/__pycache__"], shared_key="context")

installed = base.run(
    "pip install --target /deps -r /src/requirements.txt",
    name="install dependencies",
    mounts=[
        llb.bind("/src", context),
        llb.cache("/root/.cache/pip", "pip"),
        llb.secret("/root/.netrc", id="netrc", optional=True),
        llb.Mount("/deps"),
    ],
).mount("/deps")

result = base.copy(
    installed, "/", "/usr/local/lib/python3.13/site-packages", llb.CopyOptions(contents_only=True)
).copy(context, "/", "/app", llb.CopyOptions(contents_only=True), name="copy the source")

sys.stdout.buffer.write(result.marshal().SerializeToString())
