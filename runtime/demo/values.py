"""The values that requests speak of: names, words, numbers, dates; training and test never share one."""

from __future__ import annotations

import random
import zlib
from typing import Literal

from sirocco.runtime.demo.lexicon import CITIES, NAMES, STEMS, WORDS, words

__all__ = ["Split", "Value", "Values", "held_out"]

Split = Literal["train", "test"]
Value = str | int | float | bool | list[str] | list[int]


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

    def __init__(self, rng: random.Random, split: Split, *, late: bool = False) -> None:
        self.rng, self.split, self.late = rng, split, late
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
        """A part of one English word and a part of another, so that every token is copied now and then."""
        while True:
            head, tail = self.rng.choice(STEMS), self.rng.choice(STEMS)
            cut = self.rng.choice((0, 0, self.rng.randint(0, len(head) - 2)))
            word = head[cut : self.rng.randint(cut + 2, len(head))] + tail[self.rng.randint(1, len(tail) - 1) :]
            if held_out(word) == (self.split == "test"):
                return word

    def word(self) -> str:
        """A lower-case word, real or not."""
        if self.rng.random() < (0.72 if self.split == "test" else 0.6):
            return self.rng.choice(self.words)
        draw = self.rng.random()
        return self.pseudo() if draw < 0.4 else self.blended() if draw < 0.93 else self.scrambled()

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
