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
    more: tuple[str, ...] = ()  # further frames of training, none of them in any test


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
               "sum up {0} and {1}", "tell me {0} + {1}", "how much do you get when you add {0} and {1}"),
        more=("take {0} and add {1} to it", "sum the numbers {0} and {1}",
              "I have {0} and get {1} more, how much is that", "what is the total when {0} and {1} are added",
              "increase {0} by {1}", "raise the number {0} by {1}", "how much is it if I add {1} to {0}",
              "what is the sum of the numbers {0} and {1}", "work out {0} plus {1}",
              "there are {0} here and {1} there, how much is it in all", "add the number {1} to the number {0}",
              "which number is {1} more than {0}")),
    Operation(("subtract", "minus", "difference", "sub"), "Subtract the second number from the first", (A, B), pair,
              lambda a, b: tidy(a - b), "{0} - {1}",
              ("what is {0} minus {1}", "subtract {1} from {0}", "what is {0} - {1}", "compute {0} minus {1}",
                  "{0} - {1}",
               "how much is {0} minus {1}", "calculate {0} - {1}", "what's {0} - {1}", "take {1} away from {0}",
               "what is left of {0} after taking {1}"),
        more=("reduce {0} by {1}", "what is the difference between {0} and {1}", "lower the number {0} by {1}",
              "I have {0} and spend {1}, how much is left", "how much is left if I take {1} from {0}",
              "deduct {1} from {0}", "which number is {1} less than {0}", "work out {0} minus {1}",
              "decrease {0} by {1}", "remove {1} from the number {0}", "how much less is it if {1} goes off {0}",
              "from {0} take {1}")),
    Operation(("multiply", "multiply_numbers", "product", "times"), "Multiply two numbers", (A, B), pair, lambda a,
        b: tidy(a * b),
              "{0} * {1}",
              ("what is {0} times {1}", "multiply {0} by {1}", "what is {0} * {1}",
                  "compute the product of {0} and {1}", "{0} * {1}",
               "how much is {0} times {1}", "calculate {0} x {1}", "what's {0} multiplied by {1}",
               "multiply {0} and {1}",
               "what is {0} x {1}", "tell me {0} times {1}"),
        more=("take {0} and multiply it by {1}", "multiply the number {0} by {1}",
              "what do I get if I multiply {0} with {1}", "work out {0} times {1}",
              "how much is {0} multiplied by {1}", "take {0} times {1}", "find the product of {0} and {1}",
              "I buy {0} at {1} each, what is the product", "let {0} be multiplied by {1}",
              "what comes out if {0} is multiplied by {1}", "have {0} multiplied with {1}",
              "scale {0} by a factor of {1}")),
    Operation(("divide", "division", "quotient"), "Divide the first number by the second", (A, B), divisible,
              lambda a, b: tidy(a / b), "{0} / {1}",
              ("what is {0} divided by {1}", "divide {0} by {1}", "what is {0} / {1}", "compute {0} over {1}",
                  "{0} / {1}",
               "how much is {0} divided by {1}", "calculate {0} / {1}", "what's {0} divided by {1}",
               "split {0} into {1} parts"),
        more=("take {0} and divide it by {1}", "divide the number {0} by {1}", "what do I get if I divide {0} by {1}",
              "work out {0} divided by {1}", "share {0} among {1} people", "how often does {1} go into {0}",
              "what is the quotient of {0} and {1}", "{0} divided by {1}", "let {0} be divided by {1}",
              "what comes out if {0} is divided by {1}", "cut {0} into {1} equal parts",
              "how much does each get if {1} of us share {0}")),
    Operation(("power", "pow", "exponent"), "Raise a base to an exponent", (("base|x|a", "number"),
        ("exponent|power|n|b", "number")),
              lambda v: (v.integer(2, 40), v.integer(2, 9)), lambda a, b: tidy(a**b), "{0} ** {1}",
              ("what is {0} to the power of {1}", "raise {0} to the power {1}", "what is {0} ** {1}",
                  "compute {0} to the {1}", "{0}^{1}",
               "calculate {0} to the power of {1}", "what's {0}^{1}", "how much is {0} raised to {1}"),
        more=("take {0} to the power {1}", "what is {0} raised to the power of {1}", "work out {0} to the power {1}",
              "I need {0} to the power {1}", "raise {0} to the exponent {1}",
              "I need the power of {0} with the exponent {1}", "what is the power {1} of {0}",
              "how much is {0} to the power {1}", "compute {0} ** {1}", "let {0} be raised to the power of {1}",
              "put {0} to the power of {1}", "find {0} raised to {1}")),
    Operation(("modulo", "mod", "remainder"), "Remainder of a division", (A, B), whole_pair, lambda a, b: a % b,
        "{0} % {1}",
              ("what is {0} modulo {1}", "what is the remainder of {0} divided by {1}", "{0} mod {1}",
                  "give me {0} modulo {1}",
               "compute {0} mod {1}", "find the remainder when {0} is divided by {1}"),
        more=("what is left over when {0} is divided by {1}", "divide {0} by {1} and give me the remainder",
              "I need the remainder of {0} by {1}", "what remains if I divide {0} by {1}", "work out {0} modulo {1}",
              "which remainder does {0} leave when divided by {1}", "take {0} modulo {1}", "how much is {0} mod {1}",
              "calculate {0} % {1}", "find the rest of {0} divided by {1}", "what is {0} % {1}",
              "how many are left over if I split {0} into groups of {1}")),
    Operation(("sqrt", "square_root"), "Square root of a number", (("x|number|value|n", "number"),),
        lambda v: (v.integer(1, 99) ** 2,),
              lambda a: tidy(math.sqrt(a)), "{0} ** 0.5",
              ("what is the square root of {0}", "compute the square root of {0}", "give me the root of {0}",
                  "find the square root of {0}",
               "sqrt of {0}", "calculate the square root of {0}", "take the square root of {0}"),
        more=("which number times itself is {0}", "I need the square root of {0}", "work out the root of {0}",
              "what number squared gives {0}", "how much is the square root of {0}", "extract the square root of {0}",
              "what is sqrt of {0}", "let me have the square root of {0}",
              "determine the square root of the number {0}",
              "my square has an area of {0}, find its side by the square root", "the square root of {0}")),
    Operation(("maximum", "max_value", "largest"), "The largest of a list of numbers", (LIST,), numbers, max,
        "max({0})",
              ("what is the largest of {0}", "which is the biggest: {0}", "find the maximum of {0}",
                  "which number is the largest of {0}",
               "give me the highest of {0}", "what is the max of {0}"),
        more=("which is the largest among {0}", "I need the biggest of the numbers {0}",
              "pick the largest out of {0}", "which of {0} is the greatest", "take the maximum of {0}",
              "tell me the biggest out of {0}", "what is the top value of {0}", "determine the highest number in {0}",
              "get the largest number among {0}", "how high is the highest of {0}", "compute the max of {0}",
              "select the greatest of {0}")),
    Operation(("minimum", "min_value", "smallest"), "The smallest of a list of numbers", (LIST,), numbers, min,
        "min({0})",
              ("what is the smallest of {0}", "which is the least: {0}", "find the minimum of {0}",
                  "which number is the smallest of {0}",
               "give me the lowest of {0}", "what is the min of {0}"),
        more=("which is the smallest among {0}", "I need the smallest of the numbers {0}",
              "pick the lowest out of {0}", "which of {0} is the least", "take the minimum of {0}",
              "tell me the smallest out of {0}", "what is the lowest value of {0}",
              "determine the smallest number in {0}", "get the least number among {0}",
              "how low is the lowest of {0}", "compute the min of {0}", "select the smallest of {0}")),
    Operation(("sum_list", "add_all", "total"), "Sum of a list of numbers", (LIST,), numbers, sum, "sum({0})",
              ("what is the sum of {0}", "add up {0}", "sum the numbers {0}", "what is the total of {0}",
                  "compute the total of {0}",
               "what do {0} sum to", "total {0}"),
        more=("add all of {0} together", "what is {0} added up", "add together the numbers {0}",
              "I need the sum of all of {0}", "work out the sum of {0}", "take the sum of {0}",
              "how much are {0} together", "get the total of the numbers {0}", "sum all of {0}",
              "what do I get if I add up {0}", "let all of {0} be added up", "calculate the sum over {0}")),
    Operation(("average", "mean"), "Average of a list of numbers", (LIST,), numbers, lambda a: tidy(sum(a) / len(a)),
        "sum({0}) / len({0})",
              ("what is the average of {0}", "compute the mean of {0}", "average {0}", "find the average of {0}",
                  "what is the mean of {0}"),
        more=("what is {0} on average", "get me the average of {0}", "I need the mean of {0}",
              "work out the average of {0}", "take the mean of the numbers {0}",
              "calculate the average of the numbers {0}", "how much are {0} on average", "average out {0}",
              "determine the mean value of {0}", "which value is the average of {0}",
              "let me have the average over {0}", "what is the mean value of {0}")),
    Operation(("reverse_string", "reverse", "reverse_text"), "Reverse a string", (TEXT,), one_text, lambda s: s[::-1],
        "{0}[::-1]",
              ("reverse the word {0}", "reverse {0}", "what is {0} backwards", "spell {0} backwards",
                  "write {0} in reverse",
               "reverse the string {0}", "turn {0} around", "flip the text {0}", "give me {0} backwards",
               "what is {0} spelled backwards"),
        more=("put the letters of {0} in reverse order", "I need {0} back to front", "say {0} from back to front",
              "how is {0} written backwards", "mirror the word {0}", "read {0} from right to left",
              "let {0} be reversed", "I'd like to see {0} written backwards",
              "invert the order of the letters in {0}", "which word is {0} when read backwards",
              "start {0} at its end and spell it to its beginning", "what does {0} look like reversed")),
    Operation(("count_letter", "count_letters", "letter_count"), "Count how often a letter occurs in a text", (TEXT,
        ("letter|character|char", "string")),
              text_and_letter, lambda s, c: s.count(c), "{0}.count({1})",
              ("how many times does the letter {1} occur in {0}", "how many {1}'s are in {0}",
                  "count the letter {1} in {0}",
               "how often does {1} appear in {0}", "how many {1} are there in the word {0}", "count the {1}'s in {0}",
               "how many times is {1} in {0}", "tell me how many {1} there are in {0}",
               "how often does {0} contain the letter {1}"),
        more=("in {0}, how many times is there a {1}", "what is the number of {1}'s in {0}",
              "go through {0} and count every {1}", "I need to know how often the letter {1} is in {0}",
              "find how many times {0} has the letter {1}", "count the times that {1} stands in {0}",
              "how many of the letters of {0} are {1}", "count how often {1} comes up in {0}",
              "the word {0} has how many {1}", "work out the number of times {1} is used in {0}",
              "tell me the count of {1} in {0}", "how frequent is {1} in the word {0}")),
    Operation(("to_upper", "uppercase", "upper"), "Convert a text to upper case", (TEXT,), one_text,
        lambda s: s.upper(), "{0}.upper()",
              ("write {0} in capitals", "convert {0} to upper case", "make {0} uppercase", "put {0} in upper case",
                  "uppercase {0}",
               "change {0} to capital letters", "turn {0} into uppercase"),
        more=("I want {0} all in capitals", "have {0} in big letters", "capitalize every letter of {0}",
              "let {0} be in upper case", "print {0} in capital letters", "how does {0} look in upper case",
              "bring {0} into upper case", "I need the text {0} in capitals", "use only capital letters for {0}",
              "raise all letters of {0} to capitals", "what is {0} in capital letters", "set {0} in block capitals")),
    Operation(("to_lower", "lowercase", "lower"), "Convert a text to lower case", (TEXT,), lambda v: (v.full_name(),),
        lambda s: s.lower(), "{0}.lower()",
              ("write {0} in lower case", "convert {0} to lower case", "make {0} lowercase",
                  "put {0} in small letters", "lowercase {0}",
               "change {0} to lower case letters"),
        more=("I want {0} all in small letters", "have {0} without capitals", "let {0} be in lower case",
              "print {0} in lower case letters", "how does {0} look in lower case", "bring {0} into lower case",
              "I need the text {0} in lower case", "use only small letters for {0}",
              "turn all letters of {0} into small ones", "what is {0} in lower case", "remove the capitals from {0}",
              "turn {0} into lowercase")),
    Operation(("string_length", "length", "text_length"), "Number of characters of a text", (TEXT,), one_text,
        lambda s: len(s), "len({0})",
              ("how long is {0}", "how many letters does {0} have", "what is the length of {0}",
                  "count the characters of {0}",
               "how many characters are in {0}", "give me the length of {0}", "tell me how long the word {0} is"),
        more=("what number of letters does {0} have", "get the number of characters in {0}",
              "I need the length of {0}", "measure how long the word {0} is", "how many letters make up {0}",
              "count the letters of {0}", "find out the length of the text {0}", "how many letters are there in {0}",
              "work out how many characters {0} has", "the word {0} has how many letters",
              "count how many characters {0} has", "what is the character count of {0}")),
    Operation(("count_words", "word_count"), "Number of words in a text", (TEXT,), a_phrase, lambda s: len(s.split()),
        "len({0}.split())",
              ("how many words are in '{0}'", "count the words in '{0}'", "how many words does '{0}' have",
                  "what is the word count of '{0}'",
               "tell me the number of words in '{0}'"),
        more=("what number of words does '{0}' have", "I need the word count for '{0}'",
              "how many words make up '{0}'", "get the number of words of '{0}'",
              "how many words do you see in '{0}'", "find out how many words there are in '{0}'",
              "go through '{0}' and count its words", "how long is '{0}' in words",
              "work out the number of words of '{0}'", "the text '{0}' has how many words",
              "do a word count on '{0}'", "count every word of '{0}'")),
    Operation(("repeat_string", "repeat", "repeat_text"), "Repeat a text several times", (TEXT, ("times|count|n",
        "integer")), text_and_times,
              lambda s, n: s * n, "{0} * {1}",
              ("repeat {0} {1} times", "write {0} {1} times in a row", "print {0} {1} times",
                  "say the word {0} {1} times", "give me {0} repeated {1} times"),
        more=("I want {0} {1} times over", "have the text {0} repeated {1} times", "put {0} in a row {1} times",
              "make {1} copies of {0} in one string", "let {0} come {1} times",
              "how does {0} look when repeated {1} times", "copy the word {0} {1} times",
              "type {0} {1} times without a gap", "I need {0} said {1} times",
              "string together {1} times the word {0}", "what is {0} repeated {1} times", "echo {0} {1} times")),
    Operation(("concatenate", "join_strings", "concat"), "Join two strings", (("a|first|left", "string"),
        ("b|second|right", "string")), two_words,
              lambda a, b: a + b, "{0} + {1}",
              ("join {0} and {1}", "concatenate {0} and {1}", "glue {0} and {1} together", "put {0} and {1} together",
                  "append {1} to {0}"),
        more=("make one word of {0} and {1}", "what do {0} and {1} make when joined", "attach {1} to the end of {0}",
              "write {0} and {1} as one word", "add the word {1} to the end of {0}",
              "let {0} be followed by {1} in one string", "combine {0} with {1} into one text",
              "I need {0} and {1} in one piece", "put {1} right behind {0}", "link {0} and {1} without a gap",
              "start with {0} and append {1}", "have {0} and {1} glued into one")),
    Operation(("sort_words", "sort_list", "sort"), "Sort a list of words", (("words|items|values", "string[]"),),
        words, sorted, "sorted({0})",
              ("sort {0}", "sort the words {0}", "put {0} in alphabetical order", "order {0} alphabetically",
                  "arrange {0} from a to z",
               "sort the list {0}"),
        more=("bring {0} into alphabetical order", "I need {0} sorted", "what is {0} in alphabetical order",
              "list {0} from a to z", "sort {0} by their first letters",
              "have the words {0} in order of the alphabet", "rank {0} by the alphabet",
              "let {0} be sorted alphabetically", "line up {0} from a to z", "sort {0} as a dictionary does",
              "organize the words {0} alphabetically", "arrange the list {0} alphabetically")),
)  # fmt: skip
