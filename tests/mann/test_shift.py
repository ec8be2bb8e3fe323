import pytest
import torch

from mann.shift import previous, without_autocast
from tests.mann.inputs import assert_same, context, labels, randn, runs


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("time", [1, 9])
def test_it_is_what_stood_before_in_the_same_document(time, packed):
    documents = labels(2, time) if packed else None
    run = runs(documents, 2, time)

    def naive(x, before):
        rows = [
            torch.stack([x[b, t - 1] if run[b, t] == run[b, t - 1] else x[b, t] for t in range(1, time)])
            if time > 1
            else x[b, 1:]
            for b in range(2)
        ]
        return torch.cat([before[:, None], torch.stack(rows)], 1)

    assert_same(
        lambda x, before: previous(x, before, context(2, time, documents)),
        naive,
        randn(2, time, 3, 2),
        randn(2, 3, 2, seed=1),
    )


def test_products_keep_their_type():
    x = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with without_autocast(x):
            assert (x @ x).dtype == torch.float32
    with without_autocast(x.to("meta")):
        assert (x.to("meta") @ x.to("meta")).dtype == torch.float32
