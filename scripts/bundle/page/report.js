"use strict";
// Filters hide by rule: one style sheet names the solutions that are switched off.
const hidden = document.head.appendChild(document.createElement("style"));
const boxes = [...document.querySelectorAll(".chips input")];
const gpu = document.getElementById("gpu");

function applySolutions() {
  const off = boxes.filter((box) => !box.checked).map((box) => CSS.escape(box.value));
  hidden.textContent = off.map((name) => `[data-solution="${name}"] { display: none !important }`).join("\n");
  const shown = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  for (const figure of document.querySelectorAll(".bars")) scaleBars(figure, shown);
}

// As in the page's Python: what is longer than twice the median is drawn shorter, and says so.
function scaleBars(figure, shown) {
  const rows = [...figure.querySelectorAll(".row")].filter((row) => shown.has(row.dataset.solution));
  const times = rows.map((row) => Number(row.dataset.us)).sort((a, b) => a - b);
  if (!times.length) return;
  const middle = times.length >> 1;
  const median = times.length % 2 ? times[middle] : (times[middle - 1] + times[middle]) / 2;
  const longest = Math.min(times[times.length - 1], 2 * median);
  figure.style.setProperty("--max", longest);
  for (const row of rows) {
    const times = Number(row.dataset.us) / longest;
    row.classList.toggle("short", times > 1);
    row.querySelector(".scale").textContent = `1:${times.toFixed(1)}`;
  }
}

function applyGpu() {
  for (const article of document.querySelectorAll("article")) {
    article.hidden = gpu.value !== "" && article.dataset.gpu !== gpu.value;
  }
}

// Numbers sort as numbers, whatever stands around them; text after all numbers.
function sortValue(cell) {
  const found = cell.textContent.replaceAll(",", "").match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return found && !cell.classList.contains("left") && !cell.classList.contains("failed")
    ? Number(found[0])
    : null;
}

function sortBy(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const rising = header.getAttribute("aria-sort") !== "ascending";
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row) => ({
    row,
    value: sortValue(row.cells[column]),
    text: row.cells[column].textContent,
  }));
  const sign = rising ? 1 : -1;
  rows.sort((a, b) => {
    if (a.value !== null && b.value !== null) return sign * (a.value - b.value);
    if (a.value !== null || b.value !== null) return a.value !== null ? -1 : 1;
    return sign * a.text.localeCompare(b.text, undefined, { numeric: true });
  });
  for (const { row } of rows) {
    for (const cell of row.cells) cell.classList.remove("again");
    table.tBodies[0].append(row);
  }
}

for (const box of boxes) box.addEventListener("change", applySolutions);
document.getElementById("everything").addEventListener("click", () => {
  const some = boxes.some((box) => !box.checked);
  for (const box of boxes) box.checked = some;
  applySolutions();
});
gpu.addEventListener("change", applyGpu);
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
for (const header of document.querySelectorAll(".sheet thead th")) {
  header.firstElementChild.addEventListener("click", () => sortBy(header));
}
// A printed page shows every table.
addEventListener("beforeprint", () => {
  for (const sheet of document.querySelectorAll(".sheet")) sheet.open = true;
});
applySolutions();
applyGpu();
