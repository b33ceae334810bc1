// The pure functions of live.js; format_cases.json holds them to the answers of charts.py and words.py.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import page, * as live from "./live.js";

const cases = JSON.parse(readFileSync(new URL("format_cases.json", import.meta.url), "utf8"));

test("formats as words.py does", () => {
  for (const [value, unit, text] of cases.value) assert.equal(live.formatValue(value, unit), text);
  for (const [seconds, text] of cases.duration) assert.equal(live.formatDuration(seconds), text);
  for (const [peak, unit, limit, text] of cases.peak) assert.equal(live.formatPeak(peak, { unit, limit }), text);
  for (const [value, text] of cases.own) assert.equal(live.formatOwn(value), text);
  for (const [value, unit, text] of cases.label) assert.equal(live.axisLabel(value, unit), text);
});

test("scales as charts.py does", () => {
  for (const [top, unit, ticks] of cases.ticks) assert.deepEqual(live.valueTicks(top, unit), ticks);
  for (const [start, end, labels] of cases.time) {
    assert.deepEqual(live.timeTicks(start, end).map(([, label]) => label), labels);
  }
  for (const [{ roles, ...panel }, peaks, top] of cases.top) {
    const lines = roles.map((role) => ({ role }));
    assert.ok(Math.abs(live.scaleTop({ ...panel, lines }, peaks) / top - 1) < 1e-9);
  }
});

test("a growing axis stands still most of the time", () => {
  assert.deepEqual([0, 9.9, 10.1, 61, 4000].map(live.spanFor), [10, 10, 15, 90, 5400]);
});

/** Rows as the kernel sends them: column after column, the time first. */
const flat = (start, ...columns) => Float64Array.from([...columns[0].map((_, i) => start + i), ...columns.flat()]);
const shown = (samples) => samples.rows().columns.map((column) => [...column]);

test("rows that come twice are taken once", () => {
  const samples = new live.Samples(2);
  assert.ok(samples.put(0, flat(0, [1, 2], [10, 20])));
  assert.ok(samples.put(1, flat(1, [2, 3], [20, 30])));
  assert.ok(samples.put(0, flat(0, [1], [10])));
  assert.deepEqual(shown(samples), [[1, 2, 3], [10, 20, 30]]);
  assert.deepEqual(samples.peaks, [3, 30]);
});

test("missing rows are noticed, and a history makes up for them", () => {
  const samples = new live.Samples(1);
  assert.ok(samples.put(0, flat(0, [1])));
  assert.equal(samples.put(5, flat(5, [6])), false);
  samples.reset(6, flat(0, [1, 2, 3, 4, 5, 6]));
  assert.ok(samples.put(6, flat(6, [7])));
  assert.deepEqual(shown(samples), [[1, 2, 3, 4, 5, 6, 7]]);
});

test("memory is bounded, and no spike is lost", () => {
  const samples = new live.Samples(1, 1000);
  for (let i = 0; i < 20000; i += 10) {
    samples.put(i, flat(i, Array.from({ length: 10 }, (_, j) => (i + j === 777 ? 99 : 1))));
  }
  assert.ok(samples.size <= 1000);
  assert.equal(samples.next, 20000);
  assert.equal(Math.max(...samples.rows().columns[0]), 99);
  const times = [...samples.rows().time];
  assert.deepEqual(times, times.toSorted((a, b) => a - b));
});

test("the row at a time", () => {
  const samples = new live.Samples(1);
  samples.put(0, flat(0, [1, 2, 3]));
  assert.deepEqual([-0.5, 0, 1.5, 99].map((at) => samples.before(at)), [-1, 0, 1, 2]);
});

test("thinning keeps extremes in their order, gaps, and what is sparse; doing it again changes nothing", () => {
  const column = Float64Array.from({ length: 1000 }, (_, i) => (i === 501 ? 100 : i === 507 ? -100 : i >= 600 && i < 700 ? NaN : 1));
  const rows = { time: Float64Array.from(column, (_, i) => (i < 990 ? i : i * 1000)), columns: [column] };
  const few = live.thinned(rows, 20);
  assert.equal(few.time.length, 100 + 10);
  const [up, down] = [few.columns[0].indexOf(100), few.columns[0].indexOf(-100)];
  assert.equal(down, up + 1);
  assert.equal(few.columns[0].filter(Number.isNaN).length, 10);
  assert.deepEqual([few.time[0], few.time[1], few.time[109]], [0, 19, 999000]);
  assert.deepEqual(live.thinned(few, 20), few);
});

test("lanes are stacked from the top, and a gap falls to the lane's ground", () => {
  const lines = [{ top: 100 }, { top: 100 }];
  const rows = { time: Float64Array.of(0, 1), columns: [Float64Array.of(100, NaN), Float64Array.of(0, 50)] };
  const drawn = live.drawn({ lanes: true, lines }, rows, [100, 50]);
  const rounded = (column) => Array.from(column, (x) => Math.round(x * 1e6) / 1e6);
  assert.deepEqual(rounded(drawn.t), [0, 1]);
  assert.deepEqual(rounded(drawn.c0), [1.84, NaN]);
  assert.deepEqual(rounded(drawn.c0a), [1.84, 1]);
  assert.deepEqual(rounded(drawn.c1), [0, 0.42]);
});

test("bands are cut to the time shown, and those too narrow to see are left out", () => {
  const cell = (seq, start, end) => ({ seq, start, end });
  const cells = [cell(1, -5, 2), cell(2, 3, 3.001), cell(3, 4, null), cell(4, 20, 30)];
  const found = live.bandsWithin(cells, 0, 10, 100).map((band) => [band.cell.seq, band.left, band.width]);
  assert.deepEqual(found, [[1, 0, 20], [3, 40, 60]]);
});

test("a window of rows begins and ends beyond it, and has the peaks of its own", () => {
  const samples = new live.Samples(2);
  samples.put(0, flat(0, [9, 1, 2, NaN, 4], [1, 1, 1, 1, 1]));
  const rows = live.between(samples, 0, 1, 1.5, 3);
  assert.deepEqual([...rows.time], [1, 2, 3, 4]);
  assert.deepEqual(rows.columns.map((x) => [...x]), [[1, 2, NaN, 4]]);
  assert.deepEqual(live.peaksOf(rows.columns), [4]);
  assert.equal(samples.last, 4);
});

test("a cell that has ended takes less room, and keeps its spike", () => {
  const samples = new live.Samples(1);
  samples.put(0, flat(0, Array.from({ length: 9000 }, (_, i) => (i === 777 ? 99 : 1))));
  samples.shrink(1000);
  assert.ok(samples.size <= 1000 && samples.parts[0].length <= 1000);
  assert.equal(Math.max(...samples.rows().columns[0]), 99);
  assert.ok(samples.put(9000, flat(9000, [2])), "and takes its last rows");
});

test("a day of samples at 10 Hz with 8 GPUs is bounded, in rows and in time", () => {
  const [width, rows, batch] = [33, 864000, 1000];
  const samples = new live.Samples(width);
  const spike = 123_456;
  for (let at = 0; at < rows; at += batch) {
    const message = new Float64Array((width + 1) * batch);
    for (let i = 0; i < batch; i++) message[i] = (at + i) / 10;
    for (let i = batch; i < message.length; i++) message[i] = (i * 7919) % 97;
    if (at <= spike && spike < at + batch) message[batch + spike - at] = 1e6;
    assert.ok(samples.put(at, message));
  }
  assert.equal(samples.next, rows);
  assert.ok(samples.size <= 24000 && samples.parts[0].length <= 48000);
  const all = live.thinned(live.between(samples, 0, 1, 0, 86400), 108);
  assert.ok(all.time.length > 1500 && all.time.length <= 1602);
  const at = all.columns[0].indexOf(1e6);
  assert.ok(Math.abs(all.time[at] - spike / 10) < 130, "the spike stands where it was, to two pixels");
  const early = live.between(samples, 0, 1, 0, 3600).time.length;
  assert.ok(early > 150, "the first hour has its share");
  const late = live.between(samples, 0, 1, 86370, 86400);
  assert.ok(late.time.length >= 300, "the last half minute is there in full");
});

test("the time axis: all of it in steps, or a window that moves", () => {
  assert.deepEqual(live.timeSpan(12, undefined, 0), [0, 15]);
  assert.deepEqual(live.timeSpan(12, undefined, 30), [0, 30]);
  assert.deepEqual(live.timeSpan(100, undefined, 30), [70, 100]);
  assert.deepEqual(live.timeSpan(99.9, 100, 0), [0, 100]);
  assert.deepEqual(live.timeSpan(99.9, 100, 30), [70, 100]);
});

test("loads of cores: gaps are noticed, merging is bounded and keeps the mean", () => {
  const cores = new live.Cores(2, 8);
  assert.equal(cores.put(3, Float64Array.of(4), Uint8Array.of(1, 1)), false);
  for (let i = 0; i < 100; i++) assert.ok(cores.put(i, Float64Array.of(i + 1), Uint8Array.of(i % 2 ? 200 : 100, 255)));
  assert.ok(cores.times.length <= 8);
  assert.equal(cores.next, 100);
  assert.deepEqual(cores.times, cores.times.toSorted((a, b) => a - b));
  assert.deepEqual([...cores.heat(0, 40, 1)], [150, 255]);
  assert.deepEqual([...cores.at(100)], [200, 255]);
});

test("a heat map's columns are means, and what is not known is not drawn", () => {
  const cores = new live.Cores(1);
  cores.put(0, Float64Array.of(1, 2, 3, 4), Uint8Array.of(0, 100, 255, 250));
  assert.deepEqual([...cores.heat(0, 4, 4)], [0, 100, 255, 250]);
  assert.deepEqual([...cores.heat(0, 4, 2)], [50, 250]);
  assert.deepEqual([...cores.heat(0, 8, 4)], [50, 250, 255, 255]);
});

test("what somebody else has left in the page's storage is no choice", () => {
  const first = { groups: null, window: 0 };
  for (const text of [null, "", "{", "7", "null", '{"groups": 3, "window": "x"}']) assert.deepEqual(live.readChoice(text), first);
  const kept = live.readChoice('{"groups": ["io", "nonsense", "cpu"], "window": 30}');
  assert.deepEqual(kept, { groups: ["cpu", "io"], window: 30 });
  const layout = { shown: ["cpu", "memory", "gpu"], asked: false };
  assert.deepEqual(live.firstGroups(layout, first), [...layout.shown, "own"]);
  assert.deepEqual(live.firstGroups(layout, kept), ["cpu", "io"]);
  assert.deepEqual(live.firstGroups({ ...layout, asked: true }, kept), [...layout.shown, "own"]);
  assert.deepEqual(live.firstGroups({ ...layout, status: "ok" }, kept), [...layout.shown, "own"]);
});

const memory = {
  key: "memory", unit: "By", limit: null, lanes: false, title: "Memory", height: 112,
  lines: [{ role: "main" }, { role: "second" }, { role: "faint" }].map((line) => ({ ...line, label: line.role, ink: ["#000", "#fff"], top: null })),
};

test("a legend names no line that is off the scale or says the same as another", () => {
  const said = (peaks, top) => memory.lines.map((line, i) => live.worthSaying(memory, line, peaks[i], peaks, top));
  assert.deepEqual(said([100, 100, 150], 160), [true, false, true]);
  assert.deepEqual(said([100, 90, 500], 160), [true, true, false]);
});

test("a header says each of a few devices, and the mean of many", () => {
  const gpus = (count) => ({ unit: "%", lines: Array.from({ length: count }, () => ({ role: "main" })) });
  assert.equal(live.chipText(gpus(1), [34.4]), "34 %");
  assert.equal(live.chipText(gpus(2), [34.4, NaN]), "34 · ? %");
  assert.equal(live.chipText(gpus(8), [0, 0, 0, 0, 100, 100, 100, 100]), "50 % mean of 8");
  assert.equal(live.chipText(gpus(2), [NaN, NaN]), "unknown");
  const others = (...roles) => ({ unit: "%", lines: roles.map((role) => ({ role })) });
  assert.equal(live.chipText(others("other", "main", "other"), [97, 34.4, 88]), "34 %");
  assert.equal(live.chipText(others("other", "other"), [97, 88]), "not used");
});

test("a document for Bokeh spells out every model once", () => {
  const doc = live.documentOf(memory, "x", "3.9.2");
  const text = JSON.stringify(doc);
  const defined = [...text.matchAll(/"name":"[A-Za-z0-9]+","id":"(x-\d+)"/g)].map(([, id]) => id);
  const met = new Set();
  JSON.parse(text, (_, value) => {
    if (value?.id) met.add(value.id);
    return value;
  });
  assert.equal(new Set(defined).size, defined.length);
  assert.deepEqual(new Set(defined), met);
  assert.equal(doc.roots.length, 1);
});

test("the picture's data come back", () => {
  const json = new TextEncoder().encode(JSON.stringify({ bounds: [[0, 10], [5, 6]], title: "é" }));
  const words = [0, 65535, 511, 1023].map((x, i, all) => (x - (i % 2 ? all[i - 1] : 0)) & 65535);
  const bytes = new Uint8Array(4 + json.length + 8);
  new DataView(bytes.buffer).setUint32(0, json.length, true);
  bytes.set(json, 4);
  bytes.set([...words.map((x) => x & 255), ...words.map((x) => x >> 8)], 4 + json.length);
  const { layout, rows } = live.unpack(bytes.buffer);
  assert.deepEqual(layout, { title: "é" });
  assert.deepEqual([[...rows.time], [...rows.columns[0]]], [[0, 10], [5.5, NaN]]);
});

test("the page's code has its two doors, and no export named render", () => {
  assert.deepEqual(Object.keys(page), ["install", "open"]);
  assert.ok(!("render" in live));
});

test("a server's reply is taken in once, and only in the panel's own layout", () => {
  const samples = new live.Samples(1);
  const rows = (...numbers) => Buffer.from(new Float64Array(numbers).buffer).toString("base64");
  assert.equal(live.takeTail(samples, { rows: rows(0, 1, 5, 6), width: 2, s: 0, n: 2 }), true);
  assert.equal(live.takeTail(samples, { rows: rows(1, 2, 6, 7), width: 2, s: 1, n: 3 }), true);
  assert.deepEqual([...samples.rows().columns[0]], [5, 6, 7]);
  assert.equal(live.takeTail(samples, { rows: rows(0, 9), width: 2, s: null, n: 2 }), true, "older than what is there");
  assert.equal(samples.next, 3);
  assert.equal(live.takeTail(samples, { rows: rows(0, 9), width: 2, s: null, n: 4 }), true);
  assert.deepEqual([...samples.rows().columns[0]], [9]);
  assert.equal(live.takeTail(samples, { rows: rows(1, 2, 3), width: 3, s: 4, n: 5 }), false);
  assert.equal(samples.next, 4);
});

test("own numbers and latencies are told as the report tells them", () => {
  assert.equal(live.formatOwn(NaN), "not finite");
  assert.equal(live.laneText(0.5, [0.1, 2]), "0.5 · 0.1 to 2");
  assert.equal(live.laneText(0.5, [0.5, 0.5]), "0.5");
  assert.equal(live.laneText(NaN, null), "not finite");
  assert.equal(live.laneText(41.2, [38, 44.5], "Cel"), "41 °C · 38 °C to 45 °C");
  assert.equal(live.laneText(2 ** 30, null, "By"), "1.00 GiB");
  assert.equal(live.laneText(5997.4, [1, 6000], "/s"), "5,997/s · 1/s to 6,000/s");
  assert.equal(live.spanText({ name: "infer", start: 1, end: 1.25, count: 1 }), "infer 250 ms");
  assert.equal(live.spanText({ name: "infer", start: 1, end: 3, count: 400 }), "infer 400 in 2.00 s");
});

test("what the code says is taken once, and what is missing is noticed", () => {
  const own = new live.Own();
  assert.ok(own.empty);
  assert.ok(own.put(0, [["loss", 1, 0.5], ["infer", 1, 2, 1]], false));
  assert.ok(own.put(1, [["infer", 1, 2, 1], ["loss", 3, "nan"], ["loss", 4, "-inf"]], false));
  assert.equal(own.next, 4);
  assert.ok(!own.empty);
  assert.deepEqual([...own.values.get("loss").rows().time], [1, 3, 4]);
  const values = own.values.get("loss").rows().columns[0];
  assert.deepEqual(live.rangeOf(values.slice(0, 2)), [0.5, 0.5]);
  assert.equal(live.rangeOf(values.slice(1, 2)), null);
  assert.deepEqual(own.spans, [{ name: "infer", start: 1, end: 2, count: 1 }]);
  assert.equal(own.put(9, [["loss", 5, 1]], false), false);
  assert.ok(own.put(9, [["loss", 5, 1]], true));
  assert.equal(own.next, 10);
});

test("what the code says is bounded in the page, and no spike of a value is lost", () => {
  const own = new live.Own();
  for (let i = 0; i < 20000; i++) own.put(2 * i, [["x", i, i === 777 ? 99 : 1], ["s", i, i + 0.5, 1]], false);
  assert.ok(own.values.get("x").size <= 2000);
  assert.deepEqual(live.rangeOf(own.values.get("x").rows().columns[0]), [1, 99]);
  assert.ok(own.spans.length <= 4000);
  assert.equal(own.spans.at(-1).end, 19999.5);
  own.shrink();
  assert.ok(own.values.get("x").size <= 600 && own.spans.length <= 2000);
});

test("spans that touch are one bar, and the pointer finds the newest of them", () => {
  const own = new live.Own();
  own.put(0, [["a", 0, 1, 1], ["b", 4, 6, 1], ["a", 5, 5.01, 9], ["a", 5.02, 6, 1], ["a", 9, 12, 1], ["a", 20, 30, 1]], false);
  assert.deepEqual(own.bars("a", 0, 10, 100), [[0, 10], [50, 60], [90, 100]]);
  assert.deepEqual(own.bars("b", 5, 10, 100), [[0, 20]]);
  assert.equal(own.spanAt("a", 5.5, 0).start, 5.02);
  assert.equal(own.spanAt("a", 3, 0.1), undefined);
  assert.equal(own.spanAt("a", 1.05, 0.1).end, 1);
});

test("what becomes known reaches the panels that charts are drawn by", () => {
  const memory = { key: "memory", exact: null, lines: [{ label: "kernel", role: "main" }] };
  const gpu = { key: "gpu", exact: null, lines: [{ label: "gpu0", role: "main" }, { label: "gpu1", role: "other", about: "not used" }] };
  const layout = { panels: [memory, gpu] };
  const roles = () => gpu.lines.map((line) => line.role);
  live.learn(layout, [{ ...memory, exact: 512 }, { ...gpu, lines: [{ label: "gpu0", role: "other" }, { label: "gpu1", role: "main" }] }]);
  assert.equal(layout.panels[0], memory);
  assert.equal(memory.exact, 512);
  assert.equal(gpu.exact, null);
  assert.deepEqual(roles(), ["other", "main"]);
  assert.equal(gpu.lines[1].about, undefined);
  live.learn(layout, [{ ...memory, exact: null }]);
  assert.equal(memory.exact, 512, "a peak that is known stays known");
  assert.deepEqual(roles(), ["other", "main"]);
});
