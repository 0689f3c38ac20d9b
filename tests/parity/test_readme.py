"""README lists the architectures that the parity tests try, no more and no fewer."""

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .families import CASES
from .readme import README, updated

CLASSES = {case: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type] for case, config in CASES.items()}


def test_readme_lists_what_is_compared():
    text = README.read_text()
    assert text == updated(text, CLASSES), "run .venv/bin/python -P tests/parity/readme.py"
