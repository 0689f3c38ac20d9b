"""Requests whose values stand anywhere in the sentence, for functions made of many English words."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

from sirocco.runtime.demo.compute import STATEMENT_ENDINGS
from sirocco.runtime.demo.exchange import Exchange
from sirocco.runtime.demo.lexicon import (
    ACTIONS,
    CITIES,
    HELD_OUT_NOUNS,
    HELD_OUT_NUMBER,
    HELD_OUT_TEXT,
    LOOKS,
    NAMES,
    NOUNS,
    STEMS,
    THINGS,
    UNITS,
    WORDS,
    words,
)
from sirocco.runtime.demo.phrasing import worded
from sirocco.runtime.demo.results import invent, report
from sirocco.runtime.demo.schemas import VERBS
from sirocco.runtime.demo.tools import Call, Parameter, Tool
from sirocco.runtime.demo.values import Split, Value, Values, held_out
from sirocco.runtime.demo.wrappers import polite, question, raised

__all__ = ["patterned", "stand_in"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A kind of value: the names that a parameter for it may have, and its JSON type."""

    names: tuple[str, ...]
    value: Callable[[Values], Value]
    type: str = "string"


def slot(names: str, value: Callable[[Values], Value], kind: str = "string") -> Slot:
    """A slot whose names are the words of a text."""
    return Slot(tuple(words(names)), value, kind)


SLOTS = {
    "place": slot("city location place town area region district address venue site country spot destination village "
                  "capital office base home market", Values.city),
    "from": slot("from origin start source from_city departure start_point pickup begin",
        Values.city),
    "goal": slot("to destination end target to_city arrival end_point to_place goal", Values.city),
    "person": slot("name person user customer owner client guest member employee student patient player author driver "
                   "teacher friend worker winner buyer seller visitor recipient", Values.name),
    "fullname": slot("full_name person artist author actor manager director name contact", Values.full_name),
    "thing": slot("item product object room color material animal dish tool plant part word label category type kind "
                  "topic group theme target zone device machine subject thing", Values.word),
    "other": slot("second other partner match extra replacement new_item addition option alternative",
        Values.word),
    "title": slot("title text note message description reason subject content summary headline comment query caption "
                  "question goal purpose remark", Values.words_phrase),
    "code": slot("id code number reference order_id serial key ticket_id invoice tracking_id barcode account",
        Values.code),
    "count": slot("count amount number quantity level size value limit total length duration score weight",
                  lambda v: v.integer(1), "integer"),
    "amount": slot("amount price cost sum total value fee budget salary money payment", Values.number, "number"),
    "date": slot("date day when due_date deadline on start_date", Values.date),
    "time": slot("time at hour start_time when begin", Values.time),
    "file": slot("file path filename document source file_name input", Values.file),
    "email": slot("email mail address email_address contact to", Values.email),
}  # fmt: skip
PATTERNS: dict[str, tuple[str, ...]] = {
    "": ("{verb} <the|a|my|this|our|that|one|> {noun}", "{verb} <it all|everything|something> <with|for|"
        "about> the {noun}",
         "<how is|what about|where is|when is|who has> <the|my|our> {noun}"),
    "place": ("{verb} the {noun} <in|of|at|for|near|from|around> {0}", "what is the {noun} <of|in|for|at|near> {0}",
              "which {noun} <does {0} have|is in {0}|belongs to {0}|can I find in {0}|is the best in {0}>",
              "<how is|where is|when is|who runs> the {noun} <in|of|at> {0}", "{noun} <of|for|in|at> {0}",
              "{verb} {0}", "is there a {noun} <in|near|at|around> {0}", "I need <the|a> {noun} <in|for|of> {0}"),
    "thing": ("{verb} the {0} <{noun}|>", "{verb} {0}", "{verb} the {noun} <of|called|named|for|in> <the ||>{0}",
              "what {noun} <fits|suits|goes with|has|is> <the ||>{0}", "<make|keep|get> the {0} {noun} {look}",
              "which {noun} <can I use for|is made of|needs|has> {0}", "I <want|need> <a|the|some> {0} {noun}"),
    "person": ("{verb} {0}", "{verb} {0}'s {noun}", "{verb} the {noun} <of|for|by|from> {0}",
               "what {noun} does {0} <have|need|want|like|own>", "<give|bring|hand|offer|get> {0} <a|the|some> {noun}",
               "<how good|how big|how old|where> is {0}'s {noun}", "does {0} have a {noun}", "{verb} {0} <as|for|"
                   "in> <the|a> {noun}"),
    "fullname": ("{verb} {0}", "{verb} the {noun} <of|by|with|from> {0}", "which {noun} <is by|belongs to|has> {0}"),
    "code": ("{verb} <the ||my ||>{noun} {0}", "{verb} <the|my|our> {noun} <with the number|numbered|with code|"
        "number|no.|"
             "with the id|with reference|listed as> {0}", "where is <the ||my >{noun} {0}",
             "has <the ||my >{noun} {0} <arrived|changed|ended|come in|left>", "what <happened to|"
                 "is> {noun} {0}", "{verb} {0}"),
    "title": ("{verb} {0}", "{verb} the {noun} <called|titled|named|> {0}", "{verb} <a|the|one|my> {noun} "
              "<about|on|for|that says|with the words> {0}", "{verb} <a|the> {noun}: {0}", "which {noun} is about {0}"),
    "count": ("{verb} {0} {unit}", "{verb} the {noun} <for|by|to|after|with|in|at|of> {0} {unit}",
              "make the {noun} {0} {unit} <long|wide|high|deep|{look}>", "{verb} the {noun} {0} times",
              "<set|put|keep|hold> the {noun} <to|at> {0}< {unit}||>", "{verb} {0} <of the|more|new> {noun}s"),
    "amount": ("{verb} <the|a|my> {noun} <of|for|at|worth|with> {0}< dollars| euros||>", "{verb} {0}< dollars|"
        " euros||>",
               "<pay|save|send|take> {0} <for|from|on> the {noun}", "what {noun} do I get <for|with> {0}"),
    "date": ("{verb} the {noun} <on|for|of|by|until|from> {0}", "what {noun} is <on|due on|planned for> {0}",
             "is there a {noun} on {0}", "{noun} <on|for|of> {0}"),
    "file": ("{verb} <the ||>{0}", "{verb} the {noun} <in|from|of|to|inside> {0}", "which {noun} is in {0}",
             "{verb} the {noun} <and save it in|using|with> {0}"),
    "email": ("{verb} <a|the> {noun} <to|for|with|using|from> {0}", "{verb} {0}", "<put|write> {0} <on|"
        "into> the {noun}"),
    "from goal": ("{verb} <a|the|my> {noun} from {0} to {1}", "I need a {noun} from {0} to {1}", "{verb} {0} <and|"
        "with|to> {1}",
                  "how many {unit} are <between {0} and {1}|from {0} to {1}>", "<find|get> me <a|the> {noun} <from|"
                      "leaving> {0} "
                  "<to|for|towards|going to> {1}", "is there a {noun} <between {0} and {1}|from {0} to {1}>",
                  "{verb} the {noun} <of|in|at> {0} <to|with> {1}"),
    "person count": ("{verb} {0} {1} {unit}", "give {0} {1} {unit}< of {noun}||>", "{verb} {1} {unit} <to|from|for|"
        "of> {0}",
                     "{verb} {0}'s {noun} <with|by|for|at> {1}< {unit}||>", "{verb} {0} <for|with|by> {1} {unit}",
                     "{0} <needs|wants|gets|has> {1} {unit}, {verb} <it|them>", "<add|put> {1} {unit} to {0}'s {noun}",
                     "{verb} the {noun} of {0} <for|with|at|by> {1}< {unit}||>"),
    "thing count": ("{verb} the {0} <{noun} ||><with|by|for|to|after|at> {1} {unit}", "{verb} {1} {unit} of {0}",
                    "I <did|had|made|used|want|got> {1} {unit} of {0}, {verb} <it|them>", "{verb} {1} {0}",
                    "use {1} {unit} to {verb} the {0}", "<put|set|turn|bring> the {noun} of {0} <at|to> {1}",
                    "<turn|set|move> the {0} <{noun} ||>to {1} {unit}", "make the {0} <{noun} ||>{1} {unit} {look}",
                    "give the {0} {1} {unit} of {noun}", "the {0} needs {1} {unit}, {verb} it", "write down {1} "
                        "{unit} of {0}"),
    "place count": ("{verb} a {noun} <in|at|from|near> {0} for {1} {unit}", "I need a {noun} <at|in|"
        "near> {0} for {1} {unit}",
                    "<get|find|book> me a {noun} <in|at|near> {0}<,| for| with> {1} {unit}",
                    "{verb} {1} {unit} <in|at|to|from> {0}", "{verb} {0} for {1} {unit}"),
    "thing place": ("{verb} <a|the|some> {0} {noun} <in|from|at|near> {1}", "which {noun} in {1} <has|sells|treats|"
        "makes|needs> {0}",
                    "I need a {noun} for {0} in {1}", "where <in|around> {1} is <the|a|some> {noun} <for|with|of> {0}",
                    "{verb} {0} <in|to|at|from|for> {1}", "look for <a|the> {0} {noun} <in|near|around> {1}"),
    "amount title": ("{verb} a {noun} of {0} for {1}", "I <spent|paid|got|lost> {0} <on|for> {1}, {verb} it",
                     "{verb} {0} <dollars |euros ||><for|on|spent on|towards> {1}", "the {noun} for {1} <is|was|"
                         "cost> {0}, {verb} it"),
    "person amount": ("{verb} {0} {1} <dollars|euros|>", "{verb} {1} <dollars |euros ||><from|to|for> {0}",
                      "{verb} the {noun} of {0} <with|for|by|at> {1}", "{0} <owes|paid|gets|pays> {1}, {verb} <it|"
                          "that>",
                      "{verb} {1} to the {noun} of {0}"),
    "person title": ("{verb} the {noun} {1} <by|of|from|for> {0}", "{verb} {0}'s {noun} {1}", "{verb} {0} <for|"
        "about|because of> "
                     "the {noun} {1}", "<give|tell|send> {0} <the|a> {noun}: {1}", "{verb} {1} <written by|made by|"
                         "from|to> {0}"),
    "person date": ("{verb} {0} <on|for|until|by> {1}", "{verb} {0}'s {noun} <on|for|"
        "of> {1}", "{verb} a {noun} <for|with> {0} on {1}",
                    "what {noun} does {0} have on {1}"),
    "place date": ("{verb} the {noun} <in|at|of> {0} <on|for> {1}", "when is the {noun} <in|at> {0} on {1}",
                   "{noun} <in|at> {0} on {1}", "what is the {noun} <in|at|"
                       "of> {0} on {1}", "is there a {noun} in {0} on {1}"),
    "thing other": ("{verb} {0} <and|with|or> {1}", "{verb} the {noun} <of|from> {0} <to|with|and> {1}",
                    "what {noun} <do I get|comes out|is there> <from|with> {0} and {1}",
                    "{verb} <the ||>{0} {noun} with {1}",
                    "{verb} the {noun}s {0} and {1}", "<swap|change|trade> the {0} {noun} for <a ||>{1}"),
    "code date": ("{verb} {noun} {0} <on|by|until|to|for> {1}", "<move|shift> {noun} {0} to {1}",
                  "{verb} the {noun} <with number|number|with id> {0} <on|for|by> {1}"),
    "code count": ("{verb} {noun} {0} <by|with|for|to> {1}< {unit}||>", "{verb} {1} {unit} <to|from|of> {noun} {0}",
                   "<add|give> {1} {unit} to {0}"),
    "title time": ("{verb} {0} at {1}", "{verb} <a|the|my> {noun} <about|called|for> {0} at {1}", "at {1} {verb} {0}"),
    "file title": ("{verb} {1} <to|in|into> {0}", "{verb} the {noun} {1} in {0}", "<put|write|store> the {noun} {1} "
        "<into|in> <the ||>{0}"),
    "place date count": ("{verb} a {noun} in {0} on {1} for {2} {unit}", "I need {2} {unit} in {0} <on|from> {1}",
                         "{verb} {2} {unit} <at|in> {0} for {1}", "on {1} {verb} a {noun} in {0} for {2} {unit}"),
    "from goal count": ("{verb} a {noun} from {0} to {1} for {2} {unit}", "I need a {noun} from {0} to {1}<,| for|"
        " with> {2} {unit}",
                        "<take|bring|send> {2} {unit} from {0} to {1}", "{verb} {2} {unit} <of {noun} ||"
                            ">from {0} to {1}"),
    "person thing count": ("{verb} {2} {1} <to|for> {0}", "{verb} {0} {2} {unit} of {1}", "{0} <wants|needs|"
        "gets> {2} {unit} of {1}, {verb} it",
                           "{verb} {2} {unit} of {1} <for|to|from> {0}"),
    "person place date": ("{verb} {0} <in|at|"
                          "to> {1} on {2}", "{verb} a {noun} for {0} in {1} on {2}", "on {2} {verb} {0} <in|to> {1}"),
    "thing amount place": ("{verb} the {0} for {1} in {2}", "{verb} {0} <at|for|under> {1} <dollars|euros|> <in|"
        "near> {2}",
                           "I <want|need> <a|the|some> {0} {noun} for {1} in {2}"),
}  # fmt: skip
LINK = "<||||||||||then |also |quickly |again >"
DESCRIPTIONS = ("{V} a {noun}", "{V} the {noun}", "{V} {noun}s", "{V} one {noun} by {p}", "Tool to {verb} a {noun}", "",
                "The {noun} of a {p}", "{V} {noun} with {p}", "Lets you {verb} {noun}s", "Information about a {noun}",
                "{V} something", "Handle the {noun}")  # fmt: skip
QUESTIONS = (
    "what ",
    "which ",
    "how ",
    "where ",
    "when ",
    "who ",
    "has ",
    "is ",
    "does ",
    "can ",
    "do ",
    "did ",
)


def vocabulary(listed: list[str], other: set[str], schemas: Split) -> list[str]:
    """The words that functions of one side of the schema split are called by; test has none of `other`."""
    chosen = [w for w in listed if (zlib.crc32(f"function {w}".encode()) % 7 == 4) == (schemas == "test")]
    return [w for w in chosen if schemas == "train" or w not in other]


VOCABULARY: dict[Split, tuple[list[str], list[str]]] = {
    schemas: (vocabulary(ACTIONS, set(VERBS), schemas), vocabulary(THINGS, {*NOUNS, *WORDS}, schemas))
    for schemas in ("train", "test")
}


TESTED = {word for table in VOCABULARY["test"] for word in table} | {*HELD_OUT_NOUNS, *HELD_OUT_TEXT, *HELD_OUT_NUMBER}
NO_WORDS = {name.lower() for name in (*NAMES, *CITIES)}
STAND_INS = [word for word in STEMS if word not in TESTED | NO_WORDS and not held_out(word)]


def stand_in(values: Values) -> str:
    """Any English word that training may use, or now and then a coined one, for a word of a function."""
    return values.rng.choice(STAND_INS) if values.rng.random() < 0.75 else values.word()


def named(verb: str, noun: str, values: Values, told: bool) -> str:
    """A function's name; without its verb only where the request has told the noun."""
    rng = values.rng
    form = rng.randrange(10 if told else 9)
    if form < 6:
        return f"{verb}_{noun}"
    if form < 8:
        return (f"{noun}_{verb}", f"{verb}{noun.capitalize()}", f"{noun}.{verb}", f"{noun}-{verb}")[rng.randrange(4)]
    return f"{verb}_{noun}s" if form == 8 else noun if rng.random() < 0.5 else f"{verb}_the_{noun}"


def patterned(values: Values, schemas: Split) -> Exchange:
    """One request for one function; its verb and noun are common words, coined in part of the training."""
    rng = values.rng
    verbs, nouns = VOCABULARY[schemas]
    coined = values.split == "train" and schemas == "train"
    verb = stand_in(values) if coined and rng.random() < 0.12 else rng.choice(verbs)
    noun = stand_in(values) if coined and rng.random() < 0.2 else rng.choice(nouns)
    unit = rng.choice(UNITS)
    signature = rng.choice(list(PATTERNS))
    frame = worded(values, [LINK + pattern for pattern in PATTERNS[signature]])
    asks = is_question(frame)
    if "{unit}" in frame and "{noun}" not in frame and "{verb}" not in frame:
        noun = unit  # what the request speaks of has to be in the function's name
    # A name need not say what the request says: one of verb and noun is enough to find the function.
    spoken = rng.choice(verbs) if "{noun}" in frame and rng.random() < 0.12 else verb
    called = rng.choice(("get", "find", "check", "look_up", verb)) if asks or "{verb}" not in frame else verb
    parameters: list[Parameter] = []
    arguments: dict[str, Value] = {}
    said: list[str] = []
    for kind in signature.split():
        entry = SLOTS[kind]
        free = [name for name in entry.names if name not in arguments]
        name = unit if kind == "count" and "{unit}" in frame and rng.random() < 0.4 else rng.choice(free)
        if coined and rng.random() < 0.12:
            name = f"{rng.choice(nouns)}_{name}" if rng.random() < 0.5 else stand_in(values)
        value = entry.value(values)
        parameters.append(Parameter(name, "number" if entry.type == "integer" and rng.random() < 0.3 else entry.type))
        arguments[name] = value
        quoted = isinstance(value, str) and kind in ("thing", "title", "other") and rng.random() < 0.15
        said.append(f'"{value}"' if quoted else str(value))
    if len(arguments) < len(parameters):
        return patterned(values, schemas)
    clause = frame.format(*said, verb=spoken, noun=noun, unit=unit, look=rng.choice(LOOKS)).strip()
    told = rng.choice(DESCRIPTIONS).format(
        V=verb.capitalize(), verb=verb, noun=noun, p=parameters[0].name.replace("_", " ") if parameters else "name"
    )
    name = named(called, noun, values, "{noun}" in frame or noun == unit)
    declared = tuple(rng.sample(parameters, len(parameters)))
    tool = Tool(name, told, declared)
    call = Call(name, {parameter.name: arguments[parameter.name] for parameter in declared})

    def again() -> Exchange:
        """The same function by another pattern that speaks of its noun and its unit."""
        other = reworded(values, signature, unit if unit in arguments or noun == unit else "")
        fresh = {name: SLOTS[kind].value(values) for name, kind in zip(arguments, signature.split(), strict=True)}
        words_of = {"verb": verb, "noun": noun, "unit": unit, "look": rng.choice(LOOKS)}
        text = other.format(*fresh.values(), **words_of).strip()
        due = Call(name, {parameter.name: fresh[parameter.name] for parameter in declared})
        return asked_for(values, other, text, tool, due, again)

    return asked_for(values, frame, clause, tool, call, again)


def reworded(values: Values, signature: str, unit: str) -> str:
    """Another wording of a signature's patterns, with the noun, and with a unit where one is in the function."""
    patterns = [p for p in PATTERNS[signature] if "{noun}" in p and (not unit or "{unit}" in p)]
    for _ in range(200):
        frame = worded(values, [LINK + pattern for pattern in patterns or PATTERNS[signature]])
        if "{noun}" in frame and (not unit or "{unit}" in frame):
            return frame
    return worded(values, [LINK + pattern for pattern in PATTERNS[signature]])


def asked_for(
    values: Values, frame: str, clause: str, tool: Tool, call: Call, again: Callable[[], Exchange]
) -> Exchange:
    """The exchange for a clause that a frame made."""
    results = (invent(values),)
    answer, facts = report(results)
    asks = is_question(frame)
    if frame.startswith(("{noun}", "{0}", "the ", "at ", "on ")):
        request = raised(clause + values.rng.choice(STATEMENT_ENDINGS))
    else:
        request = question(values, clause) if asks else polite(values, clause)
    return Exchange("pattern", request, answer, (call,), results, facts, (tool,), again=again)


def is_question(frame: str) -> bool:
    """Whether a frame asks, beside its link."""
    return frame.removeprefix("then ").removeprefix("also ").removeprefix("again ").startswith(QUESTIONS)
