"""The policy of one build: its rules, and the decisions that its client takes in a session.

Clients may serve ``PolicyVerifier.CheckPolicy``: they are shown a source before it is used, may
ask what it resolves to, and then allow, deny or replace it (``buildx`` does so for contexts that
are not folders, to verify signatures of what it loads by itself).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from boxwright.core.workers import to_worker
from boxwright.engine.parallel import gather_or_cancel
from boxwright.engine.policy import SourceDeniedError, SourceRules
from boxwright.engine.policyregex import Budget
from boxwright.errors import InvalidInputError, LimitExceededError
from boxwright.llb.build_giturl import is_git_transport, parse_git_url
from boxwright.llb.definition import DecodedOp, recompute
from boxwright.session.manager import SessionManager
from boxwright.wire import errdetails
from boxwright.wire.pb import gateway_pb2, ops_pb2, policysession_pb2, sourcepolicy_pb2

_MAX_TURNS = 10
_PARALLEL = 8

MetaResolver = Callable[
    [gateway_pb2.ResolveSourceMetaRequest], Awaitable[gateway_pb2.ResolveSourceMetaResponse]
]


class SourcePolicy:
    """What one build may use. Used from the event loop.

    Args:
        rules: Those of the build.
        sessions: Where the client's session is found.
        session_id: Of the client that decides; empty if none does.
    """

    def __init__(self, rules: SourceRules, sessions: SessionManager, session_id: str = "") -> None:
        self._rules = rules
        self._sessions = sessions
        self._session_id = session_id

    @property
    def rules(self) -> SourceRules:
        """The rules, without the client's decisions."""
        return self._rules

    async def apply(
        self, ops: list[DecodedOp], extra: SourceRules, resolve: MetaResolver
    ) -> dict[str, str]:
        """Check all sources of a definition and convert them in place.

        Returns:
            For every op that has become another one: the digest in the definition, by the new.

        Raises:
            SourceDeniedError: naming the first one that may not be used; its ``vertex`` is set.
            BoxwrightError: the policy can't be evaluated.
        """
        sources = [op for op in ops if op.op.WhichOneof("op") == "source"]
        rules = self._rules.plus(extra)
        if not sources or not (rules or self._session_id):
            return {}
        budget, slots, changed = Budget(), asyncio.Semaphore(_PARALLEL), [False]

        async def check(decoded: DecodedOp) -> None:
            async with slots:
                op = decoded.op
                platform = op.platform if op.HasField("platform") else None
                try:
                    if await self._check(op.source, platform, rules, resolve, budget):
                        changed[0] = True
                except SourceDeniedError as exc:
                    exc.vertex = decoded.digest
                    raise

        await gather_or_cancel([check(op) for op in sources])
        if not changed[0]:
            return {}
        before = [op.digest for op in ops]
        recompute(ops)
        return {op.digest: old for op, old in zip(ops, before, strict=True) if op.digest != old}

    async def check(
        self,
        source: ops_pb2.SourceOp,
        platform: ops_pb2.Platform | None,
        resolve: MetaResolver | None,
        extra: SourceRules | None = None,
    ) -> bool:
        """Check one source and convert it in place.

        Args:
            source: What is to be used or looked up.
            platform: For which platform.
            resolve: Answers the client's questions; None to leave the client's decision out.
            extra: Rules of this call alone.

        Returns:
            Whether it was converted.
        """
        rules = self._rules.plus(extra or SourceRules())
        return await self._check(source, platform, rules, resolve, Budget())

    async def _check(
        self,
        source: ops_pb2.SourceOp,
        platform: ops_pb2.Platform | None,
        rules: SourceRules,
        resolve: MetaResolver | None,
        budget: Budget,
    ) -> bool:
        changed = False
        for _ in range(_MAX_TURNS):
            written, source.identifier = source.identifier, normalized(source)
            shown = source.identifier
            if rules:
                changed |= await to_worker(rules.evaluate, source, budget)
            update = None
            if self._session_id and resolve is not None:
                update = await self._ask(source, platform, resolve)
            if update is None:
                if source.identifier == shown:
                    source.identifier = written
                return changed
            source.CopyFrom(update)
            changed = True
        raise LimitExceededError(
            "too many policy requests",
            detail=f"the client's policy converts a source without end: {source.identifier}",
        )

    async def _ask(
        self,
        source: ops_pb2.SourceOp,
        platform: ops_pb2.Platform | None,
        resolve: MetaResolver,
    ) -> ops_pb2.SourceOp | None:
        """Let the client decide; return what it wants in place of the source, if it does."""
        session = await self._sessions.get(self._session_id)
        shown = gateway_pb2.ResolveSourceMetaResponse(Source=source)
        for _ in range(_MAX_TURNS):
            request = policysession_pb2.CheckPolicyRequest(Source=shown, Platform=platform)
            answer = await session.check_policy(request)
            match answer.WhichOneof("result"):
                case "request":
                    question = answer.request
                    if question.Source != source:
                        raise InvalidInputError(
                            "the client's policy asks for another source than the one to decide",
                            detail=f"{question.Source.identifier!r} != {source.identifier!r}",
                        )
                    shown = await resolve(question)
                case "decision":
                    return _decided(source, answer.decision)
                case _:
                    raise InvalidInputError("the client's policy gives no decision")
        raise LimitExceededError(
            "too many policy requests",
            detail=f"the client's policy asks and does not decide: {source.identifier}",
        )


def normalized(source: ops_pb2.SourceOp) -> str:
    """Return the one identifier that policies know a source by, however it is written.

    A rule for a repository would otherwise be passed by with another spelling of its path.
    """
    scheme, separator, rest = source.identifier.partition("://")
    if scheme != "git" or not separator:
        return source.identifier
    try:
        named = parse_git_url(rest if is_git_transport(rest) else f"https://{rest}")
        full = source.attrs.get("git.fullurl", "")
        if full and not is_git_transport(full):
            full = f"https://{full}"
        remote = parse_git_url(full) if full else named
    except InvalidInputError:
        return source.identifier  # refused when it is resolved
    if named is None or remote is None:
        return source.identifier
    fragment = f"#{named.ref}" if named.ref or named.subdir else ""
    if named.subdir:
        fragment += f":{named.subdir}"
    return f"git://{remote.identifier}{fragment}"


def _decided(
    source: ops_pb2.SourceOp, decision: policysession_pb2.DecisionResponse
) -> ops_pb2.SourceOp | None:
    if decision.action == sourcepolicy_pb2.ALLOW:
        return None
    if decision.action == sourcepolicy_pb2.CONVERT:
        if not decision.HasField("update"):
            raise InvalidInputError("the client's policy converts a source into nothing")
        return decision.update
    said = [message.message for message in decision.denyMessages if message.message]
    error = SourceDeniedError(
        source.identifier, how="not allowed by policy: action DENY", detail="; ".join(said)
    )
    fact = policysession_pb2.DecisionResponse(
        action=sourcepolicy_pb2.DENY, denyMessages=decision.denyMessages
    )
    error.__dict__.setdefault("rpc_details", []).append(errdetails.pack(fact))
    raise error


def rules_of(messages: Sequence[sourcepolicy_pb2.Policy]) -> SourceRules:
    """Return the rules of a request's policies."""
    return SourceRules(messages) if messages else SourceRules()
