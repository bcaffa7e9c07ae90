// The lineage as a graph: hop by hop from where one stands, so that a large one stays readable.
"use strict";

(() => {
  const place = document.getElementById("graph");
  const told = document.getElementById("told");
  const root = Number(place.dataset.id);
  const nodes = new Map();
  const edges = new Map();
  const reached = new Map(); // node → how far it was looked behind, by direction
  const A_HOP = 60; // what one click adds at most
  const MOST = 1500; // what is drawn at most
  const KINDS = {
    backbone: ["round-rectangle", "--line-5"],
    dataset: ["barrel", "--line-2"],
    task: ["ellipse", "--line-0"],
    run: ["diamond", "--line-6"],
    adapter: ["round-hexagon", "--line-3"],
    composition: ["round-octagon", "--line-1"],
    export: ["round-tag", "--line-4"],
    evaluation: ["round-triangle", "--line-8"],
    certificate: ["star", "--line-9"],
  };
  const NARROW = 560; // pixels: there older things stand above, not to the left
  let graph = null;
  let upright = false;
  let chosen = root;

  // A colour of the page, as the graph library reads it: it knows no light-dark().
  function colour(name) {
    const probe = document.createElement("span");
    probe.hidden = true;
    place.append(probe);
    probe.style.color = `var(${name})`;
    const found = getComputedStyle(probe).color;
    probe.remove();
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.fillStyle = found;
    return canvas.fillStyle;
  }

  function style() {
    const ink = colour("--ink");
    const rule = colour("--strong-rule");
    return [
      { selector: "node", style: {
        label: "data(label)", color: ink, "font-size": 11, "text-valign": "bottom", "text-margin-y": 5,
        "font-family": "system-ui, sans-serif", "text-max-width": 120, "text-wrap": "ellipsis",
        width: 26, height: 26, "background-color": rule, "min-zoomed-font-size": 7,
        "text-background-color": colour("--side"), "text-background-opacity": .8, "text-background-padding": 1 } },
      ...Object.entries(KINDS).map(([kind, [shape, name]]) => ({
        selector: `node[kind = "${kind}"]`, style: { shape, "background-color": colour(name) } })),
      { selector: "edge", style: {
        width: 1.3, "line-color": rule, "target-arrow-color": rule, "target-arrow-shape": "triangle",
        "arrow-scale": .8, "curve-style": "bezier", label: "data(role)", "font-size": 9,
        "text-opacity": 0, color: colour("--faint"), "text-background-color": colour("--side"), "text-background-opacity": .85,
        "text-background-padding": 2, "min-zoomed-font-size": 8 } },
      { selector: "edge.near", style: { "text-opacity": 1, width: 2.2, "line-color": colour("--accent"),
        "target-arrow-color": colour("--accent") } },
      { selector: "node.root", style: { "border-width": 3, "border-color": ink } },
      { selector: "node.more", style: { "border-width": 2, "border-style": "dashed", "border-color": rule } },
      { selector: "node.chosen", style: { "overlay-color": colour("--accent"), "overlay-opacity": .25,
        "overlay-padding": 7, "font-weight": "bold" } },
    ];
  }

  function roles() {
    return [...document.querySelectorAll("#roles input:checked")].map((each) => each.value);
  }

  async function look(id, direction) {
    const words = new URLSearchParams({ direction, depth: 1, limit: A_HOP + 1 });
    for (const role of roles()) words.append("roles", role);
    const reply = await fetch(`/v1/lineage/node:${id}?${words}`);
    if (!reply.ok) throw new Error((await reply.json()).detail);
    const found = await reply.json();
    for (const node of found.nodes) nodes.set(node.id, node);
    for (const edge of found.edges) edges.set(`${edge.parent}-${edge.child}-${edge.role}`, edge);
    reached.set(`${id} ${direction}`, found.truncated ? "more" : "all");
    return found.truncated;
  }

  async function expand(ids) {
    let left = false;
    for (const id of ids) {
      for (const direction of ["up", "down"]) {
        if (reached.has(`${id} ${direction}`)) continue;
        if (nodes.size >= MOST) {
          told.textContent = `${nodes.size} are drawn, which is enough to read: go on from one of them.`;
          draw();
          return;
        }
        left = (await look(id, direction)) || left;
      }
    }
    draw();
    say(left);
  }

  // Columns by how far something is from its oldest ancestor; in a column, beside what it came from.
  // Where there is no room for columns they are rows, of few things each.
  function columns() {
    const tallest = (count) => upright ? Math.max(4, Math.ceil(Math.sqrt(count)))
      : Math.max(12, Math.ceil(Math.sqrt(count * 3)));
    const parents = new Map([...nodes.keys()].map((id) => [id, []]));
    for (const edge of edges.values()) parents.get(edge.child)?.push(edge.parent);
    const depth = new Map();
    for (const id of [...nodes.keys()].sort((a, b) => a - b)) { // parents are older than their children
      const above = parents.get(id).filter((each) => depth.has(each)).map((each) => depth.get(each));
      depth.set(id, above.length ? Math.max(...above) + 1 : 0);
    }
    const height = new Map();
    const byDepth = [];
    for (const [id, column] of depth) (byDepth[column] ??= []).push(id);
    const places = new Map();
    byDepth.forEach((column, at) => {
      const middle = (id) => {
        const above = parents.get(id).filter((each) => height.has(each)).map((each) => height.get(each));
        return above.length ? above.reduce((sum, each) => sum + each, 0) / above.length : 0;
      };
      column.sort((a, b) => middle(a) - middle(b) || a - b);
      // A long column is broken into several beside each other, so that it stays on the screen.
      const tall = tallest(column.length);
      column.forEach((id, place) => {
        const row = place % tall;
        const y = (row - (Math.min(tall, column.length) - 1) / 2) * 62;
        height.set(id, y);
        places.set(id, { x: at * 210 + Math.floor(place / tall) * 90, y });
      });
    });
    let shift = 0;
    byDepth.forEach((column) => { // what was broken pushes what comes after it to the right
      const tall = tallest(column.length);
      for (const id of column) places.get(id).x += shift;
      shift += (Math.ceil(column.length / tall) - 1) * 90;
    });
    if (upright) for (const [id, { x, y }] of places) places.set(id, { x: y * 1.6, y: x * .55 });
    return places;
  }

  const NAMED = ["adapter", "backbone", "composition", "dataset", "export", "task"];

  function called(node) {
    if (!NAMED.includes(node.kind)) return `${node.kind} ${node.digest.slice(0, 6)}`;
    return node.version === null ? node.name.slice(0, 24) : `${node.name.slice(0, 24)}@${node.version}`;
  }

  function draw() {
    upright = place.clientWidth < NARROW;
    const allowed = new Set(roles());
    const places = columns();
    const shownEdges = [...edges.values()].filter((edge) => allowed.has(edge.role));
    const touched = new Set([root, ...shownEdges.flatMap((edge) => [edge.parent, edge.child])]);
    const elements = [
      ...[...nodes.values()].filter((node) => touched.has(node.id)).map((node) => ({
        data: { id: String(node.id), kind: node.kind, ref: node.ref,
          label: called(node) },
        position: places.get(node.id),
        classes: [node.id === root ? "root" : "",
          ["up", "down"].some((way) => reached.get(`${node.id} ${way}`) !== "all") ? "more" : ""].join(" "),
      })),
      ...shownEdges.map((edge) => ({
        data: { id: `e${edge.parent}-${edge.child}-${edge.role}`, source: String(edge.parent),
          target: String(edge.child), role: edge.role } })),
    ];
    if (!graph) {
      graph = cytoscape({ container: place, elements, style: style(), layout: { name: "preset" },
        minZoom: .05, maxZoom: 2.5, textureOnViewport: true, hideEdgesOnViewport: true });
      graph.on("tap", "node", (event) => {
        choose(Number(event.target.id()));
        expand([chosen]).catch(fail);
      });
      window.affineryGraph = graph;
    } else {
      graph.json({ elements });
      graph.nodes().positions((node) => places.get(Number(node.id())));
    }
    graph.fit(undefined, upright ? 24 : 40);
    if (graph.zoom() > 1.2) { graph.zoom(1.2); graph.center(); }
    choose(nodes.has(chosen) ? chosen : root);
  }

  function choose(id) {
    chosen = id;
    graph.nodes().removeClass("chosen");
    graph.edges().removeClass("near");
    graph.getElementById(String(id)).addClass("chosen").connectedEdges().addClass("near");
    document.getElementById("here").disabled = id === root;
    document.getElementById("open").disabled = !addressOf(nodes.get(id));
    say(false);
  }

  function say(left) {
    const node = nodes.get(chosen);
    if (!node) return;
    const more = left ? ` More than ${A_HOP} are behind it; the first are drawn.` : "";
    const made = node.made_with ? ` Code ${node.made_with.code}, seed ${node.made_with.seed}.` : "";
    told.textContent = `${node.kind} ${node.ref.slice(node.kind.length + 1)} · ${node.digest.slice(0, 12)} · `
      + `${node.created_at.slice(0, 16).replace("T", " ")} UTC.${made}${more} ${nodes.size} drawn.`;
  }

  function addressOf(node) {
    if (!node || node.kind === "export" || !NAMED.includes(node.kind)) return "";
    return `/${node.kind}s/${encodeURIComponent(node.ref.slice(node.kind.length + 1))}`;
  }

  function fail(error) { told.textContent = `That could not be looked up: ${error.message}`; }

  // By keyboard: left and right along the edges, up and down within a column; turned, where that is drawn so.
  const TURNED = { ArrowLeft: "ArrowUp", ArrowRight: "ArrowDown", ArrowUp: "ArrowLeft", ArrowDown: "ArrowRight" };
  function step(event) {
    const now = graph.getElementById(String(chosen));
    if (now.empty()) return;
    const at = now.position();
    const key = upright ? TURNED[event.key] ?? event.key : event.key;
    const [across, along] = upright ? ["y", "x"] : ["x", "y"];
    const beside = (node) => node.position(across) === at[across];
    let among;
    if (key === "ArrowLeft") among = now.incomers("node");
    else if (key === "ArrowRight") among = now.outgoers("node");
    else if (key === "ArrowUp") among = graph.nodes().filter((n) => beside(n) && n.position(along) < at[along]);
    else if (key === "ArrowDown") among = graph.nodes().filter((n) => beside(n) && n.position(along) > at[along]);
    else if (event.key === "Enter") { event.preventDefault(); expand([chosen]).catch(fail); return; }
    else return;
    event.preventDefault();
    const near = among.toArray().sort((a, b) =>
      Math.abs(a.position(along) - at[along]) - Math.abs(b.position(along) - at[along]))[0];
    if (near) choose(Number(near.id()));
  }

  place.addEventListener("keydown", step);
  document.getElementById("fit").addEventListener("click", () => graph?.fit(undefined, upright ? 24 : 40));
  document.getElementById("more").addEventListener("click", () => expand([...nodes.keys()]).catch(fail));
  document.getElementById("here").addEventListener("click", () => {
    location.href = `/lineage/${encodeURIComponent(nodes.get(chosen).ref)}`;
  });
  document.getElementById("open").addEventListener("click", () => { location.href = addressOf(nodes.get(chosen)); });
  document.getElementById("roles").addEventListener("change", () => {
    reached.clear();
    expand([root]).catch(fail);
  });
  document.addEventListener("affinery:theme", () => graph?.style(style()));
  expand([root]).catch(fail);
})();
