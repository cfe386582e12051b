"""Runs the examples in the docstrings of the package."""

import doctest
import sys

import hubrouter
from hubrouter import _native


def main() -> int:
    """Returns 1 if an example fails, or if there are none."""
    runner = doctest.DocTestRunner()
    named = {name: getattr(_native, name) for name in hubrouter.__all__ if name[0] != "_"}
    for name, value in {"hubrouter": hubrouter.__doc__, **named}.items():
        texts = {name: value if isinstance(value, str) else value.__doc__}
        for inside, member in vars(value).items() if isinstance(value, type) else ():
            texts[f"{name}.{inside}"] = getattr(member, "__doc__", None)
        for place, text in texts.items():
            if text and ">>>" in text:
                parser = doctest.DocTestParser()
                runner.run(parser.get_doctest(text, {}, place, None, 0))
    print(f"{runner.tries} examples")
    return int(runner.failures > 0 or runner.tries < 20)


sys.exit(main())
