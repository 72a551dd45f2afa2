"""The engine: requests, the scheduler, the model runner, and the two that drive them (``LLMEngine``, ``AsyncLLM``)."""
