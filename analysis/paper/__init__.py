"""Tables for papers: what stands in them, and how it is written."""
