"""Programs that break what is running, and count how often it comes out whole."""
