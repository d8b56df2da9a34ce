/* The wall of pictures: one row per seed, one column per solver, at the budget of the slider. A strip holds the images of all seeds
   side by side; each strip is one object in memory, of which a cell shows its part. */

function wall(section, data) {
  if (!section) return;
  const frame = section.querySelector(".pictures"), form = section.querySelector("form"), output = form.querySelector("output");
  const address = (base64) => {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    return `url("${URL.createObjectURL(new Blob([bytes], { type: "image/png" }))}")`;
  };
  const strips = new Map(Object.entries(data.pictures).map(([name, base64]) => [name, address(base64)]));
  const { width, height, count } = data.strip;
  const pictured = data.solvers.filter((solver) => data.rows.some((row) => row.solver === solver && strips.has(row.picture)));

  /** The row of a solver to show at a budget; of an adaptive solver the one that takes the most evaluations within it. */
  function rowOf(solver, nfe, grid) {
    const mine = data.rows.filter((row) => row.solver === solver);
    const adaptive = mine.filter((row) => row.nfe === null && row.spent !== null && (row.spent <= nfe || !data.budgets.length));
    if (adaptive.length) return adaptive.reduce((a, b) => (a.spent >= b.spent ? a : b));
    const there = mine.filter((row) => row.nfe === nfe && (!grid || grid === "best" || row.grid === grid));
    return best(there, (row) => strips.has(row.picture)) ?? there[0];
  }

  const named = (seed) => (data.together ? `${data.seed} to ${data.seed + data.n - 1}` : `${data.seed + seed}`);
  const seeds = (seed) => `seed${data.together ? "s" : ""} ${named(seed)}`;
  const cell = (seed) => {
    const picture = make("div", { className: "picture" });
    picture.setAttribute("role", "img");
    picture.style.setProperty("--x", `calc(${-seed} * var(--w))`);
    return picture;
  };
  const columns = pictured.map(() => ({
    head: make("th", { scope: "col" }), cells: Array.from({ length: count }, (_, seed) => cell(seed)),
  }));
  const reference = Array.from({ length: count }, (_, seed) => {
    const picture = cell(seed);
    picture.classList.add("there", "reference");
    picture.style.setProperty("--strip", "var(--reference)");
    picture.setAttribute("aria-label", `reference, ${seeds(seed)}`);
    return picture;
  });
  const corner = [make("th", { scope: "col", textContent: data.together ? "seeds" : "seed" }), make("th", { scope: "col" }, make("strong", { textContent: "reference" }))];
  frame.querySelector("thead").append(make("tr", {}, ...corner, ...columns.map((column) => column.head)));
  frame.querySelector("tbody").append(...reference.map((picture, seed) => make("tr", {},
    make("th", { scope: "row", textContent: named(seed) }), make("td", {}, picture),
    ...columns.map((column) => make("td", {}, column.cells[seed])))));
  frame.style.setProperty("--reference", address(data.reference));

  function show({ head, cells }, solver, row, nfe) {
    const strip = row && strips.get(row.picture);
    const why = (!row && "nothing within") || (row?.error && "failed at") || (row?.skipped && "cannot take") || "no picture at";
    const says = [row ? where(row) : "", row?.nfe === null ? `${row.spent.toFixed(1)} NFE` : "", typeof row?.rmse === "number" ? digits(row.rmse) : "—"];
    head.replaceChildren(make("strong", { textContent: solver }), ...says.filter(Boolean).map((textContent) => make("span", { textContent })));
    head.title = row?.error ?? row?.skipped ?? "";
    cells.forEach((picture, seed) => {
      picture.classList.toggle("there", Boolean(strip));
      picture.textContent = strip ? "" : `${why} ${nfe}`;
      if (strip) picture.style.setProperty("--strip", strip);
      const of = strip ? `${solver}, ${where(row)}, ${spending(row)}` : `${solver}: ${why} ${nfe}`;
      picture.setAttribute("aria-label", `${of}, ${seeds(seed)}`);
    });
  }

  function update() {
    const { grid, gain } = Object.fromEntries(new FormData(form)), slider = form.elements.nfe;
    const nfe = slider ? data.budgets[slider.value] : Infinity;
    if (slider) slider.setAttribute("aria-valuetext", `${nfe} evaluations`);
    if (slider) output.value = nfe;
    frame.classList.toggle("difference", Boolean(form.elements.difference?.checked));
    frame.style.setProperty("--gain", gain ?? 1);
    const shown = pictured.map((solver) => [solver, rowOf(solver, nfe, grid)]);
    const error = ([, row]) => (typeof row?.rmse === "number" ? Math.abs(row.rmse) : Infinity);
    if (form.elements.first.checked) shown.sort((a, b) => (error(a) === error(b) ? 0 : error(a) - error(b)));
    shown.forEach(([solver, row], i) => show(columns[i], solver, row, nfe));
  }

  /** Show each image pixel as the largest whole number of screen pixels that there is room for, within limits. */
  function measure() {
    const room = (frame.clientWidth - 42) / (columns.length + 1) - 6, narrow = frame.clientWidth < 560;
    const most = Math.min(data.together ? 260 : 140, Math.max(140, room));
    const scale = Math.floor(Math.min(140, Math.max(narrow ? 60 : 84, room)) / width) || most / width;
    frame.style.setProperty("--w", `${width * scale}px`);
    frame.style.setProperty("--h", `${height * scale}px`);
    frame.style.setProperty("--strip-w", `${width * scale * count}px`);
  }

  if (form.elements.nfe) form.elements.nfe.value = Math.max(0, data.budgets.indexOf(10));
  for (const event of ["input", "change"]) form.addEventListener(event, update);
  new ResizeObserver(measure).observe(section);
  measure();
  update();
}
