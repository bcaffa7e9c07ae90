// What pages do by themselves: follow what is learnt, fill in previews and estimates, remember the theme.
"use strict";

const THEMES = ["system", "light", "dark"];

function theme() {
  const button = document.querySelector("[data-theme-switch]");
  if (!button) return;
  const root = document.documentElement;
  const told = () => {
    const now = root.dataset.theme || "system";
    button.textContent = { system: "◐", light: "☀", dark: "☾" }[now];
    button.setAttribute("aria-label", `Theme: ${now}. Change it`);
    button.title = `Theme: ${now}`;
  };
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme || "system") + 1) % THEMES.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    try { localStorage.setItem("affinery-theme", next); } catch { /* not kept, then */ }
    told();
    document.dispatchEvent(new Event("affinery:theme"));
  });
  told();
}

// A part of a page as the server draws it: replaced where it changed, and the focus stays where it was.
function put(place, text) {
  if (place.dataset.now === text) return;
  const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
  const open = new Set([...place.querySelectorAll("details[open][id]")].map((each) => each.id));
  place.dataset.now = text;
  place.innerHTML = text;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (focused) document.getElementById(focused)?.focus();
}

// What a screen reader is told of it: the words that changed, and not oftener than can be listened to.
const LISTENING_MS = 10000;
let toldAt = 0;
function tell(place) {
  const ear = document.querySelector("[data-tell]");
  if (!ear || Date.now() - toldAt < LISTENING_MS) return;
  const words = [...place.querySelectorAll("[data-told]")].map((each) => each.textContent.trim());
  const text = words.filter(Boolean).join(". ");
  if (text === ear.textContent) return;
  ear.textContent = text;
  toldAt = Date.now();
}

// A session that has ended is led to where one signs in, which is no part of a page.
class Ended extends Error {}

async function part(address) {
  const reply = await fetch(address, { headers: { Accept: "text/html" }, redirect: "manual" });
  if (reply.type === "opaqueredirect") throw new Ended();
  if (!reply.ok && reply.status !== 422) throw new Error(`${reply.status}`);
  return reply.text();
}

function signIn() {
  const link = document.createElement("a");
  link.href = `/login?${new URLSearchParams({ next: location.pathname + location.search })}`;
  link.textContent = "Sign in again";
  return link;
}

function follow(place) {
  const lost = document.querySelector("[data-lost]");
  let every = Number(place.dataset.every);
  const look = async () => {
    if (!document.hidden) {
      try {
        put(place, await part(place.dataset.live));
        tell(place);
        every = Number(place.dataset.every);
        if (lost) lost.textContent = "";
      } catch (error) {
        if (error instanceof Ended) {
          if (lost) lost.replaceChildren("Your session has ended. ", signIn());
          return;
        }
        every = Math.min(every * 2, 30000);
        if (lost) lost.textContent = "The service does not answer; trying again.";
      }
    }
    setTimeout(look, every);
  };
  setTimeout(look, every);
}

// The form of a new task: what is learnt from, and what it would take.
function planning(form) {
  const preview = document.getElementById("preview");
  const estimate = document.getElementById("estimate");
  const asked = () => new URLSearchParams(new FormData(form));
  let turn = 0;
  let waiting = 0;
  const fill = async (place, address) => {
    const mine = ++turn;
    place.setAttribute("aria-busy", "true");
    try {
      const text = await part(address);
      if (mine === turn || place !== estimate) put(place, text);
    } catch (error) {
      put(place, "<p class='faint'>That cannot be told just now.</p>");
      if (error instanceof Ended) place.firstChild.replaceChildren("Your session has ended. ", signIn());
    }
    place.removeAttribute("aria-busy");
  };
  const judge = () => {
    clearTimeout(waiting);
    const words = asked();
    words.delete("csrf");
    if (!words.get("dataset") || !words.get("backbone") || !words.get("name")) return;
    if (!estimate.dataset.now) estimate.innerHTML = "<p class='faint'>Counting…</p>";
    waiting = setTimeout(() => fill(estimate, `/new/estimate?${words}`), 350);
  };
  form.addEventListener("input", judge);
  form.elements.dataset?.addEventListener("change", async () => {
    const dataset = form.elements.dataset.value;
    await fill(preview, `/new/preview?${new URLSearchParams({ dataset })}`);
    const free = preview.querySelector("[data-free-name]");
    if (free && !form.elements.name.dataset.typed) form.elements.name.value = free.dataset.freeName;
    judge();
  });
  form.elements.name?.addEventListener("input", () => { form.elements.name.dataset.typed = "yes"; });
  judge();
}

// Only what was opened last stays open, and Escape closes it.
function menus() {
  document.addEventListener("click", (event) => {
    for (const each of document.querySelectorAll("details.action[open]")) {
      if (!each.contains(event.target)) each.removeAttribute("open");
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      const open = document.querySelector("details.action[open]");
      if (open) {
        open.removeAttribute("open");
        open.querySelector("summary").focus();
      }
    }
    const typing = event.target.closest?.("input, textarea, select");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      document.querySelector(".find input")?.focus();
    }
  });
}

theme();
menus();
const here = document.querySelector(".nav [aria-current]"); // on a phone the names stand in one line
if (here) here.closest(".nav").scrollLeft = here.offsetLeft - 80;
for (const place of document.querySelectorAll("[data-live]")) follow(place);
for (const form of document.querySelectorAll("form[data-planning]")) planning(form);
