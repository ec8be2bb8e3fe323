import pytest
import torch
from torch import Tensor

from experiments.controls.probe import copying


def copier(tokens: Tensor, targets: Tensor) -> Tensor:
    """Knows a target that has followed the present token before; else nothing."""
    losses = torch.full(targets.shape, 10.0)
    for row, column in [(r, c) for r in range(tokens.shape[0]) for c in range(tokens.shape[1])]:
        earlier = tokens[row, :column] == tokens[row, column]
        if (tokens[row, 1 : column + 1][earlier] == targets[row, column]).any():
            losses[row, column] = 0.0
    return losses


def test_a_copier_is_told_from_one_that_is_not() -> None:
    plain = copying(lambda tokens, targets: torch.full(targets.shape, 7.0), 5000, length=30, n_strings=4)
    assert (plain.first, plain.second) == (7.0, 7.0)
    copies = copying(copier, 5000, length=30, n_strings=4)
    assert copies.first > 9.9
    assert copies.second == pytest.approx(10.0 / 30, abs=0.2), "only where the copy begins is not known"
    assert copies.to_dict() == {"first": copies.first, "second": copies.second}


def test_strings_are_repeated_after_a_marker_and_drawn_apart_from_global_state() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def listen(tokens: Tensor, targets: Tensor) -> Tensor:
        seen.append((tokens, targets))
        return torch.zeros(targets.shape)

    torch.manual_seed(1)
    state = torch.get_rng_state()
    copying(listen, 50, length=10, n_strings=5, batch_size=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    copying(listen, 50, length=10, n_strings=5, batch_size=5)
    copying(listen, 50, length=10, n_strings=5, batch_size=5, seed=1)
    first = torch.cat([targets for _, targets in seen[:3]])
    assert torch.equal(first, seen[3][1])
    assert not torch.equal(first, seen[4][1])
    for tokens, targets in seen:
        assert torch.equal(targets[:, :10], targets[:, 10:])
        assert torch.equal(tokens[:, 1:], targets[:, :-1])
        assert (tokens[:, 0] == 0).all()
        assert targets.min() >= 1
        assert targets.max() < 50


def test_means_are_over_all_strings() -> None:
    got = copying(lambda tokens, targets: targets.float(), 50, length=10, n_strings=5, batch_size=2)
    assert got.first == pytest.approx(got.second)
    assert 1 <= got.first < 50


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="nll gave shape"):
        copying(lambda tokens, targets: torch.zeros(()), 50, length=10)
