"""No archive whatsoever reaches anything outside the folder that it is unpacked to."""

import io
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.errors import BoxwrightError
from boxwright.fsutil.tar import Entry, EntryType, TarWriter
from boxwright.fsutil.unpack import apply_layer

component = st.sampled_from(
    [b"a", b"b", b"c", b".", b"..", b"", b".wh.a", b".wh.b", b".wh..wh..opq", b"outside", b"root"]
)
names = st.lists(component, min_size=1, max_size=4).map(b"/".join).filter(bool)
targets = st.one_of(
    names,
    names.map(lambda name: b"/" + name),
    st.sampled_from([b"..", b"../outside", b"/", b"/proc/self/cwd", b"/proc/self/root/etc"]),
)


@st.composite
def entries(draw):
    kind = draw(
        st.sampled_from(
            [EntryType.FILE, EntryType.DIRECTORY, EntryType.SYMLINK, EntryType.HARD_LINK]
        )
    )
    entry = Entry(draw(names), kind, draw(st.sampled_from([0o644, 0o755, 0o2755])))
    if kind in {EntryType.SYMLINK, EntryType.HARD_LINK}:
        entry.linkname = draw(targets)
    return entry, b"written" if kind == EntryType.FILE else b""


def state(folder, skip):
    """Everything that unpacking could change, except below ``skip``."""
    found = {}
    for path, folders, files in os.walk(folder):
        if Path(path) == skip:
            folders.clear()
            continue
        for name in [*files, *folders]:
            full = Path(path, name)
            info = full.lstat()
            times = () if full == skip else (info.st_mtime_ns, info.st_ctime_ns)
            content = full.read_bytes() if full.is_file() else b""
            found[str(full)] = (info.st_mode, info.st_nlink if times else 0, times, content)
    return found


@pytest.mark.parametrize("whiteouts", ["plain", "keep", "overlay"])
@settings(deadline=None)
@given(members=st.lists(entries(), min_size=1, max_size=8))
def test_nothing_outside_changes(whiteouts, members):
    if whiteouts == "overlay" and os.geteuid() != 0:
        pytest.skip("opaque marks need root")
    pieces = []
    tar = TarWriter(pieces.append)
    for entry, content in members:
        tar.add(entry, content)
    tar.close()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        root = base / "root"
        (base / "outside" / "a").mkdir(parents=True)
        (base / "outside" / "a" / "b").write_text("kept")
        (base / "a").write_text("kept")
        root.mkdir()
        before = state(base, root)
        try:
            apply_layer(io.BytesIO(b"".join(pieces)), root, whiteouts=whiteouts, same_owner=False)
        except BoxwrightError:
            pass
        assert state(base, root) == before
