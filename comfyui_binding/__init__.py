"""Binds `ebca_core` to ComfyUI: what a node stores on a model, and what happens with it while sampling.

settings.py          what the nodes store on a MODEL
attach.py            its way there: checks against the MODEL, hooks
families.py          which models have text cross-attention, and the names of its layers
conditioning.py      a CONDITIONING as the context of an edit
token_weights.py     words of a prompt -> one weight per token
prompt_tokens.py     how ComfyUI's text encoders read a prompt
hooks.py             the three ComfyUI hooks: sampling run, model call, U-Net call
copied_as_itself.py  for what a run writes to, in options that other packs copy
run.py               what one sampling run knows (windows, masks) and carries (edit contexts)
prompts.py           whose rows are whose in each call: roles, lengths, areas
unet_call.py         what is known about one call of the U-Net
layer_patches.py     that call with EBCA on, layer by layer:
  prompt_update.py     the context update of the prompts themselves
  edit_composition.py  the edits mixed in, and their own updates
eager.py             torch.compile's code, kept from running where it would leave EBCA out
layer.py             one cross-attention layer at work
projection.py        the product with W_k, however ComfyUI stores it
readings.py          energies and attention maps, read while a run goes on
trace.py             what they become: the record of a run
trace_file.py        that record as a file
word_maps.py         the attention maps of words in it
inversion.py         the way from a picture to the noise it comes from
inversion_record.py  how a latent was inverted, and whether what follows fits
graph.py             reading the graph around a node
repaint.py           RePaint as a sampler
"""
