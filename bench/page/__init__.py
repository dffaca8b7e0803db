"""The page of results: one module for the section of each script."""
