"""The registry HTTP API.  The only place besides ``client`` that uses aiohttp."""
