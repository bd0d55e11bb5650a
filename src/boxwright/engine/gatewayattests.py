"""Attestations of results in the gateway's messages (``Result.attestations``)."""

from __future__ import annotations

from collections.abc import Callable

from boxwright.engine.results import FrontendResult, LazyRef, ResultAttestation
from boxwright.errors import InvalidInputError
from boxwright.exporters.attestation import Attestation, Subject, digest_map
from boxwright.wire.pb import gateway_pb2 as pb


def fill_attestations(
    message: pb.Result, result: FrontendResult, register: Callable[[LazyRef | None], str]
) -> None:
    """Write a result's attestations into a message; those that the engine makes are left out.

    Args:
        message: What the frontend gets.
        result: What it asked for.
        register: Gives a ref an id.
    """
    for key, items in result.attestations.items():
        for item in items:
            if item.form.content is not None:
                continue
            attestation = message.attestations[key].attestation.add(
                kind=pb.Bundle if item.form.kind == "bundle" else pb.InToto,
                path=item.form.path,
                inTotoPredicateType=item.form.predicate_type,
                metadata=dict(item.form.metadata),
            )
            attestation.ref.id = register(item.ref)
            for subject in item.form.subjects:
                attestation.inTotoSubjects.add(
                    kind=pb.Self if subject.is_self else pb.Raw,
                    name=subject.name,
                    digest=[f"{kind}:{value}" for kind, value in subject.digests.items()],
                )


def read_attestations(
    message: pb.Result, take: Callable[[str], LazyRef | None]
) -> dict[str, list[ResultAttestation]]:
    """Return the attestations that a frontend has returned, by platform id.

    Args:
        message: What it returned.
        take: Returns the ref of an id, owned by the caller.

    Raises:
        InvalidInputError: of an unknown kind.
        NotFoundError: there is no such ref.
    """
    found: dict[str, list[ResultAttestation]] = {}
    for key, items in message.attestations.items():
        for item in items.attestation:
            form = _form(item)
            found.setdefault(key, []).append(ResultAttestation(form, take(item.ref.id)))
    return found


def _form(item: pb.Attestation) -> Attestation:
    if item.kind not in {pb.InToto, pb.Bundle}:
        raise InvalidInputError("unknown kind of attestation", detail=str(item.kind))
    subjects = []
    for subject in item.inTotoSubjects:
        if subject.kind not in {pb.Self, pb.Raw}:
            raise InvalidInputError("unknown attestation subject type", detail=str(subject.kind))
        is_self = subject.kind == pb.Self
        subjects.append(Subject(subject.name, digest_map(*subject.digest), is_self=is_self))
    return Attestation(
        kind="bundle" if item.kind == pb.Bundle else "in-toto",
        path=item.path,
        predicate_type=item.inTotoPredicateType,
        subjects=tuple(subjects),
        metadata=dict(item.metadata),
    )
