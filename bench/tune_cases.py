"""What `sirocco bench tune` tries: for each kernel its candidates, and calls that stand for each bucket of sizes.

A bucket's calls are timed together. The largest size is among them, so that what is chosen fits all of the bucket.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from sirocco.bench import tune_calls as calls
from sirocco.bench.kernel_cases import Setting
from sirocco.kernels.triton.common import Options, power_of_two
from sirocco.kernels.triton.tune import Call, choices

Candidates = Callable[[int], list[Options]]  # for a bucket's largest size
WARPS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class TuneCase:
    """A kernel of a family's configuration file. Options that no candidate names stay what they are."""

    family: str
    kernel: str
    candidates: Candidates
    make: Callable[[int, Setting], Call]  # a call of this size
    beyond: Sequence[int]  # sizes that stand for the last bucket
    within: Mapping[int, Sequence[int]] = field(default_factory=dict)  # and for others, where not the largest alone
    dtype: torch.dtype = torch.bfloat16
    also: Sequence[torch.dtype] = ()  # others in which the options must fit

    def sizes(self, limit: int | None) -> Sequence[int]:
        """What stands for a bucket."""
        return self.beyond if limit is None else self.within.get(limit, (limit,))


def always(**values: Sequence[int]) -> Candidates:
    """The same candidates for any size."""
    found = choices(**values)
    return lambda size: found


def by_rows(name: str, *values: int) -> Candidates:
    """So many rows of the size's width at a time, which make 4 to 64 elements a thread."""
    found = choices(**{name: values, "num_warps": WARPS})
    return lambda size: [one for one in found if 4 <= one[name] * power_of_two(size) / (32 * one["num_warps"]) <= 64]


def by_tiles(name: str, *values: int) -> Candidates:
    """Tiles of so many elements, 4 to 32 of them a thread."""
    found = [
        one for one in choices(**{name: values, "num_warps": WARPS}) if 4 <= one[name] / (32 * one["num_warps"]) <= 32
    ]
    return lambda size: found


def by_rows_each(few: list[Options], many: list[Options]) -> Candidates:
    """Few rows an expert leave little to do but to read its weights."""
    return lambda size: few if size <= 24 else many


def _attention(kernel: str, candidates: Candidates, dtype: torch.dtype = torch.bfloat16) -> TuneCase:
    make = calls.decode if kernel.startswith("decode") else calls.prefill
    return TuneCase("attention", kernel, candidates, make, (256,), {112: (80, 96, 112)}, dtype)


def _bidirectional(kernel: str, candidates: Candidates, dtype: torch.dtype = torch.bfloat16) -> TuneCase:
    return TuneCase("bidirectional", kernel, candidates, calls.encode, (256,), dtype=dtype)


def _latent(kernel: str, candidates: Candidates, dtype: torch.dtype = torch.bfloat16) -> TuneCase:
    make = calls.latent_decode if kernel.startswith("decode") else calls.latent_prefill
    return TuneCase("mla", kernel, candidates, make, (128,), dtype=dtype)


def _conv(longest: int) -> list[Options]:
    """The tile of a single token is a row; no other may be shorter than a filter."""
    if longest == 1:
        return choices(BLOCK_T=(1,), BLOCK_D=(64, 128, 256, 512), num_warps=(1, 2, 4))
    return choices(BLOCK_T=(16, 32), BLOCK_D=(64, 128, 256), num_warps=(4, 8))


_NARROW = always(BLOCK_M=(16, 32), BLOCK_N=(16, 32), num_warps=(4, 8), num_stages=(1, 2, 3))  # in float32

# The dearest and most used first: time may run out.
CASES = (
    _attention("decode_16", always(BLOCK_N=(16, 32, 64, 128), num_warps=(4, 8), num_stages=(2, 3, 4))),
    _attention("prefill_16", always(BLOCK_M=(64, 128), BLOCK_N=(32, 64, 128), num_warps=(4, 8), num_stages=(1, 2, 3))),
    TuneCase("norm", "norm", by_rows("ROWS", 1, 2, 4, 8), calls.add_rms_norm, (16384,)),
    TuneCase("activation", "activation", by_tiles("BLOCK_I", 256, 512, 1024, 2048, 4096), calls.swiglu, (3072, 12288)),
    TuneCase("kv", "norm_rope_write", by_rows("BLOCK_H", 1, 2, 4, 8, 16, 32), calls.norm_rope_write, (256,)),
    TuneCase(
        "moe",
        "grouped_matmul",
        by_rows_each(
            choices(BLOCK_M=(16,), BLOCK_N=(32, 64, 128), BLOCK_K=(64, 128), num_warps=(4, 8), num_stages=(2, 3, 4)),
            choices(BLOCK_M=(64, 128), BLOCK_N=(64, 128), BLOCK_K=(32, 64), num_warps=(4, 8), num_stages=(2, 3)),
        ),
        calls.experts,
        (64, 512),
        {24: (2, 8, 24)},
        also=(torch.float32,),
    ),
    TuneCase(
        "mxfp4",
        "grouped_matmul",
        by_rows_each(
            choices(BLOCK_M=(16,), BLOCK_N=(32, 64, 128), GROUPS=(2, 4), num_warps=(4, 8), num_stages=(2, 3, 4)),
            choices(BLOCK_M=(64, 128), BLOCK_N=(64, 128), GROUPS=(2, 4), num_warps=(4, 8), num_stages=(2, 3)),
        ),
        calls.mxfp4_experts,
        (64, 512),
        {24: (2, 8, 24)},
        also=(torch.float32,),
    ),
    _latent("decode_16", always(BLOCK_N=(16, 32, 64), HOIST=(0, 1), num_warps=(4, 8), num_stages=(1, 2, 3))),
    _latent(
        "prefill_16", always(BLOCK_M=(32, 64), BLOCK_N=(16, 32), HOIST=(0, 1), num_warps=(4, 8), num_stages=(2, 3))
    ),
    TuneCase("sampling", "scan", by_tiles("TILE", 4096, 8192, 16384), calls.sample_both, (151936,)),
    TuneCase("sampling", "collect", by_tiles("TILE", 1024, 2048, 4096, 8192), calls.sample, (151936,)),
    TuneCase(
        "sampling",
        "draw",
        always(TILE=(1024, 2048, 4096, 8192), num_warps=(4, 8, 16)),
        calls.sample_rarely_flat,
        (151936,),
    ),
    TuneCase("logits", "penalties", by_tiles("TILE", 1024, 2048, 4096, 8192), calls.penalties, (151936,)),
    TuneCase("logits", "partial_sums", by_tiles("TILE", 2048, 4096, 8192, 16384), calls.logprobs, (151936,)),
    TuneCase("logits", "logprobs", always(num_warps=(1, 2, 4)), calls.logprobs, (151936,)),
    TuneCase("bitmask", "bitmask", always(WORDS=(16, 32, 64, 128), num_warps=(2, 4, 8)), calls.bitmask, (151936,)),
    TuneCase("embedding", "embedding", by_tiles("BLOCK_C", 256, 512, 1024, 2048, 4096), calls.gather, (1024, 4096)),
    TuneCase("kv", "write_kv", by_rows("BLOCK_H", 1, 2, 4, 8, 16), calls.write_kv, (256,)),
    TuneCase("rope", "rotate", by_rows("BLOCK_H", 1, 2, 4, 8, 16, 32), calls.rotate, (256,)),
    TuneCase(
        "mla",
        "norm_rope_write_latent",
        always(BLOCK_H=(8, 16, 32, 64), num_warps=(2, 4, 8)),
        calls.write_latent,
        (512,),
    ),
    _bidirectional(
        "bidirectional_16", always(BLOCK_M=(64, 128), BLOCK_N=(32, 64), num_warps=(4, 8), num_stages=(1, 2, 3))
    ),
    TuneCase(
        "mamba",
        "scan",
        always(CHUNK=(16, 32, 64), BLOCK_P=(16, 32), num_warps=(4, 8), num_stages=(1, 2)),
        calls.scan,
        (256,),
        also=(torch.float32,),
    ),
    TuneCase("mamba", "update", always(BLOCK_P=(8, 16, 32, 64), num_warps=(2, 4, 8)), calls.update, (256,)),
    TuneCase("mamba", "conv", _conv, calls.conv, (512,)),
    TuneCase("mamba", "log_decay", always(BLOCK_H=(4, 8, 16, 32), num_warps=(2, 4, 8)), calls.scan_decay, (128,)),
    _attention("decode_32", _NARROW, torch.float32),
    _attention("prefill_32", _NARROW, torch.float32),
    _bidirectional("bidirectional_32", _NARROW, torch.float32),
    _latent("decode_32", _NARROW, torch.float32),
    _latent("prefill_32", _NARROW, torch.float32),
)
FAMILIES = tuple(dict.fromkeys(case.family for case in CASES))
