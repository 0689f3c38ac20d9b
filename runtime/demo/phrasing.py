"""The ways to say one thing: alternations, other openings of a sentence, and which wordings training never sees."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

    from sirocco.runtime.demo.values import Values

__all__ = ["expanded", "has_unseen", "shared", "unseen", "worded"]

CHOICE = re.compile(r"<([^<>]*)>")
TELL = (
    "tell me |let me know |say |can you tell me |could you tell me |do you know |I want to know |I'd like to know |"
    "I need to know |find out |I wonder |please tell me |will you tell me |would you tell me "
)
THE = (
    "what is the |what's the |tell me the |give me the |show me the |find the |find out the |I need the |I want the |"
    "look up the |let me know the |can you tell me the |could you give me the |I'd like to know the |get me the |"
    "do you know the |I want to know the |please give me the |say the |what would be the |fetch the "
)
IS = (
    "what is |what's |tell me |give me |how much is |I want to know |do you know |can you tell me |work out |find |"
    "let me know |could you tell me |what would be |I need to know |I'd like to know |what do you get for |"
    "please tell me |say what is |find out "
)
LEADS: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (lead, tuple(options.split("|")))
    for lead, options in (
        ("what is the ", THE),
        ("what's the ", THE),
        ("what is ", IS),
        ("what's ", IS),
        ("how many ", "how many |" + "|".join(f"{tell}how many " for tell in TELL.split("|"))),
        ("how much ", "how much |" + "|".join(f"{tell}how much " for tell in TELL.split("|"))),
        ("how often ", "how often |" + "|".join(f"{tell}how often " for tell in TELL.split("|"))),
        ("tell me ", "tell me |can you tell me |could you tell me |please tell me |let me know |I want to know |say "),
        ("give me ", "give me |get me |I need |I want |I'd like |hand me |let me have |find me |could I have |"
                     "can I get "),
        ("get the ", "get the |fetch the |find the |give me the |show me the |bring me the |pull up the |look up the |"
         "retrieve the |I need the |check the "),
        ("get ", "get |fetch |retrieve |find |give me |show me |pull up |look up "),
        ("find ", "find |look for |search for |locate |look up |get |try to find "),
        ("look up ", "look up |find |search for |check |get |bring up "),
        ("show me ", "show me |give me |let me see |display |bring up |get me |I want to see |present |list for me "),
        ("show ", "show |display |let me see |bring up |give me |show me |present "),
        ("search ", "search |look |go and search |do a search |make a search "),
        ("book ", "book |reserve |get |book me |reserve me |arrange |order "),
        ("reserve ", "reserve |book |get |arrange |keep |save "),
        ("create ", "create |make |set up |prepare "),
        ("add ", "add |put |include |please add "),
        ("set a", "set a|start a|make a|create a|begin a|give me a|I need a|put on a"),
        ("send ", "send |write |deliver |mail |shoot |fire off |post "),
        ("delete ", "delete |remove |erase |wipe |drop |throw away |get rid of |discard "),
        ("remove ", "remove |delete |erase |take away |get rid of |clear |discard "),
        ("compute ", "compute |calculate |work out |figure out |find |determine |evaluate |give me "),
        ("calculate ", "calculate |compute |work out |figure out |find |determine |evaluate |solve "),
        ("convert ", "convert |change |turn |transform "),
        ("count ", "count |tally |count up |go and count "),
        ("schedule ", "schedule |plan |arrange |set up |fix |put down "),
        ("play ", "play |put on |start |play me |begin |I want to hear |let me hear "),
        ("write ", "write |print |put |type "),
        ("turn on ", "turn on |switch on |put on |power on |light up |activate "),
        ("buy ", "buy |order |get |purchase |get me |pick up "),
        ("open ", "open |read |show me |display |bring up |load "),
        ("read ", "read |open |show me |display |print |read me |load "),
        ("run ", "run |execute |start |launch |perform "),
        ("track ", "track |trace |follow |locate |check on "),
        ("I need ", "I need |I want |I'd like |get me |I would like |we need |please get me |find me |I am after "),
        ("I want ", "I want |I need |I'd like |get me |I would like |we want |please get me "),
        ("add up ", "add up |sum up |total |sum |add together "),
        ("tell ", "tell |please tell |go and tell "),
        ("remind me ", "remind me |please remind me |you must remind me |alert me |notify me |ping me "),
        ("set the ", "set the |adjust the |change the |bring the |put the |turn the |fix the |move the |regulate the "),
        ("set ", "set |adjust |change |put "),
        ("make it ", "make it |turn it to |keep it at |bring it to |get it to |have it at |hold it at "),
        ("heat to ", "heat to |warm up to |heat it to |bring it up to |heat everything to |get up to |warm it to "),
        ("sort ", "sort |order |arrange |put in order |please sort |line up "),
        ("join ", "join |concatenate |glue |merge |combine |connect |link "),
        ("concatenate ", "concatenate |join |combine |merge |link |attach |glue "),
        ("append ", "append |attach |add |glue "),
        ("glue ", "glue |stick |paste "),
        ("put ", "put |place |please put "),
        ("register ", "register |sign up |enrol |enlist "),
        ("start ", "start |set |run |begin |launch "),
        ("erase ", "erase |wipe |delete |remove |clear "),
        ("get rid of ", "get rid of |dispose of |do away with |throw away |clear away |trash |kill "),
        ("throw ", "throw |roll |toss |cast "),
        ("cast ", "cast |roll |throw |toss "),
        ("roll ", "roll |throw |cast |toss "),
        ("change ", "change |convert |turn |modify "),
        ("wake me ", "wake me |wake me up |get me up |ring me |call me |alert me |buzz me "),
        ("count down ", "count down |run down |measure |time |clock |tick off "),
        ("lowercase ", "lowercase |uncapitalize |please lowercase "),
        ("arrange ", "arrange |order |sort |line up |organize "),
        ("order ", "order |please order |go and order |sequence |also order |simply order "),
        ("sign up ", "sign up |register |enrol |subscribe |enter |add "),
        ("who ", "who |tell me who |do you know who |I want to know who |can you say who |say who "),
        ("where ", "where |tell me where |do you know where |I want to know where |can you say where "),
        ("how ", "how |tell me how |do you know how |I want to know how |can you say how "),
        ("which ", "which |tell me which |do you know which |I want to know which |can you say which "),
    )
)  # fmt: skip


def unseen(wording: str) -> bool:
    """Whether training never uses a wording: one in seven, decided by the wording alone."""
    return zlib.crc32(f"wording {wording}".encode()) % 7 == 2


def expanded(frame: str, rng: random.Random) -> str:
    """A frame with one option of each `<a|b|c>`, innermost first."""
    while CHOICE.search(frame):
        frame = CHOICE.sub(lambda match: rng.choice(match[1].split("|")), frame)
    return frame


def varied(frame: str, rng: random.Random) -> str:
    """One wording of a frame: its options chosen, and often another opening that means the same."""
    text = expanded(frame, rng)
    if rng.random() < 0.7:
        for lead, options in LEADS:
            if text.startswith(lead) and not text.startswith(("to ", "you "), len(lead)):
                return rng.choice(options) + text[len(lead) :]
    return text


@cache
def has_unseen(frames: tuple[str, ...]) -> bool:
    """Whether frames without choices have a wording that training never uses."""

    def wordings(frame: str) -> list[str]:
        found = [[frame, *(o + frame[len(lead) :] for o in many)] for lead, many in LEADS if frame.startswith(lead)]
        return found[0] if found else [frame]

    return any(unseen(text) for frame in frames for text in wordings(frame))


def worded(values: Values, frames: Sequence[str], more: Sequence[str] = (), *, novel: bool = False) -> str:
    """A wording of one of the frames that the split may use; training and test share none.

    Training also uses `more` frames. `novel` frames belong to functions that training never sees, so all of
    their wordings are unseen.
    """
    if values.split == "train":
        frames = (*frames, *more)
    for _ in range(500):
        text = varied(values.rng.choice(frames), values.rng)
        if novel or unseen(text) == (values.split == "test"):
            return text
    raise ValueError(f"no wording of {frames[0]!r} is in the {values.split} split")


def shared(values: Values, frames: Sequence[str]) -> str:
    """A wording that is not what is asked, such as a greeting: test also draws those that training knows."""
    while True:
        text = expanded(values.rng.choice(frames), values.rng)
        if values.split == "test" or not unseen(text):
            return text
