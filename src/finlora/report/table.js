"use strict";
// Sorts a table by the column whose header button is pressed; rows without a value stay last, ties keep their order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const first = Array.from(body.rows);
  const said = document.getElementById("said");
  const heads = Array.from(table.querySelectorAll("th[data-column]"));
  const value = (row, column) => row.cells[column].dataset.sort;
  for (const head of heads) {
    const column = Number(head.dataset.column);
    const numeric = head.classList.contains("n");
    head.querySelector("button").addEventListener("click", () => {
      const start = numeric ? "descending" : "ascending";
      const other = numeric ? "ascending" : "descending";
      const now = head.getAttribute("aria-sort");
      const next = now === start ? other : now === other ? "none" : start;
      for (const each of heads) each.setAttribute("aria-sort", each === head ? next : "none");
      const sign = next === "ascending" ? 1 : -1;
      const rows = first.slice();
      if (next !== "none") {
        rows.sort((a, b) => {
          const x = value(a, column), y = value(b, column);
          if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
          return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true }));
        });
      }
      table.classList.toggle("sorted", next !== "none");
      body.append(...rows);
      if (said) said.textContent = next === "none" ? "original order" : `sorted by ${head.textContent.trim()}, ${next}`;
    });
  }
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
