"""Ops over real snapshots and real processes."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import stat
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from boxwright.linux import mount, namespaces
from boxwright.ops.errors import FileOpError, InvalidOpError, SourceMissingError
from boxwright.ops.fileop import FileOpRun
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef
from boxwright.store.store import Store
from boxwright.wire.pb import ops_pb2 as pb

pytestmark = pytest.mark.root

Fill = Callable[[Path], None]
OLD = 1_000_000_000 * 10**9


@pytest.fixture(scope="module", autouse=True)
def _own_mounts() -> None:
    """Keep what the tests mount out of the machine's own mount table."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.make_slave("/")


class World:
    """Snapshots in a fresh store."""

    def __init__(self, snapshots: SnapshotManager) -> None:
        self.snapshots = snapshots
        self.held: list[ImmutableRef] = []

    async def tree(self, fill: Fill, parent: ImmutableRef | None = None) -> ImmutableRef:
        ref = self.snapshots.new(parent, description="test")
        async with ref.mounted() as root:
            fill(root)
        made = await ref.commit()
        self.held.append(made)
        return made

    async def run(
        self, inputs: list[ImmutableRef | None], *actions: pb.FileAction
    ) -> ImmutableRef:
        async with FileOpRun(self.snapshots, inputs, actions, "test") as run:
            results = await run.run()
        assert len(results) == 1
        assert results[0].ref is not None
        self.held.append(results[0].ref)
        return results[0].ref

    @asynccontextmanager
    async def files(self, ref: ImmutableRef) -> AsyncIterator[Path]:
        async with ref.mounted() as root:
            yield root


def play(tmp_path: Path, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        store = Store.open(tmp_path / "state")
        snapshots = SnapshotManager.open(store)
        world = World(snapshots)
        try:
            await scenario(world)
        finally:
            for ref in world.held:
                await ref.release()
            assert [r for r in snapshots.records() if r.mutable] == []
            await snapshots.close()
            store.close()

    asyncio.run(main())


def copy(
    src: str,
    dest: str,
    *,
    first: int = 0,
    secondary: int = 1,
    output: int = 0,
    owner: tuple[int, int] | None = None,
    **fields: object,
) -> pb.FileAction:
    action = pb.FileAction(input=first, secondaryInput=secondary, output=output)
    details = {
        "src": src,
        "dest": dest,
        "mode": -1,
        "timestamp": -1,
        "createDestPath": True,
        "dirCopyContents": True,
        "followSymlink": True,
        "allowWildcard": True,
    }
    action.copy.MergeFrom(pb.FileActionCopy(**(details | fields)))
    if owner is not None:
        action.copy.owner.user.byID, action.copy.owner.group.byID = owner
    return action


def listing(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        name = str(path.relative_to(root))
        if stat.S_ISLNK(info.st_mode):
            found[name] = f"-> {path.readlink()}"
        elif stat.S_ISREG(info.st_mode):
            found[name] = path.read_bytes()
        else:
            found[name] = oct(info.st_mode)
    return found


def context(root: Path) -> None:
    (root / "sub/deep").mkdir(parents=True)
    (root / "one").write_bytes(b"1")
    (root / "sub/two").write_bytes(b"2")
    (root / "sub/deep/three").write_bytes(b"3")
    (root / "sub/link").symlink_to("../one")
    os.chmod(root / "sub/two", 0o4711)
    os.link(root / "sub/two", root / "sub/two-again")
    for path in (*root.rglob("*"), root):
        os.utime(path, ns=(OLD, OLD), follow_symlinks=False)


def base(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nbob:x:1001:1002::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nstaff:x:50:\n")
    (root / "app/old").mkdir(parents=True)
    (root / "app/old/file").write_bytes(b"old")
    (root / "way").symlink_to("/app")


def test_copy_links_files_and_keeps_everything(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        below, source = await world.tree(base), await world.tree(context)
        out = await world.run([below, source], copy("/", "/app/new/"))
        async with world.files(out) as root, world.files(source) as original:
            assert listing(root / "app/new") == listing(original)
            info = (root / "app/new/sub/two").stat()
            assert stat.S_IMODE(info.st_mode) == 0o4711
            assert info.st_mtime_ns == OLD
            assert (root / "app/new/sub").stat().st_mtime_ns == OLD
            assert (root / "app/old/file").read_bytes() == b"old"
            again = (root / "app/new/sub/two-again").stat()
            assert again.st_ino == info.st_ino
        folder = (await out.stack())[-1]
        linked = (folder / "app/new/one").stat()
        assert linked.st_ino == ((await source.stack())[-1] / "one").stat().st_ino

    play(tmp_path, scenario)


def test_a_linked_file_that_is_changed_later_leaves_its_source_alone(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        below, source = await world.tree(base), await world.tree(context)
        change = pb.FileAction(input=2, secondaryInput=-1, output=0)
        change.mkfile.path, change.mkfile.data = "/new/one", b"changed"
        change.mkfile.mode, change.mkfile.timestamp = 0o600, -1
        again = copy("/sub/two", "/new/sub/deep/three", first=3, output=0)
        change.output = -1
        out = await world.run([below, source], copy("/", "/new/", output=-1), change, again)
        async with world.files(out) as root, world.files(source) as original:
            assert (root / "new/one").read_bytes() == b"changed"
            assert (root / "new/sub/deep/three").read_bytes() == b"2"
            assert (original / "one").read_bytes() == b"1"
            assert (original / "sub/deep/three").read_bytes() == b"3"

        def overwrite(root: Path) -> None:
            (root / "new/sub/two").write_bytes(b"later step")
            os.chmod(root / "new/sub/deep", 0o700)

        await world.tree(overwrite, out)
        async with world.files(source) as original:
            assert (original / "sub/two").read_bytes() == b"2"
            assert stat.S_IMODE((original / "sub/deep").stat().st_mode) == 0o755

    play(tmp_path, scenario)


def test_one_source_copied_twice_is_two_files(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        below, source = await world.tree(base), await world.tree(context)
        first = copy("/one", "/a", output=-1)
        second = copy("/one", "/b", first=2)
        out = await world.run([below, source], first, second)
        folder = (await out.stack())[-1]
        assert (folder / "a").stat().st_ino != (folder / "b").stat().st_ino
        assert (folder / "b").read_bytes() == b"1"

    play(tmp_path, scenario)


def test_files_of_a_stack_copied_by_two_ways_are_two_files(tmp_path: Path) -> None:
    def lower(root: Path) -> None:
        (root / "a/b").mkdir(parents=True)
        (root / "a/b/file").write_bytes(b"1")

    def upper(root: Path) -> None:
        (root / "way").symlink_to("a/b")

    async def scenario(world: World) -> None:
        source = await world.tree(upper, await world.tree(lower))
        first = copy("/a", "/p/", output=-1)
        for way in ("/way", "/a/b"):
            out = await world.run([None, source], first, copy(way, "/p/", first=2))
            async with world.files(out) as root:
                assert (root / "p/file").stat().st_ino != (root / "p/b/file").stat().st_ino
            out = await world.run(
                [None, source], copy(way, "/p/", output=-1), copy("/", "/", first=2)
            )
            async with world.files(out) as root:
                assert (root / "p/file").stat().st_ino != (root / "a/b/file").stat().st_ino

    play(tmp_path, scenario)


def test_owner_mode_and_time_change(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        below, source = await world.tree(base), await world.tree(context)
        action = copy("/sub", "/x/y/", owner=(7, 8), modeStr="u=rwX,go=r", timestamp=5 * 10**9)
        out = await world.run([below, source], action)
        async with world.files(out) as root:
            for name, mode in (("two", 0o744), ("deep", 0o744), ("deep/three", 0o644)):
                info = (root / "x/y" / name).stat()
                assert (info.st_uid, info.st_gid) == (7, 8)
                assert oct(stat.S_IMODE(info.st_mode)) == oct(mode)
                assert info.st_mtime_ns == 5 * 10**9
            assert (root / "x").stat().st_uid == 7
            assert (root / "x").stat().st_mtime_ns == 5 * 10**9
            assert (root / "x/y/link").lstat().st_gid == 8
        async with world.files(source) as original:
            assert (original / "sub/two").stat().st_uid == 0
            assert (original / "sub/two").stat().st_mtime_ns == OLD

    play(tmp_path, scenario)


def test_owner_by_name_is_the_images(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        below, source = await world.tree(base), await world.tree(context)
        action = copy("/one", "/named")
        action.copy.owner.user.byName.name, action.copy.owner.user.byName.input = "bob", 0
        out = await world.run([below, source], action)
        async with world.files(out) as root:
            info = (root / "named").stat()
            assert (info.st_uid, info.st_gid) == (1001, 1002)
        action.copy.owner.group.byName.name, action.copy.owner.group.byName.input = "staff", 0
        out = await world.run([below, source], action)
        async with world.files(out) as root:
            assert (root / "named").stat().st_gid == 50

    play(tmp_path, scenario)


def test_patterns(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        source = await world.tree(context)
        out = await world.run([None, source], copy("/", "/", include_patterns=["sub/deep/**"]))
        async with world.files(out) as root:
            assert listing(root) == {
                "sub": "0o40755",
                "sub/deep": "0o40755",
                "sub/deep/three": b"3",
            }
            # made for what is in it: its time is that of the copy, as in BuildKit
            assert (root / "sub").stat().st_mtime_ns > OLD
        patterns = ["sub/*", "!sub/two"]
        out = await world.run([None, source], copy("/", "/", exclude_patterns=patterns))
        async with world.files(out) as root:
            assert listing(root) == {"one": b"1", "sub": "0o40755", "sub/two": b"2"}
        below = await world.tree(base)
        out = await world.run([below, source], copy("/", "/q/", exclude_patterns=["**/t*"]))
        async with world.files(out) as root:
            assert sorted(listing(root / "q")) == ["one", "sub", "sub/deep", "sub/link"]

    play(tmp_path, scenario)


def test_replacing_what_is_in_the_way(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        def blocked(root: Path) -> None:
            (root / "t/one").mkdir(parents=True)
            (root / "t/one/inner").write_text("")
            (root / "t/sub").write_text("a file")

        below, source = await world.tree(blocked), await world.tree(context)
        with pytest.raises(FileOpError):
            await world.run([below, source], copy("/", "/t/"))
        out = await world.run(
            [below, source], copy("/", "/t/", alwaysReplaceExistingDestPaths=True)
        )
        async with world.files(out) as root, world.files(source) as original:
            assert listing(root / "t") == listing(original)

    play(tmp_path, scenario)


def test_copy_over_what_was_deleted_before(tmp_path: Path) -> None:
    """A whiteout in the way of direct writing: the old files must not shine through."""

    async def scenario(world: World) -> None:
        def old(root: Path) -> None:
            (root / "sub").mkdir()
            (root / "sub/ghost").write_text("boo")

        below, source = await world.tree(old), await world.tree(context)
        remove = pb.FileAction(input=0, secondaryInput=-1, output=-1)
        remove.rm.path = "/sub"
        out = await world.run([below, source], remove, copy("/", "/", first=2))
        async with world.files(out) as root, world.files(source) as original:
            assert listing(root) == listing(original)
        gone = await world.tree(lambda root: shutil.rmtree(root / "sub"), below)
        out = await world.run([gone, source], copy("/", "/"))
        async with world.files(out) as root, world.files(source) as original:
            assert listing(root) == listing(original)

    play(tmp_path, scenario)


def test_copy_from_a_stack_shows_the_top(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        def change(root: Path) -> None:
            (root / "sub/two").unlink()
            (root / "sub/deep/three").write_bytes(b"new three")
            (root / "extra").mkdir()
            (root / "extra/file").write_bytes(b"x")
            shutil.rmtree(root / "gone")

        def first(root: Path) -> None:
            context(root)
            (root / "gone").mkdir()
            (root / "gone/file").write_text("")

        source = await world.tree(change, await world.tree(first))
        source = await world.tree(lambda root: (root / "top").write_bytes(b"t"), source)
        below = await world.tree(base)
        out = await world.run([below, source], copy("/", "/all/"))
        async with world.files(out) as root, world.files(source) as original:
            assert listing(root / "all") == listing(original)
            assert "sub/two" not in listing(root / "all")
        folder = (await out.stack())[-1]
        assert (folder / "all/extra/file").stat().st_nlink > 1

    play(tmp_path, scenario)


def test_links_in_trees_never_lead_out(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_text("secret")

        def hostile(root: Path) -> None:
            (root / "abs").symlink_to(outside)
            (root / "up").symlink_to("../" * 40 + str(outside))
            (root / "file").write_text("mine")

        tree, source = await world.tree(hostile), await world.tree(context)
        for name in ("abs", "up"):
            out = await world.run([tree, source], copy("/one", f"/{name}/"))
            async with world.files(out) as root:
                assert (root / str(outside).lstrip("/") / "one").read_bytes() == b"1"
            with pytest.raises(SourceMissingError):
                await world.run([None, tree], copy(f"/{name}/secret", "/got"))
            for kind in ("mkdir", "mkfile"):
                action = pb.FileAction(input=0, secondaryInput=-1, output=0)
                details = getattr(action, kind)
                details.path, details.mode, details.timestamp = f"/{name}/new", 0o755, -1
                with pytest.raises(FileOpError):
                    await world.run([tree], action)
            action = pb.FileAction(input=0, secondaryInput=-1, output=0)
            action.rm.path = f"/{name}/secret"
            action.rm.allowNotFound = True
            await world.run([tree], action)
        assert [path.name for path in outside.iterdir()] == ["secret"]

    play(tmp_path, scenario)


def test_hostile_paths_in_actions_stay_inside(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        source = await world.tree(context)
        out = await world.run([None, source], copy("/../../sub/../one", "/../../../x/../../y"))
        async with world.files(out) as root:
            assert listing(root) == {"y": b"1"}
        action = pb.FileAction(input=-1, secondaryInput=-1, output=0)
        action.mkfile.path, action.mkfile.data = "/../../../../z", b"z"
        action.mkfile.mode, action.mkfile.timestamp = 0o644, -1
        out = await world.run([], action)
        async with world.files(out) as root:
            assert listing(root) == {"z": b"z"}

    play(tmp_path, scenario)


def test_odd_names_and_kinds_survive(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        def odd(root: Path) -> None:
            (root / ("n" * 255)).write_text("long")
            with open(os.fsencode(root) + b"/bad\xff\xfename", "wb") as file:
                file.write(b"bytes")
            (root / "new\nline").write_text("")
            os.mkfifo(root / "fifo")
            os.mknod(root / "dev", stat.S_IFCHR | 0o600, os.makedev(1, 3))
            (root / "dangling").symlink_to("/no/where")
            with (root / "sparse").open("wb") as file:
                file.truncate(10 << 30)
            os.setxattr(root / "fifo", "trusted.x", b"v")

        source, below = await world.tree(odd), await world.tree(base)
        for parent in (below, None):
            out = await world.run([parent, source], copy("/", "/o/"))
            async with world.files(out) as root, world.files(source) as original:
                names = sorted(os.listdir(os.fsencode(original)))
                assert sorted(os.listdir(os.fsencode(root / "o"))) == names
                assert stat.S_ISFIFO((root / "o/fifo").lstat().st_mode)
                assert (root / "o/dev").lstat().st_rdev == os.makedev(1, 3)
                info = (root / "o/sparse").stat()
                assert info.st_size == 10 << 30
                assert info.st_blocks < 1000

    play(tmp_path, scenario)


def test_archives_are_unpacked_where_asked(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        def archive(root: Path) -> None:
            data = io.BytesIO()
            with tarfile.open(fileobj=data, mode="w:gz") as tar:
                for name, content in (("in/file", b"f"), (".wh.plain", b"w"), ("../up", b"u")):
                    entry = tarfile.TarInfo(name)
                    entry.size, entry.uid, entry.mtime = len(content), 5, 77
                    tar.addfile(entry, io.BytesIO(content))
            (root / "a.tar.gz").write_bytes(data.getvalue())
            (root / "text.tar").write_text("not an archive")

        source = await world.tree(archive)
        unpack = copy("/*", "/x/", attemptUnpackDockerCompatibility=True)
        out = await world.run([None, source], unpack)
        async with world.files(out) as root:
            found = listing(root)
            assert found["x/in/file"] == b"f"
            assert found["x/.wh.plain"] == b"w"
            assert found["x/text.tar"] == b"not an archive"
            assert "x/a.tar.gz" not in found
            assert "up" not in found
            assert (root / "x/in/file").stat().st_uid == 5
        unpack = copy("/a*", "/x/", attemptUnpackDockerCompatibility=True, owner=(3, 4))
        out = await world.run([None, source], unpack)
        async with world.files(out) as root:
            assert (root / "x/in/file").stat().st_uid == 3

    play(tmp_path, scenario)


def test_errors_name_paths_of_the_image(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        source = await world.tree(context)
        with pytest.raises(SourceMissingError) as missing:
            await world.run([None, source], copy("/nothing", "/x", allowWildcard=False))
        assert str(missing.value) == "lstat /nothing: no such file or directory"
        with pytest.raises(SourceMissingError) as missing:
            await world.run([None, source], copy("/no*", "/x"))
        assert str(missing.value) == "/no* not found"
        await world.run([None, source], copy("/no*", "/x", allowEmptyWildcard=True))
        with pytest.raises(FileOpError) as caught:
            await world.run([source, source], copy("/one", "/sub/two/x"))
        assert str(tmp_path) not in str(caught.value)
        action = pb.FileAction(input=0, secondaryInput=-1, output=0)
        action.rm.path = "/missing"
        with pytest.raises(SourceMissingError):
            await world.run([source], action)
        action = pb.FileAction(input=0, secondaryInput=-1, output=0)
        action.mkfile.path = "/"
        with pytest.raises(FileOpError, match="is a directory"):
            await world.run([source], action)

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "actions",
    [
        [],
        [{"input": 5}],
        [{"input": 0, "output": 1}],
        [{"input": 0, "output": 0}, {"input": 0, "output": 0}],
        [{"input": 2, "output": 0}, {"input": 1, "output": -1}],
        [{"input": 1, "output": 0}],
    ],
)
def test_contradicting_actions_are_refused(tmp_path: Path, actions: list[dict[str, int]]) -> None:
    async def scenario(world: World) -> None:
        source = await world.tree(context)
        made = []
        for indexes in actions:
            action = pb.FileAction(**({"secondaryInput": -1, "output": 0} | indexes))
            action.mkdir.path, action.mkdir.mode, action.mkdir.timestamp = "/x", 0o755, -1
            made.append(action)
        async with FileOpRun(world.snapshots, [source], made, "test") as run:
            with pytest.raises(InvalidOpError):
                await run.run()

    play(tmp_path, scenario)


def test_branches_do_not_see_each_other(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        def mkdir(path: str, first: int, output: int) -> pb.FileAction:
            action = pb.FileAction(input=first, secondaryInput=-1, output=output)
            action.mkdir.path, action.mkdir.mode, action.mkdir.timestamp = path, 0o755, -1
            return action

        actions = [mkdir("/all", -1, -1), mkdir("/a", 0, 0), mkdir("/b", 0, 1)]
        async with FileOpRun(world.snapshots, [], actions, "test") as run:
            results = await run.run()
        names = []
        for result in results:
            assert result.ref is not None
            world.held.append(result.ref)
            async with world.files(result.ref) as root:
                names.append(sorted(os.listdir(root)))
        assert names == [["a", "all"], ["all", "b"]]

    play(tmp_path, scenario)
