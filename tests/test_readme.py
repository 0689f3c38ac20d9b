"""What README says of embedding models is what the code knows; of text models see `parity/test_readme.py`."""

import re
from pathlib import Path

from sirocco.runtime.embedding_backbone import DECODERS
from sirocco.runtime.models.bert import ENCODERS

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_readme_lists_the_embedders():
    line = README[README.index("Embedding models:") :].partition("\n\n")[0]
    assert set(re.findall(r"\w+Model\b", line)) == {*ENCODERS, *DECODERS}
