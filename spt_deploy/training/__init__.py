"""Training: from records of a data set to weights, and what a run leaves for people to read.

`samples` and `loader` make batches, `tasks` knows loss and metric of each task, `gradient` is one step, `loop` one
epoch, `run_folder` what lies on disk, `presentation` what is drawn and written of it.
"""
