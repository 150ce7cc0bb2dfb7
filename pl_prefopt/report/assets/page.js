"use strict";
// Draws the figures in the page's colours; sorts, filters and unfolds the tables. All texts are in the page already.

const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 640px)");

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const own = structuredClone(layout);
  delete own.width;
  own.paper_bgcolor = "rgba(0,0,0,0)";
  own.font.color = colour("--text");
  own.hoverlabel = { ...own.hoverlabel, bgcolor: colour("--panel"), bordercolor: colour("--line"),
                     font: { color: colour("--text") } };
  own.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--text") };
  if (narrow.matches) own.legend = { ...own.legend, x: -0.15, font: { size: 11 } };
  for (const axis of Object.keys(own).filter((key) => /^[xy]axis/.test(key))) {
    own[axis].gridcolor = own[axis].linecolor = colour("--line");
    own[axis].zerolinecolor = colour("--soft");
  }
  return own;
}

function draw(place) {
  const { data, layout } = figures[place.dataset.figure];
  const options = {
    responsive: true,
    displaylogo: false,
    displayModeBar: narrow.matches ? false : "hover",
    // One of them would send the data to Plotly's server.
    modeBarButtonsToRemove: ["sendChartToCloud", "downloadJson", "toImage", "select2d", "lasso2d", "autoScale2d"],
    plotlyServerURL: "",
  };
  return Plotly.react(place, data, themed(layout), options);
}

function save(button) {
  const place = button.closest(".panel").querySelector(".figure");
  const { data, layout } = figures[place.dataset.figure];
  const size = { width: 720, height: layout.height || 440, scale: button.dataset.save === "png" ? 2 : 1 };
  return Plotly.downloadImage({ data, layout }, { format: button.dataset.save, filename: place.dataset.figure, ...size });
}

// Numbers sort as numbers, from the largest; what is empty stays at the end either way.
function compare(first, second, direction) {
  if (first === "" || second === "") return (first === "") - (second === "");
  const numbers = [Number(first), Number(second)];
  const order = numbers.some(Number.isNaN) ? first.localeCompare(second) : numbers[0] - numbers[1];
  return direction * order;
}

function sortBy(button) {
  const heading = button.closest("th");
  const table = heading.closest("table");
  const descending = heading.getAttribute("aria-sort") === "ascending" ||
    (heading.getAttribute("aria-sort") === null && heading.classList.contains("number"));
  for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const grouped = table.tBodies.length > 1 || table.classList.contains("cases");
  const items = [...(grouped ? table.tBodies : table.tBodies[0].rows)];
  const key = (item) => (grouped ? item.rows[0] : item).cells[heading.cellIndex].dataset.order;
  items.sort((a, b) => compare(key(a), key(b), descending ? -1 : 1));
  for (const item of items) item.parentElement.append(item);
}

function unfold(row) {
  const open = row.getAttribute("aria-expanded") !== "true";
  row.setAttribute("aria-expanded", String(open));
  row.nextElementSibling.hidden = !open;
}

function filterCases() {
  const words = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const run = document.getElementById("run-filter").value;
  const cases = [...document.querySelectorAll(".cases tbody")];
  for (const item of cases) {
    const text = item.textContent.toLowerCase();
    item.hidden = (run !== "" && item.dataset.run !== run) || !words.every((word) => text.includes(word));
  }
  const count = cases.filter((item) => !item.hidden).length;
  document.getElementById("shown").textContent = `${count} of ${cases.length}`;
}

for (const place of document.querySelectorAll(".figure")) draw(place);
dark.addEventListener("change", () => document.querySelectorAll(".figure").forEach(draw));
for (const button of document.querySelectorAll("[data-save]")) button.addEventListener("click", () => save(button));
for (const button of document.querySelectorAll(".sortable thead button")) {
  button.addEventListener("click", () => sortBy(button));
}
for (const row of document.querySelectorAll(".summary")) {
  row.addEventListener("click", () => unfold(row));
  row.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    unfold(row);
  });
}
if (document.getElementById("search")) {
  document.getElementById("search").addEventListener("input", filterCases);
  document.getElementById("run-filter").addEventListener("change", filterCases);
  filterCases();
}
document.documentElement.dataset.ready = "true";
