"""One file that shows everything, fetches nothing, survives hostile strings, and fits a phone."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import report_material as material
from chromium import Chromium

from lawm_policy.stages import report, report_charts, report_sources
from lawm_policy.stages.report import ReportArgs
from lawm_policy.stages.report_charts import Series
from lawm_policy.types import UserError

HOSTILE = "<script>alert(1)</script>\"'><img src=http://example.com/x onerror=alert(2)>&amp;"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return material.everything(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert report.run(ReportArgs(tuple(folders), out=out, title="A title", summary="One. Two.")) == 0
    return out


class Elements(HTMLParser):
    """Every element with its attributes, the text outside style and script, and that tags are closed."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self.open = [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_everything_is_there_and_carried(page):
    text = page.read_text()
    elements = Elements(text)
    said = " ".join(" ".join(elements.text).split())
    for part in (
        *(
            "A title",
            "One. Two.",
            "scratch",
            "pretrained",
            "push green *",
            "held out of pretraining",
            "1 error",
        ),
        *(
            "Does pretraining",
            "missed",
            "not measured",
            "Not measured: hand-only (n = 10)",
            "minus scratch",
            "step 1500",
            "0123456789abcdef",
            "better than",
        ),
    ):
        assert part in said, part
    failed = said.count(" steps from state ")
    assert len(elements.all("video")) == 8 and len(elements.all("img")) == 2 + failed > 2
    assert "another policy here succeeds from the same start" in said
    marks = [a["class"] for a in elements.all("i") if a.get("class") in ("yes", "no", "error")]
    assert len(marks) == 160 and marks.count("error") == 4, "each episode is a mark"
    for tag in ("video", "img"):
        for attributes in elements.all(tag):
            assert attributes["src"].startswith("data:") and (
                attributes.get("alt") or attributes.get("aria-label")
            )
    links = [a["href"] for a in elements.all("a") + elements.all("link")]
    assert all(link.startswith(("#", "data:")) for link in links)
    identifiers = [a["id"] for _, a in elements.found if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    for attributes in elements.all("svg"):
        assert attributes.get("aria-label") or attributes.get("aria-hidden")
    assert page.stat().st_size < 1_000_000


def test_the_numbers_are_those_of_compare(folders, page):
    from lawm_policy.stages import compare

    found = compare.compare(*([report_sources.read([f]).evaluations[0].folder] for f in folders[:2]))
    assert f"+{100 * found['difference']['value']:.1f}" in page.read_text()
    assert found["left_out"]["errors"] == 4


@pytest.mark.parametrize("policies", [1, 4])
def test_tasks_are_a_heat_map(tmp_path, policies):
    names = [material.evaluation(tmp_path / f"e{k}", 0.2 * k, k, films=False) for k in range(policies)]
    text = report.build(report_sources.read([str(name) for name in names]))
    shades = [int(share) for share in re.findall(r"--share:(\d+)%", text)]
    assert len(shades) == 7 * policies and shades[0::policies] == [0] * 7, (
        "four tasks and three sums of them under each policy; the first never succeeds"
    )
    assert "Failures that tell most" not in text, "there are no films"


def test_hostile_strings_stay_strings(tmp_path):
    a = material.evaluation(tmp_path / "a", 0.5, 1, films=False)
    lines = [json.loads(line) for line in (a / "episodes.jsonl").read_text().splitlines()]
    for line in lines:
        line["task"] = line["instruction"] = line["error"] = HOSTILE
    (a / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    b = material.benchmark(tmp_path / "b")
    (b / "result.json").write_text(
        (b / "result.json").read_text().replace("scratch", json.dumps(HOSTILE)[1:-1])
    )
    c = material.training(tmp_path / "c", steps=20)
    (c / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "split": HOSTILE, HOSTILE: 1.0, "loss": 2}) + "\n"
    )
    (c / "versions.json").write_text(json.dumps({"command": HOSTILE, "data": {HOSTILE: HOSTILE}}))
    out = tmp_path / "r.html"
    report.run(
        ReportArgs(
            (f"<script>alert(1)</script>={a}", str(b), str(c)), out=out, title=HOSTILE, summary=HOSTILE
        )
    )
    elements = Elements(out.read_text())
    assert len(elements.all("script")) == 1, "only our own"
    assert all(a["src"].startswith("data:") for a in elements.all("img"))
    assert not any(key.startswith("on") for _, a in elements.found for key in a)
    assert "<script>alert(1)</script>" in " ".join(elements.text)


def test_any_mix_and_automatic_words(tmp_path):
    root = tmp_path / "runs"
    material.training(root / "one", steps=30)
    material.training(root / "two", steps=30)
    text = report.build(report_sources.read([str(root)]))
    assert "<h1>One and two</h1>" in text and "Success on" not in text and "Rollouts" not in text
    a = material.evaluation(tmp_path / "evals" / "a", 0.2, 1, films=False)
    b = material.evaluation(tmp_path / "evals" / "b", 0.8, 2, films=False)
    text = report.build(report_sources.read([str(tmp_path / "evals")]))
    assert (
        re.search(r"<h1>B succeeds \d+ points more often than a on tabletop</h1>", text)
        and "b is better than a (b - a: " in text
    )
    (b / "summary.md").write_text("Ours is better & honest.")
    assert "Ours is better &amp; honest." in report.build(report_sources.read([str(a), str(b)]))
    c = material.evaluation(tmp_path / "c", 0.8, 3, films=False, execute=4)
    text = report.build(report_sources.read([str(a), str(c)]))
    assert "Not comparable: the protocols differ in execute: 8 and 4" in text and "better than" not in text
    for folder, mark in ((a, "a1"), (b, "b2")):
        lines = (folder / "episodes.jsonl").read_text().splitlines()
        told = [json.dumps(json.loads(line) | {"start": mark}) for line in lines]
        (folder / "episodes.jsonl").write_text("\n".join(told) + "\n")
    (b / "summary.md").unlink()
    text = report.build(report_sources.read([str(a), str(b)]))
    assert re.search(r"Not comparable: of their pairs there are (\d+) of \1 that began apart", text)
    assert "better than" not in text


def test_odd_rows_are_shown_as_they_are(tmp_path):
    rows = [
        {"arm": "a", "n": "many", "mean": "good"},
        {"arm": "b", "n": 1, "mean": 0.5, "interval": "wide"},
        {},
    ]
    targets = [{"name": "t", "goal": None, "value": "fast", "interval": [1], "met": None}, {}]
    (tmp_path / "result.json").write_text(json.dumps({"rows": rows, "targets": targets}))
    text = report.build(report_sources.read([str(tmp_path)]))
    said = " ".join(Elements(text).text)
    assert (
        "many" in said and "no interval" in said and "fast" in said and "Not measured: a (n = many)" in said
    )


def test_names_tell_folders_apart(tmp_path):
    places = [tmp_path / "x" / "eval", tmp_path / "y" / "eval"]
    for place in places:
        material.evaluation(place, 0.5, 1, films=False)
    assert [e.name for e in report_sources.read([str(p) for p in places]).evaluations] == ["x/eval", "y/eval"]


def test_the_page_stays_small(tmp_path, monkeypatch, capsys):
    a = material.evaluation(tmp_path / "a", 0.5, 1)
    monkeypatch.setattr(report, "FILM_BYTES", 2 * max(p.stat().st_size for p in (a / "video").iterdir()))
    text = report.build(report_sources.read([str(a)]))
    assert 0 < text.count("<video") < 4 and "left out: films of" in capsys.readouterr().err


def test_refusals(tmp_path, page):
    a = material.evaluation(tmp_path / "a", 0.5, 1)
    (a / "video" / "open_drawer-200000-0.mp4").write_bytes(b"MZ not a film")
    c = material.training(tmp_path / "c", steps=20)
    (c / "strips" / "step-00000020.png").write_bytes(b"<svg onload=alert(1)>")
    d = material.benchmark(tmp_path / "d")
    (d / "result.json").write_text('{"rows": 3}')
    e = material.training(tmp_path / "e", steps=20)
    (e / "metrics.jsonl").write_text("no json\n")
    (tmp_path / "empty").mkdir()
    for folders, message in [
        ([tmp_path / "nowhere"], "expected a folder"),
        ([tmp_path / "empty"], "expected a run, an evaluation or a benchmark"),
        ([a], "expected an MP4 film"),
        ([c], "expected a PNG picture"),
        ([d], "expected a list of objects under 'rows'"),
        ([e], "line 1"),
        ([e, e], "a name of its own"),
        ([], "expected folders"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            report.run(ReportArgs(tuple(map(str, folders)), out=tmp_path / "r.html"))
        assert "\n" not in str(caught.value) and not (tmp_path / "r.html").exists()
    with pytest.raises(UserError, match="--force"):
        report.run(ReportArgs((str(a),), out=page))


def test_charts():
    chart = report_charts.curve_chart(
        [Series("train", [(i, 10.0 ** -(i / 500)) for i in range(1, 1001)])], "loss"
    )
    assert chart.count("L") < 305 and "ends at 0.01" in chart and ">0.1<" in chart and ">1<" in chart
    flat = report_charts.curve_chart([Series("val", [(5, 0.0)])], "loss")
    assert "NaN" not in flat and "nan" not in flat and "<circle" in flat
    ticks = report_charts._ticks(0, 83, 5)
    assert ticks == [0, 20, 40, 60, 80, 100]
    assert [report_charts._short(x) for x in (1.2e6, 20_000, 1500, 0.5, 1.2e-4, 30.0)] == [
        "1.2M", "20k", "1500", "0.5", "1.2e-4", "30",
    ]  # fmt: skip


@pytest.mark.slow
def test_in_a_browser(page, tmp_path):
    """No request, complaint or overflow, on a phone and a desk, light and dark; films play; it prints."""
    with Chromium(tmp_path / "profile") as browser:
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                browser.open(page, width, scheme=scheme)
                assert [url[:80] for url in browser.requests if not url.startswith("data:")] == [
                    page.as_uri()
                ]
                assert browser.complaints == []
                assert browser.evaluate("document.documentElement.scrollWidth") == width
                browser.screenshot(tmp_path / f"{width}-{scheme}.png")
                background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
                assert background == ("rgb(253, 252, 250)" if scheme == "light" else "rgb(22, 24, 27)")
        unreadable = browser.evaluate(
            "[...document.querySelectorAll('main *')].filter(e => e.childNodes.length && "
            "[...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()) && "
            "e.getBoundingClientRect().width && parseFloat(getComputedStyle(e).fontSize) < 10).length"
        )
        assert unreadable == 0
        assert browser.evaluate("document.querySelectorAll('button').length") == 4
        played = browser.evaluate(
            "(async () => { const row = document.querySelector('.films'); row.nextSibling.click();"
            "const films = [...row.querySelectorAll('video')];"
            "const started = f => new Promise(done => f.ontimeupdate = () => f.currentTime > 0 && done());"
            "await Promise.all(films.map(started));"
            "return films.map(f => [f.videoWidth, f.videoHeight, f.currentTime > 0]) })()"
        )
        assert played == [[256, 128, True]] * 2 and browser.complaints == []
        browser.print(tmp_path / "report.pdf")
        assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
