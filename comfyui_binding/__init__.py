"""Binds `ebca_core` to ComfyUI: what a node stores on a model, and what happens with it while sampling.

settings.py        what the nodes store on a MODEL, and how it gets there
families.py        which models have text cross-attention, and the names of its layers
hooks.py           the three ComfyUI hooks: sampling run, model call, U-Net call
run.py             what one sampling run knows (roles, lengths, windows) and carries (edit contexts)
denoiser_call.py   one U-Net call: the update and the composition, layer by layer
projection.py      the product with W_k, however ComfyUI stores it
token_weights.py   words of a prompt -> one weight per token
"""
