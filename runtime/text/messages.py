"""OpenAI-style messages checked and brought into the one shape that chat templates expect."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from sirocco.runtime.errors import RequestError

ROLES = ("system", "developer", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # part type: its key


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a chat template wants an assistant's tool calls: a content that says nothing as null rather than an empty
    text, arguments as text rather than an object."""

    null_content: bool = False
    text_arguments: bool = False


USUAL_FORM = CallForm()


def validate_messages(
    messages: object, keep_developer: bool = False, form: CallForm = USUAL_FORM
) -> list[dict[str, Any]]:
    """Copies of `messages` in the shape that templates expect; the input stays as it is.

    `developer` becomes `system` unless `keep_developer`. Content becomes one string: text parts are joined by newlines,
    null is the empty string where it is allowed (an assistant's). Arguments of tool calls become objects when their
    text is one. `form` says otherwise where a template needs it. Keys set to null are left out, unknown keys are kept.
    Reasoning is passed on under `reasoning_content` and `thinking`, whichever of its names it came by. Raises
    `RequestError` with the path of what is wrong.
    """
    if not isinstance(messages, list | tuple):
        raise RequestError(f"messages must be a list, got {_kind(messages)}", "messages")
    if not messages:
        raise RequestError("messages must not be empty", "messages")
    return [_message(message, f"messages[{i}]", keep_developer, form) for i, message in enumerate(messages)]


def _message(message: object, path: str, keep_developer: bool, form: CallForm) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"a message must be an object, got {_kind(message)}", path)
    role = message.get("role")
    if role not in ROLES:
        shown = f"{role!r:.64}" if isinstance(role, str) else _kind(role)
        raise RequestError(f"role must be one of {', '.join(ROLES)}, got {shown}", f"{path}.role")
    out = {key: value for key, value in message.items() if value is not None and isinstance(key, str)}
    out["role"] = "system" if role == "developer" and not keep_developer else role
    out["content"] = _content(message.get("content"), role, f"{path}.content")
    for key in ("name", "tool_call_id", *_REASONING):
        if key in out and not isinstance(out[key], str):
            raise RequestError(f"{key} must be a string, got {_kind(out[key])}", f"{path}.{key}")
    calls = _tool_calls(out.pop("tool_calls", None), role, f"{path}.tool_calls", form)
    if calls:
        out["tool_calls"] = calls
        if form.null_content:
            out["content"] = out["content"] or None
    reasoning = next((out[key] for key in _REASONING if key in out), None)
    if reasoning is not None:
        out["reasoning_content"] = reasoning
        out.setdefault("thinking", reasoning)  # the name that gpt-oss reads
    return out


def _content(content: object, role: str, path: str) -> str:
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if isinstance(content, list | tuple):
        return "\n".join(_text_part(part, f"{path}[{i}]") for i, part in enumerate(content))
    raise RequestError(f"content must be a string or a list of text parts, got {_kind(content)}", path)


def _text_part(part: object, path: str) -> str:
    if not isinstance(part, Mapping):
        raise RequestError(f"a content part must be an object, got {_kind(part)}", path)
    kind = part.get("type")
    key = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        shown = f"{kind!r:.64}" if isinstance(kind, str) else _kind(kind)
        raise RequestError(f"only text parts are supported, got type {shown}", f"{path}.type")
    text = part.get(key)
    if not isinstance(text, str):
        raise RequestError(f"{key} must be a string, got {_kind(text)}", f"{path}.{key}")
    return text


def _tool_calls(calls: object, role: str, path: str, form: CallForm) -> list[dict[str, Any]]:
    if calls is None:
        return []
    if role != "assistant":
        raise RequestError("only assistant messages may have tool_calls", path)
    if not isinstance(calls, list | tuple):
        raise RequestError(f"tool_calls must be a list, got {_kind(calls)}", path)
    return [_tool_call(call, f"{path}[{i}]", form) for i, call in enumerate(calls)]


def _tool_call(call: object, path: str, form: CallForm) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise RequestError(f"a tool call must be an object, got {_kind(call)}", path)
    if call.get("type", "function") != "function":
        raise RequestError("only tool calls of type 'function' are supported", f"{path}.type")
    function = call.get("function")
    if not isinstance(function, Mapping):
        raise RequestError(f"function must be an object, got {_kind(function)}", f"{path}.function")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise RequestError("name must be a non-empty string", f"{path}.function.name")
    if arguments is not None and not isinstance(arguments, str | Mapping):
        raise RequestError(f"arguments must be a string of JSON, got {_kind(arguments)}", f"{path}.function.arguments")
    as_form = _as_text if form.text_arguments else _as_object
    out = {key: value for key, value in call.items() if value is not None}
    out["type"] = "function"
    out["function"] = {**function, "arguments": as_form(arguments)}
    return out


def _as_text(arguments: str | Mapping[str, Any] | None) -> str:
    return arguments if arguments and isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)


def _as_object(arguments: str | Mapping[str, Any] | None) -> str | Mapping[str, Any]:
    if not arguments:
        return {}
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return arguments  # what a model wrote need not be JSON; the template gets it as it is
    return parsed if isinstance(parsed, dict) else arguments


_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}


def _kind(value: object) -> str:
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)
