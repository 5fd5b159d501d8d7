"""What Kubernetes does with a manifest, as far as the launch scripts depend on it."""

import re
from collections.abc import Mapping
from typing import Any


def expand(text: str, environment: Mapping[str, str]) -> str:
    """A container's command after the expansion of references.

    `$(NAME)` is replaced where the container has that variable, `$$` becomes `$`, all else stays
    (Kubernetes: docs/design-proposals, "Variable expansion in pod command, args, and env").
    """

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return environment.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


def violations(value: Any, schema: Mapping[str, Any], path: str = "") -> list[str]:
    """What a strict API server says of a value: unknown fields, missing ones, wrong types.

    Args:
        value: A manifest or a part of it.
        schema: Structural OpenAPI v3, as in a CustomResourceDefinition. A field that is not among
            `properties` is refused, unless the schema has none (as for metadata) or sets
            `additionalProperties` or `x-kubernetes-preserve-unknown-fields`.
        path: Where the value stands, for the messages.
    """
    if schema.get("x-kubernetes-int-or-string"):
        return [] if isinstance(value, int | str) else [f"{path}: not a number or text"]
    wanted = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    kind = schema.get("type")
    if kind in wanted and (
        not isinstance(value, wanted[kind]) or (kind == "integer" and isinstance(value, bool))
    ):
        return [f"{path}: {value!r} is no {kind}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: {value!r} is none of {schema['enum']}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += violations(item, schema.get("items", {}), f"{path}[{index}]")
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties")
        found += [
            f"{path}.{name}: missing" for name in schema.get("required", []) if name not in value
        ]
        for name, item in value.items():
            if name in properties:
                found += violations(item, properties[name], f"{path}.{name}")
            elif isinstance(others, dict):
                found += violations(item, others, f"{path}.{name}")
            elif properties and not schema.get("x-kubernetes-preserve-unknown-fields"):
                found.append(f"{path}.{name}: unknown")
    return found


def differences(trimmed: Mapping[str, Any], real: Mapping[str, Any], path: str = "") -> list[str]:
    """Where a trimmed schema allows what the real one does not: fields, types, missing fields."""
    if trimmed.get("type") != real.get("type"):
        return [f"{path}: {trimmed.get('type')} is {real.get('type')} there"]
    found = [
        f"{path}.{name}: required there"
        for name in set(real.get("required", [])) - set(trimmed.get("required", []))
    ]
    if "items" in trimmed:
        found += differences(trimmed["items"], real["items"], f"{path}[]")
    # Metadata is every object's; a definition only names it.
    for name, schema in trimmed.get("properties", {}).items():
        if name not in real.get("properties", {}):
            found += [f"{path}.{name}: not there"] if path or name != "metadata" else []
        elif name != "metadata":
            found += differences(schema, real["properties"][name], f"{path}.{name}")
    return found
