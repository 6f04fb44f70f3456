// Moves what the sweep has computed into the plots: nothing is simulated here.
"use strict";

const told = JSON.parse(document.getElementById("data").textContent);
const axes = { loss: told.methods.map((method) => method.name), ...told.axes };
const sliders = Object.keys(told.axes);
const first = {
  loss: "dpo", centre: 20, coverage: 0.5, step_size: 10, step: 1000,
};
const frame = 160; // milliseconds
const phoneHeight = 215; // pixels, so that bars and sliders are on one screen
const byId = (id) => document.getElementById(id);
const setting = {}; // the index on each axis
let results, models, timer = null;

async function unpack(text, View) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new View(await new Response(stream).arrayBuffer());
}

function place(loss, step) {
  const { centre, coverage, step_size } = setting;
  const run = ((loss * axes.centre.length + centre) * axes.coverage.length + coverage)
    * axes.step_size.length + step_size;
  return { run, moment: run * axes.step.length + step };
}

function atArms(values, moment, change) {
  const start = moment * told.arms;
  return Array.from(values.subarray(start, start + told.arms), change);
}

const policyAt = (moment) => atArms(results.policy, moment, (root) => (root / 255) ** 2);

function diverged(run, step) {
  const since = told.divergedAt[run];
  return since >= 0 && axes.step[step] >= since;
}

function curve(loss, values, scale) {
  const { run, moment } = place(loss, 0);
  return axes.step.map((_, step) =>
    diverged(run, step) ? NaN : (values[moment + step] * scale) / 65535);
}

function nearest(name, wanted) {
  if (name === "loss") return axes.loss.indexOf(wanted);
  const value = Number(wanted);
  if (wanted === "" || !Number.isFinite(value)) return -1;
  let best = 0;
  axes[name].forEach((one, i) => {
    if (Math.abs(one - value) < Math.abs(axes[name][best] - value)) best = i;
  });
  return best;
}

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(axes)) {
    const found = asked.has(name) ? nearest(name, asked.get(name)) : -1;
    setting[name] = found >= 0 ? found : Math.max(0, nearest(name, first[name]));
  }
  if (["dark", "light"].includes(asked.get("theme"))) setTheme(asked.get("theme") === "dark");
}

function writeAddress() {
  const kept = new URLSearchParams();
  for (const name of Object.keys(axes)) kept.set(name, axes[name][setting[name]]);
  if (isThemeChosen) kept.set("theme", isDark() ? "dark" : "light");
  history.replaceState(null, "", "#" + kept);
}

const shown = {
  centre: (value) => `arm ${value}`,
  coverage: (value) => `${Math.round(100 * value)}%`,
  step_size: (value) => `${value}`,
  step: (value) => value.toLocaleString("en"),
};

function showControls(method) {
  byId("loss").value = method.name;
  for (const name of sliders) {
    const input = byId(name);
    const text = shown[name](axes[name][setting[name]]);
    input.value = setting[name];
    input.setAttribute("aria-valuetext", text);
    document.querySelector(`output[for=${name}]`).value = text;
  }
  byId("coverage").disabled = !method.usesData;
  byId("play").textContent = timer === null ? "Play" : "Stop";
}

function say(method, policy, run, moment) {
  const step = axes.step[setting.step];
  const label = method.label[0].toUpperCase() + method.label.slice(1);
  const name = `${label} after ${step.toLocaleString("en")} step${step === 1 ? "" : "s"}`;
  if (diverged(run, setting.step)) {
    byId("said").textContent = `${name}: diverged after ${told.divergedAt[run]} steps; take smaller ones.`;
    return;
  }
  const reward = Math.round((100 * results.reward[moment]) / 65535);
  const kl = ((told.klScale * results.kl[moment]) / 65535).toFixed(2);
  let text = `${name}: ${reward}% of the largest reward, ${kl} nats from the reference`;
  const edge = firstUncovered();
  if (method.usesData && edge < told.arms) {
    const out = policy.slice(edge).reduce((sum, mass) => sum + mass, 0);
    const before = told.reference.slice(edge).reduce((sum, mass) => sum + mass, 0);
    text += `; ${Math.round(100 * out)}% of its mass on arms that are not in the data`
      + ` (the reference has ${Math.round(100 * before)}%)`;
  }
  byId("said").textContent = text + ".";
}

// The data hold the arms up to coverage K - 1, as `truncated` keeps them.
function firstUncovered() {
  const last = axes.coverage[setting.coverage] * told.arms - 1;
  return Math.floor(last + 1e-6) + 1;
}

function scaleOf(run) {
  let most = Math.max(...told.optimum[setting.centre], ...told.reference);
  axes.step.forEach((_, step) => {
    if (diverged(run, step)) return;
    const start = (run * axes.step.length + step) * told.arms;
    for (let arm = 0; arm < told.arms; arm++) {
      most = Math.max(most, (results.policy[start + arm] / 255) ** 2);
    }
  });
  return Math.min(1.02, 1.06 * most);
}

function draw() {
  const method = told.methods[setting.loss];
  const { run, moment } = place(setting.loss, setting.step);
  const lost = diverged(run, setting.step);
  const policy = policyAt(moment).map((mass) => (lost ? NaN : mass));
  const pushes = atArms(results.push, moment, (share) => (lost ? NaN : share / 127));
  const arm = told.reference.map((_, i) => i);
  const color = inTheme(method.color);

  models.policy_bars.data = { arm, top: policy };
  models.policy_glyph.glyph.fill_color = color;
  models.policy.y_range.end = scaleOf(run);
  models.reference_source.data = { arm, mass: told.reference };
  models.optimum_source.data = { arm, mass: told.optimum[setting.centre] };
  models.bump_source.data = { arm, reward: told.bump[setting.centre] };
  models.uncovered.left = method.usesData ? Math.min(firstUncovered(), told.arms) - 0.5 : told.arms;
  models.push_bars.data = {
    arm, top: pushes,
    color: pushes.map((push) => inTheme(push >= 0 ? told.raised : told.pushed)),
  };
  const most = axes.step_size[setting.step_size] * results.most[moment];
  byId("pushed").textContent = lost || !pushes.some((push) => push !== 0)
    ? "nobody" : `the largest by ${most.toPrecision(2)} nats a step`;
  document.documentElement.style.setProperty("--method", color);

  const x = axes.step.map((_, i) => i);
  for (const [name, values, scale] of [
    ["reward", results.reward, 1], ["divergence", results.kl, told.klScale],
  ]) {
    const curves = told.methods.map((_, loss) => curve(loss, values, scale));
    const own = curves.splice(setting.loss, 1)[0];
    const names = told.methods.map((one) => one.label).filter((_, loss) => loss !== setting.loss);
    models[`${name}_others`].data = { xs: curves.map(() => x), ys: curves, name: names };
    models[`${name}_curve`].data = { x, y: own };
    models[`${name}_glyph`].glyph.line_color = color;
    models[`${name}_now`].location = setting.step;
    if (name === "divergence") {
      const largest = Math.max(...[own, ...curves].flat().filter(Number.isFinite));
      models.divergence.y_range.end = Math.max(0.1, 1.05 * largest);
    }
  }
  byId("formula").textContent = `${method.label} minimises ${method.formula}`;
  showControls(method);
  say(method, policy, run, moment);
}

function move(name, index) {
  setting[name] = Math.min(Math.max(index, 0), axes[name].length - 1);
  draw();
  writeAddress();
}

function stop() {
  clearInterval(timer);
  timer = null;
  byId("said").setAttribute("aria-live", "polite");
  byId("play").textContent = "Play";
}

function play() {
  if (timer !== null) return stop();
  if (setting.step === axes.step.length - 1) move("step", 0);
  byId("said").setAttribute("aria-live", "off"); // a word for every frame is too much
  timer = setInterval(() => {
    move("step", setting.step + 1);
    if (setting.step === axes.step.length - 1) stop();
  }, frame);
  byId("play").textContent = "Stop";
}

// Dark and light.

let isThemeChosen = false;
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => document.documentElement.classList.contains("dark");

function setTheme(dark, chosen = true) {
  isThemeChosen ||= chosen;
  document.documentElement.classList.toggle("dark", dark);
  byId("theme").textContent = dark ? "Light" : "Dark";
  if (models) paint();
}

// A color that is too dark for a dark page, mixed with white.
function inTheme(color) {
  if (!isDark()) return color;
  const parts = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  const bright = (0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2]) / 255;
  const white = Math.max(0, 0.62 - bright);
  return "#" + parts
    .map((part) => Math.round(part + (255 - part) * white).toString(16).padStart(2, "0"))
    .join("");
}

function paint() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(`--${name}`).trim();
  const [ink, line] = ["ink", "line"].map(color);
  for (const name of ["policy", "pushes", "reward", "divergence"]) {
    const plot = models[name];
    for (const axis of [...plot.left, ...plot.below, ...plot.right]) {
      axis.axis_label_text_color = axis.major_label_text_color = ink;
      axis.axis_line_color = axis.major_tick_line_color = ink;
    }
    for (const part of [...plot.center, ...plot.above]) {
      if (part.type === "Grid") part.grid_line_color = line;
      if (part.type === "Legend") part.label_text_color = ink;
    }
  }
  models.reference_glyph.glyph.line_color = ink;
  models.optimum_glyph.glyph.line_color = ink;
  models.bump_glyph.glyph.line_color = inTheme(color("reward"));
  models.reward_now.line_color = models.divergence_now.line_color = ink;
  draw();
}

// The start.

function whenEmbedded() {
  return new Promise((resolve) => {
    const look = () => {
      const found = window.Bokeh && Bokeh.documents[0];
      if (found && found.get_model_by_name("divergence_now")) resolve(found);
      else setTimeout(look, 20);
    };
    look();
  });
}

async function begin() {
  for (const method of told.methods) {
    byId("loss").append(new Option(`${method.label} (${method.family})`, method.name));
  }
  for (const name of sliders) {
    Object.assign(byId(name), { min: 0, max: axes[name].length - 1, step: 1 });
    byId(name).addEventListener("input", () => move(name, byId(name).valueAsNumber));
  }
  byId("loss").addEventListener("input", () => move("loss", axes.loss.indexOf(byId("loss").value)));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("play").addEventListener("click", play);
  byId("start").addEventListener("click", () => { stop(); move("step", 0); });
  byId("theme").addEventListener("click", () => { setTheme(!isDark()); writeAddress(); });
  system.addEventListener("change", () => isThemeChosen || setTheme(system.matches, false));
  window.addEventListener("beforeprint", () => setTheme(false));
  window.addEventListener("hashchange", () => { stop(); readAddress(); draw(); });
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.target.matches("button, select")) return;
    event.preventDefault();
    if (!event.repeat) play();
  });

  const [policy, push, most, reward, kl] = await Promise.all([
    unpack(told.policy, Uint8Array), unpack(told.push, Int8Array),
    unpack(told.pushedMost, Float32Array),
    unpack(told.reward, Uint16Array), unpack(told.kl, Uint16Array),
  ]);
  results = { policy, push, most, reward, kl };
  const found = await whenEmbedded();
  if (matchMedia("(max-width: 720px)").matches) {
    for (const plot of found.roots()) plot.height = phoneHeight;
  }
  models = new Proxy({}, { get: (_, name) => found.get_model_by_name(name) });
  readAddress();
  if (!isThemeChosen) setTheme(system.matches, false);
  paint();
  document.body.dataset.ready = "true";
}

begin().catch((error) => {
  byId("said").textContent = `This browser cannot show the page (${error}); a newer one can.`;
  throw error;
});
