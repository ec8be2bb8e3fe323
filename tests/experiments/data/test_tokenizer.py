import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data.tokenizer import BYTES_VOCAB, MARKER, Tokenizer
from tests.experiments.data.toy import source

TEXTS = [source(seed) for seed in range(30)]
TOKENIZERS = [Tokenizer.train(TEXTS, 320), Tokenizer.train(TEXTS, BYTES_VOCAB)]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bpe", "bytes"])
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=200))
def test_nothing_is_lost_and_every_byte_is_counted(tokenizer: Tokenizer, text: str) -> None:
    (tokens,) = tokenizer.encode([text])
    assert tokens.dtype == np.uint16
    assert tokenizer.decode(tokens) == text
    assert tokenizer.token_bytes[tokens].sum() == len(text.encode())


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bpe", "bytes"])
def test_the_marker_is_reserved_even_when_the_text_spells_it(tokenizer: Tokenizer) -> None:
    text = f"a {MARKER} b{MARKER}"
    (tokens,) = tokenizer.encode([text])
    assert (tokens > 0).all()
    assert tokenizer.decode(tokens) == text
    assert tokenizer.token_bytes[0] == 0
    assert (tokenizer.token_bytes[1:] > 0).all()


def test_pairs_are_learned_and_shorten_the_text() -> None:
    bpe, raw = TOKENIZERS
    assert bpe.vocab_size == 320
    assert raw.vocab_size == BYTES_VOCAB
    assert len(bpe.encode(TEXTS[:1])[0]) < len(raw.encode(TEXTS[:1])[0]) / 2


def test_training_twice_gives_the_same_tokens() -> None:
    again = Tokenizer.train(TEXTS, 320)
    assert again.to_json() == TOKENIZERS[0].to_json()


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bpe", "bytes"])
def test_json_round_trip(tokenizer: Tokenizer) -> None:
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.pieces == tokenizer.pieces
    for ours, theirs in zip(again.encode(TEXTS), tokenizer.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_single_byte_is_a_token() -> None:
    for tokenizer in TOKENIZERS:
        assert {piece for piece in tokenizer.pieces if len(piece) == 1} == {bytes([b]) for b in range(256)}


@pytest.mark.parametrize("vocab_size", [0, 256, 65537])
def test_impossible_vocabularies_are_refused(vocab_size: int) -> None:
    with pytest.raises(ValueError, match="give 257"):
        Tokenizer.train(TEXTS, vocab_size)
