"""The site: every page stands alone, hostile text is text, and a browser can use it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
from markupsafe import escape
from typer.testing import CliRunner

import house
import made_up
from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.loading.reported import figures
from immunebench.board.scores.model import Board
from immunebench.board.scores.reading import measurement
from immunebench.board.site import Suite, build_site, load_suite, write_site
from immunebench.board.site.render import environment
from immunebench.board.site.suite import check_sheet
from immunebench.catalog.loading import load_catalog
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from immunebench.records.files import read_records

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TASKS, CHAINS = made_up.TASKS[1:4:2], made_up.CHAINS[:2]
NAMES = ("imma-lora", "wall", "mist-8")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&%_\\{{7*7}}\u202egnp.exe\u2069 \u05d0"
BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
VIEWS = [
    "index.html",
    "methods.html",
    "reported.html",
    "suites/toy/index.html",
    "suites/toy/cells.html",
    "suites/toy/defenses/wall.html",
    "suites/toy/attacks/lora.html",
    f"suites/toy/tasks/{TASKS[0]}.html",
]


def hostile_record(**changes: Any) -> Any:
    """A record in which everything that may be free text is hostile."""
    plain = made_up.record("none", "style-a", "lora", suite=HOSTILE)
    cell = plain.cell.model_copy(update={"defense_title": HOSTILE, "concept": HOSTILE, "chain": ".."})
    free = {
        "reason": HOSTILE + "x" * 10_000,
        "status": "error",
        "params": {HOSTILE: HOSTILE},
        "env": {HOSTILE: HOSTILE},
    }
    return plain.model_copy(update={"cell": cell, "created": HOSTILE, "comparability": HOSTILE, **free, **changes})


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> list[Suite]:
    """A suite with statistics and pictures, and one of hostile records."""
    results = tmp_path_factory.mktemp("results")
    made_up.write_results(results / "toy", made_up.records(NAMES, TASKS, CHAINS))
    made_up.write_results(results / "hostile", [hostile_record()])
    toy, refused = load_suite(results / "toy"), load_suite(results / "hostile")
    assert refused.problems and not refused.records, "the loader lets no such record pass"
    # The pages must be safe by themselves all the same.
    records = tuple(read_records(results / "hostile"))
    read = tuple(map(measurement, records))
    hostile = dataclasses.replace(refused, records=records, measurements=read, board=aggregate(read), refusals=())
    assert toy.board is not None
    return [hostile, dataclasses.replace(toy, board=made_up.with_statistics(toy.board))]


@pytest.fixture(scope="module")
def site(suites: list[Suite], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of both suites, with a catalogue whose manifests are hostile too."""
    root = tmp_path_factory.mktemp("house")
    models = house.house(root)
    text = HOSTILE.replace("\\", "\\\\").replace('"', '\\"')
    house.defense(root, "wall", "protect_model", f'url = "javascript:alert(3)"\n[params]\na = "{text}"\n', kind="model")
    (root / "defenses/wall/cite.bib").write_text(f"@misc{{wall, title = {{{HOSTILE}}}}}", "utf-8")
    out = tmp_path_factory.mktemp("web") / "site"
    published = figures(Path(__file__).parents[2] / "leaderboard" / "reported.toml")
    bad = dict.fromkeys(("method", "measured", "setting", "base", "source", "place", "note"), HOSTILE + "x" * 10_000)
    hostile = dataclasses.replace(published[0], **bad, url="javascript:alert(4)")
    write_site(suites, out, load_catalog(root, models=models), reported=[*published, hostile])
    return out


class Reader(HTMLParser):
    """Collects what a page refers to, its ids, its elements and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[str | None] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [found[name] or "" for name in ("href", "src") if name in found]
        self.ids += [found["id"] or ""] if "id" in found else []
        self.scripts += [found.get("src")] if tag == "script" else []
        self.handlers += [name for name in found if name.startswith("on") or name == "style"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_every_link_leads_to_a_file_of_the_site(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        found = Reader(page.read_text("utf-8"))
        assert len(set(found.ids)) == len(found.ids), page
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme:
                outside = page.parent.name in ("defenses", "attacks") or page.name == "reported.html"
                assert parts.scheme in ("https", "http") and outside, link
                continue
            target = page if not parts.path else page.parent / unquote(parts.path)
            assert target.resolve().is_relative_to(site.resolve()) and target.is_file(), (page, link)
            if parts.fragment:
                assert parts.fragment in Reader(target.read_text("utf-8")).ids, (page, link)


def test_hostile_text_adds_no_element_no_handler_and_no_name(site: Path) -> None:
    scripts = ["theme.js", "tablesort.min.js", "tablesort.number.min.js", "site.js"]
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        found = Reader(text)
        assert [(s or "").rpartition("/")[2] for s in found.scripts] == scripts, page
        assert found.handlers == [], page
        assert not any("\u202e" in word or "\u2069" in word for word in found.words), page
        assert not any(link.startswith(("javascript:", "data:")) for link in found.links), page
    for path in site.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9.-]+", path.name), path
    cell = next(page for page in (site / "suites" / "hostile" / "cells").iterdir())
    shown = "".join(Reader(cell.read_text("utf-8")).words)
    assert HOSTILE.replace("\u202e", "<U+202E>").replace("\u2069", "<U+2069>") in shown
    assert "{{7*7}}" in shown, "shown, not computed"
    assert f"({len(HOSTILE) + 14 + 10_000:,} characters)" in shown, "long text says how long it is"


def test_names_in_titles_and_text_are_isolated() -> None:
    render = environment().from_string("<p>{{ x | text }}</p><i>{{ x | short(9) }}</i><b title='{{ x | plain }}'></b>")
    html = render.render(x="'\"<\u05d0\u05d1")
    assert html.startswith("<p><bdi>&#39;&#34;&lt;\u05d0\u05d1</bdi></p>")
    assert html.endswith("<b title='&#39;&#34;&lt;\u05d0\u05d1'></b>")


def test_numbers_under_a_picture_are_those_of_the_cell(site: Path, suites: list[Suite]) -> None:
    p = made_up.strength("wall", TASKS[0], "lora")
    words = " ".join(Reader((site / "suites/toy/tasks" / f"{TASKS[0]}.html").read_text("utf-8")).words)
    caption = " ".join(words[words.index("Pictures") :].split())
    match = re.search(r"wall against lora on \S+ : P\(1\) (\d\.\d\d) . similarity (\d\.\d\d)", caption)
    assert match is not None
    assert (float(match[1]), float(match[2])) == (
        pytest.approx(p, abs=0.0051),
        pytest.approx(0.9 - 0.8 * p, abs=0.0051),
    )
    pictures = sorted((site / "suites/toy/sheets").iterdir())
    wanted = {sheet.data for sheet in suites[1].sheets.values()}
    assert {picture.read_bytes() for picture in pictures} == wanted
    assert all(hashlib.sha256(f.read_bytes()).hexdigest().startswith(f.stem) for f in pictures)


def test_contact_sheets_are_the_recorded_ones_or_none(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    (folder / "sheets").mkdir(parents=True)
    data = made_up.sheet_bytes("a")
    digest = hashlib.sha256(data).hexdigest()
    (folder / "sheets/a.png").write_bytes(data)
    (tmp_path / "secret.png").write_bytes(data)
    (folder / "sheets/link.png").symlink_to(tmp_path / "secret.png")
    (folder / "sheets/big.png").write_bytes(data + bytes(70_000))
    head = data[12:16] + (100_000).to_bytes(4, "big") + data[20:29]
    bomb = data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:]
    (folder / "sheets/bomb.png").write_bytes(bomb)
    assert check_sheet(folder, "sheets/a.png", digest).data == data
    for name, sha, problem in (
        ("sheets/a.png", "0" * 64, "SHA-256 differs"),
        ("sheets/link.png", digest, "outside"),
        ("sheets/../../secret.png", digest, "outside"),
        ("sheets/none.png", digest, "missing"),
        ("sheets/big.png", digest, "larger"),
        ("sheets/bomb.png", hashlib.sha256(bomb).hexdigest(), "larger than it may be"),
    ):
        found = check_sheet(folder, name, sha)
        assert found.data == b"" and problem in found.problem


def small(results: Path) -> None:
    """Two cells with their pictures."""
    made_up.write_results(results / "toy", [made_up.record(name, TASKS[0], "lora") for name in ("none", "wall")])


def test_a_changed_picture_is_left_out_and_said(tmp_path: Path) -> None:
    small(tmp_path / "results")
    changed = sorted((tmp_path / "results/toy/sheets").glob("*wall*"))[0]
    changed.write_bytes(made_up.sheet_bytes("other"))
    build_site(tmp_path / "results", tmp_path / "site")
    page = (tmp_path / "site/suites/toy/defenses/wall.html").read_text("utf-8")
    assert "is not the picture that the record names" in page
    assert changed.read_bytes() not in [p.read_bytes() for p in (tmp_path / "site/suites/toy/sheets").iterdir()]


def test_twice_gives_the_same_bytes_and_leaves_no_page_behind(tmp_path: Path) -> None:
    small(tmp_path / "results")
    first = {p.relative_to(tmp_path): p.read_bytes() for p in build_site(tmp_path / "results", tmp_path / "site")}
    (tmp_path / "site/stale.html").write_text("old")
    second = {p.relative_to(tmp_path): p.read_bytes() for p in build_site(tmp_path / "results", tmp_path / "site")}
    assert first == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results", "site"], "no draft stays"
    assert str(tmp_path).encode() not in b"".join(first.values())


def test_only_a_site_is_replaced(tmp_path: Path) -> None:
    small(tmp_path / "results")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("years")
    with pytest.raises(UsageError, match=r"--site.*is not empty and no generated site"):
        build_site(tmp_path / "results", tmp_path / "home")
    assert (tmp_path / "home/thesis.tex").read_text() == "years"


def test_a_refused_board_shows_why_and_no_score(tmp_path: Path) -> None:
    made = [made_up.record(name, TASKS[0], "lora") for name in ("none", "wall", "destroy")]
    kept = made[2].model_copy(update={"utility": made[0].utility})
    made_up.write_results(tmp_path / "results/toy", [*made[:2], kept])
    build_site(tmp_path / "results", tmp_path / "site")
    words = " ".join(Reader((tmp_path / "site/suites/toy/index.html").read_text("utf-8")).words)
    assert "destroy: U is 1.000, not below the utility gate" in words
    assert not list((tmp_path / "site/suites/toy").glob("board.*"))


def test_a_cell_that_the_power_gate_excludes_shows_no_p(tmp_path: Path) -> None:
    def weak(name: str) -> Any:
        made = made_up.record(name, TASKS[0], "dreambooth")
        # the attack learns nothing on no defense: its ceiling is its floor
        flat = made.baseline.floor
        assert flat is not None
        scores = flat.scores if name == "none" else made.scores
        return made.model_copy(
            update={"baseline": made.baseline.model_copy(update={"ceiling": flat}), "scores": scores}
        )

    sound = [made_up.record(name, TASKS[0], "lora") for name in ("none", "wall")]
    made_up.write_results(tmp_path / "results/toy", [*sound, weak("none"), weak("wall")])
    build_site(tmp_path / "results", tmp_path / "site")
    cells = {path.name: path for path in (tmp_path / "site/suites/toy/cells").iterdir()}
    for name, path in cells.items():
        words = " ".join(" ".join(Reader(path.read_text("utf-8")).words).split())
        assert ("uninformative : without a defense" in words) == ("dreambooth" in name)
        assert ("P(1) \N{EN DASH}" in words) == ("dreambooth" in name)


def test_what_papers_report_is_on_a_page_of_its_own(site: Path, suites: list[Suite]) -> None:
    page = (site / "reported.html").read_text("utf-8")
    words = " ".join(" ".join(Reader(page).words).split())
    assert "285 figures" in words and "none is ranked with the measured ones" in words
    assert words.count("reported by a paper") == page.count("<table") > 20, "every table carries the badge"
    row = re.search(r"<tr data-row[^>]*>(?:(?!</tr>).)*Kilian Eng.*?</tr>", page)
    assert row is not None
    assert Reader(row[0]).words[-3:] == ["26.78", "4.59", "25.73"]
    assert "https://arxiv.org/abs/2311.18815" in page and "javascript:" not in page
    for path in (site / "suites").rglob("*"):
        if path.suffix in (".html", ".csv", ".json", ".tex", ".md"):
            assert "reported by a paper" not in path.read_text("utf-8"), "never among measured figures"
    assert "28.67" not in (site / "suites/toy/index.html").read_text("utf-8")


def test_a_layered_defense_shows_every_layer(tmp_path: Path) -> None:
    made = [made_up.record(name, TASKS[0], "lora") for name in ("none", "esd+imma-lora", "esd+unheard-of")]
    made_up.write_results(tmp_path / "results/toy", made)
    root = Path(__file__).parents[2]
    catalog = load_catalog(root, models=root / "bench/immunebench/models.toml")
    build_site(tmp_path / "results", tmp_path / "site", catalog)
    pages = {path.name[:7]: path.read_text("utf-8") for path in (tmp_path / "site/suites/toy/defenses").iterdir()}
    both = pages["esd-imm"]
    for entry in (catalog.defenses["esd"], catalog.defenses["imma-lora"]):
        assert str(escape(entry.manifest.threat_model)) in both and str(escape(entry.manifest.description)) in both
    assert "gandikota2023erasing" in both and "zheng2024imma" in both
    assert "not in this checkout" not in both and "not in this checkout" in pages["esd-unh"]


def test_a_site_without_reported_figures_has_no_such_page(tmp_path: Path) -> None:
    small(tmp_path / "results")
    build_site(tmp_path / "results", tmp_path / "site")
    assert not (tmp_path / "site/reported.html").exists()
    assert "reported.html" not in (tmp_path / "site/index.html").read_text("utf-8")


def test_command_writes_all_boards_and_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small(tmp_path / "results")
    done = CliRunner().invoke(cli.app, ["board"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert str(Path("leaderboard/site/index.html")) in done.stdout
    assert " wall@1 |" in (tmp_path / "results/toy/board.md").read_text("utf-8")
    written = {p.name for p in (tmp_path / "leaderboard/site/suites/toy").iterdir() if p.is_file()}
    assert written >= {"index.html", "cells.html", "board.csv", "board.json", "board.tex", "board.md"}
    shutil.rmtree(tmp_path / "results")
    assert isinstance(CliRunner().invoke(cli.app, ["board"]).exception, UsageError)


def test_command_says_that_there_is_nothing_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "README.md").write_text("What lies here.\n")
    done = CliRunner().invoke(cli.app, ["board"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "nothing yet: no folder of results has records" in done.stdout
    assert "There are no results yet" in (tmp_path / "leaderboard/site/index.html").read_text("utf-8")
    assert isinstance(CliRunner().invoke(cli.app, ["board", "mini-lite"]).exception, UsageError)


def test_showing_a_board_imports_no_torch() -> None:
    code = (
        "import sys, immunebench.board.site, immunebench.board.tables.writers, immunebench.board.plots.scatter\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_vendored_files_are_the_ones_that_are_listed() -> None:
    static = Path(sys.modules["immunebench.board.site"].__file__ or "").parent / "static"
    for folder in (static, Path(__file__).parents[1] / "vendor"):
        listed = dict(re.findall(r"^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$", (folder / "VENDORED.md").read_text(), re.M))
        vendored = {path.name for path in folder.glob("*.min.js")}
        assert set(listed) == vendored and vendored
        for name, digest in listed.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium; a skip without one, unless the environment says that there must be one."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    required = os.environ.get("IMMUNEBENCH_REQUIRE_BROWSER") == "1"
    if path is None:
        (pytest.fail if required else pytest.skip)("there is no chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER, timeout=120_000)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, site: Path) -> Iterator[Page]:
    """A page that fails its test on a console error, a dialog, or a request for anything but the site's files."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(120_000)  # a busy machine is slow, not wrong
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    inside = site.as_uri() + "/"
    page.on("request", lambda request: None if request.url.startswith(inside) else wrong.append(request.url))
    yield page
    context.close()
    assert wrong == []


def visible_rows(page: Page, table: str = "entries") -> list[str]:
    names = page.locator(f"#{table} tbody:first-of-type tr[data-row]:visible th").all_inner_texts()
    return [name.split()[0] for name in names]


def test_sorting_turns_the_table_round_and_leaves_controls_below(page: Page, site: Path, suites: list[Suite]) -> None:
    page.goto((site / "suites/toy/index.html").as_uri())
    board = suites[1].board
    assert isinstance(board, Board)
    seconds = {row.defense: row.seconds or 0.0 for row in board.rows if not row.control}
    head = page.locator("#entries th[data-key=seconds]")
    head.click()
    assert visible_rows(page) == sorted(seconds, key=lambda name: -seconds[name])
    assert head.get_attribute("aria-sort") == "descending"
    head.focus()
    page.keyboard.press("Space")
    assert visible_rows(page) == sorted(seconds, key=lambda name: seconds[name])
    controls = page.locator("#entries tbody.controls tr")
    assert "Controls" in controls.first.inner_text() and controls.count() == 5


def test_filters_and_sorting_survive_a_reload(page: Page, site: Path) -> None:
    page.goto((site / "suites/toy/index.html").as_uri())
    page.locator("select[data-control=track]").select_option("data")
    assert visible_rows(page) == ["mist-8"]
    page.locator("select[data-control=track]").select_option("")
    page.get_by_label("Search").fill("WAL")
    assert visible_rows(page) == ["wall"]
    page.get_by_label("Search").fill("")
    page.locator("select[data-control=attack]").select_option("dreambooth")
    page.get_by_label("parts of U").check()
    heads = "#entries thead th:visible"
    shown = [text.split("\n")[0].strip() for text in page.locator(heads).all_inner_texts()]
    page.locator("#entries th[data-key='a_chain.dreambooth']").click()
    order = visible_rows(page)
    assert any("dreambooth" in text for text in shown) and not any("lora" in text for text in shown)
    assert any("U gen" in text for text in shown)
    address = page.url
    assert "attack=dreambooth" in address and "sort=" in address
    page.reload()
    assert page.url == address
    assert visible_rows(page) == order
    assert [text.split("\n")[0].strip() for text in page.locator(heads).all_inner_texts()] == shown
    page.get_by_role("button", name="Reset").click()
    assert "#" not in page.url and page.locator("select[data-control=attack]").input_value() == ""


def test_cells_are_filtered_by_every_facet_and_open_with_their_picture(page: Page, site: Path) -> None:
    page.goto((site / "suites/toy/cells.html").as_uri() + "#family=object&attack=lora&q=wall")
    assert page.locator("#cells tbody tr:visible").count() == 1
    figure = page.locator("figure.sheet:visible")
    assert figure.count() == 1
    figure.locator("img").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('figure.sheet:not([hidden]) img').naturalWidth > 0")
    figure.locator("a").first.click()
    page.wait_for_load_state()
    assert "wall against lora" in page.title()
    assert page.evaluate("document.querySelector('figure.sheet img').naturalWidth") == 600


def test_reported_figures_are_filtered_and_empty_tables_go(page: Page, site: Path) -> None:
    page.goto((site / "reported.html").as_uri())
    everything = page.locator("section[data-block]:visible").count()
    page.locator("select[data-control=method]").select_option(label="IMMA")
    names = set(page.locator("tr[data-row]:visible th").all_inner_texts())
    assert names == {"IMMA"} and 0 < page.locator("section[data-block]:visible").count() < everything
    page.locator("select[data-control=certainty]").select_option("recalled")
    assert page.locator("section[data-block]:visible").count() == page.locator("tr[data-row]:visible").count() == 0
    page.locator("select[data-control=method]").select_option("")
    assert (
        page.locator("section[data-block]:visible .tag.warn").count()
        == page.locator("section[data-block]:visible").count()
    )
    page.reload()
    assert "certainty=recalled" in page.url
    assert page.locator("select[data-control=certainty]").input_value() == "recalled"


def test_theme_follows_the_system_and_the_choice_stays(page: Page, site: Path) -> None:
    background = "getComputedStyle(document.documentElement).backgroundColor"
    page.emulate_media(color_scheme="light")
    page.goto((site / "suites/toy/index.html").as_uri())
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    assert light != dark
    page.get_by_role("button", name="Dark").press("Enter")
    assert page.evaluate(background) == light
    page.reload()
    assert page.evaluate(background) == light


def test_without_scripts_everything_is_there(browser: Browser, site: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "suites/toy/index.html").as_uri())
    assert page.locator("#entries tr[data-row]:visible").count() == len(NAMES) + 4
    assert page.locator(".filters:visible, button:visible").count() == 0
    assert page.locator("#entries th[data-key=sgr]").is_visible(), "columns that only a script could show are shown"
    page.goto((site / "reported.html").as_uri())
    assert page.locator("tr[data-row]:visible").count() == page.locator("tr[data-row]").count() > 60
    context.close()


@pytest.mark.parametrize("width", [380, 1440])
def test_no_page_scrolls_sideways(page: Page, site: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    hostile = [str(p.relative_to(site)) for p in sorted((site / "suites/hostile").rglob("*.html"))]
    for view in [*VIEWS, *hostile]:
        page.goto((site / view).as_uri())
        for details in page.locator("details").all():
            details.evaluate("node => { node.open = true }")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        assert float(page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")) >= 14


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible(page: Page, site: Path, scheme: Any) -> None:
    axe = (Path(__file__).parents[1] / "vendor/axe.min.js").read_text("utf-8")
    page.emulate_media(color_scheme=scheme)
    cell = next(iter(sorted((site / "suites/toy/cells").iterdir())))
    for view in [*VIEWS, str(cell.relative_to(site))]:
        page.goto((site / view).as_uri())
        page.evaluate(axe)
        # It would fetch the style sheets, which the page's own policy forbids.
        found = page.evaluate(
            "axe.run({preload: false})"
            ".then(r => r.violations.map(v => [v.id, v.nodes[0].html, v.nodes[0].failureSummary]))"
        )
        assert found == [], view
