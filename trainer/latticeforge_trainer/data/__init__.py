"""From files to packed sequences.

files       which files of a source hold the wanted subset and split
readers     file → rows: JSONL, JSON, Parquet
formats     row → sample: chat, prompt and completion, plain text
rendering   samples → token ids, and which of them the loss is taken on
mixing      sources, weights and epochs → the order of samples
packing     samples → sequences of one length, written as memory-mapped arrays
packed      the arrays, as the training loop reads them
"""
