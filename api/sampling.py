"""From the sampling fields of a request to `SamplingParams`, and from engine usage to the wire's."""

from sirocco.api.schemas.common import PromptTokensDetails, SamplingFields, UsageBody
from sirocco.runtime.errors import RequestError
from sirocco.runtime.request import SamplingParams, Usage

_SAME_NAME = (
    "n",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "priority",
    "cache_salt",
)


def sampling_params(
    fields: SamplingFields, max_tokens: int | None, logprobs: int | None = None, prompt_logprobs: int | None = None
) -> SamplingParams:
    """What the request asks for; `null` leaves the default. Raises `RequestError` naming the field at fault."""
    given = {name: value for name in _SAME_NAME if (value := getattr(fields, name)) is not None}
    return SamplingParams(
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        truncate_prompt=bool(fields.truncate_sequence),
        logit_bias=_logit_bias(fields.logit_bias),
        **given,
    )


def usage_body(usages: list[Usage]) -> UsageBody:
    """The sum over the requests behind one answer."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    cached = sum(usage.cached_tokens for usage in usages)
    return UsageBody(prompt, completion, prompt + completion, PromptTokensDetails(cached))


def _logit_bias(biases: dict[str, float] | None) -> dict[int, float] | None:
    if not biases:
        return None
    try:
        return {int(token_id): bias for token_id, bias in biases.items()}
    except ValueError:
        raise RequestError("the keys of logit_bias must be token ids", "logit_bias") from None
