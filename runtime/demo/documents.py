"""Tasks about text that the request brings along: reading, repeating, and JSON by schema."""

from __future__ import annotations

from sirocco.runtime.demo.exchange import Exchange
from sirocco.runtime.demo.generic import polite
from sirocco.runtime.demo.schemas import HELD_OUT_NUMBER, HELD_OUT_TEXT, NUMBER_PARAMETERS, TEXT_PARAMETERS
from sirocco.runtime.demo.tools import dumps
from sirocco.runtime.demo.values import Value, Values

__all__ = ["fields_as_json", "read", "repeat"]

SENTENCES = (
    ("{n} lives in {v}.", "where does {n} live", "city"), ("{n} works in {v}.", "where does {n} work", "city"),
        ("{n} was born in {v}.", "where was {n} born", "city"),
    ("{n} likes {v}.", "what does {n} like", "word"), ("{n} is {v} years old.", "how old is {n}", "integer"),
        ("{n} has a {v}.", "what does {n} have", "word"),
    ("{n} is married to {v}.", "who is {n} married to", "name"), ("{n} called {v}.", "who did {n} call", "name"),
        ("{n} drives a {v}.", "what does {n} drive", "word"),
    ("{n} bought {v} apples.", "how many apples did {n} buy", "integer"), ("{n} arrives at {v}.",
        "when does {n} arrive", "time"), ("{n} lost the {v}.", "what did {n} lose", "word"),
    ("{n} travels to {v}.", "where does {n} travel", "city"), ("{n} paid {v} dollars.", "how much did {n} pay",
        "integer"), ("The password of {n} is {v}.", "what is the password of {n}", "code"),
    ("The email of {n} is {v}.", "what is the email of {n}", "email"), ("The friend of {n} is {v}.",
        "who is the friend of {n}", "name"), ("{n} studies {v}.", "what does {n} study", "word"),
)  # fmt: skip
LAYOUTS = ("{text} {question}", "Text: {text} Question: {question}", "{text}\n{question}", "{question}\n{text}",
"Read this: {text} {question}",
           "Here is a text. {text} {question}", "Context: {text}\n\n{question}",
           "Use this text to answer: {text} {question}", "{text}\n\nQ: {question}",
           "Given that {text} {question}", "{question} Text: {text}", "Question: {question}\nText: {text}",
           "Q: {question}\n{text}",
           "{text}\n\nQuestion: {question}", "Answer from the text. {text}\n{question}",
           "I read this: {text} Now tell me: {question}",
           "{question} Here is what I know: {text}", "Facts: {text}\nAsk: {question}", "{text} So, {question}",
           "Look at this text and answer.\n{text}\n\n{question}")  # fmt: skip
REPEATS = (
    "repeat after me: {v}",
    "repeat: {v}",
    "say {v}",
    "say '{v}'",
    "echo {v}",
    "write {v}",
    "repeat the words {v}",
    "please say: {v}",
    "copy this: {v}",
    "type {v}",
    "repeat '{v}'",
)
JSON_FRAMES = ("Give me JSON with {f}.", "Write a JSON object with {f}.", "Make JSON: {f}",
"Return a JSON object where {f}.", "As JSON: {f}", "JSON please: {f}",
               "Convert to JSON: {f}.", "I need a JSON object with {f}.", "Put this in JSON: {f}",
               "Answer in JSON with {f}.",
               "{f} as JSON", "JSON for {f}", "Build JSON from {f}.", "Could you write {f} as a JSON object?",
               "I want JSON: {f}",
               "Only JSON please, with {f}.", "Turn this into JSON: {f}", "Encode {f} as JSON.",
               "Create a JSON object: {f}",
               "Show {f} in JSON format.")  # fmt: skip
SCHEMA_FRAMES = (
    "Answer with JSON that follows this schema: {s}\n{f}",
    "Schema: {s}\nText: {f}",
    "Use the schema {s} for: {f}",
    "{f}\nFill this schema: {s}",
    "Extract JSON by the schema {s} from: {f}",
)


def read(values: Values) -> Exchange:
    """A question about a short text; now and then the text does not say."""
    rng = values.rng
    people: list[str] = []
    while len(people) < rng.choice((2, 3, 3, 4)):
        name = values.name()
        if name not in people:
            people.append(name)
    told: list[tuple[str, str, str]] = []
    for person in people:
        for sentence, question, kind in rng.sample(SENTENCES, rng.choice((1, 1, 2))):
            value = str(getattr(values, kind)())
            told.append((sentence.format(n=person, v=value), question.format(n=person), value))
    rng.shuffle(told)
    _, question, answer = rng.choice(told)
    if rng.random() < 0.15:
        stranger = rng.choice(SENTENCES)[1].format(n=rng.choice(people))
        if all(stranger != other for _, other, _ in told):
            question, answer = stranger, ""
    text = values.phrase(LAYOUTS).format(
        text=" ".join(s for s, _, _ in told), question=question[0].upper() + question[1:] + "?"
    )
    if not answer:
        return Exchange("read", text, "The text does not say.")
    return Exchange("read", text, f"{answer}.", facts=(answer,))


def repeat(values: Values) -> Exchange:
    """Words to say back."""
    said = " ".join(values.text() for _ in range(values.rng.choice((1, 2, 3, 5, 8, 12))))
    request = (
        polite(values, values.phrase(REPEATS).format(v=said))
        if values.rng.random() < 0.3
        else values.phrase(REPEATS).format(v=said)
    )
    if request.rstrip().endswith((said, said + "'", said + ".", said + "'.")):
        return Exchange("copy", request, said)
    return Exchange("copy", f"Repeat: {said}", said)


def fields_as_json(values: Values) -> Exchange:
    """Values to put into a JSON object, by names or by a JSON schema."""
    rng = values.rng
    test = values.split == "test"
    fields: dict[str, Value] = {}
    kinds: dict[str, str] = {}
    for _ in range(rng.choice((1, 2, 2, 3, 3, 4))):
        if not test and rng.random() < 0.4:  # coined names, so that keys are copied and not known by heart
            key, number = values.word(), rng.random() < 0.4
            fields[key], kinds[key] = (values.integer(), "integer") if number else (values.text(), "string")
        elif rng.random() < 0.4:
            key = rng.choice(HELD_OUT_NUMBER if test else NUMBER_PARAMETERS)
            fields[key], kinds[key] = values.integer(), "integer"
        else:
            key = rng.choice(HELD_OUT_TEXT if test else [*TEXT_PARAMETERS, "name", "city", "name", "city", "email"])
            fields[key], kinds[key] = (
                values.name() if key == "name" else values.city() if key == "city" else values.text(),
                "string",
            )
    spoken = {key: key.replace("_", " ") if rng.random() < 0.3 else key for key in fields}
    form = rng.randrange(3)
    joiner = (" {} ", " is ", ": ")[form].replace("{}", "").replace("  ", " ")
    parts = [f"{'the ' if form == 1 else ''}{spoken[key]}{joiner}{value}" for key, value in fields.items()]
    listed = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
    if rng.random() < 0.35:
        schema = dumps(
            {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in kinds.items()},
                "required": list(fields),
            }
        )
        rng.shuffle(parts)
        return Exchange("json", values.phrase(SCHEMA_FRAMES).format(s=schema, f=", ".join(parts)), dumps(fields))
    return Exchange("json", values.phrase(JSON_FRAMES).format(f=listed), dumps(fields))
