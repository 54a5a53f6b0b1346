"""Development servers, the demo and its pages; nothing of production imports this package."""
