"""How an engine comes to have guards: its options, vLLM's plug-in, and what the server's door and checkpoints need."""
