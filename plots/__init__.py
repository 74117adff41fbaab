"""Pictures of what EBCA does, drawn with Pillow. Knows tensors and records, not ComfyUI.

canvas.py        paper, fonts and colours
lines.py         a panel with curves
energies.py      energies and update sizes of one trace, or of two
word_maps.py     where the image reads each word
schedule.py      the curve of a schedule
sweep.py         a labelled grid of images
"""
