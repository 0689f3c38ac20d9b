"""What composed functions are made of: verbs, nouns, parameters, and the ways requests name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sirocco.runtime.demo.values import Value, Values, words

__all__ = [
    "ARTICLES",
    "ASIDES",
    "BOOLEAN_PARAMETERS",
    "DESCRIPTIONS",
    "ENUM_PARAMETERS",
    "FRAMES",
    "GREETINGS",
    "HELD_OUT_BOOLEAN",
    "HELD_OUT_ENUM",
    "HELD_OUT_NOUNS",
    "HELD_OUT_NUMBER",
    "HELD_OUT_TEXT",
    "HELD_OUT_VERBS",
    "MARKED",
    "NATURAL",
    "NONSENSE",
    "NOUNS",
    "NUMBER_PARAMETERS",
    "OPENERS",
    "SUFFIXES",
    "TEXT_PARAMETERS",
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
NOUNS = words("""
weather order ticket invoice playlist recipe meeting event reminder alarm message email note task project user
account profile payment flight hotel room table restaurant taxi train bus route map photo video song album movie
book article report file folder document contract customer product price stock package shipment refund coupon
subscription course lesson exam student teacher patient appointment doctor medicine workout meal budget expense
salary loan tax currency temperature light lamp door window thermostat sensor camera robot printer device server
backup password comment review rating survey poll vote team player match game score league garden plant animal
pet car bike parking fuel charger battery contact calendar holiday gift card list item warehouse factory machine
job candidate interview campaign advert newsletter page website domain branch commit issue release build test
dataset table model image
""")
HELD_OUT_NOUNS = words("""
yacht telescope orchestra passport museum vaccine elevator pizza haircut submarine drone fountain bakery
tournament mortgage antenna library scooter wedding rental
""")
TEXT_PARAMETERS = words("""
title label category topic subject theme genre artist author brand model color material style owner department
group channel source target reason comment description keyword query text content note message tag destination
origin address country region language currency_name status_text product customer username nickname item folder
path mode_name device project team venue street platform version
""")
HELD_OUT_TEXT = words("chef sponsor flavor captain breed instrument landmark dialect fabric pilot")
NUMBER_PARAMETERS = words("""
count limit amount quantity size width height weight depth speed volume brightness level priority score rating
price budget age year page floor room seats guests nights minutes seconds hours days port radius temperature
max_results duration distance percent discount offset length capacity
""")
HELD_OUT_NUMBER = words("altitude voltage servings laps candles passengers dosage humidity")
BOOLEAN_PARAMETERS = words("""
urgent public private recursive verbose express gift_wrap notify repeat vegetarian insured refundable encrypted
compressed anonymous
""")
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
    Natural(("city", "location", "place", "town"), ("in {}", "in {}", "near {}", "at {}", "over in {}", "around {}",
        "located in {}"), Values.city),
    Natural(("name", "person", "user", "customer"), ("for {}", "for {}", "under the name {}", "named {}",
        "by the name of {}", "whose name is {}", "called {}"), Values.name),
    Natural(("recipient", "to", "contact"), ("to {}", "to {}", "addressed to {}", "so that it reaches {}",
        "meant for {}"), Values.name),
    Natural(("email", "email_address"), ("to {}", "with the email {}", "at {}", "using {}", "with the address {}",
        "via {}"), Values.email),
    Natural(("date", "day"), ("on {}", "for {}", "on the date {}", "dated {}", "due {}", "by {}", "starting {}"),
        Values.date),
    Natural(("time", "start_time"), ("at {}", "for {}", "starting at {}", "from {}", "around {}", "at exactly {}"),
        Values.time),
    Natural(("id", "code", "reference"), ("with id {}", "number {}", "{}", "with the reference {}", "with code {}",
        "that has the id {}", "no. {}"), Values.code),
    Natural(("file", "filename", "file_name"), ("from {}", "in the file {}", "called {}", "to {}", "using the file {}",
        "named {}"), Values.file),
    Natural(("query", "keyword", "topic"), ("about {}", "on {}", "matching {}", "for {}", "concerning {}",
        "regarding {}"), Values.words_phrase),
    Natural(("text", "message", "content"), ("saying '{}'", "with the text '{}'", ": {}", 'that says "{}"'),
        Values.words_phrase),
    Natural(("limit", "max_results", "count"), ("with at most {} results", "limited to {}", "max {}",
        "with up to {} results"),
            lambda v: v.integer(1, 99), "integer"),
    Natural(("price", "amount", "budget"), ("for {} dollars", "at a price of {}", "of {}", "costing {} dollars"),
        Values.number, "number"),
    Natural(("minutes", "duration"), ("for {} minutes", "lasting {} minutes", "of {} minutes", "{} minutes long"),
            lambda v: v.integer(1, 240), "integer"),
    Natural(("people", "guests", "seats"), ("for {} people", "for a group of {}", "for {}", "with {} guests"),
            lambda v: v.integer(1, 40), "integer"),
)  # fmt: skip
MARKED = (
    "with {p} {v}", "with {p} {v}", "with {p} {v}", "with the {p} {v}", "{p} {v}", "using {v} as the {p}",
    "with {v} as {p}",
    "where the {p} is {v}", "{p} = {v}", "whose {p} is {v}", "and set the {p} to {v}", "with {p}: {v}",
    "where {p} is {v}",
    "with {p} set to {v}", "{p}: {v}", "{p} being {v}", "having the {p} {v}", "that has {p} {v}",
    "the {p} should be {v}",
    "{v} for {p}", "its {p} is {v}", "({p} {v})", "having {p} {v}", "and the {p} must equal {v}", "the {p} must be {v}",
    "{p} -> {v}", "take {v} as {p}", "let {p} be {v}", "and for {p} use {v}", "of {p} {v}",
)  # fmt: skip
FRAMES = (
    "{prefix}{do}{suffix}", "{prefix}{do}{suffix}", "{prefix}{do}{suffix}", "{prefix}{do}{suffix}", "{do}", "{do}.",
    "{prefix}{do}{suffix}",
)  # fmt: skip
OPENERS = (
    "", "please ", "can you ", "could you go ahead and ", "could you ", "I need you to ", "I want you to ", "hey, ",
    "would you mind trying to ", "would you ", "now ", "I would like you to ", "hi, can you ", "my request: ",
    "go and ",
    "you should ", "let's ", "kindly ", "it is time to ", "can you please ", "could you please ", "I'd like you to ",
    "would you kindly ", "be so nice and ", "I have to ", "I must ", "help me to ", "help me ", "your next job is to ",
    "I'd like to ", "we need to ", "we should ", "try to ", "you may now ", "make sure to ", "don't forget to ",
    "it would be nice to ", "are you able to ", "next, ", "first ", "then ", "the task is to ", "your task: ",
    "if possible, ", "I was told to ", "is it possible to ", "quickly ", "the user wants to ", "do me a favor and ",
    "can we ", "could we ", "will you ", "you can ", "just ", "I'm asking you to ",
)  # fmt: skip
GREETINGS = (
    "", "Hi, ", "Hello, ", "Good day, ", "Hey! ", "OK, ", "Well, ", "So, ", "Listen: ", "Hello Sirocco, ", "Alright, ",
    "Great. ", "Thanks. ", "As said, ", "Hi! ", "Hello! ", "Sirocco, ", "Good morning. ", "To begin with, ", "Um, ",
    "Dear model, ", "Hi there. ", "Quickly: ", "One more thing: ", "Okay. ", "Hmm, ", "Right, ", "By the way, ",
)  # fmt: skip
SUFFIXES = (
    "", ".", "?", ", if you can.", " please", " for me", ", thanks", ", please.", " now, would you?", " right away",
    "!",
    " for me please", ". Thanks!", ", without delay.", "? Thank you.", ", will you?", ", ok?", " soon",
    " as soon as you can",
    ". That is all.", " for us", ". I need it.", ", it is urgent.", ". Be quick about it.", ", thank you.",
    "? I need this.",
    " at once", ". Please hurry.", ". Much appreciated.", " when you can", ", dear.", " and tell me", ", would you",
    "...",
)  # fmt: skip
ASIDES = (
    "I am in a hurry.", "My boss is waiting.", "It is raining here.", "I hope that works.", "I forgot how.",
    "We are late.",
    "My computer is slow.", "That would be great.", "I have little time.", "You did well before.", "I love this.",
    "It is for work.", "It is for a friend.", "I did this before.", "Nobody else can.", "This is important.",
    "I trust you.", "No rush.", "Take your time.", "I am new here.", "It matters to me.", "I will wait.", "Do it well.",
    "I am on the train.", "We talked about it.", "My hands are full.", "It has to be right.", "I am tired.",
)  # fmt: skip
DESCRIPTIONS = ("{verb} a {noun}", "{verb} the {noun}", "{verb} {noun} data", "{verb} one {noun}",
"{verb} a {noun} by its details",
                "Use this to {lower} a {noun}", "")  # fmt: skip
ARTICLES = ("a", "the", "a", "the", "my", "this", "")
NONSENSE = ("run", "call", "use", "execute", "do", "invoke", "try", "perform")
