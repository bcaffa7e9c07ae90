// Images, or a backbone, sent in parts, each where the one before it ended; what breaks off goes on from there.
"use strict";

(() => {
  const form = document.querySelector("form[data-upload]");
  if (!form) return;
  const told = document.getElementById("upload-told");
  const bar = document.getElementById("sent");
  const A_PART = 4 << 20;
  const TRIES = 5;

  // SHA-256 (FIPS 180-4), part by part: a browser's own wants a file whole, and a secure address.
  class Sha256 {
    static K = (() => {
      const roots = [];
      for (let n = 2; roots.length < 64; n++) {
        let prime = true;
        for (let d = 2; d * d <= n; d++) if (n % d === 0) { prime = false; break; }
        if (prime) roots.push(n);
      }
      const part = (value) => Math.floor((value - Math.floor(value)) * 2 ** 32) >>> 0;
      return { start: roots.slice(0, 8).map((n) => part(Math.sqrt(n))), round: roots.map((n) => part(Math.cbrt(n))) };
    })();

    constructor() {
      this.state = Uint32Array.from(Sha256.K.start);
      this.left = new Uint8Array(0);
      this.length = 0;
      this.words = new Uint32Array(64);
    }

    add(bytes) {
      this.length += bytes.length;
      let all = bytes;
      if (this.left.length) {
        all = new Uint8Array(this.left.length + bytes.length);
        all.set(this.left);
        all.set(bytes, this.left.length);
      }
      const whole = all.length - (all.length % 64);
      for (let at = 0; at < whole; at += 64) this.block(all, at);
      this.left = all.slice(whole);
    }

    block(bytes, at) {
      const w = this.words;
      const k = Sha256.K.round;
      const turn = (x, n) => (x >>> n) | (x << (32 - n));
      for (let i = 0; i < 16; i++) {
        const p = at + 4 * i;
        w[i] = (bytes[p] << 24) | (bytes[p + 1] << 16) | (bytes[p + 2] << 8) | bytes[p + 3];
      }
      for (let i = 16; i < 64; i++) {
        const s0 = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ (w[i - 15] >>> 3);
        const s1 = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ (w[i - 2] >>> 10);
        w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
      }
      let [a, b, c, d, e, f, g, h] = this.state;
      for (let i = 0; i < 64; i++) {
        const t1 = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i]) | 0;
        const t2 = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        h = g; g = f; f = e; e = (d + t1) | 0; d = c; c = b; b = a; a = (t1 + t2) | 0;
      }
      [a, b, c, d, e, f, g, h].forEach((value, i) => { this.state[i] = (this.state[i] + value) | 0; });
    }

    hex() {
      const bits = this.length * 8;
      const end = new Uint8Array(((this.left.length + 9 + 63) & ~63) - this.left.length);
      end[0] = 0x80;
      const view = new DataView(end.buffer);
      view.setUint32(end.length - 8, Math.floor(bits / 2 ** 32));
      view.setUint32(end.length - 4, bits >>> 0);
      this.add(end);
      return [...this.state].map((word) => word.toString(16).padStart(8, "0")).join("");
    }
  }

  async function ask(method, address, body, type) {
    const headers = { "X-Affinery-CSRF": form.elements.csrf?.value ?? "" };
    if (type) headers["Content-Type"] = type;
    const reply = await fetch(address, { method, headers, body });
    const said = reply.status === 204 ? {} : await reply.json();
    if (reply.status === 401) throw new Error("Your session has ended. Sign in again, and choose the file anew.");
    if (!reply.ok) throw Object.assign(new Error(said.detail || `${reply.status}`), { status: reply.status });
    return said;
  }

  const json = (method, address, value) => ask(method, address, JSON.stringify(value), "application/json");

  async function send(file) {
    const { upload } = await json("POST", "/v1/uploads", { size_bytes: file.size });
    const digest = new Sha256();
    let offset = 0;
    while (offset < file.size) {
      const bytes = new Uint8Array(await file.slice(offset, offset + A_PART).arrayBuffer());
      digest.add(bytes);
      let from = 0;
      for (let tries = 1; from < bytes.length; tries++) {
        try {
          const rest = bytes.subarray(from);
          const place = `/v1/uploads/${upload}?offset=${offset + from}`;
          const now = await ask("PUT", place, rest, "application/octet-stream");
          from = now.offset - offset;
        } catch (error) {
          if (tries >= TRIES || (error.status && error.status !== 412 && error.status !== 409)) throw error;
          await new Promise((done) => setTimeout(done, 500 * tries));
          from = (await ask("GET", `/v1/uploads/${upload}`)).offset - offset;
        }
      }
      offset += bytes.length;
      bar.value = offset / file.size;
      told.textContent = `${Math.round((100 * offset) / file.size)}% sent`;
    }
    return { upload, sha256: digest.hex() };
  }

  // What is worth knowing of its images is told on the page that comes next.
  const NOTES = "affinery-notes";

  function keepNotes(notes) {
    try { sessionStorage.setItem(NOTES, JSON.stringify(notes)); } catch { /* not told, then */ }
  }

  function tellNotes() {
    let notes = [];
    try {
      notes = JSON.parse(sessionStorage.getItem(NOTES) ?? "[]");
      sessionStorage.removeItem(NOTES);
    } catch { /* none were kept */ }
    for (const note of notes) {
      const line = document.createElement("p");
      line.className = "said";
      line.textContent = note;
      document.querySelector("main [data-lost]").before(line);
    }
  }

  tellNotes();

  // What is made of an upload, and where its page is.
  const MAKES = {
    dataset: async (sent) => {
      const licence = form.elements.licence.value.trim();
      const skip_bad = form.elements.skip_bad.checked;
      const made = await json("POST", "/v1/datasets", { ...sent, skip_bad, ...(licence ? { licence } : {}) });
      keepNotes(made.notes);
      return `/new?${new URLSearchParams({ dataset: made.ref, said: "imported" })}`;
    },
    backbone: async (sent) => {
      const parent = form.elements.parent.value;
      const made = await json("POST", "/v1/backbones", { ...sent, ...(parent ? { parent } : {}) });
      return `/backbones/${encodeURIComponent(made.ref)}?said=added`;
    },
  };

  form.elements.archive.addEventListener("change", () => {
    const name = form.elements.called;
    if (!name.value && form.elements.archive.files[0]) {
      name.value = form.elements.archive.files[0].name.replace(/(\.tar)?\.[a-z0-9]+$/i, "");
    }
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    const name = form.elements.called.value.trim();
    button.disabled = true;
    bar.hidden = false;
    told.className = "faint";
    try {
      const sent = await send(form.elements.archive.files[0]);
      told.textContent = "All is sent. It is checked now, which takes a moment.";
      location.href = await MAKES[form.dataset.upload]({ name, ...sent });
    } catch (error) {
      told.textContent = error.message;
      told.className = "bad";
      button.disabled = false;
    }
  });
})();
