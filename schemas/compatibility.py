"""What a change of the messages would break for those who use the last release. Pure: schemas in, sentences out.

Whoever reads a message must be able to read all that its writer may write. Of a command the writers are released and
the reader, the service, is new; of everything else the writer is new and the readers are released. So a command breaks
where it accepts less than before, and an event or a job where it may hold something else than before. A value added to
the enum of an event breaks too: strict readers, generated from the schema, would refuse it. What may grow freely is
therefore a plain string, with its known values in the description. A field that is gone breaks in both directions, and
so does another default in a command: old messages would mean something else.

A message whose `schema_version` is raised may change in any way: its readers know both versions. A message may be
removed with the next major version of the contracts (the next minor one before 1.0).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]

_ANNOTATIONS = {"$schema", "$id", "$defs", "title", "description", "examples", "default", "deprecated"}
_LEAST = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
_MOST = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
_STRUCTURE = {"type", "const", "enum", "required", "properties", "additionalProperties", "items", "anyOf"}
_ROUTING = ("exchange", "routingKey", "partitionKeyFrom")


@dataclass(frozen=True)
class Contract:
    """All messages of one version: by name, how each travels and the schema of its body."""

    version: str
    messages: Mapping[str, tuple[Schema, Schema]]


def breaks(released: Contract, present: Contract) -> list[str]:
    """Return what the present contract breaks for users of the released one, a sentence each."""
    faults = []
    for name, (routing, schema) in released.messages.items():
        if name in present.messages:
            found = _of_message(routing, schema, *present.messages[name])
            faults += [f"{name}: {fault}" for fault in found]
        elif _major(present.version) <= _major(released.version):
            faults.append(f"{name}: the message was removed, which needs the next major version of the contracts")
    return faults


def _major(version: str) -> tuple[int, ...]:
    major, minor, *_ = map(int, version.split("."))
    return (major,) if major else (major, minor)


def _of_message(old: Schema, old_body: Schema, new: Schema, new_body: Schema) -> Iterator[str]:
    if new["schemaVersion"] > old["schemaVersion"]:
        return
    if new["schemaVersion"] < old["schemaVersion"]:
        yield "its schema_version was lowered"
    for word in _ROUTING:
        if old[word] != new[word]:
            yield f"{word} was {old[word]!r} and is {new[word]!r}"
    if old["writer"] != new["writer"]:
        yield f"it was written by {old['writer']!r} and is written by {new['writer']!r}"
    yield from _between(old["headers"], new["headers"], writer=old["writer"], place="header ")
    yield from _between(old_body, new_body, writer=old["writer"], place="")


def _between(old: Schema, new: Schema, *, writer: str, place: str) -> Iterator[str]:
    if writer == "you":
        yield from _Comparison(reader=new, writer=old, reader_is_new=True).faults(new, old, place)
    else:
        yield from _Comparison(reader=old, writer=new, reader_is_new=False).faults(old, new, place)


@dataclass(frozen=True)
class _Comparison:
    reader: Schema
    writer: Schema
    reader_is_new: bool

    def faults(self, reader: Schema, writer: Schema, place: str) -> Iterator[str]:
        """Yield why a reader may fail to read what is written."""
        reader, writer = _resolved(reader, self.reader), _resolved(writer, self.writer)
        if self.reader_is_new and reader.get("default") != writer.get("default"):
            yield f"{place or 'the body'} has another default"
        accepted, written = _branches(reader), _branches(writer)
        if len(accepted) == len(written) == 1:
            yield from self._plain(accepted[0], written[0], place)
        elif not all(self._fits(one, accepted, place) for one in written):
            yield self._changed(place, reader, writer)

    def _fits(self, written: Schema, accepted: Sequence[Schema], place: str) -> bool:
        return any(not list(self._plain(one, written, place)) for one in accepted)

    def _changed(self, place: str, reader: Schema, writer: Schema) -> str:
        old, new = (writer, reader) if self.reader_is_new else (reader, writer)
        return f"{place or 'the body'} was {_brief(old)} and is {_brief(new)}"

    def _plain(self, reader: Schema, writer: Schema, place: str) -> Iterator[str]:
        reader, writer = _resolved(reader, self.reader), _resolved(writer, self.writer)
        if self._narrower(reader, writer):
            yield self._changed(place, reader, writer)
        yield from self._fields(reader, writer, place)
        if "items" in reader:
            yield from self.faults(reader["items"], writer.get("items", {}), f"{place}[]")
        extra = reader.get("additionalProperties", True)
        if extra is False and writer.get("additionalProperties", True) is not False:
            yield f"{place or 'the body'} no longer takes unknown fields"
        elif isinstance(extra, Mapping) and extra:
            others = writer.get("additionalProperties", {})
            yield from self.faults(extra, others if isinstance(others, Mapping) else {}, f"{place}.*")

    def _fields(self, reader: Schema, writer: Schema, place: str) -> Iterator[str]:
        read, written = reader.get("properties", {}), writer.get("properties", {})
        old, new = (written, read) if self.reader_is_new else (read, written)
        place = f"{place}." if place and not place.endswith(" ") else place
        for name in sorted(set(old) - set(new)):
            yield f"{place}{name} was removed"
        for name in sorted(set(reader.get("required", ())) - set(writer.get("required", ()))):
            if name in new:
                yield f"{place}{name} is now required" if self.reader_is_new else f"{place}{name} may now be missing"
        for name in sorted(set(read) & set(written)):
            yield from self.faults(read[name], written[name], place + name)

    def _narrower(self, reader: Schema, writer: Schema) -> bool:
        """Say whether the reader, apart from fields and items, accepts less than is written."""
        if not _types(writer) <= _types(reader):
            return True
        if (values := _values(reader)) is not None:
            return _values(writer) is None or not (_values(writer) or set()) <= values
        if _values(writer) is not None:
            return False
        return any(_limits(word, limit, writer.get(word)) for word, limit in reader.items())


def _limits(word: str, limit: Any, written: Any) -> bool:
    if word in _ANNOTATIONS or word in _STRUCTURE:
        return False
    if word in _LEAST:
        return written is None or bool(written < limit)
    if word in _MOST:
        return written is None or bool(written > limit)
    return bool(written != limit)  # a pattern, a format, or a word that nobody here understands


_ALL_TYPES = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})


def _types(schema: Schema) -> frozenset[str]:
    named = schema.get("type", _ALL_TYPES)
    types = frozenset({named} if isinstance(named, str) else named)
    return types | {"integer"} if "number" in types else types


def _values(schema: Schema) -> set[str] | None:
    if "const" in schema:
        return {json.dumps(schema["const"])}
    return {json.dumps(value) for value in schema["enum"]} if "enum" in schema else None


def _branches(schema: Schema) -> list[Schema]:
    others = {word: value for word, value in schema.items() if word != "anyOf"}
    return [{**others, **branch} for branch in schema["anyOf"]] if "anyOf" in schema else [schema]


def _resolved(schema: Schema, document: Schema) -> Schema:
    while "$ref" in schema:
        target = document["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        schema = {**target, **{word: value for word, value in schema.items() if word != "$ref"}}
    return schema


def _brief(schema: Schema) -> str:
    return json.dumps({word: value for word, value in schema.items() if word not in _ANNOTATIONS}, ensure_ascii=False)
