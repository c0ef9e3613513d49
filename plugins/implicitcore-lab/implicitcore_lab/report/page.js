"use strict";

// A number where the cell has one, else its text; null where nothing was measured.
function valueOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.missing !== undefined) return null;
  if (cell.dataset.number !== undefined) return Number(cell.dataset.number);
  return cell.textContent.trim();
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

// What nothing was measured for, or is not a number, stays last in both directions.
function isLast(value) {
  return value === null || Number.isNaN(value);
}

function sortTable(table, column, descending) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => [valueOf(row, column), row]);
  rows.sort(([a], [b]) => {
    if (isLast(a) || isLast(b)) return isLast(a) - isLast(b);
    return descending ? compare(b, a) : compare(a, b);
  });
  body.append(...rows.map(([, row]) => row));
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  const order = descending ? "descending" : "ascending";
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", order);
}

for (const table of document.querySelectorAll("table")) {
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => {
      sortTable(table, head.cellIndex, head.getAttribute("aria-sort") === "ascending");
    });
  }
}

// A link to a sorted table: #sort=TABLE:COLUMN or #sort=TABLE:COLUMN:descending
function followFragment() {
  const wanted = /^#sort=([\w-]+):([\w-]+)(:descending)?$/.exec(location.hash);
  const table = wanted && document.getElementById(`table-${wanted[1]}`);
  const heads = table ? Array.from(table.tHead.rows[0].cells) : [];
  const head = heads.find((each) => each.dataset.key === wanted[2]);
  if (head) sortTable(table, head.cellIndex, Boolean(wanted[3]));
}

addEventListener("hashchange", followFragment);
followFragment();
