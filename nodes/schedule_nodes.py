"""EBCA Schedule: strengths that follow a curve over the run."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..ebca_core import SHAPES, Schedule
from ..plots.schedule_curve import schedule_curve
from .shared_inputs import CATEGORY, ScheduleType, checked_window, end_input, start_input


class EBCASchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCASchedule",
            display_name="EBCA Schedule",
            category=CATEGORY,
            description="A curve for the gammas of EBCA Context Update or for alpha and gammas of EBCA Edit Context: "
            "it multiplies them by a factor that changes over the run. Their own start_percent and end_percent hold as "
            "well.",
            search_aliases=["energy", "schedule", "ramp", "curve", "annealing"],
            inputs=[
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default="linear",
                    tooltip="constant stays at start_factor. linear and exponential go to end_factor at an even pace, "
                    "in differences and in ratios; cosine leaves and arrives gently.",
                ),
                _factor_input("start_factor", 1.0, "until start_percent"),
                _factor_input("end_factor", 0.1, "from end_percent on; for an exponential schedule above 0"),
                start_input(0.0, "the change"),
                end_input("the change"),
            ],
            outputs=[
                ScheduleType.Output(
                    display_name="schedule",
                    tooltip="For schedule of EBCA Context Update, or alpha_schedule and gamma_schedule of EBCA Edit "
                    "Context.",
                ),
                io.Image.Output(display_name="curve", tooltip="The curve, as it is shown on the node."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, shape, start_factor, end_factor, start_percent, end_percent) -> io.NodeOutput:
        schedule = Schedule(shape, start_factor, end_factor, checked_window(start_percent, end_percent))
        curve = schedule_curve(schedule)
        return io.NodeOutput(schedule, curve, ui=ui.PreviewImage(curve, cls=cls))


def _factor_input(name: str, default: float, when: str) -> io.Float.Input:
    tooltip = f"What the strengths are multiplied by {when}. 1 leaves them as they are, 0 switches them off."
    return io.Float.Input(name, default=default, min=0.0, max=10.0, step=0.01, tooltip=tooltip)


NODES = [EBCASchedule]
