"""Source policy: what a build may use, and what it gets instead.

Rules come with the build (``SolveRequest.SourcePolicy``) and with single solves of a frontend
(``SourcePolicies``); a client may besides serve decisions of its own in a session
(:mod:`boxwright.engine.policysession`). Every source op and every look-up of an image passes
here before anything is fetched. The semantics are BuildKit's (``sourcepolicy``): of ALLOW and
DENY the last match of a policy wins; a CONVERT that changes something starts over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from boxwright.core.dataclass import dataclass, field
from boxwright.engine.policyregex import Budget, Regex, expand
from boxwright.errors import InvalidInputError, LimitExceededError, PermissionDeniedError
from boxwright.wire.pb import ops_pb2, sourcepolicy_pb2

_MAX_RULES = 10_000
_MAX_CONVERTS = 20
_MAX_IDENTIFIER = 16_384


class SourceDeniedError(PermissionDeniedError):
    """A policy does not let the build use a source."""

    def __init__(
        self,
        identifier: str,
        *,
        how: str = "denied by policy",
        detail: str = "source denied by policy",
    ) -> None:
        super().__init__(
            f'source "{identifier}" {how}',
            detail=detail,
            hint="the source policy of this build names what it may use",
        )
        self.identifier = identifier


class InvalidPolicyError(InvalidInputError):
    """A policy that can't be evaluated."""

    def __init__(self, detail: str) -> None:
        super().__init__("invalid source policy", detail=detail)


@dataclass(frozen=True)
class Wildcard:
    """``*`` stands for any text without line breaks; as long as possible, the first one first."""

    pieces: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Wildcard:
        """Read a pattern.

        Raises:
            InvalidPolicyError: it has two stars beside each other.
        """
        if "**" in text:
            raise InvalidPolicyError(f'invalid wildcard "**" in {text[:200]!r}')
        return cls(tuple(text.split("*")))

    def match(self, text: str) -> list[str] | None:
        """Return the whole text and what each star stands for; None if it does not match."""
        first, *rest = self.pieces
        if not rest:
            return [text] if text == first else None
        if not text.startswith(first) or not text.endswith(rest[-1]):
            return None
        # From the right, each piece as far right as it can be, leaves the first star most.
        end = len(text) - len(rest[-1])
        starts = [end]
        for piece in reversed(rest[:-1]):
            end = text.rfind(piece, 0, end)
            starts.append(end)
            if end < 0:
                return None
        starts.reverse()
        found, begin = [text], len(first)
        for start, piece in zip(starts, rest, strict=True):
            if start < begin or "\n" in text[begin:start]:
                return None
            found.append(text[begin:start])
            begin = start + len(piece)
        return found


@dataclass
class _Rule:
    """One rule, its patterns compiled when they are first needed."""

    message: sourcepolicy_pb2.Rule
    _regex: dict[str, Regex] = field(default_factory=dict)
    _wildcard: Wildcard | None = None

    def _compiled(self, pattern: str) -> Regex:
        if pattern not in self._regex:
            self._regex[pattern] = Regex.compile(pattern)
        return self._regex[pattern]

    def _wild(self) -> Wildcard:
        if self._wildcard is None:
            self._wildcard = Wildcard.parse(self.message.selector.identifier)
        return self._wildcard

    def matches(self, op: ops_pb2.SourceOp, budget: Budget) -> bool:
        selector = self.message.selector
        budget.take(len(op.identifier) + 1)
        if not all(self._constraint(each, op, budget) for each in selector.constraints):
            return False
        if selector.identifier == op.identifier:
            return True
        match selector.match_type:
            case sourcepolicy_pb2.EXACT:
                return False
            case sourcepolicy_pb2.REGEX:
                compiled = self._compiled(selector.identifier)
                return compiled.search(op.identifier, budget) is not None
            case sourcepolicy_pb2.WILDCARD:
                return self._wild().match(op.identifier) is not None
        raise InvalidPolicyError(f"unknown match type {selector.match_type}")

    def _constraint(
        self, constraint: sourcepolicy_pb2.AttrConstraint, op: ops_pb2.SourceOp, budget: Budget
    ) -> bool:
        value = op.attrs.get(constraint.key, "")
        match constraint.condition:
            case sourcepolicy_pb2.EQUAL:
                return value == constraint.value
            case sourcepolicy_pb2.NOTEQUAL:
                return value != constraint.value
            case sourcepolicy_pb2.MATCHES:
                return self._compiled(constraint.value).search(value, budget) is not None
        raise InvalidPolicyError(f"unknown attribute condition {constraint.condition}")

    def convert(self, op: ops_pb2.SourceOp, budget: Budget) -> bool:
        """Change ``op`` as the rule says and return whether that made a difference."""
        if not self.message.HasField("updates"):
            raise InvalidPolicyError("missing destination for convert rule")
        updates = self.message.updates
        wanted = self._format(
            op.identifier, updates.identifier or self.message.selector.identifier, budget
        )
        changed = False
        if wanted and wanted != op.identifier:
            op.identifier = wanted
            changed = True
        for key, value in updates.attrs.items():
            if key not in op.attrs or op.attrs[key] != value:
                op.attrs[key] = value
                changed = True
        if len(op.identifier) > _MAX_IDENTIFIER:
            raise InvalidPolicyError("it makes a source identifier too long")
        return changed

    def _format(self, identifier: str, template: str, budget: Budget) -> str:
        selector = self.message.selector
        match selector.match_type:
            case sourcepolicy_pb2.EXACT:
                return template
            case sourcepolicy_pb2.REGEX:
                compiled = self._compiled(selector.identifier)
                return compiled.replace_all(identifier, template, budget)
            case sourcepolicy_pb2.WILDCARD:
                groups = self._wild().match(identifier)
                return identifier if groups is None else _expand_groups(template, groups)
        raise InvalidPolicyError(f"unknown match type {selector.match_type}")


def _expand_groups(template: str, groups: Sequence[str]) -> str:
    text = "".join(groups)
    span: list[int] = []
    for number, group in enumerate(groups):
        begin = sum(map(len, groups[:number]))
        span += [begin, begin + len(group)]
    return expand(template, text, tuple(span), {})


class SourceRules:
    """The rules of one or several policies. Immutable; may be used from worker threads."""

    def __init__(self, policies: Iterable[sourcepolicy_pb2.Policy] = ()) -> None:
        """Take policies over.

        Raises:
            InvalidPolicyError: a rule has no selector.
            LimitExceededError: there are too many rules.
        """
        self._policies = [[_Rule(rule) for rule in policy.rules] for policy in policies]
        count = sum(map(len, self._policies))
        if count > _MAX_RULES:
            raise LimitExceededError(
                "the source policy is too large", detail=f"{count} rules > {_MAX_RULES}"
            )
        for rule in (rule for rules in self._policies for rule in rules):
            if not rule.message.HasField("selector"):
                raise InvalidPolicyError("invalid nil selector in policy")

    def __bool__(self) -> bool:
        return any(self._policies)

    def plus(self, other: SourceRules) -> SourceRules:
        """Return rules that apply these policies and then others."""
        if not other:
            return self
        both = SourceRules()
        both._policies = self._policies + other._policies
        return both

    def evaluate(self, op: ops_pb2.SourceOp, budget: Budget | None = None) -> bool:
        """Apply the rules to a source op in place; blocks, if there are many.

        Returns:
            Whether it was converted.

        Raises:
            SourceDeniedError: it may not be used.
            InvalidPolicyError: a rule is malformed.
            LimitExceededError: it takes too long, or converts without end.
        """
        budget = budget or Budget()
        for turn in range(_MAX_CONVERTS + 2):
            if not any(self._apply(rules, op, budget) for rules in self._policies):
                return turn > 0
        raise LimitExceededError(
            "the source policy converts a source without end",
            detail=f"more than {_MAX_CONVERTS} changes, last to {op.identifier!r}",
        )

    def _apply(self, rules: Sequence[_Rule], op: ops_pb2.SourceOp, budget: Budget) -> bool:
        """Apply one policy up to its first change."""
        denied = False
        for rule in rules:
            if not rule.matches(op, budget):
                continue
            match rule.message.action:
                case sourcepolicy_pb2.ALLOW:
                    denied = False
                case sourcepolicy_pb2.DENY:
                    denied = True
                case sourcepolicy_pb2.CONVERT:
                    if rule.convert(op, budget):
                        return True
                case other:
                    selector = rule.message.selector.identifier
                    raise InvalidPolicyError(
                        f'rule {other} {selector}: unknown type "{op.identifier}"'
                    )
        if denied:
            raise SourceDeniedError(op.identifier)
        return False
