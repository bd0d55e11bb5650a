"""Why a step ran: what its key was made of, held against what it was made of before. Pure.

A step's key differs for what differs in its own part of it (:mod:`boxwright.engine.keyparts`),
in the content of inputs, or in the keys of inputs, and then for the reasons for which they
differ. If nothing differs, the step was forced to run, or its result could not be had.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence

from boxwright.engine.contenttables import FileChange, FileState
from boxwright.engine.keyparts import LOCAL, Part, op_of, parts_of
from boxwright.engine.keyrecords import StoredKeys
from boxwright.engine.stepmatch import match_steps
from boxwright.wire.pb import explain_pb2

Cause = explain_pb2.Cause
StepKeys = explain_pb2.StepKeys
TableChanges = Callable[[bytes, bytes], list[FileChange] | None]

MAX_FILES = 50
"""More changed files of one input are counted, not listed."""

FINISHED = frozenset(
    {explain_pb2.RAN, explain_pb2.LOCAL, explain_pb2.IMPORTED, explain_pb2.SKIPPED}
)
_RANDOM = "random:"
_BUILD_ARG = "build-arg:"
_EXCLUDED = ("attribute", "local.excludepatterns")
_OF_INPUTS = frozenset({"input", "file", "content", "dockerignore", "path"})


def is_local(step: StepKeys) -> bool:
    """Return whether a step is a folder of the client, which is looked at in every build."""
    op = op_of(step.op)
    return op is not None and op.source.identifier.startswith(LOCAL)


class Comparison:
    """Two builds side by side.

    Args:
        old: The earlier one.
        new: The one to be explained.
        changes: Compares two tables of files.
    """

    def __init__(self, old: StoredKeys, new: StoredKeys, changes: TableChanges) -> None:
        self.old = old
        self.new = new
        self._changes = changes
        self._old_steps: Sequence[StepKeys] = old.keys.steps
        self._new_steps: Sequence[StepKeys] = new.keys.steps
        self.counterparts = match_steps(self._old_steps, self._new_steps)
        self._parts: dict[int, list[Cause]] = {}
        self._same: list[bool] = []
        self._forced: list[dict[str, None]] = []
        self._causes: list[list[Cause]] = []
        for number, step in enumerate(self._new_steps):  # inputs come first
            other = self.counterpart(number)
            self._same.append(other is not None and self._is_same(step, other))
            self._forced.append(self._forced_by(step))
            self._causes.append([] if other is None else self._compare(number, step, other))

    def counterpart(self, number: int) -> StepKeys | None:
        """Return the step of the earlier build that the step ``number`` was there."""
        found = self.counterparts[number]
        return None if found is None else self._old_steps[found]

    def causes(self, number: int) -> list[Cause]:
        """Return why the step ``number`` ran; it has run, and has a counterpart."""
        step, other = self._new_steps[number], self.counterpart(number)
        assert other is not None
        causes = _unique(self._causes[number])
        own = any(not cause.step and cause.kind not in _OF_INPUTS for cause in causes)
        if step.ignore_cache:
            causes.insert(0, Cause(kind="forced"))
        causes = causes or _unique(self._unfounded(number, step, other))
        if own and self.old.keys.frontend != self.new.keys.frontend:
            old, new = self.old.keys.frontend, self.new.keys.frontend
            causes.insert(0, Cause(kind="frontend", old=old, new=new))
        return causes

    # -- keys -----------------------------------------------------------------------------

    def _is_same(self, step: StepKeys, other: StepKeys) -> bool:
        """Return whether two steps have the same key, by definition or content."""
        maps = set(step.cache_maps) & set(other.cache_maps)
        if all(name.startswith(_RANDOM) for name in maps):
            return False
        if len(step.inputs) != len(other.inputs):
            return False
        return all(
            self._is_same_input(a, b) for a, b in zip(step.inputs, other.inputs, strict=True)
        )

    def _is_same_input(self, now: explain_pb2.InputKeys, was: explain_pb2.InputKeys) -> bool:
        if now.content and was.content:
            return bool(now.content == was.content)
        return (
            now.selector == was.selector
            and now.output == was.output
            and self.counterparts[now.step] == was.step
            and self._same[now.step]
        )

    # -- what differs -----------------------------------------------------------------------

    def _compare(self, number: int, step: StepKeys, other: StepKeys) -> list[Cause]:
        if is_local(step):
            return []  # what counts is what others read of it
        causes = list(self._own(number, step, other))
        for index, now in enumerate(step.inputs):
            was = self._input_before(step, other, index)
            if was is None:
                name = self._new_steps[now.step].name
                causes.append(Cause(kind="input", step=name, detail="a new input"))
            elif not self._is_same_input(now, was):
                causes += self._input(now, was)
        return causes

    def _input_before(
        self, step: StepKeys, other: StepKeys, index: int
    ) -> explain_pb2.InputKeys | None:
        """Return the earlier form of an input: at its place, or wherever it was the same step."""
        wanted = self.counterparts[step.inputs[index].step]
        if len(step.inputs) == len(other.inputs):
            return other.inputs[index]
        return next((each for each in other.inputs if each.step == wanted), None)

    def _own(self, number: int, step: StepKeys, other: StepKeys) -> Iterator[Cause]:
        if set(step.cache_maps) & set(other.cache_maps):
            return
        op, before = op_of(step.op), op_of(other.op)
        found = False
        if op is not None and before is not None:
            now, was = parts_of(op), parts_of(before)
            for part in dict.fromkeys([*was, *now]):
                if was.get(part) != now.get(part):
                    found = True
                    yield self._changed(part, was.get(part, ""), now.get(part, ""))
        if step.pin != other.pin and not found:
            found = True
            yield Cause(kind="source", subject=_source_name(step), old=other.pin, new=step.pin)
        if not found and step.cache_maps and other.cache_maps:
            old, new = other.cache_maps[0], step.cache_maps[0]
            yield Cause(kind="definition", old=old, new=new)

    def _changed(self, part: Part, old: str, new: str) -> Cause:
        kind, subject = part
        if kind == "env" and self._argument(subject) != self._argument(subject, before=True):
            return Cause(kind="build-arg", subject=subject, old=old, new=new)
        if kind == "image":
            old_name, _, old_digest = old.partition("@")
            new_name, _, new_digest = new.partition("@")
            if old_name == new_name:
                return Cause(kind="image", subject=new_name, old=old_digest, new=new_digest)
        return Cause(kind=kind, subject=subject, old=old, new=new, detail=self._told_by(old, new))

    def _argument(self, name: str, *, before: bool = False) -> str | None:
        options = (self.old if before else self.new).keys.options
        return options.get(_BUILD_ARG + name)

    def _told_by(self, old: str, new: str) -> str:
        """Return which changed build arguments can be seen in a change."""
        names = {
            key.removeprefix(_BUILD_ARG)
            for keys in (self.old.keys, self.new.keys)
            for key in keys.options
            if key.startswith(_BUILD_ARG)
        }
        seen = [
            name
            for name in sorted(names)
            if (was := self._argument(name, before=True)) != (now := self._argument(name))
            and ((was and was in old) or (now and now in new))
        ]
        return f"of build argument {', '.join(seen)}" if seen else ""

    def _input(self, now: explain_pb2.InputKeys, was: explain_pb2.InputKeys) -> list[Cause]:
        source = self._new_steps[now.step]
        inherited = [_at(cause, source.name) for cause in self._causes[now.step]]
        if source.ignore_cache:
            inherited.insert(0, Cause(kind="forced", step=source.name))
        if not (now.content and was.content):
            if now.selector != was.selector and self._same[now.step]:
                return [Cause(kind="path", step=source.name, detail="another part of it is used")]
            return inherited or [Cause(kind="input", step=source.name)]
        changes = self._changes(was.table, now.table) if was.table and now.table else None
        local = is_local(source)
        where = "" if local else source.name
        if changes is None:
            causes = [Cause(kind="content", old=was.content, new=now.content, step=where)]
        else:
            causes = list(_files(changes, where))
        if local:
            causes += self._filters(now.step, changes or ())
        return causes + inherited

    def _filters(self, number: int, changes: Iterable[FileChange]) -> Iterator[Cause]:
        """Tell of a changed .dockerignore, if files came or went."""
        other = self.counterpart(number)
        op = op_of(self._new_steps[number].op)
        before = op_of(other.op) if other is not None else None
        if op is None or before is None:
            return
        if all(each.old is not None and each.new is not None for each in changes):
            return
        was, now = (_patterns(parts_of(each).get(_EXCLUDED, "")) for each in (before, op))
        if was != now:
            yield Cause(
                kind="dockerignore",
                old=" ".join(each for each in was if each not in now),
                new=" ".join(each for each in now if each not in was),
            )

    # -- nothing differs ------------------------------------------------------------------------

    def _forced_by(self, step: StepKeys) -> dict[str, None]:
        """Return the forced steps that made a step run: those whose key it stands on.

        The keys of a forced step's result are not told to others; where its content counts,
        others run only if that has changed.
        """
        found: dict[str, None] = {}
        for each in step.inputs:
            if not each.content:
                source = self._new_steps[each.step]
                found |= {source.name: None} if source.ignore_cache else self._forced[each.step]
        return found

    def _unfounded(self, number: int, step: StepKeys, other: StepKeys) -> Iterator[Cause]:
        """Yield why a step ran although its key is the one that it had."""
        if self._forced[number]:
            yield from (Cause(kind="forced", step=name) for name in self._forced[number])
            return
        for failure in step.load_failures:
            yield Cause(kind="damaged", detail=failure)
        if step.load_failures:
            return
        yield from unusable_imports(self.new)
        if other.outcome == explain_pb2.IMPORTED:
            names = {each.name for each in self.new.keys.imports}
            name = other.origin.partition(":")[2]
            if name not in names:
                yield Cause(kind="import", subject=name, detail="this build did not import it")
        yield Cause(kind="evicted", detail="its result is no longer in the cache")


def unusable_imports(build: StoredKeys) -> Iterator[Cause]:
    """Yield the cache imports of a build that could not be read."""
    for each in build.keys.imports:
        if each.error:
            yield Cause(kind="import", subject=each.name, detail=each.error)


def _files(changes: Sequence[FileChange], where: str) -> Iterator[Cause]:
    shown = _without_parents(changes)
    for change in shown[:MAX_FILES]:
        old, new = change.old, change.new
        path = change.path.decode("utf-8", "replace") or "/"
        yield Cause(
            kind="file",
            subject=path if where else path.removeprefix("/"),  # in a context as the user has it
            old=f"sha256:{old.digest}" if old else "",
            new=f"sha256:{new.digest}" if new else "",
            detail=_what_changed(old, new),
            step=where,
        )
    if len(shown) > MAX_FILES:
        more = f"and {len(shown) - MAX_FILES} more files"
        yield Cause(kind="file", detail=more, step=where)


def _without_parents(changes: Sequence[FileChange]) -> list[FileChange]:
    """Leave out folders that came or went with what is in them."""
    paths = [each.path for each in changes]
    return [
        change
        for number, change in enumerate(changes)
        if (change.old is not None and change.new is not None)
        or not (number + 1 < len(paths) and paths[number + 1].startswith(change.path + b"/"))
    ]


def _what_changed(old: FileState | None, new: FileState | None) -> str:
    if old is None or new is None:
        return "added" if old is None else "removed"
    if old.stat is None or new.stat is None:
        return "changed"
    (old_mode, old_uid, old_gid, old_size), (mode, uid, gid, size) = old.stat, new.stat
    said = []
    if stat.S_IFMT(old_mode) != stat.S_IFMT(mode):
        said.append("another kind of file")
    if stat.S_IMODE(old_mode) != stat.S_IMODE(mode):
        said.append(f"mode {stat.S_IMODE(old_mode):04o} -> {stat.S_IMODE(mode):04o}")
    if (old_uid, old_gid) != (uid, gid):
        said.append(f"owner {old_uid}:{old_gid} -> {uid}:{gid}")
    if stat.S_ISREG(mode) and (old_size != size or not said):
        said.append("content" if old_size == size else f"content, {old_size} -> {size} bytes")
    return ", ".join(said) or "changed"


def _patterns(text: str) -> list[str]:
    try:
        found = json.loads(text) if text else []
    except ValueError:
        return [text]
    return [str(each) for each in found or []]


def _source_name(step: StepKeys) -> str:
    op = op_of(step.op)
    return op.source.identifier if op is not None else step.name


def _at(cause: Cause, step: str) -> Cause:
    """Return a cause with the step where it happened, if it does not say so already."""
    if cause.step:
        return cause
    moved = Cause()
    moved.CopyFrom(cause)
    moved.step = step
    return moved


def _unique(causes: Iterable[Cause]) -> list[Cause]:
    found = {cause.SerializeToString(deterministic=True): cause for cause in causes}
    return list(found.values())
