"""The page of results: what each script's JSON looks like to a reader, a section a module."""
