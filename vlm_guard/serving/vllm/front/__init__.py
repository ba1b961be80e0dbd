"""What stands in front of vLLM's OpenAI server: what it refuses at the door, and this project's own addresses."""
