"""The code digest: what code says counts, how it is written does not."""

from pathlib import Path

from experiments.revision import _meaning, code_digest


def test_comments_docstrings_and_layout_do_not_count(tmp_path: Path) -> None:
    one, two, three = (tmp_path / f"{name}.py" for name in ("one", "two", "three"))
    one.write_text('"""A."""\ndef f(x):\n    """B."""\n    return x + 1  # why\n')
    two.write_text('"""C."""\n\n\ndef f( x ):\n    return (x\n            + 1)\n')
    three.write_text("def f(x):\n    return x + 2\n")
    assert _meaning(one) == _meaning(two) != _meaning(three)


def test_the_digest_covers_what_it_is_given() -> None:
    assert code_digest() == code_digest()
    assert code_digest(("retrieval",)) != code_digest(("mann",))
