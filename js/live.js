// @ts-check
// The live panel of cellmeter, in the page. Hand written, no bundler; the kernel sends it as a message, once for all its widgets.
//
// Above: pure functions, tested in Node and held to the same answers as charts.py and words.py by format_cases.json.
// Below: the panel itself. Bokeh draws; what is drawn, from where to where and in which colours is decided here.

/** @typedef {{label: string, role: "main"|"second"|"faint"|"other", ink: [string, string], top: number|null, about?: string}} Line */
/** @typedef {{key: string, title: string, unit: string, limit: number|null, exact?: number|null, lanes: boolean, height: number, lines: Line[]}} Panel */
/** @typedef {{status: string, word: string, end: number, notes: string[]}} Ending */
/** @typedef {{panels: Panel[], shown: string[], asked: boolean, missing: Record<string, string>, cores?: string[], prefix: string, title: string, tail?: string, beside?: boolean, instead?: string|null} & Partial<Ending>} Layout */
/** @typedef {{time: Float64Array, columns: Float64Array[]}} Rows */
/** @typedef {{groups: string[]|null, window: number}} Choice */
/** @typedef {{name: string, start: number, end: number, count: number}} OwnSpan one span, or many of a name that came too fast */
/** @typedef {{layout: Layout, samples: Samples, cores: Cores, own: Own, plugins: Own}} Recorded a cell's readings, as the page has them */
/** @typedef {{get: (name: string) => any, send: (content: any) => void, on: Function, off: Function, widget_manager?: any}} Model */
/** @typedef {{seq: number, title: string, line: string, id: string|null, status: string, start: number, end: number|null}} Band a cell of the run */

const MOST_ROWS = 24000; // kept in the page: 40 minutes at 10 Hz in full; older ones are thinned out, spikes stay
const MOST_ROWS_ENDED = 6000; // of a cell that has ended
const MOST_CORE_ROWS = 3600; // an hour in full
const MOST_OWN = 2000; // values of a name, and spans
const MOST_OWN_ENDED = 600;
const MOST_ENDED = 40; // cells whose readings the page keeps after their end
const MOST_DRAWN = 1200; // rows: on wider charts an extreme is drawn some pixels wide
const LANE_FILL = 0.84; // as in charts.py
const FRAME_LEFT = 58; // as in charts.py
const FRAME_RIGHT = 10;
const FRAME_TOP = 4;
const FRAME_BOTTOM = 18;
const SILENT_MS = 2500;
const BESIDE_MS = 2000; // in which a panel appears beside the notebook, where the front end has a place there
const ADOPT_MS = 3000; // how long a chart waits for the static output that takes it over

// ---- numbers for people: as words.py ----------------------------------------------------------------------------------

const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
/** @type {Record<string, string>} */
const SUFFIX = { "{cpu}": "cores", "%": "%", W: "W", Cel: "°C", MHz: "MHz" };
const WHOLE = new Set(["%", "W", "Cel", "MHz"]);
const KNOWN = new Set(["By", "By/s", "s", "J", ...Object.keys(SUFFIX)]);
const WH = 3600; // joules

/** @param {number} value @returns {string} three significant digits */
function digits(value) {
  return rounded(value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
}

/** @param {number} value @param {number} places @returns {string} thousands apart */
function rounded(value, places) {
  return (Math.floor(value * 10 ** places + 0.5) / 10 ** places).toFixed(places).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** @param {number} value @returns {[number, string]} */
function binary(value) {
  let power = 0;
  for (; Math.abs(value) >= 999.5 && power < BINARY.length - 1; power++) value /= 1024;
  return [value, BINARY[power]];
}

/** See words.value_text. @param {number|null|undefined} value @param {string} unit one of cellmeter's @returns {string} */
export function formatValue(value, unit) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "unknown";
  if (value < 0) return `−${formatValue(-value, unit)}`;
  if (unit === "By" || unit === "By/s") {
    const [size, name] = binary(value);
    return `${name === "B" ? rounded(size, 0) : digits(size)} ${name}${unit.slice(2)}`;
  }
  if (unit === "s") return duration(value);
  if (unit === "J") return energy(value);
  if (unit === "%") return `${rounded(value, value > 0 && value < 0.95 ? 1 : 0)} %`;
  return `${WHOLE.has(unit) ? rounded(value, 0) : digits(value)} ${SUFFIX[unit] ?? unit}`;
}

/** @param {number} seconds @returns {string} */
function duration(seconds) {
  if (seconds === 0) return "0 s";
  if (seconds >= 0.9995 && seconds < 59.95) return `${digits(seconds)} s`;
  if (seconds < 0.9995) return seconds >= 0.9995e-3 ? `${digits(seconds * 1e3)} ms` : `${digits(seconds * 1e6)} µs`;
  const whole = Math.floor(seconds + 0.5);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${rounded(Math.floor(whole / 3600), 0)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

/** @param {number} joules @returns {string} */
function energy(joules) {
  if (joules < 10 * WH) return joules < 999.5 ? `${digits(joules)} J` : `${digits(joules / 1000)} kJ`;
  return joules < 999.5 * WH ? `${digits(joules / WH)} Wh` : `${digits(joules / WH / 1000)} kWh`;
}

/** @param {number|null} seconds @returns {string} */
export function formatDuration(seconds) {
  return formatValue(seconds, "s");
}

/** As words.given_text: a limit is as round as it was set. @param {number} value @param {string} unit @returns {string} */
function given(value, unit) {
  if (WHOLE.has(unit)) return `${formatOwn(value)} ${SUFFIX[unit]}`;
  return formatValue(value, unit).replace(/(\.\d*?)0+(?= )/, "$1").replace(/\.(?= )/, "");
}

/** See words.peak_text. @param {number|null} peak @param {{unit: string, limit: number|null}} panel @returns {string} */
export function formatPeak(peak, { unit, limit }) {
  const text = formatValue(peak, unit);
  if (!limit || unit === "%") return `peak ${text}`;
  const most = given(limit, unit);
  if (peak !== null && peak > limit) return `peak ${text} at a limit of ${most}`;
  const [number, suffix] = text.split(" ");
  return `peak ${most.endsWith(" " + suffix) ? number : text} of ${most}`;
}

/** As words.count_text. @param {number} value @returns {string} a value of the user's, whatever its size */
export function formatOwn(value) {
  if (!Number.isFinite(value)) return "not finite";
  if (value < 0) return `−${formatOwn(-value)}`;
  if (value >= 999.95 && value < 1e9) return rounded(value, 0);
  if (value >= 1e-4 && value < 1e9 || !value) return String(Number(value.toPrecision(4)));
  return value.toExponential(3).replace(/\.?0*e([+-])(\d+)/, (_, sign, power) => `e${sign}${power.padStart(2, "0")}`);
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
  let top = Math.max(LEAST_TOP[panel.unit] ?? 1, panel.exact ?? 0);
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

/** From where to where the time axis goes. @param {number} last time there is @param {number|undefined} end of the cell
 * @param {number} window seconds; 0: all of it @returns {[number, number]} */
export function timeSpan(last, end, window) {
  if (!window) return [0, end ?? spanFor(last)];
  const stop = Math.max(end ?? last, window);
  return [stop - window, stop];
}

// ---- readings -------------------------------------------------------------------------------------------------------

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

/**
 * Rows of which at most two are left in each `seconds` of time, with the extremes of all columns; see charts.thinned. Doing it
 * again changes nothing, and a spike moves by less than that time: so old rows can be thinned again and again, and a chart draws
 * two rows a pixel, the same ones while its window moves. @param {Rows} rows @param {number} seconds @returns {Rows}
 */
export function thinned(rows, seconds) {
  const count = rows.time.length;
  const out = { time: new Float64Array(count), columns: rows.columns.map(() => new Float64Array(count)) };
  let size = 0;
  for (let low = 0, high = 0; low < count; low = high) {
    const part = Math.floor(rows.time[low] / seconds);
    while (high < count && Math.floor(rows.time[high] / seconds) === part) high++;
    const last = high - low > 1 ? size + 1 : size;
    out.time[size] = rows.time[low];
    out.time[last] = rows.time[high - 1];
    rows.columns.forEach((column, c) =>
      out.columns[c].set(high - low > 2 ? extremes(column, low, high) : column.subarray(low, high), size),
    );
    size = last + 1;
  }
  return { time: out.time.subarray(0, size), columns: out.columns.map((column) => column.subarray(0, size)) };
}

/** The readings of one cell, bounded however long it runs. Rows are counted from 0; a message says which it begins with. */
export class Samples {
  /** @param {number} width columns without the time @param {number} [most] rows kept */
  constructor(width, most = MOST_ROWS) {
    this.width = width;
    this.most = most;
    this.next = 0;
    this.size = 0;
    this.changes = 0;
    this.seconds = 0.5; // in which two of the older rows are left
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
    this.changes++;
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

  /** The newer half stays, of the rest as many rows as make a quarter at most: two in equal times, whatever their age. */
  #thin() {
    const [newer, older] = [this.most >> 1, this.size - (this.most >> 1)];
    const old = { time: this.parts[0].subarray(0, older), columns: this.parts.slice(1).map((p) => p.subarray(0, older)) };
    let few = thinned(old, this.seconds);
    while (few.time.length > Math.max(2, newer >> 1)) few = thinned(old, (this.seconds *= 2));
    const kept = [few.time, ...few.columns];
    this.parts.forEach((part, c) => {
      const recent = part.slice(older, this.size);
      part.set(kept[c]);
      part.set(recent, few.time.length);
    });
    this.size += few.time.length - older;
  }

  /** Fewer rows from here on, and no more room than they need. @param {number} most */
  shrink(most) {
    this.most = most;
    this.changes++;
    while (this.size > most) this.#thin();
    this.parts = this.parts.map((part) => part.slice(0, Math.max(1, this.size)));
  }

  /** The time of the last row; 0: there is none. */
  get last() {
    return this.size ? this.parts[0][this.size - 1] : 0;
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

/** Rows from a time to another, and one more at either side, as far as there is one. @param {Samples} samples
 * @param {number} first column @param {number} count of columns @param {number} start @param {number} end @returns {Rows} */
export function between(samples, first, count, start, end) {
  const low = Math.max(0, samples.before(start));
  const high = Math.min(samples.size, samples.before(end) + 2);
  const [time, ...columns] = [samples.parts[0], ...samples.parts.slice(1 + first, 1 + first + count)];
  return { time: time.subarray(low, high), columns: columns.map((column) => column.subarray(low, high)) };
}

/** The greatest of each column; NaN: none is known. @param {Float64Array[]} columns @returns {number[]} */
export function peaksOf(columns) {
  return columns.map((column) => {
    let most = NaN;
    for (const x of column) if (!(x <= most) && !Number.isNaN(x)) most = x;
    return most;
  });
}

/**
 * How busy each core was, a byte a core and second: 0 to 250, 255 unknown. A row stands for the time since the row before it.
 * Bounded: the older half is merged by twos to its mean, again and again.
 */
export class Cores {
  /** @param {number} width cores @param {number} [most] rows kept */
  constructor(width, most = MOST_CORE_ROWS) {
    this.width = width;
    this.most = most;
    this.next = 0;
    this.began = 0;
    /** @type {number[]} */
    this.times = [];
    /** @type {Uint8Array[]} */
    this.loads = [];
  }

  /** As `Samples.put`: whether no rows are missing before these. @param {number} start @param {Float64Array} times
   * @param {Uint8Array} loads row after row @returns {boolean} */
  put(start, times, loads) {
    if (start > this.next) return false;
    if (!this.times.length && times.length) this.began = Math.max(0, times[0] - 1);
    for (let i = this.next - start; i < times.length; i++) {
      this.times.push(times[i]);
      this.loads.push(loads.slice(i * this.width, (i + 1) * this.width));
    }
    this.next = Math.max(this.next, start + times.length);
    if (this.times.length > this.most) this.#merge();
    return true;
  }

  /** Begins anew, the next row being number `next`. @param {number} next @param {Float64Array} times @param {Uint8Array} loads */
  reset(next, times, loads) {
    [this.times, this.loads, this.next] = [[], [], 0];
    this.put(0, times, loads);
    this.next = next;
  }

  #merge() {
    const half = (this.times.length >> 2) * 2;
    const [times, loads] = [/** @type {number[]} */ ([]), /** @type {Uint8Array[]} */ ([])];
    for (let i = 0; i < half; i += 2) {
      const [one, other] = [this.loads[i], this.loads[i + 1]];
      times.push(this.times[i + 1]);
      loads.push(one.map((x, c) => (x === 255 ? other[c] : other[c] === 255 ? x : (x + other[c] + 1) >> 1)));
    }
    this.times = times.concat(this.times.slice(half));
    this.loads = loads.concat(this.loads.slice(half));
  }

  /** The row that stands for a time; undefined: none. @param {number} at @returns {Uint8Array|undefined} */
  at(at) {
    let [low, high] = [0, this.times.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.times[middle] < at) low = middle + 1;
      else high = middle;
    }
    return this.loads[low];
  }

  /** Mean load of each core in each of `columns` equal parts of a span, part after part; 255 where nothing is known.
   * @param {number} start @param {number} end @param {number} columns @returns {Uint8Array} */
  heat(start, end, columns) {
    const { width, times } = this;
    const [sums, counts] = [new Float64Array(columns * width), new Uint32Array(columns * width)];
    const part = (/** @type {number} */ time) => Math.floor(((time - start) / (end - start)) * columns);
    for (let row = 0; row < times.length; row++) {
      const since = row ? times[row - 1] : this.began;
      if (times[row] <= start || since >= end) continue;
      const low = Math.max(0, part(since));
      for (let c = low, high = Math.min(columns - 1, Math.max(low, part(times[row]) - 1)); c <= high; c++) {
        this.loads[row].forEach((x, core) => {
          if (x === 255) return;
          sums[c * width + core] += x;
          counts[c * width + core]++;
        });
      }
    }
    return Uint8Array.from(sums, (sum, i) => (counts[i] ? Math.round(sum / counts[i]) : 255));
  }
}

/** What the user's code says: logged values and spans, the newest of them in full. Marks are counted from 0, as rows are. */
export class Own {
  constructor() {
    this.next = 0;
    this.others = 0; // names that are not drawn
    /** @type {Map<string, Samples>} */
    this.values = new Map();
    /** @type {OwnSpan[]} */
    this.spans = [];
    /** @type {Set<string>} */
    this.names = new Set(); // of spans
    /** @type {Record<string, string>} */
    this.units = {}; // of values, where they have one
  }

  /** Whether there is nothing to draw. */
  get empty() {
    return !this.values.size && !this.names.size;
  }

  /** As `Samples.put`; `anew`: what is missing before these is kept nowhere.
   * @param {number} start @param {any[][]} marks see own_feed.py @param {boolean} anew @returns {boolean} */
  put(start, marks, anew) {
    if (start > this.next && !anew) return false;
    for (const mark of marks.slice(Math.max(0, this.next - start))) this.#take(mark);
    this.next = Math.max(this.next, start + marks.length);
    if (this.spans.length > 2 * MOST_OWN) this.spans = this.spans.slice(-MOST_OWN);
    return true;
  }

  /** @param {any[]} mark */
  #take([name, start, ...more]) {
    if (more.length === 1) {
      const values = this.values.get(name) ?? new Samples(1, MOST_OWN);
      this.values.set(name, values);
      const value = Number(more[0]); // of "inf" and "-inf", too, NaN is made: a gap
      values.put(values.next, Float64Array.of(start, value));
    } else {
      this.names.add(name);
      this.spans.push({ name, start, end: more[0], count: more[1] });
    }
  }

  /** Of a cell that has ended. */
  shrink() {
    for (const values of this.values.values()) values.shrink(MOST_OWN_ENDED);
    this.spans = this.spans.slice(-MOST_OWN);
  }

  /** The newest span of a name at a time, or less than `slack` from it. @param {string} name @param {number} at @param {number} slack */
  spanAt(name, at, slack) {
    return this.spans.findLast((span) => span.name === name && span.start - slack <= at && at <= span.end + slack);
  }

  /** Where spans of a name are drawn: those that would touch are one bar. @param {string} name @param {number} start
   * @param {number} end @param {number} width CSS pixels @returns {[number, number][]} left and right */
  bars(name, start, end, width) {
    const place = (/** @type {number} */ t) => (Math.min(Math.max(t, start), end) - start) * (width / Math.max(end - start, 1e-9));
    /** @type {[number, number][]} */
    const found = [];
    const mine = this.spans.filter((span) => span.name === name && span.end >= start && span.start <= end);
    for (const span of mine.sort((a, b) => a.start - b.start)) {
      const [left, right] = [place(span.start), place(span.end)];
      const before = found.at(-1);
      if (before && left < before[1] + 0.5) before[1] = Math.max(before[1], right);
      else found.push([left, right]);
    }
    return found;
  }
}

/** From where to where a lane of values goes: the range of those drawn. @param {Float64Array} values
 * @returns {[number, number]|null} null: there is none */
export function rangeOf(values) {
  const known = values.filter((x) => !Number.isNaN(x));
  return known.length ? [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))] : null;
}

/**
 * What Bokeh draws of a panel: the time `t`, a column a line (`c0`, `c1`, …), and one a filled area, in which a gap falls to
 * the ground. @param {Panel} panel @param {Rows} rows of its lines @param {number[]} peaks @returns {Record<string, Float64Array>}
 */
export function drawn(panel, rows, peaks) {
  const count = panel.lines.length;
  const most = Math.max(1e-9, ...peaks.filter((x) => !Number.isNaN(x)));
  /** @type {Record<string, Float64Array>} */
  const out = { t: rows.time.slice() };
  panel.lines.forEach((line, i) => {
    const base = panel.lanes ? count - 1 - i : 0;
    const top = line.top || most;
    const values = panel.lanes
      ? rows.columns[i].map((x) => base + Math.min(1, Math.max(0, x / top)) * LANE_FILL)
      : rows.columns[i].slice(); // a view would change under Bokeh's hands
    out[`c${i}`] = values;
    out[`c${i}a`] = values.map((x) => (Number.isNaN(x) ? base : x));
  });
  return out;
}

const LEVELS = 1022; // of a packed reading; one more: unknown

/**
 * The static output's data, see `pack` in still.py: u32 length of the JSON, the JSON, then a 16-bit level a reading, column
 * after column, as the difference from the one before; all low bytes, then all high bytes.
 * @param {ArrayBuffer} buffer @returns {{layout: Layout, rows: Rows}}
 */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const { bounds, ...layout } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const bytes = new Uint8Array(buffer, 4 + length);
  const words = bytes.length / 2;
  const count = words / bounds.length;
  const columns = bounds.map((/** @type {[number, number]} */ [low, high], /** @type {number} */ c) => {
    const levels = c ? LEVELS : 65535;
    let level = 0;
    return Float64Array.from({ length: count }, (_, i) => {
      level = (level + bytes[c * count + i] + 256 * bytes[words + c * count + i]) & 65535;
      return c && level > LEVELS ? NaN : low + ((high - low) * level) / levels;
    });
  });
  return { layout, rows: { time: columns[0], columns: columns.slice(1) } };
}

// ---- what is looked at ----------------------------------------------------------------------------------------------

const OWN = "own"; // the group that is there once the code has logged something
const PLUGINS = "plugins"; // and once a source of another package has measured
/** @type {[string, string][]} */
const GROUPS = [["cpu", "CPU"], ["cores", "Cores"], ["memory", "Memory"], ["gpu", "GPU"], ["io", "Disk"], ["net", "Network"], ["power", "Power"], [PLUGINS, "Plugins"], [OWN, "Your code"]];
/** @type {[number, string][]} */
const WINDOWS = [[30, "30 s"], [300, "5 min"], [0, "All"]];
const KEPT = "cellmeter.view";

/** A choice as a page has kept it, or the one to begin with. @param {string|null} text @returns {Choice} */
export function readChoice(text) {
  let kept = null;
  try {
    kept = JSON.parse(text ?? "null");
  } catch {} // somebody else's
  const groups = Array.isArray(kept?.groups) ? GROUPS.map(([key]) => key).filter((key) => kept.groups.includes(key)) : null;
  return { groups, window: WINDOWS.some(([seconds]) => seconds === kept?.window) ? kept.window : 0 };
}

/** The groups a panel begins with: those that the cell asks for or has ended with, else those chosen last. @param {Layout} layout
 * @param {Choice} choice @returns {string[]} */
export function firstGroups(layout, choice) {
  return layout.asked || layout.status || !choice.groups ? [...layout.shown, OWN] : choice.groups;
}

/** @param {string} key of a panel */
const groupOf = (key) => key.split("-")[0];

/** A panel as a Bokeh document: one figure, whose colours, ticks and readings come later.
 * @param {Panel} panel @param {string} id begins all ids in it @param {string} version BokehJS's @returns {any} */
export function documentOf(panel, id, version) {
  let count = 0;
  const model = (/** @type {string} */ name, /** @type {any} */ attributes = {}) => ({ type: "object", name, id: `${id}-${count++}`, attributes });
  const ref = (/** @type {any} */ one) => ({ id: one.id });
  const field = (/** @type {string} */ name) => ({ type: "field", field: name });
  const names = ["t", ...panel.lines.flatMap((_, i) => [`c${i}`, `c${i}a`])];
  const source = model("ColumnDataSource", { name: "samples", data: { type: "map", entries: names.map((name) => [name, []]) } });
  const mains = panel.lines.filter((line) => line.role === "main").length;
  const renderers = panel.lines.flatMap((line, i) => {
    const [wide, dash] = [isBeside(line) ? 1.1 : panel.lanes ? 1.3 : 1.8, line.role === "second" && panel.key === "memory" ? [4, 3] : []];
    const stroke = { x: field("t"), y: field(`c${i}`), line_width: wide, line_dash: dash, line_join: "bevel" };
    const ground = panel.lanes ? panel.lines.length - 1 - i : 0;
    const fill = { x: field("t"), y1: { type: "value", value: ground }, y2: field(`c${i}a`), fill_alpha: 0.16 };
    const filled = line.role === "main" && (panel.lanes || mains === 1);
    return [
      model("GlyphRenderer", { name: `c${i}`, data_source: ref(source), glyph: model("Line", stroke) }),
      ...(filled ? [model("GlyphRenderer", { name: `c${i}a`, data_source: ref(source), glyph: model("VArea", fill) })] : []),
    ];
  }).reverse();
  renderers[0].attributes.data_source = source; // where a model is first met it is spelt out
  const axis = () => model("LinearAxis", {
    ticker: model("FixedTicker", { ticks: [], minor_ticks: [] }), formatter: model("BasicTickFormatter"), major_label_policy: model("AllLabels"),
    major_label_text_font_size: "10px", axis_line_color: null, major_tick_line_color: null, minor_tick_line_color: null,
  });
  const [left, below] = [axis(), axis()];
  const mark = (/** @type {string} */ name, /** @type {any} */ more) => model("Span", { name, dimension: "width", level: "underlay", ...more });
  const marks = [
    ...(panel.limit && !panel.lanes && panel.unit !== "%" ? [mark("limit", { location: panel.limit, line_color: "#D55E00", line_dash: [2, 3], line_width: 1.2 })] : []),
    ...(panel.key === "memory" ? [mark("exact", { location: panel.exact ?? 0, visible: false, line_dash: [6, 3], line_width: 1 })] : []),
  ];
  const overlay = model("BoxAnnotation", {
    syncable: false, visible: false, level: "overlay", fill_color: "#808080", fill_alpha: 0.25, line_color: null,
    ...Object.fromEntries(["left", "right", "top", "bottom"].flatMap((edge) => [[edge, { type: "number", value: "nan" }], [`${edge}_units`, "canvas"]])),
  });
  const figure = model("Plot", {
    name: panel.key, height: panel.height, sizing_mode: "stretch_width", toolbar_location: null,
    x_range: model("Range1d", { end: 10 }), y_range: model("Range1d"), x_scale: model("LinearScale"), y_scale: model("LinearScale"),
    toolbar: model("Toolbar", { tools: [model("BoxZoomTool", { dimensions: "width", overlay })] }),
    renderers, left: [left], below: [below],
    center: [model("Grid", { axis: ref(below), grid_line_color: null }), model("Grid", { dimension: 1, axis: ref(left) }), ...marks],
    background_fill_color: null, border_fill_color: null, outline_line_color: null,
    min_border_left: FRAME_LEFT, min_border_right: FRAME_RIGHT, min_border_top: FRAME_TOP, min_border_bottom: FRAME_BOTTOM,
  });
  return { version, title: "", roots: [figure] };
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
  // a listener on the page's viewport, which Bokeh never takes away, would keep every plot for ever
  const parts = ["export default function (visualViewport) {", code, "\n}"];
  const url = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
  /** @type {any} */
  const root = {};
  try {
    (await import(/* webpackIgnore: true */ url)).default.call(root, null);
  } finally {
    URL.revokeObjectURL(url);
  }
  root.Bokeh.set_log_level?.("error");
  return root.Bokeh;
}

/** Resolves once an element is on screen: JupyterLab keeps cells out of the document, and Bokeh cannot draw there.
 * @param {Element} el @param {AbortSignal} signal @returns {Promise<void>} */
function onScreen(el, signal) {
  const { top, bottom, width } = el.getBoundingClientRect();
  if (width && bottom > 0 && top < innerHeight) return Promise.resolve(); // an observer tells a frame later
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

/** Whether something becomes true in some time. @param {number} ms @param {() => boolean} holds @returns {Promise<boolean>} */
async function within(ms, holds) {
  for (const until = performance.now() + ms; performance.now() < until; ) {
    if (holds()) return true;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return holds();
}

/** The colour an element stands on. @param {Element} el @returns {string} */
function groundOf(el) {
  for (let at = /** @type {Element|null} */ (el); at; at = at.parentElement ?? host(at)) {
    const colour = getComputedStyle(at).backgroundColor;
    const parts = colour.match(/[\d.]+/g)?.map(Number) ?? [];
    if (parts.length === 3 || parts[3] > 0.5) return colour;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches ? "rgb(17, 17, 17)" : "rgb(255, 255, 255)";
}

/** @param {string} colour @returns {boolean} */
function isDark(colour) {
  const [red, green, blue] = (colour.match(/[\d.]+/g) ?? []).map(Number);
  return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
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
.jupyterlab-sidecar .cellmeter { padding: 6px 8px; }
.cellmeter [hidden] { display: none; }
.cm-head { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 2px 16px; padding: 0 10px 5px 2px; border-bottom: 1px solid rgb(128 128 128 / .22); }
.cm-said, .cm-sum { display: flex; align-items: baseline; min-width: 0; padding-top: 1px; }
.cm-said { flex: 1 1 15em; gap: 8px; }
.cm-state { display: inline-flex; align-items: center; gap: 6px; font-weight: 600; white-space: nowrap; }
.cm-state i { width: 8px; height: 8px; border-radius: 50%; background: #8C9196; }
.cellmeter[data-state=recording] .cm-state i { background: #D6423B; animation: cm-pulse 1.6s ease-in-out infinite; }
.cellmeter[data-state=silent] .cm-state i { background: #E69F00; }
.cellmeter[data-state=ok] .cm-state i { background: #17A077; }
.cellmeter[data-state=error] .cm-state i, .cellmeter[data-state=died] .cm-state i { background: #D6423B; border-radius: 1px; }
@keyframes cm-pulse { 50% { opacity: .35; } }
@media (prefers-reduced-motion: reduce) { .cm-state i { animation: none !important; } }
.cm-title { font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; max-width: 24em; min-width: 2em; }
.cm-time, .cm-missing { opacity: .68; }
.cm-time { white-space: nowrap; }
.cm-missing { padding-top: 7px; }
.cm-sum { flex: 1; flex-wrap: wrap; gap: 2px 16px; }
.cm-sum b { font-weight: 600; }
.cm-sum span span { opacity: .68; }
.cm-own { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; opacity: .8; padding-top: 4px; }
.cm-own:empty { display: none; }
.cm-tools, .cm-picks, .cm-window { display: flex; align-items: center; gap: 1px; }
.cm-tools { flex: 0 1 auto; flex-wrap: wrap; justify-content: flex-end; gap: 4px; margin-left: auto; }
.cm-sum { order: 1; flex-basis: 100%; }
@container (min-width: 860px) { .cm-head { flex-wrap: nowrap; } .cm-said { flex: none; gap: 12px; } .cm-sum { order: 0; flex-basis: 0; } }
.cm-picks { flex-wrap: wrap; gap: 2px; padding: 4px 10px 0 0; justify-content: flex-end; }
.cellmeter button { font: inherit; font-size: 11px; line-height: 16px; min-width: 20px; height: 18px; padding: 0 6px; border: 0; border-radius: 4px;
  background: none; color: inherit; opacity: .62; cursor: pointer; }
.cellmeter button:hover { background: rgb(128 128 128 / .14); opacity: 1; }
.cellmeter button[aria-pressed=true], .cellmeter button[aria-expanded=true] { background: rgb(128 128 128 / .2); opacity: 1; }
.cellmeter button:focus-visible { outline: 2px solid var(--jp-brand-color1, #0072B2); outline-offset: 1px; opacity: 1; }
.cellmeter button:disabled { opacity: .3; background: none; cursor: default; }
.cellmeter button svg { display: block; width: 10px; height: 10px; margin: 0 auto; fill: currentColor; }
.cm-grid { display: grid; grid-template-columns: minmax(0, 1fr); gap: 6px 22px; padding-top: 7px;
  grid-auto-flow: dense; }
.cm-grid > :is([data-panel=cores], [data-panel=plugins], [data-panel=own]) { grid-column: 1 / -1; }
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
.cm-peak { margin-left: auto; opacity: .68; white-space: nowrap; }
.cm-fig { position: relative; overflow: hidden; }
.cm-fig canvas { cursor: crosshair; }
.cm-heat { position: absolute; inset: 0; width: 100%; height: 100%; }
.cm-lane { position: absolute; right: ${FRAME_RIGHT + 3}px; font-size: 10px; line-height: 12px; pointer-events: none;
  padding: 0 2px; border-radius: 3px; background: color-mix(in srgb, var(--cm-ground, #fff) 72%, transparent); }
.cm-tip { position: absolute; z-index: 2; padding: 1px 6px; border-radius: 3px; font-size: 11px; white-space: nowrap; color: #fff; background: #4A5057;
  pointer-events: none; transform: translateY(-50%); }
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

/** @param {string} text @param {string} about @param {() => void} press @param {Record<string, string>} [attributes] */
function button(text, about, press, attributes = {}) {
  // JupyterLab would take Enter and Space for its own
  const el = /** @type {HTMLButtonElement} */ (make("button", "", { type: "button", title: about, "data-lm-suppress-shortcuts": "true", ...attributes }, text));
  el.addEventListener("click", press);
  return el;
}

/** @param {string} path @returns {SVGSVGElement} */
function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 10 10");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  svg.firstElementChild?.setAttribute("d", path);
  return svg;
}

/** What this page's user chose last. */
const kept = {
  /** @type {Choice|null} */
  choice: null,
  /** @returns {Choice} */
  read() {
    let text = null;
    try {
      text = localStorage.getItem(KEPT);
    } catch {} // a page that may keep nothing
    return (this.choice ??= readChoice(text));
  },
  /** @param {Partial<Choice>} change */
  write(change) {
    this.choice = { ...this.read(), ...change };
    try {
      localStorage.setItem(KEPT, JSON.stringify(this.choice));
    } catch {} // as above
  },
};

/** @type {Record<string, string>} the rest comes with the cell's end */
const STATES = { recording: "Recording", silent: "No news from the kernel", gone: "Kernel gone" };

let serial = 0;

// ---- the cells of a run --------------------------------------------------------------------------------------------

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
  /** @param {(a: HTMLElement, id: string) => boolean} lead */
  constructor(lead) {
    this.lead = lead;
    /** @type {Map<number, Band>} */
    this.cells = new Map();
    this.version = 0;
  }

  /** @param {Band[]} cells new ones, and those that have ended */
  take(cells) {
    for (const cell of cells) this.cells.set(cell.seq, cell);
    this.version++;
  }

  /** @param {HTMLElement[]} boxes of the charts @param {number} start @param {number} end of the time axis */
  place(boxes, start, end) {
    boxes.forEach((box, n) => {
      const layer = /** @type {HTMLElement} */ (box.querySelector(".cm-bands") ?? box.appendChild(make("div", "cm-bands")));
      const shown = `${this.version} ${start} ${end} ${layer.clientWidth} ${n === 0}`;
      if (layer.dataset.shown === shown) return;
      layer.dataset.shown = shown;
      const found = bandsWithin([...this.cells.values()], start, end, layer.clientWidth);
      layer.replaceChildren(...found.map((band) => this.#band(band, n === 0)));
    });
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

// ---- one chart ------------------------------------------------------------------------------------------------------

/** A panel drawn by Bokeh, with its caption. */
class Chart {
  /** @param {View} view @param {Panel} panel @param {number} first column of its first line */
  constructor(view, panel, first) {
    this.view = view;
    this.panel = panel;
    this.first = first;
    /** @type {any} */
    this.figure = null;
    /** @type {any} */
    this.views = null;
    this.forget = () => {}; // Bokeh keeps every document for ever
    this.shown = ""; // what the figure shows, in so far as another would be drawn otherwise
    this.setting = false;
    this.top = NaN;
    /** @type {[number, string][]} */
    this.ticks = [];
    this.id = `${view.record.layout.prefix}f${serial++}`;
    this.legend = panel.lanes ? [] : panel.lines.map((line) => {
      const value = make("span");
      return { line, value, item: make("span", "cm-line", { title: line.about ?? line.label }, make("i"), line.label, value) };
    });
    this.lanes = panel.lanes ? panel.lines.map(() => make("span", "cm-lane")) : [];
    this.peak = make("span", "cm-peak");
    this.box = make("div", "cm-fig", { role: "img", style: `height:${panel.height}px` }, make("div"), ...this.lanes);
    const name = make("span", "cm-name", {}, make("b", "", {}, panel.title));
    if (this.legend.length) name.append(make("span", "cm-legend", {}, ...this.legend.map((x) => x.item)));
    this.root = make("section", "cm-panel", { "data-panel": panel.key }, make("div", "cm-cap", {}, name, this.peak), this.box);
  }

  /** @param {any} Bokeh @param {() => void} dress has it drawn, before Bokeh paints it for the first time */
  async embed(Bokeh, dress) {
    const doc = Bokeh.require("document").Document.from_json(documentOf(this.panel, `${this.id}m`, Bokeh.version));
    this.forget = () => {
      doc.clear(); // or a timer of its own would keep it for half a minute
      const at = Bokeh.documents.indexOf(doc);
      if (at >= 0) Bokeh.documents.splice(at, 1);
    };
    const [figure] = doc.roots();
    const { panel } = this;
    const rows = panel.lines.length;
    figure.left[0].formatter.doFormat = (/** @type {number[]} */ ticks) =>
      ticks.map((x) => (panel.lanes ? panel.lines[rows - 1 - Math.floor(x)].label : axisLabel(x, panel.unit)));
    figure.below[0].formatter.doFormat = (/** @type {number[]} */ ticks) => {
      const labels = new Map(this.ticks);
      return ticks.map((x) => labels.get(x) ?? "");
    };
    const range = figure.x_range;
    const moved = () => this.setting || this.view.zoomTo([range.start, range.end]);
    for (const name of ["start", "end"]) range.properties[name].change.connect(moved);
    this.source = doc.get_model_by_name("samples");
    this.figure = figure;
    dress();
    this.views = await Bokeh.embed.add_document_standalone(doc, this.box, [this.box.firstElementChild]);
    this.#placeLanes();
  }

  close() {
    this.views?.clear();
    this.forget();
    this.root.remove();
  }

  /** @param {boolean} dark */
  theme(dark) {
    for (const { line, item } of this.legend) {
      item.style.setProperty("--ink", line.ink[Number(dark)]);
      item.title = line.about ?? line.label;
    }
    if (!this.figure) return;
    const { panel, figure } = this;
    const [text, grid] = dark ? ["#A3AAB1", "rgba(255,255,255,0.11)"] : ["#666D74", "rgba(0,0,0,0.10)"];
    for (const axis of [figure.left[0], figure.below[0]]) axis.major_label_text_color = text;
    for (const line of figure.center) {
      if ("grid_line_color" in line) line.grid_line_color = line.dimension && !panel.lanes ? grid : null;
      else if (line.name === "exact") line.line_color = panel.lines[0].ink[Number(dark)];
    }
    for (const { name, glyph } of figure.renderers) {
      const ink = panel.lines[parseInt(name.slice(1))].ink[Number(dark)];
      glyph[name.endsWith("a") ? "fill_color" : "line_color"] = ink;
    }
  }

  /** The readings from `start` to `end`, those after `until` left out. @param {number} start @param {number} end @param {number} until */
  draw(start, end, until) {
    if (!this.figure) return;
    const { panel, first, figure } = this;
    const { samples } = this.view.record;
    const shown = [samples.changes, start, end, until, this.box.clientWidth, panel.exact].join();
    if (shown === this.shown) return;
    this.shown = shown;
    const rows = between(samples, first, panel.lines.length, start, Math.min(end, until));
    const most = Math.min(MOST_DRAWN, 2 * Math.max(100, this.box.clientWidth - FRAME_LEFT - FRAME_RIGHT));
    const few = rows.time.length > most ? thinned(rows, (2 * (end - start)) / most) : rows;
    const peaks = peaksOf(few.columns);
    this.top = scaleTop(panel, peaks);
    if (figure.y_range.end !== this.top) {
      figure.y_range.end = this.top;
      figure.left[0].ticker.ticks = this.#valueAxis();
    }
    const exact = figure.center.find((/** @type {any} */ x) => x.name === "exact");
    if (exact) exact.setv({ visible: hiddenPeak(panel, peaks), location: panel.exact ?? 0 });
    this.source.data = drawn(panel, few, panel.lanes ? samples.peaks.slice(first, first + panel.lines.length) : peaks);
    const range = figure.x_range;
    this.setting = true;
    if (range.start !== start || range.end !== end) range.setv({ start, end });
    this.setting = false;
    this.timeAxis(start, end);
    this.#placeLanes();
  }

  /** Each lane's number at its middle, wherever Bokeh has put the lanes. */
  #placeLanes() {
    if (!this.lanes.length || !this.views) return;
    const { top, height } = this.views.roots[0].frame.bbox;
    this.lanes.forEach((lane, i) => (lane.style.top = `${top + ((i + 1 - LANE_FILL / 2) * height) / this.lanes.length - 6}px`));
  }

  #valueAxis() {
    const { panel, top } = this;
    if (panel.lanes) return panel.lines.map((_, i) => i + LANE_FILL / 2);
    return panel.unit === "%" ? [0, 50, 100] : valueTicks(top, panel.unit);
  }

  /** @param {number} start @param {number} end */
  timeAxis(start, end) {
    this.ticks = timeTicks(start, end, mostTicks(this.box));
    const places = this.ticks.map(([at]) => at);
    const ticker = this.figure.below[0].ticker;
    if (String(ticker.ticks) !== String(places)) ticker.ticks = places;
  }

  /** Caption: what is in a row (-1: none), or after the end the peaks. @param {number} row @param {boolean} overall
   * @returns {Node} the panel's part in the header line */
  say(row, overall) {
    const { panel, first } = this;
    const { samples } = this.view.record;
    const now = panel.lines.map((_, i) => (row < 0 ? NaN : samples.parts[first + i + 1][row]));
    const peaks = samples.peaks.slice(first, first + panel.lines.length);
    const one = panel.lines.filter((line) => line.role === "main").length === 1; // its peak stands beside the legend
    // what is known exactly is the kernel's own peak
    const peak = (/** @type {number} */ i) => (panel.lines[i].role === "second" ? Math.max(peaks[i], panel.exact ?? 0) : peaks[i]);
    const value = (/** @type {number} */ i) => (overall ? `peak ${formatValue(peak(i), panel.unit)}` : formatValue(now[i], panel.unit));
    this.legend.forEach(({ line, item, value: el }, i) => {
      el.textContent = samples.size === 0 || (overall && one && line.role === "main") ? "" : value(i).replace(/ cores$/, "");
      const never = overall && line.role !== "main" && Number.isNaN(peaks[i]);
      item.hidden = samples.size > 0 && (never || !worthSaying(panel, line, peaks[i], peaks, this.top));
    });
    this.lanes.forEach((lane, i) => (lane.textContent = samples.size ? value(i) : ""));
    this.peak.textContent = samples.size ? peakText(panel, peaks) : "";
    const chip = chipText(panel, now);
    this.box.setAttribute("aria-label", `${panel.title} over time: now ${chip}, ${peakText(panel, peaks)}`);
    const most = panel.key === "memory" ? ` ${peakText(panel, peaks)}` : "";
    return make("span", "", {}, make("span", "", {}, `${panel.title} `), make("b", "", {}, chip), make("span", "", {}, most));
  }
}

/** Puts what has become known into the panels that charts are drawn by: exact peaks, and which GPUs the kernel does not use.
 * @param {Layout} layout @param {Panel[]} panels */
export function learn(layout, panels) {
  const news = new Map(panels.map((panel) => [panel.key, panel]));
  for (const panel of layout.panels) {
    const told = news.get(panel.key);
    panel.exact = told?.exact ?? panel.exact;
    told?.lines.forEach((line, i) => Object.assign(panel.lines[i], { about: undefined, ...line }));
  }
}

/** How many labels a time axis has room for. @param {HTMLElement} box */
const mostTicks = (box) => Math.max(2, Math.min(8, Math.floor((box.clientWidth - FRAME_LEFT - FRAME_RIGHT) / 62)));

/** Whether the exact peak is one that no sample has seen. @param {Panel} panel @param {number[]} peaks */
const hiddenPeak = (panel, peaks) => Boolean(panel.exact && panel.exact > 1.02 * peaks[0]);

/** As charts.worth_drawing: not what is off the scale, nor the kernel's memory where it is all there is.
 * @param {Panel} panel @param {Line} line @param {number} peak @param {number[]} peaks @param {number} top */
export function worthSaying(panel, line, peak, peaks, top) {
  if (panel.key !== "memory" || line.role === "main") return true;
  return line.role === "second" ? peaks[0] > 1.01 * peak : !(peak > top);
}

const NOT_USED = "not used"; // see charts.NOT_USED

/** Whether a line is counted nowhere. @param {Line} line */
const isBeside = (line) => line.role === "faint" || line.role === "other";

/** Whether any line of a panel counts: GPUs that others use do not. @param {Panel} panel */
const isUsed = (panel) => panel.lines.some((line) => !isBeside(line));

/** @param {Panel} panel @param {number[]} peaks */
function peakText(panel, peaks) {
  if (!isUsed(panel)) return NOT_USED;
  const known = peaks.filter((x, i) => !Number.isNaN(x) && !isBeside(panel.lines[i]));
  if (panel.exact) known.push(panel.exact);
  return formatPeak(known.length ? Math.max(...known) : NaN, panel);
}

/** A panel's numbers now, in short: up to four devices each by itself. @param {Panel} panel @param {number[]} now @returns {string} */
export function chipText(panel, now) {
  if (!isUsed(panel)) return NOT_USED;
  const mine = now.filter((_, i) => panel.lines[i].role === "main");
  const known = mine.filter((x) => !Number.isNaN(x));
  if (mine.length < 2 || !known.length) return formatValue(known[0], panel.unit);
  if (panel.unit === "%" && mine.length <= 4) {
    return `${mine.map((x) => (Number.isNaN(x) ? "?" : formatValue(x, "%").slice(0, -2))).join(" · ")} %`;
  }
  const sum = known.reduce((total, x) => total + x, 0);
  return panel.unit === "%" ? `${formatValue(sum / known.length, "%")} mean of ${known.length}` : `${formatValue(sum, panel.unit)} in ${known.length}`;
}

// ---- canvases, for what is no line of a panel ------------------------------------------------------------------------

/** An empty canvas of a box's size. @param {HTMLCanvasElement} canvas @param {HTMLElement} box */
function penOf(canvas, box) {
  const [ratio, wide, high] = [devicePixelRatio || 1, box.clientWidth, box.clientHeight];
  const [across, down] = [Math.round(wide * ratio), Math.round(high * ratio)];
  if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, wide, high);
  return { pen, plot: Math.max(1, Math.floor(wide - FRAME_LEFT - FRAME_RIGHT)) };
}

/** For names left of a chart. @param {CanvasRenderingContext2D} pen @param {boolean} dark */
function labelled(pen, dark) {
  pen.font = "10px Helvetica, Arial, sans-serif";
  pen.fillStyle = dark ? "#A3AAB1" : "#666D74";
  pen.textAlign = "right";
  pen.textBaseline = "middle";
}

/** @param {CanvasRenderingContext2D} pen @param {HTMLElement} box @param {number} start @param {number} end @param {number} plot its width */
function timesBelow(pen, box, start, end, plot) {
  pen.textAlign = "center";
  pen.textBaseline = "top";
  for (const [at, text] of timeTicks(start, end, mostTicks(box))) {
    pen.fillText(text, FRAME_LEFT + (plot * (at - start)) / (end - start), box.clientHeight - FRAME_BOTTOM + 6);
  }
}

// ---- the cores ------------------------------------------------------------------------------------------------------

/** How busy each core is, a row a core, from 2 to hundreds of them. */
class Heat {
  /** @param {View} view */
  constructor(view) {
    this.view = view;
    this.names = view.record.layout.cores ?? [];
    this.step = Math.max(1, Math.min(16, Math.floor(200 / this.names.length)));
    this.canvas = /** @type {HTMLCanvasElement} */ (make("canvas", "cm-heat"));
    this.value = make("span", "cm-peak");
    const height = this.step * this.names.length + FRAME_TOP + FRAME_BOTTOM;
    this.box = make("div", "cm-fig", { role: "img", style: `height:${height}px` }, this.canvas);
    const name = make("span", "cm-name", {}, make("b", "", {}, "Cores"));
    this.root = make("section", "cm-panel", { "data-panel": "cores" }, make("div", "cm-cap", {}, name, this.value), this.box);
    /** @type {number|null} */
    this.pointed = null;
    this.box.addEventListener("mousemove", (event) => {
      const core = Math.floor((event.clientY - this.box.getBoundingClientRect().top - FRAME_TOP) / this.step);
      this.pointed = core >= 0 && core < this.names.length ? core : null;
    });
    this.box.addEventListener("mouseleave", () => (this.pointed = null));
  }

  async embed() {}

  close() {
    this.root.remove();
  }

  theme() {}

  /** @param {number} start @param {number} end @param {number} until */
  draw(start, end, until) {
    const { canvas, names, step, box } = this;
    const { pen, plot } = penOf(canvas, box);
    const columns = Math.max(1, Math.min(plot, Math.ceil(end - start)));
    const few = new OffscreenCanvas(columns, names.length);
    const brush = /** @type {OffscreenCanvasRenderingContext2D} */ (few.getContext("2d"));
    brush.putImageData(this.#image(start, end, until, columns), 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(few, FRAME_LEFT, FRAME_TOP, plot, step * names.length);
    if (step >= 6) for (let i = 1; i < names.length; i++) pen.clearRect(FRAME_LEFT, FRAME_TOP + i * step, plot, 1);
    this.#labels(pen, start, end, plot);
  }

  /** @param {number} start @param {number} end @param {number} until @param {number} columns */
  #image(start, end, until, columns) {
    const { names, view } = this;
    const heat = view.record.cores.heat(start, end, columns);
    const image = new ImageData(columns, names.length);
    const ink = view.dark ? [86, 180, 233] : [0, 114, 178];
    for (let c = 0; c < columns; c++) {
      if (start + (c * (end - start)) / columns > until) break;
      for (let i = 0; i < names.length; i++) {
        const load = heat[c * names.length + i];
        if (load !== 255) image.data.set([...ink, 14 + (load / 250) * 241], 4 * (i * columns + c));
      }
    }
    return image;
  }

  /** @param {CanvasRenderingContext2D} pen @param {number} start @param {number} end @param {number} plot */
  #labels(pen, start, end, plot) {
    const { names, step } = this;
    labelled(pen, this.view.dark);
    const every = Math.max(1, 2 ** Math.ceil(Math.log2(12 / step)));
    for (let i = 0; i < names.length; i += every) pen.fillText(names[i], FRAME_LEFT - 6, FRAME_TOP + i * step + Math.max(step / 2, 4));
    timesBelow(pen, this.box, start, end, plot);
  }

  /** @param {number} row @param {boolean} overall @returns {Node|null} */
  say(row, overall) {
    const { names, pointed, view } = this;
    const at = view.cursor ?? (row < 0 ? 0 : view.record.samples.parts[0][row]);
    const { cores } = view.record;
    const loads = overall ? undefined : cores.at(at) ?? cores.loads.at(-1);
    const busy = loads?.reduce((count, x) => count + Number(x > 125 && x !== 255), 0);
    const one = pointed === null || !loads ? "" : `${names[pointed]} ${loads[pointed] === 255 ? "unknown" : formatValue(loads[pointed] / 2.5, "%")} · `;
    this.value.textContent = loads ? `${one}${busy} of ${names.length} more than half busy` : "";
    this.box.setAttribute("aria-label", `Load of each of ${names.length} cores over time. ${this.value.textContent}`);
    return null;
  }
}

// ---- what the user's code says --------------------------------------------------------------------------------------

const INKS = [["#A8518A", "#DB8FBE"], ["#0072B2", "#56B4E9"], ["#D55E00", "#F58B45"], ["#008A64", "#2FC597"], ["#A87400", "#E69F00"], ["#8C9196", "#7D848B"]]; // as in charts.py
const SPAN_ROW = 14;
const VALUE_LANE = 36;
const FEW_POINTS = 60; // have a mark each

/** Spans as rows of bars, and below them a lane a value that was logged or a plugin measured, each in its own range. */
class OwnChart {
  /** @param {View} view @param {"own"|"plugins"} key @param {string} title */
  constructor(view, key, title) {
    this.view = view;
    this.own = view.record[key];
    this.title = title;
    this.canvas = /** @type {HTMLCanvasElement} */ (make("canvas", "cm-heat"));
    this.tip = make("span", "cm-tip", { hidden: "" });
    this.lanes = make("div");
    this.others = make("span", "cm-peak");
    this.box = make("div", "cm-fig", { role: "img" }, this.canvas, this.lanes, this.tip);
    const name = make("span", "cm-name", {}, make("b", "", {}, title));
    this.root = make("section", "cm-panel", { "data-panel": key }, make("div", "cm-cap", {}, name, this.others), this.box);
    this.start = 0;
    this.end = 1;
    /** @type {([number, number]|null)[]} */
    this.ranges = [];
    this.box.addEventListener("mousemove", (event) => this.#point(event));
    this.box.addEventListener("mouseleave", () => (this.tip.hidden = true));
  }

  async embed() {}

  close() {
    this.root.remove();
  }

  theme() {}

  /** @param {number} start @param {number} end @param {number} until */
  draw(start, end, until) {
    const { own, box, canvas } = this;
    const { dark } = this.view;
    [this.start, this.end] = [start, end];
    box.style.height = `${FRAME_TOP + SPAN_ROW * own.names.size + VALUE_LANE * own.values.size + FRAME_BOTTOM}px`;
    const { pen, plot } = penOf(canvas, box);
    [...own.names].forEach((name, i) => {
      const y = FRAME_TOP + i * SPAN_ROW;
      this.#label(pen, name, y + SPAN_ROW / 2);
      pen.fillStyle = INKS[i % INKS.length][Number(dark)];
      const shown = Math.min(1, Math.max(0, (until - start) / (end - start))) * plot;
      for (const [left, right] of own.bars(name, start, end, plot)) {
        if (left <= shown) pen.fillRect(FRAME_LEFT + left, y + 3, Math.max(1, Math.min(right, shown) - left), SPAN_ROW - 6);
      }
    });
    this.ranges = [...own.values].map(([name, values], i) => {
      const y = FRAME_TOP + SPAN_ROW * own.names.size + i * VALUE_LANE;
      this.#label(pen, name, y + VALUE_LANE / 2);
      const rows = between(values, 0, 1, start, Math.min(end, until));
      const count = rows.time.findIndex((t) => t > until);
      return this.#line(pen, rows, count < 0 ? rows.time.length : count, y, plot, INKS[(own.names.size + i) % INKS.length][Number(dark)]);
    });
    labelled(pen, dark);
    timesBelow(pen, box, start, end, plot);
    this.#say();
  }

  /** @param {CanvasRenderingContext2D} pen @param {string} name @param {number} y */
  #label(pen, name, y) {
    labelled(pen, this.view.dark);
    let text = name;
    while (text && pen.measureText(text === name ? text : `${text}…`).width > FRAME_LEFT - 8) text = text.slice(0, -1);
    pen.fillText(text === name ? text : `${text}…`, FRAME_LEFT - 6, y);
  }

  /** A lane's line. @param {CanvasRenderingContext2D} pen @param {Rows} rows @param {number} count of them @param {number} y of the lane's top
   * @param {number} plot @param {string} ink @returns {[number, number]|null} the range it is drawn in */
  #line(pen, rows, count, y, plot, ink) {
    const seen = { time: rows.time.subarray(0, count), columns: [rows.columns[0].subarray(0, count)] };
    const few = count > 2 * plot ? thinned(seen, (this.end - this.start) / plot) : seen;
    const [values] = few.columns;
    const range = rangeOf(values);
    if (!range) return null;
    const [low, high] = range;
    const x = (/** @type {number} */ t) => FRAME_LEFT + (plot * (t - this.start)) / (this.end - this.start);
    const place = (/** @type {number} */ v) => y + 5 + (high > low ? (high - v) / (high - low) : 0.5) * (VALUE_LANE - 10);
    pen.save();
    pen.beginPath();
    pen.rect(FRAME_LEFT, y, plot, VALUE_LANE);
    pen.clip();
    [pen.strokeStyle, pen.fillStyle, pen.lineWidth, pen.lineJoin] = [ink, ink, 1.5, "round"];
    pen.beginPath();
    values.forEach((v, i) => Number.isNaN(v) || pen[i && !Number.isNaN(values[i - 1]) ? "lineTo" : "moveTo"](x(few.time[i]), place(v)));
    pen.stroke();
    if (values.length < FEW_POINTS) values.forEach((v, i) => Number.isNaN(v) || pen.fillRect(x(few.time[i]) - 1.5, place(v) - 1.5, 3, 3));
    pen.restore();
    return range;
  }

  /** Each lane's value now, or at the cursor, and its range. */
  #say() {
    const { own, view } = this;
    const at = view.cursor ?? view.paused ?? Infinity;
    while (this.lanes.children.length < own.values.size) this.lanes.append(make("span", "cm-lane"));
    [...own.values].forEach(([name, values], i) => {
      const lane = /** @type {HTMLElement} */ (this.lanes.children[i]);
      const row = values.before(at);
      lane.textContent = row < 0 ? "" : laneText(values.parts[1][row], this.ranges[i] ?? null, own.units[name]);
      const [low, high] = this.ranges[i] ?? [0, 0];
      const above = values.parts[1][values.size - 1] > (low + high) / 2; // so the number keeps clear of the line's end
      lane.style.top = `${FRAME_TOP + SPAN_ROW * own.names.size + i * VALUE_LANE + (above ? VALUE_LANE - 14 : 2)}px`;
    });
    this.others.textContent = own.others ? `${own.others} more in the report` : "";
    const said = [...own.values.keys()].map((name, i) => `${name} ${this.lanes.children[i].textContent}`);
    this.box.setAttribute("aria-label", `${this.title}, over time: ${[...own.names].map((name) => `spans ${name}`).concat(said).join(", ")}`);
  }

  /** @returns {null} */
  say() {
    this.#say();
    return null;
  }

  /** Tells of the span under the pointer, or a lane's whole name. @param {MouseEvent} event */
  #point({ clientX, clientY }) {
    const { own, tip, box } = this;
    const { left, top, width } = box.getBoundingClientRect();
    const [x, y, plot] = [clientX - left, clientY - top - FRAME_TOP, width - FRAME_LEFT - FRAME_RIGHT];
    const second = (this.end - this.start) / plot; // of a pixel
    const name = [...own.names][Math.floor(y / SPAN_ROW)];
    const lane = [...own.values.keys()][Math.floor((y - SPAN_ROW * own.names.size) / VALUE_LANE)];
    const span = name === undefined ? undefined : own.spanAt(name, this.start + (x - FRAME_LEFT) * second, 2 * second);
    const text = x < FRAME_LEFT ? (name ?? lane) : span && spanText(span);
    tip.hidden = !text;
    tip.textContent = text ?? "";
    tip.style.top = `${clientY - top}px`;
    tip.style.left = `${Math.max(0, Math.min(x + 12, width - tip.offsetWidth - 4))}px`;
  }
}

/** A lane's value, and the range the lane is drawn in. @param {number} value @param {[number, number]|null} range
 * @param {string} [unit] one of ours, or what stands behind the number @returns {string} */
export function laneText(value, range, unit = "") {
  const [now, low, high] = [value, ...(range ?? [])].map((x) => (KNOWN.has(unit) ? formatValue(x, unit) : formatOwn(x) + unit));
  return range && range[0] < range[1] ? `${now} · ${low} to ${high}` : now;
}

/** @param {OwnSpan} span @returns {string} */
export function spanText({ name, start, end, count }) {
  return `${name} ${count > 1 ? `${count} in ` : ""}${formatDuration(end - start)}`;
}

// ---- the panel ------------------------------------------------------------------------------------------------------

/** One panel on the page: header, controls, charts. */
class View {
  /**
   * @param {HTMLElement} el @param {Recorded} record @param {() => Promise<any>} bokeh
   * @param {boolean} [apart] begin out of sight, over what `el` holds
   */
  constructor(el, record, bokeh, apart = false) {
    const { layout } = record;
    this.record = record;
    this.bokeh = bokeh;
    this.life = new AbortController();
    /** @type {Map<string, Chart|Heat|OwnChart>} */
    this.charts = new Map();
    /** @type {number|null} */
    this.cursor = null;
    /** @type {[number, number]|null} */
    this.zoom = null;
    /** @type {number|null} the last time shown while the view is paused */
    this.paused = null;
    this.window = kept.read().window;
    this.groups = new Set(firstGroups(layout, kept.read()));
    this.queued = false;
    /** @type {Bands|null} */
    this.bands = null;
    this.seen = false;
    this.dark = false;
    this.opened = performance.now();
    this.heard = performance.now();
    this.state = layout.status ?? "recording";
    this.stateText = make("span", "", { role: "status" });
    this.time = make("span", "cm-time");
    this.sum = make("span", "cm-sum");
    this.picks = make("div", "cm-picks", { role: "group", "aria-label": "Charts shown", id: `${layout.prefix}k${serial++}`, hidden: "" });
    this.grid = make("div", "cm-grid");
    this.note = make("div", "cm-missing");
    this.own = make("div", "cm-own");
    this.unzoom = button("Reset zoom", "Back to the whole window (or double-click a chart)", () => this.zoomTo(null));
    this.pause = button("", "", () => this.#pause());
    this.windows = WINDOWS.map(([seconds, text]) => {
      const about = seconds ? `Show the last ${text}` : "Show the whole cell";
      return { seconds, el: button(text, about, () => this.#look(seconds)) };
    });
    this.more = button("Charts", "Choose the charts", () => this.#unfold(), { "aria-controls": this.picks.id });
    const said = make("div", "cm-said", {},
      make("span", "cm-state", {}, make("i"), this.stateText), make("span", "cm-title", { title: layout.title }, layout.title), this.time);
    const about = { "data-state": this.state, role: "group", "aria-label": `Resource use of ${layout.title}` };
    this.root = make("div", "cellmeter", about, make("style", "", {}, STYLE), make("div", "cm-head", {}, said, this.sum, this.#tools()), this.own, this.picks, this.note, this.grid);
    if (apart) this.root.style.cssText = "position:absolute;inset:0 0 auto 0;visibility:hidden";
    el.append(this.root);
    this.#press();
    this.#follow();
    if (this.live) this.#tick();
    /** Resolves when the charts are there. */
    this.drawn = this.#arrange();
  }

  get live() {
    return this.state === "recording" || this.state === "silent";
  }

  close() {
    this.life.abort(new Error("closed"));
    for (const chart of this.charts.values()) chart.close();
    this.root.remove();
  }

  /** To another place on the page. @param {HTMLElement} el */
  move(el) {
    el.append(this.root);
    requestAnimationFrame(() => this.#theme(true));
  }

  // ---- controls

  #tools() {
    const group = make("span", "cm-window", { role: "group", "aria-label": "Time window" }, ...this.windows.map((x) => x.el));
    return make("div", "cm-tools", { role: "group", "aria-label": "View" }, this.unzoom, this.pause, group, this.more);
  }

  /** @param {string} key @returns {string} why a group has nothing to draw; empty: it has */
  #lack(key) {
    const { layout, cores, own, plugins } = this.record;
    if (key === OWN) return own.empty ? "nothing has been logged" : "";
    if (key === PLUGINS) return plugins.empty ? "no plugin has measured" : "";
    if (key === "cores") return cores.width && (this.live || cores.next) ? "" : "not kept with this cell";
    return layout.panels.some((panel) => groupOf(panel.key) === key) ? "" : (layout.missing[key] ?? "not kept with this cell");
  }

  /** Buttons as things stand. */
  #press() {
    const { pause, windows, unzoom, more } = this;
    const end = this.record.layout.end ?? Infinity;
    pause.hidden = !this.live;
    const name = this.paused === null ? "Pause the view" : "Resume the view";
    pause.title = `${name}; recording goes on`;
    pause.setAttribute("aria-label", name);
    pause.setAttribute("aria-pressed", String(this.paused !== null));
    pause.replaceChildren(icon(this.paused === null ? "M1.5 0h2.5v10H1.5zM6 0h2.5v10H6z" : "M2 0l7 5-7 5z"));
    for (const { seconds, el } of windows) {
      el.hidden = seconds >= end || end <= WINDOWS[0][0];
      el.setAttribute("aria-pressed", String(seconds === this.window));
    }
    unzoom.hidden = this.zoom === null;
    more.setAttribute("aria-expanded", String(!this.picks.hidden));
    const had = /** @type {HTMLElement|null} */ (this.picks.querySelector(":focus"))?.dataset.group;
    this.picks.replaceChildren(...GROUPS.filter(([key]) => ![OWN, PLUGINS].includes(key) || !this.#lack(key)).map(([key, text]) => {
      const lack = this.#lack(key);
      const el = button(text, lack ? `${text}: ${lack}` : `Show or hide ${text}`, () => this.#pick(key),
        { "data-group": key, "aria-pressed": String(this.groups.has(key) && !lack) });
      el.disabled = Boolean(lack);
      return el;
    }));
    if (had) /** @type {HTMLElement|null} */ (this.picks.querySelector(`[data-group=${had}]`))?.focus();
  }

  #unfold() {
    this.picks.hidden = !this.picks.hidden;
    this.#press();
  }

  #pause() {
    this.paused = this.paused === null ? this.record.samples.last : null;
    this.#press();
    this.#text();
    this.#draw();
  }

  /** @param {number} seconds */
  #look(seconds) {
    this.window = seconds;
    kept.write({ window: seconds });
    this.zoomTo(null);
  }

  /** @param {string} key */
  #pick(key) {
    this.groups.has(key) ? this.groups.delete(key) : this.groups.add(key);
    kept.write({ groups: [...this.groups] });
    this.#press();
    void this.#arrange();
  }

  /** @param {[number, number]|null} span */
  zoomTo(span) {
    this.zoom = span;
    this.#press();
    this.#text();
    this.#draw();
  }

  // ---- charts

  /** Has the chosen charts there, in their order, and no others. */
  async #arrange() {
    const { layout } = this.record;
    /** @type {[string, () => Chart|Heat|OwnChart][]} */
    const wanted = [];
    let first = 0;
    for (const panel of layout.panels) {
      const at = first;
      first += panel.lines.length;
      if (this.groups.has(groupOf(panel.key))) wanted.push([panel.key, () => new Chart(this, panel, at)]);
      if (panel.key === "cpu" && this.groups.has("cores") && !this.#lack("cores")) wanted.push(["cores", () => new Heat(this)]);
    }
    if (this.groups.has(PLUGINS) && !this.#lack(PLUGINS)) wanted.push([PLUGINS, () => new OwnChart(this, PLUGINS, "Plugins")]);
    if (this.groups.has(OWN) && !this.#lack(OWN)) wanted.push([OWN, () => new OwnChart(this, OWN, "Your code")]);
    for (const [key, chart] of this.charts) {
      if (wanted.some(([other]) => other === key)) continue;
      chart.close();
      this.charts.delete(key);
    }
    const fresh = wanted.filter(([key]) => !this.charts.has(key)).map(([key, build]) => {
      const chart = build();
      this.charts.set(key, chart);
      this.#point(chart.box);
      return chart;
    });
    this.charts = new Map(wanted.map(([key]) => [key, /** @type {Chart|Heat|OwnChart} */ (this.charts.get(key))]));
    [...this.charts.values()].forEach((chart, i) => this.grid.children[i] === chart.root || this.grid.insertBefore(chart.root, this.grid.children[i] ?? null));
    this.grid.dataset.count = String([...this.charts.keys()].filter((key) => !["cores", OWN, PLUGINS].includes(key)).length);
    const lacking = Object.entries(layout.missing).filter(([key]) => this.groups.has(key) && (layout.asked || !this.charts.size));
    this.note.textContent = lacking.length ? lacking.map(([key, why]) => `${new Map(GROUPS).get(key)}: ${why}`).join(" · ") : this.charts.size ? "" : "No chart is chosen";
    this.note.hidden = !this.note.textContent;
    this.#text();
    await this.#embed(fresh);
  }

  /** @param {(Chart|Heat|OwnChart)[]} charts */
  async #embed(charts) {
    const { signal } = this.life;
    try {
      const Bokeh = charts.some((chart) => chart instanceof Chart) ? await this.bokeh() : null;
      await onScreen(this.root, signal);
      this.#theme(true);
      const there = charts.filter((chart) => chart.root.isConnected);
      await Promise.all(there.map((chart) => chart.embed(Bokeh, () => this.#dress(chart))));
      if (signal.aborted) return;
      this.#draw();
      this.root.dataset.drawn ??= String(Math.round(performance.now() - this.opened));
    } catch (error) {
      if (!signal.aborted) this.grid.replaceChildren(`Charts cannot be drawn here: ${/** @type {any} */ (error)?.message ?? error}`);
    }
  }

  #follow() {
    const { signal } = this.life;
    const again = () => requestAnimationFrame(() => this.#theme());
    const watch = new MutationObserver(again);
    watch.observe(document.body, { attributes: true });
    watch.observe(document.documentElement, { attributes: true });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again, { signal });
    const resized = new ResizeObserver(() => this.#draw());
    resized.observe(this.root);
    const scrolled = new IntersectionObserver((entries) => {
      this.seen = entries[entries.length - 1].isIntersecting;
      if (this.seen) this.#draw();
    });
    scrolled.observe(this.root);
    signal.addEventListener("abort", () => [watch, resized, scrolled].forEach((one) => one.disconnect()));
  }

  /** @param {boolean} [anew] */
  #theme(anew = false) {
    if (!this.root.isConnected) return;
    const ground = groundOf(this.root);
    const dark = isDark(ground);
    if (!anew && this.root.dataset.theme === String(dark)) return;
    this.root.dataset.theme = String(dark);
    this.root.style.setProperty("--cm-ground", ground);
    this.dark = dark;
    for (const chart of this.charts.values()) chart.theme(dark);
    this.#draw();
  }

  /** @returns {[number, number]} */
  #span() {
    return this.zoom ?? timeSpan(this.paused ?? this.record.samples.last, this.record.layout.end, this.window);
  }

  /** @param {Chart|Heat|OwnChart} chart */
  #dress(chart) {
    chart.theme(this.dark);
    chart.draw(...this.#span(), this.paused ?? Infinity);
  }

  #draw() {
    if (!this.root.isConnected || !this.seen) return;
    const [start, end] = this.#span();
    for (const chart of this.charts.values()) chart.draw(start, end, this.paused ?? Infinity);
    this.bands?.place([...this.charts.values()].map((chart) => chart.box), start, end);
    this.root.dataset.points = String(this.record.samples.next);
    this.root.dataset.span = `${start} ${end}`;
  }

  // ---- news

  /** @param {Band[]} cells of the run @param {(a: HTMLElement, id: string) => boolean} lead */
  band(cells, lead) {
    this.bands ??= new Bands(lead);
    this.bands.take(cells);
    this.#draw();
  }

  /** New readings are there. */
  update() {
    this.heard = performance.now();
    if (this.state === "silent") this.state = "recording";
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      if (this.life.signal.aborted) return;
      this.#text();
      if (this.paused === null) this.#draw();
    });
  }

  /** What a line stands for may have changed. */
  learnt() {
    this.#theme(true);
    this.#text();
  }

  /** The code has said something for the first time. */
  speak() {
    this.#press();
    void this.#arrange();
  }

  /** @param {string} state */
  become(state) {
    this.state = state;
    this.update();
    this.#text();
  }

  /** The cell has ended: how, and what it took, stands in the layout. */
  finish() {
    this.#theme(true);
    this.state = this.record.layout.status ?? this.state;
    this.paused = null;
    if (this.window >= (this.record.layout.end ?? Infinity)) this.window = 0;
    this.#press();
    this.#text();
    this.#draw();
  }

  #tick() {
    const timer = setInterval(() => {
      if (this.life.signal.aborted || !this.live) return clearInterval(timer);
      if (performance.now() - this.heard > SILENT_MS) this.state = "silent";
      this.#text();
    }, 1000);
  }

  /** Header and captions: what is now, or at the cursor. */
  #text() {
    const { samples, layout } = this.record;
    const since = this.live && samples.size ? (performance.now() - this.heard) / 1000 : 0;
    this.root.dataset.state = this.state;
    const said = STATES[this.state] ?? (layout.word ? layout.word[0].toUpperCase() + layout.word.slice(1) : this.state);
    const state = this.paused === null ? said : `${said}, view paused`;
    if (this.stateText.textContent !== state) this.stateText.textContent = state;
    this.time.textContent = formatDuration(layout.end ?? samples.last + (since > 0.9 ? since : 0));
    const at = this.cursor ?? this.paused;
    const row = at === null ? samples.size - 1 : samples.before(at);
    const chips = [...this.charts.values()].map((chart) => chart.say(row, !this.live && this.cursor === null));
    if (layout.notes) this.sum.replaceChildren(...layout.notes.map((note) => make("span", "", {}, note)));
    else if (samples.size) this.sum.replaceChildren(.../** @type {Node[]} */ (chips.filter(Boolean)));
  }

  /** The pointer over one chart is a cursor in all. @param {HTMLElement} box */
  #point(box) {
    box.addEventListener("mousemove", (event) => {
      const { left, width } = box.getBoundingClientRect();
      const plot = width - FRAME_LEFT - FRAME_RIGHT;
      const share = (event.clientX - left - FRAME_LEFT) / plot;
      if (share < 0 || share > 1) return this.#unpoint();
      const [start, end] = this.#span();
      this.cursor = Math.min(start + share * (end - start), this.paused ?? this.record.samples.last);
      const at = FRAME_LEFT + ((this.cursor - start) / (end - start)) * plot;
      for (const chart of this.charts.values()) {
        const mark = chart.box.querySelector(".cm-cursor") ?? chart.box.appendChild(make("div", "cm-cursor"));
        /** @type {HTMLElement} */ (mark).style.left = `${at}px`;
        if (chart.box === box) mark.setAttribute("data-at", formatDuration(this.cursor));
        else mark.removeAttribute("data-at");
      }
      this.#text();
    });
    box.addEventListener("mouseleave", () => this.#unpoint());
    box.addEventListener("dblclick", () => this.zoomTo(null));
  }

  #unpoint() {
    this.cursor = null;
    for (const { box } of this.charts.values()) box.querySelector(".cm-cursor")?.remove();
    this.#text();
  }
}

// ---- doors ----------------------------------------------------------------------------------------------------------

/** Readings of cells by their panel's name, so that what stays shows all that was live. @type {Map<string, Recorded>} */
const records = new Map();
/** Charts that are on the page, by their panel's name: the static output takes them over. @type {Map<string, Set<View>>} */
const lives = new Map();
/** Charts in static outputs, by their panel's name: they go when their cell runs again. @type {Map<string, Set<View>>} */
const placed = new Map();

/** @param {string} name @param {View} view */
function place(name, view) {
  placed.set(name, (placed.get(name) ?? new Set()).add(view));
}

/** Forgets a panel whose cell runs again: its output is cleared, but observers and Bokeh would keep it. @param {string} name */
function retire(name) {
  for (const view of placed.get(name) ?? []) view.close();
  placed.delete(name);
  records.delete(name);
}

/** @param {any} buffer @returns {Uint8Array<ArrayBuffer>} */
function octets(buffer) {
  const bytes = ArrayBuffer.isView(buffer) ? new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength) : new Uint8Array(buffer);
  return new Uint8Array(bytes); // a copy: it begins where a float64 may begin
}

/** @param {any} buffer @returns {Float64Array} */
const floats = (buffer) => new Float64Array(octets(buffer).buffer);

// ---- when the kernel cannot speak -----------------------------------------------------------------------------------

const ASK_AFTER_MS = 550; // the kernel speaks every 250
const ASK_AFTER_OF_RUN_MS = 1600; // between cells there is a reading a second
const ASK_EVERY_MS = 250;
const MOST_FAILURES = 6;
const MOST_REFUSALS = 2;
/** How often the server has said that it does not know a run. @type {Map<string, number>} */
const refusals = new Map();

/** @typedef {{rows: string, width: number, s: number|null, n: number, ending: Told|null, cells?: Band[]}} Tail see server.py */
/** @typedef {{status: string, seconds: number, says: string}} Told how the cell ended */

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
 * Asks the server for the rows of a cell, or of a run, whenever the kernel has been silent for a moment, until it has ended.
 * @param {Recorded} record @param {() => boolean} watched @param {(ending: Told|null, cells: Band[]) => void} told
 * @returns {() => void} to be called whenever the kernel has spoken, and when somebody begins to watch
 */
function standIn({ layout, samples }, watched, told) {
  const server = jupyterServer();
  const run = layout.tail?.match(/^runs\/[^/]+/)?.[0] ?? "";
  const after = layout.tail?.includes("/cells/") ? ASK_AFTER_MS : ASK_AFTER_OF_RUN_MS;
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
    arm(Math.max(wait, heard + after - performance.now()));
  }
  /** How long to wait with the next question, in milliseconds. */
  async function ask() {
    const before = Math.max(samples.next, passed);
    const wanted = { headers: server?.headers, signal: AbortSignal.timeout(5000) };
    const reply = await fetch(`${server?.url}${layout.tail}?from=${before}`, wanted).catch(() => null);
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
    if (!layout.status && (tail.ending || samples.next > before)) told(tail.ending, tail.cells ?? []);
    return ASK_EVERY_MS;
  }
  return () => {
    heard = performance.now();
    arm(after);
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
  /** @type {Recorded|null} */
  let record = null;
  let asked = 0;
  let spoken = () => {};
  /** @type {Map<number, Band>} */
  const cells = new Map();
  const lead = (/** @type {HTMLElement} */ a, /** @type {string} */ id) => leadToCell(model, a, id);
  let own = "";
  /** @type {Set<View>} */
  const views = new Set();
  const band = (/** @type {Band[]} */ news) => {
    for (const cell of news) cells.set(cell.seq, cell);
    if (news.length) for (const view of views) view.band(news, lead);
  };
  const isBeside = (/** @type {Element} */ el) => Boolean(el.closest(".jupyterlab-sidecar"));
  /** @type {(record: Recorded) => void} */
  let ready = () => {};
  const opened = /** @type {Promise<Recorded>} */ (new Promise((resolve) => (ready = resolve)));
  const need = () => {
    if (performance.now() - asked < 1000) return;
    asked = performance.now();
    model.send({ k: "need", s: record?.samples.next ?? 0 });
  };
  const said = (/** @type {Own} */ own, /** @type {any} */ { s, marks, others, anew, units = {} }) => {
    const before = own.empty;
    if (!own.put(s, marks, anew)) return false;
    Object.assign(own, { others, units });
    if (before && !own.empty) for (const view of views) view.speak();
  };
  /** @type {Record<string, (record: Recorded, message: any, buffers: any[]) => boolean|void>} */
  const takes = {
    d: ({ samples }, { s }, [rows]) => samples.put(s, floats(rows)),
    c: ({ cores }, { s }, [times, loads]) => cores.put(s, floats(times), octets(loads)),
    h: ({ samples, cores }, { n, c }, [rows, times, loads]) => {
      if (n >= samples.next) samples.reset(n, floats(rows));
      if (times && c >= cores.next) cores.reset(c, floats(times), octets(loads));
    },
    cells: (_, message) => band(message.cells),
    said: (_, { text }) => {
      own = text;
      for (const view of views) view.own.textContent = own;
    },
    own: ({ own }, message) => said(own, message),
    plugins: ({ plugins }, message) => said(plugins, message),
    panels: ({ layout }, { panels }) => {
      learn(layout, panels);
      for (const view of views) view.learnt();
    },
    end: ({ layout }, { ending, panels }) => {
      learn(layout, panels);
      Object.assign(layout, ending);
      for (const view of views) view.finish();
    },
  };
  const told = (/** @type {Told|null} */ ending, /** @type {Band[]} */ news) => {
    band(news);
    if (record && ending) Object.assign(record.layout, { status: ending.status, word: ending.says, end: ending.seconds });
    for (const view of views) ending ? view.finish() : view.update();
  };
  const hear = (/** @type {any} */ message, /** @type {any[]} */ buffers) => {
    if (message.k === "open") {
      if (record) return;
      if (message.layout.instead) retire(message.layout.instead);
      record = recorded(message.layout);
      ready(record);
      spoken = standIn(record, () => views.size > 0, told);
    } else if (!record || takes[message.k]?.(record, message, buffers) === false) {
      need();
    }
    spoken();
    for (const view of views) view.update();
  };
  for (const [message, buffers] of early) hear(message, buffers);
  model.on("msg:custom", hear);
  if (!record) setTimeout(() => record || need(), early.length ? 0 : 400);
  return {
    /** @param {HTMLElement} el @param {AbortSignal} signal */
    async show(el, signal) {
      const record = await opened;
      if (record.layout.beside) {
        await onScreen(el, signal);
        if (!isBeside(el) && (await within(BESIDE_MS, () => [...views].some((view) => isBeside(view.root))))) {
          return el.append("The whole run is shown beside the notebook");
        }
      }
      const view = new View(el, record, () => bokeh());
      view.own.textContent = own;
      if (cells.size) view.band([...cells.values()], lead);
      const alike = lives.get(view.record.layout.prefix) ?? new Set();
      lives.set(view.record.layout.prefix, alike.add(view));
      views.add(view);
      spoken();
      // once, when the kernel's end or restart takes the comm away
      const gone = () => view.live && view.become("gone");
      model.on("comm_live_update", gone);
      view.life.signal.addEventListener("abort", () => {
        views.delete(view);
        model.off("comm_live_update", gone); // the model lives on in the page
      });
      // gone with its widget, unless the static output that comes in the widget's place takes it over
      const end = () => setTimeout(() => alike.delete(view) && view.close(), ADOPT_MS);
      signal.aborted ? end() : signal.addEventListener("abort", end);
    },
  };
}

/** @param {Layout} layout @returns {Recorded} the page's readings of a cell, those it has already if it has any */
function recorded(layout) {
  const known = records.get(layout.prefix);
  if (known) return known;
  const width = layout.panels.reduce((sum, panel) => sum + panel.lines.length, 0);
  const record = { layout, samples: new Samples(width), cores: new Cores(layout.cores?.length ?? 0), own: new Own(), plugins: new Own() };
  records.set(layout.prefix, record);
  const ended = [...records].filter(([, one]) => one.layout.status);
  for (const [name] of ended.slice(0, Math.max(0, ended.length - MOST_ENDED))) records.delete(name);
  return record;
}

/**
 * Puts the living chart where a cell's picture stands: the one that was there while the cell ran, else one of the readings
 * kept in the output. Called with every `[script, base64, name]` that outputs have queued.
 * @param {[HTMLElement, string, string?]} entry
 */
async function upgrade([script, packed, name = ""]) {
  const box = script.closest(".cellmeter-still");
  if (!box || box instanceof HTMLElement === false || box.dataset.upgraded) return;
  box.dataset.upgraded = "waiting";
  const still = /** @type {HTMLElement[]} */ ([...box.children]);
  const hide = () => still.forEach((child) => (child.style.display = "none"));
  const alike = lives.get(name);
  const [live] = alike ?? [];
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  if (live) {
    alike?.delete(live);
    hide(); // before anything is painted
    live.move(box);
    const { layout } = unpack(await gunzip(bytes));
    const { status, word, end, notes } = layout;
    learn(live.record.layout, layout.panels);
    Object.assign(live.record.layout, { status, word, end, notes });
    live.record.samples.shrink(MOST_ROWS_ENDED);
    live.record.own.shrink();
    live.record.plugins.shrink();
    live.finish();
    place(name, live);
    box.dataset.upgraded = "done";
    return;
  }
  await onScreen(box, new AbortController().signal);
  const { layout, rows } = unpack(await gunzip(bytes));
  await bokeh();
  let record = records.get(name);
  if (!record?.layout.status) {
    const flat = new Float64Array(rows.time.length * (rows.columns.length + 1));
    [rows.time, ...rows.columns].forEach((column, c) => flat.set(column, c * rows.time.length));
    record = { layout: { ...layout, prefix: `cm${Math.random().toString(36).slice(2, 10)}` }, samples: new Samples(rows.columns.length), cores: new Cores(0), own: new Own(), plugins: new Own() };
    record.samples.reset(rows.time.length, flat);
  }
  box.style.position = "relative";
  const view = new View(box, record, bokeh, true);
  place(name, view);
  await view.drawn;
  hide();
  view.root.style.cssText = "";
  view.finish();
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
  const take = (/** @type {[HTMLElement, string, string?]} */ entry) => void upgrade(entry).catch((error) => console.warn("cellmeter:", error));
  page[key] = { push: take };
  if (Array.isArray(queue)) queue.forEach(take);
}

export default { install, open };
