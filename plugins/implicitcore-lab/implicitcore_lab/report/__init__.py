"""What runs reached and cost, as one HTML page and its tables."""
