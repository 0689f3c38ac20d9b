"""What composed functions are made of: verbs, nouns, parameters, and the ways requests name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sirocco.runtime.demo.values import Value, Values

__all__ = [
    "ARTICLES",
    "DESCRIPTIONS",
    "ENUM_PARAMETERS",
    "HELD_OUT_BOOLEAN",
    "HELD_OUT_ENUM",
    "HELD_OUT_VERBS",
    "MARKED",
    "NATURAL",
    "NONSENSE",
    "VERBS",
    "Natural",
]


VERBS: dict[str, tuple[str, ...]] = {
    "get": ("get", "show me", "fetch", "give me", "look up", "tell me"),
    "find": ("find", "look for", "locate", "search for"),
    "search": ("search", "search for", "look for"),
    "list": ("list", "show me", "list all"),
    "create": ("create", "make", "set up", "create a new", "make me"),
    "add": ("add", "put in", "add a new"),
    "delete": ("delete", "remove", "get rid of", "erase"),
    "update": ("update", "change", "modify", "edit"),
    "set": ("set", "change", "adjust"),
    "send": ("send", "send out", "deliver"),
    "book": ("book", "reserve", "get me"),
    "order": ("order", "buy", "get me"),
    "cancel": ("cancel", "call off", "drop"),
    "schedule": ("schedule", "plan", "set up", "arrange"),
    "start": ("start", "begin", "launch", "turn on"),
    "stop": ("stop", "end", "halt", "turn off"),
    "check": ("check", "verify", "look at"),
    "calculate": ("calculate", "compute", "work out", "figure out"),
    "convert": ("convert", "change", "turn"),
    "translate": ("translate", "render"),
    "play": ("play", "put on", "start"),
    "open": ("open", "bring up"),
    "track": ("track", "follow", "trace"),
    "rate": ("rate", "score", "review"),
    "assign": ("assign", "give"),
    "register": ("register", "sign up", "enrol"),
    "export": ("export", "save", "download"),
    "rename": ("rename", "give a new name to"),
    "print": ("print", "print out"),
    "archive": ("archive", "store away"),
    "compare": ("compare", "contrast"),
    "lock": ("lock", "secure"),
}
HELD_OUT_VERBS: dict[str, tuple[str, ...]] = {
    "publish": ("publish", "publish"),
    "repair": ("repair", "repair"),
    "measure": ("measure", "measure"),
    "upload": ("upload", "upload"),
    "borrow": ("borrow", "borrow"),
    "inspect": ("inspect", "inspect"),
}
HELD_OUT_BOOLEAN = ["waterproof", "organic", "overnight", "signed"]
ENUM_PARAMETERS: dict[str, tuple[str, ...]] = {
    "unit": ("celsius", "fahrenheit", "kelvin"),
    "units": ("metric", "imperial"),
    "priority": ("low", "medium", "high"),
    "size": ("small", "medium", "large"),
    "color": ("red", "green", "blue", "yellow", "black", "white"),
    "mode": ("fast", "slow", "eco", "auto"),
    "format": ("pdf", "csv", "json", "html"),
    "sort": ("newest", "oldest", "cheapest", "best"),
    "status": ("open", "closed", "pending"),
    "seat_class": ("economy", "business", "first"),
    "language": ("english", "french", "german", "spanish"),
    "currency": ("usd", "eur", "gbp", "jpy"),
    "period": ("daily", "weekly", "monthly", "yearly"),
}
HELD_OUT_ENUM: dict[str, tuple[str, ...]] = {
    "spice": ("mild", "hot", "extreme"),
    "gait": ("walk", "trot", "gallop"),
    "finish": ("matte", "glossy", "satin"),
    "cabin": ("inside", "balcony", "suite"),
}


@dataclass(frozen=True, slots=True)
class Natural:
    """A parameter that language marks by itself: what it is called, how it is said, what it holds."""

    names: tuple[str, ...]
    fragments: tuple[str, ...]
    value: Callable[[Values], Value]
    type: str = "string"


NATURAL = (
    Natural(("city", "location", "place", "town", "destination", "area"), (
        "<in|in|in|near|at|around|over in|down in|up in|close to|outside|inside|within|right in|all over> {}",
        "<located|based|somewhere|to be found|happening|situated|set> in {}", "in the <city|town|"
            "area> of {}"), Values.city),
    Natural(("name", "person", "user", "customer", "owner", "member"), (
        "<for|for|of|under the name|named|by the name of|whose name is|called|on behalf of|belonging to|owned by|"
        "made by|"
        "about|concerning|in the name of|with the name|that is called> {}",), Values.name),
    Natural(("recipient", "to", "contact", "receiver"), (
        "<to|to|to|addressed to|so that it reaches|meant for|and send it to|directed to|going to|off to|"
        "straight to> {}",),
        Values.name),
    Natural(("email", "email_address", "mail"), (
        "<to|with the email|at|using|with the address|via|with the mail|by mail to|under|reachable at|"
        "whose email is|email> {}",),
        Values.email),
    Natural(("date", "day", "when"), (
        "<on|on|for|on the date|dated|due|by|starting|from|until|beginning|before|after|as of|not later than|"
        "planned for> {}",),
        Values.date),
    Natural(("time", "start_time", "hour"), (
        "<at|at|for|starting at|from|around|at exactly|beginning at|not before|by|at about|until> {}",), Values.time),
    Natural(("id", "code", "reference", "number"), (
        "<with id|number|with the reference|with code|that has the id|no.|with the number|under the code|id|ref|"
        "having id|"
        "numbered|with the code|identified by|listed as> {}", "{}"), Values.code),
    Natural(("file", "filename", "file_name"), (
        "<from|in the file|called|to|using the file|named|with the file|out of|into|from the file|stored in|"
        "kept in> {}",),
        Values.file),
    Natural(("query", "keyword", "topic", "subject"), (
        "<about|on|matching|for|concerning|regarding|related to|to do with|dealing with|containing|that mention> {}",),
        Values.words_phrase),
    Natural(("text", "message", "content", "note"), (
        "<saying|with the text|that reads|with the words|reading|stating|with the message|that says|which says> "
        "<'{}'|\"{}\"|{}>", ": {}"), Values.words_phrase),
    Natural(("limit", "max_results", "count", "top"), (
        "<with at most|limited to|max|with up to|no more than|not more than|at most|up to|only|just> {}"
        "< results| entries| items||>",), lambda v: v.integer(1, 99), "integer"),
    Natural(("price", "amount", "budget", "cost"), (
        "<for|at a price of|of|costing|worth|at|below|up to|priced at|for a total of> {}< dollars| euros||>",),
        Values.number, "number"),
    Natural(("minutes", "duration", "length"), (
        "<for|lasting|of|within|during|over|taking> {} minutes", "{} minutes long", "<in|after> {} minutes"),
        lambda v: v.integer(1, 240), "integer"),
    Natural(("people", "guests", "seats", "persons"), (
        "<for|with|seating|with room for|expecting|that fits> {} <people|guests|persons|of us>", "for a <group|"
            "party> of {}"),
        lambda v: v.integer(1, 40), "integer"),
)  # fmt: skip
MARKED = (
    "<with|using|and|for|at|plus> <the |the |a |an ||>{p} <of |set to |equal to |= |: |as |being ||||>{v}",
    "<where|whose|and|with|so that|and its> <the ||>{p} <is|should be|must be|equals|will be|has to be|needs to be|"
    "being|set to> {v}",
    "<use|take|put|choose|pick|with|using|and use|having|and take> {v} <as|for> <the |the |its |my ||>{p}",
    "<set|put|and set|and put|with|change|and change> <the |its |the ||>{p} <to|at|=|to be> {v}",
    "<and|with|where|also|> <the |its ||>{p} <is|equal to|as|being|of> {v}",
    "<for|as|and for|and as|with> <the ||>{p} <use|take|put|write|choose|pick> {v}",
    "{p} <= |: |is |equals |being |of |||to be >{v}",
    "{p}<:|=|: |=>{v}", "<and |with |>({p} {v})", "<and |with |>({p}: {v})", "<and |with |>[{p}: {v}]",
    "<and |plus ||>the {p} {v}",
    "<that has|which has|and has|having> <the |a ||>{p} <of |||>{v}",
    "<with|and|having> {v} <as its|for its|as the|as> {p}",
)  # fmt: skip
DESCRIPTIONS = ("{verb} a {noun}", "{verb} the {noun}", "{verb} {noun} data", "{verb} one {noun}",
"{verb} a {noun} by its details",
                "Use this to {lower} a {noun}", "")  # fmt: skip
ARTICLES = ("a", "the", "a", "the", "my", "this", "")
NONSENSE = ("run", "call", "use", "execute", "do", "invoke", "try", "perform")
