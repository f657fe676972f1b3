"use strict";
// Draws the charts of a race from the numbers in the page. No library, no network.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = document.getElementById("blank").namespaceURI;
const HIDDEN = new Set();
const DARK = window.matchMedia("(prefers-color-scheme: dark)");
// Okabe and Ito's colours, which people who do not see red and green apart can tell, as in all
// other pictures (lab/colours.py); the second row is for a dark page. A rule has the same colour
// everywhere, and dashes where there are several of one colour.
const COLOURS = [
  ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6BB1"],
  ["#4DA3E0", "#FF8A3D", "#2CC79A", "#E79CC6", "#F0B93A", "#8FD3FF", "#E0E0E0", "#B79BE0"],
];
const DASHES = ["", "6 4", "2 3", "10 3 2 3", "14 4", "1 5", "8 3 2 3 2 3"];

const place = (name) => DATA.rules.findIndex((rule) => rule.name === name);
const look = (name) => DATA.rules[place(name)].look;
const colour = (name) => COLOURS[DARK.matches ? 1 : 0][look(name) % 8];
const dash = (name) => DASHES[Math.floor(look(name) / 8) % DASHES.length];
const shown = () => DATA.rules.filter((rule) => !HIDDEN.has(rule.name));

function element(name, attributes, text) {
  const made = document.createElement(name);
  for (const key in attributes || {}) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
}

function shape(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  parent.appendChild(made);
  return made;
}

// Numbers as a person writes them: 0.002, 1e-5, 1500.
function tidy(value, digits) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const rounded = Number(value.toPrecision(digits || 3));
  return size >= 1e-3 && size < 1e5 ? String(rounded) : rounded.toExponential().replace("e+", "e");
}

function duration(microseconds) {
  if (microseconds < 1000) return `${tidy(microseconds)} µs`;
  return microseconds < 1e6 ? `${tidy(microseconds / 1e3)} ms` : `${tidy(microseconds / 1e6)} s`;
}

// An axis: from numbers to the place on the paper, with its marks.
function axis(low, high, log, from, to) {
  const bend = log ? Math.log10 : (value) => value;
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 1, high + 1];
  const [start, end] = [bend(low), bend(high)];
  const at = (value) => from + ((bend(value) - start) / (end - start)) * (to - from);
  const marks = [];
  if (log) {
    const decades = end - start;
    const steps = decades > 4.5 ? [1] : decades > 1.7 ? [1, 3] : decades > 0.7 ? [1, 2, 5] : null;
    for (let e = Math.floor(start); steps && e <= end; e += 1) {
      for (const step of steps) {
        const value = Number((step * 10 ** e).toPrecision(3));
        if (value >= low * 0.999 && value <= high * 1.001) marks.push(value);
      }
    }
  }
  if (marks.length < 2) {
    marks.length = 0;
    const rough = (high - low) / 5;
    const size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((s) => s * size).find((s) => s >= rough);
    for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i += 1) {
      if (!log || i > 0) marks.push(Number((i * step).toPrecision(10)));
    }
  }
  return { at, marks, low, high };
}

// A frame with axes; draw(svg, x, y) puts the rest in, probe(value of x) gives the tip's lines.
function chart(box, options) {
  const [width, height, left, right, top, bottom] = [460, 300, 62, 14, 10, 46];
  const figure = element("figure");
  figure.append(element("figcaption", {}, options.title));
  const svg = shape(figure, "svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": options.title,
  });
  box.append(figure);
  const x = axis(options.x.low, options.x.high, options.x.log, left, width - right);
  const y = axis(options.y.low, options.y.high, options.y.log, height - bottom, top);
  let last = -Infinity;
  for (const mark of x.marks) {
    shape(svg, "line", { class: "grid", x1: x.at(mark), x2: x.at(mark), y1: top, y2: height - bottom });
    const text = tidy(mark);
    if (x.at(mark) - last < text.length * 7 + 8) continue; // no two labels over each other
    last = x.at(mark);
    shape(svg, "text", { x: last, y: height - bottom + 16, "text-anchor": "middle" }, text);
  }
  for (const mark of y.marks) {
    shape(svg, "line", { class: "grid", x1: left, x2: width - right, y1: y.at(mark), y2: y.at(mark) });
    const text = options.y.text ? options.y.text(mark) : tidy(mark);
    shape(svg, "text", { x: left - 6, y: y.at(mark) + 4, "text-anchor": "end" }, text);
  }
  shape(svg, "path", {
    class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}`,
  });
  const middle = (left + width - right) / 2;
  shape(svg, "text", { class: "title", x: middle, y: height - 8, "text-anchor": "middle" }, options.x.label);
  shape(svg, "text", {
    class: "title", "text-anchor": "middle",
    transform: `translate(13 ${(top + height - bottom) / 2}) rotate(-90)`,
  }, options.y.label);
  options.draw(svg, x, y);
  if (options.probe) tips(svg, options, x, [width, height, left, right, top, bottom]);
  return svg;
}

// What the pointer is over, in numbers.
function tips(svg, options, x, [width, height, left, right, top, bottom]) {
  const cross = shape(svg, "line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" });
  const tip = document.getElementById("tip") || element("div", { id: "tip", class: "tip", hidden: "" });
  document.body.append(tip);
  const area = shape(svg, "rect", {
    x: left, y: top, width: width - left - right, height: height - top - bottom, fill: "transparent",
  });
  area.addEventListener("pointermove", (event) => {
    const scale = width / svg.getBoundingClientRect().width;
    const pointer = (event.clientX - svg.getBoundingClientRect().left) * scale;
    const values = options.places();
    if (!values.length) return;
    const near = values.reduce((a, b) =>
      Math.abs(x.at(a) - pointer) <= Math.abs(x.at(b) - pointer) ? a : b);
    cross.setAttribute("x1", x.at(near));
    cross.setAttribute("x2", x.at(near));
    cross.setAttribute("visibility", "visible");
    tip.textContent = options.probe(near).join("\n");
    tip.hidden = false;
    const over = event.pageX + tip.offsetWidth + 24 > document.documentElement.scrollWidth;
    tip.style.left = `${event.pageX + (over ? -tip.offsetWidth - 12 : 14)}px`;
    tip.style.top = `${event.pageY + 12}px`;
  });
  area.addEventListener("pointerleave", () => {
    cross.setAttribute("visibility", "hidden");
    tip.hidden = true;
  });
}

// A band from the lowest to the highest, and the line of the means on it; bands may be null.
function line(svg, name, places, bands, x, y) {
  const inside = (value) => Math.min(Math.max(value, y.low), y.high);
  let pieces = [[]];
  bands.forEach((band, i) => {
    if (band) pieces[pieces.length - 1].push([x.at(places[i]), ...band.map((v) => y.at(inside(v)))]);
    else if (pieces[pieces.length - 1].length) pieces.push([]);
  });
  const point = (a, b) => `${a.toFixed(1)} ${b.toFixed(1)}`;
  for (const piece of pieces.filter((p) => p.length)) {
    const upper = piece.map((p) => point(p[0], p[3]));
    const lower = piece.map((p) => point(p[0], p[2])).reverse();
    shape(svg, "path", {
      class: "band", d: `M${[...upper, ...lower].join("L")}Z`, fill: colour(name), opacity: 0.18,
    });
    shape(svg, "path", {
      class: "curve", "data-rule": name, d: `M${piece.map((p) => point(p[0], p[1])).join("L")}`,
      fill: "none", stroke: colour(name), "stroke-width": 2, "stroke-dasharray": dash(name),
      "stroke-linejoin": "round",
    });
  }
}

// The range that holds all bands, cut where a loss is far above where it began.
function range(bands, log, cap) {
  let low = Infinity;
  let high = -Infinity;
  for (const band of bands) {
    if (!band) continue;
    low = Math.min(low, band[1]);
    high = Math.max(high, band[2]);
  }
  if (!(low <= high)) [low, high] = [0.1, 1];
  if (cap) high = Math.min(high, cap);
  if (log) low = Math.max(low, high * 1e-7);
  return log ? { low: low / 1.1, high: Math.max(high * 1.1, low * 1.2) } : { low, high };
}

const MEASURES = [
  { key: "train_loss", title: "Training loss", label: "cross-entropy (nats), log scale", log: true },
  { key: "test_loss", title: "Test loss", label: "cross-entropy (nats), log scale", log: true },
  { key: "test_accuracy", title: "Test accuracy", label: "right answers (%)", log: false },
];
const percent = (value) => tidy(100 * value, 4);

function valueText(measure, value) {
  return measure.log ? tidy(value, 3) : `${(100 * value).toFixed(1)} %`;
}

function accuracyRange(bands) {
  const found = range(bands, false);
  const margin = Math.max(0.02 * (found.high - found.low), 0.004);
  return { low: Math.max(0, found.low - margin), high: Math.min(1.004, found.high + margin) };
}

// The rate of a rule that the curves show: the best, or the one that is chosen.
function chosen(rule) {
  const wanted = document.getElementById("rate").value;
  return rule.rates.find((own) => own.lr === (wanted === "best" ? rule.best : Number(wanted)));
}

function drawCurves() {
  const box = document.getElementById("curves");
  box.replaceChildren();
  const rules = shown().filter(chosen);
  const end = Math.max(1, ...rules.map((rule) => Math.max(...chosen(rule).curves.steps)));
  for (const measure of MEASURES) {
    const bands = rules.flatMap((rule) => chosen(rule).curves[measure.key]);
    const start = rules.map((rule) => (chosen(rule).curves.test_loss[0] || [1])[0]);
    const vertical = measure.log ? range(bands, true, 20 * Math.max(1, ...start)) : accuracyRange(bands);
    chart(box, {
      title: measure.title,
      x: { low: 0, high: end, label: `steps (an epoch has ${DATA.steps_an_epoch})` },
      y: { ...vertical, log: measure.log, label: measure.label, text: measure.log ? null : percent },
      draw: (svg, x, y) => {
        for (const rule of rules) {
          const curves = chosen(rule).curves;
          line(svg, rule.name, curves.steps, curves[measure.key], x, y);
        }
      },
      places: () => [...new Set(rules.flatMap((rule) => chosen(rule).curves.steps))],
      probe: (step) => [`step ${step}`, ...rules.map((rule) => {
        const curves = chosen(rule).curves;
        const band = curves[measure.key][curves.steps.indexOf(step)];
        return `${rule.name} (lr ${tidy(chosen(rule).lr)})  ${band ? valueText(measure, band[0]) : "–"}`;
      })],
    });
  }
}

function drawSweep() {
  const box = document.getElementById("sweep");
  const lead = document.getElementById("sweep-lead");
  box.replaceChildren();
  const several = DATA.rules.some((rule) => rule.rates.length > 1);
  lead.textContent = several
    ? "At the end of the run, against the learning rate. × at the upper rim: a run diverged there. " +
      "A ring marks the rate with the lowest training loss, which the other pictures and the table show."
    : "Each rule ran at one learning rate only; --sweep lr tries several.";
  if (!several) return;
  const rules = shown();
  const rates = rules.flatMap((rule) => rule.rates);
  if (!rates.length) return;
  const lrs = rates.map((own) => own.lr);
  const horizontal = {
    low: Math.min(...lrs) / 1.3, high: Math.max(...lrs) * 1.3, log: true, label: "learning rate, log scale",
  };
  for (const measure of MEASURES) {
    const bands = rates.map((own) => own.final[measure.key]);
    const vertical = measure.log ? range(bands, true, 20) : accuracyRange(bands);
    chart(box, {
      title: `Final ${measure.title.toLowerCase()}`,
      x: horizontal,
      y: { ...vertical, log: measure.log, label: measure.label, text: measure.log ? null : percent },
      draw: (svg, x, y) => {
        for (const rule of rules) {
          line(svg, rule.name, rule.rates.map((own) => own.lr), rule.rates.map((own) => own.final[measure.key]), x, y);
          rule.rates.forEach((own) => mark(svg, rule, own, measure, x, y));
        }
      },
      places: () => [...new Set(lrs)],
      probe: (lr) => [`lr ${tidy(lr)}`, ...rules.flatMap((rule) => {
        const own = rule.rates.find((rate) => rate.lr === lr);
        if (!own) return [];
        const band = own.final[measure.key];
        const lost = own.diverged ? ` (${own.diverged} of ${own.seeds} diverged)` : "";
        return [`${rule.name}  ${band ? valueText(measure, band[0]) : "diverged"}${lost}`];
      })],
    });
  }
}

function mark(svg, rule, own, measure, x, y) {
  const band = own.final[measure.key];
  if (own.diverged || !band) {
    const [across, down] = [x.at(own.lr), y.at(y.high) + 6 + 3 * (place(rule.name) % 4)];
    shape(svg, "path", {
      class: "lost", stroke: colour(rule.name), "stroke-width": 2,
      d: `M${across - 4} ${down - 4}l8 8m0 -8l-8 8`,
    });
    return;
  }
  const height = y.at(Math.min(Math.max(band[0], y.low), y.high));
  const best = own.lr === rule.best;
  shape(svg, "circle", {
    cx: x.at(own.lr), cy: height, r: best ? 5 : 2.5, stroke: colour(rule.name), "stroke-width": 2,
    fill: best ? "none" : colour(rule.name),
  });
}

function drawTimes() {
  const box = document.getElementById("times");
  box.replaceChildren();
  const rules = shown();
  if (!rules.length) return;
  const times = rules.map((rule) => rule.rates.find((own) => own.lr === rule.best).step);
  const most = Math.max(...times.map((t) => t[2]));
  const least = Math.min(...times.map((t) => t[1]));
  const log = most > 20 * least;
  const [width, left, row, top] = [900, 110, 26, 8];
  const height = top + row * rules.length + 44;
  const figure = element("figure");
  const svg = shape(figure, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Time of a step" });
  box.append(figure);
  const x = axis(log ? least / 1.5 : 0, most, log, left, width - 90);
  const floor = top + row * rules.length;
  for (const value of x.marks) {
    shape(svg, "line", { class: "grid", x1: x.at(value), x2: x.at(value), y1: top, y2: floor });
    shape(svg, "text", { x: x.at(value), y: floor + 16, "text-anchor": "middle" }, duration(value));
  }
  rules.forEach((rule, i) => {
    const [median, low, high] = times[i];
    const middle = top + row * (i + 0.5);
    shape(svg, "text", { class: "title", x: left - 8, y: middle + 4, "text-anchor": "end" }, rule.name);
    const [at, fill] = [x.at(median), colour(rule.name)];
    if (log) { // where no bar could begin at 0
      shape(svg, "circle", { class: "bar", cx: at, cy: middle, r: 6, fill });
    } else {
      shape(svg, "rect", {
        class: "bar", x: left, y: middle - 8, width: Math.max(1, at - left), height: 16, fill,
        opacity: 0.75,
      });
    }
    shape(svg, "path", {
      class: "axis", d: `M${x.at(low)} ${middle}H${x.at(high)}m0 -5v10M${x.at(low)} ${middle - 5}v10`,
    });
    shape(svg, "text", { class: "title", x: Math.max(x.at(high), x.at(median) + 6) + 6, y: middle + 4 }, duration(median));
  });
  shape(svg, "path", { class: "axis", d: `M${left} ${top}V${floor}H${width - 20}` });
  const label = `time of a step${log ? ", log scale" : ""}`;
  shape(svg, "text", { class: "title", x: (left + width - 20) / 2, y: floor + 36, "text-anchor": "middle" }, label);
}

function swatch(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "swatch");
  svg.style.width = "26px";
  svg.style.height = "10px";
  svg.setAttribute("viewBox", "0 0 26 10");
  shape(svg, "path", {
    d: "M1 5H25", stroke: colour(name), "stroke-width": 4, "stroke-dasharray": dash(name),
  });
  return svg;
}

function drawLegend() {
  const box = document.getElementById("legend");
  box.replaceChildren(...DATA.rules.map((rule) => {
    const button = element("button", { type: "button", "aria-pressed": !HIDDEN.has(rule.name) });
    button.append(swatch(rule.name), rule.name);
    button.addEventListener("click", () => {
      if (!HIDDEN.delete(rule.name)) HIDDEN.add(rule.name);
      drawAll();
    });
    return button;
  }));
  for (const row of document.querySelectorAll("#final tbody tr")) {
    const first = row.firstElementChild;
    first.replaceChildren(swatch(row.dataset.rule), row.dataset.rule);
  }
}

function offerRates() {
  const select = document.getElementById("rate");
  const lrs = [...new Set(DATA.rules.flatMap((rule) => rule.rates.map((own) => own.lr)))];
  select.append(element("option", { value: "best" }, "the best of each rule"));
  for (const lr of lrs.sort((a, b) => a - b)) {
    const names = DATA.rules.filter((rule) => rule.rates.some((own) => own.lr === lr));
    const who = names.length === DATA.rules.length ? "" : ` (${names.map((rule) => rule.name).join(", ")})`;
    select.append(element("option", { value: String(lr) }, `${tidy(lr)}${who}`));
  }
  select.addEventListener("change", drawCurves);
}
