"""What answers requests: models on this machine, vLLM, and servers that speak OpenAI's protocol."""
