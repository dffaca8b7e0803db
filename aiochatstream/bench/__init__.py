"""The load generator: drives a running server over HTTP and says how fast it is.

Data goes one way: prompts -> load (when) -> asking (one request, by a protocol and its parser) -> metrics -> reports.
"""
