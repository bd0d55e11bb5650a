"""Answer ``boxwright why``: which steps of a build ran, and what made each of them run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from boxwright.engine.errors import UnknownBuildError
from boxwright.engine.keyrecords import KeyRecords, StoredKeys
from boxwright.engine.stepmatch import overlap
from boxwright.engine.why import FINISHED, Cause, Comparison, StepKeys, is_local, unusable_imports
from boxwright.errors import NotFoundError
from boxwright.wire.pb import explain_pb2

_CANDIDATES = 50
_SEARCHED = 200
_SIMILAR = 0.5
_SPARED = frozenset({explain_pb2.LOCAL, explain_pb2.IMPORTED, explain_pb2.SKIPPED})


class Explainer:
    """Compares remembered builds. Blocking; safe from every thread."""

    def __init__(self, records: KeyRecords) -> None:
        self._records = records

    def why(self, request: explain_pb2.WhyRequest) -> explain_pb2.WhyResponse:
        """Return the steps that ran with their causes, or the steps that were asked for.

        Raises:
            UnknownBuildError: no such build is remembered.
            NotFoundError: it has no such step, or no build is remembered at all.
        """
        build = self._find(request.ref)
        comparisons = _Comparisons(self._records, build, list(self._candidates(build, request)))
        response = explain_pb2.WhyResponse(ref=build.ref, against=comparisons.nearest)
        named = False
        for number, step in enumerate(build.keys.steps):
            if not is_local(step):
                _count(response, step)
            if request.step and not _is_meant(step, request.step):
                continue
            named = True
            ran = step.outcome in {explain_pb2.RAN, explain_pb2.FAILED} and not is_local(step)
            if ran or request.step:
                shown = response.steps.add(
                    digest=step.digest, name=step.name, outcome=step.outcome, origin=step.origin
                )
                if ran:
                    shown.against, causes = comparisons.causes(number)
                    shown.causes.extend(causes)
        response.saved_ns = comparisons.saved_ns()
        response.exports.extend(build.keys.exports)
        if request.step and not named:
            raise NotFoundError(
                f"build {build.ref} has no step {request.step!r}",
                hint=f"boxwright history logs {build.ref} shows its steps",
            )
        return response

    def _find(self, ref: str) -> StoredKeys:
        found = self._records.find(ref)
        if found is None:
            if ref:
                raise UnknownBuildError(ref)
            raise NotFoundError("no build is remembered", hint="build something first")
        return found

    def _candidates(
        self, build: StoredKeys, request: explain_pb2.WhyRequest
    ) -> Iterator[StoredKeys]:
        """Yield the builds to compare with, best first."""
        if request.against:
            yield self._find(request.against)
            return
        earlier = list(self._records.before(build.ref, _SEARCHED))
        same = [each for each in earlier if each.project == build.project]
        alike = [
            each
            for each in earlier
            if each.project != build.project
            and overlap(each.keys.steps, build.keys.steps) >= _SIMILAR
        ]
        yield from islice((*same, *alike), _CANDIDATES)


class _Comparisons:
    """One build beside several earlier ones, each compared when it is needed."""

    def __init__(
        self, records: KeyRecords, build: StoredKeys, candidates: list[StoredKeys]
    ) -> None:
        self._records = records
        self._build = build
        self._candidates = candidates
        self._made: list[Comparison] = []

    @property
    def nearest(self) -> str:
        """The build that comes first; empty if there is none."""
        return self._candidates[0].ref if self._candidates else ""

    def _all(self) -> Iterator[Comparison]:
        for number, candidate in enumerate(self._candidates):
            if number == len(self._made):
                changes = self._records.tables.changes
                self._made.append(Comparison(candidate, self._build, changes))
            yield self._made[number]

    def saved_ns(self) -> int:
        """Return what the steps that did not run took when they last ran, as far as is known."""
        left = {
            number
            for number, step in enumerate(self._build.keys.steps)
            if step.outcome in _SPARED and not is_local(step)
        }
        saved = 0
        for comparison in self._all():
            found = {n: c for n in left if (c := comparison.counterpart(n)) and c.took_ns}
            saved += sum(other.took_ns for other in found.values())
            left -= found.keys()
            if not left:
                break
        return saved

    def causes(self, number: int) -> tuple[str, list[Cause]]:
        """Return what a step was compared with, and why it ran."""
        for comparison in self._all():
            other = comparison.counterpart(number)
            if other is not None and other.outcome in FINISHED:
                return comparison.old.ref, comparison.causes(number)
        return "", list(_without_history(self._build, number, has_earlier=bool(self._candidates)))


def _without_history(build: StoredKeys, number: int, *, has_earlier: bool) -> Iterator[Cause]:
    step = build.keys.steps[number]
    if step.ignore_cache:
        yield Cause(kind="forced")
    yield from unusable_imports(build)
    if has_earlier:
        yield Cause(kind="new", detail="no earlier build of this project finished such a step")
    else:
        yield Cause(kind="first", detail="no earlier build of this project is remembered")


def _is_meant(step: StepKeys, wanted: str) -> bool:
    return wanted in step.name or step.digest.removeprefix("sha256:").startswith(
        wanted.removeprefix("sha256:")
    )


def _count(response: explain_pb2.WhyResponse, step: StepKeys) -> None:
    response.total += 1
    match step.outcome:
        case explain_pb2.RAN | explain_pb2.FAILED:
            response.ran += 1
        case explain_pb2.LOCAL:
            response.local += 1
        case explain_pb2.IMPORTED:
            response.imported += 1
        case explain_pb2.SKIPPED:
            response.skipped += 1
