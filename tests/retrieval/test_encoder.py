"""Encoders on disk, and stored contexts as vectors; what an encoder computes is tested in test_context."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval import ContextEncoder, SnapshotError
from tests.retrieval.test_context import text


@pytest.fixture
def encoder() -> ContextEncoder:
    return ContextEncoder(text(3000), depth=8)


def some(n: int = 50) -> np.ndarray:
    return np.random.default_rng(1).integers(-1, 40, (n, 8))


def test_an_opened_encoder_makes_the_same_to_the_last_bit(encoder, tmp_path):
    encoder.save(tmp_path / "encoder")
    other = ContextEncoder.open(tmp_path / "encoder")
    contexts = some()
    for name in ("sketch", "codes", "keys"):
        np.testing.assert_array_equal(getattr(other, name)(contexts), getattr(encoder, name)(contexts))
    stored = encoder.rows(some(200).reshape(50, 4, 8))
    np.testing.assert_array_equal(
        other.kernel(other.rows(contexts), stored), encoder.kernel(encoder.rows(contexts), stored)
    )
    assert vars(other).keys() == vars(encoder).keys()
    assert (other.fingerprint, other.flops, other.bytes) == (
        encoder.fingerprint,
        encoder.flops,
        encoder.bytes,
    )


def test_it_is_stored_without_pickle(encoder, tmp_path):
    encoder.save(tmp_path / "encoder")
    for file in (tmp_path / "encoder").glob("*.npy"):
        np.load(file, allow_pickle=False)
    assert {file.suffix for file in (tmp_path / "encoder").iterdir()} == {".npy", ".json"}


def test_keys_are_what_the_codes_stand_for(encoder):
    contexts = some(400)
    keys, sketch = encoder.keys(contexts), encoder.sketch(contexts)
    assert keys.shape == (400, encoder.dimensions)
    for row in range(20):
        codes = [
            half for byte in encoder.codes(contexts[row : row + 1])[0] for half in (byte & 15, byte >> 4)
        ]
        told = [encoder.codebook[number, code] for number, code in enumerate(codes[: encoder.n_codes])]
        np.testing.assert_array_equal(keys[row], np.concatenate(told))
    # A context is nearer to itself than to nearly all others.
    nearest = np.argsort(-(sketch @ keys.T), axis=1)[:, :3]
    assert (nearest == np.arange(400)[:, None]).any(1).mean() > 0.95


def test_a_damaged_or_foreign_folder_is_refused_by_name(encoder, tmp_path):
    with pytest.raises(SnapshotError, match="there is no context encoder at"):
        ContextEncoder.open(tmp_path / "nowhere")
    encoder.save(tmp_path / "encoder")
    file = tmp_path / "encoder" / "codebook.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(SnapshotError, match=r"codebook\.npy is damaged"):
        ContextEncoder.open(tmp_path / "encoder")
