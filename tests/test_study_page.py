"""The page of a folder of upscaled volumes: its rows, in a real browser with a thousand of them."""
import json
import re

import numpy as np
import pytest
from conftest import load_script
from synthetic import brain, save

from disk.files import write_pieces
from machine.remarks import noting, withheld
from options.command_line import command_line
from report.page import findings_html
from report.study_page import FEWEST, find_outliers, study_page
from report.viewer import encode

ABOUT = {"settings": {"factor": (2, 2, 2)}, "filters": {}, "versions": {}, "command": ""}
SHAPE = (18, 17, 16)
HOSTILE = "<script>alert(1)</script>/=1+1.nii"
MANY, FAILED, NOISY, STRANGE = 1000, 5, 17, 400  # rows, and the numbers of three of them


def described(number, random):
    """The row of a volume, as restoring describes it."""
    return {"volume": f"sub-{number:04}/T1w.nii", "from": (9, 9, 9), "to": (18, 18, 18),
            "voxel_size": (0.5, 0.5, 0.5), "unit": "mm", "seconds": random.uniform(9, 11),
            "noise": random.uniform(0.02, 0.03), "blur_trust": 1.0, "like": "box",
            "distance": random.uniform(0.9, 1.1), "page": f"sub-{number:04}/it's #1.html"}


def a_thousand():
    """Rows of which one failed, one is noisy and one is unlike the volumes of the training."""
    random = np.random.default_rng(0)
    rows = [described(number, random) for number in range(MANY)]
    rows[FAILED] = {"volume": HOSTILE, "failed": "not <b>a</b> NIfTI file"}
    rows[NOISY] |= {"noise": 0.2, "blur_trust": 0.5}
    rows[STRANGE] |= {"distance": 1.9, "trust": 0.2, "blur_trust": 0,
                      "messages": ["is unlike brains"]}
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The path of a page with a thousand rows."""
    random = np.random.default_rng(0)
    pictures = (encode(random.integers(0, 255, (48, 40)).astype(np.uint8)) for _ in range(MANY))
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_pieces(path, study_page(ABOUT, a_thousand(), pictures))
    return path


@pytest.fixture
def opened(browser, page):
    """The page, just opened in a browser."""
    browser.get(page.as_uri())
    return browser


def column(browser, title):
    """The texts of a column, of the rows that are shown, from the top."""
    return browser.execute_script("""
        const titles = [...document.querySelectorAll('.study thead th')].map(e => e.innerText);
        const column = titles.findIndex(text => text.trim() === arguments[0]);
        return [...document.querySelectorAll('.study tbody tr:not([hidden])')].map(
          row => row.cells[column].innerText)""", title)


def sort_by(browser, title, key=None):
    """Sort by a column, with a click or with a key; its `aria-sort`."""
    head = next(head for head in browser.find_elements("css selector", ".study thead th")
                if head.text.strip() == title)
    button = head.find_element("css selector", "button")
    if key:
        button.send_keys(key)
    else:
        button.click()
    return head.get_attribute("aria-sort")


def numbers(texts):
    return [float(text.split()[0]) for text in texts if text]


# ---- browser


def test_in_a_browser_a_thousand_rows_load_pictures_only_near_the_window(opened):
    assert len(column(opened, "volume")) == MANY
    loaded = "return [...document.querySelectorAll('.thumb')].filter(img => img.src).length"
    assert opened.execute_async_script("""const done = arguments[0];
        const look = () => {
          const img = document.querySelector('.thumb');
          img.src && img.naturalWidth === 40 ? done(true) : setTimeout(look, 20);
        };
        look();""")
    assert 0 < opened.execute_script(loaded) < 100
    fetched = "return performance.getEntriesByType('resource')" \
              ".filter(e => !e.name.startsWith('data:')).length"
    assert opened.execute_script(fetched) == 0 and opened.get_log("browser") == []


@pytest.mark.parametrize("key", [None, "\n", " "], ids=["click", "enter", "space"])
def test_in_a_browser_a_column_is_sorted_in_both_directions_and_says_so(opened, key):
    assert sort_by(opened, "noise", key) == "ascending"
    up = column(opened, "noise")
    assert numbers(up) == sorted(numbers(up)) and up[-1] == ""  # the volume that failed
    assert sort_by(opened, "noise", key) == "descending"
    down = column(opened, "noise")
    assert numbers(down) == sorted(numbers(down), reverse=True) and down[-1] == ""
    assert down[0].split() == ["20.0", "%", "outlier:", "high"]
    assert sort_by(opened, "state") == "ascending"
    assert len(opened.find_elements("css selector", "[aria-sort]")) == 1
    assert column(opened, "state")[:4] == ["failed", "outlier", "outlier", "done"]


def test_in_a_browser_rows_are_found_by_name_and_by_word(opened):
    opened.find_element("id", "find").send_keys("SUB-0042")
    assert column(opened, "volume") == ["sub-0042/\nT1w.nii"]
    assert opened.find_element("css selector", ".now").text == f"1 of {MANY} rows"
    opened.find_element("css selector", "[data-find=outlier]").click()
    assert column(opened, "volume") == [f"sub-{number:04}/\nT1w.nii" for number in (NOISY, STRANGE)]
    opened.find_element("css selector", "[data-find='']").click()
    assert len(column(opened, "volume")) == MANY


def test_in_a_browser_a_row_leads_to_the_viewer_of_its_volume(opened, page):
    viewer = page.parent / "sub-0000" / "it's #1.html"
    viewer.parent.mkdir(exist_ok=True)
    viewer.write_text("<title>the viewer</title>")
    opened.find_element("css selector", ".study tbody a").click()
    assert opened.title == "the viewer"


def test_in_a_browser_names_and_messages_are_text(opened):
    sort_by(opened, "state")
    assert column(opened, "volume")[0] == "<script>alert(1)</script>/\n./=1+1.nii"
    assert column(opened, "messages")[0] == "not <b>a</b> NIfTI file"
    assert opened.get_log("browser") == []


# ---- rows


def test_the_page_counts_what_needs_a_look(page):
    text = re.sub("<[^>]+>", "", page.read_text(encoding="utf-8"))
    assert "999 of 1000 volumes upscaled, 1 failed, 1 partly or wholly by spline, 1 partly or " \
           "wholly with least blur, 2 outliers (noise 1, distance 1)." in text


def test_a_name_on_the_page_is_no_formula():
    rows = [{"volume": name, "failed": ""} for name in ("=1+1.nii", "=2/a.nii")]
    text = "".join(study_page(ABOUT, rows, ["", ""]))
    assert ">./=1+1.nii<" in text and ">./=2/<" in text and not re.search(">=[12]", text)


def test_thumbnails_are_taken_one_at_a_time():
    rows, taken = a_thousand()[:20], []
    pieces = study_page(ABOUT, rows, (taken.append(number) or "" for number in range(20)))
    for piece in pieces:
        if piece.startswith("<tr>"):
            assert len(taken) == 1
            taken.clear()


@pytest.mark.parametrize("value, word", [(0.2, "high"), (0.0, "low"), (0.026, None)])
def test_noise_far_from_the_rest_is_marked(value, word):
    random = np.random.default_rng(1)
    rows = [{"noise": random.uniform(0.05, 0.06)} for _ in range(FEWEST)]
    rows = [{"noise": value if word else 0.055}, *rows]
    assert find_outliers(rows) == [{"noise": word} if word else {}, *FEWEST * [{}]]


def test_an_outlier_lies_three_and_a_half_robust_deviations_from_the_median():
    half = np.arange(1, 11) / 1000
    noise = [0.05, *(0.05 - half), *(0.05 + half)]
    for deviations, mark in ((3.2, {}), (3.8, {"noise": "high"})):
        # With a value that far on both sides, the median absolute deviation is 0.006.
        far = deviations * 1.4826 * 0.006
        rows = [{"noise": value} for value in [*noise, 0.05 - far, 0.05 + far]]
        assert find_outliers(rows)[-1] == mark


def test_a_volume_is_never_too_like_those_of_the_training():
    rows = [{"distance": 1.2}] * FEWEST + [{"distance": 0.1}, {"distance": 1.9}]
    assert find_outliers(rows)[-2:] == [{}, {"distance": "high"}]


def test_few_volumes_have_no_outliers_and_equal_ones_scatter_a_little():
    assert find_outliers([{"noise": 0.02}] * (FEWEST - 2) + [{"noise": 0.5}])[-1] == {}
    assert find_outliers([{"noise": 0.02}] * FEWEST + [{"noise": 0.0225}])[-1] == {}


# ---- runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over a folder: three volumes, one of them named as the page, and one that fails."""
    root = tmp_path_factory.mktemp("run")
    for number, name in enumerate(("a.nii", "report.nii", "sub/series.nii")):
        data = brain(number, SHAPE)
        save(root / "low" / name, data if number < 2 else np.stack([data, 0 * data], -1))
    (root / "low" / "bad.nii").write_bytes(b"no volume")
    words = ["--upscale", "--test_dir", root / "low", "--result_dir", root / "result"]
    assert load_script("test").main(command_line("test", list(map(str, words)))) == 1
    (folder,) = (root / "result").iterdir()
    return folder


def row_of(run, name):
    """The HTML of a volume's row."""
    lines = (run / "report.html").read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith("<tr><th") and f'data-v="{name}"' in line)
    return row


def test_an_outlier_that_is_also_incomplete_is_found_by_a_button():
    rows = [row | {"missed": 1} for row in a_thousand()[:20]]
    page = "".join(study_page(ABOUT, rows, [""] * len(rows)))
    assert "<strong>1 outlier</strong>" in page and 'data-find="outlier"' in page


def test_every_volume_of_a_run_has_a_row_and_every_result_a_viewer(run):
    for name, page in (("a.nii", "a.html"), ("report.nii", "report.nii.html"),
                       ("sub/series.nii", "sub/series.html")):
        row = row_of(run, name)
        assert f'href="{page}"' in row and re.search('data-jpeg="[^"]{400,6000}"', row)
        text = (run / page).read_text(encoding="utf-8")
        assert text.count('<section class="viewer"') == 1 and f"<title>{name} upscaled" in text
        assert json.loads((run / page).with_suffix(".json").read_text())["result_sha256"] in text
    assert '<section class="viewer"' not in (run / "report.html").read_text(encoding="utf-8")


def test_a_failed_volume_has_a_row_with_the_reason(run):
    assert "failed</span>" in row_of(run, "bad.nii")
    assert "<p>not a NIfTI file" in row_of(run, "bad.nii") and "href" not in row_of(run, "bad.nii")


def test_messages_and_estimates_are_in_record_and_row(run):
    figures = json.loads((run / "sub" / "series.json").read_text())["figures"]
    (message,) = (text for text in figures["messages"] if "black" in text)
    assert message.startswith("volume 2 of 2 is left black")
    row = row_of(run, "sub/series.nii")
    assert f"<p>{message}</p>" in row and ">incomplete</td>" in row
    assert f"estimated: {figures['like']}<" in row and f">{figures['distance']:.1f}<" in row
    own = (run / "sub" / "series.html").read_text(encoding="utf-8")
    assert f"<li>{message}</li>" in own and f"<td>estimated: {figures['like']}</td>" in own
    assert f"<td>{100 * figures['noise']:.1f} % of the brightest intensity</td>" in own


def test_the_page_of_a_volume_links_to_the_page_of_the_run(run):
    for page, link in (("a.html", "report.html"), ("sub/series.html", "../report.html")):
        assert f'<a href="{link}">All volumes' in (run / page).read_text(encoding="utf-8")
    assert "All volumes" not in (run / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_volume_states_a_given_profile_and_the_share_of_the_spline():
    row = {"told": "box", "trust": 0.25, "blur_trust": 0.5, "messages": ["is <unlike> brains"]}
    shown = findings_html(row)
    assert "<td>given: box</td>" in shown and "<td>25 %; the rest is the spline</td>" in shown
    assert "<td>50 %; otherwise the least blur is assumed</td>" in shown
    row = {"like": "gauss", "blur_trust": 0.0}
    assert "<td>least blur (assumed)</td>" in findings_html(row)
    spline = findings_html(row | {"trust": 0.0})
    assert "estimated: gauss" in spline and "least" not in spline
    series = findings_html(row | {"trust": 0.5, "from": (9, 9, 9, 2)})
    assert "estimated: gauss" in series and "50 %, in one of its volumes; the rest" in series
    assert "0 %, in one of its volumes; otherwise" in series
    assert "<li>is &lt;unlike&gt; brains</li>" in shown and "noise" not in shown
    assert findings_html({}) == ""


def test_the_usual_distance_of_a_scan_is_that_of_its_noise_and_voxels():
    row = {"distance": 1.1, "usual_distance": 1.2}
    assert "<td>1.1; usual up to 1.2</td>" in findings_html(row)


def test_volumes_that_a_spline_restores_in_part_are_counted_and_few_are_not_searched():
    page = "".join(study_page(ABOUT, a_thousand(), [""] * MANY))
    assert "1 partly or wholly by spline, 1 partly or wholly with least blur" in page
    few = "".join(study_page(ABOUT, a_thousand()[:FEWEST], [""] * FEWEST))
    assert "outliers are searched from 10 volumes on" in few  # one of them failed
    assert "no outliers" in "".join(study_page(ABOUT, a_thousand()[20:31], [""] * 11))
    assert "by spline" not in few and "Do not make a diagnosis" in few


def test_messages_that_are_noted_are_printed_too():
    with noting() as outer:
        with noting() as inner:
            assert not withheld("a line", "stdout")
        withheld("another", "stderr")
    assert (inner, outer) == (["a line"], ["another"])
