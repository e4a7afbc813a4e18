"""Streaming: frames from files, cameras and the network, through a model, to what is written of them.

`sources` finds them, `turns` and `batches` bring them together, `pipeline` is the whole way over the threads of `flow`,
and `outputs` is all that is written: `writers`, `annotations`, `crops`, `window`.
"""
