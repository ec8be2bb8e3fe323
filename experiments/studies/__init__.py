"""One question, one file: the docstring asks it, ``study`` says what is compared."""

import pkgutil


def study_names() -> list[str]:
    """The studies that come with the library."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
