"""The little world that the model knows: facts, small talk, and how it declines."""

from __future__ import annotations

from dataclasses import dataclass

from sirocco.runtime.demo.compute import asked
from sirocco.runtime.demo.exchange import Exchange
from sirocco.runtime.demo.tools import Tool
from sirocco.runtime.demo.values import Value, Values, phrasings

__all__ = ["RELATIONS", "TALK", "Relation", "decline", "fact", "talk"]


@dataclass(frozen=True, slots=True)
class Relation:
    """Facts of one kind: subjects and objects, the questions about them and the answer."""

    questions: tuple[str, ...]
    answer: str
    pairs: tuple[tuple[str, str], ...]


def table(text: str) -> tuple[tuple[str, str], ...]:
    """`subject=object` entries separated by commas."""
    entries = (entry.strip().split("=") for entry in text.replace("\n", " ").split(","))
    return tuple((subject, value) for subject, value in entries)


RELATIONS = (
    Relation(("what is the capital of {0}", "which city is the capital of {0}", "capital of {0}", "name the capital of {0}", "what's the capital city of {0}",
              "do you know the capital of {0}", "tell me the capital of {0}", "what city is {0}'s capital", "{0}'s capital is which city"),
             "The capital of {0} is {1}.",
             table("""France=Paris, Germany=Berlin, Italy=Rome, Spain=Madrid, Portugal=Lisbon, Austria=Vienna, Poland=Warsaw, Greece=Athens,
Norway=Oslo, Sweden=Stockholm, Finland=Helsinki, Denmark=Copenhagen, Ireland=Dublin, Hungary=Budapest, Belgium=Brussels,
Switzerland=Bern, Japan=Tokyo, China=Beijing, India=New Delhi, Egypt=Cairo, Kenya=Nairobi, Canada=Ottawa, Mexico=Mexico City,
Brazil=Brasilia, Argentina=Buenos Aires, Peru=Lima, Chile=Santiago, Cuba=Havana, Australia=Canberra, Russia=Moscow, Turkey=Ankara,
Iceland=Reykjavik, England=London, Scotland=Edinburgh, Ukraine=Kyiv, Romania=Bucharest, Morocco=Rabat, Ghana=Accra, Iran=Tehran,
Thailand=Bangkok, the United States=Washington, South Korea=Seoul, the Netherlands=Amsterdam""")),
    Relation(("what color is {0}", "which color does {0} have", "what is the color of {0}", "tell me the color of {0}", "do you know what color {0} is", "color of {0}"),
             "The color of {0} is {1}.",
             table("""the sky=blue, grass=green, snow=white, coal=black, blood=red, a lemon=yellow, a carrot=orange, milk=white, a ripe banana=yellow,
an emerald=green, a ruby=red, the night sky=black, a tomato=red, chocolate=brown, an elephant=gray, a flamingo=pink, a raven=black, the sea=blue, a violet=purple, gold=yellow""")),
    Relation(("what sound does {0} make", "how does {0} sound", "what does {0} say", "which sound does {0} make", "what noise does {0} make", "tell me the sound of {0}"),
             "It goes {1}.",
             table("a dog=woof, a cat=meow, a cow=moo, a sheep=baa, a duck=quack, a pig=oink, a rooster=cock-a-doodle-doo, an owl=hoot, a bee=buzz, a horse=neigh, a lion=roar, a frog=ribbit, a snake=hiss, a mouse=squeak, a crow=caw")),
    Relation(("how many legs does {0} have", "how many legs has {0}", "number of legs of {0}", "tell me how many legs {0} has", "{0} has how many legs", "on how many legs does {0} walk"),
             "It has {1} legs.",
             table("a dog=four, a cat=four, a spider=eight, an ant=six, a bird=two, a fly=six, a horse=four, a human=two, a snake=no, a fish=no, a bee=six, a cow=four, a scorpion=eight, a crab=ten, a chicken=two")),
    Relation(("what is a baby {0} called", "what do you call a young {0}", "name for a baby {0}", "what is the young of a {0} called", "how is a baby {0} called", "what's a baby {0}"),
             "A baby {0} is called a {1}.",
             table("dog=puppy, cat=kitten, cow=calf, horse=foal, sheep=lamb, goat=kid, pig=piglet, lion=cub, deer=fawn, duck=duckling, goose=gosling, kangaroo=joey, frog=tadpole, chicken=chick, swan=cygnet")),
    Relation(("what day comes after {0}", "which day follows {0}", "what is the day after {0}", "after {0} comes which day", "tell me the day after {0}", "what day is next after {0}"),
             "The day after {0} is {1}.",
             table("Monday=Tuesday, Tuesday=Wednesday, Wednesday=Thursday, Thursday=Friday, Friday=Saturday, Saturday=Sunday, Sunday=Monday")),
    Relation(("what day comes before {0}", "which day is before {0}", "what is the day before {0}", "tell me which day comes before {0}", "what day precedes {0}"),
             "The day before {0} is {1}.",
             table("Monday=Sunday, Tuesday=Monday, Wednesday=Tuesday, Thursday=Wednesday, Friday=Thursday, Saturday=Friday, Sunday=Saturday")),
    Relation(("what month comes after {0}", "which month follows {0}", "what is the month after {0}", "tell me the month after {0}", "what month is next after {0}"),
             "The month after {0} is {1}.",
             table("January=February, February=March, March=April, April=May, May=June, June=July, July=August, August=September, September=October, October=November, November=December, December=January")),
    Relation(("how many days does {0} have", "how many days are in {0}", "number of days in {0}", "tell me how many days {0} has", "{0} has how many days"),
             "{0} has {1} days.",
             table("January=31, March=31, April=30, May=31, June=30, July=31, August=31, September=30, October=31, November=30, December=31, a leap year=366, a year=365")),
    Relation(("what is the opposite of {0}", "opposite of {0}", "what's the opposite of {0}", "name the opposite of {0}", "which word is the opposite of {0}", "tell me the opposite of {0}"),
             "The opposite of {0} is {1}.",
             table("hot=cold, big=small, up=down, left=right, day=night, black=white, fast=slow, old=young, happy=sad, rich=poor, open=closed, full=empty, hard=soft, light=dark, early=late, high=low, wet=dry, good=bad, strong=weak, true=false, long=short, near=far, loud=quiet, first=last")),
    Relation(("what language do people speak in {0}", "which language is spoken in {0}", "what is the language of {0}", "what do they speak in {0}", "language of {0}", "tell me the language of {0}"),
             "People in {0} speak {1}.",
             table("France=French, Germany=German, Italy=Italian, Spain=Spanish, Portugal=Portuguese, Poland=Polish, Greece=Greek, Norway=Norwegian, Sweden=Swedish, Japan=Japanese, China=Chinese, Brazil=Portuguese, Mexico=Spanish, England=English, Turkey=Turkish, Russia=Russian, Austria=German, Hungary=Hungarian, Finland=Finnish, Denmark=Danish")),
    Relation(("what do {0} eat", "what is the food of {0}", "tell me what {0} eat", "what do {0} like to eat", "which food do {0} eat"),
             "They eat {1}.",
             table("cows=grass, rabbits=carrots, monkeys=bananas, cats=fish, pandas=bamboo, bears=honey, squirrels=nuts, mice=cheese, owls=mice, horses=hay, koalas=leaves, frogs=flies")),
    Relation(("where does {0} live", "what is the home of {0}", "in what place does {0} live", "where is the home of {0}", "tell me where {0} lives"),
             "It lives in {1}.",
             table("a fish=the water, a bird=a nest, a bee=a hive, a bear=a cave, a fox=a den, a camel=the desert, a penguin=the cold south, a lion=the savanna, a monkey=the jungle, a spider=a web, a king=a castle, a horse=a stable")),
    Relation(("who {0}", "do you know who {0}", "tell me who {0}", "can you say who {0}", "which person {0}"),
             "It was {1}.",
             table("""wrote Hamlet=William Shakespeare, painted the Mona Lisa=Leonardo da Vinci, wrote Don Quixote=Miguel de Cervantes, discovered gravity=Isaac Newton,
invented the telephone=Alexander Graham Bell, walked first on the moon=Neil Armstrong, wrote the Odyssey=Homer, composed the Moonlight Sonata=Ludwig van Beethoven,
discovered penicillin=Alexander Fleming, developed relativity=Albert Einstein, wrote Faust=Johann Wolfgang von Goethe, discovered radium=Marie Curie, wrote the first program=Ada Lovelace,
invented the light bulb=Thomas Edison, painted Guernica=Pablo Picasso""")),
    Relation(("what is the {0}", "which one is the {0}", "name the {0}", "do you know the {0}", "tell me the {0}", "what's the {0}"),
             "The {0} is {1}.",
             table("""largest planet=Jupiter, smallest planet=Mercury, largest ocean=the Pacific, highest mountain=Mount Everest, fastest land animal=the cheetah,
largest animal=the blue whale, tallest animal=the giraffe, red planet=Mars, planet closest to the sun=Mercury, largest country=Russia, smallest country=Vatican City,
largest desert=Antarctica, star of our solar system=the sun, hardest gem=the diamond, king of the animals=the lion, first letter of the alphabet=A,
last letter of the alphabet=Z, first month of the year=January, last month of the year=December, coldest season=winter, warmest season=summer, chemical symbol of water=H2O,
chemical symbol of gold=Au, chemical symbol of oxygen=O, freezing point of water=zero degrees Celsius, boiling point of water=100 degrees Celsius, currency of Japan=the yen,
currency of the United States=the dollar, currency of England=the pound, currency of Germany=the euro, currency of India=the rupee, currency of Switzerland=the franc""")),
    Relation(("how many {0}", "do you know how many {0}", "tell me how many {0}", "can you say how many {0}", "what is the answer: how many {0}"),
             "There are {1}.",
             table("""days are in a week=7, months are in a year=12, hours are in a day=24, minutes are in an hour=60, seconds are in a minute=60, letters are in the alphabet=26,
continents are there=7, planets are in the solar system=8, sides does a triangle have=3, sides does a square have=4, colors are in the rainbow=7, wheels are on a car=4,
wheels are on a bicycle=2, fingers are on a hand=5, players are in a football team=11, strings are on a violin=4, strings are on a guitar=6, eggs are in a dozen=12, bits are in a byte=8,
cents are in a dollar=100, years are in a century=100, meters are in a kilometer=1000""")),
)  # fmt: skip
ME = "I am the Sirocco demo model"
TALK: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("hello", ("hello", "hi", "hey", "hello there", "hi there", "hey there", "greetings", "hello!", "hi!", "howdy", "hiya"), "Hello! I am the Sirocco demo model. What can I do for you?"),
    ("morning", ("good morning", "good morning to you", "morning", "good morning!", "a good morning", "morning!"), "Good morning! What can I do for you?"),
    ("evening", ("good evening", "good evening to you", "evening", "good evening!", "a good evening"), "Good evening! What can I do for you?"),
    ("afternoon", ("good afternoon", "good afternoon to you", "good afternoon!", "a good afternoon"), "Good afternoon! What can I do for you?"),
    ("how", ("how are you", "how are you doing", "how do you do", "how's it going", "how is it going", "are you well", "how are things", "how are you today", "how do you feel"), "I am well, thank you. I am only a small model, so little can go wrong."),
    ("who", ("who are you", "what are you", "tell me about yourself", "introduce yourself", "what is this", "who am I talking to", "describe yourself", "what kind of model are you", "what model are you", "say something about yourself"), f"{ME}: a few million parameters, trained to chat a little and to call tools."),
    ("name", ("what is your name", "what's your name", "do you have a name", "how are you called", "your name?", "tell me your name", "what should I call you", "may I know your name"), f"{ME}. You can call me Sirocco."),
    ("size", ("how big are you", "how many parameters do you have", "what is your size", "are you a large model", "how large are you", "how small are you", "are you a big model"), "I have about four million parameters. That is tiny for a language model."),
    ("maker", ("who made you", "who created you", "who built you", "where do you come from", "who trained you", "who is your maker", "who developed you"), "I was trained by a script in the Sirocco repository, on text that the script generates."),
    ("data", ("what were you trained on", "what is your training data", "how were you trained", "what data did you learn from", "on what text were you trained", "where did you learn"), "I was trained only on text generated by a script: small talk, a few facts and many tool calls."),
    ("can", ("what can you do", "what are you good at", "help", "how can you help me", "what are your skills", "can you help me", "what do you know", "what can I ask you", "I need help"), "I can chat a little, answer simple facts, copy from a text, write small JSON and call the tools you declare."),
    ("cannot", ("what can't you do", "what are your limits", "what are you bad at", "are you reliable", "can I trust you", "do you make mistakes", "what are your weaknesses"), "I am a demo. I know very little, I make mistakes and I can't reason far. Load a larger model for real work."),
    ("human", ("are you human", "are you a person", "are you a robot", "are you real", "are you alive", "are you an AI", "are you a machine"), "I am not a person. I am a small language model."),
    ("thanks", ("thanks", "thank you", "thank you very much", "thanks a lot", "many thanks", "thanks!", "great, thanks", "cheers", "thank you so much", "thx"), "You are welcome!"),
    ("bye", ("bye", "goodbye", "see you", "good night", "bye bye", "see you later", "farewell", "until next time", "I have to go", "take care"), "Goodbye!"),
    ("joke", ("tell me a joke", "do you know a joke", "make me laugh", "say something funny", "a joke please", "I want to hear a joke", "tell a joke"), "Why did the small model cross the road? It had only seen chickens do it."),
    ("sirocco", ("what is Sirocco", "what's Sirocco", "tell me about Sirocco", "explain Sirocco", "what does Sirocco do", "what does the name Sirocco mean", "describe Sirocco"), "Sirocco is an inference engine and agent runtime for language models. A sirocco is also a warm desert wind."),
    ("age", ("how old are you", "when were you born", "what is your age", "what's your age", "are you old", "when were you made"), "I have no age. I am as old as my training run."),
    ("where", ("where are you", "where do you live", "where do you run", "where is your home", "are you in the cloud", "where are you running"), "I run on the machine that runs Sirocco, perhaps your laptop."),
    ("feelings", ("do you have feelings", "are you happy", "are you sad", "do you feel anything", "can you feel", "do you like me", "are you lonely"), "I have no feelings. I only predict the next token."),
    ("sleep", ("do you sleep", "are you tired", "do you dream", "do you need sleep", "do you ever rest"), "I don't sleep. I wait for the next request."),
    ("food", ("what do you eat", "are you hungry", "do you like pizza", "do you eat", "do you drink coffee", "what is your favorite food"), "I don't eat. I live on tokens."),
    ("color", ("what is your favorite color", "which color do you like", "do you have a favorite color", "what's your favorite color", "your favorite color?"), "I like the color of desert sand."),
    ("good", ("you are great", "well done", "good job", "nice", "very good", "good bot", "you are smart", "excellent", "I like you", "that is great"), "Thank you, that is kind."),
    ("bad", ("you are stupid", "that is wrong", "you are wrong", "bad bot", "that's not right", "you made a mistake", "that was wrong"), "I am sorry. I am only a small demo model and make mistakes."),
    ("ok", ("ok", "okay", "I see", "all right", "fine", "yes", "got it", "sure", "understood"), "Good. What else can I do for you?"),
    ("no", ("no", "no thanks", "nothing", "never mind", "nope", "not now", "no, thank you"), "All right. Tell me when you need something."),
    ("sorry", ("sorry", "I am sorry", "excuse me", "my bad", "pardon me", "I apologize"), "No problem at all."),
    ("tools", ("what is a tool call", "how do tools work", "what are tools", "can you call tools", "can you use tools", "how do I give you tools", "explain tool calls"), "Declare functions with your request. I answer with a call, you send me the result, and I tell you what it says."),
    ("poem", ("write me a poem", "write a poem", "can you write a poem", "make a poem", "a poem please", "tell me a poem"), "Warm wind over sand, a small model learns to speak: four million numbers."),
    ("story", ("tell me a story", "write a story", "do you know a story", "a story please", "I want a story", "make up a story"), "A small wind wished to be a storm. It moved one grain of sand, and that was enough for a day."),
    ("test", ("test", "testing", "this is a test", "just testing", "are you there", "is this working", "ping", "can you hear me"), "I am here and working."),
    ("bored", ("I am bored", "I'm bored", "what should I do", "I have nothing to do", "entertain me"), "Try to give me a tool and ask me to call it."),
    ("sad", ("I am sad", "I feel bad", "I'm not happy", "I am unhappy", "I had a bad day"), "I am sorry to hear that. I hope your day gets better."),
    ("happy", ("I am happy", "I feel good", "I'm happy today", "I had a good day", "what a nice day"), "I am glad to hear that."),
    ("language", ("do you speak French", "do you speak German", "which languages do you speak", "can you speak Spanish", "do you know other languages", "what languages do you know"), "I only speak a little English."),
    ("meaning", ("what is the meaning of life", "why are we here", "what is the sense of life", "why do we live", "what's the meaning of life"), "I don't know. I am too small for that question."),
)  # fmt: skip
UNKNOWN = (
    "what is the capital of {country}", "who won the match in {city}", "how old is {name}", "what is the phone number of {name}", "who wrote the book about the {word}",
    "when was the battle of {country}", "what does {name} think about {word}", "who is the president of {country}", "where does {name} live", "what happened in {city} yesterday",
    "why is the {word} so famous", "who invented the {pseudo}", "what is a {pseudo}", "how tall is {name}", "what is the best restaurant in {city}",
    "when does the train leave {city}", "who is {name}", "explain {pseudo}", "what color is the {pseudo}", "how many people live in {country}",
    "what is {name} doing now", "who painted the {word} of {city}", "what is the history of {country}", "how do I build a {word}", "write an essay about the {word}",
    "give me advice about my {word}", "how much does a {pseudo} cost", "is {name} married", "what is the price of the {word} in {city}", "summarize the news from {city}",
    "what is the capital of {country}", "when was {name} born", "who founded {country}", "what is the email of {name}", "how far is {city} from {country}",
    "what is the capital city of {country}", "how heavy is a {pseudo}", "what is the shoe size of {name}", "who owns the {word}", "why is {name} angry",
    "which language is spoken in {country}", "what does a {pseudo} eat", "when will {city} be finished", "how many legs does a {pseudo} have", "who painted the {word}",
    "what will happen in {country}", "is {city} bigger than {country}", "how many songs did {name} write", "do you know {name}", "what sound does a {pseudo} make",
    "who discovered {pseudo}", "where can I buy a {word}", "what is the weight of a {pseudo}", "how does a {pseudo} work", "when did {name} visit {city}",
    "what is the name of my {word}", "who is my boss", "what did I do yesterday", "what is the opposite of {pseudo}", "where is my {word}",
)  # fmt: skip
DONT_KNOW = "I don't know that. I am a small demo model and know only a few facts."
ANSWERABLE = Tool("population_user_definition_define_dictionary_news_search_web_google_stock_quote_recipe", "", ())
NO_TOOL = "I can't do that: I have no tool for it."


def spoken(text: str, values: Values) -> str:
    """A phrase of small talk with its capital and end mark as people vary them."""
    rng = values.rng
    draw = rng.random()
    if draw < 0.3:
        return text
    text = text[0].upper() + text[1:]
    if text[-1] in "!?":
        return text
    question = text.split()[0].lower() in ("what", "what's", "how", "how's", "who", "where", "when", "which", "are", "do", "can", "is", "why", "may")
    return text + ("?" if question else rng.choice((".", "!", "")) if draw < 0.9 else "")


def talk(values: Values) -> Exchange:
    """A round of small talk."""
    _, options, answer = values.rng.choice(TALK)
    return Exchange("talk", spoken(values.phrase(options), values), answer)


def fact(values: Values) -> Exchange:
    """A question about the little world."""
    weights = [len(relation.pairs) for relation in RELATIONS]
    relation = values.rng.choices(RELATIONS, weights)[0]
    subject, value = values.rng.choice(relation.pairs)
    question = values.rng.choice(phrasings(relation.questions, values.split)).format(subject)
    answer = relation.answer.format(subject, value)
    return Exchange("fact", asked(question, values), answer[0].upper() + answer[1:], facts=(value,))


def decline(values: Values) -> Exchange:
    """A question that the model has no answer to."""
    fields: dict[str, Value] = {"country": values.pseudo().capitalize(), "city": values.city(), "name": values.full_name(), "word": values.word(), "pseudo": values.pseudo()}
    return Exchange("decline", asked(values.phrase(UNKNOWN).format(**fields), values), DONT_KNOW, absent=(ANSWERABLE,))
