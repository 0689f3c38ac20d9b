"""What README says of models is what the code knows and the tests compare."""

import re
from pathlib import Path

from sirocco.runtime.embedding_backbone import DECODERS
from sirocco.runtime.models.bert import ENCODERS
from sirocco.runtime.models.registry import architectures

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_readme_lists_the_architectures():
    listed = re.search(r"<!-- architectures -->(.*?)<!-- /architectures -->", README, re.DOTALL)
    assert listed is not None
    assert re.findall(r"\w+", listed[1]) == sorted(architectures())


def test_readme_lists_the_embedders():
    line = README[README.index("Embedding models:") :].partition("\n\n")[0]
    assert set(re.findall(r"\w+Model\b", line)) == {*ENCODERS, *DECODERS}
