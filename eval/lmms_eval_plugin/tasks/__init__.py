"""No tasks: there are plenty in lmms-eval, but its command line demands this package of every plug-in it is told."""
