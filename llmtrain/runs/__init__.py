"""A run on disk: its folder (`folder`), the export of its model (`export`), the stages of a file in turn (`stages`)."""
