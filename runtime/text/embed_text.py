"""What sentence-transformers does to a text before its tokens are embedded."""

from dataclasses import dataclass
from pathlib import Path

from sirocco.runtime.config import Fields, read_json

# The settings of the model of a folder, by the names that versions of sentence-transformers gave their file.
SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
PROMPTS = "config_sentence_transformers.json"


@dataclass(frozen=True, slots=True)
class EmbedText:
    """`prompt` goes before every text unless it is one of token ids; `lower` says that the model knows no capitals."""

    prompt: str = ""
    lower: bool = False

    @classmethod
    def read(cls, folder: Path) -> "EmbedText":
        """What a folder says. Raises `ModelLoadError` for files that are broken, or a prompt that it does not have."""
        stated = Fields(read_json(folder, PROMPTS) or {}, PROMPTS)
        prompts, name = stated.object("prompts"), stated.values.get("default_prompt_name")
        if name is not None and (prompts is None or name not in prompts.values):
            raise stated.error("default_prompt_name", f"{name!r} is none of the prompts")
        prompt = "" if prompts is None or name is None else prompts.string(str(name), "")
        return cls(prompt, read_settings(folder).boolean("do_lower_case", False))

    def __call__(self, text: str) -> str:
        whole = self.prompt + text
        return whole.lower() if self.lower else whole


def read_settings(folder: Path) -> Fields:
    """The settings of a folder's model; empty where it has none. Raises `ModelLoadError` for a broken file."""
    for name in SETTINGS:
        values = read_json(folder, name)
        if values is not None:
            return Fields(values, name)
    return Fields({}, SETTINGS[0])
