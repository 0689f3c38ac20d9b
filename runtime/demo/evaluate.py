"""Measure the demo model at temperature 0, without grammar or post-processing.

python -m sirocco.runtime.demo.evaluate MODEL_DIR
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sirocco.runtime.demo.compute import PYTHON_NAMES
from sirocco.runtime.demo.corpus import MANNERS, conversation
from sirocco.runtime.demo.exchange import Conversation, Exchange
from sirocco.runtime.demo.programs import printed_by
from sirocco.runtime.demo.rendering import prompt
from sirocco.runtime.demo.tools import Call
from sirocco.runtime.demo.values import Split

__all__ = ["ROWS", "Generate", "Row", "Score", "evaluate", "parse_calls", "transformers_generate"]

Generate = Callable[[list[list[int]]], list[list[int]]]
BLOCK = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
MAX_NEW_TOKENS = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: conversations of some kinds, judged by their last exchange."""

    title: str
    kinds: tuple[str, ...]
    schemas: Split = "train"
    turns: int = 1
    share: float = 1.0


ROWS = (
    Row("everyday functions", ("everyday",)),
    Row("composed functions", ("generic", "pattern")),
    Row("arithmetic and strings", ("compute",)),
    Row("two or three calls in a turn", ("parallel", "parallel everyday")),
    Row("everyday functions, unseen schemas", ("everyday",), "test"),
    Row("composed functions, unseen schemas", ("generic", "pattern"), "test"),
    Row("third round of a conversation", ("everyday", "generic", "pattern", "compute", "fact", "talk"), turns=3),
    Row("facts", ("fact",)),
    Row("small talk", ("talk",)),
    Row("declining what it does not know", ("decline",)),
    Row("declining for want of a tool", ("no tool",)),
    Row("reading a text", ("read",)),
    Row("repeating", ("copy",)),
    Row("JSON by fields or schema", ("json",)),
)


@dataclass(slots=True)
class Score:
    """Counts for one row."""

    due: int = 0
    well_formed: int = 0
    right_calls: int = 0
    answers: int = 0
    right_answers: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Case:
    """One conversation up to its last user turn, and what should follow."""

    row: Row
    conversation: Conversation
    expected: Exchange
    messages: list[dict[str, Any]]
    said: str = ""
    calls: list[Call] | None = None
    right_calls: bool = False
    answer: str | None = None


def parse_calls(text: str, names: set[str]) -> list[Call] | None:
    """The calls that a turn consists of; None unless it is only well-formed calls of declared functions."""
    blocks = BLOCK.findall(text)
    if not blocks or BLOCK.sub("", text).strip():
        return None
    calls = []
    for block in blocks:
        try:
            call = json.loads(block)
        except ValueError:
            return None
        if not isinstance(call, dict) or set(call) != {"name", "arguments"} or call["name"] not in names:
            return None
        if not isinstance(call["arguments"], dict):
            return None
        calls.append(Call(call["name"], call["arguments"]))
    return calls


def right_answer(expected: Exchange, answer: str) -> bool:
    """Whether an answer says what it should: the expected facts and no other number, or exactly the expected text."""
    if not expected.facts:
        return answer == expected.answer
    allowed = set(NUMBER.findall(expected.answer))
    return all(fact in answer for fact in expected.facts) and set(NUMBER.findall(answer)) <= allowed


def programs(calls: list[Call]) -> list[str]:
    """The programs among calls: what a Python tool is asked to run."""
    return [
        str(call.arguments["code"]) for call in calls if call.name in PYTHON_NAMES and set(call.arguments) == {"code"}
    ]


def without_programs(calls: list[Call]) -> list[Call]:
    """Calls with every program taken out, so that two of them compare by the rest."""
    return [Call(call.name, {}) if programs([call]) else call for call in calls]


def judge_calls(everything: list[Case]) -> None:
    """Say of each case whether its calls are right: equal, or programs that print the same."""
    judged = [case for case in everything if case.expected.calls and case.calls is not None]
    pairs = [(programs(list(case.expected.calls)), programs(case.calls or [])) for case in judged]
    printed = iter(printed_by([program for pair in pairs for side in pair for program in side]))
    for case, (wanted, got) in zip(judged, pairs, strict=True):
        due, said = [next(printed) for _ in wanted], [next(printed) for _ in got]
        alike = without_programs(case.calls or []) == without_programs(list(case.expected.calls))
        case.right_calls = alike and due == said


def cases(row: Row, count: int, seed: str, manner: str) -> list[Case]:
    """A row's cases."""
    out = []
    for i in range(count):
        talk = conversation(f"{seed}/{row.title}/{i}", "test", row.schemas, row.kinds, turns=row.turns, manner=manner)
        expected = talk.exchanges[-1]
        messages = talk.messages()
        out.append(Case(row, talk, expected, messages[: len(messages) - len(expected.messages()) + 1]))
    return out


def evaluate(
    tokenizer: Tokenizer,
    generate: Generate,
    *,
    count: int,
    seed: str,
    manner: str = "plain",
    rows: tuple[Row, ...] = ROWS,
) -> dict[str, Score]:
    """Scores by row; every prompt of a phase goes to `generate` in one list."""
    everything = [case for row in rows for case in cases(row, count, seed, manner)]
    for case, text in zip(
        everything, answers(tokenizer, generate, [(c.messages, c.conversation) for c in everything]), strict=True
    ):
        case.said = text
        case.calls = parse_calls(text, {tool.name for tool in case.conversation.tools})
        if not case.expected.calls:
            case.answer = text
    judge_calls(everything)
    second = [case for case in everything if case.expected.calls and case.calls]
    for case in second:
        calls = case.calls or []
        case.messages.append({"role": "assistant", "content": None, "tool_calls": [call.message() for call in calls]})
        case.messages.extend({"role": "tool", "content": result} for result in case.expected.results)
    for case, text in zip(
        second, answers(tokenizer, generate, [(c.messages, c.conversation) for c in second]), strict=True
    ):
        case.answer = text
    return scored(everything)


def answers(
    tokenizer: Tokenizer, generate: Generate, asked: list[tuple[list[dict[str, Any]], Conversation]]
) -> list[str]:
    """The model's next turn for each list of messages."""
    prompts = [tokenizer.encode(prompt(m, c.declarations()), add_special_tokens=False).ids for m, c in asked]
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in generate(prompts)]


def scored(everything: list[Case]) -> dict[str, Score]:
    """The counts of judged cases."""
    scores: dict[str, Score] = {}
    for case in everything:
        score = scores.setdefault(case.row.title, Score())
        good = True
        if case.expected.calls:
            score.due += 1
            score.well_formed += case.calls is not None
            good = case.right_calls
            score.right_calls += good
        score.answers += 1
        right = case.answer is not None and right_answer(case.expected, case.answer)
        score.right_answers += right
        if not (good and right):
            wanted = "; ".join(f"{c.name} {c.arguments}" for c in case.expected.calls)
            score.failures.append(
                f"{case.expected.request!r}\n  wanted {wanted} {case.expected.answer!r}\n"
                f"  said   {case.said!r} {case.answer!r}"
            )
    return scores


def sirocco_generate(folder: Path) -> Generate:
    """Greedy decoding by our own engine in float32."""
    from sirocco.runtime.engine import Engine
    from sirocco.runtime.request import SamplingParams

    params = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0)

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        with Engine(str(folder), dtype="float32") as engine:
            results = engine.generate(list(prompts), params)
        return [ids[:-1] if r.finish_reason == "stop" else ids for r in results for ids in (r.token_ids,)]

    return generate


def transformers_generate(folder: Path, adapter: Path | None = None) -> Generate:
    """Greedy decoding by transformers in float32, prompts of like length together."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    if adapter is not None:
        merge_adapter(model, adapter)
    pad, stop = model.config.pad_token_id, model.config.eos_token_id

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        out: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), 64):
            group = order[start : start + 64]
            width = max(len(prompts[i]) for i in group)
            ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in group])
            mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in group])
            made = model.generate(ids, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[
                :, width:
            ].tolist()
            for i, tokens in zip(group, made, strict=True):
                out[i] = tokens[: tokens.index(stop)] if stop in tokens else tokens
        return out

    return generate


def merge_adapter(model: Any, adapter: Path) -> None:
    """Add a PEFT folder's low-rank products to a transformers model's weights."""
    import torch
    from safetensors.torch import load_file

    settings = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, a in tensors.items():
            if name.endswith(".lora_A.weight"):
                b = tensors[name.replace("lora_A", "lora_B")].float()
                target = name.removeprefix("base_model.model.").replace(".lora_A", "")
                weights[target].add_(b @ a.float(), alpha=settings["lora_alpha"] / settings["r"])


def table(scores: dict[str, Score]) -> str:
    """The scores in Markdown, in percent."""

    def percent(part: int, whole: int) -> str:
        return f"{100 * part / whole:.1f}" if whole else "–"

    lines = ["| | n | well-formed call | right function and arguments | right answer |", "|---|---|---|---|---|"]
    for title, s in scores.items():
        cells = (percent(s.well_formed, s.due), percent(s.right_calls, s.due), percent(s.right_answers, s.answers))
        lines.append(f"| {title} | {s.answers} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(scores: dict[str, Score], unseen: bool) -> Score:
    """The rows that measure calls, known or unseen schemas, added up."""
    total = Score()
    for row in ROWS:
        if row.title in scores and row.turns == 1 and (row.schemas == "test") == unseen:
            score = scores[row.title]
            if score.due:
                total.due += score.due
                total.well_formed += score.well_formed
                total.right_calls += score.right_calls
                total.answers += score.answers
                total.right_answers += score.right_answers
    return total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the model's folder")
    parser.add_argument("--adapter", type=Path, help="a PEFT folder to merge in, by transformers")
    parser.add_argument("--manner", default="plain", choices=MANNERS, help="the manner of speech to expect")
    parser.add_argument("--count", type=int, default=300, help="cases a row")
    parser.add_argument("--seed", default="evaluation")
    parser.add_argument("--engine", default="sirocco", choices=("sirocco", "transformers"))
    parser.add_argument("--failures", type=int, default=0, help="failures to print for each row")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    if options.engine == "transformers" or options.adapter is not None:
        generate = transformers_generate(options.model, options.adapter)
    else:
        generate = sirocco_generate(options.model)
    scores = evaluate(tokenizer, generate, count=options.count, seed=options.seed, manner=options.manner)
    total = {"**calls, known schemas**": summary(scores, False), "**calls, unseen schemas**": summary(scores, True)}
    print(table(total | scores))
    for title, score in scores.items():
        for failure in score.failures[: options.failures]:
            print(f"\n[{title}] {failure}")


if __name__ == "__main__":
    main()
