"""Pictures as judge: a small text-to-image model, a reader of its pictures, and what every method makes of them."""
