"""Binds `ebca_core` to ComfyUI. A text context moves from layer to layer: that is what all of this serves.

model_patch.py            a node's settings -> checked, and stored on a clone of the MODEL
sampling_hooks.py         the ComfyUI wrappers around a sampling run and around a call of the model
shared_on_deepcopy.py     mixin for objects in ComfyUI's options, which other packs copy

architectures/            all that is known about a model; one file for each kind of network
  registry.py               MODEL -> its architecture, or a refusal
  unet.py                   SD 1.x to SDXL: their layers, and ComfyUI's attn2 patches
  transformer.py            transformers with text cross-attention: hooks on their modules
  transformer_families.py   one entry for each of them, from Wan to ACE-Step
  refused_networks.py       the reasons why others are refused
  key_projection.py         G @ W_k, however ComfyUI stores W_k
  key_norms.py              the way back through a norm of the keys
  layer_selection.py        names of layers, and the grammar of `blocks`

runtime/                  one sampling run; knows no architecture, no trace and no sampler
  settings.py               what the nodes store on a MODEL
  sampling_run.py           the state of a run, which is made of:
    timeline.py               which windows are on, how strong schedules make them
    batch_layout.py           which rows of a call belong to which prompt and image
    carried_contexts.py       edit contexts kept from call to call
    tensor_cache.py           tensors of the settings on the run's device
    notices.py                every reason for which EBCA is bypassed, as the user reads it
  denoiser_call.py          one call of the model: all contexts in it, and their steps
  text_attention.py         one layer at work, as an architecture hands it over
  protocols.py              what the runtime asks of architectures and traces
  torch_compile.py          keeps compiled code from running where it would leave EBCA out

text/                     prompts
  tokenized_prompt.py       the tokens and words of a prompt
  token_weights.py          words of a prompt -> one weight per token
  edit_conditioning.py      a CONDITIONING -> the context of an edit
  concepts.py               the things that a prompt names, by noun_phrases.py and concept_words.py
  scored_concepts.py        those that have one place in an image, and where their words are

trace/                    EBCA Trace
  recorder.py               what is recorded during a run
  trace_record.py           the record
  trace_file.py             the record as a file
  word_positions.py         the attention maps of words in it
  object_maps.py            the attention maps of things, as the score takes them
  map_pooling.py            maps of fine grids on coarser ones

samplers/                 inversion, RePaint, and runs with several noises
  reroll.py                 the best of several noises, judged half-way
  single_image.py           one image of a batch as a run of its own
  inversion_run.py          a picture -> the noise it comes from, by ComfyUI's own guider and sampler
  inversion_record.py       how a latent was inverted, and whether what follows fits
  workflow_graph.py         the graph around a node
  repaint_sampler.py        RePaint as a SAMPLER
  model_kinds.py            which models predict noise
"""
