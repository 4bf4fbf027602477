"""The speech server: OpenAI's speech endpoint, a page to try it on, and the Wyoming protocol."""
