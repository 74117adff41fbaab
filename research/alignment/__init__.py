"""How well pictures follow their captions: EBCA beside the baselines, counted on the shapes model.

    settings           what is compared: the candidates on the tuning captions, and the methods that are scored
    methods            each method as the model, the prompt and the cfg that a sampler takes
    results            what was sampled, kept in results.jsonl
    image_statistics   distance of pictures to drawn ones in the statistics of their colours and edges
    report             the tables of docs/alignment.md
    compare            the command: python run.py bench alignment
"""
