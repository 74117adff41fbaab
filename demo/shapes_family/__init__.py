"""Companion custom-node pack: teaches ComfyUI the model family of `shapes.safetensors`. It has no nodes.

Put this folder (or a link to it) into `custom_nodes` and the checkpoint into `models/checkpoints`.
"""
from .family import register

NODE_CLASS_MAPPINGS: dict = {}

register()
