from functools import partial

import pytest
import torch

from mann import ChunkedCrossAttention, ExternalMemory, KNNReadout, PointerReadout, SuffixReadout, Transformer
from tests.contracts import SOURCE, VOCAB, small_source

KINDS = {
    kind.__name__: (slot, partial(kind, k=2))
    for slot, kinds in (
        ("memory", (ExternalMemory, ChunkedCrossAttention)),
        ("readout", (PointerReadout, SuffixReadout, KNNReadout)),
    )
    for kind in kinds
}


def model(slot, kind, source):
    build = partial(kind, source=source)
    return Transformer(VOCAB, 16, 1, 2, **{slot: {0: build} if slot == "memory" else build})


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_refuses_another_store(name, tmp_path):
    torch.save(model(*KINDS[name], SOURCE).state_dict(), tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    model(*KINDS[name], small_source()).load_state_dict(saved)
    other = small_source(seed=1)
    with pytest.raises(
        ValueError, match=rf"source {SOURCE.fingerprint[:12]}, this module has {other.fingerprint[:12]}"
    ):
        model(*KINDS[name], other).load_state_dict(saved)
