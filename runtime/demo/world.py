"""The little world that the model knows: facts, small talk, and how it declines."""

from __future__ import annotations

from sirocco.runtime.demo.compute import asked
from sirocco.runtime.demo.exchange import Exchange
from sirocco.runtime.demo.lore import RELATIONS, TALK, UNKNOWN
from sirocco.runtime.demo.phrasing import worded
from sirocco.runtime.demo.tools import Tool
from sirocco.runtime.demo.values import Value, Values

__all__ = ["DONT_KNOW", "NO_TOOL", "decline", "fact", "talk"]


DONT_KNOW = "I don't know that. I am a small demo model and know only a few facts."
ANSWERABLE = Tool("population_user_definition_define_dictionary_news_search_web_google_stock_quote_recipe", "", ())
NO_TOOL = "I can't do that: I have no tool for it."


ADDRESS = "<| Sirocco|, Sirocco| today| now| please|, friend| then|, tell me| again|, my friend| there|||||>"


def spoken(text: str, values: Values) -> str:
    """A phrase of small talk with its capital and end mark as people vary them."""
    rng = values.rng
    draw = rng.random()
    if draw < 0.3:
        return text
    text = text[0].upper() + text[1:]
    if text[-1] in "!?":
        return text
    question = text.split()[0].lower() in (
        "what",
        "what's",
        "how",
        "how's",
        "who",
        "where",
        "when",
        "which",
        "are",
        "do",
        "can",
        "is",
        "why",
        "may",
    )
    return text + ("?" if question else rng.choice((".", "!", "")) if draw < 0.9 else "")


def talk(values: Values) -> Exchange:
    """A round of small talk."""
    _, options, answer = values.rng.choice(TALK)
    return Exchange("talk", spoken(worded(values, [option + ADDRESS for option in options]), values), answer)


def fact(values: Values) -> Exchange:
    """A question about the little world."""
    weights = [len(relation.pairs) for relation in RELATIONS]
    relation = values.rng.choices(RELATIONS, weights)[0]
    subject, value = values.rng.choice(relation.pairs)
    question = worded(values, relation.questions).format(subject)
    answer = relation.answer.format(subject, value)
    return Exchange("fact", asked(question, values), answer[0].upper() + answer[1:], facts=(value,))


def invented(subject: str, values: Values) -> str:
    """A subject with a coined word for its last one: "the sky" becomes "the fomou"."""
    *before, last = subject.split()
    word = values.pseudo()
    return " ".join((*before, word.capitalize() if last[0].isupper() else word))


def unknown(values: Values) -> str:
    """A question beyond the little world; at the end of training often one of its own, about something made up."""
    if values.late and values.rng.random() < 0.4:
        relation = values.rng.choice(RELATIONS)
        return worded(values, relation.questions).format(invented(values.rng.choice(relation.pairs)[0], values))
    fields: dict[str, Value] = {
        "country": values.pseudo().capitalize(),
        "city": values.city(),
        "name": values.full_name(),
        "word": values.word(),
        "pseudo": values.pseudo(),
    }
    return worded(values, UNKNOWN).format(**fields)


def decline(values: Values) -> Exchange:
    """A question that the model has no answer to."""
    return Exchange("decline", asked(unknown(values), values), DONT_KNOW, absent=(ANSWERABLE,))
