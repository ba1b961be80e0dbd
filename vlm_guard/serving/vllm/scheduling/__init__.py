"""Second requests beside those of clients: how they are made, and how both halves of a pair share their steps."""
