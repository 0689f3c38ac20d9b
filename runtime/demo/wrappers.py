"""What people put around a request: greetings, ways to ask, endings and remarks, as alternations."""

from __future__ import annotations

from sirocco.runtime.demo.phrasing import shared
from sirocco.runtime.demo.values import Values

__all__ = ["polite", "question", "remark"]

OPENERS = (
    "<can|could|will|would> you <please |kindly |just |now |quickly |maybe |also |perhaps |then ||||>",
    "<I need|I want|I'd like|I would like|I'm asking|I ask|I expect|I beg> you to <please |just |now |quickly |||>",
    "<please|kindly|now|just|quickly|next|first|then|now please|please now|so please|please just> ",
    "<please|next|first|then|now|right|ok|hey|hi|so|listen|friend|quick|well>, ",
    "<I have|I need|I want|we need|we have|I'd like|we want|I am going|we are trying|it is time|I was told|"
    "your task is|your job is|the task is|my wish is|the plan is|remember|don't forget|make sure|be sure|try|I plan|"
    "I hope|it would be nice|it would help me|the user wants|my friend asks you|the next thing is|you are here|"
    "are you able|is it possible|you were asked|all I want is|my boss told me|today I have|I forgot|we agreed> to ",
    "<let's|let us|help me|help us|go and|go ahead and|be so kind and|do me a favor and|be nice and|take a moment and|"
    "you should|you may|you can|we should|we must|I must|I should|you must|you have to|can we|could we|may I ask you: |"
    "please go and|somebody should|I may|I shall|you will|come on and|hurry and|help me to> ",
    "<task|request|order|to do|my request|my wish|a job for you|instruction|command|question|next task|"
    "here is a task|this is what I need|do this|please do this|what I need>: ",
)  # fmt: skip
GREETINGS = (
    "<Hi|Hello|Hey|Good day|Good morning|Good evening|Dear Sirocco|Sirocco|Dear model|Hi there|Hello there|Hey there|"
    "Hello Sirocco|Hi Sirocco|Morning|Greetings|Welcome back><, |. |! >",
    "<OK|Okay|Alright|Well|So|Right|Great|Thanks|Thank you|Listen|Look|Hm|Um|Oh|Ah|Sorry|Excuse me|Yes|Fine|Again|"
    "Now then|By the way|As said|One more thing|To begin with|No|Good|Nice|Perfect|Very well|Quickly|Please|And|But>"
    "<, |. >",
)  # fmt: skip
ENDINGS = (
    "<, |, |, | ><please|thanks|please|thank you|if you can|if possible|if you like|right now|now|quickly|"
    "will you|would you|right away|at once|for me|for us|when you can|as soon as you can|"
    "without delay|as I said|if you please|this time|once more|once again|in one go|like before|as usual>"
    "<.|.|!||>",
    ", <dear|friend|my friend|Sirocco|soon|for my friend><.|.|!||>",
    "<. |! ><Thanks|Thank you|That is all|I need it|It is urgent|Be quick|Please hurry|Much appreciated|I need this|"
    "Thanks a lot|Many thanks|Hurry up|Good luck|Please|Do it now|No hurry|Cheers|I will wait|That would be nice|"
    "It matters|Bye|See you|Well done so far|Do it well|I count on you><.|!>",
    "<.|.|.|.|!|?|...|>",
)  # fmt: skip
ADJECTIVES = "red|blue|old|new|big|small|nice|cold|warm|broken|lost|empty|quiet|loud|cheap|heavy|clean|dark|ready|gone"
REMARKS = (
    "<I am|I'm|We are|My boss is|My friend is|The team is|Everybody is|My wife is|My son is|The client is> "
    "<in a hurry|waiting|late|tired|new here|on the train|at home|busy|hungry|lost|happy|bored|not sure|in a meeting>.",
    "<It|This|That> is <for work|for a friend|important|urgent|for later|fun|hard|for my son|a test|a long story>.",
    "<I|We> <forgot|lost|sold|found|saw|need|have|like|left|broke> <the|my|a|our> {w}.",
    f"<The|My|Our|That|His|Her> {{w}} <is|was|looks|seems|will be|can be> <{ADJECTIVES}>.",
    "<My computer is slow|It is raining here|No rush|Take your time|I trust you|Nobody else can|My hands are full|"
    "That would be great|I have little time|You did well before|I hope that works|I forgot how|I love this|"
    "I did this before|We talked about it|It has to be right|It matters to me|Do it well|The weather is bad|"
    "You know how|I always do that|This is my first time|I cannot do it myself|My phone is broken>.",
)
QUESTION_OPENERS = (
    "<hey|so|hello|hi|hi!|please|well|ok|okay|now|and|but|say|hmm|um|Sirocco|tell me|sorry|sorry, but|excuse me|"
    "just one thing|I wonder|listen|quick|one thing|by the way|also|then|next|right|good|thanks|yes|no|again>"
    "<, |, |, | ... >",
    "<quick question|please tell me|one question|I need to know|my question is|do you know|let me ask|a question|"
    "can you tell me|tell me this|my question|I ask you|question|answer me|what I want to know|here is a question|"
    "just tell me|a quick one|next question|another question|last question|help me out|riddle me this>: ",
)  # fmt: skip
QUESTION_ENDINGS = ("<?|?|?|?|?||>", "< please|, please|, thanks|, do you know|, Sirocco| now| again|, friend>?",
                    "?< Thanks| Thank you| Please| I wonder| I need to know| Quickly| Tell me><.|!>")  # fmt: skip


def remark(values: Values) -> str:
    """A sentence that has nothing to do with the request."""
    return shared(values, REMARKS).format(w=values.word())


def raised(text: str) -> str:
    """The text with a capital first letter."""
    return text[0].upper() + text[1:]


def beside(text: str, values: Values, share: float) -> str:
    """The text, now and then with a remark before or after it."""
    if values.rng.random() >= share:
        return text
    aside = remark(values)
    return f"{aside} {text}" if values.rng.random() < 0.5 or text[-1] not in ".!?" else f"{text} {aside}"


def polite(values: Values, clause: str) -> str:
    """An imperative clause as a request, opened and ended in one of many ways."""
    rng = values.rng
    personal = clause.startswith(("I ", "I'", "do you", "can ", "could ", "we ", "please ", "who ", "would ", "will "))
    opener = "" if personal or rng.random() < 0.4 else shared(values, OPENERS)
    greeting = shared(values, GREETINGS) if rng.random() < 0.2 else ""
    ending = shared(values, ENDINGS) if rng.random() < 0.55 else rng.choice(("", "."))
    text = f"{greeting}{opener}{clause}{ending}"
    return beside(text if rng.random() < 0.15 else raised(text), values, 0.12)


def question(values: Values, clause: str) -> str:
    """A clause that asks, as people write a question."""
    rng = values.rng
    opener = shared(values, QUESTION_OPENERS) if rng.random() < 0.3 else ""
    greeting = shared(values, GREETINGS) if not opener and rng.random() < 0.12 else ""
    text = f"{greeting}{opener}{clause}{shared(values, QUESTION_ENDINGS)}"
    return beside(text if rng.random() < 0.15 else raised(text), values, 0.08)
