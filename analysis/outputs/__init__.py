"""What is shown of a run: tables, figures, and a page with all of them."""
