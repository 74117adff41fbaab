"""Plots, drawn with Pillow. They read tensors and records, and do not import ComfyUI.

canvas.py           the sheet, fonts and colours
line_chart.py       a panel with curves
energy_plot.py      energies and update sizes of one trace or two
word_map_sheet.py   attention maps of words over the image
schedule_curve.py   the curve of a schedule
sweep_grid.py       a labelled grid of images
"""
