"""The table of architectures in README.md, made from the list of what is compared with transformers.

`python -P -m pytest tests/parity/test_readme.py` says whether README is up to date; running this file brings it there:

    .venv/bin/python -P tests/parity/readme.py
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from sirocco.runtime.models.multimodal import MULTIMODAL
from sirocco.runtime.models.registry import architectures, family_name

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"(?<=<!-- architectures -->\n)(.*?)(?=<!-- /architectures -->)", re.DOTALL)


def table(cases: Mapping[str, str]) -> str:
    """Markdown rows, one for each class: its name for `--arch`, and the cases that try it.

    `cases` leads from the name of a case to the class in its config.json.
    """
    known = architectures()
    rows = ["| class in `config.json` | `--arch` | compared as |", "|---|---|---|"]
    for name in sorted((*known, *MULTIMODAL)):
        if name in known:
            same = [case for case, tried in cases.items() if known[tried].build is known[name].build]
            rows.append(f"| {name} | {family_name(name)} | {'; '.join(_variants(same))} |")
        else:
            texts = [family_name(text) for text in MULTIMODAL[name].texts.values()]
            rows.append(f"| {name} | {', '.join(texts)} | the text part alone |")
    return "\n".join(rows) + "\n"


def _variants(cases: list[str]) -> Iterator[str]:
    """Names of cases without the words that all begin with: the family."""
    split = [case.split("-") for case in cases]
    differ = (i for i, words in enumerate(zip(*split, strict=False)) if len(set(words)) > 1)
    shared = 1 if len(split) == 1 else next(differ, min(map(len, split)))
    for words in split:
        yield " ".join(words[shared:]) or "plain"


def updated(readme: str, cases: Mapping[str, str]) -> str:
    """The text of README with the table as it should be."""
    assert BLOCK.search(readme), "README has lost the marks around its table of architectures"
    return BLOCK.sub(lambda _: table(cases), readme)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))  # last: folders there are called like installed packages
    from parity.test_readme import CLASSES

    README.write_text(updated(README.read_text(), CLASSES))
