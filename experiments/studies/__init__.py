"""One question, one file: the docstring asks it, ``study`` says what is compared."""
