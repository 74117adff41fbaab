"""The parts of `real_edits`: the paper's edits of photographs on running ComfyUI servers.

    edits       the three edits, with the authors' settings where they are known
    photos      a folder of photographs with captions and masks
    graph       the workflow file, with the ways without EBCA beside it
    networks    structure distance and background error
    measures    what is measured, and the table
"""
