"use strict";
// Draws the data of the page: charts as SVG, tables, samples. Everything from a run is set as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const SAMPLES_AT_FIRST = 12;
const SMOOTHED_FROM = 20; // points
const PAD = { left: 46, right: 8, top: 8, bottom: 20 };

function element(tag, className = "", text = null) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== null) made.textContent = text;
  return made;
}

function drawn(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const colour = (i) => `var(--c${i % 8})`;

function swatch(i) {
  const box = element("i");
  box.style.background = colour(i);
  return box;
}

function number(value) {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return size >= 100 ? value.toFixed(1) : size >= 1 ? value.toFixed(2) : value.toFixed(4).replace(/0+$/, "");
}

// ---- charts ----

function niceTicks(low, high, count) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + 1e-9 * step; tick += step) ticks.push(Math.abs(tick) < step / 1e6 ? 0 : tick);
  return ticks;
}

function smoothed(values, width) {
  const reach = Math.ceil(3 * width);
  return values.map((_, centre) => {
    let sum = 0;
    let weights = 0;
    for (let i = Math.max(0, centre - reach); i <= Math.min(values.length - 1, centre + reach); i++) {
      const weight = Math.exp(-0.5 * ((i - centre) / width) ** 2);
      sum += weight * values[i];
      weights += weight;
    }
    return sum / weights;
  });
}

/** Curves of a stack: each on top of those before, over all steps that some has. */
function stacked(curves) {
  const steps = [...new Set(curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  let below = steps.map(() => 0);
  return curves.map((curve) => {
    const given = new Map(curve.x.map((x, i) => [x, curve.y[i]]));
    const own = steps.map((x) => given.get(x) ?? 0);
    const top = below.map((value, i) => value + own[i]);
    const layer = { ...curve, x: steps, y: top, own, below };
    below = top;
    return layer;
  });
}

function scales(curves, width, height) {
  const xs = curves.flatMap((curve) => [curve.x[0], curve.x[curve.x.length - 1]]);
  const ys = curves.flatMap((curve) => curve.y.flatMap((y, i) => (curve.error ? [y - curve.error[i], y + curve.error[i]] : [y])));
  if (curves.some((curve) => curve.below)) ys.push(0);
  let [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [ys.reduce((a, b) => Math.min(a, b)), ys.reduce((a, b) => Math.max(a, b))];
  if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
  if (y0 === y1) [y0, y1] = y0 === 0 ? [-1, 1] : [y0 - Math.abs(y0) * 0.1, y1 + Math.abs(y1) * 0.1];
  if (y0 > 0 && y0 < 0.4 * y1) y0 = 0;
  const space = (y1 - y0) * 0.06;
  if (y0 !== 0) y0 -= space;
  y1 += space;
  return {
    x: (value) => PAD.left + ((value - x0) / (x1 - x0)) * (width - PAD.left - PAD.right),
    y: (value) => height - PAD.bottom - ((value - y0) / (y1 - y0)) * (height - PAD.top - PAD.bottom),
    step: (pixel) => x0 + ((pixel - PAD.left) / (width - PAD.left - PAD.right)) * (x1 - x0),
    xTicks: niceTicks(x0, x1, Math.max(2, Math.floor(width / 90))).filter(Number.isInteger),
    yTicks: niceTicks(y0, y1, 4),
  };
}

const path = (xs, ys, scale) => xs.map((x, i) => `${i ? "L" : "M"}${scale.x(x).toFixed(1)} ${scale.y(ys[i]).toFixed(1)}`).join("");

function drawAxes(svg, scale, width, height) {
  for (const tick of scale.yTicks) {
    svg.append(drawn("line", { class: "gridline", x1: PAD.left, x2: width - PAD.right, y1: scale.y(tick), y2: scale.y(tick) }));
    const label = drawn("text", { class: "tick", x: PAD.left - 6, y: scale.y(tick) + 3.5, "text-anchor": "end" });
    label.textContent = number(tick);
    svg.append(label);
  }
  for (const tick of scale.xTicks) {
    const label = drawn("text", { class: "tick", x: scale.x(tick), y: height - 4, "text-anchor": "middle" });
    label.textContent = tick.toLocaleString("en");
    svg.append(label);
  }
}

function drawCurve(svg, curve, scale, stroke) {
  if (curve.below) {
    const down = curve.x.map((_, i) => curve.x.length - 1 - i);
    const back = down.map((i) => `L${scale.x(curve.x[i]).toFixed(1)} ${scale.y(curve.below[i]).toFixed(1)}`).join("");
    svg.append(drawn("path", { d: `${path(curve.x, curve.y, scale)}${back}Z`, fill: stroke, opacity: 0.75 }));
    return;
  }
  if (!curve.dots && curve.y.length >= SMOOTHED_FROM) {
    svg.append(drawn("path", { class: "raw", d: path(curve.x, curve.y, scale), stroke }));
    svg.append(drawn("path", { class: "curve", d: path(curve.x, smoothed(curve.y, curve.y.length / 40), scale), stroke }));
    return;
  }
  svg.append(drawn("path", { class: "curve", d: path(curve.x, curve.y, scale), stroke }));
  curve.x.forEach((x, i) => {
    if (curve.error && curve.error[i]) {
      const [low, high] = [curve.y[i] - curve.error[i], curve.y[i] + curve.error[i]];
      svg.append(drawn("line", { class: "error", x1: scale.x(x), x2: scale.x(x), y1: scale.y(low), y2: scale.y(high), stroke }));
    }
    svg.append(drawn("circle", { cx: scale.x(x), cy: scale.y(curve.y[i]), r: 2.6, fill: stroke }));
  });
}

function nearest(xs, step) {
  let best = 0;
  xs.forEach((x, i) => { if (Math.abs(x - step) < Math.abs(xs[best] - step)) best = i; });
  return best;
}

function showTip(event, curves, scale, svg, colours) {
  svg.querySelector(".cross")?.remove();
  if (!event) {
    at("tip").hidden = true;
    return;
  }
  const box = svg.getBoundingClientRect();
  const wanted = scale.step(event.clientX - box.left);
  const steps = curves.map((curve) => curve.x[nearest(curve.x, wanted)]);
  const step = steps[nearest(steps, wanted)];
  const lines = curves.flatMap((curve, i) => {
    const place = curve.x.indexOf(step);
    if (place < 0) return [];
    const line = element("div");
    const label = element("span", "", curve.label || "");
    label.prepend(swatch(colours[i]));
    const error = curve.error && curve.error[place] ? ` ± ${number(curve.error[place])}` : "";
    line.append(label, element("b", "", number((curve.own ?? curve.y)[place]) + error));
    return [line];
  });
  at("tip").replaceChildren(element("div", "quiet", `step ${step.toLocaleString("en")}`), ...lines);
  at("tip").hidden = false;
  const tip = at("tip").getBoundingClientRect();
  at("tip").style.left = `${Math.max(6, Math.min(event.clientX + 14, innerWidth - tip.width - 6))}px`;
  at("tip").style.top = `${Math.max(6, Math.min(event.clientY - tip.height - 12, innerHeight - tip.height - 6))}px`;
  svg.append(drawn("line", { class: "cross", x1: scale.x(step), x2: scale.x(step), y1: PAD.top, y2: box.height - PAD.bottom }));
}

function makeChart(chart) {
  const several = data.names.length > 1;
  const curves = chart.kind === "stack" ? stacked(chart.curves) : chart.curves;
  const colours = curves.map((curve, i) => (several ? curve.run : i));
  const figure = element("figure");
  const caption = element("figcaption");
  caption.append(element("b", "", chart.title));
  if (curves.length === 1) caption.append(element("span", "now", number(curves[0].y[curves[0].y.length - 1])));
  if (chart.note) caption.append(element("span", "quiet", chart.note));
  const svg = drawn("svg", { role: "img", "aria-label": chart.title });
  const key = element("div", "key");
  if (!several && curves.length > 1) {
    curves.forEach((curve, i) => {
      const label = element("span", "", curve.label);
      label.prepend(swatch(colours[i]));
      key.append(label);
    });
  }
  figure.append(caption, svg, key);
  let scale = null;
  const draw = () => {
    const { width, height } = svg.getBoundingClientRect();
    if (!width) return;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    scale = scales(curves, width, height);
    drawAxes(svg, scale, width, height);
    curves.forEach((curve, i) => drawCurve(svg, curve, scale, colour(colours[i])));
  };
  new ResizeObserver(draw).observe(svg);
  svg.addEventListener("pointermove", (event) => scale && showTip(event, curves, scale, svg, colours));
  svg.addEventListener("pointerleave", () => showTip(null, curves, scale, svg, colours));
  return figure;
}

// ---- tables ----

function table(columns, rows) {
  const made = element("table");
  const head = element("tr");
  const numeric = columns.map((_, i) => rows.length > 0 && rows.every((row) => typeof row[i] === "number" || row[i] === null || row[i] === undefined));
  columns.forEach((column, i) => head.append(element("th", numeric[i] ? "number" : "", column)));
  made.append(element("thead"), element("tbody"));
  made.tHead.append(head);
  for (const row of rows) {
    const line = element("tr");
    row.forEach((cell, i) => {
      if (cell instanceof Node) {
        const holder = element("td");
        holder.append(cell);
        line.append(holder);
      } else line.append(element("td", numeric[i] ? "number" : "", number(cell)));
    });
    made.tBodies[0].append(line);
  }
  return made;
}

const withError = (value, error) => (value === null || value === undefined ? "–" : `${number(value)}${error ? ` ± ${number(error)}` : ""}`);

function verdict(pair, row) {
  const cell = element("span");
  if (!pair) {
    const [a, b] = row.figures;
    const difference = b.accuracy - a.accuracy;
    const error = Math.hypot(a.stderr ?? 0, b.stderr ?? 0);
    cell.textContent = Number.isFinite(difference) ? `${difference > 0 ? "+" : ""}${withError(difference, error)}, not paired` : "–";
    return cell;
  }
  const sure = pair.low > 0 ? "good" : pair.high < 0 ? "bad" : "";
  cell.append(element("b", sure, `${pair.difference > 0 ? "+" : ""}${withError(pair.difference, pair.stderr)}`));
  cell.append(element("span", "quiet", ` 95% [${number(pair.low)}, ${number(pair.high)}]`));
  return cell;
}

function showComparison() {
  if (!data.comparison) return;
  at("comparison").hidden = false;
  const [note] = at("comparison").getElementsByTagName("p");
  note.textContent = data.comparison.length
    ? "Last evaluation of each run, ± one standard error over tasks. The difference is paired by task where both runs kept what each task earned: its interval is a bootstrap over tasks, p is McNemar's exact test."
    : "No decoding was evaluated by the first run and by another.";
  if (!data.comparison.length) return;
  const rows = data.comparison.map((row) => [
    row.entry,
    `${row.first} (step ${row.steps[0]})`,
    withError(row.figures[0].accuracy, row.figures[0].stderr),
    `${row.second} (step ${row.steps[1]})`,
    withError(row.figures[1].accuracy, row.figures[1].stderr),
    verdict(row.pair, row),
    row.pair ? `${row.pair.gained} / ${row.pair.lost}` : "–",
    row.pair ? row.pair.p : null,
    row.pair ? row.pair.tasks : null,
  ]);
  const columns = ["decoding", "first", "accuracy", "second", "accuracy", "difference", "gained / lost", "p", "tasks"];
  at("comparison").querySelector(".scroll").append(table(columns, rows));
}

function showLosses() {
  if (!data.losses.length) return;
  at("losses").hidden = false;
  const rows = data.losses.map(({ figure, names, steps, last, lowest }) => [
    figure,
    `${names[0]} (update ${steps[0]})`,
    last[0],
    `${names[1]} (update ${steps[1]})`,
    last[1],
    last[1] - last[0],
    lowest[0],
    lowest[1],
  ]);
  const columns = ["held out", "first", "last", "second", "last", "difference", "lowest of first", "of second"];
  at("losses").querySelector(".scroll").append(table(columns, rows));
}

// ---- samples ----

function sampleCard(sample) {
  const card = element("article");
  const head = element("div", "head");
  const fact = (name, value, className = "") => {
    const holder = element("span", "", `${name} `);
    holder.append(element("b", className, number(value)));
    head.append(holder);
  };
  if (sample.step !== undefined) fact("step", sample.step);
  if (sample.entry !== undefined) fact("decoding", sample.entry);
  if (sample.task !== undefined) fact("task", sample.task);
  fact("reward", sample.reward ?? null, sample.reward > 0 ? "good" : sample.reward === undefined ? "" : "bad");
  for (const [name, value] of Object.entries(sample.rewards ?? {})) fact(name, value);
  if (typeof sample.advantage === "number") fact("advantage", sample.advantage);
  if (sample.tokens !== undefined) fact("tokens", sample.tokens);
  if (sample.num_steps !== undefined) fact("steps", sample.num_steps);
  if (sample.finish_reason) fact("ended by", sample.finish_reason);
  if (sample.trace) {
    const link = element("a", "", "how it was unmasked");
    link.href = sample.trace;
    head.append(link);
  }
  const texts = element("div", "texts");
  for (const [name, text] of [["prompt", sample.prompt], ["completion", sample.completion], ["true answer", sample.answer]]) {
    if (text === undefined) continue;
    const part = element("div");
    part.append(element("h3", "", name), element("pre", "", text));
    texts.append(part);
  }
  card.append(head, texts);
  return card;
}

function showSamples() {
  if (!data.samples.length) return;
  at("samples").hidden = false;
  const traced = data.samples.some((sample) => sample.trace);
  at("samples-note").textContent = `The newest and some spread over the run.${traced ? "" : " The first command below adds links into the trace viewer."}`;
  const show = (from, to) => at("rows").append(...data.samples.slice(from, to).map(sampleCard));
  show(0, SAMPLES_AT_FIRST);
  if (data.samples.length > SAMPLES_AT_FIRST) {
    const button = element("button", "", `show ${data.samples.length - SAMPLES_AT_FIRST} more`);
    button.addEventListener("click", () => {
      button.remove();
      show(SAMPLES_AT_FIRST);
    });
    at("rows").append(button);
  }
}

// ---- the rest ----

function showFacts() {
  data.facts.forEach((run, i) => {
    const list = element("dl");
    list.style.borderLeftColor = colour(i);
    if (data.facts.length > 1) list.append(element("div", "name", run.name));
    for (const [name, value] of run.rows) {
      const pair = element("div");
      pair.append(element("dt", "", name), element("dd", "", value));
      list.append(pair);
    }
    at("facts").append(list);
  });
}

function showCharts() {
  if (!data.charts.length) return;
  at("charts").hidden = false;
  if (data.names.length > 1) {
    data.names.forEach((name, i) => {
      const label = element("span", "", name);
      label.prepend(swatch(i));
      at("legend").append(label);
    });
  }
  const more = data.charts.filter((chart) => chart.more);
  at("main-charts").append(...data.charts.filter((chart) => !chart.more).map(makeChart));
  at("more").hidden = !more.length;
  at("more").firstElementChild.textContent = `${more.length} more ${more.length === 1 ? "metric" : "metrics"}`;
  at("more").lastElementChild.append(...more.map(makeChart));
}

function showSettings() {
  const { changed, all, recipe, known } = data.settings;
  if (!changed.length && !all?.length) return;
  at("settings").hidden = false;
  const [note] = at("settings").getElementsByTagName("p");
  if (data.names.length > 1) {
    note.textContent = changed.length ? "Keys that differ." : "The runs have the same settings.";
    if (changed.length) at("changed").append(table(["key", ...data.names], changed));
    at("all").hidden = true;
    return;
  }
  if (!known) note.textContent = "The run is of an earlier version: what differs from its recipe is not known.";
  else if (changed.length) note.textContent = `What differs from ${recipe}.`;
  else note.textContent = recipe ? `As in ${recipe}.` : "No recipe was given.";
  if (changed.length) at("changed").append(table(["key", "recipe", "this run"], changed));
  at("all").firstElementChild.textContent = `all ${all.length} keys`;
  at("all").lastElementChild.append(table(["key", "value"], all));
}

function showCommands() {
  at("commands").hidden = !data.commands.length;
  for (const [purpose, command] of data.commands) at("commands").lastElementChild.append(element("dt", "", purpose), element("dd", "", command));
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

function start() {
  const words = new URLSearchParams(location.hash.slice(1));
  if (["dark", "light"].includes(words.get("theme"))) document.documentElement.dataset.theme = words.get("theme");
  at("title").textContent = at("title").title = data.title;
  showFacts();
  if (data.results) {
    at("results").hidden = false;
    at("results").lastElementChild.append(table(["decoding", ...data.results.columns], data.results.rows));
  }
  showComparison();
  showLosses();
  showCharts();
  showSamples();
  showCommands();
  showSettings();
  for (const [id, name] of [["comparison", "evaluations"], ["losses", "losses"], ["charts", "curves"], ["samples", "samples"], ["settings", "settings"]]) {
    if (at(id).hidden) continue;
    const link = element("a", "", name);
    link.href = `#${id}`;
    at("places").append(link);
  }
  at("written").textContent = `written ${data.written}${data.running ? ", rewritten as the run goes: load the page again" : ""}`;
  at("theme").addEventListener("click", switchTheme);
}

start();
