"""The OpenAPI document of the endpoints, and its HTML page."""
