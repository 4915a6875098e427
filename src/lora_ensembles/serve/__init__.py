"""The HTTP server: saved ensembles behind the routes that clients of OpenAI, vLLM and transformers know."""
