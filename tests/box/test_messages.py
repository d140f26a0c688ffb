"""The parent's ear: whatever bytes come, it hears a message of the five forms or ends the process."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from immunebench.box.messages import LONGEST_LINE, BadMessage, Done, Excerpt, Lines, Marked, Note, Progress, line

MESSAGES = [
    Progress(what="training", done=3, total=9), Note(line="continues after step 3 of 9", resumes=True),
    Marked(page="000003"), Done(found={"steps": 9}),
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.integers(1, 50))
def test_messages_come_through_however_the_bytes_are_cut(size: int) -> None:
    data, lines = b"".join(map(line, MESSAGES)), Lines()
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    assert [message for part in parts for message in lines.feed(part)] == MESSAGES


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_bad_one(data: bytes) -> None:
    try:
        Lines().feed(data + b"\n")
    except BadMessage as error:
        assert "\n" not in str(error) and len(str(error)) < 200


@settings(max_examples=300)
@given(
    st.sampled_from([json.loads(line(m)) for m in MESSAGES]),
    st.sampled_from(["type", "what", "done", "page", "line"]),
    VALUES,
)
def test_a_field_of_another_kind_is_refused_or_is_of_the_form(
    message: dict[str, object], name: str, value: object
) -> None:
    changed = {**message, name: value}
    try:
        (heard,) = Lines().feed(json.dumps(changed).encode() + b"\n")
    except BadMessage:
        return
    assert heard.model_dump() == {**heard.model_dump(), **changed}


@pytest.mark.parametrize(
    "data", [b"x" * (LONGEST_LINE + 1), b"[" * 100_000 + b"\n", b'{"type": "done", "found": 1e999}\n']
)
def test_bombs_are_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Lines().feed(data)


def test_what_was_printed_is_kept_in_part() -> None:
    kept = Excerpt(10, 10)
    for _ in range(1000):
        kept.feed(b"0123456789")
    assert kept.text() == "0123456789\n... (9,980 bytes left out) ...\n0123456789"
