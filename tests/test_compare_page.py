"""The page of a race: what it holds, its surfaces, and how a real browser shows it.

The browser is Chromium, without a window, driven over its own debugging pipe.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gradstep.lab import surface
from gradstep.lab.dataset import Dataset
from gradstep.lab.race import FORMAT, Entry, Result
from gradstep.lab.race_page import page
from gradstep.lab.race_report import at_the_edge, final_standings
from gradstep.lab.surface import (
    FORMULAS,
    Surface,
    best_path,
    formula_path,
    formula_surface,
    plane_surface,
    why_no_plane,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = '</script><script>alert(1)</script><img src="http://example.invalid/x.png">'


def made_up_run(entry: Entry, diverged: bool = False) -> Result:
    """A run with numbers that a test can foretell: the page only draws what it is given."""
    steps = [0, 10, 20] if diverged else [0, 10, 20, 30]
    speed = entry.lr * (1 + entry.seed / 10)
    loss = [2.3 * math.exp(-speed * step) for step in steps]
    last = None if diverged else loss[-1]
    return {
        "format": FORMAT,
        "entry": asdict(entry),
        "steps": steps,
        "train_loss": [None, *loss[1:-1], last],
        "test_loss": [*loss[:-1], last],
        "test_accuracy": [1 - value / 2.5 for value in loss],
        "final": {"train_loss": last, "test_loss": last, "test_accuracy": 1 - loss[-1] / 2.5},
        "diverged": 20 if diverged else None,
        "step_microseconds": 20.0 + entry.seed,
        "seconds": 1.0,
        "steps_an_epoch": 10,
    }


def made_up_race() -> dict[Entry, Result]:
    runs = [Entry(n, lr, s) for s in range(3) for n in ("sgd", "adam") for lr in (0.01, 0.1, 1.0)]
    return {run: made_up_run(run, run == Entry("sgd", 1.0, 1)) for run in runs}


def small_surface() -> Surface:
    return formula_surface(FORMULAS[0], ["sgd", "adam"])


@pytest.fixture(scope="module")
def content() -> bytes:
    """A page of a made-up race, on a real surface with real paths."""
    results = made_up_race()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surface, "RATES", (0.001, 0.003))
        facts = [("network", HOSTILE), ("data", "made up")]
        return page(
            facts, results, final_standings(results), [small_surface()], [f"A remark: {HOSTILE}"]
        )


class _Parts(HTMLParser):
    """All elements with their attributes, and the text of each script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if tag in ("script", "style"):
            self.texts.setdefault(str(attributes.get("type", tag)), data)


def parts(content: bytes) -> _Parts:
    found = _Parts()
    found.feed(content.decode())
    return found


def test_nothing_on_the_page_points_outside(content: bytes) -> None:
    found = parts(content)
    for tag, attributes in found.elements:
        assert tag not in ("img", "iframe", "object", "embed", "audio", "video", "base", "form")
        assert not {"src", "srcset", "action", "background", "style"} & set(attributes), tag
        assert not any(key.startswith("on") for key in attributes), tag
        assert attributes.get("href") in (None, "data:,")
    for text in (found.texts["script"], found.texts["style"]):
        assert not re.search(r"//\w|url\(|@import|fetch\(|XMLHttp|WebSocket|import\s*\(", text)
    scripts = [attributes for tag, attributes in found.elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]


def test_the_policy_allows_this_script_and_style_and_nothing_else(content: bytes) -> None:
    found = parts(content)
    policy = next(
        str(attributes["content"])
        for tag, attributes in found.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = {}
    for name in ("script", "style"):
        digest = hashlib.sha256(found.texts[name].encode()).digest()
        hashes[f"{name}-src"] = f"'sha256-{base64.b64encode(digest).decode()}'"
    assert rules == {"default-src": "'none'", "img-src": "data:", **hashes}


def test_a_best_rate_at_the_edge_of_the_sweep_is_told() -> None:
    results = made_up_race()
    assert at_the_edge(results) == ["adam"]
    assert at_the_edge({entry: r for entry, r in results.items() if entry.lr == 0.1}) == []


def test_the_numbers_on_the_page_are_those_of_the_runs(content: bytes) -> None:
    data = json.loads(parts(content).texts["application/json"])
    assert [rule["name"] for rule in data["rules"]] == ["sgd", "adam"]
    sgd, adam = data["rules"]
    assert sgd["best"] == 0.1  # at 1.0 a run diverged
    assert adam["best"] == 1.0
    middle = sgd["rates"][1]
    losses = [2.3 * math.exp(-0.1 * (1 + seed / 10) * 30) for seed in range(3)]
    expected = [numpy.mean(losses), min(losses), max(losses)]
    assert middle["final"]["test_loss"] == pytest.approx(expected, rel=1e-4)
    assert middle["curves"]["test_loss"][-1] == pytest.approx(expected, rel=1e-4)
    assert middle["curves"]["train_loss"][0] is None
    lost = sgd["rates"][2]
    assert lost["diverged"] == 1 and lost["final"]["test_loss"] is None
    assert lost["curves"]["test_loss"][1] is not None and lost["curves"]["test_loss"][2:] == [
        None,
        None,
    ]


# Surfaces.


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.name)
def test_a_formula_is_lowest_where_it_says_and_the_grid_is_the_right_way_up(formula: Any) -> None:
    x, y = (torch.tensor(value, dtype=torch.float64) for value in formula.lowest)
    assert formula.loss(x, y).item() == 0
    found = formula_surface(formula, [])
    grid = numpy.array(found.grid)
    xs, ys = (numpy.linspace(*ends, len(grid)) for ends in (found.x_range, found.y_range))
    row, column = numpy.unravel_index(grid.argmin(), grid.shape)
    assert abs(xs[column] - formula.lowest[0]) < 0.06 and abs(ys[row] - formula.lowest[1]) < 0.06
    assert grid[0, -1] == pytest.approx(
        formula.loss(torch.tensor(xs[-1]), torch.tensor(ys[0])).item()
    )


def test_a_path_is_the_one_of_torchs_optimizer() -> None:
    formula = FORMULAS[0]
    path = formula_path(formula, "adam", 0.05, steps=40)
    weights = nn.Parameter(torch.tensor(formula.start, dtype=torch.float64))
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for step in range(40):
        assert path.points[step] == pytest.approx(weights.tolist(), abs=1e-9)
        x, y = weights
        loss = (1 - x) ** 2 + 100 * (y - x**2) ** 2
        assert path.losses[step] == pytest.approx(loss.item(), rel=1e-8, abs=1e-12)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert path.steps == list(range(41))


def test_the_rate_of_a_path_keeps_it_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface, "RATES", (0.0001, 0.001, 10.0))
    assert formula_path(FORMULAS[0], "sgd", 10.0).steps[-1] == 1
    assert best_path(FORMULAS[0], "sgd").lr == 0.001


def test_the_plane_holds_paths_that_lie_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that move in a plane: the picture then has their losses, and its axes all of the
    variance."""
    monkeypatch.setattr(surface, "PLANE_GRID", 61)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images, labels = torch.randn(20, 1, 2, 2), torch.randint(3, (20,))
    data = Dataset("made up", images, labels, images, labels, 0.0)
    base, one, two = torch.randn(3, 15)
    places = {
        "sgd": torch.tensor([[0.0, 0.0], [1.0, 0.5], [2.0, -0.5]]),
        "adam": torch.tensor([[0.0, 0.0], [-0.5, 1.0], [-1.0, 1.5]]),
    }
    weights = {name: base + a[:, :1] * one + a[:, 1:] * two for name, a in places.items()}
    steps = {name: [0, 5, 9] for name in weights}
    found = plane_surface(model, data, weights, steps, {"sgd": 0.1, "adam": 0.01})

    shares = [float(x) for x in re.findall(r"(\d+)%", found.x_label + found.y_label)]
    points = torch.cat(list(weights.values()))
    singular = numpy.linalg.svd((points - points.mean(0)).numpy(), compute_uv=False) ** 2
    assert shares == pytest.approx(100 * singular[:2] / singular.sum(), abs=0.51)

    xs, ys = (numpy.linspace(*ends, 61) for ends in (found.x_range, found.y_range))
    grid = numpy.array(found.grid)
    for path in found.paths:
        assert path.steps == [0, 5, 9]
        for place, point, loss in zip(
            path.points, weights[path.optimizer], path.losses, strict=True
        ):
            nn.utils.vector_to_parameters(point, model.parameters())
            own = cross_entropy(model(images), labels).item()
            assert loss == pytest.approx(own, rel=1e-5)
            column, row = abs(xs - place[0]).argmin(), abs(ys - place[1]).argmin()
            assert grid[row, column] == pytest.approx(own, abs=0.15)
    distance = math.dist(found.paths[0].points[0], found.paths[0].points[2])
    assert distance == pytest.approx(
        (weights["sgd"][2] - weights["sgd"][0]).norm().item(), rel=1e-4
    )


def test_a_network_that_has_no_plane_says_why() -> None:
    assert "buffers" in str(why_no_plane(nn.BatchNorm2d(2)))
    assert "2,001,000 weights" in str(why_no_plane(nn.Linear(1000, 2001, bias=False)))
    assert why_no_plane(nn.Linear(2, 2)) is None


# In a browser.


class Browser:
    """Chromium with one empty page. Its own business with the network is cut off, and what the
    page asks for is in ``events``."""

    def __init__(self, profile: str) -> None:
        assert CHROMIUM is not None
        from_us, self._write = os.pipe()
        self._read, to_us = os.pipe()
        command = [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *(f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"),
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{to_us}', "bash", *command],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._buffer, self._number, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of Chromium's debugging protocol, and wait for its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], 60)
            piece = os.read(self._read, 1 << 16) if ready else b""
            assert piece, "Chromium does not answer"
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def open(self, path: Path) -> None:
        """Open a file and wait until it is there."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(self._receive())

    def value(self, expression: str) -> Any:
        """What an expression comes to in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def asked_for(self) -> list[str]:
        """All addresses that the page asked for, itself first; also what its policy refused."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self) -> list[str]:
        """Errors of scripts, what they wrote to the console, and what the browser logged."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(e["params"]) for e in self.events if e["method"] in kinds]

    def picture(self) -> Any:
        """The whole page as an array of pixels."""
        from PIL import Image  # matplotlib brings it

        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path = Path(tempfile.mkdtemp()) / "page.png"
        path.write_bytes(base64.b64decode(shot["data"]))
        pixels = numpy.asarray(Image.open(path).convert("RGB"))
        shutil.rmtree(path.parent)
        return pixels

    def close(self) -> None:
        self._session = None
        try:
            self.call("Browser.close")
            self.process.wait(timeout=10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self._read)
        os.close(self._write)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    profile = tempfile.mkdtemp(prefix="gradstep-chromium-")
    made = Browser(profile)
    yield made
    made.close()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture()
def opened(browser: Browser, content: bytes, tmp_path: Path) -> Browser:
    (tmp_path / "index.html").write_bytes(content)
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=1280,
        height=2400,
        deviceScaleFactor=1,
        mobile=False,
    )
    browser.open(tmp_path / "index.html")
    return browser


def test_a_browser_draws_it_all_and_asks_for_nothing(opened: Browser, tmp_path: Path) -> None:
    assert opened.value("document.documentElement.dataset.drawn") == "yes"
    assert opened.complaints() == []
    assert opened.asked_for() == [(tmp_path / "index.html").as_uri()]
    count = "document.querySelectorAll({!r}).length"
    assert opened.value(count.format("#curves svg path.curve[data-rule=sgd]")) == 3
    assert opened.value(count.format("#curves svg path.band")) == 6
    assert opened.value(count.format("#sweep svg path.curve")) == 6
    assert opened.value(count.format("#sweep svg path.lost")) == 3  # a cross in each chart
    assert opened.value(count.format("#times rect.bar")) == 2
    assert opened.value(count.format("#final tbody tr")) == 2
    assert "± " in opened.value("document.querySelector('#final').innerText")
    assert HOSTILE in opened.value("document.querySelector('.facts').innerText")
    titles = "[...document.querySelectorAll('figcaption')].map((e) => e.firstChild.textContent)"
    assert opened.value(titles) == [
        *("Training loss", "Test loss", "Test accuracy", "Final training loss"),
        *("Final test loss", "Final test accuracy", "Rosenbrock's valley"),
    ]


def test_a_page_that_does_ask_or_fails_would_be_noticed(
    browser: Browser, content: bytes, tmp_path: Path
) -> None:
    """The browser sees a request and an error where there is one; the policy refuses requests."""
    image = b'<img src="http://example.invalid/x.png">'
    for name, policy in (("open", b""), ("closed", b"Content-Security-Policy")):
        text = content.replace(b"</main>", image + b"</main>")
        if not policy:
            text = text.replace(b"Content-Security-Policy", b"none")
        (tmp_path / name).with_suffix(".html").write_bytes(text)
        browser.open(tmp_path / f"{name}.html")
        assert browser.asked_for()[1:] == ["http://example.invalid/x.png"]
        refused = any("violates" in complaint for complaint in browser.complaints())
        assert refused == bool(policy)
    broken = content.replace(b'{"rules":', b'{"rulez":')
    (tmp_path / "broken.html").write_bytes(broken)
    browser.open(tmp_path / "broken.html")
    assert any("TypeError" in complaint for complaint in browser.complaints())
    assert browser.value("document.documentElement.dataset.drawn") is None


def test_labels_do_not_lie_over_each_other(opened: Browser) -> None:
    overlaps = """
    [...document.querySelectorAll('svg')].flatMap((svg) => {
      const boxes = [...svg.querySelectorAll('text')]
        .map((t) => [t.textContent, t.getBoundingClientRect()]);
      const frame = svg.getBoundingClientRect();
      const outside = boxes.filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1
        || b.top < frame.top - 1 || b.bottom > frame.bottom + 1).map(([t]) => 'outside: ' + t);
      const over = boxes.flatMap(([s, a], i) => boxes.slice(i + 1).filter(([, b]) =>
        a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2)
        .map(([t]) => s + ' / ' + t));
      return [...outside, ...over];
    })"""
    assert opened.value("document.querySelectorAll('svg text').length") > 60
    for width in (1280, 420):
        opened.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=2400,
            deviceScaleFactor=1,
            mobile=False,
        )
        assert opened.value(overlaps) == []
        assert opened.value("document.documentElement.scrollWidth") <= width


def test_the_animation_plays_pauses_and_is_scrubbed(opened: Browser) -> None:
    where = "document.querySelector('.where').firstChild.textContent"
    assert opened.value(where) == "step 200 of 200, loss:"
    end = canvas(opened)
    opened.value(
        "scrub.value = 0; document.getElementById('scrub').dispatchEvent(new Event('input'))"
    )
    assert opened.value(where) == "step 0 of 200, loss:"
    start = canvas(opened)
    assert start != end
    opened.value("document.getElementById('play').click()")
    assert opened.value("document.getElementById('play').textContent") == "Pause"
    deadline = time.monotonic() + 300
    while opened.value(where) == "step 0 of 200, loss:" and time.monotonic() < deadline:
        time.sleep(0.05)
    opened.value("document.getElementById('play').click()")
    paused = opened.value(where)
    assert paused not in ("step 0 of 200, loss:", "step 200 of 200, loss:")
    time.sleep(0.2)
    assert opened.value(where) == paused
    assert canvas(opened) not in (start, end)
    opened.value("document.getElementById('speed').value = '4'")
    opened.value("document.getElementById('play').click()")
    # The step is rounded: it is 200 a little before the end, where it stops by itself.
    button = "document.getElementById('play').textContent"
    while opened.value(button) != "Play" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert opened.value(button) == "Play"
    assert opened.value(where) == "step 200 of 200, loss:"
    assert canvas(opened) == end
    assert opened.complaints() == []


def canvas(browser: Browser) -> str:
    """The first surface as it is drawn now."""
    return browser.value("document.querySelector('#surfaces canvas').toDataURL()")


def test_rules_are_hidden_and_rates_chosen(opened: Browser) -> None:
    curves = "[...document.querySelectorAll('#curves path.curve')].map((e) => e.dataset.rule)"
    assert opened.value(curves) == ["sgd", "adam"] * 3
    opened.value("document.querySelector('#legend button').click()")
    assert opened.value(curves) == ["adam"] * 3
    opened.value("document.querySelector('#legend button').click()")
    assert opened.value(curves) == ["sgd", "adam"] * 3
    line = "document.querySelectorAll('#curves path.curve')[1].getAttribute('d')"
    best = opened.value(line)
    opened.value("rate.value = '0.01'; document.getElementById('rate').onchange")
    opened.value("document.getElementById('rate').dispatchEvent(new Event('change'))")
    assert opened.value(line) != best
    assert opened.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_by_day_and_by_night(opened: Browser, scheme: str) -> None:
    opened.call(
        "Emulation.setEmulatedMedia",
        features=[{"name": "prefers-color-scheme", "value": scheme}],
    )
    pixels = opened.picture().astype(float)
    paper = numpy.median(pixels.reshape(-1, 3), axis=0).mean()
    assert paper < 60 if scheme == "dark" else paper > 220
    # Each text stands out from what is behind it: 4.5 to 1 is what WCAG asks for.
    ratios = opened.value(CONTRAST)
    assert len(ratios) > 60
    assert min(ratios.values()) >= 4.5, {t: r for t, r in ratios.items() if r < 4.5}
    drawn = "getComputedStyle(document.querySelector('#curves path.curve')).stroke"
    first = opened.value(drawn)
    colour = numpy.array([int(n) for n in re.findall(r"\d+", first)[:3]])
    assert (abs(pixels - colour).max(2) < 3).sum() > 300  # the curve is on the picture
    opened.call("Emulation.setEmulatedMedia", features=[])


CONTRAST = """
(() => {
  const light = (text) => {
    const part = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const own = getComputedStyle(e).backgroundColor;
      if (own !== 'rgba(0, 0, 0, 0)') return own;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const found = {};
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    if (!e.getClientRects().length || e.closest('.where')) continue;
    const style = getComputedStyle(e);
    const own = e.namespaceURI.endsWith('svg') ? style.fill : style.color;
    const [a, b] = [light(own), light(behind(e))];
    found[e.textContent.trim().slice(0, 30) + Object.keys(found).length] =
      (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }
  return found;
})()"""
