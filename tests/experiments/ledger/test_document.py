from pathlib import Path

from experiments.ledger.document import counting_markdown
from experiments.ledger.prices import PRICES

PAGE = Path(__file__).parents[3] / "docs" / "counting.md"


def test_page_is_what_the_prices_say():
    assert PAGE.read_text() == counting_markdown(), (
        "run: python -c \"from experiments.ledger.document import counting_markdown as page; print(page(), end='')\""
        " > docs/counting.md"
    )


def test_every_price_is_on_the_page():
    page = counting_markdown()
    assert not [name for name in PRICES if f"`{name.removeprefix('aten.')}`" not in page]
