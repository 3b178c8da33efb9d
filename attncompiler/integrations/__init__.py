"""One module a host library: how a variant runs inside it."""
