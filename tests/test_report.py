"""What a person looks at: pictures, the page in a real browser, the JSON record."""

import io
import json
import re
import shlex

import nibabel as nib
import numpy as np
import pytest
from conftest import read_rows
from PIL import Image
from scipy.ndimage import gaussian_filter

import test as script
import train
from disk.files import file_digest
from disk.filters import PRETRAINED_SCAN
from filter_constant import Method, Request
from octahedral.picture_layout import leaves_in_rows
from options.command_line import command_line
from report.filter_pictures import grid_of_buckets, picture_filters
from report.page import make_page, plot_gains, table_figures
from report.pictures import _darkest_corner, canonical, inset_place, picture_volume, plane
from report.record import about_run
from report.viewer import PAGE_BYTES, VOLUME_BYTES, make_viewer

pytestmark = pytest.mark.usefixtures("drawn")


def brain(seed, shape=(40, 44, 36)):
    """A smooth random landscape inside an ellipsoid, LAS with voxels of unequal size."""
    random = np.random.default_rng(seed)
    place = np.moveaxis(np.indices(shape), 0, -1) / np.subtract(shape, 1) * 2 - 1
    landscape = 100 + 2000 * (gaussian_filter(random.random(shape), 1.2) - 0.4)
    data = np.clip((np.square(place).sum(-1) < 0.8) * landscape, 0, None)
    return nib.Nifti1Image(data.astype(np.float32), np.diag([-1.0, 1.0, 1.5, 1.0]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of both commands: learned, evaluated on two volumes, one of them upscaled."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("train/a", 1), ("test/b", 2), ("test/c", 3)):
        (folder / name).parent.mkdir(exist_ok=True)
        nib.save(brain(seed), folder / f"{name}.nii.gz")
    common = ["--arrays_dir", str(folder / "arrays")]
    learned = [*common, "--train_dir", str(folder / "train"), "--filter_len", "5"]
    assert train.main(command_line("train", learned)) == 0
    evaluated = [
        *common,
        "--test_dir",
        str(folder / "test"),
        "--result_dir",
        str(folder / "result"),
    ]
    assert script.main(command_line("test", evaluated)) == 0
    upscaled = [
        *common,
        "--test_dir",
        str(folder / "test" / "b.nii.gz"),
        "--upscale",
        "--output",
        str(folder / "fine" / "b.nii.gz"),
    ]
    assert script.main(command_line("test", upscaled)) == 0
    return {
        "arrays": folder / "arrays",
        "result": next((folder / "result").iterdir()),
        "fine": folder / "fine",
        "test": folder / "test",
    }


def test_every_result_has_its_picture_and_record(runs):
    assert sorted(path.name for path in runs["result"].iterdir()) == [
        "b.json",
        "b.nii.gz",
        "b.png",
        "c.json",
        "c.nii.gz",
        "c.png",
        "metrics.csv",
        "report.html",
    ]
    about = json.loads((runs["result"] / "b.json").read_text())
    assert about["input_sha256"] == file_digest(runs["test"] / "b.nii.gz")
    assert about["filters"]["h_2.npy"] == file_digest(runs["arrays"] / "h_2.npy")
    assert about["settings"]["filter_len"] == 5 and "numpy" in about["versions"]
    assert set(about["seconds"]) >= {
        "read",
        "degrade and interpolate",
        "restore",
        "write",
        "figures",
        "picture and viewer",
    }
    assert set(about["figures"]) == set(read_rows(runs["result"] / "metrics.csv")[0])
    assert sorted(path.name for path in runs["fine"].iterdir()) == [
        "b.html",
        "b.json",
        "b.nii.gz",
        "b.png",
    ]
    figures = json.loads((runs["fine"] / "b.json").read_text())["figures"]
    assert set(figures) >= {"volume", "from", "to", "voxel_size"} and "seconds" not in figures


@pytest.mark.parametrize(
    "path", ["arrays/filters_2.png", "arrays/samples_2.png", "result/b.png", "fine/b.png"]
)
def test_pictures_are_pictures(runs, path):
    folder, name = path.split("/")
    pixels = np.asarray(Image.open(runs[folder] / name).convert("L"))
    assert min(pixels.shape) > 200 and pixels.std() > 10


def test_weights_around_the_centre_are_coloured():
    h = np.random.default_rng(0).choice([-0.02, 0.02], (64, 27))
    h[:, 13] = 1  # far larger than the others
    pixels = np.asarray(Image.open(io.BytesIO(picture_filters(h, (8, 8)))).convert("RGB"))
    assert (np.ptp(pixels.astype(int), axis=2) > 60).mean() > 0.3


def test_leaves_lie_in_rows_with_most_samples_first():
    values = [np.arange(5.0), np.array([7.0, 9.0, 8.0])]
    counts = [np.array([50, 40, 30, 20, 10]), np.array([5, 1, 3])]
    laid, classes, names = leaves_in_rows(values, counts, columns=2)
    grid = grid_of_buckets(laid, classes)  # the rows of each stage below those of the one before
    assert classes == (2, 2, 3) and len(names) == 3
    np.testing.assert_array_equal(grid, [[0, 1], [2, 3], [4, np.nan],
                                         [7, 8], [9, np.nan], [np.nan, np.nan]])


def test_only_where_there_is_an_original_errors_are_shown_in_colours(runs):
    coloured = {}
    for folder in ("result", "fine"):
        pixels = np.asarray(Image.open(runs[folder] / "b.png").convert("RGB")).astype(int)
        coloured[folder] = (np.ptp(pixels, axis=2) > 30).mean()
    assert coloured["result"] > 0.05 and coloured["fine"] < 0.01  # frames of what is enlarged


def test_no_report_leaves_only_results_and_a_hidden_record(runs, tmp_path):
    words = [
        "--arrays_dir",
        str(runs["arrays"]),
        "--test_dir",
        str(runs["test"] / "b.nii.gz"),
        "--result_dir",
        str(tmp_path),
    ]
    assert script.main(command_line("test", [*words, "--no-report"])) == 0
    result = next(tmp_path.iterdir())
    assert sorted(path.name for path in result.iterdir()) == [".b.json", "b.nii.gz", "metrics.csv"]


def test_the_enlarged_square_is_where_images_differ_most():
    first = np.random.default_rng(0).random((60, 50, 40))
    second = first.copy()
    second[20:28, 30, 10:18] += 1  # in a coronal slice
    square = inset_place([first, second], 1, 30)
    changed = plane(second, 1, 30) != plane(first, 1, 30)
    rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    assert square == (rows[0], columns[0], 8)
    assert inset_place([first[:10], second[:10]], 1, 30) is None


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_enlarged_square_is_drawn_in_the_darkest_corner(corner):
    pixels = np.ones((40, 40))
    right, top = corner
    pixels[:20 if top else 40, 20 * right:20 * right + 20][20 * (1 - top):] = 0
    assert _darkest_corner(pixels) == corner


def test_each_image_of_a_picture_is_as_wide_as_the_others():
    volume = np.random.default_rng(0).random((20, 20, 20))
    widths = []
    for names in ("ab", "abcd"):
        picture = picture_volume({name: volume for name in names}, np.eye(4), compare=False)
        widths.append(Image.open(io.BytesIO(picture)).width)
    assert widths[1] == pytest.approx(2 * widths[0], abs=2)


def test_the_recorded_command_can_be_pasted_back():
    words = ["test.py", "--test_dir", "a folder/it's $HOME.nii", "--suffix", "*"]
    assert shlex.split(about_run(Request(), Method(), words)["command"]) == words


def test_the_next_command_can_be_pasted():
    request = Request.of(arrays_dir="the \"best\" of $HOME", factor=(1, 1, 4))
    words = shlex.split(train.next_command(request))
    assert words == ["python", "test.py", "--factor", "1", "1", "4", "--arrays_dir",
                     request.arrays_dir]


def test_a_training_for_scans_says_that_its_filters_replace_those_of_the_project():
    said = train.about_use(Request.of(preset="scan", lr_type="scan"))
    assert "From now on" in said and said.endswith(
        f"--arrays_dir {shlex.quote(str(PRETRAINED_SCAN))}\n")
    for other in ({"preset": "best"}, {"preset": "scan", "lr_type": "scan", "factor": (5, 5, 5)},
                  {"preset": "scan", "lr_type": "scan", "arrays_dir": "mine"}):
        assert train.about_use(Request.of(**other)) == ""


def test_the_page_holds_all_it_needs(runs):
    for folder, name in ("result", "report.html"), ("fine", "b.html"):
        text = (runs[folder] / name).read_text(encoding="utf-8")
        assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|https?://""", text)
        assert not re.search(r"@[A-Z]+@", text)
        assert file_digest(runs["arrays"] / "h_2.npy") in text


def test_the_page_of_thick_slices_names_the_factor_that_they_got(tmp_path):
    thick = np.asarray(brain(4, (20, 18, 6)).dataobj)
    nib.save(nib.Nifti1Image(thick, np.diag([1.0, 1.0, 4.0, 1.0])), tmp_path / "thick.nii")
    words = ["--upscale", "--isotropic", "--no-adapt", "--test_dir", str(tmp_path / "thick.nii"),
             "--output", str(tmp_path / "fine.nii")]
    assert script.main(command_line("test", words)) == 0
    text = (tmp_path / "fine.html").read_text(encoding="utf-8")
    assert '<th scope="row">factor</th><td>[1, 1, 4]</td>' in text.replace("(", "[").replace(
        ")", "]")


def test_names_that_look_like_places_of_the_template_are_text_in_the_page():
    rows = [{"volume": "@ABOUT@@CONTENT@.nii", "from": (1, 1, 1), "to": (2, 2, 2),
             "voxel_size": (1, 1, 1), "unit": "mm", "seconds": 1.0}]
    page = "".join(make_page({"settings": {"factor": (2, 2, 2)}, "filters": {}, "versions": {},
                              "command": ""}, rows, []))
    assert page.count("@ABOUT@@CONTENT@.nii") == 3  # title, heading and table


def test_names_from_the_user_are_text_in_the_page():
    about = {
        "command": "<script>",
        "settings": {"factor": (2, 2, 2)},
        "filters": {},
        "versions": {},
    }
    row = {
        "volume": "</script><b>",
        "from": (1, 1, 1),
        "to": (2, 2, 2),
        "voxel_size": (1, 1, 1), "unit": "mm",
        "seconds": 1.0,
    }
    images = {"LR": np.ones((9, 9, 9)), "Restored": np.ones((9, 9, 9))}
    text = "".join(make_page(about, [row], [make_viewer("</script><b>", images, np.eye(4))]))
    assert "<b>" not in text and "<script>&" not in text and text.count("</script>") == 2


def test_names_from_the_user_are_text_beside_the_gains():
    figures = {f"{image}_{kind}": 1.0 for image in ("lr", "spline5", "sr")
               for kind in ("psnr", "ssim")}
    row = {"volume": "</svg><b>.nii", "mask": "<i>.nii", "gain_over_spline": 0.5} | figures
    about = {"command": "", "settings": {"factor": (2, 2, 2), "start": "spline"}, "filters": {},
             "versions": {}}
    text = "".join(make_page(about, [row], []))
    assert text.count("&lt;/svg&gt;&lt;b&gt;.nii") >= 2 and "&lt;i&gt;.nii" in text
    assert "</svg><b>" not in text and "<i>.nii" not in text


@pytest.mark.parametrize("start, name", [("quadratic", "LR"), ("cubic", "start")])
def test_the_table_calls_only_the_published_estimate_lr(start, name):
    figures = {f"{image}_{kind}": 1.0 for image in ("lr", "spline5", "sr")
               for kind in ("psnr", "ssim")}
    table = table_figures([{"volume": "a", "gain_over_spline": 0.5} | figures], start)
    assert f'scope="colgroup">{name}</th>' in table and f"{name}: the initial estimate" in table


def test_the_bars_of_gains_are_as_long_as_their_gains():
    rows = [{"volume": f"{gain}", "gain_over_spline": gain} for gain in (2.0, -0.5, 0.0, 1.0)]
    text = plot_gains(rows)
    bars = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="(\d+)" width="([\d.]+)"', text)
    kinds, x, y, width = zip(*bars)
    x, y, width = (np.array(column, float) for column in (x, y, width))
    zero = float(re.search(r'<line x1="([\d.]+)"', text)[1])
    assert kinds == ("better", "worse", "better", "better")
    np.testing.assert_allclose(width / width[0], [1, 0.25, 0, 0.5], atol=1e-3)
    np.testing.assert_allclose(x, [zero, zero - width[1], zero, zero], atol=0.2)
    assert len(set(np.diff(y))) == 1 and y[0] >= 0  # one under the other, on the picture
    names = re.findall(r'<text x="[\d.]+" y="(\d+\.?\d*)" text-anchor="end">', text)
    high = re.findall(r'<rect [^>]* height="([\d.]+)"', text)
    for top, baseline, height in zip(y, map(float, names), map(float, high), strict=True):
        assert 8 < height < np.diff(y)[0] and top < baseline <= top + height
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', text)
    assert (x + width).max() < float(box[1]) and y[-1] < float(box[2])


def test_a_viewer_stays_within_its_share_whatever_the_volume():
    noise = np.random.default_rng(0).random((120, 140, 130))
    images = {"HR": noise, "Restored": noise[::-1]}
    alone = make_viewer("noise", images, np.eye(4))
    assert 0.5 * VOLUME_BYTES < len(json.dumps(alone)) < 1.1 * VOLUME_BYTES
    one_of_many = make_viewer("noise", images, np.eye(4), volumes=100)
    assert len(json.dumps(one_of_many)) < 1.1 * PAGE_BYTES / 100


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR"])
def test_pictures_turn_every_orientation_the_same_way(axes):
    image = nib.Nifti1Image(np.random.default_rng(1).random((6, 7, 8)), np.diag([1.0, 2, 3, 1]))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    )
    turned = image.as_reoriented(turn)
    images, sizes = canonical({"a": turned.get_fdata()}, turned.affine)
    assert np.array_equal(images["a"], image.get_fdata()) and np.allclose(sizes, (1, 2, 3))
    sagittal, axial = plane(images["a"], 0, 2), plane(images["a"], 2, 3)
    assert sagittal[0, 0] == image.get_fdata()[2, -1, -1]  # anterior superior
    assert axial[0, 0] == image.get_fdata()[0, -1, 3]  # left anterior


# ---- browser
# selenium is imported where it is used: the tests above run without it.


def seen(browser, axis=2):
    """What the stack of a plane shows: pixels as they are on the screen."""
    stack = browser.find_elements("css selector", ".stack")[axis]
    return np.asarray(Image.open(io.BytesIO(stack.screenshot_as_png)))


@pytest.fixture
def opened(browser, runs):
    browser.get((runs["result"] / "report.html").as_uri())
    assert browser.execute_async_script("""const done = arguments[0];
        const look = () => {
          const all = [...document.querySelectorAll('.stack img')];
          all.every(img => img.src && img.complete) ? done(true) : setTimeout(look, 20);
        };
        look();""")
    return browser


def click(browser, selector, number=0):
    element = browser.find_elements("css selector", selector)[number]
    browser.execute_script("arguments[0].click()", element)
    return element


def test_in_a_browser_all_images_load_without_a_complaint(opened):
    assert opened.execute_script(
        "return [...document.querySelectorAll('.stack img')].every(img => img.naturalWidth > 10)"
    )
    fetched = opened.execute_script(
        "return performance.getEntriesByType('resource')"
        ".filter(e => !e.name.startsWith('data:')).length"
    )
    assert fetched == 0
    assert opened.get_log("browser") == []


def test_in_a_browser_names_keys_and_clicks_flip_the_image(opened):
    from selenium.webdriver import ActionChains, Keys

    restored = seen(opened)
    click(opened, "button[data-kind='0']")
    original = seen(opened)
    assert not np.array_equal(original, restored)
    click(opened, ".stack", 2)
    spline = seen(opened)
    assert not np.array_equal(spline, original) and not np.array_equal(spline, restored)
    ActionChains(opened).send_keys("3").perform()
    assert np.array_equal(seen(opened), restored)
    ActionChains(opened).send_keys(Keys.SPACE).perform()
    assert np.array_equal(seen(opened), original)
    button = opened.find_element("css selector", "button[data-kind='1']")
    ActionChains(opened).send_keys("3").move_to_element(button).perform()
    assert np.array_equal(seen(opened), spline)  # while the pointer stays
    ActionChains(opened).move_to_element(opened.find_element("css selector", "h3")).perform()
    assert np.array_equal(seen(opened), restored)
    ActionChains(opened).send_keys("d").perform()
    assert not np.array_equal(seen(opened), restored)
    assert opened.get_log("browser") == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_a_browser_sliders_and_arrows_move_through_slices(opened, axis):
    from selenium.webdriver import ActionChains, Keys

    before = seen(opened, axis)
    slider = opened.find_elements("css selector", "input[type=range]")[axis]
    opened.execute_script(
        "arguments[0].value = 3; arguments[0].dispatchEvent(new Event('input'))", slider
    )
    opened.implicitly_wait(0.1)
    moved, label = seen(opened, axis), opened.find_elements("css selector", "output")[axis].text
    assert not np.array_equal(before, moved)
    ActionChains(opened).send_keys(Keys.ARROW_RIGHT).perform()
    assert opened.find_elements("css selector", "output")[axis].text != label
    assert opened.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_the_page_follows_light_and_dark(opened, scheme):
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    colours = opened.execute_script(
        "const style = getComputedStyle(document.body);return [style.color, style.backgroundColor]"
    )
    ink, paper = (
        np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]]) for colour in colours
    )
    assert (paper - ink > 150) if scheme == "light" else (ink - paper > 150)
