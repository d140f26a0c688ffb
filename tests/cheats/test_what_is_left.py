"""Entries whose output lies: to the parent by messages, to admission by files. Each fails with a line that names it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from conftest import HONEST, NUMERICS, World, loaded

from immunebench.box import process
from immunebench.execution import boxed, lending

LIAR = """\
import json, struct, torch
from immunebench import Weights
from safetensors.torch import save_file


class Liar(Weights):
    def save(self, path):
        {save}


def protect_model(model, concepts, params, ctx):
    name, tensor = next(iter(model.unet_tensors("attention").items()))
    Liar.name, Liar.tensor = name, tensor.detach().float().clone()
    return Liar({{name: tensor.detach()}})
"""

WEIGHTS = {
    "another tensor": ('save_file({"unet.up": self.tensor}, path)', "safetensors: 'unet.up' is no tensor of the"),
    "another shape": ("save_file({self.name: torch.zeros(3, 5)}, path)", r"has the shape \[3, 5\], the base's"),
    "not a number": ("save_file({self.name: self.tensor * float('nan')}, path)", "not finite in half precision"),
    "too large for half": ("save_file({self.name: self.tensor * 0 + 1e6}, path)", "not finite in half precision"),
    "doubles": ("save_file({self.name: self.tensor.double()}, path)", "is of the format 'F64', not F32"),
    "a header of petabytes": ("open(path, 'wb').write(struct.pack('<Q', 1 << 50) + b'{}')", "no safetensors header"),
    "nested braces": ("open(path, 'wb').write(struct.pack('<Q', 200_000) + b'[' * 200_000)", "header that is no JSON"),
    "bytes beyond": ("save_file({self.name: self.tensor}, path); open(path, 'ab').write(b'x')", "1 bytes that belong"),
    "pickled": ("torch.save({self.name: self.tensor}, path)", "has no safetensors header"),
    "nothing": ("save_file({}, path)", "weights.safetensors holds no tensor"),
    "a link": ("import os; os.symlink('/etc/passwd', path)", "which is a symbolic link"),
    "a pipe": ("import os; os.mkfifo(path)", "which is a pipe|Operation not permitted"),
    "one file too many": (
        "save_file({self.name: self.tensor}, path); open(path.parent / 'extra.py', 'w')",
        "left 'extra.py', which is no file of this stage",
    ),
    "an empty giant": (
        "open(path, 'wb').truncate(900 << 20)",
        "a file of 943,718,400 bytes that is mostly empty",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", WEIGHTS)
def test_weights_are_what_was_written_not_what_an_object_says(any_world: World, lie: str) -> None:
    save, said = WEIGHTS[lie]
    any_world.entry(LIAR.format(save=save))
    before = any_world.snapshot()
    line = any_world.run(any_world.spec())
    assert line.startswith("error: ") and "\n" not in line
    assert re.search(said, line), line
    assert any_world.snapshot() == before and not any_world.store.has(any_world.spec().digest)


PICTURES = """\
import os, struct, zlib
import numpy as np
from immunebench import Pictures


class Liar(Pictures):
    def save(self, folder, names=None):
        Pictures(self.pixels, self.captions).save(folder)
        first = folder / "000.png"
        {save}


def protect_images(model, concept, published, params, ctx):
    return Liar(published.pixels, published.captions)
"""
PNGS = {
    "over the budget": (
        "Pictures(self.pixels ^ 64, self.captions).save(folder)", r"Linf of 64/255 exceeds the declared budget of 8/255"
    ),
    "a bomb": (
        "first.write_bytes(first.read_bytes()[:16] + struct.pack('>II', 60000, 60000) + first.read_bytes()[24:])",
        "000.png is 60000 x 60000, not 32 x 32",
    ),
    "a text that unpacks": (
        "d = first.read_bytes(); t = b'zTXta\\0\\0' + zlib.compress(bytes(1 << 30)); "
        "first.write_bytes(d[:33] + struct.pack('>I', len(t) - 4) + t + struct.pack('>I', zlib.crc32(t)) + d[33:])",
        "000.png has [0-9,]+ bytes, more than",
    ),
    "one too few": ("first.unlink()", "000.png cannot be read"),
    "one too many": ("(folder / '002.png').write_bytes(first.read_bytes())", "'002.png', which is no file of this"),
    "another size": ("Pictures(self.pixels[:, :16, :16], self.captions).save(folder)", "000.png is 16 x 16, not 32"),
    "no picture": ("first.write_bytes(b'GIF89a' * 20)", "000.png is no PNG"),
    "cut short": ("first.write_bytes(first.read_bytes()[:60])", "000.png is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("lie", PNGS)
def test_pictures_are_what_was_written_and_decoded_last(any_world: World, lie: str) -> None:
    save, said = PNGS[lie]
    any_world.entry(PICTURES.format(save=save), hook="protect_images", more="budget = 8\n")
    inputs = {"owner": any_world.given("owner"), "published": any_world.given("published")}
    line = any_world.run(any_world.spec("protect_images", inputs, budget=8))
    assert re.search(said, line), line


def test_captions_are_those_of_the_published_pictures(any_world: World) -> None:
    save = "(folder / 'captions.json').write_text('{\"000.png\": \"secret message\"}')"
    any_world.entry(PICTURES.format(save=save), hook="protect_images", more="budget = 8\n")
    inputs = {"owner": any_world.given("owner"), "published": any_world.given("published")}
    spec = any_world.spec("protect_images", inputs, budget=8)
    assert any_world.run(spec) == ""
    assert loaded(any_world.store, spec.digest).captions == ("a oqx m", "a oqx m")


MESSAGES = {
    "a pickle": ("bomb", "said a message that is no JSON"),
    "another form": ('b\'{"type": "done", "found": {}, "more": 1}\\n\'', r"said a message of another form"),
    "a type that does not exist": ('b\'{"type": "made"}\\n\'', "said a message of another form"),
    "an early end": ('b\'{"type": "done", "found": {"seconds": 0}}\\n\'', "went on after its last word"),
    "a line without an end": ("b'x' * (1 << 20)", "said more than a process may say"),
    "a number that is none": ('b\'{"type": "progress", "what": "x", "done": NaN, "total": 1}\\n\'', "of another form"),
    "a page outside": ('b\'{"type": "marked", "page": "../../x"}\\n\'', "of another form"),
}


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("lie", MESSAGES)
def test_the_pipe_takes_messages_of_its_forms_alone(any_world: World, lie: str) -> None:
    data, said = MESSAGES[lie]
    marker = any_world.root / "unpickled"
    bomb = repr(pickle.dumps(Bomb(marker)) + b"\n")
    line = any_world.cheat(
        f"""
import os, time
for descriptor in range(3, 30):
    try:
        left = {bomb if data == "bomb" else data}
        while left:
            left = left[os.write(descriptor, left):]
    except OSError:
        pass
time.sleep(20)
"""
        if lie != "an early end"
        else f"import os\nos.write(4, {data})"
    )
    assert re.search(said, line), line
    assert not marker.exists()


def test_an_end_by_its_own_word_leaves_nothing_to_admit(any_world: World) -> None:
    line = any_world.cheat("""
import os
os.write(4, b'{"type": "done", "found": {}}\\n')
os._exit(0)
""")
    assert line.startswith("error: cheat: left no log.json") or "weights.safetensors" in line


def test_an_endless_stage_ends_at_its_limit(any_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(any_world.boxes, "_timeout", 3.0)
    line = any_world.cheat("import time\ntime.sleep(1000)")
    # The 12th line of the file is the one that sleeps.
    assert line.startswith("timeout: cheat: stopped after ")
    assert line.endswith("the limit is 3 s a stage (cheat/defense.py, line 12)")


def test_without_a_limit_given_there_is_one(any_world: World) -> None:
    any_world.cheat("pass")
    assert boxed.limit(any_world.spec(), None) == 6 * 3600


def test_a_disk_is_not_filled(any_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "_SPARE", 8 << 20)
    line = any_world.cheat("""
import pathlib, tempfile, time
for n in range(1000):
    (pathlib.Path(tempfile.gettempdir()) / f"{n}.bin").write_bytes(bytes(range(256)) * 4096)
    time.sleep(0.02)
""")
    assert "GiB that its stage may" in line or "Errno" in line
    assert not list((any_world.store.root / "boxes").glob("*/*"))


def test_memory_beyond_the_cap_ends_the_stage_at_once(any_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(any_world.boxes, "_timeout", 120.0)
    # Three quarters of a GiB at a time, then it waits: whoever looks only at the end meets the time limit.
    greedy = """
    import time
    kept = []
    for _ in range(3):
        kept.append(torch.ones(192 << 20))
        time.sleep(0.2)
    time.sleep(1000)
"""
    any_world.entry(HONEST.replace("{cheat}", greedy))
    line = any_world.run(any_world.spec(numerics={**NUMERICS, "memory_gib": 2}))
    found = re.fullmatch(r"over_memory: cheat: memory exceeded the cap of 2 GiB: process peak (\d\.\d\d) GiB", line)
    assert found is not None and 2 < float(found[1]) < 3.5, line


def test_memory_of_a_stage_that_ends_between_two_looks_counts(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage's own code would say so too; this one says that it is done and goes before that."""
    monkeypatch.setattr(process, "_LOOK_EVERY", 1e6)
    early = """
    import os
    os.write(4, b'{"type": "done", "found": {}}\\n')
    os._exit(0)
"""
    any_world.entry(HONEST.replace("{cheat}", early))
    line = any_world.run(any_world.spec(numerics={**NUMERICS, "memory_gib": 0.1}))
    assert line.startswith("over_memory: cheat: memory exceeded the cap of 0.1 GiB: process peak "), line


def test_memory_that_no_process_shows_is_refused(any_world: World) -> None:
    line = any_world.cheat("import os\nos.write(os.memfd_create('hidden'), bytes(1 << 20))")
    assert line.startswith("error: ") and "Operation not permitted" in line, line


def test_a_process_that_ends_itself_is_said_with_its_end(any_world: World) -> None:
    line = any_world.cheat("import os\nos._exit(0)")
    assert line == "error: cheat: its process ended with exit code 0, twice"
    assert [event.kind for event in any_world.events].count("again") == 1


def test_a_failure_names_file_and_line_of_the_author_s_code(any_world: World) -> None:
    line = any_world.cheat("sum([1, 'a'])")
    assert line.startswith("error: cheat: TypeError: ") and line.endswith("(cheat/defense.py, line 11)")


def test_a_full_disk_is_not_believed_of_a_stranger(any_world: World) -> None:
    line = any_world.cheat("raise OSError(28, 'No space left on device')")
    note = any_world.store.failure(any_world.spec().digest)
    assert line.startswith("error: ") and note is not None and not note["transient"]


def test_a_bookmark_with_a_link_is_not_kept(any_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMMUNEBENCH_BOOKMARK_SECONDS", "0")
    assert (
        any_world.cheat("""
import os
from pathlib import Path
for step in ctx.counted(3, resumes=True):
    link = Path(ctx.out) / "link.txt"
    if step == 0:
        mark = Path(ctx.out).parent / "mark"
        (mark / "000009").mkdir()
        os.symlink("/etc/passwd", mark / "000009" / "state.json")
        os.write(4, b'{"type": "marked", "page": "000009"}\\n')
""")
        == ""
    )
    assert any("symbolic link" in event.text for event in any_world.events if event.kind == "noted")
    assert not any(path.name == "000009" for path in any_world.store.root.rglob("*"))


WRONG = [
    ("protect_images", "return list(published.captions)", "protect_images returned list, not Pictures"),
    ("protect_images", "return Pictures(published.pixels[:, ::2], published.captions)", "returned pictures of shape"),
    ("protect_images", "return Pictures(published.pixels ^ 64, published.captions)", "Linf of 64/255 exceeds"),
    ("protect_model", "return {}", "protect_model returned dict, not Weights"),
    ("protect_model", "return Weights({'gone': theta})", "weights: the base has no tensor 'gone'"),
    ("protect_model", "return Weights({name: theta.reshape(-1)})", "weights: "),
    ("protect_model", "return Weights({name: theta * float('nan')})", "a value is not finite"),
    ("protect_model", "raise ValueError('no such luck')", "ValueError: no such luck"),
]
CODE = """\
from immunebench import Pictures, Weights


def protect_images(model, concept, published, params, ctx):
    {body}


def protect_model(model, concepts, params, ctx):
    name, theta = next(iter(model.unet_tensors("attention").items()))
    {body}
"""


@pytest.mark.parametrize(("hook", "body", "said"), WRONG, ids=[said for _, _, said in WRONG])
def test_what_is_wrong_with_a_result_is_said_with_the_authors_file_and_line(
    any_world: World, hook: str, body: str, said: str
) -> None:
    any_world.entry(CODE.format(body=body), hook=hook, more="budget = 8\n" if hook == "protect_images" else "")
    given = {"owner": any_world.given("owner")}
    if hook == "protect_images":
        given["published"] = any_world.given("published")
    spec = any_world.spec(hook, given, **({"budget": 8} if hook == "protect_images" else {}))
    line = any_world.run(spec)
    # What is raised has a line of its own; of what is returned, the hook's definition is named.
    at = {"protect_images": 4, "protect_model": 8}[hook] + (2 if body.startswith("raise") else 0)
    assert line.startswith("error: cheat: ") and said in line
    assert line.endswith(f"(cheat/defense.py, line {at})"), line
