// A browser on ComfyUI's front end, for devtools/front_end.py.
//
//     node driver.js URL BROWSER        with playwright-core in NODE_PATH
//
// Each line of its input is a command, {"number": ..., "name": ..., "arguments": [...]}; each line that it prints is the
// answer to the command of that number, {"number": ..., "result": ...} or {"number": ..., "error": ...}. It ends with its
// input, also while it works on a command.

const fs = require("fs");
const path = require("path");
const readline = require("readline");
const { chromium } = require("playwright-core");

const [url, executable] = process.argv.slice(2);
const SIZE = { width: 1920, height: 1080 };
const SETTLE = 400; // milliseconds in which a new graph gets its layout
const PATIENCE = 150000; // milliseconds for a command: some waits of a browser have no end
const CARDS = '[data-testid^="template-workflow-"]';

let page;
const faults = []; // of scripts in the page

const execute = (command) => page.evaluate((id) => window.app.extensionManager.command.execute(id), command);

/** Act, wait until another workflow of this name is on the canvas, and show all of it: pictures load when seen.
 *  The zoom at which the front end itself opened it.
 */
async function opened(name, act) {
  const before = await page.evaluate(() => window.app.extensionManager.workflow.activeWorkflow?.key);
  await act();
  await page.waitForFunction(([name, before]) => {
    const { workflow, spinner } = window.app.extensionManager;
    const { key, filename } = workflow.activeWorkflow ?? {};
    return key !== before && filename?.startsWith(name) && !spinner;
  }, [name, before]);
  await page.waitForTimeout(SETTLE);
  const zoom = await page.evaluate(() => window.app.canvas.ds.scale);
  await execute("Comfy.Canvas.FitView");
  await page.waitForTimeout(SETTLE);
  return zoom;
}

/** Wait until the wires are where the nodes are: Nodes 2.0 measures its nodes after they are drawn. */
async function drawn() {
  const middles = () => page.evaluate(() => {
    window.app.canvas.draw(true, true);
    return JSON.stringify([...window.app.graph.links.values()].map((link) => [...link._pos]));
  });
  for (let before, now = await middles(); before !== now; now = await middles()) {
    before = now;
    await page.waitForTimeout(SETTLE);
  }
}

/** The address of a picture in the page and its width in pixels, 0 if it does not load. */
const loaded = (picture) => picture.evaluate(async (element) => {
  await element.decode().catch(() => {});
  return { picture: element.getAttribute("src"), width: element.naturalWidth };
});

/** What a picture in the page shows, as a PNG in base64. Its address may have gone by then. */
const shown = (picture) => picture.evaluate((element) => {
  const canvas = Object.assign(document.createElement("canvas"), {
    width: element.naturalWidth, height: element.naturalHeight,
  });
  canvas.getContext("2d").drawImage(element, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
});

const commands = {
  /** Open the front end, on an empty workflow; its version. */
  async open() {
    await page.goto(url, { waitUntil: "domcontentloaded" });
    await page.waitForFunction(() => window.app?.extensionManager && window.LiteGraph?.registered_node_types?.KSampler);
    await execute("Comfy.NewBlankWorkflow");
    await page.waitForTimeout(SETTLE);
    return page.evaluate(() => window.__COMFYUI_FRONTEND_VERSION__);
  },

  /** Opens the template browser. The cards of a category: {file name: {title, picture, as PNG in base64}}. */
  async cards(category) {
    await browseTemplates(category);
    const cards = {};
    for (const card of await page.locator(CARDS).all()) {
      await card.scrollIntoViewIfNeeded(); // pictures load when they are seen
      const picture = card.locator("img").first();
      await picture.waitFor();
      await loaded(picture);
      const name = (await card.getAttribute("data-testid")).slice("template-workflow-".length);
      cards[name] = { title: await card.locator("h3").innerText(), picture: await shown(picture) };
    }
    return cards;
  },

  /** Close the dialog that is open. */
  async escape() {
    await page.keyboard.press("Escape");
  },

  /** The names of the templates that a search finds, of all extensions. */
  async searchTemplates(text) {
    await browseTemplates();
    await page.locator("[role=dialog] input[placeholder]").first().fill(text);
    await page.waitForTimeout(4 * SETTLE); // it waits for the end of the typing
    const cards = await page.locator(CARDS).all();
    const names = await Promise.all(cards.map((card) => card.getAttribute("data-testid")));
    return names.map((name) => name.slice("template-workflow-".length));
  },

  /** Open a template, as a user does; the zoom at which it opens. */
  async openTemplate(category, name) {
    await browseTemplates(category);
    // Not by the mouse: cards move while the pictures above them load, and a click that begins on one and ends elsewhere
    // is none.
    return opened(name, () => page.locator(`[data-testid="template-workflow-${name}"]`).dispatchEvent("click"));
  },

  /** Drop a file onto the canvas; the zoom at which it opens. */
  async drop(file) {
    const data = await page.evaluateHandle(([name, text]) => {
      const data = new DataTransfer();
      data.items.add(new File([text], name, { type: "application/json" }));
      return data;
    }, [path.basename(file), fs.readFileSync(file, "utf8")]);
    return opened(path.parse(file).name, async () => {
      for (const type of ["dragenter", "dragover", "drop"]) {
        await page.locator("#graph-canvas").dispatchEvent(type, { dataTransfer: data });
      }
    });
  },

  /** Save the workflow under the name that the front end proposes; its path in the user's folder. */
  async save() {
    await page.keyboard.press("Control+s");
    await page.locator("[role=dialog] input:not([type=file])").waitFor();
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => {
      const workflow = window.app.extensionManager.workflow.activeWorkflow;
      return workflow.isPersisted && !workflow.isModified;
    });
    return page.evaluate(() => window.app.extensionManager.workflow.activeWorkflow.path);
  },

  /** Close the workflow, without saving what has changed. */
  async close() {
    const closed = execute("Workspace.CloseWorkflow");
    const anyway = page.locator("[role=dialog] button", { hasText: /^\s*(No|Close anyway)\s*$/i }); // older, newer
    await Promise.race([closed, anyway.waitFor().catch(() => {})]); // it asks where something has changed
    if (await anyway.isVisible()) await anyway.click();
    await closed;
  },

  /** What is on the canvas:
   *  graph: as it would be saved. nodes: [{id, type, title, known, red, box}] with the box [left, top, width, height] as
   *  drawn, in the graph's units. under: [link, title of a node that its wire runs under]. values: {id: {widget: value}} without what a wire sets. complaints: what the front end
   *  warns of, and what its scripts have thrown since this was last asked.
   */
  async canvas() {
    if (await page.evaluate(() => window.LiteGraph.vueNodesMode)) {
      await page.waitForFunction(() => // those that are not in the page would lie where they lie with classic nodes
        window.app.graph.nodes.every((node) => document.querySelector(`[data-node-id="${node.id}"]`)));
    }
    await drawn();
    return page.evaluate((faults) => {
      const { graph, canvas } = window.app;
      const box = (node) => {
        const element = document.querySelector(`[data-node-id="${node.id}"]`); // Nodes 2.0
        if (!element) return [...node.boundingRect];
        const { left, top, width, height } = element.getBoundingClientRect();
        const { left: x, top: y } = canvas.canvas.getBoundingClientRect();
        const { scale, offset } = canvas.ds;
        return [(left - x) / scale - offset[0], (top - y) / scale - offset[1], width / scale, height / scale];
      };
      // A wire that runs under a node crosses its border. Paths are in the graph's units; each reroute has the part
      // of the wire that leads to it. Asking for every point of a border takes seconds: a path that does not come near
      // the node, or near a piece of its border, is on none of the points there. `tip`: how far a drawn bend sticks out.
      const pen = Object.assign(document.createElement("canvas").getContext("2d"), { lineWidth: 4 });
      const round = { lineCap: "round", lineJoin: "round" };
      const broad = Object.assign(document.createElement("canvas").getContext("2d"), round);
      const [length, step, tip] = [40, 4, pen.miterLimit * pen.lineWidth / 2];
      const isNear = (path, x, y, reach) => {
        broad.lineWidth = 2 * (reach + tip);
        return broad.isPointInStroke(path, x, y);
      };
      const border = ([left, top, width, height], inset = 3) => {
        const pieces = [];
        const side = (from, to, at) => {
          for (let start = from; start < to; start += length) {
            const points = [];
            for (let along = start; along < to && along < start + length; along += step) points.push(at(along));
            pieces.push({ middle: at(start + length / 2), points });
          }
        };
        for (const y of [top + inset, top + height - inset]) side(left + inset, left + width - inset, (x) => [x, y]);
        for (const x of [left + inset, left + width - inset]) side(top + inset, top + height - inset, (y) => [x, y]);
        return pieces;
      };
      const crosses = (path, [left, top, width, height], pieces) =>
        isNear(path, left + width / 2, top + height / 2, Math.hypot(width, height) / 2) &&
        pieces.some(({ middle, points }) =>
          isNear(path, ...middle, length / 2) && points.some((point) => pen.isPointInStroke(path, ...point)));
      const pathsOf = (link) => {
        const paths = [link.path];
        for (let id = link.parentId; id != null;) {
          const reroute = graph.reroutes.get(id);
          paths.push(reroute.path);
          id = reroute.parentId;
        }
        return paths.filter(Boolean);
      };
      const wires = [...graph.links.values()].map((link) => [link, pathsOf(link)]);
      const under = graph.nodes.flatMap((node) => {
        const [around, pieces] = [box(node), border(box(node))];
        const others = wires.filter(([link]) => link.origin_id !== node.id && link.target_id !== node.id);
        return others.filter(([, paths]) => paths.some((path) => crosses(path, around, pieces)))
          .map(([link]) => [link.id, node.title]);
      });
      const wired = (node, widget) => node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);
      const free = (node) => (node.widgets ?? []).filter((widget) => !wired(node, widget));
      return {
        graph: graph.serialize(),
        nodes: graph.nodes.map((node) => ({
          id: node.id,
          type: node.type,
          title: node.title,
          known: node.type in window.LiteGraph.registered_node_types,
          red: !!node.has_errors,
          box: box(node),
        })),
        under,
        paths: wires.flatMap(([, paths]) => paths).length,
        values: Object.fromEntries(
          graph.nodes.map((node) => [node.id, Object.fromEntries(free(node).map((widget) => [widget.name, widget.value]))]),
        ),
        complaints: [
          ...document.querySelectorAll('[data-testid="error-overlay"], .p-toast-message-error, .p-toast-message-warn'),
        ].map((element) => element.innerText).concat(faults),
      };
    }, faults.splice(0));
  },

  /** The prompt that the front end would send for what is on the canvas, in API format. */
  async prompt() {
    return page.evaluate(async () => (await window.app.graphToPrompt()).output);
  },

  /** Set widgets: [[node id, widget, value]]. */
  async set(values) {
    await page.evaluate((values) => {
      for (const [id, name, value] of values) {
        const widget = window.app.graph.getNodeById(id).widgets.find((widget) => widget.name === name);
        widget.value = value;
        widget.callback?.(value);
      }
    }, values);
  },

  /** Press Run; the server's answer. */
  async run() {
    const [answer] = await Promise.all([
      page.waitForResponse((response) => new URL(response.url()).pathname === "/api/prompt"),
      page.locator('[data-testid="queue-button"]').click(),
    ]);
    return answer.json();
  },

  /** The widths in pixels of the pictures that a node shows, once it shows any. */
  async pictures(id) {
    const shown = await page.waitForFunction((id) => {
      const element = document.querySelector(`[data-node-id="${id}"]`);
      const pictures = [...(element ? element.querySelectorAll("img") : window.app.graph.getNodeById(id).imgs ?? [])];
      return pictures.length && pictures.every((picture) => picture.complete) && pictures.map((p) => p.naturalWidth);
    }, id);
    return shown.jsonValue();
  },

  /** The texts that a node shows: those of its widgets, and with Nodes 2.0 all that is on it. */
  async texts(id) {
    return page.evaluate((id) => {
      const element = document.querySelector(`[data-node-id="${id}"]`);
      const fields = [...(element?.querySelectorAll("textarea, input") ?? [])].map((field) => field.value);
      const widgets = element ? [element.innerText, ...fields] : window.app.graph.getNodeById(id).widgets.map((w) => w.value);
      return widgets.filter((text) => typeof text === "string");
    }, id);
  },

  /** The colours of socket types: {type: {socket, wire, dot}}, the last that of Nodes 2.0. */
  async colours(types) {
    return page.evaluate((types) => {
      const { canvas } = window.app;
      const sheet = getComputedStyle(document.body); // older front ends set them there
      return Object.fromEntries(types.map((type) => [type, {
        socket: canvas.default_connection_color_byType[type],
        wire: canvas.constructor.link_type_colors[type],
        dot: sheet.getPropertyValue(`--color-datatype-${type}`).trim(),
      }]));
    }, types);
  },

  /** The nodes that the node search finds, in its order. */
  async search(text) {
    await searchNodes(text);
    await page.locator('[data-testid="result-item"]').first().waitFor();
    await page.waitForTimeout(2 * SETTLE);
    const found = await page.locator('[data-testid="result-item"]').allInnerTexts();
    await page.keyboard.press("Escape");
    await page.locator("[role=dialog]").waitFor({ state: "hidden" });
    await page.waitForTimeout(SETTLE);
    return found;
  },

  /** Put a node on an empty canvas and open its help: its headings and its pictures [{picture, width}]. */
  async help(type) {
    await page.evaluate((type) => {
      const { graph, canvas } = window.app;
      graph.clear();
      const node = window.LiteGraph.createNode(type);
      graph.add(node);
      canvas.selectNode(node);
      canvas.centerOnNode(node);
    }, type);
    await page.locator('[data-testid="info-button"]').click();
    const text = page.locator(".node-help-content").locator(".markdown-content, .comfy-markdown-content"); // older, newer
    await text.waitFor();
    const headings = await text.locator("h1, h2").allInnerTexts();
    const pictures = await Promise.all((await text.locator("img").all()).map(loaded));
    return { headings, pictures };
  },

  /** Find a node by its title, as a user does, and put it on the empty canvas. */
  async place(title) {
    await page.evaluate(() => window.app.graph.clear());
    await page.waitForTimeout(SETTLE);
    await searchNodes(title);
    await page.locator('[data-testid="result-item"]', { hasText: title }).first().click();
    await page.waitForFunction(() => window.app.canvas.state.ghostNodeId != null); // it follows the cursor
    await page.locator("[role=dialog]").waitFor({ state: "hidden" });
    await page.mouse.click(SIZE.width / 2, SIZE.height / 3);
    await page.waitForFunction(() => window.app.canvas.state.ghostNodeId == null);
    await page.waitForTimeout(SETTLE);
  },

  /** A picture of the window. */
  async screenshot(file) {
    await page.screenshot({ path: file });
  },
};

/** Open the node search where workflows leave the canvas empty. The first click after a workflow was closed is lost. */
async function searchNodes(text) {
  const input = page.locator("[role=dialog] input:not([type=file])"); // not that of a picture of the preview
  for (let tries = 0; tries < 5 && !(await input.isVisible()); tries++) {
    await page.mouse.dblclick(SIZE.width / 2, SIZE.height - 150);
    await input.waitFor({ timeout: 10000 }).catch(() => {});
  }
  await input.fill(text);
}

async function browseTemplates(category = "All Templates") {
  await execute("Comfy.BrowseTemplates");
  await page.locator("[role=dialog]").getByText(category, { exact: true }).first().click();
  await page.locator(CARDS).first().waitFor();
}

async function main() {
  const input = readline.createInterface({ input: process.stdin });
  input.on("close", () => process.exit()); // which ends the browser and removes its files
  const lines = input[Symbol.asyncIterator](); // from here on none is missed
  const browser = await chromium.launch({ executablePath: executable, args: ["--no-sandbox", "--disable-gpu"] });
  page = await browser.newPage({ viewport: SIZE, reducedMotion: "reduce" });
  page.setDefaultTimeout(100000); // of a busy machine with two cores
  page.on("pageerror", (error) => faults.push(String(error)));
  // What is not on this machine is refused at once, instead of keeping the page waiting.
  await page.route((address) => address.origin !== new URL(url).origin, (route) => route.abort());
  for await (const line of lines) {
    const { number, name, arguments: args } = JSON.parse(line);
    try {
      const late = new Promise((_, reject) => setTimeout(reject, PATIENCE, new Error(`Not done after ${PATIENCE} ms.`)).unref());
      const result = await Promise.race([commands[name](...args), late]);
      console.log(JSON.stringify({ number, result: result ?? null }));
    } catch (error) {
      console.log(JSON.stringify({ number, error: String(error) }));
    }
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
