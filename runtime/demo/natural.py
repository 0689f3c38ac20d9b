"""Functions that people really declare, with the ways people really ask for them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from sirocco.runtime.demo.compute import asked
from sirocco.runtime.demo.exchange import Exchange
from sirocco.runtime.demo.results import invent, report
from sirocco.runtime.demo.tools import Call, Parameter, Tool, dumps
from sirocco.runtime.demo.values import Split, Value, Values, phrasings

__all__ = ["FAMILIES", "HELD_OUT_FAMILIES", "Family", "everyday", "everyday_followed", "everyday_twice"]

KINDS: dict[str, tuple[str, Callable[[Values], Value]]] = {
    "city": ("string", Values.city),
    "name": ("string", Values.name),
    "fullname": ("string", Values.full_name),
    "email": ("string", Values.email),
    "date": ("string", Values.date),
    "time": ("string", Values.time),
    "code": ("string", Values.code),
    "file": ("string", Values.file),
    "word": ("string", Values.word),
    "phrase": ("string", Values.words_phrase),
    "text": ("string", Values.text),
    "int": ("integer", lambda v: v.integer(1)),
    "small": ("integer", lambda v: v.integer(1, 60)),
    "number": ("number", Values.number),
}


@dataclass(frozen=True, slots=True)
class Family:
    """One everyday function: `parameters` reads `name|other:kind`, an optional one ends in `?`, an enum is `name:a/b/c`.

    In a frame `[…]` is said only when the parameter in it is given.
    """

    names: str
    descriptions: str
    parameters: str
    frames: tuple[str, ...]
    result: str = ""  # `key:kind …` of a fitting result; empty: any


FAMILIES = (
    Family("get_weather|get_current_weather|weather|current_weather", "Get the current weather for a city|Current weather|Look up the weather in a given location",
           "city|location|city|place:city unit|units:celsius/fahrenheit?",
           ("what is the weather in {0}[ in {1}]", "what's the weather like in {0}[ in {1}]", "how is the weather in {0}[ in {1}]",
            "is it raining in {0}[ in {1}]", "get the weather for {0}[ in {1}]", "how warm is it in {0}[ in {1}]", "weather in {0}[ in {1}]",
            "tell me the weather in {0}[, in {1}]", "what is the temperature in {0}[ in {1}]", "check the weather in {0}[ in {1}]",
            "do I need an umbrella in {0}", "show the weather of {0}[ in {1}]", "how cold is it in {0}[, in {1}]", "look up the weather in {0}[ in {1}]"),
           "temperature:small condition:word"),
    Family("get_forecast|weather_forecast", "Weather forecast for a city and a day|Forecast", "city|location:city date|day:date",
           ("what will the weather be in {0} on {1}", "get the forecast for {0} on {1}", "forecast for {0} on {1}", "will it rain in {0} on {1}", "what is the forecast for {0} for {1}")),
    Family("get_time|get_current_time|current_time", "Current time in a city or time zone|Get the time", "city|location|timezone|place:city",
           ("what time is it in {0}", "what is the time in {0}", "tell me the time in {0}", "what's the current time in {0}", "how late is it in {0}",
            "get the time for {0}", "current time in {0}", "do you know the time in {0}", "give me the time in {0}"), "time:time"),
    Family("send_email|email|send_mail", "Send an email|Send an email to someone", "to|recipient|address:email subject:phrase? body|message|text:phrase",
           ("send an email to {0}[ with the subject {1}] saying {2}", "email {0}[ with subject {1}] and say {2}", "write an email to {0}[ about {1}] with the text {2}",
            "mail {0}[, subject {1},] saying {2}", "send {0} an email[ with the subject {1}] that says {2}", "send a mail to {0}[ about {1}] saying {2}"), "status:word"),
    Family("send_message|text_message|send_sms", "Send a message to a person|Send a text message", "recipient|to|contact|person:name message|text|body:phrase",
           ("send {0} the message {1}", "tell {0} that {1}", "text {0} saying {1}", "write to {0}: {1}", "send a message to {0} saying {1}", "message {0} and say {1}",
            "let {0} know that {1}", "send a text to {0} that says {1}"), "status:word"),
    Family("search_web|web_search|search|google", "Search the web|Search the internet for a query", "query|q|text:phrase limit|max_results:small?",
           ("search the web for {0}[ and show {1} results]", "search for {0}[ with {1} results]", "look up {0} on the web[, {1} results]", "google {0}[ and give me {1} results]",
            "find information about {0}[, at most {1} results]", "do a web search for {0}[ limited to {1}]", "look online for {0}[ with {1} results]")),
    Family("set_timer|start_timer|timer", "Start a timer|Set a timer for some minutes", "minutes|duration:small",
           ("set a timer for {0} minutes", "start a timer of {0} minutes", "time {0} minutes", "count down {0} minutes", "wake me in {0} minutes", "give me a {0} minute timer",
            "start a {0} minute timer"), "status:word"),
    Family("set_alarm|alarm|create_alarm", "Set an alarm", "time:time label|name:word?",
           ("set an alarm for {0}[ called {1}]", "wake me up at {0}[ with the label {1}]", "set my alarm to {0}[ and call it {1}]", "alarm at {0}[ named {1}]", "I need an alarm at {0}[ called {1}]"), "status:word"),
    Family("create_reminder|remind|add_reminder|set_reminder", "Create a reminder", "text|task|title:phrase time|when:time?",
           ("remind me about {0}[ at {1}]", "remind me of {0}[ at {1}]", "set a reminder for {0}[ at {1}]", "don't let me forget {0}[ at {1}]", "create a reminder {0}[ at {1}]", "add a reminder about {0}[ at {1}]"), "id:code"),
    Family("translate|translate_text", "Translate a text into a language", "text:phrase language|target_language|to:french/german/spanish/italian/polish/turkish",
           ("translate '{0}' into {1}", "translate '{0}' to {1}", "what is '{0}' in {1}", "how do you say '{0}' in {1}", "say '{0}' in {1}", "give me the {1} for '{0}'"), "translation:phrase"),
    Family("convert_currency|exchange|currency_convert", "Convert an amount of money between currencies", "amount:number from_currency|from|source:USD/EUR/GBP/JPY/CHF to_currency|to|target:USD/EUR/GBP/JPY/CHF",
           ("convert {0} {1} to {2}", "how much is {0} {1} in {2}", "change {0} {1} into {2}", "what are {0} {1} in {2}", "exchange {0} {1} for {2}", "what is {0} {1} worth in {2}"), "amount:number"),
    Family("convert_units|unit_convert|convert", "Convert a value between units", "value|amount:number from_unit|from|source:km/miles/kg/pounds/meters/feet to_unit|to|target:km/miles/kg/pounds/meters/feet",
           ("convert {0} {1} to {2}", "how many {2} are {0} {1}", "what is {0} {1} in {2}", "how much is {0} {1} in {2}", "turn {0} {1} into {2}", "express {0} {1} in {2}"), "value:number"),
    Family("book_flight|reserve_flight|find_flight|search_flights", "Book a flight between two cities", "origin|from_city|from|departure:city destination|to_city|to|arrival:city date:date?",
           ("book a flight from {0} to {1}[ on {2}]", "I want to fly from {0} to {1}[ on {2}]", "find a flight from {0} to {1}[ for {2}]", "get me from {0} to {1} by plane[ on {2}]",
            "I need a flight from {0} to {1}[ on {2}]", "fly me from {0} to {1}[ on {2}]"), "flight:code price:int"),
    Family("book_table|reserve_table|make_reservation", "Reserve a table in a restaurant", "restaurant|name:name people|guests|party_size:small time:time? date:date?",
           ("book a table at {0} for {1} people[ at {2}][ on {3}]", "reserve a table for {1} at {0}[ at {2}][ on {3}]", "get us a table for {1} at {0}[ at {2}][ on {3}]",
            "I need a table at {0} for {1}[ at {2}][ on {3}]", "make a reservation at {0} for {1} people[ at {2}][ on {3}]"), "confirmation:code"),
    Family("book_hotel|reserve_room|find_hotel", "Book a hotel room", "city|location:city nights:small guests|people:small?",
           ("book a hotel in {0} for {1} nights[ for {2} people]", "find me a hotel in {0} for {1} nights[ and {2} guests]", "I need a room in {0} for {1} nights[ for {2} guests]",
            "reserve a hotel in {0}, {1} nights[, {2} people]", "get a room in {0} for {1} nights[ for {2} people]"), "hotel:name price:int"),
    Family("play_song|play_music|play", "Play a song", "song|title|track:phrase artist:fullname?",
           ("play {0}[ by {1}]", "play the song {0}[ by {1}]", "I want to hear {0}[ by {1}]", "put on {0}[ by {1}]", "start the song {0}[ by {1}]"), "status:word"),
    Family("create_event|add_event|schedule_meeting|calendar_add", "Add an event to the calendar", "title|name|summary:phrase date|day:date time:time?",
           ("add {0} to my calendar on {1}[ at {2}]", "schedule {0} on {1}[ at {2}]", "create an event {0} on {1}[ at {2}]", "put {0} in my calendar for {1}[ at {2}]",
            "plan {0} for {1}[ at {2}]", "schedule a meeting called {0} on {1}[ at {2}]"), "id:code"),
    Family("get_stock_price|stock_price|quote", "Current price of a stock", "symbol|ticker|company:name",
           ("what is the stock price of {0}", "how is the {0} stock doing", "price of {0} stock", "what does a share of {0} cost", "get the stock price for {0}", "look up the {0} share price"), "price:number"),
    Family("read_file|open_file|cat", "Read a file", "path|filename|file:file",
           ("read the file {0}", "show me {0}", "what is in {0}", "open {0}", "print the contents of {0}", "read {0}", "display {0}"), "content:phrase"),
    Family("write_file|save_file|create_file", "Write text to a file", "path|filename|file:file content|text:phrase",
           ("write {1} to {0}", "save {1} in {0}", "create the file {0} with the content {1}", "put {1} into {0}", "write a file {0} containing {1}"), "status:word"),
    Family("delete_file|remove_file|rm", "Delete a file", "path|filename|file:file",
           ("delete {0}", "remove the file {0}", "get rid of {0}", "erase {0}", "delete the file {0}"), "status:word"),
    Family("list_files|ls|list_directory", "List the files in a folder", "path|directory|folder:word",
           ("list the files in {0}", "what files are in {0}", "show the folder {0}", "which files does {0} contain", "list {0}"), ""),
    Family("turn_on_light|light_on|switch_on", "Turn on the light in a room", "room|place:word", ("turn on the light in the {0}", "switch on the {0} light", "light on in the {0}", "I need light in the {0}", "turn the {0} light on"), "status:word"),
    Family("set_temperature|set_thermostat|thermostat", "Set the temperature of a room", "temperature|degrees|value:small room:word?",
           ("set the temperature to {0}[ in the {1}]", "make it {0} degrees[ in the {1}]", "heat to {0} degrees[ in the {1}]", "set the thermostat to {0}[ in the {1}]", "change the temperature to {0} degrees[ in the {1}]"), "status:word"),
    Family("roll_dice|dice", "Roll dice", "sides:small count|number:small?", ("roll a die with {0} sides[ {1} times]", "roll a {0} sided die[ {1} times]", "throw a die with {0} sides[ {1} times]", "cast a {0} sided die[ {1} times]", "roll a d{0}[ {1} times]"), "roll:small"),
    Family("random_number|get_random_number|rand", "A random number between two bounds", "min|low|start:small max|high|end:int",
           ("give me a random number between {0} and {1}", "pick a number from {0} to {1}", "random number between {0} and {1}", "choose a number between {0} and {1}", "draw a number from {0} to {1}"), "number:small"),
    Family("get_definition|define|dictionary", "Definition of a word", "word|term:word", ("what does {0} mean", "define {0}", "what is the meaning of {0}", "look up the word {0}", "explain the word {0}", "give me a definition of {0}"), "definition:phrase"),
    Family("get_news|news|latest_news", "Latest news about a topic", "topic|subject:word", ("what is the news about {0}", "get the latest news on {0}", "news about {0}", "what's new about {0}", "show me news on {0}"), "headline:phrase"),
    Family("get_recipe|find_recipe|recipe", "Find a recipe for a dish", "dish|name:word", ("how do I cook {0}", "find a recipe for {0}", "give me a {0} recipe", "how is {0} made", "recipe for {0}"), "minutes:small"),
    Family("get_distance|distance", "Distance between two cities", "from|origin|start:city to|destination|end:city",
           ("how far is it from {0} to {1}", "what is the distance between {0} and {1}", "distance from {0} to {1}", "how many kilometers are between {0} and {1}", "how far is {1} from {0}"), "distance:int"),
    Family("track_package|track_order|get_order_status|track_shipment", "Status of a shipment", "id|order_id|tracking_number|number:code",
           ("where is my package {0}", "track the order {0}", "what is the status of {0}", "has {0} arrived", "track {0}", "where is order {0}"), "status:word"),
    Family("create_user|add_user|register_user", "Create a user account", "name|username:name email:email age:small?",
           ("create a user {0} with the email {1}[ and age {2}]", "add the user {0}, email {1}[, age {2}]", "register {0} with {1}[, aged {2}]", "make an account for {0} with the address {1}[ and the age {2}]", "sign up {0} using {1}[ with age {2}]"), "id:code"),
    Family("get_user|find_user|lookup_user", "Look up a user", "name|id|username:name", ("who is {0}", "find the user {0}", "look up {0}", "show me the user {0}", "get the account of {0}"), "email:email age:small"),
    Family("add_to_cart|buy|order_item|add_item", "Put an item in the shopping cart", "item|product|name:word quantity|count|amount:small",
           ("add {1} {0} to my cart", "buy {1} {0}", "put {1} {0} in the cart", "I want {1} {0}", "order {1} {0}"), "total:number"),
    Family("calculate_tip|tip", "Compute the tip of a bill", "amount|bill:number percent|percentage:small", ("what is a {1} percent tip on {0}", "compute a tip of {1}% on {0}", "how much is a {1}% tip for a bill of {0}", "tip {1} percent on {0}", "calculate {1} percent tip for {0}"), "tip:number"),
    Family("run_command|shell|bash|execute", "Run a shell command", "command|cmd:file", ("run the command {0}", "execute {0}", "run {0} in the shell", "start {0} in a terminal", "run {0}"), "output:phrase"),
    Family("get_population|population", "Population of a city", "city|place|location:city", ("how many people live in {0}", "what is the population of {0}", "population of {0}", "how big is {0}", "how many inhabitants does {0} have"), "population:int"),
)  # fmt: skip
HELD_OUT_FAMILIES = (
    Family("lookup_postcode|get_zip_code", "Find the postal code of a town", "town|municipality:city", ("what is the postal code of {0}", "find the zip code for {0}", "which postcode does {0} have", "give me the postcode of {0}"), "postcode:code"),
    Family("rent_bicycle|hire_bike", "Rent a bicycle", "station|pickup:city hours|rental_hours:small", ("rent a bicycle in {0} for {1} hours", "I need a bike at {0} for {1} hours", "hire a bike from {0} for {1} hours", "get me a bicycle in {0} for {1} hours"), "bike:code"),
    Family("water_plants|irrigate", "Water the plants in an area", "area|zone:word liters|amount:small", ("water the plants in the {0} with {1} liters", "give the {0} {1} liters of water", "use {1} liters to water the {0}", "irrigate the {0} with {1} liters"), "status:word"),
    Family("find_doctor|search_physician", "Find a doctor by specialty and city", "specialty|field:word city|area:city", ("find a {0} doctor in {1}", "I need a doctor for {0} in {1}", "which doctor in {1} treats {0}", "look for a {0} doctor in {1}"), "doctor:fullname"),
    Family("submit_expense|file_expense", "Submit an expense", "amount|sum:number purpose|reason:phrase", ("submit an expense of {0} for {1}", "file {0} dollars spent on {1}", "I spent {0} on {1}, submit it", "hand in an expense of {0} for {1}"), "claim:code"),
    Family("adjust_brightness|dim_screen", "Set the brightness of a screen", "percent|level:small screen|display:word", ("set the brightness of the {1} to {0} percent", "dim the {1} screen to {0}", "make the {1} screen {0} percent bright", "put the brightness of {1} at {0}"), "status:word"),
    Family("charge_card|bill_card", "Charge an amount to a customer's card", "customer|holder:name amount|total:number", ("charge {0} {1} dollars", "bill {1} to the card of {0}", "take {1} dollars from {0}", "charge the card of {0} with {1}"), "receipt:code"),
    Family("call_taxi|request_ride", "Order a taxi", "pickup|from:city dropoff|to:city passengers|riders:small?", ("call a taxi from {0} to {1}[ for {2} people]", "I need a ride from {0} to {1}[ for {2} passengers]", "order a cab from {0} to {1}[, {2} people]", "get me a taxi from {0} to {1}[ for {2}]"), "driver:name minutes:small"),
    Family("feed_pet|dispense_food", "Feed a pet", "pet|animal:name grams|portion:int", ("feed {0} {1} grams", "give {0} {1} grams of food", "give {1} grams to {0}", "feed my pet {0} with {1} grams"), "status:word"),
    Family("record_workout|log_exercise", "Record a workout", "exercise|activity:word repetitions|reps:small", ("record {1} repetitions of {0}", "log {1} {0}", "I did {1} {0}, record it", "write down {1} reps of {0}"), "calories:int"),
    Family("lookup_isbn|find_book", "Look up a book by its ISBN", "isbn|isbn_number:code", ("look up the book with ISBN {0}", "which book has the ISBN {0}", "find the book {0}", "what book is ISBN {0}"), "title:phrase"),
    Family("lock_door|secure_entrance", "Lock a door", "door|entrance:word delay|wait_seconds:small?", ("lock the {0} door[ after {1} seconds]", "lock the door {0}[ in {1} seconds]", "secure the {0} door[ after {1} seconds]", "please lock the {0}[ with a delay of {1}]"), "status:word"),
    Family("get_tide|tide_table", "Times of the tide at a harbor", "harbor|port:city date|day:date", ("when is the tide in {0} on {1}", "tide in {0} on {1}", "what is the tide at {0} on {1}", "look up the tide for {0} on {1}"), "high_tide:time"),
    Family("mix_paint|blend_colors", "Mix two colors of paint", "first_color|base:word second_color|accent:word", ("mix {0} paint with {1}", "what do I get from {0} and {1} paint", "blend {0} and {1}", "mix the colors {0} and {1}"), "color:word"),
    Family("grade_essay|score_essay", "Grade a student's essay", "student|author:name essay|title:phrase", ("grade the essay {1} by {0}", "score {0}'s essay {1}", "give a grade for {1} written by {0}", "grade {0} for the essay {1}"), "grade:small"),
)  # fmt: skip
SEGMENT = re.compile(r"\[([^\]]*)\]")


def parameters_of(family: Family, rng: random.Random) -> tuple[list[Parameter], list[str]]:
    """A family's parameters under one choice of names, and their kinds."""
    variant = rng.choice((0, 0, 1, 2))
    parameters, kinds = [], []
    for entry in family.parameters.split():
        names, kind = entry.rstrip("?").split(":")
        options = names.split("|")
        choices = tuple(kind.split("/")) if "/" in kind else ()
        json_type = "string" if choices else KINDS[kind][0]
        if json_type == "integer" and rng.random() < 0.2:
            json_type = "number"
        name = options[min(variant, len(options) - 1)]
        parameters.append(Parameter(name, json_type, not entry.endswith("?"), choices))
        kinds.append(kind)
    return parameters, kinds


def fill(frame: str, said: list[str | None]) -> str:
    """A frame with the given values; a segment about an absent one is left out."""

    def segment(match: re.Match[str]) -> str:
        used = [said[int(digit)] for digit in re.findall(r"\{(\d)\}", match[1])]
        return match[1] if None not in used else ""

    return SEGMENT.sub(segment, frame).format(*said)


def fitting(family: Family, values: Values) -> str:
    """A result as such a function may return it."""
    if not family.result or values.rng.random() < 0.3:
        return invent(values)
    keys = [entry.split(":") for entry in family.result.split()]
    return dumps({key: KINDS[kind][1](values) for key, kind in keys})


@dataclass(frozen=True, slots=True)
class Declared:
    """A family under one choice of names."""

    family: Family
    tool: Tool
    kinds: list[str]


def declare(family: Family, rng: random.Random) -> Declared:
    """One declaration of a family."""
    parameters, kinds = parameters_of(family, rng)
    description = rng.choice(family.descriptions.split("|")) if rng.random() < 0.85 else ""
    return Declared(family, Tool(rng.choice(family.names.split("|")), description, tuple(parameters)), kinds)


def ask(declared: Declared, values: Values, frame: str) -> tuple[str, Call]:
    """A clause for a declared function and the call it is due."""
    rng = values.rng
    said: list[str | None] = []
    arguments: dict[str, Value] = {}
    for i, (parameter, kind) in enumerate(zip(declared.tool.parameters, declared.kinds, strict=True)):
        if f"{{{i}}}" not in frame or (not parameter.required and rng.random() < 0.5):
            said.append(None)
            continue
        choices = [c for c in parameter.choices if c not in said]
        value = rng.choice(choices) if choices else KINDS[kind][1](values)
        arguments[parameter.name] = value
        quote = isinstance(value, str) and kind in ("phrase", "word") and "'" not in frame and rng.random() < 0.2
        said.append(f'"{value}"' if quote else str(value))
    return fill(frame, said), Call(declared.tool.name, arguments)


def family_for(values: Values, schemas: Split) -> Family:
    """A family of one side of the schema split."""
    return values.rng.choice(HELD_OUT_FAMILIES if schemas == "test" else FAMILIES)


def everyday(values: Values, schemas: Split) -> Exchange:
    """One request for one everyday function."""
    declared = declare(family_for(values, schemas), values.rng)
    clause, call = ask(declared, values, values.rng.choice(phrasings(declared.family.frames, values.split)))
    results = (fitting(declared.family, values),)
    answer, facts = report(results)
    return Exchange("everyday", asked(clause, values), answer, (call,), results, facts, (declared.tool,))


FOLLOW_UPS = ("and {v}?", "what about {v}?", "And for {v}?", "how about {v}", "And {v}", "now {v}", "the same for {v}", "What about {v}", "ok, and {v}?", "do the same with {v}")


def everyday_followed(values: Values, schemas: Split) -> list[Exchange]:
    """A request, and a second that only names the new value of its first parameter."""
    rng = values.rng
    family = rng.choice([f for f in (HELD_OUT_FAMILIES if schemas == "test" else FAMILIES) if ":" in f.parameters and "/" not in f.parameters.split()[0]])
    declared = declare(family, rng)
    clause, call = ask(declared, values, rng.choice(phrasings(family.frames, values.split)))
    first = declared.tool.parameters[0].name
    value = KINDS[declared.kinds[0]][1](values)
    out = []
    text = values.phrase(FOLLOW_UPS).format(v=value)
    for request, due in ((asked(clause, values), call), (text, Call(call.name, {**call.arguments, first: value}))):
        results = (fitting(family, values),)
        answer, facts = report(results)
        out.append(Exchange("everyday", request, answer, (due,), results, facts, (declared.tool,)))
    return out


def everyday_twice(values: Values, schemas: Split) -> Exchange:
    """Two requests in one turn, for the same function or for two."""
    rng = values.rng
    first = declare(family_for(values, schemas), rng)
    second = first if rng.random() < 0.6 else declare(family_for(values, schemas), rng)
    if second.tool.name == first.tool.name:
        second = first
    clauses, calls = [], []
    for declared in (first, second):
        clause, call = ask(declared, values, rng.choice(phrasings(declared.family.frames, values.split)))
        clauses.append(clause)
        calls.append(call)
    if second is first and len(first.tool.parameters) == 1 and rng.random() < 0.7:
        clauses[1] = rng.choice(("{}", "in {}", "for {}")).format(*calls[1].arguments.values()) if "city" in first.kinds else str(*calls[1].arguments.values())
    joiner = values.phrase((" and ", ", and also ", " and then ", "; also "))
    results = tuple(fitting(declared.family, values) for declared in (first, second))
    answer, facts = report(results)
    tools = {declared.tool.name: declared.tool for declared in (first, second)}
    return Exchange("parallel", asked(clauses[0] + joiner + clauses[1], values), answer, tuple(calls), results, facts, tuple(tools.values()))
