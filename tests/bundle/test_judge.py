"""A coarse, honest solution is never taken for one that answers from memory; that one always is."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bundle.harness import make_config, settings_for
from bundle.runs.judge import Verdict, WrongNumbers
from bundle.runs.trials import Call, Changer, Effect, moved, telling
from bundle.sandbox.changes import apply, undo
from flashinfer_bench.data import Definition

TOKENS, HIDDEN, COLUMNS, BLOCK = 16, 512, 1024, 64
RATIO = 0.865
"""Of the noisy solution; 0.85 is required, and chance moves it by 0.002."""
NOISE = 0.2 * math.tan((1 - RATIO) * math.pi / 2)
"""Error over value, both normal, of which 1 - RATIO is above rtol = 0.2: a quotient of such two has
a Cauchy distribution."""
REFERENCE = """
def run(hidden_states, hidden_states_scale, weights):
    raise NotImplementedError
"""
DEFINITION = Definition(
    name="blocks_fp8_block_scale_moe",
    op_type="moe",
    axes={
        "seq_len": {"type": "var"},
        "hidden": {"type": "const", "value": HIDDEN},
        "blocks": {"type": "const", "value": HIDDEN // BLOCK},
        "columns": {"type": "const", "value": COLUMNS},
    },
    inputs={
        "hidden_states": {"shape": ["seq_len", "hidden"], "dtype": "float8_e4m3fn"},
        "hidden_states_scale": {"shape": ["seq_len", "blocks"], "dtype": "float32"},
        "weights": {"shape": ["columns", "hidden"], "dtype": "float32"},
    },
    outputs={"output": {"shape": ["seq_len", "columns"], "dtype": "bfloat16"}},
    reference=REFERENCE,
)
SETTINGS = settings_for(make_config(rtol=0.2, atol=0.1, required_matched_ratio=0.85), DEFINITION)


LENIENT = replace(SETTINGS, required_matched_ratio=0.7)
"""With one row of a noisy solution kept, the ratio alone is not enough to tell."""


def noisy(output):
    """With the error of a solution that requantises, in proportion to each row."""
    size = output.float().square().mean(1, keepdim=True).sqrt()
    return output + NOISE * size * torch.randn_like(output)


def is_accused(output, call, settings=SETTINGS):
    """Whether it does not follow its inputs; raises if something else is wrong with it."""
    try:
        Verdict().add(["output"], [output], call, settings)
    except WrongNumbers as error:
        if "does not follow its inputs" not in error.message:
            raise
        return True
    return False


def reference_of(inputs):
    """Scales of blocks may be near zero: a spike in such a block moves little."""
    given = [tensor.clone() for tensor in inputs]

    def reference(change):
        apply(change, inputs)
        hidden_states, scale, weights = inputs
        expected = hidden_states.float() * scale.repeat_interleave(BLOCK, 1) @ weights.T
        undo(change, inputs, given)
        return [expected], 0.0

    return reference


@pytest.mark.parametrize("name", ["hidden_states", "hidden_states_scale"])
def test_coarse_solution_passes_and_kept_output_does_not(name):
    random = SimpleNamespace(type="random")
    workload = SimpleNamespace(inputs=dict.fromkeys(DEFINITION.inputs, random))
    for _ in range(100):
        hidden_states = torch.randn(TOKENS, HIDDEN).clamp(-2, 2).to(torch.float8_e4m3fn)
        scale = torch.randn(TOKENS, HIDDEN // BLOCK)
        inputs = [hidden_states, scale, torch.randn(COLUMNS, HIDDEN)]
        changer = Changer(DEFINITION, workload, inputs, SETTINGS, reference_of(inputs))
        before, _ = changer.unchanged()
        after, _ = changer.with_another(before, name)
        (effect,) = after.effects
        assert effect.shows
        assert not is_accused(noisy(after.expected[0]), after)
        assert is_accused(noisy(before.expected[0]), after, LENIENT)


def test_weak_changes_tell_nothing():
    """From a thousandth of a row to all of it: half of the weak ones used to accuse."""
    torch.manual_seed(0)
    accused_by_elements = told = 0
    for strength in torch.logspace(-3, 0, 200).tolist():
        old = 1000 * torch.randn(TOKENS, COLUMNS)
        new = old.clone()
        new[3] += strength * 1000 * torch.randn(COLUMNS)
        by_elements = Effect("hidden_states", [moved(old, new, SETTINGS)])
        by_rows = Effect("hidden_states", [telling(old, new, SETTINGS)])
        honest, kept = noisy(new), noisy(old)
        accused_by_elements += is_accused(honest, Call([], [new], [by_elements]))
        assert not is_accused(honest, Call([], [new], [by_rows]))
        assert by_rows.shows == is_accused(kept, Call([], [new], [by_rows]), LENIENT)
        told += by_rows.shows
    assert accused_by_elements > 50
    assert told > 30


def test_rows_of_any_dimensions():
    old, new = torch.zeros(4, 2, 3), torch.zeros(4, 2, 3)
    new[1] = 1.0  # all of a row
    new[2, 0] = 1.0  # half of it
    new[3, 0, 0] = 1.0
    assert telling(old, new, SETTINGS).sum((1, 2)).tolist() == [0, 6, 3, 0]
    assert telling(old[3, 0], new[3, 0], SETTINGS).tolist() == [True, False, False]
    assert telling(old[3, 0, 0], new[3, 0, 0], SETTINGS).item()
    assert telling(old[:0], new[:0], SETTINGS).shape == (0, 2, 3)
