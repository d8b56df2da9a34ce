/* The table of all cells: sorted by a column, filtered by words. */

function table(section, data) {
  const body = section.querySelector("tbody"), heads = [...section.querySelectorAll("thead th")];
  const lines = [...body.rows], filter = section.querySelector('[name="filter"]'), said = section.querySelector("output");
  const row = (line) => data.rows[line.dataset.row];

  /** Whether a word matches a cell: its budget or tolerance, a part of its names, "front", "failed" or "left out". */
  function has({ solver, grid, nfe, rtol, front, error, skipped }, word) {
    if (!Number.isNaN(Number(word))) return [nfe, rtol].includes(Number(word));
    return `${solver} ${grid} ${front ? "front" : ""} ${error === undefined ? "" : "failed"} ${skipped ? "left out" : ""}`.toLowerCase().includes(word);
  }

  /** Compare numbers as numbers and names as names; a cell without a result comes last in either direction. */
  function compare(key, sign) {
    return (a, b) => {
      const [one, other] = [row(a), row(b)], without = (r) => r.spent === null;
      if (without(one) !== without(other)) return without(one) - without(other);
      const [u, v] = [one[key] ?? null, other[key] ?? null];
      if (u === null || v === null) return (u === null) - (v === null);
      return sign * (typeof u === "string" ? u.localeCompare(v, "en", { numeric: true }) : u - v);
    };
  }

  for (const head of heads) {
    head.firstElementChild.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      lines.sort(compare(head.firstElementChild.dataset.key, ascending ? 1 : -1));
      body.append(...lines);
    });
  }

  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const line of lines) line.hidden = !wanted.every((word) => has(row(line), word));
    const left = lines.filter((line) => !line.hidden).length;
    said.value = left === lines.length ? `${left} cells` : `${left} of ${lines.length} cells`;
  });
}
