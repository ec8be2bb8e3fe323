import unicodedata

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from mann.tokenizer_compression import TokenizerCompression

# Equal in pairs and threes but for case, accents, width and blanks; the last two are cut characters.
TEXTS = [
    *("The", " the", "THE\n", "thé", "cat", "Cat", " ", "  ", "\t\n", "", "ﬁ", "fi", "①", "1", "É", "e"),
    *("\u200b", "\u0301", "a b", "a \t b", "Ａ\u3000B", "ß", "İ", "\ufffd", "x\ufffd"),
]
GOLDEN = [0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 6, 6, 7, 8, 9, 9, 9, 10, 11, 12, 13]
FINGERPRINT = "c8cacc8c42b22c7c51537329f3b6ec49a1d03381e2de99b582f4d7d9eab6ce29"


def naive_key(text: str) -> str:
    """The rules one after the other, by Python's own tables."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    text = "".join(c for c in text if not unicodedata.category(c).startswith("M")).lower()
    for blank in "\t\r\n":
        text = text.replace(blank, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text if text == " " else text.strip()


def test_ids_are_those_of_the_rules():
    known: dict[str, int] = {}
    keys = [f"token {i}" if "\ufffd" in text else naive_key(text) or text for i, text in enumerate(TEXTS)]
    expected = [known.setdefault(key, len(known)) for key in keys]
    found = TokenizerCompression.from_decode(TEXTS.__getitem__, len(TEXTS), lambda i: f"token {i}")
    assert found.ids.tolist() == expected
    assert found.size == len(known) < len(TEXTS)


def test_golden_ids_and_fingerprint():
    # Saved tables mean nothing once these change.
    found = TokenizerCompression.from_decode(TEXTS.__getitem__, len(TEXTS))
    assert found.ids.tolist() == GOLDEN
    assert found.size == max(GOLDEN) + 1
    assert found.fingerprint == FINGERPRINT


def test_a_space_and_nothing_differ_and_what_normalises_to_nothing_keeps_its_text():
    ids = dict(zip(TEXTS, TokenizerCompression.from_decode(TEXTS.__getitem__, len(TEXTS)).ids, strict=True))
    assert ids[" "] == ids["  "] == ids["\t\n"] != ids[""]
    assert ids["\u0301"] not in {ids[""], ids[" "]}
    assert ids["\ufffd"] != ids["x\ufffd"]


def byte_level() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "he", "He", "Ġhe", "Ã©", "ĠÃ©"]
    merges = [("h", "e"), ("H", "e"), ("Ġ", "he"), ("Ã", "©"), ("Ġ", "Ã©")]
    model = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    model.decoder = decoders.ByteLevel()  # pyright: ignore
    model.add_special_tokens(["<pad>"])
    return model


def test_a_byte_level_tokenizer():
    tokenizer = byte_level()
    found = TokenizerCompression.from_tokenizer(tokenizer)
    ids = {str(tokenizer.id_to_token(i)): int(new) for i, new in enumerate(found.ids)}
    assert len(found.ids) == 256 + 5 + 1
    assert ids["he"] == ids["He"] == ids["Ġhe"]
    assert ids["A"] == ids["a"]
    assert ids["Ã©"] == ids["ĠÃ©"] == ids["e"]
    assert ids["<pad>"] == found.size - 1
    # Bytes that are no character by themselves stay apart: 128 of them.
    halves = [new for token, new in ids.items() if len(token) == 1 and "\ufffd" in decoded(tokenizer, token)]
    assert len(halves) == len(set(halves)) == 128
    # Without spellings the same tokens are merged and no others.
    assert np.array_equal(
        found.ids,
        TokenizerCompression.from_decode(lambda i: tokenizer.decode([i], False), len(found.ids)).ids,
    )


def decoded(tokenizer: tokenizers.Tokenizer, token: str) -> str:
    number = tokenizer.token_to_id(token)
    assert number is not None
    return tokenizer.decode([number], skip_special_tokens=False)


def test_the_fingerprint_is_that_of_the_map():
    ids = np.array([0, 1, 1, 2])
    fingerprint = TokenizerCompression(ids).fingerprint
    assert fingerprint == TokenizerCompression(ids.astype(np.int16)).fingerprint
    assert fingerprint != TokenizerCompression(np.array([0, 1, 2, 1])).fingerprint
    assert fingerprint != TokenizerCompression(np.array([0, 1, 1, 2, 0])).fingerprint


def test_the_identity():
    same = TokenizerCompression.identity(7)
    assert same.is_identity
    assert (same.size, same.ids.tolist()) == (7, list(range(7)))
    assert not TokenizerCompression(np.array([1, 0])).is_identity
    assert not TokenizerCompression(np.array([0, 0])).is_identity
    assert "7 -> 7" in repr(same)


@pytest.mark.parametrize("ids", [[0, 2], [1], [-1, 0]], ids=str)
def test_ids_that_leave_some_out_are_refused(ids):
    with pytest.raises(ValueError, match="every number from 0"):
        TokenizerCompression(np.array(ids))


def test_no_ids_are_refused():
    with pytest.raises(ValueError, match="at least one token"):
        TokenizerCompression(np.array([], dtype=np.int64))
