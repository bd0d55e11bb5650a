"""Source policies: rules, their patterns, and the client that decides."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.engine.policy import (
    InvalidPolicyError,
    SourceDeniedError,
    SourceRules,
    Wildcard,
)
from boxwright.engine.policycheck import SourcePolicy
from boxwright.engine.policyregex import Budget, Regex
from boxwright.engine.policysyntax import InvalidPatternError
from boxwright.errors import InvalidInputError, LimitExceededError
from boxwright.llb.definition import assemble, decode
from boxwright.llb.source_op import image
from boxwright.session.manager import SessionManager
from boxwright.wire import errdetails
from boxwright.wire.pb import gateway_pb2, ops_pb2, policysession_pb2, sourcepolicy_pb2

ALLOW, DENY, CONVERT = sourcepolicy_pb2.ALLOW, sourcepolicy_pb2.DENY, sourcepolicy_pb2.CONVERT
EXACT, REGEX = sourcepolicy_pb2.EXACT, sourcepolicy_pb2.REGEX
BUSYBOX = "docker-image://docker.io/library/busybox:latest"
ALPINE = "docker-image://docker.io/library/alpine:latest"


def rule(action, identifier, *, to="", kind=sourcepolicy_pb2.WILDCARD, attrs=None, where=()):
    selector = sourcepolicy_pb2.Selector(identifier=identifier, match_type=kind, constraints=where)
    made = sourcepolicy_pb2.Rule(action=action, selector=selector)
    if to or attrs:
        made.updates.identifier = to
        made.updates.attrs.update(attrs or {})
    return made


def rules(*items):
    return SourceRules([sourcepolicy_pb2.Policy(version=1, rules=items)])


def evaluated(given_rules, identifier=BUSYBOX, **attrs):
    op = ops_pb2.SourceOp(identifier=identifier, attrs=attrs)
    changed = given_rules.evaluate(op)
    assert changed == (op.identifier != identifier or dict(op.attrs) != attrs)
    return op


def test_the_last_of_allow_and_deny_wins():
    evaluated(rules(rule(DENY, BUSYBOX), rule(ALLOW, BUSYBOX)))
    with pytest.raises(SourceDeniedError, match=f'source "{BUSYBOX}" denied by policy'):
        evaluated(rules(rule(ALLOW, BUSYBOX), rule(DENY, BUSYBOX)))


def test_each_policy_has_a_veto():
    both = rules(rule(ALLOW, BUSYBOX)).plus(rules(rule(DENY, BUSYBOX)))
    with pytest.raises(SourceDeniedError):
        evaluated(both)


def test_what_no_rule_names_is_allowed():
    assert evaluated(rules(rule(DENY, ALPINE))).identifier == BUSYBOX


def test_a_wildcard_crosses_slashes_and_fills_the_template():
    given_rules = rules(
        rule(CONVERT, "docker-image://docker.io/*:*", to="docker-image://mirror/${1}:$2-slim")
    )
    made = evaluated(given_rules)
    assert made.identifier == "docker-image://mirror/library/busybox:latest-slim"


def test_an_exact_selector_knows_no_stars():
    evaluated(rules(rule(DENY, "docker-image://*", kind=EXACT)))


def test_a_regex_finds_and_replaces():
    given_rules = rules(
        rule(CONVERT, r"docker\.io/library/(?P<name>\w+)", to="mirror/$name", kind=REGEX)
    )
    assert evaluated(given_rules).identifier == "docker-image://mirror/busybox:latest"


def test_converts_follow_each_other_and_may_end_in_a_denial():
    chain = rules(rule(CONVERT, BUSYBOX, to=ALPINE), rule(DENY, ALPINE))
    with pytest.raises(SourceDeniedError) as refused:
        evaluated(chain)
    assert refused.value.identifier == ALPINE


def test_a_loop_of_converts_is_an_error():
    loop = rules(rule(CONVERT, BUSYBOX, to=ALPINE), rule(CONVERT, ALPINE, to=BUSYBOX))
    with pytest.raises(LimitExceededError):
        evaluated(loop)


def test_attributes_are_set_and_matched():
    found = evaluated(
        rules(rule(CONVERT, "https://a/b", attrs={"http.checksum": "x"})), "https://a/b"
    )
    assert dict(found.attrs) == {"http.checksum": "x"}
    constraint = sourcepolicy_pb2.AttrConstraint
    for condition, value, denied in (
        (sourcepolicy_pb2.EQUAL, "x", True),
        (sourcepolicy_pb2.NOTEQUAL, "x", False),
        (sourcepolicy_pb2.MATCHES, "^[w-z]$", True),
        (sourcepolicy_pb2.MATCHES, "^[a-c]$", False),
    ):
        where = [constraint(key="k", value=value, condition=condition)]
        only = rules(rule(DENY, "https://*", where=where))
        if denied:
            with pytest.raises(SourceDeniedError):
                evaluated(only, "https://a/b", k="x")
        else:
            evaluated(only, "https://a/b", k="x")


@pytest.mark.parametrize(
    "bad",
    [
        rule(CONVERT, BUSYBOX),
        rule(DENY, "a**b"),
        rule(DENY, "(", kind=REGEX),
        rule(DENY, "x", kind=9),
        rule(9, BUSYBOX),
    ],
)
def test_a_malformed_rule_is_an_error_of_the_client(bad):
    with pytest.raises(InvalidInputError):
        evaluated(rules(bad))


def test_a_rule_without_selector_is_refused_at_once():
    with pytest.raises(InvalidPolicyError):
        SourceRules([sourcepolicy_pb2.Policy(rules=[sourcepolicy_pb2.Rule(action=DENY)])])


# --- patterns ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text", "wanted"),
    [
        ("a+?", "caab", (1, 2)),
        ("(a|ab)(c|bcd)(d*)", "abcd", (0, 4, 0, 1, 1, 4, 4, 4)),
        ("(?i)ABC", "xaBcx", (1, 4)),
        (r"\bfoo\b", "a foo b", (2, 5)),
        (r"\Qa.b\E+", "a.bbb", (0, 5)),
        ("[[:alpha:]_]+", "12ab_3", (2, 5)),
        ("x{2,3}", "xxxx", (0, 3)),
        ("(?m)^b$", "a\nb\nc", (2, 3)),
        ("$", "ab\n", (3, 3)),
        (r"\d{3}", "12", None),
    ],
)
def test_patterns_match_as_in_go(pattern, text, wanted):
    assert Regex.compile(pattern).search(text, Budget()) == wanted


@pytest.mark.parametrize(
    "pattern",
    ["(", "a**", "[b-a]", "(?=a)", r"\1", "x{2,1}", r"\p{Nope}", "a{1001}", "(?P<a>x)(?P<a>y)"],
)
def test_what_re2_has_not_is_refused(pattern):
    with pytest.raises(InvalidPatternError):
        Regex.compile(pattern)


def test_replacing_expands_names_as_in_go():
    found = Regex.compile("(?P<x>b)(c)?").replace_all("abcab", "<$x-$2-$1x-$$>", Budget())
    assert found == "a<b-c--$>a<b---$>"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("(a*)*b", "a" * 2000), ("(a|aa)+$", "a" * 2000 + "b"), ("(.*)(.*)(.*)(.*)x", "a" * 2000)],
)
def test_no_pattern_explodes(pattern, text):
    """Backtracking would need more steps than there are atoms; the budget counts ours."""
    budget = Budget()
    assert Regex.compile(pattern).search(text, budget) is None
    assert budget.left > 0


def test_steps_are_limited():
    with pytest.raises(LimitExceededError):
        Regex.compile("(a?){500}b").search("a" * 4000, Budget(100_000))


def test_large_programs_are_refused():
    with pytest.raises(LimitExceededError):
        Regex.compile("((a{100}){100}){100}")


@given(st.text("ab*", max_size=8).filter(lambda t: "**" not in t), st.text("ab", max_size=12))
def test_wildcards_are_their_regular_expression(pattern, text):
    quoted = "^" + pattern.replace("*", "(.*)") + "$"
    span = Regex.compile(quoted).search(text, Budget())
    groups = Wildcard.parse(pattern).match(text)
    if span is None:
        assert groups is None
    else:
        assert groups == [text[a:b] for a, b in zip(span[::2], span[1::2], strict=True)]


# --- definitions and clients ------------------------------------------------------------------


class Decider:
    """A client that serves a policy."""

    def __init__(self, *answers):
        self.id, self.name, self.shared_key = "s1", "", ""
        self.closed = asyncio.Event()
        self.answers = list(answers)
        self.asked = []

    async def check_policy(self, request):
        seen = policysession_pb2.CheckPolicyRequest()
        seen.CopyFrom(request)
        self.asked.append(seen)
        return self.answers.pop(0)


def decision(action, **fields):
    made = policysession_pb2.DecisionResponse(action=action, **fields)
    return policysession_pb2.CheckPolicyResponse(decision=made)


async def applied(given_rules, *answers):
    sessions = SessionManager()
    decider = Decider(*answers)
    sessions.attach(decider)
    resolved = []

    async def resolve(request):
        resolved.append(request.Source.identifier)
        return gateway_pb2.ResolveSourceMetaResponse(Source=request.Source)

    policy = SourcePolicy(given_rules, sessions, "s1" if answers else "")
    ops = decode(image("busybox").marshal())
    renamed = await policy.apply(ops, SourceRules(), resolve)
    return assemble(ops).vertex, renamed, decider, resolved


def test_a_converted_op_has_a_new_digest_and_remembers_the_old():
    vertex, renamed, _, _ = asyncio.run(applied(rules(rule(CONVERT, BUSYBOX, to=ALPINE))))
    assert vertex.op.source.identifier == ALPINE
    original = decode(image("busybox").marshal())[0].digest
    assert renamed[vertex.digest] == original != vertex.digest


def test_the_client_is_shown_what_it_asks_for_before_it_decides():
    question = gateway_pb2.ResolveSourceMetaRequest()
    question.Source.identifier = BUSYBOX
    asks = policysession_pb2.CheckPolicyResponse(request=question)
    _, _, decider, resolved = asyncio.run(applied(SourceRules(), asks, decision(ALLOW)))
    assert resolved == [BUSYBOX]
    assert [item.Source.Source.identifier for item in decider.asked] == [BUSYBOX, BUSYBOX]


def test_what_the_client_converts_is_decided_again():
    update = ops_pb2.SourceOp(identifier=ALPINE)
    answers = (decision(CONVERT, update=update), decision(ALLOW))
    vertex, _, decider, _ = asyncio.run(applied(SourceRules(), *answers))
    assert vertex.op.source.identifier == ALPINE
    assert decider.asked[1].Source.Source.identifier == ALPINE


def test_rules_apply_to_what_the_client_converts():
    update = ops_pb2.SourceOp(identifier=ALPINE)
    with pytest.raises(SourceDeniedError):
        asyncio.run(applied(rules(rule(DENY, ALPINE)), decision(CONVERT, update=update)))


def test_a_denial_carries_what_the_client_says():
    said = [policysession_pb2.DenyMessage(message="not signed")]
    with pytest.raises(SourceDeniedError, match="not signed") as refused:
        asyncio.run(applied(SourceRules(), decision(DENY, denyMessages=said)))
    assert refused.value.vertex
    fact = errdetails.unpack(refused.value.__dict__["rpc_details"][0])
    assert isinstance(fact, policysession_pb2.DecisionResponse)
    assert fact.denyMessages[0].message == "not signed"


def test_a_client_that_never_decides_is_stopped():
    question = gateway_pb2.ResolveSourceMetaRequest()
    question.Source.identifier = BUSYBOX
    asks = policysession_pb2.CheckPolicyResponse(request=question)
    with pytest.raises(LimitExceededError):
        asyncio.run(applied(SourceRules(), *([asks] * 50)))


@pytest.mark.parametrize(
    "identifier",
    [
        "git://example.com/repo.git",
        "git://example.com/../repo.git#main",
        "git://example.com/x/../repo.git#v1:sub",
    ],
)
def test_a_git_source_is_known_however_it_is_spelt(identifier):
    denied = rules(rule(DENY, "git://example.com/repo.git*"))
    op = image("x").marshal()
    ops = decode(op)
    source = next(each for each in ops if each.op.WhichOneof("op") == "source")
    source.op.source.identifier = identifier
    policy = SourcePolicy(denied, SessionManager())
    with pytest.raises(SourceDeniedError):
        asyncio.run(policy.apply(ops, SourceRules(), None))
