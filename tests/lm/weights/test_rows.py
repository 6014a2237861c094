"""The order of rows that rope turns: pairs in a file, halves in memory."""

import torch

from deepwell.lm.weights.rows import RotaryRows


def test_pairs_become_halves_in_the_last_rows_of_each_head() -> None:
    rows = RotaryRows(heads=2, head_dim=6, rope_dim=4, offset=1)
    file = torch.arange(13)
    #                      latent  head 0: nope, pairs 0 1, pairs 2 3   head 1
    assert rows.to_halves(file).tolist() == [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 11, 10, 12]


def test_wider_pairs() -> None:
    rows = RotaryRows(heads=1, head_dim=6, rope_dim=6)
    assert rows.to_halves(torch.arange(6)).tolist() == [0, 2, 4, 1, 3, 5]
    assert rows.to_pairs(torch.arange(6)).tolist() == [0, 3, 1, 4, 2, 5]


def test_back_and_forth_changes_nothing_and_leaves_the_input_alone() -> None:
    rows = RotaryRows(heads=3, head_dim=10, rope_dim=8, offset=5)
    matrix = torch.randn(35, 7)
    before = matrix.clone()
    assert torch.equal(rows.to_pairs(rows.to_halves(matrix)), matrix)
    assert torch.equal(rows.to_halves(rows.to_pairs(matrix.T.contiguous().T)), matrix)
    assert torch.equal(matrix, before)
    assert not torch.equal(rows.to_halves(matrix), matrix)


def test_whole_rows_move_and_a_bias_moves_alike() -> None:
    rows = RotaryRows(heads=2, head_dim=4, rope_dim=4)
    bias = torch.randn(8)
    matrix = bias[:, None].expand(8, 3)
    assert torch.equal(rows.to_halves(matrix)[:, 1], rows.to_halves(bias))
