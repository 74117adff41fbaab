"""EBCA Schedule: a factor for strengths that changes over the run."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..ebca_core import SHAPES, Schedule
from ..plots.schedule_curve import schedule_curve
from .input_validation import first_error
from .shared_inputs import EDIT, ScheduleType, end_input, start_input, validated_window


class EBCASchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCASchedule",
            display_name="EBCA Schedule",
            category=EDIT,
            description="A schedule for the gammas of EBCA Context Update, or for alpha and the gammas of EBCA Edit "
            "Context: they are multiplied by a factor that changes over the run. Their own start_percent and "
            "end_percent still apply.",
            search_aliases=["energy", "schedule", "ramp", "curve", "annealing"],
            inputs=[
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default="linear",
                    tooltip="constant keeps start_factor. linear and exponential interpolate to end_factor "
                    "arithmetically and geometrically; cosine eases in and out.",
                ),
                _factor_input("start_factor", 1.0, "before start_percent"),
                _factor_input(
                    "end_factor", 0.1, "after end_percent", " An exponential schedule needs a value above 0."
                ),
                start_input(0.0, "the transition"),
                end_input(1.0, "the transition"),
            ],
            outputs=[
                ScheduleType.Output(
                    display_name="schedule",
                    tooltip="Connect to schedule of EBCA Context Update, or to alpha_schedule or gamma_schedule of "
                    "EBCA Edit Context.",
                ),
                io.Image.Output(display_name="curve", tooltip="The curve that the node shows, as an image."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, shape=None, start_factor=None, end_factor=None, start_percent=None, end_percent=None):
        values = dict(
            shape=shape,
            start_factor=start_factor,
            end_factor=end_factor,
            start_percent=start_percent,
            end_percent=end_percent,
        )
        window = (validated_window, "start_percent", "end_percent")
        return first_error(cls, values, window, (Schedule, "shape", "start_factor", "end_factor"))

    @classmethod
    def execute(cls, shape, start_factor, end_factor, start_percent, end_percent) -> io.NodeOutput:
        schedule = Schedule(shape, start_factor, end_factor, validated_window(start_percent, end_percent))
        curve = schedule_curve(schedule)
        return io.NodeOutput(schedule, curve, ui=ui.PreviewImage(curve, cls=cls))


def _factor_input(name: str, default: float, when: str, advice: str = "") -> io.Float.Input:
    tooltip = f"Factor of the strength {when}. 1 leaves it unchanged, 0 disables it.{advice}"
    return io.Float.Input(name, default=default, min=0.0, max=10.0, step=0.01, tooltip=tooltip)


NODES = [EBCASchedule]
