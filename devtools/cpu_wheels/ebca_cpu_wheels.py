"""Let torchvision and torchaudio wheels that were built for CUDA import under a torch that was not.

A package index has one build of each, for CUDA; beside a CPU torch their compiled parts find no CUDA libraries. ComfyUI
imports both packages and uses nothing of those parts:
- torchvision goes on without its extension but for two operators that it describes to torch: declare them first.
- torchaudio takes a missing extension for granted but not one that does not load: report it as missing.
Nothing is changed on disk, and with matching wheels nothing changes at all. devtools/environment.py installs this file
into the environment that it makes.
"""

import importlib.machinery
import sys

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_operators() -> None:
    import torch

    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _NMS)


def _forgive_extension(module) -> None:
    load = module._load_lib

    def load_or_report_missing(library):
        try:
            return load(library)
        except OSError:
            return False

    module._load_lib = load_or_report_missing


# module: what runs before its code, what runs after it
_HOOKS = {
    "torchvision._meta_registrations": (_declare_operators, None),
    "torchaudio._extension.utils": (None, _forgive_extension),
}


class _Finder:
    @staticmethod
    def find_spec(name, path, target=None):
        if name not in _HOOKS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        before, after = _HOOKS[name]
        run = spec.loader.exec_module

        def exec_module(module):
            if before:
                before()
            run(module)
            if after:
                after(module)

        spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Watch the imports of the two packages from now on."""
    sys.meta_path.insert(0, _Finder)
