"""The values that requests speak of: names, words, numbers, dates; training and test never share one."""

from __future__ import annotations

import random
import zlib
from typing import Literal, TypeVar

__all__ = ["Split", "Value", "Values", "held_out", "words"]

Split = Literal["train", "test"]
Value = str | int | float | bool | list[str] | list[int]
T = TypeVar("T")


def words(text: str) -> list[str]:
    """The words of a table."""
    return text.split()


NAMES = words("""
Anna Ben Carla David Elena Felix Greta Hugo Ines Jonas Karin Leo Maria Nils Olga Paul Quentin Rosa Simon Tara
Uwe Vera Walter Xenia Yusuf Zoe Aisha Bruno Chen Dalia Emil Farah Goran Hana Igor Julia Kofi Lena Marco Nadia
Omar Petra Ravi Sofia Tomas Uma Viktor Wanda Yara Zane Alice Bob Carol Dan Eve Frank Grace Henry Irene Jack Kate
Liam Mia Noah Olivia Peter Ruth Sam Tina Victor Amir Bianca Cyrus Doris Edgar Fiona George Helga Ivan Jasmin
""")
CITIES = words("""
Paris London Berlin Madrid Rome Vienna Oslo Lisbon Prague Dublin Athens Warsaw Cairo Tokyo Delhi Lima Quito
Boston Chicago Denver Seattle Toronto Sydney Nairobi Lagos Dakar Tunis Seoul Hanoi Manila Zurich Geneva Basel
Munich Hamburg Lyon Nice Turin Milan Naples Porto Seville Bilbao Ghent Bergen Malmo Turku Riga Vilnius Krakow
Sofia Zagreb Split Izmir Ankara Haifa Muscat Doha Lahore Dhaka Kyoto Osaka Busan Perth Hobart Auckland Havana
Bogota Santiago Austin Miami Dallas
""")
WORDS = words("""
apple river stone window garden silver mountain paper candle bridge forest ocean rabbit guitar bottle pencil
market castle island dragon flower button ladder mirror pocket rocket saddle temple violin wagon yellow zebra
banana cherry lemon orange purple winter summer autumn spring engine battery camera hammer needle basket blanket
carpet curtain drawer feather glacier harbor insect jacket kettle lantern magnet napkin orchid parrot quartz
ribbon shadow thunder umbrella velvet walnut anchor beacon copper desert eagle falcon granite honey ivory jungle
kitten lizard marble nectar otter pepper quiver raven salmon timber urchin valley willow amber breeze cactus
daisy ember fossil ginger hazel iris jasper knight lotus meadow nickel onyx pebble quill robin sparrow tulip
vessel whisper yogurt zipper bicycle computer keyboard elephant dolphin penguin sandwich chocolate strawberry
hello world python music letter number planet science history teacher student doctor
acorn alley almond anthem apron arrow attic badge barrel basin bishop bonfire bracelet branch brass brick brush bucket
bugle bundle cabin cable canal canyon caravan cellar chapel chariot cheese chest chimney cider circus clover cobalt
comet
cookie coral cotton cradle crane crystal cushion dagger dapple dawn delta diary dome donkey drum dune dust echo
elbow elm
emerald fabric fern ferry fiddle finch flame flask fleece flute foam fountain fox frost fudge galaxy garlic gate gem
ghost
giraffe globe goblet grape gravel grove gull gust hail hammock hawk heron hickory hill hood horn hut icicle ink iron
jar
jewel juniper keel kelp kettle kiosk lake lamp lark latch leaf ledge lentil lilac lily linen loft log loom lynx
maple mast
melon mint mirage mist moss moth mule mustard nest nettle night noodle nut oak oat oboe olive opal orbit oven owl
oyster
paddle palm panda paste peach pear pearl peat petal piano pigeon pillow pine plum poem pond poppy potato prism pumpkin
puzzle quail quince raft rain raisin ranch reed reef ridge ring roof rope rose ruby rust sail salt sand satin scarf
seal
seed shade shell shore silk slate sled smoke snail snow soap sock soup spark spice spoon squid stamp star statue steam
stork storm straw sugar sunset swan sword syrup table tank tape tea tent thorn tide tiger tile toast torch tower trail
trout trumpet tulip turtle twig valve vase vault vine wafer wall wave wheat wheel whistle wing wolf wood wool wren
yard absence advice angle ankle answer aunt axis bacon ball bank bark bath battle beach bean bear beard beast bee beer
belief belt bird birth bite blade blood board body bomb bone boot boss bow bowl box boy brain bread breath bride brush
bubble bull bus bush cab cap car card care case cat cave chalk change chaos charm chin choice chord church city clay
cliff cloth cloud clue coal coat coin cold comfort cook cord corn corner couch country cousin cow crab crack cream
crime crop cross crowd crown cry culture cup current dad danger dark daughter day deal death deer degree dinner dirt
distance dog doll door dream dress drop duck ear earth east edge egg end energy error event evil eye face fact fall
fame family fan fate father fear feast fever finger fire fish fist flag flight flood flour fly fog food foot force
fork form fortune freedom friend frog fuel fun fur future game gas gift girl glory glove glue goat gold goose grain
grass grave habit hair half ham hand hat head health heart heat heel help herb hero hip hole home hook hope horse hour
house humor hunger ice image ink iron jaw jelly job joke joy kid king kiss knee knife knot ladle lady lamb land lane
law lead leg leopard lesson life lift light limb line lip liver logic love luck lung man meal meat milk mind mine minor
mode money monk month mood moon morning mouse mouth mud nail name navy neck news noise north nose note ocean oil onion
pain pair pan park path paw peace pen phone photo pie pig pillar pilot pin pipe pole pony pool porch power pride
prince prison proof queen rat rice road rock roof room root rug rule run scale sea seat shame shape sheep ship shirt
shoe shop shoulder sign sister skill skin skirt sky sleep slope smile snake son song soul sound south space sphere
spirit spot spy stair steel step stem stick stool store stove stream street string suit sun sugar table tail talent
talk taste tear thumb thread throat time tin toe tone tool tooth top toy trap tray tree truth uncle union value view
voice war water wax way web week weight west whale wheat wife wind wine wire wish witch woman word work world worm
wound wrist year youth zone
""")
ONSETS = words("""
b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pl st tr sh ch th
""")
LETTERS = "abcdefghijklmnopqrstuvwxyzaeiou"
VOWELS = words("a e i o u a e i o ai ea ou")
CODAS = ["", "", "", "n", "r", "l", "s", "t", "k", "m", "x", "nd", "rk"]
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday today tomorrow tonight")
DOMAINS = ["example.org", "mail.net", "post.com", "inbox.io"]
SUFFIXES = words("txt pdf csv md png json")


def held_out(value: object) -> bool:
    """Whether a value belongs to the test split: about one in seven, decided by the value alone."""
    return zlib.crc32(str(value).lower().encode()) % 7 == 3


class Values:
    """A source of random values of one split."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng, self.split = rng, split
        self.names = self._mine(NAMES)
        self.cities = self._mine(CITIES)
        self.words = self._mine(WORDS)

    def _mine(self, options: list[str]) -> list[str]:
        return [option for option in options if held_out(option) == (self.split == "test")]

    def pseudo(self) -> str:
        """A pronounceable word that means nothing."""
        while True:
            parts = self.rng.choice((1, 2, 2, 2, 3))
            word = "".join(self.rng.choice(ONSETS) + self.rng.choice(VOWELS) for _ in range(parts)) + self.rng.choice(
                CODAS
            )
            if len(word) > 2 and held_out(word) == (self.split == "test"):
                return word

    def scrambled(self) -> str:
        """A few letters in no order that a tongue would like."""
        while True:
            word = "".join(self.rng.choice(LETTERS) for _ in range(self.rng.randint(3, 8)))
            if held_out(word) == (self.split == "test"):
                return word

    def blended(self) -> str:
        """The head of one word and the tail of another."""
        while True:
            head, tail = self.rng.choice(WORDS), self.rng.choice(WORDS)
            word = head[: self.rng.randint(2, len(head))] + tail[self.rng.randint(1, len(tail) - 1) :]
            if held_out(word) == (self.split == "test"):
                return word

    def word(self) -> str:
        """A lower-case word, real or not."""
        draw = self.rng.random()
        if draw < 0.72:
            return self.rng.choice(self.words)
        return self.pseudo() if draw < 0.86 else self.blended() if draw < 0.98 else self.scrambled()

    def name(self) -> str:
        """A person's name."""
        draw = self.rng.random()
        if draw < 0.6:
            return self.rng.choice(self.names)
        return (self.pseudo() if draw < 0.8 else self.blended()).capitalize()

    def full_name(self) -> str:
        """A first and a last name."""
        return f"{self.name()} {self.pseudo().capitalize()}"

    def city(self) -> str:
        """A city, real or not; now and then two words."""
        if self.rng.random() < 0.35:
            return (self.pseudo() if self.rng.random() < 0.6 else self.blended()).capitalize()
        city = self.rng.choice(self.cities)
        return f"{self.rng.choice(('New', 'Port', 'San', 'North'))} {city}" if self.rng.random() < 0.1 else city

    def integer(self, low: int = 0, high: int = 999) -> int:
        """An integer in [low, high]; small ones are as likely as large ones."""
        for _ in range(200):
            top = self.rng.choice((9, 40, 99, 999, 9999, 99999))
            number = self.rng.randint(low, max(low, min(high, top)))
            if held_out(number) == (self.split == "test"):
                return number
        return number

    def decimal(self) -> float:
        """A number with one or two decimals."""
        while True:
            number = round(self.rng.uniform(0, self.rng.choice((10, 100, 1000))), self.rng.choice((1, 1, 2)))
            if number != int(number) and held_out(number) == (self.split == "test"):
                return number

    def code(self) -> str:
        """An identifier such as KX-482 or b71f3."""
        letters = "".join(self.rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(self.rng.randint(1, 3)))
        number = str(self.integer(10, 99999))
        form = self.rng.randrange(4)
        return (f"{letters}-{number}", f"{letters}{number}", f"{letters.lower()}_{number}", f"#{number}")[form]

    def email(self) -> str:
        """An e-mail address."""
        return f"{self.name().lower()}@{self.rng.choice(DOMAINS)}"

    def date(self) -> str:
        """An ISO date or a day's name."""
        if self.rng.random() < 0.3:
            return self.rng.choice(DAYS)
        return f"{self.rng.randint(2019, 2031)}-{self.rng.randint(1, 12):02d}-{self.rng.randint(1, 28):02d}"

    def time(self) -> str:
        """A time of day."""
        return f"{self.rng.randint(0, 23):02d}:{self.rng.choice((0, 5, 10, 15, 20, 30, 40, 45, 50)):02d}"

    def file(self) -> str:
        """A file name."""
        return f"{self.word()}.{self.rng.choice(SUFFIXES)}"

    def words_phrase(self, low: int = 2, high: int = 3) -> str:
        """A few words in a row."""
        return " ".join(self.word() for _ in range(self.rng.randint(low, high)))

    def text(self) -> str:
        """Any short string."""
        form = self.rng.randrange(10)
        if form < 4:
            return self.word()
        if form < 6:
            return self.name()
        if form < 8:
            return self.words_phrase()
        return self.code() if form == 8 else self.city()

    def number(self) -> int | float:
        """An integer mostly, else a decimal."""
        return self.decimal() if self.rng.random() < 0.25 else self.integer()
