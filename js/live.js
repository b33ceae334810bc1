// @ts-check
// The live panel of cellmeter, in the page. Hand written, no bundler; the kernel sends it as a message, once for all its widgets.
//
// Above: pure functions, tested in Node and held to the same answers as charts.py by format_cases.json.
// Below: the panel itself. Bokeh draws; what is drawn, from where to where and in which colours is decided here.

/** @typedef {{column: string, label: string, role: "main"|"second"|"faint", ink: [string, string], top: number|null}} Line */
/** @typedef {{key: string, title: string, unit: string, limit: number|null, exact?: number|null, lanes: boolean, height: number, lines: Line[]}} Panel */
/** @typedef {{panels: Panel[], doc: string, prefix: string, title: string, notes?: string[], status?: string, says?: string, end?: number, tail?: string, bounds?: [number, number][]}} Layout */
/** @typedef {{seq: number, title: string, line: string, id: string|null, status: string, start: number, end: number|null}} Band a cell of the run */
/** @typedef {{time: Float64Array, columns: Float64Array[]}} Rows */
/** @typedef {{get: (name: string) => any, send: (content: any) => void, on: Function, off: Function, widget_manager?: any}} Model */

const MOST_ROWS = 24000; // kept in the page: 40 minutes at 10 Hz in full; older ones are thinned out, spikes stay
const MOST_DRAWN = 1600;
const LANE_FILL = 0.84; // as in charts.py
const FRAME_LEFT = 58; // as in charts.py
const FRAME_RIGHT = 10;
const SILENT_MS = 2500;

// ---- numbers for people ---------------------------------------------------------------------------------------------

const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
/** @type {Record<string, string>} */
const SUFFIX = { "{cpu}": "cores", "%": "%", W: "W", J: "J", s: "s", Cel: "°C", MHz: "MHz", 1: "" };
const WHOLE = new Set(["%", "W", "Cel", "MHz", "1"]);

/** @param {number} value @returns {string} three significant digits */
function digits(value) {
  const size = Math.abs(value);
  return rounded(value, size < 9.995 ? 2 : size < 99.95 ? 1 : 0);
}

/** @param {number} value @param {number} places */
function rounded(value, places) {
  return (Math.floor(value * 10 ** places + 0.5) / 10 ** places).toFixed(places);
}

/** @param {number} value @returns {[number, string]} */
function binary(value) {
  let power = 0;
  for (; Math.abs(value) >= 999.5 && power < BINARY.length - 1; power++) value /= 1024;
  return [value, BINARY[power]];
}

/** @param {number|null|undefined} value @param {string} unit @returns {string} */
export function formatValue(value, unit) {
  if (value === null || value === undefined || Number.isNaN(value)) return "unknown";
  if (unit === "By" || unit === "By/s") {
    const [size, name] = binary(value);
    return `${name === "B" ? rounded(size, 0) : digits(size)} ${name}${unit.slice(2)}`;
  }
  return `${WHOLE.has(unit) ? rounded(value, 0) : digits(value)} ${SUFFIX[unit] ?? unit}`.trimEnd();
}

/** @param {number|null} seconds @returns {string} */
export function formatDuration(seconds) {
  if (seconds === null || Number.isNaN(seconds)) return "unknown";
  if (seconds < 59.95) return `${digits(seconds)} s`;
  const whole = Math.floor(seconds + 0.5);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

/** See charts.format_peak. @param {number|null} peak @param {{unit: string, limit: number|null}} panel @returns {string} */
export function formatPeak(peak, { unit, limit }) {
  const text = formatValue(peak, unit);
  if (!limit || unit === "%") return `peak ${text}`;
  const most = formatValue(limit, unit).replace(/\.0+(?= |$)/, "");
  const [number, suffix] = text.split(" ");
  return `peak ${most.endsWith(" " + suffix) ? number : text} of ${most}`;
}

/** @param {number} number */
function two(number) {
  return String(number).padStart(2, "0");
}

// ---- scales ---------------------------------------------------------------------------------------------------------

/** @type {Record<string, number>} */
const LEAST_TOP = { "{cpu}": 1, By: 64 * 2 ** 20, "%": 100, W: 50, "By/s": 2 ** 20 };

/** Where a panel's scale ends, see charts.scale_top. @param {Panel} panel @param {number[]} peaks @returns {number} */
export function scaleTop(panel, peaks) {
  if (panel.lanes) return panel.lines.length;
  if (panel.unit === "%") return 104;
  let top = LEAST_TOP[panel.unit] ?? 1;
  panel.lines.forEach((line, i) => {
    if (line.role !== "faint" && peaks[i] > top) top = peaks[i];
  });
  let wide = top;
  panel.lines.forEach((line, i) => {
    if (line.role === "faint" && peaks[i] > wide && peaks[i] <= 2 * top) wide = peaks[i];
  });
  if (panel.limit && wide >= 0.5 * panel.limit) wide = Math.max(wide, panel.limit);
  return wide * 1.1;
}

/** @param {number} top @param {string} unit @returns {number[]} */
export function valueTicks(top, unit) {
  let factor = 1;
  if (unit === "By" || unit === "By/s") while (top / factor >= 999.5) factor *= 1024;
  const step = roundStep(top / factor / 2) * factor;
  return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, i) => i * step);
}

/** @param {number} raw */
function roundStep(raw) {
  const power = 10 ** Math.floor(Math.log10(raw));
  return [5, 2, 1].map((m) => m * power).find((step) => step <= raw * (1 + 1e-9)) ?? power;
}

/** @param {number} value @param {string} unit @returns {string} */
export function axisLabel(value, unit) {
  if (value === 0) return "0";
  const plain = (/** @type {number} */ x) => String(Number(x.toPrecision(6)));
  if (unit === "By" || unit === "By/s") {
    const [size, name] = binary(value);
    return `${plain(size)} ${name}${unit.slice(2)}`;
  }
  return unit === "{cpu}" ? plain(value) : `${plain(value)} ${SUFFIX[unit] ?? unit}`;
}

const TIME_STEPS = [
  0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400,
];

/** @param {number} start @param {number} end @param {number} [most] @returns {[number, string][]} */
export function timeTicks(start, end, most = 6) {
  const span = Math.max(end - start, 1e-3);
  const step = TIME_STEPS.find((s) => span / s <= most) ?? 86400;
  const [first, last] = [Math.ceil(start / step - 1e-9), Math.floor(end / step + 1e-9)];
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => [
    (first + i) * step,
    clock((first + i) * step, step),
  ]);
}

/** @param {number} seconds @param {number} step */
function clock(seconds, step) {
  if (step < 1) return `${seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds + 0.5);
  if (whole < 60 && step < 30) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}:${two(whole % 60)}`;
  return `${Math.floor(whole / 3600)}:${two(Math.floor((whole % 3600) / 60))}:${two(whole % 60)}`;
}

const SPANS = [10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 450, 600, 900, 1200, 1800, 2700, 3600];

/** Where a growing time axis ends: in steps, so that it stands still most of the time. @param {number} last @returns {number} */
export function spanFor(last) {
  return SPANS.find((s) => s >= last) ?? Math.ceil(last / 1800) * 1800;
}

// ---- readings -------------------------------------------------------------------------------------------------------

/** At most `most` rows that draw the same picture, see charts.decimate. @param {Rows} rows @param {number} most @returns {Rows} */
export function decimate(rows, most) {
  const count = rows.time.length;
  const buckets = Math.floor(most / 2);
  if (count <= most || buckets < 1) return rows;
  const time = new Float64Array(buckets * 2);
  const columns = rows.columns.map(() => new Float64Array(buckets * 2));
  for (let b = 0; b < buckets; b++) {
    const [low, high] = [Math.floor((b * count) / buckets), Math.floor(((b + 1) * count) / buckets)];
    time[2 * b] = rows.time[low];
    time[2 * b + 1] = rows.time[high - 1];
    rows.columns.forEach((column, c) => columns[c].set(extremes(column, low, high), 2 * b));
  }
  return { time, columns };
}

/** Least and greatest, in their order. @param {Float64Array} column @param {number} low @param {number} high */
function extremes(column, low, high) {
  let [least, most] = [-1, -1];
  for (let i = low; i < high; i++) {
    const x = column[i];
    if (Number.isNaN(x)) continue;
    if (least < 0 || x < column[least]) least = i;
    if (most < 0 || x > column[most]) most = i;
  }
  if (least < 0) return [NaN, NaN];
  return least <= most ? [column[least], column[most]] : [column[most], column[least]];
}

/** The readings of one cell, bounded however long it runs. Rows are counted from 0; a message says which it begins with. */
export class Samples {
  /** @param {number} width columns without the time @param {number} [most] rows kept */
  constructor(width, most = MOST_ROWS) {
    this.width = width;
    this.most = most;
    this.next = 0;
    this.size = 0;
    /** @type {Float64Array[]} */
    this.parts = Array.from({ length: width + 1 }, () => new Float64Array(256));
    /** @type {number[]} */
    this.peaks = Array(width).fill(NaN);
  }

  /**
   * Takes rows in, column after column, the time first. False: rows before them are missing, and nothing was taken.
   * @param {number} start @param {Float64Array} flat @returns {boolean}
   */
  put(start, flat) {
    if (start > this.next) return false;
    const count = flat.length / (this.width + 1);
    const skip = this.next - start;
    if (skip >= count) return true;
    this.#append(flat, count, skip);
    this.next = start + count;
    return true;
  }

  /** Begins anew with a history, the next row being number `next`. @param {number} next @param {Float64Array} flat */
  reset(next, flat) {
    this.size = 0;
    this.peaks.fill(NaN);
    this.#append(flat, flat.length / (this.width + 1), 0);
    this.next = next;
  }

  /** @param {Float64Array} flat @param {number} count @param {number} skip */
  #append(flat, count, skip) {
    const added = count - skip;
    if (this.size + added > this.parts[0].length) this.#grow(this.size + added);
    this.parts.forEach((part, c) => {
      const fresh = flat.subarray(c * count + skip, (c + 1) * count);
      part.set(fresh, this.size);
      if (c) for (const x of fresh) if (!(x <= this.peaks[c - 1]) && !Number.isNaN(x)) this.peaks[c - 1] = x;
    });
    this.size += added;
    if (this.size > this.most) this.#thin();
  }

  /** @param {number} needed */
  #grow(needed) {
    this.parts = this.parts.map((part) => {
      const wider = new Float64Array(Math.max(needed, part.length * 2));
      wider.set(part.subarray(0, this.size));
      return wider;
    });
  }

  /** The older half is reduced to a quarter of its rows. */
  #thin() {
    const half = this.size >> 1;
    const old = { time: this.parts[0].subarray(0, half), columns: this.parts.slice(1).map((p) => p.subarray(0, half)) };
    const few = decimate(old, half >> 2);
    const kept = [few.time, ...few.columns];
    this.parts.forEach((part, c) => {
      const recent = part.slice(half, this.size);
      part.set(kept[c]);
      part.set(recent, few.time.length);
    });
    this.size += few.time.length - half;
  }

  /** @returns {Rows} views, not copies */
  rows() {
    const [time, ...columns] = this.parts.map((part) => part.subarray(0, this.size));
    return { time, columns };
  }

  /** Index of the last row at or before a time; -1: none. @param {number} at @returns {number} */
  before(at) {
    let [low, high] = [0, this.size];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.parts[0][middle] <= at) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }
}

/**
 * What Bokeh draws of a panel: a column a line, and one a filled area, in which a gap falls to the ground.
 * @param {Panel} panel @param {Rows} rows @param {number} first column of its first line
 * @param {number[]} peaks @returns {Record<string, Float64Array>}
 */
export function drawn(panel, rows, first, peaks) {
  const count = panel.lines.length;
  const most = Math.max(1e-9, ...peaks.slice(first, first + count).filter((x) => !Number.isNaN(x)));
  /** @type {Record<string, Float64Array>} */
  const out = {};
  panel.lines.forEach((line, i) => {
    const base = panel.lanes ? count - 1 - i : 0;
    const column = rows.columns[first + i];
    const top = line.top || most;
    const values = panel.lanes
      ? column.map((x) => base + Math.min(1, Math.max(0, x / top)) * LANE_FILL)
      : column.slice(); // a view would change under Bokeh's hands
    out[line.column] = values;
    out[line.column + "a"] = values.map((x) => (Number.isNaN(x) ? base : x));
  });
  return out;
}

/**
 * The static picture's data: u32 length of the JSON, the JSON, then 16-bit columns scaled between the bounds the JSON gives.
 * @param {ArrayBuffer} buffer @returns {{layout: Layout, rows: Rows}}
 */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const layout = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const words = new Uint16Array(buffer.slice(4 + length));
  const count = words.length / layout.bounds.length;
  const columns = layout.bounds.map((/** @type {[number, number]} */ [low, high], /** @type {number} */ c) =>
    Float64Array.from(words.subarray(c * count, (c + 1) * count), (w) =>
      w === 65535 ? NaN : low + ((high - low) * w) / 65534,
    ),
  );
  return { layout, rows: { time: columns[0], columns: columns.slice(1) } };
}

// ---- the page -------------------------------------------------------------------------------------------------------

/** @param {BufferSource} bytes @returns {Promise<ArrayBuffer>} */
async function gunzip(bytes) {
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

/**
 * BokehJS from its text, with a root of its own: it never meets the Bokeh another library has put on the page.
 * @param {BufferSource} bytes gzipped bokeh.min.js
 */
async function loadBokeh(bytes) {
  const code = new TextDecoder().decode(await gunzip(bytes));
  const parts = ["export default function () {", code, "\n}"];
  const url = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
  /** @type {any} */
  const root = {};
  try {
    (await import(/* webpackIgnore: true */ url)).default.call(root);
  } finally {
    URL.revokeObjectURL(url);
  }
  root.Bokeh.set_log_level?.("error");
  return root.Bokeh;
}

/** Resolves once an element is on screen: JupyterLab keeps cells out of the document, and Bokeh cannot draw there.
 * @param {Element} el @param {AbortSignal} signal @returns {Promise<void>} */
function onScreen(el, signal) {
  return new Promise((resolve, reject) => {
    const watch = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      resolve();
    });
    watch.observe(el);
    signal.addEventListener("abort", () => (watch.disconnect(), reject(signal.reason)));
  });
}

/** Whether an element stands on a dark ground. @param {Element} el @returns {boolean} */
function isDark(el) {
  for (let at = /** @type {Element|null} */ (el); at; at = at.parentElement ?? host(at)) {
    const parts = getComputedStyle(at).backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [];
    if (parts.length === 3 || parts[3] > 0.5) return 0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2] < 128;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/** @param {Node} node @returns {Element|null} */
function host(node) {
  const root = node.getRootNode();
  return root instanceof ShadowRoot ? root.host : null;
}

const STYLE = `
.cellmeter { container-type: inline-size; box-sizing: border-box; max-width: 1500px; padding: 4px 2px 6px 0;
  font: 12px/1.35 var(--jp-ui-font-family, var(--vscode-font-family, system-ui, sans-serif));
  color: var(--jp-ui-font-color1, var(--vscode-foreground, inherit)); font-variant-numeric: tabular-nums; }
.cellmeter * { box-sizing: border-box; }
.cm-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 12px; padding: 0 10px 5px 2px;
  border-bottom: 1px solid rgb(128 128 128 / .22); }
.cm-state { display: inline-flex; align-items: center; gap: 6px; font-weight: 600; }
.cm-state i { width: 8px; height: 8px; border-radius: 50%; background: #8C9196; }
.cellmeter[data-state=recording] .cm-state i { background: #D6423B; animation: cm-pulse 1.6s ease-in-out infinite; }
.cellmeter[data-state=silent] .cm-state i { background: #E69F00; }
.cellmeter[data-state=ok] .cm-state i { background: #17A077; }
.cellmeter[data-state=error] .cm-state i, .cellmeter[data-state=died] .cm-state i { background: #D6423B; border-radius: 1px; }
@keyframes cm-pulse { 50% { opacity: .35; } }
@media (prefers-reduced-motion: reduce) { .cm-state i { animation: none !important; } }
.cm-title { font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; max-width: 24em; }
.cm-muted, .cm-time { opacity: .68; }
.cm-sum { margin-left: auto; display: flex; flex-wrap: wrap; gap: 2px 16px; }
.cm-sum b { font-weight: 600; }
.cm-sum span span { opacity: .68; }
.cm-grid { display: grid; grid-template-columns: minmax(0, 1fr); gap: 6px 22px; padding-top: 7px; }
@container (min-width: 720px) { .cm-grid { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .cm-grid[data-count="1"] { grid-template-columns: minmax(0, 1fr); }
  .cm-grid[data-count="3"] > :first-child { grid-column: 1 / -1; } }
@container (min-width: 1080px) { .cm-grid[data-count="3"] { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .cm-grid[data-count="3"] > :first-child { grid-column: auto; } }
.cm-cap { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 12px; padding: 0 ${FRAME_RIGHT}px 0 2px; height: 17px;
  overflow: hidden; white-space: nowrap; } /* what does not fit wraps out of sight, the peak before any line's name */
.cm-name { display: flex; align-items: baseline; gap: 0 12px; min-width: 0; max-width: 100%; }
.cm-name > b { font-weight: 600; }
.cm-legend { display: flex; flex-wrap: wrap; gap: 0 12px; height: 17px; overflow: hidden; min-width: 0; }
.cm-line { display: inline-flex; align-items: baseline; gap: 5px; white-space: nowrap; }
.cm-line i { width: 10px; height: 3px; border-radius: 2px; background: var(--ink); transform: translateY(-3px); }
.cm-line[hidden] { display: none; }
.cm-peak { margin-left: auto; opacity: .68; white-space: nowrap; }
.cm-fig { position: relative; overflow: hidden; }
.cm-fig canvas { cursor: crosshair; }
.cm-cursor { position: absolute; top: 4px; bottom: 18px; width: 1px; background: currentColor; opacity: .55; pointer-events: none; }
.cm-cursor::after { content: attr(data-at); position: absolute; top: 100%; left: 0; transform: translate(-50%, 2px);
  padding: 0 4px; border-radius: 3px; font-size: 10px; line-height: 14px; white-space: nowrap; color: #fff; background: #4A5057; }
.cm-cursor:not([data-at])::after { display: none; }
.cm-bands { position: absolute; inset: 4px ${FRAME_RIGHT}px 18px ${FRAME_LEFT}px; overflow: hidden; pointer-events: none; z-index: 1; }
.cm-band { position: absolute; top: 0; bottom: 0; min-width: 1px; background: rgb(128 128 128 / .09); border-left: 1px solid rgb(128 128 128 / .35); }
.cm-band:nth-child(even) { background: rgb(128 128 128 / .17); }
.cm-band[data-status=error], .cm-band[data-status=died] { background: rgb(214 66 59 / .16); }
.cm-band[data-status=running] { background: linear-gradient(90deg, rgb(128 128 128 / .17), transparent); }
.cm-band a { display: block; width: fit-content; max-width: 100%; height: 14px; padding: 0 3px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  font-size: 10px; line-height: 14px; color: inherit; opacity: .8; pointer-events: auto; text-decoration: none;
  background: var(--jp-layout-color0, var(--vscode-editor-background, transparent)); }
.cm-band a:empty { width: 100%; background: none; }
.cm-band a[href] { cursor: pointer; }
.cm-band a[href]:hover, .cm-band a[href]:focus-visible { opacity: 1; text-decoration: underline; }
`;

/** @param {string} tag @param {string} [name] @param {Record<string, string>} [attributes] @param {(Node|string)[]} children */
function make(tag, name = "", attributes = {}, ...children) {
  const el = document.createElement(tag);
  if (name) el.className = name;
  for (const [key, value] of Object.entries(attributes)) el.setAttribute(key, value);
  el.append(...children);
  return el;
}

/** @type {Record<string, string>} */
const STATES = {
  recording: "Recording",
  silent: "No news from the kernel",
  gone: "Kernel gone",
  ok: "Done",
  error: "Failed",
  interrupted: "Interrupted",
  died: "Kernel died",
};

const LEAST_BAND = 2; // CSS pixels: narrower cells are not drawn
const LEAST_NAME = 34; // narrower ones have no name written in them

/** Where the cells of a run lie, for the charts between two times. @param {Band[]} cells @param {number} start @param {number} end
 * @param {number} width CSS pixels @returns {{cell: Band, left: number, width: number}[]} */
export function bandsWithin(cells, start, end, width) {
  const scale = width / Math.max(end - start, 1e-9);
  return cells.flatMap((cell) => {
    const [from, to] = [Math.max(cell.start, start), Math.min(cell.end ?? end, end)];
    const wide = (to - from) * scale;
    return wide >= LEAST_BAND ? [{ cell, left: (from - start) * scale, width: wide }] : [];
  });
}

/** The cells of a run as bands over its charts; the first chart names them, and a name leads to its cell where the page allows. */
class Bands {
  /** @param {HTMLElement[]} boxes of the figures @param {(a: HTMLElement, id: string) => boolean} lead */
  constructor(boxes, lead) {
    this.lead = lead;
    this.layers = boxes.map((box) => box.appendChild(make("div", "cm-bands")));
    /** @type {Map<number, Band>} */
    this.cells = new Map();
    this.shown = "";
    this.version = 0;
  }

  /** @param {Band[]} cells new ones, and those that have ended */
  take(cells) {
    for (const cell of cells) this.cells.set(cell.seq, cell);
    this.version++;
  }

  /** @param {number} start @param {number} end of the time axis */
  place(start, end) {
    const width = this.layers[0].clientWidth;
    const shown = `${this.version} ${start} ${end} ${width}`;
    if (shown === this.shown) return;
    this.shown = shown;
    const found = bandsWithin([...this.cells.values()], start, end, width);
    this.layers.forEach((layer, n) => layer.replaceChildren(...found.map((band) => this.#band(band, n === 0))));
  }

  /** @param {{cell: Band, left: number, width: number}} band @param {boolean} named */
  #band({ cell, left, width }, named) {
    const el = make("div", "cm-band", { "data-status": cell.status, style: `left:${left}px;width:${width}px` });
    if (!named) return el;
    const how = cell.end === null ? "running" : `${cell.status}, ${formatDuration(cell.end - cell.start)}`;
    const name = make("a", "", { title: `${cell.title} · ${how}\n${cell.line}` }, width < LEAST_NAME ? "" : cell.title);
    if (cell.id && this.lead(name, cell.id)) name.setAttribute("href", "#");
    el.append(name);
    return el;
  }
}

/**
 * Makes an anchor lead to a cell of the notebook, by JupyterLab's own links to cells; false where the page has none.
 * @param {Model} model @param {HTMLElement} a @param {string} id of the cell
 */
function leadToCell(model, a, id) {
  const { context, rendermime } = model.widget_manager ?? {};
  if (!context?.path || !rendermime?.linkHandler) return false;
  rendermime.linkHandler.handleLink(a, context.path, `#cell-id=${id}`);
  return true;
}

/** One panel on the page: header, captions, figures. */
class View {
  /**
   * @param {HTMLElement} el @param {Layout} layout @param {Samples} samples
   * @param {() => Promise<any>} bokeh @param {AbortSignal} signal
   */
  constructor(el, layout, samples, bokeh, signal) {
    this.layout = layout;
    this.samples = samples;
    this.signal = signal;
    /** @type {any[]} */
    this.figures = [];
    /** @type {any} */
    this.source = null;
    /** @type {Bands|null} */
    this.bands = null;
    /** @type {number|null} */
    this.cursor = null;
    this.zoomed = false;
    this.queued = false;
    this.opened = performance.now();
    this.heard = performance.now();
    this.state = layout.status ?? "recording";
    /** @type {[number, string][]} */
    this.ticks = [];
    this.stateText = make("span");
    this.time = make("span", "cm-time");
    this.sum = make("span", "cm-sum");
    this.grid = make("div", "cm-grid", { "data-count": String(layout.panels.length) });
    this.captions = layout.panels.map((panel, p) => this.#panel(panel, p));
    const head = make("div", "cm-head", {},
      make("span", "cm-state", {}, make("i"), this.stateText),
      make("span", "cm-title", {}, layout.title),
      this.time,
      this.sum,
    );
    const about = { "data-state": this.state, role: "group", "aria-label": `Resource use of ${layout.title}` };
    this.root = make("div", "cellmeter", about, head, this.grid);
    el.append(make("style", "", {}, STYLE), this.root);
    this.#text();
    if (!layout.status) this.#tick();
    /** Resolves when the charts are there. */
    this.drawn = this.#embed(bokeh).catch((error) => {
      if (!signal.aborted) this.grid.replaceChildren(`Charts cannot be drawn here: ${error?.message ?? error}`);
    });
  }

  /** @param {Panel} panel @param {number} p */
  #panel(panel, p) {
    const legend = panel.lanes ? [] : panel.lines.map((line) => {
      const value = make("span");
      return { line, value, item: make("span", "cm-line", { title: line.label }, make("i"), line.label, value) };
    });
    const peak = make("span", "cm-peak");
    const figure = make("div", "cm-fig", { id: `${this.layout.prefix}f${p}`, style: `height:${panel.height}px` });
    const items = make("span", "cm-legend", {}, ...legend.map((x) => x.item));
    const name = make("span", "cm-name", {}, make("b", "", {}, panel.title), items);
    const caption = make("div", "cm-cap", {}, name, peak);
    this.grid.append(make("section", "cm-panel", { "data-panel": panel.key }, caption, figure));
    return { legend, peak, figure };
  }

  /** @param {() => Promise<any>} bokeh */
  async #embed(bokeh) {
    await onScreen(this.root, this.signal);
    const Bokeh = await bokeh();
    await onScreen(this.root, this.signal);
    const doc = JSON.parse(this.layout.doc);
    const ids = doc.roots.map((/** @type {any} */ root) => root.id);
    const roots = Object.fromEntries(ids.map((/** @type {string} */ id, /** @type {number} */ p) => [id, this.captions[p].figure.id]));
    const item = { docid: "d", roots, root_ids: ids };
    const [views] = await Bokeh.embed.embed_items({ d: doc }, [item]);
    const models = views.roots.map((/** @type {any} */ view) => view.model);
    this.figures = ids.map((/** @type {string} */ id) => models.find((/** @type {any} */ m) => m.id === id));
    this.source = this.figures[0].document.get_model_by_name("samples");
    this.signal.addEventListener("abort", () => views.clear?.());
    this.figures.forEach((figure, p) => this.#prepare(figure, this.layout.panels[p], p));
    this.#follow();
    this.#theme();
    this.#draw();
    this.root.dataset.drawn = String(Math.round(performance.now() - this.opened));
  }

  /** @param {any} figure @param {Panel} panel @param {number} p */
  #prepare(figure, panel, p) {
    const rows = panel.lines.length;
    figure.left[0].formatter.doFormat = (/** @type {number[]} */ ticks) =>
      ticks.map((x) => (panel.lanes ? panel.lines[rows - 1 - Math.floor(x)].label : axisLabel(x, panel.unit)));
    figure.below[0].formatter.doFormat = (/** @type {number[]} */ ticks) => {
      const labels = new Map(this.ticks);
      return ticks.map((x) => labels.get(x) ?? "");
    };
    const box = this.captions[p].figure;
    box.addEventListener("mousemove", (event) => this.#point(box, event));
    box.addEventListener("mouseleave", () => this.#unpoint());
    if (p === 0) {
      const range = figure.x_range;
      const moved = () => {
        const [start, end] = this.#span();
        this.zoomed = Math.abs(range.start - start) + Math.abs(range.end - end) > 1e-6;
        this.#timeAxis();
      };
      for (const name of ["start", "end"]) range.properties[name].change.connect(moved);
    }
  }

  /** @returns {[number, number]} */
  #span() {
    const last = this.samples.size ? this.samples.parts[0][this.samples.size - 1] : 0;
    return [0, this.layout.end ?? spanFor(last)];
  }

  #follow() {
    const again = () => requestAnimationFrame(() => this.#theme());
    const watch = new MutationObserver(again);
    watch.observe(document.body, { attributes: true });
    watch.observe(document.documentElement, { attributes: true });
    const media = matchMedia("(prefers-color-scheme: dark)");
    media.addEventListener("change", again);
    this.signal.addEventListener("abort", () => (watch.disconnect(), media.removeEventListener("change", again)));
    new ResizeObserver(() => this.#timeAxis()).observe(this.root);
  }

  #theme() {
    const dark = isDark(this.root);
    if (this.root.dataset.theme === String(dark)) return;
    this.root.dataset.theme = String(dark);
    const [text, grid] = dark ? ["#A3AAB1", "rgba(255,255,255,0.11)"] : ["#666D74", "rgba(0,0,0,0.10)"];
    this.layout.panels.forEach((panel, p) => {
      const figure = this.figures[p];
      for (const axis of [figure.left[0], figure.below[0]]) axis.major_label_text_color = text;
      for (const line of figure.center) if ("grid_line_color" in line) line.grid_line_color = line.dimension && !panel.lanes ? grid : null;
      for (const { name, glyph } of figure.renderers) {
        const line = panel.lines.find((x) => name === x.column || name === `${x.column}a`);
        if (!line) continue;
        glyph[name.endsWith("a") ? "fill_color" : "line_color"] = line.ink[Number(dark)];
      }
      for (const { line, item } of this.captions[p].legend) item.style.setProperty("--ink", line.ink[Number(dark)]);
    });
  }

  /** New readings are there. */
  update() {
    this.heard = performance.now();
    if (this.state === "silent") this.state = "recording";
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      if (this.signal.aborted) return;
      this.#text();
      this.#draw();
    });
  }

  /** @param {string} state */
  become(state) {
    this.state = state;
    this.update();
    this.#text();
  }

  #tick() {
    const timer = setInterval(() => {
      if (this.signal.aborted || !["recording", "silent"].includes(this.state)) return clearInterval(timer);
      if (performance.now() - this.heard > SILENT_MS) this.state = "silent";
      this.#text();
    }, 1000);
  }

  #draw() {
    if (!this.source) return;
    const rows = decimate(this.samples.rows(), MOST_DRAWN);
    let first = 0;
    /** @type {Record<string, Float64Array>} */
    const data = { t: rows.time.slice() };
    this.layout.panels.forEach((panel, p) => {
      Object.assign(data, drawn(panel, rows, first, this.samples.peaks));
      const figure = this.figures[p];
      const top = scaleTop(panel, this.samples.peaks.slice(first, first + panel.lines.length));
      if (figure.y_range.end !== top) {
        figure.y_range.end = top;
        figure.left[0].ticker.ticks = this.#valueAxis(panel, top);
      }
      first += panel.lines.length;
    });
    this.source.data = data;
    if (!this.zoomed) {
      const range = this.figures[0].x_range;
      const [start, end] = this.#span();
      if (range.start !== start || range.end !== end) range.setv({ start, end });
    }
    this.#timeAxis();
    this.root.dataset.points = String(this.samples.next);
  }

  /** @param {Panel} panel @param {number} top */
  #valueAxis(panel, top) {
    if (panel.lanes) return panel.lines.map((_, i) => i + LANE_FILL / 2);
    return panel.unit === "%" ? [0, 50, 100] : valueTicks(top, panel.unit);
  }

  #timeAxis() {
    if (!this.figures.length) return;
    const { start, end } = this.figures[0].x_range;
    const width = this.captions[0].figure.clientWidth - FRAME_LEFT - FRAME_RIGHT;
    this.ticks = timeTicks(start, end, Math.max(2, Math.min(8, Math.floor(width / 62))));
    const places = this.ticks.map(([at]) => at);
    for (const figure of this.figures) {
      const ticker = figure.below[0].ticker;
      if (String(ticker.ticks) !== String(places)) ticker.ticks = places;
    }
    this.bands?.place(start, end);
  }

  /** @param {Band[]} cells @param {(a: HTMLElement, id: string) => boolean} lead */
  band(cells, lead) {
    this.bands ??= new Bands(this.captions.map((caption) => caption.figure), lead);
    this.bands.take(cells);
  }

  /** Header and captions: what is now, or at the cursor. */
  #text() {
    const { samples, layout } = this;
    const live = this.state === "recording" || this.state === "silent";
    const last = samples.size ? samples.parts[0][samples.size - 1] : 0;
    const since = live && samples.size ? (performance.now() - this.heard) / 1000 : 0;
    this.root.dataset.state = this.state;
    this.stateText.textContent = layout.says ?? STATES[this.state] ?? this.state;
    this.time.textContent = formatDuration(layout.end ?? last + (since > 0.9 ? since : 0));
    const row = this.cursor === null ? samples.size - 1 : samples.before(this.cursor);
    let first = 0;
    const chips = layout.panels.map((panel, p) => {
      const now = panel.lines.map((_, i) => (row < 0 ? NaN : samples.parts[first + i + 1][row]));
      const peaks = samples.peaks.slice(first, first + panel.lines.length);
      first += panel.lines.length;
      const { legend, peak } = this.captions[p];
      legend.forEach(({ item, value }, i) => {
        const shown = live || this.cursor !== null ? now[i] : peaks[i];
        value.textContent = samples.size === 0 ? "" : formatValue(shown, panel.unit).replace(/ cores$/, "");
        item.hidden = samples.size > 0 && !worthSaying(panel, i, peaks);
      });
      peak.textContent = samples.size ? peakText(panel, peaks) : "";
      return chip(panel, now, peaks);
    });
    if (layout.notes) this.sum.replaceChildren(...layout.notes.map((note) => make("span", "", {}, note)));
    else if (samples.size) this.sum.replaceChildren(...chips);
  }

  /** @param {HTMLElement} box @param {MouseEvent} event */
  #point(box, event) {
    const { left, width } = box.getBoundingClientRect();
    const plot = width - FRAME_LEFT - FRAME_RIGHT;
    const share = (event.clientX - left - FRAME_LEFT) / plot;
    const { start, end } = this.figures[0].x_range;
    const last = this.samples.size ? this.samples.parts[0][this.samples.size - 1] : 0;
    if (share < 0 || share > 1) return this.#unpoint();
    this.cursor = Math.min(start + share * (end - start), last);
    const at = FRAME_LEFT + ((this.cursor - start) / (end - start)) * plot;
    for (const { figure } of this.captions) {
      const mark = figure.querySelector(".cm-cursor") ?? figure.appendChild(make("div", "cm-cursor"));
      /** @type {HTMLElement} */ (mark).style.left = `${at}px`;
      if (figure === box) mark.setAttribute("data-at", formatDuration(this.cursor));
      else mark.removeAttribute("data-at");
    }
    this.#text();
  }

  #unpoint() {
    this.cursor = null;
    for (const { figure } of this.captions) figure.querySelector(".cm-cursor")?.remove();
    this.#text();
  }
}

/** Children's memory that is the kernel's own over again says nothing. @param {Panel} panel @param {number} i @param {number[]} peaks */
function worthSaying(panel, i, peaks) {
  return panel.key !== "memory" || panel.lines[i].role !== "second" || peaks[i] > 1.01 * peaks[0];
}

/** @param {Panel} panel @param {number[]} peaks */
function peakText(panel, peaks) {
  const known = peaks.filter((x, i) => !Number.isNaN(x) && panel.lines[i].role !== "faint");
  if (panel.exact) known.push(panel.exact);
  return formatPeak(known.length ? Math.max(...known) : NaN, panel);
}

/** A panel in the header line: its name, its number now. @param {Panel} panel @param {number[]} now @param {number[]} peaks */
function chip(panel, now, peaks) {
  const mine = now.filter((_, i) => panel.lines[i].role === "main");
  const known = mine.filter((x) => !Number.isNaN(x));
  const mean = known.reduce((sum, x) => sum + x, 0) / known.length;
  const value = panel.unit === "%" ? mean : known.reduce((sum, x) => sum + x, 0);
  const of = known.length > 1 ? (panel.unit === "%" ? ` mean of ${known.length}` : ` in ${known.length}`) : "";
  const text = formatValue(known.length ? value : NaN, panel.unit) + of;
  const peak = panel.key === "memory" ? ` ${peakText(panel, peaks)}` : "";
  return make("span", "", {}, make("span", "", {}, `${panel.title} `), make("b", "", {}, text), make("span", "", {}, peak));
}

/** @param {any} buffer @returns {Float64Array} */
function floats(buffer) {
  const bytes = ArrayBuffer.isView(buffer) ? buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength) : buffer;
  return new Float64Array(bytes);
}

// ---- when the kernel cannot speak -----------------------------------------------------------------------------------

const ASK_AFTER_MS = 550; // the kernel speaks every 250
const ASK_EVERY_MS = 250;
const MOST_FAILURES = 6;
const MOST_REFUSALS = 2;
/** How often the server has said that it does not know a run. @type {Map<string, number>} */
const refusals = new Map();

/** @typedef {{rows: string, width: number, s: number|null, n: number, ending: Ending|null}} Tail see server.py */
/** @typedef {{status: string, seconds: number, says: string|null}} Ending */

/** How to ask the page's Jupyter server; null where cellmeter is not installed beside it. */
function jupyterServer() {
  const text = document.getElementById("jupyter-config-data")?.textContent;
  const config = text ? JSON.parse(text) : {};
  if (!config.cellmeter) return null;
  const xsrf = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/);
  /** @type {Record<string, string>} */
  const headers = {};
  if (xsrf) headers["X-XSRFToken"] = xsrf[1];
  if (config.token) headers.Authorization = `token ${config.token}`;
  return { url: `${config.baseUrl}cellmeter/v1/`, headers };
}

/** Takes a server's reply in. False: it is of another layout. @param {Samples} samples @param {Tail} tail @returns {boolean} */
export function takeTail(samples, { rows, width, s, n }) {
  if (width !== samples.width + 1) return false;
  const flat = floats(Uint8Array.from(atob(rows), (c) => c.charCodeAt(0)));
  if (s !== null) return samples.put(s, flat);
  if (n >= samples.next) samples.reset(n, flat);
  return true;
}

/**
 * Asks the server for a cell's rows whenever the kernel has been silent for a moment, until the cell has ended.
 * @param {Layout} layout @param {Samples} samples @param {() => boolean} watched
 * @param {(ending: Ending|null) => void} told
 * @returns {() => void} to be called whenever the kernel has spoken, and when somebody begins to watch
 */
function standIn(layout, samples, watched, told) {
  const server = jupyterServer();
  const run = layout.tail?.split("/cells/")[0] ?? "";
  const refused = () => refusals.get(run) ?? 0;
  if (!server || !run || layout.status || refused() >= MOST_REFUSALS) return () => {};
  let [heard, failures, timer, passed] = [0, 0, 0, 0];
  let over = false;
  const arm = (/** @type {number} */ ms) => {
    clearTimeout(timer);
    if (!over) timer = window.setTimeout(turn, ms);
  };
  async function turn() {
    if (!watched()) return;
    const wait = document.hidden ? 1000 : await ask();
    arm(Math.max(wait, heard + ASK_AFTER_MS - performance.now()));
  }
  /** How long to wait with the next question, in milliseconds. */
  async function ask() {
    const before = Math.max(samples.next, passed);
    const wanted = { headers: server?.headers, signal: AbortSignal.timeout(5000) };
    const reply = await fetch(`${server?.url}${layout.tail}&from=${before}`, wanted).catch(() => null);
    if (!reply?.ok) {
      if (reply?.status === 404) refusals.set(run, refused() + 1); // the kernel's runs are not this server's
      over = reply?.status === 404 || failures >= MOST_FAILURES;
      return 1000 * 2 ** failures++;
    }
    failures = 0;
    /** @type {Tail} */
    const tail = await reply.json();
    over = Boolean(layout.status || tail.ending);
    if (!layout.status && !takeTail(samples, tail)) passed = tail.n; // a GPU has come since: only the ending is of use here
    if (!layout.status && (tail.ending || samples.next > before)) told(tail.ending);
    return ASK_EVERY_MS;
  }
  return () => {
    heard = performance.now();
    arm(ASK_AFTER_MS);
  };
}

// ---- panels and pictures --------------------------------------------------------------------------------------------

/** @type {() => Promise<any>} */
let bokeh = async () => Promise.reject(new Error("BokehJS has not arrived"));

/**
 * A live panel's model: takes the kernel's messages and feeds the views.
 * @param {Model} model @param {[any, any[]][]} early messages that came before this code did
 */
function open(model, early) {
  /** @type {Layout|null} */
  let layout = null;
  let samples = new Samples(0);
  let asked = 0;
  let spoken = () => {};
  /** @type {Map<number, Band>} */
  const cells = new Map();
  const lead = (/** @type {HTMLElement} */ a, /** @type {string} */ id) => leadToCell(model, a, id);
  /** @type {Set<View>} */
  const views = new Set();
  /** @type {(layout: Layout) => void} */
  let ready = () => {};
  const opened = /** @type {Promise<Layout>} */ (new Promise((resolve) => (ready = resolve)));
  const need = () => {
    if (performance.now() - asked < 1000) return;
    asked = performance.now();
    model.send({ k: "need", s: samples.next });
  };
  const told = (/** @type {Ending|null} */ ending) => {
    if (layout && ending) {
      layout.end = ending.seconds;
      layout.status = ending.status;
      if (ending.says) layout.says = ending.says[0].toUpperCase() + ending.says.slice(1);
    }
    for (const view of views) ending ? view.become(ending.status) : view.update();
  };
  const hear = (/** @type {any} */ message, /** @type {any[]} */ buffers) => {
    if (message.k === "open" && !layout) {
      layout = /** @type {Layout} */ (message.layout);
      samples = new Samples(layout.panels.reduce((sum, panel) => sum + panel.lines.length, 0));
      ready(layout);
      spoken = standIn(layout, samples, () => views.size > 0, told);
    } else if (message.k === "d" && layout) {
      if (!samples.put(message.s, floats(buffers[0]))) need();
    } else if (message.k === "h" && layout) {
      if (message.n >= samples.next) samples.reset(message.n, floats(buffers[0]));
    } else if (message.k === "cells") {
      for (const cell of message.cells) cells.set(cell.seq, cell);
      for (const view of views) {
        view.band(message.cells, lead);
        if (message.state) view.become(message.state);
      }
    } else if (!layout) {
      need();
    }
    spoken();
    for (const view of views) view.update();
  };
  for (const [message, buffers] of early) hear(message, buffers);
  model.on("msg:custom", hear);
  if (!layout) setTimeout(() => layout || need(), early.length ? 0 : 400);
  return {
    /** @param {HTMLElement} el @param {AbortSignal} signal */
    async show(el, signal) {
      const view = new View(el, await opened, samples, () => bokeh(), signal);
      if (cells.size) view.band([...cells.values()], lead);
      views.add(view);
      spoken();
      const left = () => layout?.status || view.become("gone");
      model.on("comm_live_update", left); // once, when the kernel's end or restart takes the comm away
      signal.addEventListener("abort", () => views.delete(view));
    },
  };
}

/**
 * Puts the living chart where a cell's picture stands. Called with every `[script, base64]` that outputs have queued.
 * @param {[HTMLElement, string]} entry
 */
async function upgrade([script, packed]) {
  const box = script.closest(".cellmeter-still");
  if (!box || box instanceof HTMLElement === false || box.dataset.upgraded) return;
  box.dataset.upgraded = "waiting";
  const signal = new AbortController().signal;
  await onScreen(box, signal);
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const { layout, rows } = unpack(await gunzip(bytes));
  await bokeh();
  const samples = new Samples(rows.columns.length);
  const flat = new Float64Array(rows.time.length * (rows.columns.length + 1));
  [rows.time, ...rows.columns].forEach((column, c) => flat.set(column, c * rows.time.length));
  samples.reset(rows.time.length, flat);
  layout.prefix = `cm${Math.random().toString(36).slice(2, 10)}-`;
  layout.doc = layout.doc.replace(/"p(\d+)"/g, `"${layout.prefix}$1"`);
  const still = /** @type {HTMLElement[]} */ ([...box.children]);
  const view = new View(box, layout, samples, bokeh, signal);
  for (const child of still) child.style.display = "none";
  await view.drawn;
  box.dataset.upgraded = "done";
}

/** Called once a page: from here on pictures come to life. @param {BufferSource} bytes gzipped bokeh.min.js */
function install(bytes) {
  /** @type {Promise<any>|null} */
  let loading = null;
  bokeh = () => (loading ??= loadBokeh(bytes));
  const page = /** @type {any} */ (globalThis);
  const key = Symbol.for("cellmeter.stills");
  const queue = page[key] ?? [];
  const take = (/** @type {[HTMLElement, string]} */ entry) => void upgrade(entry).catch((error) => console.warn("cellmeter:", error));
  page[key] = { push: take };
  if (Array.isArray(queue)) queue.forEach(take);
}

export default { install, open };
