"""The load generator: sends requests to a running server and measures its answers.

Data flow: prompts -> load (schedule) -> request (one exchange, by a protocol and its parser) -> metrics -> reports.
"""
