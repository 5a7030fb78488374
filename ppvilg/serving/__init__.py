"""The service: a store of jobs, worker processes that draw them together, and an API that known clients speak.

Importing the room or its `store`, `api` and `model` loads no Paddle; `worker` does.
"""
