"""`tdraft bench backbones`: what its tasks ask, and a run from the command line."""

import json

import numpy as np
import pytest
import torch

from tdraft.scripts.bench_backbones import score_of
from tdraft.scripts.main import main
from tdraft.scripts.sequence_tasks import COPIED, MARK, NOISE, QUERY, TASKS


def draw(name: str, size: int = 50, length: int | None = None):
    task = TASKS[name]
    inputs, targets, places = task.draw(np.random.default_rng(0), size, length or task.length, False)
    return inputs.numpy(), targets.numpy(), places.numpy()


def test_selective_copying_asks_for_the_symbols_in_order():
    inputs, targets, places = draw("selective-copying")
    for text, answer, asked in zip(inputs, targets, places):
        assert text[-COPIED:].tolist() == [QUERY] * COPIED
        assert asked.sum() == COPIED and asked[-COPIED:].all()
        assert answer[asked].tolist() == [token for token in text[:-COPIED] if token != NOISE]


@pytest.mark.parametrize("length", [8, 64])
def test_induction_heads_ask_for_what_followed_the_mark(length):
    inputs, targets, places = draw("induction-heads", length=length)
    for text, answer, asked in zip(inputs, targets, places):
        first, last = np.flatnonzero(text == MARK)
        assert last == length - 1 and asked.tolist() == [False] * last + [True]
        assert answer[last] == text[first + 1] and first + 1 < last


def test_adding_asks_for_the_sum_of_the_marked():
    inputs, targets, places = draw("adding")
    numbers, marks = inputs[..., 0], inputs[..., 1]
    assert (marks[:, :32].sum(1) == 1).all() and (marks[:, 32:].sum(1) == 1).all()
    np.testing.assert_allclose(targets[places], (numbers * marks).sum(1), rtol=1e-6)


def test_digits_are_tested_on_images_that_no_training_saw():
    task = TASKS["digits"]
    rng = np.random.default_rng(0)
    tested = {image.tobytes() for image in task.draw(rng, 0, 64, True)[0].numpy()}
    trained = {image.tobytes() for image in task.draw(rng, 20_000, 64, False)[0].numpy()}
    assert len(tested) > 300 and not tested & trained


def test_sequences_grow_to_their_length():
    task = TASKS["selective-copying"]
    lengths = [task.length_at(progress) for progress in np.linspace(0, 1, 101)]
    assert lengths[0] == task.first_length and lengths == sorted(lengths)
    assert lengths[79] < lengths[80] == lengths[100] == task.length  # the last fifth is as long as the test
    assert lengths[40] == pytest.approx((task.first_length * task.length) ** 0.5, abs=1)
    assert {TASKS["adding"].length_at(progress) for progress in (0.0, 0.3, 1.0)} == {64}


def test_scores_of_a_model_that_knows_and_of_one_that_guesses():
    task = TASKS["induction-heads"]

    class Oracle(torch.nn.Module):
        def forward(self, text):
            first = (text == MARK).int().argmax(1)
            answer = text.gather(1, first[:, None] + 1)
            return torch.nn.functional.one_hot(answer.expand_as(text), task.n_outputs).float()

    class Constant(torch.nn.Module):
        def forward(self, text):
            return torch.nn.functional.one_hot(torch.ones_like(text), task.n_outputs).float()

    assert score_of(task, Oracle(), 64) == 1.0  # pyright: ignore[reportArgumentType]
    assert score_of(task, Constant(), 64) < 0.2  # pyright: ignore[reportArgumentType]


def test_a_run_writes_table_rows_and_plot(tmp_path):
    command = ["bench", "backbones", "--families", "gru", "--tasks", "adding", "digits", "--steps", "3", "--d-model", "8"]
    assert main([*command, "--seeds", "2", "--out", str(tmp_path)]) in (0, None)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["adding/gru/64", "adding/gru", "digits/gru/64", "digits/gru"]
    assert all(row["runs"] == 2 and np.isfinite(row["value"]) and row["se"] is not None for row in rows)
    assert "| gru |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "backbones.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_names(tmp_path, capsys):
    assert main(["bench", "backbones", "--families", "gruu", "--out", str(tmp_path)]) == 2
    assert 'no family "gruu"; did you mean "gru"?' in capsys.readouterr().err
