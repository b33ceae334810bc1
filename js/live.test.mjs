// The pure functions of live.js; format_cases.json holds them to the answers of charts.py.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import page, * as live from "./live.js";

const cases = JSON.parse(readFileSync(new URL("format_cases.json", import.meta.url), "utf8"));

test("formats as charts.py does", () => {
  for (const [value, unit, text] of cases.value) assert.equal(live.formatValue(value, unit), text);
  for (const [seconds, text] of cases.duration) assert.equal(live.formatDuration(seconds), text);
  for (const [peak, unit, limit, text] of cases.peak) assert.equal(live.formatPeak(peak, { unit, limit }), text);
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

test("decimation keeps extremes in their order, and gaps", () => {
  const column = Float64Array.from({ length: 1000 }, (_, i) => (i === 501 ? 100 : i === 507 ? -100 : i >= 600 && i < 700 ? NaN : 1));
  const few = live.decimate({ time: Float64Array.from(column, (_, i) => i), columns: [column] }, 100);
  assert.equal(few.time.length, 100);
  const [up, down] = [few.columns[0].indexOf(100), few.columns[0].indexOf(-100)];
  assert.equal(down, up + 1);
  assert.equal(few.columns[0].filter(Number.isNaN).length, 10);
  assert.deepEqual([few.time[0], few.time[99]], [0, 999]);
});

test("lanes are stacked from the top, and a gap falls to the lane's ground", () => {
  const lines = [{ column: "c0", top: 100 }, { column: "c1", top: 100 }];
  const rows = { time: Float64Array.of(0, 1), columns: [Float64Array.of(100, NaN), Float64Array.of(0, 50)] };
  const drawn = live.drawn({ lanes: true, lines }, rows, 0, [100, 50]);
  const rounded = (column) => Array.from(column, (x) => Math.round(x * 1e6) / 1e6);
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

test("the picture's data come back", () => {
  const json = new TextEncoder().encode(JSON.stringify({ bounds: [[0, 10], [5, 6]], title: "é" }));
  const bytes = new Uint8Array(4 + json.length + 8);
  new DataView(bytes.buffer).setUint32(0, json.length, true);
  bytes.set(json, 4);
  bytes.set(new Uint8Array(Uint16Array.of(0, 65534, 32767, 65535).buffer), 4 + json.length);
  const { layout, rows } = live.unpack(bytes.buffer);
  assert.equal(layout.title, "é");
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
