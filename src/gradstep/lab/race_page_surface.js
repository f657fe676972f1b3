// The paths over the loss surfaces: a picture of heights for each, and the rules that move on it.

const SIDE = 420; // pixels of a picture, without its margins
const MARGIN = { left: 58, right: 10, top: 8, bottom: 44 };
const SECONDS = 8; // of the whole animation at single speed
const SCENES = [];
let moment = 1; // 0 is the start, 1 the end

function heights(surface) {
  const finite = surface.grid.flat().filter((value) => value !== null);
  const low = Math.min(...finite);
  const span = Math.max(...finite) - low || 1;
  // Log heights above the lowest: valleys have as many lines as slopes.
  return (value) => Math.log10(((value === null ? low + span : value) - low) / span + 1e-4) / 4 + 1;
}

// The height in between the points of the grid.
function between(levels, across, up) {
  const [i, j] = [Math.min(Math.floor(up), levels.length - 2), Math.min(Math.floor(across), levels[0].length - 2)];
  const [v, u] = [up - i, across - j];
  return (1 - v) * ((1 - u) * levels[i][j] + u * levels[i][j + 1]) +
    v * ((1 - u) * levels[i + 1][j] + u * levels[i + 1][j + 1]);
}

function paintHeights(surface) {
  const height = heights(surface);
  const levels = surface.grid.map((row) => row.map(height));
  const [rows, columns, bands] = [levels.length - 1, levels[0].length - 1, 16];
  const canvas = element("canvas", { width: SIDE, height: SIDE });
  const context = canvas.getContext("2d");
  const image = context.createImageData(SIDE, SIDE);
  const band = new Uint8Array(SIDE * SIDE);
  for (let row = 0; row < SIDE; row += 1) {
    for (let column = 0; column < SIDE; column += 1) {
      const value = between(levels, (column / (SIDE - 1)) * columns, (1 - row / (SIDE - 1)) * rows);
      band[row * SIDE + column] = Math.max(0, Math.min(bands - 1, Math.floor(value * bands)));
    }
  }
  const [low, high] = DARK.matches ? [[12, 16, 24], [92, 104, 122]] : [[168, 182, 202], [252, 253, 255]];
  for (let at = 0; at < band.length; at += 1) {
    const edge = band[at] !== band[at + 1] && (at + 1) % SIDE !== 0 ||
      (at + SIDE < band.length && band[at] !== band[at + SIDE]);
    const part = band[at] / (bands - 1);
    for (let k = 0; k < 3; k += 1) {
      const plain = low[k] + part * (high[k] - low[k]);
      image.data[4 * at + k] = edge ? plain * (DARK.matches ? 1.35 : 0.86) : plain;
    }
    image.data[4 * at + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function buildSurfaces() {
  const box = document.getElementById("surfaces");
  box.replaceChildren();
  SCENES.length = 0;
  for (const surface of DATA.surfaces) {
    const figure = element("figure", { class: "surface" });
    const caption = element("figcaption", {}, surface.name);
    caption.append(element("br"), element("small", {}, surface.text));
    const canvas = element("canvas", { role: "img", "aria-label": surface.name });
    const where = element("div", { class: "where" });
    figure.append(caption, canvas, where);
    box.append(figure);
    SCENES.push({ surface, canvas, where, ground: paintHeights(surface) });
  }
}

function drawScene(scene) {
  const { surface, canvas } = scene;
  const style = getComputedStyle(document.documentElement);
  const [width, height] = [SIDE + MARGIN.left + MARGIN.right, SIDE + MARGIN.top + MARGIN.bottom];
  canvas.width = 2 * width; // twice as fine as the page, for sharp lines
  canvas.height = 2 * height;
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.drawImage(scene.ground, MARGIN.left, MARGIN.top);
  const x = axis(...surface.x_range, false, MARGIN.left, MARGIN.left + SIDE);
  const y = axis(...surface.y_range, false, MARGIN.top + SIDE, MARGIN.top);
  drawAxes(context, surface, x, y, style);
  context.save();
  context.beginPath();
  context.rect(MARGIN.left, MARGIN.top, SIDE, SIDE);
  context.clip();
  if (surface.lowest) {
    const [across, down] = [x.at(surface.lowest[0]), y.at(surface.lowest[1])];
    context.strokeStyle = style.getPropertyValue("--ink");
    context.lineWidth = 1.5;
    context.beginPath();
    for (const [a, b] of [[-5, 0], [0, -5]]) {
      context.moveTo(across + a, down + b);
      context.lineTo(across - a, down - b);
    }
    context.stroke();
  }
  const longest = Math.max(...surface.paths.map((path) => path.steps[path.steps.length - 1]), 1);
  const now = moment * longest;
  const paths = surface.paths.filter((path) => !HIDDEN.has(path.optimizer));
  const losses = paths.map((path) => drawPath(context, path, now, x, y));
  context.restore();
  scene.where.replaceChildren(
    element("span", {}, `step ${Math.round(now)} of ${longest}, loss:`),
    ...paths.map((path, i) => {
      const loss = losses[i] === null ? "not finite" : tidy(losses[i], 2);
      const span = element("span", {}, `${path.optimizer} ${loss} (lr ${tidy(path.lr)})`);
      span.style.color = colour(path.optimizer);
      return span;
    }),
  );
}

function drawAxes(context, surface, x, y, style) {
  context.font = "13px system-ui, 'DejaVu Sans', sans-serif";
  context.fillStyle = style.getPropertyValue("--soft");
  context.strokeStyle = style.getPropertyValue("--soft");
  context.lineWidth = 1;
  context.strokeRect(MARGIN.left, MARGIN.top, SIDE, SIDE);
  context.textAlign = "center";
  for (const mark of x.marks) context.fillText(tidy(mark), x.at(mark), MARGIN.top + SIDE + 16);
  context.textAlign = "right";
  for (const mark of y.marks) context.fillText(tidy(mark), MARGIN.left - 6, y.at(mark) + 4);
  context.fillStyle = style.getPropertyValue("--ink");
  context.textAlign = "center";
  context.fillText(surface.x_label, MARGIN.left + SIDE / 2, MARGIN.top + SIDE + 37);
  context.save();
  context.translate(14, MARGIN.top + SIDE / 2);
  context.rotate(-Math.PI / 2);
  context.fillText(surface.y_label, 0, 0);
  context.restore();
}

// The way up to a step, and the rule's place there; returns the loss at that place.
function drawPath(context, path, now, x, y) {
  let last = 0;
  while (last + 1 < path.steps.length && path.steps[last + 1] <= now) last += 1;
  const part = last + 1 < path.steps.length
    ? (now - path.steps[last]) / (path.steps[last + 1] - path.steps[last]) : 0;
  const mix = (values) => part ? values[last] + part * (values[last + 1] - values[last]) : values[last];
  context.strokeStyle = colour(path.optimizer);
  context.fillStyle = context.strokeStyle;
  context.lineWidth = 2;
  context.lineJoin = "round";
  context.setLineDash(dash(path.optimizer).split(" ").filter(Boolean).map(Number));
  context.beginPath();
  context.moveTo(x.at(path.x[0]), y.at(path.y[0]));
  for (let i = 1; i <= last; i += 1) context.lineTo(x.at(path.x[i]), y.at(path.y[i]));
  context.lineTo(x.at(mix(path.x)), y.at(mix(path.y)));
  context.stroke();
  context.setLineDash([]);
  context.beginPath();
  context.arc(x.at(mix(path.x)), y.at(mix(path.y)), 5, 0, 2 * Math.PI);
  context.fill();
  return path.loss[last];
}

function drawScenes() {
  document.getElementById("scrub").value = String(Math.round(1000 * moment));
  for (const scene of SCENES) drawScene(scene);
}

function moveScenes() {
  const button = document.getElementById("play");
  let playing = false;
  let before = null;
  const frame = (time) => {
    if (!playing) return;
    const speed = Number(document.getElementById("speed").value);
    // A frame that came late, from a busy machine or a hidden page, is no leap.
    const elapsed = before === null ? 0 : Math.min(time - before, 100) / 1000;
    moment = Math.min(1, moment + (elapsed / SECONDS) * speed);
    before = time;
    drawScenes();
    if (moment >= 1) stop();
    else requestAnimationFrame(frame);
  };
  const stop = () => {
    playing = false;
    button.textContent = "Play";
  };
  button.addEventListener("click", () => {
    if (playing) return stop();
    if (moment >= 1) moment = 0;
    [playing, before] = [true, null];
    button.textContent = "Pause";
    requestAnimationFrame(frame);
  });
  document.getElementById("scrub").addEventListener("input", (event) => {
    stop();
    moment = Number(event.target.value) / 1000;
    drawScenes();
  });
}

function drawAll() {
  drawLegend();
  drawCurves();
  drawSweep();
  drawTimes();
  drawScenes();
}

offerRates();
buildSurfaces();
moveScenes();
drawAll();
DARK.addEventListener("change", () => {
  buildSurfaces();
  drawAll();
});
document.documentElement.dataset.drawn = "yes"; // all of the above went through
