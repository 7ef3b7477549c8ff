"""The report's page: what is in it, and how it behaves in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_classes, read_manifest, write_classes
from harcache.pipeline.work.outcomes import Counts, write_counts, write_failures
from harcache.pipeline.work.parts import Outcome
from harcache.stages import report
from harcache.stages.pictures.matrix import confusion_matrix
from harcache.stages.reporting import results
from harcache.stages.scoring.results import Cost, Outputs, Scored, write_results
from harcache.stages.shared.workspace import Workspace
from harcache.stages.training.curves import Curves
from tests.tiny_demo import copy_of

_HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><b>&amp;"
_SECTIONS = ("dataset", "failures", "storage", "quality", "training", "accuracy", "worst", "random")
_CHROMIUM = ("chromium", "chromedriver")
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def whole(demo: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny demo with curves, an evaluation, and names and reasons that would break a careless page."""
    workspace = copy_of(demo, tmp_path_factory.mktemp("whole"))
    clips = read_manifest(workspace.manifest)
    classes = {
        protocol: [_HOSTILE, *names[1:]] for protocol, names in read_classes(workspace.classes).items()
    }
    write_classes(workspace.classes, classes)
    failed = [
        Outcome(clips[0].id, "failed", "", f"rgb: {_HOSTILE}"),
        Outcome("gone", "failed", "", "no video"),
    ]
    write_failures(workspace.failures("rgb"), failed)
    write_counts(workspace.counts("rgb"), Counts(len(clips) - 1, 0, 2))
    for network in ("pose", "rgb", "epam"):
        _draw_curves(workspace.training(network))
    _evaluate(workspace, Outputs.of(workspace), ("pose", "epam"))
    return workspace


def _draw_curves(folder: Path) -> None:
    curves = Curves(torch.device("cpu"))
    curves.rows = [(1, "train", 2.0, 0.2), (2, "train", 1.0, 0.6), (2, "test", float("nan"), 0.5)]
    curves.write(folder / "plots")
    (folder / "live").mkdir()
    (folder / "live" / "metrics.json").write_text('{"samples_per_second": 12.34, "wait_share": 0.005}')


def _evaluate(workspace: Workspace, outputs: Outputs, networks: tuple[str, str]) -> None:
    clips = read_manifest(workspace.manifest)
    classes = read_classes(workspace.classes)["xsub"]
    labels = np.array([dict(clip.labels)["xsub"] for clip in clips])
    scores = np.random.default_rng(0).random((len(clips), len(classes)))
    scored = [Scored(name, scores, Cost(1000, 2000, 0.0125, "cpu")) for name in networks]
    shares = dict(zip(networks, (0.5, 0.75), strict=True))
    metrics: dict[str, Any] = {key: dict(shares) for key in ("top1", "top5", "mean_class")}
    metrics["test"] = {"clips": len(clips)}
    if "pose" in networks:
        metrics["pose"] = {"pck": 0.9}
        metrics["top1"]["pose_in_object_pairs"] = 0.25
    write_results(outputs, metrics, clips, labels, classes, scored, scored[-1])


def _made(workspace: Workspace, out: Path) -> str:
    report.run(workspace, out)
    return out.read_text(encoding="utf-8")


def _text(page: str) -> str:
    """What a reader sees of a page, roughly."""
    body = page.split("<body>")[1].split("<script>")[0]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_a_whole_datasets_page_has_every_section_and_figure(whole: Workspace, tmp_path: Path) -> None:
    page = _made(whole, tmp_path / "page.html")
    assert re.findall(r'<section id="(\w+)"', page) == list(_SECTIONS)
    text = _text(page)
    for said in (
        *("clips 6", "rgb 5 0 2", "12.3 clips a second in the last epoch, 0.5% of the time", "no video"),
        *("epam 75.0% 75.0% 75.0% 1,000 0.000 12.5 (cpu)", "top-1 of pose in object pairs 25.0%"),
        *("pose pck, against the truth 0.900", "frames jpeg 95", "whole_image", "Hardest pairs for epam"),
        *("detect 6 249", "of a worker's time"),
    ):
        assert said in text
    # Of six clips worst and random ones, and one that failed.
    assert page.count('src="data:image/jpeg') == 13
    assert re.findall(r'"Confusion matrix of (\w+): top-1 \d+.\d% of 6 clips;', page) == ["epam", "pose"]


def test_amfi_nets_evaluation_has_tables_of_its_own_beside_epam_nets_or_alone(
    whole: Workspace, tmp_path: Path
) -> None:
    own = copy_of(whole, tmp_path / "own")
    networks = ("skeleton", "amfi")
    _evaluate(own, Outputs.of_amfi(own), networks)
    alone = _text(_made(own, tmp_path / "alone.html"))
    shutil.copytree(whole.metrics.parent, own.metrics.parent)
    both = _text(_made(own, tmp_path / "both.html"))
    said = "Accuracy of AMFI-Net on 6 test clips network"
    for text in (alone, both):
        assert said in text and "amfi 75.0% 75.0% 75.0% 1,000 0.000 12.5 (cpu)" in text
        assert "Hardest pairs for amfi" in text and "Classes as amfi tells them" in text
    assert "epam 75.0%" in both.partition(said)[0] and "epam 75.0%" not in alone
    assert "of AMFI-Net" not in _text(_made(whole, tmp_path / "none.html"))


def test_the_page_asks_for_nothing_outside_of_it_and_is_small(whole: Workspace, tmp_path: Path) -> None:
    page = _made(whole, tmp_path / "page.html")
    assert set(re.findall(r'(?:src|href)="(?!#)([a-z]+:)', page)) == {"data:"}
    assert "default-src 'none'" in unescape(page)
    assert len(page) < 2e6


def test_matrices_that_would_make_the_page_too_large_are_only_named(
    whole: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_ROOM", 6_000)
    page = _made(whole, tmp_path / "page.html")
    assert page.count('class="matrix"') == 1
    assert "The confusion matrix of pose would make this page too large" in _text(page)


def test_names_and_reasons_stay_text(whole: Workspace, tmp_path: Path) -> None:
    page = _made(whole, tmp_path / "page.html")
    assert _HOSTILE not in page
    assert "<img src=x" not in page
    assert unescape(page).count("<img src=x") >= 3


def test_the_same_files_give_the_same_bytes(whole: Workspace, tmp_path: Path) -> None:
    assert _made(whole, tmp_path / "a.html") == _made(whole, tmp_path / "b.html")


def test_a_dataset_that_is_extracted_only_has_a_page(demo: Workspace, tmp_path: Path) -> None:
    text = _text(_made(demo, tmp_path / "page.html"))
    assert "No network was trained." in text
    assert "Nothing was evaluated." in text
    assert "What is not there" not in text


def test_a_dataset_that_is_built_in_part_says_what_is_missing(own_demo: Workspace, tmp_path: Path) -> None:
    shutil.rmtree(own_demo.rgb)
    own_demo.counts("rgb").unlink()
    (own_demo.heatmaps / "clip_id" / "c" / "0").unlink()
    text = _text(_made(own_demo, tmp_path / "page.html"))
    assert "The stage rgb has not ended: harcache rgb demo" in text
    assert "heatmaps.zarr" in text.split("What is not there")[1].split("Dataset")[0]
    for path in (own_demo.detections, own_demo.poses, own_demo.heatmaps):
        shutil.rmtree(path)
    own_demo.crops.unlink()
    text = _text(_made(own_demo, tmp_path / "page.html"))
    assert "There are no caches that can be read." in text
    assert "No clip is cached." in text


def test_a_clip_that_failed_after_its_video_was_read_has_its_first_frame(
    own_demo: Workspace, tmp_path: Path
) -> None:
    shutil.rmtree(own_demo.rgb)
    shutil.rmtree(own_demo.heatmaps)
    clips = read_manifest(own_demo.manifest)
    write_failures(own_demo.failures("pose"), [Outcome(clips[0].id, "failed", "", "odd")])
    page = _made(own_demo, tmp_path / "page.html")
    assert page.count('src="data:image/jpeg') == 1
    (own_demo.videos / clips[0].video).unlink()
    assert "data:image/jpeg" not in _made(own_demo, tmp_path / "page.html")


def test_a_dataset_without_a_single_good_clip_has_a_page(own_demo: Workspace, tmp_path: Path) -> None:
    header = own_demo.manifest.read_text().splitlines(keepends=True)[0]
    shutil.rmtree(own_demo.data)
    own_demo.data.mkdir()
    own_demo.manifest.write_text(header)
    write_failures(own_demo.failures("index"), [Outcome("a", "failed", "", "a.mp4 is no video")])
    write_counts(own_demo.counts("index"), Counts(0, 0, 1))
    text = _text(_made(own_demo, tmp_path / "page.html"))
    assert "index 0 0 1" in text
    assert "a index failed a.mp4 is no video" in text


def test_a_dataset_that_is_not_there_is_refused(own_demo: Workspace, tmp_path: Path) -> None:
    none = Workspace.under(tmp_path, "none", tmp_path)
    with pytest.raises(
        HarcacheError, match=r"none/manifest.csv is missing; .* run 'harcache index none' first"
    ):
        report.run(none, tmp_path / "page.html")
    assert not none.data.exists()


def _refusal(workspace: Workspace, out: Path) -> str:
    with pytest.raises(HarcacheError) as refused:
        report.run(workspace, out)
    return str(refused.value)


def test_damaged_results_are_named(whole: Workspace, tmp_path: Path) -> None:
    own = copy_of(whole, tmp_path / "own")
    out, again = tmp_path / "page.html", "; run the stage that writes it again"
    own.metrics.parent.mkdir()
    own.metrics.write_text("{")
    assert re.search(f"demo.json is no JSON .*{again}$", _refusal(own, out))
    own.metrics.write_text("{}")
    table = own.evaluation / "tables" / "confusion-pose.csv"
    for content, said in (
        ("actual,a,b\na,1,0\n", "expected a row and a column for each class"),
        ("actual,a,b\na,1,0\nb,2\n", "expected a row and a column for each class"),
        ("actual\n", "expected a row and a column for each class"),
        ("actual,a\na,-1\n", "'-1' is no count"),
        ("actual,a\na,1" + "0" * 30, "is no count"),
    ):
        table.write_text(content)
        assert re.search(f"confusion-pose.csv: .*{said}{again}$", _refusal(own, out))
    table.unlink()
    (own.evaluation / "tables" / "classes.csv").write_text("no,table\n")
    assert "classes.csv, line 1: no column 'network': expected network,label,name" in _refusal(own, out)
    (own.training("rgb") / "plots" / "loss.csv").write_text("epoch,split,loss\n1,train,much\n")
    assert _refusal(own, out).endswith(f"loss.csv: 'much' is no number{again}")


@pytest.fixture(scope="module")
def address(whole: Workspace, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the whole dataset's page lies."""
    out = tmp_path_factory.mktemp("page") / "page.html"
    report.run(whole, out)
    return out.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium of its own, without a screen."""
    paths = [shutil.which(name) for name in _CHROMIUM]
    if not all(paths):
        pytest.skip("needs chromium and chromedriver, Debian's packages chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(paths[0])
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(paths[1])))
    yield driver
    driver.quit()


def _open(browser: Any, address: str, width: int, scheme: str = "light") -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(address)


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_says_nothing_to_the_console(
    browser: Any, address: str, width: int, scheme: str
) -> None:
    _open(browser, address, width, scheme)
    for details in browser.find_elements("tag name", "details"):
        browser.execute_script("arguments[0].open = true", details)
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    images = browser.execute_script(
        "return [...document.images].map(one => one.complete && one.naturalWidth > 0)"
    )
    assert len(images) == 13
    assert all(images)
    assert browser.title == "demo: harcache report"
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("classes", [12, 20, 60, 120])
def test_a_confusion_matrix_fits_its_window_and_its_texts_are_large_enough_and_apart(
    browser: Any, tmp_path: Path, classes: int, width: int
) -> None:
    counts = np.random.default_rng(0).integers(0, 2, (classes, classes)) + 9 * np.eye(classes, dtype=int)
    picture = tmp_path / "picture.svg"
    names = [f"classes that have number {number}" for number in range(classes)]
    picture.write_text(confusion_matrix(counts, names, "epam", alone=True), encoding="utf-8")
    _open(browser, picture.as_uri(), width)
    texts = browser.execute_script(
        "return [...document.querySelectorAll('text')].filter(one => one.getClientRects().length).map(one =>"
        " {const box = one.getBoundingClientRect(), size = parseFloat(getComputedStyle(one).fontSize);"
        " return [box.left, box.top, box.right, box.bottom, size * one.getScreenCTM().a]})"
    )
    left, top, right, bottom, size = np.array(texts).T
    assert len(texts) > 20 and size.min() > 8
    assert left.min() >= 0 and right.max() <= width
    # A box is rounded up to whole pixels, and has blank ones above its letters.
    apart = (left[:, None] >= right) | (top[:, None] >= bottom - 1)
    assert (apart | apart.T | np.eye(len(texts), dtype=bool)).all()


def test_what_a_page_does_wrong_is_seen_in_the_console(browser: Any, address: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<script>nothing.here()</script><img src='data:image/png;base64,AAAA'>")
    _open(browser, broken.as_uri(), 400)
    assert "nothing is not defined" in json.dumps(browser.get_log("browser"))
    assert browser.execute_script("return document.images[0].naturalWidth") == 0


_SHOWN = {
    "ground": (("body", "background-color"), ("svg.matrix", "background-color")),
    "text": (("body", "color"), ("svg.matrix .text", "fill")),
}


def test_the_page_is_dark_where_the_reader_wants_it(browser: Any, address: str) -> None:
    light = {}
    for scheme in ("light", "dark"):
        _open(browser, address, 1400, scheme)
        for place, name in (*_SHOWN["ground"], *_SHOWN["text"]):
            shown = browser.find_element("css selector", place).value_of_css_property(name)
            light[scheme, place, name] = sum(map(int, re.findall(r"\d+", shown)[:3])) / 3
    for ground, text in zip(_SHOWN["ground"], _SHOWN["text"], strict=True):
        assert light["light", *ground] > 240 > 60 > light["light", *text]
        assert light["dark", *text] > 200 > 60 > light["dark", *ground]


def _column(browser: Any, table: int, column: int) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('table.sortable')[arguments[0]].tBodies[0].rows]"
        ".map(row => row.cells[arguments[1]].textContent)",
        table,
        column,
    )


def test_every_column_sorts_up_and_down_by_mouse(browser: Any, address: str) -> None:
    _open(browser, address, 1400)
    tables = browser.find_elements("css selector", "table.sortable")
    for number, table in enumerate(tables):
        for column, header in enumerate(table.find_elements("css selector", "th")):
            before = _column(browser, number, column)
            # Tables in closed details can't be clicked by hand.
            browser.execute_script("arguments[0].querySelector('button').click()", header)
            up = _column(browser, number, column)
            assert header.get_attribute("aria-sort") == "ascending"
            browser.execute_script("arguments[0].querySelector('button').click()", header)
            assert header.get_attribute("aria-sort") == "descending"
            assert sorted(before) == sorted(up) == sorted(_column(browser, number, column))
            assert len(table.find_elements("css selector", "th[aria-sort]")) == 1
    labels = next(n for n, table in enumerate(tables) if "by class" in table.get_attribute("aria-label"))
    tables[labels].find_element("css selector", "th button").click()
    assert _column(browser, labels, 0) == [str(label) for label in range(12)]


def test_numbers_sort_as_numbers_by_keyboard(browser: Any, address: str) -> None:
    from selenium.webdriver.common.keys import Keys

    _open(browser, address, 400)
    tables = browser.find_elements("css selector", "table.sortable")
    number = next(
        n for n, table in enumerate(tables) if table.get_attribute("aria-label") == "What the caches hold"
    )
    button = tables[number].find_elements("css selector", "th button")[4]
    button.send_keys(Keys.ENTER)
    sizes = [float(text.replace(",", "")) for text in _column(browser, number, 4)]
    assert len(sizes) == 4
    assert sizes == sorted(sizes)
    button.send_keys(Keys.SPACE)
    sizes = [float(text.replace(",", "")) for text in _column(browser, number, 4)]
    assert sizes == sorted(sizes, reverse=True)


def test_the_first_key_leads_past_the_navigation(browser: Any, address: str) -> None:
    from selenium.webdriver.common.keys import Keys

    _open(browser, address, 400)
    browser.find_element("tag name", "body").send_keys(Keys.TAB)
    focused = browser.switch_to.active_element
    assert focused.text == "Skip to the report"
    assert focused.location["x"] >= 0
    focused.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "main"
