// Newer front ends take the texts of a run off the nodes when the run ends. On this pack's nodes they say what the run
// did, so they are shown again.
import { api } from "/scripts/api.js";
import { app } from "/scripts/app.js";

const ENDS = ["execution_success", "execution_error", "execution_interrupted"];
const texts = new WeakMap(); // {node: its last text}

/** A node of this pack on the canvas, by its id; not one within a subgraph, whose id in a run is another. */
function own(id) {
  const node = app.canvas?.graph?.getNodeById(id);
  return node?.comfyClass?.startsWith("EBCA") ? node : undefined;
}

/** Have the front end show the texts of the nodes on the canvas. */
function show() {
  for (const { id } of app.canvas?.graph?.nodes ?? []) {
    const text = texts.get(own(id));
    if (text) api.dispatchCustomEvent("progress_text", { nodeId: String(id), text });
  }
}

app.registerExtension({
  name: "EBCA.NodeTexts",
  setup() {
    api.addEventListener("progress_text", ({ detail: { nodeId, text } }) => {
      const node = own(nodeId);
      if (node) texts.set(node, text);
    });
    for (const end of ENDS) api.addEventListener(end, () => setTimeout(show)); // after the front end's own listeners
  },
});
