"use strict";
// A button in each header sorts its table: up, then down; equal rows keep their order.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.querySelectorAll("thead th")];
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") === "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * compared(a.cells[column], b.cells[column]));
      body.append(...rows);
    });
  });
}

function compared(a, b) {
  if ("sort" in a.dataset || "sort" in b.dataset) {
    // What has no number comes first.
    return Number(a.dataset.sort ?? -Infinity) - Number(b.dataset.sort ?? -Infinity) || 0;
  }
  return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
}
