"""What the runtime asks of architectures and traces, which it does not import."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from torch.nn import Module

if TYPE_CHECKING:
    from .batch_layout import Chunk
    from .denoiser_call import ContextTrack, DenoiserCall
    from .text_attention import TextAttention


class Architecture(Protocol):
    """A kind of network: which layers read text, and how to reach them during a call."""

    #: ComfyUI wrappers that the architecture needs besides the binding's own, {WrappersMP kind: wrapper}.
    wrappers: Mapping[str, Callable[..., Any]]
    #: Whether ComfyUI repeats prompts of different lengths to a common one, to batch them.
    repeats_prompts: bool
    #: Whether text and image attend to each other in one attention.
    has_joint_attention: bool
    #: How many tokens of its own the network puts in front of a prompt's.
    tokens_before_text: int
    #: Whether the text that layers read depends on the noise level.
    text_depends_on_sigma: bool

    def why_unsupported(self, network: Module, name: str) -> str | None:
        """Why EBCA does not apply to a network of this kind, in a model of the class `name`; None if it does."""

    def context_width(self, network: Module, model_config: Any) -> int | None:
        """Width c of the text context that a network reads; None where it is not known."""

    def layer_names(self, network: Module) -> tuple[str, ...]:
        """The text cross-attention layers, in the order of a call."""

    def why_no_update(self, network: Module) -> str | None:
        """Why contexts cannot be updated in a supported network; None where they can."""

    def why_no_trace(self, network: Module) -> str | None:
        """Why nothing can be recorded in a supported network; None where it can."""

    def has_pooled_text(self, network: Module) -> bool:
        """Whether a supported network reads a pooled text that edits can be mixed into."""

    def unread_layers(self, network: Module) -> frozenset[str]:
        """The layers whose update no other layer reads."""

    def intercept(
        self, call: DenoiserCall, model: Module, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AbstractContextManager:
        """Have the layers of a model's network consult a call while this lasts; args and kwargs of apply_model.

        Raises EditsRefused, and so does the call of the model, where edits cannot be mixed in.
        """


class RunTrace(Protocol):
    """What EBCA Trace stores on a model."""

    wants_maps: bool


class RunWatch(Protocol):
    """What looks at the attention maps of a run while it goes on."""

    #: What was logged in any of the runs that share it.
    warned: set[str]


class CallRecorder(Protocol):
    """What is recorded in one pass of the network."""

    wants_maps: bool

    def begin(self) -> None:
        """The pass starts, or starts again."""

    def record_prompts(self, layer: TextAttention, repeats: Tensor | None, change: Tensor | None, scale: float) -> None:
        """The prompts' contexts in a layer, and the layer's change of them in units of `scale`."""

    def record_edit(self, layer: TextAttention, number: int, track: ContextTrack, change: Tensor | None) -> None:
        """An edit's context in a layer, and the layer's change of it in units of the track's scale."""

    def record_maps(self, layer: TextAttention) -> None:
        """The layer's attention to each token of the positive prompts."""


class RunRecorder(Protocol):
    """What is recorded in one run."""

    #: The node for which layers are read, as messages name it.
    reader: str
    #: Whether the next pass is recorded.
    is_recording: bool

    def call_recorder(
        self,
        names: Sequence[str],
        unread: Collection[str],
        chunks: Sequence[Chunk],
        context: Tensor,
        repeats: Tensor | None,
    ) -> CallRecorder | None:
        """A recorder for one pass of the network; None where nothing is recorded."""

    def stop(self) -> None:
        """Record no more, after an error."""

    def add(self, recorder: CallRecorder, sigma: Tensor) -> None:
        """Keep what a pass has recorded."""
