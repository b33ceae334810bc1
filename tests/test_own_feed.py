"""What the live panel's page gets of logged values and spans."""

from __future__ import annotations

import json
from typing import Any

from cellmeter.own_feed import MOST_BYTES, MOST_KEPT, MOST_LOGGED, MOST_SPANS, OwnFeed

SECOND = 1_000_000_000


def logged(seconds: float, **values: Any) -> dict[str, Any]:
    return {"event": "logged", "t": round(seconds * SECOND), "values": values, "steps": {}}


def test_values_and_spans_are_marks_on_the_cells_time_axis() -> None:
    own = OwnFeed()
    own.take(
        [
            logged(11, loss=0.5),
            logged(12, loss=[7, 0.3, 0.1, 0.9, 3.0], lr="nan"),
            {"event": "span", "t": 13 * SECOND, "start": 12 * SECOND, "name": "infer", "status": "ok"},
            {"event": "spans", "t": 15 * SECOND, "start": 14 * SECOND, "name": "infer", "count": 40, "seconds": 0.8},
            {"event": "cell_end", "t": 16 * SECOND, "seq": 1, "status": "ok"},
        ]
    )
    assert own.message(None) is None  # the cell has no sample yet: nothing is lost
    assert own.message(10 * SECOND) == {
        "k": "own",
        "s": 0,
        "marks": [
            ["loss", 1.0, 0.5],
            *(["loss", 2.0, value] for value in (0.1, 0.9, 0.3)),  # a summed-up one: lowest, highest, last
            ["lr", 2.0, "nan"],
            ["infer", 2.0, 3.0, 1],
            ["infer", 4.0, 5.0, 40],
        ],
        "others": 0,
        "anew": False,
    }
    assert own.message(10 * SECOND) is None


def test_an_update_is_bounded_and_the_rest_comes_later_in_order() -> None:
    own = OwnFeed()
    own.take(logged(i, **{"é" * 64: i}) for i in range(200))
    sent: list[int] = []
    while message := own.message(0):
        assert len(json.dumps(message["marks"])) <= MOST_BYTES
        assert message["s"] == len(sent)
        sent += [value for _, _, value in message["marks"]]
    assert sent == list(range(200))
    own.take(logged(i, x=i) for i in range(200, 900))
    rest = own.message(0, rest=True)
    assert rest is not None
    assert [value for _, _, value in rest["marks"]] == list(range(200, 900))


def test_a_page_that_asks_anew_gets_all_that_is_kept_and_no_more_is_kept_than_that() -> None:
    own = OwnFeed()
    own.take(logged(i, x=i) for i in range(MOST_KEPT + 500))
    first = own.message(0)
    assert first is not None
    assert first["s"] == 500
    again = own.message(0, anew=True)
    assert again is not None
    assert again["anew"]
    assert again["s"] == 500
    assert [value for _, _, value in again["marks"]] == list(range(500, MOST_KEPT + 500))
    assert own.message(0) is None


def test_so_many_names_are_drawn_and_the_others_counted() -> None:
    own = OwnFeed()
    own.take([logged(1, **{f"v{i}": i for i in range(10)}), logged(2, v9=1, v0=2)])
    own.take({"event": "span", "t": 2, "start": 1, "name": f"s{i}", "status": "ok"} for i in range(10))
    message = own.message(0)
    assert message is not None
    names = {mark[0] for mark in message["marks"]}
    assert names == {f"v{i}" for i in range(MOST_LOGGED)} | {f"s{i}" for i in range(MOST_SPANS)}
    assert message["others"] == 20 - len(names)
