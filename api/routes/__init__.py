"""OpenAI route families, a file each."""
