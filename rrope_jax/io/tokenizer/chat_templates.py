"""Converts chat templates to and from a tokenizer's Hugging Face files."""

from collections.abc import Mapping
from typing import Any

from rrope_jax.io import json_text
from rrope_jax.io.tokenizer.files import MORE_TEMPLATES, TokenizerFiles

DEFAULT = "default"
"""The name of the template that is used by default."""
_JINJA, _JSON = "chat_template.jinja", "chat_template.json"


def read(files: TokenizerFiles, config: Mapping[str, Any]) -> dict[str, str]:
    """Reads the chat templates of a tokenizer by name.

    Templates in separate files take precedence over those in tokenizer_config.json.

    Args:
      files: the tokenizer's files.
      config: the content of tokenizer_config.json.

    Raises:
      ValueError: a file is damaged.
    """
    templates = _named(config.get("chat_template"), "tokenizer_config.json")
    if _JSON in files.files:
        value = json_text.parse_file(files.files[_JSON], _JSON)
        if isinstance(value, Mapping):
            templates |= _named(value.get("chat_template"), _JSON)
    for name, data in files.files.items():
        if name == _JINJA:
            templates[DEFAULT] = _text(name, data)
        elif name.startswith(MORE_TEMPLATES):
            templates[name.removeprefix(MORE_TEMPLATES).removesuffix(".jinja")] = _text(name, data)
    return templates


def _named(value: Any, where: str) -> dict[str, str]:
    """Parses `chat_template`: a string, a list of objects or, in old files, a mapping by name."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        pairs = [(each.get("name"), each.get("template")) for each in value]
    else:
        pairs = list(value.items()) if isinstance(value, Mapping) else [(None, None)]
    if all(isinstance(each, str) for pair in pairs for each in pair):
        return dict(pairs)
    raise ValueError(
        f"{where}: chat_template must be a text, or a list of objects with name and template"
    )


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: {error}") from error


def for_config(templates: Mapping[str, str]) -> str | list[dict[str, str]] | None:
    """Returns templates as the `chat_template` of tokenizer_config.json; None if there are none."""
    if not templates:
        return None
    if templates.keys() == {DEFAULT}:
        return templates[DEFAULT]
    return [{"name": name, "template": text} for name, text in templates.items()]
