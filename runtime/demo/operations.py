"""The computations that the model does through tools, as a table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sirocco.runtime.demo.values import Value, Values

__all__ = ["OPERATIONS", "Operation"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One computation: its function's names and parameters, how it is asked for, its value and its Python."""

    names: tuple[str, ...]
    description: str
    parameters: tuple[tuple[str, str], ...]  # name variants joined by |, JSON type (T[] for an array)
    draw: Callable[[Values], tuple[Value, ...]]
    evaluate: Callable[..., Value]
    code: str
    frames: tuple[str, ...]


def tidy(value: float) -> int | float:
    """A number without a needless fraction, to ten decimals."""
    value = round(value, 10)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def pair(v: Values) -> tuple[Value, ...]:
    return v.number(), v.number()


def whole_pair(v: Values) -> tuple[Value, ...]:
    return v.integer(1), v.integer(1)


def divisible(v: Values) -> tuple[Value, ...]:
    return (v.integer(1), v.integer(1, 60)) if v.rng.random() < 0.5 else (v.decimal(), v.integer(1, 60))


def one_text(v: Values) -> tuple[Value, ...]:
    return (v.word() if v.rng.random() < 0.6 else v.name() if v.rng.random() < 0.5 else v.words_phrase(),)


def a_phrase(v: Values) -> tuple[Value, ...]:
    return (v.words_phrase(2, 5),)


def text_and_letter(v: Values) -> tuple[Value, ...]:
    word = v.word()
    return word, v.rng.choice(word) if v.rng.random() < 0.8 else v.rng.choice("abcdefghijklmnopqrstuvwxyz")


def text_and_times(v: Values) -> tuple[Value, ...]:
    return v.word(), v.integer(2, 12)


def two_words(v: Values) -> tuple[Value, ...]:
    return v.word(), v.word()


def numbers(v: Values) -> tuple[Value, ...]:
    return ([v.integer() for _ in range(v.rng.randint(2, 5))],)


def words(v: Values) -> tuple[Value, ...]:
    return ([v.word() for _ in range(v.rng.randint(2, 5))],)


A, B = ("a|x|first|left|number1", "number"), ("b|y|second|right|number2", "number")
TEXT = ("text|string|s|word|input", "string")
LIST = ("numbers|values|items", "number[]")
OPERATIONS = (
    Operation(("add", "add_numbers", "sum", "plus"), "Add two numbers", (A, B), pair, lambda a, b: tidy(a + b),
        "{0} + {1}",
              ("what is {0} plus {1}", "add {0} and {1}", "what is {0} + {1}", "compute the sum of {0} and {1}",
                  "{0} + {1}",
               "how much is {0} plus {1}", "calculate {0} + {1}", "what do {0} and {1} add up to", "what's {0} + {1}",
               "sum up {0} and {1}", "tell me {0} + {1}", "how much do you get when you add {0} and {1}")),
    Operation(("subtract", "minus", "difference", "sub"), "Subtract the second number from the first", (A, B), pair,
              lambda a, b: tidy(a - b), "{0} - {1}",
              ("what is {0} minus {1}", "subtract {1} from {0}", "what is {0} - {1}", "compute {0} minus {1}",
                  "{0} - {1}",
               "how much is {0} minus {1}", "calculate {0} - {1}", "what's {0} - {1}", "take {1} away from {0}",
               "what is left of {0} after taking {1}")),
    Operation(("multiply", "multiply_numbers", "product", "times"), "Multiply two numbers", (A, B), pair, lambda a,
        b: tidy(a * b),
              "{0} * {1}",
              ("what is {0} times {1}", "multiply {0} by {1}", "what is {0} * {1}",
                  "compute the product of {0} and {1}", "{0} * {1}",
               "how much is {0} times {1}", "calculate {0} x {1}", "what's {0} multiplied by {1}",
               "multiply {0} and {1}",
               "what is {0} x {1}", "tell me {0} times {1}")),
    Operation(("divide", "division", "quotient"), "Divide the first number by the second", (A, B), divisible,
              lambda a, b: tidy(a / b), "{0} / {1}",
              ("what is {0} divided by {1}", "divide {0} by {1}", "what is {0} / {1}", "compute {0} over {1}",
                  "{0} / {1}",
               "how much is {0} divided by {1}", "calculate {0} / {1}", "what's {0} divided by {1}",
               "split {0} into {1} parts")),
    Operation(("power", "pow", "exponent"), "Raise a base to an exponent", (("base|x|a", "number"),
        ("exponent|power|n|b", "number")),
              lambda v: (v.integer(2, 40), v.integer(2, 9)), lambda a, b: tidy(a**b), "{0} ** {1}",
              ("what is {0} to the power of {1}", "raise {0} to the power {1}", "what is {0} ** {1}",
                  "compute {0} to the {1}", "{0}^{1}",
               "calculate {0} to the power of {1}", "what's {0}^{1}", "how much is {0} raised to {1}")),
    Operation(("modulo", "mod", "remainder"), "Remainder of a division", (A, B), whole_pair, lambda a, b: a % b,
        "{0} % {1}",
              ("what is {0} modulo {1}", "what is the remainder of {0} divided by {1}", "{0} mod {1}",
                  "give me {0} modulo {1}",
               "compute {0} mod {1}", "find the remainder when {0} is divided by {1}")),
    Operation(("sqrt", "square_root"), "Square root of a number", (("x|number|value|n", "number"),),
        lambda v: (v.integer(1, 99) ** 2,),
              lambda a: tidy(math.sqrt(a)), "{0} ** 0.5",
              ("what is the square root of {0}", "compute the square root of {0}", "give me the root of {0}",
                  "find the square root of {0}",
               "sqrt of {0}", "calculate the square root of {0}", "take the square root of {0}")),
    Operation(("maximum", "max_value", "largest"), "The largest of a list of numbers", (LIST,), numbers, max,
        "max({0})",
              ("what is the largest of {0}", "which is the biggest: {0}", "find the maximum of {0}",
                  "which number is the largest of {0}",
               "give me the highest of {0}", "what is the max of {0}")),
    Operation(("minimum", "min_value", "smallest"), "The smallest of a list of numbers", (LIST,), numbers, min,
        "min({0})",
              ("what is the smallest of {0}", "which is the least: {0}", "find the minimum of {0}",
                  "which number is the smallest of {0}",
               "give me the lowest of {0}", "what is the min of {0}")),
    Operation(("sum_list", "add_all", "total"), "Sum of a list of numbers", (LIST,), numbers, sum, "sum({0})",
              ("what is the sum of {0}", "add up {0}", "sum the numbers {0}", "what is the total of {0}",
                  "compute the total of {0}",
               "what do {0} sum to", "total {0}")),
    Operation(("average", "mean"), "Average of a list of numbers", (LIST,), numbers, lambda a: tidy(sum(a) / len(a)),
        "sum({0}) / len({0})",
              ("what is the average of {0}", "compute the mean of {0}", "average {0}", "find the average of {0}",
                  "what is the mean of {0}")),
    Operation(("reverse_string", "reverse", "reverse_text"), "Reverse a string", (TEXT,), one_text, lambda s: s[::-1],
        "{0}[::-1]",
              ("reverse the word {0}", "reverse {0}", "what is {0} backwards", "spell {0} backwards",
                  "write {0} in reverse",
               "reverse the string {0}", "turn {0} around", "flip the text {0}", "give me {0} backwards",
               "what is {0} spelled backwards")),
    Operation(("count_letter", "count_letters", "letter_count"), "Count how often a letter occurs in a text", (TEXT,
        ("letter|character|char", "string")),
              text_and_letter, lambda s, c: s.count(c), "{0}.count({1})",
              ("how many times does the letter {1} occur in {0}", "how many {1}'s are in {0}",
                  "count the letter {1} in {0}",
               "how often does {1} appear in {0}", "how many {1} are there in the word {0}", "count the {1}'s in {0}",
               "how many times is {1} in {0}", "tell me how many {1} there are in {0}",
               "how often does {0} contain the letter {1}")),
    Operation(("to_upper", "uppercase", "upper"), "Convert a text to upper case", (TEXT,), one_text,
        lambda s: s.upper(), "{0}.upper()",
              ("write {0} in capitals", "convert {0} to upper case", "make {0} uppercase", "put {0} in upper case",
                  "uppercase {0}",
               "change {0} to capital letters", "turn {0} into uppercase")),
    Operation(("to_lower", "lowercase", "lower"), "Convert a text to lower case", (TEXT,), lambda v: (v.full_name(),),
        lambda s: s.lower(), "{0}.lower()",
              ("write {0} in lower case", "convert {0} to lower case", "make {0} lowercase",
                  "put {0} in small letters", "lowercase {0}",
               "change {0} to lower case letters")),
    Operation(("string_length", "length", "text_length"), "Number of characters of a text", (TEXT,), one_text,
        lambda s: len(s), "len({0})",
              ("how long is {0}", "how many letters does {0} have", "what is the length of {0}",
                  "count the characters of {0}",
               "how many characters are in {0}", "give me the length of {0}", "tell me how long the word {0} is")),
    Operation(("count_words", "word_count"), "Number of words in a text", (TEXT,), a_phrase, lambda s: len(s.split()),
        "len({0}.split())",
              ("how many words are in '{0}'", "count the words in '{0}'", "how many words does '{0}' have",
                  "what is the word count of '{0}'",
               "tell me the number of words in '{0}'")),
    Operation(("repeat_string", "repeat", "repeat_text"), "Repeat a text several times", (TEXT, ("times|count|n",
        "integer")), text_and_times,
              lambda s, n: s * n, "{0} * {1}",
              ("repeat {0} {1} times", "write {0} {1} times in a row", "print {0} {1} times",
                  "say the word {0} {1} times", "give me {0} repeated {1} times")),
    Operation(("concatenate", "join_strings", "concat"), "Join two strings", (("a|first|left", "string"),
        ("b|second|right", "string")), two_words,
              lambda a, b: a + b, "{0} + {1}",
              ("join {0} and {1}", "concatenate {0} and {1}", "glue {0} and {1} together", "put {0} and {1} together",
                  "append {1} to {0}")),
    Operation(("sort_words", "sort_list", "sort"), "Sort a list of words", (("words|items|values", "string[]"),),
        words, sorted, "sorted({0})",
              ("sort {0}", "sort the words {0}", "put {0} in alphabetical order", "order {0} alphabetically",
                  "arrange {0} from a to z",
               "sort the list {0}")),
)  # fmt: skip
