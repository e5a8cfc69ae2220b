// The dashboard: it reads the state once, then follows the event stream.
import { count, cut, events, guests, line, matches, percent, quantity, ranked, span } from "./format.js";
import { $, el, keep, name, put, svg } from "./dom.js";

const state = { hosts: new Map(), recommendations: new Map(), executions: new Map(), freezes: new Map(), scores: new Map(), models: [] };
const shown = { hosts: 200, records: 15, kept: 200, scores: 120 };

// Talking to the server.

let token = sessionStorage.getItem("token");
let signing = null; // the sign-in under way, for all calls that wait for it

function signIn(text) {
  signing ??= new Promise((done) => {
    $("token-text").textContent = text;
    $("token-dialog").showModal();
    $("token-form").onsubmit = () => {
      token = $("token").value.trim();
      $("token").value = "";
      sessionStorage.setItem("token", token);
      signing = null;
      done();
    };
  });
  return signing;
}
$("token-dialog").addEventListener("close", () => signing && $("token-dialog").showModal());

async function call(path, options = {}) {
  for (;;) {
    const used = token;
    const headers = { ...options.headers };
    if (used) headers.Authorization = "Bearer " + used;
    const answer = await fetch(path, { ...options, headers });
    if (answer.status === 401) {
      if (used === token) await signIn(used ? "The server does not know this token. Another one?" : "This server asks for a token.");
      continue;
    }
    if (!answer.ok) {
      let detail = `the server answered ${answer.status}`;
      try {
        detail = (await answer.json()).detail || detail;
      } catch {
        // not a problem of ours, from a proxy perhaps
      }
      throw new Error(detail);
    }
    return answer;
  }
}

const json = async (path) => (await call(path)).json();
const post = (path, body) => call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
const record = (kind, id, what = "") => `/api/v1/${kind}/${encodeURIComponent(id)}${what}`;

function notice(text) {
  const e = el("p", { class: "notice" }, cut(text), el("button", { type: "button", click: () => e.remove() }, "Dismiss"));
  $("notices").replaceChildren(e);
}

// Parts of the page.

const badge = (text, kind = "") => el("span", { class: "badge " + kind }, text);
const labels = (x) => [x.simulated && badge("simulated", "simulated"), x.dry_run && badge("dry-run", "dry"), x.cordon && badge("cordoned", "open")];
const clock = (t) => el("time", { datetime: t, title: new Date(t).toLocaleString() }, new Date(t).toLocaleTimeString());

function spark(values) {
  const points = values.map((y, i) => ({ x: shown.scores - values.length + i, y }));
  const box = { left: 0, right: shown.scores - 1, bottom: 0, top: Math.max(8, ...values) * 1.05 };
  return svg("svg", { viewBox: "0 0 120 24", preserveAspectRatio: "none", "aria-hidden": "true", class: "spark" }, svg("polyline", { points: line(points, box, 120, 23) }));
}

function shares(contributions) {
  return el("ul", { class: "shares" }, contributions.slice(0, 3).map((c) => {
    const bar = el("span", { class: "share" });
    bar.style.width = Math.min(100, 100 * c.share) + "%";
    return el("li", {}, bar, name(cut(c.series, 120)), el("span", { class: "n" }, percent(c.share)));
  }));
}

function condition(h) {
  const p = h.prediction;
  if (!p) return ["waiting", "no sample yet"];
  if (p.state === "stale") return ["failing", "silent since " + new Date(p.time).toLocaleString()];
  if (p.state === "learning") return ["learning", `learning its normal, ${percent(p.learned)}`];
  return p.anomalous ? ["failing", "failing"] : ["healthy", "healthy"];
}

function hostCard(h) {
  const p = h.prediction;
  const [kind, text] = condition(h);
  const scoring = p?.state === "scoring";
  const id = "host-" + h.id;
  const learned = kind === "learning" ? el("progress", { max: 1, value: p.learned, "aria-label": "learned" }) : null;
  const what = p && p.signature !== "none" ? p.signature + (p.culprit ? ": " + cut(p.culprit, 100) : "") : "";
  return el("article", { class: "card " + kind, "aria-labelledby": id },
    el("h3", {}, el("button", { type: "button", id, class: "plain", "data-focus": "open", click: () => openHost(h.id) }, name(h.id)), badge(text, kind), labels(h)),
    scoring && what ? el("p", { class: "what" }, name(what)) : null,
    learned,
    scoring ? el("div", { class: "figures" },
      el("p", {}, el("b", {}, p.anomaly_score.toFixed(1)), el("span", {}, "anomaly score")),
      el("p", {}, el("b", {}, percent(p.failure_probability)), el("span", {}, `fails in ${span(p.horizon_s)}`)),
      el("p", {}, el("b", {}, h.vms?.length ?? 0), el("span", {}, "VMs"))) : null,
    scoring ? spark(state.scores.get(h.id) ?? []) : null,
    scoring && p.anomalous && p.evidence?.length ? el("p", {}, cut(p.evidence[0], 240)) : null,
    scoring && p.anomalous && p.contributions?.length ? shares(p.contributions) : null,
    el("p", { class: "dim" }, [!scoring && count(h.vms?.length ?? 0, "VM"), h.fault_domain && cut(h.fault_domain, 60)].filter(Boolean).join(", ")));
}

function decision(r, what, word) {
  return el("button", { type: "button", class: what === "approve" ? "primary" : "", "data-focus": what, "aria-label": `${word} ${r.action} on ${r.host}`, click: () => decide(r.id, what, word) }, word);
}

function recommendation(r) {
  const open = r.state === "pending";
  const kind = open ? "open" : r.state === "blocked" || r.state === "expired" ? "stale" : r.state === "done" ? "healthy" : "";
  return el("article", { class: "card " + kind, "aria-label": `${r.action} on ${r.host}, ${r.state}` },
    el("h3", {}, el("span", {}, r.action, " on ", name(r.host)), r.state === "dry-run" ? null : badge(r.state, kind), labels(r), clock(r.time)),
    el("p", {}, cut(r.reason)),
    r.decided_by || r.note ? el("p", { class: "dim" }, [r.decided_by && "decided by " + cut(r.decided_by, 100), r.note && cut(r.note)].filter(Boolean).join(": ")) : null,
    el("details", { open: open }, el("summary", {}, `${span(r.cost_vm_s)} of interruption expected; ${count(r.alternatives?.length ?? 0, "alternative")}`),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "alternatives" }, el("table", {},
        el("thead", {}, el("tr", {}, ["Action", "VM-seconds", "Cures", "Why"].map((t) => el("th", { scope: "col" }, t)))),
        el("tbody", {}, (r.alternatives ?? []).map((a) => el("tr", { class: a.action === r.action ? "chosen" : a.available ? "" : "dim" },
          el("td", {}, a.action), el("td", { class: "n" }, a.available ? a.cost_vm_s.toFixed(1) : "not here"), el("td", { class: "n" }, a.available ? percent(a.cure_probability) : ""), el("td", {}, cut(a.why, 300)))))))),
    open ? el("div", { class: "row" }, decision(r, "approve", "Approve"), decision(r, "reject", "Reject"), el("span", { class: "dim" }, "until ", clock(r.expires))) : null);
}

const scope = (f) => (f.host ? f.host : f.fault_domain ? `fault domain ${f.fault_domain}` : "the whole fleet");

function frozen(f) {
  const until = f.until ? ["until ", clock(f.until)] : "until it is lifted";
  return el("article", { class: "card failing", "aria-label": `frozen: ${scope(f)}` },
    el("h3", {}, el("span", {}, "Frozen: ", name(cut(scope(f), 100))), labels(f), clock(f.since)),
    el("p", {}, cut(f.reason)),
    el("div", { class: "row" },
      el("button", { type: "button", "data-focus": "lift", "aria-label": `Lift the freeze of ${scope(f)}`, click: () => lift(f) }, "Lift"),
      el("span", { class: "dim" }, "by ", name(cut(f.by, 100)), ", ", until)));
}

const final = ["succeeded", "degraded", "handed-over", "cancelled"];
const marks = { running: "…", succeeded: "✓", failed: "✗", unknown: "?" };

const stoppable = (e) => !final.includes(e.state) && !e.cancelled_by;

function execution(e) {
  const bad = e.state === "degraded" || e.state === "handed-over";
  const good = e.state === "succeeded";
  const kind = bad ? "failing" : good ? "healthy" : e.state === "cancelled" ? "stale" : "open";
  const took = e.ended ? ` in ${span((new Date(e.ended) - new Date(e.created)) / 1000)}` : "";
  const vms = guests(e.guests_before, e.guests_after);
  return el("article", { class: "card " + kind, "aria-label": `${e.action} on ${e.host}, ${e.state}` },
    el("h3", {}, el("span", {}, e.action, " on ", name(e.host)), badge(e.state + (good ? took : "") + (e.cancelled_by && !e.ended ? ", told to stop" : ""), kind), labels(e), clock(e.created)),
    el("p", {}, cut(e.outcome || e.reason)),
    vms ? el("p", { class: "dim" }, vms) : null,
    e.steps?.length ? el("ol", { class: "steps" }, e.steps.map((s) => el("li", { class: s.state },
      el("span", { class: "mark", "aria-hidden": "true" }, marks[s.state] ?? "?"),
      el("span", {}, name(cut(s.name, 120)), el("span", { class: "dim" }, ` ${s.phase}, ${s.state}` + (s.ended ? `, ${span((new Date(s.ended) - new Date(s.started)) / 1000)}` : "") + (s.attempt > 1 ? `, attempt ${s.attempt}` : "") + (s.detail ? `: ${cut(s.detail, 300)}` : "")))))) : null,
    e.bundle || stoppable(e) ? el("div", { class: "row" },
      e.bundle ? el("button", { type: "button", "data-focus": "bundle", "aria-label": `Download the diagnostics of ${e.host}`, click: () => download(e.id) }, "Diagnostics") : null,
      stoppable(e) ? el("button", { type: "button", "data-focus": "stop", "aria-label": `Stop ${e.action} on ${e.host}`, click: () => stop(e) }, "Stop") : null) : null);
}

// champion is a model in use, with how far live data have moved from what it was trained on.
function champion(m, drift) {
  const bad = drift?.drifted;
  const moved = drift && !drift.ready ? `${count(drift.samples, "sample")} so far, too few to tell whether it drifts` : drift ? `${drift.shifted} of ${drift.series} series have shifted since it was trained` : "";
  return el("article", { class: "card " + (bad ? "failing" : "healthy"), "aria-label": `champion ${m.id}` },
    el("h3", {}, name(cut(m.id, 100)), badge("champion", "healthy"), bad ? badge("drifted", "failing") : null, clock(m.since)),
    el("p", {}, bad ? cut(drift.why) : moved),
    el("p", { class: "dim" }, `trained on ${cut(m.source, 200)}`));
}

// shadow is a model that scores beside what is in use, and what it says otherwise.
function shadow(c) {
  const row = (what, ...values) => el("tr", {}, el("th", { scope: "row" }, what), values.map((v) => el("td", { class: "n" }, v)));
  return el("article", { class: "card " + (c.promotable ? "open" : ""), "aria-label": `shadow ${c.shadow}` },
    el("h3", {}, name(cut(c.shadow, 100)), badge("shadow"), c.promotable ? badge("to promote", "open") : null, clock(c.since)),
    el("p", {}, `beside ${c.champion ? cut(c.champion, 100) : "what each host has taught"}, ${count(c.samples, "sample")} of ${count(c.hosts, "host")}`),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "comparison" }, el("table", {},
      el("thead", {}, el("tr", {}, ["", "In use", "Shadow", "Difference"].map((t) => el("th", { scope: "col" }, t)))),
      el("tbody", {},
        row("Mean score", c.mean_champion.toFixed(3), c.mean_shadow.toFixed(3), c.mean_difference.toFixed(3)),
        row("Alarms", c.alarms_champion, c.alarms_shadow, c.alarms_shadow - c.alarms_champion),
        row(`Foreseen of ${count(c.incidents, "incident")}`, c.foreseen_champion, c.foreseen_shadow, c.foreseen_shadow - c.foreseen_champion)))),
    el("p", { class: "dim" }, cut(c.why)));
}

async function download(id) {
  try {
    const url = URL.createObjectURL(await (await call(record("executions", id, "/bundle"))).blob());
    el("a", { href: url, download: id + ".tar.zst" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (problem) {
    notice(problem.message);
  }
}

// Dialogs.

// confirm asks once more, and then acts. note is "" where none is asked for, "note" where one may be
// left, and "reason" where one must be given; act gets it.
function confirm(title, text, word, note, act) {
  const at = $("confirm-dialog");
  $("confirm-title").replaceChildren(...title);
  put($("confirm-text"), text);
  $("confirm-label").hidden = !note;
  put($("confirm-what"), note === "reason" ? "Reason, for the audit trail" : "Note, for the audit trail");
  $("confirm-note").required = note === "reason";
  $("confirm-note").value = "";
  $("confirm-error").textContent = "";
  $("confirm-ok").textContent = word;
  $("confirm-ok").disabled = false;
  $("confirm-no").onclick = () => at.close();
  $("confirm-form").onsubmit = async (e) => {
    e.preventDefault();
    $("confirm-ok").disabled = true;
    try {
      await act($("confirm-note").value.trim());
      at.close();
    } catch (problem) {
      $("confirm-error").textContent = problem.message;
    }
    $("confirm-ok").disabled = false;
  };
  at.showModal();
}

function decide(id, what, word) {
  const r = state.recommendations.get(id);
  const text = what === "approve" ? `${r.dry_run ? "Nothing will be changed: the host is dry-run. " : ""}${cut(r.reason)}` : "The host stays as it is. A new recommendation comes if the evidence changes.";
  confirm([`${word} ${r.action} on `, name(r.host), "?"], text, word, "note", async (note) =>
    update("recommendation", await (await post(record("recommendations", r.id, "/" + what), note ? { note } : {})).json()));
}

const stop = (e) => confirm([`Stop ${e.action} on `, name(e.host), "?"], "It ends where that is safe for the VMs; what was done stays done.", "Stop", "", async () =>
  update("execution", await (await post(record("executions", e.id, "/cancel"), {})).json()));

const lift = (f) => confirm(["Lift the freeze of ", name(scope(f)), "?"], "What the policy allows may be carried out again at once.", "Lift", "", async () => {
  await call(record("freezes", f.id), { method: "DELETE" });
  await readFreezes();
});

$("freeze").addEventListener("click", () => confirm(["Freeze the whole fleet?"], "No action begins until the freeze is lifted. What has begun goes on: stop it by itself.", "Freeze", "reason", async (reason) => {
  await post("/api/v1/freezes", { fleet: true, reason });
  await readFreezes();
}));

let opened = null; // the host in the dialog
let asked = 0; // the newest question for telemetry

function facts(h) {
  const p = h.prediction;
  const list = (title, items) => (items?.length ? [el("dt", {}, title), el("dd", {}, items.map((t) => el("div", {}, name(cut(t, 300)))))] : []);
  return el("dl", { class: "facts" },
    list("Condition", [condition(h)[1]]), list("Cordoned", h.cordon && [`by ${h.cordon.by}: ${h.cordon.reason}`]),
    list("Evidence", p?.evidence),
    list("Subsystems", p?.subsystems?.filter((s) => s.share >= 0.05).map((s) => `${s.subsystem}: ${percent(s.share)}`)),
    list("Contributions", p?.contributions?.slice(0, 8).map((c) => `${c.series}: ${percent(c.share)}` + (c.value === undefined ? "" : `, now ${quantity(c.series, c.value)}`))),
    list("VMs", h.vms?.map((v) => `${v.name || v.id}: ${v.state}` + (v.memory_bytes ? `, ${quantity("_bytes", v.memory_bytes)}` : ""))),
    list("Services", h.units), list("Fault domain", h.fault_domain ? [h.fault_domain] : []), list("Agent", h.agent_version ? [h.agent_version] : []),
    list("Model", p?.model ? [p.model] : []), list("Last seen", [new Date(Math.max(new Date(h.last_seen), p ? new Date(p.time) : 0)).toLocaleString()]));
}

function drawHost() {
  const h = state.hosts.get(opened);
  if (!h) return;
  keep($("host-facts"), [h], () => "facts", facts);
}

async function openHost(id) {
  opened = id;
  const h = state.hosts.get(id);
  $("host-title").replaceChildren(name(id), ...labels(h).filter(Boolean));
  $("series").replaceChildren();
  $("chart").replaceChildren();
  $("act-action").replaceChildren(...(h.actions ?? []).filter((a) => a !== "none").map((a) => el("option", { value: a }, a)));
  $("act").hidden = !$("act-action").options.length;
  $("act-reason").value = "";
  $("act-error").textContent = "";
  drawHost();
  $("host-dialog").showModal();
  try {
    const all = (await json(record("hosts", id))).series ?? [];
    if (opened !== id) return;
    $("series").replaceChildren(...all.map((s) => el("option", { value: s }, s)));
    const top = h.prediction?.contributions?.[0]?.series;
    if (all.includes(top)) $("series").value = top;
    await chart();
  } catch (problem) {
    put($("chart"), problem.message);
  }
}

async function chart() {
  const id = opened;
  const series = $("series").value;
  if (!id || !series) return;
  const question = ++asked;
  const over = $("span").value;
  const step = { "5m": "2s", "15m": "5s", "1h": "20s", "6h": "2m", "24h": "8m" }[over];
  const box = $("chart");
  try {
    const t = await json(record("hosts", id, `/telemetry?metric=${encodeURIComponent(series)}&from=-${over}&step=${step}`));
    if (question !== asked) return;
    const points = t.points.map((p) => ({ x: Date.parse(p.time), y: p.value }));
    if (!points.length) throw new Error("no values in this time");
    let [low, high] = [Math.min(...points.map((p) => p.y)), Math.max(...points.map((p) => p.y))];
    box.setAttribute("aria-label", `${series}: between ${quantity(series, low)} and ${quantity(series, high)}, now ${quantity(series, points.at(-1).y)}`);
    const words = [quantity(series, high), quantity(series, low)];
    if (high === low) [low, high] = [low - 1, high + 1];
    const range = { left: Date.parse(t.from), right: Date.parse(t.to), bottom: low, top: high };
    box.replaceChildren(
      el("span", { class: "high" }, words[0]), el("span", { class: "low" }, words[1]), el("span", { class: "now" }, "now " + quantity(series, points.at(-1).y)),
      svg("svg", { viewBox: "0 -2 600 144", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("polyline", { points: line(points, range, 600, 140) })));
  } catch (problem) {
    if (question !== asked) return;
    box.setAttribute("aria-label", problem.message);
    box.replaceChildren(el("p", { class: "dim" }, problem.message));
  }
}

$("series").addEventListener("change", chart);
$("span").addEventListener("change", chart);
$("host-close").addEventListener("click", () => $("host-dialog").close());
$("host-dialog").addEventListener("close", () => (opened = null));
setInterval(() => opened && !document.hidden && chart(), 5000);

$("act").addEventListener("submit", async (e) => {
  e.preventDefault();
  const button = $("act").querySelector("button");
  button.disabled = true;
  try {
    const answer = await post("/api/v1/executions", { host: opened, action: $("act-action").value, reason: $("act-reason").value });
    update("execution", await answer.json());
    $("host-dialog").close();
  } catch (problem) {
    $("act-error").textContent = problem.message;
  }
  button.disabled = false;
});

// Drawing.

const newest = (m) => [...m.values()].sort((a, b) => (a.id < b.id ? 1 : -1));

function draw() {
  const all = [...state.hosts.values()];
  const search = $("find").value.trim();
  const found = ranked(all.filter((h) => matches(h, search)));
  keep($("hosts"), found.slice(0, shown.hosts), (h) => h.id, hostCard);
  put($("more"), found.length > shown.hosts ? `and ${count(found.length - shown.hosts, "host")} more: find them by name` : found.length ? "" : all.length ? "no host matches" : "no host has announced itself yet");
  const records = newest(state.recommendations);
  const waiting = records.filter((r) => r.state === "pending");
  $("waiting-section").hidden = !waiting.length;
  keep($("waiting"), waiting, (r) => r.id, recommendation);
  keep($("recommendations"), records.filter((r) => r.state !== "pending").slice(0, shown.records), (r) => r.id, recommendation);
  const runs = newest(state.executions);
  keep($("executions"), runs.slice(0, shown.records), (e) => e.id, execution);
  $("recommendations").classList.toggle("none", !$("recommendations").firstElementChild);
  $("executions").classList.toggle("none", !$("executions").firstElementChild);
  if (opened) drawHost();
  keep($("frozen"), [...state.freezes.values()].filter((f) => !f.until || new Date(f.until) > new Date()), (f) => f.id, frozen);
  $("frozen-section").hidden = !$("frozen").firstElementChild;
  keep($("models"), state.models, (m) => (m.shadow ? "shadow " + m.shadow : m.model.id), (m) => (m.shadow ? shadow(m) : champion(m.model, m.drift)));
  $("models-section").hidden = !state.models.length;
  const figures = [["hosts", all.length, ""], ["failing", all.filter((h) => h.prediction?.anomalous).length, "failing"],
    ["silent", all.filter((h) => h.prediction?.state === "stale").length, "failing"], ["learning", all.filter((h) => h.prediction?.state === "learning").length, ""], ["to decide", waiting.length, "open"], ["under way", runs.filter((e) => !final.includes(e.state)).length, "open"]];
  keep($("summary"), figures, (f) => f[0], ([what, n, kind]) => el("div", { class: n ? kind : "" }, el("dt", {}, what), el("dd", {}, n)));
  document.title = (waiting.length ? `(${waiting.length}) ` : "") + "Tardigrade";
}

let due = false;
function drawSoon() {
  if (due) return;
  due = true;
  setTimeout(() => {
    due = false;
    draw();
  }, 200);
}
$("find").addEventListener("input", drawSoon);

// Following.

function update(kind, data) {
  if (kind === "prediction") {
    const h = state.hosts.get(data.host);
    if (h) state.hosts.set(data.host, { ...h, prediction: data });
    if (data.state === "scoring") state.scores.set(data.host, [...(state.scores.get(data.host) ?? []), data.anomaly_score].slice(-shown.scores));
  } else if (kind === "host") {
    state.hosts.set(data.id, { ...state.hosts.get(data.id), ...data });
  } else if (kind === "host.removed") {
    state.hosts.delete(data.id);
  } else if (kind === "cordon") {
    const h = state.hosts.get(data.host);
    if (h) state.hosts.set(data.host, { ...h, cordon: data.lifted ? undefined : data });
  } else if (kind === "recommendation" || kind === "execution") {
    const all = state[kind + "s"];
    all.set(data.id, data);
    if (all.size > 2 * shown.kept) state[kind + "s"] = new Map(newest(all).slice(0, shown.kept).map((x) => [x.id, x]));
  } else if (kind === "freeze") {
    readFreezes().catch((problem) => notice(problem.message)); // it may have been lifted
    return;
  } else if (kind === "model" || kind === "drift") {
    readModels().catch((problem) => notice(problem.message));
    return;
  }
  drawSoon();
}

async function readFreezes() {
  state.freezes = new Map((await json("/api/v1/freezes")).freezes.map((x) => [x.id, x]));
  drawSoon();
}

async function readModels() {
  const [{ models }, { comparisons }, { drift }] = await Promise.all(["", "/shadow", "/drift"].map((p) => json("/api/v1/models" + p)));
  const inUse = models.filter((m) => m.state === "champion").map((model) => ({ model, drift: drift.find((d) => d.model === model.id) }));
  state.models = [...comparisons, ...inUse];
  drawSoon();
}
setInterval(() => document.hidden || !state.models.length || readModels().catch(() => {}), 30_000); // a lost connection is said already

async function read() {
  const kinds = ["hosts", "recommendations", "executions", "freezes"];
  const lists = await Promise.all(kinds.map((k) => json("/api/v1/" + k)));
  kinds.forEach((k, i) => (state[k] = new Map(lists[i][k].map((x) => [x.id, x]))));
  await readModels();
  draw();
}

function link(text, lost = false) {
  put($("link"), text);
  document.body.classList.toggle("lost", lost);
}

// EventSource cannot send a token, so the stream is read by fetch.
async function follow() {
  for (;;) {
    try {
      const answer = await call("/api/v1/events");
      await read();
      link("live");
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const { out, rest } = events(text + value);
        text = rest;
        out.forEach((e) => update(e.kind, e.data));
      }
      link("connecting again", true);
    } catch (problem) {
      link(`no connection (${cut(problem.message, 120)}); trying again`, true);
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
}

follow();
