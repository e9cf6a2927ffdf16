"""Compilation of the chat templates that come with models."""

import json
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from examples.finetune.command.errors import InputError


def compile_template(
    template: str | list[dict[str, str]] | None,
) -> jinja2.Template | None:
    """Returns a compiled template; of a list, the one named `default`.

    Args:
      template: ``chat_template`` of ``tokenizer_config.json``.

    Raises:
      InputError: if it is not text, or malformed.
    """
    if isinstance(template, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, Mapping)
        }
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str):
        raise InputError(f"The model's chat template must be text, got {template!r}.")
    # The template comes with the weights, from any source, hence the sandbox. Its
    # settings are those of Hugging Face, except that strftime_now is missing: without
    # it Llama 3's template writes a fixed date, so that rows have the same tokens every
    # day.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, _Generation],
    )
    environment.globals["raise_exception"] = _refuse
    # Jinja's own filter escapes for HTML.
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise InputError(f"The model's chat template is malformed: {error}.") from error


class _Generation(jinja2.ext.Extension):
    """The block `generation`, with which templates mark the assistant's words."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Returns the block's content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, "indent": indent} | options)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
