"""The scripts' JSON helper: comparing what AWS gives back with what it was given."""

import json

import pytest

from infra.scripts.lib.documents import is_same, packed, rendered, with_eventbridge


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ('{"a":1,"b":[1,2]}', '{"b": [2, 1], "a": "1"}', True),
        ('{"Action":["s3:GetObject"]}', '{"Action":"s3:GetObject"}', True),
        ('{"a":1}', '{"a":2}', False),
        ('{"a":1}', '{"a":1,"b":1}', False),
        ('{"a":1}', "None", False),
        ('{"a":1}', "", False),
        ("", "None", True),
        ("", '{"a":1}', False),
        ('{"a":1}', "not json", False),
    ],
)
def test_documents_are_compared_by_what_they_say(expected: str, found: str, same: bool) -> None:
    assert is_same(expected, found) is same


def test_a_template_with_a_name_that_is_not_given_does_not_reach_aws() -> None:
    with pytest.raises(KeyError, match="ACCOUNT"):
        rendered('{"a":"${ACCOUNT}"}', {})


def test_eventbridge_is_added_to_what_is_there() -> None:
    before = {"QueueConfigurations": [{"Id": "theirs"}]}
    assert with_eventbridge(json.dumps(before)) == {**before, "EventBridgeConfiguration": {}}
    assert with_eventbridge("\n") == {"EventBridgeConfiguration": {}}


def test_an_empty_setting_is_left_out_of_the_functions_environment() -> None:
    assert packed(["A=1", "B=", "C:=[2]", "D=x=y"]) == {"A": "1", "C": [2], "D": "x=y"}
