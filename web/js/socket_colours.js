// Colours of the pack's own socket types, so that wires show what goes where.
import { app } from "/scripts/app.js";

const COLOURS = {
  EBCA_EDIT: "#e0a030",
  EBCA_SCHEDULE: "#7bc86c",
  EBCA_TOKEN_WEIGHTS: "#d77fb3",
  EBCA_TRACE: "#5fb8d6",
  EBCA_SWEEP: "#a98be0",
};

app.registerExtension({
  name: "EBCA.SocketColours",
  setup() {
    for (const [type, colour] of Object.entries(COLOURS)) {
      app.canvas.default_connection_color_byType[type] = colour; // classic nodes
      LGraphCanvas.link_type_colors[type] = colour; // wires
      document.documentElement.style.setProperty(`--color-datatype-${type}`, colour); // Nodes 2.0
    }
  },
});
