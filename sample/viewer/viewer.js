"use strict";

const KIND = { text: 0, special: 1, bytes: 2, id: 3 };
const FULL_PLAY_SECONDS = 10;
const STEP_MILLISECONDS = { min: 16, max: 450 };
const HASH_DELAY_MILLISECONDS = 250;
const SMALL_PIXELS = 64;
// Characters that would be invisible, or change the direction or the lines of the text around them.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/;
const NAMED = { "\n": "↵", "\t": "⇥", "\r": "␍" };
const PLAY = "M4 2.5v11L13 8z";
const PAUSE = "M4 3h3v10H4zM9 3h3v10H9z";

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const state = { group: 0, sample: 0, step: 0, timer: null };
let view = null; // what is drawn of the chosen sample: tokens, blocks, positions by step
let hashTimer = null;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const number = (value, digits = 3) => String(Number(value.toFixed(digits))).replace("-", "−");
const rewardClass = (reward) => (reward === null ? "quiet" : reward > 0 ? "good" : "bad");
const sample = () => data.groups[state.group].samples[state.sample];

/** Text into `parent` with marks for what cannot be seen. A line still breaks after its mark. */
function addText(parent, text) {
  for (const part of text.split(new RegExp(`(${UNSEEN.source})`))) {
    if (part === "") continue;
    if (!UNSEEN.test(part)) {
      parent.append(part);
      continue;
    }
    const code = `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    parent.append(element("i", "mark", NAMED[part] ?? code));
    if (part === "\n" || part === "\t") parent.append(part);
  }
}

/** For each token of part of a character: the whole characters that end with it, or null where bytes stay bytes. */
function joinedBytes(tokens) {
  const joined = new Array(tokens.length).fill(null);
  const decoder = new TextDecoder("utf-8", { fatal: true });
  for (let start = 0; start < tokens.length; start++) {
    let hex = "";
    for (let end = start; end < tokens.length && end < start + 4 && tokens[end] >= 0; end++) {
      const [, text, kind] = data.vocabulary[tokens[end]];
      if (kind !== KIND.bytes) break;
      hex += text;
      try {
        joined[end] = decoder.decode(Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16)));
        joined.fill("", start, end);
        start = end;
        break;
      } catch {
        // not whole yet
      }
    }
  }
  return joined;
}

function tokenElement(index, joined) {
  return fillToken(element("span", "tok"), index, joined);
}

/** Puts a token's text into its element. */
function fillToken(made, index, joined) {
  const [, text, kind] = data.vocabulary[index];
  made.replaceChildren();
  made.classList.toggle("special", kind === KIND.special);
  made.classList.toggle("id", kind === KIND.id);
  if (kind === KIND.bytes) {
    if (joined) addText(made, joined);
    else made.append(element("i", "mark", joined === "" ? "·" : text.match(/../g).join(" ")));
  } else if (kind === KIND.id) made.append(text, element("wbr"));
  else if (text === "") made.append(element("i", "mark", "∅"));
  else addText(made, text);
  return made;
}

/** A picture of a prompt: its thumbnail, a small one enlarged; or a box where there is none. */
function pictureElement([positions, thumbnail]) {
  const title = `picture · ${plural(positions, "position")}`;
  if (thumbnail === null) return element("span", "picture", title);
  const made = element("img", "picture");
  made.onload = () => made.classList.toggle("small", Math.max(made.naturalWidth, made.naturalHeight) < SMALL_PIXELS);
  made.setAttribute("src", thumbnail);
  made.alt = made.title = title;
  return made;
}

/** Of a write of an edited answer: its token was chosen here, moved here, or stands where DELETE or INSERT was chosen. */
const WRITE = { chosen: 0, moved: 1, deleted: 2, inserted: 3 };

/** For each place its writes in order, [step, index of the token or -1 = masked again, log-prob or null, WRITE]. */
function writesOf(chosen) {
  if (!chosen.events) return chosen.tokens.map((index, i) => (chosen.steps[i] ? [[chosen.steps[i], index, chosen.logprobs?.[i] ?? null, WRITE.chosen]] : []));
  const writes = chosen.tokens.map(() => []);
  const [steps, places, indices, logprobs, kinds] = chosen.events;
  steps.forEach((step, i) => writes[places[i]].push([step, indices[i], logprobs[i], kinds?.[i] ?? WRITE.chosen]));
  chosen.tokens.forEach((index, i) => {
    if (chosen.steps[i] && !writes[i].length) writes[i].push([chosen.steps[i], index, null, WRITE.chosen]); // pads after the last step
  });
  return writes;
}

/** The number of the write at place i that stands at the end of `step`, -1 before the first. */
const writeAt = (i, step) => view.writes[i].findLastIndex(([written]) => written <= step);

/** Whether write n of place i puts another token where one stood. */
function overwrites(i, n) {
  const [before, now] = [view.writes[i][n - 1]?.[1] ?? -1, view.writes[i][n][1]];
  return is(WRITE.chosen)(i, n) && before >= 0 && now >= 0 && before !== now;
}

/** Whether write n of place i is of a kind of WRITE. */
const is = (kind) => (i, n) => view.writes[i][n][3] === kind;
const holdsMask = (i, n) => view.writes[i][n][1] < 0;
const remasks = (i, n) => is(WRITE.chosen)(i, n) && holdsMask(i, n);
const deletes = is(WRITE.deleted);
const inserts = is(WRITE.inserted);
const edits = (i, n) => overwrites(i, n) || remasks(i, n) || deletes(i, n) || inserts(i, n);

function blockOf(position) {
  if (!view.block) return 0;
  const [first, size] = view.block;
  return position < first ? 0 : 1 + Math.floor((position - first) / size);
}

/** Draws the chosen sample anew, all masked. */
function drawSample() {
  const chosen = sample();
  const steps = Math.max(chosen.num_steps, 0);
  view = { block: chosen.block, tokens: [], blocks: [], byStep: Array.from({ length: steps + 1 }, () => []), steps, shown: 0, same: [] };
  view.writes = writesOf(chosen);
  const canvas = document.createDocumentFragment();
  const joined = (view.joined = joinedBytes(chosen.tokens));
  let beyond = null;
  chosen.tokens.forEach((index, i) => {
    const block = blockOf(i);
    if (block >= view.blocks.length || i === chosen.length) {
      if (block >= view.blocks.length && i > 0) (beyond ?? canvas).append(element("i", "tick"));
      if (i === chosen.length) {
        canvas.append(element("span", "end", "end of answer"));
        canvas.append((beyond = element("span", "beyond")));
      }
      const made = element("span", "block");
      (beyond ?? canvas).append(made);
      (view.blocks[block] ??= { parts: [], from: Infinity }).parts.push(made);
    }
    const writes = view.writes[i];
    const token = tokenElement(index, joined[i]);
    token.classList.add("masked");
    if (!writes.length) {
      token.classList.add("never");
      token.textContent = "\u00a0\u00a0\u00a0";
    } else view.blocks[block].from = Math.min(view.blocks[block].from, writes[0][0]);
    token.dataset.i = i;
    for (const [step] of writes) view.byStep[step].push(i);
    view.tokens.push(token);
    view.blocks[block].parts.at(-1).append(token);
  });
  if (!chosen.tokens.length) canvas.append(element("span", "quiet", "(empty)"));
  at("canvas").replaceChildren(canvas);
  drawPrompt(chosen);
  drawFacts(chosen);
  drawBars();
  at("slider").max = steps;
}

function drawPrompt(chosen) {
  const prompt = data.groups[state.group].prompts[chosen.prompt];
  const parent = at("prompt").querySelector(".text");
  parent.replaceChildren();
  if (typeof prompt === "string") addText(parent, prompt);
  else {
    const joined = joinedBytes(prompt);
    prompt.forEach((index, i) => {
      if (index < 0) return parent.append(pictureElement(data.pictures[-1 - index]));
      const token = tokenElement(index, joined[i]);
      token.dataset.p = i;
      parent.append(token);
    });
  }
  const size = typeof prompt === "string" ? 0 : prompt.reduce((sum, index) => sum + (index < 0 ? data.pictures[-1 - index][0] : 1), 0);
  const count = typeof prompt === "string" ? "" : ` · ${plural(size, "token")}`;
  at("prompt").querySelector("summary").textContent = `Prompt${count}`;
  at("prompt").hidden = !prompt.length;
}

function drawFacts(chosen) {
  const rate = view.steps ? number(chosen.length / view.steps, 2) : "–";
  const facts = [
    ["reward", chosen.reward === null ? "–" : number(chosen.reward), rewardClass(chosen.reward)],
    ["advantage", chosen.advantage === null ? null : number(chosen.advantage)],
    ["length", plural(chosen.length, "token")],
    ["steps", view.steps.toLocaleString("en")],
    ["overwritten", chosen.events ? countWrites(overwrites) : null],
    ["masked again", (chosen.events && countWrites(remasks)) || null],
    ["deleted", (chosen.events && countWrites(deletes)) || null],
    ["inserted", (chosen.events && countWrites(inserts)) || null],
    ["tokens per step", rate],
    ["ended by", chosen.finish || null],
    ["block", chosen.block ? `${chosen.block[1]} tokens` : null],
    ["expected", chosen.answer],
  ];
  at("facts").replaceChildren(
    ...facts.filter(([, value]) => value !== null).map(([name, value, className]) => {
      const pair = element("div");
      pair.append(element("dt", "", name), element("dd", className, value));
      pair.title = value;
      return pair;
    }),
  );
  const legend = [["lit", "decided in this step"], ["mask", "masked"]];
  if (chosen.block) legend.push(["ahead", "block not begun"]);
  if (chosen.events) legend.push(["edit", chosen.events[4] ? "overwritten, deleted or inserted" : "overwritten or masked again"]);
  at("legend").replaceChildren(
    ...legend.flatMap(([colour, text]) => {
      const square = element("i");
      square.style.background = `var(--${colour})`;
      return [square, text];
    }),
  );
}

const countWrites = (kind) => view.writes.reduce((sum, writes, i) => sum + writes.filter((_, n) => kind(i, n)).length, 0);

/** How many writes of a step are of a kind. */
const countIn = (step, kind) => view.byStep[step].filter((i) => kind(i, writeAt(i, step))).length;

const barPath = (steps, tallest, count = (s) => view.byStep[s].length) =>
  steps.map((s) => (count(s) ? `M${s - 1 + view.gap} 1V${1 - count(s) / tallest}H${s - view.gap}V1z` : "")).join("");

/** A bar for each step, as high as the number of places that it wrote; its foot, those that it overwrote or masked again. */
function drawBars() {
  const steps = Array.from({ length: view.steps }, (_, i) => i + 1);
  view.tallest = Math.max(1, ...steps.map((s) => view.byStep[s].length));
  view.gap = view.steps > 200 ? 0 : 0.08;
  at("bars").setAttribute("viewBox", `0 0 ${Math.max(1, view.steps)} 1`);
  at("bars").querySelector(".all").setAttribute("d", barPath(steps, view.tallest));
  view.edits = sample().events ? barPath(steps, view.tallest, (s) => countIn(s, edits)) : "";
  at("bars").querySelector(".edits").setAttribute("d", view.edits);
}

/** Draws place i as it is at the end of `step`: masked, or its token, in the step that overwrites it with the old one struck. */
function drawPlace(i, step) {
  const token = view.tokens[i];
  const writes = view.writes[i];
  const n = writeAt(i, step);
  const masked = n < 0 || holdsMask(i, n);
  token.classList.toggle("masked", masked);
  if (writes.length < 2) return;
  const shown = masked ? (writes.slice(n + 1).find(([, index]) => index >= 0) ?? writes[n])[1] : writes[n][1];
  if (shown >= 0) fillToken(token, shown, shown === writes.at(-1)[1] ? view.joined[i] : null);
  else token.textContent = "\u00a0\u00a0\u00a0";
  token.classList.toggle("edited", writes.slice(0, n + 1).some((_, k) => edits(i, k)));
  const goes = n > 0 && !holdsMask(i, n - 1) && (overwrites(i, n) || remasks(i, n) || deletes(i, n));
  if (goes && writes[n][0] === step) {
    const old = element("s", "old");
    fillToken(old, writes[n - 1][1], null);
    old.classList.remove("special", "id");
    if (masked) token.replaceChildren(old);
    else token.prepend(old);
  }
}

function showStep(wanted) {
  const step = Math.min(Math.max(0, wanted), view.steps);
  for (const i of view.byStep[view.shown] ?? []) view.tokens[i].classList.remove("lit");
  const [low, high] = [Math.min(view.shown, step), Math.max(view.shown, step)];
  const changed = new Set();
  for (let s = low; s <= high; s++) for (const i of view.byStep[s]) changed.add(i);
  for (const i of changed) drawPlace(i, step);
  if (step > 0) for (const i of view.byStep[step]) view.tokens[i].classList.add("lit");
  if (view.block)
    for (const block of view.blocks) for (const part of block.parts) part.classList.toggle("ahead", block.from > step);
  view.shown = state.step = step;
  drawPicture(step);
  const share = view.steps ? (100 * step) / view.steps : 0;
  at("done").style.width = at("knob").style.left = `${share}%`;
  at("veil").style.width = `${100 - share}%`;
  at("bars").querySelector(".now").setAttribute("d", step ? barPath([step], view.tallest) : "");
  at("slider").value = step;
  const [overwritten, again] = step ? [countIn(step, overwrites), countIn(step, remasks)] : [0, 0];
  const kept = step ? countIn(step, (i, n) => n > 0 && is(WRITE.chosen)(i, n) && !holdsMask(i, n) && view.writes[i][n - 1][1] === view.writes[i][n][1]) : 0;
  const [deleted, inserted, moved] = step ? [deletes, inserts, is(WRITE.moved)].map((kind) => countIn(step, kind)) : [0, 0, 0];
  const decided = step ? view.byStep[step].length - overwritten - again - kept - deleted - inserted - moved : 0;
  const parts = [`${plural(decided, "token")} decided`];
  if (overwritten) parts.push(`${overwritten} overwritten`);
  if (kept) parts.push(`${kept} chosen again`);
  if (again) parts.push(`${again} masked again`);
  if (deleted) parts.push(`${deleted} deleted`);
  if (inserted) parts.push(`${inserted} inserted`);
  if (moved) parts.push(`${moved} moved`);
  const bold = element("b", "", `step ${step.toLocaleString("en")}`);
  at("where").replaceChildren(bold, ` of ${view.steps.toLocaleString("en")}`);
  at("where").append(element("span", "quiet", step ? ` · ${parts.join(", ")}` : " · all masked"));
  rememberSoon();
}

/** Of a response that is a picture: the last frame up to this step; the first one is all that is known before it. */
function drawPicture(step) {
  const frames = sample().frames ?? [];
  const frame = frames.findLast(([from]) => from <= step);
  at("drawn").hidden = !frame;
  if (frame) at("drawn").setAttribute("src", frame[1]);
}

function follow() {
  const lit = state.step ? view.tokens[view.byStep[state.step][0]] : view.tokens[0];
  lit?.scrollIntoView({ block: "nearest" });
}

function drawGroup() {
  const group = data.groups[state.group];
  at("group").value = state.group;
  at("samples").replaceChildren(
    ...group.samples.map((one, i) => {
      const button = element("button");
      button.append(element("span", "quiet", `#${one.name || i}`));
      button.append(element("span", "size", plural(one.length, "token")));
      button.append(element("span", `reward ${rewardClass(one.reward)}`, one.reward === null ? "–" : number(one.reward)));
      button.title = `${plural(one.length, "token")} in ${plural(one.num_steps, "step")}`;
      button.addEventListener("click", () => choose(state.group, i));
      return button;
    }),
  );
}

/** Chooses a sample; `step` undefined = at its end. */
function choose(group, index, step) {
  pause();
  state.group = Math.min(Math.max(0, group), data.groups.length - 1);
  state.sample = Math.min(Math.max(0, index), data.groups[state.group].samples.length - 1);
  drawGroup();
  [...at("samples").children].forEach((button, i) => button.setAttribute("aria-current", i === state.sample));
  at("samples").children[state.sample].scrollIntoView({ block: "nearest", inline: "nearest" });
  drawSample();
  showStep(step ?? view.steps);
  document.querySelector("main").scrollTop = 0;
  if (step !== undefined) follow();
}

function neighbour(by) {
  const samples = data.groups[state.group].samples.length;
  const index = state.sample + by;
  if (index >= 0 && index < samples) choose(state.group, index);
  else if (data.groups[state.group + by]) choose(state.group + by, by > 0 ? 0 : Infinity);
}

function pause() {
  clearTimeout(state.timer);
  state.timer = null;
  at("play").querySelector("path").setAttribute("d", PLAY);
}

function play() {
  if (state.step >= view.steps) showStep(0);
  at("play").querySelector("path").setAttribute("d", PAUSE);
  const { min, max } = STEP_MILLISECONDS;
  const tick = () => {
    showStep(state.step + 1);
    follow();
    if (state.step >= view.steps) return pause();
    const wait = Math.min(max, Math.max(min, (1000 * FULL_PLAY_SECONDS) / view.steps));
    state.timer = setTimeout(tick, wait / Number(at("speed").value));
  };
  state.timer = setTimeout(tick, STEP_MILLISECONDS.max / 2);
}

const toggle = () => (state.timer === null ? play() : pause());

function stepTo(step) {
  pause();
  showStep(step);
  follow();
}

function rememberSoon() {
  clearTimeout(hashTimer);
  hashTimer = setTimeout(() => {
    const theme = document.documentElement.dataset.theme;
    const hash = `#group=${state.group}&sample=${state.sample}&step=${state.step}${theme ? `&theme=${theme}` : ""}`;
    if (hash !== location.hash) history.replaceState(null, "", hash);
  }, HASH_DELAY_MILLISECONDS);
}

function fromHash() {
  const words = new URLSearchParams(location.hash.slice(1));
  const whole = (name, otherwise) => (/^\d+$/.test(words.get(name) ?? "") ? Number(words.get(name)) : otherwise);
  if (["dark", "light"].includes(words.get("theme"))) document.documentElement.dataset.theme = words.get("theme");
  choose(whole("group", 0), whole("sample", 0), whole("step", undefined));
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  rememberSoon();
}

const chance = (logprob) => (typeof logprob === "number" ? `, p = ${number(100 * Math.exp(logprob), 2)} %` : "");

/** What a place held, write by write; the one that stands is marked. */
function historyLines(i, writes) {
  const now = writeAt(i, state.step);
  const how = ["", "moved here: ", "deleted, then here: ", "inserted: "];
  const named = ([, index, , kind]) => how[kind] + (index < 0 ? (kind === WRITE.chosen ? "masked again" : "a mask") : data.vocabulary[index][2] === KIND.id ? `id ${data.vocabulary[index][0]}` : JSON.stringify(data.vocabulary[index][1]));
  const standing = writes[now]?.[1] >= 0 ? writes[now] : writes.findLast(([, index]) => index >= 0);
  const lines = writes.map((write, n) => `${n === now ? "▸ " : ""}step ${write[0]}: ${named(write)}${chance(write[2])}`);
  return [data.vocabulary[standing[1]], `position ${i}${view.block ? ` · block ${blockOf(i)}` : ""}`, ...lines];
}

function tipLines(token) {
  if (token.dataset.p !== undefined) {
    const i = Number(token.dataset.p);
    const [id, text, kind] = data.vocabulary[data.groups[state.group].prompts[sample().prompt][i]];
    return [[id, text, kind], `prompt, position ${i}`];
  }
  const i = Number(token.dataset.i);
  const { tokens, steps, logprobs } = sample();
  const writes = view.writes[i];
  if (writes.length > 1) return historyLines(i, writes);
  const lines = [data.vocabulary[tokens[i]], `position ${i}${view.block ? ` · block ${blockOf(i)}` : ""}`];
  if (steps[i] === 0) return [...lines, "never decided: still masked at the end"];
  lines.push(`${steps[i] > state.step ? "masked until" : "decided in"} step ${steps[i]} of ${view.steps}`);
  const logprob = logprobs?.[i];
  if (typeof logprob === "number") lines.push(`log-prob ${number(logprob, 4)} · p = ${number(100 * Math.exp(logprob), 2)} %`);
  else lines.push("log-prob not in the file");
  return lines;
}

function showTip(token) {
  for (const same of view.same) same.classList.remove("same");
  view.same = [];
  at("tip").hidden = !token;
  if (!token) return;
  const [[id, text, kind], ...lines] = tipLines(token);
  const name = kind === KIND.id ? "" : kind === KIND.bytes ? `bytes ${text.match(/../g).join(" ")}` : JSON.stringify(text);
  const head = element("div");
  head.append(element("b", "", name), `${name ? " · " : ""}id ${id}`);
  at("tip").replaceChildren(head, ...lines.map((line) => element("div", "", line)));
  if (token.dataset.i !== undefined) {
    const i = Number(token.dataset.i);
    const step = view.writes[i][writeAt(i, state.step)]?.[0] ?? view.writes[i][0]?.[0];
    view.same = step ? view.byStep[step].map((i) => view.tokens[i]) : [];
    for (const same of view.same) same.classList.add("same");
  }
  const box = token.getClientRects()[0];
  const tip = at("tip").getBoundingClientRect();
  const below = box.bottom + 8 + tip.height < innerHeight;
  at("tip").style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.width - 8))}px`;
  at("tip").style.top = `${below ? box.bottom + 8 : box.top - tip.height - 8}px`;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const actions = {
    ArrowLeft: () => stepTo(state.step - 1),
    ArrowRight: () => stepTo(state.step + 1),
    ArrowUp: () => neighbour(-1),
    ArrowDown: () => neighbour(1),
    Home: () => stepTo(0),
    End: () => stepTo(view.steps),
    " ": toggle,
    d: switchTheme,
  };
  const action = actions[event.key];
  if (!action || (event.key === " " && ["BUTTON", "SUMMARY"].includes(event.target.tagName) && event.target.id !== "play")) return;
  event.preventDefault();
  action();
}

function meanReward(group) {
  const rewards = group.samples.map((one) => one.reward).filter((reward) => reward !== null);
  return rewards.length ? ` · mean reward ${number(rewards.reduce((a, b) => a + b) / rewards.length, 2)}` : "";
}

function start() {
  at("name").textContent = at("name").title = data.name;
  at("notes").replaceChildren(...data.notes.map((note) => element("p", "", note)));
  at("group").replaceChildren(
    ...data.groups.map((group, i) => {
      const option = element("option", "", `${group.title} · ${plural(group.samples.length, "sample")}${meanReward(group)}`);
      option.value = i;
      return option;
    }),
  );
  at("group").addEventListener("change", () => choose(Number(at("group").value), 0));
  at("slider").addEventListener("input", () => stepTo(Number(at("slider").value)));
  at("back").addEventListener("click", () => stepTo(state.step - 1));
  at("next").addEventListener("click", () => stepTo(state.step + 1));
  at("play").addEventListener("click", toggle);
  at("theme").addEventListener("click", switchTheme);
  document.addEventListener("keydown", onKey);
  document.addEventListener("pointerover", (event) => showTip(event.target.closest(".tok")));
  document.addEventListener("scroll", () => showTip(null), true);
  addEventListener("hashchange", fromHash);
  fromHash();
}

start();
