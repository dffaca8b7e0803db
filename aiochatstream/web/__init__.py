"""How it is spoken: HTTP in, HTTP out."""
