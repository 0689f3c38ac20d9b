"""Tasks about text that the request brings along: reading, repeating, and JSON by schema."""

from __future__ import annotations

from sirocco.runtime.demo.exchange import Exchange
from sirocco.runtime.demo.lexicon import HELD_OUT_NUMBER, HELD_OUT_TEXT, NUMBER_PARAMETERS, TEXT_PARAMETERS
from sirocco.runtime.demo.phrasing import worded
from sirocco.runtime.demo.tools import dumps
from sirocco.runtime.demo.values import Value, Values
from sirocco.runtime.demo.wrappers import raised

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
LAYOUTS = (
    "{text}<\n|\n\n| |\n\n|\n><Question|Q|Ask|So|Query|Now|Tell me|My question|Problem|Task|The question>: {question}",
    "<Text|Context|Facts|Read this|Here is a text|Story|Note|Given|Known|Document|Passage|Information|Notes|Data|"
    "Here is what I know|Use this text to answer|Look at this text and answer|Answer from the text|I read this>"
    "<:|.|:\n|.\n> {text}<\n|\n\n| |\n><|Question: |Q: |Now tell me: |So, |Ask: |Then: |Now, |Answer this: >{question}",
    "<Question: |Q: |||Answer this: |I ask: |Tell me: >{question}<\n|\n\n| |\n><|Text: |Context: |Facts: |"
    "Here is a text: |"
    "Here is what I know: |Use this: |Look here: |Source: |Read: >{text}",
    "{text}<\n|\n\n| | So, | Now, | Hence, |\nThen, | And so: | That is all I know. | With this in mind: >{question}",
    "<Given that|Knowing that|I know that|It is said that|We know that|Suppose that> {text} {question}",
)
REPEATS = (
    "<repeat|say|echo|write|copy|type|print|please say|please repeat|now say|now repeat|spell out|recite|tell me|"
    "can you say|"
    "I want you to say|just say|only say|return|output|answer with|reply with|give back|speak>"
    "< after me:|:| this:| the words| the following:| exactly:| the text:| back:| to me:| just this:| only:||> {v}",
    "<repeat|say|echo|write|copy|type|print|please say|please repeat|now say|now repeat|recite|can you say|just say|"
    "return|"
    "output|reply with>< the words| the text| exactly| this:|||> '{v}'",
)
JSON_FRAMES = (
    "<Give me|Write|Make|Return|Create|Build|Produce|Show me|Generate|Answer with|I need|I want|Could you write|"
    "Please make|"
    "Output|Print|Prepare|Reply with|Can you give me|We need> <JSON|a JSON object|one JSON object|some JSON|"
    "an object in JSON> "
    "<with|where|for|from|in which|that says|holding|saying that> {f}<.||?|, please.>",
    "<JSON|As JSON|JSON please|Put this in JSON|Turn this into JSON|Make JSON|I want JSON|Convert to JSON|"
    "Encode as JSON|"
    "Only JSON please|JSON only|To JSON|Format as JSON|Write this as JSON|Make this JSON|In JSON|Data>: {f}<.|||>",
    "<Encode|Convert|Show|Write|Put|Format|Return|Give me|Express|Represent|Turn|Render> {f} <as|in|into|using> "
    "<JSON|a JSON object|JSON format|one JSON object><.|||, please.>",
)  # fmt: skip
SCHEMA_FRAMES = (
    "<Answer|Reply|Respond|Come back|Return> with JSON <that follows|by|matching|according to|that fits|for> "
    "<this|the following|my|the> schema: {s}<\n|\nText: |\nData: |\nHere is the data: |\n\n|\nInput: >{f}",
    "<Schema|The schema|JSON schema|Format|My schema|Use this schema|Follow this schema>: {s}<\n| |\n\n>"
    "<Text|Data|Input|Facts|Values|Content|Here is the text>: {f}",
    "<Use|Take|Apply|Follow|Fill|With> the <schema|JSON schema|format> {s} <for|on|with|and this text>: {f}",
    "{f}\n<Fill|Use|Follow|Apply|Answer by|Write it by|Make JSON by> <this|the> <schema|JSON schema|format>: {s}",
    "<Extract|Make|Write|Produce|Get|Build> JSON by the schema {s} <from|for|out of|using>: {f}",
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
    text = worded(values, LAYOUTS).format(
        text=" ".join(s for s, _, _ in told), question=question[0].upper() + question[1:] + "?"
    )
    if not answer:
        return Exchange("read", text, "The text does not say.")
    return Exchange("read", text, f"{answer}.", facts=(answer,))


def repeat(values: Values) -> Exchange:
    """Words to say back."""
    said = " ".join(values.text() for _ in range(values.rng.choice((1, 2, 3, 5, 8))))
    return Exchange("copy", raised(worded(values, REPEATS).format(v=said)), said)


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
        return Exchange("json", worded(values, SCHEMA_FRAMES).format(s=schema, f=", ".join(parts)), dumps(fields))
    return Exchange("json", worded(values, JSON_FRAMES).format(f=listed), dumps(fields))
