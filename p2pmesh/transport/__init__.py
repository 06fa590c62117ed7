"""asyncio and the operating system; decides nothing about the protocol."""
