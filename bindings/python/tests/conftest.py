"""What the tests share: one router, and stores of their own to change."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import hubrouter

PROMPT = "Which bird is singing in this recording?"
MODELS = [
    {"model_name": "acme/ner", "domain": "Token Classification", "description": "Finds names."},
    {"model_name": "acme/cats", "domain": "Image Classification", "description": "Finds cats."},
    {"model_name": "acme/mt", "domain": "Translation", "description": "Translates letters."},
]


@pytest.fixture(scope="session")
def router() -> hubrouter.Router:
    return hubrouter.Router(device="cpu", threads=1)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "store"
    hubrouter.build(folder, MODELS, device="cpu", threads=1)
    return folder


@pytest.fixture
def store(small: Path, tmp_path: Path) -> Iterator[Path]:
    """A store of three models, for one test."""
    folder = tmp_path / "store"
    shutil.copytree(small, folder)
    yield folder
