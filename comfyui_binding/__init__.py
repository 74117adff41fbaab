"""Binds `ebca_core` to ComfyUI: what a node stores on a model, and what happens with it while sampling.

settings.py          what the nodes store on a MODEL, and how it gets there
families.py          which models have text cross-attention, and the names of its layers
conditioning.py      a CONDITIONING as the context of an edit
token_weights.py     words of a prompt -> one weight per token
hooks.py             the three ComfyUI hooks: sampling run, model call, U-Net call
run.py               what one sampling run knows (roles, lengths, windows) and carries (edit contexts)
call.py              what is known about one call of the U-Net
denoiser_call.py     that call with EBCA on, layer by layer:
  prompt_update.py     the context update of the prompts themselves
  edit_composition.py  the edits mixed in, and their own updates
eager.py             torch.compile's code, kept from running where it would leave EBCA out
layer.py             one cross-attention layer at work
projection.py        the product with W_k, however ComfyUI stores it
"""
