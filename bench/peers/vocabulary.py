"""The tokenizer of the generated models and the prompts in its words: made by rule, so the same on every machine."""

import random
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS_ID = 2
# The text as it is: engines that take only messages then read the same tokens as those that take ids.
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
MAX_VOCABULARY = 8192
_SYLLABLES = tuple(consonant + vowel for consonant, vowel in product("bdfghjklmnprstvwyz", "aeiou"))
_SPACE = "Ġ"  # how byte-level vocabularies spell a space


@dataclass(frozen=True, slots=True)
class Prompt:
    """The same prompt as token ids and as text; the tokenizer turns the text into exactly these ids."""

    ids: list[int]
    text: str


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level BPE in the manner of GPT-2 over words of two syllables: at most `vocab_size` tokens, never more than
    `MAX_VOCABULARY`.
    """
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *_SYLLABLES]
    merges = [(syllable[0], syllable[1]) for syllable in _SYLLABLES]
    room = (min(vocab_size, MAX_VOCABULARY) - len(tokens)) // 2  # each word is a token with and without a space
    pairs = list(islice(product(_SYLLABLES, _SYLLABLES), room))
    words = [first + second for first, second in pairs]
    merges += pairs
    merges += [(_SPACE, word) for word in words]
    vocabulary = {token: i for i, token in enumerate([*tokens, *words, *(_SPACE + word for word in words)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def tokenizer_config(max_model_len: int) -> dict[str, Any]:
    """What belongs into `tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {
            str(i): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, token in enumerate(SPECIAL_TOKENS)
        },
        "bos_token": None,
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "pad_token": SPECIAL_TOKENS[0],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_model_len,
        "chat_template": CHAT_TEMPLATE,
    }


class PromptMaker:
    """Draws prompts of exact lengths. The same seed gives the same prompts, so that every engine gets the same ones."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._words = sorted(i for token, i in tokenizer.get_vocab().items() if token.startswith(_SPACE) and token[1:])

    def draw(self, length: int, count: int, seed: str) -> list[Prompt]:
        """`count` prompts of `length` tokens, no two alike in their first ones."""
        rng = random.Random(seed)
        heads = rng.sample(self._words, count)
        found = []
        for head in heads:
            ids = [head, *rng.choices(self._words, k=length - 1)]
            text = self._tokenizer.decode(ids)
            assert self._tokenizer.encode(text).ids == ids
            found.append(Prompt(ids, text))
        return found
