"""One module a command of the command line; what is heavy to import is imported when the command runs."""
