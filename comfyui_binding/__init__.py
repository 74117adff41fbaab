"""Runs the method of `ebca_core` in ComfyUI's models: updates, edits, traces, inversion, RePaint and Reroll.

A call of the model: sampling_hooks.apply_model makes a DenoiserCall and opens the architecture's `intercept` (U-Nets:
their wrapper `unet.unet_forward`). Where layers read text by cross-attention, each asks the call for its text
(`context`) and hands it the attention's output (`output`). joint_attention.py mixes the outputs itself and asks the
call for weights only. At the end apply_model keeps what later calls need (`commit`).

model_patch.py            a node's settings -> checked, and stored on a clone of the MODEL
sampling_hooks.py         the ComfyUI wrappers around a sampling run and around a call of the model
wrapped_arguments.py      arguments of wrapped calls, by position
pack_formats.py           data formats of other packs: context windows, NegPip texts
node_messages.py          shows a text on a node
shared_on_deepcopy.py     mixin for objects in ComfyUI's options, which other packs copy

Another pack replaces attention or a forward pass: docs/neighbours.md has a table of what happens, with the function
that decides each case; notices.py has the messages.

architectures/            everything that depends on the model; one file for each kind of network
  registry.py               MODEL -> its architecture, or a refusal
  unet.py                   SD 1.x to SDXL: their layers, and ComfyUI's attn2 patches
  transformer.py            transformers with text cross-attention: hooks on their modules
  transformer_families.py   what must be known of a network (`Family`), and one entry for each, from Wan to ACE-Step
  joint_attention.py        transformers with text and image in one attention, edits only; what must be known of a
                            network (`JointFamily`)
  joint_families.py         one entry for each of them
  joint_layer_call.py       one attention call of such a layer, text by text, plain or shared (shared_attention)
  host_attention.py         which attention function is called: ComfyUI's, PyTorch's (also with its log-sum-exp) or
                            another pack's
  module_hooks.py           hooks on modules, and whether a forward pass is ComfyUI's own
  edit_conds.py             what ComfyUI makes of an edit's CONDITIONING
  refused_networks.py       the reasons why others are refused
  key_projection.py         G @ W_k, however ComfyUI stores W_k
  key_norms.py              gradient through a key norm
  layer_selection.py        names of layers, and the grammar of `blocks`

runtime/                  one sampling run; imports no architecture, no trace and no sampler
  settings.py               what the nodes store on a MODEL
  sampling_run.py           the state of a run, which is made of (all in runtime/):
    timeline.py               which windows are on, how strong schedules make them
    batch_layout.py           which rows of a call belong to which prompt and image
    carried_contexts.py       changes of edit contexts, kept from call to call
    tensor_cache.py           tensors on the run's device, and masks on layers' grids (by ebca_core/mask.py)
    notices.py                every reason why EBCA is bypassed, as the user reads it
  denoiser_call.py          one call of the model: all contexts in it, and their steps
  text_attention.py         protocol: one call of a layer, as an architecture provides it
  protocols.py              what the runtime asks of architectures and traces
  torch_compile.py          keeps compiled code from running where it would bypass EBCA

text/                     prompts
  tokenized_prompt.py       the tokens and words of a prompt
  vocabularies.py           what the pieces of a text encoder's vocabulary spell
  token_weights.py          words of a prompt -> one weight per token
  concepts.py               the concepts in a prompt, by rules
  noun_phrases.py           the noun phrases of a caption
  concept_words.py          the words that these rules go by
  strengths.py              numbers after a word, as in `shirt = 2.5`
  edit_conditioning.py      encodes the prompt of an edit, and checks its CONDITIONING
  scored_concepts.py        concepts that get a score: single things, and the positions of their words

trace/                    EBCA Trace
  recorder.py               what is recorded during a run
  trace_record.py           the record
  trace_file.py             the record as a file
  word_positions.py         the attention maps of words in it
  object_maps.py            one map per object of the prompt, input of one_place_score
  map_pooling.py            maps of fine grids on coarser ones

samplers/                 inversion, RePaint and Reroll
  reroll.py                 the best of several noises, judged half-way
  single_image.py           one image of a batch as a run of its own
  inversion_run.py          an image -> the noise it comes from, by ComfyUI's own guider and sampler
  inversion_record.py       how a latent was inverted, and whether the nodes after it fit
  workflow_graph.py         the graph around a node
  repaint_sampler.py        RePaint as a SAMPLER
  model_kinds.py            whether a model adds noise or mixes it in (flow matching), and reads the noise mask
"""
