"""What a person looks at: figures, pictures, the page."""
