// Elements. Text from outside becomes text nodes or attributes, never markup.
import { plain } from "./format.js";

export const $ = (id) => document.getElementById(id);

// el makes an element. Attributes whose value is a function are listeners ("click"),
// null and false ones are left away; so are null, false and "" children.
export function el(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  set(e, attributes);
  e.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false && c !== "").map((c) => (c instanceof Node ? c : plain(c))));
  return e;
}

function set(e, attributes) {
  for (const [k, v] of Object.entries(attributes)) {
    if (typeof v === "function") e.addEventListener(k, v);
    else if (v !== null && v !== undefined && v !== false) e.setAttribute(k, v === true ? "" : v);
  }
}

// svg likewise.
export function svg(tag, attributes = {}, ...children) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(e, attributes);
  e.append(...children);
  return e;
}

// name is a name from outside: its direction of writing stays inside.
export const name = (text) => el("bdi", {}, text);

// put writes a text where it differs, so that live regions speak of changes only.
export function put(e, text) {
  text = plain(text);
  if (e.textContent !== text) e.textContent = text;
}

// morph makes an element look like another of its tag, and leaves alone what is
// equal, so that focus, selection and a click under way survive. An element that
// listens has a data-focus, and is not turned into one with another.
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && !(name === "open" && old.tagName === "DETAILS")) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (name !== "style" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  // The policy forbids style attributes from scripts, not styles.
  if (old.style && old.style.cssText !== fresh.style.cssText) old.style.cssText = fresh.style.cssText;
  const olds = [...old.childNodes];
  const news = [...fresh.childNodes];
  news.forEach((n, i) => {
    const o = olds[i];
    if (!o) old.append(n);
    else if (o.nodeType === Node.ELEMENT_NODE && n.nodeType === Node.ELEMENT_NODE && o.tagName === n.tagName && o.dataset.focus === n.dataset.focus) morph(o, n);
    else if (!o.isEqualNode(n)) o.replaceWith(n);
  });
  olds.slice(news.length).forEach((o) => o.remove());
}

// keep shows items in order within a parent, each as the element that make returns.
// It touches only those whose item changed.
const kept = new WeakMap();
export function keep(parent, items, key, make) {
  const old = kept.get(parent) ?? new Map();
  const now = new Map();
  for (const item of items) {
    const k = key(item);
    const state = JSON.stringify(item);
    let entry = old.get(k);
    if (!entry) entry = { state, node: make(item) };
    else if (entry.state !== state) {
      morph(entry.node, make(item));
      entry.state = state;
    }
    now.set(k, entry);
  }
  for (const [k, entry] of old) if (!now.has(k)) entry.node.remove();
  let at = parent.firstElementChild;
  for (const { node } of now.values()) {
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
  }
  kept.set(parent, now);
}
