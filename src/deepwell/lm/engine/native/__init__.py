"""The network carried out by compiled code, for processors: a program of operations over quantised or plain weights."""
