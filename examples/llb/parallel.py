"""Three steps that know nothing of each other, laid over one base.

Each is built on the base and reduced to what it changed. The merge copies nothing, and a
change of one step builds that step again and no other.
"""

import sys

from boxwright import llb

base = llb.scratch().file(llb.mkdir("/etc").then(llb.mkdir("/opt")), name="base")

parts = []
for name in ("app", "config", "assets"):
    built = base.mkfile(f"/opt/{name}", name.encode(), name=f"make {name}")
    parts.append(llb.diff(base, built))

result = llb.merge([base, *parts], name="put together")

sys.stdout.buffer.write(result.marshal().SerializeToString())
