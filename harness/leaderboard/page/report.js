"use strict";
// One state, three choices; everything on the page follows from it.
const state = { dataset: "", metric: "", category: "" };
const figures = JSON.parse(document.getElementById("figures").textContent);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const views = new Map(); // element -> Vega view
const seen = new Set(); // elements that have come near the window
const wanted = new Map(); // element -> the drawing it waits for: a later one makes an earlier one void

function look() {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, line] = ["--ink", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
  const words = { labelColor: ink, titleColor: soft, titleFontWeight: "normal", labelLimit: 260 };
  return {
    background: "transparent", font: getComputedStyle(document.body).fontFamily, view: { stroke: null },
    axis: { ...words, gridColor: line, domainColor: soft, tickColor: soft }, legend: words,
    text: { color: ink }, rule: { color: ink },
  };
}

async function draw(canvas) {
  const { dataset, metric } = state;
  const specs = figures[canvas.dataset.figure];
  const spec = specs[`${dataset}|${metric}`] || specs[`${dataset}|`];
  const turn = (wanted.get(canvas) || 0) + 1;
  wanted.set(canvas, turn);
  views.get(canvas)?.finalize();
  views.delete(canvas);
  if (!spec || spec.missing) {
    canvas.innerHTML = '<p class="missing"></p>';
    canvas.firstChild.textContent = spec ? spec.missing : "Nothing was recorded for this choice.";
    return;
  }
  const dark = document.documentElement.dataset.theme === "dark";
  const actions = { export: true, source: false, compiled: false, editor: false };
  const options = { actions, renderer: "svg", config: look(), tooltip: { theme: dark ? "dark" : "light" } };
  const { view } = await vegaEmbed(canvas, spec, options);
  if (wanted.get(canvas) !== turn) return void view.finalize();
  views.set(canvas, view);
  tell(view);
  view.addEventListener("click", (_, item) => {
    const clicked = item?.datum?.category;
    if (clicked) choose("category", clicked === state.category ? "" : clicked);
  });
}

function tell(view) {
  if ("category" in (view.getState().signals || {})) view.signal("category", state.category).runAsync();
}

function redraw() {
  seen.forEach(draw);
}

function choose(key, value) {
  state[key] = value;
  if (key === "dataset") state.category = "";
  $$("select[data-state]").forEach((select) => (select.value = state[select.dataset.state]));
  offer();
  if (key === "category") views.forEach(tell);
  else redraw();
  filter();
}

// Only the categories of the chosen data set.
function offer() {
  $$("option[data-dataset]").forEach((option) => {
    option.hidden = option.disabled = option.dataset.dataset !== state.dataset;
  });
}

// A row or a case is shown if it has all the words of the filter and belongs to what is chosen.
function filter() {
  const words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const role = document.getElementById("role")?.value || "";
  $$("[data-row]").forEach((row) => {
    const text = row.textContent.toLowerCase();
    const { category, dataset, roles } = row.dataset;
    row.hidden = !(words.every((word) => text.includes(word))
      && (!state.category || category === undefined || category === state.category)
      && (dataset === undefined || dataset === state.dataset)
      && (!role || roles === undefined || roles.split("|").includes(role)));
  });
  $$("[data-only]").forEach((block) => (block.hidden = block.dataset.only !== state.dataset));
  $$("[data-empty]").forEach((note) => (note.hidden = $$("[data-row]:not([hidden])", note.parentElement).length > 0));
}

function dress(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
  redraw();
}

$$("select[data-state]").forEach((select) => {
  state[select.dataset.state] = select.value;
  select.addEventListener("change", () => choose(select.dataset.state, select.value));
});
document.getElementById("filter").addEventListener("input", filter);
document.getElementById("role")?.addEventListener("change", filter);
document.getElementById("theme").addEventListener("click", () => {
  dress(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
});
// A picture in large; the arrows go to the next ones of all that are shown.
const large = document.getElementById("large");
large.firstChild.prepend(new Image());
let enlarged = null;
function enlarge(picture) {
  enlarged = picture;
  const [image, caption] = large.querySelectorAll("img, figcaption");
  image.src = picture.src;
  image.alt = caption.textContent = picture.alt;
  image.style.setProperty("--aspect", picture.naturalWidth / picture.naturalHeight);
  if (!large.open) large.showModal();
}
function beside(picture, step) {
  const all = $$(".case:not([hidden]) img");
  return all[all.indexOf(picture) + step] || picture;
}
document.addEventListener("click", ({ target }) => {
  if (target.closest("#large")) large.close();
  else if (target.matches(".case img")) enlarge(target);
});
document.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (large.open && step) {
    event.preventDefault();
    enlarge(beside(enlarged, step));
  } else if (event.key === "Enter" && event.target.matches(".case img")) enlarge(event.target);
});
large.addEventListener("close", () => enlarged?.focus());

const prefers = matchMedia("(prefers-color-scheme: dark)");
prefers.addEventListener("change", () => dress(prefers.matches ? "dark" : "light"));
dress(prefers.matches ? "dark" : "light");
offer();
filter();

const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting || seen.has(target)) continue;
    seen.add(target);
    draw(target);
  }
}, { rootMargin: "400px" });
$$(".canvas").forEach((canvas) => near.observe(canvas));
window.addEventListener("beforeprint", () => $$(".canvas").forEach((canvas) => seen.has(canvas) || draw(canvas)));
document.documentElement.dataset.ready = "yes";
