"""Reading policy files."""

from __future__ import annotations

import json

import pytest

from boxwright.client.request import BuildRequest
from boxwright.client.sourcepolicy import read_policy
from boxwright.errors import InvalidInputError, NotFoundError
from boxwright.wire.pb import sourcepolicy_pb2

POLICY = {
    "version": 1,
    "rules": [
        {
            "action": "CONVERT",
            "selector": {
                "identifier": "docker-image://*",
                "match_type": "REGEX",
                "constraints": [{"key": "k", "value": "v", "condition": "NOTEQUAL"}],
            },
            "updates": {"identifier": "docker-image://b", "attrs": {"x": "y"}},
        }
    ],
}


def test_json_and_the_encoded_message_are_read(tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(POLICY))
    policy = read_policy(path)
    (rule,) = policy.rules
    assert rule.action == sourcepolicy_pb2.CONVERT
    assert rule.selector.match_type == sourcepolicy_pb2.REGEX
    assert rule.selector.constraints[0].condition == sourcepolicy_pb2.NOTEQUAL
    assert dict(rule.updates.attrs) == {"x": "y"}
    path.write_bytes(policy.SerializeToString())
    assert read_policy(path) == policy


def test_the_request_carries_it(tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(POLICY))
    request = BuildRequest(source_policy=read_policy(path))
    assert request.message("s").SourcePolicy.rules[0].updates.identifier == "docker-image://b"
    assert not BuildRequest().message("s").HasField("SourcePolicy")


@pytest.mark.parametrize("text", ['{"rules": [{"action": "MAYBE"}]}', '{"rule": []}', "{", "\xff"])
def test_what_is_no_policy_is_named(tmp_path, text):
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match="is not a source policy"):
        read_policy(path)
    with pytest.raises(NotFoundError, match="cannot read"):
        read_policy(tmp_path / "none")
