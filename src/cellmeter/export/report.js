// The table of cells: sorted by the column whose heading is pressed, a page at a time; unknown values (null) stay last.
{
  const table = document.querySelector("#cells");
  if (table) {
    const { page, tops, rows } = JSON.parse(document.querySelector("#cells-data").textContent);
    const [body, nav] = [table.tBodies[0], document.querySelector("nav.pages")];
    const [before, after] = nav.querySelectorAll("button");
    const headings = [...table.tHead.rows[0].cells];
    const signs = { critical: "■", warning: "▲", info: "●" };
    const model = body.rows[0].cloneNode(true);
    let first = 0;

    const row = ([code, marks, quiet, values, texts]) => {
      const line = model.cloneNode(true);
      line.className = quiet ? "quiet" : "";
      const [title, links, source] = line.cells[0].children;
      line.cells[0].title = source.textContent = code;
      title.textContent = texts[0];
      links.replaceChildren(...marks.map(([severity, number, rule]) => {
        const link = document.createElement("a");
        Object.assign(link, { className: `mark ${severity}`, href: `#finding-${number}`, title: rule, textContent: signs[severity] });
        return link;
      }));
      for (let i = 1; i < texts.length - 1; i++) {
        const [words, bar] = line.cells[i].children;
        words.textContent = texts[i];
        if (bar) bar.style.width = `${100 * Math.min(Math.max(values[i] / tops[i], 0), 1) || 0}%`;
      }
      const chip = line.cells[texts.length - 1].firstChild;
      chip.textContent = texts.at(-1);
      chip.className = `chip status ${texts.at(-1)}`;
      return line;
    };

    const show = () => {
      const last = Math.min(first + page, rows.length);
      body.replaceChildren(...rows.slice(first, last).map(row));
      nav.querySelector("output").textContent = `${first + 1}–${last} of ${rows.length}`;
      before.disabled = first === 0;
      after.disabled = last === rows.length;
    };
    const turn = (by) => { first = Math.max(0, first + by * page); show(); };
    before.addEventListener("click", () => turn(-1));
    after.addEventListener("click", () => turn(1));
    before.disabled = true;

    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const words = typeof rows[0][3][column] === "string";
        const start = words || column === 0 ? "ascending" : "descending";
        const other = { ascending: "descending", descending: "ascending" };
        const order = other[heading.getAttribute("aria-sort")] ?? start;
        headings.forEach((one) => one.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", order);
        const sign = order === "descending" ? -1 : 1;
        rows.sort(({ 3: a }, { 3: b }) => {
          const [x, y] = [a[column], b[column]];
          if (x === null || y === null) return (x === null) - (y === null);
          return sign * (words ? x.localeCompare(y) : x - y);
        });
        first = 0;
        show();
      });
    });
  }
  // What is folded away is printed too, but not a hundred mild findings.
  const folded = [...document.querySelectorAll("main details:not([open], .others)")];
  addEventListener("beforeprint", () => folded.forEach((one) => { one.open = true; }));
  addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));
  // A link to a finding in a folded list opens it.
  addEventListener("hashchange", () => {
    const list = document.getElementById(location.hash.slice(1))?.closest("details");
    if (list) list.open = true;
  });
}

// The names of the cells above the timeline: as much of each as its band holds, at any width and zoom. Python has fitted them
// to a wide page, by the same figures.
{
  const [character, least] = [5.8, 4];
  const fit = (figure, names) => {
    const { start, end } = figure.x_range;
    for (const name of names) {
      const [title, right] = name.tags;
      const share = (Math.min(right, end) - Math.max(name.x, start)) / Math.max(end - start, 1e-9);
      const most = Math.floor((share * figure.inner_width - 4) / character);
      name.text = title.length <= most ? title : most >= least ? `${title.slice(0, most - 1)}…` : "";
    }
  };
  const watch = () => {
    for (const document of globalThis.Bokeh?.documents ?? []) {
      for (const figure of document.roots().flatMap((root) => root.children ?? [])) {
        const names = (figure.center ?? []).filter((one) => one.name === "band");
        if (!names.length) continue;
        const again = () => fit(figure, names);
        for (const part of [figure.properties.inner_width, figure.x_range.properties.start, figure.x_range.properties.end]) {
          part.change.connect(again);
        }
        again();
      }
    }
  };
  addEventListener("load", () => setTimeout(watch));
}
