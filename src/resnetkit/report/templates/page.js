"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const isText = head.dataset.sort === "text";
    const order = head.getAttribute("aria-sort");
    const down = order ? order === "ascending" : !isText;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
    const compare = isText
      ? (a, b) => value(a).localeCompare(value(b), undefined, { numeric: true })
      : (a, b) => value(a) - value(b);
    const rows = [...body.rows].sort((a, b) => (down ? -compare(a, b) : compare(a, b)));
    body.append(...rows);
  }));
}
for (const input of document.querySelectorAll("input[data-filters]")) {
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  const count = document.getElementById(input.dataset.filters + "-count");
  const apply = () => {
    const wanted = input.value.trim().toLocaleLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLocaleLowerCase().includes(wanted);
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  input.addEventListener("input", apply);
  apply();
}
const matrix = document.getElementById("matrix");
if (matrix) {
  const names = JSON.parse(document.getElementById("names").textContent);
  const readout = document.getElementById("readout");
  const show = (event) => {
    const cell = event.target.dataset?.c;
    if (!cell) return;
    const [truth, answer, count] = cell.split(",").map(Number);
    readout.textContent = truth === answer
      ? `${names[truth]}: ${count} correct`
      : `${names[truth]} predicted as ${names[answer]}: ${count}×`;
  };
  matrix.addEventListener("pointerover", show);
  matrix.addEventListener("click", show);
}
