// The dashboard: reads the state once, then follows the event stream. All text
// that comes from outside is set as text, never as HTML.
const state = { hosts: new Map(), recommendations: new Map(), executions: new Map(), scores: new Map() };
let token = sessionStorage.getItem("token");

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = "Bearer " + token;
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    token = prompt("Token");
    if (!token) throw new Error("a token is needed");
    sessionStorage.setItem("token", token);
    return call(path, options);
  }
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return answer;
}

function el(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) k === "onclick" ? e.addEventListener("click", v) : e.setAttribute(k, v);
  e.append(...children.filter((c) => c !== null && c !== ""));
  return e;
}

const badge = (text, kind = "") => el("span", { class: "badge " + kind }, text);
const simulated = (x) => (x.simulated ? badge("simulated", "simulated") : null);
const clock = (t) => new Date(t).toLocaleTimeString();

function spark(values) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  const top = Math.max(7, ...values);
  svg.setAttribute("viewBox", "0 0 120 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(ns, "polyline");
  line.setAttribute("points", values.map((v, i) => `${120 - values.length + i},${19 - (18 * v) / top}`).join(" "));
  svg.append(line);
  return svg;
}

function host(h) {
  const p = h.prediction;
  const failing = p && p.anomalous;
  const kind = !p || p.state === "learning" ? "learning" : failing ? "failing" : "";
  let line = "no sample yet";
  if (p && p.state === "learning") line = `learning its normal, ${Math.round(100 * p.learned)} %`;
  else if (p) line = `score ${p.anomaly_score.toFixed(1)}, failure ${Math.round(100 * p.failure_probability)} %` + (p.signature !== "none" ? `, ${p.signature}` : "");
  if (p && p.state === "stale") line = "no sample since " + clock(p.time);
  const top = p && p.contributions && p.contributions.length ? p.contributions.slice(0, 3).map((c) => `${c.series} ${Math.round(100 * c.share)} %`).join(", ") : "";
  return el("article", { class: kind },
    el("h3", {}, h.id, simulated(h), h.dry_run ? badge("dry run") : null, failing ? badge("failing") : null),
    el("p", {}, line),
    el("p", { class: "dim" }, `${h.vms.length} VMs` + (h.fault_domain ? `, ${h.fault_domain}` : "")),
    failing && p.evidence.length ? el("p", {}, p.evidence[0]) : null,
    spark(state.scores.get(h.id) || []),
    top ? el("p", { class: "dim" }, top) : null);
}

function decide(id, what) {
  return el("button", { onclick: () => call(`/api/v1/recommendations/${id}/${what}`, { method: "POST" }).catch((e) => alert(e.message)) },
    what === "approve" ? "Approve" : "Reject");
}

function recommendation(r) {
  const open = r.state === "pending";
  return el("article", { class: open ? "open" : "" },
    el("h3", {}, `${r.action} on ${r.host}`, simulated(r), badge(r.state), el("span", { class: "dim" }, clock(r.time))),
    el("p", {}, r.reason),
    r.note ? el("p", { class: "dim" }, r.note) : null,
    el("table", {}, ...r.alternatives.map((a) => el("tr", { class: a.action === r.action ? "chosen" : "" },
      el("td", {}, a.action), el("td", { class: "n" }, a.available ? a.cost_vm_s.toFixed(1) + " VM-s" : "not here"), el("td", {}, a.why)))),
    open ? el("div", {}, decide(r.id, "approve"), decide(r.id, "reject")) : null);
}

function execution(e) {
  return el("article", { class: ["succeeded", "cancelled"].includes(e.state) ? "" : ["degraded", "handed-over"].includes(e.state) ? "failing" : "open" },
    el("h3", {}, `${e.action} on ${e.host}`, simulated(e), badge(e.state), el("span", { class: "dim" }, clock(e.created))),
    e.outcome ? el("p", {}, e.outcome) : null,
    el("table", {}, ...e.steps.map((s) => el("tr", {}, el("td", {}, s.phase), el("td", {}, s.name), el("td", {}, s.state), el("td", {}, s.detail || "")))));
}

const newest = (m, n) => [...m.values()].sort((a, b) => (a.id < b.id ? 1 : -1)).slice(0, n);

let due = false;
function draw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    const hosts = [...state.hosts.values()].sort((a, b) => a.simulated - b.simulated || (a.id < b.id ? -1 : 1));
    document.getElementById("hosts").replaceChildren(...hosts.map(host));
    document.getElementById("recommendations").replaceChildren(...newest(state.recommendations, 12).map(recommendation));
    document.getElementById("executions").replaceChildren(...newest(state.executions, 12).map(execution));
    const failing = hosts.filter((h) => h.prediction && h.prediction.anomalous).length;
    document.getElementById("summary").textContent = `${hosts.length} hosts, ${failing} failing`;
  });
}

function score(p) {
  const s = state.scores.get(p.host) || [];
  s.push(p.anomaly_score);
  state.scores.set(p.host, s.slice(-120));
}

async function read() {
  const [h, r, e] = await Promise.all(["hosts", "recommendations", "executions"].map(async (k) => (await (await call("/api/v1/" + k)).json())[k]));
  state.hosts = new Map(h.map((x) => [x.id, x]));
  state.recommendations = new Map(r.map((x) => [x.id, x]));
  state.executions = new Map(e.map((x) => [x.id, x]));
  draw();
}

function link(text, lost) {
  const e = document.getElementById("link");
  e.textContent = text;
  e.className = lost ? "lost" : "";
}

function event(kind, data) {
  if (kind === "prediction") {
    const h = state.hosts.get(data.host);
    if (h) h.prediction = data;
    score(data);
  } else if (kind === "host") {
    state.hosts.set(data.id, { ...state.hosts.get(data.id), ...data });
  } else {
    state[kind + "s"].set(data.id, data);
  }
  draw();
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
        text += value;
        const parts = text.split("\n\n");
        text = parts.pop();
        for (const part of parts) {
          const kind = /^event: (.*)$/m.exec(part);
          const data = /^data: (.*)$/m.exec(part);
          if (kind && data) event(kind[1], JSON.parse(data[1]));
        }
      }
      throw new Error("closed");
    } catch (e) {
      link(`connection lost (${e.message}), trying again`, true);
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
}

follow();
