// Tests of the page's own arithmetic: node --test api/page_test.mjs
import assert from "node:assert/strict";
import test from "node:test";
import { count, cut, events, guests, line, matches, percent, plain, quantity, ranked, span } from "./web/format.js";

test("spans", () => {
  for (const [s, want] of [[0, "0 s"], [0.0212, "0.021 s"], [9.94, "9.9 s"], [45.4, "45 s"], [100, "2 min"], [7200, "2 h"], [86400 * 3, "3 d"], [-3, "3 s"], [NaN, "unknown"], [Infinity, "unknown"]]) assert.equal(span(s), want);
});

test("quantities by the unit in the name", () => {
  for (const [series, v, want] of [["memory_used_bytes", 3 * 2 ** 30, "3 GiB"], ["unit_memory_bytes{a_ratio.service}", 512, "512 B"], ["cpu_ratio", 0.1234, "12.3 %"],
    ["disk_read_bytes_per_second{sda}", 2048, "2 KiB/s"], ["load1", 0.5, "0.5"], ["forks_total", 12345, "12.3 k"], ["cpu_celsius{0}", 45.25, "45.3 °C"], ["x_bytes", -2048, "-2 KiB"],
    ["load1", undefined, "missing"], ["load1", null, "missing"], ["load1", NaN, "missing"]]) assert.equal(quantity(series, v), want);
});

test("shares and counts", () => {
  assert.deepEqual([0, 0.001, 0.006, 0.5, 1].map(percent), ["0 %", "< 1 %", "1 %", "50 %", "100 %"]);
  assert.deepEqual([count(1, "host"), count(0, "host"), count(2, "entry", "entries")], ["1 host", "0 hosts", "2 entries"]);
});

test("texts from outside", () => {
  assert.equal(cut(null), "");
  assert.equal(cut("x".repeat(601)), "x".repeat(600) + "…");
  assert.equal(plain("a\u202egnp.exe\u0000\u200b\n\tä"), "a\ufffdgnp.exe\ufffd\ufffd\n\tä");
});

test("guests", () => {
  assert.equal(guests([], []), "");
  assert.equal(guests(null, null), "");
  assert.equal(guests([{}], []), "1 guest before");
  assert.equal(guests([{}, {}], [{ alive: true, max_gap_s: 0.02 }, { alive: false }]), "1 of 2 guests alive after, largest gap 0.02 s");
});

test("event frames come in pieces, and may be broken", () => {
  const stream = 'retry: 1000\n\n: alive\n\nevent: host\ndata: {"id":"a"}\n\nevent: host\ndata: {broken\n\ndata: {"id":"b"}\n\nevent: host\ndata: {"id":"c"}\n\nevent: ho';
  for (let at = 0; at <= stream.length; at++) {
    const first = events(stream.slice(0, at));
    const second = events(first.rest + stream.slice(at));
    assert.deepEqual([...first.out, ...second.out].map((e) => e.data.id), ["a", "c"]);
    assert.equal(second.rest, "event: ho");
  }
});

test("lines", () => {
  assert.equal(line([{ x: 0, y: 0 }, { x: 10, y: 5 }], { left: 0, right: 10, bottom: 0, top: 5 }, 100, 20), "0.0,20.0 100.0,0.0");
  assert.ok(!line([{ x: 1, y: 1 }], { left: 1, right: 1, bottom: 1, top: 1 }, 100, 20).includes("NaN"));
});

test("what needs eyes comes first", () => {
  const hosts = [{ id: "b", simulated: true }, { id: "z", simulated: false }, { id: "a", simulated: true }, { id: "c", simulated: true, prediction: { anomalous: true } }, { id: "y", simulated: true, prediction: { state: "stale", anomalous: true } }];
  assert.deepEqual(ranked(hosts).map((h) => h.id), ["y", "c", "z", "a", "b"]);
  assert.equal(hosts[0].id, "b");
});

test("search", () => {
  const h = { id: "rack1-host2", fault_domain: "Rack1", simulated: true, prediction: { signature: "memory-leak", anomalous: true } };
  for (const text of ["", "HOST2", "leak rack1", "simulated failing"]) assert.ok(matches(h, text), text);
  for (const text of ["host3", "healthy", "leak rack2", "dry-run"]) assert.ok(!matches(h, text), text);
});
