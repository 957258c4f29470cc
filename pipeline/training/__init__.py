"""The `train` stage: its loop, the trainer with its state, the checkpoint of an unfinished training, and signals."""
