// Colours of the pack's own socket types, so that wires show what goes where.
import { app } from "/scripts/app.js";

const COLOURS = {
  EBCA_EDIT: "#e0a030",
  EBCA_SCHEDULE: "#7bc86c",
  EBCA_TOKEN_WEIGHTS: "#d77fb3",
  EBCA_TRACE: "#5fb8d6",
  EBCA_SWEEP: "#a98be0",
};

/** Give each type its colour in a table that the front end fills anew from every palette: "" for types without one. */
function keep(table) {
  for (const [type, colour] of Object.entries(COLOURS)) {
    let current = colour;
    Object.defineProperty(table, type, {
      configurable: true,
      enumerable: true,
      get: () => current,
      set: (fromPalette) => (current = fromPalette || colour),
    });
  }
}

app.registerExtension({
  name: "EBCA.SocketColours",
  setup() {
    keep(app.canvas.default_connection_color_byType); // sockets of classic nodes
    keep(app.canvas.constructor.link_type_colors); // wires
    // Sockets of Nodes 2.0. A palette sets its colours on the element itself, which wins over this sheet.
    const sheet = document.createElement("style");
    const rules = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
    sheet.textContent = `:root { ${rules.join(" ")} }`;
    document.head.append(sheet);
  },
});
