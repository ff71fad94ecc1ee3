const form = document.getElementById("filters");
if (form) {
  const body = document.querySelector("#table tbody"), rows = [...body.rows], words = document.getElementById("words");
  const search = () => {
    const asked = words.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !asked.every(word => row.textContent.toLowerCase().includes(word));
    document.getElementById("shown").textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
  };
  form.addEventListener("input", search);
  form.addEventListener("submit", event => event.preventDefault());
  form.hidden = false;
  search();

  // First click in a column's own direction, second in the other, third back to the report's order.
  document.querySelectorAll("#table thead th").forEach((head, column) => {
    const button = document.createElement("button");
    const directions = head.classList.contains("down") ? ["descending", "ascending"] : ["ascending", "descending"];
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const direction = directions[directions.indexOf(head.getAttribute("aria-sort")) + 1];
      const value = row => row.cells[column].dataset.value;
      const last = row => value(row) === "" || row.classList.contains("wrong");
      const order = (a, b) => isNaN(a - b) ? a.localeCompare(b) : a - b, sign = direction === "descending" ? -1 : 1;
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      if (direction) head.setAttribute("aria-sort", direction);
      const compare = (a, b) => last(a) - last(b) || sign * order(value(a), value(b));
      body.append(...(direction ? [...rows].sort(compare) : rows));
    });
  });
}
