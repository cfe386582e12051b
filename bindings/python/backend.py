"""Builds the wheel: maturin, after the weights were put into the package.

pip calls it as pyproject.toml says; `python backend.py COMMAND ..` runs a command meanwhile.

The weights are those of the source tree. In the package they are links to the same files, or copies
where the file system has no links, and they are removed again.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent / "python" / "hubrouter" / "weights"
SOURCE = Path(__file__).resolve().parents[2] / "weights"
BUNDLED = ("all-MiniLM-L6-v2", "cmrbench", "README.md")

Settings = Mapping[str, object] | None


def link(source: str, target: str) -> None:
    """Makes `target` the same file as `source`, or a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def weights() -> Iterator[None]:
    """The package has its weights meanwhile."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    PACKAGE.mkdir()
    try:
        for name in BUNDLED:
            if (SOURCE / name).is_file():
                link(str(SOURCE / name), str(PACKAGE / name))
            else:
                locks = shutil.ignore_patterns("lock*")
                shutil.copytree(SOURCE / name, PACKAGE / name, ignore=locks, copy_function=link)
        yield
    finally:
        shutil.rmtree(PACKAGE)


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """PEP 517."""
    import maturin

    with weights():
        name = maturin.build_wheel(wheel_directory, config_settings, metadata_directory)
    return str(name)


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Settings = None
) -> str:
    """PEP 517."""
    import maturin

    return str(maturin.prepare_metadata_for_build_wheel(metadata_directory, config_settings))


if __name__ == "__main__":
    with weights():
        code = subprocess.call(sys.argv[1:])
    sys.exit(code)
