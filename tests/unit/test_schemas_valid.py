"""The documents are valid for the official tools, and what they show is what they describe."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from jsonschema import Draft202012Validator

from schemas import node, validate
from service.simulator.app import simulator_app

pytestmark = pytest.mark.slow

FOLDER = validate.FOLDER
MESSAGES = sorted((FOLDER / "messages").glob("*.json"))
ROUTING = json.loads((FOLDER / "routing.json").read_text(encoding="utf-8"))
OPENAPI = {name: yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")) for name in validate.OPENAPI}
ASYNCAPI = yaml.safe_load((FOLDER / "asyncapi.yaml").read_text(encoding="utf-8"))


def _faults(schema: Any, value: Any, document: Any) -> list[str]:
    referred = {"components": document["components"]} if "components" in document else {}
    checked = Draft202012Validator({**referred, **schema}, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [error.message for error in checked.iter_errors(value)]


# One schema per message


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_each_message_has_a_schema_that_needs_no_other(path: Path) -> None:
    """JSON Schema 2020-12 with an id of its own, and examples that it accepts, format included."""
    schema = json.loads(path.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    way = ROUTING["messages"][path.stem]
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:whatsapp-qr:{path.stem}:{way['schemaVersion']}"
    assert all(target.startswith("#/$defs/") for target in _references(schema))
    assert schema["examples"]
    assert [fault for example in schema["examples"] for fault in _faults(schema, example, schema)] == []


def _references(node: Any) -> Iterator[str]:
    for name, value in node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ()):
        if name == "$ref":
            yield value
        yield from _references(value)


def test_each_message_is_listed_with_its_way() -> None:
    """For whoever reads no YAML."""
    assert {f"messages/{path.name}" for path in MESSAGES} == {way["schema"] for way in ROUTING["messages"].values()}


# The documents as a whole


def test_the_official_tools_have_nothing_to_say() -> None:
    """Neither an error nor a warning, nor a hint."""
    assert validate.main() == 0


def test_the_asyncapi_parser_finds_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A word that AsyncAPI does not know is named with its place and fails the run."""
    document = json.loads(json.dumps(ASYNCAPI))
    document["operations"]["sendEvents"]["action"] = "shout"
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert validate.asyncapi_status(broken) == 1
    assert "operations.sendEvents.action" in capfd.readouterr().err


def test_the_asyncapi_parser_finds_what_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is only advised counts as well: here the newest version of AsyncAPI."""
    older = tmp_path / "older.yaml"
    older.write_text(yaml.safe_dump(ASYNCAPI | {"asyncapi": "3.0.0"}), encoding="utf-8")
    assert validate.asyncapi_status(older) == 1
    assert "asyncapi-latest-version" in capfd.readouterr().err


def test_a_document_that_is_none_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing to validate is a fault too."""
    (tmp_path / "empty.yaml").write_text("{}", encoding="utf-8")
    assert validate.asyncapi_status(tmp_path / "empty.yaml") == 1
    assert capfd.readouterr().err
    assert "not OpenAPI 3.1" in validate.openapi_faults(tmp_path / "empty.yaml")[0]


def test_the_openapi_validator_finds_what_is_wrong(tmp_path: Path) -> None:
    """A response without description is named with its place."""
    document = json.loads(json.dumps(OPENAPI["openapi.yaml"]))
    del document["paths"]["/whatsapp-qr/send"]["post"]["responses"]["202"]["description"]
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert validate.openapi_faults(broken)


def test_without_its_tool_the_check_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It never passes because it could not run."""
    (tmp_path / "package-lock.json").write_text("{}")
    with pytest.raises(subprocess.CalledProcessError):
        node.install(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(RuntimeError, match="make setup"):
        node.node()


def test_the_lock_of_the_parser_names_no_registry() -> None:
    """It is installed from wherever npm is told to, and checked by its hash."""
    lock = json.loads((FOLDER / "package-lock.json").read_text(encoding="utf-8"))
    packages = [package for name, package in lock["packages"].items() if name]
    assert packages
    assert [package for package in packages if "resolved" in package or "integrity" not in package] == []


# What they show


def test_every_asyncapi_message_has_examples() -> None:
    """Of headers and body, both as described."""
    for message in ASYNCAPI["components"]["messages"].values():
        assert message["examples"], message["title"]
        for example in message["examples"]:
            assert _faults(message["headers"], example["headers"], ASYNCAPI) == []
            assert _faults(message["payload"], example["payload"], ASYNCAPI) == []


def _media(document: Any) -> Iterator[tuple[str, Any]]:
    for kind in ("paths", "webhooks"):
        for path, operations in document.get(kind, {}).items():
            for method, operation in operations.items():
                if method == "parameters":
                    continue
                bodies = {"request": operation["requestBody"]} if "requestBody" in operation else {}
                for name, body in {**bodies, **operation["responses"]}.items():
                    yield from ((f"{method} {path} {name}", media) for media in body["content"].values())


@pytest.mark.parametrize("name", OPENAPI)
def test_every_body_has_examples_that_fit(name: str) -> None:
    """Requests, answers, errors and callbacks."""
    document = OPENAPI[name]
    for place, media in _media(document):
        examples = [example["value"] for example in media.get("examples", {}).values()] + [
            media[word] for word in ("example",) if word in media
        ]
        assert examples, place
        assert [fault for example in examples for fault in _faults(media["schema"], example, document)] == [], place


def test_every_operation_of_the_ingress_describes_its_errors() -> None:
    """As problem+json; only health answers always."""
    for path, operations in OPENAPI["openapi.yaml"]["paths"].items():
        for operation in operations.values():
            errors = {status: of for status, of in operation["responses"].items() if status >= "400"}
            assert errors or not path.startswith("/whatsapp-qr"), path
            assert all(set(of["content"]) == {"application/problem+json"} for of in errors.values()), path


async def test_the_simulator_fulfils_the_contract_of_a_gateway() -> None:
    """What it answers, good and bad, is what the document says."""
    document = OPENAPI["gateway.openapi.yaml"]
    app = simulator_app(callback_url="http://127.0.0.1:9")
    session = {"sessionId": "session_6f9619ff-8b86-4011-b42d-00c04fc964ff_1"}
    chatbot = {"chatbotId": "6f9619ff-8b86-4011-b42d-00c04fc964ff"}
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://g") as gateway:
        for method, path, body in (
            ("get", "/status/{sessionId}", None),
            ("get", "/qr-code/{sessionId}", None),
            ("post", "/init", session | chatbot),
            ("post", "/send", session | {"to": "5491112345678", "message": "Hello"}),
            ("get", "/status/{sessionId}", None),
            ("get", "/sessions", None),
            ("post", "/disconnect", session),
            ("get", "/health", None),
        ):
            response = await gateway.request(method, path.format(**session), json=body)
            answers = document["paths"][path][method]["responses"]
            assert str(response.status_code) in answers, (path, response.text)
            described = answers[str(response.status_code)]["content"]["application/json"]["schema"]
            assert _faults(described, response.json(), document) == [], path
