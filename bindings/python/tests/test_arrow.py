"""`route_arrow` with pyarrow and Polars."""

import polars as pl
import pyarrow as pa
import pytest

import hubrouter

PROMPTS = ["Translate this letter into Spanish.", None, "", "Which bird is singing?"]
COLUMNS = [
    "model", "domain", "score", "probability", "margin", "confidence", "abstained", "truncated",
    "error",
]  # fmt: skip


def test_rows_stay_in_order_and_tell_why_they_have_no_answer(router: hubrouter.Router) -> None:
    batch = pa.record_batch({"id": [1, 2, 3, 4], "prompt": PROMPTS})
    routes = router.route_arrow(batch)
    assert routes.column_names == COLUMNS and len(routes) == 4
    assert routes.failed == [1, 2]
    table = pa.record_batch(routes)
    for row in (0, 3):
        prompt = PROMPTS[row]
        assert prompt is not None
        decision = router.route(prompt, top=1)
        best = decision.ranked[0]
        got = {name: table[name][row].as_py() for name in COLUMNS}
        assert (got["model"], got["domain"], got["error"]) == (best.model, best.domain, None)
        assert got["score"] == pytest.approx(best.score) and got["truncated"] is False
        assert got["margin"] == pytest.approx(decision.margin)
        assert decision.confidence is not None
        assert got["confidence"] == pytest.approx(decision.confidence["model"])
    assert table["model"].to_pylist()[1:3] == [None, None]
    assert table["error"][1].as_py() == "invalid_request: the prompt is null"
    assert table["error"][2].as_py().startswith("invalid_request: ")
    table.validate(full=True)


def test_more_than_one_model_comes_in_lists(router: hubrouter.Router) -> None:
    table = pa.table(router.route_arrow(pa.table({"q": PROMPTS}), column="q", top=3))
    assert table["model"].type == pa.list_(pa.string())
    want = [ranked.model for ranked in router.route(PROMPTS[3] or "", top=3).ranked]
    assert table["model"][3].as_py() == want and table["model"][1].as_py() is None
    assert table["score"].type == pa.list_(pa.float32())
    table.validate(full=True)


TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("kind", TEXTS)
def test_every_type_of_text(router: hubrouter.Router, kind: pa.DataType) -> None:
    column = pa.array(["a bird sings", None, "a bird sings"]).cast(kind)
    want = router.route("a bird sings", top=1).model
    models = pa.array(router.route_arrow(column).column("model"))
    assert models.to_pylist() == [want, None, want]
    sliced = pa.array(router.route_arrow(column.slice(2)).column("model"))
    assert sliced.to_pylist() == [want]


def test_chunks_and_readers(router: hubrouter.Router) -> None:
    prompts = [f"Translate letter {n}." for n in range(7)]
    want = pa.record_batch(router.route_arrow(pa.record_batch({"prompt": prompts})))
    chunks = pa.chunked_array([prompts[:3], [], prompts[3:]])
    table = pa.table({"prompt": chunks})
    for data in (chunks, table, table.to_reader()):
        assert pa.record_batch(router.route_arrow(data)).equals(want)


def test_polars(router: hubrouter.Router) -> None:
    frame = pl.DataFrame({"prompt": PROMPTS})
    routes = pl.DataFrame(router.route_arrow(frame))
    want = pa.record_batch(router.route_arrow(pa.record_batch({"prompt": PROMPTS})))
    assert routes["model"].to_list() == want["model"].to_pylist()
    column = router.route_arrow(frame["prompt"]).column("model")
    assert pl.Series(column).to_list() == routes["model"].to_list()
    categories = frame["prompt"].cast(pl.Categorical)
    assert pl.DataFrame(router.route_arrow(categories))["model"].equals(routes["model"])


def test_no_rows(router: hubrouter.Router) -> None:
    for top in (1, 2):
        empty = pa.record_batch({"prompt": pa.array([], pa.string())})
        table = pa.table(router.route_arrow(empty, top=top))
        assert table.num_rows == 0 and table.column_names == COLUMNS


def test_a_policy_holds_for_every_row(router: hubrouter.Router) -> None:
    only = router.candidates(["google/flan-t5-xxl"])
    routes = router.route_arrow(pa.array(["a", "b"]), policy=only)
    assert pa.array(routes.column("model")).to_pylist() == ["google/flan-t5-xxl"] * 2


def test_what_is_no_column_of_texts_is_refused(router: hubrouter.Router) -> None:
    with pytest.raises(KeyError, match="prompt.*text"):
        router.route_arrow(pa.record_batch({"text": ["a"]}))
    with pytest.raises(TypeError, match="expected texts, found Int64"):
        router.route_arrow(pa.array([1]))
    with pytest.raises(TypeError, match="__arrow_c_array__.*found list"):
        router.route_arrow(["a"])  # type: ignore[arg-type]
    with pytest.raises(hubrouter.InvalidRequestError, match="top"):
        router.route_arrow(pa.array(["a"]), top=0)
    with pytest.raises(KeyError, match="expected one of"):
        router.route_arrow(pa.array(["a"])).column("none")


def test_bytes_that_are_no_text_are_refused(router: hubrouter.Router) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    with pytest.raises(hubrouter.FormatError, match="arrow"):
        router.route_arrow(bad)
    far = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\5\0\0\0\2\0\0\0"), pa.py_buffer(b"ab")]
    )
    with pytest.raises(hubrouter.FormatError, match="arrow"):
        router.route_arrow(far)
