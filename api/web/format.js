// Numbers, times and texts as people read them. Nothing here touches the page.

const round = (x, digits) => String(Number(x.toPrecision(digits)));

// span writes seconds: "0.02 s", "45 s", "3 min", "2 h", "5 d".
export function span(seconds) {
  const s = Math.abs(seconds);
  if (!Number.isFinite(s)) return "unknown";
  if (s < 10) return round(s, 2) + " s";
  if (s < 100) return Math.round(s) + " s";
  if (s < 5400) return Math.round(s / 60) + " min";
  if (s < 172800) return Math.round(s / 3600) + " h";
  return Math.round(s / 86400) + " d";
}

// quantity writes a value in the unit that its series' name says.
export function quantity(series, value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "missing";
  const metric = series.split("{")[0].replace(/_(total|per_second)$/, "");
  const rate = /_per_second(\{|$)/.test(series) ? "/s" : "";
  if (metric.endsWith("_ratio")) return round(100 * value, 3) + " %" + rate;
  if (metric.endsWith("_seconds")) return round(value, 3) + " s" + rate;
  if (metric.endsWith("_celsius")) return round(value, 3) + " °C" + rate;
  const bytes = metric.endsWith("_bytes");
  const base = bytes ? 1024 : 1000;
  const units = bytes ? [" B", " KiB", " MiB", " GiB", " TiB", " PiB"] : ["", " k", " M", " G", " T", " P"];
  let i = 0;
  while (Math.abs(value) >= base && i < units.length - 1) {
    value /= base;
    i++;
  }
  return round(value, 3) + units[i] + rate;
}

// percent writes a share of 0..1.
export const percent = (x) => (x > 0 && x < 0.005 ? "< 1 %" : Math.round(100 * x) + " %");

// plain shows the characters of a text from outside that would turn, hide or break
// what stands beside them.
export const plain = (text) => String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, "\ufffd");

// cut bounds a text from outside.
export function cut(text, most = 600) {
  text = String(text ?? "");
  return text.length > most ? text.slice(0, most) + "…" : text;
}

// count writes "1 host", "3 hosts".
export const count = (n, one, many = one + "s") => `${n} ${n === 1 ? one : many}`;

// guests says what became of the VMs of an execution, "" where it counted none.
export function guests(before, after) {
  if (!before?.length) return "";
  if (!after?.length) return count(before.length, "guest") + " before";
  const alive = after.filter((g) => g.alive).length;
  const gap = Math.max(0, ...after.map((g) => g.max_gap_s ?? 0));
  return `${alive} of ${count(before.length, "guest")} alive after` + (gap > 0 ? `, largest gap ${span(gap)}` : "");
}

// events takes whole frames of an event stream off a text, and returns them with
// the rest that is still to come. What is not an event with JSON is left out.
export function events(text) {
  const frames = text.split("\n\n");
  const rest = frames.pop();
  const out = [];
  for (const frame of frames) {
    const kind = /^event: (.*)$/m.exec(frame);
    const data = /^data: (.*)$/m.exec(frame);
    if (!kind || !data) continue;
    try {
      out.push({ kind: kind[1], data: JSON.parse(data[1]) });
    } catch {
      continue;
    }
  }
  return { out, rest };
}

// line is the points of a polyline through values over a box, gaps cut out:
// points is [{x, y}] in their own units.
export function line(points, box, width, height) {
  const dx = box.right - box.left || 1;
  const dy = box.top - box.bottom || 1;
  const at = (p) => `${(((p.x - box.left) / dx) * width).toFixed(1)},${(height - ((p.y - box.bottom) / dy) * height).toFixed(1)}`;
  return points.map(at).join(" ");
}

// ranked puts silent hosts first, then failing ones, real ones before simulated ones, then by name.
export function ranked(hosts) {
  const rank = (h) => (h.prediction?.state === "stale" ? 0 : h.prediction?.anomalous ? 1 : 2);
  return [...hosts].sort((a, b) => rank(a) - rank(b) || a.simulated - b.simulated || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
}

// matches tells whether a host has all words of a search.
export function matches(h, search) {
  const p = h.prediction ?? {};
  const text = [h.id, h.fault_domain, p.signature, p.culprit, p.state, h.simulated ? "simulated" : "real", h.dry_run ? "dry-run" : "", p.state === "stale" ? "silent" : p.anomalous ? "failing" : "healthy", h.cordon ? "cordoned" : ""].join(" ").toLowerCase();
  return search.toLowerCase().split(/\s+/).every((w) => text.includes(w));
}
