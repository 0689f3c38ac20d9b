"""Chat templates: messages to the prompt text a model was trained on."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sirocco.runtime.errors import ModelLoadError, RequestError, TemplateError
from sirocco.runtime.text.messages import USUAL_FORM, CallForm, validate_messages
from sirocco.runtime.text.renderer import TemplateRenderer, default_renderer
from sirocco.runtime.text.tokenizer import Tokenizer
from sirocco.runtime.text.tokenizer_config import read_json, read_tokenizer_config

__all__ = ["RESERVED_VARIABLES", "ChatTemplate", "TemplateRenderer", "default_renderer", "validate_messages"]

RESERVED_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
_FORMS = tuple(CallForm(null, text) for text in (False, True) for null in (False, True))  # the usual one first
_PROBE = (
    {"role": "user", "content": "What is it?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "probe1234",  # nine characters, as Mistral's templates want
                "type": "function",
                "function": {"name": "find_probe", "arguments": {"probed": "probe_value"}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "probe1234", "name": "find_probe", "content": "done"},
)
_FINAL_TAG = "SIROCCO_FINAL_MESSAGE_ENDS_HERE "  # trailing space: shows whether the template trims the content


class ChatTemplate:
    """A model's chat template, or several by name ("default", "tool_use").

    `special_tokens` (bos_token and so on) are variables of every render. Templates are compiled and rendered by
    `renderer` (the process's shared one when None), never in this process.
    """

    def __init__(
        self,
        template: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        renderer: TemplateRenderer | None = None,
    ) -> None:
        self._templates = {"default": template} if isinstance(template, str) else dict(template)
        self._special_tokens = dict(special_tokens or {})
        self._renderer = renderer
        self._forms: dict[str, CallForm] = {}

    @classmethod
    def load(
        cls,
        folder: Path,
        tokenizer: Tokenizer | None = None,
        renderer: TemplateRenderer | None = None,
        template: str | None = None,
    ) -> "ChatTemplate | None":
        """The template of a model folder: chat_template.jinja, else in tokenizer_config.json, else chat_template.json.

        `template` takes their place when given. The special tokens are the tokenizer's, without one the folder's. None
        when the folder has no template. Raises `ModelLoadError` when a file is broken.
        """
        templates = _read_templates(folder) if template is None else {"default": template}
        special_tokens = tokenizer.special_tokens if tokenizer else read_tokenizer_config(folder).named
        return cls(templates, special_tokens, renderer) if templates else None

    @property
    def source(self) -> str:
        """The text of the template that serves requests with tools."""
        return self.text(with_tools=True)

    def text(self, with_tools: bool = False) -> str:
        """The template's text: the one named "tool_use" for requests with tools where there is one, else the default.

        Raises `TemplateError` when there are several and none is the default.
        """
        if with_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" in self._templates:
            return self._templates["default"]
        if len(self._templates) == 1:
            return next(iter(self._templates.values()))
        raise TemplateError("The model has several chat templates and none of them is the default.")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: object,
    ) -> str:
        """The prompt for `messages` (as `validate_messages` takes them) and tools (OpenAI's function objects).

        With `continue_final_message` the prompt ends within the last message and no generation prompt follows. Further
        keywords are variables of the template. Raises `RequestError` for bad messages, `TemplateError` when the
        template fails, refuses or goes over a limit, and what else `TemplateRenderer.render` raises.
        """
        template, variables = self._prepare(messages, tools, add_generation_prompt, continue_final_message, kwargs)
        text = self._get_renderer().render(template, variables)
        return _cut_after_final(text) if continue_final_message else text

    async def arender(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: object,
    ) -> str:
        """As `render`, without blocking the event loop."""
        # The whole of it: checking many messages takes long, too.
        work = partial(self.render, messages, tools, add_generation_prompt, continue_final_message, **kwargs)
        return await self._get_renderer().queued(work)

    def _get_renderer(self) -> TemplateRenderer:
        return self._renderer or default_renderer()

    def _prepare(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        extra: Mapping[str, object],
    ) -> tuple[str, dict[str, object]]:
        for name in extra.keys() & RESERVED_VARIABLES:
            raise RequestError(f"{name} is set by the request itself and cannot be a template variable", name)
        template = self.text(with_tools=bool(tools))
        keep_developer = "developer" in template
        chat = validate_messages(messages, keep_developer)
        if any("tool_calls" in message for message in chat) and (form := self._call_form(template)) != USUAL_FORM:
            chat = validate_messages(messages, keep_developer, form)
        if continue_final_message:
            chat[-1]["content"] = (chat[-1]["content"] or "") + _FINAL_TAG
        variables: dict[str, object] = {
            **self._special_tokens,
            "documents": None,
            **extra,
            "messages": chat,
            "tools": list(tools) if tools else None,  # templates ask `is not none`: an empty list would announce
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        return template, variables

    def _call_form(self, template: str) -> CallForm:
        """The form of calls that this template shows, found by trying; the usual one where it shows none.

        DeepSeek's templates show no calls beside an empty text, and take arguments as text alone.
        """
        if template not in self._forms:
            self._forms[template] = next((form for form in _FORMS if self._shows_calls(template, form)), USUAL_FORM)
        return self._forms[template]

    def _shows_calls(self, template: str, form: CallForm) -> bool:
        chat = validate_messages(_PROBE, form=form)
        variables = {**self._special_tokens, "messages": chat, "tools": None, "add_generation_prompt": True}
        try:
            text = self._get_renderer().render(template, variables)
        except TemplateError:
            return False
        return "find_probe" in text and "probe_value" in text


def _cut_after_final(text: str) -> str:
    """Remove the tag that marks the final message's end, and all behind it."""
    tag = text.rfind(_FINAL_TAG.strip())
    if tag < 0:
        raise TemplateError("The chat template leaves out the final message, so it cannot be continued.")
    kept = text[:tag]
    return kept if text.startswith(_FINAL_TAG, tag) else kept.rstrip()  # trimmed: as if the tag had not been there


def _read_templates(folder: Path) -> dict[str, str]:
    templates = {path.stem: _read_text(path) for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        return templates | {"default": _read_text(folder / "chat_template.jinja")}
    for name in ("tokenizer_config.json", "chat_template.json"):
        value = (read_json(folder / name) or {}).get("chat_template")
        if value:
            return templates | _named_templates(value, name)
    return templates


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ModelLoadError(f"{path.name} is not readable as text") from None


def _named_templates(value: object, source: str) -> dict[str, str]:
    """A template, or several in either of the two spellings: a list of {name, template}, or an object by name."""
    if isinstance(value, str):
        return {"default": value}
    named: dict[str, str] = {}
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    for entry in value if isinstance(value, list) else [None]:
        match entry:
            case {"name": str(name), "template": str(template)}:
                named[name] = template
            case _:
                raise ModelLoadError(f"{source} holds a chat_template that is neither a text nor a list of named ones")
    return named
