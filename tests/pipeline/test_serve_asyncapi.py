"""The AsyncAPI document tells machines of every message that `wire` knows."""

import json

import jsonschema
import pytest

from rapport.pipeline.serve import wire
from rapport.pipeline.serve.asyncapi import PARTS, asyncapi

DOCUMENT = asyncapi()
KINDS = {kind.__name__: kind for kind in wire.Text.__subclasses__()}
REQUIRED = {  # of AsyncAPI 3.0
    "": ("asyncapi", "info"),
    "info": ("title", "version"),
    "operations/hear": ("action", "channel"),
    "operations/answer": ("action", "channel"),
}
SENT = {
    "Ack": wire.Ack(sample=5120),
    "Told": wire.Told(text=None),
    "Liveliness": wire.Liveliness(value=0.5),
    "Went": wire.Went(chunks=3),
    "Ping": wire.Ping(),
    "Pong": wire.Pong(id=1),
    "End": wire.End(),
    "Ready": wire.Ready(id="a", number=0, wait_s=0.1),
    "Stats": wire.Stats(late=0, dropped=0, sessions=1, answer_s=0.03),
    "Error": wire.Error(code="size", message="too large"),
    "Move": wire.Move(),
    "Binary": wire.Binary(type="sound", sample=0, data="AAAA"),
}


def at(path):
    place = DOCUMENT
    for name in filter(None, path.removeprefix("#/").split("/")):
        place = place[name]
    return place


def references(value):
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "$ref":
                yield item
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_it_has_what_asyncapi_requires_and_is_json():
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT
    assert DOCUMENT["asyncapi"] == "3.0.0"
    for path, names in REQUIRED.items():
        assert set(names) <= set(at(path))
    actions = {name: each["action"] for name, each in DOCUMENT["operations"].items()}
    assert actions == {"hear": "receive", "answer": "send"}


def test_every_reference_leads_somewhere():
    found = list(references(DOCUMENT))
    assert len(found) > 30
    for reference in found:
        assert isinstance(at(reference), dict)


def test_an_operation_names_messages_of_its_channel():
    for operation in DOCUMENT["operations"].values():
        channel = operation["channel"]["$ref"]
        for message in operation["messages"]:
            assert message["$ref"].startswith(f"{channel}/messages/")


def test_every_message_is_in_it_on_its_way():
    messages = DOCUMENT["components"]["messages"]
    assert set(messages) == set(KINDS) | {PARTS}
    assert set(DOCUMENT["channels"]["live"]["messages"]) == set(messages)
    ways = {
        name: {message["$ref"].rpartition("/")[2] for message in operation["messages"]}
        for name, operation in DOCUMENT["operations"].items()
    }
    both = {"Ping", "Pong", "Binary", PARTS}
    assert ways["hear"] & ways["answer"] == both
    assert ways["hear"] | ways["answer"] == set(messages)
    assert "Ack" in ways["hear"] and "Ready" in ways["answer"]


@pytest.mark.parametrize("name", KINDS)
def test_a_schema_takes_what_is_sent_and_refuses_what_is_not_read(name):
    schema = DOCUMENT["components"]["schemas"][name]
    jsonschema.Draft7Validator.check_schema(schema)
    message = json.loads(SENT[name].model_dump_json())
    jsonschema.validate(message, schema)
    unnamed = {key: value for key, value in message.items() if key != "type"}
    for wrong in (message | {"more": 1}, unnamed, message | {"type": "nothing"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_the_text_tells_of_every_kind_of_part():
    text = DOCUMENT["components"]["messages"][PARTS]["description"]
    for kind in wire.Kind:
        assert f" {int(kind)} " in text.replace("\n", " ")
