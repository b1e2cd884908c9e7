"use strict";
// A click on a title sorts the table by that column; another click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const title = button.parentElement;
      const up = title.getAttribute("aria-sort") !== "ascending";
      const value = (row) => {
        const cell = row.cells[column];
        if (cell.dataset.v === undefined) return cell.textContent;
        if (cell.dataset.v === "nan") return up ? Infinity : -Infinity; // last either way
        return Number(cell.dataset.v.replace("inf", "Infinity"));
      };
      const order = (a, b) => (a === b ? 0 : typeof a === "string" ? a.localeCompare(b) : a - b);
      const rows = [...body.rows].map((row) => [value(row), row]);
      rows.sort(([a], [b]) => (up ? order(a, b) : order(b, a)));
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...rows.map(([, row]) => row));
    });
  });
}
