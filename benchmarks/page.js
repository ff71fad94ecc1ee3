const text = document.getElementById("report").textContent, report = JSON.parse(text);
const form = document.getElementById("filters"), body = document.querySelector("#table tbody");

const download = document.getElementById("download");
download.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
download.hidden = false;

if (form) {
  const words = document.getElementById("words"), count = document.getElementById("shown");
  const selects = [...form.querySelectorAll("select")], rows = [...body.rows];
  const bars = [...document.querySelectorAll(".bar")], points = document.querySelectorAll(".plot [data-row]");

  const fits = (item, verdicts, said) => selects.every(({value, dataset: {key}}) => !value
    || (key === "verdict" ? verdicts.includes(value)
      : key === "variant" ? [item.variant, item.ours, item.other].includes(value) : item[key] === value))
    && words.value.toLowerCase().split(/\s+/).every(word => said.includes(word));
  const filter = () => {
    for (const bar of bars) {
      const item = report.comparisons[bar.dataset.comparison];
      bar.hidden = !fits(item, [item.verdict], bar.dataset.words);
    }
    for (const row of rows) row.hidden = !fits(report.rows[row.dataset.row], row.dataset.verdicts.split("|"), row.dataset.words);
    for (const point of points) point.toggleAttribute("hidden", document.getElementById(`row-${point.dataset.row}`).hidden);
    const left = elements => `${elements.filter(each => !each.hidden).length} of ${elements.length}`;
    count.textContent = `${left(bars)} comparisons · ${left(rows)} rows`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", event => event.preventDefault());
  form.hidden = false;
  filter();
  const below = () => document.documentElement.style.setProperty("--below", `${form.offsetHeight}px`);
  addEventListener("resize", below);
  below();

  // First click in a column's own direction, second in the other, third back to the report's order.
  document.querySelectorAll("#table thead th").forEach((head, column) => {
    const button = document.createElement("button"), numeric = head.classList.contains("n");
    const directions = head.classList.contains("down") ? ["descending", "ascending"] : ["ascending", "descending"];
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const direction = directions[directions.indexOf(head.getAttribute("aria-sort")) + 1];
      const value = row => row.cells[column].dataset.value, last = row => value(row) === "" || row.classList.contains("wrong");
      const order = (a, b) => numeric ? a - b : a.localeCompare(b, undefined, {numeric: true});
      const sign = direction === "descending" ? -1 : 1;
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      if (direction) head.setAttribute("aria-sort", direction);
      body.append(...(direction ? [...rows].sort((a, b) => last(a) - last(b) || sign * order(value(a), value(b))) : rows));
    });
  });

  const scroller = document.querySelector(".rows");
  const edge = () => scroller.parentNode.classList.toggle("end", scroller.scrollLeft + scroller.clientWidth >= scroller.scrollWidth - 2);
  scroller.addEventListener("scroll", edge);
  addEventListener("resize", edge);
  edge();
}
