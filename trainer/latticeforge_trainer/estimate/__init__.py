"""What training takes, told from a model's config alone; torch-free, shared with the operator.

    model = read_base_model(config)               base_model   parameters, what is on disk
    run = Run(model, payload, strategy, chip("H200"))          training, chips
    gpu_memory(run)                               memory       peak of a GPU, and whether it fits
    host_memory(run), merge_host_memory(model)    host
    disk(model, payload, …), base_disk(model)     disk
    speed(run)                                    speed        tokens/s
    loading_seconds(run), merge_seconds(model)    duration     everything but training
    why_untrainable(…), conflict(…)               base_model, training: what is refused

Predictions are made of named terms that add up to them. What the formulas leave open was fitted to
measurements and stands in `constants`; how well they predict stands in docs/planner-model.md.
"""
