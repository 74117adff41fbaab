"""Choosing among runs by the model's own attention: which score says early that a picture comes out wrong.

    settings    what is chosen among, and how, on each trained model
    recording   the maps of a caption's objects in every call of the model
    scores      what they are worth
    runs        what was recorded, kept in results.jsonl
    policies    what choosing by a score gives, computed from whole runs
    cost        the time of a score
    report      the tables of docs/choosing.md
    choose      the command: python run.py bench choosing
"""
